"""The numbers that tell in which order checkpoints were written."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from ..retention import Checkpoint

_BEHIND = 100
_KEPT = 1000


class Orders:
    """The orders of one manager's saves: they rise with its calls, and each is above what others
    had written to the folder before.

    A save asks for its place when it is called, without a look at the folder, and for its order
    when it is written. Nobody waits: two threads that decide at one moment may exchange places, and
    what others write meanwhile may get the same order; then the time of the files tells.
    """

    def __init__(self) -> None:
        self._places = count(1)
        self._open: dict[int, None] = {}
        """Places without an order, of the last `_BEHIND`: a save that fails gets none."""
        self._base = 0
        self._ours: dict[int, int] = {}
        """The place of each order that was given."""

    def place(self) -> int:
        """A place behind all that were asked for before."""
        place = next(self._places)
        self._open[place] = None
        self._open.pop(place - _BEHIND, None)
        return place

    def order(self, place: int, written: Iterable[Checkpoint]) -> int:
        """The order of the save with this place.

        Args:
            written: what is in the folder.
        """
        others = [each.order for each in written if each.order not in self._ours]
        lowest = min([place, *self._open.copy()])  # whose order is to be above theirs, too
        self._base = max([self._base, *(order + 1 - lowest for order in others)])
        self._open.pop(place, None)
        order = self._base + place
        while self._ours.setdefault(order, place) != place:
            order += 1
        if len(self._ours) > _KEPT:
            for old in sorted(self._ours)[: _KEPT // 2]:
                self._ours.pop(old, None)
        return order
