"""save, load and the checkpoint calls as the specification has them: backup and rollback, the dict
that is cleared, every kind of path, modes and owners and links, recovery, and what is refused.

Failures are real ones: a limit on file sizes, a directory that may not be written. What happens in
a directory meanwhile is told by the kernel (inotify).
"""

from __future__ import annotations

import collections
import ctypes
import errno
import os
import pickle
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
from contention import (
    DEADLINE,
    descriptors,
    held,
    join_threads,
    litter,
    start_save,
    temporary_files,
)
from optional import torch
from same import assert_same

import genesis

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may change owners")


def backup_of(path: Path) -> Path:
    return Path(f"{path}.genesis.bak")


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """Make every write beyond `size` bytes of a file fail (EFBIG), here and on every thread."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Watch:
    """What happens to the names of a directory, in order, as the kernel tells it."""

    EVENTS = types.MappingProxyType({0x100: "+", 0x200: "-", 0x40: "from", 0x80: "to"})

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        mask = sum(self.EVENTS)
        assert libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) >= 0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def seen(self) -> list[str]:
        """Events since the last call; the names of temporary files are cut to ``tmp``."""
        data, found = os.read(self._fd, 1 << 16), []
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            name = "tmp" if name.endswith(".tmp") else name
            found.append(f"{self.EVENTS[mask & 0xFFFF]} {name}")
            data = data[16 + length :]
        return found


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody can reach, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="genesis-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(program: str, *args: object) -> str:
    """Run a program without root's privileges; return what it prints."""
    head = f"""
        import os, stat, sys, tempfile, genesis
        with tempfile.NamedTemporaryFile() as warm:  # what is imported later may be out of reach
            genesis.save({{1: 2}}, warm.name)
            genesis.load(warm.name)
            genesis.validate_checkpoint(warm.name)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setegid({NOBODY})
            os.seteuid({NOBODY})
        path = sys.argv[1]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(genesis.__file__).parent.parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- The plain round trip -------------------------------------------------------------------------


def test_save_and_load(path: Path) -> None:
    genesis.save({"weight": torch.ones(2, 3), "epoch": 4}, path)
    found = genesis.load(path)
    assert_same({"weight": torch.ones(2, 3), "epoch": 4}, found)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("background", [False, True])
def test_the_report_says_what_was_written(path: Path, background: bool) -> None:
    done = genesis.save({"a": np.arange(1000)}, path, background=background)
    report = done.result(DEADLINE) if isinstance(done, genesis.SaveFuture) else done
    assert report.path == os.path.realpath(path)
    assert report.bytes == path.stat().st_size
    assert report.outcome == "durable"
    parts = (report.stall, report.capture, report.wait, report.write, report.sync)
    assert min(parts) >= 0
    assert report.throughput > 0


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        None,
        5,
        "text",
        (1, {"a": 2}),
        {1, 2},
        np.arange(4),
        b"x" * 100_000,
        collections.OrderedDict(a=1),
    ],
    ids=repr,
)
def test_a_state_of_any_kind(path: Path, state: Any) -> None:
    genesis.save(state, path, clear=False)
    assert_same(state, genesis.load(path))


def test_what_state_dict_returns_keeps_its_metadata(path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    genesis.save(model.state_dict(), path)
    found = genesis.load(path)
    assert found._metadata == model.state_dict()._metadata
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other.load_state_dict(found)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))


def test_save_checkpoint_and_load_checkpoint(path: Path) -> None:
    model, optimizer = {"w": torch.ones(2)}, {"state": {}, "param_groups": [{"lr": 0.1}]}
    report = genesis.save_checkpoint(model, optimizer, path)
    assert isinstance(report, genesis.SaveReport)
    assert (set(model), set(optimizer)) == ({"w"}, {"state", "param_groups"})
    assert_same((model, optimizer), genesis.load_checkpoint(path))
    assert list(genesis.load(path)) == ["model_state_dict", "optimizer_state_dict"]


@pytest.mark.parametrize("state", [{"model_state_dict": {}}, {}, [1], None, 7, np.ones(2)])
def test_load_checkpoint_of_something_else_says_so(path: Path, state: Any) -> None:
    genesis.save(state, path, clear=False)
    with pytest.raises(KeyError, match="holds no checkpoint of save_checkpoint"):
        genesis.load_checkpoint(path)


# --- Backup, replacement, rollback ----------------------------------------------------------------


def test_the_steps_of_a_first_save(path: Path) -> None:
    with Watch(path.parent) as watch:
        genesis.save({"n": 1}, path)
        assert watch.seen() == ["+ tmp", "from tmp", f"to {path.name}"]


def test_the_backup_is_made_before_the_old_file_is_replaced_and_removed_after(path: Path) -> None:
    genesis.save({"n": 1}, path)
    with Watch(path.parent) as watch:
        genesis.save({"n": 2}, path)
        seen = watch.seen()
    name, backup = path.name, backup_of(path).name
    assert seen == [
        "+ tmp",
        "+ tmp",
        "from tmp",
        f"to {backup}",
        "from tmp",
        f"to {name}",
        f"- {backup}",
    ]
    assert genesis.load(path) == {"n": 2}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("old", [None, {"n": "old"}], ids=["fresh", "overwrite"])
def test_a_write_that_fails_changes_nothing(
    path: Path, background: bool, old: dict[str, Any] | None
) -> None:
    if old is not None:
        genesis.save(old, path, clear=False)
    names, before = os.listdir(path.parent), descriptors()
    inode = path.stat().st_ino if old else None
    state = {"big": np.ones(1 << 20), "n": "new"}
    with no_room_beyond(1 << 20), pytest.raises(OSError, match="File too large") as caught:
        _waited(genesis.save(state, path, background=background))
    assert caught.value.errno == errno.EFBIG
    assert set(state) == {"big", "n"}
    assert os.listdir(path.parent) == names
    assert descriptors() == before
    if old:
        assert (genesis.load(path), path.stat().st_ino) == (old, inode)
    else:
        with pytest.raises(FileNotFoundError, match="checkpoint"):
            genesis.load(path)
    genesis.save(state, path)
    assert genesis.load(path)["n"] == "new"


def test_a_commit_that_fails_changes_nothing(path: Path) -> None:
    """Somebody makes a directory of the target while its save is under way."""
    state = {"n": 1}
    with held(path.parent):
        save = start_save(state, path)
        path.mkdir()
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        save.result(DEADLINE)
    assert state == {"n": 1}
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_save_leaves_the_backup_that_a_crash_left(path: Path) -> None:
    genesis.save({"n": 1}, backup_of(path))
    with no_room_beyond(1 << 20), pytest.raises(OSError, match="File too large"):
        genesis.save({"big": np.ones(1 << 20)}, path)
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="was loaded instead"):
        assert genesis.load(path) == {"n": 1}


MIB = 1 << 20


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([100 * MIB, 4, 4, 4, 4], id="small after several windows"),
        pytest.param([4, 100 * MIB, 4, 4], id="small on both sides"),
        pytest.param([32 * MIB - 64 - 100, 300, 300, 33 * MIB, 70], id="small across an edge"),
        pytest.param([32 * MIB - 64, 5, 5, 32 * MIB - 128, 5, 5], id="small right behind edges"),
        pytest.param([60_000] * 1500, id="nothing but small"),
        pytest.param([70_000, 60_000, 3] * 600, id="mixed"),
    ],
)
@pytest.mark.parametrize("kind", ["NumPy", "torch"])
def test_small_and_large_arrays_in_any_window(path: Path, sizes: list[int], kind: str) -> None:
    """A plain save fills windows of 32 MiB one after the other; arrays begin and end anywhere."""
    make = torch.from_numpy if kind == "torch" else np.asarray
    arrays = [np.full(size, n % 251 + 1, np.uint8) for n, size in enumerate(sizes)]
    genesis.save({"x": [make(array) for array in arrays]}, path)
    for array, loaded in zip(arrays, genesis.load(path)["x"], strict=True):
        assert np.array_equal(array, np.asarray(loaded))


@pytest.mark.parametrize("background", [False, True])
def test_a_large_old_file_is_held_until_a_thread_frees_it_and_no_longer(
    path: Path, background: bool
) -> None:
    """Removing it would keep the save for as long as some writes take."""
    state = {"x": np.zeros(9 << 20)}
    genesis.save(state, path, clear=False)
    before = descriptors()
    old = os.open(path, os.O_RDONLY)
    save = genesis.save(state, path, background=background, clear=False)
    if isinstance(save, genesis.SaveFuture):
        save.result(DEADLINE)
    assert os.listdir(path.parent) == [path.name]
    assert os.fstat(old).st_nlink == 0
    os.close(old)
    join_threads()
    assert descriptors() == before


# --- Clearing -------------------------------------------------------------------------------------


def test_keys_that_equal_nothing_are_cleared_too(path: Path) -> None:
    state = {float("nan"): 1, "a": float("nan")}
    genesis.save(state, path)
    assert state == {}


def test_clear_false_keeps_the_dict(path: Path) -> None:
    state = {"a": 1}
    genesis.save(state, path, clear=False)
    assert state == {"a": 1}


@pytest.mark.parametrize("state", [[1, 2], {1, 2}, bytearray(b"ab")], ids=repr)
def test_what_is_no_mapping_is_not_cleared(path: Path, state: Any) -> None:
    genesis.save(state, path)
    assert len(state) == 2


# --- What cannot be saved -------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_an_unpicklable_object_is_named_and_nothing_is_changed(
    path: Path, background: bool
) -> None:
    genesis.save({"n": "old"}, path)
    model = {"layers": [1, {"hook": (n for n in ())}]}
    with pytest.raises(pickle.PicklingError, match="cannot save state") as caught:
        genesis.save_checkpoint(model, {}, path, background=background)
    assert isinstance(caught.value, genesis.UnpicklableStateError)
    assert caught.value.place == "['model_state_dict']['layers'][1]['hook']"
    assert "generator" in caught.value.problem
    assert list(model) == ["layers"]
    assert os.listdir(path.parent) == [path.name]
    assert genesis.load(path) == {"n": "old"}


def test_an_error_of_the_unpicklable_comes_before_the_directory_is_touched(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        with pytest.raises(genesis.UnpicklableStateError, match="generator"):
            genesis.save({"g": (n for n in ())}, tmp_path / "f")
        with pytest.raises(BlockingIOError, match="unavailable"):
            watch.seen()  # nothing happened


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"a": object()}, TypeError),
        ({(1, 2): 3}, TypeError),
        ([1, 2], TypeError),
        ("text", TypeError),
    ],
    ids=repr,
)
def test_metadata_that_is_no_json_is_refused(path: Path, metadata: Any, error: type) -> None:
    state = {"a": 1}
    with pytest.raises(error, match=r"metadata.*JSON values"):
        genesis.save(state, path, metadata=metadata)
    assert state == {"a": 1}
    assert os.listdir(path.parent) == []


# --- Metadata -------------------------------------------------------------------------------------


def test_metadata_is_read_without_the_state(path: Path) -> None:
    """The state's bytes may even be damaged: they are not looked at."""
    genesis.save({"x": np.ones(100_000)}, path, metadata={"step": 3, "of": [1, None]})
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    assert genesis.load_metadata(path) == {"step": 3, "of": [1, None]}


