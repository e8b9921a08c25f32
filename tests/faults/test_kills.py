"""Killed before any file-system call of a save: the old state or the new one, and no litter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .harness import survives, why_not_traced

pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced() or "traced")

SCENARIOS = [
    "fresh",
    "overwrite",
    "symlink",
    "large",
    "background",
    "deferred",
    "deferred-large",
    "asyncio",
    "trio",
    "manager",
]
ENVIRONMENTS = ["no-hard-links", "no-locks", "no-directory-sync", "no-direct-writes"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_call(scenario: str, tmp_path: Path) -> None:
    if scenario == "trio":
        pytest.importorskip("trio")
    result = survives(tmp_path, "kill", scenario)
    assert result["calls"].get("fsync", 0) >= 2  # of the file and of its directory
    assert len(result["seen"]) > 1  # both sides of the commit were reached


@pytest.mark.parametrize("environment", ["no-hard-links", "no-locks"])
def test_killed_on_a_poor_file_system(environment: str, tmp_path: Path) -> None:
    survives(tmp_path, "kill", "overwrite", "--environment", environment)


def test_killed_while_it_takes_over_another_owner(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    assert "fchown" in survives(tmp_path, "kill", "owned")["calls"]


@pytest.mark.torture
@pytest.mark.parametrize("scenario", [*SCENARIOS, "windows"])
def test_killed_in_an_interpreter_of_its_own(scenario: str, tmp_path: Path) -> None:
    survives(tmp_path, "kill", scenario, "--fresh")


@pytest.mark.torture
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_on_every_poor_file_system(scenario: str, environment: str, tmp_path: Path) -> None:
    survives(tmp_path, "kill", scenario, "--environment", environment)
