"""UPT: text and image prompts come out of one set of prompts, which a small transformer reads as one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.two_sided import United
from emblema.transfer.base import Transfer, coop_recipe


@dataclass(kw_only=True)
class UPT(Transfer):
    card = Card(
        name="upt",
        title="Unified Vision and Language Prompt Learning",
        paper="2210.07225",
        year=2022,
        section="6.3.1 text-visual prompt",
        equation="[U_t; U_v] = block([U_t'; U_v']); L = CE(s f(x; U_v) . g(U_t, name_c), y)",
        reads=Level.EMBEDDED,
        claim="with 16 shots a class, UPT's accuracy beats that of the same prompts without the uniting block",
        oracle="no uniting block: independent words and image prompts; the block against torch's own encoder layer",
        deviations=(
            "its own repository holds no code: this follows the reading of MVLPT's authors",
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "image prompts of layer 0 pass the norm before it, in that code they join behind it",
        ),
    )
    context_length: int = 4
    image_length: int = 4  # in each layer
    depth: int = 12  # layers of the image tower with prompts, all where there are fewer
    joint: int = 128  # width of the uniting block; 0: none
    layout: str = "end"
    optim: Optim = field(default_factory=lambda: coop_recipe(epochs=200.0))

    def build(self, vlm, class_names):
        return United(
            vlm,
            class_names,
            self.context_length,
            self.image_length,
            depth=self.depth,
            joint=self.joint,
            layout=self.layout,
        )
