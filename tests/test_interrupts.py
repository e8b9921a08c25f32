"""Signals at every point where Python may run a handler: that raises, saves, waits, loads or forks.

`interrupting.py` does it, in a process of its own that looks at what is left after each point;
points that hang are named. Here is also what makes it possible: events, futures, threads and
descriptors without a lock of Python's, and blocks that are left twice.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, as_completed, wait
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from contention import DEADLINE, descriptors, run
from tracing import traced

import genesis
from genesis._os.descriptors import Descriptor
from genesis._threads.companions import Companion
from genesis._threads.interrupts import CollectorPaused, Doubled, Event, Thread
from genesis._threads.waiting import OpenFuture

PACKAGE = Path(genesis.__file__).parent
SCRIPT = Path(__file__).parent / "helpers" / "interrupting.py"

OPERATIONS = (
    "plain", "background", "result", "deferred", "supersede", "load", "mapped", "flush",
)  # fmt: skip
ACTS = (
    "raise", "save beside", "save beside and wait", "save elsewhere and wait", "save here",
    "save here behind", "flush", "load", "fork",
)  # fmt: skip
SAMPLED = 41
"""Of so many points the short form tries one, with one act after the other."""
HANGS_AFTER = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a file system: thousands of saves are synced."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def troubles(
    folder: Path, operation: str, act: str, first: int, step: int, threads: int
) -> list[Any]:
    """The points at which something is wrong afterwards, with what; or that hang."""
    found: list[Any] = []
    while True:
        lines, ended = _run(folder, operation, act, first, step, threads)
        found += [json.loads(line) for line in lines if line.startswith("[")]
        if ended:
            return [one for one in found if one]
        tried = [int(line) for line in lines if line.isdigit()]
        found.append([tried[-1] if tried else first, "hangs, or ends the process", lines[-20:]])
        first = (tried[-1] if tried else first) + step


def _run(folder: Path, *args: object) -> tuple[list[str], bool]:
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, args)]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(HANGS_AFTER, process.kill)
        watchdog.start()
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            watchdog.cancel()
            watchdog = threading.Timer(HANGS_AFTER, process.kill)
            watchdog.start()
        watchdog.cancel()
    return lines, process.returncode == 0 and "[]" in lines[-3:]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_at_some_points(operation: str, folder: Path) -> None:
    number = OPERATIONS.index(operation)
    assert troubles(folder, operation, "all", 1 + number, SAMPLED, 1 + number % 2) == []


@pytest.mark.torture
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_at_every_point(operation: str, act: str, threads: int, folder: Path) -> None:
    assert troubles(folder, operation, act, 1, 1, threads) == []


# Blocks that are left twice


def doubled() -> set[str]:
    """The names of all classes whose blocks are to be left twice."""
    import genesis.aio  # noqa: F401

    found: set[str] = set()
    waiting: list[type] = [Doubled]
    while waiting:
        cls = waiting.pop()
        found.add(cls.__name__)
        waiting += cls.__subclasses__()
    return found


def test_every_use_of_a_doubled_block_is_doubled() -> None:
    names = doubled()
    assert {"Turn", "Task", "Replacement", "DirectoryLock", "CollectorPaused"} <= names
    wrong = [place for file in sorted(PACKAGE.rglob("*.py")) for place in not_doubled(file, names)]
    assert wrong == []


def not_doubled(file: Path, names: set[str]) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    held = {**made_by_a_method(tree, names), **made_in(tree, names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            blocks = [ast.unparse(item.context_expr) for item in node.items]
            for item in node.items:
                block = ast.unparse(item.context_expr)
                called = isinstance(item.context_expr, ast.Call) and block.split("(")[0] in names
                if called or (block in held and blocks.count(block) != 2):
                    yield f"{file.name}:{node.lineno}: with {', '.join(blocks)}"


def made_in(tree: ast.AST, names: set[str]) -> dict[str, str]:
    """Variables that are given such a block, or are declared as one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = ast.unparse(node.value.func).rpartition(".")[2]
            if made in names:
                found.update({ast.unparse(target): made for target in node.targets})
        elif isinstance(node, ast.arg) and node.annotation is not None:
            declared = ast.unparse(node.annotation).strip("'\"")
            if declared in names:
                found[node.arg] = declared
    return found


def made_by_a_method(tree: ast.AST, names: set[str]) -> dict[str, str]:
    """Variables that are given what `turn` returns."""
    return {
        ast.unparse(target): "Turn"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith((".turn", "turns.turn"))
        for target in node.targets
    }


def test_a_use_that_is_not_doubled_is_found(tmp_path: Path) -> None:
    file = tmp_path / "uses.py"
    file.write_text(
        "turn = turns.turn(p)\nlock = DirectoryLock(d)\n"
        "with turn:\n    pass\nwith turn, turn:\n    pass\nwith lock as x:\n    pass\n"
        "with DirectoryLock(d), a:\n    pass\n"
        "def f(task: Task):\n    with task:\n        pass\n"
    )
    assert [place.split(":")[1] for place in not_doubled(file, doubled())] == ["3", "7", "9", "12"]


