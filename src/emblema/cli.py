"""The command line: `emblema VERB`. Torch is imported inside the verbs that need it, never for `list` or `--help`.

Settings of a system or task are its dataclass fields. With `--json` standard output holds one JSON document and
nothing else; progress, tables and warnings go to standard error. Exit code 2 means: what was asked cannot be done.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from emblema import __version__
from emblema.core import find
from emblema.core.errors import BadData, EmblemaError, UnknownName

HERE = Path(__file__).parent
DATA_VERBS = ("list", "show", "check", "build")
LISTS = (*find.FAMILIES, "data", "tasks", "models")
HELP = """\
Vision-language models for vision tasks: pre-training, transfer, distillation and evaluation.

with your own pictures
  classify FOLDER --labels "cat,dog,red car"     which of these words fits each picture
  search FOLDER "a red fish"                     pictures that fit the words, best first

systems of the survey
  list [pretrain|transfer|distill|data|tasks|models] [--by section]
  show NAME                                      card, equation, settings, command
  pretrain SYSTEM --data emblems --out runs/x    SYSTEM is a name or a path to your own .py file
  plan pretrain SYSTEM --batch 32768             parameters and memory before a run

measuring
  evaluate TASK --data emblem-objects            zero-shot, retrieval, linear-probe
  report FILES                                   tables from result lines
  data list|show|check|build                     the data sets

