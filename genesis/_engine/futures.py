"""What a save promises and what it reports: two moments in one future.

Holds state and wakes those who wait; it writes nothing and starts no thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from .._pickle.outside import OutsideError
from .._progress import Progress
from .._threads.waiting import OpenFuture

log = logging.getLogger("genesis")

Outcome = Literal["durable", "skipped", "superseded"]


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What became of one save.

    Attributes:
        path: the real path of the file.
        bytes: its size; 0 where nothing was written.
        outcome: ``"durable"``; ``"skipped"`` (`on_busy="skip"` and the writer was busy);
            ``"superseded"`` (a later save of the path with `on_busy="supersede"` took its place).
        stall: seconds for which the call kept its caller.
        capture: seconds from the start of pickling until the last byte was copied.
        wait: seconds spent waiting for a turn, for memory and for a writer thread.
        write: seconds of checksumming and writing.
        sync: seconds of syncing and of the commit.
    """

    path: str
    bytes: int = 0
    outcome: Outcome = "durable"
    stall: float = 0.0
    capture: float = 0.0
    wait: float = 0.0
    write: float = 0.0
    sync: float = 0.0

    if not TYPE_CHECKING:

        def __await__(self):
            raise TypeError(
                "a plain save is done when it returns its report, and cannot be awaited: "
                "await genesis.aio.save(...), or the future of genesis.save(..., background=True)"
            )

    @property
    def throughput(self) -> float:
        """Bytes per second, from the first write until durable."""
        seconds = self.write + self.sync
        return self.bytes / seconds if seconds else 0.0


def log_durable(report: SaveReport) -> None:
    """Leave one line of a durable save in the log, at a level that is not shown by default."""
    log.info(
        "saved %s: %s bytes, stall %.1f ms, %.0f MB/s",
        report.path,
        f"{report.bytes:,}",
        report.stall * 1e3,
        report.throughput / 1e6,
    )


def logs_durable_nowait(report: SaveReport) -> bool:
    """Leave that line unless it would have to wait; whether it did.

    A program that a signal handler interrupted while it was logging holds the lock of a log handler
    as long as the handler runs, and that may wait for the save.
    """
    taken: list[Any] = []
    try:
        if log.isEnabledFor(logging.INFO):
            for lock in _locks_of_log():
                if not lock.acquire(blocking=False):
                    return False
                taken.append(lock)
            log_durable(report)
        return True
    finally:
        for lock in taken:
            lock.release()


def _locks_of_log() -> list[Any]:
    found: list[Any] = []
    logger: logging.Logger | None = log
    while logger is not None:
        found += [handler.lock for handler in logger.handlers if handler.lock is not None]
        logger = logger.parent if logger.propagate else None
    return found


class Failure:
    """An error of a background save, and whether anybody has seen it."""

    def __init__(
        self, path: str, error: BaseException, what: str = "background save of %s failed"
    ) -> None:
        self.path = path
        self.error = error
        self.seen = False
        self._what = what
        self._logged = False

    def log(self) -> None:
        """Write the error to the log, once."""
        if not self._logged:
            self._logged = True
            log.error(self._what, self.path, exc_info=self.error)


def _nothing(*_: object) -> None:
    pass