def test_metadata_of_a_background_save_is_waited_for(path: Path) -> None:
    with held(path.parent) as hold:
        save = genesis.save({"x": 1}, path, background=True, metadata={"step": 4})
        threading.Thread(target=hold.release).start()
        assert genesis.load_metadata(path) == {"step": 4}
    assert save.done()


def test_without_metadata_there_is_none(path: Path) -> None:
    genesis.save({"x": 1}, path)
    assert genesis.load_metadata(path) == {}
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(genesis.NotACheckpointError, match="not a genesis file"):
        genesis.load_metadata(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="No such file"):
        genesis.load_metadata(path)


# --- Paths ----------------------------------------------------------------------------------------


class Named:
    """A path of somebody's own."""

    def __init__(self, name: str | bytes) -> None:
        self._name = name

    def __fspath__(self) -> Any:
        return self._name


@pytest.mark.parametrize(
    "kind",
    [str, Path, os.fsencode, lambda p: Named(str(p)), lambda p: Named(os.fsencode(p))],
    ids=["str", "Path", "bytes", "PathLike", "PathLike of bytes"],
)
def test_a_path_may_be_of_any_kind(path: Path, kind: Callable[[Path], Any]) -> None:
    genesis.save_checkpoint({"a": 1}, {"b": 2}, kind(path))
    assert genesis.load(kind(path))["model_state_dict"] == {"a": 1}
    assert genesis.load_checkpoint(kind(path)) == ({"a": 1}, {"b": 2})
    assert genesis.validate_checkpoint(kind(path)) == (False, "Invalid tensor for key 'a'")
    future = genesis.save({"a": 3}, kind(path), background=True)
    assert future.result(DEADLINE).path == os.path.realpath(path)


