"""The program that runs one enumeration of faults and prints what it found as JSON.

    python -m faults.lab KIND SCENARIO FOLDER [options]

in the directory above this one. A process of its own, because it must have no threads when it forks
and no other children. It stops at the first call that is not reached any more, never at a number
known beforehand. With ``-n`` it does one run of those again, and leaves its folder.
"""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path
from typing import Any

from . import errors, kills, powercut, real
from .bench import ENVIRONMENTS, Bench, Result
from .scenarios import Scenario, find

KINDS = ("list", "kill", "error", "short", "poor", "removed", "cut", *real.FAULTS)


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    scenario = find(options.scenario)
    try:
        results = _enumerate(options, scenario)
    except real.UnavailableError as exc:
        print(json.dumps({"unavailable": str(exc)}))
        return
    print(json.dumps([result.as_json() for result in results]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faults.lab", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("scenario")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--environment", default="", choices=ENVIRONMENTS)
    parser.add_argument("--error", default="EIO", help="the name of an errno")
    parser.add_argument("--persist", action="store_true", help="all calls from then on fail")
    parser.add_argument("--late", action="store_true", help="the call is done all the same")
    parser.add_argument("--short-first", action="store_true", help="a short write comes before")
    parser.add_argument("--fresh", action="store_true", help="an interpreter for each run")
    parser.add_argument("--without", action="append", choices=powercut.FLAWS, default=[])
    parser.add_argument("--each-sync", action="store_true", help="leave out one sync after another")
    parser.add_argument("--thorough", action="store_true", help="more states of each power cut")
    parser.add_argument("-n", type=int, default=0, help="this call only")
    return parser


def _enumerate(options: argparse.Namespace, scenario: Scenario) -> list[Result]:
    if options.kind in real.FAULTS:
        # Mounts first: a namespace of our own cannot be had once a library has started threads.
        return [real.FAULTS[options.kind](scenario, options.folder)]
    bench = Bench(scenario, options.folder, options.environment)
    if options.kind == "cut":
        flaws = options.without or [""]
        return powercut.cuts(bench, flaws, each_sync=options.each_sync, thorough=options.thorough)
    return [_ENUMERATIONS[options.kind](bench, options)]


_ENUMERATIONS: dict[str, Any] = {
    "list": lambda bench, options: kills.listing(bench),
    "kill": lambda bench, options: kills.kills(bench, fresh=options.fresh, only=options.n),
    "error": lambda bench, options: errors.errors(
        bench,
        getattr(errno, options.error),
        persist=options.persist,
        late=options.late,
        short_first=options.short_first,
        only=options.n,
    ),
    "short": lambda bench, options: errors.short_writes(bench),
    "poor": lambda bench, options: errors.poor_file_system(bench),
    "removed": lambda bench, options: errors.removed_directory(bench),
}


if __name__ == "__main__":
    main()
