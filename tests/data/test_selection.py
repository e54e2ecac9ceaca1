import gc
import random
import types
from collections import defaultdict

import pytest
import torch

from emblema.core.boxes import Boxes, Masks
from emblema.core.card import DatasetCard
from emblema.core.errors import BadData, SealedSplit
from emblema.data import catalog, fewshot
from emblema.data.datasets import Records
from emblema.data.selection import Selection, base_and_novel


def labelled(train, test, val=0, shuffled=0, name="toy"):
    """A set with so many pictures a class: an int for all classes, or a list of them."""
    classes = len(train)
    each = lambda n, c: n if isinstance(n, int) else n[c]
    rows = [(split, c, i) for split, n in (("train", train), ("val", val), ("test", test)) for c in range(classes)
            for i in range(each(n, c))]  # fmt: skip
    random.Random(shuffled).shuffle(rows)
    columns = {
        "key": [f"{split}/{c}/{i}" for split, c, i in rows],
        "image": [f"{split}-{c}-{i}".encode() for split, c, i in rows],
        "label": [c for _, c, _ in rows],
        "split": [split for split, _, _ in rows],
    }
    card = DatasetCard(name=name, title=name, task="classification", classes=classes)
    return Records(card, columns, [f"class {c}" for c in range(classes)])


def as_coop_does(rows, shots, val_shots):
    """CoOp's procedure with the global generator, written from its description: train, then val, one seeding."""
    drawn = []
    for split, n in (("train", shots), ("val", val_shots)):
        tracker = defaultdict(list)
        for key, label, own in rows:
            if own == split:
                tracker[label].append(key)
        for items in tracker.values():
            drawn.append(random.sample(items, n) if len(items) >= n else items)
    return [key for keys in drawn for key in keys]


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_draw_is_coops(shots, seed):
    records = labelled([20, 16, 3, 30], [2] * 4, [5, 1, 0, 9], shuffled=7)
    seen = Selection(records, shots, seed)
    random.seed(seed)
    rows = list(zip(records.keys, records.labels, records.column("split")))
    assert seen.draw["train"] + seen.draw["val"] == as_coop_does(rows, shots, min(shots, 4))
    assert seen.train.keys == seen.draw["train"] and seen.val.keys == seen.draw["val"]
    assert (seen.draw["shots"], seen.draw["seed"]) == (shots, seed)


def test_base_pictures_are_those_of_the_few_shot_draw():
    records = labelled([20] * 5, [2] * 5, [6] * 5)
    whole, base = Selection(records, 16, 2), Selection(records, 16, 2, "base")
    in_base = [k for k, label in zip(whole.train.keys, whole.train.labels) if label < 3]
    assert base.train.keys == in_base and base.class_names == ["class 0", "class 1", "class 2"]
    assert set(base.train.labels) == {0, 1, 2} and len(base.val) == 12


# classes, base classes, 16-shot base training pictures, base test pictures: logs of the official code
LOGS = {
    "dtd": ([60] * 47, [36] * 47, 24, 384, 864),
    "eurosat": ([1000] * 10, [900, 900, 900, 750, 750, 600, 750, 900, 750, 900], 5, 80, 4200),
    "food101": ([500] * 101, [300] * 101, 51, 816, 15300),
    "sun397": ([40] * 397, [50] * 397, 199, 3184, 9950),
    "caltech101": ([41] * 100, [31] * 49 + [30] + [18] * 50, 50, 800, 1549),
    "fgvc_aircraft": ([33] * 100, [33] * 34 + [34] * 16 + [33] * 50, 50, 800, 1666),
    "oxford_flowers": ([40] * 102, [20] * 18 + [21] * 33 + [24] * 51, 51, 816, 1053),
    "oxford_pets": ([79] * 37, [99] * 19 + [100] * 18, 19, 304, 1881),
    "stanford_cars": ([33] * 196, [41] * 82 + [40] * 16 + [41] * 98, 98, 1568, 4002),
    "ucf101": ([75] * 101, [38] * 47 + [37] * 4 + [35] * 50, 51, 816, 1934),
}


@pytest.mark.parametrize("name", LOGS)
def test_base_counts_equal_those_of_the_official_logs(name):
    train, test, base, pictures, tested = LOGS[name]
    records = labelled(train, test, 4, name=name)
    seen = Selection(records, 16, 1, "base")
    assert (len(seen.class_names), len(seen.train)) == (base, pictures)
    assert len(records.split("test").only_classes(seen.class_names)) == tested
    assert set(seen.train.labels) == set(range(base))


def test_halves():
    for k, base in ((47, 24), (37, 19), (101, 51), (397, 199), (10, 5), (2, 1)):
        first, rest = fewshot.halves([str(i) for i in range(k)])
        assert len(first) == base and first + rest == [str(i) for i in range(k)]
    with pytest.raises(BadData, match="cannot be halved"):
        fewshot.halves(["one"])


def within_reach(thing):
    """All that can be reached from an object through attributes and containers."""
    seen, todo = {}, [thing]
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | types.ModuleType | types.BuiltinFunctionType):
            continue
        seen[id(one)] = one
        todo += [c.cell_contents for c in one.__closure__ or ()] if isinstance(one, types.FunctionType) else (
            gc.get_referents(one))  # fmt: skip
    return seen.values()


