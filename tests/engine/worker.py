"""Runs that a test starts as processes of their own, to kill them or to have several.

worker.py train OUT [kill-write=STEP] [stop=STEP]     worker.py gradients OUT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint as checkpointed

sys.path.insert(0, str(Path(__file__).parent))
from toys import Pairs, Squares, canvas, view

from emblema.core.gather import rank, world_size
from emblema.core.method import Optim
from emblema.engine import checkpoint, distributed, seed
from emblema.engine.grad_cache import cached_gradients
from emblema.engine.loader import Loader
from emblema.engine.precision import autocast
from emblema.engine.train import Interrupted, run_pretraining

STEPS = 32


def train(out, *, dropout=0.1, noise=0.1, **options):
    """The run that all tests of resuming share: mid-epoch checkpoints, dropout, EMA, views, batch norm."""
    optim = Optim(lr=3e-3, batch_size=12, precision="fp32", ema=0.9, clip_norm=1.0)
    method = Pairs(optim=optim, dropout=dropout, noise=noise, batch_norm=True)
    settings = {
        "canvas": canvas,
        "view": view,
        "steps": STEPS,
        "save_every": 7,
        "quiet": True,
        "save_model": lambda vlm, folder: None,
    }
    return run_pretraining(method, Squares(50), out, **(settings | options))


def one_step(chunk=None):
    """Averaged gradients and losses of one step from common weights, whatever the number of processes."""
    method = Pairs(dropout=0.0, batch_norm=chunk is None)
    with seed.forked(0, "weights"):
        module = distributed.joint_batch_norm(method.build()).train()
    loader = Loader(
        dataset=Squares(), batch_size=24, size=16, views=1, canvas=canvas, view=view, rank=rank(), world=world_size()
    )
    batch = loader.batch(1)
    if chunk is None:
        losses = method.losses(module, batch)
        sum(losses.values()).backward()
    else:
        losses = cached_gradients(chunk, lambda: autocast("fp32"))(method, module, batch)
    distributed.average_gradients(list(module.parameters()))
    losses = distributed.mean_of({k: v.item() for k, v in losses.items()})
    return losses, {n: p.grad for n, p in module.named_parameters()}, dict(module.named_buffers())


def main(task, out, *options):
    torch.set_num_threads(1)
    options = dict(o.split("=") for o in options)
    if task == "gradients":
        with distributed.processes() as (own, _):
            checkpointed(torch.sin, torch.ones(1, requires_grad=True), use_reentrant=False)  # imports much of torch
            results = {chunk: one_step(chunk) for chunk in (None, 5)}
            if own == 0:
                torch.save(results, out)
            train(Path(out).with_name("run"), dropout=0.0, noise=0.0, evaluate=stop, evaluate_every=10)
        return
    if "kill-write" in options:
        flush, fatal = checkpoint._flush, f".partial-{int(options['kill-write']):06d}"

        def die(path):
            if fatal in str(path) and path.name == "optimizer.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
            flush(path)

        checkpoint._flush = die
    train(out)


def stop(vlm, step):
    """An evaluation in which the first process is told to end."""
    if step == 10:
        os.kill(os.getpid(), signal.SIGTERM)
    return {"score": 0.5}


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Interrupted as error:
        print(error)
    print("threads:", *(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))
