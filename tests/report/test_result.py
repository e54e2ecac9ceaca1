import json
import math

import pytest

from emblema.core.errors import BadData
from emblema.report import result


def evaluation(value=0.5):
    return {
        "task": "zero-shot",
        "data": "toy",
        "split": "test",
        "protocol": {"name": "zero-shot/toy/test", "hash": "abc"},
        "metrics": {"top1": {"value": value, "low": 0.4, "high": math.nan}},
        "seeds": [0],
        "seconds": 1.5,
        "tables": {"per_class": [{}]},
        "predictions": [{}],
    }


def line(**more):
    return result.line(evaluation(), system="clip", model="tiny", **more)


def test_a_line_has_everything_and_is_json():
    one = line(fields={"lr": 0.1, "betas": (1, 2)}, data_hash="d")
    assert set(result.REQUIRED) <= set(one) and not set(result.LONG) & set(one)
    assert {"python", "torch", "cpu", "threads", "emblema"} == set(one["environment"])
    assert one["peak_memory_mb"] > 10 and one["fields"]["betas"] == [1, 2]
    assert json.loads(json.dumps(one, allow_nan=False)) == one and one["metrics"]["top1"]["high"] is None


def test_no_machine_name_or_path_in_a_line():
    import socket

    text = json.dumps(line())
    assert socket.gethostname() not in text and "/" not in text.replace("zero-shot/toy/test", "")


def test_append_and_read(tmp_path):
    result.append(tmp_path / "deep" / "a.jsonl", line())
    result.append(tmp_path / "deep" / "a.jsonl", line(note="second"))
    assert [r.get("note") for r in result.read(tmp_path)] == [None, "second"]


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(line()) + "\n\n{}\n")
    with pytest.raises(BadData, match=r"a.jsonl, line 3 is no result line: a result line lacks system"):
        list(result.read(path))
    with pytest.raises(BadData, match="no result file"):
        list(result.read(tmp_path / "none"))


@pytest.mark.parametrize("change", [{"protocol": {"name": "x"}}, {"metrics": {"top1": {"value": 1}}}])
def test_incomplete_lines_are_refused(change):
    with pytest.raises(BadData):
        result.checked(line() | change)
