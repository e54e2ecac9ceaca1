import pytest
import torch

from emblema.core.batch import Record
from emblema.core.boxes import Boxes, Masks
from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data.coco import read_coco
from emblema.data.datasets import Records
from emblema.engine.dense import DenseFeatures, ZeroShotSegmenter, averaged, label_map, windows
from emblema.tasks.segmentation import Segmentation, score, spread, to_map, truth_of
from emblema.tasks.vocabulary import vocabulary
from emblema.testing import tiny_model
from emblema.testing.squares import square


class Oracle:
    """A segmenter that knows the truth, as scores or as a label map."""

    name = "oracle"

    def __init__(self, maps, scores=True):
        self.maps, self.scores = iter(maps), scores

    def segment(self, images, labels):
        for _ in images:
            truth = next(self.maps)
            if not self.scores:
                yield truth
                continue
            hot = torch.nn.functional.one_hot(truth.masked_fill(truth == 255, len(labels)), len(labels) + 1)
            yield hot.permute(2, 0, 1).float()


@pytest.fixture(scope="module")
def model():
    return tiny_model(cache=False, precision="fp32")


def mini(names, maps, **columns):
    """Records of label maps."""
    count = len(maps)
    given = {"key": [f"p{i}" for i in range(count)], "image": [square(0, i) for i in range(count)]}
    masks = [Masks(torch.tensor(m)) for m in maps]
    card = DatasetCard(name="mini", title="Mini", task="segmentation", classes=len(names))
    return Records(card, given | {"mask": masks} | columns, names)


@pytest.mark.parametrize("scores", [True, False])
def test_the_truth_is_worth_one(scenes, scores):
    maps = [r.mask.labels for r in scenes]
    task = Segmentation(background="own", resamples=20)
    found = task.evaluate(Oracle(maps, scores), scenes)
    assert {k: v["value"] for k, v in found["metrics"].items()} == dict.fromkeys(
        ("mIoU", "pixel_accuracy", "class_accuracy", "mIoU_seen", "mIoU_unseen", "hIoU"), 1.0
    )
    assert found["protocol"]["name"] == "segmentation-background/emblem-scenes/test"
    assert len(found["tables"]["per_class"]) == 13 and found["predictions"][0]["image"].size[0] > 1000


def test_zero_shot_says_what_the_cosines_say(scenes, model):
    task = Segmentation(resamples=20, zero_shot=ZeroShotSegmenter(features="values", enlarge=1.0))
    found = task.run(model, scenes)
    dense = model.vlm.encode_patches(task.zero_shot.pixels(model, scenes[0].image)[None], values=True)[0]
    z = model.class_vectors(scenes.class_names, ["a photo of a {}."])
    cosine = torch.nn.functional.interpolate((dense @ z.T).permute(2, 0, 1)[None], (64, 64), mode="bilinear")[0]
    (said,) = task.zero_shot.segment(model, [scenes[0].image], scenes.class_names, ["a photo of a {}."])
    torch.testing.assert_close(said, cosine, atol=1e-5, rtol=1e-4)
    assert 0 <= found.metrics["mIoU"].value <= 1 and found.sizes["classes"] == 12
    assert task.system(model) == "maskclip" and Segmentation().system(model) == "zero-shot-local"


def test_windows_cover_the_picture_and_stay_inside():
    assert windows(10, 20, 0, 1) == [(0, 0, 10, 20)]
    places = windows(10, 23, 10, 7)
    assert [x for _, x, *_ in places] == [0, 7, 13] and {y for y, *_ in places} == {0}
    whole = torch.arange(230.0).view(1, 10, 23)  # a model that looks at a pixel alone: windows change nothing
    parts = [whole[:, y : y + h, x : x + w] for y, x, h, w in places]
    torch.testing.assert_close(averaged(parts, places, (10, 23)), whole)


def test_one_window_as_large_as_the_picture_is_no_window(model, scenes):
    image, names = [scenes[0].image], ["cat", "bus"]
    read = lambda **kw: next(ZeroShotSegmenter(features="plain", **kw).segment(model, image, names))
    torch.testing.assert_close(read(enlarge=2.0, window=2.0), read(enlarge=2.0))
    assert read(enlarge=2.0, window=1.0).shape == (2, 64, 64)


@pytest.mark.parametrize("background", ["prompts", "threshold", "cam"])
def test_backgrounds_add_a_plane(model, scenes, background):
    segmenter = ZeroShotSegmenter(features="plain", threshold=1.1)
    (said,) = segmenter.segment(model, [scenes[0].image], ["cat", "bus"], None, background)
    assert said.shape == (3, 64, 64)
    if background == "threshold":  # no probability reaches 1.1
        assert (label_map(said, 2) == 255).all()
    if background == "cam":
        torch.testing.assert_close(said[2], (1 - said[:2].amax(0)) ** 2)


def test_weak_labels_compete_within_the_picture():
    data = mini(["a", "b", "c"], [[[0, 0], [2, 255]], [[1, 1], [255, 1]]])
    task = Segmentation(labels="image", resamples=5)
    last = lambda images, names: [torch.stack([torch.full((2, 2), float(i)) for i in range(len(names))])] * len(images)
    student = type("Last", (), {"name": "last", "segment": staticmethod(last)})()
    found = task.run(student, data)
    table = {row["class"]: row["IoU"] for row in found.tables["per_class"]}
    assert table == {"a": 0.0, "b": 1.0, "c": pytest.approx(1 / 3)}  # "c" is the last class of the first picture
    assert task.variant() == "image-labels"


