"""Two gloo processes have the gradients, logit scale included, of one process with the joint batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: see `emblema.engine.distributed.processes`
import torch.multiprocessing as mp
import torch.nn.functional as F

from emblema.core.gather import gather, gather_objects, rank, world_size
from emblema.objectives import contrastive, targets
from emblema.objectives.late_interaction import late_contrastive
from emblema.objectives.tiled import tiled_contrastive, tiled_sigmoid

B, D, W = 12, 8, 2
LABELS = torch.tensor([0, 1, 2, 0, 3, 4, 0, 5, 1, 6, 7, 8])
TEXTS = [f"A caption, number {label}" for label in LABELS.tolist()]


def soft(z_image, z_text, scale, bias, rows):
    with torch.no_grad():
        y = targets.smoothing(targets.momentum_softmax(z_image, z_text, 10.0), 0.1)
    return contrastive.image_text_contrastive(z_image, z_text, scale, y, reduction="sum")


def hashed(z_image, z_text, scale, bias, rows):
    y = targets.text_hash(TEXTS[rows])
    return contrastive.image_text_contrastive(z_image, z_text, scale, y, sample_weight=LABELS[rows] / 4.0)


def token_wise(z_image, z_text, scale, bias, rows):
    """Two tokens each; every second text has one word and padding."""
    patches, words = (F.normalize(z.unflatten(1, (2, D // 2)), dim=-1) for z in (z_image, z_text))
    real = torch.tensor([[True, i % 2 == 0] for i in range(B)])[rows]
    return late_contrastive(patches, words * real[..., None], scale, budget=40)


LOSSES = {
    "dense": lambda i, t, s, b, rows: contrastive.image_text_contrastive(i, t, s),
    "tiled": lambda i, t, s, b, rows: tiled_contrastive(i, t, s, tile=5),
    "sigmoid": lambda i, t, s, b, rows: contrastive.sigmoid_contrastive(i, t, s, b),
    "tiled sigmoid": lambda i, t, s, b, rows: tiled_sigmoid(i, t, s, b, tile=5),
    "label": lambda i, t, s, b, rows: contrastive.image_text_label_contrastive(i, t, LABELS[rows], s),
    "label equation": lambda i, t, s, b, rows: contrastive.image_text_label_contrastive(
        i, t, LABELS[rows], s, normalise="equation"
    ),
    "nt_xent": lambda i, t, s, b, rows: contrastive.nt_xent(i, t, 0.1) * s / 10,
    "token-wise": token_wise,
    "soft": soft,
    "hashed": hashed,
    "transport": lambda i, t, s, b, rows: contrastive.image_text_contrastive(
        i, t, s, targets.transport(i, t), targets_t2i=targets.transport(i, t, direction="t2i")
    ),
}


def gradients(name: str, rows: slice) -> list[torch.Tensor]:
    """Loss and gradients of two linear encoders, the log-scale and the bias, averaged as DDP does."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(B, D, generator=generator), torch.randn(B, D, generator=generator)
    encoders = [torch.randn(D, D, generator=generator, requires_grad=True) for _ in range(2)]
    log_scale, bias = torch.tensor(2.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    z_image, z_text = (F.normalize(v[rows] @ w, dim=-1) for v, w in zip((x, y), encoders, strict=True))
    loss = LOSSES[name](z_image, z_text, log_scale.exp(), bias, rows) + 0 * bias
    loss.backward()
    found = [loss.detach(), *(p.grad for p in (*encoders, log_scale, bias))]
    if world_size() > 1:
        for value in found:
            dist.all_reduce(value)
            value /= world_size()
    return found


def worker(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=W)
    b = B // W
    results = {name: gradients(name, slice(index * b, (index + 1) * b)) for name in LOSSES}
    assert gather_objects(index) == [0, 1] and rank() == index
    try:
        gather(torch.zeros(2 + index, D))
    except ValueError as error:
        results["unequal"] = str(error)
    if index == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(worker, args=(str(folder),), nprocs=W)
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_the_joint_batch(two_processes, name):
    joint = gradients(name, slice(0, B))
    for ours, expected in zip(two_processes[name], joint, strict=True):
        assert (ours - expected).norm() <= 1e-5 * expected.norm().clamp(min=1e-3)


def test_unequal_batches_are_refused(two_processes):
    assert "[2, 3] rows" in two_processes["unequal"] and "drop_last" in two_processes["unequal"]


def test_one_process_is_the_identity():
    x = torch.randn(3, 2)
    assert gather(x) is x and gather_objects("a") == ["a"] and world_size() == 1 and rank() == 0
