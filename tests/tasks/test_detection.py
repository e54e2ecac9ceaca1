import json

import pytest
import torch

from emblema.core.boxes import Boxes
from emblema.core.errors import BadData
from emblema.data.coco import read_coco
from emblema.engine.regions import ZeroShotDetector, enlarged, inside
from emblema.tasks.detection import Detection, read_proposals
from emblema.testing import tiny_model

NO = torch.empty(0, 4)


class Oracle:
    """A detector that knows the truth of the pictures in their order."""

    name = "oracle"

    def __init__(self, records, keep=lambda boxes: boxes):
        self.records, self.keep = iter(records), keep

    def detect(self, images, labels):
        for _ in images:
            record = next(self.records)
            yield self.keep(
                Boxes(
                    record.boxes.xyxy,
                    record.boxes.labels,
                    torch.ones(len(record.boxes)),
                    masks=record.mask.instances,
                )
            )


@pytest.fixture(scope="module")
def model():
    return tiny_model(cache=False, precision="fp32")


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_the_truth_is_worth_one(scenes, kind):
    found = Detection(kind=kind, resamples=20).evaluate(Oracle(scenes), scenes)
    value = {k: v["value"] for k, v in found["metrics"].items()}
    assert {"AP", "AP50", "AP75", "AP_base", "AP_novel", "AP50_novel", "AR100", "AP_small"} <= set(value)
    assert set(value.values()) == {1.0} and found["predictions"][0]["image"].size == (512, 512)
    assert found["sizes"]["things"] == sum(len(r.boxes) for r in scenes)


def test_base_and_novel_come_from_one_run(scenes):
    base_only = Oracle(scenes, lambda boxes: boxes.at(boxes.labels < 8))
    value = {k: v.value for k, v in Detection(resamples=5).run(base_only, scenes).metrics.items()}
    assert value["AP_base"] == 1 and value["AP_novel"] == 0
    present = {int(v) for r in scenes for v in r.boxes.labels}
    assert value["AP"] == pytest.approx(sum(c < 8 for c in present) / len(present))  # a mean of classes, not of boxes


def test_nothing_found_is_zero_with_an_interval(scenes):
    class Blind:
        name = "blind"

        def detect(self, images, labels):
            return [Boxes(NO)] * len(images)

    found = Detection(resamples=20).run(Blind(), scenes).metrics
    assert found["AP"].value == found["AP"].low == found["AP"].high == 0 and found["AR100"].value == 0


def test_zero_shot_of_given_boxes_is_the_probability_of_crops(model, scenes):
    image, names = scenes[0].image, ["cat", "bus"]
    box = torch.tensor([[10.0, 12, 40, 50]])
    detector = ZeroShotDetector(floor=0.0, backgrounds=(), crops=(1.0, 1.5))
    (found,) = detector.detect(model, [image], names, None, [Boxes(box)])
    crops = model.embed_images([image.crop((10, 12, 40, 50)), image.crop((2, 2, 48, 60))])
    p = model.probabilities(
        torch.nn.functional.normalize(crops.sum(0, keepdim=True), dim=-1), model.class_vectors(names)
    )
    assert found.labels.tolist() == p[0].argsort(descending=True).tolist()
    torch.testing.assert_close(found.scores, p[0].sort(descending=True).values, atol=1e-5, rtol=1e-4)
    half = ZeroShotDetector(floor=0.0, backgrounds=(), crops=(1.0, 1.5), objectness=0.5)
    (scored,) = half.detect(model, [image], names, None, [Boxes(box, scores=torch.tensor([0.25]))])
    torch.testing.assert_close(scored.scores, found.scores.sqrt() * 0.5)


def test_pooling_a_box_of_the_whole_picture_is_the_mean_of_its_places(model, scenes):
    detector = ZeroShotDetector(regions="pooled", features="plain", enlarge=1.0)
    image = scenes[0].image
    (z,) = detector._pooled(model, [image], [Boxes(torch.tensor([[0.0, 0, 64, 64]]))])
    (dense,) = detector(model, [detector.pixels(model, image)])
    mean = torch.nn.functional.normalize(dense.flatten(0, 1).mean(0), dim=0)
    assert torch.dot(z[0], mean) > 0.99


