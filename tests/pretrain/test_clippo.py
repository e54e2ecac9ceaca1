import pytest
import torch
from open_clip.loss import ClipLoss
from test_clip import built

from emblema.core.errors import NoSuchDoor
from emblema.core.find import find
from emblema.pretrain.clippo import CLIPPO
from emblema.testing import tiny_batch

METHOD = CLIPPO(arch="tiny")


def test_the_loss_is_that_of_open_clip_on_drawn_texts():
    module, batch = built(METHOD), tiny_batch(8)
    vlm = module["vlm"]
    drawn = vlm.text.render(batch.texts)
    assert torch.equal(vlm.encode_text(batch.texts), vlm.encode_image(drawn))  # one trunk: same array, same vector
    expected = ClipLoss()(vlm.encode_image(batch.images), vlm.encode_image(drawn), vlm.scale)
    torch.testing.assert_close(METHOD.losses(module, batch)["image_text"], expected, atol=1e-6, rtol=0)
    assert vlm.scale.item() == pytest.approx(10)


def test_one_tower_with_about_half_the_parameters():
    ours, clip = (
        sum(p.numel() for p in find("pretrain", n)(arch="small").build().parameters()) for n in ("clippo", "clip")
    )
    vlm = built(METHOD)["vlm"]
    assert id(vlm.image) == id(vlm.text.trunk)
    assert 0.4 < ours / clip < 0.65


def test_an_alphabet_that_was_never_seen_needs_no_vocabulary():
    vlm = built(METHOD)["vlm"]
    z = vlm.encode_text(["кот", "고양이", "cat"])
    assert z.isfinite().all() and (z @ z.T).fill_diagonal_(0).max() < 1 - 1e-6


def test_text_pairs_replace_pictures_by_drawings():
    module, batch = built(METHOD), tiny_batch(8)
    half = CLIPPO(arch="tiny", text_pairs=0.5)
    pictures = half._pictures(module["vlm"], batch)
    drawn = module["vlm"].text.render(batch.other_texts[0])
    is_drawn = (pictures == drawn).flatten(1).all(1)
    assert 0 < is_drawn.sum() < 8 and torch.equal(pictures[~is_drawn], batch.images[~is_drawn])


def test_a_convolutional_tower_is_refused():
    with pytest.raises(NoSuchDoor, match="Choose another arch"):
        CLIPPO(arch="demo").build()
