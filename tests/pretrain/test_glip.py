import json
import signal

import pytest
import torch
from test_clip import built
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from emblema import cli
from emblema.core.batch import Record
from emblema.core.boxes import Boxes
from emblema.core.errors import BadData, NoSuchDoor
from emblema.core.method import Optim
from emblema.data.scenes import Scenes
from emblema.engine import checkpoint
from emblema.engine.train import Interrupted, preprocess_of, run_pretraining
from emblema.model import Model
from emblema.parts.anchors import answers_for, centreness, decoded, middle
from emblema.pretrain.glip import GLIP
from emblema.tasks.detection import Detection
from emblema.testing import tiny_batch
from emblema.testing.squares import squares
from tests.data.conftest import bundle

__all__ = ["bundle"]


def method(**fields):
    return GLIP(**{"arch": "tiny", "image_size": 64, "context": 64, "depth": 1} | fields)


def batch_of():
    batch = tiny_batch(3, pixels=64, boxes=True)
    batch.texts = ["a cat. red car. dog", "house. moon", "fish. big fish"]
    labels = ([2], [1, 0], [1])
    batch.boxes = [Boxes(b.xyxy, torch.tensor(n)) for b, n in zip(batch.boxes, labels)]
    return batch


@pytest.mark.parametrize("fusion", [True, False])
def test_the_terms_are_those_of_torchvision_on_targets_made_one_by_one(fusion):
    system, batch = method(fusion=fusion), batch_of()
    module = built(system)
    vlm = module["vlm"]
    torch.nn.init.normal_(vlm.head.boxes.weight, std=0.2)
    found = system.losses(module, batch)
    maps = vlm.pyramid(batch.images)
    regions = vlm.ground(maps, batch.texts)
    anchors, levels = vlm.anchors(maps, (64, 64))
    words, giou, centre, positives, weights = 0.0, 0.0, 0.0, 0, 0.0
    for b, (text, boxes) in enumerate(zip(batch.texts, batch.boxes)):
        length = len(text) + 2  # a byte is a token
        target = torch.zeros(len(anchors), length)
        thing = answers_for(anchors, levels, boxes.xyxy)
        for n, m in enumerate(thing.tolist()):
            if m < 0:
                continue
            phrase = text.split(". ")[boxes.labels[m]]
            start = 1 + text.index(". " + phrase) + 2 if ". " + phrase in text else 1
            target[n, start : start + len(phrase)] = 1
            c = centreness(middle(anchors)[n], boxes.xyxy[m])
            box = decoded(regions.offsets[b, n], anchors[n])
            giou = giou + c * generalized_box_iou_loss(box, boxes.xyxy[m])
            p = regions.centre[b, n].sigmoid()
            centre = centre - c * p.log() - (1 - c) * (1 - p).log()
            positives, weights = positives + 1, weights + c
        words = words + sigmoid_focal_loss(regions.logits[b, :, :length], target, 0.25, 2, "sum")
    assert positives > 5
    torch.testing.assert_close(found["words"], words / positives, atol=0, rtol=1e-5)
    torch.testing.assert_close(found["boxes"], 2 * giou / weights, atol=0, rtol=1e-5)
    torch.testing.assert_close(found["centre"], centre / positives, atol=0, rtol=1e-5)


def test_at_the_start_every_token_is_unlikely_and_the_scale_is_1():
    vlm = built(method())["vlm"]
    assert vlm.scale.item() == 1
    p = vlm.ground(vlm.pyramid(tiny_batch(2, pixels=64).images), ["cat. dog", "tree"]).logits.sigmoid()
    assert p.mean().item() == pytest.approx(0.01, abs=0.005)


def test_pictures_without_things_have_a_loss_of_words_only():
    batch = batch_of()
    batch.boxes = [Boxes(torch.empty(0, 4), torch.empty(0, dtype=torch.long))] * 3
    found = method().losses(built(method()), batch)
    assert found["words"] > 0 and found["boxes"] == found["centre"] == 0


def scenes(folder, **more):
    return Scenes(size=64, sizes={"train": 12, "val": 2, "test": 4}, folder=folder, **more)


