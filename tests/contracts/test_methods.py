"""One body, every card."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import emblema
from emblema.core import find
from emblema.core.batch import Level
from emblema.testing import check_method

CARDS = [card for family in ("pretrain", "transfer", "distill") for card in find.cards(family)]
PACKAGE = Path(emblema.__file__).parent

MINE = '''
"""My idea: the scale is fixed."""
from dataclasses import dataclass
from emblema.core.card import Card
from emblema.objectives.contrastive import image_text_contrastive
from emblema.pretrain.base import Pretrain

@dataclass(kw_only=True)
class MyIdea(Pretrain):
    card = Card(name="my_idea", title="My idea", paper="none", year=2026, section="5.1 contrastive", equation="L")
    sharpness: float = 10.0  # of the softmax

    def losses(self, module, batch):
        vlm = module["vlm"]
        z_image, z_text = vlm.encode_image(batch.images), vlm.encode_text(batch.texts)
        return {"image_text": image_text_contrastive(z_image, z_text, vlm.scale)}
'''


@pytest.mark.parametrize("card", CARDS, ids=[c["name"] for c in CARDS])
def test_contract(card):
    check_method(find.find(card["family"], card["name"]))


@pytest.mark.parametrize("card", CARDS, ids=[c["name"] for c in CARDS])
def test_the_card_read_without_importing_is_the_card(card):
    own = vars(find.find(card["family"], card["name"]).card)
    for key, value in card.items():
        if key != "family":
            assert (own[key].name if isinstance(own[key], Level) else own[key]) == value
    assert own["name"] == card["name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cls: setattr(cls, "card", None), "expected emblema.core.card.Card"),
        (lambda cls: setattr(cls, "losses", lambda self, m, b: {}), "must return named terms"),
        (lambda cls: setattr(cls, "losses", lambda self, m, b: {"x": m["vlm"].scale * float("nan")}), "'x' is nan"),
        (lambda cls: setattr(cls, "losses", lambda self, m, b: {"x": m["vlm"].scale}), "no gradient reaches"),
        (
            lambda cls: setattr(cls, "losses", lambda self, m, b: {"x": m["vlm"].encode_text(b.texts)}),
            "expected a scalar",
        ),
        (lambda cls: setattr(cls, "losses", altering(cls.losses)), "altered batch.texts"),
        (lambda cls: setattr(cls, "losses", random(cls.losses)), "the same seed gave"),
        (lambda cls: setattr(cls, "__init__", stateful(cls.__init__)), "besides its fields"),
        (lambda cls: setattr(cls, "build", lambda self: 3), "expected an nn.Module"),
    ],
    ids=["card", "no terms", "nan", "idle", "vector", "altering", "random", "state", "build"],
)
def test_a_broken_system_is_told_what_is_wrong(tmp_path, change, message):
    cls = find.find("pretrain", str(written(tmp_path)))
    change(cls)
    with pytest.raises(AssertionError, match=message):
        check_method(cls)


def altering(losses):
    def changed(self, module, batch):
        batch.texts[0] = "other"
        return losses(self, module, batch)

    return changed


def stateful(init):
    def changed(self, **fields):
        init(self, **fields)
        self.head = 1

    return changed


def random(losses):
    count = itertools.count()
    return lambda self, module, batch: {k: v + next(count) for k, v in losses(self, module, batch).items()}


def written(folder):
    path = folder / "my_idea.py"
    path.write_text(MINE)
    return path


def run(*arguments, package=PACKAGE, **env):
    found = subprocess.run(
        [sys.executable, "-m", "emblema", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | env,
        timeout=120,
    )
    return found.returncode, found.stdout, found.stderr


@pytest.fixture(scope="module")
def copy_of_package(tmp_path_factory):
    target = tmp_path_factory.mktemp("copy") / "emblema"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
    return target


def test_a_dropped_file_is_a_system(copy_of_package):
    path = written(copy_of_package / "pretrain")
    try:
        code, out, _ = run("list", "pretrain", package=copy_of_package)
        assert code == 0 and "my_idea" in out
        code, out, _ = run("show", "my_idea", package=copy_of_package)
        assert code == 0 and "sharpness" in out and "of the softmax" in out
    finally:
        path.unlink()


def test_a_path_is_a_system(tmp_path):
    path = written(tmp_path)
    check_method(find.find("pretrain", str(path)))
    code, out, _ = run("pretrain", str(path), "--help")
    assert code == 0 and "--sharpness" in out and "--optim.lr" in out


def packaged(folder, source):
    """A third party's installed package with a system; returns the path to run with."""
    (folder / "someones_package.py").write_text(source)
    about = folder / "someones_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[emblema.methods]\nmy_idea = someones_package [pretrain]\n")
    return f"{PACKAGE.parent}:{folder}"


def test_an_entry_point_is_a_system(tmp_path):
    code, out, error = run("list", "pretrain", PYTHONPATH=packaged(tmp_path, MINE))
    assert code == 0 and "my_idea" in out, error


def test_an_entry_point_that_cannot_be_imported_is_listed_with_its_error(tmp_path):
    code, out, error = run("list", "pretrain", "--json", PYTHONPATH=packaged(tmp_path, "import no_such_module"))
    assert code == 0 and "my_idea" in out and "no_such_module" in out and "slip" in out, error


def test_deleting_a_system_breaks_nothing_else(copy_of_package):
    path = copy_of_package / "pretrain" / "slip.py"
    text = path.read_text()
    path.unlink()
    try:
        code, out, error = run("list", "pretrain", package=copy_of_package)
        assert code == 0 and "clip" in out and "slip" not in out, error
        code, _, error = run("pretrain", "slip", package=copy_of_package)
        assert code == 2 and "no pretrain system 'slip'; did you mean glip or clip" in error
        script = "import emblema.cli, emblema.model, emblema.pretrain.clip, emblema.tasks.zero_shot, emblema.testing"
        env = os.environ | {"PYTHONPATH": str(copy_of_package.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
    finally:
        path.write_text(text)
