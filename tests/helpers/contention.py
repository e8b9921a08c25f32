"""What the concurrency tests share: means to hold a save at a known point, and scripts in processes
of their own. It changes nothing of genesis and sleeps for nothing: a save is held by the lock that
it takes itself, and what a test waits for it waits for by name, with a deadline.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import genesis
from genesis._file import writer

DEADLINE = 60.0
HELPERS = str(Path(__file__).parent)
"""What a script puts on its path to import from here."""
"""Seconds after which something that must happen is taken never to happen."""


class Hold:
    """The lock of a directory: a save there stops before it makes its temporary file, or, if that
    exists, before its commit."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory, os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough: a forked child has the lock too
            os.close(fd)


@contextmanager
def held(directory: Path) -> Iterator[Hold]:
    """Hold every save in a directory until `release` or the end of the with block."""
    hold = Hold(directory)
    try:
        yield hold
    finally:
        hold.release()


@contextmanager
def busy_writer(folder: Path) -> Iterator[Hold]:
    """Keep both threads of the writer at saves of their own: what is submitted meanwhile is
    captured and queued, and not started."""
    folder.mkdir()
    with held(folder) as hold:
        saves = [start_save({"n": n}, folder / f"busy{n}") for n in range(2)]
        yield hold
        hold.release()
        for save in saves:
            save.result(DEADLINE)


def start_save(state: Any, path: Path, **keywords: Any) -> genesis.SaveFuture:
    """A background save that a writer thread has begun: a deferred one is captured there."""
    save = genesis.save(state, path, background=True, capture="deferred", clear=False, **keywords)
    save.wait_captured(DEADLINE)
    return save


def failing_save(folder: Path) -> genesis.SaveFuture:
    """A background save that fails after it was accepted: its directory goes away."""
    folder.mkdir()
    with held(folder):
        save = start_save({"n": 1}, folder / "f")
        shutil.rmtree(folder)
    return save


def ended(save: genesis.SaveFuture) -> None:
    """Wait for the end of a save without asking for its outcome."""
    event = threading.Event()
    save.add_done_callback(lambda _: event.set())
    assert event.wait(DEADLINE)


def default_budget() -> int:
    """`max_pending_bytes` as it is when nobody has set it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def litter(directory: Path) -> list[str]:
    """What a save makes beside its target and must not leave there."""
    names = os.listdir(directory)
    return sorted(name for name in names if ".genesis-" in name or ".genesis." in name)


def temporary_files(directory: Path) -> list[str]:
    return [name for name in litter(directory) if name.endswith(".tmp")]


def descriptors() -> list[str]:
    """What the open descriptors of this process refer to."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the one that listed them
            continue
    return sorted(found)


def genesis_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("genesis")]


def is_waited_for(directory: Path) -> bool:
    """Whether somebody stands before the lock of a directory."""
    number = f":{directory.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("-> FLOCK" in line and number in line for line in lines)


def fork() -> int:
    """`os.fork` with threads about, which Python 3.12 warns of and these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def exit_status(child: int) -> int:
    """Wait for a forked child."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def join_threads() -> None:
    """Wait until the threads of genesis, which end when they have nothing to do, have ended. The
    one that would give memory back a minute after the last save is told to end."""
    writer.idle.stop()
    for thread in genesis_threads():
        thread.join(DEADLINE)


def until(condition: Callable[[], object]) -> None:
    """Wait for what gives no signal of its own, such as a name in a directory."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came: {condition}")
        time.sleep(0.0005)


class Script:
    """A Python program in a process of its own, which reports by lines on its standard output.

    Whatever it starts is killed with it. One that does not end is made to say where it stands.
    """

    def __init__(self, source: str, *args: object, stdin: Any = subprocess.PIPE) -> None:
        # A file, because it can be read before the end.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        # Python 3.12 warns of what some of these programs are about, as `fork` says.
        options = ["-X", "faulthandler", "-W", "ignore:This process (pid:DeprecationWarning"]
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", source, *map(str, args)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal_all(signal.SIGKILL)
        with self._errors, self.process:
            pass

    def _signal_all(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def line(self) -> str:
        """Wait for the next line of its output; nothing if it ends, or is stuck, before that."""
        assert self.process.stdout is not None
        stuck = threading.Timer(DEADLINE, self._signal_all, [signal.SIGABRT])
        stuck.start()
        try:
            return str(self.process.stdout.readline().rstrip("\n"))
        finally:
            stuck.cancel()
            stuck.join()

    def expect(self, line: str) -> None:
        """Wait for the next line of its output, which must be this one."""
        said = self.line()
        if said != line:
            raise AssertionError(f"expected {line!r}, got {said!r}\n{self.end()}")

    def errors(self) -> str:
        """What it wrote to its standard error so far."""
        # At an offset of our own: the program writes at the file's, which a seek here would move.
        fd = self._errors.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = DEADLINE) -> tuple[int, str, str]:
        """Its exit status, and what was left of output and errors."""
        assert self.process.stdout is not None
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._signal_all(signal.SIGABRT)
            self.process.wait()
            raise AssertionError(f"it does not end\n{self.errors()}") from None
        return self.process.returncode, self.process.stdout.read(), self.errors()


def run(source: str, *args: object) -> tuple[int, str, str]:
    """Run a Python program to its end."""
    with Script(source, *args, stdin=subprocess.DEVNULL) as script:
        return script.end()
