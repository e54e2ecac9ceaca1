"""The survey's data sets as rows: what they are, what is reported on them, and in which layouts people have them.

Numbers of the tables are the survey's (arXiv 2304.00685, tables of data sets); `sizes` of a layout are what its files
hold when they are whole. Reading this file imports neither torch nor a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emblema.core.errors import UnknownName
from emblema.data.survey_card import Layout, SurveySet


def _zhou(images: str, name: str, train: int, val: int, test: int) -> Layout:
    file = f"split_zhou_{name}.json"
    return Layout("zhou", {"images": images, "file": file}, {"train": train, "val": val, "test": test})


def _classes(splits: Mapping[str, str], sizes: Mapping[str, int] | None = None, **options: Any) -> Layout:
    return Layout("classes", {"splits": splits, **options}, sizes or {})


def _lists(train: str, test: str, images: str, sizes: Mapping[str, int], val: str = "", **options: Any) -> Layout:
    lists = {k: v for k, v in (("train", train), ("val", val), ("test", test)) if v}
    return Layout("lists", {"lists": lists, "images": images, **options}, sizes)


def _coco(year: int, train: int, test: int, what: str) -> Layout:
    """COCO as published: its val is what results are reported on, so it is the test split here."""
    splits = {"train": f"train{year}", "test": f"val{year}"}
    return Layout("coco_sets", {"splits": splits, "what": what}, {"train": train, "test": test})


_FOLDERS = _classes(
    {"train": "train|Train", "val": "val|valid|validation", "test": "test|Test"}, need="test", mirror=True
)
# every classification set has also been passed on so: class folders, CLIP_benchmark's shards, Hugging Face's parquet
MIRRORS = (Layout("wds"), Layout("hf_parquet"), _FOLDERS)
_VOC_FILES = {"": "JPEGImages"}
_UCF = {"train": "ucfTrainTestlist/trainlist01.txt", "test": "ucfTrainTestlist/testlist01.txt"}
_UCF_SIZES = {"train": 9537, "test": 3783}
_STUFF = {"images": "images/{split}|{split}", "splits": {"train": "train2017", "test": "val2017"}}
TEST_IS_VAL = "its val split, which results are reported on, is called test here"


def _classification(name: str, title: str, year: int, classes: int, train: int, test: int, metric: str, **rest: Any):
    layouts = (*rest.pop("layouts", ()), *MIRRORS)
    more = {"name": name, "title": title, "year": year, "classes": classes, "train": train, "test": test}
    return SurveySet(task="classification", metric=metric, layouts=layouts, **more, **rest)


_PHOTO = "a photo of a {}."
ACC, MPC = "accuracy", "mean per class"

CLASSIFICATION = (
    _classification("mnist", "MNIST", 1998, 10, 60_000, 10_000, ACC, folders=("mnist", "MNIST/raw", "raw", "MNIST"),
                    layouts=(Layout("idx", {}, {"train": 60_000, "test": 10_000}),)),
    _classification("caltech101", "Caltech-101", 2004, 102, 3_060, 6_085, MPC,
                    folders=("caltech-101", "caltech101", "Caltech101"), template=_PHOTO, base=(50, 800, 1549),
                    note="CoOp drops BACKGROUND_Google and Faces_easy: 100 classes",
                    layouts=(_zhou("101_ObjectCategories", "Caltech101", 4_128, 1_649, 2_465),
                             _classes({"": "101_ObjectCategories"}, {"all": 8_242}, draw=True, numbered=True,
                                      drop=("BACKGROUND_Google", "Faces_easy"),
                                      rename={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard",
                                              "Motorbikes": "motorbike"}))),
    SurveySet(name="voc-2007", title="PASCAL VOC 2007", year=2007, task="classification", classes=20, train=5_011,
              test=4_952, metric="11-point mAP", note="multi-label; difficult objects are ignored",
              folders=("VOC2007", "VOCdevkit/VOC2007"),
              layouts=(Layout("voc", {"splits": {"train": "trainval", "test": "test"}, "kind": "Main"},
                              {"train": 5_011, "test": 4_952}), Layout("wds"))),
    _classification("flowers102", "Oxford 102 Flowers", 2008, 102, 2_040, 6_149, MPC, base=(51, 816, 1053),
                    folders=("oxford_flowers", "flowers-102", "flowers102"),
                    template="a photo of a {}, a type of flower.",
                    layouts=(_zhou("jpg", "OxfordFlowers", 4_093, 1_633, 2_463),
                             Layout("flowers", {}, {"train": 1_020, "val": 1_020, "test": 6_149}))),
    _classification("cifar10", "CIFAR-10", 2009, 10, 50_000, 10_000, ACC,
                    folders=("cifar-10-batches-py", "cifar10", "cifar-10"),
                    layouts=(Layout("cifar", {"classes": 10}, {"train": 50_000, "test": 10_000}),)),
    _classification("cifar100", "CIFAR-100", 2009, 100, 50_000, 10_000, ACC,
                    folders=("cifar-100-python", "cifar100", "cifar-100"),
                    layouts=(Layout("cifar", {"classes": 100}, {"train": 50_000, "test": 10_000}),)),
    SurveySet(name="imagenet", title="ImageNet-1k", year=2009, task="classification", classes=1000, train=1_281_167,
              test=50_000, metric=ACC, folders=("imagenet", "ImageNet", "ILSVRC2012", "imagenet-1k"), template=_PHOTO,
              note=TEST_IS_VAL,
              layouts=(_classes({"train": "images/train", "test": "images/val"}, {"train": 1_281_167, "test": 50_000},
                                ids="imagenet", need="test"),
                       _classes({"train": "train", "test": "val"}, {"train": 1_281_167, "test": 50_000},
                                ids="imagenet", need="test"),
                       Layout("imagenet_kaggle", {}, {"train": 1_281_167, "test": 50_000}),
                       Layout("wds"), Layout("hf_parquet"))),
    _classification("sun397", "SUN397", 2010, 397, 19_850, 19_850, ACC, base=(199, 3184, 9950), template=_PHOTO,
                    folders=("sun397", "SUN397"),
                    layouts=(_zhou("SUN397", "SUN397", 15_880, 3_970, 19_850),
                             _lists("Training_01.txt|Partitions/Training_01.txt",
                                    "Testing_01.txt|Partitions/Testing_01.txt", "SUN397|.",
                                    {"train": 19_850, "test": 19_850}, line="sun"))),
    _classification("svhn", "SVHN", 2011, 10, 73_257, 26_032, ACC, folders=("svhn", "SVHN"),
                    layouts=(Layout("svhn", {}, {"train": 73_257, "test": 26_032}),)),
    _classification("stl10", "STL-10", 2011, 10, 1_000, 8_000, ACC, folders=("stl10_binary", "stl10", "STL10"),
                    note="the survey counts one fold of the 5,000 training pictures",
                    layouts=(Layout("stl10", {}, {"train": 5_000, "test": 8_000}),)),
    _classification("gtsrb", "GTSRB", 2011, 43, 26_640, 12_630, ACC, folders=("GTSRB", "gtsrb"),
                    note="26,640 in GTSRB-Training_fixed, 39,209 in the Final_Training archive",
                    layouts=(Layout("gtsrb", {"train": "Training", "test": "Final_Test/Images"},
                                    {"train": 26_640, "test": 12_630}),
                             Layout("gtsrb", {"train": "Final_Training/Images", "test": "Final_Test/Images"},
                                    {"train": 39_209, "test": 12_630}),
                             Layout("gtsrb", {"train": "Train", "test": "Test"}, {"train": 39_209, "test": 12_630}))),
    _classification("kitti-distance", "KITTI Distance", 2012, 4, 6_770, 711, ACC, folders=("kitti", "Kitti/raw"),
                    note="a part of KITTI that VTAB labels by the distance of the nearest vehicle; the survey counts "
                         "its validation drives as training",
                    layouts=(Layout("kitti", {}, {"train": 6_347, "val": 423, "test": 711}),)),
    _classification("iiit5k", "IIIT5k", 2012, 36, 2_000, 3_000, ACC, folders=("IIIT5K", "IIIT5K-Word_V3.0/IIIT5K"),
                    note="the survey counts words and 36 characters: a record is a character cut from its word",
                    layouts=(Layout("iiit5k"),)),
    _classification("pets", "Oxford-IIIT Pets", 2012, 37, 3_680, 3_669, MPC, base=(19, 304, 1881),
                    folders=("oxford_pets", "oxford-iiit-pet", "pets"), template="a photo of a {}, a type of pet.",
                    layouts=(_zhou("images", "OxfordPets", 2_944, 736, 3_669),
                             _lists("annotations/trainval.txt", "annotations/test.txt", "images",
                                    {"train": 3_680, "test": 3_669}, line="pets", suffix=".jpg"))),
    _classification("cars", "Stanford Cars", 2013, 196, 8_144, 8_041, ACC, base=(98, 1568, 4002), template=_PHOTO,
                    folders=("stanford_cars", "stanford-cars", "cars"),
                    layouts=(_zhou(".", "StanfordCars", 6_509, 1_635, 8_041),
                             Layout("cars", {}, {"train": 8_144, "test": 8_041}),
                             _classes({"train": "car_data/car_data/train|car_data/train",
                                       "test": "car_data/car_data/test|car_data/test"},
                                      {"train": 8_144, "test": 8_041}))),
    _classification("aircraft", "FGVC Aircraft", 2013, 100, 6_667, 3_333, MPC, base=(50, 800, 1666),
                    folders=("fgvc_aircraft", "fgvc-aircraft-2013b/data", "fgvc-aircraft-2013b", "data"),
                    template="a photo of a {}, a type of aircraft.",
                    layouts=(_lists("images_variant_train.txt", "images_variant_test.txt", "images",
                                    {"train": 3_334, "val": 3_333, "test": 3_333}, val="images_variant_val.txt",
                                    line="aircraft", suffix=".jpg", classes="variants.txt"),)),
    _classification("fer2013", "Facial Emotion Recognition 2013", 2013, 8, 32_140, 3_574, ACC,
                    folders=("fer2013", "FER2013"), note="the public files have 7 classes: 28,709 and 3,589 + 3,589",
                    layouts=(Layout("fer2013", {}, {"train": 28_709, "val": 3_589, "test": 3_589}),)),
    _classification("rendered-sst2", "Rendered SST2", 2013, 2, 7_792, 1_821, ACC, folders=("rendered-sst2",)),
    _classification("dtd", "Describable Textures", 2014, 47, 3_760, 1_880, ACC, base=(24, 384, 864),
                    folders=("dtd",), template="{} texture.",
                    layouts=(_zhou("images", "DescribableTextures", 2_820, 1_128, 1_692),
                             _lists("labels/train1.txt", "labels/test1.txt", "images",
                                    {"train": 1_880, "val": 1_880, "test": 1_880}, val="labels/val1.txt"))),
    _classification("food101", "Food-101", 2014, 101, 75_750, 25_250, ACC, base=(51, 816, 15300),
                    folders=("food-101", "food101"), template="a photo of {}, a type of food.",
                    layouts=(_zhou("images", "Food101", 50_500, 20_200, 30_300),
                             _lists("meta/train.txt", "meta/test.txt", "images", {"train": 75_750, "test": 25_250},
                                    suffix=".jpg"))),
    _classification("birdsnap", "Birdsnap", 2014, 500, 42_283, 2_149, ACC, folders=("birdsnap",)),
    _classification("resisc45", "RESISC45", 2017, 45, 3_150, 25_200, ACC, folders=("NWPU-RESISC45", "resisc45"),
                    layouts=(_classes({"": "NWPU-RESISC45"}, {"all": 31_500}, draw=True, numbered=True),)),
    _classification("clevr-counts", "CLEVR Counts", 2017, 8, 2_000, 500, ACC, folders=("CLEVR_v1.0", "clevr"),
                    note="counts of 3 to 10 objects; the survey's sets are parts of 70,000 and 15,000",
                    layouts=(Layout("clevr", {}, {"train": 70_000, "test": 15_000}),)),
    _classification("pcam", "PatchCamelyon", 2018, 2, 294_912, 32_768, ACC, folders=("pcam", "PCAM"),
                    layouts=(Layout("pcam", {}, {"train": 262_144, "val": 32_768, "test": 32_768}),)),
    _classification("eurosat", "EuroSAT", 2019, 10, 10_000, 5_000, ACC, base=(5, 80, 4200),
                    folders=("eurosat", "EuroSAT"), template="a centered satellite photo of {}.",
                    note="27,000 pictures; the survey counts the part that CLIP used",
                    layouts=(_zhou("2750", "EuroSAT", 13_500, 5_400, 8_100),
                             _classes({"": "2750|EuroSAT_RGB"}, {"all": 27_000}, draw=True, numbered=True))),
    _classification("hateful-memes", "Hateful Memes", 2020, 2, 8_500, 500, "ROC AUC",
                    folders=("hateful_memes", "hateful-memes", "data"),
                    layouts=(Layout("memes", {}, {"train": 8_500, "test": 500}),)),
    _classification("country211", "Country211", 2021, 211, 43_200, 21_100, ACC, folders=("country211",),
                    layouts=(_classes({"train": "train", "val": "valid", "test": "test"},
                                      {"train": 31_650, "val": 10_550, "test": 21_100}),)),
)  # fmt: skip

SHIFTS = tuple(
    SurveySet(name=name, title=title, year=year, task="classification", classes=classes, test=test, metric=ACC,
              template=_PHOTO, folders=folders, note="domain shift of ImageNet: test only",
              layouts=(_classes({"test": images}, {"test": test}, ids=ids), Layout("wds")))
    for name, title, year, classes, test, ids, images, folders in (
        ("imagenet-v2", "ImageNet-V2", 2019, 1000, 10_000, "index", "imagenetv2-matched-frequency-format-val",
         ("imagenetv2", "imagenet-v2")),
        ("imagenet-sketch", "ImageNet-Sketch", 2019, 1000, 50_889, "imagenet", "images|sketch", ("imagenet-sketch",)),
        ("imagenet-a", "ImageNet-A", 2019, 200, 7_500, "imagenet-a", "imagenet-a", ("imagenet-adversarial",)),
        ("imagenet-r", "ImageNet-R", 2020, 200, 30_000, "imagenet-r", "imagenet-r", ("imagenet-rendition",)),
    )
)  # fmt: skip

OTHERS = (
    SurveySet(name="flickr30k", title="Flickr30k", year=2014, task="retrieval", train=31_783, metric="recall",
              folders=("flickr30k", "Flickr30k"), note="Karpathy's split: 29,000, 1,014 and 1,000",
              layouts=(Layout("karpathy", {"file": "dataset_flickr30k.json|karpathy/dataset_flickr30k.json",
                                           "images": "flickr30k-images|flickr30k_images|images"},
                              {"train": 29_000, "val": 1_014, "test": 1_000}), Layout("wds"))),
    SurveySet(name="coco-captions", title="COCO Caption", year=2015, task="retrieval", train=82_783, test=5_000,
              metric="recall", folders=("coco", "COCO", "mscoco"),
              note="Karpathy's split: 82,783 and 30,504 more (restval), 5,000 and 5,000",
              layouts=(Layout("karpathy", {"file": "dataset_coco.json|karpathy/dataset_coco.json", "images": "."},
                              {"train": 113_287, "val": 5_000, "test": 5_000}),
                       _coco(2014, 82_783, 40_504, "captions"), Layout("wds"))),
    SurveySet(name="ucf101", title="UCF101", year=2012, task="action", classes=101, train=9_537, test=1_794,
              metric="accuracy", base=(51, 816, 1934), folders=("ucf101", "UCF101"),
              template="a photo of a person doing {}.", note="CoOp classifies middle frames; split 1 has 3,783 tests",
              layouts=(_zhou("UCF-101-midframes", "UCF101", 7_639, 1_898, 3_783),
                       Layout("lists", {"lists": _UCF, "images": "UCF-101", "clips": "video", "spaced": True},
                              _UCF_SIZES),
                       Layout("lists", {"lists": _UCF, "images": "UCF-101-frames|frames|rawframes", "clips": "frames",
                                        "spaced": True}, _UCF_SIZES))),
    SurveySet(name="kinetics700", title="Kinetics700", year=2019, task="action", classes=700, train=494_801,
              test=31_669, metric="mean(top1, top5)", folders=("kinetics700", "k700"), note=TEST_IS_VAL,
              layouts=(_classes({"train": "train", "test": "val"}, {}, clips="video", need="test"),)),
    SurveySet(name="rareact", title="RareAct", year=2020, task="action", classes=122, train=7_607,
              metric="mWAP, mSAP", folders=("RareAct", "rareact"), note="a clip a row of its table, all for testing",
              layouts=(Layout("rareact", {}, {"test": 7_607}),)),
    SurveySet(name="coco-2014", title="COCO 2014 detection", year=2014, task="detection", classes=80, train=83_000,
              test=41_000, metric="box mAP", folders=("coco", "COCO", "coco2014"), note=TEST_IS_VAL,
              layouts=(_coco(2014, 82_783, 40_504, "instances"),)),
    SurveySet(name="coco-2017", title="COCO 2017 detection", year=2017, task="detection", classes=80, train=118_000,
              test=5_000, metric="box mAP", folders=("coco", "COCO", "coco2017"), note=TEST_IS_VAL,
              layouts=(_coco(2017, 118_287, 5_000, "instances"),)),
    SurveySet(name="lvis", title="LVIS v1", year=2019, task="detection", classes=1203, train=118_000, test=5_000,
              metric="box mAP", folders=("lvis", "LVIS", "lvis_v1", "coco"),
              note=f"v1 has 100,170 and 19,809 pictures; {TEST_IS_VAL}",
              layouts=(Layout("lvis", {}, {"train": 100_170, "test": 19_809}),)),
    SurveySet(name="odinw", title="ODinW", year=2022, task="detection", classes=314, train=132_413, test=20_070,
              metric="box mAP", note="35 sets: one folder with train, valid and test each",
              layouts=(Layout("roboflow"),)),
    *(SurveySet(name=name, title=title, year=2012, task="segmentation", classes=classes, train=1_464, test=1_449,
                metric="mIoU", folders=("VOC2012", "VOCdevkit/VOC2012"), note=f"{note}; {TEST_IS_VAL}",
                layouts=(Layout("voc", {"splits": {"train": "train", "test": "val"}, "kind": "Segmentation",
                                        "background": classes == 21}, {"train": 1_464, "test": 1_449}),))
      for name, title, classes, note in (
          ("voc-2012", "PASCAL VOC 2012", 20, "background is ignored (VOC20)"),
          ("voc-2012-background", "PASCAL VOC 2012 with background", 21, "background is class 0 (VOC21)"))),
    *(SurveySet(name=name, title=title, year=2014, task="segmentation", classes=classes, train=4_998, test=5_105,
                metric="mIoU", folders=("VOC2010", "VOCdevkit/VOC2010"),
                note=f"{note}; of its 459 classes the 59 frequent ones are evaluated; {TEST_IS_VAL}",
                layouts=(Layout("voc", {"splits": {"train": "train", "test": "val"}, "kind": "SegmentationContext",
                                        "background": classes == 60, "names": "pascal-context",
                                        "masks": "SegmentationClassContext"}, {"train": 4_998, "test": 5_105}),))
      for name, title, classes, note in (
          ("pascal-context", "PASCAL Context", 59, "background is ignored"),
          ("pascal-context-background", "PASCAL Context with background", 60, "background is class 0"))),
    SurveySet(name="cityscapes", title="Cityscapes", year=2016, task="segmentation", classes=19, train=2_975, test=500,
              metric="mIoU", folders=("cityscapes", "Cityscapes"), note=TEST_IS_VAL,
              layouts=(Layout("maps", {"splits": {"train": "train", "test": "val"}, "images": "leftImg8bit/{split}",
                                       "masks": "gtFine/{split}", "ends": ("_leftImg8bit.png", "_gtFine_labelIds.png")},
                              {"train": 2_975, "test": 500}),)),
    SurveySet(name="ade20k", title="ADE20k", year=2017, task="segmentation", classes=150, train=25_574, test=2_000,
              metric="mIoU", folders=("ADEChallengeData2016", "ade20k", "ade/ADEChallengeData2016"),
              note=f"the benchmark's files have 20,210 and 2,000; {TEST_IS_VAL}",
              layouts=(Layout("maps", {"splits": {"train": "training", "test": "validation"},
                                       "images": "images/{split}", "masks": "annotations/{split}",
                                       "ends": (".jpg", ".png"), "first": 1, "classes": "objectInfo150.txt"},
                              {"train": 20_210, "test": 2_000}),)),
    SurveySet(name="coco-stuff", title="COCO-Stuff", year=2017, task="segmentation", classes=171, train=118_287,
              test=5_000, metric="mIoU", folders=("coco_stuff164k", "coco-stuff", "coco"),
              note=f"not in the survey's table; used for zero-shot segmentation; {TEST_IS_VAL}",
              layouts=tuple(Layout("maps", {**_STUFF, "masks": masks, "ends": (".jpg", ".png")},
                                   {"train": 118_287, "test": 5_000})
                            for masks in ("annotations/{split}|stuffthingmaps/{split}",))),
)  # fmt: skip


def _pairs(name: str, title: str, year: int, size: str, languages: str, public: str, role: str) -> SurveySet:
    note = {"yes": "public", "urls": "public as web addresses", "no": "not public"}[public]
    task = "image-text" if role == "image-text" else "auxiliary"
    return SurveySet(name=name, title=title, year=year, task=task, role=role, size=size, note=f"{languages}; {note}")


PAIRS = (
    _pairs("sbu", "SBU Caption", 2011, "1M pairs", "English", "yes", "image-text"),
    _pairs("coco-caption-pairs", "COCO Caption", 2016, "1.5M pairs", "English", "yes", "image-text"),
    _pairs("yfcc100m", "YFCC100M", 2016, "100M pairs", "English", "yes", "image-text"),
    _pairs("visual-genome", "Visual Genome", 2017, "5.4M pairs", "English", "yes", "image-text"),
    _pairs("cc3m", "CC3M", 2018, "3.3M pairs", "English", "urls", "image-text"),
    _pairs("localized-narratives", "Localized Narratives", 2020, "0.87M pairs", "English", "yes", "image-text"),
    _pairs("cc12m", "CC12M", 2021, "12M pairs", "English", "urls", "image-text"),
    _pairs("wit", "WIT (Wikipedia)", 2021, "37.6M pairs", "108 languages", "yes", "image-text"),
    _pairs("redcaps", "RedCaps", 2021, "12M pairs", "English", "yes", "image-text"),
    _pairs("laion400m", "LAION400M", 2021, "400M pairs", "English", "urls", "image-text"),
    _pairs("laion5b", "LAION5B", 2022, "5B pairs", "over 100 languages", "urls", "image-text"),
    _pairs("wukong", "WuKong", 2022, "100M pairs", "Chinese", "yes", "image-text"),
    _pairs("clip-wit", "CLIP's WebImageText", 2021, "400M pairs", "English", "no", "image-text"),
    _pairs("align-pairs", "ALIGN's pairs", 2021, "1.8B pairs", "English", "no", "image-text"),
    _pairs("filip300m", "FILIP300M", 2021, "300M pairs", "English", "no", "image-text"),
    _pairs("webli", "WebLI", 2022, "12B pairs", "109 languages", "no", "image-text"),
    _pairs("jft-3b", "JFT-3B", 2021, "about 3B pictures", "noisy labels, for CoCa", "no", "auxiliary"),
    _pairs("c4", "C4", 2019, "about 750 GB of text", "English text", "yes", "auxiliary"),
    _pairs("objects365", "Objects365", 2019, "638k pictures, 10M boxes", "365 classes, for GLIP", "yes", "auxiliary"),
    _pairs("gold-g", "Gold-G", 2021, "0.8M grounding pairs", "made by people, for GLIP", "yes", "auxiliary"),
)
SETS = {s.name: s for s in (*CLASSIFICATION, *SHIFTS, *OTHERS, *PAIRS)}
READABLE = {name: s for name, s in SETS.items() if s.layouts}


def find(name: str) -> SurveySet | None:
    """The set of a name; its title and its folder's name do as well, whatever their case and signs."""
    if name in SETS:
        return SETS[name]
    wanted = _plain(name)
    known = ((s, (s.name, s.title, *s.folders[:1])) for s in READABLE.values())
    fits = [s for s, called in known if wanted in map(_plain, called)]
    return fits[0] if len(fits) == 1 else None


def find_or_raise(name: str) -> SurveySet:
    """`find`, or an error that suggests names and says what cannot be read."""
    found = find(name)
    if found is None:
        raise UnknownName("data set of the survey", name, list(READABLE))
    return found


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
