"""A save killed before each of its file-system calls: what is left, and the save after it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import tracer
from .bench import MOST, SECONDS, Bench, Result, isolated, names
from .scenarios import Scenario, in_short
from .tracer import Call, Fault

PROGRAM = "from faults.scenarios import main; main()"
"""One save between marks; its arguments are the scenario and the folder."""


@dataclass(slots=True)
class _Left:
    """What another process finds after the kill, and after a save of its own."""

    seen: str
    alone: str
    names: list[str]
    error: str = ""
    seen_next: str = ""
    names_next: list[str] | None = None


def kills(bench: Bench, *, fresh: bool = False, only: int = 0) -> Result:
    """Kill at call 1, 2, 3, ... until a save comes through.

    Args:
        fresh: in an interpreter of its own each time, not in a forked child.
        only: this call alone.
    """
    scenario = bench.scenario
    result = Result(scenario.name, f"kill {bench.environment}{' fresh' * fresh}".strip())
    for number in [only] if only else range(1, MOST):
        place = bench.place(number)
        body = _program(scenario, place) if fresh else _child(scenario, place)
        trace = tracer.trace(body, str(place), _killing(number, bench), seconds=SECONDS)
        if trace.status != -signal.SIGKILL:
            if trace.status:
                result.note(number, "no fault", [f"exit status {trace.status}"])
            bench.drop(place)
            break
        call = trace.calls[number - 1]
        result.hit(call)
        left = _Left(**isolated(partial(_look, scenario, place)))
        result.seen[in_short(left.seen)] += 1
        problems = _judge(bench, left)
        result.note(number, call, problems)
        bench.drop(place, problems)
    return result


def listing(bench: Bench) -> Result:
    """No fault at all: the calls of one save in an interpreter of its own."""
    result = Result(bench.scenario.name, "list")
    place = bench.place(1)
    trace = tracer.trace(_program(bench.scenario, place), str(place), seconds=SECONDS)
    for call in trace.calls:
        result.hit(call)
    return result


def _killing(number: int, bench: Bench) -> tracer.Decide:
    def decide(call: Call) -> Fault | None:
        if call.number == number:
            return Fault(kill=True)
        return Fault(error=code) if (code := bench.lacking(call)) else None

    return decide


def _child(scenario: Scenario, place: Path) -> Callable[[], None]:
    def body() -> None:
        states = scenario.states(2)
        tracer.mark(tracer.START)
        scenario.save(place, states, 2)
        tracer.mark(tracer.STOP)

    return body


def _program(scenario: Scenario, place: Path) -> Callable[[], None]:
    command = [sys.executable, "-c", PROGRAM, scenario.name, str(place)]
    return lambda: os.execv(sys.executable, command)


def _look(scenario: Scenario, place: Path) -> dict[str, Any]:
    spare = place.parent / "spare"
    left = _Left(scenario.see(place), scenario.see_without_backup(place, spare), names(place))
    try:
        scenario.save(place, scenario.states(3), 3)
        scenario.settle()
    except Exception as exc:
        left.error = f"{type(exc).__name__}: {exc}"
    left.seen_next = scenario.see(place)
    left.names_next = names(place)
    return asdict(left)


def _judge(bench: Bench, left: _Left) -> list[str]:
    scenario = bench.scenario
    problems = []
    if left.seen not in scenario.allowed:
        problems.append(f"a reader finds {left.seen!r} among {left.names}")
    elif left.alone not in scenario.allowed:
        problems.append(f"without the backup a reader finds {left.alone!r}")
    if left.error:
        problems.append(f"the next save fails: {left.error}")
    if left.seen_next != scenario.next(left.seen):
        problems.append(f"after the next save a reader finds {left.seen_next!r}")
    if litter := bench.litter(left.names_next or (), scenario.names(left.seen_next)):
        problems.append(f"the next save leaves {litter}")
    return problems
