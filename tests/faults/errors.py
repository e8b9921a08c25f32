"""A save in which each file-system call fails in turn, is cut short, or finds its directory gone.

It makes the runs; `judge` says what is wrong with them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from . import tracer
from .bench import MOST, SECONDS, Bench, Result, names
from .calls import LINKS, OPENS, RENAMES, SYNCS, WRITES
from .judge import Report, hit_of, judge_failure, judge_process, judge_success
from .scenarios import Scenario, in_short, is_same
from .tracer import Call, Fault, Trace

_TAKES_SPACE = {
    *WRITES, *SYNCS, *LINKS, *RENAMES, "ftruncate", "fallocate", "mkdir", "mkdirat", "symlink",
    "symlinkat", "copy_file_range",
}  # fmt: skip
_INTERRUPTIBLE = {
    *OPENS, *WRITES, *SYNCS, "read", "pread64", "preadv", "flock", "close", "ftruncate",
    "fallocate",
}  # fmt: skip
_NEVER_FAILS = {"mmap", "lseek", "dup", "dup2", "dup3", "io_uring_setup"}

Nothing = Callable[[], None]


def errors(
    bench: Bench,
    code: int,
    *,
    persist: bool = False,
    late: bool = False,
    short_first: bool = False,
    only: int = 0,
) -> Result:
    """Let call 1, 2, 3, ... fail, of those that can fail so, until none of them is reached.

    Args:
        persist: all that follow fail as well.
        late: the call is done, and still reported as failed, as network file systems do.
        short_first: the write before a failing one is a short one, as on a disk that fills up.
        only: this call alone.
    """
    words = [errno.errorcode[code], "persist" * persist, "late" * late, "short-first" * short_first]
    kind = " ".join(filter(None, ["error", bench.environment, *words]))
    result = Result(bench.scenario.name, kind)
    for number in [only] if only else range(1, MOST):
        failing = _Failing(number, code, persist=persist, late=late, short_first=short_first)
        trace, report, place = _run(bench, number, failing)
        if not trace.faults:
            bench.drop(place)
            break
        result.hit(hit_of(trace))
        result.seen[in_short(report.seen) if report else "nothing"] += 1
        problems = judge_failure(bench, trace, report, code)
        result.note(number, f"{hit_of(trace)}: {errno.errorcode[code]}", problems)
        bench.drop(place, problems)
    return result


class _Failing:
    """Decides for each call of one run whether it fails."""

    def __init__(
        self, number: int, code: int, *, persist: bool, late: bool, short_first: bool
    ) -> None:
        self._number = number
        self._code = code
        self._persist = persist
        self._late = late
        self._short_first = short_first
        self._hits = 0

    def __call__(self, call: Call) -> Fault | None:
        if not self._can_fail(call):
            return None
        self._hits += 1
        if self._hits < self._number or (self._hits > self._number and not self._persist):
            return None
        if self._short_first and call.name in WRITES:
            self._short_first = False
            self._hits -= 1
            return Fault(short=True)
        # A close that fails has closed all the same, on Linux.
        return Fault(error=self._code, late=self._late or call.name == "close")

    def _can_fail(self, call: Call) -> bool:
        if self._code in (errno.ENOSPC, errno.EDQUOT):
            creates = call.name in OPENS and bool(call.args[2] & os.O_CREAT)
            return creates or call.name in _TAKES_SPACE
        if self._code == errno.EINTR:
            return call.name in _INTERRUPTIBLE
        if self._late:
            # What an opening call made, nobody could close or remove.
            return call.name not in {*_NEVER_FAILS, *OPENS, "fcntl"}
        return call.name not in _NEVER_FAILS


def short_writes(bench: Bench) -> Result:
    """From write 1, 2, 3, ... on, each write has a part of its bytes only."""
    result = Result(bench.scenario.name, "short")
    for number in range(1, MOST):
        if not _bears(bench, result, number, _Shortening(number)):
            break
    return result


class _Shortening:
    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self, call: Call) -> Fault | None:
        if call.name not in WRITES:
            return None
        self._left -= 1
        return Fault(short=True) if self._left <= 0 else None


def poor_file_system(bench: Bench) -> Result:
    """A file system that lacks something: the save finds another way."""
    result = Result(bench.scenario.name, f"poor --environment {bench.environment}")

    def decide(call: Call) -> Fault | None:
        return Fault(error=code) if (code := bench.lacking(call)) else None

    _bears(bench, result, 1, decide)
    return result


def _bears(bench: Bench, result: Result, number: int, decide: tracer.Decide) -> bool:
    """One run that has to succeed; ``False`` where no call of it was hit."""
    trace, report, place = _run(bench, number, decide)
    if not trace.faults:
        bench.drop(place)
        return False
    result.hit(hit_of(trace))
    result.seen[in_short(report.seen) if report else "nothing"] += 1
    problems = judge_success(bench, trace, report)
    result.note(number, hit_of(trace), problems)
    bench.drop(place, problems)
    return True


def removed_directory(bench: Bench) -> Result:
    """Remove the whole directory before call 1, 2, 3, ...: nothing can be saved, nothing breaks."""
    result = Result(bench.scenario.name, "removed")
    for number in range(1, MOST):

        def decide(call: Call, number: int = number) -> Fault | None:
            if call.number != number:
                return None
            return Fault(meanwhile=lambda: shutil.rmtree(bench.where(number)))

        trace, report, place = _run(bench, number, decide)
        if not trace.faults:
            bench.drop(place)
            break
        result.hit(hit_of(trace))
        result.seen[(report.kind or "success") if report else "nothing"] += 1
        problems = _judge_removed(bench, trace, report)
        result.note(number, hit_of(trace), problems)
        bench.drop(place, problems)
    return result


def _judge_removed(bench: Bench, trace: Trace, report: Report | None) -> list[str]:
    if report is None:
        return [f"the process ended with {trace.status}"]
    problems = judge_process(bench, report)
    if report.error and not report.intact:
        problems.append("the dict was changed by a save that failed")
    if report.error and not {errno.ENOENT, errno.ESTALE} & {*report.codes}:
        problems.append(f"the caller got {report.error}")
    return problems


# --- one run -------------------------------------------------------------------------------------


def _run(bench: Bench, number: int, decide: tracer.Decide) -> tuple[Trace, Report | None, Path]:
    place = bench.place(number)
    reader, writer = os.pipe()
    try:
        try:
            body = reporting(bench.scenario, place, writer)
            trace = tracer.trace(body, str(place), decide, seconds=SECONDS)
        finally:
            os.close(writer)
        data = b"".join(_chunks(reader))
    finally:
        os.close(reader)
    return trace, Report(**json.loads(data)) if data else None, place


def _chunks(reader: int) -> Iterator[bytes]:
    while chunk := os.read(reader, 1 << 16):
        yield chunk


def reporting(
    scenario: Scenario,
    place: Path,
    writer: int,
    disturb: Nothing = lambda: None,
    relieve: Nothing = lambda: None,
) -> Nothing:
    """The body of a child: save where the fault is, look around, save again without it, report."""

    def body() -> None:
        report = look_around(scenario, place, disturb, relieve)
        os.write(writer, json.dumps(asdict(report)).encode())

    return body


def look_around(scenario: Scenario, place: Path, disturb: Nothing, relieve: Nothing) -> Report:
    """A save between `disturb` and `relieve`, what it left, and another save after that."""
    states = scenario.states(2)
    report = Report()
    before = _descriptors()
    disturb()
    tracer.mark(tracer.START)
    try:
        scenario.save(place, states, 2)
    except Exception as exc:
        report.error, report.kind = f"{type(exc).__name__}: {exc}", type(exc).__name__
        report.codes = _codes(exc)
    tracer.mark(tracer.STOP)
    relieve()
    report.descriptors = sorted((Counter(_descriptors()) - Counter(before)).elements())
    report.locks = _locks()
    report.intact = all(map(is_same, states, scenario.states(2)))
    report.cleared = not any(states)
    place.mkdir(exist_ok=True)
    report.names = names(place)
    report.seen = scenario.see(place)
    report.alone = scenario.see_without_backup(place, place.parent / "spare")
    _save_next(scenario, place, report)
    return report


def _save_next(scenario: Scenario, place: Path, report: Report) -> None:
    states = scenario.states(3)
    try:
        scenario.save(place, states, 3)
        scenario.settle()
    except Exception as exc:
        report.error_next = f"{type(exc).__name__}: {exc}"
    report.cleared_next = not any(states)
    report.seen_next = scenario.see(place)
    report.names_next = names(place)


def _codes(exc: BaseException | None) -> list[int]:
    """Every errno in a chain of exceptions."""
    codes = []
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno is not None:
            codes.append(exc.errno)
        exc = exc.__cause__ or exc.__context__
    return codes


def _descriptors() -> list[str]:
    """What every open descriptor of this process leads to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed
        found.append(target if target.startswith("/") else target.partition(":")[0])
    return found


def _locks() -> list[str]:
    """The file locks that this process holds."""
    found = []
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            lines = Path(f"/proc/self/fdinfo/{name}").read_text().splitlines()
        except OSError:
            continue
        found += [line for line in lines if line.startswith("lock:")]
    return found