NAMES = [
    "größe.pth",
    "模型🌱.pth",
    "with space",
    "-rf",
    ".hidden",
    "two\nlines\t",
    "*?[x]",
    "no extension",
    "a.genesis.bak",
    "x.tmp",
    b"\xff\xfe\x80.pth",
    b"caf\xe9",
    "n" * 243,
    "ä" * 121,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_may_have_any_name(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    for n in range(3):
        genesis.save({"n": n}, path, background=n == 2)
    genesis.flush(DEADLINE)
    assert genesis.load(path) == {"n": 2}
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_file_of_any_name_is_recovered(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    genesis.save({"n": 1}, path)
    path.rename(backup_of(path))
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="was loaded instead"):
        assert genesis.load(path) == {"n": 1}


@pytest.mark.parametrize("name", ["n" * 244, "ä" * 122, "n" * 255])
def test_a_name_without_room_for_the_backup_is_refused(tmp_path: Path, name: str) -> None:
    state = {"n": 1}
    with pytest.raises(OSError, match=r"leave room for the 12 bytes of \.genesis\.bak") as caught:
        genesis.save(state, tmp_path / name)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert (state, os.listdir(tmp_path)) == ({"n": 1}, [])


def test_files_of_long_names_that_begin_alike_do_not_meet(tmp_path: Path) -> None:
    one, other = tmp_path / ("n" * 240 + "1"), tmp_path / ("n" * 240 + "2")
    with held(tmp_path):
        saves = [start_save({"of": path.name}, path) for path in (one, other)]
    for save in saves:
        save.result(DEADLINE)
    assert [genesis.load(path)["of"] for path in (one, other)] == [one.name, other.name]
    assert litter(tmp_path) == []


def test_a_relative_path_is_of_the_moment_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with held(tmp_path / "a"):
        save = start_save({"of": "a"}, Path("f"))
        monkeypatch.chdir(tmp_path / "b")
    save.result(DEADLINE)
    genesis.save({"of": "b"}, "f")
    assert genesis.load("../a/f") == {"of": "a"}
    assert genesis.load("f") == {"of": "b"}
    assert genesis.load(b"./../b/f") == {"of": "b"}


BAD_PATHS: list[tuple[Any, type[Exception], str]] = [
    ("", ValueError, "must not be empty"),
    (b"", ValueError, "must not be empty"),
    ("nul\0", ValueError, "null"),
    (5, TypeError, "PathLike"),
    (None, TypeError, "PathLike"),
    (["f"], TypeError, "PathLike"),
    ("there/", IsADirectoryError, "this names a directory"),
    (".", IsADirectoryError, "this is a directory"),
    ("there", IsADirectoryError, "this is a directory"),
    ("missing/f", FileNotFoundError, "No such file or directory"),
    ("file/f", NotADirectoryError, "Not a directory"),
]


@pytest.mark.parametrize(
    ("bad", "error", "message"), BAD_PATHS, ids=[repr(b[0]) for b in BAD_PATHS]
)
@pytest.mark.parametrize("background", [False, True])
def test_a_path_that_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: Any,
    error: type[Exception],
    message: str,
    background: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    state = {"a": 1}
    with pytest.raises(error, match=message):
        _waited(genesis.save(state, bad, background=background))
    assert state == {"a": 1}
    assert sorted(os.listdir()) == ["file", "there"]
    not_loaded = (error, genesis.NotACheckpointError)
    with pytest.raises(not_loaded, match=message.replace("names", "(is|names)")):
        genesis.load(bad)


def _waited(done: genesis.SaveReport | genesis.SaveFuture) -> genesis.SaveReport:
    return done.result(DEADLINE) if isinstance(done, genesis.SaveFuture) else done


def test_a_missing_directory_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"create it first, with os\.makedirs") as caught:
        genesis.save({"a": 1}, tmp_path / "missing" / "f")
    assert caught.value.filename == str(tmp_path / "missing")


def test_a_pipe_is_not_replaced(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        genesis.save({"a": 1}, path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(path.parent) == [path.name]


# --- Permissions, owners, links -------------------------------------------------------------------


def test_a_read_only_directory_is_named_with_the_cure(public: Path) -> None:
    genesis.save({"n": "old"}, public / "f")
    (public / "f").chmod(0o666)
    public.chmod(0o555)
    said = as_nobody(
        """
        state = {"n": "new"}
        for background in (False, True):
            try:
                done = genesis.save(state, path, background=background)
                done.result()
            except PermissionError as exc:
                print(exc.filename, exc, state)
        print(genesis.load(path), os.listdir(os.path.dirname(path)))
        """,
        public / "f",
    )
    cure = "Permission denied: files cannot be created in this directory; check its permissions"
    refusal = f"{public} [Errno 13] {cure}: {str(public)!r} {{'n': 'new'}}\n"
    assert said == refusal * 2 + "{'n': 'old'} ['f']\n"


def test_a_file_that_may_not_be_read_is_a_permission_error(public: Path) -> None:
    genesis.save({"n": 1}, public / "f")
    (public / "f").chmod(0)
    said = as_nobody(
        """
        try:
            genesis.load(path)
        except PermissionError as exc:
            print(exc)
        print(genesis.validate_checkpoint(path))
        """,
        public / "f",
    )
    error = f"[Errno 13] Permission denied: {str(public / 'f')!r}"
    assert said == f'{error}\n(False, "Error validating checkpoint: {error}")\n'


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
def test_a_new_file_has_the_mode_that_the_umask_leaves(path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        genesis.save({"n": 1}, path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400, 0o755, 0o2640, 0o666])
def test_an_overwritten_file_keeps_its_mode(path: Path, mode: int) -> None:
    genesis.save({"n": 1}, path)
    path.chmod(mode)
    genesis.save({"n": 2}, path)
    genesis.save({"n": 3}, path, background=True).result(DEADLINE)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert genesis.load(path) == {"n": 3}


def test_a_private_file_is_private_while_it_is_written(path: Path) -> None:
    genesis.save({"n": 1}, path)
    path.chmod(0o600)
    modes = set()
    save = genesis.save({"n": np.ones(8 << 20)}, path, background=True)
    while not save.done():
        for name in temporary_files(path.parent):
            with suppress(FileNotFoundError):
                modes.add(stat.S_IMODE((path.parent / name).stat().st_mode))
    assert modes == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_root
def test_an_overwritten_file_keeps_its_owner(path: Path) -> None:
    genesis.save({"n": 1}, path)
    os.chown(path, 1234, 4321)
    path.chmod(0o640)
    genesis.save({"n": 2}, path)
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)
    assert stat.S_IMODE(status.st_mode) == 0o640


@needs_root
def test_an_owner_that_cannot_be_kept_is_no_error(public: Path) -> None:
    public.chmod(0o777)
    genesis.save({"n": 1}, public / "f")
    said = as_nobody(
        """
        genesis.save({"n": 2}, path)
        print(genesis.load(path), os.stat(path).st_uid, oct(stat.S_IMODE(os.stat(path).st_mode)))
        """,
        public / "f",
    )
    assert said == f"{{'n': 2}} {NOBODY} 0o644\n"


def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "latest", tmp_path / "real" / "f"
    link.symlink_to("real/f")
    for n in range(3):
        genesis.save({"n": n}, link)
        assert genesis.load(target) == genesis.load(link) == {"n": n}
    assert os.readlink(link) == "real/f"
    assert not target.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["latest", "real"]
    assert os.listdir(tmp_path / "real") == ["f"]


def test_a_link_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        genesis.save({"n": 1}, tmp_path / "link")
    genesis.save({"n": 1}, tmp_path / "link" / "f")
    assert genesis.load(tmp_path / "real" / "f") == {"n": 1}


def test_a_link_whose_backup_is_beside_the_target_is_recovered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link, target = tmp_path / "latest", tmp_path / "real" / "f"
    link.symlink_to(target)
    genesis.save({"n": 1}, link)
    target.rename(backup_of(target))
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="real/f"):
        assert genesis.load(link) == {"n": 1}


def test_another_hard_link_keeps_the_old_content(path: Path) -> None:
    genesis.save({"n": 1}, path)
    os.link(path, path.with_name("kept"))
    genesis.save({"n": 2}, path)
    assert genesis.load(path.with_name("kept")) == {"n": 1}
    assert genesis.load(path) == {"n": 2}


# --- Recovery -------------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    path.unlink()


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _foreign(path: Path) -> None:
    path.write_text("not a checkpoint")


@pytest.mark.parametrize("damage", [_missing, _truncated, _emptied, _zeroed, _foreign])
@pytest.mark.parametrize(
    "options", [{}, {"mmap": True}, {"weights_only": True}, {"verify": False}], ids=str
)
def test_load_falls_back_to_the_backup(
    path: Path, damage: Callable[[Path], None], options: dict[str, bool]
) -> None:
    genesis.save({"n": 1}, backup_of(path))
    genesis.save({"n": 2}, path.with_name("other"))
    path.with_name("other").rename(path)
    damage(path)
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="was loaded instead") as caught:
        assert genesis.load(path, **options) == {"n": 1}
    assert str(path) in str(caught[0].message)
    assert str(backup_of(path)) in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("damage", [_missing, _truncated, _foreign])
