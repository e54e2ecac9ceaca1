import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from emblema import cli
from emblema.core.preprocess import Preprocess
from emblema.data import catalog
from emblema.engine import loader
from emblema.frameworks import pretrained
from emblema.tasks import zero_shot
from emblema.testing import tiny_vlm
from emblema.testing.squares import NAMES, square, squares

FAST = 1.5  # seconds of processor time, which others on the machine do not lengthen much; usually 0.3
PROBE = "import sys; from emblema.cli import main; code = main({}); assert 'torch' not in sys.modules; sys.exit(code)"


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for label in range(4):
        (pictures / "deep" / f"{label}.png").write_bytes(square(label, label))
    (pictures / "broken.jpg").write_bytes(b"nothing")
    (pictures / "notes.md").write_text("no picture")
    return pictures


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """The tiny model as the default, the squares as a data set, a cache of the test's own."""
    monkeypatch.setenv("EMBLEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    loaded = SimpleNamespace(vlm=tiny_vlm(), preprocess=Preprocess(size=32), templates=["a photo of a {}."])
    monkeypatch.setattr(pretrained, "load_pretrained", lambda name: loaded)
    real = catalog.load
    monkeypatch.setattr(catalog, "load", lambda name, *a, **k: squares() if name == "squares" else real(name, *a, **k))
    monkeypatch.setattr(zero_shot, "wording", lambda spec, data: (spec or "plain", ["a {}."]))


def document(capsys, *arguments, code=0):
    """Standard output parsed as one JSON document."""
    assert cli.main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def failure(capsys, *arguments):
    """The one line of a refusal."""
    assert cli.main(list(arguments)) == 2
    error = capsys.readouterr().err
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("emblema: ") and "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["--help"], ["list", "--json"], ["show", "clip"], ["list", "protocols"], ["show", "few-shot"]],
    ids=" ".join,
)
def test_fast_and_without_torch(arguments):
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    best = 9.0
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", PROBE.format(arguments)], capture_output=True, text=True, env=env)
        after = os.times()
        spent = after.children_user - before.children_user + after.children_system - before.children_system
        best = min(best, spent)
        assert done.returncode == 0, done.stderr
        if best < FAST:
            break
    assert best < FAST


def test_python_m_emblema():
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-m", "emblema", "list", "--json"], capture_output=True, text=True, env=env)
    assert {"pretrain", "transfer", "distill", "data", "tasks", "protocols", "models"} == set(json.loads(done.stdout))
    done = subprocess.run([sys.executable, "-m", "emblema", "lst"], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr == "emblema: no verb 'lst'; did you mean list?\n" and not done.stdout


def test_list(capsys):
    assert {"clip", "slip"} <= {c["name"] for c in document(capsys, "list", "pretrain")}
    assert {"linear-probe", "retrieval", "zero-shot"} <= {c["name"] for c in document(capsys, "list", "tasks")}
    cli.main(["list", "--by", "section"])
    assert "5.1 contrastive" in capsys.readouterr().out


def test_the_chapter_on_transfer_is_whole_whichever_folder_a_system_is_in(capsys):
    cards = {card["name"]: card for card in document(capsys, "list", "transfer")}
    assert cards["coop"]["family"] == "transfer" and cards["denseclip"]["family"] == "distill"
    assert all(card["section"].startswith("6.") for card in cards.values())
    cli.main(["transfer", "denseclip", "--help"])
    assert "usage: emblema distill denseclip" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb, family", [("pretrain",) * 2, ("transfer",) * 2, ("distill",) * 2, ("evaluate", "tasks")]
)
def test_the_options_of_every_system_and_task_can_be_read(verb, family, capsys):
    for card in document(capsys, "list", family):
        cli.main([verb, card["name"], "--help"])
        assert "--data" in capsys.readouterr().out, card["name"]


def test_a_setting_that_is_an_option_of_the_run_is_told(tmp_path, capsys):
    source = (Path(cli.__file__).parents[1] / "pretrain" / "clip.py").read_text(encoding="utf-8")
    named = source.replace("    optim: Optim", "    out: int = 3\n    optim: Optim", 1)
    assert named != source
    (tmp_path / "mine.py").write_text(named, encoding="utf-8")
    assert cli.main(["pretrain", str(tmp_path / "mine.py"), "--help"]) == 2
    assert "settings named as options of the run, out: rename them" in capsys.readouterr().err


