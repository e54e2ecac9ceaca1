"""Pictures of any kind to uint8 tensors: opened safely, turned upright, made RGB(A), resized and cropped.

Two routes lead to the same pixels. PIL reads every format; plain JPEG and WebP take a shorter one (torchvision's
decoders and torch's antialiased uint8 resize), whose rounding may differ by a few of 255.
Colour profiles (ICC) are not applied.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from emblema.core.errors import BadData
from emblema.core.preprocess import Preprocess

with contextlib.suppress(ImportError):
    import torchvision.io  # noqa: F401  (loads the decoders that torch.ops.image names)

MAX_PIXELS = 89_000_000  # a larger header is taken for a decompression bomb; below Pillow's own limit
Source = Path | str | bytes | Image.Image

# torchvision's decoders as operators: its functions around them are deprecated without a replacement in torchvision.
# Where a release has dropped them, all pictures go by Pillow.
_decode_jpeg = getattr(torch.ops.image, "decode_jpeg", None)
_decode_webp = getattr(torch.ops.image, "decode_webp", None)
_UNCHANGED, _RGB = 0, 3  # torchvision's ImageReadMode
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class BrokenPicture(BadData):
    """A picture that cannot be used: `path` says which (None for bytes in memory), `reason` says why."""

    def __init__(self, path: Path | str | None, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{path if path is not None else 'picture in memory'}: {reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason)  # crosses process borders whole


def open_picture(source: Source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture upright in mode RGB, or RGBA where it has transparency; the first frame of an animation.

    Raises `BrokenPicture` when the file is missing, empty, truncated, no picture, or larger than `max_pixels`.
    """
    path = _path(source)
    data = b"" if isinstance(source, Image.Image) else _bytes(source)
    try:
        if isinstance(source, Image.Image):
            return _decoded(source, path, max_pixels)
        with Image.open(io.BytesIO(data)) as image:
            return _decoded(image, path, max_pixels)
    except UnidentifiedImageError:
        raise BrokenPicture(path, f"not a picture that Pillow reads (starts with {data[:8]!r})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise BrokenPicture(path, f"refused as a decompression bomb: {bomb}") from None
    except BrokenPicture:
        raise
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, MemoryError) as error:  # as Pillow's plugins do
        raise BrokenPicture(path, f"truncated or corrupt: {error}") from None


