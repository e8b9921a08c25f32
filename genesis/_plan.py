"""Where every byte of a stream comes from: a plan, made once, filled into staging memory window by
window.

Holds addresses of live memory together with the objects that own it. It copies on request and
decides nothing about when, on which thread, or to where.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Protocol

from . import _format
from ._format import align

_DATA = _format.HEADER_SIZE
SMALL = 64 << 10
"""Bytes from which on a buffer is copied by itself, without the GIL."""

_TILE = 4 << 20
_TINY = 2 << 10


# Two names of one function: a call through `ctypes.PyDLL` keeps the GIL, one through the default
# prototype releases it. A copy of a few hundred bytes must keep it: giving it up thousands of times
# a save would hand the interpreter to another thread for a switch interval each.
def _holding(function: object, *argtypes: Any) -> Any:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    return ctypes.PYFUNCTYPE(ctypes.c_void_p, *argtypes)(address or 0)


_copy_held = _holding(ctypes.memmove, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_zero_held = _holding(ctypes.memset, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


class Readable(Protocol):
    """Bytes that memmove cannot reach, on an accelerator say."""

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on; return when they are there."""


Piece = tuple[int, int, int, Any, bool]
"""One buffer of the state and its place in the stream: offset, size, address, owner, frozen.

The address is one of this process, or 0 where the owner is a `Readable`; the owner keeps the memory
alive; frozen memory cannot change, so it may be copied after the save call has returned. A plain
tuple: a state can have a hundred thousand.
"""


class DataToken:
    """Stands for the data region in a pickle, where it is memo slot 0."""


DATA = DataToken()


class Call:
    """Pickled as a call: what it stands for is built by the reader."""

    __slots__ = ("reduction",)

    def __init__(self, reduction: tuple[Any, tuple[Any, ...]]) -> None:
        self.reduction = reduction


class SmallPieces:
    """The buffers under 64 KiB, by columns: a loop in C copies thousands of them."""

    __slots__ = ("addresses", "offsets", "owners", "sizes")

    def __init__(
        self, offsets: list[int], sizes: list[int], addresses: list[int], owners: list[Any]
    ) -> None:
        self.offsets = offsets
        """In the stream, ascending."""
        self.sizes = sizes
        self.addresses = addresses
        self.owners = owners
        """Whatever keeps the memory alive; no column."""

    def copy(self, address: int, start: int, stop: int) -> None:
        """Copy what falls between two offsets of the stream, holding the GIL. Comes before other
        pieces of the window are copied: what is between small ones may be cleared.

        Args:
            address: where the byte of offset `start` goes.
        """
        first = max(bisect_right(self.offsets, start) - 1, 0)
        last = bisect_left(self.offsets, stop)
        if first >= last:
            return  # the window ends before the first of them
        # Only the first and the last can reach beyond the window.
        self._copy_inner(address - start, slice(first + 1, last - 1))
        for number in {first, last - 1}:
            self._copy_edge(number, address, start, stop)

    def _copy_inner(self, shift: int, inner: slice) -> None:
        sizes = self.sizes[inner]
        targets = [shift + offset for offset in self.offsets[inner]]
        if targets and targets[-1] - targets[0] < _TINY * len(targets):
            # One call for all gaps costs less than one for each. Others' bytes come later.
            _zero_held(targets[0], 0, targets[-1] + align(sizes[-1]) - targets[0])
        else:
            gaps = ((t + size, -size & 63) for t, size in zip(targets, sizes, strict=True))
            _exhaust(_zero_held(start, 0, size) for start, size in gaps if size)
        _exhaust(map(_copy_held, targets, self.addresses[inner], sizes))

    def _copy_edge(self, number: int, address: int, start: int, stop: int) -> None:
        offset, size = self.offsets[number], self.sizes[number]
        low, high = max(offset, start), min(offset + size, stop)
        if low < high:
            _copy_held(address + low - start, self.addresses[number] + low - offset, high - low)
        _zero_gap(address, start, stop, offset + size)


