"""Checkpoints of Lightning's Trainer and Fabric as genesis files: a `CheckpointIO` plugin.

    trainer = Trainer(plugins=[GenesisCheckpointIO(background=True)])

It saves, loads and removes what it is told to. What to keep is `ModelCheckpoint`'s business, and
sharded checkpoints (FSDP, model parallel) do not pass through Lightning's plugins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import threading
import zipfile
from typing import Any

from .._engine.futures import SaveFuture, log
from .._errors import NotACheckpointError
from .._load import load
from .._os import files
from .._public import publish
from .._save import remove, save
from ._hosts import require

__all__ = ["GenesisCheckpointIO"]

_Path = str | os.PathLike[str]

_HOSTS = {"lightning": "lightning.fabric.plugins", "pytorch_lightning": "lightning_fabric.plugins"}
"""The two names of one library -> the module of its interface, one class for each."""


class GenesisCheckpointIO:
    """Lightning's `CheckpointIO` over `genesis.save` and `genesis.load`, for `lightning` and for
    `pytorch_lightning`.

    Use one for a Trainer, on the thread that trains.

    Args:
        background: return from a save when the state is captured. What makes such a save fail is
            raised by the next save or by the end of the run (`teardown`), once.
        weights_only: of loads for which the Trainer does not say; ``True`` as with `torch.load`.

    Raises:
        ImportError: Lightning is missing or too old; the message names the extra to install.
    """

    def __init__(self, *, background: bool = False, weights_only: bool = True) -> None:
        require(("lightning", "pytorch-lightning"), (2, 1), "lightning")
        _register()
        self._background = background
        self._weights_only = weights_only
        self._pending: list[SaveFuture] = []
        self._removals: list[_Removal] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _Path, storage_options: Any = None
    ) -> None:
        """Save a checkpoint, durable on return or in the background; make its folder if needed.

        Raises:
            TypeError: `storage_options` is given: there is nothing that it could mean.
            Exception: an earlier background save failed. This one is under way all the same.
            OSError, UnpicklableStateError: as `genesis.save`.
        """
        if storage_options is not None:
            raise TypeError(
                "GenesisCheckpointIO takes no storage_options; leave them out of save_checkpoint"
            )
        folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
        files.make_directories(files.resolve_directory(folder))
        self._call_off(path)
        if not self._background:
            save(checkpoint, path, clear=False)
            return
        future = save(checkpoint, path, background=True)
        try:
            self._raise_failures(wait=False)
        finally:
            self._pending.append(future)

    def load_checkpoint(
        self, path: _Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint, verified, after the saves of it that are under way. One that
        `torch.save` wrote, before the plugin was used, is loaded by `torch.load`.

        Args:
            map_location: as for `torch.load`.
            weights_only: ``None`` takes what the plugin was made with.

        Raises:
            FileNotFoundError, CorruptCheckpointError, UnsafeLoadError: as `genesis.load`.
        """
        safe = self._weights_only if weights_only is None else weights_only
        checkpoint: dict[str, Any]
        try:
            checkpoint = load(path, map_location=map_location, weights_only=safe)
        except NotACheckpointError:
            if not zipfile.is_zipfile(path):
                raise
            import torch

            checkpoint = torch.load(path, map_location=map_location, weights_only=safe)
        return checkpoint

    def remove_checkpoint(self, path: _Path) -> None:
        """Remove a checkpoint; no error if there is none.

        A Trainer removes the old checkpoint right after it has saved the new one. So where saves
        are under way, of this path or another, the file is removed when they are durable, and
        stays where one of them fails: no kill finds neither.
        """
        unsafe = [each for each in self._pending if not each.done() or each._failure is not None]
        if unsafe:
            self._removals = [each for each in self._removals if not each.is_done()]
            self._removals.append(_Removal(path, unsafe))
        else:
            _remove(path)

    def teardown(self) -> None:
        """Wait until every background save is durable, at the end of a run.

        Raises:
            Exception: the first failure that was not raised before; others are logged.
        """
        try:
            self._raise_failures(wait=True)
        finally:
            for removal in self._removals:
                removal.wait()

    def _call_off(self, path: _Path) -> None:
        """What is saved again is not to be removed."""
        for removal in self._removals:
            if os.path.abspath(removal.path) == os.path.abspath(path):
                removal.call_off()

    def _raise_failures(self, *, wait: bool) -> None:
        ended = [future for future in self._pending if wait or future.done()]
        self._pending = [future for future in self._pending if future not in ended]
        errors = [(future.path, error) for future in ended if (error := future.exception())]
        for path, error in errors[1:]:
            log.error("background save of %s failed", path, exc_info=error)
        for path, error in errors[:1]:
            error.add_note(f"the background save of {path} failed, not the call that raises this")
            raise error


class _Removal:
    """The removal of one checkpoint when some saves have ended, unless one of them fails.

    The callbacks of the saves bring it about, on threads of genesis; `_lock` guards `_left`.
    """

    def __init__(self, path: _Path, saves: list[SaveFuture]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._left = len(saves)
        self._done = threading.Event()
        for future in saves:
            future.add_done_callback(self._note)

    def _note(self, future: SaveFuture) -> None:
        with self._lock:
            self._left -= 1
            if future._failure is not None and not self.is_done():
                log.warning("%s was not removed: the save of %s failed", self.path, future.path)
                self._done.set()
            if self._left or self.is_done():
                return
            try:
                _remove(self.path)
            finally:
                self._done.set()

    def is_done(self) -> bool:
        return self._done.is_set()

    def call_off(self) -> None:
        """Remove nothing, or have removed it when this returns."""
        with self._lock:
            self._done.set()

    def wait(self) -> None:
        self._done.wait()


def _remove(path: _Path) -> None:
    """Remove a file; of a symlink, as ``save_last="link"`` makes them, the link alone; a folder,
    which another plugin may have written, with all that is in it."""
    if os.path.islink(path):
        files.remove(os.fspath(path))
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        remove(path, missing_ok=True)


def _register() -> None:
    """Make the plugin a `CheckpointIO` of the Lightning that this program uses, or where it has
    imported none yet, of each that is installed: a Trainer looks with `isinstance`."""
    loaded = [name for name in _HOSTS if name in sys.modules]
    for name in loaded or [name for name in _HOSTS if importlib.util.find_spec(name)]:
        importlib.import_module(_HOSTS[name]).CheckpointIO.register(GenesisCheckpointIO)


publish(globals())
