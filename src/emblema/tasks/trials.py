"""What a protocol makes of data: a `Trial` for each data set, number of shots and seed.

>>> for trial in trials(load("base-to-novel"), "emblem-food"):
...     system = CoOp(seed=trial.seed).fit(model, trial.selection.train, trial.selection.val)
...     for name, test in trial.tests.items():
...         top1 = accuracy(system.for_classes(test.class_names).predict(test), test.labels)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emblema.core.errors import BadData
from emblema.data import catalog, fewshot
from emblema.data.datasets import Records
from emblema.data.selection import Selection, base_and_novel
from emblema.tasks.protocols import Protocol

Data = str | Path | Records


@dataclass(frozen=True)
class Trial:
    """One fit and what it is measured on. Hand `selection` to the system, and keep `tests` for the score."""

    protocol: Protocol  # on this data set, these shots; all its seeds
    data: str
    selection: Selection
    tests: dict[str, Records]  # "test"; "base", "novel"; a name a data set; a name a domain
    seed: int
    shots: int | None


def trials(protocol: Protocol, data: Data | Sequence[Data] | None = None) -> Iterator[Trial]:
    """Trials in the order of data sets, shots, seeds. `data`: names, paths or records; default: the protocol's sets.

    Of "other sets" the first data set is learnt from and the others are tested; so it is of "domains" where the data
    have no column `domain` (ImageNet and its four shifted sets). Raises `BadData` for data that lack
    what the protocol needs: splits, domains, or novel classes.
    """
    given = protocol.sets or (protocol.data,) if data is None else data
    sets = [_read(d) for d in ([given] if isinstance(given, Data) else given)]
    others = protocol.tests == "other sets" or (protocol.tests == "domains" and not _has_domains(sets[0]))
    if others and len(sets) < 2:
        raise BadData(f"{protocol.name} learns from one data set and tests others: give at least two")
    for records in sets[:1] if others else sets:
        held_out = _held_out(records, protocol.split)
        on = protocol.on(records.card.name)
        tests = _tests(protocol, records, held_out, sets[1:] if others else ())
        for shots in protocol.shots or (0,):
            for seed in protocol.seeds:
                selection = Selection(
                    records,
                    shots,
                    seed,
                    protocol.classes,
                    novel=protocol.novel,
                    validation=protocol.validation,
                    unlabelled=protocol.unlabelled,
                    hides=protocol.hides,
                    held_out=held_out,
                )
                this = protocol.on(records.card.name, shots=(shots,)) if protocol.shots else on
                yield Trial(this, records.card.name, selection, tests, seed, shots)


def _tests(protocol: Protocol, records: Records, held_out: str, others: Sequence[Records]) -> dict[str, Records]:
    test = records.split(held_out) if records.splits else records
    if protocol.tests == "base and novel":
        if "label" not in records.columns:
            return {"test": test}  # of detection and segmentation: all classes compete in one run
        base, novel = base_and_novel(records, protocol.novel)
        return {"base": test.only_classes(base), "novel": test.only_classes(novel)}
    if others:
        return {o.card.name: o.split(_held_out(o, protocol.split)) if o.splits else o for o in others}
    if protocol.tests == "domains":
        return {str(d): test.where(domain=d) for d in sorted({d for d in test.column("domain") if d})}
    return {held_out: test}


def _read(data: Data) -> Records:
    records = data if isinstance(data, Records) else catalog.load(data)
    if records.splits or not records.class_names or not {"label", "labels"} & set(records.columns):
        return records
    return fewshot.partition(records)


def _has_domains(records: Records) -> bool:
    return "domain" in records.columns and any(records.column("domain"))


def _held_out(records: Records, wanted: str) -> str:
    """The split that is tested: "val" where there is no other (ImageNet)."""
    return wanted if wanted in records.splits or "val" not in records.splits else "val"
