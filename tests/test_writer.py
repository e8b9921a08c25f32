"""The writer when it is interrupted, called from within itself, or forked, at the worst moments.

What could hang runs in a process of its own, with a watchdog that says where it hung.
"""

from __future__ import annotations

import asyncio
import itertools
import linecache
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from contention import (
    DEADLINE,
    HELPERS,
    busy_writer,
    default_budget,
    descriptors,
    exit_status,
    fork,
    held,
    is_waited_for,
    join_threads,
    litter,
    run,
    start_save,
    until,
)
from tracing import traced

import genesis

MOST_TROUBLE = 400
"""Lines to report; each costs seconds."""

WATCHDOG = "import faulthandler; faulthandler.dump_traceback_later(60, exit=True)\n"


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)


class Acting:
    """Does something in the middle of being pickled, which is in the middle of a save."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __reduce__(self) -> Any:
        self._act()
        return int, (7,)


def is_idle(path: Path) -> bool:
    """Whether a save of this path would not have to wait for anything."""
    save = genesis.save({"n": "old"}, path, background=True, on_busy="skip")
    return save.result(DEADLINE).outcome == "durable"


def in_child(check: Callable[[], bool], seconds: int = 60) -> int:
    """Fork; the child's exit status is 0 where `check` holds there, 1 where it does not, negative
    where it does not end."""
    child = fork()
    if child:
        return exit_status(child)
    status = 1
    try:
        signal.alarm(seconds)
        status = 0 if check() else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


# A save inside a save


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_a_save_of_another_path_from_inside_a_save(
    tmp_path: Path, outer: bool, inner: bool
) -> None:
    def save() -> None:
        genesis.save({"n": "inner"}, tmp_path / "inner", background=inner)

    genesis.save({"x": Acting(save), "n": "outer"}, tmp_path / "outer", background=outer)
    genesis.flush(DEADLINE)
    assert genesis.load(tmp_path / "outer") == {"x": 7, "n": "outer"}
    assert genesis.load(tmp_path / "inner") == {"n": "inner"}


SAVES_ITS_OWN_PATH = """
import sys, genesis
outer, inner = (word == "background" for word in sys.argv[2:])
class Acting:
    def __reduce__(self):
        try:
            genesis.save({"n": "inner"}, sys.argv[1], background=inner)
        except Exception as exc:
            print("refused:", exc)
        return int, (7,)
genesis.save({"n": Acting()}, sys.argv[1], background=outer)
genesis.flush()
print(genesis.load(sys.argv[1]))
"""


@pytest.mark.parametrize("inner", ["plain", "background"])
@pytest.mark.parametrize("outer", ["plain", "background"])
def test_a_save_of_the_same_path_from_inside_a_save_does_not_hang(
    tmp_path: Path, outer: str, inner: str
) -> None:
    status, output, errors = run(WATCHDOG + SAVES_ITS_OWN_PATH, tmp_path / "f", outer, inner)
    assert status == 0, errors
    assert output.splitlines()[-1] == "{'n': 7}"


SAVES_IN_A_SIGNAL_HANDLER = """
import os, signal, sys, genesis
folder, name = sys.argv[1:]
def preempted(*_):
    try:
        genesis.save({"n": "preempted"}, f"{folder}/{name}")
    except Exception as exc:
        print("refused:", exc)