def test_the_save_after_a_recovery_cleans_up(path: Path, damage: Callable[[Path], None]) -> None:
    genesis.save({"n": 1}, path)
    shutil.copy(path, backup_of(path))
    damage(path)
    genesis.save({"n": 2}, path)
    assert genesis.load(path) == {"n": 2}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("damage", [_missing, _truncated, _foreign])
def test_the_only_sound_copy_is_there_until_the_next_one_is(
    path: Path, damage: Callable[[Path], None]
) -> None:
    genesis.save({"n": 1}, path)
    shutil.copy(path, backup_of(path))
    damage(path)
    with Watch(path.parent) as watch:
        genesis.save({"n": 2}, path)
        seen = watch.seen()
    backup = backup_of(path).name
    assert f"to {backup}" not in seen
    assert seen.index(f"to {path.name}") < seen.index(f"- {backup}")


def test_a_backup_of_an_older_save_gives_way_to_the_one_of_a_sound_file(path: Path) -> None:
    genesis.save({"n": 0}, backup_of(path))
    genesis.save({"n": 1}, path.with_name("other"))
    path.with_name("other").rename(path)
    assert genesis.load(path) == {"n": 1}
    with Watch(path.parent) as watch:
        genesis.save({"n": 2}, path)
        assert f"to {backup_of(path).name}" in watch.seen()
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("write", [pickle.dump, dill.dump], ids=["pickle", "dill"])
def test_a_backup_of_another_writer_is_recovered(path: Path, write: Callable[..., None]) -> None:
    with backup_of(path).open("wb") as file:
        write({"n": 1}, file)
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="was loaded instead"):
        assert genesis.load(path) == {"n": 1}


