"""Which files go, and their removal: a courtesy after a save that is durable."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .._os import files
from ..retention import Checkpoint, Retention
from ..storage.local import BACKUP_SUFFIX

_read: Counter[str] = Counter()
"""How many restores of this process read a file."""


@contextmanager
def being_read(path: str) -> Iterator[None]:
    """Let no manager of this process remove a file until the block ends."""
    _read[path] += 1
    try:
        yield
    finally:
        _read[path] -= 1
        if _read[path] <= 0:
            del _read[path]


def to_remove(
    written: list[Checkpoint], saved: str, keep: Retention, best: Checkpoint | None
) -> list[Checkpoint]:
    """What a retention gives up, the oldest first; nothing where the save is not among what is
    whole. Damaged files are left for people to look at.

    Args:
        written: in the order in which they were written.
        saved: the path of the save that gives the occasion.
        best: stays whatever is decided, as do the latest and what is being read.
    """
    whole = [each for each in written if not each.problem]
    if saved not in {each.path for each in whole}:
        return []
    stays = {each.path for each in keep.keeps(whole)} | {saved, whole[-1].path}
    if best is not None:
        stays.add(best.path)
    return [each for each in whole if each.path not in stays and each.path not in _read]


def remove(folder: files.Directory, checkpoint: Checkpoint) -> None:
    """Remove a file, and before it the backup that a crash may have left: alone, that would come
    back as the checkpoint it is of."""
    name = os.path.basename(checkpoint.path)
    folder.remove(name + BACKUP_SUFFIX)
    folder.remove(name)