`emblema VERB --help` shows the options of a verb, `emblema pretrain SYSTEM --help` all settings of a system.
Every verb but build takes --json: one JSON document on standard output and nothing else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        if not as_json:
            return _run(arguments, None)
        out = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints, the document stays alone
            return _run([a for a in arguments if a != "--json"], out)
    except EmblemaError as error:
        print(f"emblema: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("emblema: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `emblema list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except SystemExit as stop:  # argparse and tyro end so, after having said why
        return stop.code if isinstance(stop.code, int) else 2


def _run(arguments: list[str], out: IO[str] | None) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(f"emblema {__version__}\n\n{HELP}")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise UnknownName("verb", verb, list(VERBS))
    document = VERBS[verb](rest, out is not None)
    if out is not None:
        print(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False), file=out, flush=True)
    return 0


def _plain(value: Any) -> Any:
    from emblema.report.result import plain

    return plain(value)


def _parser(verb: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"emblema {verb}", description=about, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    return parser


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    from emblema.report.tables import terminal

    terminal(header, rows, title)


# -- list and show: cards only -------------------------------------------------------------------------------


def list_(arguments: list[str], as_json: bool) -> Any:
    parser = _parser("list", "Systems, data sets, tasks and models, read from their cards.")
    parser.add_argument("what", nargs="?", choices=LISTS, help="one list only")
    parser.add_argument("--by", choices=("family", "section", "year", "framework"), default="family")
    options = parser.parse_args(arguments)
    wanted = (options.what,) if options.what else LISTS
    found = {name: _cards(name) for name in wanted}
    if as_json:
        return found[options.what] if options.what else found
    systems = [c for name in wanted if name in find.FAMILIES for c in found[name]]
    groups: dict[str, list[dict]] = {}
    if options.by == "family":
        groups = {name: [] for name in wanted if name in find.FAMILIES}
    for card in systems if options.by == "family" else sorted(systems, key=lambda c: str(c.get(options.by, ""))):
        groups.setdefault(str(card.get(options.by, "")), []).append(card)
    for name, cards in groups.items():
        rows = [(c["name"], c["year"], c["section"], c["title"]) for c in cards]
        _table(("system", "year", "survey", "paper"), rows or [("none yet", "", "", "")], f"{name} ({len(cards)})")
    if "data" in found:
        rows = [(c["name"], c.get("task", ""), _sizes(c), c.get("title", "")) for c in found["data"]]
        _table(("data set", "task", "records", ""), rows, f"data ({len(rows)})")
    if "tasks" in found:
        rows = [(c["name"], c["metric"], c["title"]) for c in found["tasks"]]
        _table(("task", "metric", ""), rows, f"tasks ({len(rows)})")
    if "models" in found:
        rows = [(c["name"], c["where"]) for c in found["models"]]
        _table(("model", "where"), rows, f"models ({len(rows)})")
    return found


def _cards(kind: str) -> list[dict[str, Any]]:
    if kind in find.FAMILIES:
        return find.cards(kind)
    if kind == "tasks":
        from emblema import tasks

        return tasks.cards()
    if kind == "data":
        from emblema.data import catalog

        return catalog.cards()
    shipped = sorted((HERE / "models").glob("*/config.json"))
    return [
        *({"name": path.parent.name, "where": "ships with the package"} for path in shipped),
        {"name": "FOLDER", "where": "a checkpoint folder of emblema, open_clip or Hugging Face"},
        {"name": "open_clip:ARCHITECTURE/TAG", "where": "needs open_clip and, the first time, the network"},
        {"name": "hf:OWNER/NAME", "where": "from the local hub cache, else the network"},
    ]


def _sizes(card: dict[str, Any]) -> str:
    return ", ".join(f"{split} {n:,}" for split, n in (card.get("sizes") or {}).items()) or "-"


def show(arguments: list[str], as_json: bool) -> Any:
    parser = _parser("show", "Card, equation, settings and command of a system, task or data set.")
    parser.add_argument("name", help="a name from `emblema list`, or a path to a .py file")
    card, path = _find_card(parser.parse_args(arguments).name)
    kind = card["family"]
    if kind == "data":
        return _show_data(card)
    from emblema.report.docs import COMMANDS, fields_of

    found = fields_of(path) if path else []
    name = card["name"]
    command = COMMANDS[kind].format(name=name) if kind in COMMANDS else f"emblema evaluate {name} --data NAME"
    if as_json:
        return {**card, "fields": found, "command": command}
    print(f"{name}: {card['title']}")
    for key in ("paper", "year", "section", "framework", "reads", "needs", "objectives", "metric", "claim", "oracle"):
        value = card.get(key)
        if value:
            print(f"  {key:<11}{', '.join(value) if isinstance(value, tuple | list) else value}")
    if card.get("equation"):
        print(f"\n  {card['equation']}\n")
    if found:
        _table(("setting", "default", "type", ""), [(f["name"], f["default"], f["type"], f["help"]) for f in found])
    for text in card.get("deviations", ()):
        print(f"  deviates: {text}")
    print(f"\n  {command}")
    return None


def _find_card(name: str) -> tuple[dict[str, Any], Path | None]:
    if name.endswith(".py"):
        if not Path(name).exists():
            raise EmblemaError(f"no file {name}: give the path of a .py file that defines a system")
        return find.read_card(Path(name)) | {"family": "pretrain"}, Path(name)
    known = []
    for family in find.FAMILIES:
        for card in find.cards(family):
            known.append(card["name"])
            if card["name"] == name:
                path = HERE / family / f"{name}.py"
                return card, path if path.exists() else None
    for kind in ("tasks", "data"):
        for card in _cards(kind):
            known.append(card["name"])
            if card["name"] == name:
                path = HERE / "tasks" / f"{card['file']}.py" if kind == "tasks" else None
                return card | {"family": kind}, path
    raise UnknownName("system, task or data set", name, known)


def _show_data(card: dict[str, Any]) -> Any:
    card = {k: v for k, v in card.items() if k != "family"}
    width = max(map(len, card))
    for key, value in card.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        text = _sizes(card) if key == "sizes" else str(shown)
        print(f"{key:<{width}}  {text if len(text) < 400 else text[:400] + ' ...'}")
    return card


# -- data ----------------------------------------------------------------------------------------------------


def data(arguments: list[str], as_json: bool) -> Any:
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print("usage: emblema data list | show NAME | check [NAME_OR_PATH ...] | build [...]")
        return None
    if verb not in DATA_VERBS:
        raise UnknownName("data verb", verb, list(DATA_VERBS))
    if verb == "list":
        return list_(["data", *arguments[1:]], as_json)
    if verb == "build":
        return _build_data(arguments[1:])
    parser = _parser(
        f"data {verb}", "The card of a data set." if verb == "show" else "Do the files say what the cards say?"
    )
    parser.add_argument("names", nargs=1 if verb == "show" else "*", help="names of bundled sets, or paths")
    names = parser.parse_args(arguments[1:]).names
    if verb == "check":
        return _check_data(names)
    return _show_data(_data_card(names[0]))


def _data_card(name: str) -> dict[str, Any]:
    from emblema.data import catalog

    for card in catalog.cards():
        if card["name"] == name:
            return card
    records = catalog.load(name)  # a path, or an error that suggests names
    card = {f.name: getattr(records.card, f.name) for f in fields(records.card)}
    return {**card, "class_names": records.class_names[:50], "report": str(records.report)}


def _check_data(names: list[str]) -> Any:
    """A report a set; what needs a look is said, and nothing is changed."""
    from rich.console import Console

    from emblema.data import catalog
    from emblema.data.check import check

    found = []
    for name in names or [n for n in catalog.names() if n not in catalog.GENERATED]:
        report = check(name, threads=os.cpu_count() or 1)
        Console(file=sys.stdout).print(report)
        found.append(report.to_json())
    return found


def _build_data(arguments: list[str]) -> None:
    from emblema.data.build.__main__ import main as build

    build(arguments)


# -- pictures of one's own -----------------------------------------------------------------------------------


def _with_model(verb: str, about: str) -> argparse.ArgumentParser:
    parser = _parser(verb, about)
    parser.add_argument("--model", default="default", help="a name from `emblema list models`, or a checkpoint folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--batch-size", type=int, default=64)
    return parser


def _load(options: Any) -> Any:
    from emblema.model import load

    return load(options.model, device=options.device, precision=options.precision, batch_size=options.batch_size)


def classify(arguments: list[str], as_json: bool) -> Any:
    parser = _with_model("classify", "Which of the given words fits each picture.")
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files")
    parser.add_argument("--labels", required=True, help='"cat,dog,red car", or a text file with a label a line')
    parser.add_argument("--templates", help='"a drawing of a {}.", or a text file with a template a line')
    parser.add_argument("--top", type=int, default=5, help="labels shown a picture")
    parser.add_argument("--page", help="write an HTML page with pictures and predictions here")
    options = parser.parse_args(arguments)
    from emblema.model import checked_labels

    labels = checked_labels(_words(options.labels))
    templates = _templates(options.templates)
    paths = _pictures(options.pictures)
    model = _load(options)
    z_text = model.class_vectors(labels, templates)
    z, errors = model.try_images(paths)
    broken = dict(errors)
    probability, order = model.probabilities(z, z_text).sort(dim=-1, descending=True, stable=True)
    found = [
        {
            "path": str(path),
            "labels": []
            if i in broken
            else [
                {"label": labels[j], "probability": q}
                for j, q in zip(order[i, : options.top].tolist(), probability[i, : options.top].tolist())
            ],
            "error": broken.get(i),
        }
        for i, path in enumerate(paths)
    ]
    if not as_json:
        rows = [
            (
                f["path"],
                *_best(f["labels"]),
                "; ".join(f"{g['label']} {g['probability']:.0%}" for g in f["labels"][1:3]),
            )
            if not f["error"]
            else (f["path"], "", "", f"cannot be read: {f['error']}")
            for f in found
        ]
        _table(("picture", "label", "", "then"), rows)
    if options.page:
        from emblema.report import page

        shown = [{"image": f["path"], "name": Path(f["path"]).name, "labels": f["labels"][:3]} for f in found[:500]]
        print(f"page: {page.write(options.page, title='Classified', pictures=shown)}", file=sys.stderr)
    _all_broken(paths, errors)
    return found


def _best(labels: list[dict]) -> tuple[str, str]:
    return labels[0]["label"], f"{labels[0]['probability']:.0%}"


def search(arguments: list[str], as_json: bool) -> Any:
    parser = _with_model("search", "Pictures that fit the words, best first.")
    parser.add_argument("pictures", nargs="+", help="folders (searched with their subfolders) or files, then the words")
    parser.add_argument("--top", type=int, default=10, help="pictures shown")
    parser.add_argument("--page", help="write an HTML page with the pictures here")
    options = parser.parse_args(arguments)
    if len(options.pictures) < 2 or not options.pictures[-1].strip():
        raise BadData('say what to search for: emblema search FOLDER "a red fish"')
    paths, words = _pictures(options.pictures[:-1]), options.pictures[-1]
    model = _load(options)
    z, errors = model.try_images(paths)
    for i, reason in errors:
        print(f"emblema: {paths[i]} left out: {reason}", file=sys.stderr)
    score = (z @ model.embed_texts([words])[0]).nan_to_num(nan=-2)
    order = score.argsort(descending=True, stable=True)[: min(options.top, len(paths) - len(errors))].tolist()
    found = [{"path": str(paths[i]), "score": float(score[i])} for i in order]
    if not as_json:
        _table(("picture", "score"), [(f["path"], f"{f['score']:.3f}") for f in found], words)
    if options.page:
        from emblema.report import page

        shown = [{"image": f["path"], "name": Path(f["path"]).name, "score": f["score"]} for f in found]
        print(f"page: {page.write(options.page, title=words, pictures=shown)}", file=sys.stderr)
    _all_broken(paths, errors)
    return found


def _pictures(places: Sequence[str]) -> list[Path]:
    from emblema.data.catalog import PICTURES

    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not files:
                raise BadData(f"no pictures in {place} (looked for {', '.join(PICTURES)})")
            found += files
        elif place.exists():
            found.append(place)
        else:
            raise BadData(f"no file or folder {place}")
    return found


def _all_broken(paths: Sequence[Any], errors: Sequence[tuple[int, str]]) -> None:
    if len(errors) == len(paths):
        raise BadData(f"none of the {len(paths)} pictures can be read; the first: {errors[0][1]}")


def _words(text: str) -> list[str]:
    """Comma-separated words, or the lines of a text file."""
    if text.endswith(".txt"):
        if not Path(text).exists():
            raise BadData(f"no file {text}: give a text file with a label a line, or the labels themselves")
        return [line for line in map(str.strip, Path(text).read_text(encoding="utf-8").splitlines()) if line]
    return [word for word in (w.strip() for w in text.split(",")) if word]


def _templates(text: str | None) -> list[str] | None:
    if text is None:
        return None
    from emblema.tasks.wording import read_templates

    return read_templates(text) if text.endswith(".txt") else [text]


# -- systems and tasks: settings are dataclass fields --------------------------------------------------------


@dataclass(kw_only=True)
class PretrainRun:
    """What a run is besides its system."""

    data: str = "emblems"  # a name from `emblema list data`, or a path
    split: str = "train"  # of the data, where it has splits
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
    model: str = "default"  # a name from `emblema list models`, or a checkpoint folder
    system: str = ""  # name in the result line; default: how the model is used
    out: str = ""  # append the result line to this file
    page: str = ""  # write an HTML page here
    device: str = "auto"
    precision: str = "auto"  # "fp32", "bf16", or "auto": bf16 where the hardware has it
    batch_size: int = 64
    cache: str | None = None  # folder of the feature cache


def _options(verb: str, run: type, cls: type, arguments: list[str]) -> tuple[Any, Any]:
    """(run, system or task) from the command line; `--preset NAME` starts from one of the system's presets."""
    import tyro

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


def _system(verb: str, arguments: list[str], kind: str) -> tuple[str, list[str]]:
    """The leading name, or the verb's help."""
    if not arguments or arguments[0].startswith("-"):
        known = [c["name"] for c in _cards(kind)]
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
    name, rest = _system("pretrain", arguments, "pretrain")
    cls = find.find("pretrain", name)
    run, method = _options(f"pretrain {name}", PretrainRun, cls, rest)
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
        save_model=lambda vlm, folder: _save(vlm, folder, method, run.data),
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


def _save(vlm: Any, folder: Path, method: Any, data_name: str) -> None:
    """The finished model as a folder that `--model` takes."""
    from emblema.core.preprocess import Preprocess
    from emblema.data.templates import templates_for
    from emblema.frameworks.checkpoint import save
    from emblema.frameworks.two_tower import architecture

    config = method.config() if hasattr(method, "config") else architecture(method.arch)
    save(folder, vlm, config, Preprocess(size=vlm.image.image_size), list(templates_for(data_name)))


def _while_training(name: str) -> Any:
    """Zero-shot accuracy on the validation split; the test split is never handed to a run."""
    from emblema.core.preprocess import Preprocess
    from emblema.data import catalog
    from emblema.model import Model
    from emblema.tasks.zero_shot import ZeroShot

    records = catalog.load(name)
    held_out = records.split("val") if "val" in records.splits else records

    def evaluate(vlm: Any, step: int) -> dict[str, float]:
        twin = copy.deepcopy(vlm)  # a model freezes what it is given
        model = Model(twin, Preprocess(size=vlm.image.image_size), precision="fp32", cache=False)
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
    name, rest = _system("plan pretrain", rest, "pretrain")
    cls = find.find("pretrain", name)
    run, method = _options(f"plan pretrain {name}", PlanRun, cls, rest)
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

    name, rest = _system("evaluate", arguments, "tasks")
    if name not in tasks.names():
        raise UnknownName("task", name, tasks.names())
    cls = tasks.find(name)
    run, task = _options(f"evaluate {name}", EvaluateRun, cls, rest)
    from emblema.data import catalog
    from emblema.engine.features import identity, weights_id
    from emblema.model import load
    from emblema.report import page, result

    records = catalog.load(run.data)
    tested = _split(records, run.split)
    others = {}
    if "train split" in cls.card.needs:
        others = {"train": records.split("train"), "val": records.split("val") if "val" in records.splits else None}
    model = load(run.model, device=run.device, precision=run.precision, batch_size=run.batch_size, cache=run.cache)
    found = task.evaluate(model, tested, run.split, **others)
    line = result.line(
        found,
        system=run.system or ("linear-probe" if others else "zero-shot"),
        model=model.name,
        fields={"task": _resolved(task), "precision": model.precision, "preprocess": model.preprocess.to_json()},
        data_hash=identity(tested),
        weights=weights_id(model.vlm),
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
        _table(("metric", "value [95 % interval]"), rows, f"{line['protocol']['name']} ({line['protocol']['hash']})")
        for note in line["notes"]:
            print(note)
    return line | {"tables": found["tables"]}


def _split(records: Any, split: str) -> Any:
    """A named split; data without splits is taken whole."""
    return records.split(split) if records.splits or split not in ("test", "all") else records


def _resolved(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _resolved(getattr(value, f.name)) for f in fields(value)}
    return value


def report(arguments: list[str], as_json: bool) -> Any:
    parser = _parser("report", "Tables from result lines; one table a protocol.")
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
        print(tables.results(lines, _words(options.metrics)))
    return lines


VERBS = {
    "list": list_,
    "show": show,
    "data": data,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "classify": classify,
    "search": search,
    "report": report,
    "plan": plan,
}
