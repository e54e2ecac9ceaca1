import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from test_clip import built

from emblema.pretrain.otter import OTTER
from emblema.testing import tiny_batch


def plan(v, t, cross, rounds=5, epsilon=0.15):
    """POT's plan, rows normalised; its update order is that of the transposed cost."""
    score = cross + v @ v.T + t @ t.T
    score.diagonal().sub_(200)
    B = len(v)
    u = np.full(B, 1 / B)
    G = ot.sinkhorn(u, u, -score.double().numpy().T, epsilon, numItermax=rounds, stopThr=0, warn=False).T
    G = torch.tensor(G)
    return G / G.sum(1, keepdim=True)


def test_the_terms_are_infonce_and_the_divergence_from_pot():
    method = OTTER(arch="tiny", alpha=0.3)
    module, batch = built(method), tiny_batch(8)
    with torch.no_grad():
        for p in module["teacher"].module.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    z = {name: encode(batch) for name, encode in method.encoders(module).items()}
    v, t = z["teacher_image"], z["teacher_text"]
    assert not torch.allclose(v, z["image"])
    found = method.losses(module, batch)
    S = module["vlm"].scale * z["image"] @ z["text"].T
    own = torch.arange(8)
    torch.testing.assert_close(
        found["image_text"], 0.3 * (F.cross_entropy(S, own) + F.cross_entropy(S.T, own)), atol=1e-5, rtol=0
    )
    S_d = (module["distillation_scale"]() * z["image"] @ z["text"].T).double()
    T_i, T_t = plan(v, t, v @ t.T), plan(v, t, t @ v.T)
    assert T_i.diagonal().max() < 1e-12
    kl = lambda logits, target: F.kl_div(logits.log_softmax(1), target, reduction="batchmean")
    expected = 0.7 * (kl(S_d, T_i) + kl(S_d.T, T_t))
    torch.testing.assert_close(found["transport"].double(), expected, atol=1e-5, rtol=0)


def test_alpha_1_is_infonce():
    method = OTTER(arch="tiny", alpha=1.0)
    assert method.losses(built(method), tiny_batch(8))["transport"] == 0


def test_the_teacher_follows_the_official_schedule():
    method = OTTER(arch="tiny", decay=0.5)
    module = built(method)
    name, weight = next((n, p) for n, p in module["vlm"].named_parameters() if p.ndim == 2)
    shadow = weight.detach().clone()
    for n in range(1, 12):  # the first forward moves nothing: shadow and weights are equal then
        with torch.no_grad():
            weight.add_(0.1)
        method.after_step(module)
        d = min(0.5, (2 + n) / (11 + n))
        shadow = d * shadow + (1 - d) * weight.detach()
        torch.testing.assert_close(dict(module["teacher"].module.named_parameters())[name], shadow)
    assert not any(p.requires_grad for p in module["teacher"].parameters())


def test_one_pair_has_no_other_match():
    method = OTTER(arch="tiny")
    with pytest.raises(ValueError, match="at least 2 pairs"):
        method.losses(built(method), tiny_batch(1))
