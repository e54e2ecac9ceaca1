"""JPEG file to a 224-pixel square: `load_image` against open_clip's evaluation transform, one thread, interleaved.

    python benchmarks/decode.py --out benchmarks/results/decode.jsonl

The photographs are scikit-image's, cut and re-encoded to 500 x 375 at quality 90. Each round times both once, so that a
busy machine slows both; the ratio is the median over rounds, with its range. open_clip's side ends in a normalised
float tensor, ours in uint8: `--normalise` adds the same normalisation, by batch, to ours.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import torch
from PIL import Image
from side_by_side import compare, finish

from emblema.core.preprocess import Preprocess
from emblema.data.pictures import load_image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def photographs(width: int = 500, height: int = 375) -> list[bytes]:
    """JPEG files of the same size."""
    from skimage import data

    files = []
    for name in ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field"):
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        scale = max(width / image.width, height / image.height)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.crop((0, 0, width, height)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--normalise", action="store_true")
    parser.add_argument("--out", type=Path, help="append one JSON line here")
    args = parser.parse_args()
    torch.set_num_threads(1)

    from open_clip.transform import image_transform

    files, preprocess = photographs(), Preprocess(size=args.size)
    transform = image_transform(args.size, is_train=False, mean=MEAN, std=STD)
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (MEAN, STD))

    def theirs() -> torch.Tensor:
        return torch.stack([transform(Image.open(io.BytesIO(f))) for f in files])

    def ours(fast: bool = True) -> torch.Tensor:
        batch = torch.stack([load_image(f, preprocess, fast=fast) for f in files])
        return (batch - mean) / std if args.normalise else batch

    routes = {"open_clip": theirs, "fast": ours, "pil": lambda: ours(False)}
    times: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(args.rounds + 2):
        for name, route in routes.items():
            start = time.process_time()  # processor time: others share the machine
            route()
            if turn >= 2:
                times[name].append(time.process_time() - start)
    want = theirs() * std + mean
    apart = {
        ("fast" if f else "pil"): (torch.stack([load_image(x, preprocess, fast=f) for x in files]) - want).abs()
        for f in (True, False)
    }
    apart = {name: [round(d.mean().item(), 4), round(d.max().item(), 2)] for name, d in apart.items()}
    finish(
        "decode",
        [
            compare(
                f"decode and resize to {args.size} px, one thread, {what}",
                times[name],
                "open_clip's transform",
                times["open_clip"],
            )
            for name, what in (("fast", "fast route"), ("pil", "PIL route"))
        ],
        args.out,
        [f"mean and largest difference to open_clip's pixels, of 255: {apart}", "processor time, not wall time"],
        files=len(files),
        normalise=args.normalise,
    )


if __name__ == "__main__":
    main()
