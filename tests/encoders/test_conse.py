"""A classifier beside a ViT: it is the whole network, strange images get its names, others do not, doors stay open."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.covariance import EmpiricalCovariance

from emblema.core.preprocess import Preprocess
from emblema.encoders.conse import MOST, Strangeness, folded
from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks import checkpoint
from emblema.frameworks.two_tower import TwoTower

NET = "tf_efficientnet_lite0"
CONFIG = ViTConfig(image_size=64, patch_size=32, shrink=2, width=32, depth=2, heads=2, knows=f"{NET}:20")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return CONFIG.build(16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def odds(tower, value):
    """The log odds of being strange, of every image."""
    tower.conse.strange.white.weight.zero_()
    tower.conse.strange.white.bias.fill_(1.0)  # log d^2 = 0
    tower.conse.strange.edge.copy_(torch.tensor([-value, 1.0]))


def test_folded_batch_norms_change_nothing(images):
    torch.manual_seed(0)
    net = timm.create_model(NET, num_classes=20).eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    x = images.float() / 128 - 1
    expected = net(x)
    assert torch.allclose(folded(net)(x), expected, atol=1e-4 * expected.abs().max().item())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in net.modules())


def test_strange_images_get_conse_and_others_the_tower(tower, images):
    x = tower.normalise(images)
    p = tower.conse.net(x).softmax(-1)
    top = p.topk(10, -1)
    named = torch.stack([sum(v * tower.conse.names[k] for v, k in zip(*row)) for row in zip(top.values, top.indices)])
    tokens = tower.transform(tower.embed(images))
    own = F.normalize(tower.project(tower.pool(tokens)), dim=-1)
    odds(tower, 40.0)
    expected = (1 - MOST) * own + MOST * F.normalize(named, dim=-1)
    assert torch.allclose(tower.encode(x), expected, atol=1e-5)
    odds(tower, -40.0)
    assert torch.allclose(tower.encode(x), own, atol=1e-5)


def test_every_door_is_open(tower, images):
    odds(tower, 40.0)  # where least is left of the tower
    z = tower.encode(images)
    assert torch.allclose(z, tower.encode(tower.embed(images)), atol=1e-5)
    prompted = tower.encode(images, lambda i, t: t.insert(torch.ones(2, 32), at=1) if i == 0 else t)
    assert not torch.allclose(z, prompted, atol=1e-3)
    assert torch.allclose(tower.encode(tower.embed(images).rows(1, 3)), z[1:], atol=1e-5)
    larger = F.interpolate(images.float(), scale_factor=2).to(torch.uint8)
    for values in (False, True):
        assert tower.dense(images, values=values).shape == (3, 2, 2, 16)
        assert tower.dense(larger, values=values).shape == (3, 4, 4, 16)
    assert tower.attention_weights(0, tower.embed(images)).shape == (3, 2, 5, 5)


def test_strangeness_is_mahalanobis_distance():
    torch.manual_seed(0)
    strange, size = Strangeness(12), 24
    usual = torch.randn(600, size) @ torch.randn(size, size)
    strange.fit(usual, shrink=0.0)
    x = ((usual - usual.mean(0)) / (usual.std(0) + 1e-3)).double().numpy()
    expected = torch.from_numpy(EmpiricalCovariance().fit(x).mahalanobis(x) / size).float()
    distance = strange.distance(usual)
    assert torch.allclose(distance, expected, rtol=1e-2)
    most, few = distance.log().quantile(torch.tensor([0.95, 0.99]))
    edge, slope = strange.edge.tolist()
    assert edge == pytest.approx(few.item()) and slope * (most.item() - edge) == pytest.approx(-3, abs=0.01)


def test_what_is_stored_is_what_is_computed(tower, images):
    """Stored tokens keep what goes round the layers."""
    from emblema.engine.encode import Encoder
    from emblema.engine.inputs import _as_tokens
    from emblema.frameworks.vlm import VLM

    odds(tower, 0.0)
    text = TextConfig(vocab_size=64, context_length=8, width=16, depth=1, heads=2).build(16)
    encoder = Encoder(VLM(tower, text).eval(), Preprocess(size=64), device="cpu", precision="fp32")
    stored = encoder.encode(images, "embedded")
    tokens = _as_tokens(encoder, stored["tokens"], stored["beside"])
    assert torch.allclose(tower.encode(tokens), tower.encode(images), atol=1e-5)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_round_trip(tmp_path, images, weights):
    torch.manual_seed(0)
    text = TextConfig(vocab_size=64, context_length=8, width=16, depth=1, heads=2)
    config = TwoTower(image=CONFIG, text=text, dim=16)
    vlm = config.build().eval()
    checkpoint.save(tmp_path / "m", vlm, config, Preprocess(size=64), ["{}"], weights=weights)
    again = checkpoint.load(tmp_path / "m")
    assert again.config == config
    with torch.no_grad():
        same = (vlm.encode_image(images) * again.vlm.encode_image(images)).sum(-1)
    assert (same > (0.99 if weights == "int8" else 0.99999)).all()


def test_places_are_those_of_the_tower_without_its_classifier(tower, images):
    odds(tower, 40.0)
    size = tower.config.image_size * 2
    large = F.interpolate(images, (size, size), mode="bilinear")  # a grid of 4x4
    alone = replace(CONFIG, knows="").build(16).eval()
    alone.load_state_dict({n: t for n, t in tower.state_dict().items() if not n.startswith("conse.")})
    for found, expected in (
        (tower.local(large, 1), alone.local(large, 1)),
        (tower.local(tower.embed(large), 1), alone.local(large, 1)),
        (tower.dense(large), alone.dense(large)),
    ):
        assert torch.allclose(found, expected, atol=1e-5)
