import pytest
import torch
import torch.nn.functional as F

from emblema.core.errors import BadData
from emblema.data.datasets import Records
from emblema.distill.base import student_recipe
from emblema.distill.maskclip_plus import MaskCLIPPlus, pseudo_labels
from emblema.engine.dense import DenseFeatures
from emblema.parts.dense import places
from emblema.testing import tiny_model
from emblema.testing.distill import placed_squares


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(cache=False, precision="fp32")


def fitted(teacher, data, **fields):
    steps = fields.pop("steps", 1)
    optim = student_recipe(steps=steps, batch_size=4)
    return MaskCLIPPlus(image_size=64, optim=optim, **fields).fit(teacher, data)


@pytest.mark.parametrize("features", ["values", "local", "plain"])
def test_pseudo_labels_are_the_maps_of_the_zero_shot_segmenter(teacher, features):
    picture, dense = placed_squares(1)[0].image, DenseFeatures(features=features)
    (z,) = dense(teacher, [dense.pixels(teacher, picture)])
    text = teacher.class_vectors(["red square", "blue square", "house"])
    pixels = MaskCLIPPlus(image_size=64).pixels([picture])
    found = places(teacher.vlm, pixels, features)
    torch.testing.assert_close(found[0], z, atol=1e-4, rtol=0)
    cosine = (found @ text.T).permute(0, 3, 1, 2)
    assert pseudo_labels(cosine, 100.0, 3).long().equal((z @ text.T).argmax(-1)[None])


def test_classes_that_are_nowhere_sure_are_dropped_and_words_of_the_background_say_nothing():
    cosine = torch.tensor([[[0.9, 0.1], [0.1, 0.30]], [[0.1, 0.1], [0.1, 0.31]], [[0.1, 0.6], [0.6, 0.1]]])[None]
    assert pseudo_labels(cosine, 10.0, 2)[0].tolist() == [[0, 255], [255, 1]]
    assert pseudo_labels(cosine, 10.0, 2, denoise=0.8)[0].tolist() == [[0, 255], [255, 0]]
    assert pseudo_labels(cosine, 10.0, 3, denoise=1.1)[0].tolist() == [[0, 2], [2, 1]]  # where none is sure, all


def test_all_pixels_annotated_is_plain_cross_entropy(teacher):
    system = fitted(teacher, placed_squares(4), mode="zero-shot")
    batch = system.collate([placed_squares(4)[i] for i in range(4)])
    for mask in batch.masks:
        mask.labels[mask.labels == 255] = 1
    batch.targets = system.targets(teacher.vlm, batch)
    (loss,) = system.losses(system.module_, batch).values()
    text, features = system.module_.text, system.module_.features(batch.images)
    logits = torch.einsum("bdhw,cd->bchw", features, text)
    torch.testing.assert_close(loss, F.cross_entropy(logits, system.truth(batch, (16, 16))))


def test_in_the_end_the_student_teaches_itself(teacher):
    system = fitted(teacher, placed_squares(4), guided=0.5)
    batch = system.collate([placed_squares(4)[i] for i in range(4)])
    batch.targets = {"labels": torch.full((4, 16, 16), 2)}
    logits = system.module_(batch.images)
    for progress, labels in ((0.2, batch.targets["labels"]), (0.7, logits.argmax(1))):
        batch.progress = progress
        (loss,) = system.losses(system.module_, batch).values()
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_annotations_of_novel_classes_are_hidden(teacher):
    data = placed_squares()
    system = fitted(teacher, data)
    batch = system.collate([data[i] for i in range(len(data))])
    assert any((data[i].mask.labels == 3).any() for i in range(len(data)))
    assert not any((mask.labels == 3).any() for mask in batch.masks)
    assert all(set(boxes.labels.tolist()) <= {0, 1, 2} for boxes in batch.boxes)


def test_flips_move_everything_together(teacher):
    data = placed_squares()
    system = fitted(teacher, data, flips=True)
    records = [data[i] for i in range(len(data))]
    plain, flipped = system.collate(records), system.collate(records, torch.Generator().manual_seed(0))
    turned = [not a.equal(b) for a, b in zip(plain.images, flipped.images)]
    assert 0 < sum(turned) < len(turned)
    for i, was in enumerate(turned):
        mask, boxes = flipped.masks[i], flipped.boxes[i]
        assert plain.masks[i].labels.equal(mask.labels.flip(-1) if was else mask.labels)
        for box, instance in zip(boxes.xyxy.int().tolist(), mask.instances):
            assert instance[box[1] : box[3], box[0] : box[2]].all()


def test_it_learns_what_it_is_shown(teacher):
    data = placed_squares(16)
    twin = Records(data.card, data.columns, data.class_names)  # nothing is novel
    system = fitted(teacher, twin, mode="zero-shot", steps=120, enlarge=1.0)
    right = [(s.argmax(0), system.collate([twin[i]]).masks[0].labels) for i, s in enumerate(system.predict(twin))]
    share = [F.interpolate(s[None, None].double(), t.shape)[0, 0][t != 255] == t[t != 255] for s, t in right]
    assert torch.cat(share).float().mean() > 0.9


@pytest.mark.parametrize(
    ("fields", "told"), [({"mode": "both"}, "annotation-free"), ({"features": "keys"}, "choose local")]
)
def test_bad_fields_are_told(teacher, fields, told):
    with pytest.raises(BadData, match=told):
        fitted(teacher, placed_squares(4), **fields)


def test_label_maps_are_asked_for(teacher):
    data = placed_squares(4)
    bare = Records(data.card, {k: v for k, v in data.columns.items() if k in ("key", "image")}, data.class_names)
    with pytest.raises(BadData, match="learns from label maps"):
        fitted(teacher, bare, mode="zero-shot")