signal.signal(signal.SIGTERM, preempted)
class Interrupted:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return int, (7,)
genesis.save({"n": Interrupted()}, f"{folder}/f")
print(sorted(os.listdir(folder)))
"""


@pytest.mark.parametrize("name", ["f", "last"])
def test_a_signal_handler_may_save_in_the_middle_of_a_save(tmp_path: Path, name: str) -> None:
    """What a preempted job does in its last seconds."""
    status, output, errors = run(WATCHDOG + SAVES_IN_A_SIGNAL_HANDLER, tmp_path, name)
    assert status == 0, errors
    assert output.splitlines()[-1] == str(sorted({"f", name}))


# Signals at every line of a save

PACKAGE = str(Path(genesis.__file__).parent)


class AtLine:
    """A trace function that calls `act` before the `number`-th line of genesis that is run, which
    is when a signal handler of Python's might run.

    It does not run where a with block is left: tracing stops there once more at the line of the
    `with`, but the interpreter looks for signals only inside of it and when it has been left.
    """

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.where = ""
        self._left = number
        self._act = act
        self._entered: set[tuple[FrameType, int]] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and not self._leaves_a_block(frame):
            self._left -= 1
            if not self._left:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                self._act()
        return self

    def _leaves_a_block(self, frame: FrameType) -> bool:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if not line.lstrip().startswith("with "):
            return False
        again = (frame, frame.f_lineno) in self._entered
        self._entered.add((frame, frame.f_lineno))
        return again


def interrupt() -> None:
    raise KeyboardInterrupt


def save_at_line(folder: Path, number: int, act: Callable[[], object], background: bool) -> str:
    """Save with `act` before one line; return which, or nothing where there are fewer lines."""
    trace = AtLine(number, act)
    with traced(trace), suppress(KeyboardInterrupt):
        genesis.save({"n": "new"}, folder / "f", background=background)
    return trace.where


def check_writer(folder: Path) -> None:
    """Raise unless everything has ended, every path is free, and so is all memory."""
    genesis.flush(20)
    assert genesis.load(folder / "f")["n"] in ("old", "new")
    genesis.configure(max_pending_bytes=1)
    for name in ("f", "handler"):
        assert is_idle(folder / name)
    join_threads()
    assert litter(folder) == []


def trouble(folder: Path, act: Callable[[], object], background: bool) -> Iterator[str]:
    """The lines at which a signal leaves a writer that does not work, each tried in a child."""
    place = tempfile.TemporaryFile
    for number in itertools.count(1):
        with place("w+") as said:

            def check(number: int = number, said: Any = said) -> bool:
                said.write(save_at_line(folder, number, act, background))
                said.flush()
                check_writer(folder)
                return True

            status = in_child(check, seconds=30)
            said.seek(0)
            where = said.read()
        if status:
            yield f"{where or number} ({status})"
        elif not where:
            return


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["interrupt", "save", "save of the same path"])
@pytest.mark.parametrize("background", [False, True])
def test_a_signal_at_any_line_of_a_save_leaves_a_writer_that_works(
    tmp_path: Path, background: bool, kind: str
) -> None:
    """As in a notebook whose user stops a cell and runs the next, or in a job that is preempted and
    saves in its handler. A refusal to save there is as good, a deadlock is not."""

    def save_in_handler() -> None:
        genesis.configure(max_pending_bytes=1)  # nor may it wait for memory that it interrupted
        name = "handler" if kind == "save" else "f"
        with suppress(RuntimeError):
            genesis.save({"n": "new"}, tmp_path / name, background=True)

    genesis.save({"n": "old"}, tmp_path / "f")
    genesis.flush(DEADLINE)
    join_threads()
    act = interrupt if kind == "interrupt" else save_in_handler
    assert list(itertools.islice(trouble(tmp_path, act, background), MOST_TROUBLE)) == []


# Ctrl-C at chosen moments


@pytest.fixture
def main_thread() -> int:
    assert threading.current_thread() is threading.main_thread()
    return os.getpid()


NOTED = r"^(\nwhen serializing .*)*$"
"""An exception without a message, but for what Python 3.14 notes at whatever comes out of a
pickler: the place where that was."""


@pytest.mark.parametrize("background", [False, True])
def test_an_interrupt_while_the_state_is_captured_withdraws_the_save(
    tmp_path: Path, background: bool
) -> None:
    genesis.save({"n": "old"}, tmp_path / "f")
    state = {"x": np.ones(1000), "y": Acting(lambda: signal.raise_signal(signal.SIGINT))}
    before = descriptors()
    with pytest.raises(KeyboardInterrupt, match=NOTED):
        genesis.save(state, tmp_path / "f", background=background)
    assert set(state) == {"x", "y"}
    assert genesis.load(tmp_path / "f") == {"n": "old"}
    assert is_idle(tmp_path / "f")
    join_threads()
    assert descriptors() == before


def test_an_interrupt_in_the_middle_of_a_synchronous_save_rolls_it_back(
    tmp_path: Path, main_thread: int
) -> None:
    def interrupt() -> None:
        until(lambda: is_waited_for(tmp_path))
        os.kill(main_thread, signal.SIGINT)

    genesis.save({"n": "old"}, tmp_path / "f")
    state = {"n": "new"}
    before = descriptors()
    thread = threading.Thread(target=interrupt)
    with held(tmp_path):
        thread.start()
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            genesis.save(state, tmp_path / "f")
    thread.join(DEADLINE)
    assert state == {"n": "new"}
    assert descriptors() == before
    assert genesis.load(tmp_path / "f") == {"n": "old"}
    assert litter(tmp_path) == []
    assert is_idle(tmp_path / "f")


@pytest.mark.parametrize("background", [False, True])
def test_an_interrupt_while_a_save_waits_for_its_turn_withdraws_it(
    tmp_path: Path, main_thread: int, background: bool
) -> None:
    class Calling(os.PathLike[str]):
        def __fspath__(self) -> str:
            called.set()
            return str(tmp_path / "f")

    def interrupt() -> None:
        called.wait(DEADLINE)
        os.kill(main_thread, signal.SIGINT)

    called = threading.Event()
    thread = threading.Thread(target=interrupt)
    with held(tmp_path):
        first = start_save({"n": 1}, tmp_path / "f")
        thread.start()
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            genesis.save({"n": 2}, Calling(), background=background)
    thread.join(DEADLINE)
    assert first.result(DEADLINE).outcome == "durable"
    assert genesis.load(tmp_path / "f") == {"n": 1}
    assert is_idle(tmp_path / "f")


def test_an_interrupt_while_a_save_waits_for_memory_withdraws_it(
    tmp_path: Path, main_thread: int
) -> None:
    def interrupt() -> None:
        os.kill(main_thread, signal.SIGINT)

    state = {"x": np.zeros(1 << 20, np.uint8), "y": Acting(lambda: thread.start())}
    thread = threading.Thread(target=interrupt)
    genesis.configure(max_pending_bytes=1 << 20)
    try:
        with busy_writer(tmp_path / "busy"):
            first = genesis.save({"n": 1}, tmp_path / "f", background=True)
            with pytest.raises(KeyboardInterrupt, match=NOTED):
                genesis.save(state, tmp_path / "g", background=True)
        thread.join(DEADLINE)
        assert first.result(DEADLINE).outcome == "durable"
        assert is_idle(tmp_path / "g")
        assert set(state) == {"x", "y"}
    finally:
        genesis.configure(max_pending_bytes=default_budget())


def test_an_interrupt_while_waiting_for_a_result_ends_the_waiting_only(
    tmp_path: Path, main_thread: int
) -> None:
    with held(tmp_path):
        save = genesis.save({"n": 1}, tmp_path / "f", background=True)
        thread = threading.Thread(target=os.kill, args=(main_thread, signal.SIGINT))

        def wait() -> None:
            thread.start()  # the interrupt may come before this returns
            save.result(DEADLINE)

        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            wait()
    thread.join(DEADLINE)
    assert save.result(DEADLINE).outcome == "durable"


# Fork


@pytest.mark.alone
def test_a_forked_child_saves_on_its_own_while_the_parent_is_in_a_save(tmp_path: Path) -> None:
    with held(tmp_path):
        mine = start_save({"n": "parent"}, tmp_path / "f")
        queued = genesis.save({"n": "queued"}, tmp_path / "g", background=True)
        other = tmp_path / "child"
        other.mkdir()

        def check() -> bool:
            saves = [genesis.save({"n": n}, other / f"f{n}", background=True) for n in range(5)]
            genesis.flush(DEADLINE)
            return all(save.done() for save in saves) and genesis.load(other / "f4") == {"n": 4}

        assert in_child(check) == 0
        assert not mine.done()
    assert [save.result(DEADLINE).outcome for save in (mine, queued)] == ["durable"] * 2
    assert len(os.listdir(other)) == 5


@pytest.mark.alone
def test_a_forked_child_may_save_the_path_that_its_parent_is_saving(tmp_path: Path) -> None:
    with held(tmp_path) as hold:
        start_save({"n": "parent"}, tmp_path / "f")

        def check() -> bool:
            hold.release()
            save = genesis.save({"n": "child"}, tmp_path / "f", background=True, on_busy="skip")
            return save.result(DEADLINE).outcome == "durable"

        assert in_child(check) == 0
    genesis.flush(DEADLINE)
    assert genesis.load(tmp_path / "f")["n"] in ("parent", "child")
    assert litter(tmp_path) == []


@pytest.mark.alone
def test_futures_of_the_parent_say_so_in_the_child(tmp_path: Path) -> None:
    def refuses(wait: Callable[[], object]) -> bool:
        try:
            wait()
        except RuntimeError as exc:
            return "belongs to the process that submitted it" in str(exc)
        return False

    with busy_writer(tmp_path / "busy"):
        saves = [
            genesis.save({"n": 1}, tmp_path / "f", background=True),
            genesis.save({"n": 1}, tmp_path / "g", background=True, capture="deferred"),
        ]

        def check() -> bool:
            genesis.flush(0)
            waits = [wait for save in saves for wait in (save.result, save.wait_captured)]
            return all(refuses(wait) for wait in waits) and all(save.done() for save in saves)

        assert in_child(check) == 0
        assert not any(save.done() for save in saves)
    assert [save.result(DEADLINE).outcome for save in saves] == ["durable"] * 2


@pytest.mark.alone
def test_futures_that_ended_before_the_fork_keep_their_result(tmp_path: Path) -> None:
    save = genesis.save({"n": 1}, tmp_path / "f", background=True)
    save.result(DEADLINE)
    assert in_child(lambda: save.result(0).outcome == "durable") == 0


@pytest.mark.alone
def test_forks_at_random_moments_leave_children_whose_futures_all_end(tmp_path: Path) -> None:
    """
    Race: 1. a writer thread takes a future off the list of pending ones; 2. fork; 3. the thread
    would have resolved it, and is not there in the child.
    """

    def all_end(saves: list[genesis.SaveFuture]) -> bool:
        for save in saves:
            save.exception(DEADLINE)
        genesis.flush(DEADLINE)
        return True

    statuses = []
    for number in range(60):
        saves = [genesis.save({"n": number}, tmp_path / f"f{n}", background=True) for n in range(8)]
        for save in saves[: number % 8]:
            save.result(DEADLINE)
        statuses.append(in_child(lambda saves=saves: all_end(saves)))
        genesis.flush(DEADLINE)
    assert statuses == [0] * 60


@pytest.mark.alone
def test_a_fork_inside_a_capture_leaves_both_sides_able_to_save(tmp_path: Path) -> None:
    statuses: list[int] = []

    def check() -> bool:
        genesis.save({"n": "child"}, tmp_path / "child", background=True).result(DEADLINE)
        return genesis.load(tmp_path / "child") == {"n": "child"}

    state = {"x": Acting(lambda: statuses.append(in_child(check)))}
    genesis.save(state, tmp_path / "f", background=True).result(DEADLINE)
    assert statuses == [0]
    assert is_idle(tmp_path / "f")


# Handlers that wait

WAITS_IN_A_HANDLER = """
import os, signal, sys, threading, genesis
from contention import busy_writer, held, start_save
from pathlib import Path
folder, threads = Path(sys.argv[1]), int(sys.argv[2])
(folder / "d").mkdir()
genesis.configure(threads=threads)
def handler(*_):
    for wait in (
        lambda: genesis.flush(),
        lambda: genesis.load(folder / "f"),
        lambda: genesis.save({"n": 2}, folder / "g", background=True).result(),
        lambda: genesis.save({"n": 2}, folder / "d/g", background=True).result(),
    ):
        try:
            wait()
        except RuntimeError as exc:
            print("refused:", exc)
