import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import emblema
from emblema.core.errors import BadData, EmblemaError
from emblema.core.preprocess import Preprocess
from emblema.engine import encode
from emblema.model import Model
from emblema.testing import tiny_model, tiny_vlm


def pictures(n, size=40, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (size, size + i % 3, 3), dtype=np.uint8) for i in range(n)]


@pytest.fixture(scope="module")
def model():
    return tiny_model(precision="fp32", threads=2)


def test_one_picture_in_every_form_gives_one_embedding(model, tmp_path):
    array = pictures(1)[0]
    image = Image.fromarray(array)
    path, file = tmp_path / "a.png", io.BytesIO()
    image.save(path)
    image.save(file, "png")
    forms = [path, str(path), file.getvalue(), image, array, torch.from_numpy(array), array / 255.0]
    z = model.embed_images(forms)
    assert z.shape == (7, model.dim) and z.dtype == torch.float32
    assert torch.allclose(z.norm(dim=-1), torch.ones(7)) and torch.allclose(z, z[:1].expand_as(z), atol=1e-5)
    assert torch.allclose(model.embed_images(path), z[:1], atol=1e-5)
    assert torch.allclose(model.embed_images(array), z[4:5], atol=1e-5)


def test_grey_pictures_and_stacks(model):
    grey = pictures(1)[0][..., 0]
    z = model.embed_images([grey, grey[..., None], np.repeat(grey[..., None], 3, -1)])
    assert torch.allclose(z, z[:1].expand_as(z), atol=1e-5)
    stack = np.stack(pictures(3, 32)[::3] * 2)
    assert model.embed_images(stack).shape == (2, model.dim)
    assert model.embed_images([]).shape == (0, model.dim)


def test_results_do_not_depend_on_the_batch():
    images = pictures(13)
    one, many, all_ = (tiny_model(precision="fp32", batch_size=b).embed_images(images) for b in (1, 4, 64))
    assert torch.allclose(one, many, atol=1e-5) and torch.allclose(one, all_, atol=1e-5)
    model = tiny_model(precision="fp32")
    texts = ["a", "a much longer text of words", "cat", "the dog"]
    together, apart = model.embed_texts(texts), torch.cat([model.embed_texts([t]) for t in texts])
    assert torch.allclose(together, apart, atol=1e-5)


def test_order_is_kept_however_long_decoding_takes(model, monkeypatch):
    images, gate = pictures(30), threading.Event()
    expected = tiny_model(precision="fp32", batch_size=30).embed_images(images)
    import emblema.data.pictures as reader

    real = reader.load_batch

    def slow(sources, preprocess, threads=2):
        gate.wait(0.01 if len(sources) % 2 else 0)
        return real(sources, preprocess, threads)

    monkeypatch.setattr(reader, "load_batch", slow)
    found = tiny_model(precision="fp32", batch_size=7, threads=4).embed_images(images)
    assert torch.allclose(found, expected, atol=1e-5)


def test_bf16_towers_agree_with_fp32_and_leave_the_model_alone():
    vlm = tiny_vlm()
    before = {k: v.clone() for k, v in vlm.state_dict().items()}
    fast, exact = (Model(vlm, Preprocess(size=32), precision=p) for p in ("bf16", "fp32"))
    images, texts = pictures(20), [f"word {i}" for i in range(20)]
    for name, given in (("embed_images", images), ("embed_texts", texts)):
        a, b = getattr(fast, name)(given), getattr(exact, name)(given)
        assert a.dtype == torch.float32 and torch.allclose(a.norm(dim=-1), torch.ones(20), atol=1e-6)
        assert (a * b).sum(-1).min() >= 0.999
    assert all(torch.equal(v, before[k]) for k, v in fast.vlm.state_dict().items())
    assert next(fast.encoder.towers.image.parameters()).dtype == torch.bfloat16
    assert fast.encoder.towers.image.mean.dtype == torch.float32


def test_templates_are_normalised_averaged_and_normalised_again(model):
    templates, labels = ("a {}.", "the {} here"), ["cat", "dog"]
    z = torch.stack([model.embed_texts([t.format(name) for t in templates]).mean(0) for name in labels])
    expected = torch.nn.functional.normalize(z, dim=-1)
    assert torch.allclose(model.class_vectors(labels, templates), expected, atol=1e-6)


