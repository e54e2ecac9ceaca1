"""The verb transfer: fit one system, or compare many on the same pictures."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from typing import Any

from emblema.cli.common import table, without
from emblema.cli.runs import options_of, system_of
from emblema.core.errors import BadData


@dataclass(kw_only=True)
class TransferRun:
    """Who is adapted to what, and how it is measured."""

    data: str = ""  # a name from `emblema list data`, or a path; default: the protocol's own sets
    protocol: str = ""  # a name from `emblema list protocols`, or a YAML file; default: the system's own, or few-shot
    shots: int | None = None  # labelled pictures a class; default: the protocol's
    seeds: tuple[int, ...] = ()  # of draw and training; default: the protocol's, its first for several systems
    classes: int | None = None  # only the first classes of the data
    model: str = "default"  # a name from `emblema list models`, or a checkpoint folder
    out: str = ""  # save the (best) fitted system in this folder
    lines: str = ""  # append the result lines to this file
    device: str = "auto"
    precision: str = "auto"  # of stored features
    cache: str | None = None  # folder of the feature cache


@dataclass(kw_only=True)
class Several:
    """Systems as they are, under the same budget."""

    epochs: float | None = None  # of all systems that train; default: each its own
    steps: int | None = None  # overrides epochs
    most_steps: int | None = 100  # of a system whose own recipe has more, so that all end in minutes


def transfer(arguments: list[str], as_json: bool) -> Any:
    name, rest = system_of("transfer", arguments, "transfer")
    from emblema.bench import transfer as bench
    from emblema.core import find

    if name in find.names("distill") and name not in find.names("transfer"):  # one that learns from label maps
        from emblema.cli.distill import distill

        return distill(arguments, as_json)
    several = name in ("all", bench.ZERO_SHOT, *bench.FAMILIES) or "," in name
    if several:
        run, budget = options_of(f"transfer {name}", TransferRun, Several, rest)
        systems: dict[str, Any] = {n: _within(cls(), budget) for n, cls in bench.chosen(name).items()}
        systems = {bench.ZERO_SHOT: None} | systems
        most = None if budget.steps or budget.epochs else budget.most_steps
    else:
        cls = find.find("transfer", name)
        run, system = options_of(f"transfer {name}", TransferRun, cls, rest)
        systems, most, budget = {cls.card.name: system}, None, Several()  # type: ignore[attr-defined]
    from emblema.model import load
    from emblema.report import result

    usual = {card.protocol for s in systems.values() if s is not None and (card := s.card)}
    protocol = _protocol(run, usual.pop() if len(usual) == 1 else "few-shot", several)
    model = load(run.model, device=run.device, precision=run.precision, cache=run.cache)
    shared = without(rest, ("--out", "--lines", *(("--epochs", "--steps", "--most-steps") if several else ())))
    if several and not run.seeds:
        shared += ["--seeds", *map(str, protocol.seeds)]
    asked = [f"--optim.{k}={v}" for k, v in _asked(budget).items()]
    command = lambda name: shlex.join(
        ["emblema", "transfer", name, *shared, *(asked if name != bench.ZERO_SHOT else ())]
    )

    def told(name: str, found: Any) -> None:
        if isinstance(found, str):
            print(f"{name}: {found}", file=sys.stderr)
            return
        line = found.line
        if run.lines:
            result.append(run.lines, line)
        said = f"{bench.headline(line):.1%} {line['protocol']['metric']}, {line['cost']['fit_seconds']:.1f} s"
        print(f"{name} on {line['data']}, seed {line['seeds'][0]}: {said}", file=sys.stderr)

    data = run.data.split(",") if run.data else None
    found = bench.compare(
        systems, model, protocol, data, classes=run.classes, command=command, on_outcome=told, most_steps=most
    )
    if not found.outcomes:
        raise BadData("; ".join(f"{n}: {why}" for n, why in found.failed.items()))
    ranking = found.ranking()
    if run.out and (best := _best(found, ranking)) is not None:
        best.save(run.out)
        print(f"saved {best.card.name} in {run.out}: `emblema classify FOLDER --model {run.out}`", file=sys.stderr)
    if not as_json:
        _print(found, ranking)
    return {
        "protocol": protocol.to_json(),
        "ranking": ranking,
        "failed": found.failed,
        "lines": [one.line for outcomes in found.outcomes.values() for one in outcomes],
    }


def _protocol(run: TransferRun, usual: str, several: bool) -> Any:
    from emblema.tasks import protocols

    protocol = protocols.load(run.protocol or usual)
    if run.shots is not None:
        protocol = replace(protocol, shots=(run.shots,))
    elif len(protocol.shots) > 1 and run.data:
        protocol = replace(protocol, shots=(16,))
    seeds = run.seeds or (protocol.seeds[:1] if several else protocol.seeds)
    return replace(protocol, seeds=tuple(seeds))


def _asked(budget: Several) -> dict[str, Any]:
    return {k: v for k, v in (("epochs", budget.epochs), ("steps", budget.steps)) if v is not None}


def _within(system: Any, budget: Several) -> Any:
    changes = _asked(budget)
    return replace(system, optim=replace(system.optim, **changes)) if changes else system


def _best(found: Any, ranking: list[dict[str, Any]]) -> Any:
    fitted = {n: o[-1].system for n, o in found.outcomes.items()}
    return next((fitted[row["system"]] for row in ranking if fitted[row["system"]] is not None), None)


def _print(found: Any, ranking: list[dict[str, Any]]) -> None:
    from emblema.report.tables import formatted

    rows = []
    for row in ranking:
        p = row["p_against_best"]
        rows.append(
            (
                row["system"],
                formatted(row["metric"], row["score"]),
                f"{row['rank']['value']:.1f}",
                "-" if p is None else f"{p:.3f}",
                f"{row['seconds']:.1f}",
                f"{row['parameters']:,}",
            )
        )
    metric = ranking[0]["metric"] if ranking else ""
    table(("system", f"{metric} [95 %]", "rank", "p against best", "s a fit", "parameters"), rows)
    for name, why in found.failed.items():
        print(f"not run: {name}: {why}")
    if ranking:
        print(f"the best again: {ranking[0]['command']}")
