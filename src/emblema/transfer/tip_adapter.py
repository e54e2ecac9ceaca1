"""Tip-Adapter: a cache of the few labelled pictures votes beside the text; nothing is trained.

Each training picture is a key, its one-hot label the value; the two settings of the vote are searched on validation
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.engine.inputs import Inputs
from emblema.parts.adapters import Cache, raw_features
from emblema.transfer.base import Transfer


@dataclass(kw_only=True)
class TipAdapter(Transfer):
    card = Card(
        name="tip_adapter",
        title="Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
        paper="2207.09519",
        year=2022,
        section="6.3.2 feature adapter",
        equation="logits = s z . t_c + alpha exp(-beta (1 - z . F)) onehot",
        reads=Level.POOLED,
        closed=True,
        claim="with 16 shots a class, Tip-Adapter's accuracy beats zero-shot",
        oracle="alpha = 0: zero-shot; beta = 0: a constant a class; the formula in numpy",
        deviations=(
            "alpha and beta are searched on min(shots, 4) validation pictures a class, officially on the whole "
            "validation split, for ImageNet on the test split",
            "the scale is the model's own, officially 100; one grid for all data sets, officially one each",
        ),
    )
    alpha: float = 1.0  # before the search
    beta: float = 1.0
    views: int = 10  # a key is the mean feature of these crops
    search: tuple[float, float] = (12.0, 10.0)  # largest beta and alpha of the grid

    def build(self, vlm, class_names):
        return Cache(vlm, self.hand(vlm, class_names), self.alpha, self.beta)

    def learn(self, module, train: Inputs, on_step=None):
        module.fill(raw_features(train.arrays), train.labels)

    def select(self, module, val: Inputs):
        module.search(val.arrays["pooled"][0], val.labels, *self.search)