def test_suppression_is_a_class_at_a_time(model, scenes):
    two = Boxes(torch.tensor([[10.0, 10, 40, 40], [11, 10, 40, 40]]))
    (found,) = ZeroShotDetector(floor=0.0, backgrounds=()).detect(model, [scenes[0].image], ["cat", "bus"], None, [two])
    assert sorted(found.labels.tolist()) == [0, 1]


def test_pictures_without_proposals_have_no_boxes(model, scenes):
    for regions in ("crops", "pooled"):
        detector = ZeroShotDetector(regions=regions)
        found = detector.detect(model, [scenes[0].image] * 2, ["cat"], None, [Boxes(NO), Boxes(NO)])
        assert [len(f) for f in found] == [0, 0]


def test_proposals_of_a_file(model, scenes, tmp_path):
    path = tmp_path / "proposals.json"
    said = {r.key: [[*box, 0.5] for box in r.boxes.xyxy.tolist()] for r in scenes}
    path.write_text(json.dumps(said))
    task = Detection(proposals=str(path), resamples=5)
    assert task.run(model, scenes).metrics["AR100"].value > 0 and task.system(model).startswith("zero-shot-crops-")
    path.write_text(json.dumps({k: v for k, v in said.items() if k != scenes[0].key}))
    with pytest.raises(BadData, match=f"no proposals for {scenes[0].key}"):
        task.run(model, scenes)
    for wrong in ("[1]", "{", json.dumps({"a": [[1, 2, 3]]}), json.dumps({"a": [["x"]]})):
        path.write_text(wrong)
        with pytest.raises(BadData, match=r"x1, y1, x2, y2"):
            read_proposals(path)
    path.write_text(json.dumps({"a": [], "b": [[1, 2, 3, 4]]}))
    assert len(read_proposals(path)["a"]) == 0 and read_proposals(path)["b"].scores is None


def test_frequency_groups_and_federated_marks(scenes, tmp_path):
    path = scenes.to_coco(tmp_path, "test")
    said = json.loads(path.read_text())
    for category in said["categories"]:
        category["frequency"] = "rcf"[category["id"] % 3]
    there = {(a["image_id"], a["category_id"]) for a in said["annotations"]}
    for image in said["images"]:
        image["neg_category_ids"] = [] if image["id"] else [c for c in range(1, 13) if (0, c) not in there]
        image["not_exhaustive_category_ids"] = []
    path.write_text(json.dumps(said))
    records = read_coco(path)
    false = Boxes(torch.tensor([[0.0, 0, 4, 4]] * 12), torch.arange(12), torch.full((12,), 2.0))

    def noisy(boxes):
        both = Boxes(torch.cat([boxes.xyxy, false.xyxy]), torch.cat([boxes.labels, false.labels]),
                     torch.cat([boxes.scores, false.scores]))  # fmt: skip
        return both

    found = Detection(resamples=5).run(Oracle(scenes, noisy), records)
    assert {"AP_rare", "AP_common", "AP_frequent"} <= set(found.metrics) and "LVIS rules" in found.notes[0]
    for category in said["images"]:
        category.pop("neg_category_ids")
    path.write_text(json.dumps(said))
    plain = Detection(resamples=5).run(Oracle(scenes, noisy), read_coco(path))
    assert plain.metrics["AP"].value < found.metrics["AP"].value  # where a class was not looked for it cannot be wrong


def test_what_cannot_be_measured_is_refused(model, scenes):
    with pytest.raises(BadData, match="boxes only"):
        Detection(kind="masks").run(model, scenes)
    with pytest.raises(BadData, match="choose boxes or masks"):
        Detection(kind="polygons")
    with pytest.raises(BadData, match="choose crops or pooled"):
        ZeroShotDetector(regions="magic")
    bare = scenes.showing(lambda record: record.__class__(key=record.key, image=record.image))
    with pytest.raises(BadData, match="nothing can be measured"):
        Detection().run(Oracle(scenes), bare)


def test_boxes_are_cut_to_the_picture(scenes):
    image = scenes[0].image
    box = enlarged(torch.tensor([[50.0, 50, 70, 60], [80, 80, 90, 90]]), 2.0)
    assert box[0].tolist() == [40, 45, 80, 65]
    cut = inside(box, image)
    assert cut[0].tolist() == [40, 45, 64, 64] and (cut[:, 2:] - cut[:, :2]).min() >= 1
