"""A storage in the memory of this process: for tests, and for states that nobody needs tomorrow.

What is committed lives as long as the `Memory` does; nothing reaches a medium.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from .places import Location


class Memory:
    """Checkpoints in memory. ``memory / "name"`` stands where a path does.

    Thread-safe. A forked child has a copy of its own.
    """

    def __init__(self) -> None:
        self._held: dict[str, memoryview] = {}
        """Changed by single calls of a dict, so that no lock is needed."""

    def __truediv__(self, name: str) -> Location:
        return Location(self, name)

    def open(self, name: str) -> _Bytes:
        try:
            return _Bytes(self._held[name])
        except KeyError:
            problem = os.strerror(errno.ENOENT)
            raise FileNotFoundError(errno.ENOENT, problem, str(self / name)) from None

    def create(self, name: str) -> _Growing:
        return _Growing(self._held, name)

    def remove(self, name: str) -> bool:
        return self._held.pop(name, None) is not None

    def names(self) -> list[str]:
        return list(self._held)


class _Bytes:
    """A `Source`. It keeps what it reads alive, whatever takes its name."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def size(self) -> int:
        return len(self._data)

    def read(self, count: int, offset: int) -> bytes:
        return bytes(self._data[offset : offset + count])

    def read_into(self, target: memoryview, offset: int) -> int:
        part = self._data[offset : offset + len(target)]
        target[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._data = memoryview(b"")


class _Growing:
    """A `Sink`."""

    def __init__(self, held: dict[str, memoryview], name: str) -> None:
        self._held = held
        self._name = name
        self._data = bytearray()

    def write(self, data: Any, offset: int) -> None:
        if offset != len(self._data):
            raise ValueError(f"a write at {offset} does not follow {len(self._data)} bytes")
        self._data += memoryview(data).cast("B")

    def commit(self) -> None:
        self._held[self._name] = memoryview(self._data).toreadonly()

    def discard(self) -> None:
        self._data = bytearray()
