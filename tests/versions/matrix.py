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

FRAMEWORKS = ("numpy", "trio", "jax", "scikit-learn", "tqdm", "rich", "safetensors", "typer")
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
    "lightning": "2.2",
    "rich": "14.3",
    "safetensors": "0.5",
    "typer": "0.15",
}
"""The lowest versions that pyproject.toml promises; test_versions.py compares them. JAX needs the
jaxlib of its own version, and both a SciPy and an ml_dtypes of their time."""

OF_THEIR_TIME = {
    "scipy": "1.11.4",
    "ml_dtypes": "0.4.0",
    "pytorch-lightning": "2.2",
    "click": "8.1.7",
    "requests": "2.32.3",
}
"""What the lowest versions need of libraries that pyproject.toml does not name."""

LIGHTNING = {"lightning": "2.6.6"}
"""It brings a torch, so only columns with torch have it."""

WHOLE: tuple[str, ...] = ()
"""Every test."""

SYSTEM = (
    *("bench", "concurrency", "contention", "exit", "idle", "interrupts"),
    *("large_directories", "locks", "lost_errors", "memory", "soak", "writer"),
)

SYSTEM_TESTS = ("tests/faults", *(f"tests/test_{name}.py" for name in SYSTEM))
"""Those of the file system, of processes and of memory, which no version of torch changes: the
columns without torch run them."""

LIBRARY_TESTS = ("--ignore=tests/faults", *(f"--ignore=tests/test_{name}.py" for name in SYSTEM))
"""All others."""

TORCH_TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("bounds", "distributed", "jax_objects", "kinds", "lightning", "loads"),
        *("memory_of_states", "partial", "properties", "ranks", "rebuild", "restricted"),
        *("save_load", "state", "storage", "torch_objects", "tuning", "verify"),
    )
)
"""Those that meet the most of torch, for versions between the lowest and the newest."""

CI_TESTS = (
    *(
        f"tests/test_{name}.py"
        for name in (
            *("metadata", "numpy_objects", "outside", "clearing", "verify", "paths", "save_load"),
            *("pool", "locks", "futures", "background", "manager", "aio", "aio_loop", "bridge"),
            *("idle", "remove", "objects", "format", "surface", "kinds"),
        )
    ),
    "tests/faults/test_kills.py::test_killed_before_any_call[overwrite]",
    "tests/faults/test_errors.py::test_error_from_any_call[background---error EIO]",
)
"""What CI runs on the other Pythons, in a few minutes; the columns below are the whole."""

CI_TESTS_OF_THE_NEWEST = ("tests/test_by_value.py",)
"""What CI runs beside these on the newest of them alone: it takes half as long as the rest."""

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
    Column("lowest", "3.11", LOWEST | OF_THEIR_TIME, LIBRARY_TESTS),
    Column("torch 2.8", "3.12", {"torch": "2.8.0", **LIGHTNING}, TORCH_TESTS),
    Column("torch 2.13", "3.13", {"torch": "2.13.0", **LIGHTNING}, TORCH_TESTS),
    Column("torch 2.14", "3.14", {"torch": "2.14.1", **LIGHTNING}, LIBRARY_TESTS),
    Column("constraints.txt", "3.11", {"torch": "2.13.0", **LIGHTNING}),
    *(Column(f"{each} without torch", each, {}, SYSTEM_TESTS) for each in TESTED_PYTHONS[1:]),
)
