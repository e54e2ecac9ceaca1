"""What every transfer system shares: scikit-learn's contract around one optimiser loop on cached inputs."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emblema.core import find
from emblema.core.batch import Dataset, Level
from emblema.core.card import DatasetCard
from emblema.core.errors import BadCheckpoint, BadData, ClosedClasses, NotFitted
from emblema.core.method import Method, Optim
from emblema.data.datasets import Records
from emblema.data.pictures import open_picture
from emblema.data.templates import templates_for
from emblema.encoders.tokenizers import checked_words
from emblema.engine import seed
from emblema.engine.encode import Errors
from emblema.engine.features import weights_id
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import Step, optimise
from emblema.engine.train import preprocess_of
from emblema.frameworks.vlm import VLM
from emblema.model import Model
from emblema.parts.prompts import hand_written

OnStep = Callable[[Step], None]
Learnt = Any  # the module of `build`: what it holds is known to the system that built it
Shown = Any  # a Batch with x and labels


def coop_recipe(**changes: Any) -> Optim:
    """How the CoOp family is trained: SGD at 0.002 with momentum, a cosine that moves once an epoch, batches of 32."""
    recipe: dict[str, Any] = {"algorithm": "sgd", "lr": 2e-3, "weight_decay": 5e-4, "momentum": 0.9}
    recipe |= {"schedule": "epochs", "clip_norm": None, "epochs": 50.0, "batch_size": 32}
    return Optim(**recipe | changes)


@dataclass(kw_only=True)
class Transfer(Method):
    """From a frozen `VLM` and some pictures to a classifier of named classes.

    A system defines `build(vlm, class_names)`: a module whose forward takes an `ImageInput` and gives logits [B, C].
    It may override `losses` (default: cross-entropy), `learn` (default: the optimiser loop), `select` (what is chosen
    on validation pictures) and `logits` (what a fitted system says of a batch). One with "no pictures" in its card's
    `needs` learns from none. The VLM is never changed.
    """

    templates: tuple[str, ...] = ()  # hand-written prompts; empty: those of the data set
    views: int = 0  # random crops stored of each training picture; 0: its evaluation view
    seed: int = 1
    optim: Optim = field(default_factory=coop_recipe)

    # -- what a system says ---------------------------------------------------------------------------------

    def build(self, vlm: VLM, class_names: Sequence[str]) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def losses(self, module: Learnt, batch: Shown) -> dict[str, Tensor]:
        return {"cross_entropy": F.cross_entropy(module(batch.x), batch.labels)}

    def learn(self, module: Learnt, train: Inputs | None, on_step: OnStep | None = None) -> None:
        """Change `module` by what `train` shows; None for a system that needs no pictures."""
        if train is None:
            return
        optim = self.optim
        optimise(
            self,
            module,
            train.batches(optim, self.seed),
            optim,
            total_steps=train.total_steps(optim),
            epoch_steps=train.epoch_steps(optim.batch_size),
            random_seed=self.seed,
            on_step=on_step,
        )

    def select(self, module: Learnt, val: Inputs) -> None:
        """Choose settings by validation pictures; systems without any do nothing."""

    def logits(self, module: Learnt, batch: Shown) -> Tensor:
        """What the fitted system says of a batch: [B, C]."""
        return module(batch.x)

    def hand(self, vlm: VLM, class_names: Sequence[str]) -> Tensor:
        """The zero-shot classifier under the hand-written prompts: [C, D] unit."""
        return hand_written(vlm, class_names, self.wording)

    @property
    def wording(self) -> tuple[str, ...]:
        """The hand-written prompts in force: the field, else the data set's own."""
        return self.templates or vars(self).get("_wording") or templates_for("plain")

    # -- scikit-learn's contract ----------------------------------------------------------------------------

    def fit(
        self, vlm: VLM | Model, data: Dataset, val: Dataset | None = None, on_step: OnStep | None = None, **reading: Any
    ) -> Self:
        """Learn from labelled pictures; `val` are those that settings are chosen on. Returns self.

        `reading` is passed to `Inputs.read` (live=True computes every stage at every step instead of caching it).
        Raises `BadData` for unlabelled pictures, empty data or repeated class names.
        """
        self._model = vlm if isinstance(vlm, Model) else Model(vlm, preprocess_of(vlm))
        self._names, self._wording = checked_names(data.class_names), tuple(templates_for(data.card.name))
        checked_words(self._model.vlm.text, self._names)
        train = None
        if "no pictures" not in self.card.needs:
            train = self.read(data, views=self.views, **reading)
            self.check(train)
        selects = type(self).select is not Transfer.select
        held_out = self.read(val, **reading) if selects and val is not None and len(val) else None
        with seed.forked(self.seed, "build"):
            module = self.build(self._model.vlm, self._names)
        self.learn(module, train, on_step)
        module.eval().zero_grad(set_to_none=True)
        if held_out is not None:
            self.select(module, held_out)
        self._module = module
        return self

    def read(self, data: Dataset, **reading: Any) -> Inputs:
        """`data` as deep as the card says, from the cache."""
        card = self.card
        options = {"needs": card.needs, "random_seed": self.seed, "cache": self._model.cache, "reader": card.name}
        level = card.reads if isinstance(card.reads, Level) else Level[card.reads]
        return Inputs.read(self._model.encoder, data, level, **options | reading)

    def check(self, train: Inputs) -> None:
        """Raise `BadData` for what this system cannot learn from."""
        if not len(train):
            raise BadData("no training pictures: give at least one a class")
        if "multi-label" in self.card.needs:
            return
        missing = int((train.labels < 0).sum())
        if missing and "labels" in train.targets:
            raise BadData(
                f"these pictures have several labels each: {self.card.name} learns from one. dualcoop learns from "
                "several, and systems that need no pictures can be measured on them"
            )
        if missing:
            first = train.keys[int((train.labels < 0).int().argmax())]
            raise BadData(
                f"{missing} of {len(train)} training pictures have no label, e.g. {first}: {self.card.name} needs one "
                "each. Unlabelled pictures suit upl, tpt and zero-shot."
            )

    @torch.no_grad()
    def predict(self, data: Dataset | Inputs) -> Tensor:
        """Logits of all pictures: [N, C]."""
        module = self.module_
        inputs = data if isinstance(data, Inputs) else self.read(data)
        logits = torch.cat([self.logits(module, batch) for batch in inputs.in_order(self.predict_size)]).float()
        columns = vars(self).get("_columns")
        return logits if columns is None else logits[:, columns]

    predict_size = 256  # pictures a batch of `predict`

    scores = predict  # the name that evaluation tasks ask for

    @property
    def module_(self) -> nn.Module:
        if "_module" not in vars(self):
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(vlm, data) first")
        return self._module

    @property
    def class_names_(self) -> list[str]:
        self.module_  # noqa: B018
        return self._names

    def try_pictures(self, sources: Sequence[Any]) -> tuple[Tensor, Errors]:
        """Logits [N, C] of paths, bytes or PIL pictures; broken ones give rows of NaN and [(index, reason)]."""
        card = DatasetCard(name="pictures", title="", task="classification")
        logits, errors = torch.full((len(sources), len(self.class_names_)), torch.nan), []
        for i, source in enumerate(sources):
            try:
                open_picture(source)
            except BadData as error:
                errors.append((i, str(error)))
        good = [i for i in range(len(sources)) if i not in dict(errors)]
        if good:
            columns = {"key": [str(i) for i in good], "image": [sources[i] for i in good]}
            logits[good] = self.predict(self.read(Records(card, columns, self.class_names_)))
        return logits, errors

    def for_classes(self, class_names: Sequence[str], name: str = "") -> Self:
        """The fitted system for other class names (base-to-novel, cross-data). `name` is the data set of the templates.

        Parameters, learnt or chosen, are copied; buffers, made of class names, are made anew. Systems that learn
        something for each class name some of their own, and raise `ClosedClasses` for others.
        """
        if self.card.closed and set(class_names) <= set(self.class_names_):
            return self._narrowed(list(class_names))
        if self.card.closed:
            raise ClosedClasses(
                f"{self.card.name} learns something for each class of {len(self._names)}, so it cannot name "
                f"{len(class_names)} others. Fit it on those classes, or use a system that learns prompts."
            )
        twin = copy.copy(self)
        twin._names = checked_names(class_names)
        twin._wording = tuple(templates_for(name)) if name else self._wording
        with seed.forked(self.seed, "build"):
            module = twin.build(self._model.vlm, twin._names)
        learnt, fresh = (dict(m.named_parameters()) for m in (self.module_, module))
        unlike = [n for n, p in learnt.items() if fresh[n].shape != p.shape]
        if unlike:
            raise ClosedClasses(f"{unlike[0]} has a row a class: these settings of {self.card.name} cannot name others")
        with torch.no_grad():
            for n, p in learnt.items():
                fresh[n].copy_(p)
        twin._module = module.eval()
        return twin

    def _narrowed(self, class_names: list[str]) -> Self:
        """The same answers among some of the classes."""
        twin = copy.copy(self)
        before = vars(self).get("_columns") or range(len(self._names))
        vars(twin)["_columns"] = [before[self._names.index(name)] for name in checked_names(class_names)]
        twin._names = class_names
        return twin

    def save(self, folder: Path | str) -> None:
        """Write what was learnt: config.json and learnt.safetensors. The VLM is named, not copied."""
        from safetensors.torch import save_file

        module, folder = self.module_, Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {n: t.detach().contiguous().clone() for n, t in module.state_dict().items()}, folder / "learnt.safetensors"
        )
        said = {
            "format": "emblema",
            "framework": "transfer",
            "system": self.card.name,
            "fields": {f.name: _plain(getattr(self, f.name)) for f in fields(self)},
            "class_names": self._names,
            "templates": self.wording,
            "facts": vars(self).get("_facts", {}),
            "model": {"name": self._model.name, "weights": weights_id(self._model.vlm)},
        }
        (folder / "config.json").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, model: Model | VLM | str | None = None) -> Transfer:
        """A fitted system of this class from its folder: see `load`."""
        return load(folder, model, cls)


