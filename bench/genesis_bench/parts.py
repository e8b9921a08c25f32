"""What a full run measures: its parts, each with its states, sizes, peers and repeats.

A part is the unit that is run again: every ratio of the goals has both its numbers in one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .choices import MEASURES, PAIRS, ROWS
from .jobs import Job
from .peers import PEERS, Peer
from .states import KINDS, MB, SIZES

OURS = ("genesis.save", "genesis background", "genesis deferred")
# One of each way to load: the others write the same files.
LOADERS = (
    "torch.save",
    "dill, copied backup",
    "safetensors",
    "joblib",
    "dcp.save",
    "torch_checkpointing",
    "orbax async",
    "genesis.save",
)
GROWERS = (
    "torch.save",
    "torch.save + fsync",
    "dcp.async_save, stager kept",
    "dcp.async_save, async staging",
    *OURS,
)
# What is worth its 8 GB of memory and disk: the usual one, the nearest one, ours.
HUGE = ("torch.save", "torch.save + fsync", "dcp.async_save, async staging", *OURS)
QUICK = (
    "torch.save",
    "torch.save + fsync",
    "safetensors",
    "dcp.async_save",
    "dcp.async_save, async staging",
    *OURS,
)


@dataclass(frozen=True)
class Part:
    """Jobs that are shuffled together and whose results stand in one file.

    Attributes:
        minutes: what it took once, for the first forecast.
        rounds: more than one where a goal hangs on it.
    """

    name: str
    jobs: list[Job] = field(repr=False)
    minutes: float
    rounds: int = 1


def parts(*, quick: bool = False) -> list[Part]:
    """Every part, in the order run; few and small ones for a trial of the harness."""
    return _quick() if quick else _full()


def _full() -> list[Part]:
    small = {"saves": 8, "seconds": 12}
    return [
        _part("saves-big", 7.5, 2, _saves("big", saves=3, seconds=12)),
        _part("saves-small", 3.5, 2, _saves("small", **small)),
        _part("saves-many", 5, 1, _saves("many", saves=4, seconds=20), _few()),
        _part("training", 7, 1, _training()),
        _part("loads-big", 3, 2, _loads("big")),
        _part("loads-small", 2, 2, _loads("small")),
        _part("memory", 3, 1, _memory()),
        _part("flat", 1, 1, _jobs("flat", "big", OURS, nbytes=40 * MB, saves=200)),
        _part("growth", 3, 1, _growth()),
        _part("saves-numpy", 3, 1, _saves("numpy", saves=4, seconds=8)),
        _part("loads-numpy", 2, 1, _loads("numpy")),
        _part("saves-jax", 3, 1, _saves("jax", saves=4, seconds=8)),
        _part("loads-jax", 1, 1, _loads("jax")),
        _part("saves-objects", 4, 1, _saves("objects", **small), _saves("plain_objects", **small)),
        _part("saves-huge", 4, 1, _jobs("saves", "huge", HUGE, saves=1)),
        _part("check", 2, 1, _check()),
        _part("choices", 3, 1, _choices()),
    ]


def _quick() -> list[Part]:
    one: dict[str, Any] = {"saves": 2, "quick": True}
    return [
        _part("saves-big", 0.4, 1, _jobs("saves", "big", QUICK, **one)),
        _part("saves-small", 0.3, 1, _jobs("saves", "small", QUICK[:1] + QUICK[4:], **one)),
        _part("training", 0.3, 1, _jobs("training", "big", OURS[1:], quick=True, pairs=1, steps=3)),
        _part("loads-big", 0.2, 1, _loads("big", QUICK, quick=True)),
        _part("memory", 0.1, 1, _jobs("memory", "big", OURS[1:2], **one)),
        _part("choices", 0.8, 1, _choices(quick=True)),
    ]


def _part(name: str, minutes: float, rounds: int, *jobs: list[Job]) -> Part:
    return Part(name, [job for some in jobs for job in some], minutes, rounds)


def _jobs(
    mode: str,
    state: str,
    names: Iterable[str] | None = None,
    *,
    quick: bool = False,
    nbytes: int | None = None,
    **options: Any,
) -> list[Job]:
    size = nbytes or SIZES[state][quick]
    common = {"mode": mode, "state": state, "nbytes": size, **options}
    return [common | {"peer": peer.name} for peer in _who(state, names)]


def _who(state: str, names: Iterable[str] | None) -> list[type[Peer]]:
    wanted = None if names is None else set(names)
    return [
        peer
        for peer in PEERS
        if KINDS[state] in peer.kinds and (wanted is None or peer.name in wanted)
    ]


def _saves(state: str, **options: Any) -> list[Job]:
    return _jobs("saves", state, **options)


def _training() -> list[Job]:
    # More windows for those that a goal names.
    found = _jobs("training", "big", pairs=2, steps=6)
    return [
        job | {"pairs": 4} if job["peer"] in (*OURS, "torch.save + fsync") else job for job in found
    ]


def _few() -> list[Job]:
    return _jobs("saves", "few", ("torch.save", *OURS), saves=6)


def _loads(state: str, names: Iterable[str] = LOADERS, *, quick: bool = False) -> list[Job]:
    chosen = [name for name in names if name in LOADERS]
    return _jobs("loads", state, chosen, quick=quick, loads=1 if quick else 2)


def _memory() -> list[Job]:
    return [
        *_jobs("memory", "big", nbytes=250 * MB, saves=2),
        *_jobs("memory", "big", OURS, nbytes=1000 * MB, saves=2),
        *_jobs("memory", "big", OURS[:1], nbytes=4000 * MB, saves=1),
    ]


def _growth() -> list[Job]:
    by_bytes = [
        job
        for nbytes in (30 * MB, 300 * MB)
        for job in _jobs("saves", "gpt", GROWERS, nbytes=nbytes, saves=3, seconds=6)
    ]
    by_count = [
        job | {"count": count}
        for count in (100, 1000, 10_000)
        for job in _jobs("saves", "tensors", GROWERS, nbytes=100 * MB, saves=3, seconds=8)
    ]
    return [*by_bytes, *by_count]


def _check() -> list[Job]:
    return [
        job for state in ("big", "jax", "objects") for job in _jobs("check", state, nbytes=2 * MB)
    ]


def _choices(*, quick: bool = False) -> list[Job]:
    return [
        job | {"choice": row.name, "pairs": 2 if quick else PAIRS[row.state]}
        for row in ROWS
        for job in _jobs("choices", row.state, MEASURES[row.measure][:1], quick=quick)
    ]


def choose(found: list[Part], wanted: list[str] | None) -> list[Part]:
    """The parts whose names begin with one of the words.

    Raises:
        SystemExit: a word begins no name.
    """
    if not wanted:
        return found
    begins: Callable[[str, str], bool] = str.startswith
    for word in wanted:
        if not any(begins(part.name, word) for part in found):
            raise SystemExit(f"no part begins with {word!r}: {', '.join(p.name for p in found)}")
    return [part for part in found if any(begins(part.name, word) for word in wanted)]
