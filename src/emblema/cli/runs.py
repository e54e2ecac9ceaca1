"""Verbs that run: pretrain, plan, evaluate, report. Settings are the fields of the system or task."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from emblema.cli.common import parser_of, table, words
from emblema.cli.look import cards_of
from emblema.core import find
from emblema.core.errors import BadData, UnknownName


@dataclass(kw_only=True)
class PretrainRun:
    """What a run is besides its system."""

    data: str = "emblems"  # a name from `emblema list data`, or a path
    split: str = "train"  # of the data, where it has splits
    captions: str = "any"  # of all that a picture has, one is drawn at each step; "first": always its own name
    out: str | None = None  # the run's folder; the same command resumes it
    seed: int = 0
    steps: int | None = None  # overrides optim.steps and optim.epochs
    save_every: int | None = None  # steps between checkpoints
    evaluate: str = ""  # a labelled set whose validation split is classified zero-shot on the way
    evaluate_every: int | None = None  # steps; default: at the end only
    resume: bool = True  # continue what lies in `out`
    tensorboard: bool = False  # log for tensorboard too


@dataclass(kw_only=True)
class PlanRun:
    """What is planned."""

    data: str = "emblems"  # a name from `emblema list data`, or a path
    batch: int | None = None  # joint batch size; default: that of the system
    steps: int | None = None  # default: from optim.steps or optim.epochs
    world: int = 1  # processes that share the batch


@dataclass(kw_only=True)
class EvaluateRun:
    """Who is measured, on what."""

    data: str  # a name from `emblema list data`, or a path
    split: str = "test"
    model: str = "default"  # a name from `emblema list models`, a checkpoint folder, or that of a distilled student
    system: str = ""  # name in the result line; default: how the model is used
    student: str = ""  # your own .py file with the system that the student's folder is of
    out: str = ""  # append the result line to this file
    page: str = ""  # write an HTML page here
    device: str = "auto"
    precision: str = "auto"  # "fp32", "bf16", or "auto": bf16 where the hardware has it
    batch_size: int = 64
    cache: str | None = None  # folder of the feature cache


def options_of(verb: str, run: type, cls: type, arguments: list[str]) -> tuple[Any, Any]:
    """(run, system or task) from the command line; `--preset NAME` starts from one of the system's presets."""
    import tyro

    if taken := sorted({f.name for f in fields(run)} & {f.name for f in fields(cls)}):
        raise BadData(f"{cls.__name__} has settings named as options of the run, {', '.join(taken)}: rename them")
    start, arguments = _preset(cls, arguments)
    flat = tyro.conf.arg(name="")
    both = make_dataclass(
        "Settings", [("run", Annotated[run, flat]), ("what", Annotated[cls, flat], start)], kw_only=True
    )
    about = (cls.__doc__ if cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "(") else "") or sys.modules[
        cls.__module__
    ].__doc__
    chosen = tyro.cli(both, args=arguments, prog=f"emblema {verb}", description=(about or "").strip().split("\n\n")[0])
    return chosen.run, chosen.what


def _preset(cls: type, arguments: list[str]) -> tuple[Any, list[str]]:
    if "--preset" not in arguments:
        return field(default_factory=cls), arguments
    presets, at = getattr(sys.modules[cls.__module__], "PRESETS", {}), arguments.index("--preset")
    name = arguments[at + 1] if at + 1 < len(arguments) else ""
    if name not in presets:
        raise UnknownName(f"preset of {cls.__name__}", name, list(presets))
    return field(default_factory=lambda: presets[name]), arguments[:at] + arguments[at + 2 :]


def system_of(verb: str, arguments: list[str], kind: str) -> tuple[str, list[str]]:
    """The leading name, or the verb's help."""
    if not arguments or arguments[0].startswith("-"):
        known = [c["name"] for c in cards_of(kind)]
        what = "TASK" if kind == "tasks" else "SYSTEM"
        if arguments[:1] in (["-h"], ["--help"]):
            print(f"usage: emblema {verb} {what} [--json] [settings]\n\n{what} is one of: {', '.join(known)}")
            if kind != "tasks":
                print("or the path of a .py file with your own system.")
            print(f"`emblema {verb} {what} --help` shows its settings.")
            raise SystemExit(0)
        raise BadData(f"say which: emblema {verb} {what}; known: {', '.join(known)}")
    return arguments[0], arguments[1:]


def pretrain(arguments: list[str], as_json: bool) -> Any:
    name, rest = system_of("pretrain", arguments, "pretrain")
    cls = find.find("pretrain", name)
    run, method = options_of(f"pretrain {name}", PretrainRun, cls, rest)
    from emblema.data import catalog
    from emblema.engine.train import run_pretraining

    records = catalog.load(run.data)
    records = records.split(run.split) if run.split in records.splits else records
    began = time.perf_counter()
    vlm = run_pretraining(
        method,
        records,
        run.out,
        resume=run.resume,
        random_seed=run.seed,
        steps=run.steps,
        save_every=run.save_every,
        evaluate=_while_training(run.evaluate) if run.evaluate else None,
        evaluate_every=run.evaluate_every,
        tensorboard=run.tensorboard,
        captions=run.captions,
    )
    model = str(Path(run.out) / "model") if run.out else None
    if not as_json:
        print(f"model: {model}" if model else "the model was not kept: give --out FOLDER")
    return {
        "system": cls.card.name,
        "model": model,
        "data": run.data,
        "records": len(records),
        "seconds": round(time.perf_counter() - began, 3),
        "parameters": sum(p.numel() for p in vlm.parameters()),
        "fields": _resolved(method),
        "seeds": [run.seed],
    }


