import dataclasses

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from test_clip import built, gradients

from emblema.core.errors import BadData
from emblema.engine.loader import Loader
from emblema.pretrain.unicl import UniCL
from emblema.testing import tiny_batch
from emblema.testing.squares import squares

METHOD = UniCL(arch="tiny")


def both(batch):
    """(UniCL's loss and gradients, CLIP's loss and gradients) for a batch."""
    module = built(METHOD)
    vlm = module["vlm"]
    ours = METHOD.losses(module, batch)["image_text_label"]
    clip = ClipLoss()(vlm.encode_image(batch.images), vlm.encode_text(batch.texts), vlm.scale)
    return ours, gradients(module, ours), clip, gradients(module, clip)


def assert_equal(ours, g, clip, h):
    torch.testing.assert_close(ours, clip, atol=1e-6, rtol=0)
    for name in g:
        torch.testing.assert_close(g[name], h[name], atol=1e-6, rtol=1e-4)


def test_the_loss_is_cross_entropy_with_the_labels_as_probabilities():
    module, batch = built(METHOD), tiny_batch(8)
    vlm = module["vlm"]
    S = vlm.scale * vlm.encode_image(batch.images) @ vlm.encode_text(batch.texts).T
    Y = (batch.labels[:, None] == batch.labels).float()
    Y = Y / Y.sum(1, keepdim=True)
    expected = (F.cross_entropy(S, Y) + F.cross_entropy(S.T, Y)) / 2
    torch.testing.assert_close(METHOD.losses(module, batch)["image_text_label"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("labels", [None, torch.full((8,), -1), torch.arange(8)], ids=["none", "-1", "all different"])
def test_without_shared_labels_it_is_clip(labels):
    assert_equal(*both(dataclasses.replace(tiny_batch(8), labels=labels)))


def test_with_one_text_a_label_it_is_clip():
    batch = tiny_batch(8)
    assert_equal(*both(dataclasses.replace(batch, texts=[f"a thing {int(y)}" for y in batch.labels])))


def test_with_several_texts_a_label_it_is_not():
    ours, _, clip, _ = both(tiny_batch(8))
    assert (ours - clip).abs() > 1e-4


def test_labelled_pictures_get_a_template_at_each_access():
    records = squares(each=3).split("train")
    del records.columns["text"], records.columns["texts"]
    data = METHOD.prepare(records)
    assert data[0].text is not None and "red square" in data[0].text and len(data[0].texts) >= 1
    loader = Loader(dataset=data, batch_size=4, size=32)
    said = {t for step in range(9) for t in loader.batch(step).texts if "red" in t}
    assert len(said) > 1


def test_any_column_may_say_what_belongs_together():
    records = squares(each=3).split("train")
    data = UniCL(arch="tiny", label="domain").prepare(records)
    assert [data[i].label for i in range(3)] == [0, 1, 2] and data[0].text == "a red square"
    with pytest.raises(BadData, match="no such column"):
        UniCL(arch="tiny", label="colour").prepare(records)