class Failing(Doubled):
    """Cut short in its first leaving."""

    def __init__(self) -> None:
        self.taken = False
        self.left = 0

    def leave(self) -> None:
        self.left += 1
        if self.left == 1:
            raise KeyboardInterrupt
        self.taken = False


def test_the_second_leaving_does_what_the_first_did_not() -> None:
    block = Failing()
    with pytest.raises(KeyboardInterrupt, match=r"^$"), block, block:
        block.taken = True
    assert (block.taken, block.left) == (False, 2)


def test_an_interrupt_before_any_step_leaves_the_collector_on() -> None:
    def pause() -> None:
        paused = CollectorPaused()
        with paused, paused:
            assert not gc.isenabled()

    number = 0
    while interrupted(pause, number):
        assert gc.isenabled(), f"step {number} of Python"
        number += 1
    assert number > 20


def interrupted(call: Callable[[], object], number: int) -> bool:
    """Whether the call has so many steps of Python; it is interrupted before that one.

    In functions that it calls: a step of its own is none after which a signal is looked for."""
    steps = iter(range(number))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_code is not call.__code__ and next(steps, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # not `traced`, whose end would be steps too
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# Events


def test_an_event_wakes_all_who_wait_and_those_who_come_later() -> None:
    event = Event()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(event.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert not event.wait(0)
    assert not event.wait(0.01)
    event.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert woken == [True] * 5
    assert event.wait(0)
    event.set()
    event.clear()
    assert not event.wait(0)


def test_an_event_that_comes_when_a_thread_lies_down_is_not_missed() -> None:
    for _ in range(300):
        event = Event()
        thread = threading.Thread(target=event.set)
        thread.start()
        assert event.wait(DEADLINE)
        thread.join()


def test_an_interrupted_wait_leaves_nothing_behind() -> None:
    event = Event()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyError("of the handler")))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(KeyError, match="of the handler"):
        event.wait(DEADLINE)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert not event._sleepers


# Futures


def test_the_outcome_is_the_first_and_a_second_is_refused() -> None:
    future: OpenFuture[int] = OpenFuture()
    future.set_result(3)
    for again in (lambda: future.set_result(4), lambda: future.set_exception(KeyError())):
        with pytest.raises(InvalidStateError, match="FINISHED"):
            again()
    assert (future.result(0), future.exception(0), future.done()) == (3, None, True)
    assert not future.cancel()
    assert repr(future).startswith("<OpenFuture at ")


def test_a_cut_short_resolution_is_finished_by_the_next() -> None:
    future: OpenFuture[int] = OpenFuture()
    future._ended.setdefault("as", ("FINISHED", 3, None))  # all that the first one came to
    assert not future.done()
    with pytest.raises(InvalidStateError, match="FINISHED"):
        future.set_result(4)
    assert future.result(0) == 3


