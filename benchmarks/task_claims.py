"""Claims that a task measures: of distillation, and of transfer beyond one label a picture; three seeds.

    python benchmarks/task_claims.py                       # all claims; arms that were run before are not run again
    python benchmarks/task_claims.py --claims lseg vild    # some of them

Both arms have the same teacher, pictures, steps and batch. On made scenes a seed makes its own, so seeds differ in what
is learnt from, in what is tested and in the first weights; test scenes show art families and photographs that no
training scene shows. On other data a seed is a draw of shots. Nothing is selected on what is tested. Scores of arms are
kept in runs/task-claims/, lines go to benchmarks/results/distill.jsonl and transfer.jsonl.

To add a claim: one entry in CLAIMS. Its two arms are systems by name with their fields.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import emblema
from emblema.bench.transfer import first
from emblema.core.find import find
from emblema.data import catalog
from emblema.data.scenes import Scenes
from emblema.distill.base import crop_accuracy
from emblema.engine import seed as seeds
from emblema.engine.dense import ZeroShotSegmenter
from emblema.engine.features import weights_id
from emblema.model import Model
from emblema.report import claims
from emblema.tasks import protocols
from emblema.tasks.detection import Detection
from emblema.tasks.hierarchy import Hierarchy
from emblema.tasks.multi_label import MultiLabel
from emblema.tasks.protocols import Protocol, short_hash
from emblema.tasks.segmentation import Segmentation
from emblema.tasks.trials import trials
from emblema.tasks.zero_shot import ZeroShot
from emblema.transfer.softcpt import tasks_of

HERE = Path(__file__).parent
KEPT = Path("runs/task-claims")
SEEDS = (1, 2, 3)
TESTED = 150  # scenes
NEVER = -1e4  # the logit of what is out of the question


def random_rows(system: Any) -> None:
    """A vector drawn for each class name stands in place of its text."""
    drawn = lambda name: torch.randn(system._model.dim, generator=seeds.generator(system.seed, name))
    system.text = lambda _, names: F.normalize(torch.stack([drawn(name) for name in names]), dim=-1)


def from_food(system: Any) -> None:
    """The prompts begin from those of the same system on 16 pictures of each of 20 kinds of food."""
    folder = KEPT / f"{system.card.name}-food-{system.seed}-{system.optim.steps}"
    if not (folder / "config.json").exists():
        replace(system).fit(system._model, drawn("emblem-food", 20, 16, system.seed)[0]).save(folder)
    system.source = str(folder)


def within_tasks(system: Any) -> None:
    """Asked task by task: the classes of a picture's own task compete."""
    scores = system.scores
    system.scores = lambda data: others_out(scores(data), data)


def task_by_task(system: Any) -> None:
    """One system for each task, on that task's pictures alone; each picture is seen as often as when all learn."""
    alone: dict[str, Any] = {}

    def fit(model: Model, data: Any) -> None:
        for task in dict.fromkeys(tasks_of(data, "group").values()):
            own = data.only_classes([n for n, t in tasks_of(data, "group").items() if t == task])
            steps = max(round(system.optim.steps * len(own) / len(data)), 1)
            alone[task] = replace(system, optim=replace(system.optim, steps=steps)).fit(model, own)
        system._names, system._module = list(data.class_names), alone[task].module_

    def scores(data: Any) -> Tensor:
        found = torch.full((len(data), len(data.class_names)), NEVER)
        for fitted in alone.values():
            found[:, [data.class_names.index(name) for name in fitted.class_names_]] = fitted.predict(data)
        return others_out(found, data)

    system.fit, system.scores = fit, scores


def others_out(scores: Tensor, data: Any) -> Tensor:
    """Scores [N, C] with the classes of other tasks than the record's out of the question."""
    task = tasks_of(data, "group")
    names = [task[name] for name in data.class_names]
    own = torch.tensor([[names[label] == one for one in names] for label in data.labels])
    return scores.masked_fill(~own, NEVER)


