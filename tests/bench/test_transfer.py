"""Systems compared on the same draws, and what a result line says of them."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from emblema.bench import transfer as bench
from emblema.core.errors import BadData
from emblema.data.scenes import Scenes
from emblema.report import result
from emblema.tasks import protocols
from emblema.tasks.multi_label import MultiLabel
from emblema.testing import tiny_model
from emblema.testing.squares import squares
from emblema.transfer.coop import CoOp
from emblema.transfer.dualcoop import DualCoOp
from emblema.transfer.maskclip import MaskCLIP
from emblema.transfer.tip_adapter import TipAdapter

MODEL = tiny_model(cache=False)
FEW = replace(protocols.load("few-shot"), shots=(2,), seeds=(1, 2))


def quick(system):
    return replace(system, optim=replace(system.optim, steps=2))


@dataclass(kw_only=True)
class Broken(CoOp):
    card = replace(CoOp.card, name="broken")

    def losses(self, module, batch):
        return {"x": super().losses(module, batch)["cross_entropy"] * float("nan")}


def compared(protocol=FEW, **systems):
    return bench.compare({"zero-shot": None, **systems}, MODEL, protocol, squares())


def test_all_systems_see_the_same_draw_and_the_ranking_is_sound():
    found = compared(coop=quick(CoOp(context_length=2)), tip_adapter=TipAdapter(views=0))
    assert {n: len(o) for n, o in found.outcomes.items()} == {"zero-shot": 2, "coop": 2, "tip_adapter": 2}
    for outcomes in zip(*found.outcomes.values()):
        assert len({json.dumps(one.line["draw"]) for one in outcomes}) == 1
        for one in outcomes:
            result.checked(one.line)
            assert one.line["metrics"]["top1"]["value"] == pytest.approx(float(one.right["test"].mean()))
    ranking = found.ranking()
    scores = [row["score"]["value"] for row in ranking]
    assert scores == sorted(scores, reverse=True) and ranking[0]["p_against_best"] is None
    assert {row["system"]: row["parameters"] for row in ranking}["coop"] == 2 * MODEL.vlm.text.width


def test_one_that_fails_does_not_stop_the_others():
    found = compared(broken=quick(Broken(context_length=2)), coop=quick(CoOp(context_length=2)))
    assert "broken" in found.failed and "coop" in found.outcomes and "broken" not in found.outcomes


def test_long_recipes_are_cut_and_the_command_says_so():
    rule = replace(FEW, seeds=(1,))
    systems = {"coop": CoOp(context_length=2), "tip_adapter": TipAdapter(views=0)}
    found = bench.compare(systems, MODEL, rule, squares(), most_steps=3)
    coop = found.outcomes["coop"][0]
    assert coop.line["fields"]["optim"]["steps"] == 3
    assert coop.line["command"] == "emblema transfer coop --optim.steps=3"
    found = bench.compare({"coop": quick(CoOp(context_length=2))}, MODEL, rule, squares(), most_steps=3)
    assert found.outcomes["coop"][0].line["command"] == "emblema transfer coop"  # two steps were asked for


def test_base_to_novel_names_each_half_alone_and_leaves_closed_systems_out():
    rule = replace(protocols.load("base-to-novel"), shots=(2,), seeds=(1,))
    found = compared(rule, coop=quick(CoOp(context_length=2)), tip_adapter=TipAdapter(views=0))
    assert "learns something for each class" in found.failed["tip_adapter"]
    line = found.outcomes["coop"][0].line
    b, n, h = (line["metrics"][k]["value"] for k in ("base", "novel", "harmonic"))
    assert h == pytest.approx(2 * b * n / (b + n) if b + n else 0.0)
    assert line["sizes"] == {"train": 4, "base": 12, "novel": 12}


def test_pictures_of_several_classes_are_scored_by_their_own_task():
    rule = replace(protocols.load("multi-label"), shots=(1,), seeds=(1,))
    scenes = Scenes(0, size=64, sizes={"train": 60, "val": 10, "test": 12})
    systems = {"zero-shot": None, "dualcoop": quick(DualCoOp(context_length=2)), "coop": quick(CoOp())}
    found = bench.compare(systems, MODEL, rule, scenes)
    assert "coop learns from one. dualcoop learns from several" in found.failed["coop"]
    assert {row["system"] for row in found.ranking()} == {"zero-shot", "dualcoop"}
    for name, judged in (("zero-shot", MODEL), ("dualcoop", found.outcomes["dualcoop"][0].system)):
        line = found.outcomes[name][0].line
        result.checked(line)
        alone = MultiLabel().run(judged, scenes.split("test")).metrics["mAP"]
        assert line["metrics"]["mAP"]["value"] == pytest.approx(alone.value)
        row = next(row for row in found.ranking() if row["system"] == name)
        assert row["score"]["low"] == line["metrics"]["mAP"]["low"] and row["p_against_best"] is None


def test_systems_that_label_pixels_are_scored_by_segmentation():
    rule = replace(protocols.load("zero-shot-segmentation"), seeds=(1,))
    scenes = Scenes(0, size=64, sizes={"train": 4, "test": 6})
    (outcome,) = bench.compare({"maskclip": MaskCLIP()}, MODEL, rule, scenes).outcomes["maskclip"]
    assert {"hIoU", "mIoU_seen", "mIoU_unseen"} <= outcome.line["metrics"].keys() and not outcome.right


def test_the_first_classes_of_a_set_have_a_name_of_their_own():
    some = bench.first(squares(), 2)
    assert some.card.name == "squares-2" and len(some.class_names) == 2 and set(some.labels) == {0, 1}


def test_choosing_systems():
    assert {"coop", "tip_adapter"} <= bench.chosen("all").keys()
    assert "coop" in bench.chosen("text") and "tip_adapter" not in bench.chosen("text")
    assert bench.chosen("zero-shot") == {} and list(bench.chosen("zero-shot,coop")) == ["coop"]
    with pytest.raises(BadData, match="no system in"):
        bench.chosen(" , ")
    with pytest.raises(Exception, match="did you mean coop"):
        bench.chosen("cop")


def test_the_mean_of_test_sets_counts_each_set_once():
    right = {"a": torch.tensor([1.0, 1, 1, 1]), "b": torch.tensor([0.0, 1])}
    assert bench._headline("top1", right)["top1"].value == pytest.approx(0.75)
    assert bench._headline("harmonic", right)["harmonic"].value == pytest.approx(2 * 0.5 / 1.5)
