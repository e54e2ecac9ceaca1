"""Transfer systems: cached inputs, learnt words, and scikit-learn's contract."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from emblema.core.batch import Level
from emblema.core.errors import BadCheckpoint, BadData, ClosedClasses, PromptTooLong
from emblema.core.method import Optim
from emblema.engine.inputs import Inputs
from emblema.engine.optimise import lr_at
from emblema.parts.prompts import PromptedText, encode_classes, hand_written
from emblema.testing import tiny_model, tiny_vlm
from emblema.testing.squares import squares
from emblema.transfer.base import coop_recipe, load
from emblema.transfer.coop import CoOp
from emblema.transfer.tip_adapter import TipAdapter

NAMES = ["red square", "blue square", "green square"]


def quick(system, **changes):
    system.optim = replace(system.optim, **{"steps": 3, "precision": "fp32"} | changes)
    return system


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("level", [Level.EMBEDDED, Level.PATCHES, Level.POOLED])
def test_cached_and_live_inputs_are_the_same(level, views, tmp_path):
    model = tiny_model(cache=tmp_path, precision="fp32")
    data = squares().split("train")
    cached, live = (
        Inputs.read(model.encoder, data, level, needs=("values",), views=views, cache=model.cache, live=live)
        for live in (False, True)
    )
    rows, view = torch.tensor([5, 2, 9]), torch.tensor([0, max(views - 1, 0), 0])
    one, other = cached.batch(rows, view).x, live.batch(rows, view).x
    assert torch.allclose(one.pooled, other.pooled, atol=1e-6) and torch.allclose(one.raw, other.raw, atol=1e-5)
    assert torch.allclose(one.values, other.values, atol=1e-6)
    if level == Level.EMBEDDED:
        assert torch.allclose(one.tokens.x, other.tokens.x, atol=1e-6)
        again = model.vlm.encode_image(one.tokens)
        assert torch.allclose(again, one.pooled, atol=1e-5)


def test_cached_and_live_runs_have_the_same_losses():
    data, losses = squares().split("train"), {False: [], True: []}
    for live, seen in losses.items():
        system, model = quick(CoOp(context_length=2)), tiny_model(cache=False)
        system.fit(model, data, live=live, on_step=lambda step, seen=seen: seen.append(step.loss))
    assert losses[False] == pytest.approx(losses[True], abs=1e-6)


def test_a_shallow_read_is_told_what_to_declare():
    x = (
        Inputs.read(tiny_model(cache=False).encoder, squares().split("train"), Level.POOLED, reader="mine")
        .batch(torch.arange(2))
        .x
    )
    with pytest.raises(Exception, match=r'mine declared reads=POOLED but used x\.values\. Add "values" to `needs`'):
        _ = x.values


def test_prompts_stand_where_the_layout_says():
    vlm = tiny_vlm()
    prompt = {layout: PromptedText(vlm, NAMES, 4, layout=layout) for layout in ("end", "middle", "front")}
    context = torch.arange(4.0)[:, None].expand(4, vlm.text.width)
    for layout, before in (("end", 4), ("middle", 2), ("front", 0)):
        tokens, names = prompt[layout].tokens(context), prompt[layout].names
        for row in range(3):
            words = int(names.length[row]) - 3  # without [start], the full stop and [end]
            expected = torch.cat(
                [
                    names.x[row, :1],
                    context[:before],
                    names.x[row, 1 : 1 + words],
                    context[before:],
                    names.x[row, 1 + words : 3 + words],
                ]
            )
            assert torch.equal(tokens.x[row, : len(expected)], expected)
            assert tokens.pool_at[row] == names.pool_at[row] + 4 and tokens.length[row] == names.length[row] + 4


def test_words_of_their_own_are_learnt_for_each_class():
    vlm = tiny_vlm()
    prompt = PromptedText(vlm, NAMES, words="a photo of a", each=True)
    alone = [PromptedText(vlm, [name], words="a photo of a")()[0] for name in NAMES]
    assert torch.allclose(prompt(), torch.stack(alone), atol=1e-5) and prompt.context.shape[0] == 3


def test_classes_in_chunks_give_the_same_vectors_and_gradients():
    vlm = tiny_vlm()
    prompt = PromptedText(vlm, NAMES, 4)
    grads = []
    for chunk in (2, 100):
        z = encode_classes(vlm, prompt.tokens(prompt.context), chunk=chunk)
        grads.append(torch.autograd.grad((z * torch.linspace(0, 1, z.numel()).view_as(z)).sum(), prompt.context)[0])
        assert torch.allclose(z, prompt(), atol=1e-6)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-6)


def test_too_long_names_are_refused_not_cut():
    with pytest.raises(PromptTooLong, match="Shorten the class names"):
        CoOp(context_length=4).build(tiny_vlm(), ["x" * 500])
    with pytest.raises(PromptTooLong):
        CoOp(context_length=1000).build(tiny_vlm(), ["cat"])


def test_the_schedule_of_the_coop_family():
    optim, per_epoch, epochs = coop_recipe(), 5, 50
    rate = [lr_at((e - 1) * per_epoch, per_epoch * epochs, optim, per_epoch) for e in range(1, epochs + 1)]
    cos = torch.cos(torch.pi * (torch.arange(2, epochs + 1).double() - 2) / epochs)
    assert rate[0] == 1e-5 and rate[1:] == pytest.approx((0.5 * 0.002 * (1 + cos)).tolist())
    assert lr_at(4, 250, optim, per_epoch) == 1e-5 and lr_at(5, 250, optim, per_epoch) == 0.002
    assert lr_at(3, 10, Optim(lr=0.5, schedule="constant")) == 0.5


def test_one_sgd_step_is_torch_sgd():
    data = squares().split("train")
    system = quick(CoOp(context_length=2), steps=1, warmup=0.0, lr=0.1, batch_size=8)
    system.fit(tiny_model(cache=False), data)
    other = quick(CoOp(context_length=2), steps=1, warmup=0.0, lr=0.0, batch_size=8).fit(tiny_model(cache=False), data)
    batch = next(iter(other.read(data).batches(other.optim, other.seed)))
    parameter = other.module_.prompt.context
    F.cross_entropy(other.module_(batch.x), batch.labels).backward()
    torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=5e-4).step()
    assert torch.allclose(system.module_.prompt.context, parameter, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.subset([]), "no training pictures"),
        (lambda d: relabelled(d, [None] * len(d)), "have no label"),
        (lambda d: renamed(d, ["cat", "cat", "dog", "bird"]), "given twice: cat"),
        (lambda d: renamed(d, ["cat", " ", "dog", "bird"]), "class number 1 has an empty name"),
    ],
    ids=["empty", "unlabelled", "twice", "nameless"],
)
def test_bad_data_is_refused(change, message):
    with pytest.raises(BadData, match=message):
        quick(CoOp()).fit(tiny_model(cache=False), change(squares().split("train")))


def relabelled(data, labels):
    data.columns["label"] = labels * 3
    return data


def renamed(data, names):
    data.class_names = names
    return data


def test_a_class_without_pictures_stays_a_candidate():
    data = squares().split("train")
    system = quick(CoOp(context_length=2)).fit(tiny_model(cache=False), data.where(label=(0, 1, 2)))
    assert system.predict(squares().split("test")).shape == (24, 4)


def test_other_classes_and_closed_systems():
    data, model = squares(), tiny_model(cache=False)
    system = quick(CoOp(words="a photo of a "), steps=1, lr=0.0, warmup=0.0).fit(model, data.split("train"))
    other = system.for_classes(["cat", "dog"])
    expected = model.vlm.logits(
        other.read(data.split("test")).arrays["pooled"][0], hand_written(model.vlm, ["cat", "dog"])
    )
    assert torch.allclose(other.predict(data.split("test")), expected, atol=1e-4)
    with pytest.raises(ClosedClasses, match="learns something for each class"):
        TipAdapter(views=0).fit(model, data.split("train")).for_classes(["cat"])
    with pytest.raises(ClosedClasses, match="has a row a class"):
        quick(CoOp(context_length=2, each=True)).fit(model, data.split("train")).for_classes(["cat"])


def test_a_saved_system_refuses_another_model(tmp_path):
    quick(CoOp(context_length=2)).fit(tiny_model(cache=False), squares().split("train")).save(tmp_path)
    assert load(tmp_path, tiny_model(cache=False)).class_names_ == squares().class_names
    with pytest.raises(BadCheckpoint, match="give the same model"):
        load(tmp_path, tiny_model(seed=3, cache=False))
    (tmp_path / "learnt.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"expected config\.json and learnt\.safetensors"):
        load(tmp_path)


def test_pictures_as_they_come_and_those_that_cannot_be_read(tmp_path):
    data = squares()
    system = quick(CoOp(context_length=2)).fit(tiny_model(cache=False), data.split("train"))
    logits, errors = system.try_pictures([data[0].image, b"no picture", data[1].image])
    assert [i for i, _ in errors] == [1] and logits[1].isnan().all()
    expected = system.predict(data.subset([0, 1]))
    assert torch.allclose(logits[[0, 2]], expected, atol=1e-4)