def canvas(source: Source, size: int, mode: str = "pad", max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 [4, size, size] RGBA: alpha is 255 where the picture is opaque and 0 in padding.

    `mode` is that of `Preprocess`: "crop", "squash" or "pad". Colours are weighted by alpha while resizing.
    """
    pixels = _decode(source, max_pixels) if isinstance(source, bytes) else None
    if pixels is None:
        image = open_picture(source, max_pixels).convert("RGBA")
    elif pixels.shape[-2:] == (size, size):
        return pixels if len(pixels) == 4 else F.pad(pixels, (0, 0, 0, 0, 0, 1), value=255)
    else:
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert("RGBA")
    placed = _place(image, Preprocess(size=size, mode=mode), (0, 0, 0, 0), _path(source), max_pixels)
    return _tensor(placed)


def load_image(source: Source, preprocess: Preprocess, *, fast: bool = True, max_pixels: int = MAX_PIXELS) -> Tensor:
    """uint8 [3, size, size], transparency laid over `preprocess.background`.

    Resized first and cropped after, rounded as open_clip's evaluation transform does. `fast=False` forces the PIL
    route, which gives that transform's very pixels.
    """
    if not isinstance(source, Image.Image):
        source, path = _bytes(source), _path(source)
        if fast and (pixels := _decode(source, max_pixels)) is not None:
            pixels = _over(pixels, preprocess.background) if len(pixels) == 4 else pixels
            return _place_tensor(pixels, preprocess, path, max_pixels)
        try:
            image = open_picture(source, max_pixels)
        except BrokenPicture as broken:
            raise BrokenPicture(path, broken.reason) from None
    else:
        path, image = None, open_picture(source, max_pixels)
    return _tensor(_place(flatten(image, preprocess.background), preprocess, preprocess.background, path, max_pixels))


def load_batch(
    sources: Sequence[Source], preprocess: Preprocess, threads: int = 2, max_pixels: int = MAX_PIXELS
) -> tuple[Tensor, list[tuple[int, str]]]:
    """(uint8 [N, 3, size, size] in the order of `sources`, [(index, reason) of each that could not be read]).

    The rows of broken pictures hold the background: drop them by the indices, and report them.
    """
    out = torch.tensor(preprocess.background, dtype=torch.uint8)[None, :, None, None]
    out = out.repeat(len(sources), 1, preprocess.size, preprocess.size)

    def load(index: int) -> tuple[int, str] | None:
        try:
            out[index] = load_image(sources[index], preprocess, max_pixels=max_pixels)
        except BrokenPicture as broken:
            return index, str(broken) if broken.path is not None else broken.reason
        return None

    if threads <= 1 or len(sources) < 2:
        found = [load(i) for i in range(len(sources))]
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(load, range(len(sources))))
    return out, [error for error in found if error is not None]


def flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An RGB or RGBA picture laid over a plain background, RGB."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    under = Image.new("RGB", image.size, background)
    under.paste(image, mask=image.getchannel("A"))
    return under


def geometry(width: int, height: int, size: int, mode: str) -> tuple[int, int, int, int]:
    """(width, height) to resize to, then (left, top) of the square window; negative where it must be padded.

    The roundings are those of torchvision's `Resize` and `CenterCrop` and of open_clip's `ResizeKeepRatio`.
    """
    if mode == "squash":
        return size, size, 0, 0
    if mode == "crop":
        short, long = min(width, height), int(size * max(width, height) / min(width, height))
        w, h = (size, long) if width == short else (long, size)
        return w, h, round((w - size) / 2), round((h - size) / 2)
    ratio = max(width, height) / size
    w, h = max(1, round(width / ratio)), max(1, round(height / ratio))
    return w, h, -((size - w) // 2), -((size - h) // 2)


def _path(source: Source) -> Path | str | None:
    return source if isinstance(source, Path | str) else None


def _bytes(source: Path | str | bytes) -> bytes:
    """The file's content; raises `BrokenPicture` when there is none."""
    path = _path(source)
    if source is None:
        raise BrokenPicture(None, "no picture: the record has none")
    if path is None:
        data = bytes(source)  # type: ignore[arg-type]
    else:
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise BrokenPicture(path, "no such file") from None
        except OSError as error:
            raise BrokenPicture(path, f"cannot be read: {error.strerror}") from None
    if not data:
        raise BrokenPicture(path, "zero bytes")
    return data


def _refuse_bomb(width: int, height: int, max_pixels: int, path: Path | str | None) -> None:
    if width * height > max_pixels:
        raise BrokenPicture(path, f"refused as a decompression bomb: {width} x {height} is over {max_pixels:,} pixels")


def _decoded(image: Image.Image, path: Path | str | None, max_pixels: int) -> Image.Image:
    """First frame, decoded, upright, RGB or RGBA."""
    if 0 in image.size:
        raise BrokenPicture(path, f"has no pixels: {image.size[0]} x {image.size[1]}")
    _refuse_bomb(*image.size, max_pixels, path)
    image.load()
    transparent = "transparency" in image.info  # a palette's, or one colour of an opaque mode
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (transparent and image.mode in ("P", "RGB", "L", "1")):
        return image.convert("RGBA")
    if image.mode == "RGB":
        return image
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats, scaled to 8 bits; Pillow's own conversion would clip at 255.

    16-bit modes span 0..65535. 32-bit integers and floats do not say their range: it is taken to be 0..1 (floats),
    0..255 or 0..65535, whichever first holds all values, else minimum to maximum.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        tops = [1.0] if image.mode == "F" else []
        top = next((t for t in (*tops, 255.0, 65535.0) if low >= 0 and high <= t), None)
    scaled = values * (255 / top) if top else (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _window(width: int, height: int, preprocess: Preprocess, path, max_pixels: int) -> tuple[int, int, int, int]:
    w, h, left, top = geometry(width, height, preprocess.size, preprocess.mode)
    if w * h > max_pixels:  # a sliver's short side blown up to `size`
        raise BrokenPicture(path, f"{width} x {height} is too elongated to be cropped to {preprocess.size}")
    return w, h, left, top


def _place(
    image: Image.Image, preprocess: Preprocess, fill: tuple[int, ...], path: Path | str | None, max_pixels: int
) -> Image.Image:
    """The PIL route: resized, then cropped or padded to the square."""
    size = preprocess.size
    w, h, left, top = _window(*image.size, preprocess, path, max_pixels)
    if (w, h) != image.size:
        image = image.resize((w, h), _FILTERS[preprocess.interpolation])
    if (w, h) == (size, size):
        return image
    if preprocess.mode == "pad":
        square = Image.new(image.mode, (size, size), fill)
        square.paste(image, (-left, -top))
        return square
    return image.crop((left, top, left + size, top + size))


def _place_tensor(pixels: Tensor, preprocess: Preprocess, path: Path | str | None, max_pixels: int) -> Tensor:
    """The short route: uint8 [3, H, W] to [3, size, size]."""
    size = preprocess.size
    height, width = pixels.shape[-2:]
    w, h, left, top = _window(width, height, preprocess, path, max_pixels)
    if (w, h) != (width, height):
        pixels = F.interpolate(pixels[None], (h, w), mode=preprocess.interpolation, antialias=True)[0]
    if preprocess.mode == "pad":
        square = torch.tensor(preprocess.background, dtype=torch.uint8)[:, None, None].repeat(1, size, size)
        square[:, -top : h - top, -left : w - left] = pixels
        return square
    return pixels[:, top : top + size, left : left + size].contiguous()


def _tensor(image: Image.Image) -> Tensor:
    """uint8 [C, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _decode(data: bytes, max_pixels: int) -> Tensor | None:
    """uint8 [3 or 4, H, W] upright, by torchvision, when the bytes are a sound plain JPEG or WebP; else None.

    None leaves the verdict, and all rarer formats and modes, to Pillow.
    """
    if data.startswith(b"\xff\xd8\xff") and _decode_jpeg is not None:
        frame, decode = jpeg_frame(data), lambda encoded: _decode_jpeg(encoded, _RGB, True)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and _decode_webp is not None:
        frame, decode = webp_frame(data), lambda encoded: _decode_webp(encoded, _UNCHANGED)
    else:
        return None
    if frame is None or frame[0] * frame[1] > max_pixels or 0 in frame:
        return None
    try:
        return decode(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except RuntimeError:
        return None


def _over(pixels: Tensor, background: tuple[int, int, int]) -> Tensor:
    """uint8 [4, H, W] laid over a plain background, uint8 [3, H, W], with the rounding of Pillow's `paste`."""
    rgba = pixels.numpy().astype(np.uint16)
    alpha = rgba[3]
    under = np.array(background, dtype=np.uint16)[:, None, None]
    mixed = rgba[:3] * alpha + under * (255 - alpha) + 128  # at most 65,153
    return torch.from_numpy(((mixed + (mixed >> 8)) >> 8).astype(np.uint8))


def webp_frame(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, channels) from a WebP's header; None when it is animated, has EXIF or is malformed.

    Source: WebP container specification and RFC 6386, section 9.1.
    """
    kind, rest = data[12:16], data[20:]
    if len(rest) < 10:
        return None
    if kind == b"VP8X":
        if rest[0] & 0b1010:  # EXIF (may turn the picture) or animation
            return None
        width, height = int.from_bytes(rest[4:7], "little") + 1, int.from_bytes(rest[7:10], "little") + 1
        return width, height, 4 if rest[0] & 0b10000 else 3
    if kind == b"VP8L":
        bits = int.from_bytes(rest[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 4 if bits >> 28 & 1 else 3
    if kind == b"VP8 ":
        return int.from_bytes(rest[6:8], "little") & 0x3FFF, int.from_bytes(rest[8:10], "little") & 0x3FFF, 3
    return None


def jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) from the frame header of a grey or YCbCr JPEG (ITU-T T.81, annex B).

    None when there is none, for CMYK, and for colour stored as RGB or CMYK by Adobe's marker: decoders differ there.
    """
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15 : at + 16] == b"\x00":
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return (width, height, data[at + 9]) if data[at + 9] in (1, 3) else None
        at += 2 + length
    return None
