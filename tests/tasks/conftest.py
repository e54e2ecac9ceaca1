"""The tiny folder of bundled sets that the tests of `data` use."""

from tests.data.conftest import bundle

__all__ = ["bundle"]
