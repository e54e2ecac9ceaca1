"""Vocabularies in the files of SentencePiece (`spiece.model`): the original SigLIP's, T5's.

Such a file is a protocol buffer. The few fields that decide about ids are read here; the cutting itself is done by the
library `tokenizers`, whose Unigram model gives the same pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emblema.core.errors import BadCheckpoint

UNIGRAM, UNKNOWN = 1, 2  # numbers of TrainerSpec.ModelType and of SentencePiece.Type
END, SPACE = "</s>", "▁"


def read_sentence_pieces(path: Path) -> Any:
    """A Unigram vocabulary as a tokenizer of `tokenizers`, which ends each text with "</s>".

    Raises BadCheckpoint for a file that is cut off, that is none of SentencePiece, or that holds another kind of model.
    """
    import tokenizers as hf

    try:
        model = message(path.read_bytes())
        pieces = [message(piece) for piece in model[1]]
        vocabulary = [(p[1][0].decode("utf-8"), p.get(2, [0.0])[0]) for p in pieces]
        trained, normal = message(model.get(2, [b""])[0]), message(model.get(3, [b""])[0])
        unknown = next(i for i, p in enumerate(pieces) if p.get(3, [1])[0] == UNKNOWN)
    except (IndexError, KeyError, StopIteration, UnicodeDecodeError, ValueError, struct.error) as error:
        raise BadCheckpoint(f"{path} is not a whole file of SentencePiece ({error!r}): copy it again") from error
    if (kind := trained.get(3, [UNIGRAM])[0]) != UNIGRAM:
        raise BadCheckpoint(f"{path} holds a model of type {kind}: only Unigram ({UNIGRAM}) is read")
    core = hf.Tokenizer(hf.models.Unigram(vocabulary, unknown, bool(trained.get(35, [0])[0])))  # 35: byte_fallback
    charsmap = normal.get(2, [b""])[0]
    steps = [hf.normalizers.Precompiled(charsmap)] if charsmap else []
    if normal.get(4, [1])[0]:  # remove_extra_whitespaces
        steps += [hf.normalizers.Strip(), hf.normalizers.Replace(hf.Regex(" {2,}"), " ")]
    core.normalizer = hf.normalizers.Sequence(steps)
    prefix = "always" if normal.get(3, [1])[0] else "never"  # add_dummy_prefix
    core.pre_tokenizer = hf.pre_tokenizers.Metaspace(SPACE, prepend_scheme=prefix)
    core.decoder = hf.decoders.Metaspace(SPACE, prepend_scheme=prefix)
    end = core.token_to_id(END)
    if end is not None:
        core.post_processor = hf.processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return core


def message(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values: numbers, or bytes of strings and of messages within."""
    found: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            yield number, struct.unpack_from("<d" if wire == 1 else "<f", data, at)[0]
            at += size
        elif wire == 2:
            size = varint()
            if at + size > len(data):
                raise ValueError(f"{size} bytes wanted at {at}, {len(data) - at} there")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {wire} at {at}")