def test_show(capsys):
    found = document(capsys, "show", "slip")
    fields = {f["name"]: f for f in found["fields"]}
    assert fields["temperature"]["default"] == "0.1" and fields["arch"]["default"] == "'small'"
    assert fields["weight"]["help"] == "of the image-image term"
    assert len(found["deviations"]) == 3 and found["command"].startswith("emblema pretrain slip")
    cli.main(["show", "clip"])
    out = capsys.readouterr().out
    assert "CE(s z_I z_T^T)" in out and "emblema pretrain clip" in out and "2103.00020" in out
    cli.main(["show", "zero-shot"])
    assert "emblema evaluate zero-shot" in capsys.readouterr().out
    assert "did you mean" in failure(capsys, "show", "clap")


def test_protocols(capsys, tmp_path):
    hashes = {c["name"]: c["hash"] for c in document(capsys, "list", "protocols")}
    found = document(capsys, "show", "base-to-novel")
    assert found["hash"] == hashes["base-to-novel"] and found["shots"] == [16] and "CoCoOp" in " ".join(found["rules"])
    cli.main(["show", "zero-shot"])  # a task and a protocol
    assert f"protocol zero-shot ({hashes['zero-shot']})" in capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntask: zero-shot\nmetric: top1\ndata: [digits]\nshots: [2, all]\n")
    assert document(capsys, "show", str(path))["sets"] == ["digits"]
    assert "did you mean few-shot" in failure(capsys, "show", "few-shots")


def test_classify(capsys, folder, tmp_path):
    found = document(capsys, "classify", str(folder), "--labels", ",".join(NAMES), "--precision", "fp32")
    assert [set(f) for f in found] == [{"path", "labels", "error"}] * 5
    broken, *good = found
    assert broken["path"].endswith("broken.jpg") and broken["labels"] == [] and "broken.jpg" in broken["error"]
    for one in good:
        p = [label["probability"] for label in one["labels"]]
        assert one["error"] is None and sum(p) == pytest.approx(1) and p == sorted(p, reverse=True)
    page = tmp_path / "out" / "page.html"
    assert cli.main(["classify", str(folder), "--labels", "cat,dog", "--page", str(page)]) == 0
    out, error = capsys.readouterr()
    assert "cannot be read" in out and "3.png" in out and "page:" in error
    assert page.read_text().count("data:image/webp;base64,") == 4


