import pytest
import torch
from toys import Squares, canvas, view

from emblema.core.batch import Record
from emblema.core.errors import BadData
from emblema.engine.loader import Loader


def loader(**changes):
    settings = {
        "dataset": Squares(50),
        "batch_size": 12,
        "size": 16,
        "views": 1,
        "canvas": canvas,
        "view": view,
    } | changes
    return Loader(**settings)


def same(a, b):
    assert a.keys == b.keys and a.texts == b.texts and a.other_texts == b.other_texts
    assert torch.equal(a.labels, b.labels) and torch.equal(a.images, b.images)
    assert len(a.views) == len(b.views) and all(map(torch.equal, a.views, b.views))
    assert torch.equal(a.generator.get_state(), b.generator.get_state())


def test_a_batch_depends_on_its_step_alone():
    one = loader()
    history = [one.batch(s) for s in (7, 0, 3, 3)]
    same(history[2], history[3])
    same(loader(cache_mb=0).batch(3), history[3])
    for step, batch in zip(range(2, 9), loader(threads=3, ahead=3).iterate(2, 9)):
        same(batch, loader().batch(step))
    assert not torch.equal(history[3].images, history[3].views[0])
    assert loader(seed=1).batch(3).keys != history[3].keys


@pytest.mark.parametrize("world", [2, 3, 4, 12])
@pytest.mark.parametrize("size", [12, 48])
def test_slices_of_processes_make_up_the_joint_batch(world, size):
    if size == 48:  # pieces of 16 that processes share
        joint = loader(batch_size=48).batch(1)
        parts = [loader(batch_size=48, rank=r, world=world).batch(1) for r in range(world)]
    else:
        joint = loader().batch(5)
        parts = [loader(rank=r, world=world).batch(5) for r in range(world)]
    assert [k for p in parts for k in p.keys] == joint.keys
    assert [t for p in parts for t in p.texts] == joint.texts
    assert torch.equal(torch.cat([p.images for p in parts]), joint.images)
    assert torch.equal(torch.cat([p.views[0] for p in parts]), joint.views[0])
    assert torch.equal(parts[0].generator.get_state(), joint.generator.get_state())


def test_an_epoch_sees_all_and_its_last_batch_is_full():
    one = loader()
    assert one.epoch_steps == 5  # 50 records, batches of 12
    seen = [i for s in range(5) for i in one.indices(s)]
    assert len(seen) == 60 and set(seen) == set(range(50))
    assert seen[50:] == seen[:10]  # completed from the start of the same permutation
    assert one.indices(5) != one.indices(0)


def test_leaving_early_ends_the_threads():
    for batch in loader().iterate(0, 1000):
        assert len(batch) == 12
        break


@pytest.mark.parametrize(
    "changes, hint",
    [
        ({"dataset": Squares(0)}, "no records"),
        ({"batch_size": 51}, "set optim.batch_size to 50"),
        ({"world": 5}, "use 10"),
        ({"captions": "last"}, '"any" or "first"'),
    ],
)
def test_errors_teach(changes, hint):
    with pytest.raises(BadData, match=hint):
        loader(**changes)


def test_a_record_without_text_among_others_is_named():
    class Holes(Squares):
        def __getitem__(self, i):
            return Record(key=f"r{i}", text=None if i == 3 else "a red square")

    with pytest.raises(BadData, match="r3"):
        loader(dataset=Holes(12)).batch(0)


@pytest.mark.parametrize("captions, seen", [("first", {"a cat"}), ("any", {"a cat", "pet", "animal"})])
def test_a_caption_is_drawn_among_all_or_is_the_first(captions, seen):
    class Cats(Squares):
        def __getitem__(self, i):
            return Record(key=f"r{i}", text="a cat", texts=("pet", "animal"))

    batch = loader(dataset=Cats(50), batch_size=50, captions=captions).batch(0)
    assert set(batch.texts) == seen
    assert all(other != text for text, other in zip(batch.texts, batch.other_texts[0]))


def test_the_fingerprint_changes_with_the_data():
    assert loader().fingerprint() == loader(batch_size=3).fingerprint() != loader(dataset=Squares(49)).fingerprint()


def test_further_views_may_be_made_otherwise():
    def black(canvases, size, generator):
        return torch.zeros(len(canvases), 3, size, size, dtype=torch.uint8)

    settings = {"dataset": Squares(), "batch_size": 4, "size": 16, "views": 2, "canvas": canvas, "view": view}
    plain, other = Loader(**settings).batch(0), Loader(**settings, further_view=black).batch(0)
    assert torch.equal(plain.images, other.images) and plain.views[0].any()
    assert len(other.views) == 2 and not any(v.any() for v in other.views)
