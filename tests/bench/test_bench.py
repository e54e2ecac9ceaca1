import json

import pytest
import torch

from emblema import cli
from emblema.bench import paradigms
from emblema.bench.paradigms import hand_crafted, network, self_supervised, supervised
from emblema.core.errors import UnknownName
from emblema.data import catalog
from emblema.data.selection import Selection
from emblema.testing.squares import squares

QUICK = network.Budget(pretrain=4, finetune=30, batch=16)


def test_no_evaluated_picture_or_concept_is_seen_before():
    sets = [catalog.load("emblem-food")]
    before = paradigms.unseen(sets)
    emblems = catalog.load("emblems")
    concept = dict(zip(emblems.keys, emblems.column("concept")))
    tested = set(sets[0].keys)
    assert tested <= concept.keys() and not tested & set(before.keys)
    assert not {concept[k] for k in tested} & {c for c in before.column("concept") if c}
    assert set(before.column("split")) == {"train"} and len(before) > 15_000
    assert not set(before.column("family")) & {"openmoji", "emojione", "emojione-v1", "emojione-monotone"}


def few(n=4):
    """Squares of four colours, of which `n` a class are learnt from."""
    whole = squares()
    return Selection(whole, n, 1), whole.split("test")


def test_trained_paradigms_learn_what_is_easy():
    before = squares().split("train").alone()
    before.columns["concept"] = [before.class_names[y] for y in before.labels]
    seen, test = few()
    labels = torch.tensor(test.labels)
    for module in (supervised, self_supervised):
        start = module.prepare(before, 1, QUICK)
        weights = {n: p.clone() for n, p in start.state_dict().items()}
        said = module.classify(start, seen, test, 1, QUICK)
        assert (said == labels).double().mean() > 0.5 and said.shape == labels.shape
        assert all(torch.equal(weights[n], p) for n, p in start.state_dict().items())  # copied before it is tuned
        assert torch.equal(said, module.classify(start, seen, test, 1, QUICK))


def test_hog_equals_scikit_image_and_knows_shape():
    from skimage.feature import hog

    from emblema.core.preprocess import Preprocess
    from emblema.data.pictures import load_image

    records = catalog.load("digits", "train").subset(range(3))
    grey = load_image(records[1].image, Preprocess(size=64, mode="pad")).float()
    grey = (grey * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).numpy()
    theirs = hog(grey, 9, (8, 8), (2, 2), "L2-Hys")
    found = hand_crafted.hog(records)
    assert found.shape == (3, 1764) and torch.allclose(found[1], torch.from_numpy(theirs).float())
    digits = catalog.load("digits")
    seen, test = Selection(digits, 4, 1), digits.split("test").subset(range(0, 1200, 12))
    right = hand_crafted.classify(None, seen, test, 1, QUICK) == torch.tensor(test.labels)
    assert right.double().mean() > 0.5  # chance 0.1


def test_lines_hold_every_seed_and_its_draw():
    records = squares()
    lines = paradigms.run([records], (1, None), (1, 2), ["from_scratch"], QUICK, before=records, say=lambda text: None)
    assert [one["labels"] for one in lines] == [1, None]
    for one in lines:
        assert len(one["values"]) == 2 and one["metrics"]["top1"]["value"] == pytest.approx(sum(one["values"]) / 2)
        assert one["protocol"]["name"].startswith("few-shot/squares/") and one["seeds"] == [1, 2]
    assert len(set(lines[0]["draws"].values())) == 2 and json.dumps(lines)


def test_the_command_writes_lines_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paradigms, "unseen", lambda sets: sets[0])
    out = tmp_path / "runs" / "p.jsonl"
    arguments = ["--data", "digits", "--labels", "1", "--seeds", "1,2", "--paradigms", "hand-crafted,from-scratch"]
    code = cli.main(["bench", "paradigms", *arguments, "--finetune-steps", "2", "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and [one["system"] for one in found] == ["hand_crafted", "from_scratch"]
    assert [json.loads(row) for row in out.read_text().splitlines()] == found
    assert "--data digits" in (out.parent / "paradigms.md").read_text() and (out.parent / "paradigms.svg").exists()
    assert cli.main(["bench", "paradigms", "--labels", "few"]) == 2
    with pytest.raises(UnknownName, match="paradigm"):
        cli.VERBS["bench"](["paradigms", "--paradigms", "deep"], True)
