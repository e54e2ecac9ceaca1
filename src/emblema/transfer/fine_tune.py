"""Full fine-tuning: all weights of the image tower, and a classifier that begins as the text."""

from __future__ import annotations

from dataclasses import dataclass, field

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.core.method import Optim
from emblema.parts.tuning import FineTuned
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class FineTune(Transfer):
    card = Card(
        name="fine_tune",
        title="Learning Transferable Visual Models From Natural Language Supervision (fine-tuned)",
        paper="2103.00020",
        year=2021,
        section="6.3.3 other",
        equation="L = CE(n(f_theta(x)) . w_c, y) over theta and w, w from s t_c",
        reads=Level.PIXELS,
        closed=True,
        claim="with 16 shots a class, full fine-tuning's accuracy beats zero-shot",
        oracle="no step: zero-shot; one step is that of torch on the tower's own parameters",
        deviations=(
            "trained on stored views (the evaluation view by default), not on fresh crops",
            "statistics of batch norms stay the pre-trained ones",
            "batches of 32 and a tenth of the steps to warm up, for few pictures; WiSE-FT's authors: 512 and 500 steps",
        ),
    )
    optim: Optim = field(
        default_factory=lambda: Optim(
            lr=3e-5, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, warmup=0.1, epochs=10.0, batch_size=32
        )
    )

    def build(self, vlm, class_names):
        return FineTuned(vlm, self.hand(vlm, class_names))