def test_without_file_and_backup_the_file_is_what_is_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No such file") as caught:
        genesis.load(path)
    assert caught.value.filename == str(path)


def test_a_refusal_is_not_answered_with_the_backup(path: Path) -> None:
    genesis.save({"n": 1}, backup_of(path))
    genesis.save({"f": len, "g": shutil.rmtree}, path.with_name("other"))
    path.with_name("other").rename(path)
    with pytest.raises(genesis.UnsafeLoadError, match="rmtree"):
        genesis.load(path, weights_only=True)


# --- Calls that never raise, and calls that are wrong ---------------------------------------------


class Model:
    """Loads a dict of the one key that it knows."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]


@pytest.mark.parametrize("name", ["missing.pth", b"\xff\xfe", "größe", "🌱"], ids=repr)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_safe_load_reports_a_name_that_standard_output_cannot_show(
    tmp_path: Path, name: str | bytes, encoding: str
) -> None:
    program = """
import os, sys, genesis
path = bytes.fromhex(sys.argv[1])
print(genesis.safe_load_checkpoint(path, None))
with open(path, "wb") as file:
    file.write(b"damaged")
print(genesis.safe_load_checkpoint(path, None))
"""
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    done = subprocess.run(
        [sys.executable, "-c", program, path.hex()],
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode(encoding).splitlines()
    assert lines[0].startswith("Checkpoint ")
    assert lines[0].endswith("not found")
    assert lines[2].startswith("Error loading checkpoint: ")
    assert (lines[1], lines[3]) == ("False", "False")


def test_safe_load_of_everything_that_goes_wrong(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"model_state_dict": {"weight": 3}, "optimizer_state_dict": {"momentum": 1}}
    for state, optimizer, loaded, said in [
        (good, None, True, "loaded successfully"),
        (good, Model(), True, "Warning: Could not load optimizer state: 'weight'"),
        ({"weight": 4}, None, True, "loaded successfully"),
        ({"other": 4}, None, False, "Error loading checkpoint: 'weight'"),
        ([1, 2], None, False, "Error loading checkpoint"),
        (7, None, False, "Error loading checkpoint"),
    ]:
        genesis.save(state, path, clear=False)
        model = Model()
        assert genesis.safe_load_checkpoint(path, model, optimizer) is loaded
        assert said in capsys.readouterr().out
        assert hasattr(model, "weight") is loaded
    for bad in (path.parent, path.parent / "missing" / "f", "", "nul\0", None, 5):
        assert genesis.safe_load_checkpoint(bad, Model()) is False
        assert capsys.readouterr().out != ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, ""),
        ({"epoch": 3}, "Loaded checkpoint from epoch 3\n"),
        ({"loss": 0.5}, "Loaded checkpoint, loss: 0.5\n"),
        ({"epoch": 3, "loss": 0.5}, "Loaded checkpoint from epoch 3, loss: 0.5\n"),
    ],
    ids=str,
)
def test_safe_load_says_only_what_is_there(
    path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], said: str
) -> None:
    genesis.save({"model_state_dict": {"weight": 1}, **more}, path)
    assert genesis.safe_load_checkpoint(path, Model())
    assert capsys.readouterr().out == (
        f"Model state loaded successfully\n{said}Checkpoint loaded successfully\n"
    )


def test_validate_waits_for_the_save_that_is_under_way(path: Path) -> None:
    with held(path.parent) as hold:

        class Releasing(os.PathLike[str]):
            def __fspath__(self) -> str:
                hold.release()
                return str(path)

        genesis.save_checkpoint({"w": np.ones(2)}, {}, path, background=True)
        assert genesis.validate_checkpoint(Releasing()) == (True, "Checkpoint is valid")


@pytest.mark.parametrize(
    "call",
    [
        lambda path: genesis.save({1: 2}, path, True),  # type: ignore[call-overload]
        lambda path: genesis.save({1: 2}, path, backgroun=True),  # type: ignore[call-overload]
        lambda path: genesis.save({}),  # type: ignore[call-overload]
        lambda path: genesis.load(path, False),  # type: ignore[call-arg]
        lambda path: genesis.load(path, weight_only=True),  # type: ignore[call-arg]
        lambda path: genesis.save_checkpoint({}, path),  # type: ignore[call-overload]
    ],
    ids=range(6),
)
def test_arguments_that_are_not_there_are_type_errors(
    path: Path, call: Callable[[Path], object]
) -> None:
    with pytest.raises(TypeError, match="argument"):
        call(path)
    assert os.listdir(path.parent) == []


# --- The manager ----------------------------------------------------------------------------------


def manager_of(path: Path, keep: int) -> tuple[genesis.CheckpointManager, Any]:
    return genesis.CheckpointManager(path, max_checkpoints=keep), torch.nn.Linear(2, 1)


def test_the_manager_keeps_the_newest_and_finds_the_latest(path: Path) -> None:
    manager, model = manager_of(path, 2)
    assert (manager.checkpoints(), manager.latest()) == ({}, None)
    for epoch in (1, 2, 10, 1_000_000):
        report = manager.save_checkpoint(model, model, epoch, loss=0.5)
        assert isinstance(report, genesis.SaveReport)
    assert list(manager.checkpoints()) == [10, 1_000_000]
    assert manager.latest() == str(path / "epoch_1000000.pth")
    found = genesis.load(str(manager.latest()))
    assert (found["epoch"], found["loss"]) == (1_000_000, 0.5)
    assert genesis.validate_checkpoint(str(manager.latest()))[0]


def test_the_manager_removes_an_old_one_only_when_the_new_one_is_durable(path: Path) -> None:
    manager, model = manager_of(path, 1)
    manager.save_checkpoint(model, model, 1, 0.5)
    with held(path):
        save = manager.save_checkpoint(model, model, 2, 0.5, background=True)
        assert list(manager.checkpoints()) == [1]
    assert isinstance(save, genesis.SaveFuture)
    save.result(DEADLINE)
    assert list(manager.checkpoints()) == [2]


def test_the_manager_keeps_the_old_one_when_a_save_fails(path: Path) -> None:
    manager, model = manager_of(path, 1)
    manager.save_checkpoint(model, model, 1, 0.5)
    with no_room_beyond(64), pytest.raises(OSError, match="File too large"):
        manager.save_checkpoint(model, model, 2, 0.5)
    assert list(manager.checkpoints()) == [1]
    assert litter(path) == []


def test_the_manager_removes_the_backup_of_what_it_removes(path: Path) -> None:
    manager, model = manager_of(path, 1)
    manager.save_checkpoint(model, model, 1, 0.5)
    shutil.copy(path / "epoch_000001.pth", path / "epoch_000001.pth.genesis.bak")
    manager.save_checkpoint(model, model, 2, 0.5)
    assert os.listdir(path) == ["epoch_000002.pth"]
    with pytest.raises(FileNotFoundError, match="epoch_000001"):
        genesis.load(path / "epoch_000001.pth")


def test_the_manager_leaves_other_files_alone(path: Path) -> None:
    path.mkdir()
    others = ["best.pth", "epoch_x.pth", "epoch_1.pth.txt", "my_epoch_1.pth", "epoch_.pth"]
    for name in others:
        (path / name).touch()
    manager, model = manager_of(path, 1)
    for epoch in range(3):
        manager.save_checkpoint(model, model, epoch, 0.5)
    assert sorted(os.listdir(path)) == sorted([*others, "epoch_000002.pth"])


@pytest.mark.parametrize("keep", [0, -1])
def test_a_manager_that_keeps_nothing_is_refused(path: Path, keep: int) -> None:
    with pytest.raises(ValueError, match=f"max_checkpoints must be at least 1, not {keep}"):
        genesis.CheckpointManager(path, max_checkpoints=keep)


# --- Readers beside writers -----------------------------------------------------------------------


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[threading.Event]:
    """Run calls of `work` on another thread, again and again, until the block has ended."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not ended.is_set():
                work()
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join()
    assert errors == []


