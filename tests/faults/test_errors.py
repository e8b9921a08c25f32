"""An error from any file-system call of a save: the caller hears of it, all else stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .harness import survives, why_not_traced
from .test_kills import SCENARIOS

pytestmark = pytest.mark.skipif(bool(why_not_traced()), reason=why_not_traced() or "traced")

VARIANTS = [
    "--error EIO",
    "--error EIO --persist",
    "--error EIO --late",
    "--error ENOSPC",
    "--error ENOSPC --persist",
    "--error ENOSPC --short-first",
    "--error EDQUOT --persist",
    "--error EINTR",
]
MORE = [
    "--error EDQUOT",
    "--error EDQUOT --short-first",
    "--error EIO --short-first",
    "--error ESTALE --persist",
    "--error ENOMEM",
    "--error EROFS --persist",
    "--error EACCES",
]
MAIN = ["overwrite", "background", "manager"]
POOR = {
    "no-hard-links": "overwrite",
    "no-locks": "overwrite",
    "no-locks-at-all": "overwrite",
    "no-directory-sync": "overwrite",
    "no-direct-io": "large",
    "no-direct-writes": "large",
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scenario", MAIN)
def test_error_from_any_call(scenario: str, variant: str, tmp_path: Path) -> None:
    survives(tmp_path, "error", scenario, *variant.split())


@pytest.mark.parametrize("variant", ["--error EIO", "--error ENOSPC --persist", "--error EINTR"])
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name not in MAIN])
def test_error_from_any_call_of_other_saves(scenario: str, variant: str, tmp_path: Path) -> None:
    if scenario == "trio":
        pytest.importorskip("trio")
    survives(tmp_path, "error", scenario, *variant.split())


@pytest.mark.parametrize("scenario", ["fresh", "large", "background", "deferred-large", "manager"])
def test_short_writes_are_continued(scenario: str, tmp_path: Path) -> None:
    calls = survives(tmp_path, "short", scenario)["calls"]
    assert set(calls) <= {"write", "pwrite64", "pwritev", "writev", "pwritev2"}


@pytest.mark.parametrize("environment", POOR)
def test_a_file_system_that_lacks_something(environment: str, tmp_path: Path) -> None:
    survives(tmp_path, "poor", POOR[environment], "--environment", environment)


def test_a_file_system_without_owners(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    survives(tmp_path, "poor", "owned", "--environment", "no-ownership")


@pytest.mark.parametrize("scenario", ["overwrite", "background", "asyncio", "manager"])
def test_directory_removed_before_any_call(scenario: str, tmp_path: Path) -> None:
    result = survives(tmp_path, "removed", scenario)
    assert result["seen"].get("FileNotFoundError", 0) > 0


@pytest.mark.parametrize("scenario", ["overwrite", "background", "manager"])
def test_full_disk(scenario: str, tmp_path: Path) -> None:
    survives(tmp_path, "full", scenario)


@pytest.mark.parametrize("scenario", ["overwrite", "background"])
def test_file_size_limit(scenario: str, tmp_path: Path) -> None:
    survives(tmp_path, "file-size", scenario)


@pytest.mark.parametrize("scenario", ["overwrite", "background", "trio", "manager"])
def test_too_many_open_files(scenario: str, tmp_path: Path) -> None:
    if scenario == "trio":  # and not asyncio, whose loop leaks a descriptor if it cannot start
        pytest.importorskip("trio")
    survives(tmp_path, "descriptors", scenario)


@pytest.mark.parametrize("kind", ["read-only-mount", "immutable", "no-permission"])
@pytest.mark.parametrize("scenario", ["fresh", "overwrite", "background", "manager"])
def test_directory_that_takes_no_files(scenario: str, kind: str, tmp_path: Path) -> None:
    survives(tmp_path, kind, scenario)


@pytest.mark.parametrize("scenario", ["overwrite", "background"])
def test_file_that_is_a_mount_point(scenario: str, tmp_path: Path) -> None:
    survives(tmp_path, "mounted-file", scenario)


@pytest.mark.parametrize("scenario", ["overwrite", "background", "manager"])
def test_an_overlay_with_the_old_file_in_its_lower_layer(scenario: str, tmp_path: Path) -> None:
    survives(tmp_path, "overlay", scenario)


@pytest.mark.torture
@pytest.mark.parametrize("variant", [*VARIANTS, *MORE])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_error_from_any_call(scenario: str, variant: str, tmp_path: Path) -> None:
    survives(tmp_path, "error", scenario, *variant.split())


@pytest.mark.torture
@pytest.mark.parametrize("variant", ["--error EIO", "--error ENOSPC --short-first"])
def test_error_from_any_call_of_a_save_in_parts(variant: str, tmp_path: Path) -> None:
    survives(tmp_path, "error", "windows", *variant.split())


@pytest.mark.torture
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("environment", ["no-hard-links", "no-locks", "no-directory-sync"])
def test_every_error_on_a_poor_file_system(environment: str, variant: str, tmp_path: Path) -> None:
    survives(tmp_path, "error", "overwrite", *variant.split(), "--environment", environment)


@pytest.mark.torture
@pytest.mark.parametrize("kind", ["full", "file-size", "descriptors", "short", "removed"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_fault_in_every_save(scenario: str, kind: str, tmp_path: Path) -> None:
    if (scenario, kind) == ("asyncio", "descriptors"):
        pytest.skip("asyncio's loop leaks a descriptor if it cannot start")
    if (scenario, kind) == ("symlink", "removed"):
        pytest.skip("the symlink is gone with its directory")
    survives(tmp_path, kind, scenario)
