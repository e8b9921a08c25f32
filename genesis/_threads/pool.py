"""A few threads that come when there is work and end when there is none.

An executor like `concurrent.futures.ThreadPoolExecutor`, but without idle threads (from Python 3.12
on a live thread makes every fork warn), usable in a forked child, and at interpreter exit, when no
thread can be started any more, in the caller.

Guarantees:
- A call that was submitted is run, by a thread that never waits for one that submits: a signal
  handler may submit, and wait for the result, wherever it interrupted this module.
- Never more than `threads` of them run calls.

There is no lock. A thread has a place, a number below `threads`, and `setdefault` of one dict gives
it to one alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

from .interrupts import Doubled, Thread
from .waiting import OpenFuture

P = ParamSpec("P")
T = TypeVar("T")


class Pool(Executor):
    """Runs calls in the order they were submitted, `threads` at a time. Thread-safe."""

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self.name = name
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start empty: a forked child has none of its parent's threads."""
        self._queue: deque[Callable[[], None]] = deque()
        self._places: dict[int, _Worker] = {}
        self.inline = False
        """Run everything in the caller: the interpreter is going down."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> OpenFuture[T]:
        """Queue a call. Its future can be cancelled until a thread takes it."""
        future: OpenFuture[T] = OpenFuture()
        self._queue.append(lambda: _run(future, fn, args, kwargs))
        if self.inline or not self._start():
            self.help()
        return future

    def _start(self) -> bool:
        """Start a thread if one more may run; ``False`` where it can't: the interpreter is going
        down, or the system has no thread left."""
        worker = _Worker(self, self._places)
        with worker, worker:
            try:
                if worker.takes_place():
                    worker.start()
            except RuntimeError:
                return False
        return True

    def next(self) -> Callable[[], None] | None:
        """Take the next call, if there is one."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def has_work(self) -> bool:
        return bool(self._queue)

    def is_running(self) -> bool:
        """Whether a thread is there that takes what is queued."""
        return any(worker.runs() for worker in tuple(self._places.values()))

    def help(self) -> None:
        """Run in this thread what is queued."""
        while (call := self.next()) is not None:
            call()
            del call  # or the next one would run with this one's arguments still alive


class _Worker(Doubled):
    """A thread with a place in a pool. Leaving the block without it running gives the place up."""

    def __init__(self, pool: Pool, places: dict[int, _Worker]) -> None:
        self._pool = pool
        self._places = places
        """Of the pool: a forked child has others, and this one is not in them."""
        self._starter = threading.get_ident()
        self._thread: Thread | None = None

    def takes_place(self) -> bool:
        """Whether it has a place, or got one."""
        if self in tuple(self._places.values()):
            return True
        for number in range(self._pool.threads):
            there = self._places.setdefault(number, self)
            if there is not self and there.is_stuck_here():
                there = self._places[number] = self
            if there is self:
                return True
        return False

    def is_stuck_here(self) -> bool:
        """Whether this thread is about to start it, beneath a signal handler, and so won't before
        the handler returns. Should it start then, it finds its place taken, and ends."""
        return self._starter == threading.get_ident() and not self.runs()

    def runs(self) -> bool:
        return self._thread is not None and self._thread.ident is not None

    def start(self) -> None:
        self._thread = Thread(self._work, self._pool.name)
        self._thread.start()

    def leave(self) -> None:
        if not self.runs():
            self._leave_place()

    def _leave_place(self) -> None:
        for number, worker in tuple(self._places.items()):
            if worker is self:
                self._places.pop(number, None)

    def _work(self) -> None:
        """
        Race: 1. this thread finds the queue empty; 2. a call is queued, and finds this thread in
        its place; 3. this thread ends. So it leaves its place, and looks again.
        """
        while self.takes_place():
            self._pool.help()
            self._leave_place()
            if not self._pool.has_work():
                return


def _run(
    future: OpenFuture[T], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as exc:
        future.set_exception(exc)
    else:
        future.set_result(result)
