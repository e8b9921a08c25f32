"""How far a save or a load has come, told to a callable or shown as a bar.

It counts bytes of pieces that are done; what a piece is, its caller decides. Nothing here raises:
a bar that fails is a line in the log, and the save goes on without it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[int, int], object]
ProgressOption = bool | Tell

_BARS = ("tqdm", "rich")


def check_progress(wanted: ProgressOption) -> None:
    """Raises `TypeError` for what is none, and `ModuleNotFoundError` where nothing can show a
    bar."""
    if wanted is True and not any(map(_is_installed, _BARS)):
        raise ModuleNotFoundError(
            "progress=True needs tqdm or rich (pip install tqdm), or pass a callable of "
            "(done_bytes, total_bytes)"
        )
    if not isinstance(wanted, bool) and not callable(wanted):
        raise TypeError(f"progress must be a bool or a callable, not {wanted!r:.80}")


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec  # which nobody pays for who wants no bar

    return find_spec(name) is not None


class Progress:
    """What of one save or load is done. Thread-safe, and `tell` is called by one thread at a time.

    Args:
        wanted: the option `progress`.
        what: the path, whose name stands beside a bar.

    Attributes:
        done: bytes that are; read it on any thread.
        total: bytes that are to be, 0 before it runs.
    """

    def __init__(self, wanted: ProgressOption = False, what: str = "") -> None:
        self.done = 0
        self.total = 0
        self._pieces: deque[int] = deque()
        self._bar = _Bar(os.path.basename(what))
        self._tell = self._bar.show if wanted is True else None if wanted is False else wanted
        self._telling = threading.Lock()  # guards done; nobody waits for it

    @contextmanager
    def running(self, total: int) -> Iterator[None]:
        """A block that does so many bytes. Left well, all of it is done. A second block begins
        anew."""
        self.done, self.total = 0, total
        self._pieces.clear()
        self._note()
        try:
            yield
            self._pieces.append(total - self.done - sum(self._pieces))
            self._note()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._bar.close()
        except Exception as exc:  # standard error is gone, say
            _log(exc)

    def add(self, size: int) -> None:
        """A piece is done, on any thread."""
        if size:
            self._pieces.append(size)
            self._note()

    def _note(self) -> None:
        # Not waited for: the next piece, or the end, tells what this one could not.
        if not self._telling.acquire(blocking=False):
            return
        try:
            before = self.done
            while self._pieces:
                self.done += self._pieces.popleft()
            if self._tell is not None and (self.done > before or not before):
                self._tell(self.done, self.total)
        except Exception as exc:
            self._tell = None
            _log(exc)
        finally:
            self._telling.release()


def _log(error: Exception) -> None:
    logging.getLogger("genesis").error("progress is not told any more", exc_info=error)


class _Bar:
    """A bar of tqdm, or of rich where that is not installed. Made by the first call, on its thread:
    their import takes longer than many a save stalls."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown: _Shown | None = None

    def show(self, done: int, total: int) -> None:
        if self._shown is None:
            self._shown = (_tqdm if _is_installed("tqdm") else _rich)(self._what, total)
        self._shown[0](done)

    def close(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            shown[1]()


_Shown = tuple[Callable[[int], object], Callable[[], object]]
"""What shows how much is done, and what ends the bar."""


def _tqdm(what: str, total: int) -> _Shown:
    import tqdm

    class Bar(tqdm.tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        monitor_interval = 0  # no thread that would outlive the save

    bar = Bar(desc=what, total=total, unit="B", unit_scale=True)
    return lambda done: bar.update(done - bar.n), bar.close


def _rich(what: str, total: int) -> _Shown:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), DownloadColumn()]
    columns.append(TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
    task = bar.add_task(what, total=total)
    bar.start()
    return lambda done: bar.update(task, completed=done, refresh=True), bar.stop
