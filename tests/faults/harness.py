"""What the tests call: run an enumeration of faults in a process of its own, and count it.

What came of enumerations that found nothing is kept for the table at the end of the tests. Nothing
here injects or judges; see `lab` for that.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import genesis

from . import tracer

TESTS = Path(__file__).parent.parent
_PACKAGE = Path(__file__).parent.name
_SHOWN = 12

RESULTS: list[dict[str, Any]] = []
"""Of every enumeration of the library's saves that each run of it survived."""


def run(folder: Path, kind: str, scenario: str, *options: str) -> list[dict[str, Any]]:
    """The results of one enumeration, one for each flaw that was asked for.

    Skips the test where this machine does not let the fault be made. Fails it where the enumeration
    itself does not run; what the results say is the caller's to assert.
    """
    command = [sys.executable, "-m", f"{_PACKAGE}.lab", kind, scenario, *options]
    done = subprocess.run(
        [*command[:5], str(folder / "work"), *options],
        cwd=TESTS,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(command)} ended with\n{done.stderr}"
    made = json.loads(done.stdout.splitlines()[-1])
    if isinstance(made, dict):
        pytest.skip(made["unavailable"])
    results: list[dict[str, Any]] = made
    return results


def survives(folder: Path, kind: str, scenario: str, *options: str) -> dict[str, Any]:
    """Run one enumeration of which every run must end well; return its result."""
    (result,) = run(folder, kind, scenario, *options)
    failures = result["failures"]
    if failures:
        again = shlex.join(
            ["python", "-m", f"{_PACKAGE}.lab", kind, scenario, "DIRECTORY", *options]
        )
        shown = "\n".join(failures[:_SHOWN])
        pytest.fail(
            f"{len(failures)} of {result['points']} runs went wrong:\n{shown}\n"
            f"again, in tests/: {again} (and -n NUMBER for one of them)",
            pytrace=False,
        )
    assert result["points"] > 0, f"{kind} {scenario} hit nothing, so it proves nothing"
    if not scenario.startswith("toy"):
        RESULTS.append(result)
    return result


@functools.cache
def why_not_traced() -> str:
    """Why system calls cannot be traced here, or an empty string."""
    return tracer.unsupported()


def environment() -> dict[str, str]:
    """Of a process that is to find both the library under test and these modules."""
    package = Path(genesis.__file__).parent.parent
    path = [str(TESTS), str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    # One thread in each child is noise enough: NumPy's own pool would be forked with it.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1"}
