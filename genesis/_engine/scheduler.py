"""The writer: background saves on a few threads, in order for each path, within a bound of memory.

It knows when and on which thread; `_file.writer` knows what a save is.

Guarantees:
- Saves of one path, background or not, become durable in the order of the calls.
- A save is captured, at the latest, when its future says so; what the caller changes afterwards is
  not in the file.
- Bytes staged and not yet durable stay below `max_pending_bytes`, but one save of any size is
  always let through, and one that takes another's place is copied beside it. Saves that wait for
  memory get it in the order of asking.
- A save that supersedes another is captured before the other is dropped.
- Every submitted save ends: durable, superseded or failed. A failure that nobody asks its future
  for is logged, and raised by the next `flush`; never twice.
- Done-callbacks run on threads that write nothing; `flush` waits for them, and raises their errors.
- The interpreter does not exit before all are done; once it has begun to, saves run in the caller.
- A signal handler may call anything here wherever it runs. No thread that writes waits for a thread
  that calls: there is no lock, each step is one call of C on a dict or a deque. What would wait for
  the frame that the handler interrupted raises instead.
- A forked child starts empty. Its parent's saves go on in the parent.

A race that decides the order of the last steps of a save:
  1. the writer resolves the future; 2. its caller, woken, saves the same path again and finds the
  turn taken and the arena in use; 3. it waits for nothing, or makes a second arena.
So the turn, the memory and the dict are given back first, and the future is resolved last.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from .._file import writer
from .._file.layout import Mark
from .._options import SaveChoices
from .._os.staging import Arena
from .._progress import Progress
from .._threads.interrupts import Doubled, Event
from .._threads.pool import Pool
from .._threads.waiting import OpenFuture
from .futures import Failure, Outcome, SaveFuture, SaveReport, log, log_durable, logs_durable_nowait
from .queues import Turns, locked_here
from .statistics import FAILED, Counter, of_save

_UNSEEN_KEPT = 100


_LONG_TO_TOUCH = 32 << 20
"""Bytes of fresh memory whose first touch holds an event loop for longer than anybody expects of a
coroutine: a second for a gigabyte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(SaveChoices):
    """One call of `save`, in terms of the writer: its options, and these."""

    path: str
    state: object
    done: Callable[[], None] = lambda: None
    """Called when the file is durable, before the save's turn ends."""
    begin: Callable[[], None] = lambda: None
    """Called when the state is about to be captured, which may be long after the call of `save`."""
    mark: Callable[[float | None], Mark] | None = None
    """What a manager notes in the file, given the stall where that is known. Called when the state
    is captured, on the thread that writes."""

    def plan(self) -> writer.Job:
        """Pickle the structure of the state as it is now. Raises as `_file.writer.plan`."""
        return writer.plan(self.state, self.metadata, sharded=self.sharded)


