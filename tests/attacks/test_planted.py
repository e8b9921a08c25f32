"""What somebody else put beside a checkpoint: links, pipes and directories under the names that a
save uses, and a backup that runs code.

The directory is one that everybody may write to. Nothing outside the target is written, removed or
waited for, and no call with ``weights_only=True`` runs the backup.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from assembler import call, name, stream
from genesis_files import genesis_file
from optional import torch

import genesis
from genesis import aio
from genesis._os import files
from genesis._os.descriptors import Descriptor

BACKUP = ".genesis.bak"
STATE = {"a": 1}
SECRET = b"what belongs to somebody else"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A checkpoint's path in a directory that everybody may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder / "checkpoint.pth"


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file elsewhere, which has to be the same afterwards."""
    file = tmp_path / "victim"
    file.write_bytes(SECRET)
    file.chmod(0o640)
    before = file.stat()
    yield file
    after = file.stat()
    assert file.read_bytes() == SECRET
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )


def _save(path: Path) -> None:
    genesis.save(STATE, path, clear=False)


def _link_to_nothing(place: Path, victim: Path) -> None:
    place.symlink_to(victim.with_name("not there"))


def _pipe(place: Path, victim: Path) -> None:
    os.mkfifo(place)


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "symlink": lambda place, victim: place.symlink_to(victim),
    "relative symlink": lambda place, victim: place.symlink_to(f"../{victim.name}"),
    "symlink to nothing": _link_to_nothing,
    "hard link": lambda place, victim: place.hardlink_to(victim),
    "pipe": _pipe,
}


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize(
    "name", ["checkpoint.pth.genesis.bak", ".checkpoint.pth.genesis-0123456789abcdef.tmp"]
)
def test_a_save_touches_nothing_behind_a_planted_name(
    shared: Path, victim: Path, name: str, plant: str, overwrite: bool
) -> None:
    if overwrite:
        _save(shared)
    PLANTS[plant](shared.with_name(name), victim)

    for _ in range(2):
        _save(shared)

    assert genesis.load(shared) == STATE
    assert stat.S_ISREG(shared.lstat().st_mode)
    assert not victim.with_name("not there").exists()
    assert not os.path.lexists(f"{shared}{BACKUP}")


@pytest.mark.parametrize("plant", PLANTS)
def test_a_name_that_was_guessed_is_not_written_through(
    shared: Path, victim: Path, plant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary names are random; whoever could guess one would gain nothing."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "00" * size)
    place = shared.with_name(f".{shared.name}.genesis-{'00' * 8}.tmp")
    PLANTS[plant](place, victim)

    try:
        _save(shared)
    except FileExistsError:
        assert not shared.exists()
    else:
        assert genesis.load(shared) == STATE  # what a sweep had removed first
    assert not victim.with_name("not there").exists()


@pytest.mark.parametrize("name", ["checkpoint.pth.genesis.bak", ".checkpoint.pth.genesis-1.tmp"])
def test_a_directory_in_the_way_loses_nothing(shared: Path, name: str) -> None:
    _save(shared)
    inside = shared.with_name(name) / "inside"
    inside.parent.mkdir()
    inside.write_bytes(SECRET)

    try:
        genesis.save({"a": 2}, shared)
    except OSError:
        assert genesis.load(shared) == STATE
    else:
        assert genesis.load(shared) == {"a": 2}
    assert inside.read_bytes() == SECRET


def test_a_lock_file_is_not_opened_through_a_link(shared: Path, victim: Path) -> None:
    lock = shared.with_name(f".{shared.name}.genesis.lock")
    lock.symlink_to(victim)

    with pytest.raises(OSError, match="symbolic link"):
        files.open_lock_file(Descriptor(), str(lock))


def test_a_new_checkpoint_of_a_private_one_is_private_all_the_time(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before it is renamed, when it has another name in a directory that others can list."""
    _save(shared)
    shared.chmod(0o600)
    modes: list[int] = []
    real = files.write

    def look_and_write(fd: int, data: Any, offset: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        real(fd, data, offset)

    monkeypatch.setattr(files, "write", look_and_write)
    _save(shared)

    assert set(modes) == {0o600}
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600


# --- A backup that runs code ----------------------------------------------------------------------


async def _aio_load(path: Path) -> Any:
    return await aio.load(path, weights_only=True)


async def _aio_load_checkpoint(path: Path) -> Any:
    return await aio.load_checkpoint(path, weights_only=True)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """What the planted file would create."""
    file = tmp_path / "canary"
    yield file
    assert not file.exists()


@pytest.fixture(params=["genesis", "pickle"])
def planted(request: pytest.FixtureRequest, shared: Path, canary: Path) -> Path:
    """A checkpoint's path with a hostile backup beside it: a genesis file, or a plain pickle."""
    skeleton = stream(call(name("os", "system"), f"touch {canary}"))
    whole = genesis_file(skeleton, bytes(64)) if request.param == "genesis" else skeleton
    shared.with_name(shared.name + BACKUP).write_bytes(whole)
    return shared


@pytest.mark.parametrize("damage", [None, b"", b"junk", b"\x80\x05N"], ids=str)
@pytest.mark.parametrize("load", [genesis.load, genesis.load_checkpoint])
def test_a_planted_backup_goes_through_the_same_reader(
    planted: Path, load: Callable[..., Any], damage: bytes | None
) -> None:
    if damage is not None:
        planted.write_bytes(damage)

    with pytest.raises(genesis.UnsafeLoadError, match=r"\.genesis\.bak: .*not on the list"):
        load(planted, weights_only=True)


@pytest.mark.anyio
@pytest.mark.parametrize("load", [_aio_load, _aio_load_checkpoint])
async def test_a_planted_backup_goes_through_the_same_reader_awaited(
    planted: Path, load: Callable[..., Any]
) -> None:
    with pytest.raises(genesis.UnsafeLoadError, match=r"\.genesis\.bak: .*not on the list"):
        await load(planted)


def test_a_planted_backup_is_no_checkpoint_to_load_safely(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(1, 1)

    assert not genesis.safe_load_checkpoint(planted, model, weights_only=True)
    assert "not on the list" in capsys.readouterr().out


@pytest.mark.anyio
async def test_a_planted_backup_is_no_checkpoint_to_load_safely_awaited(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = torch.nn.Linear(1, 1)

    assert not await aio.safe_load_checkpoint(planted, model, weights_only=True)
    assert "not on the list" in capsys.readouterr().out


def test_a_planted_backup_is_not_looked_at_beside_a_sound_file(planted: Path) -> None:
    backup = planted.with_name(planted.name + BACKUP)
    content = backup.read_bytes()
    backup.rename(planted.with_name("aside"))
    _save(planted)
    backup.write_bytes(content)

    assert genesis.load(planted) == STATE


def test_a_planted_backup_is_replaced_by_the_next_save(planted: Path) -> None:
    _save(planted)
    genesis.save({"a": 2}, planted)

    assert genesis.load(planted) == {"a": 2}
    assert not planted.with_name(planted.name + BACKUP).exists()