class DataRegion:
    """The data region while it is laid out: hands out offsets, remembers the sources."""

    def __init__(self, hints: Any = None) -> None:
        self.size = 0
        self.small = SmallPieces([], [], [], [])
        self.pieces: list[Piece] = []
        """All that are not small, in the order of their offsets."""
        self.hints = hints
        """What an earlier layout of the same state learned."""
        self.lessons: Any = None
        """Set by a reducer that could have done better had it known what came later: the state is
        then laid out once more, with these as `hints`."""
        self.shared: Any = None
        """What a reducer keeps between objects."""

    def place(self, owner: Any, address: int, size: int, *, frozen: bool = False) -> int:
        """Reserve `size` bytes for the memory at `address`; return their offset in the region."""
        offset = self.size
        if size < SMALL and address:
            small = self.small
            small.offsets.append(_DATA + offset)
            small.sizes.append(size)
            small.addresses.append(address)
            small.owners.append(owner)
        else:
            self.pieces.append((_DATA + offset, size, address, owner, frozen))
        self.size = (offset + size + 63) & -64
        return offset


class Plan:
    """A stream, not yet in one place: header, pieces of data, prologue and skeleton.

    Not thread-safe in itself; `copies` may be consumed on several threads at once.
    """

    def __init__(
        self, region: DataRegion, skeleton: list[bytes], *, pickler: str, torch_storages: bool
    ) -> None:
        self.pickler = pickler
        self.small = region.small
        self.pieces = region.pieces
        prologue = _format.prologue(torch_storages=torch_storages)
        self.skeleton_offset = _DATA + region.size + len(prologue)
        self._texts = _placed([prologue, *skeleton], _DATA + region.size)
        self._texts.insert(0, (0, _format.header(region.size)))
        self.size = self._texts[-1][0] + len(self._texts[-1][1])
        """Bytes of the stream."""

    def release(self) -> None:
        """Let go of the state's memory, once all of it is copied."""
        self.small = SmallPieces([], [], [], [])
        self.pieces = []

    def fill_texts(self, target: memoryview, start: int) -> None:
        """Write header, prologue and skeleton where they fall into `target`.

        Args:
            target: staging memory for the stream from offset `start` on.
        """
        stop = start + len(target)
        for offset, text in self._texts:
            low, high = max(offset, start), min(offset + len(text), stop)
            if low < high:
                source = memoryview(text)[low - offset : high - offset]
                target[low - start : high - start] = source

    def copies(
        self,
        target: memoryview,
        address: int,
        start: int,
        select: Callable[[Piece], bool] = bool,
    ) -> Iterator[Callable[[], object]]:
        """The data of `target` but for small pieces, as calls that each copy a part and may run on
        any thread.

        Args:
            target: staging memory for the stream from offset `start` on.
            address: of its first byte.
            select: which pieces; all by default.
        """
        for piece in filter(select, self._pieces_between(start, start + len(target))):
            yield from _copies_of(piece, target, address, start)

    def _pieces_between(self, start: int, stop: int) -> list[Piece]:
        first = max(bisect_right(self.pieces, start, key=itemgetter(0)) - 1, 0)
        last = bisect_right(self.pieces, stop, key=itemgetter(0))
        return self.pieces[first:last]


def _placed(texts: list[bytes], offset: int) -> list[tuple[int, bytes]]:
    placed = []
    for text in texts:
        placed.append((offset, text))
        offset += len(text)
    return placed


def _exhaust(calls: Iterable[object]) -> None:
    deque(calls, maxlen=0)


def _copies_of(
    piece: Piece, target: memoryview, address: int, start: int
) -> Iterator[Callable[[], object]]:
    offset, size, source, owner, _frozen = piece
    stop = start + len(target)
    low, high = max(offset, start), min(offset + size, stop)
    _zero_gap(address, start, stop, offset + size)
    if low < high and not source:
        part = target[low - start : high - start]
        yield lambda: owner.read_into(part, low - offset)
        return
    for begin in range(low, high, _TILE):
        size = min(_TILE, high - begin)
        yield _copy_call(address + begin - start, source + begin - offset, size)


def _copy_call(target: int, source: int, size: int) -> Callable[[], object]:
    return lambda: ctypes.memmove(target, source, size)


def _zero_gap(address: int, start: int, stop: int, end: int) -> None:
    """Clear from the end of a piece to the next multiple of 64: staging memory is used again, and
    an older save must not show through."""
    low, high = max(end, start), min(align(end), stop)
    if low < high:
        _zero_held(address + low - start, 0, high - low)
