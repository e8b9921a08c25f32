"""The writer: background saves on a few threads, in order for each path, within a bound of memory.

It knows when and on which thread; `_store` knows what a save is.

Guarantees:
- Saves of one path, background or not, become durable in the order of the calls.
- A save is captured, at the latest, when its future says so; what the caller changes afterwards is
  not in the file.
- Bytes staged and not yet durable stay below `max_pending_bytes`, but one save of any size is
  always let through.
- Every submitted save ends: durable, superseded or failed. A failure that nobody asks its future
  for is logged, and raised by the next `flush`; never twice.
- The interpreter does not exit before all are done; once it has begun to, saves run in the caller.
- A forked child starts empty. Its parent's saves go on in the parent.

A race that decides the order of the last steps of a save:
  1. the writer resolves the future; 2. its caller, woken, saves the same path again and finds the
  turn taken and the arena in use; 3. it waits for nothing, or makes a second arena.
So the turn, the memory and the dict are given back first, and the future is resolved last.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from . import _store
from ._arena import Arena
from ._futures import Failure, Outcome, SaveFuture, SaveReport, log, log_durable
from ._locks import Turns
from ._options import SaveChoices
from ._pool import Pool

_UNSEEN_KEPT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(SaveChoices):
    """One call of `save`, in terms of the writer: its options, and these."""

    path: str
    state: object
    done: Callable[[], None] = lambda: None
    """Called when the file is durable, before the save's turn ends."""
    begin: Callable[[], None] = lambda: None
    """Called when the state is about to be captured, which may be long after the call of `save`."""
    order: int = 0
    """Of a manager's save, among its saves."""

    def plan(self) -> _store.Job:
        """Pickle the structure of the state as it is now. Raises as `_store.plan`."""
        return _store.plan(self.state, self.metadata, sharded=self.sharded, order=self.order)


class Task:
    """A background save, from its first step to its last: all that it has to give back.

    Use it as a context manager around what may fail before a writer thread has it: leaving the
    block with an error, or without `started`, withdraws the save. As with a `Turn`, twice, so that
    it is withdrawn whole also where an interrupt hits the withdrawal.
    """

    def __init__(self, writer: Writer, request: Request) -> None:
        self.request = request
        self.future = SaveFuture(request.path)
        self.turn = writer.turns.turn(request.path)
        self.job: _store.Job | None = None
        self.arena: Arena | None = None
        self.claimant: object = None
        """Who ends it: a writer thread, or whoever withdraws it. Guarded by the writer's lock."""
        self.started = False
        self.began = time.perf_counter()
        self.waited = 0.0
        self.capture = 0.0
        self.stall = 0.0
        self.queued = 0.0
        self._writer = writer

    def let_go(self) -> None:
        """Drop the state and the future. The frames of an error keep the task alive for as long as
        nobody asks for the error: clearing them does not reach the frames that called them."""
        self.job = None
        del self.request, self.future

    def __enter__(self) -> Task:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self.started:
            self.withdraw()

    def withdraw(self) -> None:
        """End the save if no writer thread has begun it."""
        self._writer.withdraw(self, "skipped")


