"""Results of many jobs, pooled over rounds, and kept as JSON.

Pools only what was measured alike: same mode, state, size and peer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jobs import failure
from .peers import PEERS
from .stats import median

Record = dict[str, Any]  # job, round, result
PEER_ORDER = [peer.name for peer in PEERS]


@dataclass
class Results:
    """Records of one or more sections."""

    records: list[Record]

    def where(self, **wanted: Any) -> Results:
        """The records whose job has these values."""
        return Results(
            [r for r in self.records if all(r["job"].get(k) == v for k, v in wanted.items())]
        )

    def peers(self) -> list[str]:
        """The peers that were asked, in the order of peers.py."""
        asked = {record["job"]["peer"] for record in self.records}
        return [name for name in PEER_ORDER if name in asked]

    def values(self, key: str) -> list[Any]:
        """The distinct values of a key of the jobs, sorted."""
        return sorted({r["job"][key] for r in self.records if r["job"].get(key) is not None})

    def good(self) -> list[dict[str, Any]]:
        """The results that hold a measurement."""
        return [r["result"] for r in self.records if failure(r["result"]) is None]

    def failure(self) -> str | None:
        """Why there is nothing, if there is nothing."""
        if self.good():
            return None
        reasons = [failure(record["result"]) for record in self.records]
        return reasons[0] if reasons else "not run"

    def nbytes(self) -> int:
        """The bytes of the state's arrays."""
        return max((result["state"]["nbytes"] for result in self.good()), default=0)

    def samples(self, key: str) -> list[float]:
        """One number of every timed save."""
        return [s[key] for result in self.good() for s in result["samples"] if s[key] is not None]

    def ratios(self, key: str, floor: str, *, first: bool = False) -> list[float]:
        """Each save's number over the floor measured right before it."""
        return [s[key] / s[floor] for s in self._saves(first) if s[floor]]

    def _saves(self, first: bool) -> Iterator[dict[str, Any]]:
        for result in self.good():
            yield from [result["first"]] if first else result["samples"]

    def loads(self, how: str, cache: str, key: str = "load") -> list[float]:
        """Seconds of every load in one way, with a cold or a warm cache."""
        return [
            sample[key]
            for result in self.good()
            if how in result
            for sample in result[how].get(cache, [])
        ]

    def pooled(self, key: str) -> list[float]:
        """The numbers of a list that every result holds."""
        return [number for result in self.good() for number in result[key]]

    def peak(self) -> float | None:
        """The most extra memory seen, by either way of looking."""
        peaks = [max(r["peak"], r.get("peak_family", 0)) for r in self.good()]
        return max(peaks, default=None)


def middle(numbers: list[float]) -> float | None:
    """The median, or None of nothing."""
    return median(numbers) if numbers else None


def write_part(file: Path, environment: dict[str, Any], records: list[Record]) -> None:
    """Write the results of one part as JSON, a line for each record."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(_rounded(record)) for record in records)
    file.write_text(f'{{"environment": {json.dumps(environment)},\n"records": [\n{lines}\n]}}\n')


def read_parts(folder: Path) -> tuple[dict[str, dict[str, Any]], Results]:
    """The environment of each part in a folder by its name, and the records of all."""
    contents = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    environments = {name: content["environment"] for name, content in contents.items()}
    return environments, Results([r for content in contents.values() for r in content["records"]])


def seconds_of(file: Path) -> float | None:
    """Seconds that a round of a part took, if it was run."""
    if not file.exists():
        return None
    environment = json.loads(file.read_text())["environment"]
    return float(environment["seconds"] / environment["rounds"])


def _rounded(content: Any) -> Any:
    """Four figures, and no less than a microsecond: the rest is noise in a diff."""
    if isinstance(content, float):
        return round(content, 6) if abs(content) < 1 else float(f"{content:.5g}")
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return content
