"""A second reader of the file format, written from docs/format.md alone.

It imports nothing of genesis, so that a mistake common to genesis's writer and reader shows. It
verifies what the page says a reader verifies, and is as slow as it is short.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

IDENTIFIER = b"\x89genesis checkpoint\r\n\x1a\n".ljust(50, b"\0")
HEADER = b"\x80\x05C\x32" + IDENTIFIER + b"0\x96"
MAGIC = b"GENESIS\x1a"
PLAIN = bytes.fromhex("9430 4e9430")
TORCH = b"\x940\x8c\x05torch\x8c\x1aUntypedStorage.from_buffer\x93\x940"


@dataclass
class Parts:
    """A file taken apart."""

    data: bytes
    prologue: bytes
    skeleton: bytes
    digests: list[int]
    index: dict[str, Any]
    chunk_size: int
    stream: bytes


def xxh3(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data, seed=0)


def take_apart(path: Path) -> Parts:
    """Verify a file in the order that the page gives, and cut it into its parts."""
    file = path.read_bytes()
    footer = file[-64:]
    magic, version, chunk, stream, skeleton, index, of_trailer, zero, of_footer = struct.unpack(
        "<8sIIQQQQQQ", footer
    )
    assert magic == MAGIC
    assert version == 1
    assert xxh3(footer[:56]) == of_footer
    assert zero == 0
    assert chunk >= 4096
    assert chunk % 4096 == 0
    count = -(-stream // chunk)
    assert len(file) == stream + 8 * count + index + 64
    trailer = file[stream:-64]
    assert xxh3(trailer) == of_trailer
    digests = list(struct.unpack(f"<{count}Q", trailer[: 8 * count]))
    chunks = [file[low : min(low + chunk, stream)] for low in range(0, stream, chunk)]
    assert [xxh3(each) for each in chunks] == digests
    assert file[:56] == HEADER
    (size,) = struct.unpack("<Q", file[56:64])
    assert size % 64 == 0
    prologue = file[64 + size : skeleton]
    assert prologue in (PLAIN, TORCH)
    return Parts(
        data=file[64 : 64 + size],
        prologue=prologue,
        skeleton=file[skeleton:stream],
        digests=digests,
        index=json.loads(trailer[8 * count :].decode("utf-8")),
        chunk_size=chunk,
        stream=file[:stream],
    )


def read_index(path: Path) -> dict[str, Any]:
    return take_apart(path).index


def read(path: Path) -> Any:
    """The state of a file: the skeleton, unpickled over the data region in memo slot 0."""
    parts = take_apart(path)
    opener = pickle
    if parts.index["pickler"] == "dill":
        import dill as opener  # type: ignore[no-redef]
    # The stream up to the skeleton is one pickle without its STOP: with one, it leaves the two
    # slots in the memo of the unpickler, which then goes on with the skeleton.
    start = parts.stream[: len(parts.stream) - len(parts.skeleton)]
    unpickler = opener.Unpickler(io.BytesIO(start + b"N." + parts.skeleton))
    assert unpickler.load() is None
    return unpickler.load()
