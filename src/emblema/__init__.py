"""Vision-language models for vision tasks: pre-training, transfer, distillation and evaluation.

>>> import emblema
>>> model = emblema.load("default")
>>> model.classify(["cat.png"], ["cat", "dog"])  # [1, 2] probabilities
"""

__version__ = "0.1.0"
__all__ = ["Model", "load"]


def __getattr__(name: str):
    # torch takes seconds to import, so `emblema list` and `--help` must not touch it
    if name in __all__:
        from emblema import model

        return getattr(model, name)
    raise AttributeError(f"module 'emblema' has no attribute {name!r}")