signal.signal(signal.SIGTERM, handler)
class Interrupted:
    def __reduce__(self):
        signal.raise_signal(signal.SIGTERM)
        return int, (7,)
genesis.save({"n": 1}, folder / "f")
genesis.save({"n": Interrupted()}, folder / "f")
genesis.save({"n": Interrupted()}, folder / "f", background=True).result()
print(genesis.load(folder / "f"))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_may_wait_for_saves_while_a_state_is_captured(
    tmp_path: Path, threads: int
) -> None:
    prelude = f"import sys; sys.path.insert(0, {HELPERS!r})\n"
    status, output, errors = run(WATCHDOG + prelude + WAITS_IN_A_HANDLER, tmp_path, threads)
    assert status == 0, errors
    assert output.splitlines()[-1] == "{'n': 7}"


@pytest.mark.parametrize(
    "wait",
    [
        "genesis.flush()",
        "one.result()",
        "one.exception()",
        "one.wait_captured()",
        "genesis.load(folder / 'queued')",
        "genesis.save({}, folder / 'queued', clear=False)",
        "concurrent.futures.wait([one])",
        "list(concurrent.futures.as_completed([one]))",
    ],
)
def test_a_wait_for_what_stands_beneath_is_refused(tmp_path: Path, wait: str) -> None:
    """A handler in the middle of a commit: the writer's threads wait for the directory that this
    thread has locked."""
    script = """
import concurrent.futures, sys, genesis
from genesis._os import files as _fs
from pathlib import Path
folder = Path(sys.argv[1])
genesis.save({"n": 0}, folder / "f")
rename = _fs.Directory.rename
def interrupted(self, name, new_name):
    if new_name == "f":
        _fs.Directory.rename = rename
        one = genesis.save({"n": 1}, folder / "queued", background=True, capture="deferred")
        genesis.save({"n": 2}, folder / "beside")
        try:
            eval(sys.argv[2], {**globals(), "one": one})
        except RuntimeError as exc:
            print("refused:", exc)
    return rename(self, name, new_name)
_fs.Directory.rename = interrupted
genesis.save({"n": 3}, folder / "f")
genesis.flush()
print([genesis.load(folder / name)["n"] for name in ("f", "queued", "beside")])
"""
    status, output, errors = run(WATCHDOG + script, tmp_path, wait)
    assert status == 0, errors
    lines = output.splitlines()
    assert lines[-1] == "[3, 1, 2]"
    if "wait_captured" not in wait:
        assert "was interrupted on this thread in the middle of its commit" in lines[0]