def test_episodes_ask_for_one_class_against_all_else():
    data = mini(["a", "b"], [[[0, 0], [1, 255]], [[1, 1], [255, 1]]])
    asked = []

    def left(images, names):  # says that the left half is what was asked for
        asked.append(list(names))
        return [torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])] * len(images)

    student = type("Left", (), {"name": "left", "segment": staticmethod(left)})()
    task = Segmentation(labels="each", background="own", resamples=5)
    found = task.run(student, data)
    assert asked == [["a"], ["b"], ["b"]] and task.variant() == "episodes-background"
    table = {row["class"]: row["IoU"] for row in found.tables["per_class"]}
    # a: 1 of 3 pixels; b: 1 of 2 in the first picture, 1 of 4 in the second
    assert table["a"] == pytest.approx(1 / 3) and table["b"] == pytest.approx(2 / 6)
    with pytest.raises(BadData, match="set a background"):
        Segmentation(labels="each")


def test_background_is_a_class_of_that_name_or_what_is_left():
    data = mini(["background", "cat"], [[[0, 1], [255, 1]]])
    told = vocabulary(data)
    assert told.names == ["cat"] and told.background == 0
    assert truth_of(data[0], told, False).tolist() == [[255, 0], [255, 0]]
    assert truth_of(data[0], told, True).tolist() == [[1, 0], [255, 0]]  # the void stays out
    things = torch.tensor([[[True, False], [False, False]]])
    crowd = Record(
        key="k",
        boxes=Boxes(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0]), crowd=torch.tensor([True])),
        mask=Masks(torch.tensor([[255, 0], [255, 0]]), things),
    )
    assert truth_of(crowd, vocabulary(mini(["cat"], [[[0]]])), True).tolist() == [[255, 0], [1, 0]]


def test_splits_by_name():
    data = mini(["sofa", "tvmonitor", "pottedplant", "sheep", "train", "cat"], [[[0]]])
    assert vocabulary(data, "voc-15-5").novel.tolist() == [True] * 5 + [False]
    assert vocabulary(data, "cat, sofa").novel.tolist() == [True, *[False] * 4, True]
    assert vocabulary(data).novel is None
    with pytest.raises(BadData, match="has classes that mini has not: airplane"):
        vocabulary(data, "airplane")


def test_seen_and_unseen_by_hand():
    told = vocabulary(mini(["a", "b", "c"], [[[0]]]), "c")
    matrix = torch.tensor([[[4, 0, 0], [0, 2, 2], [0, 0, 4]]])
    value = {k: v.value for k, v in score(matrix, told, resamples=5).metrics.items()}
    assert value["mIoU_seen"] == pytest.approx((1 + 0.5) / 2) and value["mIoU_unseen"] == pytest.approx(4 / 6)
    assert value["hIoU"] == pytest.approx(2 * 0.75 * (2 / 3) / (0.75 + 2 / 3))
    assert (
        "hIoU" not in score(matrix * torch.tensor([1, 1, 0])[:, None], told, resamples=5).metrics
    )  # nothing unseen there


def test_what_cannot_be_measured_is_refused(model):
    no_mask = mini(["a"], [[[0]]])
    no_mask.columns = no_mask.columns | {"mask": [None]}
    with pytest.raises(BadData, match="p0 has no mask"):
        Segmentation().run(model, no_mask)
    with pytest.raises(BadData, match="no pixel"):
        Segmentation().run(Oracle([torch.zeros(1, 1).long()]), mini(["a"], [[[255]]]))
    with pytest.raises(BadData, match="says 255"):
        to_map(torch.tensor([[255]]), torch.tensor([[0]]), 2, False)
    with pytest.raises(BadData, match="5 score maps for 2 classes"):
        to_map(torch.zeros(5, 1, 1), torch.tensor([[0]]), 2, False)
    with pytest.raises(BadData, match="NaN"):
        to_map(torch.full((2, 1, 1), torch.nan), torch.tensor([[0]]), 2, False)
    with pytest.raises(BadData, match="choose none, prompts"):
        Segmentation(background="sky")
    with pytest.raises(BadData, match="choose local, values, plain"):
        DenseFeatures(features="magic")
    with pytest.raises(BadData, match='"own" is of students'):
        Segmentation(background="own").run(model, mini(["a"], [[[0]]]))


def test_a_small_part_is_evenly_spread_and_said():
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 0) == [0, 1, 2] == spread(3, 5)
    data = mini(["a"], [[[0]]] * 6)
    found = Segmentation(images=3, resamples=5).run(Oracle([torch.zeros(1, 1).long()] * 3, False), data)
    assert found.sizes["images"] == 3 and "3 of 6 images" in found.notes[0]


def test_another_rule_is_another_protocol_and_another_reader_is_not(model, scenes):
    protocol = lambda **kw: Segmentation(**kw).protocol(model, scenes, "test").hash
    assert len({protocol(), protocol(background="cam"), protocol(labels="image"), protocol(images=2)}) == 4
    assert protocol() == protocol(zero_shot=ZeroShotSegmenter(features="plain"))  # systems of one table


def test_a_coco_file_of_ones_own(scenes, tmp_path, model):
    path = scenes.to_coco(tmp_path, "test", limit=3)
    found = Segmentation(resamples=5).run(model, read_coco(path))
    assert {"mIoU_seen", "mIoU_unseen", "hIoU"} <= set(found.metrics)  # the file marks novel categories
