"""The command line: `emblema VERB`. Torch is imported inside the verbs that need it, never for `list` or `--help`.

Settings of a system or task are its dataclass fields. With `--json` standard output holds one JSON document and
nothing else; progress, tables and warnings go to standard error. Exit code 1 means: a check found faults; 2: what was
asked cannot be done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

from emblema import __version__
from emblema.cli.bench import bench
from emblema.cli.caption import caption
from emblema.cli.common import Fails
from emblema.cli.dense import detect, segment
from emblema.cli.distill import distill
from emblema.cli.export import export
from emblema.cli.look import data, list_, show
from emblema.cli.pictures import classify, search
from emblema.cli.runs import evaluate, plan, pretrain, report
from emblema.cli.transfer import transfer
from emblema.core.errors import EmblemaError, UnknownName
from emblema.engine.allocator import keep_freed

HELP = """\
Vision-language models for vision tasks: pre-training, transfer, distillation and evaluation.

with your own pictures
  classify FOLDER --labels "cat,dog,red car"     which of these words fits each picture
  search FOLDER "a red fish"                     pictures that fit the words, best first
  segment FOLDER --labels "cat,dog" --out DIR    pictures with what is where painted over
  detect FOLDER --labels "cat,dog" --out DIR     pictures with boxes drawn in
  caption FOLDER --model RUN                     a sentence for each picture, by a model of coca

systems of the survey
  list [pretrain|transfer|distill|data|tasks|protocols|models] [--by section]
  show NAME                                      card, equation, settings, command
  pretrain SYSTEM --data emblems --out runs/x    SYSTEM is a name or a path to your own .py file
  transfer SYSTEM --data FOLDER --shots 16       adapt to labelled pictures; SYSTEM may be all, a family, or a,b,c
  distill SYSTEM --data emblem-scenes --out RUN  a segmenter or detector learns from a model; then --model RUN
  export RUN --out DIR --onnx                    a fitted system as safetensors with its model, and as a graph
  plan pretrain SYSTEM --batch 32768             parameters and memory before a run

measuring
  evaluate TASK --data emblem-objects            zero-shot, retrieval, detection, segmentation, ...
  bench paradigms                                the survey's five paradigms, accuracy against labels
  report FILES                                   tables from result lines
  data list|show|check|build                     the data sets

`emblema VERB --help` shows the options of a verb, `emblema pretrain SYSTEM --help` all settings of a system.
Every verb but build takes --json: one JSON document on standard output and nothing else."""


VERBS = {
    "list": list_,
    "show": show,
    "data": data,
    "pretrain": pretrain,
    "transfer": transfer,
    "distill": distill,
    "evaluate": evaluate,
    "classify": classify,
    "search": search,
    "segment": segment,
    "detect": detect,
    "caption": caption,
    "bench": bench,
    "report": report,
    "plan": plan,
    "export": export,
}


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
    keep_freed()
    document = VERBS[verb](rest, out is not None)
    if out is not None:
        print(json.dumps(_plain(document), ensure_ascii=False, allow_nan=False), file=out, flush=True)
    return 1 if isinstance(document, Fails) else 0


def _plain(value: Any) -> Any:
    from emblema.report.result import plain

    return plain(value)
