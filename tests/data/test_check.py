"""`data check`: it finds what was hidden for it."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from emblema.data.bundled import read_bundled
from emblema.data.catalog import load
from emblema.data.check import caption_statistics, check, near_pairs, suspicious

from .conftest import encoded, noise


def smooth(seed):
    return noise(seed, (6, 6)).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    def put(name, data):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    for i in range(30):
        put(f"train/n01440764/{i:02d}.png", encoded(smooth(i)))
    for i in range(30, 33):
        put(f"train/big_dog/{i}.png", encoded(smooth(i)))
    put("train/big dog/x.png", encoded(smooth(40)))
    put("test/big_dog/new.png", encoded(smooth(50)))
    put("test/big_dog/same-pixels.webp", encoded(smooth(30), "WEBP", lossless=True))
    put("test/big_dog/recompressed.jpg", encoded(smooth(31), "JPEG", quality=60))
    put("test/n01440764/smaller.png", encoded(smooth(3).resize((64, 64))))
    put("train/n01440764/copy.png", encoded(smooth(3)))
    put("train/n01440764/cut.png", encoded(noise(), "PNG")[:300])
    put("train/n01440764/empty.png", b"")
    return tmp_path


def test_check_finds_what_was_hidden(folder):
    report = check(folder)
    assert report.splits == {"train": 36, "test": 4}
    assert {(b["key"].rsplit("/")[-1], b["kind"]) for b in report.broken} == {
        ("cut.png", "broken picture"), ("empty.png", "zero bytes"),
    }  # fmt: skip
    leak = report.leakage["train/test"]
    assert (leak["exact"], leak["near"]) == (1, 2)
    assert {e[1].rsplit("/")[-1] for e in leak["examples"]} == {"same-pixels.webp", "recompressed.jpg", "smaller.png"}
    assert report.exact_duplicates == 2 and ["train/n01440764/03.png", "train/n01440764/copy.png"] in [
        sorted(g) for g in report.duplicate_groups
    ]
    assert report.near_duplicates == 2
    assert report.classes["n01440764"] == 33 and report.imbalance == 33
    assert "WordNet" in report.suspicious_classes["n01440764"] and len(report.suspicious_classes) == 2
    assert len(report.problems) == 6


def test_a_report_is_json_and_text(folder, tmp_path):
    report = check(folder, threads=2)
    assert json.loads(json.dumps(report.to_json()))["leakage"]["train/test"]["exact"] == 1
    console = Console(record=True, width=100)
    console.print(report)
    assert "cut.png" in (text := console.export_text()) and "1 pictures are in both" in text
    report.write_broken(tmp_path / "broken.jsonl")
    assert len((tmp_path / "broken.jsonl").read_text().splitlines()) == 2


def test_check_of_bundled_sets_and_clips(bundle):
    report = check(read_bundled("emblems", bundle))
    assert report.records == 36 and report.broken == [] and report.captions["words_median"] == 1
    assert report.domains == {"noto": 12, "twemoji": 12, "openmoji": 12}
    clips = check(load("emblem-actions", folder=bundle))
    assert clips.records == 4 and clips.classes == {"dying": 2, "running": 2} and clips.exact_duplicates == 3


def test_captions():
    found = caption_statistics(["a cat", "a cat", " ", None, "one two three four", "caf\ufffd"])
    assert (found["captions"], found["empty"], found["repeated"], found["undecodable"]) == (4, 2, 1, 1)
    assert (found["words_min"], found["words_median"], found["words_max"]) == (1, 2, 4)
    assert caption_statistics([])["words_max"] == 0


def test_suspicious_names():
    found = suspicious(["cat", "Cat", "hot_dog", "7", "n01440764", " owl"])
    assert set(found) == {"Cat", "hot_dog", "7", "n01440764", " owl"} and "'cat'" in found["Cat"]


@pytest.mark.parametrize("distance", [0, 3, 7])
def test_near_pairs_equal_the_slow_way(distance):
    dice = np.random.default_rng(distance)
    one = dice.integers(0, 2**63, 300, dtype=np.uint64)
    other = one[dice.integers(0, 300, 200)].copy()
    for i in range(200):
        for bit in dice.choice(64, dice.integers(0, 10), replace=False):
            other[i] ^= np.uint64(1) << np.uint64(bit)
    apart = np.bitwise_count(one[:, None] ^ other[None])
    want = [(int(np.argmax(apart[:, j] <= distance)), j) for j in range(200) if (apart[:, j] <= distance).any()]
    assert near_pairs(one, other, distance) == sorted(want)
    assert near_pairs(one, one, distance, same=True) == []