def test_a_handler_that_saves_beside_the_file_whose_commit_it_interrupts(tmp_path: Path) -> None:
    """It locks through the descriptor that has the lock, and takes nobody's temporary file for
    abandoned."""
    script = """
import fcntl, os, sys, genesis
from genesis._os import files as _fs
from pathlib import Path
folder = Path(sys.argv[1])
genesis.save({"n": 0}, folder / "f")
steps = ("lock", "unlock", "create", "rename", "link", "remove", "sync")
def handler(name):
    if not inside:
        inside.append(name)
        genesis.save({"n": name}, folder / "g")
        inside.clear()
def interrupting(name, method):
    def call(self, *args):
        handler(name)
        result = method(self, *args)
        handler(name)
        return result
    return call
inside = []
for name in steps:
    method = getattr(_fs.Directory, name)
    setattr(_fs.Directory, name, interrupting(name, method))
    genesis.save({"n": name}, folder / "f")
    setattr(_fs.Directory, name, method)
    assert genesis.load(folder / "f") == {"n": name}
    assert genesis.load(folder / "g") == {"n": name}
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
print(sorted(os.listdir(folder)))
"""
    status, output, errors = run(WATCHDOG + script, tmp_path)
    assert status == 0, errors
    assert output == "['f', 'g']\n"


