"""Staging memory: page-aligned, pre-faulted where asked, and used again by the next save.

The first touch of fresh memory costs more than the copy that follows, so what one save used is kept
for the next. Holds bytes; knows nothing of pickles, files or threads of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .._tuning import on
from .memory import PAGE, address_of, make_present, private_memory

_GRANULE = 2 << 20
_HUGE_UNASKED = 64 << 20
"""Huge pages make direct writes a fifth faster and the first touch several times slower. A large
arena is first touched while training waits, so there they are for `prefault` to ask for."""


class Arena:
    """One anonymous private mapping of at least `size` bytes.

    Attributes:
        address: of the first byte, a multiple of the page size.
        view: the bytes, writable.
    """

    def __init__(self, size: int) -> None:
        self.capacity = max(-(-size // _GRANULE), 1) * _GRANULE
        self._mapping = private_memory(self.capacity)
        if self.capacity <= _HUGE_UNASKED and on.huge_pages:
            self._ask_for_huge_pages()
        self.view = memoryview(self._mapping)
        self.address = address_of(self._mapping)

    def prefault(self, *, huge: bool = True) -> None:
        """Make every page present, so that the first copy runs at the speed of memory.

        Args:
            huge: whether to ask for huge pages, which takes longer and makes the writes quicker.
        """
        if huge:
            self._ask_for_huge_pages()
        if not make_present(self.address, self.capacity):
            for offset in range(0, self.capacity, PAGE):
                self.view[offset] = 0

    def _ask_for_huge_pages(self) -> None:
        with suppress(OSError, AttributeError):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)


class ArenaPool:
    """Arenas at rest, for the next save to take. Thread-safe, and without a lock: a signal handler
    may save in the middle of it, and wait for a thread that gives an arena back."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        """How many arenas are kept while nobody uses them."""
        self._resting: dict[Arena, None] = {}

    def set_keep(self, keep: int) -> None:
        """Change `keep`, and let go of what is too much by now."""
        self.keep = keep
        self._trim()

    def release(self) -> None:
        """Let go of every arena at rest."""
        for arena in self._by_size():
            self._takes(arena)

    @property
    def size(self) -> int:
        """Bytes at rest."""
        return sum(arena.capacity for arena in self._resting.copy())

    @contextmanager
    def borrow(self, size: int) -> Iterator[Arena]:
        """An arena of at least `size` bytes for the length of a with block."""
        arena = self.take(size)
        try:
            yield arena
        finally:
            self.give_back(arena)

    def take(self, size: int) -> Arena:
        """The smallest arena at rest that is large enough, else a new one.

        Where one is at rest but too small, it is let go first, so that growth never holds both.
        """
        resting = self._by_size()
        for arena in resting:
            if arena.capacity >= size and self._takes(arena):
                return arena
        if len(resting) >= self.keep > 0:
            self._takes(resting[-1])
        return Arena(size)

    def holds(self, size: int) -> bool:
        """Whether an arena of at least `size` bytes is at rest."""
        return any(arena.capacity >= size for arena in self._resting.copy())

    def give_back(self, arena: Arena) -> None:
        if on.kept_memory:
            self._resting[arena] = None
            self._trim()

    def _trim(self) -> None:
        resting = self._by_size()
        for smallest in resting[: max(len(resting) - self.keep, 0)]:
            self._takes(smallest)

    def _by_size(self) -> list[Arena]:
        return sorted(self._resting, key=lambda arena: arena.capacity)

    def _takes(self, arena: Arena) -> bool:
        """Whether it was there; only one thread has it from then on."""
        return self._resting.pop(arena, False) is None

    def reset_after_fork(self) -> None:
        """Start empty, in a forked child."""
        self._resting = {}
