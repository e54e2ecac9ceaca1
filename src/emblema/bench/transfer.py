"""Transfer systems under one protocol: a result line a system, data set, shots and seed; then who wins.

Every system of a comparison sees the same draw, the same cached features and the same test pictures, so that systems
are compared on pairs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emblema.core import find
from emblema.core.batch import Level
from emblema.core.errors import BadData, EmblemaError
from emblema.core.intervals import Interval, holm
from emblema.data.datasets import Records
from emblema.data.templates import templates_for
from emblema.engine.features import identity, weights_id
from emblema.engine.inputs import Inputs
from emblema.model import Model
from emblema.parts.prompts import hand_written
from emblema.report import result
from emblema.tasks.protocols import Protocol, template_id
from emblema.tasks.statistics import bootstrap, mcnemar, mean_of, rank_intervals
from emblema.tasks.trials import Trial, trials
from emblema.transfer.base import Transfer

ZERO_SHOT = "zero-shot"
FAMILIES = {"text": "text prompt", "visual": "visual prompt", "adapters": "adapter", "others": "other"}


@dataclass
class Outcome:
    """One fit, measured. `right` are its answers, a test set each: [N] with 1 where the first guess was right; none
    where what is measured is not the first guess."""

    line: dict[str, Any]
    right: dict[str, Tensor]
    system: Transfer | None = None  # fitted


@dataclass
class Comparison:
    """What `compare` found: outcomes by system, and why some did not run."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ranking(self) -> list[dict[str, Any]]:
        """Best first: mean headline over trials and mean ends of its intervals, rank with its interval, McNemar
        against the best (Holm-corrected) where first guesses are measured.

        Only systems that were measured in every trial are ranked.
        """
        most = max((len(o) for o in self.outcomes.values()), default=0)
        whole = {name: o for name, o in self.outcomes.items() if len(o) == most}
        if not whole:
            return []
        scores = torch.tensor([[headline(one.line) for one in o] for o in whole.values()])  # [S, trials]
        order = scores.mean(1).argsort(descending=True, stable=True).tolist()
        names, ranks = list(whole), rank_intervals(scores)
        answers = {name: [r for one in o for r in one.right.values()] for name, o in whole.items()}
        best = answers[names[order[0]]]
        p = holm(
            [
                mcnemar(torch.cat(best), torch.cat(answers[names[i]])) if best and i != order[0] else math.nan
                for i in order
            ]
        )
        rows = []
        for place, i in enumerate(order):
            lines = [one.line for one in whole[names[i]]]
            ends = {
                end: sum(one["metrics"][one["protocol"]["metric"]][end] for one in lines) / len(lines)
                for end in ("low", "high")
            }
            rows.append(
                {
                    "system": names[i],
                    "metric": lines[0]["protocol"]["metric"],
                    "score": {"value": float(scores[i].mean())} | ends,
                    "rank": ranks[i].to_json(),
                    "p_against_best": None if math.isnan(p[place]) else p[place],
                    "seconds": round(sum(one["cost"]["fit_seconds"] for one in lines) / len(lines), 2),
                    "parameters": lines[0]["cost"]["parameters"],
                    "command": lines[0]["command"],
                }
            )
        return rows


