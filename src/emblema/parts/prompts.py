"""Prompts: learnt words around class names, learnt tokens in each layer, and the hand-written words to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emblema.core.batch import ImageInput
from emblema.core.errors import PromptTooLong
from emblema.core.tokens import Edit, Tokens

if TYPE_CHECKING:
    from emblema.frameworks.vlm import VLM

CHUNK = 256  # classes whose activations are held at once while training
PLAIN = ("a photo of a {}.",)


class Borrowed(nn.Module):
    """A module around a `VLM` that it reads: the VLM is neither among its parameters, nor saved, nor moved with it."""

    def __init__(self, vlm: VLM):
        super().__init__()
        object.__setattr__(self, "vlm", vlm)

    if TYPE_CHECKING:
        vlm: VLM


class PromptedText(Borrowed):
    """Class names in learnt words: [start] V_1 .. V_M name . [end].

    `layout` puts the words before the name ("end", as CoOp calls the name's place), around it ("middle") or behind it
    ("front"). `words` gives the first M words to start from, M being then their number; otherwise they are drawn from
    N(0, 0.02^2). `each` learns own words for each class. Raises `PromptTooLong` when a name with its prompt does not
    fit the context.
    """

    def __init__(
        self,
        vlm: VLM,
        class_names: Sequence[str],
        length: int = 16,
        *,
        words: str = "",
        layout: str = "end",
        each: bool = False,
    ):
        super().__init__(vlm)
        if layout not in ("end", "middle", "front"):
            raise ValueError(f'layout={layout!r}: use "end", "middle" or "front", the place of the class name')
        self.layout = layout
        self.names = embedded(vlm, [f"{clean(name)}." for name in class_names])
        if words:
            context = embedded(vlm, [words]).x[0, 1:-1].detach().clone()  # without [start] and [end]
        else:
            context = torch.randn(length, vlm.text.width) * 0.02
        self.context = nn.Parameter(context.repeat(len(class_names), 1, 1) if each else context)  # [M, d] or [C, M, d]
        self.kept: tuple[Tensor, int, Tensor] | None = None  # a context, its version, its class vectors
        self.tokens(self.context.detach())  # too long a prompt is told now

    def tokens(self, context: Tensor) -> Tokens:
        """The class names with `context` [M, d] or [C, M, d] in its place."""
        names, half = self.names, context.shape[-2] // 2
        if self.layout == "end":
            prompted = names.insert(context, 1)
        else:
            assert names.length is not None
            split = half if self.layout == "middle" else 0
            behind = names.insert_each(context[..., split:, :], names.length - 2)  # before the full stop
            prompted = behind.insert(context[..., :split, :], 1) if split else behind
        longest = int(prompted.length.max())  # type: ignore[union-attr]
        context_length = int(self.vlm.text.context_length)  # type: ignore[arg-type]
        if longest > context_length:
            raise PromptTooLong(longest, context_length)
        return prompted

    def forward(self, context: Tensor | None = None, edit: Edit | None = None) -> Tensor:
        """Class vectors under `context` (default: the learnt one): [C, D] unit.

        Where nothing is learnt, those of the learnt context are encoded once, however many pictures ask.
        """
        learning = self.training or torch.is_grad_enabled()
        if context is not None or edit is not None or learning or self.context.is_inference():  # which has no version
            return encode_classes(self.vlm, self.tokens(self.context if context is None else context), edit)
        if self.kept is None or self.kept[0] is not self.context or self.kept[1] != self.context._version:
            self.kept = self.context, self.context._version, encode_classes(self.vlm, self.tokens(self.context))
        return self.kept[2]

    def raw(self, context: Tensor | None = None) -> Tensor:
        """The same before normalisation: [C, D]."""
        return encode_classes(self.vlm, self.tokens(self.context if context is None else context), raw=True)

    def of_images(self, contexts: Tensor) -> Tensor:
        """Class vectors for each of B contexts [B, M, d]: [B, C, D]. What the classes share is computed once each."""
        return torch.stack([self(context) for context in contexts])


class PromptClassifier(Borrowed):
    """Logits of pooled images against prompted class names."""

    def __init__(self, vlm: VLM, class_names: Sequence[str], length: int = 16, **options: Any):
        super().__init__(vlm)
        self.prompt = PromptedText(vlm, class_names, length, **options)

    def forward(self, x: ImageInput) -> Tensor:
        return self.vlm.logits(x.pooled, self.prompt())  # [B, C]


def embedded(vlm: VLM, texts: Sequence[str]) -> Tokens:
    """Frozen word embeddings of texts. Raises `PromptTooLong` instead of cutting one."""
    ids = vlm.text.tokenize(list(texts))  # type: ignore[operator]
    if ids.cut:
        whole = vlm.text.tokenizer(list(texts), 1 << 20)  # type: ignore[operator]
        raise PromptTooLong(int(whole.length.max()), int(vlm.text.context_length))  # type: ignore[arg-type]
    with torch.no_grad():
        return vlm.text.embed(ids)


def encode_classes(vlm: VLM, tokens: Tokens, edit: Edit | None = None, chunk: int = CHUNK, raw: bool = False) -> Tensor:
    """[C, D] unit, or as it was before normalisation.

    Above `chunk` classes the activations are computed again in the backward pass, chunk by chunk.
    """
    encode = vlm.text.encode if raw else vlm.encode_text
    if len(tokens) <= chunk:
        return encode(tokens, edit)
    parts = [tokens.rows(start, start + chunk) for start in range(0, len(tokens), chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([encode(part, edit) for part in parts])
    return torch.cat([checkpoint(encode, part, edit, use_reentrant=False) for part in parts])  # type: ignore[arg-type]


@torch.no_grad()
def hand_written(vlm: VLM, class_names: Sequence[str], templates: Sequence[str] = PLAIN, chunk: int = CHUNK) -> Tensor:
    """The zero-shot classifier: each template's vector normalised, averaged, normalised again. [C, D]"""
    texts = [template.replace("{}", clean(name)) for name in class_names for template in templates]
    z = torch.cat([vlm.encode_text(texts[i : i + chunk]) for i in range(0, len(texts), chunk)])
    return F.normalize(z.unflatten(0, (len(class_names), len(templates))).mean(1), dim=-1)


def deep(prompts: Sequence[Tensor] | Tensor, at: int | None, start: int = 0) -> Edit:
    """An edit that puts prompts [n, d] at position `at` of layers start, start + 1, ...

    Layer 0 inserts them, later layers overwrite what stands there; behind the last prompt the layers are left alone.
    Text prompts are inserted before positions are added, so they begin with start = 1.
    """

    def edit(i: int, tokens: Tokens) -> Tokens:
        if not start <= i < start + len(prompts):
            return tokens
        prompt = prompts[i - start]
        return tokens.insert(prompt, at) if i == 0 else tokens.swap(prompt, at)

    return edit


def clean(name: str) -> str:
    """A class name as it is written into a prompt."""
    return " ".join(name.replace("_", " ").split())
