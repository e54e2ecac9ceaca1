"""Two towers and a decoder that writes about the image what the text tower would read (CoCa).

The text tower is the lower half of the decoder: its words never see the image, and give the text's vector. The upper
half reads the image through the captioning pooler of the image tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emblema.core.errors import NoSuchDoor
from emblema.encoders.text import TextTower
from emblema.encoders.tokenizers import TextIds
from emblema.encoders.vit import Cascade, ViT
from emblema.frameworks.two_tower import TwoTower
from emblema.frameworks.vlm import VLM, unit
from emblema.objectives.logit_scale import LogitScale
from emblema.parts.decoder import CaptionDecoder


class Captioner(VLM):
    """A two-tower model whose words go on into a decoder."""

    image: ViT
    text: TextTower

    def __init__(
        self,
        image: ViT,
        text: TextTower,
        decoder: CaptionDecoder,
        logit_scale: nn.Module | None = None,
        logit_bias: float | None = None,
    ):
        super().__init__(image, text, logit_scale, logit_bias)
        self.decoder = decoder

    def encode_pair(self, images: Tensor, ids: TextIds) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs in one pass: image vectors [B, D], text vectors [B, D], and logits of the next words [B, L, V]."""
        memory = self._look(images)
        words = self.text.transform(self.text.embed(ids))
        assert isinstance(self.image.map, Cascade)
        z_image = unit(self.image.project(self.image.map.contrastive(memory)[:, 0]))
        z_text = unit(self.text.project(self.text.pool(words)))
        return z_image, z_text, self.decoder(words.x[:, : ids.ids.shape[1]], memory)

    def _look(self, images: Tensor) -> Tensor:
        """What the decoder reads of images: [B, queries, width]"""
        tokens = self.image.transform(self.image.embed(images))
        assert isinstance(self.image.map, Cascade)
        return self.image.map.captioning(self.image.norm(tokens.x))

    @torch.no_grad()
    def caption(self, images: Tensor, *, beams: int = 1, most: int | None = None) -> list[str]:
        """A text for each image [B, 3, H, W], by beam search; one beam takes the likeliest word at each step.

        Beams are compared by their mean log-probability a token. `most` words at most; None: what the context holds.
        """
        if beams < 1:
            raise ValueError(f"beams={beams}: at least one caption must be followed")
        tokenizer = self.text.tokenizer
        if tokenizer is None:
            raise ValueError("this text tower has no tokenizer: load a checkpoint folder, or set tower.tokenizer")
        start, end = self.text.tokenize([""]).ids[0].tolist()
        room = self.text.context_length - 2  # start, and the token behind the text
        memory = self._look(images).repeat_interleave(beams, 0)  # [B K, n, width]
        B, K, device = len(images), beams, memory.device
        ids = torch.full((B * K, 1), start, device=device)
        score = torch.zeros(B, K, device=device)
        score[:, 1:] = -torch.inf  # all beams are alike as yet
        ended = torch.zeros(B * K, dtype=torch.bool, device=device)
        length = torch.zeros(B, K, device=device)
        for step in range(min(most or room, room)):
            logits = self._next(ids, memory)  # [B K, V]
            logits[:, [start, tokenizer.pad_id]] = -torch.inf
            logits[:, tokenizer.vocab_size :] = -torch.inf
            if step == 0:
                logits[:, end] = -torch.inf  # a caption has a word
            gain = logits.log_softmax(-1)
            stays = torch.full_like(gain, -torch.inf).index_fill_(1, torch.tensor([end], device=device), 0.0)
            gain = torch.where(ended[:, None], stays, gain)  # behind its end a caption says nothing
            total = (score.flatten()[:, None] + gain).view(B, -1)  # [B, K V]
            score, best = total.topk(K, 1)
            rows = (best // gain.shape[1] + torch.arange(B, device=device)[:, None] * K).flatten()  # [B K]
            word = (best % gain.shape[1]).flatten()
            length = length.flatten()[rows].view(B, K) + (~ended[rows]).view(B, K)
            ids = torch.cat([ids[rows], word[:, None]], 1)
            ended = ended[rows] | (word == end)
            if ended.all():
                break
        first = (score / length.clamp(min=1)).argmax(1) + torch.arange(B, device=device) * K
        return [tokenizer.decode(self._until(row, end)) for row in ids[first].tolist()]

    def _next(self, ids: Tensor, memory: Tensor) -> Tensor:
        """Logits of the word behind each row of ids: [N, V] fp32"""
        N, L = ids.shape
        words = self.text.transform(self.text.embed(TextIds(ids, torch.full((N,), L, device=ids.device))))
        return self.decoder(words.x[:, :L], memory)[:, -1].float()

    @staticmethod
    def _until(row: Sequence[int], end: int) -> list[int]:
        return list(row[1 : row.index(end) if end in row else None])


@dataclass(frozen=True, kw_only=True)
class Captioners(TwoTower):
    """Shape of a captioner: an image tower with pool="cascade", a text tower with pool="token", a decoder."""

    framework: ClassVar[str] = "captioner"
    decoder_depth: int = 12

    def build(self) -> Captioner:
        """A model with fresh weights. The text tower has no tokenizer yet."""
        image, text = self.image.build(self.dim), self.text.build(self.dim)
        if not isinstance(image, ViT) or not isinstance(image.map, Cascade) or text.pool_kind != "token":
            raise NoSuchDoor(
                'a captioner pools its image tower by pool="cascade" (a ViT) and its text tower by pool="token", got '
                f'{type(image).__name__} and pool="{text.pool_kind}"; choose an architecture with a ViT image tower'
            )
        shape = self.text
        decoder = CaptionDecoder(shape.width, self.decoder_depth, shape.heads, image.width, shape.vocab_size)
        return Captioner(image, text, decoder, LogitScale.preset(self.scale), self.logit_bias)
