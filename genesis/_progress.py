"""How far a save or a load has come, told to a callable or shown as a bar.

It counts bytes of pieces that are done; what a piece is, its caller decides. Nothing here raises:
a bar that fails is a line in the log, and the save goes on without it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Self

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
    """What of one save or load is done. Thread-safe.

    Args:
        wanted: the option `progress`.
        what: the path, whose name stands beside a bar.

    Attributes:
        total: bytes that are to be, 0 before it runs.
    """

    __slots__ = ("_pieces", "_teller", "total")

    def __init__(self, wanted: ProgressOption = False, what: str = "") -> None:
        self.total = 0
        self._pieces: list[int] = []
        self._teller = None if wanted is False else _Teller(wanted, what)

    @property
    def done(self) -> int:
        """Bytes that are."""
        return sum(self._pieces)

    def running(self, total: int) -> Self:
        """A block that does so many bytes. Left well, all of it is done. A second block begins
        anew."""
        self.total, self._pieces = total, []
        return self

    def __enter__(self) -> None:
        self._tell()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._pieces.append(self.total - self.done)
            self._tell()
        if self._teller is not None:
            self._teller.close()

    def add(self, size: int) -> None:
        """A piece is done, on any thread."""
        if size:
            self._pieces.append(size)
            self._tell()

    def _tell(self) -> None:
        if self._teller is not None:
            self._teller.tell(self)


class _Teller:
    """Calls a callable, or a bar, on one thread at a time; an error ends that and is logged."""

    def __init__(self, wanted: ProgressOption, what: str) -> None:
        self._bar = _Bar(os.path.basename(what))
        self._call: Tell | None = wanted if callable(wanted) else self._bar.show
        self._told = -1
        self._calling = threading.Lock()  # guards _told; nobody waits for it

    def tell(self, progress: Progress) -> None:
        # Not waited for: the next piece, or the end, tells what this one could not.
        if self._call is None or not self._calling.acquire(blocking=False):
            return
        try:
            if (done := progress.done) != self._told:
                self._told = done
                self._call(done, progress.total)
        except Exception as exc:
            self._give_up(exc)
        finally:
            self._calling.release()

    def close(self) -> None:
        self._told = -1
        try:
            self._bar.close()
        except Exception as exc:  # standard error is gone, say
            self._give_up(exc)

    def _give_up(self, error: Exception) -> None:
        self._call = None
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
