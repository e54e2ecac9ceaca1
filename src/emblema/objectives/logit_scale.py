"""The learned temperature: one scalar, many conventions.

The survey calls tau a hyper-parameter; in code it is nearly always learned. Systems differ in what is stored
(the logarithm of 1 / tau, or tau itself), where it starts, and whether the bound is applied to the parameter
after each step or to the value in each forward pass (which stops the gradient at the bound).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn


class LogitScale(nn.Module):
    """scale = 1 / tau; `forward()` returns it as a 0-dim tensor.

    Args:
        param: "log" stores log(1 / tau), "raw" stores tau, "constant" stores tau and learns nothing.
        init: the initial **tau**, for every `param`.
        minimum, maximum: bounds of the **scale** 1 / tau, for every `param`; None for no bound.
        learnable: False freezes "log" and "raw" too.
        bound_at: "step": `bound_()` limits the parameter after each optimiser step; "forward": the returned
            value is limited, and outside the bounds the parameter gets no gradient.

    The parameter is 0-dim: optimisers built by emblema never decay those; exclude it from decay in your own.

    Raises:
        ValueError: tau <= 0, bounds that exclude the initial value, or an unknown option.
    """

    PRESETS: dict[str, dict[str, Any]] = {
        "clip": {"param": "log", "init": 0.07, "minimum": 1.0, "maximum": 100.0},
        "align": {"param": "raw", "init": 1.0, "maximum": 1000.0},  # the bound keeps tau from crossing zero
        "albef": {"param": "raw", "init": 0.07, "minimum": 2.0, "maximum": 1000.0},
        "fiber": {"param": "raw", "init": 0.07, "minimum": 1.0, "maximum": 1000.0},
        "zerovl": {"param": "constant", "init": 0.02},
        "siglip": {"param": "log", "init": 0.1},
        "unicl": {"param": "log", "init": math.exp(-1)},
        "groupvit": {"param": "log", "init": 0.07, "maximum": 100.0, "bound_at": "forward"},
        "declip": {"param": "log", "init": math.exp(-3), "minimum": math.exp(3), "maximum": 100.0},
        "otter": {"param": "log", "init": math.exp(-3.9), "minimum": 1.0, "maximum": 100.0},
        "glip": {"param": "log", "init": 1.0},  # stores -g of 1 / exp(g)
    }

    def __init__(
        self,
        param: Literal["log", "raw", "constant"] = "log",
        init: float = 0.07,
        minimum: float | None = None,
        maximum: float | None = None,
        learnable: bool = True,
        bound_at: Literal["forward", "step"] = "step",
    ) -> None:
        super().__init__()
        if param not in ("log", "raw", "constant") or bound_at not in ("forward", "step"):
            raise ValueError(
                f"LogitScale(param={param!r}, bound_at={bound_at!r}): expected param 'log', 'raw' or "
                "'constant', and bound_at 'forward' or 'step'."
            )
        low, high = minimum or 0.0, maximum or math.inf
        if init <= 0 or not low * (1 - 1e-6) <= 1 / init <= high * (1 + 1e-6):
            raise ValueError(
                f"LogitScale(init={init}): expected a temperature > 0 whose scale 1 / init lies in "
                f"[{minimum}, {maximum}]. Pass tau, not the scale and not its logarithm."
            )
        self.param, self.minimum, self.maximum, self.bound_at = param, minimum, maximum, bound_at
        value = torch.tensor(math.log(1 / init) if param == "log" else init)
        if param == "constant":
            self.register_buffer("value", value)
        else:
            self.value = nn.Parameter(value, requires_grad=learnable)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LogitScale:
        """The convention of a published system: see `PRESETS`."""
        if name not in cls.PRESETS:
            raise ValueError(f"no LogitScale preset {name!r}, expected one of {', '.join(cls.PRESETS)}.")
        return cls(**(cls.PRESETS[name] | changes))

    def forward(self) -> Tensor:
        scale = self.value.exp() if self.param == "log" else 1 / self.value  # []
        if self.bound_at == "forward" and self._bounded:
            scale = scale.clamp(self.minimum, self.maximum)
        return scale

    @torch.no_grad()
    def bound_(self) -> None:
        """Bring the parameter back within its bounds; call it after each optimiser step."""
        if self.bound_at == "step" and self._bounded:
            low, high = self.minimum or 0.0, self.maximum or math.inf
            if self.param == "log":
                self.value.clamp_(math.log(low) if low else None, math.log(high))
            else:
                self.value.clamp_(1 / high, 1 / low if low else None)

    @property
    def at_bound(self) -> bool:
        """Whether the scale is at, or beyond, one of its bounds."""
        scale = (self.value.exp() if self.param == "log" else 1 / self.value).item()
        low, high = self.minimum or 0.0, self.maximum or math.inf
        return scale <= low * (1 + 1e-5) or scale >= high * (1 - 1e-5)

    @property
    def _bounded(self) -> bool:
        return self.minimum is not None or self.maximum is not None

    def extra_repr(self) -> str:
        bounds = f"[{self.minimum}, {self.maximum}] at {self.bound_at}" if self._bounded else "unbounded"
        return f"{self.param}, scale={self().detach().item():.4g}, {bounds}"
