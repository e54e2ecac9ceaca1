"""For those who write systems, here or elsewhere: `check_method(MySystem)` is the whole contract as one test.

>>> from emblema.testing import check_method
>>> check_method(MySystem)  # raises AssertionError with what is wrong
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from emblema.core.batch import Batch
from emblema.core.boxes import Boxes
from emblema.core.card import Card
from emblema.core.method import Method
from emblema.core.preprocess import Preprocess
from emblema.encoders.tokenizers import TextIds
from emblema.frameworks.two_tower import architecture
from emblema.frameworks.vlm import VLM, frozen

__all__ = ["ByteTokenizer", "check_method", "tiny_batch", "tiny_model", "tiny_vlm"]

WORDS = ("cat", "dog", "red car", "tree", "fish", "house", "moon", "boat")


class ByteTokenizer:
    """The bytes of a text between a start and an end token: needs no vocabulary file."""

    vocab_size, pad_id, start, end = 259, 0, 257, 258

    def __call__(self, texts: Sequence[str], context_length: int, *, pad_to_context: bool = False) -> TextIds:
        rows = [[b + 1 for b in text.encode()] for text in texts]
        cut = sum(len(r) > context_length - 2 for r in rows)
        rows = [[self.start, *r[: context_length - 2], self.end] for r in rows]
        length = torch.tensor([len(r) for r in rows], dtype=torch.long)
        ids = torch.zeros(len(rows), context_length if pad_to_context else int(length.max()), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return TextIds(ids, length, cut)

    def clean(self, text: str) -> str:
        return text

    def offsets(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The characters [from, to) that each token stands for; start and end stand for none."""
        places = [(i, i + 1) for i, c in enumerate(text) for _ in c.encode()]
        return text, [(0, 0), *places, (0, 0)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids back to text, without start, end and padding."""
        return bytes(int(i) - 1 for i in ids if 0 < i < self.start).decode(errors="replace")


def tiny_vlm(seed: int = 0) -> VLM:
    """A frozen two-tower model of 32 px with random weights and a byte tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm = architecture("tiny").build()
    vlm.text.tokenizer = ByteTokenizer()  # type: ignore[assignment]
    return frozen(vlm)


def tiny_model(seed: int = 0, **options: Any):
    """An `emblema.Model` around `tiny_vlm`."""
    from emblema.model import Model

    return Model(tiny_vlm(seed), Preprocess(size=32), name="tiny", **options)


def tiny_batch(size: int = 8, views: int = 2, pixels: int = 32, seed: int = 0, boxes: bool = False) -> Batch:
    """Random pictures with captions, labels and views; with `boxes`, one or two a picture of what its caption says.

    Their labels are 0: the caption is the only phrase.
    """
    g = torch.Generator().manual_seed(seed)

    def pictures() -> Tensor:
        return torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8, generator=g)

    def things(count: int) -> Boxes:
        corner = torch.rand(count, 2, generator=g) * pixels / 2
        side = (0.25 + 0.25 * torch.rand(count, 2, generator=g)) * pixels
        return Boxes(torch.cat([corner, corner + side], 1), labels=torch.zeros(count, dtype=torch.long))

    return Batch(
        keys=[f"record-{i}" for i in range(size)],
        images=pictures(),
        views=[pictures() for _ in range(views)],
        texts=[f"a {WORDS[i % len(WORDS)]} number {i}" for i in range(size)],
        other_texts=[[f"one {WORDS[i % len(WORDS)]}" for i in range(size)]],
        labels=torch.arange(size) % 4,
        boxes=[things(1 + i % 2) for i in range(size)] if boxes else None,
        progress=0.5,
        generator=torch.Generator().manual_seed(seed),
    )


def check_method(cls: type[Method]) -> None:
    """The contract of every system. Raises AssertionError, whose message says what to change."""
    card = _check_card(cls)
    method = _check_construction(cls)
    if _family(method) == "Transfer":
        from emblema.testing.transfer import check_transfer

        return check_transfer(cls)
    if _family(method) == "Distill":
        from emblema.testing.distill import check_distill

        return check_distill(cls)
    module = _built(method)
    views, needs = getattr(method, "views", 0) or 2, "boxes" in card.needs
    batch = tiny_batch(views=views, pixels=_pixels(module), boxes=needs)
    first = _check_losses(method, module, batch, card.name)
    _check_gradients(method, module, batch, card.name)
    again = _loss_values(method, _built(method), batch)
    assert again == first, f"{card.name}: the same seed gave {first}, then {again}. Draw from batch.generator only"
    _check_reload(method, module, batch, card.name)


def _check_card(cls: type[Method]) -> Card:
    name = cls.__name__
    assert "card" in vars(cls), f"{name} has no card: add `card = Card(...)` to the class"
    card = cls.card
    assert isinstance(card, Card), f"{name}.card is a {type(card).__name__}, expected emblema.core.card.Card"
    for field in ("name", "title", "paper", "year", "section", "equation"):
        assert getattr(card, field), f"{name}.card.{field} is empty: it is shown in lists, docs and tables"
    assert 1990 < card.year < 2100, f"{name}.card.year is {card.year}"
    return card


