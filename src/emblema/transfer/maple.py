"""MaPLe: prompts in the first layers of both towers, the image prompts made from the text prompts.

Because a linear map couples each image prompt to the text prompt of its layer, both towers are steered together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.two_sided import Coupled
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class MaPLe(Transfer):
    card = Card(
        name="maple",
        title="MaPLe: Multi-modal Prompt Learning",
        paper="2210.03117",
        year=2023,
        section="6.3.1 text-visual prompt",
        equation="L = CE(s f(x; W_1 t_1 .. W_J t_J) . g(name_c; t_1 .. t_J), y)",
        reads=Level.EMBEDDED,
        claim="MaPLe's harmonic mean of base and novel accuracy beats CoOp's",
        oracle="depth 0: CoOp with fixed words; image and text paths as loops over the layers, written out",
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "prompts enter at most as many layers as the shallower tower has",
            '"a photo of a": as in the code only the first two words are learnt, the paper says all four',
        ),
    )
    words: str = "a photo"  # learnt, from here
    fixed: str = "of a "  # stays between these and the name
    depth: int = 9  # J
    optim: Optim = field(default_factory=lambda: coop_recipe(lr=3.5e-3, batch_size=4, epochs=5.0))

    def build(self, vlm, class_names):
        names = [self.fixed + name for name in class_names]
        return Coupled(vlm, names, words=self.words, depth=self.depth)
