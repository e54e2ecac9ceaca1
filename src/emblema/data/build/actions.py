"""`emblem-actions`: short clips of creatures, and of people put together from layers, with their actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from . import tables
from .packages import PACKAGES, unpacked
from .raster import fit, to_webp
from .splits import pick, share

SIDE = 48  # pixels, longest side of a clip
QUALITY, ALPHA_QUALITY = 50, 30
MAX_FRAMES = 6
COLUMNS = (
    "key",
    "frames",
    "text",
    "action",
    "actor",
    "kind",
    "direction",
    "frame_ms",
    "split",
    "novel",
    "family",
    "source",
    "licence",
)
LICENCE = "CC-BY-SA-3.0"
# What the game calls an action -> what the class is called; `critdie` (a second way of dying) is left out.
ACTIONS = {
    "stance": "standing",
    "run": "running",
    "swing": "striking",
    "shoot": "shooting",
    "cast": "casting a spell",
    "block": "blocking",
    "hit": "being hit",
    "die": "dying",
    "spawn": "rising from the ground",
}
# When two actions of an actor have the very same frames, the earlier of these keeps them.
PREFERRED = ("stance", "run", "swing", "hit", "die", "spawn", "shoot", "cast", "block")
NOVEL = 3  # actions
DIRECTIONS = ("west", "north-west", "north", "north-east", "east", "south-east", "south", "south-west")

CREATURES = {  # file -> (mod, plain name)
    "antlion": ("fantasycore", "antlion"),
    "fire_ant": ("fantasycore", "fire ant"),
    "ice_ant": ("fantasycore", "ice ant"),
    "goblin": ("fantasycore", "goblin"),
    "goblin_elite": ("fantasycore", "goblin chief"),
    "minotaur": ("fantasycore", "minotaur"),
    "skeleton": ("fantasycore", "skeleton"),
    "skeleton_archer": ("fantasycore", "skeleton archer"),
    "skeleton_mage": ("fantasycore", "skeleton mage"),
    "skeleton_weak": ("fantasycore", "weak skeleton"),
    "stealth": ("fantasycore", "shadow beast"),
    "wyvern": ("fantasycore", "wyvern"),
    "wyvern_adult": ("fantasycore", "adult wyvern"),
    "wyvern_fire": ("fantasycore", "fire wyvern"),
    "wyvern_water": ("fantasycore", "water wyvern"),
    "zombie": ("fantasycore", "zombie"),
    "zombie_dark": ("empyrean_campaign", "dark zombie"),
    "hobgoblin": ("empyrean_campaign", "hobgoblin"),
    "hobgoblin_archer": ("empyrean_campaign", "hobgoblin archer"),
    "skeleton_knight_boss": ("empyrean_campaign", "skeleton knight"),
    "skeleton_mage_boss": ("empyrean_campaign", "skeleton sorcerer"),
}
_LEATHER = ("leather_boots", "leather_pants", "leather_gloves", "leather_chest", "leather_hood")
_PLATE = ("plate_boots", "plate_greaves", "plate_gauntlets", "plate_cuirass", "plate_helm")
_CHAIN = ("chain_boots", "chain_greaves", "chain_gloves", "chain_cuirass", "chain_coif")
_MAGE = ("mage_boots", "mage_skirt", "mage_sleeves", "mage_vest", "mage_hood")
_CLOTH = ("cloth_sandals", "cloth_pants", "cloth_gloves", "cloth_shirt")
PEOPLE: dict[str, tuple[str, tuple[str, ...], str, str]] = {  # name -> (folder, clothes, weapon, shield)
    "man with a club": ("male", (*_CLOTH, "head_short"), "club", ""),
    "woman with a dagger": ("female", (*_CLOTH, "head_long"), "dagger", ""),
    "man in leather with a sword": ("male", _LEATHER, "shortsword", "buckler"),
    "woman in leather with a bow": ("female", _LEATHER, "longbow", ""),
    "man in chain mail with an axe": ("male", _CHAIN, "battle_axe", ""),
    "woman in chain mail with a mace": ("female", _CHAIN, "mace", "iron_buckler"),
    "man in armour with a sword": ("male", _PLATE, "longsword", "shield"),
    "woman in armour with a two-handed sword": ("female", _PLATE, "greatsword", ""),
    "wizard with a staff": ("male", _MAGE, "staff", ""),
    "sorceress with a wand": ("female", _MAGE, "wand", ""),
    "man in leather with a bow": ("male", _LEATHER, "shortbow", ""),
    "woman in leather with a sword": ("female", _LEATHER, "longsword", "shield"),
}
PARTS = ("feet", "legs", "hands", "chest", "head")


@dataclass(frozen=True)
class Frame:
    """A piece of a sprite sheet, and where it lies relative to the feet (pixels, y downwards)."""

    box: tuple[int, int, int, int]  # left, top, right, bottom in the sheet
    at: tuple[int, int]  # left, top relative to the feet


@dataclass
class Action:
    """One section of an animation file."""

    duration_ms: int
    frames: dict[tuple[int, int], Frame]  # (number, direction)

    def length(self, direction: int) -> int:
        """How many frames one direction has."""
        return sum(1 for _, d in self.frames if d == direction)


def build(out: Path, cache: Path) -> None:
    """Write `emblem-actions.parquet`."""
    mods = unpacked("flare", cache) / "usr" / "share" / "games" / "flare" / "mods"
    clips = [*_creatures(mods), *_people(mods)]
    novel = novel_actions()
    tables.write(out / "emblem-actions.parquet", [_row(*clip, novel) for clip in clips], COLUMNS)


def novel_actions() -> frozenset[str]:
    """The `NOVEL` classes of actions that are novel: those with the smallest hashes."""
    return frozenset(pick(sorted(ACTIONS.values()), NOVEL, "novel-actions"))


def read_animation(text: str) -> tuple[str, dict[str, Action]]:
    """(path of the sprite sheet, sections) of an animation file."""
    sheet, actions, current = "", {}, None
    for line in text.splitlines():
        key, _, value = line.strip().partition("=")
        if key.startswith("["):
            current = actions.setdefault(key.strip("[]"), Action(0, {}))
        elif key == "image":
            sheet = value
        elif current is not None and key == "duration":
            current.duration_ms = round(
                float(value.removesuffix("ms").removesuffix("s")) * (1 if value.endswith("ms") else 1000)
            )
        elif current is not None and key == "frame":
            n, direction, x, y, w, h, left, top = (int(v) for v in value.split(","))
            current.frames[n, direction] = Frame((x, y, x + w, y + h), (-left, -top))
    return sheet, actions


Layer = tuple[Image.Image, Mapping[str, Action]]
Clip = tuple[str, str, str, int, list[Image.Image], int]  # actor, kind, action, direction, frames, ms per frame


def _creatures(mods: Path) -> Iterator[Clip]:
    """The clips of all creatures, in the even or the odd directions by turns."""
    for number, (file, (mod, name)) in enumerate(sorted(CREATURES.items())):
        layer = _load(mods / mod, f"animations/enemies/{file}.txt", mods)
        for action in _distinct_actions(layer[1]):
            for direction in range(number % 2, 8, 2):
                frames, ms = compose([layer], action, direction)
                if frames:
                    yield name, "creature", action, direction, frames, ms


def _people(mods: Path) -> Iterator[Clip]:
    """The clips of all people: body, clothes, weapon and perhaps a shield, in half of the directions."""
    order = layer_order((mods / "fantasycore" / "engine" / "hero_layers.txt").read_text("utf-8"))
    for number, (name, (folder, clothes, weapon, shield)) in enumerate(sorted(PEOPLE.items())):
        parts = dict(zip(PARTS, clothes)) | {"main": weapon, "off": shield}
        root = f"animations/avatar/{folder}"
        layers = {part: _load(mods / "fantasycore", f"{root}/{file}.txt", mods) for part, file in parts.items() if file}
        bare = [_load(mods / "fantasycore", f"{root}/default_{part}.txt", mods) for part in PARTS[:4]]
        for action in _distinct_actions(layers["chest"][1]):
            for direction in range(number % 2, 8, 2):
                worn = [layers[part] for part in order[direction] if part in layers]
                frames, ms = compose(
                    [*bare, *worn] if order[direction][0] != "main" else [worn[0], *bare, *worn[1:]],
                    action,
                    direction,
                )
                if frames:
                    yield name, "human", action, direction, frames, ms


def layer_order(text: str) -> dict[int, list[str]]:
    """Direction -> parts in the order in which they are painted."""
    lines = (line.removeprefix("layer=").split(",") for line in text.splitlines() if line.startswith("layer="))
    return {int(direction): parts for direction, *parts in lines}


def _load(mod: Path, path: str, mods: Path) -> Layer:
    """The sprite sheet and the sections of one animation file; sheets may lie in any mod."""
    sheet, actions = read_animation((mod / path).read_text("utf-8"))
    found = next(root / sheet for root in (mod, *sorted(mods.iterdir())) if (root / sheet).exists())
    return Image.open(found).convert("RGBA"), actions


def _distinct_actions(actions: Mapping[str, Action]) -> list[str]:
    """The actions that have a class, without those that repeat the frames of a preferred one."""
    seen: list[set[tuple[Frame, int]]] = []
    found = []
    for name in PREFERRED:
        frames = {(frame, at[1]) for at, frame in actions[name].frames.items()} if name in actions else set()
        if frames and frames not in seen:
            seen.append(frames)
            found.append(name)
    return found


def compose(layers: Sequence[Layer], action: str, direction: int) -> tuple[list[Image.Image], int]:
    """(RGBA frames on one canvas, milliseconds for each) of layers painted over one another.

    At most `MAX_FRAMES` frames, evenly spaced; no frames when no layer has the action.
    """
    having = [(sheet, actions[action]) for sheet, actions in layers if action in actions]
    length = max((a.length(direction) for _, a in having), default=0)
    if not length:
        return [], 0
    count = min(length, MAX_FRAMES)
    numbers = [i * length // count for i in range(count)]
    pieces = [[(sheet, a.frames[n, direction]) for sheet, a in having if (n, direction) in a.frames] for n in numbers]
    boxes = [
        (f.at[0], f.at[1], f.at[0] + f.box[2] - f.box[0], f.at[1] + f.box[3] - f.box[1])
        for piece in pieces
        for _, f in piece
    ]
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    size = (max(b[2] for b in boxes) - left, max(b[3] for b in boxes) - top)
    return [_paint(piece, size, left, top) for piece in pieces], round(having[0][1].duration_ms / count)


def _paint(piece: Sequence[tuple[Image.Image, Frame]], size: tuple[int, int], left: int, top: int) -> Image.Image:
    """One frame: its pieces painted in order on a clear canvas."""
    canvas = Image.new("RGBA", size)
    for sheet, frame in piece:
        canvas.alpha_composite(sheet.crop(frame.box), (frame.at[0] - left, frame.at[1] - top))
    return canvas


def _row(
    actor: str,
    kind: str,
    action: str,
    direction: int,
    frames: list[Image.Image],
    ms: int,
    novel: frozenset[str],
) -> dict[str, Any]:
    """The row of one clip."""
    label = ACTIONS[action]
    images = [to_webp(fit(f, min(SIDE, max(f.size))), QUALITY, ALPHA_QUALITY) for f in frames]
    article = "an" if actor[0] in "aeiou" else "a"
    return {
        "key": f"flare/{actor.replace(' ', '-')}/{action}/{DIRECTIONS[direction]}",
        "frames": images,
        "text": f"{article} {actor} {label}",
        "action": label,
        "actor": actor,
        "kind": kind,
        "direction": DIRECTIONS[direction],
        "frame_ms": ms,
        "split": split(actor, kind),
        "novel": label in novel,
        "family": "flare",
        "source": PACKAGES["flare"].source,
        "licence": LICENCE,
    }


def split(actor: str, kind: str) -> str:
    """People are test; of the creatures the fifth with the smallest hashes is val; the others are train."""
    if kind == "human":
        return "test"
    names = sorted(name for _, name in CREATURES.values())
    held = sorted(names, key=lambda name: share(name, "actors"))[: len(names) // 5]
    return "val" if actor in held else "train"
