"""Saves with a fault in each of their calls, one forked child after another, and what came of it.

A process of its own (`python -m faults.lab KIND SCENARIO FOLDER`), because it must have no threads
when it forks and no other children; it prints JSON for `harness`. It stops at the first call that
is not reached any more, never at a number known beforehand.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import tracer
from .scenarios import Scenario, find, in_short, is_same, names_after
from .tracer import Call, Fault, Trace

_SECONDS = 60
_MOST = 3000
"""Calls that one save may make: more would mean that it never ends."""

_SPACE = {
    "openat", "open", "creat", "write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate",
    "fallocate", "fsync", "fdatasync", "link", "linkat", "rename", "renameat", "renameat2",
    "mkdir", "mkdirat", "symlink", "symlinkat", "copy_file_range",
}  # fmt: skip
_INTERRUPTIBLE = {
    "openat", "open", "read", "pread64", "preadv", "write", "writev", "pwrite64", "pwritev",
    "pwritev2", "fsync", "fdatasync", "flock", "close", "ftruncate", "fallocate",
}  # fmt: skip
_OPENS = {"open", "openat", "openat2", "creat"}
_NO_SUCH_ERRORS = {"mmap", "lseek", "dup", "dup2", "dup3", "io_uring_setup"}
_REMOVES = {"unlink", "unlinkat", "rmdir"}
_SYNCS = {"fsync", "fdatasync"}
_LINKS = {"link", "linkat"}
_RENAMES = {"rename", "renameat", "renameat2"}
_MUST_REACH_CALLER = {*tracer.WRITES, *_SYNCS, *_RENAMES}
"""Where a failure means that the new file is not there, or not safe."""

_O_CREAT = os.O_CREAT

ENVIRONMENTS: dict[str, Callable[[Call], int]] = {
    "": lambda call: 0,
    "no-hard-links": lambda call: errno.EPERM if call.name in _LINKS else 0,
    "no-locks": lambda call: errno.ENOLCK if _locks_directory(call) else 0,
    "no-locks-at-all": lambda call: errno.ENOTSUP if call.name == "flock" else 0,
    "no-directory-sync": lambda call: (
        errno.EINVAL if call.name in _SYNCS and os.path.isdir(call.paths[0]) else 0
    ),
    "no-ownership": lambda call: errno.EPERM if call.name in ("fchown", "fchownat") else 0,
    "no-direct-io": lambda call: (
        errno.EINVAL if call.name == "fcntl" and call.args[1] == 4 and call.args[2] & 0o40000 else 0
    ),
    "no-direct-writes": lambda call: errno.EINVAL if _writes_directly(call) else 0,
}
"""File systems that lack something: the errno that a call gets there, or zero."""


def _locks_directory(call: Call) -> bool:
    return call.name == "flock" and os.path.isdir(call.paths[0])


def _writes_directly(call: Call) -> bool:
    """Whether a write goes through a descriptor with O_DIRECT; the call has not been made yet."""
    if call.name not in tracer.WRITES:
        return False
    with open(f"/proc/{call.pid}/fdinfo/{call.args[0]}") as file:
        flags = next(line.split()[1] for line in file if line.startswith("flags:"))
    return bool(int(flags, 8) & os.O_DIRECT)


@dataclass(slots=True)
class Result:
    """What an enumeration found.

    Attributes:
        points: how many calls were hit, one per run.
        calls: how often each call was the one.
        seen: what readers saw afterwards.
        failures: what must not happen, with enough to do it again.
    """

    scenario: str
    kind: str
    points: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def note(self, number: int, where: str, problems: list[str]) -> None:
        self.failures += [f"{self.scenario} {self.kind} -n {number}: {where}: {p}" for p in problems]


class Bench:
    """Folders to save in, each a copy of one that a scenario prepared."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self._folder = folder
        self.template = folder / "template"
        self.template.mkdir(parents=True)
        isolated(lambda: scenario.prepare(self.template))
        seen = isolated(lambda: scenario.see(self.template))
        if seen != scenario.before:
            raise RuntimeError(f"{scenario.name}: prepared {scenario.before!r}, found {seen!r}")

    def place(self, number: int) -> Path:
        place = self._folder / f"{number:05}" / "d"
        shutil.copytree(self.template, place, symlinks=True)
        return place

    def drop(self, place: Path) -> None:
        shutil.rmtree(place.parent)


