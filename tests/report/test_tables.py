import io

from emblema.core import find
from emblema.report import tables


def line(system, hash_="abc", value=0.5, **more):
    metrics = {"top1": {"value": value, "low": 0.4, "high": 0.6}, **more}
    return {
        "system": system,
        "model": "m",
        "protocol": {"name": "p", "hash": hash_},
        "metrics": metrics,
        "seconds": 2.0,
    }


def test_formats():
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert tables.formatted("top1", interval) == "50.0 [40.0, 60.0]"
    assert tables.formatted("image_to_text_R@1", {"value": 0.123, "low": None, "high": None}) == "12.3"
    assert tables.formatted("image_to_text_median_rank", {"value": 3.0, "low": 2.0, "high": 4.5}) == "3.0 [2.0, 4.5]"
    assert tables.formatted("rsum", {"value": 312.25, "low": None, "high": None}) == "312.2"
    assert tables.formatted("top1", {}) == "-"


def test_lines_of_different_protocols_never_share_a_table():
    text = tables.results([line("clip"), line("slip"), line("clip", "def")])
    assert text.count("| system |") == 2 and "`abc`" in text and "`def`" in text
    first = text.split("**p**")[1]
    assert "clip" in first and "slip" in first


def test_cells_cannot_break_a_table():
    assert tables.markdown(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


def test_table_of_systems_is_made_of_cards():
    text = tables.systems(find.cards("pretrain"), "docs/methods/")
    assert "[clip](docs/methods/clip.md)" in text and "[2103.00020](https://arxiv.org/abs/2103.00020)" in text
    assert tables.paper("CVPR 2023") == "CVPR 2023"


def test_terminal_output_shows_brackets_as_they_are():
    file = io.StringIO()
    tables.terminal(("name", "value"), [("top1", "50.0 [40.0, 60.0]")], file=file)
    assert "50.0 [40.0, 60.0]" in file.getvalue()
