"""A pre-training run: folder, data, checkpoints, logs and evaluation around the loop of `optimise.py`.

RUN/config.json                 what was asked for, resolved
RUN/log.jsonl                   one line a step, evaluation and warning
RUN/checkpoints/step-000123/    the last two states; the same command continues from the newest
RUN/model/                      the finished model
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emblema.core.batch import Batch, Dataset
from emblema.core.errors import BadCheckpoint, BadData, EmblemaError
from emblema.core.gather import rank
from emblema.core.method import Optim
from emblema.core.preprocess import Preprocess
from emblema.engine import checkpoint, distributed, seed
from emblema.engine.diagnose import NotFinite, Watch
from emblema.engine.loader import CANVAS_MODE, Loader
from emblema.engine.logs import Log
from emblema.engine.optimise import State, Step, optimise
from emblema.engine.precision import resolved
from emblema.frameworks.vlm import VLM

Evaluate = Callable[[VLM, int], dict[str, float]]
SaveModel = Callable[[VLM, Path], None]


class Interrupted(EmblemaError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and saved its state."""


def run_pretraining(
    method: Any,
    data: Dataset,
    out: Path | str | None = None,
    *,
    resume: bool = True,
    random_seed: int = 0,
    steps: int | None = None,
    save_every: int | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    log_every: int = 1,
    progress: bool | None = None,
    tensorboard: bool = False,
    quiet: bool = False,
    tokenizer: Any = None,
    save_model: SaveModel | None = None,
    **loading: Any,
) -> VLM:
    """Train a `Pretrain` method on image-text pairs; returns the model (the averaged one with `optim.ema`).

    Args:
        out: the run's folder; None keeps nothing on disk. With `resume`, a run found there is continued.
        steps: overrides `method.optim.steps` and `epochs`.
        save_every: steps between checkpoints; None: a fiftieth of the run, at least 50.
        evaluate: called with the model in evaluation mode and the step, on the first process; its scores are logged.
        evaluate_every: steps between evaluations; None: at the end only.
        tokenizer: for a text tower that has none; None: trained on the captions.
        save_model: writes the finished model into a folder; None: `emblema.frameworks.checkpoint.save`, with the shape
            from `method.config()`.
        loading: further settings of `Loader`.

    Under `torchrun` the batch is joint: the same command gives the same gradients on one process and on many.
    """
    with distributed.processes() as (own, world):
        run = None if out is None else Path(out)
        data = method.prepare(data)
        if "texts" in method.card.needs and len(data) and data[0].text is None:
            raise BadData(
                f"{data.card.name} has no captions ({data[0].key!r} has none), {method.card.name} learns from pairs: "
                "take another set, or unicl, which writes class names into templates"
            )
        module = _build(method, random_seed, data, tokenizer)
        vlm: VLM = module["vlm"]  # type: ignore[assignment]
        size = loading.pop("size", None) or getattr(vlm.image, "image_size", 224)
        settings = {"views": method.views, "seed": random_seed, "batch_size": method.optim.batch_size}
        loading = settings | method.loading() | loading
        loader = Loader(dataset=data, size=size, rank=own, world=world, **loading)
        optim: Optim = method.optim
        total = steps or optim.total(loader.epoch_steps)
        if run is None or checkpoint.latest(run) is None:
            method.begin(module, data)
        state = State(module, optim, method.rate)
        config = _config(method, loader, total, random_seed) | {"tokenizer": _tokenizer_mark(vlm, data)}
        start = _resume(run, state, config, resume)
        distributed.share_weights(module)
        if state.ema is not None:
            distributed.share_weights(state.ema)
        distributed.joint_batch_norm(module)

        first = own == 0
        log = Log(
            run / "log.jsonl" if run and first else None,
            total,
            start=start,
            every=log_every,
            progress=progress,
            tensorboard=tensorboard,
            quiet=quiet or not first,
        )
        watch = Watch(loader.batch_size, lambda: vlm.scale.detach())
        save_every = save_every or max(total // 50, 50)

        def save(step: int, last: bool) -> None:
            if run is None or not first:
                return
            try:
                checkpoint.save(run, step, state, {"config": config, "world": world})
            except checkpoint.NotSaved as error:
                if last:
                    raise
                log.warning(step, f"{error} The run goes on.")

        def score(step: int) -> None:
            if evaluate is None or not first:
                return
            with _evaluation(state, vlm) as model, seed.forked(random_seed, "evaluation", step):
                log.scores(step, evaluate(model, step))

        with _stop_signals() as stopped:

            def on_step(step: Step) -> None:
                log.step(step, vlm.scale.item())
                for text in watch(step):
                    log.warning(step.number, text)
                stop = any(distributed.every(bool(stopped)))
                ended = step.number == total
                if ended or (evaluate_every and step.number % evaluate_every == 0):
                    score(step.number)
                if ended or stop or step.number % save_every == 0:
                    save(step.number, last=ended or stop)
                if stop and not ended:
                    raise Interrupted(f"stopped after step {step.number} of {total}; the same command resumes")

            try:
                log.event("start", start, total=total, world=world, precision=config["precision"])
                where = f"step {start} of {total}" if start else f"{total} steps"
                log.say(f"{method.card.name}: {where}, batch {loader.batch_size}, {config['precision']}")
                batches = _on_device(loader.iterate(start, total), distributed.device())
                optimise(
                    method,
                    module,
                    batches,
                    optim,
                    total_steps=total,
                    start=start,
                    random_seed=random_seed,
                    state=state,
                    on_step=on_step,
                )
            except NotFinite as error:
                log.event("not finite", error.step, text=str(error))
                raise
            finally:
                log.close()
        if state.ema is not None:
            module.load_state_dict(state.ema.module.state_dict())
        vlm.eval()
        if run is not None and first:
            _save(vlm, method, data, run / "model", save_model)
        distributed.barrier()
        return vlm


def _build(method: Any, random_seed: int, data: Dataset, tokenizer: Any) -> nn.ModuleDict:
    """The method's module with the start weights of this seed, on this process's device."""
    with seed.forked(random_seed, "weights"):
        module = method.build()
    text = module["vlm"].text
    if hasattr(text, "tokenizer") and (tokenizer is not None or text.tokenizer is None):
        text.tokenizer = tokenizer or _train_tokenizer(data, text)
    return module.to(distributed.device())


def _train_tokenizer(data: Dataset, text: Any) -> Any:
    from emblema.encoders.tokenizers import train_bpe

    records = (data[i] for i in range(len(data)))
    return train_bpe((t for r in records for t in (r.text, *r.texts) if t is not None), text.config.vocab_size)


def _tokenizer_mark(vlm: VLM, data: Dataset) -> list[int] | None:
    """What the tokenizer makes of the first caption: another tokenizer shows."""
    tokenizer, text = getattr(vlm.text, "tokenizer", None), data[0].text
    return None if tokenizer is None or text is None else tokenizer([text], 4096).ids[0].tolist()


def _config(method: Any, loader: Loader, total: int, random_seed: int) -> dict[str, Any]:
    """All that decides on the numbers of a run. How many processes and threads there are does not."""
    fields = asdict(method)
    fields["optim"]["precision"] = precision = resolved(method.optim.precision, distributed.device())
    data = {"name": loader.dataset.card.name, "records": len(loader.dataset), "hash": loader.fingerprint()}
    view = {k: _named(getattr(loader, k)) for k in ("view", "further_view", "canvas", "text_view", "make_batch")}
    view |= {k: getattr(loader, k) for k in ("size", "canvas_size", "views", "captions")}
    config = {
        "system": method.card.name,
        "fields": fields,
        "data": data,
        "pictures": view,
        "batch_size": loader.batch_size,
        "steps": total,
        "seed": random_seed,
        "precision": precision,
    }
    return json.loads(json.dumps(config, default=str))


def _named(value: Any) -> str | None:
    """A function by its name, an object by its fields."""
    return None if value is None else getattr(value, "__qualname__", None) or repr(value)


def _resume(run: Path | None, state: State, config: dict[str, Any], resume: bool) -> int:
    """Continue from the newest checkpoint of the folder, if there is one: the number of steps done."""
    if run is None:
        return 0
    folder = checkpoint.latest(run)
    if folder is not None and not resume:
        raise EmblemaError(f"{run} holds a run (see {folder.name}): resume it, choose another folder, or remove it")
    step = 0
    if folder is not None:
        info = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        unlike = checkpoint.differences(info["config"], config)
        if unlike:
            raise BadCheckpoint(
                f"{run} holds another run, which these settings would not continue:\n  "
                + "\n  ".join(unlike[:10])
                + "\nUse the same settings to resume it, or another folder to start anew."
            )
        step = checkpoint.load(folder, state)["step"]
    steps = distributed.every(step)
    if len(set(steps)) > 1:
        raise BadCheckpoint(f"the processes found checkpoints of steps {steps}: {run} must be on a shared disk")
    if rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(run)
        checkpoint.write_json(run / "config.json", config)
    return step


def _on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    try:
        for batch in batches:
            if device.type != "cpu":
                batch.images = None if batch.images is None else batch.images.to(device, non_blocking=True)
                batch.labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
                batch.views = [v.to(device, non_blocking=True) for v in batch.views]
                batch.targets = {k: v.to(device, non_blocking=True) for k, v in batch.targets.items()}
            yield batch
    finally:
        batches.close()  # type: ignore[attr-defined]


@contextmanager
def _evaluation(state: State, vlm: VLM) -> Iterator[VLM]:
    """The model that would be saved now, in evaluation mode and without gradients."""
    model: VLM = vlm if state.ema is None else state.ema.module["vlm"]
    training = state.module.training
    state.module.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        state.module.train(training)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM so that the step in hand can be finished and saved; a second one ends at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, _: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def preprocess_of(vlm: VLM) -> Preprocess:
    """How pictures were prepared while the model was trained: evaluate and save it with the same."""
    return Preprocess(size=getattr(vlm.image, "image_size", 224), mode=CANVAS_MODE)


def _save(vlm: VLM, method: Any, data: Dataset, folder: Path, save_model: SaveModel | None) -> None:
    """Write the finished model as a checkpoint folder that `emblema.load` reads."""
    if save_model is not None:
        save_model(vlm, folder)
        return
    from emblema.data.templates import templates_for
    from emblema.frameworks import checkpoint as folders

    folders.save(folder, vlm, method.config(), preprocess_of(vlm), list(templates_for(data.card.name)))
