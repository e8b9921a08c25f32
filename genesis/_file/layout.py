"""The layout of a genesis file: header, prologue, digests, index and footer (docs/format.md).

Packs and checks bytes that are handed to it. It opens no file, unpickles nothing and knows
nothing of what the data region means.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash

from .._errors import ChecksumError, NewerFormatError, TruncatedError
from .._os.memory import ALIGNMENT
from . import user_metadata

VERSION: Final = 1
HEADER_SIZE: Final = 64
FOOTER_SIZE: Final = 64
CHUNK_SIZE: Final = 16 << 20
# Few large chunks: a writer thread takes the GIL once a chunk, and each taking can cost a training
# loop in pure Python one switch interval.

_IDENTIFIER: Final = b"\x89genesis checkpoint\r\n\x1a\n"
_HEADER_START: Final = b"\x80\x05C\x32" + _IDENTIFIER
_HEADER: Final = struct.Struct("<4s50s2sQ")
_MAGIC: Final = b"GENESIS\x1a"
_FOOTER: Final = struct.Struct("<8sIIQQQQQQ")
_DIGEST: Final = struct.Struct("<Q")
_PROLOGUE_PLAIN: Final = b"\x940N\x940"
_PROLOGUE_TORCH: Final = b"\x940\x8c\x05torch\x8c\x1aUntypedStorage.from_buffer\x93\x940"
_PROTOCOL_5: Final = b"\x80\x05"


@dataclass(frozen=True, slots=True)
class Footer:
    """The lengths and offsets, in bytes, that the last 64 bytes of a file state."""

    chunk_size: int
    stream_size: int
    skeleton_offset: int
    index_size: int
    trailer_digest: int

    @property
    def chunks(self) -> int:
        return -(-self.stream_size // self.chunk_size)

    @property
    def trailer_size(self) -> int:
        """Digests and index, without the footer."""
        return 8 * self.chunks + self.index_size

    @property
    def file_size(self) -> int:
        return self.stream_size + self.trailer_size + FOOTER_SIZE


@dataclass(frozen=True, slots=True)
class Mark:
    """What a manager writes into the index of its checkpoints.

    Attributes:
        order: higher than in those that it wrote to the folder before; 0 where no manager wrote it.
        step: of the training.
        time: seconds since 1970 when it was saved, 0.0 where that is not told.
        metrics: numbers of that step; may be inf and nan.
        stall: seconds for which the call kept the training, of a background save; else ``None``.
    """

    order: int = 0
    step: int | None = None
    time: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    stall: float | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """What the trailer tells of the skeleton without unpickling it."""

    pickler: str
    writer: str
    python: str
    metadata: dict[str, Any]
    mark: Mark = Mark()


def digest(data: Any) -> int:
    """XXH3-64 of a buffer. The GIL is released while a large one is read."""
    return xxhash.xxh3_64_intdigest(data)


new_digest = xxhash.xxh3_64
"""A digest of bytes that come in parts: `update` takes one, `intdigest` gives what `digest` gives
of all of them."""


def header(data_size: int) -> bytes:
    """The 64 bytes before a data region of `data_size` bytes."""
    return _HEADER.pack(_HEADER_START[:4], _IDENTIFIER, b"0\x96", data_size)


def prologue(*, torch_storages: bool) -> bytes:
    """The opcodes between the data region and the skeleton."""
    return _PROLOGUE_TORCH if torch_storages else _PROLOGUE_PLAIN


def encode_index(pickler: str, writer: str, python: str, metadata: Mapping[str, Any]) -> bytes:
    """The index as bytes.

    Raises:
        TypeError, ValueError: something in `metadata` is not JSON; the message names its place.
    """
    record: dict[str, Any] = {"pickler": pickler, "writer": writer, "python": python}
    record["metadata"], notes = user_metadata.encode(metadata)
    if notes:
        record["nonfinite"] = notes
    return _encode(record)


def with_mark(index: bytes, mark: Mark) -> bytes:
    """An encoded index with what a manager notes, part of which is known at the end only."""
    return index[:-1] + b"," + _encode(_encode_mark(mark))[1:]


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode()


def encode_trailer(
    digests: Iterable[int], index: bytes, *, stream_size: int, skeleton_offset: int
) -> bytes:
    """Digests, index and footer: everything after the stream."""
    body = b"".join(map(_DIGEST.pack, digests)) + index
    head = _FOOTER.pack(
        _MAGIC,
        VERSION,
        CHUNK_SIZE,
        stream_size,
        skeleton_offset,
        len(index),
        digest(body),
        0,
        0,
    )[:-8]
    return body + head + _DIGEST.pack(digest(head))


def is_ours(start: bytes, end: bytes) -> bool:
    """Whether the first or the last 64 bytes of a file are those of a genesis file.

    Either is enough: a genesis file that lost one of them is damaged, and must never pass for a
    plain pickle.
    """
    return start.startswith(_HEADER_START) or end.startswith(_MAGIC)


def decode_footer(path: str, end: bytes, file_size: int) -> Footer:
    """Check and unpack the last 64 bytes of a genesis file of `file_size` bytes.

    Raises:
        TruncatedError: there is no footer, or the file has another length than it states.
        ChecksumError: the footer is damaged.
        NewerFormatError: a later version of the format.
    """
    offset = file_size - FOOTER_SIZE
    if offset < HEADER_SIZE or not end.startswith(_MAGIC):
        raise TruncatedError(path, "the file ends without its footer", max(offset, 0))
    fields = _FOOTER.unpack(end)
    # Before the version is believed: a damaged version must not send anybody to upgrade, nor keep
    # `load` from the backup.
    if digest(end[:-8]) != fields[8] or fields[1] < 1:
        raise ChecksumError(path, "the footer is damaged", offset)
    if fields[1] > VERSION:
        problem = f"written in format version {fields[1]}, this genesis reads up to {VERSION}"
        raise NewerFormatError(path, problem, offset + 8)
    if fields[7] != 0:
        raise ChecksumError(path, "the footer is damaged", offset)
    footer = Footer(*fields[2:7])
    _check_lengths(path, footer, file_size)
    return footer


def _check_lengths(path: str, footer: Footer, file_size: int) -> None:
    if footer.chunk_size < 4096 or footer.chunk_size % 4096:
        raise ChecksumError(path, f"impossible chunk size {footer.chunk_size}", file_size - 52)
    if footer.file_size != file_size:
        raise TruncatedError(
            path, f"the file has {file_size:,} bytes, its footer says {footer.file_size:,}"
        )
    if not HEADER_SIZE < footer.skeleton_offset < footer.stream_size:
        raise ChecksumError(path, "the skeleton lies outside the stream", file_size - 40)


def decode_trailer(path: str, footer: Footer, body: bytes) -> tuple[tuple[int, ...], Index]:
    """Check and unpack what stands between stream and footer.

    Raises:
        ChecksumError: it is damaged.
    """
    if digest(body) != footer.trailer_digest:
        raise ChecksumError(path, "the index is damaged", footer.stream_size)
    split = 8 * footer.chunks
    return struct.unpack(f"<{footer.chunks}Q", body[:split]), _decode_index(path, footer, body)


def _decode_index(path: str, footer: Footer, body: bytes) -> Index:
    offset = footer.stream_size + 8 * footer.chunks
    try:
        record = json.loads(body[8 * footer.chunks :])
        index = Index(
            record["pickler"],
            record.get("writer", ""),
            record.get("python", ""),
            user_metadata.decode(record.get("metadata", {}), record.get("nonfinite", [])),
            _mark_of(record),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise ChecksumError(path, f"the index cannot be read ({exc!r})", offset) from exc
    if not (type(index.writer) is type(index.python) is str and type(index.metadata) is dict):
        raise ChecksumError(path, "the index holds values of a wrong type", offset)
    if index.pickler not in ("pickle", "dill"):
        raise ChecksumError(
            path, f"the index names no known pickler: {index.pickler!r:.40}", offset
        )
    return index


def _encode_mark(mark: Mark) -> dict[str, Any]:
    record: dict[str, Any] = {"order": mark.order}
    if mark.step is not None:
        metrics = {
            name: value if math.isfinite(value) else str(value)
            for name, value in mark.metrics.items()
        }
        record |= {"step": mark.step, "time": mark.time, "metrics": metrics}
    if mark.stall is not None:
        record["stall"] = mark.stall
    return record


def _mark_of(record: dict[str, Any]) -> Mark:
    """What a manager wrote; what is not of its kind is as if it were not there."""
    order, step, time, stall = (record.get(key) for key in ("order", "step", "time", "stall"))
    metrics = record.get("metrics")
    return Mark(
        order if type(order) is int and order > 0 else 0,
        step if type(step) is int else None,
        time if type(time) is float else 0.0,
        {
            name: float(value)
            for name, value in (metrics.items() if isinstance(metrics, dict) else ())
            if type(value) in (int, float) or value in _NONFINITE
        },
        stall if type(stall) is float else None,
    )


_NONFINITE = ("inf", "-inf", "nan")


def check_prologue(path: str, between: bytes, offset: int) -> None:
    """Check the bytes from the end of the data region, which is at `offset`, to the skeleton.

    Raises:
        ChecksumError: they are not those of version 1.
    """
    if between not in (_PROLOGUE_PLAIN, _PROLOGUE_TORCH):
        raise ChecksumError(path, "the prologue is damaged", offset)


def data_size(path: str, start: bytes, footer: Footer) -> int:
    """The length of the data region that a header states. The header is checked byte by byte, and
    against the footer.

    Args:
        start: the first 64 bytes of the file.

    Raises:
        ChecksumError: it is not that of version 1.
    """
    size = int.from_bytes(start[56:64], "little")
    room = footer.skeleton_offset - HEADER_SIZE - size
    fits = len(_PROLOGUE_PLAIN) <= room <= len(_PROLOGUE_TORCH)
    if start != header(size) or size % ALIGNMENT or not fits:
        raise ChecksumError(path, "the header is damaged", 0)
    return size


def check_chunk(path: str, number: int, found: int, expected: int, span: tuple[int, int]) -> None:
    """Compare the digest of one chunk with the one that the file has of it.

    Args:
        span: the offsets where the chunk begins and ends.

    Raises:
        ChecksumError: they differ.
    """
    if found != expected:
        low, high = span
        raise ChecksumError(
            path, f"the {high - low:,} bytes of chunk {number} do not match their checksum", low
        )