def test_a_handler_that_interrupts_the_last_saves_at_exit_does_not_hang(tmp_path: Path) -> None:
    """The program's thread may write them itself by then, and no other will."""
    script = """
import atexit, signal, sys, genesis
path = sys.argv[1]
class Interrupting(dict):
    def __delitem__(self, key):
        pass
def late():
    genesis.save({"n": 1}, path, background=True).result()
def handler(*_):
    try:
        genesis.flush()
    except RuntimeError as exc:
        print("refused:", exc)
signal.signal(signal.SIGTERM, handler)
from genesis._file import writer as _store
save_staged = _store.save_staged
def interrupted(*args):
    signal.raise_signal(signal.SIGTERM)
    return save_staged(*args)
_store.save_staged = interrupted
atexit.register(late)
genesis.save({"n": 0}, path)
"""
    status, output, errors = run(WATCHDOG + script, tmp_path / "f")
    assert status == 0, errors
    assert output.startswith("refused: a save of")
    assert genesis.load(tmp_path / "f") == {"n": 1}


def test_a_handler_may_wait_while_the_program_is_logging(tmp_path: Path) -> None:
    """The program holds the lock of its log handler there, and the writer logs each save."""
    script = """
import logging, signal, sys, genesis
path = sys.argv[1]
class Stream:
    def write(self, text):
        if "of the program" in text:
            signal.raise_signal(signal.SIGTERM)
    def flush(self):
        pass
logging.basicConfig(level=logging.INFO, stream=Stream())
signal.signal(signal.SIGTERM, lambda *_: saved())
def saved():
    print(genesis.save({"n": 1}, path, background=True).result().outcome)
    genesis.flush()
logging.info("of the program")
"""
    status, output, errors = run(WATCHDOG + script, tmp_path / "f")
    assert (status, output) == (0, "durable\n"), errors


