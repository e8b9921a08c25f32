"""What the machine itself can do: copy the bytes of a state into warm memory, and write them.

The floors keep nothing that a saver must keep: no structure, no checksum, no name, no old file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .states import flat

PIECE = 8 << 20
# A state larger than this is copied into the arena round and round: the arena is far larger than
# any cache, so the speed is the same, and an 8 GB state leaves memory for those who save it.
LARGEST_ARENA = 1 << 30

Span = tuple[int, int]  # address, length


class Arena:
    """Anonymous memory, page-aligned and present."""

    def __init__(self, length: int) -> None:
        self.length = min(-(-length // mmap.PAGESIZE) * mmap.PAGESIZE, LARGEST_ARENA)
        self.memory = mmap.mmap(-1, max(self.length, mmap.PAGESIZE))
        self.view = memoryview(self.memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        ctypes.memset(self.address, 1, self.length)


class CopyFloor:
    """Seconds to copy the buffers of a state, from where they lie into warm memory.

    Done in each way we know (memmove on two threads, on one, torch's grouped copy); the fastest
    is the floor.
    """

    def __init__(self, nbytes: int) -> None:
        # Room for what rounding up each of very many buffers may add.
        self.arena = Arena(nbytes + (1 << 20))
        self._pool = ThreadPoolExecutor(2)
        self._ways: dict[str, Callable[[], object]] = {}
        self.way = ""

    def aim(self, tree: Any) -> None:
        """Say what to copy. Not timed; needed again when the buffers have moved."""
        arrays = list(flat(tree).values())
        spans = [span for array in arrays for span in _pieces(*_span(array))]
        moves = self._moves(spans)
        halves = _halves(moves)
        self._ways = {
            "memmove, 2 threads": lambda: list(self._pool.map(move_all, halves)),
            "memmove, 1 thread": lambda: move_all(moves),
        }
        grouped = _grouped_copy(arrays)
        if grouped is not None and sum(length for _, length in spans) < LARGEST_ARENA // 4:
            self._ways["torch._foreach_copy_"] = grouped

    def run(self) -> float:
        """The seconds of the fastest way, each tried once, so that no early verdict stays."""
        seconds = {name: _timed(way) for name, way in self._ways.items()}
        self.way = min(seconds, key=seconds.__getitem__)
        return seconds[self.way]

    def _moves(self, spans: list[Span]) -> list[tuple[int, int, int]]:
        moves, offset = [], 0
        for address, length in spans:
            if offset + length > self.arena.length:
                offset = 0
            moves.append((self.arena.address + offset, address, length))
            offset += length
        return moves


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def move_all(moves: list[tuple[int, int, int]]) -> None:
    memmove = ctypes.memmove
    for to, source, length in moves:
        memmove(to, source, length)


def _halves(moves: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    half, done = sum(length for _, _, length in moves) / 2, 0
    for i, (_, _, length) in enumerate(moves):
        done += length
        if done >= half:
            return [moves[: i + 1], moves[i + 1 :]]
    return [moves]


def _span(array: Any) -> Span:
    if hasattr(array, "data_ptr"):
        return array.data_ptr(), array.nbytes
    if hasattr(array, "unsafe_buffer_pointer"):
        return array.unsafe_buffer_pointer(), array.nbytes
    return array.ctypes.data, array.nbytes


def _pieces(address: int, length: int) -> list[Span]:
    return [
        (address + start, min(PIECE, length - start)) for start in range(0, max(length, 1), PIECE)
    ]


def _grouped_copy(arrays: list[Any]) -> Callable[[], None] | None:
    if not all(hasattr(array, "data_ptr") for array in arrays):
        return None
    import torch

    sources = [array.detach() for array in arrays]
    targets = [torch.empty_like(source).copy_(source) for source in sources]
    return lambda: torch._foreach_copy_(targets, sources)


class WriteFloor:
    """Seconds to write the arena's bytes to a new file and sync it; directly where that works."""

    def __init__(self, arena: Arena, nbytes: int, folder: str) -> None:
        self._arena, self._nbytes = arena, nbytes
        self._path = os.path.join(folder, "floor.bin")
        self.direct = True

    def run(self) -> float:
        """Write once; the file is removed afterwards, outside the time."""
        try:
            return self._run()
        except OSError:
            if not self.direct:
                raise
            # Refused at the open on some file systems and at the write on others.
            self.direct = False
            return self._run()
        finally:
            if os.path.exists(self._path):
                os.unlink(self._path)

    def _run(self) -> float:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if self.direct else 0)
        start = time.perf_counter()
        descriptor = os.open(self._path, flags, 0o600)
        try:
            self._write(descriptor)
            os.ftruncate(descriptor, self._nbytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return time.perf_counter() - start

    def _write(self, descriptor: int) -> None:
        # Direct writes want whole pages: the last piece is padded, and cut off again.
        left = -(-self._nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        while left:
            start = 0
            while start < self._arena.length and left:
                piece = self._arena.view[start : start + min(2 * PIECE, left)]
                written = os.write(descriptor, piece)
                start += written
                left -= written