def _check_construction(cls: type[Method]) -> Method:
    name = cls.__name__
    assert dataclasses.is_dataclass(cls), f"{name} is no dataclass: write @dataclass(kw_only=True) above it"
    assert "__init__" not in cls.__dict__ or cls.__dataclass_params__.init, f"{name} writes its own __init__"  # type: ignore[attr-defined]
    state = torch.get_rng_state()
    try:
        method = cls()
    except TypeError as error:
        raise AssertionError(f"{name}() needs arguments ({error}): give every field a default") from error
    assert torch.equal(state, torch.get_rng_state()), f"{name}() drew random numbers: move that into build()"
    fields = {f.name for f in dataclasses.fields(cls)}
    extra = sorted(set(vars(method)) - fields)
    assert not extra, f"{name}() set {extra} besides its fields: hyper-parameters are fields, learnt things end in _"
    learnt = sorted(k for k, v in vars(method).items() if isinstance(v, nn.Module | Tensor))
    assert not learnt, f"{name} keeps {learnt} on itself: what is learnt belongs to the module that build() returns"
    assert repr(method) == repr(cls()), f"{name}() is different each time"
    if "arch" in fields:
        method.arch = "tiny"  # type: ignore[attr-defined]
    return method


def _built(method: Method) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        family = _family(method)
        module = method.build() if family in ("Pretrain", "") else method.build(tiny_vlm(), list(WORDS[:4]))
    assert isinstance(module, nn.Module), f"build() returned a {type(module).__name__}, expected an nn.Module"
    if family == "Pretrain":
        assert isinstance(module, nn.ModuleDict) and "vlm" in module, 'build() must return a ModuleDict with "vlm"'
    _give_tokenizer(module)
    return module.train()


def _family(method: Method) -> str:
    families = ("Pretrain", "Transfer", "Distill")
    return next((b.__name__ for b in type(method).__mro__ if b.__name__ in families), "")


def _give_tokenizer(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, VLM) and getattr(part.text, "tokenizer", True) is None:
            part.text.tokenizer = ByteTokenizer()  # type: ignore[assignment]


def _pixels(module: nn.Module) -> int:
    towers = (part.image for part in module.modules() if isinstance(part, VLM))
    return next((int(getattr(t, "image_size", 32)) for t in towers), 32)


def _terms(method: Method, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return method.losses(module, _copied(batch))


def _copied(batch: Batch) -> Batch:
    """The same batch with a generator in its first state (a generator cannot be deep-copied)."""
    return dataclasses.replace(batch, generator=torch.Generator().manual_seed(0))


def _loss_values(method: Method, module: nn.Module, batch: Batch) -> dict[str, float]:
    return {name: term.item() for name, term in _terms(method, module, batch).items()}


def _check_losses(method: Method, module: nn.Module, batch: Batch, name: str) -> dict[str, float]:
    before = copy.deepcopy({f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "generator"})
    terms = _terms(method, module, batch)
    assert isinstance(terms, dict) and terms, f"{name}: losses() must return named terms, got {type(terms).__name__}"
    for term, value in terms.items():
        assert isinstance(term, str) and isinstance(value, Tensor), f"{name}: losses() must map names to tensors"
        assert value.dim() == 0, f"{name}: the term {term!r} has shape {tuple(value.shape)}, expected a scalar"
        assert math.isfinite(value.item()), f"{name}: the term {term!r} is {value.item()}"
    for field, value in before.items():
        assert _same(value, getattr(batch, field)), f"{name}: losses() altered batch.{field}; work on a copy"
    return {term: value.item() for term, value in terms.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, Boxes):
        return isinstance(b, Boxes) and _same(vars(a), vars(b))
    return a == b


def _check_gradients(method: Method, module: nn.Module, batch: Batch, name: str) -> None:
    module.zero_grad(set_to_none=True)
    total = torch.stack(list(_terms(method, module, batch).values())).sum()
    assert total.requires_grad, f"{name}: the loss does not depend on any parameter"
    total.backward()
    learnt = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert learnt, f"{name}: build() returned nothing that can be learnt"
    idle = sorted(n for n, p in learnt.items() if p.grad is None)
    assert not idle, f"{name}: no gradient reaches {idle[:5]}; remove them, or requires_grad_(False)"
    broken = sorted(n for n, p in learnt.items() if p.grad is not None and not p.grad.isfinite().all())
    assert not broken, f"{name}: the gradient of {broken[:5]} is not finite"
    module.zero_grad(set_to_none=True)


def _check_reload(method: Method, module: nn.Module, batch: Batch, name: str) -> None:
    """What was saved gives the same losses in a module that was built anew."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    expected = _loss_values(method, copy.deepcopy(module).eval(), batch)
    other = _built(method)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.load_state_dict(state)
    found = _loss_values(method, other.eval(), batch)
    assert found == expected, f"{name}: reloaded, the losses are {found} instead of {expected}: a buffer is not saved"
