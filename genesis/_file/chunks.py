"""An open genesis file and its chunks: read and verified whole, or only the parts that are wanted.

It builds no object and knows nothing of what the bytes mean.
"""

from __future__ import annotations

import mmap as _mmap
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._errors import NotACheckpointError
from .._os import files
from .._progress import Progress
from .._threads import companions
from ..storage import places
from ..storage.protocols import Source
from . import kinds, layout

Span = tuple[int, int]
"""Offsets in the stream: of a first byte, and of the end of a last one."""

_ASIDE = 1 << 20
"""Bytes read at a time of what is only verified: few enough to stay in a cache."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An open genesis file whose trailer is checked, and whose chunks are not."""

    path: str
    source: Source
    footer: layout.Footer
    digests: tuple[int, ...]
    index: layout.Index
    data_size: int

    @property
    def chunks(self) -> int:
        return self.footer.chunks

    def chunk_span(self, number: int) -> tuple[int, int]:
        """The offsets where a chunk begins and ends."""
        low = number * self.footer.chunk_size
        return low, min(low + self.footer.chunk_size, self.footer.stream_size)

    @property
    def end_of_data(self) -> int:
        """Where the prologue begins, and behind it the skeleton."""
        return layout.HEADER_SIZE + self.data_size

    def chunk_size(self, number: int) -> int:
        """Bytes of a chunk."""
        low, high = self.chunk_span(number)
        return high - low

    def check(self, number: int, data: Any) -> None:
        """Compare the bytes of a chunk with its digest; raise `ChecksumError` if they differ."""
        self.compare(number, layout.digest(data))

    def compare(self, number: int, digest: int) -> None:
        """The same with the digest of the bytes."""
        layout.check_chunk(self.path, number, digest, self.digests[number], self.chunk_span(number))

    def read(self, number: int, target: memoryview) -> memoryview:
        """Read a chunk to the start of `target`; return the part that was filled."""
        low, high = self.chunk_span(number)
        return target[: self.source.read_into(target[: high - low], low)]


@contextmanager
def reading(path: str) -> Iterator[Source]:
    """`storage.places.reading`, with an error for a folder that says what it is a checkpoint of."""
    try:
        with places.reading(path) as source:
            yield source
    except IsADirectoryError as exc:
        if exc.filename != path:
            raise
        kind = kinds.of_folder(files.names(path))
        raise NotACheckpointError(path, kind.problem, hint=kind.hint) from None


def open_file(path: str, source: Source) -> Opened:
    """Check the ends and the trailer of an open file.

    Raises:
        CorruptCheckpointError: they are damaged.
        NotACheckpointError: it is no genesis file.
    """
    size = source.size()
    start = source.read(layout.HEADER_SIZE, 0)
    end = source.read(layout.FOOTER_SIZE, max(size - layout.FOOTER_SIZE, 0))
    if not layout.is_ours(start, end):
        raise NotACheckpointError(path, "this is not a genesis file", 0)
    footer = layout.decode_footer(path, end, size)
    body = source.read(footer.trailer_size, footer.stream_size)
    digests, index = layout.decode_trailer(path, footer, body)
    return Opened(path, source, footer, digests, index, layout.data_size(path, start, footer))


def read_chunks(
    opened: Opened,
    chunks: Collection[int],
    memory: _mmap.mmap,
    *,
    verify: bool,
    fill: Callable[[int, int], bool] = lambda low, high: False,
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Read chunks to their places in memory for the whole stream, and verify them, on as many
    threads as it pays."""
    stream = memoryview(memory)

    def read(number: int) -> None:
        low, high = opened.chunk_span(number)
        data = stream[low:high]
        if not fill(low, high):
            data = opened.read(number, data)
        if verify or len(data) < high - low:
            opened.check(number, data)
        advance(high - low)

    size = len(chunks) * opened.footer.chunk_size
    companions.run_all((partial(read, number) for number in chunks), size=size)


def read_spans(
    opened: Opened,
    spans: Iterable[Span],
    memory: _mmap.mmap,
    progress: Progress,
    *,
    verify: bool,
) -> None:
    """Read parts of the stream to their places in memory for the whole of it. What else stands in
    their chunks is verified with them, and takes no memory.

    Raises:
        ChecksumError: a chunk is damaged.
    """
    stream = memoryview(memory)
    wanted = _by_chunk(opened, spans)
    read_parts = _read_verified if verify else _read_unverified

    def read(number: int) -> None:
        read_parts(opened, number, wanted[number], stream)
        progress.add(opened.chunk_size(number))

    size = sum(map(opened.chunk_size, wanted))
    threads = min(len(wanted), companions.SIZE)
    with progress.running(size):
        work = (partial(read, number) for number in wanted)
        companions.run_all(work, size=size if verify else 0, threads=threads)


def _by_chunk(opened: Opened, spans: Iterable[Span]) -> dict[int, list[Span]]:
    """What is wanted of each chunk: ascending, and apart from each other."""
    found: dict[int, list[Span]] = {}
    end = 0
    for low, high in sorted(spans):
        low = max(low, end)
        while low < high:
            number = low // opened.footer.chunk_size
            stop = min(high, opened.chunk_span(number)[1])
            found.setdefault(number, []).append((low, stop))
            low = end = stop
    return found


def _read_verified(opened: Opened, number: int, parts: list[Span], stream: memoryview) -> None:
    """Read parts of a chunk. Its digest is made of the very bytes that are kept."""
    digest = layout.new_digest()
    aside = memoryview(bytearray(_ASIDE))
    at, end = opened.chunk_span(number)
    for low, high in [*parts, (end, end)]:
        while at < low:
            at += _add(opened, digest, aside[: low - at], at)
        if low < high:
            at += _add(opened, digest, stream[low:high], low)
    opened.compare(number, digest.intdigest())


def _add(opened: Opened, digest: Any, target: memoryview, offset: int) -> int:
    digest.update(target[: opened.source.read_into(target, offset)])
    return len(target)


def _read_unverified(opened: Opened, number: int, parts: list[Span], stream: memoryview) -> None:
    for low, high in parts:
        if opened.source.read_into(stream[low:high], low) < high - low:
            _read_verified(opened, number, parts, stream)  # which says what is missing
