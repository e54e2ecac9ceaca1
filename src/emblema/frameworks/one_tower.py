"""One tower: images and texts go through the same transformer blocks.

Either the two have their own embedders (OneR), or there is none for texts at all: they are drawn as pictures
and the image tower reads them (CLIPPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from emblema.core.tokens import Edit, Tokens
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.tower import Tower
from emblema.encoders.vit import ViT, ViTConfig
from emblema.frameworks.two_tower import known, part
from emblema.frameworks.vlm import VLM
from emblema.objectives.logit_scale import LogitScale


@dataclass(frozen=True, kw_only=True)
class OneTower:
    """Shape of a one-tower model. `text` gives the embedder of words; None: texts are drawn."""

    framework: ClassVar[str] = "one-tower"
    image: ViTConfig = field(default_factory=ViTConfig)
    text: TextConfig | None = None
    dim: int = 512
    scale: str = "clip"
    logit_bias: float | None = None

    def build(self) -> VLM:
        """A model whose two towers hold the same block objects."""
        image = self.image.build(self.dim)
        text: Tower = RenderedText(image) if self.text is None else self._words(image, self.text)
        return VLM(image, text, LogitScale.preset(self.scale), self.logit_bias)

    def _words(self, image: ViT, config: TextConfig) -> Tower:
        ours = (config.width, config.depth, config.heads, config.mlp_ratio, config.activation, config.eps)
        shape = self.image
        if ours != (shape.width, shape.depth, shape.heads, shape.mlp_ratio, shape.activation, shape.eps):
            raise ValueError(
                "one tower has one trunk: width, depth, heads, mlp_ratio, activation and eps of text "
                f"{ours} and image must be equal"
            )
        text = config.build(self.dim)
        text.blocks, text.norm = image.blocks, image.norm
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> OneTower:
        """Unknown keys and kinds are errors that name them."""
        parts = {k: part(k, v) if isinstance(v, dict) else v for k, v in data.items()}
        return cls(**known(cls, parts, "model"))


class RenderedText(Tower):
    """Texts drawn as pictures and read by an image tower; there is no vocabulary.

    Letters are drawn without smoothing in a bitmap font, dark on the grey that normalisation maps near zero.
    What does not fit the canvas is cut, and `cut` says how many texts of the last batch were.
    """

    def __init__(self, image: ViT, line: int = 12):
        super().__init__()
        self.trunk = image  # the same object: every weight is shared
        self.width, self.depth, self.dim, self.line, self.cut = image.width, image.depth, image.dim, line, 0
        if image.image_size < line + 4:
            raise ValueError(f"a canvas of {image.image_size} px has no room for a line of {line} px")

    @property
    def blocks(self) -> torch.nn.ModuleList:
        return self.trunk.blocks

    @property
    def norm(self) -> torch.nn.Module:
        return self.trunk.norm

    def render(self, texts: Sequence[str]) -> Tensor:
        """Texts -> uint8 pictures [N, 3, S, S]."""
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; write [text]")
        if isinstance(texts, TextIds):
            raise TypeError("a one-tower model draws its texts and has no tokens: give strings, not ids")
        pages = [self._page(text) for text in texts]
        self.cut = sum(cut for _, cut in pages)
        size = self.trunk.image_size
        grey = torch.stack([p for p, _ in pages]) if pages else torch.zeros(0, size, size, dtype=torch.uint8)
        return grey[:, None].expand(-1, 3, -1, -1)

    def _page(self, text: str) -> tuple[Tensor, bool]:
        from PIL import Image, ImageDraw, ImageFont

        size = self.trunk.image_size
        font = ImageFont.load_default_imagefont()
        page = Image.new("L", (size, size), 127)
        draw = ImageDraw.Draw(page)
        draw.fontmode = "1"  # no smoothing: the same letter is the same patch
        # the bitmap font holds Latin-1; other letters are drawn as their code, so no two words look alike
        letters = "".join(c if ord(c) < 256 else f"\\{ord(c):x}" for c in text.lower())
        lines, words = [""], letters.split()
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and draw.textlength(longer, font=font) > size:
                lines.append(word)
            else:
                lines[-1] = longer
        room = size // self.line
        for row, line in enumerate(lines[:room]):
            draw.text((0, row * self.line), line, fill=0, font=font)
        wide = any(draw.textlength(line, font=font) > size for line in lines)
        pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(size, size)
        return pixels, wide or len(lines) > room

    def embed(self, raw: Sequence[str] | Tensor) -> Tokens:
        """Texts, or pictures of texts, -> tokens of the image tower."""
        pictures = raw if isinstance(raw, Tensor) else self.render(raw)
        positions = self.trunk.positions  # of the weights' device and, where those were converted, their precision
        return self.trunk.embed(self.trunk.normalise(pictures.to(positions.device)).to(positions.dtype))

    def layer(self, i: int, tokens: Tokens) -> Tokens:
        return self.trunk.layer(i, tokens)

    def pool(self, tokens: Tokens) -> Tensor:
        return self.trunk.pool(tokens)

    def project(self, x: Tensor) -> Tensor:
        return self.trunk.project(x)

    def encode(self, raw: Sequence[str] | Tensor | Tokens, edit: Edit | None = None) -> Tensor:
        return self.trunk.encode(raw if isinstance(raw, Tokens) else self.embed(raw), edit)
