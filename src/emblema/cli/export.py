"""The verb `export`: a fitted system, or a model and its labels, as files that stand alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emblema.cli.common import parser_of, table, words
from emblema.core.errors import BadData


def export(arguments: list[str], as_json: bool) -> Any:
    parser = parser_of("export", "A fitted system as safetensors with its model, and as an ONNX graph.")
    parser.add_argument("run", help="a folder that `transfer --out` wrote, or a model (name or folder) with --labels")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--onnx", action="store_true", help="also model.onnx, from pixels to logits (extra: export)")
    parser.add_argument("--labels", default="", help="of a model: comma-separated, or a text file with one a line")
    parser.add_argument("--model", default="", help="the model that RUN was fitted on, where its name does not find it")
    options = parser.parse_args(arguments)
    from emblema.core.errors import BadCheckpoint
    from emblema.engine import export as engine
    from emblema.model import load_any
    from emblema.transfer.base import load as load_run

    fitted: Any = load_run(options.run, options.model) if options.model else load_any(options.run)
    out, labels = Path(options.out), words(options.labels)
    if hasattr(fitted, "module_"):
        if labels:
            raise BadData(f"{options.run} was fitted on its own classes: leave --labels out")
        source = options.model or (str(own) if (own := Path(options.run) / "model").is_dir() else fitted._model.name)
        engine.save(fitted, out, source)
        whole, names, model = engine.Whole(fitted), fitted.class_names_, fitted._model
    elif hasattr(fitted, "class_vectors"):
        if not labels:
            raise BadData(f"{options.run} is a model of any words: give the --labels that it is to tell apart")
        if not options.onnx:
            raise BadData("a model is safetensors already: add --onnx for a graph that tells the labels apart")
        model, names = fitted, labels
        whole = engine.ZeroShot(model.vlm, model.class_vectors(labels))
    else:
        raise BadCheckpoint(f"{options.run} holds a student of dense tasks: only classifiers are exported")
    document: dict[str, Any] = {"folder": str(out), "class_names": list(names), "files": []}
    if options.onnx:
        found = engine.to_onnx(whole, out / "model.onnx", model.preprocess.size, names, model.preprocess.to_json())
        document["parity"] = vars(found)
    document["files"] = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    if not as_json:
        sizes = [(f, f"{(out / f).stat().st_size / 1e6:.1f} MB") for f in document["files"]]
        table(("file", "size"), sizes, str(out))
        if options.onnx:
            print(
                f"parity on {found.pictures} random pictures: logits differ by at most {found.largest:.1e} "
                f"of {found.scale:.1f}, the same class for {found.same_class:.0%}"
            )
    return document
