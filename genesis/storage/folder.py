"""The local file system as a `Storage`: each name is a file of one folder.

The order of a commit is in `local`. Plain paths do not come this way; what reads them does.
"""

from __future__ import annotations

import os
from typing import Any

from .._options import FilePath
from .._os import files
from .._os.descriptors import Descriptor
from .local import BACKUP_SUFFIX, Replacement


class FileSource:
    """A `Source` over an open file.

    Args:
        fd: the file, which the caller closes.
        file: the same, to close it here.
    """

    __slots__ = ("_file", "fd")

    def __init__(self, fd: int, file: Descriptor | None = None) -> None:
        self.fd = fd
        self._file = file

    def size(self) -> int:
        return files.size(self.fd)

    def read(self, count: int, offset: int) -> bytes:
        return files.read(self.fd, count, offset)

    def read_into(self, target: memoryview, offset: int) -> int:
        return files.read_into(self.fd, target, offset)

    def close(self) -> None:
        if self._file is not None:
            self._file.let_go()


class Folder:
    """Bytes in files of a folder, which must be there. `genesis.save` needs none: it takes paths.

    Thread-safe, and safe among processes.
    """

    def __init__(self, path: FilePath) -> None:
        self.path = files.resolve_directory(path)

    def file(self, name: str) -> str:
        """The path of a name.

        Raises:
            ValueError: it leads out of the folder.
        """
        if name in ("", ".", "..") or os.path.basename(name) != name:
            raise ValueError(f"{name!r} is no name of a file in {self.path}")
        return os.path.join(self.path, name)

    def open(self, name: str) -> FileSource:
        file = Descriptor()
        files.open_for_reading(file, self.file(name))
        return FileSource(file.number, file)

    def create(self, name: str) -> _Replacing:
        return _Replacing(self.file(name))

    def remove(self, name: str) -> bool:
        place = Replacement(self.file(name), is_sound=_is_there)
        with place, place:
            return place.remove()

    def names(self) -> list[str]:
        return [
            name
            for name in files.names(self.path)
            if ".genesis-" not in name and not name.endswith(BACKUP_SUFFIX)
        ]


class _Replacing:
    """A `Sink` of a file."""

    def __init__(self, path: str) -> None:
        self._place = Replacement(path, is_sound=_is_there)
        self._end = 0
        try:
            self._place.begin()
        except BaseException:
            self._place.leave()
            raise

    def write(self, data: Any, offset: int) -> None:
        if offset != self._end:
            raise ValueError(f"a write at {offset} does not follow {self._end} bytes")
        self._place.write(data, offset)
        self._end += memoryview(data).nbytes

    def commit(self) -> None:
        self._place.sync(self._end)
        try:
            self._place.commit()
        finally:
            self._place.leave()

    def discard(self) -> None:
        self._place.leave()


def _is_there(path: str) -> bool:
    """Bytes that nobody knows a checksum of are as good as they are."""
    return files.identity(path) is not None
