"""Which checkpoints are to be kept: values that decide over what is known of the files, and remove
nothing.

They are put together with ``|``, which keeps what either keeps:
``LastN(3) | BestN(2, "loss") | EveryN(1000)``.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from . import _public

__all__ = ["BestN", "Checkpoint", "EveryN", "LastN", "MaxAge", "Pinned", "Retention"]

Mode = Literal["min", "max"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of one checkpoint file without reading its state.

    Attributes:
        step: the number in its name.
        path: of the file; a `Checkpoint` can be passed wherever a path is.
        bytes: its size.
        time: seconds since 1970 when it was saved.
        metrics: numbers that were given with it.
        problem: what is wrong with the ends of the file, ``""`` where nothing is; the middle has
            not been read.
        order: higher than in every file that the manager wrote before; 0 where another writer
            made it.
        modified: when the file was last changed, in nanoseconds since 1970.
        stall: seconds for which its call of save kept the training, of a background save.
    """

    step: int
    path: str
    order: int = 0
    modified: int = 0
    bytes: int = 0
    time: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict, hash=False)
    problem: str = ""
    stall: float | None = None

    def __fspath__(self) -> str:
        return self.path


class Retention:
    """What decides which checkpoints stay. Subclass it for a rule of your own."""

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        """Those that stay.

        Args:
            written: all that are there, in the order in which they were written.
        """
        raise NotImplementedError

    def __or__(self, other: Retention) -> Retention:
        return _Union(self, other)


@dataclass(frozen=True)
class _Union(Retention):
    one: Retention
    other: Retention

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return [*self.one.keeps(written), *self.other.keeps(written)]

    def __repr__(self) -> str:
        return f"{self.one!r} | {self.other!r}"


@dataclass(frozen=True)
class LastN(Retention):
    """The `count` that were written last."""

    count: int

    def __post_init__(self) -> None:
        _check_count("LastN", self.count)

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return written[-self.count :]


@dataclass(frozen=True)
class BestN(Retention):
    """The `count` with the best value of a metric. A checkpoint without it, or with nan, is never
    among them; of equal ones the earlier is better.

    Args:
        mode: whether ``"min"`` or ``"max"`` is best.
    """

    count: int
    metric: str = "loss"
    mode: Mode = "min"

    def __post_init__(self) -> None:
        _check_count("BestN", self.count)
        check_mode(self.mode)

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return by_metric(written, self.metric, self.mode)[: self.count]


@dataclass(frozen=True)
class EveryN(Retention):
    """Those whose step is a multiple of `steps`."""

    steps: int

    def __post_init__(self) -> None:
        _check_count("EveryN", self.steps)

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return [each for each in written if each.step % self.steps == 0]


@dataclass(frozen=True)
class MaxAge(Retention):
    """Those that were saved within the last `days`, `hours` and `minutes` together."""

    hours: float = 0
    days: float = 0
    minutes: float = 0

    def __post_init__(self) -> None:
        if not self._seconds() > 0:
            raise ValueError(f"MaxAge must be longer than no time at all, not {self!r}")

    def _seconds(self) -> float:
        return self.days * 86_400 + self.hours * 3600 + self.minutes * 60

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        since = time.time() - self._seconds()
        return [each for each in written if each.time >= since]


class Pinned(Retention):
    """Those of these steps, whatever else is decided."""

    def __init__(self, *steps: int) -> None:
        self.steps = frozenset(steps)

    def __repr__(self) -> str:
        return f"Pinned({', '.join(map(str, sorted(self.steps)))})"

    def keeps(self, written: Sequence[Checkpoint]) -> Iterable[Checkpoint]:
        return [each for each in written if each.step in self.steps]


def by_metric(written: Iterable[Checkpoint], metric: str, mode: Mode) -> list[Checkpoint]:
    """Those with a value of a metric that is a number, the best first; of equal ones the earlier.

    Args:
        written: in the order in which they were written.
    """
    known = [each for each in written if not math.isnan(each.metrics.get(metric, math.nan))]
    sign = 1 if mode == "min" else -1
    return sorted(known, key=lambda each: sign * each.metrics[metric])


def by_writing(found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints in the order in which they were written, the newest last.

    The order that a file tells survives copying the folder, and a clock that is set back. A file
    that tells none comes behind those that were there when it was last changed.
    """
    files = list(found)
    known = sorted((file.modified, file.order) for file in files if file.order)
    times = [modified for modified, _ in known]
    highest = [0, *accumulate((order for _, order in known), max)]

    def place(file: Checkpoint) -> tuple[int, int, int]:
        order = file.order or highest[bisect_right(times, file.modified)]
        return order, file.modified, file.step

    return sorted(files, key=place)


def check_mode(mode: str) -> None:
    """Raises `ValueError` for what is no `Mode`."""
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} takes a number of at least 1, not {count}")


_public.publish(globals())
