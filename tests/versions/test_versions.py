"""The matrix of versions says what pyproject.toml promises, and finds the Pythons it names."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from . import matrix, pythons

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROMISE = re.compile(r"([\w-]+)>=([\d.]+)")


def promised() -> dict[str, str]:
    """The lowest version of each library that genesis works with, as pyproject.toml states it."""
    extras = PROJECT["optional-dependencies"]
    named = ("torch", "jax", "distributed", "lightning", "cli", "examples")
    stated = [*PROJECT["dependencies"], *(line for name in named for line in extras[name])]
    return dict(found.groups() for line in stated if (found := PROMISE.fullmatch(line)))


def test_the_lowest_column_has_the_lowest_versions_promised() -> None:
    lowest = {name: matrix.LOWEST[name] for name in promised()}
    assert {name: version.removesuffix(".0") for name, version in lowest.items()} == {
        name: version.removesuffix(".0") for name, version in promised().items()
    }


def test_the_classifiers_name_the_pythons_that_are_tested() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = [each for each in PROJECT["classifiers"] if each.startswith(prefix)]
    assert [each.rpartition(" ")[2] for each in named] == list(matrix.TESTED_PYTHONS)
    assert PROJECT["requires-python"] == f">={matrix.TESTED_PYTHONS[0]}"
    assert {column.python for column in matrix.COLUMNS} == set(matrix.TESTED_PYTHONS)


def test_columns_have_names_of_their_own() -> None:
    assert len({column.name for column in matrix.COLUMNS}) == len(matrix.COLUMNS)


def test_the_python_that_runs_this_is_found() -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert here in pythons.found()
