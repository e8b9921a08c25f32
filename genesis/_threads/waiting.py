"""A future that no interrupt can break: whoever resolves it never waits for whoever asks it.

It is a `concurrent.futures.Future` to everybody, and has no lock. It starts no thread and runs no
callback later than it is told to.

Why there is no lock: see `interrupts`. A dict's `setdefault` decides who was first, in one call of
C, and each step after it may be repeated by anybody.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from .interrupts import Event

T = TypeVar("T")

log = logging.getLogger("genesis")

_PENDING, _RUNNING, _FINISHED = "PENDING", "RUNNING", "FINISHED"
_CANCELLED = "CANCELLED_AND_NOTIFIED"
"""The words that `concurrent.futures` compares a future's `_state` with."""

_Outcome = tuple[str, Any, BaseException | None]


class OpenFuture(Future[T]):
    """A future without a lock. Thread-safe, and safe in a signal handler.

    `wait` and `as_completed` of `concurrent.futures` reach into a future: `_condition`, `_waiters`
    and `_state` are what they find there.
    """

    def __init__(self) -> None:
        # Not the parent's: it makes the condition that this class does without.
        self._begun: dict[str, str] = {}
        """Under "as": running or cancelled, whichever came first."""
        self._ended: dict[str, _Outcome] = {}
        """Under "as": the outcome, whichever came first."""
        self._result: Any = None
        self._exception: BaseException | None = None
        self._over = Event()
        self._wakers: deque[Callable[[], object]] = deque()
        self._done_callbacks: deque[_Callback] = deque()
        self._looked: dict[int, str] = {}
        """The state that `concurrent.futures.wait` goes by, for each thread that is in it."""

    # What others see

    def done(self) -> bool:
        return self._over.is_set()

    def running(self) -> bool:
        return not self.done() and self._begun.get("as") == _RUNNING

    def cancelled(self) -> bool:
        return self.done() and self._ended["as"][0] == _CANCELLED

    def result(self, timeout: float | None = None) -> T:
        self._wait(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                del self  # no circle of the error, its traceback and this frame
        return self._result  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            if timeout is None or timeout > 0:
                self._refuse_deadlock()
            if not self._over.wait(timeout):
                raise TimeoutError
        if self.cancelled():
            raise CancelledError

    def _refuse_deadlock(self) -> None:
        """Raise `RuntimeError` where waiting for this, in the calling thread, would never end."""

    # Its end

    def cancel(self) -> bool:
        if self._begun.setdefault("as", _CANCELLED) != _CANCELLED:
            return False
        return self._end((_CANCELLED, None, None))[0] == _CANCELLED

    def set_running_or_notify_cancel(self) -> bool:
        return self._begun.setdefault("as", _RUNNING) == _RUNNING

    def set_result(self, result: T) -> None:
        """Resolve it. Repeating this finishes what an interrupt cut short, and raises then
        `InvalidStateError`."""
        self._end_as((_FINISHED, result, None))

    def set_exception(self, exception: BaseException | None) -> None:
        """Resolve it with an error; as `set_result`."""
        self._end_as((_FINISHED, None, exception))

    def _end_as(self, outcome: _Outcome) -> None:
        if self._end(outcome) is not outcome:
            raise InvalidStateError(f"{self._state}: {self!r}")

    def _end(self, outcome: _Outcome) -> _Outcome:
        outcome = self._ended.setdefault("as", outcome)
        _, self._result, self._exception = outcome
        self._over.set()
        self._wake()
        self._follow()
        return outcome

    def _follow(self) -> None:
        """What comes when everybody knows the outcome."""
        self._call_back()

    def _when_done(self, wake: Callable[[], object]) -> None:
        """Have something short done by the thread that resolves this, at once; by this thread where
        it is resolved. It may be done twice."""
        self._wakers.append(wake)
        if self.done():
            self._wake()

    def _wake(self) -> None:
        for wake in tuple(self._wakers):
            wake()
            with suppress(ValueError):
                self._wakers.remove(wake)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future when it is done; at once, by this thread, where it
        is."""
        callback = _Callback(fn)
        if not self.done():
            self._done_callbacks.append(callback)
            # Race: 1. it is resolved after `done`; 2. all callbacks are called; 3. this one comes.
            if not self.done() or not self._took_back(callback):
                return
        self._call(callback)

    def _took_back(self, callback: _Callback) -> bool:
        try:
            self._done_callbacks.remove(callback)
        except ValueError:
            return False
        return True

    def _call_back(self) -> None:
        """Call the callbacks that were not called, in the order they were added."""
        raised: BaseException | None = None
        while self._done_callbacks:
            try:
                self._call(self._done_callbacks.popleft())
            except IndexError:
                pass  # another thread was faster
            except BaseException as exc:
                raised = exc  # an interrupt: it must not keep the others from being called
        if raised is not None:
            raise raised

    def _call(self, callback: _Callback) -> None:
        try:
            callback.fn(self)
        except BaseException as exc:
            self._callback_failed(exc)
            # What is no Exception is meant for the program, and only one thread can take it there.
            if not isinstance(exc, Exception) and _on_main_thread():
                raise

    def _callback_failed(self, error: BaseException) -> None:
        """Say that a callback raised."""
        log.error("exception calling callback for %r", self, exc_info=error)

    # What `wait` and `as_completed` reach for

    @property
    def _condition(self) -> _Held:  # type: ignore[override]
        return _Held(self)

    @property
    def _waiters(self) -> _Waiters:  # type: ignore[override]
        return _Waiters(self)

    @property
    def _state(self) -> str:  # type: ignore[override]
        return self._looked.get(threading.get_ident()) or self._real_state()

    def _real_state(self) -> str:
        return self._ended["as"][0] if self.done() else self._begun.get("as", _PENDING)


def _on_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


class _Callback:
    """A callback, unlike any other: the same function may be added twice."""

    __slots__ = ("fn",)

    def __init__(self, fn: Callable[[Any], object]) -> None:
        self.fn = fn


class _Held:
    """Stands for the lock of a future. Holding it keeps nothing from being resolved; whoever does
    sees the future as it was when he took it."""

    def __init__(self, future: OpenFuture[Any]) -> None:
        self._future = future

    def acquire(self) -> bool:
        if not self._future.done():
            self._future._refuse_deadlock()
        self._future._looked[threading.get_ident()] = self._future._real_state()
        return True

    def release(self) -> None:
        self._future._looked.pop(threading.get_ident(), None)

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


class _Waiters:
    """Stands for the list of those who wait in `concurrent.futures`."""

    def __init__(self, future: OpenFuture[Any]) -> None:
        self._future = future

    def append(self, waiter: Any) -> None:
        if type(waiter.event) is threading.Event:
            waiter.event = Event()  # its own would be set by the thread that resolves this
        # Who has seen it done does not count on hearing of it.
        if self._future._state not in (_FINISHED, _CANCELLED):
            self._future._when_done(_Notice(self._future, waiter))

    def remove(self, waiter: Any) -> None:
        for wake in tuple(self._future._wakers):
            if isinstance(wake, _Notice) and wake.waiter is waiter:
                with suppress(ValueError):
                    self._future._wakers.remove(wake)


class _Notice:
    """Tells one waiter, once: it counts."""

    def __init__(self, future: OpenFuture[Any], waiter: Any) -> None:
        self._future = future
        self._told: dict[str, object] = {}
        self.waiter = waiter

    def __call__(self) -> None:
        me = object()
        if self._told.setdefault("by", me) is not me:
            return
        if self._future.cancelled():
            self.waiter.add_cancelled(self._future)
        elif self._future._exception is not None:
            self.waiter.add_exception(self._future)
        else:
            self.waiter.add_result(self._future)
