"""The two names that lead to the latest and the best checkpoint, whatever their steps are."""

from __future__ import annotations

import errno
import os

from .._engine.futures import log
from .._os import files
from ..retention import Checkpoint

LATEST, BEST = "latest.pth", "best_model.pth"

_TRIES = 10


def keep_pointed(folder: files.Directory, wanted: dict[str, Checkpoint | None]) -> bool:
    """Let names lead to checkpoints; whether they already did.

    Race: 1. a thread looks what is the latest; 2. another makes a later one durable, and points
    there; 3. the first points to what it found. So who has pointed looks again.
    """
    names = {name: os.path.basename(one.path) for name, one in wanted.items() if one is not None}
    others = {name: target for name, target in names.items() if not _leads_to(folder, name, target)}
    for name, target in others.items():
        for _ in range(_TRIES):
            if folder.point(name, target):
                break
    return not others


def _leads_to(folder: files.Directory, name: str, target: str) -> bool:
    """Whether a name leads there, or is not ours to change: a file of somebody else's."""
    try:
        return folder.target(name) == target
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        log.warning(
            "%s is a file of its own and not replaced by a link to %s", folder.join(name), target
        )
        return True