def test_classify_gives_probabilities(model):
    p = model.classify(pictures(3), ["cat", "dog", "red car"])
    assert p.shape == (3, 3) and torch.allclose(p.sum(1), torch.ones(3))
    logits = model.vlm.logits(model.embed_images(pictures(3)), model.class_vectors(["cat", "dog", "red car"]))
    assert torch.allclose(p, logits.softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "no labels"),
        ("cat,dog", r"write \['cat', 'dog'\]"),
        (["cat", " cat"], "labels given twice: cat"),
        (["cat", ""], "label number 1 is empty"),
        (["cat", 3], r"must be strings, got 3 \(int\)"),
    ],
)
def test_wrong_labels_teach(model, labels, message):
    with pytest.raises(EmblemaError, match=message):
        model.classify(pictures(1), labels)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full((4, 4, 3), np.nan), "number 0 holds NaN"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last.*transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\), expected"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), 200.0), "from 200 to 200, expected 0 to 1"),
        (np.zeros((4, 4, 3), np.int64), "array of int64"),
        (7, "is a int; give a path"),
        ("missing.png", "1 of 1 pictures cannot be read: number 0: "),
    ],
    ids=["nan", "channels first", "two channels", "empty", "0..255 float", "int64", "number", "missing"],
)
def test_wrong_pictures_teach(model, picture, message):
    with pytest.raises(BadData, match=message):
        model.embed_images([picture])


@pytest.mark.parametrize(("templates", "message"), [([], "no templates"), (["a photo"], "no place for the class name")])
def test_wrong_templates_teach(model, templates, message):
    with pytest.raises(BadData, match=message):
        model.class_vectors(["cat"], templates)


def test_a_broken_picture_among_good_ones(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    good = pictures(2)
    z, errors = model.try_images([good[0], tmp_path / "bad.jpg", good[1]])
    assert [i for i, _ in errors] == [1] and "bad.jpg" in errors[0][1]
    assert torch.isnan(z[1]).all() and torch.allclose(z[[0, 2]], model.embed_images(good), atol=1e-5)


def test_a_checkpoint_folder_comes_back(tmp_path):
    from dataclasses import replace

    from emblema.encoders.tokenizers import ClipTokenizer
    from emblema.frameworks.checkpoint import save
    from emblema.frameworks.two_tower import TwoTower, architecture

    shape = architecture("tiny")
    config = TwoTower(image=shape.image, text=replace(shape.text, vocab_size=49408), dim=shape.dim)
    vlm = config.build()
    vlm.text.tokenizer = ClipTokenizer()
    save(tmp_path / "mine", vlm, config, Preprocess(size=32), ["a {} there"])
    model = emblema.load(tmp_path / "mine", precision="fp32")
    assert model.templates == ("a {} there",) and model.name == "mine"
    expected = Model(vlm, Preprocess(size=32), precision="fp32").embed_texts(["a red fish"])
    assert torch.allclose(model.embed_texts(["a red fish"]), expected, atol=1e-6)
    assert not any(p.requires_grad for p in model.vlm.parameters())


def test_hidden_features_come_before_the_projection(model):
    images = pictures(2)
    hidden = model.embed_images(images, projected=False)
    assert hidden.shape == (2, model.vlm.image.width)
    joint = torch.nn.functional.normalize(model.vlm.image.project(hidden), dim=-1)
    assert torch.allclose(joint, model.embed_images(images), atol=1e-5)


def test_every_stage_streams(model):
    encoder = encode.Encoder(tiny_vlm(), Preprocess(size=32), precision="fp32", batch_size=2)
    images = [Image.fromarray(p) for p in pictures(5)]
    whole, _ = encoder.images(images, "patches")
    parts = [rows["patches"] for _, rows, _ in encoder.stream(images, "patches")]
    assert torch.allclose(torch.cat(parts), whole["patches"], atol=1e-6) and whole["patches"].shape == (5, 4, 4, 32)
    with pytest.raises(ValueError, match="unknown stage"):
        encoder.images(images, "deep")
