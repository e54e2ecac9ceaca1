"""Drawings (SVG text or picture bytes) to small RGBA WebP pictures, in up to two processes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SIDE = 64  # pixels, longest side of an emblem
QUALITY = 60  # WebP quality of the colours
ALPHA_QUALITY = 40  # WebP quality of the transparency


@dataclass(frozen=True)
class Drawing:
    """One picture before it is drawn, with the words and the rights that belong to it."""

    key: str
    content: str | bytes = field(repr=False)  # SVG text, or the bytes of a picture
    text: str
    texts: tuple[str, ...]
    family: str
    kind: str  # emoji, clipart or icon
    source: str
    licence: str  # SPDX
    concept: str | None = None
    group: str | None = None


def render_svg(svg: str, side: int) -> Image.Image:
    """RGBA picture of an SVG, `side` pixels wide; raises `ValueError` when the SVG cannot be read."""
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_string=svg, width=side, dpi=96)
    if not data:
        raise ValueError("the SVG has no picture")
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def fit(image: Image.Image, side: int) -> Image.Image:
    """The picture scaled so that its longest side has `side` pixels (RGBA, premultiplied while scaling)."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size == image.size:
        return image.convert("RGBA")
    return image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def is_blank(image: Image.Image) -> bool:
    """Whether nothing can be seen on white paper: under 0.7 % of the pixels differ visibly from white."""
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    grey = np.asarray(paper.convert("RGB"), dtype=np.int16).min(axis=2)
    return bool((grey < 225).mean() < 0.007)


def to_webp(image: Image.Image, quality: int = QUALITY, alpha_quality: int = ALPHA_QUALITY) -> bytes:
    """WebP bytes with the slowest, smallest setting; the same picture always gives the same bytes."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, alpha_quality=alpha_quality, method=6)
    return out.getvalue()


def crop(image: Image.Image, margin: float = 0.03) -> Image.Image:
    """The part of an RGBA picture that can be seen, with a margin in shares of its longest side."""
    box = image.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox()
    if box is None:
        return image
    pad = round(margin * max(box[2] - box[0], box[3] - box[1]))
    left, top = max(0, box[0] - pad), max(0, box[1] - pad)
    return image.crop((left, top, min(image.width, box[2] + pad), min(image.height, box[3] + pad)))


def draw(content: str | bytes, cropped: bool = False, side: int = SIDE) -> tuple[bytes, str] | None:
    """(WebP bytes, hash of the pixels), or None when the drawing fails or is blank.

    A `cropped` drawing loses its empty border; it is drawn larger first, so that what remains stays sharp.
    """
    try:
        image = _picture(content, 4 * side if cropped else 2 * side)
        image = fit(crop(image) if cropped else image, side)
    except Exception:  # resvg and Pillow raise many kinds; a drawing that fails is left out and counted
        return None
    if is_blank(image) or min(image.size) < 8:
        return None
    visible = np.asarray(image.convert("RGBa"))
    return to_webp(image), hashlib.sha256(visible.tobytes()).hexdigest()


def _picture(content: str | bytes, side: int) -> Image.Image:
    """RGBA picture of SVG text drawn `side` pixels wide, or of picture bytes in their own size."""
    if isinstance(content, str):
        return render_svg(content, side)
    return Image.open(io.BytesIO(content)).convert("RGBA")


def draw_all(drawings: Sequence[Drawing], workers: int = 2) -> Iterator[tuple[Drawing, bytes]]:
    """Each drawing with its WebP bytes, in the order of the keys, without failures, blanks and exact doubles.

    Emoji keep the border that their artists gave them; clip-art and icons are cropped.
    """
    ordered = sorted(drawings, key=lambda d: d.key)
    seen: set[str] = set()
    for drawing, drawn in zip(ordered, _map([(d.content, d.kind != "emoji") for d in ordered], workers)):
        if drawn is not None and drawn[1] not in seen:
            seen.add(drawn[1])
            yield drawing, drawn[0]


def _map(jobs: Sequence[tuple[str | bytes, bool]], workers: int) -> Iterable[tuple[bytes, str] | None]:
    """`draw` over all (content, cropped) pairs, in order."""
    if workers < 2:
        yield from (draw(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(draw, *zip(*jobs), chunksize=64)
