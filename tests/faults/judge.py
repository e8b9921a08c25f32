"""What a save that met a fault may do, and what it must not: the rules, one function for each.

They look at the process's own report and at its recorded calls; they run nothing.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from .bench import Bench
from .calls import REMOVES, RENAMES, SYNCS, WRITES
from .tracer import Call, Trace


@dataclass(slots=True)
class Report:
    """What a process that met a fault saw of it, and of the save that it made next without one.

    Attributes:
        error, kind, codes: of the exception: text, type, and every errno in its chain.
        seen, alone: what a reader sees, and sees without the backup.
        intact, cleared: the dict that was passed is as it was, or empty.
        descriptors, locks: open now that were not before; held now.
    """

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
    error_next: str = ""
    seen_next: str = ""
    names_next: list[str] = field(default_factory=list)
    cleared_next: bool = False


def judge_failure(bench: Bench, trace: Trace, report: Report | None, *codes: int) -> list[str]:
    """All rules, for a save in which calls failed with one of some errnos."""
    if report is None:
        return [f"the process ended with status {trace.status}"]
    return [
        *_outcome(bench, trace, report),
        *_caller_knows(trace, report, codes),
        *_syncs_are_final(trace),
        *_leaves_no_litter(bench, trace, report),
        *judge_process(bench, report),
    ]


def judge_success(bench: Bench, trace: Trace, report: Report | None) -> list[str]:
    """All rules, for a save that has to bear what happened to it."""
    if report is None:
        return [f"the process ended with status {trace.status}"]
    return [
        *([f"failed: {report.error}"] if report.error else []),
        *_outcome(bench, trace, report),
        *_leaves_no_litter(bench, trace, report),
        *judge_process(bench, report),
    ]


def _outcome(bench: Bench, trace: Trace, report: Report) -> list[str]:
    """Success means the new state, failure the old one, with the two exceptions that are named."""
    scenario = bench.scenario
    problems = []
    # What a manager does after its save may fail, or be left undone for safety: it is logged.
    due = {scenario.after, *(scenario.between if trace.faults else ())}
    if report.error:
        due = {scenario.before, *scenario.between}
        if report.kind == "DurabilityUnknownError":
            due = {scenario.after, *scenario.between}
        if scenario.between or _renamed_unknowingly(trace):
            due |= scenario.allowed
    if report.seen not in due:
        problems.append(f"a reader finds {report.seen!r} after {report.error or 'success'}")
    elif report.alone not in due:
        problems.append(f"without the backup a reader finds {report.alone!r}")
    if report.error and not report.intact:
        problems.append("the dict was changed by a save that failed")
    if not report.error and not report.cleared:
        problems.append("the dict was not cleared by a save that succeeded")
    return problems


def _renamed_unknowingly(trace: Trace) -> bool:
    """A rename was done and reported as failed: nobody can know which file stands there."""
    return any(call.name in RENAMES and "after" in call.fault for call in trace.faults)


def _caller_knows(trace: Trace, report: Report, codes: tuple[int, ...]) -> list[str]:
    """An error reaches the caller with its errno, unless it was nothing that mattered."""
    if report.error:
        if codes == (errno.EINTR,):
            return [f"an interrupted call was not made again: {report.error}"]
        if trace.faults and not any(name in report.error for name in ("ckpt", "epoch_", "/d")):
            return [f"the caller got {report.error}, which names no file"]
        if not {*codes} & {*report.codes}:
            return [f"the caller got {report.error}, which says nothing of errno {codes}"]
        return []
    renamed = {call.paths[0] for call in trace.calls if call.name in RENAMES and not call.fault}
    lost = [
        call
        for call in trace.faults
        if call.name in {*WRITES, *SYNCS, *RENAMES}
        and "short" not in call.fault
        and call.result != -errno.EINTR
        # A file that was given up, and another written in its place, is no loss.
        and (os.path.isdir(call.paths[0]) or call.paths[0] in renamed)
    ]
    return [f"nobody heard of {call}, which failed" for call in lost]


def _syncs_are_final(trace: Trace) -> list[str]:
    """After a sync that failed: no second one of that file, and no rename of it."""
    problems = []
    for failed in trace.faults:
        if failed.name not in SYNCS or failed.result == -errno.EINTR:
            continue
        for call in trace.calls[failed.number :]:
            if call.name in SYNCS and call.paths[0] == failed.paths[0]:
                problems.append(f"synced again after an error: {call}")
            if call.name in RENAMES and call.paths[0] == failed.paths[0]:
                problems.append(f"renamed although its sync failed: {call}")
    return problems


def _leaves_no_litter(bench: Bench, trace: Trace, report: Report) -> list[str]:
    """Only what could not be removed is still there, and a backup where safety is in doubt."""
    due = bench.scenario.names(report.seen)
    kept = {os.path.basename(path) for c in trace.faults if c.name in REMOVES for path in c.paths}
    if report.kind == "DurabilityUnknownError":
        kept |= {f"{name}.genesis.bak" for name in due}
    problems = []
    if litter := bench.litter(report.names, due | kept):
        problems.append(f"{report.error or 'the save'} left {litter}")
    if missing := sorted(due - {*report.names}):
        problems.append(f"{missing} is missing")
    return problems


def judge_process(bench: Bench, report: Report) -> list[str]:
    """The process lost nothing by the fault, and its next save is as good as any."""
    scenario = bench.scenario
    problems = []
    if report.descriptors:
        problems.append(f"descriptors leaked: {report.descriptors}")
    if report.locks:
        problems.append(f"locks leaked: {report.locks}")
    if report.error_next:
        problems.append(f"the next save in the same process failed: {report.error_next}")
    elif not report.cleared_next:
        problems.append("the next save in the same process did not clear the dict")
    if report.seen_next != scenario.next(report.seen):
        problems.append(f"after the next save a reader finds {report.seen_next!r}")
    if litter := bench.litter(report.names_next, scenario.names(report.seen_next)):
        problems.append(f"the next save left {litter}")
    return problems


def hit_of(trace: Trace) -> Call:
    """The call that a fault hit first."""
    return trace.faults[0]
