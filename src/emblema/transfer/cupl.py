"""CuPL: several sentences that describe a class take the place of one template; nothing is trained.

The paper lets a language model write them. Here they are made of descriptors and sentence frames, or read from a file.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import normalize

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.data.descriptions import descriptors
from emblema.parts.named import Named, mean_of_texts
from emblema.parts.prompts import clean
from emblema.transfer.base import Transfer

FRAMES = ("a picture of a {}, which has {}.", "a {} can be known by {}.", "{}: {}.")


@dataclass(kw_only=True)
class CuPL(Transfer):
    card = Card(
        name="cupl",
        title="What does a platypus look like? Generating customized prompts for zero-shot image classification",
        paper="2209.03320",
        year=2023,
        section="6.3.3 other",
        equation="w_c = n(mean_i n(t(sentence_ci)))",
        reads=Level.POOLED,
        needs=("no pictures",),
        claim="described classes are recognised more accurately than by one template",
        oracle='one sentence "a photo of a {}.": zero-shot',
        deviations=(
            "sentences come from descriptors in fixed frames, or from a JSON file: no language model is at hand",
            "sentences are kept by class, not by name, so classes that share a name do not overwrite each other",
        ),
    )
    descriptions: str = ""  # JSON {class name: [descriptors or sentences]}; default: what ships with the data
    sentences: bool = False  # the file holds whole sentences: no frame is put around them
    with_templates: bool = True  # the hand-written prompts are sentences too

    def build(self, vlm, class_names):
        found = descriptors(class_names, self.descriptions)
        texts = [self.written(name, words) for name, words in zip(map(clean, class_names), found)]
        return Named(vlm, normalize(mean_of_texts(vlm, texts), dim=-1))

    def written(self, name: str, words: list[str]) -> list[str]:
        """All sentences of a class; at least the hand-written ones."""
        own = words if self.sentences else [frame.format(name, word) for word in words for frame in FRAMES]
        hand = [template.replace("{}", name) for template in self.wording]
        return own + hand if self.with_templates or not own else own
