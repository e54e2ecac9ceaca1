"""CoOp: learn the words around a class name instead of writing them.

M context vectors before each name are trained by cross-entropy on a few labelled pictures; both towers stay frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.parts.prompts import PromptClassifier
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class CoOp(Transfer):
    card = Card(
        name="coop",
        title="Learning to Prompt for Vision-Language Models",
        paper="2109.01134",
        year=2022,
        section="6.3.1 text prompt",
        equation="L = CE(s z_i . t(V_1 .. V_M, name_c), y)",
        reads=Level.POOLED,
        claim="with 16 shots a class, CoOp's accuracy beats that of the hand-written prompt",
        oracle='"a photo of a" and no step: exactly the zero-shot classifier; schedule in closed form',
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops: exact for frozen towers",
        ),
    )
    context_length: int = 16  # M, when no words are given
    words: str = ""  # e.g. "a photo of a": start from these
    layout: str = "end"  # place of the name: "end", "middle" or "front"
    each: bool = False  # own context for each class (CSC)

    def build(self, vlm, class_names):
        return PromptClassifier(
            vlm, class_names, self.context_length, words=self.words, layout=self.layout, each=self.each
        )
