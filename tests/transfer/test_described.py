"""Classifiers made of descriptions."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from emblema.core.errors import BadData
from emblema.data.descriptions import descriptors
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.cupl import CuPL
from emblema.transfer.vcd import VCD, described

MODEL, DATA = tiny_model(cache=False, precision="fp32"), squares()
TEST = DATA.split("test")


def fitted(system):
    return system.fit(MODEL, DATA.split("train"))


def pictures(system):
    return system.read(TEST).arrays["pooled"][0]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(
        json.dumps({DATA.class_names[0]: ["a red colour", "four corners"], DATA.class_names[1]: ["used ink"]})
    )
    return str(path)


def test_without_descriptors_cupl_is_zero_shot(words):
    system = fitted(CuPL(templates=("a photo of a {}.",), descriptions=words))
    zero_shot = MODEL.vlm.logits(pictures(system), system.hand(MODEL.vlm, DATA.class_names))
    differs = (system.predict(TEST) - zero_shot).abs().amax(0)
    assert differs[2:].max() < 1e-4 < differs[:2].min()  # the file describes the first two classes


def test_vcd_is_the_mean_of_cosines(words):
    system = fitted(VCD(descriptions=words))
    z, scale = pictures(system), MODEL.vlm.scale
    for c, name in enumerate(DATA.class_names):
        texts = described(name, descriptors([DATA.class_names[0], DATA.class_names[1], name], words)[2])
        cosines = torch.stack([z @ MODEL.vlm.encode_text([t])[0] for t in texts])
        assert torch.allclose(system.predict(TEST)[:, c], scale * cosines.mean(0), atol=1e-4)


def test_cupl_normalises_the_mean_again(words):
    weight = fitted(CuPL(descriptions=words)).module_.weight
    assert torch.allclose(weight, normalize(weight, dim=-1), atol=1e-6)
    assert not torch.allclose(fitted(VCD(descriptions=words)).module_.weight[0].norm(), torch.tensor(1.0), atol=1e-4)


def test_prefixes():
    assert described("cat", ["a tail", "often fur", "used by people", "whiskers", "aquatic life"]) == [
        "cat, which is a tail",
        "cat, which often fur",
        "cat, which is used by people",
        "cat, which has whiskers",
        "cat, which has aquatic life",
    ]
    assert described("cat", []) == ["cat, which has "]


def test_descriptors_of_bundled_classes_and_bad_files(tmp_path):
    found = descriptors(["cat", "ankle boot", "no such thing"])
    assert found[0] and all(d.startswith("to do with ") for d in found[0]) and "a heel" in found[1] and found[2] == []
    for text, message in (("{", "cannot be read as JSON"), ("[1]", "must hold"), ('{"dog": ["x"]}', "describes none")):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(BadData, match=message):
            descriptors(["cat"], path)