def isolated(body: Callable[[], Any]) -> Any:
    """The JSON value that `body` returns in a forked child, which takes its threads along."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(_SECONDS)

        def report() -> None:
            os.write(writer, json.dumps(body()).encode())

        tracer.run_and_exit(report)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status or not data:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"a child that no fault was injected into ended with {code}")
    return json.loads(data)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- kills ---------------------------------------------------------------------------------------


def kills(
    scenario: Scenario, bench: Bench, environment: str, *, fresh: bool, only: int = 0
) -> Result:
    """Kill the save before each of its calls; look at what is left, and save again."""
    result = Result(scenario.name, f"kill {environment}".strip())
    refuse = ENVIRONMENTS[environment]
    for number in [only] if only else range(1, _MOST):
        place = bench.place(number)

        def decide(call: Call, number: int = number) -> Fault | None:
            if call.number == number:
                return Fault(kill=True)
            return Fault(error=code) if (code := refuse(call)) else None

        body = _program(scenario, place) if fresh else _plain(scenario, place)
        trace = tracer.trace(body, str(place), decide, seconds=_SECONDS)
        if trace.status != -signal.SIGKILL:
            if trace.status:
                result.note(number, "no fault", [f"exit status {trace.status}"])
            bench.drop(place)
            break
        call = trace.calls[number - 1]
        result.points += 1
        result.calls[call.name] += 1
        report = isolated(lambda place=place: _after_kill(scenario, place))
        result.seen[in_short(report["seen"])] += 1
        problems = _judge_kill(scenario, report)
        result.note(number, str(call), problems)
        if not problems:
            bench.drop(place)
    return result


def _plain(scenario: Scenario, place: Path) -> Callable[[], None]:
    def body() -> None:
        states = scenario.states(2)
        tracer.mark(tracer.START)
        scenario.save(place, states, 2)
        tracer.mark(tracer.STOP)

    return body


def _program(scenario: Scenario, place: Path) -> Callable[[], None]:
    """The same in an interpreter of its own."""
    code = "from faults.scenarios import main; main()"
    command = [sys.executable, "-c", code, scenario.name, str(place)]
    return lambda: os.execv(sys.executable, command)


def _after_kill(scenario: Scenario, place: Path) -> dict[str, Any]:
    seen = scenario.see(place)
    alone = scenario.see_without_backup(place, place.parent / "spare")
    left = _names(place)
    error = ""
    try:
        scenario.save(place, scenario.states(3), 3)
        scenario.settle()
    except Exception as exc:
        error = f"{type(exc).__name__}: {exc}"
    return {
        "seen": seen,
        "alone": alone,
        "left": left,
        "error": error,
        "last": scenario.see(place),
        "names": _names(place),
    }


def _judge_kill(scenario: Scenario, report: dict[str, Any]) -> list[str]:
    problems = []
    if report["seen"] not in scenario.allowed:
        problems.append(f"a reader finds {report['seen']!r} among {report['left']}")
    elif report["alone"] not in scenario.allowed:
        problems.append(f"without the backup a reader finds {report['alone']!r}")
    if report["error"]:
        problems.append(f"the next save fails: {report['error']}")
    if report["last"] not in _lasts(scenario, report["seen"]):
        problems.append(f"after the next save a reader finds {report['last']!r}")
    if litter := sorted(set(report["names"]) - _allowed_names(scenario, report["last"])):
        problems.append(f"the next save leaves {litter}")
    return problems


def _lasts(scenario: Scenario, seen: str) -> set[str]:
    """A manager that never finished epoch 2 keeps epoch 1 with epoch 3."""
    if scenario.name == "manager" and "2" not in seen:
        return {"1,3"}
    return {scenario.last}


def _allowed_names(scenario: Scenario, seen: str) -> set[str]:
    if scenario.name == "manager":
        return {f"epoch_{int(epoch):06d}.pth" for epoch in seen.split(",") if epoch.isdigit()}
    return {*names_after(scenario, 3)}


# --- errors --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """What the process that met an error saw of it itself."""

    error: str = ""
    kind: str = ""
    codes: list[int] = field(default_factory=list)
    seen: str = ""
    alone: str = ""
    names: list[str] = field(default_factory=list)
    intact: bool = False
    cleared: bool = False
    descriptors: list[str] = field(default_factory=list)
    locks: list[str] = field(default_factory=list)
    error_again: str = ""
    seen_again: str = ""
    names_again: list[str] = field(default_factory=list)
    cleared_again: bool = False


def _reporting(scenario: Scenario, place: Path, writer: int) -> Callable[[], None]:
    """Save where the fault is, look around, save once more without it, and report."""

    def body() -> None:
        states = scenario.states(2)
        report = Report()
        before = _descriptors()
        tracer.mark(tracer.START)
        try:
            scenario.save(place, states, 2)
        except Exception as exc:
            report.error, report.kind = f"{type(exc).__name__}: {exc}", type(exc).__name__
            report.codes = _codes(exc)
        tracer.mark(tracer.STOP)
        report.descriptors = sorted((Counter(_descriptors()) - Counter(before)).elements())
        report.locks = _locks()
        report.intact = all(map(is_same, states, scenario.states(2)))
        report.cleared = not any(states)
        place.mkdir(exist_ok=True)
        report.names = _names(place)
        report.seen = scenario.see(place)
        report.alone = scenario.see_without_backup(place, place.parent / "spare")
        _save_again(scenario, place, report)
        os.write(writer, json.dumps(asdict(report)).encode())

    return body


def _save_again(scenario: Scenario, place: Path, report: Report) -> None:
    states = scenario.states(3)
    try:
        scenario.save(place, states, 3)
        scenario.settle()
    except Exception as exc:
        report.error_again = f"{type(exc).__name__}: {exc}"
    report.cleared_again = not any(states)
    report.seen_again = scenario.see(place)
    report.names_again = _names(place)


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


Select = Callable[[Call], bool]


def _select(code: int, *, late: bool) -> Select:
    """The calls that a given error can come from."""
    if code in (errno.ENOSPC, errno.EDQUOT):
        return lambda call: call.name in _SPACE and (
            call.name not in _OPENS or bool(call.args[2] & _O_CREAT)
        )
    if code == errno.EINTR:
        return lambda call: call.name in _INTERRUPTIBLE and not _is_listing(call)
    if late:  # of what it gave nobody knows: it could not be closed or removed
        return lambda call: call.name not in {*_NO_SUCH_ERRORS, *_OPENS, "fcntl"}
    return lambda call: call.name not in _NO_SUCH_ERRORS


def _is_listing(call: Call) -> bool:
    """Opened by `os.listdir`, which Python does not make again."""
    return call.name in _OPENS and bool(call.args[2] & os.O_NONBLOCK)


def _run(
    scenario: Scenario, bench: Bench, number: int, decide: tracer.Decide
) -> tuple[Trace, Report | None, Path]:
    place = bench.place(number)
    decide = getattr(decide, "at", lambda place: decide)(place)
    reader, writer = os.pipe()
    try:
        try:
            body = _reporting(scenario, place, writer)
            trace = tracer.trace(body, str(place), decide, seconds=_SECONDS)
        finally:
            os.close(writer)
        data = b"".join(_chunks(reader))
    finally:
        os.close(reader)
    return trace, Report(**json.loads(data)) if data else None, place


def _chunks(reader: int) -> Iterator[bytes]:
    while chunk := os.read(reader, 1 << 16):
        yield chunk


def errors(
    scenario: Scenario,
    bench: Bench,
    code: int,
    *,
    persist: bool = False,
    late: bool = False,
    short_first: bool = False,
    only: int = 0,
) -> Result:
    """Let each call fail, once or from there on.

    Args:
        late: the call is done, and still reported as failed, as network file systems do.
        short_first: the write before the failing one is a short one, as on a disk that fills up.
    """
    words = [errno.errorcode[code], "lasting" * persist, "late" * late, "short" * short_first]
    result = Result(scenario.name, f"error {' '.join(filter(None, words))}")
    select = _select(code, late=late)
    for number in [only] if only else range(1, _MOST):
        decide = _failing(number, code, select, persist=persist, late=late, short=short_first)
        trace, report, place = _run(scenario, bench, number, decide)
        if not trace.faults:
            bench.drop(place)
            break
        call = trace.faults[0]
        result.points += 1
        result.calls[call.name] += 1
        problems = _judge_error(scenario, trace, report, code, place)
        result.seen[in_short(report.seen) if report else "nothing"] += 1
        result.note(number, f"{call}: {call.fault}", problems)
        if not problems:
            bench.drop(place)
    return result


def _failing(
    number: int, code: int, select: Select, *, persist: bool, late: bool, short: bool
) -> tracer.Decide:
    hits = 0
    shortened = False

    def decide(call: Call) -> Fault | None:
        nonlocal hits, shortened
        if not select(call):
            return None
        hits += 1
        if hits < number or (hits > number + shortened and not persist):
            return None
        if short and not shortened and call.name in tracer.WRITES:
            shortened = True
            return Fault(short=True)
        # A close that fails has closed all the same, on Linux.
        return Fault(error=code, late=late or call.name == "close")

    return decide


def _judge_error(
    scenario: Scenario, trace: Trace, report: Report | None, code: int, place: Path
) -> list[str]:
    if report is None:
        return [f"the process ended with status {trace.status}"]
    problems = _judge_outcome(scenario, trace, report, code)
    problems += _judge_syncs(trace, report)
    problems += _judge_litter(scenario, trace, report, place)
    problems += _judge_rest(scenario, report)
    return problems


def _judge_outcome(scenario: Scenario, trace: Trace, report: Report, code: int) -> list[str]:
    problems = []
    if report.error:
        if code == errno.EINTR:
            problems.append(f"an interrupted call was not made again: {report.error}")
        if code not in report.codes:
            problems.append(f"the caller got {report.error}, which does not say {code}")
        if not report.intact:
            problems.append("the dict was changed by a save that failed")
        unknown = report.kind == "DurabilityUnknownError"
        due = {scenario.after} if unknown else {scenario.before}
        if scenario.between:  # what a manager does after its save may fail as well
            due = {*scenario.allowed}
        if any(call.name in _RENAMES and "after" in call.fault for call in trace.faults):
            due = {*scenario.allowed}
    else:
        due = {scenario.after}
        if not report.cleared:
            problems.append("the dict was not cleared by a save that succeeded")
        lost = [call for call in trace.faults if _must_reach_caller(call)]
        if lost and code != errno.EINTR and not _written_anew(trace, lost):
            problems.append(f"nobody heard of it, although {', '.join(map(str, lost))} failed")
    if report.seen not in due:
        problems.append(f"a reader finds {report.seen!r} after {report.error or 'success'}")
    elif report.alone not in due:
        problems.append(f"without the backup a reader finds {report.alone!r}")
    return problems


def _must_reach_caller(call: Call) -> bool:
    return call.name in _MUST_REACH_CALLER and "short" not in call.fault


def _written_anew(trace: Trace, lost: list[Call]) -> bool:
    """Whether all that failed was on files that were given up, another one taking their place."""
    renamed = {call.paths[0] for call in trace.calls if call.name in _RENAMES and not call.fault}
    return not any(os.path.isdir(call.paths[0]) or call.paths[0] in renamed for call in lost)


def _judge_syncs(trace: Trace, report: Report) -> list[str]:
    """A sync that failed is final for that file: no second one, no rename of it."""
    problems = []
    for failed in trace.faults:
        if failed.name not in _SYNCS or failed.result == -errno.EINTR:
            continue
        for call in trace.calls[failed.number :]:
            if call.name in _SYNCS and call.paths[0] == failed.paths[0]:
                problems.append(f"synced again after an error: {call}")
            if call.name in _RENAMES and call.paths[-2] == failed.paths[0]:
                problems.append(f"renamed although its sync failed: {call}")
    return problems


def _judge_litter(scenario: Scenario, trace: Trace, report: Report, place: Path) -> list[str]:
    due = {*names_after(scenario, 2 if report.seen == scenario.after else 1)}
    if report.seen == "absent":
        due.discard(scenario.path(place).name)
    if scenario.name == "manager":
        due = _allowed_names(scenario, report.seen)
    # What could not be removed is still there; what fails and lasts keeps anybody from removing.
    kept = {os.path.basename(path) for c in trace.faults if c.name in _REMOVES for path in c.paths}
    if report.kind == "DurabilityUnknownError":
        kept |= {f"{name}.genesis.bak" for name in due}
    litter = sorted({*report.names} - due - kept)
    problems = [f"{report.error or 'the save'} left {litter}"] if litter else []
    if missing := sorted(due - {*report.names}):
        problems.append(f"{missing} is missing")
    return problems


def _judge_rest(scenario: Scenario, report: Report, *, last: set[str] | None = None) -> list[str]:
    problems = []
    if report.descriptors:
        problems.append(f"descriptors leaked: {report.descriptors}")
    if report.locks:
        problems.append(f"locks leaked: {report.locks}")
    if report.error_again:
        problems.append(f"the next save in the same process failed: {report.error_again}")
    elif not report.cleared_again:
        problems.append("the next save in the same process did not clear the dict")
    if report.seen_again not in (last or _lasts(scenario, report.seen)):
        problems.append(f"after the next save a reader finds {report.seen_again!r}")
    allowed = _allowed_names(scenario, report.seen_again)
    if litter := sorted(set(report.names_again) - allowed):
        problems.append(f"the next save left {litter}")
    return problems


# --- what is no error ----------------------------------------------------------------------------


def must_succeed(
    scenario: Scenario, bench: Bench, kind: str, choose: Callable[[int], tracer.Decide]
) -> Result:
    """Disturb the save in a way that it has to bear: it succeeds, and nobody sees a difference."""
    result = Result(scenario.name, kind)
    for number in range(1, _MOST):
        trace, report, place = _run(scenario, bench, number, choose(number))
        if not trace.faults:
            bench.drop(place)
            break
        call = trace.faults[0]
        result.points += 1
        result.calls[call.name] += 1
        problems = [f"the process ended with {trace.status}"]
        if report is not None:
            result.seen[in_short(report.seen)] += 1
            problems = [f"failed: {report.error}"] if report.error else []
            if report.seen != scenario.after:
                problems.append(f"a reader finds {report.seen!r}")
            problems += _judge_litter(scenario, trace, report, place)
            problems += _judge_rest(scenario, report)
        problems = [p for p in problems if ".genesis.lock" not in p]
        result.note(number, str(call), problems)
        if not problems:
            bench.drop(place)
        if not kind.startswith("short"):
            break
    return result


def short_writes(scenario: Scenario, bench: Bench) -> Result:
    """From the n-th write on, let every write have a part of its bytes only."""

    def choose(number: int) -> tracer.Decide:
        hits = 0

        def decide(call: Call) -> Fault | None:
            nonlocal hits
            hits += call.name in tracer.WRITES
            return Fault(short=True) if call.name in tracer.WRITES and hits >= number else None

        return decide

    return must_succeed(scenario, bench, "short writes", choose)


def poor_file_system(scenario: Scenario, bench: Bench, environment: str) -> Result:
    """A file system that lacks something: the save finds another way."""
    refuse = ENVIRONMENTS[environment]

    def choose(number: int) -> tracer.Decide:
        return lambda call: Fault(error=code) if (code := refuse(call)) else None

    return must_succeed(scenario, bench, environment, choose)


# --- a directory that goes away --------------------------------------------------------------------


def removed_directory(scenario: Scenario, bench: Bench) -> Result:
    """Remove the whole directory before each call. Nothing can be saved; nothing may break."""
    result = Result(scenario.name, "removed directory")
    for number in range(1, _MOST):

        class _Remove:
            def at(self, place: Path, number: int = number) -> tracer.Decide:
                def decide(call: Call) -> Fault | None:
                    if call.number != number:
                        return None
                    return Fault(meanwhile=lambda: shutil.rmtree(place))

                return decide

        trace, report, place = _run(scenario, bench, number, _Remove())  # type: ignore[arg-type]
        if not trace.faults:
            bench.drop(place)
            break
        call = trace.faults[0]
        result.points += 1
        result.calls[call.name] += 1
        if report is None:
            problems = [f"the process ended with {trace.status}"]
        else:
            result.seen[report.error.partition(":")[0] or "success"] += 1
            last = {"3"} if scenario.name == "manager" else None
            problems = _judge_rest(scenario, report, last=last)
            if report.error and not report.intact:
                problems.append("the dict was changed by a save that failed")
            if report.error and not {errno.ENOENT, errno.ESTALE} & set(report.codes):
                problems.append(f"the caller got {report.error}")
        result.note(number, str(call), problems)
        if not problems:
            bench.drop(place)
    return result


# --- the program -----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("scenario")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--error", default="EIO")
    parser.add_argument("--environment", default="", choices=ENVIRONMENTS)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--persist", action="store_true")
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--short-first", action="store_true")
    parser.add_argument("-n", type=int, default=0, help="this call only")
    options = parser.parse_args(arguments)
    scenario = find(options.scenario)
    scenario.warm()
    print(json.dumps(_enumerate(options, scenario, Bench(scenario, options.folder)).as_json()))


def _enumerate(options: argparse.Namespace, scenario: Scenario, bench: Bench) -> Result:
    if options.kind == "kill":
        return kills(
            scenario, bench, options.environment, fresh=options.fresh, only=options.n
        )
    if options.kind == "error":
        return errors(
            scenario,
            bench,
            getattr(errno, options.error),
            persist=options.persist,
            late=options.late,
            short_first=options.short_first,
            only=options.n,
        )
    if options.kind == "short":
        return short_writes(scenario, bench)
    if options.kind == "poor":
        return poor_file_system(scenario, bench, options.environment)
    if options.kind == "removed":
        return removed_directory(scenario, bench)
    raise SystemExit(f"no such kind of fault: {options.kind}")


if __name__ == "__main__":
    main()
