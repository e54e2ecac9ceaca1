"""Classification by description: a picture is compared with every descriptor of a class, and the cosines are averaged.

The mean of cosines is the cosine with a mean that is not normalised, so classes of unlike descriptors score lower.
"""

from __future__ import annotations

from dataclasses import dataclass

from emblema.core.batch import Level
from emblema.core.card import Card
from emblema.data.descriptions import descriptors
from emblema.parts.named import Named, mean_of_texts
from emblema.parts.prompts import clean
from emblema.transfer.base import Transfer

PREFIX = {"a": "which is", "an": "which is", "used": "which is"}
PREFIX |= dict.fromkeys(("has", "often", "typically", "may", "can"), "which")


@dataclass(kw_only=True)
class VCD(Transfer):
    card = Card(
        name="vcd",
        title="Visual Classification via Description from Large Language Models",
        paper="2210.07183",
        year=2023,
        section="6.3.3 other",
        equation="s_c = mean_i z . t(name_c, which has descriptor_ci)",
        reads=Level.POOLED,
        needs=("no pictures",),
        claim="descriptors recognise classes more accurately than their bare names",
        oracle="the mean of cosines; one empty descriptor: the classifier of the bare names",
        deviations=(
            "descriptors come with the data or from a JSON file: no language model is at hand",
            'the first word decides the prefix; the official rule takes any word that begins with "a" for an article',
        ),
    )
    descriptions: str = ""  # JSON {class name: [descriptors]}; default: what ships with the data

    def build(self, vlm, class_names):
        found = descriptors(class_names, self.descriptions)
        return Named(vlm, mean_of_texts(vlm, [described(n, words) for n, words in zip(map(clean, class_names), found)]))


def described(name: str, words: list[str]) -> list[str]:
    """ "cat, which has whiskers"; a class without descriptors has one that is empty."""
    return [f"{name}, {PREFIX.get((word.split() or [''])[0], 'which has')} {word}" for word in words or [""]]
