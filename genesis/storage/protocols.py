"""What genesis asks of a place for checkpoints. `genesis.testing` checks what is written here.

Nothing here does anything: local files are in `folder` and `local`, memory in `memory`.
"""

from __future__ import annotations

from typing import Any, Protocol


class Source(Protocol):
    """The bytes under one name, as they were when it was opened, whatever replaces them later.

    Several threads may read at once. All offsets and sizes are bytes.
    """

    def size(self) -> int: ...

    def read(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset` on; fewer only where they end."""
        ...

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fill `target` from `offset` on; return how many bytes there were."""
        ...

    def close(self) -> None:
        """Harmless when repeated."""
        ...


class Sink(Protocol):
    """New bytes for one name, of which nobody sees any before `commit`.

    One call at a time, from whichever thread.
    """

    def write(self, data: Any, offset: int) -> None:
        """Take all of a bytes-like object, which the caller may change afterwards. Each write
        begins where the one before it ended; the first at 0."""
        ...

    def commit(self) -> None:
        """Let the name stand for the new bytes, in one step, and return when they are as durable as
        the storage makes them. After an error the name has the old bytes, whole.

        Raises:
            OSError: it could not be done.
        """
        ...

    def discard(self) -> None:
        """Forget what was written; harmless after `commit` and when repeated."""
        ...


class Storage(Protocol):
    """Names with bytes under them. Thread-safe. What fails is an `OSError`."""

    def open(self, name: str) -> Source:
        """
        Raises:
            FileNotFoundError: there is no such name.
        """
        ...

    def create(self, name: str) -> Sink:
        """New bytes for a name, whether it is there or not. Until they are committed it keeps the
        old ones; of two sinks the last to commit wins."""
        ...

    def remove(self, name: str) -> bool:
        """Remove a name; return whether it was there."""
        ...

    def names(self) -> list[str]:
        """Every name that is committed, in any order."""
        ...