@dataclass(frozen=True)
class Arm:
    """A system by name with its fields; "" is the model, used zero-shot, with fields of `ZeroShotSegmenter`."""

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
    task: type = Segmentation
    options: dict[str, Any] = field(default_factory=dict)  # of the task
    family: str = "distill"
    steps: int = 300
    batch: int = 16
    images: int = 300  # training scenes
    novel_in_train: float = 0.0  # share of the training scenes that show novel things, never annotated
    shots: tuple[str, int, int] | None = None  # instead of scenes: data set, its first classes, pictures a class
    text: str = ""  # what is claimed, where it is not the card's claim

    @property
    def data(self) -> str:
        return self.shots[0] if self.shots else "emblem-scenes"

    def pictures(self, seed: int) -> tuple[Any, Any]:
        """What is learnt from, and what is tested."""
        if self.shots:
            return drawn(*self.shots, seed)
        made = scenes(seed, self.novel_in_train)
        return made.split("train").subset(range(self.images)), made.split("test")


DETECT: dict[str, Any] = {"metric": "AP50_novel", "task": Detection, "novel_in_train": 0.5}
OTHERS = {"others": "others"}
EPISODES = {"labels": "each", "background": "own"}
IMAGE_LABELS = {"labels": "image", "background": "own"}
SEVERAL: dict[str, Any] = {"metric": "mAP", "task": MultiLabel, "family": "transfer", "novel_in_train": 0.5}

CLAIMS = (
    Claim("maskclip_plus", Arm("maskclip_plus"), Arm(), "mIoU", novel_in_train=0.5),  # nothing is annotated
    Claim("clip_es", Arm("clip_es"), Arm("clip_es", {"refine": False}), "mIoU", options=IMAGE_LABELS),
    Claim("clip_es", Arm("clip_es", {"refine": False}), Arm("clip_es", {"refine": False, "softmax": False}),
          "mIoU", options=IMAGE_LABELS, text="the softmax among classes and backgrounds: its maps > GradCAM of scores"),
    Claim("lseg", Arm("lseg", OTHERS), Arm("lseg", OTHERS, random_rows), "mIoU_unseen", steps=100, options=EPISODES),
    Claim("zegclip", Arm("zegclip"), Arm("zegclip", {"descriptor": False}), "mIoU_unseen", steps=60, batch=4),
    Claim("denseclip", Arm("denseclip"), Arm("denseclip", {"texts": False}), "mIoU_seen", steps=150, batch=8),
    Claim("vild", Arm("vild"), Arm("vild", {"image_weight": 0.0}), **DETECT),
    Claim("detpro", Arm("detpro"), Arm("detpro", {"context_length": 0}), batch=8, **DETECT),
    Claim("pb_ovd", Arm("pb_ovd"), Arm("pb_ovd", {"pseudo": False}), batch=8, **DETECT),
    Claim("baron", Arm("baron"), Arm("baron", {"spread": 0.0}), steps=200, batch=4, **DETECT),
    Claim("maskclip", Arm("maskclip"), Arm("", {"features": "plain"}), "mIoU", family="transfer"),
    Claim("tai_dpt", Arm("tai_dpt"), Arm(), steps=150, batch=64, **SEVERAL),
    Claim("dualcoop", Arm("dualcoop", {"known": 0.5}), Arm("dualcoop", {"known": 0.5, "dual": False}),
          steps=150, batch=32, **SEVERAL),
    Claim("protect", Arm("protect"), Arm("protect", {"weight": 0.0, "drop": 0.0}), "hca", Hierarchy, {"tree": "emoji"},
          family="transfer", shots=("emblem-objects", 40, 16), steps=150, batch=32),
    Claim("softcpt", Arm("softcpt", change=within_tasks), Arm("coop", change=task_by_task), "top1", ZeroShot,
          family="transfer", shots=("emblem-objects", 60, 2), steps=300, batch=32),
    Claim("mvlpt", Arm("mvlpt", change=from_food), Arm("mvlpt"), "top1", ZeroShot,
          family="transfer", shots=("emblem-animals", 20, 1), steps=100, batch=8),
)  # fmt: skip


def drawn(name: str, classes: int, shots: int, seed: int) -> tuple[Any, Any]:
    """Pictures of the first classes of a data set as the few-shot protocol draws them, and all test pictures."""
    rule = replace(protocols.load("few-shot"), seeds=(seed,), shots=(shots,))
    (trial,) = trials(rule, first(catalog.load(name), classes))
    return trial.selection.train, trial.tests["test"]


@cache
def scenes(seed: int, novel_in_train: float) -> Scenes:
    return Scenes(seed, novel_in_train=novel_in_train)


