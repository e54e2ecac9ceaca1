"""The tiled losses have the values and gradients of the dense ones, at every scale and every tile size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from emblema.objectives.contrastive import image_text_contrastive, sigmoid_contrastive
from emblema.objectives.tiled import tiled_contrastive, tiled_sigmoid


def features(n: int, seed: int, likeness: float, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z_image, z_text = torch.randn(2, n, 16, generator=generator, dtype=torch.float64)
    return [F.normalize(z, dim=-1).to(dtype) for z in (z_image, z_text + likeness * z_image)]


def value_and_gradient(loss, *tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(3 * value, leaves)]


def error(ours, expected):
    return max(float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in zip(ours, expected, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 999),
    st.integers(1, 50),
    st.sampled_from([0.1, 10.0, 100.0, 400.0, 3000.0]),
    st.sampled_from([-3.0, 0.0, 3.0]),  # pairs that are opposite, unrelated, alike
)
def test_contrastive_equals_dense(n, seed, tile, scale, likeness):
    inputs = [*features(n, seed, likeness), torch.tensor(scale, dtype=torch.float64)]
    ours = value_and_gradient(lambda *x: tiled_contrastive(*x, tile=tile), *inputs)
    assert error(ours, value_and_gradient(image_text_contrastive, *inputs)) < 1e-8


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(0, 999), st.integers(1, 50), st.sampled_from([0.1, 10.0, 100.0]))
def test_sigmoid_equals_dense(n, seed, tile, scale):
    extra = [torch.tensor(v, dtype=torch.float64) for v in (scale, -10.0)]
    inputs = [*features(n, seed, 2.0), *extra]
    ours = value_and_gradient(lambda *x: tiled_sigmoid(*x, tile=tile), *inputs)
    assert error(ours, value_and_gradient(sigmoid_contrastive, *inputs)) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 100.0, 300.0])
def test_nothing_underflows_in_fp32(scale):
    """Rows whose best similarity is far below the best of the tile: relative to that, e^-200 would be 0."""
    z_image, z_text = features(64, 0, 9.0)
    z_image[5] = -F.normalize(z_text.sum(0), dim=0)
    z_text[9] = -F.normalize(z_image.sum(0), dim=0)
    exact = value_and_gradient(image_text_contrastive, z_image, z_text, torch.tensor(scale, dtype=torch.float64))
    inputs = z_image.float(), z_text.float(), torch.tensor(scale)
    ours = value_and_gradient(lambda *x: tiled_contrastive(*x, tile=32), *inputs)
    assert error([x.double() for x in ours], exact) < 1e-4


def test_bf16_tiles_are_as_good_as_autocast():
    inputs = [*features(256, 0, 0.5, torch.float32), torch.tensor(30.0)]
    exact = value_and_gradient(image_text_contrastive, *inputs)
    ours = value_and_gradient(lambda *x: tiled_contrastive(*x, tile=100, bf16=True), *inputs)

    def autocast(z_image, z_text, scale):
        logits = scale * (z_image.bfloat16() @ z_text.bfloat16().T).float()
        pairs = torch.arange(len(z_image))
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

    assert error(ours, exact) < max(2 * error(value_and_gradient(autocast, *inputs), exact), 1e-2)


def test_no_square_matrix_is_held():
    """Neither saved for backward nor allocated: the largest tensor is a tile or a feature matrix."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    inputs = [*features(512, 0, 1.0, torch.float32), torch.tensor(10.0)]
    with Largest() as largest:
        value_and_gradient(lambda *x: tiled_contrastive(*x, tile=64), *inputs)
    assert largest.size <= 512 * 16


def test_features_are_checked():
    z_image, z_text = features(4, 0, 0.0)
    with pytest.raises(ValueError, match="normalize"):
        tiled_contrastive(2 * z_image, z_text, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        tiled_sigmoid(z_image, z_text * torch.nan, 1.0, 0.0)