class Task(Doubled):
    """A background save, from its first step to its last: all that it has to give back.

    Use it as a context manager around what may fail before a writer thread has it: leaving the
    block with an error, or without `started`, withdraws the save.

    Args:
        make_present: touches so many bytes of fresh memory on another thread, for who must not be
            held by it; without it they are touched as they are copied to.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: Request,
        make_present: Callable[[int], OpenFuture[None]] | None = None,
    ) -> None:
        self.path = request.path
        self.request = request
        self.turn = scheduler.turns.turn(request.path)
        self.last_turn = scheduler.last_turns.turn(request.path)
        """To call the callbacks, in the order of the saves."""
        self.future = SaveFuture(request.path, self.turn.refuse_deadlock, scheduler.remember)
        self.future._progress = Progress(request.progress, request.path)
        self.job: writer.Job | None = None
        self.arena: Arena | None = None
        self.at_once: writer.Select = bool
        """What was copied before the call returned."""
        self.claim: dict[str, object] = {}
        """Under "by": who ends it, a writer thread or whoever withdraws it."""
        self.failure: Failure | None = None
        self.ended = Event()
        """Set when its callbacks have returned."""
        self.replaces: list[Task] = []
        """What is dropped when this is captured."""
        self.make_present = make_present
        self.touched: OpenFuture[None] | None = None
        """Resolves when fresh memory for the state is present."""
        self.started = False
        self.counted: dict[str, object] = {}
        """Under "by": who has added it to the statistics."""
        self.calls_back = False
        """Whether its end is left to the thread that calls its callbacks."""
        self.began = time.perf_counter()
        self.waited = 0.0
        self.capture = 0.0
        self.stall = 0.0
        self.queued = 0.0
        self._writer = scheduler

    def let_go(self) -> None:
        """Drop the state. The frames of an error keep the task alive for as long as nobody asks for
        the error: clearing them does not reach the frames that called them."""
        self.job = None
        del self.request, self.future

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is not None and not self.started:
            self._writer.count(self, FAILED)
        if kind is not None or not self.started:
            self.withdraw()

    def withdraw(self) -> None:
        """End the save if no writer thread has begun it."""
        self._writer.withdraw(self, "skipped")


class _Running(Doubled):
    """A save while it is written: whatever comes, it ends."""

    def __init__(self, scheduler: Scheduler, task: Task) -> None:
        self._writer = scheduler
        self._task = task
        self.outcome: SaveReport | BaseException | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self.outcome = self.outcome or error
        assert self.outcome is not None
        self._writer.finish(self._task, self.outcome)


class Scheduler:
    """All background saves of a process. Thread-safe."""

    def __init__(self) -> None:
        self.pool = Pool(2, "genesis-writer")
        self.callbacks = Pool(8, "genesis-callbacks")
        self.max_pending_bytes = _quarter_of_memory()
        self.changing: dict[object, Callable[[], writer.Changes]] = {}
        """Asked at each deferred capture for memory that changes before the rest is copied."""
        self._reset()

    def _reset(self) -> None:
        self._pending: dict[SaveFuture, Task] = {}
        """What was handed to a writer thread, until its callbacks have returned."""
        self._reserved: dict[Task, int] = {}
        """Bytes in flight, and what waits to be, in the order of asking."""
        self._short: dict[Task, OpenFuture[None]] = {}
        """What waits for memory. Each future resolves when there may be some."""
        self._unseen: deque[Failure] = deque()
        self.turns = Turns()
        self.last_turns = Turns()
        self.statistics = Counter()
        self._registered = False

    def reset_after_fork(self) -> None:
        """Start empty, in a forked child."""
        pending = self._pending
        self._reset()
        self.pool.reset_after_fork()
        self.callbacks.reset_after_fork()
        writer.reset_after_fork()
        for future in pending:
            future._disown()

    # Saving

    def save(self, request: Request) -> SaveReport:
        """Save in the calling thread, when it is the path's turn."""
        try:
            report = self._save(request)
        except BaseException:
            self.statistics.add(FAILED)
            raise
        self.statistics.add(of_save(report))
        log_durable(report)
        return report

    def _save(self, request: Request) -> SaveReport:
        began = time.perf_counter()
        turn = self.turns.turn(request.path)
        with turn, turn:
            turn.enter()
            turn.wait()
            ready = time.perf_counter()
            request.begin()
            job = request.plan()
            planned = time.perf_counter()
            if request.mark is not None:
                job = job.marked(request.mark(None))
            progress = Progress(request.progress, request.path)
            with progress.running(job.size):
                written = writer.save(request.path, job, progress.add)
            request.done()
        return SaveReport(
            path=request.path,
            bytes=written.bytes,
            stall=time.perf_counter() - began,
            capture=planned - ready,
            wait=ready - began,
            write=written.write,
            sync=written.sync,
        )

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

    def submission(self, task: Task) -> Iterator[OpenFuture[None]]:
        """The steps of a save up to its capture: yields each future that must resolve before it can
        go on.

        The state is captured in the last step, after all waiting. Run the steps in the task's
        context, or a save that stops earlier keeps its turn.
        """
        on_busy = task.request.on_busy
        task.turn.enter()
        if not task.turn.ready.done():
            if on_busy == "skip":
                return
            if on_busy == "supersede":
                task.replaces = self._queued_before(task)
            if task.replaces:
                # Captured first: if that fails, or is cancelled while it waits for memory, the
                # older state is what there is.
                yield from self._until_captured(task)
                self._drop(task.replaces)
                task.replaces = []
            if not task.turn.ready.done():
                yield task.turn.ready
        if task.arena is None:
            yield from self._until_captured(task)
        if task.arena is not None:
            self._start(task)

    def _until_captured(self, task: Task) -> Generator[OpenFuture[None], None, None]:
        """Capture the state, or nothing where that would have to wait and is to be skipped."""
        while (step := self._capture(task)) is not None:
            if task.request.on_busy == "skip" and step is not task.touched:
                return
            # Planned again afterwards: while an event loop waits here, the state may change.
            yield step

    def _capture(self, task: Task) -> OpenFuture[None] | None:
        """Capture the state, or return what must resolve before there is memory for it."""
        request = task.request
        began = time.perf_counter()
        request.begin()
        task.job = request.plan()
        if (freed := self._reserve(task, task.job.size)) is not None:
            return freed
        if (touched := self._touch(task, task.job.size)) is not None:
            return touched
        task.arena = writer.arenas.take(task.job.size)
        large = request.capture == "copy"
        changing = () if large else [each() for each in tuple(self.changing.values())]
        task.at_once = writer.taken_at_once(large=large, changing=changing)
        writer.stage(task.job, task.arena, task.at_once)
        if request.capture == "copy":
            task.future._resolve_captured()
        task.capture = time.perf_counter() - began
        return None

    def _touch(self, task: Task, size: int) -> OpenFuture[None] | None:
        """Have memory for a state made present, where the task must not be held by that. Once: with
        other saves about, the memory may be theirs by the time."""
        if task.make_present is None or task.touched is not None or size < _LONG_TO_TOUCH:
            return None
        if not writer.arenas.holds(size):
            task.touched = task.make_present(size)
        return task.touched

    def withdraw(self, task: Task, outcome: Outcome) -> None:
        """End a save that no writer thread has begun; harmless where one has."""
        if self._claim(task, ("withdraws", threading.get_ident())):
            self.finish(task, SaveReport(task.path, outcome=outcome, stall=task.stall))

    def _queued_before(self, task: Task) -> list[Task]:
        """What a save would replace: nothing, unless all that stands before it is queued and not
        started, so that it is the next when those are dropped."""
        before = task.turn.before()
        queued = [other for other in self._tasks() if other.turn in before and not other.claim]
        return queued if len(queued) == len(before) else []

    def _drop(self, queued: list[Task]) -> None:
        for task in queued:
            with task, task:
                self.withdraw(task, "superseded")

    def _claim(self, task: Task, claimant: object) -> bool:
        """Whether the claimant is the one who ends a task."""
        return task.claim.setdefault("by", claimant) == claimant

    # Memory

    def _reserve(self, task: Task, size: int) -> OpenFuture[None] | None:
        """Take a task's share of the bytes in flight, or return a future that resolves when there
        may be room.

        Race: 1. it finds no room; 2. room is made, and nobody is found who waits for it; 3. it
        waits. So it stands in line first, and looks then.
        """
        freed = self._short[task] = OpenFuture()
        self._reserved[task] = size  # the place in the line stays the one of the first time
        # What a signal handler interrupted on this thread frees nothing before it returns.
        if self._fits(task) or locked_here() or self._is_needed_here(task):
            self._short.pop(task, None)
            return None
        return freed

    def _fits(self, task: Task) -> bool:
        sizes = self._reserved.copy()
        for other in task.replaces:
            sizes.pop(other, None)
        if next(reversed(sizes)) is task:
            total = sum(sizes.values())
            return total == sizes[task] or total <= self.max_pending_bytes
        return any(fit is task for fit in self._fitting(sizes))

    def _fitting(self, sizes: dict[Task, int]) -> Iterator[Task]:
        """Those for whom there is memory when all before them have theirs."""
        total = 0
        for task, size in sizes.items():
            if not total or total + size <= self.max_pending_bytes:
                yield task
            total += size

    def _is_needed_here(self, task: Task) -> bool:
        others = tuple(self._reserved)
        return any(other.turn.is_needed_here() for other in others if other is not task)

    def _release(self, task: Task) -> None:
        self._short.pop(task, None)
        self._reserved.pop(task, None)
        if self._short:
            for other in self._fitting(self._reserved.copy()):
                if (freed := self._short.get(other)) is not None:
                    with suppress(InvalidStateError):
                        freed.set_result(None)

    # Writing

    def _start(self, task: Task) -> None:
        self._register_exit()
        task.queued = time.perf_counter()
        task.stall = task.queued - task.began
        task.waited = task.stall - task.capture
        self._pending[task.future] = task
        self.pool.submit(self._run, task)
        task.started = True
        if not task.claim:
            task.turn.needed = None

    def _run(self, task: Task) -> None:
        if not self._claim(task, "a writer"):
            return
        task.turn.needed = threading.get_ident()
        running = _Running(self, task)
        with running, running:
            outcome = self._attempt(task)
            if isinstance(outcome, BaseException):
                _forget_frames(outcome)
            running.outcome = outcome
            is_logged = isinstance(outcome, BaseException) or logs_durable_nowait(outcome)
        task.let_go()
        if isinstance(outcome, SaveReport) and not is_logged:
            log_durable(outcome)  # last of all, when nobody waits for this thread

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
        late = task.request.capture == "deferred"
        writer.stage_rest(task.job, task.arena, task.at_once, late=late)
        task.job.plan.release()
        staged = time.perf_counter()
        task.future._resolve_captured()
        if task.request.mark is not None:
            task.job = task.job.marked(task.request.mark(task.stall))
        progress = task.future._progress
        with progress.running(task.job.size):
            written = writer.save_staged(task.request.path, task.job, task.arena, progress.add)
        return SaveReport(
            path=task.request.path,
            bytes=written.bytes,
            stall=task.stall,
            capture=task.capture + staged - started,
            wait=task.waited + started - task.queued,
            write=written.write,
            sync=written.sync,
        )

    def finish(self, task: Task, outcome: SaveReport | BaseException) -> None:
        """Give back what a task holds, then resolve its future. Each step may be repeated."""
        arena, task.arena = task.arena, None
        if arena is not None:
            writer.give_back(arena)
        self._release(task)
        if isinstance(outcome, BaseException) and task.failure is None:
            task.failure = Failure(task.path, outcome)
            self.remember(task.failure)
        self.count(task, of_save(outcome))
        if not task.calls_back:
            task.last_turn.enter()
        task.turn.leave()
        if task.failure is not None:
            task.future._fail(task.failure)
        elif isinstance(outcome, SaveReport):
            task.future._succeed(outcome)
        self._end(task, task.future)

    def count(self, task: Task, what: tuple[float, ...]) -> None:
        """Add what became of a save to the statistics, once."""
        me = object()
        if task.counted.setdefault("by", me) is me:
            self.statistics.add(what)

    def _end(self, task: Task, future: SaveFuture) -> None:
        if future._has_callbacks():
            task.calls_back = True
            task.last_turn.ready._when_done(lambda: self._hand_over(task, future))
        elif not task.calls_back:
            self._settle(task, future)

    def remember(self, failure: Failure) -> None:
        """Keep an error for the next `flush`; drop the oldest that somebody has seen, and log the
        oldest where there are too many."""
        self._unseen.append(failure)
        with suppress(IndexError):  # another thread was faster
            while self._unseen[0].seen or len(self._unseen) > _UNSEEN_KEPT:
                oldest = self._unseen.popleft()
                if not oldest.seen:
                    oldest.log()

    def _hand_over(self, task: Task, future: SaveFuture) -> None:
        """Have the callbacks of a save called: after those that this thread is calling, or on a
        thread of their own."""
        if _here.calls_back:
            _here.next_calls.append((task, future))
        else:
            self.callbacks.submit(self._call_back, task, future)

    def _call_back(self, task: Task, future: SaveFuture) -> None:
        _here.next_calls.append((task, future))
        _here.calls_back = True
        try:
            while _here.next_calls:
                task, future = _here.next_calls.popleft()
                try:
                    future._call_back()
                finally:
                    # A step that was repeated has two threads here: the last one to end settles.
                    if not future._is_calling_back():
                        self._settle(task, future)
        finally:
            _here.calls_back = False

    def _settle(self, task: Task, future: SaveFuture) -> None:
        task.last_turn.leave()
        self._pending.pop(future, None)
        task.ended.set()

    # Waiting

    def _tasks(self) -> list[Task]:
        return list(self._pending.copy().values())

    def pending(self) -> list[SaveFuture]:
        """The saves that have not ended."""
        return [future for future in tuple(self._pending) if not future.done()]

    def wait_captured(self) -> None:
        """Wait until each state that was submitted may be changed. What failed is nobody's concern
        here: who asks for the save hears of it.

        Raises:
            RuntimeError: one was interrupted on this thread and cannot go on before this returns.
        """
        for future in tuple(self._pending):
            if not future.captured:
                future._wait_until_captured()

    def settle(self, path: str) -> None:
        """Wait until the background saves of a path that were submitted have ended, well or not.

        Raises:
            RuntimeError: one was interrupted on this thread and cannot end before this returns.
        """
        for future in self.pending():
            if future.path == path:
                future._wait_ended()

    def flush(self, timeout: float | None = None) -> None:
        """Wait for every background save submitted before the call, and for its callbacks. In a
        callback, which may be one of those, for the saves alone.

        Raises:
            TimeoutError: some had not ended after `timeout` seconds.
            RuntimeError: one was interrupted on this thread and cannot end before this returns. The
                others have ended.
            Exception: the first failure that nobody asked its future for; it and others are logged.
        """
        self.wait_for(self.under_way(), timeout)
        self.raise_unseen()

    def under_way(self) -> list[tuple[SaveFuture, Task]]:
        """What a `flush` of now waits for."""
        return list(self._pending.copy().items())

    def wait_for(self, tasks: list[tuple[SaveFuture, Task]], timeout: float | None) -> None:
        """Wait for saves and their callbacks. Raises as `flush`, but no failure of a save."""
        deadline = None if timeout is None else time.monotonic() + timeout
        stuck: RuntimeError | None = None
        late: list[str] = []
        for future, task in tasks:
            try:
                if not self._ended_by(deadline, task, future):
                    late.append(future.path)
            except RuntimeError as exc:
                stuck = stuck or exc
        if late:
            paths = ", ".join(sorted(late))
            raise TimeoutError(f"not durable after {timeout} seconds: {paths}")
        if stuck is not None:
            raise stuck

    def _ended_by(self, deadline: float | None, task: Task, future: SaveFuture) -> bool:
        if not future._wait_ended(_seconds_to(deadline)):
            return False
        return _here.calls_back or task.ended.wait(_seconds_to(deadline))

    def raise_unseen(self) -> None:
        """Log the failures that nobody has seen; raise the first."""
        unseen = self._take_unseen()
        for failure in unseen:
            failure.log()
        if unseen:
            raise unseen[0].error

    def _take_unseen(self) -> list[Failure]:
        unseen = []
        while self._unseen:
            with suppress(IndexError):  # another thread was faster
                unseen.append(self._unseen.popleft())
        unseen = [failure for failure in unseen if not failure.seen]
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
            self.pool.inline = self.callbacks.inline = True

    def _drain(self) -> None:
        """Wait for every save, whatever signal handlers raise meanwhile; Ctrl-C twice abandons."""
        self.pool.inline = self.callbacks.inline = True
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
        while tasks := self._tasks():
            for pool in (self.pool, self.callbacks):
                # Not beside threads that do it: what interrupts this one would break off its save.
                if not pool.is_running():
                    pool.help()
            for task in tasks:
                task.ended.wait()

    def _warn_or_abandon(self, *, again: bool) -> None:
        if again:
            self._abandon()
        saves = len(self.pending())
        callbacks = len(self._pending) - saves
        if saves or not callbacks:
            log.warning("%d saves not durable yet; Ctrl-C again abandons them", saves)
        else:
            log.warning("%d callbacks not done yet; Ctrl-C again abandons them", callbacks)

    def _abandon(self) -> None:
        for future in self.pending():
            log.critical("the save of %s was abandoned; the file there is the old one", future.path)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(130)


class _Here(threading.local):
    """What the calling thread does."""

    def __init__(self) -> None:
        self.calls_back = False
        self.next_calls: deque[tuple[Task, SaveFuture]] = deque()


_here = _Here()


def _seconds_to(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


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


scheduler = Scheduler()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: scheduler.reset_after_fork())
