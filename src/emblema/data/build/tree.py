"""`tree.json`: class names under what they are, from the groups and subgroups of emojibase, with a table by hand.

Groups and subgroups get names that can stand in a sentence; clothes, which emojibase keeps together, are divided here,
and the classes of `fashion` and `emblem-silhouettes` that are no emoji have their place.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from .emoji import concepts

GROUPS = {
    "smileys-emotion": "faces and feelings",
    "people-body": "people and bodies",
    "animals-nature": "animals and plants",
    "food-drink": "food and drinks",
    "travel-places": "places, vehicles and weather",
    "activities": "games, sports and festivities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
SUBGROUPS = {
    "face-smiling": "smiling faces", "face-affection": "affectionate faces", "face-tongue": "faces with tongues",
    "face-hand": "faces with hands", "face-neutral-skeptical": "neutral or sceptical faces",
    "face-sleepy": "sleepy faces", "face-unwell": "sick faces", "face-hat": "faces with hats",
    "face-glasses": "faces with glasses", "face-concerned": "worried faces", "face-negative": "angry faces",
    "face-costume": "costumed faces and monsters", "cat-face": "faces of cats", "monkey-face": "monkeys hiding",
    "heart": "hearts", "emotion": "signs of feelings",
    "hand-fingers-open": "hands held open", "hand-fingers-partial": "hands with some fingers",
    "hand-single-finger": "pointing hands", "hand-fingers-closed": "closed hands", "hands": "pairs of hands",
    "hand-prop": "hands with things", "body-parts": "parts of the body", "person": "kinds of people",
    "person-gesture": "people with gestures", "person-role": "people at work", "person-fantasy": "fantasy people",
    "person-activity": "people doing things", "person-sport": "people at sports", "person-resting": "people resting",
    "family": "families", "person-symbol": "signs of people",
    "animal-mammal": "mammals", "animal-bird": "birds", "animal-amphibian": "amphibians", "animal-reptile": "reptiles",
    "animal-marine": "sea animals", "animal-bug": "insects and other small animals",
    "plant-flower": "flowers", "plant-other": "trees and other plants",
    "food-fruit": "fruits", "food-vegetable": "vegetables", "food-prepared": "meals", "food-asian": "asian dishes",
    "food-sweet": "sweets", "drink": "drinks", "dishware": "dishes and cutlery",
    "place-map": "maps", "place-geographic": "landscapes", "place-building": "buildings",
    "place-religious": "places of worship", "place-other": "other places", "transport-ground": "vehicles on land",
    "transport-water": "vehicles on water", "transport-air": "vehicles in the air", "hotel": "things of a hotel",
    "time": "clocks and time", "sky-weather": "sky and weather",
    "event": "things of festivities", "award-medal": "awards", "sport": "things of sports", "game": "games and toys",
    "arts-crafts": "arts and crafts",
    "clothing": "clothes and jewellery", "sound": "things that sound", "music": "music",
    "musical-instrument": "musical instruments", "phone": "phones", "computer": "computers and their parts",
    "light-video": "lamps, cameras and films", "book-paper": "books and papers", "money": "kinds of money",
    "mail": "things of the mail", "writing": "writing tools", "office": "office supplies", "lock": "locks and keys",
    "tool": "tools and weapons", "science": "things of science", "medical": "medical things",
    "household": "household things", "other-object": "other objects",
    "transport-sign": "traffic signs", "warning": "warning signs", "arrow": "arrows", "religion": "religious signs",
    "zodiac": "signs of the zodiac", "av-symbol": "signs on players", "gender": "gender signs", "math": "maths",
    "punctuation": "punctuation marks", "currency": "currency signs", "other-symbol": "other signs",
    "keycap": "keys of a telephone", "alphanum": "letters and words in boxes", "geometric": "shapes",
    "flag": "flags on poles", "country-flag": "flags of countries", "subdivision-flag": "flags of regions",
}  # fmt: skip
WORN = {  # by hand: what emojibase has in one subgroup, and classes of other sets
    "shoes": "thong sandal|mans shoe|running shoe|hiking boot|flat shoe|high heeled shoe|womans sandal|ballet shoes|"
    "womans boot|sandal|sneaker|ankle boot|boot",
    "clothes": "lab coat|safety vest|necktie|t shirt|t-shirt|jeans|trousers|scarf|gloves|coat|socks|dress|kimono|sari|"
    "one piece swimsuit|briefs|shorts|bikini|womans clothes|pullover|shirt",
    "bags": "purse|handbag|clutch bag|shopping bags|backpack|bag",
    "hats": "womans hat|top hat|graduation cap|billed cap|military helmet|rescue workers helmet|crown|hat|helmet",
    "jewellery": "ring|gem stone|prayer beads|necklace",
}
ELSEWHERE = {  # by hand: subgroup -> classes of other sets
    "tool": "arrow|shield|sword|gun|tank|trident|hammer|axe|bomb|fence",
    "household": "bottle|bucket|pot|chair|door|lantern|knife",
    "place-building": "house|tower|bridge|gate|pyramid",
    "plant-other": "tree|leaf|mushroom",
    "plant-flower": "flower",
    "animal-bug": "spider",
    "animal-marine": "fish|tentacle",
    "transport-ground": "truck|wheel",
    "sky-weather": "sun|star",
    "body-parts": "eye|wing|skull",
    "lock": "key|lock",
    "book-paper": "book",
    "arts-crafts": "mask",
    "flag": "flag",
}


def build(out: Path, cache: Path) -> None:
    """Write `tree.json`; the classes of `emblem-objects` in `out` go where their emoji is."""
    known = concepts(cache)
    of = {label: sub for sub, labels in ELSEWHERE.items() for label in labels.split("|")}
    objects = pq.read_table(out / "emblem-objects.parquet", columns=["label", "concept"]).to_pylist()
    for label, concept in sorted({(row["label"], row["concept"]) for row in objects}):
        if concept in known:
            of.setdefault(label, known[concept].subgroup)
    for concept in known.values():
        of.setdefault(concept.label.removeprefix("flag of "), concept.subgroup)
    worn = {label: part for part, labels in WORN.items() for label in labels.split("|")}
    group_of = {c.subgroup: c.group for c in known.values()}
    tree: dict[str, dict] = {name: {} for name in GROUPS.values()}
    for label, sub in sorted((of | dict.fromkeys(worn, "clothing")).items()):
        if group_of[sub] in GROUPS:
            part = tree[GROUPS[group_of[sub]]].setdefault(SUBGROUPS[sub], {})
            (part.setdefault(worn[label], {}) if label in worn else part)[label] = None
    (out / "tree.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False, sort_keys=True) + "\n", "utf-8")
