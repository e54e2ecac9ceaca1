"""Systems that work inside a transformer say so to a convolutional tower, when they are fitted."""

from dataclasses import replace

import pytest

from emblema.core import find
from emblema.core.errors import NoSuchDoor
from emblema.encoders.backbone import BackboneConfig
from emblema.encoders.resnet import ResNetConfig
from emblema.frameworks.two_tower import ARCHITECTURES
from emblema.frameworks.vlm import VLM, frozen
from emblema.testing import ByteTokenizer
from emblema.testing.squares import squares

INSIDE = ["maple", "promptsrc", "upt", "mvlpt", "rpo", "cavpt", "reprompt", "coprompt", "clipfit", "lora"]
IMAGES = {
    "resnet": ResNetConfig(image_size=32, width=8, layers=(1, 1, 1, 1), heads=2),
    "backbone": BackboneConfig(name="timm:resnet18", image_size=32),
}
DATA = squares(2).split("train")


@pytest.fixture(scope="module", params=IMAGES)
def vlm(request) -> VLM:
    built = frozen(replace(ARCHITECTURES["tiny"], image=IMAGES[request.param]).build())
    built.text.tokenizer = ByteTokenizer()
    return built


@pytest.mark.parametrize("name", INSIDE)
def test_a_convolutional_tower_has_no_such_door(name, vlm):
    with pytest.raises(NoSuchDoor, match=r"has no transformer layers.*Choose a model with a ViT image tower, or"):
        find.find("transfer", name)().fit(vlm, DATA)
