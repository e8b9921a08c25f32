"""How long each way to save holds up training, for a model of your size: `--params 50M`.

Prints a table, writes JSON and a picture; saves nothing of yours and keeps no checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import environment, jobs, plots, report
from .gpt import BYTES_PER_PARAMETER
from .peers import PEERS
from .results import Results, write_part

UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


def main() -> None:
    options = _options()
    names = _names(options.peers)
    with jobs.temporary_place(options.dir) as place:
        described = environment.describe(str(place.folder))
        print(f"{described['date']}; {environment.line(described)}\n", flush=True)
        records = jobs.run_rounds(_save_jobs(names, options), options.rounds, place, _tell)
        if not options.no_timeline:
            timed = [name for name in plots.TIMELINES if name in names]
            records += jobs.run_rounds(_training_jobs(timed, options), 1, place, _tell)
    _show(Results(records), described, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=_number, default=_number("80M"), metavar="50M")
    parser.add_argument("--peers", help="names or parts of names, separated by semicolons")
    parser.add_argument("--saves", type=int, default=5, help="timed saves per round and peer")
    parser.add_argument("--rounds", type=int, default=2, help="rounds, each in a new process")
    parser.add_argument("--dir", help="a folder on the disk to measure; default: bench/.work")
    parser.add_argument("--out", type=Path, default=Path("stall"), help="STEM.json, STEM.png")
    parser.add_argument("--no-timeline", action="store_true", help="no step times around a save")
    parser.add_argument("--quick", action="store_true", help="2M parameters, few saves")
    options = parser.parse_args()
    if options.quick:
        options.params, options.saves, options.rounds = _number("2M"), 3, 1
    return options


def _number(text: str) -> int:
    unit = UNITS.get(text[-1].upper(), 1)
    return int(float(text.rstrip("KMGBkmgb")) * unit)


def _names(wanted: str | None) -> list[str]:
    names = [peer.name for peer in PEERS if "torch" in peer.kinds]
    if wanted is None:
        return names
    parts = [part.strip() for part in wanted.split(";")]
    chosen = [name for name in names if any(part in name for part in parts)]
    if not chosen:
        raise SystemExit(f"no peer matches {wanted!r}; there are: {'; '.join(names)}")
    return chosen


def _save_jobs(names: list[str], options: argparse.Namespace) -> list[jobs.Job]:
    return [_job("saves", name, options) | {"saves": options.saves} for name in names]


def _training_jobs(names: list[str], options: argparse.Namespace) -> list[jobs.Job]:
    return [_job("training", name, options) | {"pairs": 1, "steps": 8} for name in names]


def _job(mode: str, peer: str, options: argparse.Namespace) -> jobs.Job:
    nbytes = options.params * BYTES_PER_PARAMETER
    return {"mode": mode, "state": "big", "nbytes": nbytes, "peer": peer}


def _tell(line: str) -> None:
    print(line, flush=True)


def _show(results: Results, described: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"\n{report.saves(results.where(mode='saves'))}")
    trained = results.where(mode="training")
    if trained.good():
        print(f"\n{report.training(trained)}")
    print(f"\n{environment.BIAS}")
    write_part(options.out.with_suffix(".json"), described, results.records)
    picture = options.out.with_suffix(".png")
    plots.stall(results.where(mode="saves"), picture, trained)
    print(f"\nWrote {options.out.with_suffix('.json')} and {picture}")


if __name__ == "__main__":
    main()
