import numpy as np
import pytest
import torch
from PIL import Image

import emblema
from emblema.core.errors import BadData, NoSuchDoor
from emblema.core.preprocess import Preprocess
from emblema.encoders.tokenizers import train_bpe
from emblema.frameworks import checkpoint
from emblema.model import Model
from emblema.pretrain.glip import GLIP

LABELS = ["cat", "red car", "tree", "small house", "boat"]


def grounder(context=64, **fields):
    method = GLIP(arch="tiny", image_size=64, context=context, depth=1, **fields)
    torch.manual_seed(0)
    vlm = method.config().build()
    vlm.text.tokenizer = train_bpe([". ".join(LABELS)] * 3, 300)
    return method, vlm.eval()


def pictures():
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(noise), Image.fromarray(noise[:, ::-1].transpose(1, 0, 2).copy())]


def test_a_model_that_was_saved_finds_the_same(tmp_path):
    method, vlm = grounder()
    checkpoint.save(tmp_path / "model", vlm, method.config(), Preprocess(size=64, mode="pad"), ["{}"])
    model = emblema.load(tmp_path / "model", precision="fp32", cache=False)
    expected = Model(vlm, Preprocess(size=64, mode="pad"), precision="fp32", cache=False)
    assert model.finds
    for one, other in zip(model.detect(pictures(), LABELS, floor=0.0), expected.detect(pictures(), LABELS, floor=0.0)):
        assert len(one) and torch.equal(one.xyxy, other.xyxy) and torch.equal(one.scores, other.scores)


def test_boxes_are_in_the_pixels_of_the_picture_and_best_first():
    _, vlm = grounder()
    model = Model(vlm, Preprocess(size=64), precision="fp32", cache=False)
    wide, high = model.detect(pictures(), LABELS, floor=0.0, most=20)
    for boxes, (width, height) in ((wide, (60, 40)), (high, (40, 60))):
        assert len(boxes) == 20 and set(boxes.labels.tolist()) <= set(range(5))
        assert (boxes.xyxy >= 0).all() and (boxes.xyxy <= torch.tensor([width, height] * 2)).all()
        assert (boxes.scores.diff() <= 0).all()
    assert not len(model.detect(pictures(), LABELS, floor=0.9)[0])


def test_whole_pictures_are_not_compared():
    _, vlm = grounder()
    model = Model(vlm, Preprocess(size=64), name="finder", precision="fp32", cache=False)
    for ask in (lambda: model.classify(pictures(), LABELS), lambda: model.embed_texts(LABELS)):
        with pytest.raises(NoSuchDoor, match=r"finder finds things .* use detect"):
            ask()


def test_a_picture_beside_its_padding_is_found_where_it_is():
    """A wide picture, and the same as a square with white above and below: the boxes differ by the margin."""
    _, vlm = grounder()
    model = Model(vlm, Preprocess(size=64), precision="fp32", cache=False)
    wide = pictures()[0].resize((64, 32))
    square = Image.new("RGB", (64, 64), (255, 255, 255))
    square.paste(wide, (0, 16))
    (a,), (b,) = (model.detect([p], LABELS, floor=0.0, most=1000, overlap=1.0) for p in (wide, square))
    moved = (b.xyxy - torch.tensor([0.0, 16, 0, 16])).clamp(min=0).minimum(torch.tensor([64, 32] * 2))
    assert len(moved) == len(a) > 50
    for box, score in zip(moved, b.scores):
        assert ((a.xyxy - box).abs().amax(1) + (a.scores - score).abs()).min() < 1e-3


def test_a_long_list_of_labels_is_asked_in_several_prompts():
    _, vlm = grounder(context=10)
    asked = list(vlm.prompts(LABELS))
    assert len(asked) > 1 and ". ".join(said for _, said, _ in asked) == ". ".join(LABELS)
    assert [start for start, *_ in asked] == np.cumsum([0, *(len(t) for *_, t in asked)])[:-1].tolist()
    (found,) = vlm.detect(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), LABELS, floor=0.0, most=10_000)
    assert set(found.labels.tolist()) == set(range(5))
    with pytest.raises(BadData, match="context of 10 tokens"):
        vlm.ground(vlm.pyramid(torch.zeros(1, 3, 64, 64)), [". ".join(LABELS)])


def test_prompts_of_unlike_length_do_not_disturb_one_another():
    _, vlm = grounder()
    maps = vlm.pyramid(torch.rand(2, 3, 64, 64))
    both = vlm.ground(maps, ["cat. red car. tree", "boat"])
    alone = vlm.ground([m[1:] for m in maps], ["boat"])
    count = int(alone.real.sum())
    assert int(both.real[1].sum()) == count < int(both.real[0].sum())
    torch.testing.assert_close(both.logits[1:, :, :count], alone.logits, atol=1e-5, rtol=1e-4)