@cache
def names_crops(model: Model) -> dict[str, float]:
    """How well the teacher names crops of things in test scenes, beside which every result is to be read."""
    return crop_accuracy(model, scenes(SEEDS[0], 0.0).split("test"), most=60)


def score(arm: Arm, claim: Claim, model: Model, seed: int) -> dict[str, Any]:
    """{"metrics": {name: value}, "seconds"} of an arm, from a file where it was run before."""
    trained = [claim.steps, claim.images, claim.batch, claim.novel_in_train, claim.shots] if arm.system else []
    named = [arm.name, trained, seed, TESTED, claim.data, claim.task.__name__, claim.options, weights_id(model.vlm)]
    path = KEPT / f"{arm.system or 'zero-shot'}-{seed}-{short_hash(json.dumps(named))}.json"
    if path.exists():
        return json.loads(path.read_text())
    began = time.perf_counter()
    known = {f.name for f in fields(claim.task)}
    task = claim.task(resamples=1, **claim.options | ({"images": TESTED} if "images" in known else {}))
    learnt_from, tested = claim.pictures(seed)
    judged: Any = model
    if arm.system:
        system = find(claim.family, arm.system)(seed=seed, **arm.fields)  # type: ignore[operator]
        optim = replace(system.optim, steps=claim.steps, batch_size=claim.batch)
        judged = replace(system, optim=replace(optim, precision="fp32") if claim.family == "distill" else optim)
        judged._model = model
        if arm.change:
            arm.change(judged)
        judged.fit(model, learnt_from)
    elif arm.fields:
        task = replace(task, zero_shot=ZeroShotSegmenter(**arm.fields))
    found = task.run(judged, tested)
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
    found = {arm.name: [score(arm, claim, model, seed) for seed in SEEDS] for arm in (claim.better, claim.than)}
    card = find(claim.family, claim.system).card  # type: ignore[attr-defined]
    budget: dict[str, Any] = {"images": 0}
    if "no pictures" not in card.needs or claim.system == "tai_dpt":  # which learns from sentences
        shown = {"shots": claim.shots[2], "classes": claim.shots[1]} if claim.shots else {"images": claim.images}
        budget = shown | {"steps": claim.steps, "batch_size": claim.batch}
    options = {"tested": TESTED, "novel_in_train": claim.novel_in_train, **claim.options, **budget}
    protocol = Protocol(
        name=f"{claim.family}/{claim.metric}/{claim.data}",
        task=claim.task.card.name,
        data=claim.data,
        split="test",
        metric=claim.metric,
        seeds=SEEDS,
        options=options,
    )
    crops = {"teacher_names_crops": names_crops(model)} if claim.family == "distill" else {}
    return claims.claim_line(
        family=claim.family,
        system=claim.system,
        claim=claim.text or card.claim,
        protocol=protocol,
        metric=claim.metric,
        arms={name: {claim.data: [one["metrics"][claim.metric] for one in row]} for name, row in found.items()},
        better=claim.better.name,
        than=claim.than.name,
        seeds=SEEDS,
        model=model.name,
        weights=weights_id(model.vlm),
        budget=budget | {"tested": TESTED} | crops,
        seconds=sum(one["seconds"] for row in found.values() for one in row),
        command=f"python benchmarks/task_claims.py --claims {claim.system}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Claims that a task measures, as result lines.")
    parser.add_argument("--claims", nargs="+", choices=sorted({claim.system for claim in CLAIMS}))
    parser.add_argument("--model", default="default")
    parser.add_argument("--steps", type=int, help="instead of those of the claim, to see that it runs")
    parser.add_argument("--images", type=int, help="training scenes instead of those of the claim")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the lines")
    options = parser.parse_args()
    changes = {k: v for k in ("steps", "images") if (v := getattr(options, k))}
    model = emblema.load(options.model)
    for claim in (replace(one, **changes) for one in CLAIMS if one.system in (options.claims or [one.system])):
        try:
            line = checked(claim, model)
        except Exception as error:  # the other claims go on
            print(f"{claim.system}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            continue
        claims.replace(options.out / f"{claim.family}.jsonl", line, ("system", "claim", "metric"))
        d = line["difference"]
        print(f"{claim.system}: {line['verdict']}, {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]", flush=True)


if __name__ == "__main__":
    main()
