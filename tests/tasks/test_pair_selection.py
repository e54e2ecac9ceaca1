import csv
import json

import pytest
import torch
from PIL import Image

from emblema.core.errors import BadData
from emblema.data import catalog
from emblema.data.scenes import Scenes, swapped
from emblema.tasks.pair_selection import PairSelection, controls, score
from emblema.testing import tiny_model
from emblema.testing.squares import squares


def test_score_by_hand():
    right, wrong = torch.tensor([0.9, 0.2, 0.5, 0.5]), torch.tensor([0.1, 0.3, 0.5, 0.4])
    outcome = score(right, wrong, torch.tensor([0, 0, 1, 2]), ["order", "relation", "order", "order"], 50)
    value = {k: v.value for k, v in outcome.metrics.items()}
    assert value["accuracy"] == 0.5  # the tie of the third pair is wrong
    assert value["accuracy/order"] == pytest.approx(2 / 3) and value["accuracy/relation"] == 0
    assert value["all_right"] == pytest.approx(1 / 3)
    assert outcome.sizes == {"images": 3, "pairs": 4}
    assert outcome.metrics["accuracy"].low <= 0.5 <= outcome.metrics["accuracy"].high


def test_nan_is_refused():
    with pytest.raises(BadData, match="1 of 2 similarities of right captions are NaN"):
        score(torch.tensor([torch.nan, 1]), torch.ones(2), torch.tensor([0, 1]), ["any", "any"])


def test_scenes_make_their_own_controls(bundle):
    scenes = Scenes(sizes={"train": 1, "val": 1, "test": 12}, size=48, folder=bundle).split("test")
    found = controls(scenes)
    expected = [(i, r.text, wrong, kind) for i, r in enumerate(scenes) for kind, wrong in swapped(r).items()]
    assert found == expected and {"order", "relation"} <= {kind for *_, kind in found}
    outcome = PairSelection(resamples=10).run(tiny_model(cache=False, precision="fp32"), scenes)
    assert {"accuracy/order", "accuracy/relation"} <= set(outcome.metrics) and outcome.sizes["pairs"] == len(found)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_with_a_column_of_negatives(tmp_path, kind):
    for name in ("a", "b"):
        Image.new("RGB", (40, 40), {"a": "red", "b": "blue"}[name]).save(tmp_path / f"{name}.png")
    negatives = [{"order": "a blue red", "attribute": ["a blue", "a green"]}, ["a red", "no blue"]]
    rows = [("a.png", "a red", negatives[0]), ("b.png", "a blue", negatives[1])]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":
        plain = [json.dumps(negatives[0]), "a red| no blue"]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("image", "caption", "negatives"), *((*r[:2], p) for r, p in zip(rows, plain))])
    else:
        path.write_text("\n".join(json.dumps(dict(zip(("image", "caption", "negatives"), r))) for r in rows))
    data = catalog.load(path)
    assert controls(data) == [
        (0, "a red", "a blue red", "order"),
        (0, "a red", "a blue", "attribute"),
        (0, "a red", "a green", "attribute"),
        (1, "a blue", "a red", "any"),
        (1, "a blue", "no blue", "any"),
    ]
    found = PairSelection(resamples=10).evaluate(tiny_model(cache=False, precision="fp32"), data)
    assert found["sizes"] == {"images": 2, "pairs": 5} and "accuracy/attribute" in found["metrics"]


def test_data_without_controls_teach():
    data = squares().split("test")
    with pytest.raises(BadData, match="give its table a column `negatives`"):
        controls(data)
    data.columns["negatives"] = [(text,) for text in data.columns["text"]]
    with pytest.raises(BadData, match="has its own caption 'a red square' among the false ones"):
        controls(data)
