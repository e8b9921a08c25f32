"""Checkpoints of a folder that somebody has not seen yet."""

from __future__ import annotations

from ..retention import Checkpoint
from .catalogue import Catalogue


class News:
    """Which checkpoints of a folder have not been seen yet."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._seen: set[tuple[str, int, int]] = set()

    def look(self) -> list[int]:
        """Steps of those that came since the last look, in the order they were written."""
        found = [each for each in self._catalogue.found() if not each.problem]
        new = [each for each in found if _version(each) not in self._seen]
        self._seen = set(map(_version, found))
        return [each.step for each in new]


def _version(checkpoint: Checkpoint) -> tuple[str, int, int]:
    return checkpoint.path, checkpoint.order, checkpoint.modified
