"""Errors that users meet. Each message says what came, what was expected and what to do."""


class EmblemaError(Exception):
    """Base of the errors below; the command line prints them without a traceback."""


class NotFitted(EmblemaError):
    """`predict`, `save` or a learnt attribute was asked for before `fit`."""


class ReadsTooShallow(EmblemaError):
    """A method touched the image deeper than its card declares."""

    def __init__(self, name: str, declared: str, wanted: str):
        levels = {"tokens": "EMBEDDED", "patches": "PATCHES", "pixels": "PIXELS", "pooled": "POOLED"}
        remedy = f"Set reads=Level.{levels[wanted]}" if wanted in levels else f'Add "{wanted}" to `needs`'
        super().__init__(
            f"{name} declared reads={declared} but used x.{wanted}. {remedy} in its card (and accept a larger cache)."
        )


class PromptTooLong(EmblemaError):
    """A text with its prompt does not fit the context of the text tower."""

    def __init__(self, length: int, context_length: int):
        super().__init__(
            f"the longest text takes {length} positions with its prompt, the text tower has "
            f"{context_length}. Shorten the class names or use a shorter prompt (context_length)."
        )


class ClosedClasses(EmblemaError):
    """A system that learns something for each class was asked to name other classes."""


class NoSuchDoor(EmblemaError):
    """A tower was asked for something that its architecture does not have."""


class UnknownName(EmblemaError):
    """No system, data set, task or model has that name."""

    def __init__(self, kind: str, name: str, known: "list[str]"):
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=3, cutoff=0.5)
        shown = ", ".join(sorted(known)[:40]) + (f" and {len(known) - 40} more" if len(known) > 40 else "")
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {shown or 'none'}"
        super().__init__(f"no {kind} {name!r}; {hint}")


class BadData(EmblemaError):
    """A data set, file or batch cannot be used as it is."""


class SealedSplit(EmblemaError):
    """Code that fits or selects asked for pictures that its protocol keeps from it: the test split, above all."""


class BadCheckpoint(EmblemaError):
    """A checkpoint is incomplete, of another architecture, or of an unknown format."""