@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt()"])
@pytest.mark.parametrize("background", [False, True])
def test_what_ends_a_program_may_come_out_of_a_states_own_code(
    tmp_path: Path, background: bool, error: str
) -> None:
    def leave() -> None:
        raise eval(error)

    genesis.save({"n": "old"}, tmp_path / "f")
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        genesis.save({"n": Acting(leave)}, tmp_path / "f", background=background)
    assert is_idle(tmp_path / "f")
    assert litter(tmp_path) == []


# A save that takes another's place


@pytest.mark.parametrize("problem", ["it cannot be pickled", "it is interrupted"])
def test_what_was_to_be_superseded_is_saved_where_the_newer_is_not_captured(
    tmp_path: Path, problem: str
) -> None:
    def fail() -> None:
        raise KeyboardInterrupt if problem == "it is interrupted" else TypeError("by itself")

    with busy_writer(tmp_path / "busy"):
        queued = genesis.save({"n": 1}, tmp_path / "f", background=True)
        with pytest.raises((KeyboardInterrupt, genesis.UnpicklableStateError)):
            genesis.save({"n": Acting(fail)}, tmp_path / "f", background=True, on_busy="supersede")
        assert not queued.done()
    assert queued.result(DEADLINE).outcome == "durable"
    assert genesis.load(tmp_path / "f") == {"n": 1}


def test_what_was_to_be_superseded_is_saved_where_the_newer_is_cancelled_in_its_wait_for_memory(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        state = {"x": np.zeros(1 << 20, np.uint8)}
        save = genesis.aio.save(state, tmp_path / "f", on_busy="supersede")
        task = asyncio.create_task(save)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task

    genesis.configure(max_pending_bytes=1 << 20)
    try:
        with busy_writer(tmp_path / "busy"):
            queued = genesis.save({"n": 1}, tmp_path / "f", background=True)
            asyncio.run(main())
            assert not queued.done()
        assert queued.result(DEADLINE).outcome == "durable"
    finally:
        genesis.configure(max_pending_bytes=default_budget())
    assert genesis.load(tmp_path / "f") == {"n": 1}