def test_a_reader_of_a_damaged_file_beside_the_save_that_replaces_it_finds_a_sound_one(
    path: Path,
) -> None:
    """The backup is large, so that the save often ends, and removes it, while it is looked at."""
    spare, sound, damaged = (path.with_name(name) for name in ("spare", "sound", "damaged"))
    genesis.save({"n": 0, "large": np.ones(6 << 20)}, sound)
    shutil.copy(sound, damaged)
    os.truncate(damaged, sound.stat().st_size - 1)
    for _ in range(40):
        for source, target in ((sound, backup_of(path)), (damaged, path)):
            os.link(source, spare)
            spare.rename(target)
        save = threading.Thread(target=genesis.save, args=({"n": 1}, path))
        save.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", genesis.RecoveredFromBackupWarning)
            assert genesis.load(path)["n"] in (0, 1)
        save.join(DEADLINE)
        assert genesis.load(path) == {"n": 1}


def test_a_reader_beside_the_first_save_over_a_plain_pickle_finds_one_or_the_other(
    path: Path,
) -> None:
    spare = path.with_name("spare")
    path.write_bytes(pickle.dumps({"n": 0}))

    def convert() -> None:
        spare.write_bytes(pickle.dumps({"n": 0}))
        spare.rename(path)
        genesis.save({"n": 1}, path)

    with beside(convert):
        for _ in range(3000):
            assert genesis.load(path)["n"] in (0, 1)
            assert genesis.validate_checkpoint(path) == (False, "Missing model_state_dict")