def run(
    system: Transfer | None, model: Model, trial: Trial, command: str = "", most_steps: int | None = None
) -> Outcome:
    """Fit a system on the trial's selection and measure it on the trial's tests. None: the hand-written prompts.

    A system whose recipe has more than `most_steps` steps has so many; its command then says so.

    Raises what the system raises, `ClosedClasses` for one that cannot name the tested classes among it.
    """
    began = time.perf_counter()
    name = ZERO_SHOT if system is None else system.card.name
    pictures = len(trial.selection.train)
    if system is not None and most_steps and system.optim.total(pictures // system.optim.batch_size or 1) > most_steps:
        system = replace(copy.copy(system), optim=replace(system.optim, steps=most_steps))
        command = f"{command} --optim.steps={most_steps}"
    fitted = None if system is None else _fitted(system, model, trial)
    fit_seconds = time.perf_counter() - began
    first_guess = trial.protocol.task == "zero-shot"
    right, metrics = (_guesses if first_guess else _measured)(fitted, model, trial)
    learnt = [] if fitted is None else [p for p in fitted.module_.parameters() if p.requires_grad]
    line = result.line(
        {
            "task": trial.protocol.task,
            "data": trial.data,
            "split": trial.protocol.split,
            "protocol": _worded(trial.protocol, trial).to_json(),
            "metrics": {k: v.to_json() for k, v in metrics.items()},
            "seeds": [trial.seed],
            "seconds": round(time.perf_counter() - began, 3),
            "sizes": {"train": len(trial.selection.train)} | {k: len(v) for k, v in trial.tests.items()},
        },
        system=name,
        model=model.name,
        fields={} if system is None else asdict(system),
        data_hash="+".join(identity(records)[:16] for records in trial.tests.values()),
        family="transfer",
        weights=weights_id(model.vlm),
        shots=trial.shots,
        draw=trial.selection.draw,
        cost={"fit_seconds": round(fit_seconds, 3), "parameters": sum(p.numel() for p in learnt)},
        precision=model.precision,
        command=command,
    )
    return Outcome(line, right, fitted)


def _guesses(fitted: Transfer | None, model: Model, trial: Trial) -> tuple[dict[str, Tensor], dict[str, Interval]]:
    """Whether the first guess is right, of each test set's pictures, and the accuracies."""
    right: dict[str, Tensor] = {}
    metrics: dict[str, Interval] = {}
    for test, records in trial.tests.items():
        logits = _zero_shot(model, records) if fitted is None else _for(fitted, records).predict(records)
        right_ones = (logits.argmax(-1) == torch.tensor(records.labels)) & ~logits.isnan().any(-1)  # NaN: not read
        answers = right_ones.float()
        right[test] = answers
        key = test if test in ("base", "novel") else "top1" if len(trial.tests) == 1 else f"top1/{test}"
        metrics[key] = bootstrap(mean_of(answers), len(answers))
    return right, _headline(trial.protocol.metric, right) | metrics


def _measured(fitted: Transfer | None, model: Model, trial: Trial) -> tuple[dict[str, Tensor], dict[str, Interval]]:
    """What the protocol's task finds: several labels a picture, or one a pixel."""
    task: Any = find.find("tasks", trial.protocol.task.replace("-", "_"))
    known = {f.name for f in fields(task)}
    task = task(**{k: v for k, v in trial.protocol.options.items() if k in known})
    metrics: dict[str, Interval] = {}
    for test, records in trial.tests.items():
        judged = model if fitted is None else fitted if hasattr(fitted, "segment") else _for(fitted, records)
        found = task.run(judged, records).metrics
        metrics |= found if len(trial.tests) == 1 else {f"{name}/{test}": value for name, value in found.items()}
    if trial.protocol.metric not in metrics:
        raise BadData(f"{trial.data} does not tell {trial.protocol.metric}, only {', '.join(metrics)}")
    return {}, metrics


def compare(
    systems: Mapping[str, Transfer | None],
    model: Model,
    protocol: Protocol,
    data: Any = None,
    *,
    classes: int | None = None,
    command: Callable[[str], str] = lambda name: f"emblema transfer {name}",
    on_outcome: Callable[[str, Outcome | str], None] = lambda name, found: None,
    most_steps: int | None = None,
) -> Comparison:
    """All systems on all trials. One that fails is noted with its reason and the others go on."""
    found = Comparison()
    for trial in _trials(protocol, data, classes):
        for name, system in systems.items():
            if name in found.failed:
                continue
            try:
                outcome = run(system, model, trial, command(name), most_steps)
            except Exception as error:  # whatever somebody else's system raises
                short = " ".join(str(error).split())
                found.failed[name] = short if isinstance(error, EmblemaError) else f"{type(error).__name__}: {short}"
                on_outcome(name, found.failed[name])
                continue
            found.outcomes.setdefault(name, []).append(outcome)
            on_outcome(name, outcome)
    return found


def _trials(protocol: Protocol, data: Any, classes: int | None) -> Iterator[Trial]:
    if classes is None:
        return trials(protocol, data)
    from emblema.data import catalog

    given = [data] if isinstance(data, str | Path | Records) else list(data or protocol.sets)
    read = [d if isinstance(d, Records) else catalog.load(d) for d in given]
    return trials(protocol, [first(records, classes) for records in read])


def first(records: Records, classes: int) -> Records:
    """The first classes of a data set, under a name that says so."""
    if classes >= len(records.class_names):
        return records
    some = records.only_classes(range(classes))
    some.card = replace(records.card, name=f"{records.card.name}-{classes}", classes=classes)
    return some


def chosen(text: str) -> dict[str, type[Transfer]]:
    """Systems by name: "all", a family of `FAMILIES`, or names and paths separated by commas.

    `ZERO_SHOT` among them is no system: `compare` knows it as None.
    """
    known = {card["name"]: card for card in find.cards("transfer")}
    wanted = []
    for word in (w.strip() for w in text.split(",")):
        if word == "all":
            wanted += list(known)
        elif word in FAMILIES:
            wanted += [name for name, card in known.items() if FAMILIES[word] in card["section"]]
        elif word and word != ZERO_SHOT:
            wanted.append(word)
    if not wanted and ZERO_SHOT not in text:
        raise BadData(f"no system in {text!r}: give names, paths, all, or one of {', '.join(FAMILIES)}")
    found = {}
    for word in dict.fromkeys(wanted):
        cls = find.find("transfer", word)
        found[cls.card.name] = cls  # type: ignore[attr-defined]
    return found


def headline(line: Mapping[str, Any]) -> float:
    """The value of the protocol's metric."""
    return line["metrics"][line["protocol"]["metric"]]["value"]


def _fitted(system: Transfer, model: Model, trial: Trial) -> Transfer:
    twin = replace(copy.copy(system), seed=trial.seed)
    seen = trial.selection
    train = seen.unlabelled if "unlabelled" in system.card.needs and trial.protocol.unlabelled else seen.train
    return twin.fit(model, train, seen.val)


def _for(fitted: Transfer, records: Records) -> Transfer:
    if list(records.class_names) == fitted.class_names_:
        return fitted
    return fitted.for_classes(records.class_names, _source_name(records))


def _zero_shot(model: Model, records: Records) -> Tensor:
    z = hand_written(model.vlm, records.class_names, templates_for(_source_name(records)))
    inputs = Inputs.read(model.encoder, records, Level.POOLED, cache=model.cache)
    return model.vlm.logits(inputs.arrays["pooled"][0], z)


def _source_name(records: Records) -> str:
    """The name of the whole set, whose templates serve its first classes too."""
    return records.card.name.rsplit("-", 1)[0] if records.card.name.rsplit("-", 1)[-1].isdigit() else records.card.name


def _headline(metric: str, right: dict[str, Tensor]) -> dict[str, Interval]:
    """The protocol's metric over all test sets: H of base and novel, else the mean of the sets' accuracies."""
    sizes = [len(r) for r in right.values()]
    strata = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    answers = torch.cat(list(right.values())).double()

    def statistic(weights: Tensor) -> Tensor:
        parts = (weights * answers).split(sizes, 1)
        means = torch.stack([x.sum(1) / n for x, n in zip(parts, sizes)])  # [tests, R]: strata keep their sizes
        return len(means) / (1 / means).sum(0) if metric == "harmonic" else means.mean(0)

    return {metric: bootstrap(statistic, len(answers), strata=strata)}


def _worded(protocol: Protocol, trial: Trial) -> Protocol:
    source = next(iter(trial.tests.values()))
    name = _source_name(source)
    return replace(protocol, templates=template_id(name, templates_for(name)))
