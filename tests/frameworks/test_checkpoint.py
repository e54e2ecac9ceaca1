"""A folder brings back the model that was saved, or says what is wrong with it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from emblema.core.errors import BadCheckpoint
from emblema.core.preprocess import Preprocess
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.bert import BertConfig
from emblema.encoders.text import TextConfig
from emblema.encoders.tokenizers import ClipTokenizer, train_bpe
from emblema.encoders.vit import ViTConfig
from emblema.frameworks.checkpoint import load, save, unique_tensors
from emblema.frameworks.fused import FusedTowers
from emblema.frameworks.one_tower import OneTower
from emblema.frameworks.pretrained import load_pretrained
from emblema.frameworks.two_leg import TwoLegs
from emblema.frameworks.two_tower import TwoTower

IMAGE = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2)
TEXT = TextConfig(vocab_size=400, context_length=16, width=32, depth=2, heads=2)
CONFIG = TwoTower(image=IMAGE, text=TEXT, dim=16)
BERT = BertConfig(vocab_size=400, context_length=16, width=32, depth=1, heads=2)
CONFIGS = {
    "two-tower": CONFIG,
    "one-tower": OneTower(image=IMAGE, text=TEXT, dim=16),
    "rendered": OneTower(image=IMAGE, dim=16, logit_bias=-2.0),
    "fused": FusedTowers(image=IMAGE, text=TEXT, dim=16, fused_layers=1),
    "two-leg": TwoLegs(image=IMAGE, text=TEXT, dim=16, fusion_width=16, fusion_depth=1, fusion_heads=2),
    "backbone": TwoTower(image=BackboneConfig(image_size=32), text=BERT, dim=16),
}
PREPROCESS = Preprocess(size=32, mode="squash", interpolation="bilinear", background=(1, 2, 3))
TEMPLATES = ["a photo of a {}.", "ein Bild: {}"]
WORDS = ["a photo of a cat", "two dogs", "it's a red circle é"]
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(WORDS * 3, 300)


def model(config, tokenizer):
    torch.manual_seed(1)
    vlm = config.build().eval()
    if hasattr(vlm.text, "words"):
        vlm.text.tokenizer = tokenizer
    return vlm


@pytest.fixture
def folder(tmp_path, tokenizer):
    return save(tmp_path / "model", model(CONFIG, tokenizer), CONFIG, PREPROCESS, TEMPLATES)


@pytest.mark.parametrize("name", CONFIGS)
def test_comes_back_equal(tmp_path, tokenizer, name):
    vlm, before = model(CONFIGS[name], tokenizer), torch.random.get_rng_state()
    folder = save(tmp_path / name, vlm, CONFIGS[name], PREPROCESS, TEMPLATES, card_text="# mine")
    loaded = load(folder)
    assert torch.random.get_rng_state().equal(before)  # nobody's random numbers are used up
    assert (loaded.config, loaded.preprocess, loaded.templates) == (CONFIGS[name], PREPROCESS, TEMPLATES)
    assert loaded.report.complete and loaded.report.share == 1 and type(loaded.vlm) is type(vlm)
    assert not loaded.vlm.training and not any(p.requires_grad for p in loaded.vlm.parameters())
    assert loaded.vlm.encode_image(IMAGES).equal(vlm.encode_image(IMAGES))
    assert loaded.vlm.encode_text(WORDS).equal(vlm.encode_text(WORDS))
    assert (folder / "README.md").read_text() == "# mine"
    assert load_pretrained(folder).vlm.scale == vlm.scale
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing else is left behind


def test_files_of_the_folder(folder):
    names = {"config.json", "model.safetensors", "tokenizer.json", "preprocess.json", "templates.json", "README.md"}
    assert {p.name for p in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["text"]["pad_to_context"] is False and config["model"]["image"]["activation"] == "gelu"
    assert config["tokenizer"] == {
        "kind": "trained",
        "start_id": 1,
        "end_id": 2,
        "pad_id": 0,
        "lower": True,
        "clean": "spaces",
    }
    assert "emblema.load" in (folder / "README.md").read_text()


def test_equal_models_are_equal_files(tmp_path, tokenizer):
    for i in range(8):
        save(tmp_path / str(i), model(CONFIG, tokenizer), CONFIG, PREPROCESS, TEMPLATES)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert len({(tmp_path / str(i) / name).read_bytes() for i in range(8)}) == 1, name


def test_clip_vocabulary_travels(tmp_path):
    config = TwoTower(image=IMAGE, text=TextConfig(width=16, depth=1, heads=2), dim=16)
    vlm = model(config, ClipTokenizer())
    loaded = load(save(tmp_path / "clip", vlm, config, PREPROCESS, {"photo": TEMPLATES}))
    assert loaded.vlm.encode_text(WORDS).equal(vlm.encode_text(WORDS)) and loaded.templates == {"photo": TEMPLATES}


@pytest.mark.parametrize(("weights", "size"), [("fp16", 0.55), ("int8", 0.35)])  # a tiny model: names weigh
def test_small_weights(tmp_path, tokenizer, folder, weights, size):
    vlm = load(folder).vlm
    small = save(tmp_path / "small", vlm, CONFIG, PREPROCESS, TEMPLATES, weights=weights)
    again = load(small)
    assert again.report.complete
    ours, theirs = unique_tensors(again.vlm), unique_tensors(vlm)
    for name, exact in theirs.items():
        assert ours[name].dtype == torch.float32
        error = (ours[name] - exact).abs()
        if exact.dim() < 2:
            assert error.eq(0).all(), name
        elif weights == "int8":  # half a step of its row
            bound = exact.flatten(1).abs().amax(1) / 127 / 2 * 1.001
            assert (error.flatten(1) <= bound[:, None]).all(), name
        else:
            torch.testing.assert_close(ours[name], exact, rtol=1e-3, atol=1e-7)
    z = vlm.encode_image(IMAGES)
    assert (again.vlm.encode_image(IMAGES) * z).sum(-1).min() > (0.999 if weights == "int8" else 0.99999)
    shrunk = (small / "model.safetensors").stat().st_size / (folder / "model.safetensors").stat().st_size
    assert shrunk < size


def test_rows_of_zeros_and_one_huge_weight(tmp_path, folder):
    vlm = load(folder).vlm
    vlm.text.words.weight[0] = 0
    vlm.text.words.weight[1, 0] = 1e6
    again = load(save(tmp_path / "int8", vlm, CONFIG, PREPROCESS, TEMPLATES, weights="int8")).vlm
    assert again.text.words.weight[0].eq(0).all() and again.text.words.weight.isfinite().all()
    with pytest.raises(ValueError, match=r"text\.words\.weight does not fit fp16"):
        save(tmp_path / "fp16", vlm, CONFIG, PREPROCESS, TEMPLATES, weights="fp16")
    with pytest.raises(ValueError, match="choose 'fp32'"):
        save(tmp_path / "fp4", vlm, CONFIG, PREPROCESS, TEMPLATES, weights="fp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8", "model"]  # failures leave nothing behind


def test_saving_replaces_whole_or_not_at_all(tmp_path, tokenizer, folder):
    before = load(folder).vlm.encode_image(IMAGES)
    torch.manual_seed(5)
    other = CONFIG.build()
    with pytest.raises(TypeError):
        save(folder, other, CONFIG, PREPROCESS, [object()])  # fails after the weights were written
    assert load(folder).vlm.encode_image(IMAGES).equal(before)
    save(folder, other, CONFIG, PREPROCESS, TEMPLATES)
    assert not load(folder).vlm.encode_image(IMAGES).equal(before) and load(folder).vlm.text.tokenizer is None
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").touch()
    with pytest.raises(BadCheckpoint, match="other files"):
        save(tmp_path / "holiday", other, CONFIG, PREPROCESS, TEMPLATES)


def test_configuration_must_describe_the_model(tmp_path, folder):
    wrong = TwoTower(image=IMAGE, text=BERT, dim=16)
    with pytest.raises(BadCheckpoint, match="does not describe this model"):
        save(tmp_path / "x", load(folder).vlm, wrong, PREPROCESS, TEMPLATES)


# -- broken folders ------------------------------------------------------------------------------------------


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image.positions"), "missing: image.positions"),
        (lambda t: t.update({"image.extra": torch.zeros(2)}), "unexpected: image.extra"),
        (lambda t: t.update({"image.positions": torch.zeros(3, 3)}), r"mismatched: image.positions \[3, 3\]"),
        (lambda t: t.update({"image.norm.bias": torch.zeros(32, dtype=torch.long)}), "mismatched: image.norm.bias"),
        (lambda t: t.update({"nothing::scale": torch.zeros(3)}), "no tensor that it scales"),
        (lambda t: t.update({"image.positions::scale": torch.zeros(3)}), "one scale a row"),
    ],
)
def test_tensors_are_named(folder, change, message):
    edit_tensors(folder, change)
    with pytest.raises(BadCheckpoint, match=message):
        load(folder)


def test_what_fits_can_be_asked_for(folder):
    edit_tensors(folder, lambda t: (t.pop("image.positions"), t.update({"image.norm.bias": torch.zeros(3)})))
    report = load(folder, strict=False).report
    assert report.missing == ["image.positions"] and len(report.mismatched) == 1
    assert report.loaded == report.expected - 2 and report.share < 1 and "tensors loaded" in str(report)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "preprocess.json", "templates.json"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "garbage"])
def test_damaged_files_teach(folder, file, damage):
    path = folder / file
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"\x80\x04garbage"}[damage])
    with pytest.raises(BadCheckpoint, match=r"missing|copy it again"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"format": "other"}, "format 'other'"),
        ("config.json", {"version": 99}, "version 99"),
        ("config.json", {"framework": "three-leg"}, "three-leg"),
        ("config.json", {"model": {"image": {"kind": "magic"}}}, "kind 'magic'"),
        ("config.json", {"model": {"dim": "wide"}}, "does not describe a model"),
        ("config.json", {"tokenizer": {"lower": False, "start_id": 1, "end_id": 2}}, "other ids"),
        ("config.json", {"tokenizer": {"start_id": 1, "end_id": 2, "vocabulary": 3}}, "vocabulary"),
        ("preprocess.json", {"mode": "stretch"}, "stretch"),
        ("preprocess.json", {"colour": 3}, "colour"),
        ("templates.json", 3, "holds a int"),
    ],
)
def test_wrong_settings_teach(folder, file, change, message):
    path = folder / file
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **change} if isinstance(change, dict) else change))
    with pytest.raises(BadCheckpoint, match=message):
        load(folder)


def test_tokenizer_of_another_model(folder):
    ClipTokenizer().save(folder)
    with pytest.raises(BadCheckpoint, match="49408 tokens, the text tower 400"):
        load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(BadCheckpoint, match="no checkpoint folder"):
        load(tmp_path / "nowhere")