def test_prompts_are_shuffled_and_labels_follow_their_phrases(bundle):
    data = scenes(bundle).split("train")
    system = method()
    read = system.prepare(data)
    record = read[0]
    assert record.text == ". ".join(data.base_classes()) and data[0].text in record.texts
    assert set(read[5].text.split(". ")) == {data.class_names[n] for n in read[5].labels}
    orders, mirrored, extra = set(), set(), set()
    for step in range(20):
        batch = system.collate([record], torch.Generator().manual_seed(step))
        names = batch.texts[0].split(". ")
        assert sorted(names[n] for n in batch.boxes[0].labels) == sorted(
            data.class_names[n] for n in record.boxes.labels
        )
        assert len(set(names)) == len(names) and set(names) <= set(data.base_classes())
        same = batch.boxes[0].xyxy.equal(record.boxes.xyxy.float())
        flipped = batch.boxes[0].xyxy[:, [2, 0]].equal(64 - record.boxes.xyxy[:, [0, 2]].float())
        assert same != flipped
        orders.add(tuple(names))
        mirrored.add(flipped)
        extra.add(len(names) - len(set(record.boxes.labels.tolist())))
    assert len(orders) > 10 and mirrored == {True, False} and len(extra) > 2 and min(extra) == 1
    few = method(negatives=0)
    few.prepare(data)
    names = few.collate([record], torch.Generator()).texts[0].split(". ")
    assert len(names) == len(set(record.boxes.labels.tolist()))


def test_things_of_novel_classes_and_crowds_are_background(bundle):
    data = scenes(bundle, novel_in_train=1.0).split("train")
    system = method()
    system.prepare(data)
    novel = data.class_names.index(data.novel_classes()[0])
    xyxy, picture = torch.tensor([[0.0, 0, 9, 9], [5, 5, 30, 30], [1, 1, 8, 8]]), data[0].image
    boxes = Boxes(xyxy, torch.tensor([novel, 0, 0]), crowd=torch.tensor([False, False, True]))
    batch = system.collate([Record(key="a", image=picture, boxes=boxes)], torch.Generator().manual_seed(1))
    assert len(batch.boxes[0]) == 1 and data.novel_classes()[0] not in batch.texts[0]
    none = system.collate([Record(key="a", image=picture)], torch.Generator())
    assert len(none.boxes[0]) == 0 and none.texts[0]
    with pytest.raises(BadData, match="boxes without labels"):
        system.collate([Record(key="a", image=picture, boxes=Boxes(xyxy))], torch.Generator())


def test_four_scenes_are_learnt_by_heart(bundle):
    data = scenes(bundle).split("train").subset([0, 1, 2, 3])
    system = method(optim=Optim(lr=3e-3, weight_decay=1e-4, batch_size=4, precision="fp32"))
    vlm = run_pretraining(system, data, steps=120, progress=False, quiet=True)
    model = Model(vlm, preprocess_of(vlm), precision="fp32", cache=False)
    assert Detection(resamples=1, images=0).run(model, data).metrics["AP50"].value > 0.5


def test_stopped_and_resumed_is_bit_identical(bundle, tmp_path):
    data, options = scenes(bundle).split("train"), {"save_every": 1, "progress": False, "quiet": True, "steps": 4}
    system = method(optim=Optim(batch_size=4, precision="fp32"))
    for run, stops in (("whole", False), ("run", True)):

        def ask_to_stop(vlm, step):
            signal.raise_signal(signal.SIGTERM)
            return {}

        if stops:
            with pytest.raises(Interrupted):
                run_pretraining(system, data, tmp_path / run, evaluate=ask_to_stop, evaluate_every=2, **options)
        run_pretraining(system, data, tmp_path / run, **options)
    for part in ("model", "optimizer"):
        a, b = (checkpoint.latest(tmp_path / r) / f"{part}.safetensors" for r in ("whole", "run"))
        assert a.read_bytes() == b.read_bytes(), part


def test_from_the_verb_to_boxes_and_their_measure(bundle, tmp_path, capsys, monkeypatch):
    from emblema.data import catalog

    monkeypatch.setattr(catalog, "load", lambda name: scenes(bundle))
    run = str(tmp_path / "run")
    small = ["--arch", "tiny", "--image-size", "64", "--context", "64", "--depth", "1", "--optim.batch-size", "4"]
    assert cli.main(["pretrain", "glip", "--data", "emblem-scenes", "--out", run, "--steps", "2", *small]) == 0
    model = run + "/model"
    scenes(bundle).split("test")[0].image.save(tmp_path / "scene.png")
    capsys.readouterr()
    asked = [str(tmp_path / "scene.png"), "--model", model, "--labels", "cat,red car", "--score", "0", "--json"]
    assert cli.main(["detect", *asked]) == 0
    assert json.loads(capsys.readouterr().out)[0]["error"] is None
    assert cli.main(["evaluate", "detection", "--data", "emblem-scenes", "--model", model, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["system"] == "grounded" and 0 <= line["metrics"]["AP50"]["value"] <= 1
    assert not line["protocol"]["templates"]


def test_data_and_towers_that_do_not_fit_are_refused():
    with pytest.raises(BadData, match=r"squares has no boxes.*emblem-scenes"):
        method().prepare(squares(each=2))
    with pytest.raises(NoSuchDoor, match="ViT"):
        GLIP(arch="rn50").config()
    with pytest.raises(BadData, match="boxes whose labels"):
        method().losses(built(method()), tiny_batch(2, pixels=64))
