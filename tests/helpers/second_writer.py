"""A second writer of the file format, written from docs/format.md alone.

It imports nothing of genesis, and writes whatever it is told to, so that a reader can be shown
files that are right in every checksum and wrong in one thing.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import xxhash

CHUNK_SIZE = 16 << 20
PLAIN = bytes.fromhex("94304e9430")
TORCH = b"\x940\x8c\x05torch\x8c\x1aUntypedStorage.from_buffer\x93\x940"


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=0)


def header(data_size: int) -> bytes:
    identifier = b"\x89genesis checkpoint\r\n\x1a\n".ljust(50, b"\0")
    return b"\x80\x05C\x32" + identifier + b"0\x96" + struct.pack("<Q", data_size)


def index(**changes: Any) -> bytes:
    """The index of the first version, with other keys or values; ``None`` leaves a key out."""
    record = {"pickler": "pickle", "writer": "a second writer", "python": "3.11", "metadata": {}}
    kept = {key: value for key, value in (record | changes).items() if value is not None}
    return json.dumps(kept, separators=(",", ":")).encode()


def assemble(
    skeleton: bytes,
    data: bytes = b"",
    *,
    prologue: bytes = PLAIN,
    trailing: bytes | None = None,
    chunk_size: int = CHUNK_SIZE,
    **footer: int,
) -> bytes:
    """A whole file.

    Args:
        trailing: the index, as bytes.
        footer: fields of the footer that say something else than what is there.
    """
    stream = header(len(data)) + data + prologue + skeleton
    begin = len(stream) - len(skeleton)
    return assemble_stream(stream, begin, trailing=trailing, chunk_size=chunk_size, **footer)


def assemble_stream(
    stream: bytes,
    begin: int,
    *,
    trailing: bytes | None = None,
    chunk_size: int = CHUNK_SIZE,
    **footer: int,
) -> bytes:
    """A whole file around any stream, whose skeleton begins at `begin`; otherwise as `assemble`."""
    trailing = index() if trailing is None else trailing
    size = chunk_size or CHUNK_SIZE
    chunks = [stream[low : low + size] for low in range(0, len(stream), size)]
    trailer = b"".join(struct.pack("<Q", xxh3(chunk)) for chunk in chunks) + trailing
    fields = {
        "version": 1,
        "chunk_size": chunk_size,
        "stream_size": len(stream),
        "skeleton_offset": begin,
        "index_size": len(trailing),
        "trailer_digest": xxh3(trailer),
        "zero": 0,
    }
    return stream + trailer + sealed(**fields | footer)


def sealed(**fields: int) -> bytes:
    """A footer of these fields, with the digest that makes it sound."""
    head = b"GENESIS\x1a" + struct.pack("<IIQQQQQ", *fields.values())
    return head + struct.pack("<Q", xxh3(head))
