"""The fault tests themselves: they see what strace sees, and find flaws put before them.

The flawed writers are the relatives of `toy`; the sound one must pass everything.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from . import tracer
from .calls import SHAPES
from .harness import environment, run, survives, why_not_traced
from .kills import PROGRAM
from .scenarios import find

pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced() or "traced")

FLAWS = [
    ("in place", "kill", "", "a reader finds 'broken"),
    ("backup moved", "kill", "", "without the backup a reader finds 'absent'"),
    ("no sweep", "kill", "", "the next save leaves"),
    ("left temporary", "error", "--error ENOSPC", "left ['.model.ckpt.genesis-"),
    ("leaked descriptor", "error", "--error EIO", "descriptors leaked"),
    ("cleared early", "error", "--error EIO", "the dict was changed by a save that failed"),
    ("retried sync", "error", "--error EIO", "synced again after an error"),
    ("retried sync", "error", "--error ENOSPC", "renamed although its sync failed"),
    ("swallowed error", "error", "--error ENOSPC", "nobody heard of"),
    ("kept lock", "error", "--error EIO", "locks leaked"),
    ("one write", "short", "", "a reader finds 'broken"),
    ("one write", "file-size", "", "a reader finds 'broken"),
    ("one write", "full", "", "a reader finds 'broken"),
    ("left temporary", "full", "", "left ['.model.ckpt.genesis-"),
    ("no file sync", "cut", "", "a reader finds 'broken"),
    ("no directory sync", "cut", "", "after 1 durable saves"),
    ("rename before sync", "cut", "", "a reader finds 'broken"),
    ("backup moved", "cut", "", "without the backup a reader finds 'absent'"),
    ("in place", "cut", "", "a reader finds 'broken"),
]


@pytest.mark.parametrize(("flaw", "kind", "options", "finding"), FLAWS)
def test_flaw_is_found(flaw: str, kind: str, options: str, finding: str, tmp_path: Path) -> None:
    (result,) = run(tmp_path, kind, f"toy:{flaw}", *options.split())
    assert any(finding in failure for failure in result["failures"]), result


@pytest.mark.parametrize("kind", ["kill", "error", "short", "removed", "cut", "full", "file-size"])
def test_sound_writer_passes(kind: str, tmp_path: Path) -> None:
    survives(tmp_path, kind, "toy")


def test_tracer_sees_what_strace_sees(tmp_path: Path) -> None:
    """Call by call, over all threads, for a save in the background."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    place = tmp_path / "d"
    place.mkdir()
    find("background").prepare(place)
    (listed,) = run(tmp_path, "list", "background")
    assert Counter(listed["calls"]) == Counter(_strace("background", place, tmp_path / "log"))
    assert listed["points"] > 20


def _strace(scenario: str, place: Path, log: Path) -> list[str]:
    """The names of the calls on a folder between the marks, by strace."""
    names = ",".join(f"?{shape.name}" for shape in SHAPES.values())
    strace = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={names}"]
    program = [sys.executable, "-c", PROGRAM, scenario, str(place)]
    subprocess.run([*strace, *program], env=environment(), check=True)
    lines = log.read_text().splitlines()
    # Without the closing bracket: strace breaks a line where another thread speaks meanwhile.
    first, last = (
        next(index for index, line in enumerate(lines) if f"close({mark}" in line)
        for mark in (tracer.START, tracer.STOP)
    )
    calls = [line for line in lines[first:last] if str(place) in line and " resumed>" not in line]
    return [line.split()[1].partition("(")[0] for line in calls]


def test_the_table_in_the_documentation_adds_up() -> None:
    """It is pasted from a run: each row has the numbers under its columns and their sum."""
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    table = page.partition("`make test` prints it")[2].split("```")[1]
    title, *lines = table.strip("\n").splitlines()
    ends = [found.end() for found in re.finditer(r"\S+(?: \S+)*", title)]
    rows = {line.split()[0]: _numbers(line, ends) for line in lines}
    whole = rows.pop("all")

    assert all(find(name) for name in rows)
    assert all(sum(row[:-1]) == row[-1] for row in (*rows.values(), whole))
    assert [sum(column) for column in zip(*rows.values(), strict=True)] == whole


def _numbers(line: str, ends: list[int]) -> list[int]:
    """What stands right-aligned below each title; 0 where nothing does."""
    words = {found.end(): int(found[0]) for found in re.finditer(r"\b\d+\b", line)}
    return [words.get(end, 0) for end in ends]
