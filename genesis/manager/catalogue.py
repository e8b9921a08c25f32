"""What is in a folder of checkpoints, read from the ends of its files. Nothing is unpickled, and
nothing is written: the files are the index."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import CorruptCheckpointError
from .._file import chunks
from .._file.layout import Mark
from .._os import files
from .._os.descriptors import Descriptor
from ..retention import Checkpoint, by_writing
from ..storage.folder import FileSource
from .names import Names

_KEPT = 1000


class Catalogue:
    """The checkpoints of one folder. Thread-safe."""

    def __init__(self, folder: str, names: Names) -> None:
        self.folder = folder
        self._names = names
        self._marks: dict[tuple[int, ...], tuple[Mark, str]] = {}
        """What the ends of files told: each file is read once."""

    def found(self) -> list[Checkpoint]:
        """The checkpoints in the order in which they were written; none where there is no folder.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            with files.Directory(self.folder) as folder, named(self.folder):
                return self.read(folder)
        except FileNotFoundError:
            return []

    def read(self, folder: files.Directory) -> list[Checkpoint]:
        """The checkpoints of the folder as it is open."""
        steps = ((name, self._names.step_of(name)) for name in folder.names())
        found = (self._look_at(folder, name, step) for name, step in steps if step is not None)
        return by_writing(each for each in found if each is not None)

    def _look_at(self, folder: files.Directory, name: str, step: int) -> Checkpoint | None:
        status = folder.status(name)
        if status is None or stat.S_ISDIR(status.st_mode):
            return None
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._marks:
            if len(self._marks) > _KEPT:
                self._marks.clear()
            self._marks[key] = _read_ends(folder, name)
        mark, problem = self._marks[key]
        return Checkpoint(
            step=step,
            path=folder.join(name),
            order=mark.order,
            modified=status.st_mtime_ns,
            bytes=status.st_size,
            time=mark.time or status.st_mtime_ns / 1e9,
            metrics=mark.metrics,
            problem=problem,
            stall=mark.stall,
        )


def _read_ends(folder: files.Directory, name: str) -> tuple[Mark, str]:
    """The manager's mark, and what is wrong with the file."""
    file, path = Descriptor(), folder.join(name)
    try:
        folder.open_for_reading(file, name)
        return chunks.open_file(path, FileSource(file.number)).index.mark, ""
    except CorruptCheckpointError as exc:
        return Mark(), exc.problem
    except OSError as exc:  # a symlink, or not for us to read
        return Mark(), exc.strerror or str(exc)
    finally:
        file.let_go()


@contextmanager
def named(path: str) -> Iterator[None]:
    """Let an error of a call on a descriptor, which knew no name, say which folder it is of."""
    try:
        yield
    except OSError as exc:
        if exc.errno is None or isinstance(exc.filename, str):
            raise
        raise OSError(exc.errno, os.strerror(exc.errno), path) from exc
