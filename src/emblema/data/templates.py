"""Prompt templates: of the bundled sets, CLIP's and SigLIP's, and how a class name is put into one."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from emblema.data import survey
from emblema.data.catalog import FOLDER

# As published with CLIP (Radford et al., 2021, notebooks/Prompt_Engineering_for_ImageNet).
IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
# The seven of them that do best together, by the same source; open_clip calls them "simple".
IMAGENET_BEST = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
PLAIN = ("a photo of a {}.",)


def canonical(template: str) -> str:
    """Lower case without punctuation, as SigLIP is evaluated (big_vision's prompt engineering)."""
    bare = "{}".join(part.translate(str.maketrans("", "", string.punctuation)) for part in template.split("{}"))
    return " ".join(bare.lower().split())


NAMED = {
    "imagenet": IMAGENET,
    "imagenet-best": IMAGENET_BEST,
    "siglip": tuple(canonical(t) for t in IMAGENET),
    "siglip-pipeline": ("this is a photo of {}.",),  # of Hugging Face's zero-shot pipeline
    "plain": PLAIN,
    "name": ("{}",),
}
PUBLISHED = Path(__file__).parent / "names"  # a file a set of the survey: class names and CLIP's templates


def templates_for(name: str, folder: Path = FOLDER) -> tuple[str, ...]:
    """The templates of `NAMED`, of a bundled set, or published for a set; "a photo of a {}." for any other data.

    For the survey's sets they are CLIP's where it has them, else CoOp's one; those shifted from ImageNet have its own.
    """
    if name.startswith("imagenet-") and name in survey.SETS:
        return IMAGENET
    return NAMED.get(name) or _bundled(folder).get(name) or published().get(name) or _of_coop(name) or PLAIN


def _of_coop(name: str) -> tuple[str, ...]:
    row = survey.SETS.get(name)
    return (row.template,) if row and row.template else ()


def published(folder: Path | None = None) -> dict[str, tuple[str, ...]]:
    """{set: templates} of `PUBLISHED`."""
    return _published(folder or PUBLISHED)


@cache
def _published(folder: Path) -> dict[str, tuple[str, ...]]:
    said = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    return {name: tuple(one["templates"]) for name, one in said.items() if one.get("templates")}


@cache
def _bundled(folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / "templates.json"
    return {k: tuple(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()} if path.exists() else {}


def fill(template: str, name: str, articles: bool = False) -> str:
    """The template with the class name in place of `{}`, underscores as spaces.

    `articles` turns "a" before a vowel into "an" and drops it before names that begin with an article: leave it off to
    compare with published numbers, which were made without.
    """
    name = name.replace("_", " ")
    before, _, after = template.partition("{}")
    if articles:
        head, space, article = before.rstrip().rpartition(" ")
        if article in ("a", "an", "A", "An"):
            if name.split(" ")[0].lower() in ("a", "an", "the"):
                before = f"{head}{space}"
            else:
                before = f"{head}{space}{article[0]}{'n' if name[:1].lower() in tuple('aeiou') else ''} "
    return before + name + after


def fill_all(templates: Sequence[str], names: Sequence[str], articles: bool = False) -> list[list[str]]:
    """One list a class, with one text a template."""
    return [[fill(t, n, articles) for t in templates] for n in names]
