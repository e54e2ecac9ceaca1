import re
import xml.etree.ElementTree as ElementTree

from emblema.report import docs, figures, paradigms


def line(system, data, labels, value, low=None, high=None):
    return {
        "system": system,
        "data": data,
        "labels": labels,
        "metrics": {"top1": {"value": value, "low": low, "high": high}},
        "fields": {"title": system.title()},
        "sizes": {"classes": 10, "images": 99},
        "protocol": {"name": f"few-shot/{data}/{labels}-shot", "hash": "h"},
        "command": "emblema bench paradigms",
    }


LINES = [
    *(line("cnn", d, k, v, v - 0.1, v + 0.1) for d in ("a", "b") for k, v in ((1, 0.2), (16, 0.5), (None, 0.7))),
    *(line("vlm", d, 0, 0.6, 0.5, 0.65) for d in ("a", "b")),
]


def test_tables_have_a_row_a_paradigm_and_a_column_a_number_of_labels():
    (name, header, rows), _ = paradigms.as_tables(LINES)
    assert name == "a" and header == ["paradigm", "0", "1", "16", "all"]
    assert rows == [["Cnn", "-", "20.0 [10.0, 30.0]", "50.0 [40.0, 60.0]", "70.0 [60.0, 80.0]"],
                    ["Vlm", "60.0 [50.0, 65.0]", "-", "-", "-"]]  # fmt: skip


def test_the_figure_is_svg_with_every_point_and_interval():
    svg = paradigms.figure(LINES)
    root = ElementTree.fromstring(svg)
    count = lambda tag: len(root.findall(f".//{{http://www.w3.org/2000/svg}}{tag}"))
    assert count("circle") == 2 * (3 + 4) and count("polyline") == 4  # the level line has a point a place
    assert svg == paradigms.figure(list(LINES))


def test_points_lie_where_the_numbers_say():
    svg = figures.curves(
        {"p": {"c": [figures.Point(0, 0.0), figures.Point(1, 1.0)]}}, ["x", "y"], "across", "up", "a<b"
    )
    (first, last) = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert first[1] == figures.TOP + figures.HEIGHT and last[1] == figures.TOP
    assert last[0] - first[0] == figures.WIDTH - 40 and "a&lt;b" in svg


def test_the_page_names_protocols_and_the_command():
    page = paradigms.pages(LINES)["paradigms.md"]
    assert "few-shot/a/16-shot `h`" in page and "emblema bench paradigms" in page and "paradigms.svg" in page


def test_documents_hold_page_and_figure(tmp_path):
    import json

    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "paradigms.jsonl").write_text("".join(json.dumps(one) + "\n" for one in LINES))
    docs.write(tmp_path)
    assert {p.name for p in (tmp_path / "docs" / "results").iterdir()} == {"paradigms.md", "paradigms.svg"}
