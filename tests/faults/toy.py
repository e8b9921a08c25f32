"""A small atomic writer in the order of commits that the library follows, and its broken relatives.

The harness is tried on it: the right one must pass, and each flaw must be found by the check made
for it. It is no part of the library and knows no format but plain pickle.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from .scenarios import Scenario, State, recognise

FLAWS = (
    "in place",
    "no file sync",
    "no directory sync",
    "rename before sync",
    "retried sync",
    "swallowed error",
    "leaked descriptor",
    "kept lock",
    "left temporary",
    "no sweep",
    "cleared early",
    "one write",
    "backup moved",
)
_BACKUP = ".genesis.bak"


class DurabilityUnknownError(OSError):
    """Committed, but the directory could not be synced; the library has one of that name."""


class Toy(Scenario):
    """Overwrites a file with a pickle, atomically unless `flaw` says otherwise."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__(f"toy:{flaw}" if flaw else "toy")
        assert flaw == "" or flaw in FLAWS
        self._flaw = flaw

    def write(self, path: Path, states: list[State], version: int) -> None:
        data = pickle.dumps(states[0])
        if self._flaw == "cleared early":
            states[0].clear()
        if self._flaw == "in place":
            path.write_bytes(data)
        else:
            try:
                self._replace(path, data)
            except OSError as exc:
                exc.filename = str(path)
                raise
        states[0].clear()

    def read(self, path: Path) -> State:
        try:
            return self._load(path)
        except (FileNotFoundError, pickle.UnpicklingError):
            backup = Path(f"{path}{_BACKUP}")
            if not backup.exists():
                raise
            return self._load(backup)

    def _load(self, path: Path) -> State:
        data = path.read_bytes()
        try:
            state: State = pickle.loads(data)
            recognise(state)
        except Exception as exc:
            raise pickle.UnpicklingError(f"damaged: {exc}") from exc
        return state

    def _replace(self, path: Path, data: bytes) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            if self._flaw == "kept lock":
                with suppress(BlockingIOError):
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._flaw != "no sweep":
                self._sweep(path, folder)
            self._commit(path, data, folder)
        finally:
            if self._flaw not in ("leaked descriptor", "kept lock"):
                # The file is there, or an error is on its way: this one would say nothing new.
                with suppress(OSError):
                    os.close(folder)

    def _sweep(self, path: Path, folder: int) -> None:
        for name in os.listdir(folder):
            if name.startswith(f".{path.name}.genesis-"):
                os.unlink(name, dir_fd=folder)

    def _commit(self, path: Path, data: bytes, folder: int) -> None:
        temporary = f".{path.name}.genesis-{secrets.token_hex(4)}.tmp"
        backup = path.name + _BACKUP
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
            try:
                self._fill(fd, path, data)
                if self._is_there(path):
                    self._back_up(path.name, backup, temporary + ".bak", folder)
                os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                if self._flaw == "rename before sync":
                    self._sync(fd)
            finally:
                with suppress(OSError):
                    os.close(fd)
        except OSError:
            if self._flaw != "left temporary":
                self._remove(temporary, folder)
            self._remove(backup, folder)
            raise
        try:
            if self._flaw != "no directory sync":
                os.fsync(folder)
            with suppress(FileNotFoundError):
                os.unlink(backup, dir_fd=folder)
        except OSError as exc:
            raise DurabilityUnknownError(exc.errno, "committed, but not safely") from exc

    def _fill(self, fd: int, path: Path, data: bytes) -> None:
        self._write(fd, data)
        if self._is_there(path):
            os.fchmod(fd, path.stat().st_mode & 0o7777)
        if self._flaw not in ("no file sync", "rename before sync"):
            self._sync(fd)

    def _is_there(self, path: Path) -> bool:
        """Not `exists`, which takes any error for an answer."""
        try:
            path.stat()
        except FileNotFoundError:
            return False
        return True

    def _remove(self, name: str, folder: int) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)

    def _write(self, fd: int, data: bytes) -> None:
        view: Any = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except OSError as exc:
                if self._flaw != "swallowed error" or exc.errno != errno.ENOSPC:
                    raise
                return
            if self._flaw == "one write":
                return

    def _sync(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError:
            if self._flaw != "retried sync":
                raise
            os.fsync(fd)

    def _back_up(self, name: str, backup: str, temporary: str, folder: int) -> None:
        if self._flaw == "backup moved":
            os.rename(name, backup, src_dir_fd=folder, dst_dir_fd=folder)
            return
        os.link(name, temporary, src_dir_fd=folder, dst_dir_fd=folder)
        try:
            os.replace(temporary, backup, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            self._remove(temporary, folder)
