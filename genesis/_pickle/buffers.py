"""Where every byte of a stream comes from: a plan, made once, filled into staging memory window by
window.

Holds addresses of live memory together with the objects that own it. It copies on request and
decides nothing about when, on which thread, or to where.
"""

from __future__ import annotations

import ctypes
import pickle
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import compress, count, pairwise
from operator import itemgetter, methodcaller, ne
from typing import Any, NoReturn, Protocol

from .._file import layout
from .._options import Sharded
from .._os.memory import align, all_readable, copy_checked, copy_held, gather, zero_held

_DATA = layout.HEADER_SIZE
SMALL = 64 << 10
"""Bytes from which on a buffer is copied by itself, without the GIL."""

_TILE = 4 << 20


class Readable(Protocol):
    """Bytes that memmove cannot reach, on an accelerator say."""

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the bytes from `start` on; return when they are there."""


Check = Callable[[], None]
"""Raises where memory is not at its place any more."""

Piece = tuple[int, int, int, Any, bool, bool]
"""One buffer of the state and its place in the stream: offset, size, address, owner, frozen,
foreign.

The address is one of this process, or 0 where the owner is a `Readable`; the owner keeps the memory
alive. Frozen memory cannot change, so it may be copied after the save call has returned. Foreign
memory may be a map of a file, and vanish although its owner is alive. A plain tuple: a state can
have a hundred thousand.
"""


class DataToken:
    """Stands for the data region in a pickle, where it is memo slot 0."""


DATA = DataToken()


class ArrayToken:
    """Stands for `numpy.ndarray` in a pickle where it is called, and is memo slot 2 there: so a
    reader can tell such calls from the class as a value."""

    def __call__(self) -> None:  # pickle asks that what is called can be
        raise TypeError("stands for numpy.ndarray in a pickle")


NDARRAY = ArrayToken()


class Call:
    """Pickled as a call: what it stands for is built by the reader."""

    __slots__ = ("reduction",)

    def __init__(self, reduction: tuple[Any, tuple[Any, ...]]) -> None:
        self.reduction = reduction

    def __call__(self) -> Any:
        """Nothing: it may stand for something that is called, and pickle asks for a callable."""
        raise NotImplementedError


class SmallPieces:
    """The buffers under 64 KiB, by columns: a loop in C copies thousands of them."""

    __slots__ = ("addresses", "foreign", "offsets", "owners", "sizes")

    def __init__(
        self, offsets: list[int], sizes: list[int], addresses: list[int], owners: list[Any]
    ) -> None:
        self.offsets = offsets
        """In the stream, ascending."""
        self.sizes = sizes
        self.addresses = addresses
        self.owners = owners
        """Whatever keeps the memory alive; no column."""
        self.foreign = False
        """Whether some of it may vanish, as that of a `Piece`."""

    def copy(self, address: int, start: int, stop: int) -> None:
        """Copy what falls between two offsets of the stream, holding the GIL.

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
        offsets, sizes, addresses = self.offsets[inner], self.sizes[inner], self.addresses[inner]
        ends = [(offset + size + 63) & -64 for offset, size in zip(offsets, sizes, strict=True)]
        # Between neighbours may be a piece that is not small.
        breaks = compress(count(1), map(ne, ends, offsets[1:]))
        for first, last in pairwise([0, *breaks, len(offsets)]):
            if first < last:
                run = slice(first, last)
                target = shift + offsets[first]
                gather(target, addresses[run], sizes[run], checked=self.foreign)

    def _copy_edge(self, number: int, address: int, start: int, stop: int) -> None:
        offset, size = self.offsets[number], self.sizes[number]
        low, high = max(offset, start), min(offset + size, stop)
        if low < high:
            copy = copy_checked if self.foreign else copy_held
            copy(address + low - start, self.addresses[number] + low - offset, high - low)
        _zero_gap(address, start, stop, offset + size)


