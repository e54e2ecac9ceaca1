"""What every pre-training system shares: encode each sample, then compare the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from emblema.core.batch import Batch, Dataset
from emblema.core.errors import NotFitted
from emblema.core.method import Method, Optim
from emblema.engine.train import run_pretraining
from emblema.frameworks.two_tower import architecture
from emblema.frameworks.vlm import VLM

Encoders = dict[str, Callable[[Batch], Tensor]]
Learnt = Any  # an nn.ModuleDict that holds "vlm"; what else it holds only the system knows


@dataclass(kw_only=True)
class Pretrain(Method):
    """From pairs to a `VLM`.

    `build()` returns a `ModuleDict` that holds "vlm"; heads and queues stand beside it.

    A contrastive system compares every sample with every other, so its batch cannot be cut. It defines
    `encoders` (what is computed a sample alone) and `compare` (what needs the whole batch): the loop may then
    cache gradients and run each tower in chunks. A system whose loss is a sum over samples
    may define `losses` directly.
    """

    arch: str = "small"
    views: int = 0  # further augmented views of each image, batch.views
    optim: Optim = field(default_factory=Optim)

    def config(self) -> Any:
        """The shape of the model, which travels with its checkpoint: `arch`, with what the system changes in it."""
        return architecture(self.arch)

    def build(self) -> Learnt:
        return nn.ModuleDict({"vlm": self.config().build()})

    def prepare(self, data: Dataset) -> Dataset:
        """The data as this system reads it: captions made from labels, another language, ..."""
        return data

    def loading(self) -> dict[str, Any]:
        """Settings of `emblema.engine.loader.Loader`: how strongly pictures and texts are varied."""
        return {}

    def encoders(self, module: Learnt) -> Encoders:
        """Name -> function of a batch that gives one row a sample."""
        raise NotImplementedError(f"{type(self).__name__} defines neither encoders() nor losses()")

    def compare(self, module: Learnt, z: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Named loss terms from the encoded batch."""
        raise NotImplementedError(f"{type(self).__name__} defines neither compare() nor losses()")

    def losses(self, module: Learnt, batch: Batch) -> dict[str, Tensor]:
        z = {name: encode(batch) for name, encode in self.encoders(module).items()}
        return self.compare(module, z, batch)

    def fit(self, data: Dataset, run_dir: Path | str | None = None, *, resume: bool = True, **options: Any) -> Self:
        """Train on image-text pairs; then `self.vlm_` is the model.

        With a `run_dir` the run is logged and saved there, and a stopped one continues. `options` are those of
        `emblema.engine.train.run_pretraining`.
        """
        self._vlm = run_pretraining(self, data, run_dir, resume=resume, **options)
        return self

    @property
    def vlm_(self) -> VLM:
        if "_vlm" not in vars(self):
            raise NotFitted(f"{type(self).__name__} has no model yet: call fit(data) first")
        return self._vlm

    def after_step(self, module: Learnt) -> None:
        module["vlm"].logit_scale.bound_()
