"""A stem that knows classes: its answer is ConSE, photographs get it, drawings do not, and every door stays open."""

import pytest
import timm
import torch
import torch.nn.functional as F
from sklearn.covariance import EmpiricalCovariance

from emblema.encoders.text import TextConfig
from emblema.encoders.vit import ViTConfig
from emblema.frameworks import checkpoint
from emblema.frameworks.two_tower import TwoTower

CONFIG = ViTConfig(
    image_size=64, patch_size=32, width=32, depth=2, heads=2, stem="timm:tf_efficientnet_lite0:3+4", knows=20
)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return CONFIG.build(16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def odds(tower, value):
    """Everything is strange (large value) or nothing is."""
    tower.stem.strange.white.weight.zero_()
    tower.stem.strange.white.bias.fill_(1.0)  # log d^2 = 0
    tower.stem.strange.edge.copy_(torch.tensor([-value, 1.0]))


def test_maps_and_features_are_those_of_the_whole_network(tower, images):
    net = timm.create_model("tf_efficientnet_lite0", num_classes=20).eval()
    net.load_state_dict(net.state_dict() | tower.stem.trunk.state_dict())
    net.conv_head.load_state_dict(tower.stem.expand[0].state_dict())
    net.bn2.load_state_dict(tower.stem.expand[1].state_dict())
    net.classifier.load_state_dict(tower.stem.classify.state_dict())
    x = tower.normalise(images)
    with torch.no_grad():
        features = tower.stem.features(tower.stem.stages(x))
        assert torch.allclose(features[:, 0], net.forward_head(net.forward_features(x), pre_logits=True), atol=1e-4)
        assert torch.allclose(tower.stem.classify(features[:, 0]), net(x), atol=1e-4)


def test_strange_images_get_conse_and_others_what_was_learnt(tower, images):
    x = tower.normalise(images)
    odds(tower, 30.0)
    beside = tower.embed(images).beside
    p = tower.stem.classify(beside[:, 0, :-1]).softmax(-1)
    top = p.topk(10, -1)
    expected = torch.stack([sum(v * tower.stem.names[k] for v, k in zip(*row)) for row in zip(top.values, top.indices)])
    assert torch.allclose(tower.encode(x), F.normalize(expected, dim=-1), atol=1e-5)
    odds(tower, -30.0)
    tokens = tower.transform(tower.embed(images))
    learnt = tower.norm(tokens.pooled()) @ tower.projection + tower.stem.guess(beside[:, 0, :-1])
    assert torch.allclose(tower.encode(x), F.normalize(learnt, dim=-1), atol=1e-5)


def test_every_door_is_open(tower, images):
    odds(tower, 0.0)
    z = tower.encode(images)
    assert torch.allclose(z, tower.project(tower.pool(tower.transform(tower.embed(images)))), atol=1e-5)
    prompted = tower.encode(images, lambda i, t: t.insert(torch.ones(2, 32), at=1) if i == 0 else t)
    assert not torch.allclose(z, prompted, atol=1e-3)
    larger = F.interpolate(images.float(), scale_factor=2).to(torch.uint8)
    for values in (False, True):
        assert tower.dense(images, values=values).shape == (3, 2, 2, 16)
        assert tower.dense(larger, values=values).shape == (3, 4, 4, 16)
    assert tower.attention_weights(0, tower.embed(images)).shape == (3, 2, 5, 5)
    with pytest.raises(ValueError, match="patches of 32"):
        tower.encode(larger[..., :80])


def test_what_is_learnt_gets_gradients(images):
    tower = CONFIG.build(16).train()
    tower.encode(images).square().mul(torch.arange(16)).sum().backward()
    for name in ("projection", "stem.out.weight", "stem.guess.2.weight", "blocks.0.mlp.0.weight"):
        assert tower.get_parameter(name).grad.abs().sum() > 0, name


def test_strangeness_is_mahalanobis_distance():
    strange = CONFIG.build(16).requires_grad_(False).stem.strange
    torch.manual_seed(0)
    size = strange.white.in_features
    usual = torch.randn(600, size) @ torch.randn(size, size) * 0.1
    strange.fit(usual, shrink=0.0)
    oracle = EmpiricalCovariance().fit(((usual - usual.mean(0)) / (usual.std(0) + 1e-3)).double().numpy())
    x = ((usual[:50] - usual.mean(0)) / (usual.std(0) + 1e-3)).double().numpy()
    expected = torch.from_numpy(oracle.mahalanobis(x) / size).float()
    assert torch.allclose(strange.distance(usual[:50]), expected, rtol=1e-2)
    most, few = strange.distance(usual).log().quantile(torch.tensor([0.95, 0.99]))
    edge, slope = strange.edge
    assert edge == few and slope * (most - edge) == pytest.approx(-3, abs=0.01)
    assert (slope * (strange.distance(20 + torch.randn(50, size)).log() - edge) > 3).all()


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_round_trip(tmp_path, images, weights):
    from emblema.core.preprocess import Preprocess

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


def test_a_stem_without_a_classifier_is_refused():
    with pytest.raises(ValueError, match="EfficientNets"):
        ViTConfig(image_size=64, patch_size=8, width=32, depth=1, heads=2, stem="timm:resnet18:2", knows=5).build(16)
    with pytest.raises(ValueError, match="knows=5 needs"):
        ViTConfig(image_size=64, patch_size=8, width=32, depth=1, heads=2, knows=5).build(16)
