"""Watch every file-system call of a process tree, and kill, fail, shorten or pause any one of them.

It sees calls, not library functions, so nothing a save does escapes it; it knows the registers of
x86-64 Linux only, and refuses to model what it cannot name (see `powercut`).

It does what `strace -f -e inject=...` does, with three differences that a full enumeration needs.
Calls are numbered over all threads (strace counts each thread by itself, so a call of a pool thread
cannot always be told from one of the main thread). Only calls on a given directory count, whatever
the name of the temporary file. And the bytes of every write are kept. `test_tracer.py` holds it
against strace.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from . import ptrace
from .calls import EVERYWHERE, OPENS, SHAPES, WRITES, Shape

START, STOP = 0x5EED0000, 0x5EED0001
"""Descriptors that a traced process "closes" to say that what is to be watched begins and ends."""
_MARKS = range(0x5EED0000, 0x5EEE0000)

_AT_FDCWD = -100
_BYTES_KEPT = 1 << 26


@dataclass(slots=True)
class Call:
    """One file-system call on the watched directory.

    Attributes:
        number: its place among all of them, from 1 on.
        paths: what it works on, absolute; descriptors are resolved too.
        began, ended: its place in the order of all beginnings and endings; 0 while it has not.
        result: what it returned, or a negative errno.
        data: the bytes that a write was given.
        identity: device and inode of what an open returned.
        fault: what was done to it, in words.
    """

    number: int
    tid: int
    pid: int
    name: str
    args: list[int]
    paths: tuple[str, ...]
    began: int = 0
    ended: int = 0
    result: int | None = None
    data: bytes | None = None
    identity: tuple[int, int] | None = None
    fault: str = ""

    def __str__(self) -> str:
        where = ", ".join(os.path.basename(path) or path for path in self.paths)
        return f"call {self.number} {self.name}({where})"


@dataclass(frozen=True, slots=True)
class Mark:
    """The traced process said that something has happened: the descriptor it "closed"."""

    number: int
    at: int


@dataclass(slots=True)
class Fault:
    """What to do to a call: one of kill, error, short, late (done, but reported as failed), or run
    something of ours while it waits."""

    kill: bool = False
    error: int = 0
    late: bool = False
    short: bool = False
    meanwhile: Callable[[], None] | None = None

    def __str__(self) -> str:
        if self.kill:
            return "killed"
        if self.error:
            return f"{errno.errorcode[self.error]}{' after it was done' if self.late else ''}"
        return "short" if self.short else "disturbed"


Decide = Callable[[Call], Fault | None]


class TraceTimeoutError(Exception):
    """The traced process did not end in time; it was killed."""


@dataclass(slots=True)
class Trace:
    """What a traced process did.

    Attributes:
        status: the exit status as `os.waitstatus_to_exitcode` gives it; negative for a signal.
    """

    calls: list[Call] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    status: int = 0

    @property
    def faults(self) -> list[Call]:
        return [call for call in self.calls if call.fault]


def unsupported() -> str:
    """Why nothing can be traced here, or an empty string."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the tracer knows x86-64 Linux only"
    try:
        with _child(lambda: None) as (pid, release):
            _attach(pid)
            release()
            os.kill(pid, signal.SIGKILL)
    except OSError as exc:
        return f"ptrace is not permitted here: {exc}"
    return ""


def trace(
    body: Callable[[], None],
    root: str,
    decide: Decide = lambda call: None,
    *,
    seconds: float = 60,
    keep_data: bool = False,
) -> Trace:
    """Run `body` in a forked child and watch its calls on `root`, and on everything under it.

    Watched is what lies between the marks START and STOP. `decide` is asked before each call.
    The caller must have no other children, and no other threads.

    Raises:
        TraceTimeoutError: the child did not end.
    """
    with _child(body) as (pid, release), _deadline(seconds):
        _attach(pid)
        release()
        return _Session(pid, os.path.realpath(root), decide, keep_data).run()


def mark(number: int) -> None:
    """Called in the traced process: tell the tracer something. Harmless where there is none."""
    with suppress(OSError):
        os.close(number)


