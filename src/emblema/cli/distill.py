"""The verb distill: a student of dense tasks learns from a frozen teacher."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

from emblema.cli.runs import options_of, system_of
from emblema.core.errors import BadData


@dataclass(kw_only=True)
class DistillRun:
    """Who teaches, on what."""

    teacher: str = "default"  # a name from `emblema list models`, or a checkpoint folder
    data: str = "emblem-scenes"  # a name from `emblema list data`, or a path
    split: str = "train"  # of the data, where it has splits
    images: int = 1000  # the first of the split; 0: all
    novel_in_train: float = 0.0  # share of the made training scenes that show novel things, never annotated
    steps: int | None = None  # overrides optim.steps and optim.epochs
    gate: bool = True  # judge the teacher by crops of annotated things before the run
    out: str = ""  # save the student in this folder
    device: str = "auto"
    cache: str | None = None  # folder of the feature cache


def distill(arguments: list[str], as_json: bool) -> Any:
    from dataclasses import replace

    from emblema.core import find

    name, rest = system_of("distill", arguments, "distill")
    cls = find.find("distill", name)
    run, system = options_of(f"distill {name}", DistillRun, cls, rest)
    from emblema.data import catalog
    from emblema.model import load

    data = catalog.load(run.data)
    if run.novel_in_train:
        if not hasattr(data, "novel_in_train"):
            raise BadData(f"--novel-in-train is for scenes that are made, not for {run.data}")
        from emblema.data.scenes import CATEGORIES, Scenes

        assert isinstance(data, Scenes)
        classes = (tuple(data.base), tuple(data.novel))
        named = next((name for name, known in CATEGORIES.items() if known == classes), classes)
        sizes = dict(data.card.sizes)
        data = Scenes(data.seed, data.size, named, data.things, sizes, run.novel_in_train, data.folder)
    train = data.split(run.split) if run.split in data.splits else data
    if run.images and run.images < len(train):
        train = train.subset(range(run.images))
    if run.steps is not None:
        system = replace(system, optim=replace(system.optim, steps=run.steps))
    teacher = load(run.teacher, device=run.device, cache=run.cache)
    judged = _judge(teacher, data) if run.gate else {}
    began, terms = time.perf_counter(), {}

    def told(step: Any) -> None:
        terms.update(step.losses)
        if step.number == 1 or step.number % 25 == 0:
            said = ", ".join(f"{k} {v:.4f}" for k, v in step.losses.items())
            print(f"step {step.number}: {said} ({step.seconds:.2f} s)", file=sys.stderr)

    student = system.fit(teacher, train, on_step=told)
    seconds = time.perf_counter() - began
    if run.out:
        student.save(run.out)
    if not as_json:
        task = "segmentation" if hasattr(student, "segment") else "detection"
        print(f"{len(train)} pictures, {seconds:.0f} s")
        print(
            f"saved in {run.out}: `emblema evaluate {task} --data {run.data} --model {run.out}`"
            if run.out
            else "the student was not kept: give --out FOLDER"
        )
    return {
        "system": student.card.name,
        "teacher": teacher.name,
        "data": run.data,
        "pictures": len(train),
        "seconds": round(seconds, 3),
        "parameters": sum(p.numel() for p in student.module_.parameters() if p.requires_grad),
        "losses": terms,
        "teacher_crops": judged,
        "model": run.out or None,
    }


def _judge(teacher: Any, data: Any) -> dict[str, float]:
    """Tell how well the teacher names crops of things; data without boxes are not judged."""
    from emblema.distill.base import GATE, crop_accuracy

    split = data.split("test") if "test" in data.splits else data
    try:
        found = crop_accuracy(teacher, split, most=60)
    except BadData as error:
        print(f"teacher: not judged ({error})", file=sys.stderr)
        return {}
    said = ", ".join(f"{share:.0%} of {part} things" for part, share in found.items())
    least = found.get("novel", found.get("base", 0.0))
    verdict = "passes" if least >= GATE else "fails: what a student learns from it proves little"
    print(f"teacher: names {said} by their crops; the gate is {GATE:.0%}: {verdict}", file=sys.stderr)
    return found