def test_classify_with_labels_of_a_file(capsys, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n\nred car\n")
    found = document(capsys, "classify", str(folder / "deep"), "--labels", str(tmp_path / "labels.txt"), "--top", "1")
    assert {label["label"] for f in found for label in f["labels"]} <= {"cat", "red car"}
    assert all(len(f["labels"]) == 1 for f in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "{}", "--labels", ""], "no labels"),
        (["classify", "{}", "--labels", "cat,cat"], "given twice: cat"),
        (["classify", "nowhere", "--labels", "cat"], "no file or folder nowhere"),
        (["classify", "{}/broken.jpg", "--labels", "cat"], "none of the 1 pictures can be read"),
        (["classify", "{}", "--labels", "cat", "--templates", "a photo"], "no place for the class name"),
        (["search", "{}"], "say what to search for"),
        (["evaluate", "zero-shoot", "--data", "squares"], "did you mean zero-shot"),
        (["evaluate"], "known: action, detection, hierarchy, "),
        (["evaluate", "zero-shot", "--data", "squars"], "no data set or path 'squars'"),
        (["evaluate", "zero-shot", "--data", "squares", "--split", "tset"], "no split 'tset'"),
        (["pretrain", "./nowhere.py"], "no file nowhere.py"),
        (["pretrain", "clip", "--preset", "huge"], "no preset of CLIP 'huge'"),
        (["report", "nowhere.jsonl"], "no result file"),
        (["data", "chek"], "did you mean check"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_refusals_are_one_line_and_teach(capsys, folder, arguments, message):
    assert message in failure(capsys, *(a.format(folder) for a in arguments))


def test_a_wrong_setting_is_an_error_that_names_it(capsys):
    assert cli.main(["pretrain", "clip", "--optim.lrr", "1"]) == 2
    out, error = capsys.readouterr()
    assert "optim.lrr" in out + error


def test_search(capsys, folder):
    found = document(capsys, "search", str(folder), "a red fish", "--top", "3")
    assert len(found) == 3 and all(set(f) == {"path", "score"} for f in found)
    scores = [f["score"] for f in found]
    assert scores == sorted(scores, reverse=True) and all(-1 <= s <= 1 for s in scores)
    cli.main(["search", str(folder), "a red fish"])
    out, error = capsys.readouterr()
    assert out.count(".png") == 4 and "broken.jpg left out" in error


REQUIRED = {"system", "model", "task", "data", "split", "protocol", "metrics", "seeds", "seconds"}


@pytest.mark.parametrize(
    ("task", "headline"),
    [
        ("zero-shot", "top1"),
        ("retrieval", "text_to_image_R@1"),
        ("linear-probe", "top1"),
        ("multi-label", "mAP"),
        ("action", "top1_top5_mean"),
        ("robustness", "top1_shift"),
    ],
)
def test_evaluate(capsys, tmp_path, task, headline):
    lines, page = tmp_path / "lines.jsonl", tmp_path / "page.html"
    settings = ["--resamples", "50", "--out", str(lines), "--page", str(page), "--precision", "fp32"]
    found = document(capsys, "evaluate", task, "--data", "squares", *settings)
    assert set(found) >= REQUIRED and set(found["protocol"]) >= {"name", "hash"}
    assert found["task"] == task and found["data"] == "squares" and found["split"] == "test"
    value = found["metrics"][headline]
    assert set(value) == {"value", "low", "high"} and value["low"] <= value["value"] <= value["high"]
    assert found["environment"]["torch"] and found["fields"]["task"]["resamples"] == 50 and found["data_hash"]
    again = document(capsys, "evaluate", task, "--data", "squares", *settings)
    assert again["metrics"] == found["metrics"] and again["protocol"] == found["protocol"]
    written = [json.loads(text) for text in lines.read_text().splitlines()]
    assert [w["metrics"] for w in written] == [found["metrics"]] * 2
    assert "<script" not in page.read_text() and "http" not in page.read_text()
    assert cli.main(["report", str(lines)]) == 0
    assert f"`{found['protocol']['hash']}`" in capsys.readouterr().out


def test_evaluate_in_the_terminal(capsys):
    assert cli.main(["evaluate", "zero-shot", "--data", "squares", "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    assert "top1_heldout_colour" in out and "zero-shot/squares/test" in out


def test_pretrain_keeps_standard_output_clean(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "_default_view", lambda: lambda x, size, g: x[:, :3, :size, :size].contiguous())
    run = tmp_path / "run"
    arguments = ["--data", "squares", "--arch", "tiny", "--steps", "2", "--optim.batch-size", "8", "--optim.lr", "1e-3"]
    found = document(capsys, "pretrain", "clip", *arguments, "--out", str(run), "--evaluate", "squares")
    assert found["system"] == "clip" and found["fields"]["optim"]["lr"] == 1e-3 and found["records"] == 24
    assert (run / "model" / "config.json").exists()
    log = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    assert any("top1" in json.dumps(entry) for entry in log)


def test_data_show(capsys):
    assert document(capsys, "data", "show", "emblem-scenes")["name"] == "emblem-scenes"
    assert isinstance(document(capsys, "data", "list"), list)


def test_data_show_of_a_folder(capsys, folder):
    found = document(capsys, "data", "show", str(folder / "deep"))
    assert "4 records" in found["report"]


def test_data_check(capsys, folder):
    found = document(capsys, "data", "check", str(folder), code=1)
    assert found[0]["records"] == 4 and len(found[0]["broken"]) == 1


def test_plan(capsys):
    found = document(capsys, "plan", "pretrain", "clip", "--data", "squares", "--batch", "32768", "--arch", "tiny")
    assert found["batch_size"] == 32768 and found["records"] == 24 and found["memory"]["total"] > 0
    cli.main(["plan", "pretrain", "clip", "--data", "squares", "--batch", "32768"])
    assert "batch 32,768" in capsys.readouterr().out
