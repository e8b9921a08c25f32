"""A directory of checkpoints, one file an epoch, the oldest removed when a newer one is durable.

It names files and removes old ones; saving and loading are `_api`'s.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

from . import _fs
from ._atomic import BACKUP_SUFFIX
from ._futures import SaveFuture, SaveReport
from ._options import FilePath, SaveChoices, SaveOptions, check_names, spelled_out
from ._retention import keep_last
from ._writer import Request, writer

_NAME = re.compile(r"epoch_(\d+)\.pth")


class CheckpointManager:
    """Checkpoints ``epoch_000001.pth``, ... in one directory, the newest `max_checkpoints` kept.

    A checkpoint is removed only after a newer one is durable. Thread-safe. Two managers of one
    directory keep the lower of their numbers.

    Args:
        checkpoint_dir: made with the first save if it is missing.
        max_checkpoints: how many to keep, at least 1.

    Raises:
        ValueError: `max_checkpoints` is less than 1.
    """

    def __init__(self, checkpoint_dir: FilePath, max_checkpoints: int = 5) -> None:
        if max_checkpoints < 1:
            raise ValueError(f"max_checkpoints must be at least 1, not {max_checkpoints}")
        self.checkpoint_dir = os.fsdecode(checkpoint_dir)
        self.max_checkpoints = max_checkpoints

    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: Literal[False] = ...,
        **options: Unpack[SaveOptions],
    ) -> SaveReport: ...
    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: Literal[True],
        **options: Unpack[SaveOptions],
    ) -> SaveFuture: ...
    @overload
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: bool,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture: ...
    @spelled_out(SaveChoices)
    def save_checkpoint(
        self,
        model: Any,
        optimizer: Any,
        epoch: int,
        loss: Any,
        *,
        background: bool = False,
        **options: Unpack[SaveOptions],
    ) -> SaveReport | SaveFuture:
        """Save the states of a model and an optimizer with `epoch`, `loss` and a timestamp.

        Args:
            model, optimizer: anything with a ``state_dict()``.
            background and every other option: as for `save`. Older checkpoints are removed when the
                new one is durable.

        Raises:
            OSError: as `save`; or an old checkpoint could not be removed.
        """
        request = self.request(model, optimizer, epoch, loss, options)
        return writer.submit(request) if background else writer.save(request)

    def request(
        self, model: Any, optimizer: Any, epoch: int, loss: Any, options: SaveOptions
    ) -> Request:
        """The save of one epoch, with the removal of old ones at its end."""
        check_names(options, SaveChoices)
        _fs.make_directories(self.checkpoint_dir)
        checkpoint = {
            "epoch": epoch,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": loss,
            "timestamp": time.time(),
        }
        path = _fs.resolve(os.path.join(self.checkpoint_dir, f"epoch_{epoch:06d}.pth"))
        return Request(path=path, state=checkpoint, done=self._prune_after(path), **options)

    def _prune_after(self, path: str) -> Callable[[], None]:
        def prune() -> None:
            for old in keep_last(self.checkpoints(), self.max_checkpoints):
                # A run resumed from an earlier epoch may just have saved the lowest of all.
                if _fs.resolve(old) != path:
                    # The backup that a crash may have left goes first: alone, it would come back
                    # as the checkpoint it is of.
                    _fs.remove(old + BACKUP_SUFFIX)
                    _fs.remove(old)

        return prune

    def checkpoints(self) -> dict[int, str]:
        """The path of each epoch's checkpoint, lowest epoch first."""
        try:
            names = _fs.names(self.checkpoint_dir)
        except FileNotFoundError:
            return {}
        found = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name))}
        return {epoch: os.path.join(self.checkpoint_dir, found[epoch]) for epoch in sorted(found)}

    def latest(self) -> str | None:
        """The path of the highest epoch's checkpoint, ``None`` where there is none."""
        return next(reversed(self.checkpoints().values()), None)
