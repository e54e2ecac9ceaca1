"""Reader for Qt's binary resource files (`.rcc`): a tree of names over zlib-compressed or plain files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

COMPRESSED, DIRECTORY, ZSTANDARD = 1, 2, 4  # flags of an entry


def files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path, content) of each file in a resource file, in the order of its tree.

    Raises `ValueError` when the data is no resource file, or a file in it is compressed with Zstandard.
    """
    if data[:4] != b"qres":
        raise ValueError("not a Qt resource file: it does not begin with `qres`")
    version, tree, content, names = struct.unpack_from(">4I", data, 4)
    entry_size = 14 if version < 2 else 22  # since version 2 each entry ends with a time stamp
    yield from _walk(data, tree, content, names, entry_size, 0, "")


def _walk(
    data: bytes, tree: int, content: int, names: int, entry_size: int, index: int, folder: str
) -> Iterator[tuple[str, bytes]]:
    """The files below one entry of the tree; entry 0 is the root and has no name."""
    at = tree + index * entry_size
    name_at, flags = struct.unpack_from(">IH", data, at)
    path = f"{folder}/{_name(data, names + name_at)}" if index else ""
    if flags & DIRECTORY:
        count, first = struct.unpack_from(">II", data, at + 6)
        for child in range(first, first + count):
            yield from _walk(data, tree, content, names, entry_size, child, path)
    else:
        (offset,) = struct.unpack_from(">I", data, at + 10)  # after two numbers of the locale
        yield path.lstrip("/"), _content(data, content + offset, flags, path)


def _name(data: bytes, at: int) -> str:
    """A name: its length in UTF-16 units, a hash that is not needed here, the units."""
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, at: int, flags: int, path: str) -> bytes:
    """The bytes of one file, decompressed."""
    (size,) = struct.unpack_from(">I", data, at)
    raw = data[at + 4 : at + 4 + size]
    if flags & ZSTANDARD:
        raise ValueError(f"{path} is compressed with Zstandard, which this reader does not know")
    return zlib.decompress(raw[4:]) if flags & COMPRESSED else raw  # four bytes of length come first
