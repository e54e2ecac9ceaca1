"""What the readers make of their files: labels, names, pixels, boxes and masks, against other libraries or by hand."""

import json
import pickle

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from torchvision.datasets.mnist import read_image_file

from emblema.core.card import DatasetCard
from emblema.core.errors import BadData
from emblema.data import naming, survey
from emblema.data.catalog import load
from emblema.data.datasets import Records
from emblema.data.layouts import lvis
from emblema.data.templates import IMAGENET, templates_for
from emblema.data.verify import base_counts, compare_base

from . import trees


def test_coop_splits_keep_the_order_of_the_file(tmp_path):
    trees.ucf101_frames(tmp_path)
    records = load(f"ucf101:{tmp_path}", "train")
    assert records.class_names == ["Yo Yo", "Apply Lipstick"]  # by label, not by the alphabet; without underscores
    assert records.labels == [1, 0] and records.keys[0] == "Apply_Lipstick/image_10.jpg"
    assert templates_for("eurosat")[0] == "a centered satellite photo of {}." and len(templates_for("ucf101")) == 48
    assert templates_for("imagenet-a") == IMAGENET and survey.SETS["dtd"].template == "{} texture."


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"train": [], "val": []}, "expected an object with train, val and test"),
        ({"train": [["a.jpg", 0, "x"]], "val": [["b.jpg", 0, "y"]], "test": []}, "label 0 is 'x' and, for b.jpg"),
        ({"train": [["a.jpg", 1, "x"]], "val": [], "test": []}, "0 is missing"),
    ],
)
def test_coop_splits_that_cannot_be(tmp_path, broken, message):
    trees.put(tmp_path, {"split_zhou_Food101.json": broken, "images/a.jpg": None, "images/b.jpg": None})
    with pytest.raises(BadData, match=message):
        load(f"food101:{tmp_path}")


def columns(per_class):
    """Records of a full set by its counts alone: {split: pictures of each class}."""
    split = [s for s, counts in per_class.items() for n in counts for _ in range(n)]
    label = [v for counts in per_class.values() for v, n in enumerate(counts) for _ in range(n)]
    keys = [str(i) for i in range(len(label))]
    names = [str(i) for i in range(len(per_class["test"]))]
    card = DatasetCard(name="x", title="x", task="classification")
    return Records(card, {"key": keys, "split": split, "label": label}, names)


