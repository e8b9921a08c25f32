"""What somebody else put into the directory: under our names, on another machine, or before us.

Nothing is written, removed or waited for outside of the target, whatever stands there.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import genesis
from genesis._os import files
from genesis.storage.local import Replacement

VICTIM = "not ours"
ABANDONED = f".other.pth.genesis-{files.host()}0123456789ab.tmp"
ELSEWHERE = ABANDONED.replace(files.host(), "ffffff" if files.host() != "ffffff" else "eeeeee")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of the directory that is saved in."""
    path = tmp_path / "victim"
    path.write_text(VICTIM)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "world-writable"
    path.mkdir()
    path.chmod(0o1777)
    return path


def replacing(path: Path) -> Replacement:
    return Replacement(str(path), is_sound=lambda path: True)


@pytest.mark.parametrize("before", [False, True])
def test_a_symlink_at_the_name_of_the_backup_is_not_followed(
    folder: Path, victim: Path, before: bool
) -> None:
    if before:
        genesis.save({"n": 1}, folder / "f")
    (folder / "f.genesis.bak").symlink_to(victim)
    genesis.save({"n": 2}, folder / "f")
    assert genesis.load(folder / "f") == {"n": 2}
    assert victim.read_text() == VICTIM
    assert os.listdir(folder) == ["f"]


def test_a_symlink_at_the_name_of_the_temporary_file_is_not_followed(
    folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody guessed 48 random bits."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "01" * size)
    planted = folder / f".f.genesis-{files.host()}{'01' * 6}.tmp"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError, match=r"File exists"):
        genesis.save({"n": 1}, folder / "f")
    assert victim.read_text() == VICTIM
    assert planted.is_symlink()


def test_a_symlink_at_the_name_of_the_lock_file_is_not_followed(
    folder: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.Directory, "lock", lambda self: False)  # as on NFS
    (folder / ".f.genesis.lock").symlink_to(victim.with_name("made"))
    with pytest.raises(OSError, match="symbolic links"):
        genesis.save({"n": 1}, folder / "f")
    assert not victim.with_name("made").exists()


@pytest.mark.parametrize(
    "plant",
    [
        lambda path, victim: path.symlink_to(victim),
        lambda path, victim: path.hardlink_to(victim),
        lambda path, victim: path.mkdir(),
        lambda path, victim: os.mkfifo(path),
    ],
    ids=["symlink", "hard link", "directory", "pipe"],
)
def test_sweeping_bears_whatever_has_the_name_of_a_temporary_file(
    folder: Path, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(folder / ABANDONED, victim)
    genesis.save({"n": 1}, folder / "f")
    assert genesis.load(folder / "f") == {"n": 1}
    assert victim.read_text() == VICTIM


def test_what_a_killed_save_of_another_file_left_is_swept(folder: Path) -> None:
    (folder / ABANDONED).write_bytes(b"half")
    genesis.save({"n": 1}, folder / "f")
    assert os.listdir(folder) == ["f"]


def test_the_temporary_file_of_another_save_under_way_is_left_alone(folder: Path) -> None:
    with replacing(folder / "other") as other:
        other.begin()
        genesis.save({"n": 1}, folder / "f")
        other.write(b"whole", 0)
        other.sync(5)
        other.commit()
    assert sorted(os.listdir(folder)) == ["f", "other"]
    assert (folder / "other").read_bytes() == b"whole"


def test_a_temporary_file_of_another_machine_is_left_alone_for_a_day(folder: Path) -> None:
    """Some network file systems show locks to their own machine only."""
    path = folder / ELSEWHERE
    path.write_bytes(b"half")
    genesis.save({"n": 1}, folder / "f")
    assert path.exists()
    yesterday = time.time() - 25 * 60 * 60
    os.utime(path, (yesterday, yesterday))
    genesis.save({"n": 2}, folder / "f")
    assert os.listdir(folder) == ["f"]


def test_a_name_that_only_resembles_ours_is_left_alone(folder: Path) -> None:
    names = [".f.genesis-notes.tmp", "f.genesis-0123456789abcdef01.tmp", ".f.genesis-0123.tmp"]
    for name in names:
        (folder / name).write_text("mine")
    genesis.save({"n": 1}, folder / "f")
    assert sorted(os.listdir(folder)) == sorted([*names, "f"])


def test_a_file_on_another_device_is_replaced_there(folder: Path) -> None:
    """The temporary file lies beside the real file, not beside the symlink to it."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other device to save on")
    there = shared / f"genesis-{os.getpid()}-{secrets.token_hex(4)}"
    there.mkdir()
    try:
        (folder / "latest").symlink_to(there / "f")
        for number in range(2):
            genesis.save({"n": number}, folder / "latest")
        assert os.listdir(folder) == ["latest"]
        assert (folder / "latest").is_symlink()
        assert genesis.load(there / "f") == {"n": 1}
        assert os.listdir(there) == ["f"]
    finally:
        for path in there.iterdir():
            path.unlink()
        there.rmdir()


def test_directories_that_are_made_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut takes the first checkpoint of a run with its directory."""
    synced = []
    fsync = os.fsync

    def recording(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", recording)
    files.make_directories(str(tmp_path / "a/b/c"))
    assert (tmp_path / "a/b/c").is_dir()
    assert synced == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a/b")]