@contextmanager
def _child(body: Callable[[], None]) -> Iterator[tuple[int, Callable[[], None]]]:
    """A forked child that waits to be released, then runs `body` and exits as a program would."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        run_and_exit(body)
    os.close(reader)
    try:
        yield pid, lambda: _tell(writer)
    finally:
        os.close(writer)
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, ptrace.WALL)


def run_and_exit(body: Callable[[], None]) -> NoReturn:
    """Run `body` and end as an interpreter does (threads joined, exit functions run), but never
    return into the code of the parent."""
    status = 1
    try:
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status)


def _tell(writer: int) -> None:
    os.write(writer, b".")


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def expire(*_: object) -> None:
        raise TraceTimeoutError(f"still running after {seconds:g} s")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _attach(pid: int) -> None:
    ptrace.request(ptrace.SEIZE, pid, 0, ptrace.OPTIONS)
    ptrace.request(ptrace.INTERRUPT, pid)
    os.waitpid(pid, ptrace.WALL)
    ptrace.request(ptrace.SYSCALL, pid)


class _Session:
    """One traced process tree, from the release of its first thread to the end of its last."""

    def __init__(self, pid: int, root: str, decide: Decide, keep_data: bool) -> None:
        self._leader = pid
        self._root = root
        self._below = root.rstrip("/") + "/"
        self._decide = decide
        self._keep_data = keep_data
        self._trace = Trace()
        self._watching = False
        self._resume = ptrace.SYSCALL
        self._clock = 0
        self._running: dict[int, tuple[Call, Fault | None, list[int] | None]] = {}
        self._memory: dict[int, int] = {}
        self._groups: dict[int, int] = {pid: pid}
        self._info = ctypes.create_string_buffer(96)

    def run(self) -> Trace:
        try:
            while self._step():
                pass
        finally:
            for fd in self._memory.values():
                os.close(fd)
        return self._trace

    def _step(self) -> bool:
        try:
            tid, status = os.waitpid(-1, ptrace.WALL)
        except ChildProcessError:
            return False
        if not os.WIFSTOPPED(status):
            if tid == self._leader:
                self._trace.status = os.waitstatus_to_exitcode(status)
            return True
        with suppress(ProcessLookupError):  # killed while it stood still
            self._stopped(tid, os.WSTOPSIG(status), status >> 16)
        return True

    def _stopped(self, tid: int, sig: int, event: int) -> None:
        if sig == signal.SIGTRAP | 0x80:
            self._at_call(tid)
            ptrace.request(self._resume, tid)
        elif event == ptrace.EVENT_STOP and sig in (signal.SIGSTOP, signal.SIGTSTP):
            ptrace.request(ptrace.LISTEN, tid)
        elif event:
            if event == ptrace.EVENT_EXEC and (fd := self._memory.pop(tid, None)) is not None:
                os.close(fd)
            ptrace.request(self._resume, tid)
        else:
            ptrace.request(self._resume, tid, 0, sig)

    def _at_call(self, tid: int) -> None:
        size = ptrace.request(
            ptrace.SYSCALL_INFO, tid, len(self._info), ctypes.addressof(self._info)
        )
        kind = self._info.raw[0]
        if kind == 1:
            number, *args = struct.unpack_from("<Q6q", self._info.raw, 24)
            if (shape := SHAPES.get(number)) is not None:
                self._enter(tid, shape, args)
        elif kind == 2 and size >= 32 and tid in self._running:
            (value,) = struct.unpack_from("<q", self._info.raw, 24)
            self._leave(tid, value)

    def _enter(self, tid: int, shape: Shape, args: list[int]) -> None:
        if shape.name == "close" and signed(args[0]) in _MARKS:
            self._marked(signed(args[0]))
            return
        if not self._watching:
            return
        paths = self._paths(tid, shape, args)
        if shape.name not in EVERYWHERE and not any(map(self._is_ours, paths)):
            return
        call = Call(len(self._trace.calls) + 1, tid, self._group(tid), shape.name, args, paths)
        call.began = self._tick()
        if self._keep_data and shape.name in WRITES:
            call.data = self._written(tid, call)
        self._trace.calls.append(call)
        fault = self._decide(call)
        self._running[tid] = (call, fault, self._apply(tid, call, fault))

    def _marked(self, number: int) -> None:
        self._trace.marks.append(Mark(number, self._tick()))
        if number == START:
            self._watching = True
        elif number == STOP:
            self._watching = False
            self._resume = ptrace.CONT  # the rest runs at full speed

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _is_ours(self, path: str) -> bool:
        return path == self._root or path.startswith(self._below)

    def _group(self, tid: int) -> int:
        if tid not in self._groups:
            with open(f"/proc/{tid}/status") as file:
                lines = dict(line.split(":", 1) for line in file if ":" in line)
            self._groups[tid] = int(lines["Tgid"])
        return self._groups[tid]

    def _paths(self, tid: int, shape: Shape, args: list[int]) -> tuple[str, ...]:
        found = [_descriptor(tid, args[index]) for index in shape.fds]
        for base, index in shape.paths:
            start = _descriptor(tid, _AT_FDCWD if base is None else args[base])
            name = self._text(tid, args[index])
            found.append(os.path.normpath(os.path.join(start, name)) if name else start)
        return tuple(found)

    def _memory_of(self, tid: int) -> int:
        if tid not in self._memory:
            self._memory[tid] = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._memory[tid]

    def _text(self, tid: int, address: int) -> str:
        if not address:
            return ""
        text = b""
        while b"\0" not in text and len(text) < 4096:
            step = 4096 - (address + len(text)) % 4096  # never across a page that may be missing
            try:
                text += os.pread(self._memory_of(tid), step, address + len(text))
            except OSError:
                break
        return os.fsdecode(text.split(b"\0", 1)[0])

    def _written(self, tid: int, call: Call) -> bytes:
        pieces = [(call.args[1], call.args[2])]
        if call.name in ("writev", "pwritev", "pwritev2"):
            table = os.pread(self._memory_of(tid), 16 * call.args[2], call.args[1])
            pieces = list(struct.iter_unpack("<QQ", table))
        assert sum(size for _, size in pieces) <= _BYTES_KEPT, "too large a write to keep"
        return b"".join(self._bytes(tid, address, size) for address, size in pieces)

    def _bytes(self, tid: int, address: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += os.pread(self._memory_of(tid), size - len(data), address + len(data))
        return data

    def _apply(self, tid: int, call: Call, fault: Fault | None) -> list[int] | None:
        """Do to a call what was decided; return the registers to put back when it ends."""
        if fault is None:
            return None
        if fault.meanwhile is not None:
            fault.meanwhile()
        elif fault.kill:
            os.kill(call.pid, signal.SIGKILL)
        elif fault.short:
            return self._shorten(tid, call, fault)
        elif not fault.late:
            registers = ptrace.registers(tid)
            registers[ptrace.ORIG_RAX] = (1 << 64) - 1
            ptrace.set_registers(tid, registers)
        call.fault = str(fault)
        return None

    def _shorten(self, tid: int, call: Call, fault: Fault) -> list[int] | None:
        """Let a write have half of its bytes (whole blocks, where it had several), or buffers."""
        index = WRITES[call.name]
        count = call.args[index]
        half = count // 2 // 4096 * 4096 or count // 2
        if not half:
            return None
        registers = ptrace.registers(tid)
        before = list(registers)
        registers[ptrace.ARGUMENT_REGISTERS[index]] = half
        ptrace.set_registers(tid, registers)
        call.fault = str(fault)
        return before

    def _leave(self, tid: int, value: int) -> None:
        call, fault, before = self._running.pop(tid)
        if fault is not None and (fault.error or before is not None):
            registers = ptrace.registers(tid)
            if before is not None:
                index = ptrace.ARGUMENT_REGISTERS[WRITES[call.name]]
                registers[index] = before[index]
            if fault.error:
                value = -fault.error
                registers[ptrace.RAX] = value % (1 << 64)
            ptrace.set_registers(tid, registers)
        call.result = value
        call.ended = self._tick()
        if call.name in OPENS and value >= 0:
            status = os.stat(f"/proc/{tid}/fd/{value}")
            call.identity = status.st_dev, status.st_ino


def _descriptor(tid: int, fd: int) -> str:
    fd = signed(fd)
    name = "cwd" if fd == _AT_FDCWD else f"fd/{fd}"
    try:
        return os.readlink(f"/proc/{tid}/{name}")
    except OSError:
        return f"no descriptor {fd}"


def signed(value: int) -> int:
    """The low 32 bits of a register as a C int."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low
