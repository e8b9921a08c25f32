"""A path that is a name in a storage, and the same steps for it as for a local file.

What saves and loads is given a path and asks here where its bytes are; it has no other way for
storages.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .._options import FilePath
from .._os import files
from .._os.descriptors import Descriptor
from .._threads.interrupts import Doubled
from . import folder
from .local import Replacement
from .protocols import Sink, Source, Storage


class Location(str):
    """A name in a storage, which stands where the path of a file does.

    `genesis.save`, `genesis.load` and what looks at a file take it, and their awaited twins. What
    maps a file (``mmap=True``) reads it as a whole instead. There is no backup: a `Sink` that fails
    leaves the old bytes. A manager's folder and `genesis.aio.stream` are of local files.

    Reports and errors show it as a str, and in a pickle it is nothing more. That str has the form
    of a URL, which no local file may have.
    """

    __slots__ = ("name", "storage")
    storage: Storage
    name: str

    def __new__(cls, storage: Storage, name: str) -> Location:
        kind = type(storage).__name__.replace("_", "")
        location = super().__new__(cls, f"{kind}-{id(storage):x}:/{name}")
        location.storage, location.name = storage, name
        return location

    def __add__(self, more: str) -> Location:
        """Another name in the same storage."""
        return Location(self.storage, self.name + more)

    def __reduce__(self) -> tuple[object, ...]:
        return str, (str(self),)


def resolve(path: FilePath) -> str:
    """`_os.files.resolve`, which leaves a location as it is."""
    if not isinstance(path, Location):
        return files.resolve(path)
    if isinstance(path.storage, folder.Folder):
        return files.resolve(path.storage.file(path.name))
    return path


@contextmanager
def reading(path: str) -> Iterator[Source]:
    """What is at a path, for the length of a with block.

    Raises:
        FileNotFoundError: nothing is.
    """
    if not isinstance(path, Location):
        with files.reading(path) as fd:
            yield folder.FileSource(fd)
        return
    source = path.storage.open(path.name)
    try:
        yield source
    finally:
        source.close()


def replacement(path: str, *, is_sound: Callable[[str], bool]) -> Replacement | Elsewhere:
    """What replaces the bytes at a path; the arguments are those of `local.Replacement`."""
    return Elsewhere(path) if isinstance(path, Location) else Replacement(path, is_sound=is_sound)


class Elsewhere(Doubled):
    """The steps of a `local.Replacement` over a `Sink`."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._sink: Sink | None = None
        self._end = 0

    def begin(self) -> None:
        self._sink = self._location.storage.create(self._location.name)

    def room(self) -> int:
        return sys.maxsize

    def start_direct(self) -> bool:
        return False

    def stop_direct(self) -> None:
        pass

    def write(self, data: Any, offset: int) -> None:
        assert self._sink is not None
        self._sink.write(data, offset)
        self._end = offset + len(data)

    def sync(self, size: int) -> None:
        if self._end != size:
            problem = f"{size} bytes were to be written, {self._end} were"
            raise OSError(errno.EIO, problem, str(self._location))

    def commit(self) -> None:
        assert self._sink is not None
        self._sink.commit()

    def take_old(self) -> Descriptor | None:
        return None

    def remove(self) -> bool:
        return self._location.storage.remove(self._location.name)

    def leave(self) -> None:
        if self._sink is not None:
            self._sink.discard()