class DataRegion:
    """The data region while it is laid out: hands out offsets, remembers the sources."""

    def __init__(self, hints: Any = None, *, sharded: Sharded = "refuse") -> None:
        self.sharded = sharded
        """What becomes of a tensor of which other processes hold the rest."""
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
        """What the reducers of tensors keep between objects."""
        self.reduce_own: Callable[[Any], Any] = methodcaller("__reduce_ex__", 5)
        """Gives an object's own reduction; a pickler sets one that asks each object once a save."""
        self.arrays: Any = None
        """The same, of NumPy arrays."""
        self.endings: list[Callable[[], None]] = []
        """Called once, when all is placed."""
        self.checks: list[Check] = []
        """Called then too, and again before a copy that comes late."""
        self.has_arrays = False
        """Whether `NDARRAY` is called."""
        self.has_storages = False
        """Whether there was anything of torch."""

    def place(
        self, owner: Any, address: int, size: int, *, frozen: bool = False, foreign: bool = False
    ) -> int:
        """Reserve `size` bytes for the memory at `address`; return their offset in the region.

        Args:
            owner, frozen, foreign: see `Piece`.

        Raises:
            RefusedObjectError: it is foreign, and gone.
        """
        offset = self.size
        if size < SMALL and address:
            small = self.small
            small.offsets.append(_DATA + offset)
            small.sizes.append(size)
            small.addresses.append(address)
            small.owners.append(owner)
            small.foreign |= foreign
        else:
            self.pieces.append((_DATA + offset, size, address, owner, frozen, foreign))
        if foreign and address and not all_readable([address + size - 1]):
            refuse_unreadable()
        self.size = (offset + size + 63) & -64
        return offset

    def close(self) -> None:
        """End the layout, when everything has been reduced.

        Raises:
            RefusedObjectError: memory that was placed changed its place since, while objects of
                the state were pickled.
        """
        for call in (*self.endings, *self.checks):
            call()

    def forget_reducers(self) -> None:
        """Drop what they share. It leads back to here: a circle would keep the state's memory until
        the collector comes by."""
        self.has_storages = self.shared is not None
        self.shared = None
        self.endings.clear()


class RefusedObjectError(pickle.PicklingError):
    """An object that no pickler can save as it is now."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint
        """What to do about it."""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.hint)


def refuse_unreadable() -> NoReturn:
    raise RefusedObjectError(
        "its memory cannot be read: a file that is mapped there became shorter",
        "make a new map of the file, or write it whole again",
    )


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
        self._checks = region.checks
        prologue = layout.prologue(torch_storages=torch_storages)
        self.skeleton_offset = _DATA + region.size + len(prologue)
        self._texts = _placed([prologue, *skeleton], _DATA + region.size)
        self._texts.insert(0, (0, layout.header(region.size)))
        self.size = self._texts[-1][0] + len(self._texts[-1][1])
        """Bytes of the stream."""

    def release(self) -> None:
        """Let go of the state's memory, once all of it is copied."""
        self.small = SmallPieces([], [], [], [])
        self.pieces = []
        self._checks = []

    def check(self) -> None:
        """Raise where the memory that is to be copied is not at its place any more."""
        for check in self._checks:
            check()

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


def _copies_of(
    piece: Piece, target: memoryview, address: int, start: int
) -> Iterator[Callable[[], object]]:
    offset, size, source, owner, _frozen, foreign = piece
    stop = start + len(target)
    low, high = max(offset, start), min(offset + size, stop)
    _zero_gap(address, start, stop, offset + size)
    if low < high and not source:
        part = target[low - start : high - start]
        yield lambda: owner.read_into(part, low - offset)
        return
    for begin in range(low, high, _TILE):
        size = min(_TILE, high - begin)
        copy = copy_checked if foreign else ctypes.memmove
        yield partial(copy, address + begin - start, source + begin - offset, size)


def _zero_gap(address: int, start: int, stop: int, end: int) -> None:
    """Clear from the end of a piece to the next multiple of 64: staging memory is used again, and
    an older save must not show through."""
    low, high = max(end, start), min(align(end), stop)
    if low < high:
        zero_held(address + low - start, 0, high - low)
