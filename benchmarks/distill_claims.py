"""Claims of distillation papers on made scenes: same teacher, scenes, steps and batch for both arms; three seeds.

    python benchmarks/distill_claims.py                       # all claims; arms that were run before are not run again
    python benchmarks/distill_claims.py --claims lseg vild    # some of them

A seed makes its own scenes, so seeds differ in what is learnt from, in what is tested and in the student's first
weights. Test scenes show art families and photographs that no training scene shows; nothing is selected on them. Scores
of arms are kept in runs/distill-claims/, lines go to benchmarks/results/distill.jsonl.

To add a claim: one entry in CLAIMS. Its two arms are systems by name with their fields.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import emblema
from emblema.core.find import find
from emblema.data.scenes import Scenes
from emblema.distill.base import crop_accuracy
from emblema.engine import seed as seeds
from emblema.engine.dense import ZeroShotSegmenter
from emblema.engine.features import weights_id
from emblema.model import Model
from emblema.report import claims
from emblema.tasks.detection import Detection
from emblema.tasks.protocols import Protocol, short_hash
from emblema.tasks.segmentation import Segmentation

HERE = Path(__file__).parent
KEPT = Path("runs/distill-claims")
SEEDS = (1, 2, 3)
TESTED = 150  # scenes


def random_rows(system: Any) -> None:
    """A vector drawn for each class name stands in place of its text."""
    drawn = lambda name: torch.randn(system._model.dim, generator=seeds.generator(system.seed, name))
    system.text = lambda _, names: F.normalize(torch.stack([drawn(name) for name in names]), dim=-1)


@dataclass(frozen=True)
class Arm:
    """A system by name with its fields; "" is the teacher, used zero-shot, with fields of `ZeroShotSegmenter`."""

    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Any], None] | None = None  # of the system before it is fitted

    @property
    def name(self) -> str:
        said = [f"{k} {v}" for k, v in self.fields.items()] + ([self.change.__name__] if self.change else [])
        return (self.system or "zero-shot") + (f" ({', '.join(said)})" if said else "")


@dataclass(frozen=True)
class Claim:
    """That one arm scores higher than the other."""

    system: str
    better: Arm
    than: Arm
    metric: str
    steps: int = 300
    images: int = 300  # training scenes
    batch: int = 16
    novel_in_train: float = 0.0  # share of the training scenes that show novel things, never annotated
    options: dict[str, Any] = field(default_factory=dict)  # of the task
    text: str = ""  # what is claimed, where it is not the card's claim

    @property
    def task(self) -> type:
        return Detection if self.metric.startswith("AP") else Segmentation


DETECT: dict[str, Any] = {"metric": "AP50_novel", "novel_in_train": 0.5}
OTHERS = {"others": "others"}
EPISODES = {"labels": "each", "background": "own"}
IMAGE_LABELS = {"labels": "image", "background": "own"}

CLAIMS = (
    Claim("maskclip_plus", Arm("maskclip_plus"), Arm(), "mIoU", steps=400),
    Claim("clip_es", Arm("clip_es"), Arm("clip_es", {"refine": False}), "mIoU", options=IMAGE_LABELS),
    Claim("clip_es", Arm("clip_es", {"refine": False}), Arm("clip_es", {"refine": False, "softmax": False}),
          "mIoU", options=IMAGE_LABELS, text="the softmax among classes and backgrounds: its maps > GradCAM of scores"),
    Claim("lseg", Arm("lseg", OTHERS), Arm("lseg", OTHERS, random_rows), "mIoU_unseen", steps=100, options=EPISODES),
    Claim("zegclip", Arm("zegclip"), Arm("zegclip", {"descriptor": False}), "mIoU_unseen", steps=60, batch=8),
    Claim("vild", Arm("vild"), Arm("vild", {"image_weight": 0.0}), **DETECT),
    Claim("detpro", Arm("detpro"), Arm("detpro", {"context_length": 0}), **DETECT),
    Claim("baron", Arm("baron"), Arm("baron", {"spread": 0.0}), **DETECT),
)  # fmt: skip


@cache
def scenes(seed: int, novel_in_train: float) -> Scenes:
    return Scenes(seed, novel_in_train=novel_in_train)


@cache
def names_crops(model: Model) -> dict[str, float]:
    """How well the teacher names crops of things in test scenes, beside which every result is to be read."""
    return crop_accuracy(model, scenes(SEEDS[0], 0.0).split("test"), most=60)


def score(arm: Arm, claim: Claim, model: Model, seed: int) -> dict[str, Any]:
    """{"metrics": {name: value}, "seconds"} of an arm, from a file where it was run before."""
    trained = [claim.steps, claim.images, claim.batch, claim.novel_in_train] if arm.system else []
    identity = json.dumps([arm.name, trained, seed, TESTED, claim.task.__name__, claim.options, weights_id(model.vlm)])
    path = KEPT / f"{arm.system or 'zero-shot'}-{seed}-{short_hash(identity)}.json"
    if path.exists():
        return json.loads(path.read_text())
    began, data = time.perf_counter(), scenes(seed, claim.novel_in_train)
    task = claim.task(images=TESTED, resamples=1, **claim.options)
    judged: Any = model
    if arm.system:
        system = find("distill", arm.system)(seed=seed, **arm.fields)  # type: ignore[operator]
        optim = replace(system.optim, steps=claim.steps, batch_size=claim.batch, precision="fp32")
        judged = replace(system, optim=optim)
        judged._model = model
        if arm.change:
            arm.change(judged)
        judged.fit(model, data.split("train").subset(range(claim.images)))
    else:
        task = replace(task, zero_shot=ZeroShotSegmenter(**arm.fields))
    found = task.run(judged, data.split("test"))
    kept = {
        "arm": arm.name,
        "seed": seed,
        "metrics": {name: interval.value for name, interval in found.metrics.items()},
        "seconds": time.perf_counter() - began,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept))
    print(f"{time.strftime('%H:%M:%S')} {kept}", flush=True)
    return kept


def checked(claim: Claim, model: Model) -> dict[str, Any]:
    """Run both arms and weigh them: a claim line."""
    sides = (claim.better, claim.than)
    found = {arm.name: [score(arm, claim, model, seed) for seed in SEEDS] for arm in sides}
    trains = "no pictures" not in find("distill", claim.system).card.needs  # type: ignore[attr-defined]
    budget = {"images": claim.images, "steps": claim.steps, "batch_size": claim.batch} if trains else {"images": 0}
    options = {"tested": TESTED, "novel_in_train": claim.novel_in_train, **claim.options, **budget}
    protocol = Protocol(
        name=f"distill/{claim.metric}/emblem-scenes",
        task=claim.task.__name__.lower(),
        data="emblem-scenes",
        split="test",
        metric=claim.metric,
        seeds=SEEDS,
        options=options,
    )
    return claims.claim_line(
        family="distill",
        system=claim.system,
        claim=claim.text or find("distill", claim.system).card.claim,  # type: ignore[attr-defined]
        protocol=protocol,
        metric=claim.metric,
        arms={name: {"emblem-scenes": [one["metrics"][claim.metric] for one in row]} for name, row in found.items()},
        better=claim.better.name,
        than=claim.than.name,
        seeds=SEEDS,
        model=model.name,
        weights=weights_id(model.vlm),
        budget=budget | {"tested": TESTED, "teacher_names_crops": names_crops(model)},
        seconds=sum(one["seconds"] for row in found.values() for one in row),
        command=f"python benchmarks/distill_claims.py --claims {claim.system}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Claims of distillation papers, as result lines.")
    parser.add_argument("--claims", nargs="+", choices=sorted({claim.system for claim in CLAIMS}))
    parser.add_argument("--model", default="default")
    parser.add_argument("--steps", type=int, help="instead of those of the claim, to see that it runs")
    parser.add_argument("--images", type=int, help="training scenes instead of those of the claim")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "distill.jsonl")
    options = parser.parse_args()
    changes = {k: v for k in ("steps", "images") if (v := getattr(options, k))}
    model = emblema.load(options.model)
    for claim in (replace(one, **changes) for one in CLAIMS if one.system in (options.claims or [one.system])):
        try:
            line = checked(claim, model)
        except Exception as error:  # the other claims go on
            print(f"{claim.system}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            continue
        claims.replace(options.out, line, ("system", "claim", "metric"))
        d = line["difference"]
        print(f"{claim.system}: {line['verdict']}, {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]", flush=True)


if __name__ == "__main__":
    main()
