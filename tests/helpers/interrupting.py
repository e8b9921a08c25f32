"""Runs one operation of genesis again and again in this process, each time with something done at
another of the points where a signal handler of Python's may run, and looks at what is left.

Started by test_interrupts.py: ``interrupting.py FOLDER OPERATION ACT FIRST STEP THREADS``. It
prints the number of each point before it tries it, so that one which hangs is known, and a line of
JSON for each that leaves trouble.

The points: before each line of genesis, and in genesis and whatever it calls wherever the
interpreter looks for signals: when a function begins, when a call has returned, when a loop goes
back. A `with` statement is not left at a line of its own: there the interpreter looks only inside
of what leaves it.
"""

from __future__ import annotations

import dis
import fcntl
import gc
import json
import linecache
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import genesis

PACKAGE = str(Path(genesis.__file__).parent)
STATE = {"n": "new", "data": b"x" * 100_000}
OLD = {"n": "old"}
_CALLS = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "CALL_METHOD", "CALL_FUNCTION"}
PAST = 5
"""So many numbers in a row that no point has are the end. One is not: what threads take from each
other makes one run shorter than the next."""
NOT_TRACED = ("importlib", "tracemalloc", "interrupting.py")


class Interruption(KeyboardInterrupt):
    """Ctrl-C that no other can be taken for."""


