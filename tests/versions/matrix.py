"""The matrix of `make versions`: each column is a Python, versions of libraries, and tests.

Data only. What a column does not name comes in the version of constraints.txt.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TESTED_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""Those of the classifiers in pyproject.toml."""

LIBRARIES = ("torch", "numpy", "jax", "dill", "anyio", "trio", "aiofiles", "xxhash")
"""What genesis works with, in the order of the table."""

TOOLS = ("pytest", "pytest-asyncio", "pytest-cov", "hypothesis", "mypy", "types-aiofiles")

FRAMEWORKS = ("numpy", "trio", "jax", "scikit-learn", "tqdm")
"""What every column has beside genesis and its dependencies; torch where it says so."""

LOWEST = {
    "aiofiles": "24.1.0",
    "anyio": "4.4.0",
    "dill": "0.3.9",
    "xxhash": "3.4.0",
    "numpy": "1.26.0",
    "trio": "0.26.0",
    "jax": "0.4.30",
    "jaxlib": "0.4.30",
    "scikit-learn": "1.4.0",
    "tqdm": "4.66.0",
    "torch": "2.4.0",
}
"""The lowest versions that pyproject.toml promises; tests/test_versions.py compares them. JAX needs
the jaxlib of its own version, and both a SciPy and an ml_dtypes of their time."""

WHOLE: tuple[str, ...] = ()
"""Every test."""

LIBRARY_TESTS = (
    "--ignore=tests/faults",
    *(
        f"--ignore=tests/test_{name}.py"
        for name in (
            *("bench", "concurrency", "contention", "exit", "idle", "interrupts"),
            *("large_directories", "locks", "lost_errors", "memory", "soak", "writer"),
        )
    ),
)
"""Without those of the file system, of processes and of memory, which no version of torch changes;
the columns without torch run them on every Python."""


CI_TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("metadata", "numpy_objects", "outside", "clearing", "verify", "paths", "save_load"),
        *("pool", "locks", "futures", "background", "manager", "aio", "aio_loop", "bridge"),
        *("idle", "remove", "objects", "by_value", "format", "surface", "kinds"),
    )
)
"""What CI runs on the other Pythons, in a few minutes; the columns below are the whole."""

CI_LIMIT = 900
"""Seconds for the tests of one of CI's columns, which take one or two minutes on idle cores."""


@dataclass(frozen=True)
class Column:
    name: str
    python: str
    versions: dict[str, str] = field(default_factory=dict)
    tests: tuple[str, ...] = WHOLE
    limit: int = 2 * 3600
    """Seconds for the tests, which take half an hour at most on two idle cores."""


COLUMNS = (
    Column("lowest", "3.11", LOWEST | {"scipy": "1.11.4", "ml_dtypes": "0.4.0"}, LIBRARY_TESTS),
    Column("torch 2.8", "3.12", {"torch": "2.8.0"}, LIBRARY_TESTS),
    Column("torch 2.13", "3.13", {"torch": "2.13.0"}, LIBRARY_TESTS),
    Column("torch 2.14", "3.14", {"torch": "2.14.1"}, LIBRARY_TESTS),
    Column("constraints.txt", "3.11", {"torch": "2.13.0"}),
    *(Column(f"{python} without torch", python) for python in TESTED_PYTHONS[1:]),
)
