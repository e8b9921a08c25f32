"""Threads for the length of one call: parts of one piece of work, run side by side.

A thread is started for each call and ends with it: it costs less than 0.1 ms, and no idle thread is
left for a fork to trip over. Where none can be started (the interpreter is shutting down), the
caller does the work alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator

Work = Callable[[], object]

SIZE = max(1, min(os.cpu_count() or 1, 4))
"""Threads that one call may keep busy. Two saturate the memory of a small machine."""


class Companion:
    """One call running on a thread of its own, if there can be one.

    `wait` must be called, but for a call that cannot fail; it raises what the call raised.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="genesis-companion")
        try:
            self._thread.start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as exc:  # handed to the waiting thread
            self._error = exc

    def wait(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def run_all(work: Iterable[Work], *, size: int, threads: int | None = None) -> None:
    """Run calls in any order on this thread and helpers; raise the first error of any.

    Args:
        size: bytes that all of it moves; little work is done on this thread alone.
        threads: how many threads, this one included.
    """
    shared = _Shared(iter(work))
    helpers = (threads or SIZE) - 1 if size >= 4 << 20 else 0
    companions = [Companion(shared.consume) for _ in range(helpers)]
    error: BaseException | None = None
    try:
        shared.consume()
    except BaseException as exc:
        error = exc
    for companion in companions:
        try:
            companion.wait()
        except BaseException as exc:
            error = error or exc
    if error is not None:
        raise error


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
            self._work = iter(())  # the others stop as well
            raise

    def _next(self) -> Work | None:
        with self._lock:
            return next(self._work, None)
