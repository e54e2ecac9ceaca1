"""Small trees in the true layouts of the survey's sets: each function fills a folder and returns what to expect."""

import csv
import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..conftest import encoded, noise

JPEG = encoded(noise(3), "JPEG")
PNG = encoded(noise(4), "PNG")


def put(root, files):
    """{path: bytes, text, or JSON}; pictures where nothing is said."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = PNG if path.suffix == ".png" else JPEG
        elif isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def pictures(*names):
    return dict.fromkeys(names)


def map_of(*numbers):
    """A label map, a PNG of one channel."""
    return encoded(Image.fromarray(np.array(numbers, dtype=np.uint8).reshape(2, -1)), "PNG")


def palette(*numbers):
    """A label map as VOC keeps it: a PNG with a palette."""
    image = Image.fromarray(np.array(numbers, dtype=np.uint8).reshape(2, -1)).convert("P")
    image.putpalette(list(range(256)) * 3)
    image.putdata(numbers)
    return encoded(image, "PNG")


# -- CoOp's eleven ---------------------------------------------------------------------------------------------


def zhou(root, images, name, classes, extra=()):
    """`classes` are (folder, class name); each has a training, a validation and a test picture."""
    split = {"train": [], "val": [], "test": []}
    for label, (folder, words) in enumerate(classes):
        for i, part in enumerate(split):
            where = f"{folder}/image_{label}{i}.jpg"
            split[part].append([where, label, words])
            put(root, pictures(f"{images}/{where}" if images else where))
    split["train"].reverse()  # the order of the file need not be that of the classes
    put(root, {f"split_zhou_{name}.json": split, **dict(extra)})


def caltech101(root):
    zhou(
        root / "caltech-101",
        "101_ObjectCategories",
        "Caltech101",
        [("airplanes", "airplane"), ("gerenuk", "gerenuk")],
        {"101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": None},
    )


def food101(root):
    zhou(root / "food-101", "images", "Food101", [("apple_pie", "apple_pie"), ("baklava", "baklava")])


def dtd(root):
    zhou(root / "dtd", "images", "DescribableTextures", [("banded", "banded"), ("zigzagged", "zigzagged")])


def eurosat(root):
    zhou(root / "eurosat", "2750", "EuroSAT", [("AnnualCrop", "Annual Crop Land"), ("SeaLake", "Sea or Lake")])


def flowers(root):
    zhou(root / "oxford_flowers", "jpg", "OxfordFlowers", [(".", "pink primrose"), (".", "marigold")])


def pets(root):
    zhou(root / "oxford_pets", "images", "OxfordPets", [(".", "abyssinian"), (".", "american_bulldog")])


def cars(root):
    zhou(root / "stanford_cars", "", "StanfordCars", [("cars_train", "2012 Acura TL Sedan"), ("cars_test", "2000 AM")])


def sun397(root):
    zhou(root / "sun397", "SUN397", "SUN397", [("a/abbey", "abbey"), ("a/apse/indoor", "indoor apse")])


def ucf101_frames(root):
    zhou(root / "ucf101", "UCF-101-midframes", "UCF101", [("Yo_Yo", "Yo_Yo"), ("Apply_Lipstick", "Apply_Lipstick")])


def aircraft(root):
    lists = {"train": "0034309 707-320", "val": "0062765 Boeing 717", "test": "1025794 707-320\n1340192 Boeing 717"}
    put(root / "fgvc_aircraft", {"variants.txt": "707-320\nBoeing 717\n"})
    for part, lines in lists.items():
        put(root / "fgvc_aircraft", {f"images_variant_{part}.txt": lines + "\n"})
        put(root / "fgvc_aircraft", pictures(*(f"images/{line.split()[0]}.jpg" for line in lines.split("\n"))))


# -- their own files, and mirrors ------------------------------------------------------------------------------


def food101_own(root):
    put(root / "food-101", {"meta/train.txt": "apple_pie/1005649\nbaklava/7\n", "meta/test.txt": "baklava/8\n"})
    put(root / "food-101", pictures(*(f"images/{n}.jpg" for n in ("apple_pie/1005649", "baklava/7", "baklava/8"))))


def dtd_own(root):
    names = {"train": "banded/banded_0002.jpg", "val": "dotted/dotted_0001.jpg", "test": "dotted/dotted_0003.jpg"}
    for part, name in names.items():
        put(root / "dtd", {f"labels/{part}1.txt": name + "\n", f"images/{name}": None})


def eurosat_own(root):
    names = [f"2750/{c}/{c}_{i}.jpg" for c in ("Forest", "SeaLake") for i in range(1, 11)]
    put(root / "EuroSAT", pictures(*names))


def caltech101_own(root):
    names = [f"{c}/image_{i:04d}.jpg" for c in ("Faces", "ant", "Faces_easy") for i in range(1, 11)]
    put(root / "caltech101", pictures(*(f"101_ObjectCategories/{n}" for n in names)))


def pets_own(root):
    lists = {
        "trainval": "#Image CLASS-ID\nAbyssinian_100 1 1 1\nyorkshire_terrier_7 2 2 25",
        "test": "Abyssinian_2 1 1 1",
    }
    for part, lines in lists.items():
        put(root / "oxford-iiit-pet", {f"annotations/{part}.txt": lines + "\n"})
        names = [line.split()[0] for line in lines.split("\n") if line[0] != "#"]
        put(root / "oxford-iiit-pet", pictures(*(f"images/{n}.jpg" for n in names)))


def sun397_own(root):
    names = {"Training_01": "/a/abbey/sun_a.jpg\n/a/apse/indoor/sun_b.jpg", "Testing_01": "/a/abbey/sun_c.jpg"}
    for part, lines in names.items():
        put(root / "sun397", {f"{part}.txt": lines + "\n"})
        put(root / "sun397", pictures(*(f"SUN397{line}" for line in lines.split("\n"))))


def flowers_own(root):
    from scipy.io import savemat

    folder = root / "flowers-102"
    put(folder, pictures(*(f"jpg/image_{i:05d}.jpg" for i in (1, 2, 3, 4))))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 1]], dtype=np.uint8)})
    ids = {"trnid": [[1]], "valid": [[2]], "tstid": [[3, 4]]}
    savemat(folder / "setid.mat", {k: np.array(v, dtype=np.uint16) for k, v in ids.items()})


def cars_own(root):
    from scipy.io import savemat

    folder = root / "stanford_cars"
    put(folder, pictures("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"))
    (folder / "devkit").mkdir()
    names = np.array(["Acura TL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    note = lambda *rows: {"annotations": np.array([(1, c, f) for c, f in rows], dtype=kind)}
    savemat(folder / "devkit/cars_train_annos.mat", note((2, "00001.jpg"), (1, "00002.jpg")))
    savemat(folder / "cars_test_annos_withlabels.mat", note((1, "00001.jpg"), (2, "00001.jpg")))


def cars_mirror(root):
    names = (
        "train/AM General Hummer SUV 2000/1.jpg",
        "train/Audi TT 2011/2.jpg",
        "test/AM General Hummer SUV 2000/3.jpg",
        "test/Audi TT 2011/4.jpg",
    )
    put(root / "stanford_cars", pictures(*(f"car_data/car_data/{n}" for n in names)))


def hugging_face(root):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a_cat", "a dog"]}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
    (root / "data").mkdir()
    for name, labels in (("train-00000-of-00002", [1]), ("train-00001-of-00002", [0]), ("test-00000-of-00001", [0, 1])):
        rows = [{"image": {"bytes": JPEG, "path": "x.jpg"}, "label": v} for v in labels]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "data" / f"{name}.parquet")


def webdataset(root):
    for split, shards in (("train", 1), ("test", 2)):
        put(root, {f"{split}/nshards.txt": f"{shards}\n"})
        for shard in range(shards):
            with tarfile.open(root / split / f"{shard}.tar", "w") as tar:
                for i in range(2):
                    for suffix, data in (("webp", encoded(noise(i), "WEBP")), ("cls", str(i).encode())):
                        info = tarfile.TarInfo(f"s{shard}{i}.{suffix}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    put(root, {"classnames.txt": "a cat\na dog\n", "zeroshot_classification_templates.txt": "a photo of {c}\n"})


def class_folders(root):
    put(
        root,
        pictures(
            "train/a_b/1.png", "train/c/2.png", "valid/a_b/3.png", "valid/c/4.png", "test/a_b/5.png", "test/c/6.png"
        ),
    )


# -- ImageNet and its shifts -----------------------------------------------------------------------------------


def imagenet(root):
    wnids = ("n01440764", "n01443537")
    names = [f"train/{w}/{w}_10026.JPEG" for w in wnids] + [
        f"val/{w}/ILSVRC2012_val_0000029{i}.JPEG" for i, w in enumerate(wnids)
    ]
    put(root / "imagenet", pictures(*(f"images/{n}" for n in names)))
    put(root / "imagenet", {"classnames.txt": "n01440764 tench\nn01443537 goldfish\n"})


def imagenet_kaggle(root):
    put(
        root,
        pictures(
            "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_1.JPEG",
            "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
        ),
    )
    put(root, {"LOC_val_solution.csv": "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4 \n"})


def imagenet_v2(root):
    put(
        root / "imagenetv2",
        pictures(*(f"imagenetv2-matched-frequency-format-val/{c}/{c}a.jpeg" for c in (0, 2, 10, 999))),
    )


def imagenet_a(root):
    put(root / "imagenet-adversarial/imagenet-a", {"n01498041/1.jpg": None, "n07768694/2.jpg": None, "README.txt": "x"})


def imagenet_r(root):
    put(root / "imagenet-rendition/imagenet-r", pictures("n01443537/art_0.jpg", "n12267677/toy_1.jpg"))


def imagenet_sketch(root):
    put(root / "imagenet-sketch/images", pictures("n01440764/sketch_0.JPEG", "n15075141/sketch_1.JPEG"))


# -- arrays ----------------------------------------------------------------------------------------------------

ROWS = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)


def cifar10(root):
    folder = root / "cifar-10-batches-py"
    dump = lambda data: pickle.dumps({k.encode(): v for k, v in data.items()}, protocol=2)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    put(folder, {"batches.meta": dump({"label_names": [n.encode() for n in names]}), "readme.html": "<html>"})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        put(
            folder,
            {name: dump({"batch_label": b"x", "labels": [6, 9], "data": ROWS, "filenames": [b"a.png", b"b.png"]})},
        )


def cifar100(root):
    folder = root / "cifar-100-python"
    dump = lambda data: pickle.dumps({k.encode(): v for k, v in data.items()}, protocol=2)
    fine = [f"thing_{i:02d}".encode() for i in range(100)]
    put(folder, {"meta": dump({"fine_label_names": fine, "coarse_label_names": [b"x"]})})
    for name in ("train", "test"):
        put(folder, {name: dump({"fine_labels": [19, 0], "coarse_labels": [0, 0], "data": ROWS})})


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(root):
    """Plain training files with a dot, gzipped test files with a dash: both are on mirrors."""
    images, labels = np.arange(2 * 784, dtype=np.int64).astype(np.uint8).reshape(2, 28, 28), np.array([5, 0], np.uint8)
    put(
        root / "MNIST/raw",
        {
            "train-images.idx3-ubyte": idx(images),
            "train-labels.idx1-ubyte": idx(labels),
            "t10k-images-idx3-ubyte.gz": gzip.compress(idx(images)),
            "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(labels)),
        },
    )


def stl10(root):
    data = np.zeros((2, 3, 96, 96), np.uint8)
    data[0, 0, 5, 7] = 200  # red, column 5, row 7
    names = "airplane bird car cat deer dog horse monkey ship truck"
    put(root / "stl10_binary", {"class_names.txt": names.replace(" ", "\n") + "\n"})
    for part in ("train", "test"):
        put(root / "stl10_binary", {f"{part}_X.bin": data.tobytes(), f"{part}_y.bin": bytes([10, 1])})


def svhn(root):
    from scipy.io import savemat

    (root / "svhn").mkdir()
    for part in ("train", "test"):
        x = np.zeros((32, 32, 3, 2), np.uint8)
        x[3, 4, 0, 1] = 9
        savemat(root / f"svhn/{part}_32x32.mat", {"X": x, "y": np.array([[10], [1]], np.uint8)}, do_compression=True)


def pcam(root):
    import h5py

    (root / "pcam").mkdir()
    for part in ("train", "valid", "test"):
        for kind, data in (
            ("x", np.full((2, 96, 96, 3), 7, np.uint8)),
            ("y", np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)),
        ):
            with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file.create_dataset(kind, data=data, chunks=True, compression="gzip")


def kitti(root):
    """Ten drives of two pictures: the test split is the first drive that the seed draws."""
    name = "2011_09_26 2011_09_26_drive_{:04d}_sync {:010d}\n"
    box = "0.00 0 -1.5 600.0 150.0 650.0 190.0 1.5 1.6 4.0"
    pictures = {f"training/image_2/{i:06d}.png": None for i in range(20)}
    told = {f"training/label_2/{i:06d}.txt": f"Car {box} 1.0 1.7 {2.0 + 4 * i:.2f} 0.1\n" for i in range(20)}
    told["training/label_2/000007.txt"] = f"Pedestrian {box} 1.0 1.7 3.0 0.1\nDontCare {box} -1 -1 -1000 -10\n"
    mapping = {
        "mapping/train_rand.txt": ",".join(str(i + 1) for i in range(20)) + "\n",
        "mapping/train_mapping.txt": "".join(name.format(i // 2, i % 2) for i in range(20)),
    }
    put(root / "kitti", pictures | told | mapping)


def iiit5k(root):
    from scipy.io import savemat

    kinds = [("ImgName", "O"), ("chars", "O"), ("charBB", "O")]
    for part in ("train", "test"):
        words = np.zeros((1, 2), kinds)
        words[0, 0] = (f"{part}/1_1.png", "aB", np.array([[1, 1, 2, 3], [3, 1, 2, 4]], np.uint16))
        words[0, 1] = (f"{part}/2_1.png", "7", np.array([[1, 2, 3, 2]], np.uint16))
        put(root / "IIIT5K", {f"{part}/1_1.png": None, f"{part}/2_1.png": None})
        savemat(root / f"IIIT5K/{part}CharBound.mat", {f"{part}CharBound": words})


def rareact(root):
    head = "id,video_id,start,end,class_id,verb,noun,annotation\n"
    rows = [
        "0,aaa,0,1,0,cut,phone,1",
        "1,aaa,1,2,0,cut,phone,0",
        "2,bbb,0,1,1,hammer,phone,3",
        "3,bbb,1,2,1,hammer,phone,1",
    ]
    put(root / "rareact", {"rareact.csv": head + "\n".join(rows) + "\n"})
    for name in ("aaa", "bbb"):
        film(root / f"rareact/videos/{name}.mp4", 20)


def gtsrb(root):
    image = encoded(noise(1), "PPM")
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for c in ("00000", "00014"):
        put(
            root / "GTSRB",
            {
                f"Training/{c}/00000_00000.ppm": image,
                f"Training/{c}/GT-{c}.csv": f"{head}00000_00000.ppm;29;30;5;6;24;25;{int(c)}\n",
            },
        )
    put(
        root / "GTSRB",
        {"Final_Test/Images/00000.ppm": image, "GT-final_test.csv": f"{head}00000.ppm;53;54;6;5;48;49;16\n"},
    )


def gtsrb_kaggle(root):
    head = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n"
    put(
        root,
        {
            "Train.csv": f"{head}27,26,5,5,22,20,20,Train/20/00020_00000_00000.png\n",
            "Train/20/00020_00000_00000.png": None,
            "Test.csv": f"{head}53,54,6,5,48,49,16,Test/00000.png\n",
            "Test/00000.png": None,
        },
    )


def fer2013(root):
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["emotion", "pixels", "Usage"])
    for emotion, usage in ((0, "Training"), (3, "PublicTest"), (6, "PrivateTest")):
        table.writerow([emotion, " ".join(["7"] * 2304), usage])
    put(root / "fer2013", {"fer2013.csv": file.getvalue()})


def memes(root):
    row = lambda i, label: json.dumps({"id": i, "img": f"img/{i}.png", "label": label, "text": "look"}) + "\n"
    put(root / "hateful_memes", {"train.jsonl": row("01", 0) + row("02", 1), "dev_seen.jsonl": row("03", 1)})
    put(root / "hateful_memes", pictures("img/01.png", "img/02.png", "img/03.png"))


def clevr(root):
    for part in ("train", "val"):
        name = f"CLEVR_{part}_000000.png"
        scenes = {"info": {}, "scenes": [{"image_filename": name, "objects": [{}] * 4}]}
        put(root / "CLEVR_v1.0", {f"scenes/CLEVR_{part}_scenes.json": scenes, f"images/{part}/{name}": None})


def country211(root):
    put(
        root / "country211",
        pictures(*(f"{s}/{c}/{i}.jpg" for i, s in enumerate(("train", "valid", "test")) for c in ("AD", "XK"))),
    )


# -- captions --------------------------------------------------------------------------------------------------


def sentences(*said):
    return [{"raw": s, "tokens": s.split()} for s in said]


def flickr30k(root):
    rows = [
        {"filename": f"{i}.jpg", "split": s, "sentences": sentences(f"a {s}", "it ", "c", "d", "e"), "imgid": i}
        for i, s in enumerate(("train", "val", "test"))
    ]
    put(root / "flickr30k", {"dataset_flickr30k.json": {"images": rows, "dataset": "flickr30k"}})
    put(root / "flickr30k", pictures(*(f"flickr30k-images/{i}.jpg" for i in range(3))))


def coco_karpathy(root):
    rows = [
        {
            "filepath": folder,
            "filename": f"COCO_{folder}_{i}.jpg",
            "split": s,
            "sentences": sentences("a", "b"),
            "cocoid": i,
        }
        for i, (folder, s) in enumerate(
            (("train2014", "train"), ("val2014", "restval"), ("val2014", "val"), ("val2014", "test"))
        )
    ]
    put(root / "coco", {"dataset_coco.json": {"images": rows, "dataset": "coco"}})
    put(root / "coco", pictures(*(f"{r['filepath']}/{r['filename']}" for r in rows)))


# -- boxes and masks -------------------------------------------------------------------------------------------


def coco_json(*names, **more):
    images = [{"id": i, "file_name": n, "height": 24, "width": 24, **more} for i, n in enumerate(names)]
    notes = [
        {
            "id": i,
            "image_id": i,
            "category_id": 3 - i % 2,
            "bbox": [2, 2, 10, 10],
            "iscrowd": 0,
            "area": 100,
            "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]],
        }
        for i in range(len(names))
    ]
    return {
        "images": images,
        "annotations": notes,
        "categories": [{"id": 2, "name": "bicycle"}, {"id": 3, "name": "car"}],
    }


def coco(root, year=2017):
    for part in ("train", "val"):
        names = [f"00000000{i}{part}.jpg" if year == 2017 else f"COCO_{part}2014_{i}.jpg" for i in range(2)]
        put(root / "coco", {f"annotations/instances_{part}{year}.json": coco_json(*names)})
        put(root / "coco", pictures(*(f"{part}{year}/{n}" for n in names)))


def coco_2014(root):
    coco(root, 2014)


def coco_captions_2014(root):
    for part in ("train", "val"):
        name = f"COCO_{part}2014_000000000009.jpg"
        notes = [{"id": i, "image_id": 0, "caption": f"caption {i}"} for i in range(5)]
        data = {"images": [{"id": 0, "file_name": name, "height": 24, "width": 24}], "annotations": notes}
        put(root / "coco", {f"annotations/captions_{part}2014.json": data, f"{part}2014/{name}": None})


def lvis(root):
    for part in ("train", "val"):
        data = coco_json("x", neg_category_ids=[3], not_exhaustive_category_ids=[])
        for image in data["images"]:
            del image["file_name"]
            image["coco_url"] = f"http://images.cocodataset.org/{part}2017/{part}1.jpg"
        data["categories"][0]["frequency"], data["categories"][1]["frequency"] = "r", "f"
        put(root / "lvis", {f"lvis_v1_{part}.json": data, f"{part}2017/{part}1.jpg": None})


def odinw(root):
    for part in ("train", "valid", "test"):
        put(root, {f"{part}/_annotations.coco.json": coco_json(f"{part}.jpg"), f"{part}/{part}.jpg": None})


def voc_2007(root):
    thing = lambda name, hard, *c: (
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), c))
        + "</bndbox></object>"
    )
    base = root / "VOCdevkit/VOC2007"
    for part, key in (("trainval", "000005"), ("test", "000001")):
        things = (
            thing("diningtable", 0, 1, 1, 24, 12) + thing("dog", 1, 5, 5, 9, 9) + thing("diningtable", 0, 2, 2, 4, 4)
        )
        put(
            base,
            {
                f"ImageSets/Main/{part}.txt": f"{key}\n",
                f"JPEGImages/{key}.jpg": None,
                f"Annotations/{key}.xml": f"<annotation><filename>{key}.jpg</filename>{things}</annotation>",
            },
        )


def voc_2012(root):
    for part, key in (("train", "2007_000032"), ("val", "2007_000033")):
        put(
            root / "VOCdevkit/VOC2012",
            {
                f"ImageSets/Segmentation/{part}.txt": f"{key}\n",
                f"JPEGImages/{key}.jpg": None,
                f"SegmentationClass/{key}.png": palette(0, 1, 20, 255),
            },
        )


def pascal_context(root):
    for part, key in (("train", "2008_000002"), ("val", "2008_000003")):
        put(
            root / "VOCdevkit/VOC2010",
            {
                f"ImageSets/SegmentationContext/{part}.txt": f"{key}\n",
                f"JPEGImages/{key}.jpg": None,
                f"SegmentationClassContext/{key}.png": map_of(0, 1, 59, 255),
            },
        )


def cityscapes(root):
    for part, stem in (("train", "aachen/aachen_000000_000019"), ("val", "frankfurt/frankfurt_000000_000294")):
        put(
            root / "cityscapes",
            {
                f"leftImg8bit/{part}/{stem}_leftImg8bit.png": None,
                f"gtFine/{part}/{stem}_gtFine_labelIds.png": map_of(0, 7, 33, 26),
                f"gtFine/{part}/{stem}_gtFine_color.png": None,
                f"gtFine/{part}/{stem}_gtFine_polygons.json": "{}",
            },
        )


def ade20k(root):
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "".join(
        f"{i}\t0.1\t1\t1\t1\tthing{i}, other {i}\n" for i in range(1, 151)
    )
    put(root / "ADEChallengeData2016", {"objectInfo150.txt": table})
    for part, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        put(
            root / "ADEChallengeData2016",
            {f"images/{part}/{stem}.jpg": None, f"annotations/{part}/{stem}.png": map_of(0, 1, 150, 3)},
        )


def coco_stuff(root):
    for part in ("train2017", "val2017"):
        put(
            root / "coco_stuff164k",
            {f"images/{part}/000000000139.jpg": None, f"annotations/{part}/000000000139.png": map_of(0, 181, 255, 11)},
        )


# -- clips -----------------------------------------------------------------------------------------------------

UCF_LISTS = {
    "ucfTrainTestlist/trainlist01.txt": "ApplyLipstick/v_ApplyLipstick_g08_c01.avi 2\n",
    "ucfTrainTestlist/testlist01.txt": "HandstandPushups/v_HandStandPushups_g01_c01.avi\n",
    "ucfTrainTestlist/classInd.txt": "2 ApplyLipstick\n",
}
UCF_CLIPS = ("ApplyLipstick/v_ApplyLipstick_g08_c01", "HandstandPushups/v_HandStandPushups_g01_c01")


def film(path, frames=20):
    """A video whose frames grow brighter."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(frames):
            grey = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i * 255 // frames, np.uint8), format="rgb24")
            video.mux(stream.encode(grey))
        video.mux(stream.encode())


def ucf101_videos(root):
    put(root / "ucf101", UCF_LISTS)
    for clip in UCF_CLIPS:
        film(root / "ucf101/UCF-101" / f"{clip}.avi")


def ucf101_frame_folders(root):
    put(root / "ucf101", UCF_LISTS)
    put(root / "ucf101/frames", pictures(*(f"{clip}/img_{i:05d}.jpg" for clip in UCF_CLIPS for i in range(20))))


def kinetics(root):
    for i, part in enumerate(("train", "val")):
        for name in ("abseiling", "air drumming"):
            film(root / f"kinetics700/{part}/{name}/{'ab'[i]}_000001_000011.mp4", 3)
