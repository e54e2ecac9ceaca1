"""The survey's five paradigms of visual recognition (its figure 2), side by side: accuracy against labels a class.

A paradigm is a file here with `prepare(records, seed, budget)`, what is learnt before the task is known, and
`classify(start, seen, test, seed, budget)`, the class of each test picture after learning from a `Selection`.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

import torch

from emblema.bench.paradigms.network import Budget
from emblema.core.intervals import over_seeds
from emblema.data import catalog
from emblema.data.datasets import Records
from emblema.data.templates import templates_for
from emblema.engine.features import identity
from emblema.report import result
from emblema.report.tables import formatted
from emblema.tasks.protocols import load, template_id
from emblema.tasks.statistics import bootstrap, mean_of
from emblema.tasks.trials import Trial, trials

NAMES = ("hand_crafted", "from_scratch", "supervised", "self_supervised", "zero_shot")  # in the survey's order
DATA = ("emblem-food", "digits")  # near to what was seen before, and far from it
LABELS: tuple[int | None, ...] = (1, 4, 16, None)  # pictures a class; the VLM needs none
SEEDS = (1, 2, 3)
COMMAND = "emblema bench paradigms"


def run(
    data: Sequence[str | Records] = DATA,
    labels: Sequence[int | None] = LABELS,
    seeds: Sequence[int] = SEEDS,
    paradigms: Sequence[str] = NAMES,
    budget: Budget | None = None,
    before: Records | None = None,
    command: str = COMMAND,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> list[dict[str, Any]]:
    """Result lines, one a paradigm, data set and number of labels, over all seeds. `before` replaces `unseen(data)`."""
    budget = budget or Budget()
    sets = [one if isinstance(one, Records) else catalog.load(one) for one in data]
    before, lines = unseen(sets) if before is None else before, []
    for name in paradigms:
        paradigm = importlib.import_module(f"emblema.bench.paradigms.{name}")
        learns = name != "zero_shot"
        began = time.perf_counter()
        starts = {seed: paradigm.prepare(before, seed, budget) for seed in (seeds if learns else (0,))}
        prepared = time.perf_counter() - began
        for one in sets:
            rules = [replace(load("few-shot"), shots=(shots,), seeds=tuple(seeds)) for shots in labels]
            for rule in rules if learns else [load("zero-shot")]:
                lines.append(measure(name, paradigm, list(trials(rule, one)), starts, budget, prepared, command))
                shots, top1 = lines[-1]["labels"], formatted("top1", lines[-1]["metrics"]["top1"])
                say(f"{name:<16}{one.card.name:<16}{'all' if shots is None else shots:>4} labels a class  {top1}")
    return lines


def measure(
    name: str,
    paradigm: ModuleType,
    runs: Sequence[Trial],
    starts: Mapping[int, Any],
    budget: Budget,
    prepared: float,
    command: str,
) -> dict[str, Any]:
    """The result line of a paradigm on one data set and number of labels: the trials of all seeds."""
    began, rights = time.perf_counter(), []
    for trial in runs:
        said = paradigm.classify(starts[trial.seed], trial.selection, trial.tests["test"], trial.seed, budget)
        rights.append((said == torch.tensor(trial.tests["test"].labels)).double())
    values, trial, test = [float(r.mean()) for r in rights], runs[0], runs[0].tests["test"]
    drawn = len(set(values)) > 1  # else nothing was left to chance but which pictures are tested
    top1 = over_seeds(values) if drawn else bootstrap(mean_of(rights[0]), len(rights[0]))
    protocol = trial.protocol
    if name == "zero_shot":
        protocol = replace(protocol, templates=template_id(trial.data, templates_for(trial.data)))
    found = {
        "task": "paradigms",
        "data": trial.data,
        "split": protocol.split,
        "protocol": protocol.to_json(),
        "metrics": {"top1": top1.to_json()},
        "seeds": [t.seed for t in runs],
        "seconds": round(time.perf_counter() - began, 3),
        "sizes": {"images": len(test), "classes": len(test.class_names), "train": len(trial.selection.train)},
    }
    return result.line(
        found,
        system=name,
        model=getattr(starts[trial.seed], "name", "-"),
        fields={"title": paradigm.TITLE, "budget": asdict(budget)},
        data_hash=identity(test),
        labels=trial.shots,
        values=values,
        draws={str(t.seed): t.selection.draw_id for t in runs},
        prepared_seconds=round(prepared, 1),
        command=command,
    )


def unseen(sets: Sequence[Records]) -> Records:
    """Training pictures of `emblems` for pre-training: without those of the evaluated sets, in any of their splits, and
    without every other picture of their concepts. The art families of test splits are in no training split."""
    emblems = catalog.load("emblems")
    evaluated = {key for one in sets for key in one.keys}
    concepts = {c for key, c in zip(emblems.keys, emblems.column("concept")) if key in evaluated}
    train = emblems.split("train")
    pairs = zip(train.keys, train.column("concept"))
    return train.subset(i for i, (key, c) in enumerate(pairs) if key not in evaluated and (not c or c not in concepts))
