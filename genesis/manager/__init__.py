"""A directory of checkpoints, one file an epoch, the oldest removed when a newer one is durable.

It names files and removes old ones; saving and loading are `_save`'s.
"""

from __future__ import annotations

import operator
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Unpack, overload

from .._arguments import state_of
from .._engine.futures import SaveFuture, SaveReport, log
from .._engine.scheduler import Request, scheduler
from .._file import reader
from .._options import FilePath, SaveChoices, SaveOptions, check_names, spelled_out
from .._os import files
from .._os.descriptors import Descriptor
from ..retention import Checkpoint, all_but_newest, by_writing
from ..storage.local import BACKUP_SUFFIX

_NAME = re.compile(r"epoch_[0-9]{6,18}\.pth")
_ORDERS_KEPT = 1000


class CheckpointManager:
    """Checkpoints ``epoch_000001.pth``, ... in one directory, the newest `max_checkpoints` kept.

    The newest is the one that was written last, whatever its epoch: a run that goes back to an
    earlier epoch keeps what it writes, and the checkpoints that it abandoned go first. A checkpoint
    is removed only after a newer one is durable. Thread-safe. Two managers of one directory keep
    the lower of their numbers.

    Args:
        checkpoint_dir: made with the first save if it is missing. It is looked up here, once: a
            later change of the working directory, or of a symlink, leads nowhere else.
        max_checkpoints: how many to keep, at least 1.

    Attributes:
        checkpoint_dir: the real path of the directory.

    Raises:
        ValueError: `max_checkpoints` is less than 1, or `checkpoint_dir` is a URL.
    """

    def __init__(self, checkpoint_dir: FilePath, max_checkpoints: int = 5) -> None:
        if max_checkpoints < 1:
            raise ValueError(f"max_checkpoints must be at least 1, not {max_checkpoints}")
        self.checkpoint_dir = files.resolve_directory(checkpoint_dir)
        self.max_checkpoints = max_checkpoints
        self._last_order = 0
        self._orders: dict[tuple[int, ...], int] = {}
        """What files told of their order: each is read once."""

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
            epoch: a whole number from 0 up.
            background and every other option: as for `save`. Older checkpoints are removed when the
                new one is durable.

        Raises:
            ValueError: `epoch` is negative.
            TypeError: `model` or `optimizer` has no ``state_dict()``.
            OSError: as `save`. That an old checkpoint could not be removed is only logged.
        """
        request = self.request(model, optimizer, epoch, loss, options)
        return scheduler.submit(request) if background else scheduler.save(request)

    def request(
        self, model: Any, optimizer: Any, epoch: int, loss: Any, options: SaveOptions
    ) -> Request:
        """The save of one epoch, with the removal of old ones at its end."""
        check_names(options, SaveChoices)
        name = _name_of(epoch)
        files.make_directories(self.checkpoint_dir)
        checkpoint = {
            "epoch": epoch,
            "model_state_dict": state_of("model", model),
            "optimizer_state_dict": state_of("optimizer", optimizer),
            "loss": loss,
            "timestamp": time.time(),
        }
        with files.Directory(self.checkpoint_dir) as folder, _named(self.checkpoint_dir):
            identity = folder.identity()
            written = self._written(folder)
        # Two threads may get one number; then the time tells.
        self._last_order = max([self._last_order, *(file.order for file in written)]) + 1
        return Request(
            path=files.resolve(os.path.join(self.checkpoint_dir, name)),
            state=checkpoint,
            done=lambda: self._prune(name, identity),
            order=self._last_order,
            **options,
        )

    def _prune(self, saved: str, identity: tuple[int, int]) -> None:
        """Remove the oldest checkpoints. A courtesy: the save that it follows is durable.

        Args:
            saved: the file that was saved, which stays.
            identity: of the directory that it was saved to.
        """
        try:
            with files.Directory(self.checkpoint_dir) as folder:
                if folder.identity() != identity:
                    log.warning(
                        "%s is another directory than when the save began; nothing was removed",
                        self.checkpoint_dir,
                    )
                    return
                for old in all_but_newest(self._written(folder), self.max_checkpoints):
                    if old.name != saved:
                        # The backup that a crash may have left goes first: alone, it would come
                        # back as the checkpoint it is of.
                        folder.remove(old.name + BACKUP_SUFFIX)
                        folder.remove(old.name)
        except OSError as exc:
            log.warning(
                "an old checkpoint in %s was not removed (%s); the next save tries again",
                self.checkpoint_dir,
                exc,
            )

    def _written(self, folder: files.Directory) -> list[Checkpoint]:
        """The checkpoints in the order in which they were written."""
        names = [name for name in folder.names() if _is_ours(name)]
        found = [file for name in names if (file := self._look_at(folder, name))]
        return by_writing(found)

    def _look_at(self, folder: files.Directory, name: str) -> Checkpoint | None:
        status = folder.status(name)
        if status is None or stat.S_ISDIR(status.st_mode):
            return None
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._orders:
            if len(self._orders) > _ORDERS_KEPT:
                self._orders.clear()
            self._orders[key] = _order_of(folder, name)
        return Checkpoint(_epoch_of(name), name, self._orders[key], status.st_mtime_ns)

    def _found(self) -> list[Checkpoint]:
        try:
            with files.Directory(self.checkpoint_dir) as folder:
                return self._written(folder)
        except FileNotFoundError:
            return []

    def checkpoints(self) -> dict[int, str]:
        """The path of each epoch's checkpoint, lowest epoch first."""
        return {file.epoch: self._path(file) for file in sorted(self._found())}

    def latest(self) -> str | None:
        """The path of the checkpoint that was written last, ``None`` where there is none."""
        found = self._found()
        return self._path(found[-1]) if found else None

    def _path(self, file: Checkpoint) -> str:
        return os.path.join(self.checkpoint_dir, file.name)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Let an error of a call on a descriptor, which knew no name, say which folder it is of."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None or isinstance(exc.filename, str):
            raise
        raise OSError(exc.errno, os.strerror(exc.errno), path) from exc


def _name_of(epoch: int) -> str:
    number = operator.index(epoch)
    if number < 0:
        raise ValueError(f"epoch must not be negative, and is {epoch}")
    return f"epoch_{number:06d}.pth"


def _is_ours(name: str) -> bool:
    """Whether a manager gives this name. Not to ``epoch_1.pth``, which would hide the file of the
    same epoch or be hidden by it."""
    return _NAME.fullmatch(name) is not None and name == _name_of(_epoch_of(name))


def _epoch_of(name: str) -> int:
    return int(name[len("epoch_") : -len(".pth")])


def _order_of(folder: files.Directory, name: str) -> int:
    file = Descriptor()
    try:
        folder.open_for_reading(file, name)
        return reader.order_of(folder.join(name), file.number)
    except OSError:
        return 0  # a symlink, or not for us to read
    finally:
        file.let_go()
