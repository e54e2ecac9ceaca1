"""Pictures that a person can look at: boxes and label maps drawn over a picture, with their names. Pillow only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from emblema.core.boxes import Boxes

SIDE = 512  # small pictures are enlarged to this, so that names can be read


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour a class: hues by the golden ratio, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.85, 0.95 - 0.25 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(image: Image.Image, boxes: Boxes, names: Sequence[str]) -> Image.Image:
    """Frames with names and scores, the likeliest on top."""
    canvas, times = _enlarged(image)
    pen, font = ImageDraw.Draw(canvas), _font(canvas)
    order = range(len(boxes)) if boxes.scores is None else boxes.scores.argsort().tolist()
    for i in order:
        label = int(boxes.labels[i]) if boxes.labels is not None else 0
        x1, y1, x2, y2 = (v * times for v in boxes.xyxy[i].tolist())
        pen.rectangle(
            (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour_of(label), width=max(2, canvas.width // 200)
        )
        text = names[label] if boxes.scores is None else f"{names[label]} {float(boxes.scores[i]):.2f}"
        _tag(pen, (x1, y1), text, colour_of(label), font, canvas.size)
    return canvas


def draw_map(image: Image.Image, labels: Tensor, names: Sequence[str], strength: float = 0.6) -> Image.Image:
    """A label map [H, W] in colours over the picture, with a legend of the classes in it. Other numbers stay clear."""
    canvas, _ = _enlarged(image)
    numbers = Image.fromarray(labels.clamp(0, 65535).to(torch.int32).numpy()).resize(
        canvas.size, Image.Resampling.NEAREST
    )
    shown = np.asarray(numbers)
    pixels = np.asarray(canvas).astype(np.float32)
    there = [c for c in np.unique(shown).tolist() if c < len(names)]
    for c in there:
        pixels[shown == c] = (1 - strength) * pixels[shown == c] + strength * np.array(colour_of(c), dtype=np.float32)
    canvas = Image.fromarray(pixels.round().astype(np.uint8))
    pen, font = ImageDraw.Draw(canvas), _font(canvas)
    share = {c: float((shown == c).mean()) for c in there}
    top = 2.0
    for c in sorted(there, key=lambda c: -share[c])[:12]:
        top = _tag(pen, (2, top), f"{names[c]} {share[c]:.0%}", colour_of(c), font, canvas.size, below=True) + 2
    return canvas


def side_by_side(*images: Image.Image) -> Image.Image:
    """In a row, of the first one's height."""
    height = images[0].height
    scaled = [im.resize((max(1, round(im.width * height / im.height)), height)) for im in images]
    row = Image.new("RGB", (sum(im.width for im in scaled) + 4 * (len(scaled) - 1), height), (255, 255, 255))
    left = 0
    for im in scaled:
        row.paste(im, (left, 0))
        left += im.width + 4
    return row


def _enlarged(image: Image.Image) -> tuple[Image.Image, float]:
    """A copy at least `SIDE` on its longer side, and how much larger it is."""
    times = max(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * times)), max(1, round(image.height * times))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC if times > 1 else Image.Resampling.NEAREST), times


def _font(canvas: Image.Image) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=max(12, min(canvas.size) // 32))


def _tag(pen: ImageDraw.ImageDraw, at, text: str, colour, font, size: tuple[int, int], below: bool = False) -> float:
    """A name on its colour, above the place (or below it), moved to lie inside the picture; returns its lower edge."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = min(max(0.0, at[0]), max(0, size[0] - width))
    y = at[1] if below or at[1] < height else at[1] - height
    y = min(max(0.0, y), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 140
    pen.text((x + 3 - left, y + 2 - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    return y + height
