"""The contract of a transfer system: scikit-learn's, on a tiny model and a few coloured squares."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from emblema.core.errors import BadData, ClosedClasses, NotFitted
from emblema.data.datasets import Records
from emblema.engine.features import fingerprint
from emblema.testing import tiny_model
from emblema.testing.squares import squares


def check_transfer(cls: type) -> None:
    """Raises AssertionError with what is wrong. A system names what it cannot be checked on in its card:

    "no pictures" in `needs`: it is fitted on none; "unlabelled": on pictures without labels; "multi-label": on several
    labels a picture; "masks": on label maps.
    """
    card = cls.card  # type: ignore[attr-defined]
    name, data = card.name, squares()
    train, val, test = (prepared(data.split(s), card.needs) for s in ("train", "val", "test"))
    model = tiny_model(cache=False)
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.vlm.named_parameters()}
    print_before = fingerprint(model.vlm)

    system = short(cls)
    try:
        system.predict(test)
    except NotFitted:
        pass
    else:
        raise AssertionError(f"{name}.predict() before fit() must raise NotFitted")
    terms: list[dict[str, float]] = []
    fitted = system.fit(model, train, val, on_step=lambda step: terms.append(step.losses))
    assert fitted is system, f"{name}.fit() must return self"
    logits = check_logits(system.predict(test), len(test), len(data.class_names), name)
    for step in terms:
        for term, value in step.items():
            assert value == value, f"{name}: the term {term!r} is NaN"
    assert fingerprint(model.vlm) == print_before, f"{name} changed the model it was handed: copy it first"
    for n, p in model.vlm.named_parameters():
        assert p.requires_grad == before[n][1] and p.grad is None, f"{name} left its mark on {n}"

    again = short(cls).fit(model, train, val).predict(test)
    assert torch.equal(again, logits), f"{name}: the same seed gave other logits; draw from the given generators only"
    twice = system.fit(model, train, val).predict(test)
    assert torch.equal(twice, logits), f"{name}: fit() twice must be fit() once"
    small = torch.cat([system.predict(test.subset(range(i, i + 3))) for i in range(0, len(test), 3)])
    assert torch.allclose(small, logits, atol=1e-4), f"{name}: a picture's logits depend on its neighbours in the batch"
    check_saved(system, model, test, logits, name)
    check_other_classes(system, test, name)
    if "no pictures" in card.needs:
        return
    try:
        short(cls).fit(model, train.subset([]))
    except BadData:
        pass
    else:
        raise AssertionError(f"{name}.fit() on no pictures must raise BadData")


def short(cls: type) -> Any:
    """The system with its defaults, trained for three steps."""
    system = cls()
    system.optim = replace(system.optim, steps=3, batch_size=8)
    for name in ("views", "samples", "members", "crops", "pretrain"):
        if name in vars(system):
            setattr(system, name, min(getattr(system, name), 2))
    return system


def prepared(data: Records, needs: tuple[str, ...]) -> Records:
    """The squares as the system wants them."""
    if "multi-label" in needs:
        columns = {**data.columns, "labels": [(c,) for c in data.columns["label"]]}
        return Records(data.card, columns, data.class_names, index=data.index)
    return data


def check_logits(logits: Tensor, rows: int, classes: int, name: str) -> Tensor:
    shape = tuple(logits.shape)
    assert shape == (rows, classes), f"{name}.predict() gave {shape}, expected ({rows}, {classes})"
    assert logits.isfinite().all(), f"{name}.predict() gave values that are not finite"
    assert not logits.requires_grad, f"{name}.predict() left a graph behind"
    return logits


def check_saved(system: Any, model: Any, test: Records, logits: Tensor, name: str) -> None:
    from emblema.core import find
    from emblema.transfer.base import load

    module, file = type(system).__module__, ""
    if module.startswith("emblema_user_"):
        file = str(sys.modules[module].__file__)
    elif name not in find.names("transfer"):
        return  # a class of a running program has no file to be loaded from
    with tempfile.TemporaryDirectory() as folder:
        system.save(folder)
        found = load(folder, model, system=file).predict(test)
        assert torch.allclose(found, logits, atol=1e-5), (
            f"{name}: saved and loaded, its logits differ: a buffer or parameter is lost"
        )


def check_other_classes(system: Any, test: Records, name: str) -> None:
    some = system.class_names_[2:0:-1]
    check_logits(system.for_classes(some).predict(test), len(test), 2, name)
    try:
        other = system.for_classes(["tree", "house", "moon"])
    except ClosedClasses:
        return
    check_logits(other.predict(test), len(test), 3, name)
    same = system.for_classes(system.class_names_).predict(test)
    assert torch.allclose(same, system.predict(test), atol=1e-4), f"{name}.for_classes() of its own classes differs"
