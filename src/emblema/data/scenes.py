"""`emblem-scenes`: stickers composed on photographs, with relation captions, boxes and masks, out of a seed.

A scene is a pure function of (seed, split, number): nothing is stored. Test scenes use art families and backgrounds
that no other split shows; categories marked novel appear in test scenes only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from emblema.core.batch import Record
from emblema.core.boxes import Boxes, Masks
from emblema.core.card import DatasetCard
from emblema.core.errors import BadData, SealedSplit
from emblema.data.bundled import read_bundled
from emblema.data.catalog import FOLDER, GENERATED
from emblema.data.colours import colour_name
from emblema.data.datasets import ReadReport, Records
from emblema.data.pictures import canvas

# (base categories, novel categories): classes of emblem-objects that look alike in all families
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "small": (
        ("bicycle", "car", "cat", "elephant", "house", "pizza", "turtle", "umbrella"),
        ("banana", "bus", "guitar", "lion"),
    ),
    "large": (
        (
            *("airplane", "bicycle", "butterfly", "camera", "car", "carrot", "cat", "dog", "elephant", "fish"),
            *("hamburger", "helicopter", "house", "owl", "penguin", "pineapple", "pizza", "red apple", "sailboat"),
            *("soccer ball", "tractor", "trumpet", "turtle", "umbrella"),
        ),
        (
            *("banana", "basketball", "bus", "deer", "gorilla", "guitar", "lion", "motorcycle", "octopus", "rocket"),
            *("strawberry", "train"),
        ),
    ),
}
MONOCHROME = ("emojione-monotone", "fluent-emoji-high-contrast")
SIZES = {"train": 10_000, "val": 500, "test": 1_000}  # scenes a split, by default
RELATIONS = {  # and their opposites
    "left of": "right of", "right of": "left of", "above": "below", "below": "above", "on top of": "underneath",
    "underneath": "on top of",
}  # fmt: skip
_STEP = 4  # pixels between the sizes at which a sticker is kept
_SPLITS = ("train", "val", "test")


class Sticker(NamedTuple):
    """One RGBA picture cut to its visible part."""

    image: Image.Image
    label: int
    colour: str | None  # where one colour prevails


class Placed(NamedTuple):
    """A sticker in a scene; coordinates in pixels."""

    sticker: Sticker
    pixels: np.ndarray  # [h, w, 4] uint8, colours multiplied by alpha
    left: int
    top: int
    on: int | None  # number of the thing that it stands on

    @property
    def centre(self) -> tuple[float, float]:
        height, width = self.pixels.shape[:2]
        return self.left + width / 2, self.top + height / 2


class Scenes(Records):
    """Composed scenes as records: an RGB picture, captions, `boxes`, `mask` and `labels` (the classes that it shows).

    `class_names` are the base categories, then the novel ones. `mask.labels` is 255 where no thing is; masks and boxes
    hold what is visible (alpha of at least 128, not covered).
    """

    def __init__(
        self,
        seed: int = 0,
        size: int = 128,  # pixels, square
        categories: str | tuple[Sequence[str], Sequence[str]] = "small",
        things: tuple[int, int] = (1, 4),  # fewest and most in a scene
        sizes: dict[str, int] | None = None,  # scenes a split
        novel_in_train: bool = False,
        folder: Path | None = None,  # of the bundled sets
    ):
        base, novel = CATEGORIES[categories] if isinstance(categories, str) else categories
        self.seed, self.size, self.things, self.novel_in_train = seed, size, things, novel_in_train
        self.base, self.novel, self.drawn = list(base), list(novel), [*base, *novel]
        sizes = dict(sizes or SIZES)
        self.made: tuple[str, ...] = _SPLITS  # splits whose scenes it makes
        self.folder = folder or FOLDER
        self._stock: dict[Any, Any] = {}
        keys = [f"scene/{seed}/{split}/{i}" for split, n in sizes.items() for i in range(n)]
        splits = [split for split, n in sizes.items() for _ in range(n)]
        card = DatasetCard(**{**GENERATED["emblem-scenes"], "classes": len(base) + len(novel), "sizes": sizes})
        super().__init__(card, {"key": keys, "split": splits}, [*base, *novel], ReadReport(read=len(keys)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stock": {}}

    def novel_classes(self) -> list[str]:
        return list(self.novel)

    def base_classes(self) -> list[str]:
        return list(self.base)

    def record(self, row: int) -> Record:
        *_, split, number = self.columns["key"][row].split("/")
        return self.scene(int(number), split)

    def alone(self) -> Scenes:
        """As of any records; the twin makes no scene of a split that it does not hold."""
        twin = super().alone()
        twin._stock, twin.made = {}, tuple(twin.splits)
        return twin

    def scene(self, number: int, split: str = "train") -> Record:
        """Scene `number` of a split; any number from 0 on. Raises `SealedSplit` for a split that is out of reach."""
        if split not in self.made:
            raise SealedSplit(f"scenes of the {split} split are not to be had here, only {', '.join(self.made)}")
        stock = self._stickers(split)
        random = np.random.default_rng((self.seed, _SPLITS.index(split), number))
        backdrop = self._backdrop(random, split)
        placed = self._place(random, stock)
        alpha = _paint(backdrop, placed)
        visible = [p for p, a in zip(placed, alpha) if a.any()]
        masks = np.stack([a for a in alpha if a.any()])
        captions = describe(visible, self.drawn)
        return Record(
            key=f"scene/{self.seed}/{split}/{number}",
            image=Image.fromarray(backdrop),
            text=captions[0],
            texts=tuple(captions[1:]),
            labels=tuple(sorted({p.sticker.label for p in visible})),
            boxes=boxes_of(masks, [p.sticker.label for p in visible]),
            mask=_masks(masks, [p.sticker.label for p in visible]),
        )

    def _place(self, random: np.random.Generator, stock: dict[int, list[int]]) -> list[Placed]:
        """Things in the order in which they are painted: distinct classes, little overlap, some standing on others."""
        count = int(random.integers(self.things[0], self.things[1] + 1))
        labels = random.permutation(list(stock))[:count]
        low, high = (0.3, 0.6) if count == 1 else (0.22, 0.42)
        placed: list[Placed] = []
        for label in labels:
            sticker = int(stock[int(label)][random.integers(len(stock[int(label)]))])
            side = max(8, int(self.size * random.uniform(low, high)) // _STEP * _STEP)
            pixels = self._stock["resized"](sticker, side)
            h, w = pixels.shape[:2]
            spot, on = None, None
            if placed and random.random() < 0.25:
                spot, on = _upon(placed, len(placed) - 1, h, w, self.size), len(placed) - 1
            tries = random.random((20, 2)).tolist()
            while spot is None and tries:
                x, y = tries.pop()
                on, spot = None, (int(x * (self.size - w)), int(y * (self.size - h)))
                if any(_overlap(spot, (h, w), p) > 0.1 for p in placed):
                    spot = None
            if spot is not None:
                placed.append(Placed(self._stock["stickers"][sticker], pixels, *spot, on))
        return placed

    def _backdrop(self, random: np.random.Generator, split: str) -> np.ndarray:
        """uint8 [size, size, 3]: a photograph's crop, perhaps mirrored, lighter or darker."""
        pictures = self._backdrops("test" if split == "test" else "train")
        picture = pictures[int(random.integers(len(pictures)))]
        if random.random() < 0.5:
            picture = picture[:, ::-1]
        table = np.clip(np.arange(256) * random.uniform(0.8, 1.15) + random.uniform(-15, 15), 0, 255)
        return table.astype(np.uint8)[picture]

    def _backdrops(self, split: str) -> np.ndarray:
        """uint8 [N, size, size, 3]."""
        if ("backdrops", split) not in self._stock:
            pictures = read_bundled("backgrounds", self.folder).split(split)
            pixels = [canvas(p, self.size, "crop")[:3].permute(1, 2, 0).numpy() for p in pictures.column("image")]
            self._stock["backdrops", split] = np.stack(pixels)
        return self._stock["backdrops", split]

    def _stickers(self, split: str) -> dict[int, list[int]]:
        """{class: numbers of its stickers} that scenes of this split may show."""
        kind = "test" if split == "test" else "train"
        if kind not in self._stock:
            names = self.drawn if kind == "test" or self.novel_in_train else self.base
            objects = read_bundled("emblem-objects", self.folder).split(kind).where(label_name=names)
            stickers = self._stock.setdefault("stickers", [])
            found: dict[int, list[int]] = {self.drawn.index(n): [] for n in names}
            for record in objects:
                if record.domain not in MONOCHROME:
                    label = self.drawn.index(objects.class_names[record.label or 0])
                    found[label].append(len(stickers))
                    stickers.append(_sticker(record.image, label))
            if bare := [self.drawn[c] for c, numbers in found.items() if not numbers]:
                raise BadData(f"no {kind} sticker in emblem-objects for {', '.join(bare)}: choose other categories")
            self._stock[kind] = found
            self._stock["resized"] = cache(lambda number, side: _resized(stickers[number].image, side))
        return self._stock[kind]

    def to_coco(self, folder: Path | str, split: str = "test", limit: int | None = None) -> Path:
        """Write scenes as COCO does: `split/N.png`, `annotations/{instances,captions}_split.json`; the instances' path.

        Category ids count from 1; category names carry `"novel"`, and boxes are as exact as the masks.
        """
        import json

        from emblema.data.coco import encode_mask

        folder = Path(folder)
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        total = len(self.split(split)) if limit is None else limit
        images, things, captions = [], [], []
        for number in range(total):
            record = self.scene(number, split)
            name = f"{number:06d}.png"
            record.image.save(folder / split / name)  # type: ignore[union-attr]
            images.append({"id": number, "file_name": name, "height": self.size, "width": self.size})
            assert record.boxes is not None and record.boxes.labels is not None
            assert record.mask is not None and record.mask.instances is not None
            areas = record.mask.instances.sum((1, 2)).tolist()
            for box, label, mask, area in zip(
                record.boxes.xyxy.tolist(), record.boxes.labels.tolist(), record.mask.instances.numpy(), areas
            ):
                x1, y1, x2, y2 = box
                things.append(
                    {"id": len(things) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0, "area": area}
                    | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": encode_mask(mask)}
                )
            for text in (record.text, *record.texts):
                captions.append({"id": len(captions) + 1, "image_id": number, "caption": text})
        categories = [{"id": i + 1, "name": n, "novel": n in self.novel} for i, n in enumerate(self.class_names)]
        main = folder / "annotations" / f"instances_{split}.json"
        main.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
        main.with_name(f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": captions}))
        return main


def describe(placed: Sequence[Placed], class_names: Sequence[str]) -> list[str]:
    """Captions of a scene: all relations, then each of them, then the things with and without colours."""
    plain = [with_article(class_names[p.sticker.label]) for p in placed]
    full = [_coloured(p.sticker, class_names) for p in placed]
    if len(placed) == 1:
        return list(dict.fromkeys([full[0], plain[0], f"one {class_names[placed[0].sticker.label]}"]))
    pairs = list(zip(range(1, len(placed)), placed[1:], placed))
    lies = [f"{full[i]} {relation(one, other, one.on == i - 1)}" for i, one, other in pairs]
    relations = [f"{clause} {full[i]}" for i, clause in enumerate(lies)]
    chain = [relations[0], *(f"{lies[i]} the {class_names[placed[i].sticker.label]}" for i in range(1, len(lies)))]
    return list(dict.fromkeys([", and ".join(chain), *relations, listed(full), listed(plain)]))


def relation(one: Placed, other: Placed, stands: bool) -> str:
    """How one thing lies to the other, by their centres: the axis on which they are further apart decides."""
    if stands:
        return "on top of"
    dx, dy = (a - b for a, b in zip(one.centre, other.centre))
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


_CLAUSE = re.compile(rf"^(?P<one>an? .+?) (?P<relation>{'|'.join(RELATIONS)}) (?P<other>an? .+?)(?=, and |$)")
_COLOURED = re.compile(
    r"\b(?P<article>an?) (?P<colour>red|orange|yellow|green|blue|purple|pink|brown|black|white|grey) "
)
_SWAPPED_COLOURS = {
    "red": "blue", "orange": "purple", "yellow": "purple", "green": "pink", "blue": "red", "purple": "yellow",
    "pink": "green", "brown": "blue", "black": "white", "white": "black", "grey": "green",
}  # fmt: skip


def swapped(record: Record) -> dict[str, str]:
    """Captions nearly the record's own, but false: {"order" | "relation" | "attribute": caption}, those that exist.

    They change the first caption: its first two things trade places, its first relation turns around, or its first
    colour changes. Captions of one thing without a colour have none.
    """
    text = record.text or ""
    found: dict[str, str] = {}
    if clause := _CLAUSE.match(text):
        rest = text[clause.end() :]
        one, other = clause["one"], clause["other"]
        if one != other:
            found["order"] = f"{other} {clause['relation']} {one}{rest}"
        found["relation"] = f"{one} {RELATIONS[clause['relation']]} {other}{rest}"
    if colour := _COLOURED.search(text):
        new = with_article(_SWAPPED_COLOURS[colour["colour"]])
        found["attribute"] = f"{text[: colour.start()]}{new} {text[colour.end() :]}"
    return found


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(names: Sequence[str]) -> str:
    """ "a cat, a dog and a bus"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def boxes_of(masks: np.ndarray, labels: Sequence[int]) -> Boxes:
    """The tightest box around each mask of bool [N, H, W]; none may be empty."""
    xyxy = np.empty((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        xyxy[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return Boxes(torch.from_numpy(xyxy), labels=torch.tensor(labels, dtype=torch.long))


def _masks(instances: np.ndarray, labels: Sequence[int]) -> Masks:
    semantic = np.full(instances.shape[1:], 255, dtype=np.int64)
    for mask, label in zip(instances, labels):
        semantic[mask] = label
    return Masks(torch.from_numpy(semantic), torch.from_numpy(instances))


def _paint(backdrop: np.ndarray, placed: Sequence[Placed]) -> list[np.ndarray]:
    """Paint the things onto uint8 [S, S, 3] in their order; what stays visible of each, bool [S, S]."""
    masks: list[np.ndarray] = []
    for thing in placed:
        h, w = thing.pixels.shape[:2]
        window = np.s_[thing.top : thing.top + h, thing.left : thing.left + w]
        alpha = thing.pixels[..., 3:]
        under = backdrop[window].astype(np.uint16) * (255 - alpha.astype(np.uint16)) + 128
        backdrop[window] = thing.pixels[..., :3] + ((under + (under >> 8)) >> 8).astype(np.uint8)
        solid = alpha[..., 0] >= 128
        for mask in masks:
            mask[window] &= ~solid
        own = np.zeros(backdrop.shape[:2], dtype=bool)
        own[window] = solid
        masks.append(own)
    return masks


def _upon(placed: Sequence[Placed], at: int, h: int, w: int, size: int) -> tuple[int, int] | None:
    """(left, top) of a thing of h by w pixels that stands on thing `at`; None where there is no room."""
    below = placed[at]
    left = round(below.centre[0] - w / 2)
    top = below.top - h + 2
    if top < 0 or left < 0 or left + w > size:
        return None
    others = [p for i, p in enumerate(placed) if i != at]
    return None if any(_overlap((left, top), (h, w), p) > 0.1 for p in others) else (left, top)


def _overlap(spot: tuple[int, int], extent: tuple[int, int], other: Placed) -> float:
    """The share of the smaller box that both cover."""
    (left, top), (h, w) = spot, extent
    oh, ow = other.pixels.shape[:2]
    across = min(left + w, other.left + ow) - max(left, other.left)
    down = min(top + h, other.top + oh) - max(top, other.top)
    return max(0, across) * max(0, down) / min(h * w, oh * ow)


def _coloured(sticker: Sticker, class_names: Sequence[str]) -> str:
    name = class_names[sticker.label]
    if sticker.colour is None or sticker.colour in name.split():
        return with_article(name)
    return with_article(f"{sticker.colour} {name}")


def _sticker(picture: Any, label: int) -> Sticker:
    rgba = canvas(picture, 64).permute(1, 2, 0).numpy()
    image = Image.fromarray(rgba)
    box = Image.fromarray((rgba[..., 3] >= 128).astype(np.uint8)).getbbox()
    return Sticker(image.crop(box), label, colour_name(rgba))


def _resized(image: Image.Image, side: int) -> np.ndarray:
    """uint8 [h, w, 4] with its longer side of `side` pixels, colours multiplied by alpha."""
    scale = side / max(image.size)
    w, h = (max(1, round(v * scale)) for v in image.size)
    premultiplied = image.convert("RGBa").resize((w, h), Image.Resampling.BICUBIC)
    pixels = np.frombuffer(premultiplied.tobytes(), dtype=np.uint8).reshape(h, w, 4).copy()
    np.minimum(pixels[..., :3], pixels[..., 3:], out=pixels[..., :3])  # bicubic may overshoot
    return pixels
