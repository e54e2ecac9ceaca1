import json
import math

import pytest
from scipy import stats

from emblema.core.errors import BadData
from emblema.core.intervals import Interval
from emblema.report import claims, docs, result, tables

BETTER, WORSE = [0.62, 0.64, 0.63], [0.58, 0.61, 0.57]


def line(ours=None, theirs=None, **more):
    arms = {"coop": ours or {"digits": BETTER}, "hand prompt": theirs or {"digits": WORSE}}
    said = {
        "family": "transfer", "system": "coop", "claim": "learns from 16 shots", "metric": "top1", "arms": arms,
        "protocol": {"name": "few-shot/digits/16-shot", "hash": "abc"}, "better": "coop", "than": "hand prompt",
        "seeds": (1, 2, 3), "model": "default", "weights": "w", "budget": {"shots": 16}, "seconds": 12.34,
        "command": "emblema transfer coop --data digits --shots 16",
    }  # fmt: skip
    return claims.claim_line(**said | more)


def test_a_line_has_the_paired_difference_and_its_verdict():
    one = line()
    test = stats.ttest_rel(BETTER, WORSE)
    low, high = test.confidence_interval(0.95)
    assert list(one["difference"].values()) == pytest.approx([test.statistic * 0 + 0.13 / 3, low, high])
    assert one["p"] == pytest.approx(test.pvalue) and one["verdict"] == "supported"
    assert set(claims.FIELDS) == set(one) and one["data"] == ["digits"] and one["seeds"] == [1, 2, 3]
    assert json.loads(json.dumps(one, allow_nan=False)) == one == claims.checked(one)


@pytest.mark.parametrize(
    "low, high, verdict",
    [(0.001, 0.1, "supported"), (-0.2, -0.001, "not supported"), (-0.01, 0.1, "inconclusive"), (0, 0, "inconclusive"),
     (math.nan, math.nan, "inconclusive")],
)  # fmt: skip
def test_verdicts(low, high, verdict):
    assert claims.verdict(Interval(0.05, low, high)) == verdict
    assert claims.verdict(result.plain({"value": 0.05, "low": low, "high": high})) == verdict


def test_pre_training_is_judged_by_one_standard_error():
    ours, theirs = [0.62, 0.64, 0.60], [0.58, 0.61, 0.60]  # the t interval holds 0
    one = line({"digits": ours}, {"digits": theirs})
    assert one["verdict"] == "inconclusive" and "standard_error" not in one
    one = line({"digits": ours}, {"digits": theirs}, family="pretrain")
    error = stats.sem([a - b for a, b in zip(ours, theirs)])
    assert one["verdict"] == "supported" and one["standard_error"] == pytest.approx(error) and error < 0.07 / 3
    assert line({"digits": theirs}, {"digits": ours}, family="pretrain")["verdict"] == "not supported"
    assert line({"digits": ours}, {"digits": ours}, family="pretrain")["verdict"] == "inconclusive"
    alone = line({"digits": [0.9]}, {"digits": [0.1]}, seeds=(1,), family="pretrain")
    assert alone["verdict"] == "inconclusive" and claims.checked(alone) == alone


def test_the_other_direction_and_lower_is_better():
    turned = line({"digits": WORSE}, {"digits": BETTER})
    assert turned["verdict"] == "not supported" and turned["difference"]["value"] < 0
    assert line({"digits": WORSE}, {"digits": BETTER}, lower_is_better=True)["verdict"] == "supported"


def test_one_seed_is_inconclusive_and_null_in_json():
    one = line({"digits": [0.9]}, {"digits": [0.1]}, seeds=(1,))
    assert one["verdict"] == "inconclusive" and one["difference"]["low"] is None and one["p"] is None


def test_from_five_data_sets_on_a_data_set_is_one_observation():
    ours = {str(d): [0.5 + 0.1 * d, 0.6 + 0.1 * d] for d in range(4)}
    theirs = {d: [0.4, 0.45] for d in ours}
    assert len(claims.observations(ours, theirs)[0]) == 8
    ours["4"], theirs["4"] = [0.9, 0.7], [0.4, 0.4]
    assert claims.observations(ours, theirs)[0] == pytest.approx([0.55, 0.65, 0.75, 0.85, 0.8])
    assert claims.observations(ours, dict(reversed(theirs.items())))[1] == pytest.approx([0.425] * 4 + [0.4])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"theirs": {"digits": [0.1]}}, "same data sets and seeds"),
        ({"theirs": {"fashion": WORSE}}, "same data sets and seeds"),
        ({"better": "maple"}, "no arm maple; arms: coop, hand prompt"),
        ({"seeds": (1, 2)}, "2 seeds, but scores a data set"),
    ],
)
def test_unpaired_arms_are_refused(change, message):
    with pytest.raises(BadData, match=message):
        line(**change)


