from emblema.core import find
from emblema.report import docs


def test_generated_documents_are_up_to_date():
    """Run `python -m emblema.report.docs` when this fails."""
    assert [str(p.relative_to(docs.ROOT)) for p in docs.stale()] == []


def test_every_system_has_a_page_that_says_what_its_card_says():
    for card in find.cards("pretrain"):
        page = docs.method_page(card)
        assert card["title"] in page and card["equation"] in page and f"emblema pretrain {card['name']}" in page
        assert all(d in page for d in card.get("deviations", ()))


def test_fields_come_with_defaults_comments_and_those_of_the_base():
    path = docs.ROOT / "src" / "emblema" / "pretrain" / "slip.py"
    found = {f["name"]: f for f in docs.fields_of(path)}
    assert found["weight"] == {"name": "weight", "type": "float", "default": "1.0", "help": "of the image-image term"}
    assert found["views"]["default"] == "2" and found["arch"]["default"] == "'small'"
    assert found["optim"]["default"].startswith("Optim(lr=0.001")


def test_write_adds_changes_and_removes(tmp_path):
    methods = tmp_path / "docs" / "methods"
    methods.mkdir(parents=True)
    (tmp_path / "src" / "emblema" / "pretrain").mkdir(parents=True)
    (tmp_path / "src" / "emblema" / "pretrain" / "clip.py").write_text("")
    (methods / "gone.md").write_text(docs.HEAD)
    (methods / "by_hand.md").write_text("# mine")
    (tmp_path / "README.md").write_text("before\n<!-- systems:pretrain -->\nold\n<!-- /systems:pretrain -->\nafter\n")
    docs.write(tmp_path)
    assert sorted(p.name for p in methods.iterdir()) == ["by_hand.md", "clip.md"]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "| [clip]" in readme and "old" not in readme
    assert docs.stale(tmp_path) == [] and docs.main(["--check", str(tmp_path)]) == 0
    (methods / "clip.md").write_text("edited")
    assert docs.main(["--check", str(tmp_path)]) == 1
