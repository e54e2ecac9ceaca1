"""The tiny folder of bundled sets that the tests of `data` use, and a few small scenes of it."""

import pytest

from emblema.data.scenes import Scenes
from tests.data.conftest import bundle

__all__ = ["bundle"]


@pytest.fixture(scope="session")
def scenes(bundle):
    return Scenes(size=64, sizes={"test": 8}, folder=bundle)
