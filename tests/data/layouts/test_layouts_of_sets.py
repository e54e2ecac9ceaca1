"""Each layout of the survey's sets: a fresh tree passes its check, and every loss of a file is named."""

import fnmatch
import shutil

import pytest

from emblema.core.errors import BadData
from emblema.data import catalog, survey
from emblema.data.catalog import load
from emblema.data.layouts import locate
from emblema.data.pictures import open_picture
from emblema.data.verify import verify

from . import trees

# (set, tree, layout, {split: records}, files that are not needed, or whose absence nothing can tell)
CASES = [
    ("caltech101", trees.caltech101, "zhou", {"train": 2, "val": 2, "test": 2}, ("*BACKGROUND*", "split_zhou*")),
    ("food101", trees.food101, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("dtd", trees.dtd, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("eurosat", trees.eurosat, "zhou", {"train": 2, "val": 2, "test": 2}, ("split_zhou*",)),
    ("flowers102", trees.flowers, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("pets", trees.pets, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("cars", trees.cars, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("sun397", trees.sun397, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("ucf101", trees.ucf101_frames, "zhou", {"train": 2, "val": 2, "test": 2}, ()),
    ("aircraft", trees.aircraft, "lists", {"train": 1, "val": 1, "test": 2}, ()),
    ("food101", trees.food101_own, "lists", {"train": 2, "test": 1}, ()),
    ("dtd", trees.dtd_own, "lists", {"train": 1, "val": 1, "test": 1}, ()),
    ("eurosat", trees.eurosat_own, "classes", {"train": 10, "val": 4, "test": 6}, ("*_10.jpg",)),
    ("caltech101", trees.caltech101_own, "classes", {"train": 10, "val": 4, "test": 6}, ("*_0010.jpg", "*Faces_easy*")),
    ("pets", trees.pets_own, "lists", {"train": 2, "test": 1}, ()),
    ("sun397", trees.sun397_own, "lists", {"train": 2, "test": 1}, ()),
    ("flowers102", trees.flowers_own, "flowers", {"train": 1, "val": 1, "test": 2}, ()),
    ("cars", trees.cars_own, "cars", {"train": 2, "test": 2}, ()),
    ("cars", trees.cars_mirror, "classes", {"train": 2, "test": 2}, ()),
    ("cars", trees.hugging_face, "hf_parquet", {"train": 2, "test": 2}, ()),
    ("sun397", trees.hugging_face, "hf_parquet", {"train": 2, "test": 2}, ()),
    ("birdsnap", trees.webdataset, "wds", {"train": 2, "test": 4}, ("*templates.txt",)),
    ("rendered-sst2", trees.class_folders, "classes", {"train": 2, "val": 2, "test": 2}, ()),
    ("imagenet", trees.imagenet, "classes", {"train": 2, "test": 2}, ("classnames.txt",)),
    ("imagenet", trees.imagenet_kaggle, "imagenet_kaggle", {"train": 1, "test": 1}, ()),
    ("imagenet-v2", trees.imagenet_v2, "classes", {"test": 4}, ()),
    ("imagenet-a", trees.imagenet_a, "classes", {"test": 2}, ("README.txt",)),
    ("imagenet-r", trees.imagenet_r, "classes", {"test": 2}, ()),
    ("imagenet-sketch", trees.imagenet_sketch, "classes", {"test": 2}, ()),
    ("cifar10", trees.cifar10, "cifar", {"train": 10, "test": 2}, ("readme.html",)),
    ("cifar100", trees.cifar100, "cifar", {"train": 2, "test": 2}, ()),
    ("mnist", trees.mnist, "idx", {"train": 2, "test": 2}, ()),
    ("stl10", trees.stl10, "stl10", {"train": 2, "test": 2}, ()),
    ("svhn", trees.svhn, "svhn", {"train": 2, "test": 2}, ()),
    ("pcam", trees.pcam, "pcam", {"train": 2, "val": 2, "test": 2}, ()),
    ("gtsrb", trees.gtsrb, "gtsrb", {"train": 2, "test": 1}, ()),
    ("gtsrb", trees.gtsrb_kaggle, "gtsrb", {"train": 1, "test": 1}, ()),
    ("kitti-distance", trees.kitti, "kitti", {"train": 16, "val": 2, "test": 2}, ()),
    ("iiit5k", trees.iiit5k, "iiit5k", {"train": 3, "test": 3}, ()),
    ("rareact", trees.rareact, "rareact", {"test": 4}, ()),
    ("fer2013", trees.fer2013, "fer2013", {"train": 1, "val": 1, "test": 1}, ()),
    ("hateful-memes", trees.memes, "memes", {"train": 2, "test": 1}, ("train.jsonl",)),
    ("clevr-counts", trees.clevr, "clevr", {"train": 1, "test": 1}, ()),
    ("country211", trees.country211, "classes", {"train": 2, "val": 2, "test": 2}, ()),
    ("flickr30k", trees.flickr30k, "karpathy", {"train": 1, "val": 1, "test": 1}, ()),
    ("coco-captions", trees.coco_karpathy, "karpathy", {"train": 2, "val": 1, "test": 1}, ()),
    ("coco-captions", trees.coco_captions_2014, "coco_sets", {"train": 1, "test": 1}, ()),
    ("coco-2014", trees.coco_2014, "coco_sets", {"train": 2, "test": 2}, ()),
    ("coco-2017", trees.coco, "coco_sets", {"train": 2, "test": 2}, ()),
    ("lvis", trees.lvis, "lvis", {"train": 1, "test": 1}, ("lvis_v1_train.json",)),
    ("odinw", trees.odinw, "roboflow", {"train": 1, "val": 1, "test": 1}, ()),
    ("voc-2007", trees.voc_2007, "voc", {"train": 1, "test": 1}, ()),
    ("voc-2012", trees.voc_2012, "voc", {"train": 1, "test": 1}, ()),
    ("voc-2012-background", trees.voc_2012, "voc", {"train": 1, "test": 1}, ()),
    ("pascal-context", trees.pascal_context, "voc", {"train": 1, "test": 1}, ()),
    ("cityscapes", trees.cityscapes, "maps", {"train": 1, "test": 1}, ("*color.png", "*polygons.json")),
    ("ade20k", trees.ade20k, "maps", {"train": 1, "test": 1}, ()),
    ("coco-stuff", trees.coco_stuff, "maps", {"train": 1, "test": 1}, ()),
    ("ucf101", trees.ucf101_videos, "lists", {"train": 1, "test": 1}, ("*classInd.txt",)),
    ("ucf101", trees.ucf101_frame_folders, "lists", {"train": 1, "test": 1}, ("*classInd.txt", "*.jpg")),
    ("kinetics700", trees.kinetics, "classes", {"train": 2, "test": 2}, ()),
]
IDS = [f"{name}-{build.__name__}" for name, build, *_ in CASES]


def verdict_of(name, root):
    return verify(*catalog.brought(f"{name}:{root}"))


def faults(name, root):
    """What the check says; where nothing of a set is left, what it says instead of looking."""
    try:
        return "; ".join(verdict_of(name, root).problems)
    except BadData as error:
        return str(error)


@pytest.mark.parametrize(("name", "build", "layout", "splits", "free"), CASES, ids=IDS)
def test_a_fresh_tree_passes_and_every_loss_is_named(name, build, layout, splits, free, tmp_path):
    build(tmp_path)
    verdict = verdict_of(name, tmp_path)
    assert verdict.problems == [] and verdict.layout == layout
    assert {s: c["found"] for s, c in verdict.splits.items() if s != "all"} in (splits, {})
    records = load(f"{name}:{tmp_path}")
    assert records.splits == splits and records.card.name == name and len(set(records.keys)) == len(records)
    one = load(f"{name}:{tmp_path}", "test")
    assert len(one) == splits["test"]
    for record in (records[0], one[0]):
        frames = record.image if isinstance(record.image, list) else [record.image]
        assert frames and all(open_picture(f).size for f in frames)
        assert record.label is None or 0 <= record.label < len(records.class_names)

    files = [f for f in sorted(tmp_path.rglob("*")) if f.is_file()]
    removed = 0
    for file in files:
        if any(fnmatch.fnmatch(file.relative_to(tmp_path).as_posix(), f"*{p}" if p[0] != "*" else p) for p in free):
            continue
        away = tmp_path.parent / f"{tmp_path.name}-away"
        shutil.move(file, away)
        said = faults(name, tmp_path)
        stem = file.name.split(".")[0]
        assert stem in said or file.parent.name in said, (file, said)
        assert str(file.parent) in said or str(file.parent.parent) in said, (file, said)
        shutil.move(away, file)
        removed += 1
    assert removed and verdict_of(name, tmp_path).ok


@pytest.mark.parametrize(("name", "build", "layout"), [c[:3] for c in CASES], ids=IDS)
def test_a_path_alone_is_recognised_or_left_to_the_general_readers(name, build, layout, tmp_path):
    build(tmp_path)
    at = locate(survey.SETS[name], tmp_path)
    loose = layout in ("classes", "wds", "hf_parquet", "roboflow", "memes") or build is trees.gtsrb_kaggle
    try:
        found = catalog.brought(at.root)
    except BadData as error:
        assert f"{name}:" in str(error) or f"or {name}" in str(error) or "background" in name, error
    else:
        assert (found is None) if loose else found is not None and found[0].name in (name, name.split("-background")[0])