def _while_training(name: str) -> Any:
    """Zero-shot accuracy on the validation split; the test split is never handed to a run."""
    from emblema.data import catalog
    from emblema.engine.train import preprocess_of
    from emblema.model import Model
    from emblema.tasks.zero_shot import ZeroShot

    records = catalog.load(name)
    held_out = records.split("val") if "val" in records.splits else records

    def evaluate(vlm: Any, step: int) -> dict[str, float]:
        twin = copy.deepcopy(vlm)  # a model freezes what it is given
        model = Model(twin, preprocess_of(vlm), precision="fp32", cache=False)
        outcome = ZeroShot(resamples=1).run(model, held_out)
        return {k: outcome.metrics[k].value for k in ("top1", "top5", "ece")}

    return evaluate


def plan(arguments: list[str], as_json: bool) -> Any:
    family, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if family in ("", "-h", "--help"):
        print("usage: emblema plan pretrain SYSTEM [--batch N] [settings]")
        return None
    if family != "pretrain":
        raise UnknownName("kind of plan", family, ["pretrain"])
    name, rest = system_of("plan pretrain", rest, "pretrain")
    cls = find.find("pretrain", name)
    run, method = options_of(f"plan pretrain {name}", PlanRun, cls, rest)
    from emblema.data import catalog
    from emblema.engine.plan import plan as planned

    records = catalog.load(run.data)
    count = records.splits.get("train", len(records))
    found = planned(method, count, batch_size=run.batch, steps=run.steps, world=run.world)
    if not as_json:
        print(found)
    return {"system": cls.card.name, "data": run.data, "records": count, **found.to_json()}


def evaluate(arguments: list[str], as_json: bool) -> Any:
    from emblema import tasks

    name, rest = system_of("evaluate", arguments, "tasks")
    if name not in tasks.names():
        raise UnknownName("task", name, tasks.names())
    cls = tasks.find(name)
    run, task = options_of(f"evaluate {name}", EvaluateRun, cls, rest)
    from emblema.data import catalog
    from emblema.engine.features import identity, weights_id
    from emblema.model import load_any
    from emblema.report import page, result

    records = catalog.load(run.data)
    tested = _split(records, run.split)
    others = {s: _other(records, s, run.split) for s in task.splits()}
    options = {"device": run.device, "precision": run.precision, "batch_size": run.batch_size, "cache": run.cache}
    model = load_any(run.model, system=run.student, **options)
    found = task.evaluate(model, tested, run.split, **others)
    line = result.line(
        found,
        system=run.system
        or ("linear-probe" if "train" in others else (task.system(model) if hasattr(model, "vlm") else model.name)),
        model=model.name,
        fields={"task": _resolved(task)} | _how(model),
        data_hash=identity(tested),
        weights=weights_id(model.vlm) if hasattr(model, "vlm") else "",
    )
    if run.out:
        result.append(run.out, line)
        print(f"result line: {run.out}", file=sys.stderr)
    if run.page:
        page.write(run.page, **page.from_evaluation(line, found, tested))
        print(f"page: {run.page}", file=sys.stderr)
    if not as_json:
        from emblema.report.tables import formatted

        rows = [(metric, formatted(metric, value)) for metric, value in line["metrics"].items()]
        table(("metric", "value [95 % interval]"), rows, f"{line['protocol']['name']} ({line['protocol']['hash']})")
        for note in line["notes"]:
            print(note)
    return line | {"tables": found["tables"]}


def _how(model: Any) -> dict[str, Any]:
    """How a model reads pictures; a student says nothing of it."""
    if not hasattr(model, "vlm"):
        return {}
    return {"precision": model.precision, "preprocess": model.preprocess.to_json()}


def _split(records: Any, split: str) -> Any:
    """A named split, or several ("val+test"); data without splits is taken whole."""
    if "+" in split:
        return records.where(split=[name for part in split.split("+") for name in records.split(part).splits])
    return records.split(split) if records.splits or split not in ("test", "all") else records


def _other(records: Any, split: str, measured: str) -> Any:
    """The training or validation records; None where there are no validation records apart from those measured."""
    if split == "val" and ("val" not in records.splits or "val" in measured.split("+")):
        return None
    return records.split(split)


def _resolved(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _resolved(getattr(value, f.name)) for f in fields(value)}
    return value


def report(arguments: list[str], as_json: bool) -> Any:
    parser = parser_of("report", "Tables from result lines; one table a protocol.")
    parser.add_argument("files", nargs="*", help=".jsonl files or folders")
    parser.add_argument("--metrics", default="", help="comma-separated; default: all headline metrics")
    parser.add_argument("--page", help="write an HTML page here")
    parser.add_argument("--readme", action="store_true", help="bring README.md and docs/methods up to date")
    options = parser.parse_args(arguments)
    if options.readme:
        from emblema.report import docs

        changed = [str(p) for p in docs.write()]
        print("\n".join(changed) or "up to date")
        return changed
    if not options.files:
        raise BadData("give result files: emblema report results.jsonl")
    from emblema.report import page, result, tables

    lines = list(result.read(*options.files))
    if options.page:
        page.write(options.page, title="Results", lines=lines)
    if not as_json:
        print(tables.results(lines, words(options.metrics)))
    return lines
