"""A few threads that come when there is work and end when there is none.

An executor like `concurrent.futures.ThreadPoolExecutor`, but without idle threads (from Python 3.12
on a live thread makes every fork warn), usable in a forked child, and at interpreter exit, when no
thread can be started any more, in the caller.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool(Executor):
    """Runs calls in the order they were submitted, `threads` at a time. Thread-safe."""

    def __init__(self, threads: int, name: str) -> None:
        self.threads = threads
        self._name = name
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Start empty: a forked child has none of its parent's threads."""
        self._lock = threading.RLock()  # a signal handler may save; guards what follows
        self._queue: deque[Callable[[], None]] = deque()
        self._running: set[threading.Thread] = set()
        self.inline = False
        """Run everything in the caller: the interpreter is going down."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queue a call. Its future can be cancelled until a thread takes it."""
        future: Future[T] = Future()
        with self._lock:
            self._queue.append(lambda: _run(future, fn, args, kwargs))
        if self.inline or not self._start():
            self.help()
        return future

    def _start(self) -> bool:
        """Start a thread if one more may run; ``False`` where it can't: the interpreter is going
        down, or the system has no thread left."""
        # No daemon: the interpreter must not go down under a thread that is in torch's code, where
        # being stopped aborts the process.
        thread = threading.Thread(target=self._work, name=self._name)
        try:
            with self._lock:
                # One that never ran is none: an error or an interrupt kept it from starting.
                self._running = {one for one in self._running if one.ident is not None}
                if len(self._running) < self.threads:
                    self._running.add(thread)
                    thread.start()
        except RuntimeError:
            return False
        return True

    def _work(self) -> None:
        while (call := self._next(ending=True)) is not None:
            call()
            del call  # or the next one would run with this one's arguments still alive

    def _next(self, *, ending: bool) -> Callable[[], None] | None:
        """
        Race: 1. a thread finds the queue empty; 2. a call is queued, and counts that thread as one
        that will come; 3. the thread ends. So both look and count under the lock.
        """
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if ending:
                self._running.discard(threading.current_thread())
            return None

    def is_running(self) -> bool:
        """Whether a thread is there that takes what is queued."""
        with self._lock:
            return any(one.ident is not None for one in self._running)

    def help(self) -> None:
        """Run in this thread what is queued."""
        while (call := self._next(ending=False)) is not None:
            call()


def _run(future: Future[T], fn: Callable[..., T], args: Any, kwargs: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as exc:
        future.set_exception(exc)
    else:
        future.set_result(result)
