"""What the saves and loads of this process have come to.

Guarantee: nothing is lost and nothing waits, on any thread and in a signal handler. Each total has
one successor, which whoever comes first gives it (`dict.setdefault`, one call of C); who comes
second adds to that one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import add

from .futures import SaveReport


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the saves and loads of this process have come to. Times are in seconds, and sums but for
    `longest_stall`.

    Attributes:
        saves: that became durable.
        skipped, superseded: saves that were given up as their `on_busy` says.
        failed: saves that raised, or were cancelled before their state was captured.
        bytes: of the files that became durable.
        stall: for which calls kept their callers, of those saves.
        longest_stall: of one call.
        capture, wait, write, sync: as in `SaveReport`, of the saves that became durable.
        loads: that returned.
        loaded_bytes: of their files that were read.
        load: that they took, objects built.
    """

    saves: int = 0
    skipped: int = 0
    superseded: int = 0
    failed: int = 0
    bytes: int = 0
    stall: float = 0.0
    longest_stall: float = 0.0
    capture: float = 0.0
    wait: float = 0.0
    write: float = 0.0
    sync: float = 0.0
    loads: int = 0
    loaded_bytes: int = 0
    load: float = 0.0


_Sums = tuple[float, ...]
"""The fields of `Statistics` in their order, which cost less to add."""

_NOTHING: _Sums = (0,) * len(fields(Statistics))
_LONGEST = [field.name for field in fields(Statistics)].index("longest_stall")

SKIPPED: _Sums = (0, 1)
SUPERSEDED: _Sums = (0, 0, 1)
FAILED: _Sums = (0, 0, 0, 1)


def of_save(outcome: SaveReport | BaseException) -> _Sums:
    """What one save adds."""
    if isinstance(outcome, BaseException):
        return FAILED
    if outcome.outcome != "durable":
        return SKIPPED if outcome.outcome == "skipped" else SUPERSEDED
    stall = outcome.stall
    times = (outcome.capture, outcome.wait, outcome.write, outcome.sync)
    return 1, 0, 0, 0, outcome.bytes, stall, stall, *times


def of_load(size: int, seconds: float) -> _Sums:
    """What one load adds."""
    return *_NOTHING[:-3], 1, size, seconds


class _Total:
    def __init__(self, sums: _Sums) -> None:
        self.sums = sums
        self.next: dict[str, _Total] = {}


class Counter:
    """A sum of what saves and loads come to."""

    def __init__(self) -> None:
        self._last = _Total(_NOTHING)
        """Or one before the last: a thread may set it late."""

    def add(self, more: _Sums) -> None:
        """Add to the sum; what is missing at the end of `more` is nothing."""
        while True:
            total = self._find_last()
            made = _Total(_sum(total.sums, more))
            if total.next.setdefault("is", made) is made:
                self._last = made
                return

    def value(self) -> Statistics:
        """The sum of now."""
        return Statistics(*self._find_last().sums)  # type: ignore[arg-type]

    def _find_last(self) -> _Total:
        total = self._last
        while total.next:
            total = total.next["is"]
        return total


def _sum(one: _Sums, other: _Sums) -> _Sums:
    sums = [*map(add, one, other), *one[len(other) :]]
    if len(other) > _LONGEST:
        sums[_LONGEST] = max(one[_LONGEST], other[_LONGEST])
    return tuple(sums)
