"""Runs the tests that other projects ship of pickling, twice: as they are, and with genesis in the
place of pickle. Prints a table of both, and each test that differs.

    python tests/outside/suites.py [NAME ...]

It needs the wheel of genesis, and ``pip install pytest dill cloudpickle numpy pandas scipy sympy
networkx scikit-learn``. A test differs if it passes as it is and fails through
genesis; the reason stands in `REASONS`, and one without a reason is a fault to look at.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """Tests of one project: what pytest is told of them."""

    name: str
    arguments: tuple[str, ...]


PICKLING = ("-k", "pickle or pickling")


def installed(folder: str) -> str:
    """A folder of tests that is no package."""
    package, _, inner = folder.partition("/")
    found = importlib.util.find_spec(package)
    return str(Path(found.origin or "").parent / inner) if found else folder


SUITES = (
    Suite("CPython", (str(HERE / "cpython.py"),)),
    Suite("dill", ("--pyargs", "dill.tests", "--continue-on-collection-errors")),
    Suite(
        "NumPy",
        (*map(installed, ("numpy/_core/tests", "numpy/ma/tests", "numpy/random/tests")), *PICKLING),
    ),
    Suite(
        "pandas",
        (
            *("--pyargs", "pandas.tests.arrays", "pandas.tests.frame", "pandas.tests.series"),
            *("pandas.tests.indexes", "pandas.tests.tslibs", "pandas.tests.scalar"),
            *PICKLING,
        ),
    ),
    Suite("SciPy", ("--pyargs", "scipy.sparse", "scipy.interpolate", *PICKLING)),
    Suite("SymPy", ("--pyargs", "sympy.utilities.tests.test_pickling")),
    Suite("NetworkX", ("--pyargs", "networkx.classes", "networkx.utils", *PICKLING)),
    Suite(
        "scikit-learn",
        ("--pyargs", "sklearn.tests.test_common", "sklearn.ensemble", *PICKLING),
    ),
)

REASONS: dict[str, str] = {
    "test_c_methods": "the test expects a refusal; dill saves methods of C classes",
    "test_py_methods": "the test expects a refusal; dill saves methods through their class",
    "test_local_lookup_error": "the test expects a refusal; dill saves local functions",
    "test_framing": "the test looks at frames in the bytes",
    "test_optional_frames": "the test cuts frames out of the bytes, which the checksums notice",
    "test_picklebuffer_error": "the test expects protocols below 5 to refuse",
    "test_bad_things": "the test wants a bare TypeError; ours is an UnpicklableStateError",
    "sympy": "the test expects protocols 0 and 1 to refuse",
    "test_file.": "the test saves open files, which genesis refuses",
    "test_writeable_pickle": "the test wants arrays whose base is a bytes object",
    "test_datetime64_byteorder": "the test wants the byte order of the machine; ours is kept",
    "contiguous_array": "the test wants out-of-band buffers",
    "test_pickle_with_buffercallback": "the test wants out-of-band buffers",
    "test_pickle_module": "the test looks for a private name of NumPy, which ours does not write",
}
"""Part of a test's name -> why genesis differs, on purpose."""


def main(names: list[str]) -> int:
    unexplained = 0
    print("| suite | tests | pass as they are | pass through genesis | differ, explained below |")
    print("|---|---|---|---|---|")
    lines = []
    for suite in SUITES:
        if names and suite.name not in names:
            continue
        plain, ours = outcomes(suite), outcomes(suite, "-p", "through_genesis")
        differing = sorted(test for test in plain if plain[test] and not ours.get(test))
        explained = [test for test in differing if reason(test)]
        unexplained += len(differing) - len(explained)
        print(
            f"| {suite.name} | {len(plain)} | {sum(plain.values())} | {sum(ours.values())} "
            f"| {len(explained)} of {len(differing)} |",
            flush=True,
        )
        lines += [f"* {suite.name}, {test}: {reason(test) or 'UNEXPLAINED'}" for test in differing]
    print("\n" + "\n".join(lines))
    return min(unexplained, 1)


def reason(test: str) -> str | None:
    return next((why for part, why in REASONS.items() if part in test), None)


def outcomes(suite: Suite, *more: str) -> dict[str, bool]:
    """Whether each test that was run and not skipped has passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", *more),
                *(*suite.arguments, f"--junit-xml={report}", "-p", "no:cacheprovider"),
                *("-W", "ignore", "-c", os.devnull),
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *_inherited()])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        cases = ElementTree.parse(report).iter("testcase")
        return {
            f"{case.get('classname')}.{case.get('name')}": case.find("failure") is None
            and case.find("error") is None
            for case in cases
            if case.find("skipped") is None
        }


def _inherited() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