class SaveFuture(OpenFuture[SaveReport]):
    """A background save.

    Two moments: *captured*, from when on everything in the state may be changed, and *durable*,
    when `result` returns. Await it on asyncio or trio for the second. Thread-safe. A save cannot be
    cancelled: `cancel` returns ``False``, and cancelling a task that awaits the future ends the
    waiting only.

    Waiting in a signal handler for a save that cannot go on before the handler returns is a
    `RuntimeError`, not a deadlock.

    Attributes:
        path: the real path of the file.
    """

    def __init__(
        self,
        path: str,
        refuse: Callable[[], None] = _nothing,
        lost: Callable[[Failure], None] = _nothing,
    ) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.path = path
        self._failure: Failure | None = None
        self._capture: OpenFuture[None] = OpenFuture()
        self._refuse = refuse
        self._lost = lost
        self._progress = Progress()
        self._calling: dict[int, None] = {}
        """The threads that call its callbacks."""

    def __repr__(self) -> str:
        return f"<SaveFuture of {self.path}: {self._moment()}>"

    def _moment(self) -> str:
        if not self.done():
            return "captured, not durable yet" if self.captured else "not captured yet"
        error = super().exception(0)  # which does not count as having asked for it
        return f"failed with {type(error).__name__}" if error else super().result(0).outcome

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes of the stream that are written, and how many there are: ``(0, 0)`` before a thread
        has begun, and equal once the file is durable. The file is a little longer."""
        return self._progress.done, self._progress.total

    @property
    def captured(self) -> bool:
        """Whether the state may be changed."""
        return self._capture.done()

    def wait_captured(self, timeout: float | None = None) -> None:
        """Wait, at most `timeout` seconds, until the state may be changed.

        With `capture="copy"` this returns at once. With `capture="deferred"`, call it before the
        next in-place update of a tensor.

        Raises:
            TimeoutError: it is not captured yet.
            Exception: the save failed before its state was captured.
        """
        error = self._wait_until_captured(timeout)
        if error is not None:
            self._mark_seen()
            raise error

    def _wait_until_captured(self, timeout: float | None = None) -> BaseException | None:
        """What kept it from being captured. Raises as `wait_captured` but that."""
        if not self.captured and timeout != 0:
            self._refuse_deadlock()
        return self._capture.exception(timeout)

    def result(self, timeout: float | None = None) -> SaveReport:
        """Wait, at most `timeout` seconds, until the file is durable.

        Raises:
            TimeoutError: it is not yet.
            Exception: what made the save fail. The file at the path is the old one.
        """
        self._mark_seen_when_done(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does; return the error instead of raising it."""
        self._mark_seen_when_done(timeout)
        return super().exception(0)

    def _mark_seen_when_done(self, timeout: float | None) -> None:
        super().exception(timeout)
        self._mark_seen()

    def _mark_seen(self) -> None:
        if self._failure is not None:
            self._failure.seen = True

    def __reduce__(self) -> Any:
        """What became of the save: a future that is saved in a state comes back as its report, or
        as its error, for there is nothing left to wait for.

        Raises:
            OutsideError: the save is still under way.
        """
        if not self.done():
            raise OutsideError(
                f"genesis.SaveFuture of {self.path} is a result that is still to come",
                "wait for its result() first, or leave it out of the state",
            )
        if error := super().exception(0):
            return error.__reduce_ex__(5)
        return SaveReport, astuple(super().result(0))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self.__reduce__()

    def __await__(self) -> Generator[Any, None, SaveReport]:
        from ..aio import _bridge

        return _bridge.wait(self).__await__()

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Have `fn` called with this future when the save has ended; at once where it has.

        It is called on a thread of genesis that writes nothing, so it may take long; those of one
        save are called in order. `flush` and the exit of the interpreter wait for it. What it
        raises is logged, and raised by the next `flush`; the save itself has not failed.
        """
        super().add_done_callback(fn)

    def _callback_failed(self, error: BaseException) -> None:
        failure = Failure(self.path, error, "a done-callback of the save of %s failed")
        failure.log()
        self._lost(failure)

    def _follow(self) -> None:
        """Callbacks are called by the writer's other threads."""

    def _refuse_deadlock(self) -> None:
        self._refuse()

    def _wait_ended(self, timeout: float | None = None) -> bool:
        """Whether it ended within `timeout` seconds, well or not. Raises as `result` where that
        would wait for ever."""
        if not self.done():
            self._refuse_deadlock()
        return self._over.wait(timeout)

    def _has_callbacks(self) -> bool:
        return bool(self._done_callbacks)

    def _call_back(self) -> None:
        """
        Race: 1. a thread takes the last callback; 2. another finds none left; 3. the first still
        calls it. So each stands in `_calling` from before it looks until all that it took is done.
        """
        me = threading.get_ident()
        self._calling[me] = None
        try:
            super()._call_back()
        finally:
            self._calling.pop(me, None)

    def _is_calling_back(self) -> bool:
        return bool(self._calling)

    def _resolve_captured(self, error: BaseException | None = None) -> None:
        """For the writer."""
        with suppress(InvalidStateError):
            self._capture.set_exception(error) if error else self._capture.set_result(None)

    def _succeed(self, report: SaveReport) -> None:
        """For the writer. Harmless where the future is resolved."""
        self._resolve_captured()
        with suppress(InvalidStateError):
            self.set_result(report)

    def _fail(self, failure: Failure) -> None:
        """For the writer. Harmless where the future is resolved."""
        self._failure = failure
        self._resolve_captured(failure.error)
        with suppress(InvalidStateError):
            self.set_exception(failure.error)

    def _disown(self) -> None:
        """In a forked child: the save goes on in the parent, and nobody here will resolve this."""
        error = RuntimeError(f"the save of {self.path} belongs to the process that submitted it")
        self._refuse = _nothing
        self._capture = OpenFuture()
        failure = Failure(self.path, error)
        failure.seen = True
        self._fail(failure)

    def __del__(self) -> None:
        # The last one who could have asked for the error is gone.
        failure = getattr(self, "_failure", None)
        if failure is not None and not failure.seen:
            failure.log()
