import multiprocessing
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from emblema.core.batch import Level, Record
from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.core.preprocess import Preprocess
from emblema.engine.encode import Encoder
from emblema.engine.features import Features, default_directory, fingerprint
from emblema.testing import tiny_vlm


@dataclass
class Toy:
    records: list
    card = DatasetCard(name="toy", title="toy", task="classification")
    class_names = ("a", "b")

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]


def toy(n=6, seed=0):
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]
    return Toy([Record(key=str(i), image=image, label=i % 2) for i, image in enumerate(images)])


def encoder(seed=0, **kw):
    return Encoder(tiny_vlm(seed), kw.pop("preprocess", Preprocess(size=32)), **{"precision": "fp32", **kw})


def test_read_twice_computes_once(tmp_path, monkeypatch):
    cache, e, data = Features(tmp_path), encoder(), toy()
    first = cache.read(e, data)
    monkeypatch.setattr(e, "images", None)  # would fail if called
    second = cache.read(e, data)
    assert not first.hit and second.hit and torch.equal(first["pooled"], second["pooled"])
    assert torch.allclose(first["pooled"], encoder().images([r.image for r in data.records])[0]["pooled"])


def test_levels(tmp_path):
    cache, e, data = Features(tmp_path), encoder(), toy(3)
    assert cache.read(e, data, Level.PATCHES)["patches"].shape == (3, 4, 4, 32)
    assert cache.read(e, data, Level.EMBEDDED)["tokens"].shape == (3, 17, 64)
    assert cache.read(e, data, "hidden")["hidden"].shape == (3, 64)
    with pytest.raises(ValueError, match="nothing can be cached"):
        cache.read(e, data, Level.PIXELS)


def changed_weight(e):
    with torch.no_grad():
        next(e.vlm.image.parameters()).view(-1)[0] += 1e-6
    return e


def changed_activation(e):
    e.vlm.image.blocks[0].mlp[1] = torch.nn.ReLU()
    return e


def changed_heads(e):
    e.vlm.image.blocks[1].attention.heads = 4
    return e


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_activation,
        changed_heads,
        lambda e: encoder(seed=1),
        lambda e: encoder(precision="bf16"),
        lambda e: encoder(preprocess=Preprocess(size=32, mode="squash")),
    ],
    ids=["weight", "activation", "heads", "other model", "precision", "preprocess"],
)
def test_any_change_of_the_model_is_another_key(change):
    data = toy(2)
    assert Features.key(change(encoder()), data, "joint") != Features.key(encoder(), data, "joint")


def test_any_change_of_the_data_is_another_key(tmp_path):
    e, data = encoder(), toy(3)
    keys = {Features.key(e, data, "joint"), Features.key(e, data, "hidden")}
    keys.add(Features.key(e, Toy(data.records[::-1]), "joint"))
    keys.add(Features.key(e, Toy(data.records[:2]), "joint"))
    keys.add(Features.key(e, Toy([replace(data.records[0], key="x"), *data.records[1:]]), "joint"))
    keys.add(Features.key(e, toy(3, seed=1), "joint"))
    path = tmp_path / "a.png"
    data.records[0].image.save(path)
    on_disk = Toy([Record(key="0", image=path), *data.records[1:]])
    keys.add(Features.key(e, on_disk, "joint"))
    data.records[1].image.save(path)
    os.utime(path, ns=(1, 1))
    keys.add(Features.key(e, on_disk, "joint"))
    keys.add(Features.key(e, Toy([Record(key="0", image=path.read_bytes()), *data.records[1:]]), "joint"))
    assert len(keys) == 9


def test_the_fingerprint_is_the_same_elsewhere_and_in_training_mode():
    assert fingerprint(tiny_vlm().image) == fingerprint(tiny_vlm().image.train())


def test_a_partial_entry_is_no_entry_and_a_damaged_one_says_so(tmp_path):
    cache, e, data = Features(tmp_path), encoder(), toy(2)
    key = cache.key(e, data, "joint")
    (tmp_path / "features" / ".partial-1").mkdir(parents=True)
    first = cache.read(e, data)
    assert not first.hit
    file = tmp_path / "features" / key / "pooled.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BadData, match="damaged; delete that folder"):
        cache.read(e, data)


def test_what_a_caller_writes_never_reaches_the_file(tmp_path):
    cache, e, data = Features(tmp_path), encoder(), toy(2)
    cache.read(e, data)["pooled"].zero_()
    assert cache.read(e, data)["pooled"].abs().sum() > 0


def _write(folder):
    torch.set_num_threads(1)
    Features(folder).read(encoder(), toy())


def test_two_writers_leave_one_whole_entry(tmp_path):
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    torch.set_num_threads(1)
    writers = [context.Process(target=_write, args=(tmp_path,)) for _ in range(2)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0, 0]
    assert Features(tmp_path).read(encoder(), toy()).hit
    assert [p.name for p in (tmp_path / "features").iterdir() if p.name.startswith(".")] == []


