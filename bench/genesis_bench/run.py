"""Runs the benchmarks and writes docs/benchmarks.md: `make bench`, `make bench ARGS=--quick`.

Each part has a file of results, so that one can be run again by itself (`--only saves-big loads`).
Tables, verdicts and pictures are made from those files and from nothing else (`--render`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from . import environment, jobs, report
from .parts import Part, choose, parts
from .results import read_parts, seconds_of, write_part

ROOT = jobs.HERE.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "docs" / "benchmarks"
TRIAL = jobs.HERE / ".work" / "quick"


def main() -> None:
    # So that the process of a job, which is in a group of its own, is ended with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    folder = options.out or (TRIAL if options.quick else RESULTS)
    if not options.render:
        chosen = choose(parts(quick=options.quick), options.only)
        _run(chosen, folder, options)
    _render(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small states, few peers: a minute")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts whose names begin so")
    parser.add_argument("--rounds", type=int, help="rounds of each part, instead of its own number")
    parser.add_argument("--dir", help="a folder on the disk to measure; default: bench/.work")
    parser.add_argument("--out", type=Path, help="where results go; default: docs/benchmarks")
    parser.add_argument("--render", action="store_true", help="run nothing, only write the page")
    return parser.parse_args()


def _run(chosen: list[Part], folder: Path, options: argparse.Namespace) -> None:
    ahead = {part.name: _forecast(part, folder, options.rounds) for part in chosen}
    _tell(f"{len(chosen)} parts, about {_clock(sum(ahead.values()))} on a quiet machine")
    for part in chosen:
        rest = sum(list(ahead.values())[list(ahead).index(part.name) :])
        _tell(f"\n{part.name}: about {_clock(ahead[part.name])}; {_clock(rest)} to the end")
        _run_part(part, folder, options)


def _run_part(part: Part, folder: Path, options: argparse.Namespace) -> None:
    rounds = options.rounds or part.rounds
    began = time.perf_counter()
    with jobs.temporary_place(options.dir) as place:
        described = environment.describe(str(place.folder))
        records = jobs.run_rounds(part.jobs, rounds, place, _Progress(len(part.jobs) * rounds))
    run = {"rounds": rounds, "seconds": round(time.perf_counter() - began)}
    write_part(folder / f"{part.name}.json", described | run, records)


class _Progress:
    """Prints a line for each job, with how many are left and how long they may take."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.perf_counter()

    def __call__(self, line: str) -> None:
        self._done += 1
        left = (time.perf_counter() - self._began) / self._done * (self._total - self._done)
        _tell(f"  {self._done}/{self._total} {_clock(left)} left{line}")


def _forecast(part: Part, folder: Path, rounds: int | None) -> float:
    """Seconds that the part took last time, else those that it took its author."""
    last = seconds_of(folder / f"{part.name}.json")
    usual = part.minutes * 60 / part.rounds if last is None else last
    return usual * (rounds or part.rounds)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _tell(line: str) -> None:
    print(line, flush=True)


def _render(folder: Path) -> None:
    from . import plots

    environments, results = read_parts(folder)
    if not environments:
        raise SystemExit(f"no results in {folder}")
    plots.draw(results, folder)
    texts = report.blocks(results, environments)
    _tell(f"\n{texts['environment']}\n\n{texts['goals']}")
    if folder.resolve() != RESULTS:
        page = folder / "page.md"
        page.write_text(report.page(texts))
        _tell(f"\nWrote {page}")
        return
    homeless = report.put(PAGE, texts)
    _tell(f"\nWrote {PAGE}")
    if homeless:
        raise SystemExit(f"{PAGE.name} has no place for: {', '.join(homeless)}")


if __name__ == "__main__":
    main()
