"""Gradient caching: the exact gradient of a large contrastive batch in the memory of a small one.

A contrastive loss compares all samples, but each sample is encoded alone. So (1) encode the batch in chunks without a
graph, (2) compare the whole batch, which gives the gradient of each *feature*, (3) encode each chunk again, now with
a graph, and hand it the gradients of its features. Each tower is cached alone, so the chunk may be as large as one
tower allows. Dropout draws the same masks in (1) and (3): random states are kept and replayed.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.errors import EmblemaError
from emblema.core.method import Method

Autocast = Callable[[], AbstractContextManager[object]]


def cached_gradients(chunk: int, autocast: Autocast) -> Callable[[Any, nn.Module, Batch], dict[str, Tensor]]:
    """A function of (method, module, batch) that adds the batch's gradients to the module and returns its losses."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a tower must see at least one sample at once")

    def gradients(method: Any, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        check(method)
        encoders = method.encoders(module)
        cuts = [(i, min(i + chunk, len(batch))) for i in range(0, len(batch), chunk)]
        states: dict[tuple[str, int], _Random] = {}
        features: dict[str, Tensor] = {}
        # Weights that autocast casts without a graph must not serve the second pass: one context a pass.
        with _no_batch_norm(module), torch.no_grad(), autocast():
            for name, encode in encoders.items():
                rows = []
                for start, stop in cuts:
                    states[name, start] = _Random(batch)
                    rows.append(encode(batch.rows(start, stop)))
                features[name] = torch.cat(rows)
        leaves = {name: z.detach().requires_grad_() for name, z in features.items()}
        with autocast():
            losses = method.compare(module, leaves, batch)
        torch.stack([v.float() for v in losses.values()]).sum().backward()
        after = _Random(batch)
        for name, encode in encoders.items():
            grad = leaves[name].grad
            for start, stop in cuts if grad is not None else []:
                states[name, start].restore(batch)
                with autocast():
                    z = encode(batch.rows(start, stop))
                if not z.requires_grad:  # a frozen tower
                    break
                assert grad is not None
                z.backward(grad[start:stop])
        after.restore(batch)
        return {k: v.detach() for k, v in losses.items()}

    return gradients


def check(method: Method) -> None:
    """Refuse a method whose loss hides how samples are encoded."""
    owner = {n: next((c for c in type(method).__mro__ if n in vars(c)), None) for n in ("encoders", "losses")}
    encoders, losses = owner["encoders"], owner["losses"]
    if encoders is None or losses is None or encoders is losses or not issubclass(encoders, losses):
        raise EmblemaError(
            f"{type(method).__name__} defines losses() as a whole, so its batch cannot be cut: optim.chunk needs "
            "encoders() and compare(). Leave chunk unset, or take a smaller batch."
        )


class _Random:
    """The state of every generator that an encoder may draw from."""

    def __init__(self, batch: Batch):
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self.own = None if batch.generator is None else batch.generator.get_state()

    def restore(self, batch: Batch) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.own is not None and batch.generator is not None:
            batch.generator.set_state(self.own)


@contextmanager
def _no_batch_norm(module: nn.Module) -> Iterator[None]:
    """Batch normalisation that trains inside an encoder is an error: a chunk's statistics are not the batch's."""
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            handles.append(part.register_forward_pre_hook(_refuse(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse(name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        raise EmblemaError(
            f"{name} normalises over the batch, so an encoder gives other features for a chunk than for the whole "
            "batch and cached gradients would be wrong. Use an architecture without batch normalisation in its "
            'towers (for instance stem="patch"), or leave optim.chunk unset. Heads used in compare() may have it.'
        )

    return hook
