"""The power fails at any moment of a save: whatever the disk held on to, a state can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import run, survives, why_not_traced
from .test_kills import SCENARIOS

pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced() or "traced")

FLAWS = {
    "file syncs": "a reader finds 'broken",
    "directory syncs": "after 1 durable saves",
    "any syncs": "a reader finds 'broken",
    "file syncs before the rename": "a reader finds 'broken",
    "waiting for the directory sync": "after 1 durable saves",
    "modes before the sync": "has mode 600",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_power_cut_at_any_moment(scenario: str, tmp_path: Path) -> None:
    if scenario == "trio":
        pytest.importorskip("trio")
    result = survives(tmp_path, "cut", scenario)
    assert result["states"] > 200
    assert len(result["seen"]) >= 3  # before, between and after the two saves


@pytest.mark.parametrize("environment", ["no-hard-links", "no-locks"])
def test_power_cut_on_a_poor_file_system(environment: str, tmp_path: Path) -> None:
    survives(tmp_path, "cut", "overwrite", "--environment", environment)


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("scenario", ["overwrite", "large"])
def test_cuts_find_what_is_left_out_of_a_save(scenario: str, flaw: str, tmp_path: Path) -> None:
    """The recording of a sound save, with one thing taken out of it, must fail."""
    (result,) = run(tmp_path, "cut", scenario, "--without", flaw)
    assert any(FLAWS[flaw] in failure for failure in result["failures"]), result


@pytest.mark.parametrize(
    ("scenario", "environment", "syncs"),
    [
        ("fresh", "", ["file", "directory"]),
        ("overwrite", "", ["file", "directory"]),
        ("background", "", ["file", "directory"]),
        ("manager", "", ["file", "directory"]),
        ("overwrite", "no-hard-links", ["file", "file", "directory"]),  # the backup's, too
    ],
)
def test_no_sync_of_a_save_can_be_left_out(
    scenario: str, environment: str, syncs: list[str], tmp_path: Path
) -> None:
    results = run(tmp_path, "cut", scenario, "--environment", environment, "--each-sync")
    left_out = [result["kind"].rpartition(" ")[2] for result in results]
    assert left_out == 2 * syncs  # two saves are recorded
    for result in results:
        assert result["failures"], f"nothing goes wrong {result['kind']}"


@pytest.mark.parametrize(
    "scenario",
    [
        "overwrite",
        "background",
        *(pytest.param(name, marks=pytest.mark.torture) for name in ("large", "manager", "trio")),
    ],
)
def test_power_cut_of_a_real_ext4(scenario: str, tmp_path: Path) -> None:
    result = survives(tmp_path, "ext4-cut", scenario)
    assert len(result["seen"]) > 1


@pytest.mark.parametrize("flaw", ["no file sync", "no directory sync"])
def test_a_real_ext4_shows_a_sync_that_is_missing(flaw: str, tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    (result,) = run(tmp_path, "ext4-cut", f"toy:{flaw}")
    assert result["failures"]


@pytest.mark.torture
@pytest.mark.parametrize("environment", ["", "no-hard-links", "no-locks", "no-direct-writes"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_thorough_power_cuts(scenario: str, environment: str, tmp_path: Path) -> None:
    survives(tmp_path, "cut", scenario, "--environment", environment, "--thorough")
