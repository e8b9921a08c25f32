"""Runs the tests that other projects ship of pickling, twice: as they are, and with genesis in the
place of pickle. Prints a table of both, and each test that differs.

    python tests/outside/suites.py [--write] [NAME ...]

`make outside` installs what it needs, the extra ``outside`` of pyproject.toml, and runs it.
``--write`` puts the table into docs/reliability.md. A test differs if it passes as it is and fails
through genesis; the reason stands in `REASONS`, and one without a reason is a fault to look at.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reliability.md"

TITLES = """| suite | tests | pass as they are | pass through genesis | differ | why |
|---|---|---|---|---|---|"""


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
    "test_evil_class_mutating_dict": "the test wants a bare RuntimeError; ours names the cause",
    "test_bad_things": "the test wants a bare TypeError; ours is an UnpicklableStateError",
    "test_file.": "the test saves open files, which genesis refuses",
    "test_pycapsule": "the test saves an address in memory, which genesis refuses",
    "test_weakref.": "a weak proxy is saved as what it stands for, as pickle does",
    "test_detect.test_getstate": "the test wants an option of dill's, `recurse`",
    "test_detect.test_deleted": "the test wants an option of dill's, `recurse`",
    "test_backends.test_pickle": "the test expects a refusal; dill saves functions by value",
    "test_writeable_pickle": "the test wants arrays whose base is a bytes object",
    "test_datetime64_byteorder": "the test wants the byte order of the machine; ours is kept",
    "contiguous_array": "the test wants out-of-band buffers",
    "test_pickle_with_buffercallback": "the test wants out-of-band buffers",
    "test_pickle_module": "the test looks for a private name of NumPy, which ours does not write",
}
"""Part of a test's name -> why genesis differs, on purpose."""


@dataclass
class Comparison:
    """What the tests of a suite gave, as they are and through genesis."""

    suite: Suite
    version: str
    plain: dict[str, bool]
    ours: dict[str, bool]

    @property
    def differing(self) -> list[str]:
        return sorted(
            test for test, passed in self.plain.items() if passed and not self.ours.get(test)
        )

    def row(self) -> str:
        counts = [len(self.plain), sum(self.plain.values()), sum(self.ours.values())]
        cells = [f"{self.suite.name} {self.version}", *(f"{count:,}" for count in counts)]
        return f"| {' | '.join([*cells, str(len(self.differing)), self.why()])} |"

    def why(self) -> str:
        """The reasons why tests differ, each with their number."""
        counts = Counter(reason(test) or "**unexplained**" for test in self.differing)
        return "; ".join(f"{count}: {why}" for why, count in counts.most_common())


def main(arguments: list[str]) -> int:
    names = [name for name in arguments if name != "--write"]
    results = []
    for suite in SUITES:
        if not names or suite.name in names:
            results.append(compared(suite))
            print(results[-1].row(), flush=True)
    differing = [test for result in results for test in result.differing]
    print(*(f"* {test}: {reason(test) or 'UNEXPLAINED'}" for test in differing), sep="\n")
    if "--write" in arguments:
        write(results)
    return int(any(reason(test) is None for test in differing))


def compared(suite: Suite) -> Comparison:
    plain, ours = outcomes(suite), outcomes(suite, "-p", "through_genesis")
    return Comparison(suite, version(suite), plain, ours)


def version(suite: Suite) -> str:
    if suite.name == "CPython":
        return platform.python_version()
    return importlib.metadata.version(suite.name)


def write(results: list[Comparison]) -> None:
    """Put the table in the place of the old one. A suite that did not run keeps its old row."""
    head, mark, rest = PAGE.read_text().partition("<!-- outside -->\n")
    old, end, tail = rest.partition("<!-- end of outside")
    rows = {line.split()[1]: line for line in old.splitlines()[2:]}
    rows |= {result.suite.name: result.row() for result in results}
    kept = "".join(f"{rows[suite.name]}\n" for suite in SUITES if suite.name in rows)
    PAGE.write_text(f"{head}{mark}{TITLES}\n{kept}{end}{tail}")


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