def load(folder: Path | str, model: Model | VLM | str | None = None, system: str | type = "") -> Transfer:
    """A fitted system from its folder. `model` is the VLM it was fitted on (default: the one in the folder's `model/`,
    where `emblema export` put it, or found by its name).

    `system` is the class, or the `.py` file, of a system of your own: a folder never says which file of code to run.
    Raises `BadCheckpoint` when the weights are not those it was fitted on.
    """
    from safetensors.torch import load_file

    from emblema.model import load as load_model

    folder = Path(folder)
    if not (folder / "config.json").exists() or not (folder / "learnt.safetensors").exists():
        raise BadCheckpoint(f"{folder} holds no fitted system: expected config.json and learnt.safetensors in it")
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cls = system if isinstance(system, type) else find.find("transfer", system or said["system"])
    settings: dict[str, Any] = {k: _tuples(v) for k, v in said["fields"].items()}
    optim = Optim(**{k: _tuples(v) for k, v in settings.pop("optim").items()})
    fitted: Transfer = cls(optim=optim, **settings)
    if model is None or isinstance(model, str):
        own = folder / "model"
        model = load_model(model or (own if own.is_dir() else said["model"]["name"]))
    fitted._model = model if isinstance(model, Model) else Model(model, preprocess_of(model))
    found = weights_id(fitted._model.vlm)
    if found != said["model"]["weights"]:
        raise BadCheckpoint(
            f"{folder} was fitted on {said['model']['name']} with weights {said['model']['weights']}, got weights "
            f"{found}: give the same model"
        )
    fitted._names, fitted._wording = list(said["class_names"]), tuple(said["templates"])
    vars(fitted)["_facts"] = said.get("facts", {})  # what `build` needs to know of the data besides class names
    with seed.forked(fitted.seed, "build"):
        module = fitted.build(fitted._model.vlm, fitted._names)
    restore(module, load_file(folder / "learnt.safetensors"))
    fitted._module = module.eval()
    return fitted


def restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state whose tensors may have other shapes than a fresh module's (caches grow while they are fitted)."""
    for name, mapped in state.items():
        tensor = mapped.clone()  # of aligned memory: elsewhere products round differently
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if leaf in owner._parameters:
            asked = owner._parameters[leaf].requires_grad  # type: ignore[union-attr]
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=asked)
        else:
            owner._buffers[leaf] = tensor


def checked_names(class_names: Sequence[str]) -> list[str]:
    """Class names that can be told apart. Raises `BadData` otherwise."""
    names = [str(name).strip() for name in class_names]
    if not names or "" in names:
        raise BadData("no class names" if not names else f"class number {names.index('')} has an empty name")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadData(f"class names given twice: {', '.join(twice[:5])}. Merge these classes, or rename one")
    return names


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