def test_threads_that_resolve_a_future_at_once_agree() -> None:
    for _ in range(50):
        future: OpenFuture[int] = OpenFuture()
        barrier, won = threading.Barrier(4), []

        def resolve(
            number: int, future: Any = future, barrier: Any = barrier, won: Any = won
        ) -> None:
            barrier.wait(DEADLINE)
            try:
                future.set_result(number)
            except InvalidStateError:
                return
            won.append(number)

        threads = [threading.Thread(target=resolve, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        found = future.result(DEADLINE)
        for thread in threads:
            thread.join(DEADLINE)
        assert won == [found]


def test_wait_and_as_completed_of_the_standard_library() -> None:
    futures: list[Future[int]] = [OpenFuture() for _ in range(20)]
    futures += [Future() for _ in range(5)]
    done: OpenFuture[int] = OpenFuture()
    done.set_result(-1)

    def resolve() -> None:
        for number, future in enumerate(futures):
            future.set_result(number)

    thread = threading.Thread(target=resolve)
    thread.start()
    assert wait([done, *futures], DEADLINE).not_done == set()
    thread.join()
    assert sorted(future.result() for future in as_completed([done, *futures], DEADLINE)) == [
        -1,
        *range(25),
    ]
    pending: OpenFuture[int] = OpenFuture()
    found = wait([done, pending], DEADLINE, FIRST_COMPLETED)
    assert (found.done, found.not_done) == ({done}, {pending})
    with pytest.raises(TimeoutError, match="1 \\(of 2\\) futures unfinished"):
        list(as_completed([done, pending], 0.01))
    assert wait([pending], 0.01).not_done == {pending}
    assert not pending._wakers


def test_futures_that_resolve_while_they_are_waited_for_are_counted_once() -> None:
    for _ in range(100):
        futures: list[OpenFuture[int]] = [OpenFuture() for _ in range(6)]
        threads = [threading.Thread(target=future.set_result, args=(1,)) for future in futures]
        for thread in threads:
            thread.start()
        found = wait(futures, DEADLINE)
        assert found.not_done == set()
        assert all(future.done() for future in found.done)
        for thread in threads:
            thread.join()


def test_a_thread_interrupted_in_wait_keeps_nobody_from_resolving() -> None:
    """Ctrl-C where the standard library holds what it takes for the lock of a future."""
    future: OpenFuture[int] = OpenFuture()
    future._condition.acquire()
    future._condition.__enter__()
    thread = threading.Thread(target=future.set_result, args=(3,))
    thread.start()
    thread.join(DEADLINE)
    assert future.result(DEADLINE) == 3
    assert future.done()


def test_callbacks_come_once_in_order_and_an_exit_among_them_stops_none() -> None:
    called: list[str] = []

    def leave(_: object) -> None:
        called.append("leave")
        raise SystemExit(3)

    future: OpenFuture[int] = OpenFuture()
    future.add_done_callback(leave)
    future.add_done_callback(lambda _: called.append("second"))
    future._when_done(lambda: called.append("woken"))
    thread = threading.Thread(target=future.set_result, args=(1,))
    thread.start()
    thread.join(DEADLINE)
    assert called == ["woken", "leave", "second"]
    future.add_done_callback(lambda _: called.append("late"))
    future._when_done(lambda: called.append("late too"))
    assert called[3:] == ["late", "late too"]


# Threads


def test_the_start_of_a_thread_may_be_cut_short() -> None:
    """The standard library's then waits for a lock that nobody gives back."""
    ran = threading.Event()
    thread = Thread(ran.set, "genesis-test")

    def interrupt(frame: Any, event: str, _: object) -> Any:
        if event == "call" and frame.f_code.co_name == "wait":
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    with traced(interrupt), pytest.raises(KeyboardInterrupt, match=r"^$"):
        thread.start()
    assert ran.wait(DEADLINE)
    thread.join(DEADLINE)
    assert not thread.is_alive()


# Descriptors


def test_a_descriptor_is_closed_once_and_knows_whether_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    before = descriptors()
    file = Descriptor()
    assert not file
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.number  # noqa: B018
    file.open(os.open, str(tmp_path / "f"), os.O_RDONLY)
    assert os.read(file.number, 1) == b"x"
    file.close()
    file.close()
    assert not file
    file.open(os.open, str(tmp_path / "f"), os.O_RDONLY)
    del file
    assert descriptors() == before


def test_what_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    file = Descriptor()
    with pytest.raises(FileNotFoundError, match="No such file"):
        file.open(os.open, str(tmp_path / "f"), os.O_RDONLY)
    assert not file


def test_a_forked_child_has_none_of_them(tmp_path: Path) -> None:
    script = """
import os, sys
from genesis._os.descriptors import Descriptor
file = Descriptor()
file.open(os.open, sys.argv[1], os.O_RDONLY)
number = file.number
child = os.fork()
if child == 0:
    try:
        os.fstat(number)
    except OSError:
        os._exit(1 if file else 0)
    os._exit(2)
print(os.waitpid(child, 0)[1], bool(file), file.number == number, os.fstat(number) is not None)
"""
    status, output, errors = run(script, tmp_path)
    assert (status, output) == (0, "0 True True True\n"), errors


def test_a_recursion_error_of_a_handler_ends_the_save(tmp_path: Path) -> None:
    def too_deep(_number: int, _frame: FrameType | None) -> None:
        raise RecursionError("from the handler")

    class Interrupts:
        def __getstate__(self) -> dict[str, int]:
            if signal.getsignal(signal.SIGUSR1) is too_deep:
                os.kill(os.getpid(), signal.SIGUSR1)
            return {}

    before = signal.signal(signal.SIGUSR1, too_deep)
    try:
        with pytest.raises(RecursionError, match="from the handler"):
            genesis.save([Interrupts(), lambda: 1], tmp_path / "p")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not (tmp_path / "p").exists()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="threading has no such lock")
def test_the_end_of_a_thread_is_awaited_without_a_lock_that_new_threads_need() -> None:
    # A handler that interrupts the waiting, and starts a thread, would wait for ever.
    companion = Companion(lambda: None)
    begin, ended = threading.Event(), threading.Event()
    waiting = threading.Thread(
        target=lambda: (begin.wait(DEADLINE), companion.wait(), ended.set()), daemon=True
    )
    waiting.start()
    companion.start()
    lock: Any = getattr(threading, "_shutdown_locks_lock")  # noqa: B009
    with lock:
        begin.set()
        assert ended.wait(10)
    waiting.join()
