"""Threads for one call each: parts of one piece of work, run side by side.

A thread is started for a call and ends with it: it costs less than 0.1 ms, and no idle thread is
left for a fork to trip over. Where none can be started (the interpreter is shutting down), the
caller does the work alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator

from .._tuning import on
from .interrupts import Doubled, Event, Thread

Work = Callable[[], object]

SIZE = max(1, min(os.cpu_count() or 1, 4))
"""Threads that one call may keep busy: more than a few only share the memory's bandwidth."""


class Companion(Doubled):
    """One call on a thread of its own, if there can be one.

    Use it as a context manager around `start`: the block ends when the call has ended, whatever
    interrupts the waiting, for what the call works with is then used for something else. Started
    without a block, the call goes on by itself.
    """

    def __init__(self, work: Work) -> None:
        self._work: Work | None = work
        self._error: BaseException | None = None
        self._claim: dict[str, int] = {}
        """Under "by": who decides whether the call is made, its thread or one that gave up."""
        self._ended = Event()
        self._thread = Thread(self._run, "genesis-companion")
        self._started = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            self.wait()
        except BaseException:
            if kind is None:
                raise

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            self._run()
        else:
            self._started = True

    def _run(self) -> None:
        try:
            if self._is_mine() and self._work is not None:
                self._work()
        except BaseException as exc:  # handed to the waiting thread
            self._error = exc
        finally:
            self._work = None  # before the end is known: what it holds may be freed with it
            self._ended.set()

    def _is_mine(self) -> bool:
        """Whether this thread decides about the call."""
        me = threading.get_ident()
        return self._claim.setdefault("by", me) == me

    def wait(self) -> None:
        """Wait until the call has ended; raise what it raised, or what interrupted the waiting. One
        whose start was cut short, and that has not begun, is not made any more."""
        if not self._started and self._is_mine():
            # Also where this thread made the call and was interrupted.
            self._work = None
            self._ended.set()
        interrupt: BaseException | None = None
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except BaseException as exc:
                interrupt = exc
        if self._started:
            self._thread.wait_for_end()
        error, self._error = self._error or interrupt, None
        if error is not None:
            raise error


def run_all(work: Iterable[Work], *, size: int, threads: int | None = None) -> None:
    """Run calls in any order on this thread and helpers; raise an error of any.

    Args:
        size: bytes that all of it moves; little work is done on this thread alone.
        threads: how many threads, this one included.
    """
    shared = _Shared(iter(work))
    helpers = (threads or SIZE) - 1 if size >= 4 << 20 and on.threads else 0
    crew = _Crew(shared, [Companion(shared.consume) for _ in range(helpers)])
    with crew, crew:
        crew.start()
        shared.consume()


class _Crew(Doubled):
    """Companions that are waited for, all of them, when the block is left."""

    def __init__(self, shared: _Shared, companions: list[Companion]) -> None:
        self._shared = shared
        self._companions = companions

    def start(self) -> None:
        for companion in self._companions:
            companion.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is not None:
            self._shared.stop()  # before they are waited for
        failed: BaseException | None = None
        for companion in self._companions:
            try:
                companion.wait()
            except BaseException as exc:
                failed = failed or exc
        if failed is not None and kind is None:
            raise failed


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, work: Iterator[Work]) -> None:
        self._work = work
        self._lock = threading.Lock()  # guards _work: a generator runs on one thread at a time

    def consume(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Nobody takes any more."""
        self._work = iter(())

    def _next(self) -> Work | None:
        with self._lock:
            # Not returned from here: what a tracer raises between this call and the leaving, the
            # block would not see.
            work = next(self._work, None)
        return work  # noqa: RET504
