"""DPT with CAVPT: text prompts, deep image prompts, and in the last layers prompts made for the likely classes.

The zero-shot model names the likely classes of a picture; their learnt text vectors ask the picture's tokens, and the
answers enter the layer as prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core.batch import ImageInput, Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.core.tokens import Tokens
from emblema.engine.inputs import Inputs
from emblema.parts.prompts import deep
from emblema.parts.two_sided import TwoSided, drawn, prompted_layers
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class CAVPT(Transfer):
    card = Card(
        name="cavpt",
        title="Dual Modality Prompt Tuning for Vision-Language Pre-Trained Model",
        paper="2208.08340",
        year=2023,
        section="6.3.1 text-visual prompt",
        equation="P = LN(q + attend(q, [x; k]) W_v), q = W t_c of the top classes; L = CE + alpha CE(LN(..) W_y, c)",
        reads=Level.EMBEDDED,
        claim="with 16 shots a class, prompts made for the likely classes beat plain deep prompts in both towers",
        oracle="no likely classes: text and deep image prompts; they are the top of zero-shot; a layer as a loop",
        deviations=(
            "text vectors enter the class prompts as unit vectors, in the code as they leave the text tower",
            "image prompts of layer 0 pass the norm before it, officially they join behind it",
            "one epoch of warm-up for all, officially ten for what is learnt in the image tower",
            "trained on stored views (the evaluation view by default), not on fresh crops",
        ),
    )
    context_length: int = 16
    image_length: int = 10  # in each layer below the last
    top: int = 1  # last layers that get class prompts instead
    likely: int = 10  # class prompts of a picture; 0: none
    alpha: float = 0.3  # weight of naming the class of a class prompt
    guided: float = 0.3  # share of the training in which each side learns beside the other, frozen one
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=0.01, epochs=100.0))

    def build(self, vlm, class_names):
        hand = self.hand(vlm, class_names)
        return ClassAware(vlm, class_names, hand, self.context_length, self.image_length, self.top, self.likely)

    def rate(self, name: str) -> float:
        return 0.2 if name.startswith("text") else 1.0  # officially 0.002 for words, 0.01 for images

    def losses(self, module: Any, batch: Any):
        x, y, vlm = batch.x, batch.labels, module.vlm
        t = module.encode_text()
        chosen = module.chosen(x.pooled)
        z, named = module.see(x.tokens, t, chosen)
        both = F.cross_entropy(vlm.logits(z, t), y)
        if batch.progress < self.guided:
            words = F.cross_entropy(vlm.logits(x.pooled, t), y)
            terms = {"words": words, "image": F.cross_entropy(vlm.logits(z, module.hand), y), "both": 0.1 * both}
        else:
            terms = {"cross_entropy": both}
        return terms | {"classes": self.alpha * right_prompts(named, chosen, y)}

    def learn(self, module: Any, train: Inputs, on_step=None):
        super().learn(module, train, on_step)
        for layer in module.aware:
            layer.name = None  # the classifiers have done their work, so the prompts can serve other classes


class ClassAware(TwoSided):
    hand: Tensor  # [C, D]

    def __init__(self, vlm, class_names, hand: Tensor, length: int, image_length: int, top: int, likely: int):
        layers = prompted_layers(vlm.image.depth, vlm.image)
        below = max(layers - top, 0)
        super().__init__(vlm, class_names, length, image_length, depth=below, text_depth=1)
        self.register_buffer("hand", hand, persistent=False)
        self.likely = min(likely, len(hand))
        count = layers - below if self.likely else 0
        self.aware = nn.ModuleList(ClassPrompts(vlm.dim, vlm.image.width, len(hand)) for _ in range(count))

    def chosen(self, z: Tensor) -> Tensor:
        """The likely classes by the zero-shot model, best first: [B, k]."""
        return (z @ self.hand.T).topk(self.likely).indices

    def see(self, tokens: Tokens, t: Tensor, chosen: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image vectors [B, D], and what each class prompt of each top layer is named as: [B, k, C] a layer."""
        below, named = len(self.image), []
        plain = deep(self.image, None)

        def edit(i: int, tokens: Tokens) -> Tokens:
            if i < below:
                return plain(i, tokens)
            if i:  # prompts of the layer before leave
                last = self.image.shape[1] if i == below else self.likely
                tokens = tokens.with_x(tokens.x[:, : tokens.x.shape[1] - last])
            if not self.likely:
                return tokens
            prompts, names = self.aware[i - below](t[chosen], tokens.x.detach())
            named.append(names)
            return tokens.insert(prompts, None)

        return self.vlm.encode_image(tokens, edit), named

    def forward(self, x: ImageInput) -> Tensor:
        t = self.encode_text()
        return self.vlm.logits(self.see(x.tokens, t, self.chosen(x.pooled))[0], t)


class ClassPrompts(nn.Module):
    """Queries from text, keys and values from the picture's tokens and ten learnt ones."""

    def __init__(self, dim: int, width: int, classes: int, narrow: int = 32, own: int = 10):
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.query, self.key = nn.Linear(width, narrow, bias=False), nn.Linear(width, narrow, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.own = drawn(own, width)
        self.norm_answer, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.name = nn.Linear(width, classes, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Text [B, k, D] and tokens [B, L, width] -> prompts [B, k, width], and their names [B, k, C]."""
        q = self.enter(t)
        x = torch.cat([x, self.own.to(x.dtype).expand(len(x), -1, -1)], 1)
        score = self.query(q) @ self.key(x).transpose(1, 2) / self.query.out_features**0.5  # [B, k, L + own]
        answer = self.value(score.softmax(-1) @ x)
        return self.norm(answer + q), None if self.name is None else self.name(self.norm_answer(answer))


def right_prompts(named: list[Tensor], chosen: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the class prompts that were made for the true class; 0 where no picture has one."""
    right = chosen == labels[:, None]  # [B, k]
    if not named or not right.any():
        return torch.zeros((), device=labels.device)
    names = torch.stack(named, 2)[right]  # [n, top, C]
    return F.cross_entropy(names.flatten(0, 1).float(), chosen[right].repeat_interleave(len(named)))