@pytest.mark.parametrize("classes", ["all", "base"])
@pytest.mark.parametrize("shots", [0, 2, None])
def test_selection_code_cannot_read_the_test_split(shots, classes):
    records = labelled([6, 6, 6, 6], [3] * 4, [2] * 4)
    seen = Selection(records, shots, 1, classes, unlabelled=True)
    with pytest.raises(SealedSplit, match=r"cannot read the test split of toy: choose settings and epochs on `.val`"):
        seen.test  # noqa: B018
    for part in (seen.train, seen.val, seen.unlabelled):
        with pytest.raises(BadData, match="no split 'test'"):
            part.split("test")
        assert len(part.where(split="test")) == 0
        assert all(len(values) == len(part) for values in part.columns.values())
    reached = [x for x in within_reach(seen) if isinstance(x, str | bytes)]
    tests = {*records.split("test").keys, *records.split("test").column("image")}
    assert tests & {*records.columns["key"], *records.columns["image"]} == tests
    assert not tests & set(reached) and not any(x is records for x in within_reach(seen))


def test_a_bundled_selection_holds_no_test_picture(bundle):
    records = catalog.load("emblem-objects", folder=bundle)
    seen = Selection(records, 1, 1)
    tests = set(records.split("test").keys) | set(records.split("test").column("image"))
    assert not tests & {x for x in within_reach(seen) if isinstance(x, str | bytes)}
    assert seen.train[0].image == fewshot.take(records, seen.train.keys[:1])[0].image


def test_scenes_are_sealed_and_narrowed(bundle):
    from emblema.data.scenes import Scenes

    scenes = Scenes(size=64, sizes={"train": 4, "val": 2, "test": 4}, folder=bundle, novel_in_train=True)
    whole = Selection(scenes, None, 1)
    assert whole.train[2].text == scenes.split("train")[2].text
    with pytest.raises(SealedSplit, match="scenes of the test split"):
        whole.train.scene(0, "test")
    base = Selection(scenes, None, 1, "base", novel="marked")
    assert base.class_names == scenes.base and len(base.train) == 4
    dropped = 0
    for few, full in zip(base.train, scenes.split("train")):
        kept = [int(v) for v in full.boxes.labels if v < 8]
        assert few.boxes.labels.tolist() == kept and list(few.labels) == sorted(kept)
        assert len(few.mask.instances) == len(kept)
        assert torch.equal(few.mask.labels, torch.where(full.mask.labels < 8, full.mask.labels, 255))
        dropped += len(full.boxes) - len(few.boxes)
    assert dropped > 0
    weak = Selection(scenes, None, 1, hides=("boxes", "mask"))
    assert weak.train[0].boxes is None and weak.train[0].mask is None and weak.train[0].labels
    assert weak.train.column("boxes") == [None] * 4


def test_labels_of_boxes_count_through_the_base_classes():
    boxes = [Boxes(torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]]), torch.tensor([2, 1])) for _ in range(2)]
    masks = [Masks(torch.tensor([[0, 1], [2, 255]]), torch.eye(2).bool()[:, None].expand(2, 2, 2)) for _ in range(2)]
    columns = {"key": ["a", "b"], "image": ["a", "b"], "boxes": boxes, "mask": masks, "labels": [(1, 2)] * 2}
    columns["split"] = ["train", "test"]
    records = Records(DatasetCard(name="t", title="t", task="detection"), columns, ["x", "y", "z"])
    one = Selection(records, None, classes=["z", "x"]).train[0]
    assert one.boxes.labels.tolist() == [0] and one.boxes.xyxy.tolist() == [[0, 0, 1, 1]] and one.labels == (0,)
    assert one.mask.labels.tolist() == [[1, 255], [0, 255]] and len(one.mask.instances) == 1


def test_unlabelled_pictures_have_no_label_and_need_permission():
    records = labelled([6] * 2, [3] * 2)
    free = Selection(records, 0, 1, unlabelled=True)
    assert len(free.unlabelled) == 12 and len(free.train) == 0
    assert free.unlabelled.labels == [None] * 12 and free.unlabelled[3].image
    assert not set(free.unlabelled.columns) & {"label", "text", "texts", "labels"}
    with pytest.raises(SealedSplit, match="gives no unlabelled pictures of toy"):
        Selection(records, 2, 1).unlabelled  # noqa: B018


def test_validation():
    records = labelled([9] * 3, [3] * 3, [8] * 3)
    assert [len(Selection(records, k).val) for k in (1, 2, 4, 8, None, 0)] == [3, 6, 12, 12, 24, 0]
    assert len(Selection(records, 8, validation=None).val) == 24
    assert len(Selection(records, 8, held_out="val").val) == 0  # it is what is tested
    with pytest.raises(BadData, match="no splits"):
        Selection(records.split("train").alone().subset(()), 1)


def test_marked_novel_classes(bundle):
    records = catalog.load("emblem-objects", folder=bundle)
    base, novel = base_and_novel(records, "marked")
    assert novel == records.novel_classes() and sorted(base + novel) == sorted(records.class_names)
    with pytest.raises(BadData, match="marks no class as novel"):
        base_and_novel(records.where(novel=False), "marked")


def test_partition_is_half_a_fifth_and_the_rest_of_each_class():
    whole = labelled([20, 10, 3], [0] * 3)
    bare = Records(whole.card, {k: v for k, v in whole.columns.items() if k != "split"}, whole.class_names)
    one, two = fewshot.partition(bare, 1), fewshot.partition(bare, 1)
    assert one.column("split") == two.column("split") != fewshot.partition(bare, 2).column("split")
    counts = [[one.where(split=s).labels.count(c) for s in ("train", "val", "test")] for c in range(3)]
    assert counts == [[10, 4, 6], [5, 2, 3], [2, 1, 0]] and "50 % train" in one.report.notes[0]