class AtPoint:
    """A trace function that calls `act` at the `number`-th point."""

    def __init__(self, number: int, act: Callable[[], object]) -> None:
        self.where = ""
        self.count = 0
        self._number = number
        self._act = act
        self._after_call: set[FrameType] = set()
        self._last: dict[FrameType, int] = {}
        self._entered: set[tuple[FrameType, int]] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if any(part in frame.f_code.co_filename for part in NOT_TRACED):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = True
            self._point(frame)
        elif event == "line" and self._is_ours(frame) and not self._leaves_a_block(frame):
            self._point(frame)
        elif event == "opcode":
            last = self._last.get(frame, -1)
            if last > frame.f_lasti or _opcode(frame.f_code, last) in _CALLS:
                self._point(frame)
            self._last[frame] = frame.f_lasti
        elif event == "return":
            self._last.pop(frame, None)
        return self

    def _point(self, frame: FrameType) -> None:
        self.count += 1
        if self.count == self._number:
            name = Path(frame.f_code.co_filename).name
            self.where = f"{name}:{frame.f_lineno} {frame.f_code.co_name} +{frame.f_lasti}"
            sys.settrace(None)
            frame.f_trace = None
            self._act()

    def _is_ours(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(PACKAGE)

    def _leaves_a_block(self, frame: FrameType) -> bool:
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if not line.lstrip().startswith(("with ", "async with ")):
            return False
        again = (frame, frame.f_lineno) in self._entered
        self._entered.add((frame, frame.f_lineno))
        return again


_opcodes: dict[CodeType, dict[int, str]] = {}


def _opcode(code: CodeType, offset: int) -> str:
    if code not in _opcodes:
        _opcodes[code] = {found.offset: found.opname for found in dis.get_instructions(code)}
    return _opcodes[code].get(offset, "")


# What is done to it


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    path = str(folder / "f")

    def save(**options: Any) -> Any:
        return genesis.save(dict(STATE), path, background=True, **options)

    return {
        "plain": lambda: genesis.save(dict(STATE), path),
        "background": save,
        "result": lambda: save().result(20),
        "deferred": lambda: save(capture="deferred").wait_captured(20),
        "supersede": lambda: (save(), save(on_busy="supersede")),
        "load": lambda: genesis.load(path),
        "mapped": lambda: genesis.load(path, mmap=True),
        "flush": lambda: (save(), genesis.flush(20)),
    }


def acts(folder: Path) -> dict[str, Callable[[], object]]:
    def handler(call: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            with suppress(RuntimeError):  # a refusal; a deadlock it must not be
                call()

        return act

    def save(name: str, **options: Any) -> Any:
        return genesis.save({"n": "handler"}, folder / name, **options)

    return {
        "raise": _raise,
        "save beside": handler(lambda: save("g")),
        "save beside and wait": handler(lambda: save("g", background=True).result(30)),
        "save elsewhere and wait": handler(lambda: save("d/g", background=True).result(30)),
        "save here": handler(lambda: save("f")),
        "save here behind": handler(lambda: save("f", background=True)),
        "flush": handler(lambda: genesis.flush(30)),
        "load": handler(lambda: genesis.load(folder / "f")),
        "fork": _fork,
    }


def _raise() -> None:
    raise Interruption


def _fork() -> None:
    """A child that goes on where it is, and one that ends there: neither may touch its parent's
    file, nor hold its lock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if gc.isenabled() and _saves_on_its_own() else 1)
    if os.waitpid(child, 0)[1]:
        raise AssertionError("the forked child cannot save")


def _saves_on_its_own() -> bool:
    folder = Path(sys.argv[1]) / "child"
    try:
        genesis.save({"n": 1}, folder / "f", background=True).result(20)
        genesis.save({"n": 2}, folder / "f")
    except BaseException as exc:
        os.write(2, repr(exc).encode())
        return False
    return True


# What is left


class Left:
    """Looks at all that an interrupted call must have given back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = _descriptors()

    def problems(self) -> list[str]:
        return list(filter(None, (look() for look in (
            self._writer, self._collector, self._locks, self._descriptors, self._files, self._again,
        ))))  # fmt: skip

    def _writer(self) -> str:
        try:
            genesis.flush(20)
        except Interruption:
            pass  # the save that was interrupted; nobody asked it
        except BaseException as exc:
            return f"flush: {exc!r}"
        writer = genesis._engine.scheduler.scheduler
        _wait(lambda: not _threads())
        kept = [len(writer._pending), len(writer._reserved), writer.turns.count()]
        kept += [writer.last_turns.count(), len(genesis._os.locks._locks)]
        return f"the writer keeps {kept}" if any(kept) else ""

    def _collector(self) -> str:
        enabled = gc.isenabled()
        gc.enable()
        return "" if enabled else "the collector is off"

    def _locks(self) -> str:
        fd = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "the directory is locked"
        finally:
            os.close(fd)
        return ""

    def _descriptors(self) -> str:
        found = _descriptors()
        return "" if found == self._before else f"descriptors: {self._before} became {found}"

    def _files(self) -> str:
        names = [name for name in os.listdir(self._folder) if ".genesis" in name]
        for name in names:
            os.unlink(self._folder / name)
        return f"files: {names}" if names else ""

    def _again(self) -> str:
        try:
            found = genesis.load(self._folder / "f")
            if found not in (OLD, STATE, {"n": "handler"}):
                return f"the file holds {found}"
            for name in ("f", "g"):
                genesis.save(OLD, self._folder / name, clear=False)
                genesis.save(OLD, self._folder / name, background=True).result(20)
        except BaseException as exc:
            return f"the next save: {exc!r}"
        return ""


def _descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def _threads() -> list[threading.Thread]:
    """Ours that run. One whose start an interrupt cut off before the system made it is listed for
    ever and never ends; it has no number."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("genesis")]
    return [thread for thread in ours if thread.ident is not None]


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done() and time.monotonic() < end:
        time.sleep(0)


def attempt(operation: Callable[[], object], act: Callable[[], object], number: int) -> AtPoint:
    """Run the operation with the act at one point."""
    trace = AtPoint(number, act)
    sys.settrace(trace)
    try:
        operation()
    except Interruption:
        pass
    finally:
        sys.settrace(None)
        trace._last.clear()
        trace._entered.clear()
    return trace


def main() -> None:
    folder, operation_name, act_name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    first, step = int(sys.argv[4]), int(sys.argv[5])
    for name in ("d", "child"):
        (folder / name).mkdir(exist_ok=True)
    operation = operations(folder)[operation_name]
    # "all" of them in turn: each point has one of them done to it.
    chosen = [act for name, act in acts(folder).items() if act_name in (name, "all")]
    genesis.configure(threads=int(sys.argv[6]))
    for name in ("f", "g"):
        genesis.save(OLD, folder / name, clear=False)
    left = Left(folder)
    left._again()  # everything is loaded
    number, past = first, 0
    while True:
        print(number, flush=True)
        act = chosen[number % len(chosen)]
        try:
            trace = attempt(operation, act, number)
            problems = left.problems()
        except BaseException as exc:
            trace, problems = AtPoint(0, act), [f"raised {exc!r}"]
        if problems:
            print(json.dumps([number, trace.where, problems]), flush=True)
        past = 0 if trace.where or problems else past + 1
        if past == PAST:
            print(json.dumps([]), flush=True)
            return
        number += step


main()
