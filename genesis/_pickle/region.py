"""The memory of a load: one read brings every array, and each can be freed without the others.

It hands out buffers and gives pages back to the system. It knows nothing of pickles, frameworks
or files.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import sys
import threading
import weakref
from bisect import bisect_left
from collections import deque
from functools import partial
from typing import Any

from .._os.memory import PAGE, address_of, align, discard

APART_FROM = 64 << 10
"""Bytes from which on an array keeps its place in memory; a smaller one is worth a copy."""

_AT_ONCE = 4 << 20
"""Bytes that were copied or read before their pages are given back."""

CAN_DISCARD = sys.platform == "linux"
"""Whether pages in the middle of a mapping can be given back to the system at once."""


class NoSuchDeviceError(RuntimeError):
    """An array is to go where this machine has no memory. The file is not to blame."""

    hint = "load it with map_location='cpu', or with a device that torch finds here"


class Region:
    """A data region that stays whole: every buffer is a part of one object, and keeps all of it.

    Attributes:
        view: the bytes, for who copies them; keeping it keeps everything.
        size: in bytes.
        copies: whether arrays of less than `APART_FROM` bytes should be copied out.
    """

    copies = False

    def __init__(self, data: Any) -> None:
        self.view = data
        self.size = memoryview(data).nbytes

    def rest(self) -> Any:
        """A buffer of the whole region, for everything that is not handed out by `part`."""
        return self.view

    def part(self, low: int, size: int) -> tuple[Any, int]:
        """A buffer that holds `size` bytes from `low` on, and the offset there at which it does."""
        return self.view, low

    def note_copy(self, low: int, size: int) -> None:
        """These bytes were copied, and nobody will ask for them again."""


class RegionBuffer:
    """What `ApartRegion` hands out: memory that stays as long as the buffer does."""

    __slots__ = ()


class ApartRegion(Region):
    """A data region in private memory, of which each part is given back when its buffer is freed.

    No byte may belong to two arrays. The buffers look like the whole region, so that one type of
    `ctypes` serves for all; whoever is given one touches no byte beyond its part. What lies between
    the parts belongs to the rest, and is given back with it. A page that several share is given
    back with the last of them.

    Thread-safe: parts are freed on any thread, in the middle of anything.

    Args:
        memory: of `private_memory`.
        base: offset of the region in it.
        size: of the region, in bytes.
    """

    copies = True

    def __init__(self, memory: mmap.mmap, base: int, size: int) -> None:
        self.view: Any = memoryview(memory)[base : base + size]
        self.size = size
        self._base = base
        self._end = align(len(memory), PAGE)
        self._address = address_of(memory)
        # An export of the whole, not a slice of a memoryview: of that, NumPy keeps only what it is
        # a view of, and the death of the slice would tell nothing.
        kind: Any = type("Buffer", (RegionBuffer, ctypes.c_char * size), {"__slots__": ()})
        self._make = partial(kind.from_buffer, memory, base)
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._lock = threading.Lock()  # guards _lows, _highs and _has_rest
        self._lows: list[int] = []
        self._highs: dict[int, int] = {}
        """Parts that are alive: where each ends, by where it begins, from the start of the memory
        on."""
        self._has_rest = False
        self._died: deque[int] = deque()
        self._copied = self._copied_from = 0

    def rest(self) -> Any:
        self._has_rest = True
        return self._watched(_REST)

    def part(self, low: int, size: int) -> tuple[Any, int]:
        if not 0 <= low <= low + size <= self.size:
            raise ValueError(f"bytes {low:,} to {low + size:,} of a region of {self.size:,}")
        with self._lock:
            self._add(self._base + low, self._base + low + size)
        self._sweep()
        return self._watched(self._base + low), low

    def _add(self, low: int, high: int) -> None:
        number = bisect_left(self._lows, low)
        behind = number < len(self._lows) and self._lows[number] < high
        if behind or (number and self._highs[self._lows[number - 1]] > low):
            raise ValueError("two arrays lie over the same bytes")
        self._lows.insert(number, low)
        self._highs[low] = high

    def _watched(self, low: int) -> Any:
        _watching.add(self)
        buffer = self._make()
        self._watches[low] = weakref.ref(buffer, partial(self._note_death, low))
        return buffer

    def stop_watching(self) -> None:
        self._watches.clear()

    def note_copy(self, low: int, size: int) -> None:
        if low != self._copied:
            self._copied_from = low
        self._copied = align(low + size)
        if self._copied - self._copied_from >= _AT_ONCE:
            self.discard(self._base + self._copied_from, self._base + self._copied)
            self._copied_from = self._copied - PAGE  # it may hold the beginning of the next

    def _note_death(self, low: int, _: object) -> None:
        """A buffer is gone. This can happen in the middle of `part` on the same thread, when the
        collector runs there: so it never waits, and whoever has the lock does the work."""
        self._watches.pop(low, None)
        self._died.append(low)
        self._sweep()

    def _sweep(self) -> None:
        while self._died and self._lock.acquire(blocking=False):
            try:
                while self._died:
                    self._free(self._died.popleft())
            finally:
                self._lock.release()

    def _free(self, low: int) -> None:
        if low == _REST:
            self._has_rest = False
            self._free_between()
        else:
            self._free_part(low)
        if not self._watches:
            _watching.discard(self)

    def _free_part(self, low: int) -> None:
        high, number = self._highs.pop(low), bisect_left(self._lows, low)
        del self._lows[number]
        if not self._has_rest:
            low = self._highs[self._lows[number - 1]] if number else 0
            high = self._lows[number] if number < len(self._lows) else self._end
        self.discard(low, high)

    def _free_between(self) -> None:
        low = 0
        for start in self._lows:
            self.discard(low, start)
            low = self._highs[start]
        self.discard(low, self._end)

    def discard(self, low: int, high: int) -> None:
        """Give back the pages that lie wholly between two offsets from the start of the memory."""
        first, last = align(low, PAGE), high - high % PAGE
        if first < last:
            discard(self._address + first, last - first)


_watching: set[ApartRegion] = set()
"""Those with a buffer that is alive. Nothing else holds them: the collector would take a region
with its watches, and their callbacks would not run."""


def _stop_watching() -> None:
    """At exit all memory goes at once, and callbacks would find their modules emptied."""
    for region in list(_watching):
        region.stop_watching()


atexit.register(_stop_watching)

_REST = -1
"""In place of where a part begins."""
