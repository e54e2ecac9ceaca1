"""Several labels a picture."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.dualcoop import DualCoOp, asymmetric
from emblema.transfer.tai_dpt import TaIDPT, named, ranking

MODEL = tiny_model(cache=False, precision="fp32")


def several(split):
    data = squares()
    columns = {**data.columns, "labels": [(c,) for c in data.columns["label"]]}
    return Records(data.card, columns, data.class_names).split(split)


def quick(system, **changes):
    return replace(system, optim=replace(system.optim, **{"steps": 2, "precision": "fp32"} | changes))


def test_the_asymmetric_loss_without_focus_is_binary_cross_entropy():
    g = torch.Generator().manual_seed(0)
    present, absent = torch.randn(2, 5, 4, generator=g)
    labels = torch.randint(-1, 2, (5, 4), generator=g)
    known = labels >= 0
    expected = F.binary_cross_entropy_with_logits((present - absent)[known], labels[known].float(), reduction="sum")
    assert torch.allclose(asymmetric(present, absent, labels, (0.0, 0.0), 0.0), expected, rtol=1e-5)
    assert asymmetric(present, absent, torch.full((5, 4), -1)) == 0
    one, other = asymmetric(present[:2], absent[:2], labels[:2]), asymmetric(present[2:], absent[2:], labels[2:])
    assert torch.allclose(one + other, asymmetric(present, absent, labels), rtol=1e-5)


def test_flat_weights_are_mean_pooling():
    system = quick(DualCoOp(context_length=2), lr=0.0).fit(MODEL, several("train"))
    x, module = system.read(several("test")).batch(torch.arange(4)).x, system.module_
    module.sharpness = 1e-4  # flat
    present, absent = module.both(x)
    mean = x.values.flatten(1, 2).mean(1)
    assert torch.allclose(present, 5e-4 * mean @ module.positive().T, atol=1e-7)
    assert torch.allclose(absent, 5e-4 * mean @ module.negative().T, atol=1e-7)


def test_one_prompt_alone_has_no_evidence_of_absence():
    system = quick(DualCoOp(context_length=2, dual=False)).fit(MODEL, several("train"))
    x = system.read(several("test")).batch(torch.arange(4)).x
    assert system.module_.both(x)[1].abs().max() == 0


def test_labels_are_needed_and_some_must_be_known():
    with pytest.raises(BadData, match="one label a picture"):
        quick(DualCoOp(context_length=2)).fit(MODEL, squares().split("train"))
    with pytest.raises(BadData, match="no label is known"):
        quick(DualCoOp(context_length=2, known=0.0)).fit(MODEL, several("train"))
    assert quick(DualCoOp(context_length=2, known=0.3)).fit(MODEL, several("train")).module_


def test_ranking_by_hand():
    score = torch.tensor([[0.5, 2.0, 1.0]])
    labels = torch.tensor([[False, True, True]])
    assert ranking(score, labels).item() == pytest.approx(max(0, 1 + 0.5 - 2.0) + max(0, 1 + 0.5 - 1.0))
    assert ranking(score, torch.ones(1, 3, dtype=torch.bool)) == 0


def test_flat_word_weights_are_mean_pooling_and_padding_does_not_count():
    system = quick(TaIDPT(context_length=2, made=20), lr=0.0).fit(MODEL, several("train"))
    module, vlm = system.module_, MODEL.vlm
    words, real = vlm.encode_words(["a cat.", "a red car in the street."])
    _, local = module.scores(vlm.encode_text(["a cat.", "x."]), words, real, 0.0)
    for row in range(2):
        mean = words[row, real[row]].mean(0)
        assert torch.allclose(local[row], 4 * mean @ module.part().T, atol=1e-5)


def test_captions_name_classes_as_whole_words():
    found = named(["two cats and a red_car", "catalogue", "a red car"], ["cat", "red_car"])
    assert found.tolist() == [[True, False], [False, False], [False, True]]


def test_captions_of_ones_own(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("nothing of the kind\n")
    with pytest.raises(BadData, match="none of 1 captions names a class"):
        quick(TaIDPT(context_length=2, captions=str(file))).fit(MODEL, several("train"))
    file.write_text(f"a {squares().class_names[0]}\nnothing\n")
    system = quick(TaIDPT(context_length=2, captions=str(file))).fit(MODEL, several("train"))
    assert system.predict(several("test")).shape == (24, 4)