def test_a_lost_race_leaves_no_rubbish(tmp_path):
    cache, e, data = Features(tmp_path), encoder(), toy(2)
    arrays = cache.read(e, data).arrays
    folder = tmp_path / "features" / cache.key(e, data, "joint")
    cache._store(folder, arrays, {})
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    assert Features(tmp_path / "file").read(encoder(), toy(2))["pooled"].shape == (2, 32)


def test_broken_pictures_are_named(tmp_path):
    data = Toy([Record(key="good", image=toy(1)[0].image), Record(key="bad", image=b"no")])
    with pytest.raises(BadData, match="1 of 2 pictures of toy cannot be read: bad"):
        Features(tmp_path).read(encoder(), data)
    assert not list((tmp_path).rglob("*.npy"))


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EMBLEMA_CACHE", raising=False)
    assert default_directory() == tmp_path / "emblema"
    monkeypatch.setenv("EMBLEMA_CACHE", "elsewhere")
    assert str(default_directory()) == "elsewhere"


TEXTS = [f"a drawing of thing number {i}" for i in range(80)]


def reader(**kw):
    """An encoder whose tokenizer says what it is."""
    from emblema.encoders.tokenizers import train_bpe

    e = encoder(**kw)
    for vlm in (e.vlm, e.towers):  # of bf16, a copy with weights of its own
        vlm.text.tokenizer = train_bpe(TEXTS, vocab_size=259)
    return e


def test_texts_are_computed_once(tmp_path, monkeypatch):
    cache, e = Features(tmp_path), reader()
    first = cache.texts(e, TEXTS)
    assert torch.equal(first, reader().texts(TEXTS))
    monkeypatch.setattr(e, "texts", None)  # would fail if called
    assert torch.equal(cache.texts(e, TEXTS), first)


def changed_text_weight(e):
    with torch.no_grad():
        next(e.vlm.text.parameters()).view(-1)[0] += 1e-3
    return e


def changed_policy(e):
    known = e.vlm.text.tokenizer
    e.vlm.text.tokenizer = type(known)(known.core, replace(known.policy, start_id=None))
    return e


def changed_vocabulary(e):
    from tokenizers.normalizers import Lowercase

    e.vlm.text.tokenizer.core.normalizer = Lowercase()
    return e


@pytest.mark.parametrize(
    "change",
    [changed_text_weight, changed_policy, changed_vocabulary, lambda e: reader(seed=1),
     lambda e: reader(precision="bf16")],
    ids=["weight", "policy", "vocabulary", "other model", "precision"],
)  # fmt: skip
def test_texts_of_another_model_are_not_served(tmp_path, change):
    cache, entries = Features(tmp_path), lambda: len(list((tmp_path / "features").iterdir()))
    cache.texts(reader(), TEXTS)
    cache.texts(reader(), TEXTS)
    assert entries() == 1
    cache.texts(change(reader()), TEXTS)
    assert entries() == 2


def test_other_texts_are_not_served(tmp_path):
    cache, e = Features(tmp_path), reader()
    cache.texts(e, TEXTS)
    assert torch.equal(cache.texts(e, TEXTS[::-1]), e.texts(TEXTS[::-1]))
    assert torch.equal(cache.texts(e, [*TEXTS[:-1], "another"]), e.texts([*TEXTS[:-1], "another"]))


def test_few_texts_and_nameless_tokenizers_are_computed_each_time(tmp_path):
    cache = Features(tmp_path)
    assert torch.equal(cache.texts(reader(), TEXTS[:2]), reader().texts(TEXTS[:2]))
    assert cache.texts(encoder(), TEXTS).shape == (80, 32)  # the byte tokenizer of tests has no identity
    assert not (tmp_path / "features").exists()


def test_files_are_encoded_once_with_what_is_wrong_with_them(tmp_path, monkeypatch):
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "broken.png"]
    for grey, path in zip((10, 200), paths):
        Image.new("RGB", (32, 32), (grey,) * 3).save(path)
    paths[2].write_text("no picture")
    cache, e = Features(tmp_path / "cache"), encoder()
    first, errors = cache.files(e, paths)
    real = e.images
    monkeypatch.setattr(e, "images", None)  # would fail if called
    second, again = cache.files(e, paths)
    assert torch.equal(first["pooled"][:2], second["pooled"][:2]) and again == errors and errors[0][0] == 2
    assert torch.isnan(second["pooled"][2]).all()
    monkeypatch.setattr(e, "images", real)
    Image.new("RGB", (32, 32), (90, 0, 0)).save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    changed, _ = cache.files(e, paths)
    assert not torch.equal(changed["pooled"][0], first["pooled"][0])
