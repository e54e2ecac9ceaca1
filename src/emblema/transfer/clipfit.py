"""CLIPFit: tune what is small inside the towers, biases in the text and norms in the image, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.encoders.block import LayerNorm
from emblema.parts.tuning import Shift, Updated, tunable_blocks
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class CLIPFit(Transfer):
    card = Card(
        name="clipfit",
        title="Vision-Language Model Fine-Tuning via Simple Parameter-Efficient Modification",
        paper="2409.16718",
        year=2024,
        section="6.3.3 other",
        equation="L = CE(s f(x) . t_c, y) + 8 (1 - cos(t, t_0))",
        reads=Level.EMBEDDED,
        claim="with 16 shots a class, CLIPFit's accuracy beats CoOp's",
        oracle="no update: zero-shot; the tuned weights by name; gradients as when the weights themselves are tuned",
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "norms of a convolutional stem stay: tokens are cached behind it",
        ),
    )
    text_weight: float = 8.0  # lambda
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=100.0))

    def build(self, vlm, class_names):
        module = Updated(vlm, class_names, self.wording[0])
        for name in tuned(vlm):
            module.update(name, Shift(vlm.get_parameter(name)))
        return module

    def losses(self, module: Any, batch: Any):
        t = module.encode_text()
        logits = module.vlm.logits(module.vlm.encode_image(batch.x.tokens), t)
        return {
            "cross_entropy": F.cross_entropy(logits, batch.labels),
            "text": self.text_weight * (1 - F.cosine_similarity(t, module.hand)).mean(),
        }


def tuned(vlm) -> list[str]:
    """Biases that end the text's feed-forward layers, and weights and biases of the image's norms."""
    text = [f"text.blocks.{i}.mlp.2.bias" for i in range(len(tunable_blocks(vlm.text)))]
    tunable_blocks(vlm.image)
    norms = [n for n, m in vlm.image.named_modules() if isinstance(m, LayerNorm) and not n.startswith("stem")]
    return text + [f"image.{name}.{leaf}" for name in norms for leaf in ("weight", "bias")]