def test_base_counts_are_those_of_the_logs():
    satellite = [3000, 3000, 3000, 2500, 2500, 2000, 2500, 3000, 2500, 3000]  # EuroSAT's classes, 30 % of them test
    thirds = {
        "train": [n // 2 for n in satellite],
        "val": [n // 5 for n in satellite],
        "test": [n * 3 // 10 for n in satellite],
    }
    assert base_counts(columns(thirds)) == survey.SETS["eurosat"].base == (5, 80, 4200)
    food = {"train": [500] * 101, "val": [200] * 101, "test": [300] * 101}
    assert base_counts(columns(food)) == survey.SETS["food101"].base
    textures = {"train": [60] * 47, "val": [24] * 47, "test": [36] * 47}
    assert (
        base_counts(columns(textures)) == survey.SETS["dtd"].base
        and compare_base(survey.SETS["dtd"], (24, 384, 864)) == []
    )
    assert "860 base test pictures (expected 864)" in compare_base(survey.SETS["dtd"], (24, 384, 860))[0]


def test_drawn_splits(tmp_path):
    trees.eurosat_own(tmp_path)
    records, again = (load(f"eurosat:{tmp_path}") for _ in range(2))
    assert records.column("split") == again.column("split") and "not CoOp's split" in records.report.notes[0]
    parts = {s: records.split(s) for s in ("train", "val", "test")}
    assert {s: [p.labels.count(i) for i in (1, 9)] for s, p in parts.items()} == {
        "train": [5, 5],
        "val": [2, 2],
        "test": [3, 3],
    }
    assert len({k for p in parts.values() for k in p.keys}) == 20 and records.class_names[9] == "Sea or Lake"
    trees.caltech101_own(tmp_path)
    assert load(f"caltech101:{tmp_path}").class_names == ["face", "ant"]


def test_imagenet_and_its_shifts(tmp_path):
    trees.imagenet(tmp_path), trees.imagenet_v2(tmp_path), trees.imagenet_a(tmp_path), trees.imagenet_r(tmp_path)
    full = load(f"imagenet:{tmp_path}", "test")
    assert (
        full.class_names[:2] == ["tench", "goldfish"] and len(set(full.class_names)) == 1000 and full.labels == [0, 1]
    )
    assert load(f"imagenet-v2:{tmp_path}").labels == [0, 10, 2, 999]  # 10 is a number, not a text after 1
    hard = load(f"imagenet-a:{tmp_path}")
    assert len(hard.class_names) == 200 and [hard.class_names[v] for v in hard.labels] == ["stingray", "pomegranate"]
    assert len(load(f"imagenet-r:{tmp_path}").class_names) == 200
    trees.put(tmp_path, {"imagenet-rendition/imagenet-r/n01558993/x.jpg": None})  # of ImageNet-A, not of R
    with pytest.raises(BadData, match="'n01558993' is no class folder of imagenet-r"):
        load(f"imagenet-r:{tmp_path}")
    with pytest.raises(BadData, match=r"no split 'val'; its splits: train, test .*its val split"):
        load(f"imagenet:{tmp_path}", "val")
    own = load(tmp_path / "imagenet/images/train")
    assert own.class_names == ["tench", "goldfish"]


def test_names_have_a_source_and_a_licence():
    for path in naming.FOLDER.glob("*.json"):
        found = naming.names_of(path.stem)
        assert found.source and found.licence and path.stem in survey.SETS, path
        assert len(set(found.classes)) == len(found.classes), path
        for other in (found.folders, found.ids):
            assert len(other) in (0, len(found.classes)) and len(set(other)) == len(other), path
        assert all(t.count("{}") == 1 for t in found.templates), path
        row = survey.SETS[path.stem]
        assert len(found.classes) in (0, row.classes, 7), path  # the survey counts 8 classes of FER2013, its files 7
    assert naming.spaced("HandStandPushups") == "Handstand Pushups" and naming.mend("hot__dog_") == "hot dog"


def test_the_survey_s_tables():
    roles = [s.role for s in survey.SETS.values()]
    assert roles.count("image-text") == 16 and roles.count("auxiliary") == 4
    in_survey = [s for s in survey.SETS.values() if s.role == "evaluation"]
    extra = {"imagenet-v2", "imagenet-sketch", "imagenet-a", "imagenet-r", "coco-stuff"}
    extra |= {"voc-2012-background", "pascal-context-background"}
    assert len([s for s in in_survey if s.name not in extra]) == 40
    for name in ("oxford_pets", "OxfordPets", "food-101", "stanford_cars", "SUN397", "caltech-101", "imagenetv2"):
        assert survey.find(name), name
    assert survey.find("coco") is None and survey.find("squares") is None
    coop = [s for s in survey.SETS.values() if s.base]
    assert len(coop) == 10
    for row in coop:
        sizes = row.layouts[0].sizes
        assert row.base[2] < sizes["test"] and row.base[1] == min(16 * row.base[0], sizes["train"])


def test_cifar(tmp_path):
    trees.cifar10(tmp_path)
    records = load(f"cifar10:{tmp_path}", "test")
    picture = np.asarray(records[0].image)
    assert picture[0, 1].tolist() == [trees.ROWS[0, c * 1024 + 1] for c in range(3)]
    assert picture[5, 0].tolist() == [trees.ROWS[0, c * 1024 + 160] for c in range(3)]
    assert [records.class_names[v] for v in records.labels] == ["frog", "truck"]
    trees.cifar100(tmp_path)
    assert load(f"cifar100:{tmp_path}").class_names[7] == "thing 07"


class Trap:
    def __reduce__(self):
        return print, ("this must not run",)


def test_no_pickle_runs_code(tmp_path, capsys):
    trees.cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    for bad, message in (
        (pickle.dumps({b"data": Trap(), b"labels": []}), r"data_batch_2: the pickle asks for builtins\.print"),
        (batch.read_bytes()[:50], "data_batch_2 is damaged"),
        (pickle.dumps({b"labels": []}), "lacks data"),
    ):
        batch.write_bytes(bad)
        with pytest.raises(BadData, match=message):
            load(f"cifar10:{tmp_path}")
    assert capsys.readouterr().out == ""


def test_mnist_as_torchvision_reads_it(tmp_path):
    trees.mnist(tmp_path)
    records = load(f"mnist:{tmp_path}", "train")
    theirs = read_image_file(str(tmp_path / "MNIST/raw/train-images.idx3-ubyte")).numpy()
    assert np.array_equal(np.stack([np.asarray(r.image) for r in records]), theirs) and records.labels == [5, 0]
    assert load(f"mnist:{tmp_path}", "test").labels == [5, 0] and records.class_names[5] == "5"
    for name, damage in (("train-images.idx3-ubyte", "it is cut short"), ("train-labels.idx1-ubyte", "no idx file")):
        file = tmp_path / "MNIST/raw" / name
        file.write_bytes(file.read_bytes()[:-1] if "cut" in damage else b"PK" + file.read_bytes())
        with pytest.raises(BadData, match=damage):
            load(f"mnist:{tmp_path}", "train")
        trees.mnist(tmp_path)


def test_other_arrays(tmp_path):
    trees.stl10(tmp_path), trees.svhn(tmp_path), trees.pcam(tmp_path), trees.fer2013(tmp_path)
    stl = load(f"stl10:{tmp_path}", "test")
    assert stl[0].image.getpixel((5, 7)) == (200, 0, 0) and [stl.class_names[v] for v in stl.labels] == [
        "truck",
        "airplane",
    ]
    svhn = load(f"svhn:{tmp_path}", "test")
    assert svhn.labels == [0, 1] and svhn[1].image.getpixel((4, 3)) == (9, 0, 0)
    pcam = pickle.loads(pickle.dumps(load(f"pcam:{tmp_path}", "val")))  # as loaders send it to other processes
    assert pcam.labels == [0, 1] and pcam[1].image.getpixel((0, 0)) == (7, 7, 7) and "metastatic" in pcam.class_names[1]
    faces = load(f"fer2013:{tmp_path}")
    assert [faces.class_names[v] for v in faces.labels] == ["angry", "happy", "neutral"] and faces[0].image.size == (
        48,
        48,
    )


def test_matlab_lists(tmp_path):
    trees.flowers_own(tmp_path), trees.cars_own(tmp_path)
    flowers = load(f"flowers102:{tmp_path}", "test")
    assert flowers.labels == [101, 0] and flowers.class_names[0] == "pink primrose" and len(flowers.class_names) == 102
    cars = load(f"cars:{tmp_path}")
    assert cars.labels == [1, 0, 0, 1] and cars.class_names[1] == "Ram C/V Cargo Van Minivan 2012"


def test_lists(tmp_path):
    trees.aircraft(tmp_path), trees.sun397_own(tmp_path), trees.pets_own(tmp_path), trees.gtsrb(tmp_path)
    planes = load(f"aircraft:{tmp_path}")
    assert planes.class_names == ["707-320", "Boeing 717"] and planes.split("test").labels == [0, 1]
    assert load(f"sun397:{tmp_path}").class_names == ["abbey", "indoor apse"]
    assert load(f"pets:{tmp_path}").class_names == ["Abyssinian", "yorkshire terrier"]
    signs = load(f"gtsrb:{tmp_path}")
    assert signs.labels == [0, 14, 16] and signs.class_names[14] == "stop"


def test_distances_of_vehicles(tmp_path):
    trees.kitti(tmp_path)
    records = load(f"kitti-distance:{tmp_path}")
    label = dict(zip(records.keys, records.labels))
    # z is 2, 6, 10, ... 78 m; picture 7 has no vehicle, and 18 m is below 20
    assert [label[f"{i:06d}"] for i in range(8)] == [0, 0, 1, 1, 1, 2, 2, 3]
    assert "car nearby" in records.class_names[1]
    by_drive = [records.column("split")[records.keys.index(f"{i:06d}")] for i in range(20)]
    assert by_drive[::2] == by_drive[1::2]  # no drive is in two splits
    (tmp_path / "kitti/training/label_2/000003.txt").write_text("Car 0 0\n")
    with pytest.raises(BadData, match="'Car 0 0' has 3 fields, expected 15"):
        load(f"kitti-distance:{tmp_path}").labels  # noqa: B018


def test_characters_of_words(tmp_path):
    trees.iiit5k(tmp_path)
    records = load(f"iiit5k:{tmp_path}", "test")
    assert [records.class_names[v] for v in records.labels] == ["A", "B", "7"]
    assert [r.image.size for r in records] == [(2, 3), (2, 4), (3, 2)]


def test_stretches_of_videos(tmp_path):
    trees.rareact(tmp_path)
    records = load(f"rareact:{tmp_path}", "test")
    first, second = records[0], records[1]  # two halves of one video that grows brighter
    brightness = lambda record: np.mean([np.asarray(frame).mean() for frame in record.image])
    assert len(first.image) == 8 and brightness(first) + 60 < brightness(second)
    assert records.class_names == ["cut phone", "hammer phone"] and records.column("annotation") == [1, 0, 3, 1]


def test_captions(tmp_path):
    trees.flickr30k(tmp_path), trees.coco_karpathy(tmp_path)
    one = load(f"flickr30k:{tmp_path}", "test")[0]
    assert (one.text, one.texts) == ("a test", ("it", "c", "d", "e"))
    assert load(f"coco-captions:{tmp_path}", "train").keys == [
        "train2014/COCO_train2014_0.jpg",
        "val2014/COCO_val2014_1.jpg",
    ]


def test_boxes_of_coco_are_those_of_its_own_library(tmp_path):
    trees.coco(tmp_path)
    records, theirs = (
        load(f"coco-2017:{tmp_path}", "test"),
        COCO(str(tmp_path / "coco/annotations/instances_val2017.json")),
    )
    assert records.class_names == ["bicycle", "car"] and records.card.task == "detection"
    for record, (image, notes) in zip(records, theirs.imgToAnns.items()):
        assert record.key == theirs.imgs[image]["file_name"]
        x, y, w, h = notes[0]["bbox"]
        assert record.boxes.xyxy.tolist() == [[x, y, x + w, y + h]]
        assert theirs.cats[notes[0]["category_id"]]["name"] == records.class_names[int(record.boxes.labels[0])]
        assert int((record.mask.instances[0].numpy() != theirs.annToMask(notes[0])).sum()) <= 21  # a border's pixels


def test_lvis_is_federated(tmp_path):
    trees.lvis(tmp_path)
    records = load(f"lvis:{tmp_path}", "test")
    assert records.keys == ["val2017/val1.jpg"] and records.column("negative") == [(1,)]
    assert records.column("not_exhaustive") == [()]
    assert lvis.frequencies(tmp_path / "lvis/lvis_v1_val.json") == ["r", "f"]


def test_voc(tmp_path):
    trees.voc_2007(tmp_path), trees.voc_2012(tmp_path), trees.pascal_context(tmp_path)
    record = load(f"voc-2007:{tmp_path}", "test")[0]
    names = load(f"voc-2007:{tmp_path}").class_names
    assert record.boxes.xyxy[0].tolist() == [0, 0, 24, 12] and record.boxes.crowd.tolist() == [False, True, False]
    assert [names[v] for v in record.labels] == ["dining table"]  # the dog is difficult
    ignored, counted = (load(f"voc-2012{x}:{tmp_path}", "test")[0].mask.labels for x in ("", "-background"))
    assert ignored.tolist() == [[255, 0], [19, 255]] and counted.tolist() == [[0, 1], [20, 255]]
    assert ignored.dtype == torch.int64
    context = load(f"pascal-context:{tmp_path}", "test")
    assert context[0].mask.labels.tolist() == [[255, 0], [58, 255]] and len(context.class_names) == 59


def test_label_maps(tmp_path):
    trees.cityscapes(tmp_path), trees.ade20k(tmp_path), trees.coco_stuff(tmp_path)
    streets = load(f"cityscapes:{tmp_path}", "test")
    assert streets[0].mask.labels.tolist() == [[255, 0], [18, 13]] and streets.class_names[13] == "car"
    rooms = load(f"ade20k:{tmp_path}", "test")
    assert rooms[0].mask.labels.tolist() == [[255, 0], [149, 2]] and rooms.class_names[2] == "thing3"
    stuff = load(f"coco-stuff:{tmp_path}", "test")
    numbers = stuff[0].mask.labels  # 11 is "street sign", which no class is
    assert numbers.tolist() == [[0, 170], [255, 255]] and stuff.class_names[170] == "wood"
    colours = tmp_path / "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"
    colours.write_bytes(trees.PNG)
    with pytest.raises(BadData, match="a picture in colours"):
        _ = streets[0].mask


def test_clips(tmp_path):
    trees.ucf101_videos(tmp_path), trees.kinetics(tmp_path)
    records = load(f"ucf101:{tmp_path}")
    assert records.class_names == ["Apply Lipstick", "Handstand Pushups"] and records.card.task == "action"
    grey = [np.asarray(f).mean() for f in records[0].image]
    wanted = [(i + 0.5) * 20 / 8 // 1 * 255 // 20 for i in range(8)]
    assert len(grey) == 8 and np.abs(np.array(grey) - wanted).max() < 6  # compression
    assert len(load(f"kinetics700:{tmp_path}", "test")[0].image) == 8  # of 3 frames
    (tmp_path / "ucf101/UCF-101/ApplyLipstick/v_ApplyLipstick_g08_c01.avi").write_bytes(b"no video")
    with pytest.raises(BadData, match="cannot be decoded as a video"):
        _ = records[0].image


def test_mirrors(tmp_path):
    trees.hugging_face(tmp_path)
    cars = load(f"cars:{tmp_path}")
    assert (
        cars.class_names == ["a cat", "a dog"]
        and cars.labels == [0, 1, 1, 0]
        and cars.splits == {"test": 2, "train": 2}
    )
    (tmp_path / "w").mkdir()
    trees.webdataset(tmp_path / "w")
    assert load(f"food101:{tmp_path / 'w'}", "test").labels == [0, 1, 0, 1]
    (tmp_path / "w/classnames.txt").write_text("missile\nmissile\n")  # as in CLIP's own list
    assert load(f"food101:{tmp_path / 'w'}").class_names == ["missile", "missile"]
    memes = tmp_path / "m"
    trees.memes(memes)
    assert load(f"hateful-memes:{memes}", "test")[0].text == "look"
    (memes / "hateful_memes/dev_seen.jsonl").write_text(json.dumps({"id": 1, "img": "img/03.png"}))
    with pytest.raises(BadData, match=r"dev_seen\.jsonl:1 is no meme"):
        load(f"hateful-memes:{memes}")
