"""What the cards say in words: titles, how splits were drawn, what a set is for; and prompt templates."""

from __future__ import annotations

from .actions import NOVEL
from .downstream import VIEW_VAL_SHARE
from .splits import NOVEL_SHARE, TEST_SHARE, VAL_SHARE

_HELD_OUT = "the families openmoji, emojione, emojione-v1 and emojione-monotone are test always"
_VIEW = (
    f"A view over the keys of `emblems`. Test: {_HELD_OUT}. Val: {VIEW_VAL_SHARE:.0%} of the other pictures, "
    "by the hash of the key; train: the rest. Val pictures of a view may be training pictures of `emblems`."
)

SETS: dict[str, dict[str, str]] = {
    "emblems": {
        "title": "Image-text pairs: emoji of 13 art families, colour icons and clip-art",
        "use": "pre-training, retrieval",
        "splits": f"Test: {_HELD_OUT}, with all their pictures. Pictures of emoji of the other families, and "
        "icons "
        f"and clip-art whose caption is the label of an emoji: {VAL_SHARE:.0%} val by the hash of the key, "
        "the rest train, because the shift that is measured on them is the art family. All other icons "
        f"and clip-art go by the hash of their caption, {TEST_SHARE:.0%} test and {VAL_SHARE:.0%} val, so "
        "that one caption never stands on two sides. `novel` marks pictures of novel object classes: an "
        "emoji by its code point, an icon or clip-art when its caption or one of its further texts names "
        "a novel class. Leave the novel rows out to train on base classes only.",
    },
    "emblem-objects": {
        "title": "Object classes drawn by at least four art families",
        "use": "zero-shot, few-shot, base-to-novel, domain shift",
        "splits": "A view over the emoji of `emblems`, with its splits. A class is an emoji of the groups "
        "objects, "
        "travel, animals, food or activities that at least four studios draw (the three colour Fluent "
        "variants count as one). Near-synonyms are merged and classes that cannot be told apart are left "
        "out, by a literal list with a reason for each. Novel: in each group the "
        f"{NOVEL_SHARE:.0%} of the classes with the smallest hashes of their code point; fixed for ever.",
    },
    "multilingual": {
        "title": "Labels and tags of the emoji in other languages",
        "use": "multilingual classification",
        "splits": "None: join on `concept`, and read the split of the picture.",
    },
    "emblem-photos": {
        "title": "Real photographs with names",
        "use": "evaluation only: never train on it, never tune on it",
        "splits": "All test. Every picture was looked at; drawings, paintings and scenes without a clear "
        "subject "
        "were left out. Classes have between 1 and 28 photographs: report the mean over classes too.",
    },
    "backgrounds": {
        "title": "Crops of photographs without things in them",
        "use": "backgrounds of composed scenes",
        "splits": "By photograph: two photographs are test, the others train. Photographs that show a "
        "class of "
        "`emblem-objects` were left out.",
    },
    "emblem-actions": {
        "title": "Clips of creatures and people with the action they show",
        "use": "action recognition",
        "splits": "People (put together from body, clothes, weapon and shield) are test; of the "
        "creatures the "
        "fifth "
        "with the smallest hashes of the name is val; the others are train. Each actor is shown from four "
        f"of eight sides. Novel: the {NOVEL} actions with the smallest hashes. When two actions of an "
        "actor have the same frames, one of them is left out.",
    },
    "emblem-animals": {
        "title": "Animals and plants, drawn",
        "use": "downstream classification",
        "splits": _VIEW,
    },
    "emblem-food": {"title": "Food and drink, drawn", "use": "downstream classification", "splits": _VIEW},
    "emblem-travel": {
        "title": "Vehicles, places and weather, drawn",
        "use": "downstream classification",
        "splits": _VIEW,
    },
    "emblem-activities": {
        "title": "Sports, games and festivities, drawn",
        "use": "downstream classification",
        "splits": _VIEW,
    },
    "emblem-flags": {
        "title": "Flags of countries, drawn",
        "use": "downstream classification",
        "splits": _VIEW + " Black-and-white families are left out, and so are flags that some family "
        "draws like another flag.",
    },
    "emblem-faces": {
        "title": "Faces that show a feeling, drawn",
        "use": "downstream classification",
        "splits": _VIEW,
    },
    "emblem-silhouettes": {
        "title": "Black silhouettes of things",
        "use": "downstream classification",
        "splits": "Icons whose name ends with the name of the class. In each class, in the order of "
        "the hashes: half train, a fifth val, the rest test.",
    },
    "digits": {
        "title": "Handwritten digits",
        "use": "downstream classification",
        "splits": "Of each digit, in the order of the hashes: 60 train, 20 val, 120 test.",
    },
    "fashion": {
        "title": "Clothes, small grey photographs",
        "use": "downstream classification",
        "splits": "Of each class, in the order of the hashes: 16 train and 10 val out of the training file, "
        "100 test out of the test file.",
    },
}
EVALUATION_ONLY = ("emblem-photos",)

_EMBLEM = [
    "an icon of a {}.",
    "an emoji of a {}.",
    "a drawing of a {}.",
    "a sticker of a {}.",
    "clip art of a {}.",
    "a picture of the {}.",
    "a simple cartoon of a {}.",
    "a pictogram of a {}.",
    "{}.",
]
TEMPLATES: dict[str, list[str]] = {
    **dict.fromkeys(
        ("emblems", "emblem-objects", "emblem-animals", "emblem-food", "emblem-travel", "emblem-activities"),
        _EMBLEM,
    ),
    "emblem-photos": [
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up photo of a {}.",
        "a bright photo of a {}.",
        "a good photo of a {}.",
        "a photo of one {}.",
        "a cropped photo of a {}.",
        "{}.",
    ],
    "emblem-actions": [
        "someone {}.",
        "a figure that is {}.",
        "a clip of a figure {}.",
        "a creature {}.",
        "a person {}.",
        "an animation of {}.",
        "a game character {}.",
        "{}.",
    ],
    "emblem-flags": [
        "the flag of {}.",
        "an icon of the flag of {}.",
        "an emoji of the flag of {}.",
        "a drawing of the flag of {}.",
        "the national flag of {}.",
        "a sticker of the flag of {}.",
        "a picture of the flag of {}.",
        "flag of {}.",
    ],
    "emblem-faces": [
        "an emoji: {}.",
        "an icon of a {}.",
        "a smiley: {}.",
        "an emoji of a {}.",
        "a drawing of a {}.",
        "a sticker of a {}.",
        "a cartoon of a {}.",
        "{}.",
    ],
    "emblem-silhouettes": [
        "a black silhouette of a {}.",
        "an icon of a {}.",
        "a pictogram of a {}.",
        "a black and white icon of a {}.",
        "a stencil of a {}.",
        "a symbol of a {}.",
        "a game icon of a {}.",
        "{}.",
    ],
    "digits": [
        "a photo of the number {}.",
        "the handwritten digit {}.",
        "a handwritten {}.",
        "the digit {}.",
        "a scan of the digit {}.",
        "the number {} in white on black.",
        "a picture of the number {}.",
        "{}.",
    ],
    "fashion": [
        "a photo of a {}.",
        "a photo of the {}.",
        "a black and white photo of a {}.",
        "a small photo of a {}.",
        "a product photo of a {}.",
        "clothing: a {}.",
        "a photo of a {}, a piece of clothing.",
        "{}.",
    ],
}
