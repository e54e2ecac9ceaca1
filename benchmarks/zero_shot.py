"""Zero-shot from JPEG files, end to end: pictures a second of a ViT-B/32 with random weights.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/zero_shot.py --out results/zero_shot.jsonl

Against the usual open_clip loop (DataLoader with two worker processes, PIL, fp32) and against the same loop with
bf16 weights, which is the best that its flags give on a CPU with bf16 units. All sides see the same files and
share the weights' shape; embeddings are compared with our own in fp32. Variants take turns; ratios are of one round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import compare, finish, product_rates, settings_of
from torch.utils.flop_counter import FlopCounterMode

from emblema.core.preprocess import Preprocess
from emblema.engine.encode import Encoder
from emblema.frameworks.two_tower import architecture
from emblema.frameworks.vlm import frozen


def photos(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """JPEGs of 500 x 375 with structure at every scale, about as large as photographs."""
    rng, paths = np.random.default_rng(seed), []
    for i in range(count):
        layers = [rng.integers(0, 256, (375 // s + 1, 500 // s + 1, 3), dtype=np.uint8) for s in (125, 25, 5)]
        big = [np.asarray(Image.fromarray(a).resize((500, 375), Image.Resampling.BICUBIC), np.float32) for a in layers]
        picture = 0.55 * big[0] + 0.3 * big[1] + 0.15 * big[2]
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


class Files(torch.utils.data.Dataset):
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def peer(model, transform, paths, batch, dtype):
    loader = torch.utils.data.DataLoader(Files(paths, transform), batch_size=batch, num_workers=2)
    with torch.inference_mode():
        return torch.cat(
            [torch.nn.functional.normalize(model.encode_image(x.to(dtype)).float(), dim=-1) for x in loader]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    import open_clip

    torch.manual_seed(0)
    theirs, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    theirs.eval().requires_grad_(False)
    theirs_bf16, _, _ = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None, precision="pure_bf16")
    theirs_bf16.eval().requires_grad_(False)
    vlm = frozen(architecture("vit-b-32").build())
    fast = Encoder(vlm, Preprocess(size=224), precision="bf16", batch_size=options.batch)
    exact = Encoder(vlm, Preprocess(size=224), precision="fp32", batch_size=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), options.images)
        variants = {
            "open_clip fp32": lambda: peer(theirs, transform, paths, options.batch, torch.float32),
            "open_clip bf16": lambda: peer(theirs_bf16, transform, paths, options.batch, torch.bfloat16),
            "emblema": lambda: fast.images(paths)[0]["pooled"],
        }
        few = paths[:64]
        cosine = (fast.images(few)[0]["pooled"] * exact.images(few)[0]["pooled"]).sum(-1).min()
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for run in range(options.rounds + 1):
            for name, variant in variants.items():
                began = time.perf_counter()
                variant()
                if run:  # the first round warms up
                    seconds[name].append(time.perf_counter() - began)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vlm.encode_image(torch.zeros(1, 3, 224, 224))
    gflop = counter.get_total_flops() / 1e9
    limits = {precision: rate / gflop for precision, rate in product_rates().items()}
    finish(
        "zero_shot",
        [
            compare("zero-shot from JPEG files, ViT-B/32, bf16", seconds["emblema"], f"{peer_name} loop", s)
            for peer_name, s in seconds.items()
            if peer_name != "emblema"
        ],
        options.out,
        [
            f"smallest cosine of bf16 and fp32 embeddings {float(cosine):.5f} (random weights)",
            f"a picture asks for {gflop:.1f} GFLOP in products of matrices, which alone allow {limits['fp32']:.0f} "
            f"pictures a second in fp32 and {limits['bf16']:.0f} in bf16 here; emblema encodes "
            f"{options.images / statistics.median(seconds['emblema']):.0f}",
        ],
        images_per_second={n: round(options.images / statistics.median(s), 1) for n, s in seconds.items()},
        settings=settings_of(options),
    )


if __name__ == "__main__":
    main()
