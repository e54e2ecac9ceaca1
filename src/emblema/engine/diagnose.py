"""Why a run does not learn: the first NaN by module and step, and warnings for the usual silent failures."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.errors import EmblemaError
from emblema.core.gather import rank
from emblema.core.method import Method
from emblema.engine import seed

if TYPE_CHECKING:
    from emblema.engine.optimise import Step


class NotFinite(EmblemaError):
    """A loss or gradient is NaN or infinite. Nothing was changed by the failing step."""

    def __init__(self, step: int, text: str):
        super().__init__(text)
        self.step = step


class Replay:
    """What is needed to run a step's forward pass again: its number, its batch and its random state."""

    def __init__(self, random_seed: int, number: int, batch: Batch):
        self.seed, self.number, self.batch = random_seed, number, batch
        self.drawn = None if batch.generator is None else batch.generator.get_state()

    def losses(self, method: Method, module: nn.Module) -> dict[str, Tensor]:
        if self.drawn is not None and self.batch.generator is not None:
            self.batch.generator.set_state(self.drawn)
        with seed.forked(self.seed, "step", self.number, rank()):
            return method.losses(module, self.batch)


def not_finite(
    method: Method,
    module: nn.Module,
    replay: Replay,
    losses: dict[str, float],
    norm: float,
    autocast: AbstractContextManager[object],
) -> NotFinite:
    """Run the failing step forward again, watch every module, and say where the first bad number came from."""
    bad_weights = [n for n, p in module.named_parameters() if not p.isfinite().all()]
    found: list[str] = []
    with _watched(module, lambda name, inputs_bad: found.append(_says(name, inputs_bad))), autocast, torch.no_grad():
        terms = replay.losses(method, module)
    bad_terms = [k for k, v in terms.items() if not v.isfinite()]
    bad_gradients = [n for n, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad_weights:
        where, cause = f"the weights of {_few(bad_weights)} are not finite", "the start weights are broken"
    elif found:
        where, cause = found[0], "too high a learning rate, or a broken input (see the keys)"
    elif bad_terms:
        where = f"all modules gave finite numbers, the loss term {_few(bad_terms)} did not"
        cause = "a logarithm or division of zero in the loss, or an unbounded logit scale"
    else:
        where = f"the forward pass is finite, the gradient of {_few(bad_gradients) or 'some parameter'} is not"
        cause = "a square root, norm or division at zero in backward, or bf16 overflow: try precision='fp32'"
    return NotFinite(
        replay.number + 1,
        f"step {replay.number + 1}: {where}.\n"
        f"  losses: {', '.join(f'{k}={v:.4g}' for k, v in losses.items())}; gradient norm {norm:.4g}\n"
        f"  samples: {_few(replay.batch.keys)}\n"
        f"  likely: {cause}.\n"
        "  The weights before this step are in the last checkpoint, nothing was overwritten. "
        "Lower optim.lr, lengthen optim.warmup or set optim.clip_norm, and start anew in another folder; the same "
        "settings fail at the same step again.",
    )


def _says(name: str, inputs_bad: bool) -> str:
    what = "was handed numbers that are not finite" if inputs_bad else "gave the first number that is not finite"
    return f"module {name} {what}"


class _watched:
    """Hooks on all modules that report, in order of execution, those whose output is not finite."""

    def __init__(self, module: nn.Module, report: Callable[[str, bool], None]):
        self.module, self.report = module, report

    def __enter__(self) -> None:
        self.handles = [
            m.register_forward_hook(self._hook(n or "(whole)")) for n, m in self.module.named_modules() if m is not None
        ]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if not all(t.isfinite().all() for t in _tensors(output)):
                self.report(name, not all(t.isfinite().all() for t in _tensors(inputs)))

        return hook


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _few(names: list[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


class Watch:
    """Sees each step and returns warnings, each of them once."""

    WINDOW = 50  # steps

    def __init__(self, batch_size: int, scale: Callable[[], Tensor] | None = None, total_steps: int = 0):
        self.batch_size, self.scale, self.total = batch_size, scale, total_steps
        self.told: set[str] = set()
        self.stalled: dict[str, int] = {}
        self.seen, self.repeated = 0, 0.0
        self.scales: list[float] = []

    def __call__(self, step: Step) -> list[str]:
        self.seen += 1
        found = {
            "unused": self._unused(step),
            "duplicates": self._duplicates(step),
            "ln B": self._stall(step),
            "scale": self._scale(),
        }
        new = {k: v for k, v in found.items() if v and k not in self.told}
        self.told |= set(new)
        return list(new.values())

    def _unused(self, step: Step) -> str:
        if not step.without_gradient:
            return ""
        return (
            f"{len(step.without_gradient)} parameters got no gradient from the first step and will not change: "
            f"{_few(step.without_gradient)}. Likely: the loss does not use that part, or it is detached. "
            "If intended, freeze it with requires_grad_(False)."
        )

    def _duplicates(self, step: Step) -> str:
        self.repeated += step.duplicates
        share = self.repeated / self.seen
        if self.seen < 20 or share < 0.05:
            return ""
        return (
            f"{share:.0%} of the captions of a batch repeat another one. A contrastive loss pushes such pairs apart "
            "although they match. Use more varied captions, "
            "or a smaller batch."
        )

    def _stall(self, step: Step) -> str:
        chance = math.log(self.batch_size)
        for name, value in step.losses.items():
            near = min(abs(value - chance), abs(value - 2 * chance) / 2) < 0.01 * chance
            self.stalled[name] = self.stalled.get(name, 0) + 1 if near else 0
            if self.stalled[name] >= self.WINDOW and self.batch_size > 2:
                return (
                    f"loss {name!r} has stayed at ln(batch) = {chance:.3f} for {self.WINDOW} steps: the model tells no "
                    "pair from another. Likely: images and texts are paired wrongly, all texts are cut to "
                    "the same words (see the tokenizer), the learning rate is far too high (features collapsed) "
                    "or too low, or both towers are frozen."
                )
        return ""

    def _scale(self) -> str:
        if self.scale is None:
            return ""
        self.scales = [*self.scales, float(self.scale())][-self.WINDOW :]
        if len(self.scales) < self.WINDOW:
            return ""
        if min(self.scales) >= 99.9:
            return (
                f"the logit scale has been at its bound of {self.scales[-1]:.0f} for {self.WINDOW} steps. Likely: the "
                "data is learnt by heart or the learning rate is too high; watch the zero-shot accuracy, not the loss."
            )
        if max(self.scales) == min(self.scales):
            return (
                f"the logit scale has not moved from {self.scales[-1]:.3g} for {self.WINDOW} steps. Likely: it is "
                "frozen, clamped outside its bounds, or the loss does not use it."
            )
        return ""
