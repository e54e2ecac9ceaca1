"""Claims of transfer papers on bundled data: same draws, stored features and steps for both arms; three seeds.

    python benchmarks/transfer_claims.py                    # all claims; arms that were run before are not run again
    python benchmarks/transfer_claims.py --claims coop plot # some of them

An *arm* is a system with its settings (none: the hand-written prompts); it is fitted and measured once a trial, and
claims share arms. Scores are kept in runs/transfer-claims/, lines go to benchmarks/results/transfer.jsonl. Settings are
those of the cards but for the budget, which is the same for both arms; nothing is chosen on test pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import emblema
from emblema.bench import transfer as bench
from emblema.core.find import find
from emblema.core.method import Optim
from emblema.engine.features import weights_id
from emblema.report import claims
from emblema.tasks import protocols

HERE = Path(__file__).parent
KEPT = Path("runs/transfer-claims")
SEEDS = (1, 2, 3)
PLAIN = ("a photo of a {}.",)
FEW = (("fashion", None), ("digits", None), ("emblem-silhouettes", 20), ("emblem-food", 20))  # data, first classes
HALVES = (("emblem-animals", 40), ("emblem-food", 40), ("emblem-travel", 40), ("emblem-silhouettes", None))
UNLABELLED = (("fashion", None), ("emblem-silhouettes", 20), ("emblem-food", 20))
SINGLE = (("emblem-silhouettes", 20), ("emblem-food", 20))
SLOW = (("emblem-silhouettes", 20), ("emblem-food", 20))  # for systems whose gradients run through the image tower
SLOW_HALVES = (("emblem-food", 40),)


@dataclass(frozen=True)
class Arm:
    """A system by name with its fields; "" is zero-shot."""

    system: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)

    def build(self, steps: int) -> Any:
        if not self.system:
            return None
        system = find("transfer", self.system)(**self.fields)  # type: ignore[operator]
        changes: dict[str, Any] = {"steps": steps} | self.optim
        return replace(system, optim=replace(system.optim, **changes))

    @property
    def key(self) -> str:
        said = json.dumps([self.fields, self.optim], sort_keys=True, default=list)
        return f"{self.system or 'zero-shot'} {said}"


@dataclass(frozen=True)
class Claim:
    """That one arm scores higher than the other."""

    system: str
    better: Arm
    than: Arm
    protocol: str = "few-shot"
    shots: int | None = 16
    data: tuple[tuple[str, int | None], ...] = FEW
    metric: str = "top1"
    steps: int = 150
    also: str = ""  # what the card's claim does not say


WORDS = {"words": "a photo of a"}
NOVEL: dict[str, Any] = {"protocol": "base-to-novel", "data": HALVES, "metric": "novel"}
COOP, ZERO = Arm("coop"), Arm()
COOP_4 = Arm("coop", WORDS)
ONE = {"batch_size": 8}  # so that prompts of single pictures and common ones see as many
EIGHT = {"batch_size": 8}
TUNED: dict[str, Any] = {"data": SLOW, "steps": 100}  # few steps: each runs a tower forth and back
TUNED_NOVEL: dict[str, Any] = {"protocol": "base-to-novel", "data": SLOW_HALVES, "steps": 100}
FREE = {"image_weight": 0.0, "text_weight": 0.0, "logit_weight": 0.0, "centre": 0.0}
HAND = lambda template: Arm("clip_adapter", {"ratio": 0.0, "templates": (template,)}, {"steps": 1})

CLAIMS = (
    Claim("coop", COOP, ZERO),
    Claim("linear_probe", Arm("linear_probe"), ZERO),
    Claim("tip_adapter", Arm("tip_adapter", {"views": 4}), ZERO),
    Claim("tip_adapter_f", Arm("tip_adapter_f", {"views": 4}), Arm("tip_adapter", {"views": 4})),
    Claim("tip_x", Arm("tip_x", {"views": 4}), Arm("tip_adapter", {"views": 4})),
    Claim("clip_adapter", Arm("clip_adapter"), ZERO),
    Claim("task_res", Arm("task_res"), ZERO),
    Claim("cross_modal", Arm("cross_modal"), Arm("cross_modal", {"texts": False}), shots=1, steps=400),
    Claim("calip", Arm("calip"), ZERO),
    Claim("vt_clip", Arm("vt_clip"), ZERO),
    Claim("cupl", Arm("cupl", {"templates": PLAIN}), HAND(PLAIN[0]), shots=1),
    Claim("vcd", Arm("vcd"), HAND("{}"), shots=1),
    Claim("plot", Arm("plot"), Arm("plot", {"transport": False}), shots=4),
    Claim("proda", Arm("proda"), Arm("proda", {"covariance": False})),
    Claim("subpt", Arm("subpt"), COOP, shots=4, steps=400),
    Claim("upl", Arm("upl", {"members": 2}), ZERO, "unsupervised", 0, UNLABELLED),
    Claim("tpt", Arm("tpt", WORDS), Arm("tpt", WORDS, {"lr": 0.0}), "test-time", 0, SINGLE),
    Claim("kgcoop", Arm("kgcoop"), Arm("kgcoop", {"weight": 0.0}), **NOVEL),
    Claim("prograd", Arm("prograd", WORDS), COOP_4, **NOVEL),
    Claim("lasp", Arm("lasp"), Arm("lasp", {"weight": 0.0}), **NOVEL),
    Claim("cocoop", Arm("cocoop", {}, ONE), Arm("coop", WORDS, ONE), **NOVEL),
    Claim("vpt", Arm("vpt", {"samples": 4}, ONE), Arm("vpt", {"samples": 0}, ONE), **{**NOVEL, "data": SLOW_HALVES}),
    Claim("svl_adapter", Arm("svl_adapter"), ZERO, data=SLOW[:1]),
    Claim("fine_tune", Arm("fine_tune", {}, EIGHT), ZERO, data=SLOW, steps=50),
    Claim("vp", Arm("vp", {}, {"batch_size": 32}), ZERO, data=SLOW[:1], steps=50),
    Claim("wise_ft", Arm("wise_ft", {}, EIGHT), Arm("wise_ft", {"alpha": 1.0}, EIGHT), "domain-shift",
          data=(("emblem-objects", 40),), steps=40),
    Claim("lora", Arm("lora", {}, EIGHT), Arm("coop", {}, EIGHT), **TUNED),
    Claim("clipfit", Arm("clipfit", {}, EIGHT), Arm("coop", {}, EIGHT), **TUNED),
    Claim("upt", Arm("upt", {}, EIGHT), Arm("upt", {"joint": 0}, EIGHT), **TUNED),
    Claim("cavpt", Arm("cavpt", {}, EIGHT), Arm("cavpt", {"likely": 0}, EIGHT), data=SLOW, steps=50),
    Claim("reprompt", Arm("reprompt", {}, EIGHT), Arm("reprompt", {"mix": 0.0}, EIGHT), **TUNED),
    Claim("maple", Arm("maple", {}, EIGHT), Arm("coop", WORDS, EIGHT), metric="harmonic", **TUNED_NOVEL),
    Claim("rpo", Arm("rpo", {}, EIGHT), Arm("coop", WORDS, EIGHT), metric="harmonic", **TUNED_NOVEL),
    Claim("promptsrc", Arm("promptsrc", {}, EIGHT), Arm("promptsrc", FREE, EIGHT), metric="novel", **TUNED_NOVEL),
    Claim("coprompt", Arm("coprompt", {}, EIGHT), Arm("coprompt", {"weight": 0.0}, EIGHT), metric="novel",
          **TUNED_NOVEL),
)  # fmt: skip


def score(arm: Arm, claim: Claim, model: Any, name: str, classes: int | None) -> dict[str, Any]:
    """{"values": [one a seed], "seconds", "protocol"} of an arm on a data set, from a file where it was run before."""
    rule = replace(protocols.load(claim.protocol), seeds=SEEDS)
    rule = rule if claim.shots is None else replace(rule, shots=(claim.shots,))
    identity = json.dumps([arm.key, rule.hash, name, classes, claim.steps, weights_id(model.vlm)])
    path = KEPT / f"{protocols.short_hash(identity)}.json"
    if path.exists():
        return json.loads(path.read_text())
    began = time.perf_counter()
    found = bench.compare({"arm": arm.build(claim.steps)}, model, rule, name, classes=classes)
    if found.failed:
        raise RuntimeError(f"{arm.key} on {name}: {found.failed['arm']}")
    lines = [one.line for one in found.outcomes["arm"]]
    kept = {
        "arm": arm.key,
        "values": {metric: [one["metrics"][metric]["value"] for one in lines] for metric in lines[0]["metrics"]},
        "seconds": time.perf_counter() - began,
        "data": lines[0]["data"],
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept))
    return kept


def checked(claim: Claim, model: Any) -> dict[str, Any]:
    """Run both arms and weigh them: a claim line."""
    names = {"ours": claim.better, "theirs": claim.than}
    arms: dict[str, dict[str, Sequence[float]]] = {}
    seconds = 0.0
    for side, arm in names.items():
        found = [score(arm, claim, model, name, classes) for name, classes in claim.data]
        arms[said(arm, side, names)] = {one["data"]: one["values"][claim.metric] for one in found}
        seconds += sum(one["seconds"] for one in found)
    better, than = arms
    rule = replace(protocols.load(claim.protocol), seeds=SEEDS)
    optim: Optim | None = getattr(claim.better.build(claim.steps), "optim", None)
    return claims.claim_line(
        family="transfer",
        system=claim.system,
        claim=find("transfer", claim.system).card.claim + claim.also,  # type: ignore[attr-defined]
        protocol=rule if claim.shots is None else replace(rule, shots=(claim.shots,)),
        metric=claim.metric,
        arms=arms,
        better=better,
        than=than,
        seeds=SEEDS,
        model=model.name,
        weights=weights_id(model.vlm),
        budget={"shots": claim.shots, "steps": claim.steps, "batch_size": optim.batch_size if optim else None},
        seconds=seconds,
        command=f"python benchmarks/transfer_claims.py --claims {claim.system}",
    )


def smoke(claim: Claim, model: Any) -> None:
    """Whether both arms run: two steps on the first data set, under one seed. Says what the claim may cost."""
    rule = replace(protocols.load(claim.protocol), seeds=SEEDS[:1])
    rule = rule if claim.shots is None else replace(rule, shots=(claim.shots,))
    name, classes = claim.data[0]
    for arm in (claim.better, claim.than):
        began, stamps = time.perf_counter(), []
        for steps in (2, 12):
            found = bench.compare({"arm": arm.build(steps)}, model, rule, name, classes=classes)
            if found.failed:
                print(f"{claim.system}: {arm.key}: {found.failed['arm']}", flush=True)
                return
            stamps.append(time.perf_counter() - began - sum(stamps))
        each = max(stamps[1] - stamps[0], 0) / 10
        whole = len(SEEDS) * len(claim.data) * (stamps[1] + each * (claim.steps - 12))
        value = bench.headline(found.outcomes["arm"][0].line)
        print(f"{claim.system}: {arm.key}: {value:.3f}, {each:.2f} s a step, {whole:.0f} s in all", flush=True)


def said(arm: Arm, side: str, names: dict[str, Arm]) -> str:
    """The arm's name; settings only where both arms are the same system."""
    name = arm.system or "zero-shot"
    if len({a.system for a in names.values()}) == 1 or arm.fields.get("ratio") == 0.0:
        shown = ", ".join(
            f"{k} {v}" for k, v in {**arm.fields, **arm.optim}.items() if k not in ("words", "batch_size")
        )
        name = f"{name} ({shown})" if shown else name
    return (
        f"{name} ({'paper' if side == 'ours' else 'baseline'})"
        if arm == names["theirs" if side == "ours" else "ours"]
        else name
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Claims of transfer papers, as result lines.")
    parser.add_argument("--claims", nargs="*", help="systems; default: all")
    parser.add_argument("--model", default="default")
    parser.add_argument("--smoke", action="store_true", help="two steps and one seed, printed and not kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "transfer.jsonl")
    options = parser.parse_args()
    model = emblema.load(options.model)
    for claim in CLAIMS:
        if options.claims and claim.system not in options.claims:
            continue
        if options.smoke:
            smoke(claim, model)
            continue
        try:
            line = checked(claim, model)
        except Exception as error:  # the other claims go on
            print(f"{claim.system}: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
            continue
        claims.replace(options.out, line)
        d = line["difference"]
        print(f"{claim.system}: {line['verdict']}, {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]", flush=True)


if __name__ == "__main__":
    main()
