"""Which checkpoints are the newest, and which to keep. Decides over what is known of the files;
removes nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple


class Checkpoint(NamedTuple):
    """What is known of one checkpoint file.

    Attributes:
        epoch: the number in its name.
        name: of the file.
        order: higher than that of every file that the manager wrote before; 0 where another writer
            made it.
        modified: the time when it was last changed, in nanoseconds.
    """

    epoch: int
    name: str
    order: int
    modified: int


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
        return order, file.modified, file.epoch

    return sorted(files, key=place)


def all_but_newest(written: Sequence[Checkpoint], count: int) -> Sequence[Checkpoint]:
    """What to remove so that the `count` newest stay, the oldest first.

    Args:
        written: in the order in which they were written.
    """
    return written[: max(len(written) - count, 0)]