def test_a_typed_verdict_is_refused(tmp_path):
    with pytest.raises(BadData, match="says supported, its interval not supported"):
        claims.replace(tmp_path / "x.jsonl", line({"digits": WORSE}, {"digits": BETTER}) | {"verdict": "supported"})
    claims.replace(tmp_path / "x.jsonl", line())
    assert next(iter(result.read(tmp_path)))["kind"] == "claim"
    assert tables.results(result.read(tmp_path)) == ""  # claims have tables of their own


def measured(system, data, seed, value, **more):
    metrics = {m: {"value": value + shift, "low": None, "high": None} for m, shift in more.items()}
    return {
        "system": system, "model": "default", "data": data, "seeds": [seed], "seconds": 1.0, "metrics": metrics,
        "protocol": {"name": f"base-to-novel/{data}/16-shot", "hash": f"h-{data}", "metric": "harmonic"},
        "command": f"emblema transfer {system}",
    }  # fmt: skip


def test_the_page_shows_verdicts_systems_and_commands():
    said = [line(), line({"digits": WORSE}, {"digits": BETTER}, system="tip_adapter")]
    runs = [
        measured(system, data, seed, value, base=0.02, novel=-0.1, harmonic=-0.05)
        for system, value in (("coop", 0.6), ("kgcoop", 0.7))
        for data in ("digits", "fashion")
        for seed in (1, 2, 3)
    ]
    page = claims.page("transfer", [*said, *runs])
    assert "2 claims: 1 supported, 1 not supported, 0 inconclusive" in page and "**supported**" in page
    assert "[coop](../methods/coop.md)" in page and "few-shot/digits/16-shot `abc`" in page
    corrected = max(2 * said[0]["p"], 0)
    assert f"| {corrected:.3f} |" in page and "+4.3 [" in page
    assert "### base-to-novel 16-shot: harmonic" in page and "digits `h-digits`, fashion `h-fashion`" in page
    h = stats.hmean([0.62, 0.5])
    assert f"| coop | default | 55.0 [55.0, 55.0] | 55.0 [55.0, 55.0] | {100 * h:.1f} |" in page
    assert page.count("emblema transfer kgcoop") == 1


def test_arms_of_one_protocol_and_budget_stand_in_one_table():
    flat = {"digits": [0.5] * 3, "fashion": [0.7] * 3}
    other = line({"digits": [0.6] * 3, "fashion": [0.8] * 3}, flat)
    again = line({"digits": BETTER}, {"digits": [0.4] * 3}, system="kgcoop", better="coop")
    dearer = line({"digits": [0.9] * 3}, budget={"shots": 16, "steps": 900, "batch_size": 8})
    first, second = claims.arms_tables([other, again, dearer])
    assert first.startswith("### few-shot/digits/16-shot `abc`: top1, 16 shots\n")
    assert "| coop | 60.0 | 80.0 | 70.0 |" in first and "| hand prompt | 50.0 | 70.0 | 60.0 |" in first
    assert "| coop, for kgcoop | 63.0 [" in first and "| hand prompt, for kgcoop | 40.0 | - | 40.0 |" in first
    assert "top1, 16 shots, 900 steps" in second and "90.0 |" in second


def test_a_system_that_lacks_a_data_set_has_no_mean():
    runs = [measured("coop", d, 1, 0.6, harmonic=0, base=0, novel=0) for d in ("digits", "fashion")]
    runs.append(measured("late", "digits", 1, 0.6, harmonic=0, base=0, novel=0))
    assert "| late | default | 60.0 | - | - |" in claims.page("transfer", runs)


def test_the_documents_hold_a_page_a_family(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    claims.replace(folder / "transfer.jsonl", line())
    claims.replace(folder / "distill.jsonl", line(family="distill", system="vild"))
    docs.write(tmp_path)
    written = {p.name: p.read_text() for p in (tmp_path / "docs" / "results").iterdir()}
    assert set(written) == {"transfer.md", "distill.md"} and "vild" in written["distill.md"]
    assert docs.stale(tmp_path) == []
    (tmp_path / "docs" / "results" / "transfer.md").write_text("typed by hand")
    assert docs.main(["--check", str(tmp_path)]) == 1


def test_a_line_takes_the_place_of_an_earlier_one_of_the_same_claim(tmp_path):
    path = tmp_path / "results" / "x.jsonl"
    other = line() | {"metric": "other"}
    for one in (line(), other, line() | {"seconds": 7.0}):
        claims.replace(path, one)
    found = [json.loads(row) for row in path.read_text().splitlines()]
    assert [(one["metric"], one["seconds"]) for one in found] == [("other", other["seconds"]), (line()["metric"], 7.0)]
    claims.replace(path, other | {"claim": "another"}, ("system", "claim", "metric"))
    assert len(path.read_text().splitlines()) == 3
