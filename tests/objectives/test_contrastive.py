"""Eqs. 1-5 against slow loops, independent implementations, and what must hold for any contrastive loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import NTXentLoss
from open_clip.loss import ClipLoss, SigLipLoss
from transformers.models.align.modeling_align import align_loss

from emblema.objectives.contrastive import (
    image_text_contrastive,
    image_text_label_contrastive,
    moco,
    nt_xent,
    queued_contrastive,
    sigmoid_contrastive,
)
from emblema.objectives.targets import identity, smoothing

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def unit(n: int, d: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator, dtype=dtype), dim=-1)


def pair(n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return unit(n, seed=seed), unit(n, seed=seed + 20_000)


def value_and_gradient(loss, *tensors):
    leaves = [x.clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def test_eqs_2_and_3_as_loops():
    z_image, z_text = pair(3)
    total = 0.0
    for i in range(3):
        rows = [math.exp(7 * float(z_image[i] @ z_text[j])) for j in range(3)]
        columns = [math.exp(7 * float(z_text[i] @ z_image[j])) for j in range(3)]
        total += -math.log(rows[i] / sum(rows)) - math.log(columns[i] / sum(columns))
    assert float(image_text_contrastive(z_image, z_text, 7.0, reduction="sum")) == pytest.approx(total / 3)
    assert float(image_text_contrastive(z_image, z_text, 7.0)) == pytest.approx(total / 6)


@pytest.mark.parametrize("normalise", ["mean", "equation"])
def test_eqs_4_and_5_as_loops(normalise):
    z_image, z_text = pair(4)
    labels = [0, 1, 0, 0]
    total = 0.0
    for a, b in ((z_image, z_text), (z_text, z_image)):
        for i in range(4):
            positives = [k for k in range(4) if labels[k] == labels[i]]
            everything = sum(math.exp(5 * float(a[i] @ b[j])) for j in range(4))
            logs = [math.log(math.exp(5 * float(a[i] @ b[k])) / everything) for k in positives]
            total -= sum(logs) / len(positives)
    ours = image_text_label_contrastive(z_image, z_text, torch.tensor(labels), 5.0, normalise=normalise)
    assert float(ours) == pytest.approx(total if normalise == "equation" else total / 8)


def test_nt_xent_as_a_loop():
    z_a, z_b = pair(3)
    views, total = torch.cat([z_a, z_b]), 0.0
    for i in range(6):
        others = sum(math.exp(float(views[i] @ views[j]) / 0.1) for j in range(6) if j != i)
        total -= math.log(math.exp(float(views[i] @ views[(i + 3) % 6]) / 0.1) / others)
    assert float(nt_xent(z_a, z_b, 0.1)) == pytest.approx(total / 6)


def test_oracle_clip():
    ours = value_and_gradient(image_text_contrastive, *pair(7), torch.tensor(14.3, dtype=torch.float64))
    theirs = value_and_gradient(ClipLoss(), *pair(7), torch.tensor(14.3, dtype=torch.float64))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_oracle_align():
    z_image, z_text = pair(6)
    smooth = smoothing(identity(6).double(), 0.1)  # ALIGN smooths by 0.1 in both directions
    ours = image_text_contrastive(z_image, z_text, 4.0, smooth)
    torch.testing.assert_close(ours, align_loss(4.0 * z_text @ z_image.T))


def test_oracle_siglip():
    extra = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    ours = value_and_gradient(sigmoid_contrastive, *pair(7), *extra)
    theirs = value_and_gradient(SigLipLoss(), *pair(7), *extra)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_oracle_nt_xent():
    z_a, z_b = (z.float() for z in pair(8))
    torch.testing.assert_close(nt_xent(z_a, z_b, 0.2), NTXentLoss(0.2)(z_a, z_b), rtol=1e-5, atol=1e-5)


def test_a_queue_adds_columns_and_keys_get_no_gradient():
    (z_image, z_text), (older_images, older_texts) = pair(3), (unit(4, seed=7), unit(4, seed=8))
    total = 0.0
    for rows, own, older in ((z_image, z_text, older_texts), (z_text, z_image, older_images)):
        for i in range(3):
            scores = [math.exp(9 * float(rows[i] @ key)) for key in (*own, *older)]
            total -= math.log(scores[i] / sum(scores))
    assert float(queued_contrastive(z_image, z_text, older_images, older_texts, 9.0)) == pytest.approx(total / 6)
    empty = z_image[:0]
    ours = value_and_gradient(lambda a, b: queued_contrastive(a, b, empty, empty, 14.3), z_image, z_text)
    assert float(ours[0]) == pytest.approx(float(ClipLoss()(z_image, z_text, torch.tensor(14.3))), rel=1e-6)
    images_only = value_and_gradient(
        lambda a: F.cross_entropy(14.3 * a @ z_text.T, torch.arange(3)) / 2, z_image
    )  # the text-to-image direction says nothing to images
    torch.testing.assert_close(ours[1], images_only[1])


def test_oracle_moco():
    oracle = NTXentLoss(0.2, memory_bank_size=(16, 6))
    q, k = (z.float() for z in pair(8))
    oracle(q, k)  # the bank creates itself on the first call
    queue = F.normalize(oracle.memory_bank.bank.clone().reshape(16, -1), dim=-1)
    torch.testing.assert_close(moco(q, k, queue, 0.2), oracle(q, k), rtol=1e-5, atol=1e-5)


def test_oracle_probability_targets():
    z_image, z_text = pair(6)
    y = (torch.tensor([0, 1, 0, 2, 2, 2])[:, None] == torch.tensor([0, 1, 0, 2, 2, 2])).double()
    y = y / y.sum(1, keepdim=True)
    s = 9.0 * z_image @ z_text.T
    expected = (F.cross_entropy(s, y) + F.cross_entropy(s.T, y)) / 2
    labels = torch.tensor([0, 1, 0, 2, 2, 2])
    torch.testing.assert_close(image_text_label_contrastive(z_image, z_text, labels, 9.0), expected)
    torch.testing.assert_close(image_text_contrastive(z_image, z_text, 9.0, y), expected)


@few
@given(seeds, st.integers(2, 9))
def test_order_of_the_batch_does_not_matter(seed, n):
    z_image, z_text = pair(n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for loss in (
        lambda a, b: image_text_contrastive(a, b, 10.0),
        lambda a, b: sigmoid_contrastive(a, b, 10.0, -5.0),
        lambda a, b: nt_xent(a, b),
    ):
        torch.testing.assert_close(loss(z_image, z_text), loss(z_image[order], z_text[order]))
        torch.testing.assert_close(loss(z_image, z_text), loss(z_text, z_image))  # nor which modality is which


@few
@given(seeds, st.integers(1, 9))
def test_scale_zero_is_log_b(seed, n):
    z_image, z_text = pair(n, seed)
    assert float(image_text_contrastive(z_image, z_text, 1e-9)) == pytest.approx(math.log(n), abs=1e-6)
    total = image_text_contrastive(z_image, z_text, 1e-9, reduction="sum")
    assert float(total) == pytest.approx(2 * math.log(n), abs=1e-6)


@few
@given(seeds, st.integers(1, 9))
def test_identity_targets_reproduce_the_pairs(seed, n):
    ours = value_and_gradient(lambda a, b: image_text_contrastive(a, b, 20.0, identity(n)), *pair(n, seed))
    expected = value_and_gradient(lambda a, b: image_text_contrastive(a, b, 20.0), *pair(n, seed))
    torch.testing.assert_close(ours, expected)


@few
@given(seeds, st.integers(2, 9))
def test_unique_labels_are_pairs(seed, n):
    labels = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    loss = lambda a, b: image_text_label_contrastive(a, b, labels, 20.0)
    expected = value_and_gradient(lambda a, b: image_text_contrastive(a, b, 20.0), *pair(n, seed))
    torch.testing.assert_close(value_and_gradient(loss, *pair(n, seed)), expected)


@few
@given(seeds)
def test_identical_texts_of_a_label_make_labels_pointless(seed):
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    z_image, z_class = pair(6, seed)
    by_label = value_and_gradient(
        lambda a, c: image_text_label_contrastive(a, c[labels], labels, 9.0), z_image, z_class
    )
    by_pair = value_and_gradient(lambda a, c: image_text_contrastive(a, c[labels], 9.0), z_image, z_class)
    torch.testing.assert_close(by_label, by_pair)
    varied = F.normalize(z_class[labels] + 0.3 * unit(6, seed=seed + 7), dim=-1)
    difference = image_text_label_contrastive(z_image, varied, labels, 9.0) - image_text_contrastive(
        z_image, varied, 9.0
    )
    assert abs(float(difference)) > 1e-6


@few
@given(seeds)
def test_weight_one_changes_nothing_and_weight_zero_removes(seed):
    z_image, z_text = pair(5, seed)
    base = image_text_contrastive(z_image, z_text, 9.0)
    assert torch.equal(base, image_text_contrastive(z_image, z_text, 9.0, sample_weight=torch.ones(5)))
    assert float(image_text_contrastive(z_image, z_text, 9.0, sample_weight=torch.zeros(5))) == 0
    one = [image_text_contrastive(z_image, z_text, 9.0, directions=d) for d in ("i2t", "t2i")]
    torch.testing.assert_close(sum(one) / 2, base)


def test_micro_batches_with_pasted_features_give_the_full_gradient():
    x, weight = torch.randn(8, 6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    z_text = unit(8)
    encode = lambda x, w: F.normalize(x @ w, dim=-1)
    full = value_and_gradient(lambda w: image_text_contrastive(encode(x, w), z_text, 9.0), weight)[1]
    parts = torch.zeros_like(weight)
    for rows in torch.arange(8).chunk(4):
        w = weight.clone().requires_grad_()
        pasted = encode(x, weight).index_copy(0, rows, encode(x[rows], w))
        parts += torch.autograd.grad(image_text_contrastive(pasted, z_text, 9.0), w)[0]
    assert (parts - full).abs().max() < 1e-12


def test_autocast_keeps_logits_in_fp32():
    z_image, z_text = (z.float() for z in pair(6))
    expected = image_text_contrastive(z_image, z_text, 50.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_text_contrastive(z_image, z_text, 50.0), expected)


def test_errors_teach():
    z_image, z_text = pair(4)
    with pytest.raises(ValueError, match="normalize"):
        image_text_contrastive(3 * z_image, z_text, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        image_text_contrastive(z_image * torch.nan, z_text, 1.0)
    with pytest.raises(ValueError, match="one shape"):
        sigmoid_contrastive(z_image, z_text[:3], 1.0, 0.0)
    with pytest.raises(ValueError, match="row 2 of targets has no positive"):
        image_text_contrastive(z_image, z_text, 1.0, torch.diag(torch.tensor([1.0, 1, 0, 1])), directions="i2t")
    with pytest.raises(ValueError, match="text 1 is the positive of no image"):
        image_text_contrastive(z_image, z_text, 1.0, torch.eye(4)[[0, 0, 2, 3]])
    with pytest.raises(ValueError, match="mean2"):
        image_text_contrastive(z_image, z_text, 1.0, reduction="mean")
    with pytest.raises(ValueError, match="integers"):
        image_text_label_contrastive(z_image, z_text, torch.zeros(4), 1.0)


def test_large_batches_are_computed_in_tiles_with_the_same_value_and_gradients(monkeypatch):
    from emblema.objectives import contrastive

    found = {}
    for name, threshold in (("dense", 64), ("tiles", 63)):
        monkeypatch.setattr(contrastive, "TILED_FROM", threshold)
        torch.manual_seed(0)
        raw = torch.randn(2, 64, 16, requires_grad=True)
        scale = torch.tensor(20.0, requires_grad=True)
        z_image, z_text = torch.nn.functional.normalize(raw, dim=-1)
        loss = contrastive.image_text_contrastive(z_image, z_text, scale)
        found[name] = [loss.detach(), *torch.autograd.grad(loss, (raw, scale))]
    for dense, tiles in zip(found["dense"], found["tiles"]):
        torch.testing.assert_close(tiles, dense, atol=1e-6, rtol=1e-5)
