"""Which emoji are object classes: near-synonyms merged, lookalikes left out, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .emoji import Concept

OBJECT_GROUPS = {
    "objects": "objects",
    "travel-places": "travel",
    "animals-nature": "animals",
    "food-drink": "food",
    "activities": "activities",
}
MIN_FAMILIES = 4
ONE_STUDIO = {"fluent-emoji": "fluent", "fluent-emoji-flat": "fluent", "fluent-3d": "fluent"}

# class -> (labels of the emoji that it takes in, why they cannot be told apart)
MERGED: dict[str, tuple[tuple[str, ...], str]] = {
    "moon phase": (
        (
            "new moon",
            "waxing crescent moon",
            "first quarter moon",
            "waxing gibbous moon",
            "full moon",
            "waning gibbous moon",
            "last quarter moon",
            "waning crescent moon",
        ),
        "differ in the lit part",
    ),
    "moon with a face": (
        ("new moon face", "first quarter moon face", "last quarter moon face", "full moon face"),
        "differ in the lit part",
    ),
    "hourglass": (("hourglass done", "hourglass not done"), "differ in the sand"),
    "bus": (("bus", "oncoming bus"), "the same thing from the side and from the front"),
    "police car": (("police car", "oncoming police car"), "the same thing from two sides"),
    "taxi": (("taxi", "oncoming taxi"), "the same thing from two sides"),
    "car": (("automobile", "oncoming automobile"), "the same thing from two sides"),
    "closed book": (("closed book", "green book", "blue book", "orange book"), "differ in colour"),
    "notebook": (("notebook", "notebook with decorative cover", "ledger"), "differ in the cover"),
    "globe": (
        ("globe showing europe africa", "globe showing americas", "globe showing asia australia"),
        "differ in the continent",
    ),
    "banknote": (
        ("yen banknote", "dollar banknote", "euro banknote", "pound banknote"),
        "differ in the currency",
    ),
    "mailbox": (
        (
            "closed mailbox with raised flag",
            "closed mailbox with lowered flag",
            "open mailbox with raised flag",
            "open mailbox with lowered flag",
        ),
        "differ in flag and lid",
    ),
    "envelope": (
        ("envelope", "e mail", "incoming envelope", "envelope with arrow"),
        "differ in a small mark",
    ),
    "magnifying glass": (("magnifying glass tilted left", "magnifying glass tilted right"), "mirrored"),
    "loudspeaker volume": (
        ("muted speaker", "speaker low volume", "speaker medium volume", "speaker high volume"),
        "differ in the number of waves",
    ),
    "medal": (
        ("sports medal", "1st place medal", "2nd place medal", "3rd place medal"),
        "differ in the number",
    ),
    "camera": (("camera", "camera with flash"), "differ in the flash"),
    "calendar": (("calendar", "tear off calendar", "spiral calendar"), "differ in the binding"),
    "battery": (("battery", "low battery"), "differ in the level"),
    "pushpin": (("pushpin", "round pushpin"), "differ in the head"),
    "page": (("page with curl", "page facing up"), "differ in a corner"),
    "optical disc": (("optical disk", "dvd"), "differ in colour"),
    "file folder": (("file folder", "open file folder"), "open and closed"),
    "monkey face": (("monkey face",), "name kept"),
    "satellite dish": (("satellite antenna",), "plain name"),
    "wilted rose": (("wilted flower",), "plain name"),
    "pie": (("pie",), "name kept"),
    "beer mug": (("beer mug", "clinking beer mugs"), "one and two of a kind"),
    "house": (("house", "house with garden"), "differ in the garden"),
    "snowman": (("snowman", "snowman without snow"), "differ in the snow"),
    "umbrella": (("umbrella", "umbrella with rain drops"), "differ in the drops"),
    "traffic light": (("horizontal traffic light", "vertical traffic light"), "turned"),
    "sunrise": (("sunrise", "sunset", "sunrise over mountains"), "a low sun either way"),
    "train": (("train", "metro", "light rail", "tram", "station"), "rail fronts drawn alike"),
    "tram car": (("tram car", "railway car", "trolleybus"), "wagons drawn alike"),
    "bullet train": (("high speed train", "bullet train"), "drawn alike"),
    "mountain cable car": (
        ("suspension railway", "mountain cableway", "aerial tramway"),
        "cabins on a cable",
    ),
    "ship": (("ship", "passenger ship", "ferry"), "drawn alike"),
    "motorboat": (("motor boat", "speedboat"), "drawn alike"),
    "sun behind a cloud": (
        ("sun behind cloud", "sun behind small cloud", "sun behind large cloud"),
        "differ in the size of the cloud",
    ),
    "padlock": (("locked", "locked with key", "locked with pen"), "differ in a small addition"),
    "mobile phone": (("mobile phone", "mobile phone with arrow"), "differ in an arrow"),
    "skyscrapers": (("cityscape",), "plain name"),
    "city at dusk": (("cityscape at dusk",), "plain name"),
    "tyrannosaurus": (("t rex",), "plain name"),
    "t-shirt": (("t shirt",), "hyphen"),
    "x-ray": (("x ray",), "hyphen"),
    "yo-yo": (("yo yo",), "hyphen"),
    "bactrian camel": (("two hump camel",), "plain name"),
    "dromedary": (("camel",), "plain name"),
    "ladybug": (("lady beetle",), "plain name"),
    "chick": (("baby chick", "front facing baby chick", "hatching chick"), "the same chick in three poses"),
    "clapperboard": (("clapper board",), "plain name"),
    "post office": (("japanese post office", "post office"), "differ in the sign"),
    "fried egg in a pan": (("cooking",), "plain name"),
    "cooking pot": (("pot of food",), "plain name"),
    "paella": (("shallow pan of food",), "plain name"),
    "ramen": (("steaming bowl",), "plain name"),
    "champagne bottle": (("bottle with popping cork",), "plain name"),
    "soft serve ice cream": (("soft ice cream",), "plain name"),
    "coffee": (("hot beverage",), "plain name"),
    "open lock": (("unlocked",), "plain name"),
    "gift": (("wrapped gift",), "plain name"),
    "target": (("bullseye",), "plain name"),
    "billiard ball": (("pool 8 ball",), "plain name"),
    "woman's hat": (("womans hat",), "apostrophe"),
    "woman's boot": (("womans boot",), "apostrophe"),
    "woman's sandal": (("womans sandal",), "apostrophe"),
    "woman's blouse": (("womans clothes",), "plain name"),
    "man's shoe": (("mans shoe",), "apostrophe"),
    "helmet with a cross": (("rescue workers helmet",), "plain name"),
    "spiral notepad": (("spiral notepad",), "name kept"),
    "pen": (("pen", "fountain pen", "black nib"), "pens drawn alike"),
    "bell": (("bell",), "name kept"),
    "toy water gun": (("water pistol",), "plain name"),
    "ticket": (("ticket", "admission tickets"), "differ in the number of tickets"),
    "musical note": (("musical note", "musical notes"), "one and three of a kind"),
    "clinking glasses": (("clinking glasses",), "name kept"),
    "sake bottle and cup": (("sake",), "plain name"),
    "chart of growth": (("chart increasing", "chart increasing with yen"), "differ in a currency sign"),
}

# label -> why it is no class
EXCLUDED: dict[str, str] = {
    **{
        f"{hour} {half}": "24 clock faces differ in the hands only"
        for hour in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        for half in ("o clock", "thirty")
    },
    "spade suit": "a sign, not a thing",
    "heart suit": "a sign, not a thing",
    "diamond suit": "a sign, not a thing",
    "club suit": "a sign, not a thing",
    "bell with slash": "a sign laid over a class",
    "love hotel": "a hotel with a heart",
    "night with stars": "a scene without a thing",
    "foggy": "a scene without a thing",
    "moon viewing ceremony": "known from its name only",
    "pine decoration": "known from its name only",
    "oden": "known from its name only",
    "rosette": "drawn as an ornament, as a ribbon and as a flower",
    "black bird": "a bird in another colour",
    "black cat": "a cat in another colour",
    "inbox tray": "differs from outbox tray in an arrow",
    "outbox tray": "differs from inbox tray in an arrow",
    "card file box": "differs from file cabinet in size only",
    "old key": "an older key",
    "airplane departure": "an airplane, tilted",
    "airplane arrival": "an airplane, tilted",
    "crescent moon": "a moon phase with other meaning",
    "brown mushroom": "a mushroom in another colour",
    "glowing star": "a star with rays",
    "softball": "a baseball in another colour",
    "guide dog": "a dog with a harness",
    "service dog": "a dog with a vest",
    "green apple": "an apple in another colour",
    "broken chain": "chains with a gap",
    "cyclone": "a spiral sign",
    "construction": "a barrier, a sign or a man",
    "wedding": "a church with a heart",
    "hammer and wrench": "two classes in one picture",
    "hammer and pick": "two classes in one picture",
    "umbrella on ground": "an umbrella with a dot",
    "closed umbrella": "drawn as an open one by some families",
}


@dataclass(frozen=True)
class ObjectClass:
    """One class of `emblem-objects`."""

    label: str
    concept: str  # id of the first emoji that it takes in: it names the class
    members: tuple[str, ...]  # ids of all its emoji
    group: str  # objects, travel, animals, food or activities
    subgroup: str


def object_classes(concepts: Mapping[str, Concept], drawn: Iterable[tuple[str, str]]) -> list[ObjectClass]:
    """The classes drawn by at least `MIN_FAMILIES` studios, sorted by label.

    `drawn` holds (concept id, family) of each picture. Raises `KeyError` when a list above names an unknown
    label.
    """
    studios: dict[str, set[str]] = {}
    for concept, family in drawn:
        studios.setdefault(concept, set()).add(ONE_STUDIO.get(family, family))
    objects = {c.label: c for c in concepts.values() if c.group in OBJECT_GROUPS}
    if unknown := [label for label in EXCLUDED if label not in objects]:
        raise KeyError(f"classes.EXCLUDED names no emoji: {unknown}")
    taken = {label for members, _ in MERGED.values() for label in members}
    plan = {name: members for name, (members, _) in MERGED.items()}
    plan |= {label: (label,) for label in objects if label not in taken and label not in EXCLUDED}
    found = []
    for label, members in sorted(plan.items()):
        ids = tuple(objects[m].id for m in members)
        if len(set().union(*(studios.get(i, set()) for i in ids))) >= MIN_FAMILIES:
            first = objects[members[0]]
            found.append(ObjectClass(label, ids[0], ids, OBJECT_GROUPS[first.group], first.subgroup))
    return found
