"""Claims of papers checked here: one JSON line a claim, and the pages made of them.

A claim says that one arm scores higher than another under a protocol. Both arms run on the same data sets, seeds and
budget, so their scores come in pairs, and the interval is that of the paired difference:

- with five data sets or more, a data set is one observation (its mean over seeds): the claim is about data sets;
- with fewer, every (data set, seed) is one.

`supported`: the 95 % t interval of the mean difference lies above 0. `not supported`: it lies below 0. `inconclusive`:
it holds 0, or there is one pair only. Verdicts stand alone; the pages add Holm's p over all claims shown.

Pre-training is too dear for that many pairs. Its rule (protocol P: three seeds, same pairs, order, steps, batch and
start weights) is one standard error of the mean difference instead of the interval, which the line keeps too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emblema.core.errors import BadData
from emblema.core.intervals import Interval, harmonic, holm, over_seeds, paired, paired_p, standard_error
from emblema.report import tables
from emblema.report.result import plain

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
MANY_SETS = 5  # from so many data sets on, a data set is one observation
FIELDS = ("kind", "family", "system", "claim", "protocol", "metric", "arms", "better", "than", "difference", "p",
          "verdict", "seeds", "data", "model", "weights", "budget", "seconds", "command")  # fmt: skip
Scores = Mapping[str, Sequence[float]]  # data set -> one score a seed
Line = Mapping[str, Any]


def observations(ours: Scores, theirs: Scores) -> tuple[list[float], list[float]]:
    """Pairs of scores. Raises `BadData` when the arms do not have the same data sets and seeds."""
    shape = lambda arm: {data: len(scores) for data, scores in arm.items()}
    if shape(ours) != shape(theirs) or not ours or 0 in shape(ours).values():
        raise BadData(
            f"arms must have the same data sets and seeds, got scores a data set {shape(ours)} and {shape(theirs)}"
        )
    if len(ours) >= MANY_SETS:
        return tuple([math.fsum(s) / len(s) for s in arm.values()] for arm in (ours, {d: theirs[d] for d in ours}))  # type: ignore[return-value]
    return [v for s in ours.values() for v in s], [v for d in ours for v in theirs[d]]


def verdict(difference: Interval | Mapping[str, float | None], family: str = "", error: float | None = None) -> str:
    """The rule of the family, for the paired difference in the claimed direction."""
    said = difference.to_json() if isinstance(difference, Interval) else difference
    if family == "pretrain":
        value, error = float(said["value"]), math.nan if error is None else error  # type: ignore[arg-type]
        return SUPPORTED if value > error else NOT_SUPPORTED if value < -error else INCONCLUSIVE
    low, high = (math.nan if said[k] is None else float(said[k]) for k in ("low", "high"))  # type: ignore[arg-type]
    return SUPPORTED if low > 0 else NOT_SUPPORTED if high < 0 else INCONCLUSIVE


def replace(path: Path, line: dict[str, Any], same: Sequence[str] = ("system", "metric")) -> None:
    """Write a claim line in place of an earlier one that has the `same`; other lines stay."""
    mark = lambda one: [one.get(key) for key in ("kind", *same)]
    lines = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    lines = [one for one in lines if mark(one) != mark(line)] + [checked(plain(line))]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in lines)
    path.write_text(text, encoding="utf-8")


def claim_line(
    *,
    family: str,
    system: str,
    claim: str,
    protocol: Any,
    metric: str,
    arms: Mapping[str, Scores],
    better: str,
    than: str,
    seeds: Sequence[int],
    model: str,
    weights: str,
    budget: Mapping[str, Any],
    seconds: float,
    command: str,
    lower_is_better: bool = False,
) -> dict[str, Any]:
    """A claim line. `arms` {arm: {data set: [score a seed]}}; the claim is that arm `better` beats arm `than`.

    `protocol` is a `Protocol` or {"name", "hash"}; `budget` says what all arms were given (shots, epochs, steps, views,
    ...); `command` makes the line again. Raises `BadData` for arms that are not paired.
    """
    if missing := [name for name in (better, than) if name not in arms]:
        raise BadData(f"no arm {' and no '.join(missing)}; arms: {', '.join(arms)}")
    sign = -1 if lower_is_better else 1
    one, other = ([sign * v for v in side] for side in observations(arms[better], arms[than]))
    if uneven := {d: len(v) for d, v in arms[better].items() if len(v) != len(seeds)}:
        raise BadData(f"{len(seeds)} seeds, but scores a data set {uneven}")
    difference, error = paired(one, other), standard_error([a - b for a, b in zip(one, other)])
    rule = protocol if isinstance(protocol, Mapping) else protocol.to_json()
    return plain(
        {
            "kind": "claim",
            "family": family,
            "system": system,
            "claim": claim,
            "protocol": {"name": rule["name"], "hash": rule["hash"]},
            "metric": metric,
            "arms": {name: {d: list(v) for d, v in arm.items()} for name, arm in arms.items()},
            "better": better,
            "than": than,
            "difference": difference.to_json(),
            "p": paired_p(one, other),
            **({"standard_error": error} if family == "pretrain" else {}),
            "verdict": verdict(difference, family, error),
            "seeds": list(seeds),
            "data": list(arms[better]),
            "model": model,
            "weights": weights,
            "budget": dict(budget),
            "seconds": round(seconds, 1),
            "command": command,
        }
    )


def checked(line: Line) -> dict[str, Any]:
    """The line itself, if it has all fields and its verdict follows from its scores."""
    if missing := [name for name in FIELDS if name not in line]:
        raise BadData(f"a claim line lacks {', '.join(missing)}")
    follows = verdict(line["difference"], line["family"], line.get("standard_error"))
    if line["verdict"] != follows:
        raise BadData(f"the claim of {line['system']} says {line['verdict']}, its interval {follows}")
    return dict(line)


def is_claim(line: Line) -> bool:
    return line.get("kind") == "claim"


# -- pages ---------------------------------------------------------------------------------------------------


def page(family: str, lines: Iterable[Line], root: str = "../methods/") -> str:
    """docs/results/FAMILY.md: verdicts, then a table a protocol with systems down and data sets across."""
    lines = [one for one in lines if one.get("family", family) == family]
    said, results = [one for one in lines if is_claim(one)], [one for one in lines if not is_claim(one)]
    parts = [f"# {TITLES[family]}, measured"]
    if said:
        counts = {v: sum(one["verdict"] == v for one in said) for v in (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE)}
        parts += [
            "## Claims",
            f"{len(said)} claims: {', '.join(f'{n} {v}' for v, n in counts.items())}. {RULES.get(family, RULE)}",
        ]
        parts += [claims_table(said, root), "## Scores of the arms", SCORES, *arms_tables(said)]
    if results:
        parts += ["## Systems", *systems_tables(results)]
    if commands := dict.fromkeys(one["command"] for one in lines if one.get("command")):
        parts += ["## Every line again", "```\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


TITLES = {"pretrain": "Pre-training systems", "transfer": "Transfer systems", "distill": "Distillation systems"}
RULE = (
    "A claim is *supported* when the 95 % t interval of the paired difference lies above 0, *not supported* when it "
    "lies below, *inconclusive* when it holds 0. Pairs share data set, seed and budget; from five data sets on, a data "
    "set (its mean over seeds) is one observation. p: paired t-test, Holm-corrected over this page."
)

SCORES = (
    "Each arm of a claim above, on each data set: the mean over seeds with its 95 % t interval, none where all seeds "
    "agree (where a set has fewer pictures of a class than shots are asked for, all draws are the same pictures). Arms "
    "of one table had the same protocol, shots and steps; an arm that was run again for another claim stands there "
    "once more."
)
BUDGET = ("shots", "images", "classes", "pairs", "steps")

RULES = {
    "pretrain": (
        "Protocol P: same pairs, order, steps, batch and start weights, three seeds. A claim is *supported* when the "
        "mean paired difference is above 0 by more than one standard error, *not supported* when below by more, else "
        "*inconclusive*. In brackets the 95 % t interval, which is wider. p: paired t-test, Holm-corrected over the "
        "page."
    )
}


def claims_table(lines: Sequence[Line], root: str = "../methods/") -> str:
    """One row a claim."""
    corrected = holm([math.nan if one["p"] is None else one["p"] for one in lines])
    rows = []
    for one, p in sorted(zip(lines, corrected), key=lambda pair: (pair[0]["system"], pair[0]["claim"])):
        shown = [f"{arm} {_mean(one['arms'][arm], one['metric'])}" for arm in (one["better"], one["than"])]
        rows.append(
            [
                f"[{one['system']}]({root}{one['system']}.md)",
                one["claim"],
                f"**{one['verdict']}**" if one["verdict"] == SUPPORTED else one["verdict"],
                tables.formatted(one["metric"], one["difference"], signed=True),
                "-" if math.isnan(p) else f"{p:.3f}",
                ", ".join(shown),
                f"{one['metric']}, {len(one['seeds'])} seeds x {len(one['data'])} sets",
                f"{one['protocol']['name']} `{one['protocol']['hash']}`",
                f"{one['model']} `{one['weights']}`",
            ]
        )
    head = ["system", "claim", "verdict", "difference [95 %]", "p", "arms", "of", "protocol", "model, weights"]
    return tables.markdown(head, rows, "lllrrllll")


def arms_tables(lines: Sequence[Line]) -> list[str]:
    """A table a protocol, metric and budget: arms down, data sets across, then the mean over data sets."""
    groups: dict[tuple[str, str, str, str], dict[str, Scores]] = {}
    for one in lines:
        budget = ", ".join(f"{one['budget'][k]} {k}" for k in BUDGET if one["budget"].get(k))
        key = (one["protocol"]["name"], one["protocol"]["hash"], one["metric"], budget)
        for arm, scores in one["arms"].items():
            found = groups.setdefault(key, {})
            found[arm if found.get(arm, scores) == scores else f"{arm}, for {one['system']}"] = scores
    parts = []
    for (name, hash_, metric, budget), arms in sorted(groups.items()):
        columns = list(dict.fromkeys(data for scores in arms.values() for data in scores))
        rows = []
        for arm, scores in sorted(arms.items()):
            cells = [_over_seeds(scores[c], metric) if c in scores else "-" for c in columns]
            rows.append([arm, *cells, *([_mean(scores, metric)] if len(columns) > 1 else [])])
        head = ["arm", *columns, *(["mean"] if len(columns) > 1 else [])]
        table = tables.markdown(head, rows, "l" + "r" * (len(head) - 1))
        parts.append(f"### {name} `{hash_}`: {metric}{', ' + budget if budget else ''}\n\n{table}")
    return parts


def _over_seeds(scores: Sequence[float], metric: str) -> str:
    agree = min(scores) == max(scores)
    return tables.formatted(metric, {"value": scores[0]} if agree else over_seeds(scores).to_json())


def _mean(arm: Scores, metric: str) -> str:
    values = [math.fsum(v) / len(v) for v in arm.values()]
    mean = math.fsum(values) / len(values)
    return tables.formatted(metric, {"value": mean, "low": None, "high": None})


def systems_tables(lines: Sequence[Line]) -> list[str]:
    """A table a protocol and metric: systems down, data sets across, then the mean over data sets.

    Lines of one system, data set and protocol hash (one a seed) are pooled to their mean and t interval over seeds.
    """
    groups: dict[tuple[str, str], dict[tuple[str, str], dict[tuple[str, str], list[Line]]]] = {}
    for one in lines:
        rule, _, *rest = one["protocol"]["name"].split("/")
        column = (one["data"], one["protocol"]["hash"])
        row = (one["system"], one["model"])
        groups.setdefault((rule, "/".join(rest)), {}).setdefault(row, {}).setdefault(column, []).append(one)
    parts = []
    for (rule, variant), found in groups.items():
        columns = list(dict.fromkeys(c for cells in found.values() for c in cells))
        first = next(iter(next(iter(found.values())).values()))[0]
        for metric in _headlines(first):
            rows = []
            for (system, model), cells in found.items():
                pooled = [_pooled([one["metrics"][metric] for one in cells[c]]) if c in cells else {} for c in columns]
                rows.append([system, model, *(tables.formatted(metric, v) if v else "-" for v in pooled)])
                if len(columns) > 1:
                    rows[-1].append(_average(found[system, model], columns, metric))
            head = ["system", "model", *(c for c, _ in columns), *(["mean over sets"] if len(columns) > 1 else [])]
            hashes = ", ".join(f"{name} `{hash_}`" for name, hash_ in columns)
            title = " ".join(filter(None, [rule, variant]))
            table = tables.markdown(head, rows, "ll" + "r" * (len(head) - 2))
            parts.append(f"### {title}: {metric}\n\n{table}\n\nProtocols: {hashes}.")
    return parts


def _headlines(line: Line) -> list[str]:
    """The metric of the protocol, and base and novel where it is their harmonic mean."""
    metric = line["protocol"].get("metric") or next(iter(line["metrics"]))
    wanted = ["base", "novel", "harmonic"] if metric == "harmonic" else [metric]
    return [m for m in wanted if m in line["metrics"]] or list(line["metrics"])[:1]


def _pooled(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return metrics[0] if len(metrics) == 1 else over_seeds([m["value"] for m in metrics]).to_json()


def _average(cells: Mapping[tuple[str, str], Sequence[Line]], columns: Sequence[tuple[str, str]], metric: str) -> str:
    """Over data sets, of systems that were measured on all; H of the suite is that of the two averages."""
    if any(c not in cells for c in columns):
        return "-"
    mean = lambda name: math.fsum(_pooled([one["metrics"][name] for one in cells[c]])["value"] for c in columns)
    if metric == "harmonic":
        return tables.formatted(
            metric,
            {"value": harmonic(mean("base") / len(columns), mean("novel") / len(columns)), "low": None, "high": None},
        )
    return tables.formatted(metric, {"value": mean(metric) / len(columns), "low": None, "high": None})