class Writer:
    """All background saves of a process. Thread-safe."""

    def __init__(self) -> None:
        self.pool = Pool(2, "genesis-writer")
        self.max_pending_bytes = _quarter_of_memory()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a signal handler may save; guards the fields below
        self._pending: dict[SaveFuture, Task] = {}
        self._reserved: dict[Task, int] = {}
        """Bytes in flight."""
        self._freed: Future[None] = Future()
        self._unseen: list[Failure] = []
        self.turns = Turns()
        self._registered = False

    def reset_after_fork(self) -> None:
        """Start empty, in a forked child, with new locks: another thread may have held the old."""
        pending = self._pending
        self._reset()
        self.pool.reset_after_fork()
        _store.reset_after_fork()
        for future in pending:
            future._disown()

    # Saving

    def save(self, request: Request) -> SaveReport:
        """Save in the calling thread, when it is the path's turn."""
        began = time.perf_counter()
        turn = self.turns.turn(request.path)
        with turn, turn:
            turn.enter()
            turn.wait()
            ready = time.perf_counter()
            request.begin()
            job = request.plan()
            planned = time.perf_counter()
            written = _store.save(request.path, job)
            request.done()
        report = SaveReport(
            path=request.path,
            bytes=written.bytes,
            stall=time.perf_counter() - began,
            capture=planned - ready,
            wait=ready - began,
            write=written.write,
            sync=written.sync,
        )
        log_durable(report)
        return report

    def submit(self, request: Request) -> SaveFuture:
        """Capture in the calling thread, write on a thread of the pool."""
        task = Task(self, request)
        future = task.future
        with task, task:
            for step in self.submission(task):
                if step is task.turn.ready:
                    task.turn.wait()
                step.result()
        return future

    def submission(self, task: Task) -> Iterator[Future[None]]:
        """The steps of a save up to its capture: yields each future that must resolve before it can
        go on.

        The state is captured in the last step, after all waiting. Run the steps in the task's
        context, or a save that stops earlier keeps its turn.
        """
        request = task.request
        task.turn.enter()
        if not task.turn.ready.done():
            if request.on_busy == "skip":
                return
            if request.on_busy == "supersede":
                self._supersede(request.path)
            yield task.turn.ready
        while (freed := self._capture(task)) is not None:
            if request.on_busy == "skip":
                return
            # Planned again afterwards: while an event loop waits here, the state may change.
            yield freed
        self._start(task)

    def _capture(self, task: Task) -> Future[None] | None:
        """Capture the state, or return what must resolve before there is memory for it."""
        request = task.request
        ready = time.perf_counter()
        request.begin()
        task.job = request.plan()
        if (freed := self._reserve(task)) is not None:
            return freed
        task.arena = _store.arenas.take(task.job.size)
        _store.stage(task.job, task.arena, large=request.capture == "copy")
        if request.capture == "copy":
            task.future._resolve_captured()
        task.queued = time.perf_counter()
        task.waited, task.capture = ready - task.began, task.queued - ready
        task.stall = task.queued - task.began
        return None

    def withdraw(self, task: Task, outcome: Outcome) -> None:
        """End a save that no writer thread has begun; harmless where one has."""
        if self._claim(task, (self.withdraw, threading.get_ident())):
            self._finish(task, SaveReport(task.request.path, outcome=outcome, stall=task.stall))

    def _supersede(self, path: str) -> None:
        """Drop the saves of `path` that are queued and not started."""
        with self._lock:
            tasks = [task for task in self._pending.values() if task.request.path == path]
        for task in tasks:
            with task:  # repeats what an interrupt cuts short
                self.withdraw(task, "superseded")

    def _claim(self, task: Task, claimant: object) -> bool:
        """Whether the claimant is the one who ends a task."""
        with self._lock:
            if task.claimant is None:
                task.claimant = claimant
            return task.claimant == claimant

    # Memory

    def _reserve(self, task: Task) -> Future[None] | None:
        """Take a task's share of the bytes in flight, or return a future that resolves when some
        are free again."""
        size = task.job.size if task.job else 0
        with self._lock:
            fits = sum(self._reserved.values()) + size <= self.max_pending_bytes
            # What a signal handler interrupted on this thread frees nothing before it returns.
            beneath = any(other.turn.is_needed_here() for other in tuple(self._reserved))
            if self._reserved and not fits and not beneath:
                if self._freed.done():
                    self._freed = Future()
                return self._freed
            self._reserved[task] = size
            return None

    def _release(self, task: Task) -> None:
        with self._lock:
            self._reserved.pop(task, None)
            freed = self._freed
        with suppress(InvalidStateError):
            freed.set_result(None)

    # Writing

    def _start(self, task: Task) -> None:
        with self._lock:
            self._register_exit()
            self._pending[task.future] = task
        self.pool.submit(self._run, task)
        task.started = True
        task.turn.needed = None

    def _run(self, task: Task) -> None:
        if not self._claim(task, self._run):
            return
        outcome = self._attempt(task)
        if isinstance(outcome, BaseException):
            _forget_frames(outcome)
        self._finish(task, outcome)
        task.let_go()

    def _attempt(self, task: Task) -> SaveReport | BaseException:
        try:
            report = self._write(task)
            task.request.done()
        except BaseException as exc:
            return exc
        return report

    def _write(self, task: Task) -> SaveReport:
        assert task.job is not None
        assert task.arena is not None
        started = time.perf_counter()
        _store.stage_rest(task.job, task.arena, large=task.request.capture == "copy")
        task.job.plan.release()
        staged = time.perf_counter()
        task.future._resolve_captured()
        written = _store.save_staged(task.request.path, task.job, task.arena)
        return SaveReport(
            path=task.request.path,
            bytes=written.bytes,
            stall=task.stall,
            capture=task.capture + staged - started,
            wait=task.waited + started - task.queued,
            write=written.write,
            sync=written.sync,
        )

    def _finish(self, task: Task, outcome: SaveReport | BaseException) -> None:
        """Give back what a task holds, then resolve its future. Each step may be repeated."""
        future = task.future
        failure = Failure(future.path, outcome) if isinstance(outcome, BaseException) else None
        arena, task.arena = task.arena, None
        if arena is not None:
            _store.arenas.give_back(arena)
        self._release(task)
        with self._lock:
            self._pending.pop(future, None)
            kept = [one for one in self._unseen if not one.seen]
            if failure is not None:
                kept.append(failure)
            self._unseen = kept[-_UNSEEN_KEPT:]
        for one in kept[:-_UNSEEN_KEPT]:
            one.log()  # too many for `flush` to raise
        task.turn.leave()
        if failure is not None:
            future._fail(failure)
        elif isinstance(outcome, SaveReport):
            if outcome.outcome == "durable":
                log_durable(outcome)
            future._succeed(outcome)

    # Waiting

    def pending(self, path: str | None = None) -> list[SaveFuture]:
        """The saves, of one path or all, that have not ended."""
        with self._lock:
            return [future for future in self._pending if path in (None, future.path)]

    def flush(self, timeout: float | None = None) -> None:
        """Wait for every background save submitted before the call.

        Raises:
            TimeoutError: some had not ended after `timeout` seconds.
            Exception: the first failure that nobody asked its future for; it and others are logged.
        """
        pending = self.pending()
        if concurrent.futures.wait(pending, timeout).not_done:
            paths = ", ".join(sorted(future.path for future in pending if not future.done()))
            raise TimeoutError(f"not durable after {timeout} seconds: {paths}")
        self.raise_unseen()

    def raise_unseen(self) -> None:
        """Log the failures that nobody has seen; raise the first."""
        unseen = self._take_unseen()
        for failure in unseen:
            failure.log()
        if unseen:
            raise unseen[0].error

    def _take_unseen(self) -> list[Failure]:
        with self._lock:
            unseen = [failure for failure in self._unseen if not failure.seen]
            self._unseen = []
        for failure in unseen:
            failure.seen = True
        return unseen

    # Exit

    def _register_exit(self) -> None:
        """Drain before the interpreter joins its threads, and once more after it: Ctrl-C can break
        the first, and a thread of the program can save during it."""
        if self._registered:
            return
        self._registered = True
        atexit.register(self._drain)
        try:
            threading._register_atexit(self._drain)  # type: ignore[attr-defined]
        except AttributeError:
            pass
        except RuntimeError:
            # This first save of all comes so late that neither hook may be called any more.
            self.pool.inline = True

    def _drain(self) -> None:
        """Wait for every save, whatever signal handlers raise meanwhile; Ctrl-C twice abandons."""
        self.pool.inline = True
        raised: BaseException | None = None
        while True:
            try:
                self._wait_for_all()
                break
            except BaseException as exc:
                if isinstance(exc, KeyboardInterrupt):
                    self._warn_or_abandon(again=isinstance(raised, KeyboardInterrupt))
                raised = exc
        for failure in self._take_unseen():
            failure.log()
        # A handler that calls sys.exit, say, has its way now that nothing can be lost.
        if raised is not None and not isinstance(raised, KeyboardInterrupt):
            raise raised

    def _wait_for_all(self) -> None:
        while pending := self.pending():
            # Not beside threads that do it: what interrupts this one would break off its save.
            if not self.pool.is_running():
                self.pool.help()
            concurrent.futures.wait(pending)

    def _warn_or_abandon(self, *, again: bool) -> None:
        if again:
            self._abandon()
        count = len(self.pending())
        log.warning("%d saves not durable yet; Ctrl-C again abandons them", count)

    def _abandon(self) -> None:
        for future in self.pending():
            log.critical("the save of %s was abandoned; the file there is the old one", future.path)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(130)


def _forget_frames(error: BaseException) -> None:
    """Empty the frames of a traceback, which would keep the state and its arena alive for as long
    as nobody asks for the error."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def _quarter_of_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (ValueError, OSError, AttributeError):
        return 4 << 30


writer = Writer()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: writer.reset_after_fork())
