"""Odd and broken pictures, and the two routes to a square."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emblema.core.preprocess import Preprocess
from emblema.data.pictures import BrokenPicture, canvas, geometry, load_batch, load_image, open_picture

P = Preprocess(size=32)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width=60, height=40):
    """A smooth RGB picture whose corners differ."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def png(width, height, depth, colour, rows):
    """A PNG by hand: Pillow writes no 16-bit colour."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_cmyk_jpeg():
    red = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    image = open_picture(encoded(red, "JPEG", quality=95))
    assert image.mode == "RGB" and np.allclose(image.getpixel((20, 20)), (255, 0, 0), atol=6)
    assert load_image(encoded(red, "JPEG"), P)[:, 16, 16].tolist()[0] > 245


@pytest.mark.parametrize("value", [0, 300, 32768, 65535])
def test_sixteen_bit_grey_is_scaled_not_clipped(value):
    image = open_picture(encoded(Image.fromarray(np.full((8, 8), value, dtype=np.uint16)), "PNG"))
    assert image.mode == "RGB" and image.getpixel((3, 3)) == (round(value / 257),) * 3


def test_sixteen_bit_colour_and_alpha():
    pixel = struct.pack(">4H", 0xFFFF, 0x8000, 0, 0x4000)
    image = open_picture(png(2, 2, 16, 6, (b"\0" + pixel * 2) * 2))
    assert image.mode == "RGBA" and np.allclose(image.getpixel((0, 0)), (255, 128, 0, 64), atol=1)


def test_floats_and_integers_of_other_ranges():
    ramp = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    for scale in (1, 255, 65535):
        grey = np.asarray(open_picture(encoded(Image.fromarray(ramp * scale), "TIFF")))[..., 0]
        assert np.allclose(grey, np.rint(ramp * 255), atol=1)
    assert np.asarray(open_picture(Image.fromarray((ramp - 0.5) * 7)))[..., 1].tolist()[3][3] == 255


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    image.putpixel((0, 0), 0)
    opened = open_picture(encoded(image, kind, transparency=0))
    assert opened.mode == "RGBA" and opened.getpixel((0, 0))[3] == 0 and opened.getpixel((4, 4)) == (0, 255, 0, 255)
    assert open_picture(encoded(image, kind)).mode == "RGB"


@pytest.mark.parametrize(("mode", "want"), [("LA", "RGBA"), ("L", "RGB"), ("1", "RGB"), ("RGBA", "RGBA")])
def test_other_modes(mode, want):
    assert open_picture(encoded(Image.new(mode, (8, 8)), "PNG")).mode == want


def test_one_transparent_colour_of_an_opaque_png():
    image = open_picture(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))
    assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (40, 40), c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.allclose(open_picture(data).convert("RGB").getpixel((20, 20)), (255, 0, 0), atol=8)
    assert np.allclose(load_image(data, P)[:, 16, 16].tolist(), (255, 0, 0), atol=8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(gradient(), kind, exif=exif, **({"quality": 95} if kind != "PNG" else {}))
    upright = open_picture(data)
    assert upright.size == ((60, 40) if turn < 5 else (40, 60))
    tried = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    tried |= {5: lambda a: np.rot90(np.flipud(a), -1), 6: lambda a: np.rot90(a, -1)}
    tried |= {7: lambda a: np.rot90(np.flipud(a), 1), 8: lambda a: np.rot90(a, 1)}
    want = tried[turn](np.asarray(gradient()).astype(int))
    assert np.abs(want - np.asarray(upright)).mean() < 6
    fast, slow = (load_image(data, P, fast=f).int() for f in (True, False))
    assert (fast - slow).abs().float().mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_pictures_are_broken(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    path = tmp_path / "cut"
    path.write_bytes(encoded(noise, kind)[: 80 * 80 // 3])
    for read in (open_picture, lambda p: load_image(p, P), lambda p: canvas(p, 16)):
        with pytest.raises(BrokenPicture, match="cut: truncated or corrupt") as caught:
            read(path)
        assert caught.value.path == path and caught.value.reason.startswith("truncated")


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(BrokenPicture, match="no such file"):
        open_picture(tmp_path / "none.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BrokenPicture, match="zero bytes"):
        load_image(tmp_path / "empty.jpg", P)
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(BrokenPicture, match=r"not a picture.*<html>"):
        load_image(str(tmp_path / "page.jpg"), P)
    with pytest.raises(BrokenPicture, match="cannot be read"):
        open_picture(tmp_path)
    with pytest.raises(BrokenPicture, match="no picture"):
        load_image(None, P)
    for start in (b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0", b"RIFF\0\0\0\0WEBP", b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 30):
        with pytest.raises(BrokenPicture):
            load_image(start, P)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
def test_a_bomb_is_refused_from_its_header(side):
    with pytest.raises(BrokenPicture, match="bomb"):
        open_picture(png(side, side, 8, 2, b""))


def test_bombs_in_the_fast_formats_and_the_setting():
    for kind in ("JPEG", "WEBP", "PNG"):
        data = encoded(Image.new("RGB", (200, 100)), kind)
        with pytest.raises(BrokenPicture, match="bomb"):
            load_image(data, P, max_pixels=19_999)
        assert load_image(data, P, max_pixels=20_000).shape == (3, 32, 32)


def test_a_sliver_is_refused_before_it_fills_memory():
    for kind in ("JPEG", "PNG"):
        data = encoded(Image.new("RGB", (60_000, 1)), kind)
        with pytest.raises(BrokenPicture, match="elongated"):
            load_image(data, Preprocess(size=224))
        assert load_image(data, Preprocess(size=8, mode="pad")).shape == (3, 8, 8)


def test_broken_pictures_cross_processes():
    error = pickle.loads(pickle.dumps(BrokenPicture(Path("a.jpg"), "zero bytes")))
    assert (error.path, error.reason, str(error)) == (Path("a.jpg"), "zero bytes", "a.jpg: zero bytes")


def test_transparency_shows_the_background():
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 16, 32))
    image.paste((200, 0, 0, 128), (0, 0, 16, 8))
    green = Preprocess(size=32, background=(0, 255, 0))
    for kind in ("PNG", "WEBP"):
        data = encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
        pixels = load_image(data, green)
        assert pixels[:, 20, 4].tolist() == [200, 0, 0] and pixels[:, 20, 28].tolist() == [0, 255, 0]
        assert torch.equal(pixels, load_image(data, green, fast=False))


def test_canvas_keeps_alpha_and_pads_with_nothing():
    tall = Image.new("RGBA", (10, 20), (9, 8, 7, 255))
    out = canvas(encoded(tall, "PNG"), 40)
    assert out.shape == (4, 40, 40) and out.dtype == torch.uint8
    assert out[:, 20, 20].tolist() == [9, 8, 7, 255] and out[3, :, :10].max() == 0 and out[3, :, 10:30].min() == 255
    assert canvas(encoded(gradient(), "JPEG"), 16, "crop")[3].min() == 255
    sticker = encoded(tall.resize((20, 20)), "WEBP", lossless=True)
    assert torch.equal(canvas(sticker, 20), canvas(Image.open(io.BytesIO(sticker)), 20))


def test_modes_keep_the_whole_or_the_middle():
    image = gradient(64, 32)
    squash = load_image(image, Preprocess(size=16, mode="squash"))
    crop = load_image(image, Preprocess(size=16))
    pad = load_image(image, Preprocess(size=16, mode="pad", background=(1, 2, 3)))
    assert squash[0, 8, 0] < 20 and squash[0, 8, -1] > 235
    assert 50 < crop[0, 8, 0] < 80 and 175 < crop[0, 8, -1] < 205
    assert pad[:, 0, 0].tolist() == [1, 2, 3] and pad[0, 8, 0] < 20
    data = encoded(image, "JPEG", quality=98)
    for mode in ("squash", "crop", "pad"):
        p = Preprocess(size=16, mode=mode)
        assert (load_image(data, p).int() - load_image(data, p, fast=False).int()).abs().max() <= 2


def test_a_batch_keeps_order_and_lists_what_broke():
    colours = [(i, 2 * i, 3 * i) for i in range(9)]
    sources = [encoded(Image.new("RGB", (40, 40), c), "PNG") for c in colours]
    sources[4] = b""
    batch, errors = load_batch(sources, P, threads=3)
    assert batch.shape == (9, 3, 32, 32) and [i for i, _ in errors] == [4] and "zero bytes" in errors[0][1]
    assert [tuple(row[:, 5, 5].tolist()) for row in batch] == [*colours[:4], (255, 255, 255), *colours[5:]]
    assert load_batch([], P)[0].shape == (0, 3, 32, 32)


def photographs():
    """Natural photographs as JPEG files of several shapes."""
    import skimage.data as data

    photos = [Image.fromarray(getattr(data, n)()) for n in ("astronaut", "chelsea", "coffee", "rocket")]
    return [encoded(p, "JPEG", quality=90) for p in photos] + [
        encoded(p.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90) for p in photos[1:3]
    ]


@pytest.mark.parametrize("size", [64, 96, 224])
@pytest.mark.parametrize(("mode", "theirs"), [("crop", "shortest"), ("squash", "squash"), ("pad", "longest")])
def test_pixels_equal_open_clips_transform(size, mode, theirs):
    from open_clip.transform import image_transform

    mean, std = (0.5,) * 3, (0.25,) * 3
    transform = image_transform(size, is_train=False, mean=mean, std=std, resize_mode=theirs)
    preprocess = Preprocess(size=size, mode=mode, background=(0, 0, 0))
    for photo in photographs():
        want = ((transform(Image.open(io.BytesIO(photo))) * 0.25 + 0.5) * 255).round().int()
        assert torch.equal(load_image(photo, preprocess, fast=False).int(), want)
        fast = (load_image(photo, preprocess).int() - want).abs().float()
        assert fast.mean() < 0.25 and fast.max() <= 4


def test_geometry_of_odd_sizes():
    assert geometry(500, 375, 224, "crop") == (298, 224, 37, 0)
    assert geometry(375, 500, 224, "pad") == (168, 224, -28, 0)
    assert geometry(1, 1000, 10, "pad") == (1, 10, -4, 0)
