import re
from html.parser import HTMLParser

from emblema.report import page
from emblema.testing.squares import square

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_is_whole_safe_and_needs_nothing_else(tmp_path):
    evil = "<script>alert(1)</script>"
    pictures = [
        {"image": square(0, 0), "truth": "red", "labels": [{"label": "red", "probability": 0.9}]},
        {"image": square(1, 0), "truth": evil, "labels": [{"label": "blue", "probability": 0.7}], "name": evil},
        {"image": b"broken", "labels": []},
    ]
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    line = {
        "task": "zero-shot", "system": "zero-shot", "model": evil, "data": "d", "split": "test", "seconds": 1.0,
        "protocol": {"name": "p", "hash": "abc"}, "metrics": {"top1": metric}, "notes": [evil],
    }  # fmt: skip
    tables = {"per_class": [{"class": evil, "top1": 0.5}, {"class": "b", "top1": float("nan")}], "empty": []}
    path = page.write(tmp_path / "a" / "p.html", title=evil, lines=[line], pictures=pictures, tables=tables)
    text = path.read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.images == 2
    assert evil not in text and "&lt;script&gt;" in text
    assert not re.search(r"(src|href)=.(?!data:)", text) and "url(" not in text and "@import" not in text
    assert "50.0 [40.0, 60.0]" in text and 'class="name right">red' in text and 'class="name wrong">blue' in text
    assert "not a picture" in text
