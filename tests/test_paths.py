"""What a path may be: URLs are refused, ``~`` is the home directory, and a path is looked up once,
when it is given.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from contention import DEADLINE, join_threads

import genesis
from genesis import aio
from genesis.aio._bridge import executor


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)
    join_threads()


def run(call: Callable[..., Any], *arguments: Any) -> Any:
    async def main() -> Any:
        return await call(*arguments)

    return asyncio.run(main())


class Model:
    def __init__(self) -> None:
        self.loaded: Any = None

    def state_dict(self) -> dict[str, int]:
        return {"w": 1}

    def load_state_dict(self, state: Any) -> None:
        self.loaded = state


CALLS: dict[str, Callable[[Any], object]] = {
    "save": lambda path: genesis.save({"a": 1}, path),
    "background": lambda path: genesis.save({"a": 1}, path, background=True),
    "save_checkpoint": lambda path: genesis.save_checkpoint({"a": 1}, {}, path),
    "load": genesis.load,
    "load_checkpoint": genesis.load_checkpoint,
    "load_metadata": genesis.load_metadata,
    "remove": genesis.remove,
    "CheckpointManager": genesis.CheckpointManager,
    "aio.save": lambda path: run(aio.save, {"a": 1}, path),
    "aio.save_checkpoint": lambda path: run(aio.save_checkpoint, {"a": 1}, {}, path),
    "aio.load": lambda path: run(aio.load, path),
    "aio.load_checkpoint": lambda path: run(aio.load_checkpoint, path),
    "aio.load_metadata": lambda path: run(aio.load_metadata, path),
    "aio.remove": lambda path: run(aio.remove, path),
    "aio.stream": aio.stream,
    "aio.CheckpointManager": aio.CheckpointManager,
}
URLS = [
    "s3://bucket/run/model.pth",
    "gs://bucket/model.pth",
    "file:///tmp/model.pth",
    "https://example.org/model.pth",
    "abfss://container@account/model.pth",
    "dbfs:/models/model.pth",
    b"s3://bucket/model.pth",
    Path("s3://bucket/model.pth"),
]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("url", URLS, ids=str)
def test_a_url_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, url: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"is a URL .*local files only; save to a local path"):
        CALLS[name](url)
    assert os.listdir(tmp_path) == []


def test_those_that_report_instead_of_raising_say_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not genesis.safe_load_checkpoint("s3://bucket/f", Model())
    assert not run(aio.safe_load_checkpoint, "s3://bucket/f", Model())
    assert capsys.readouterr().out.count("'s3://bucket/f' is a URL") == 2
    for validate in (genesis.validate_checkpoint, lambda path: run(aio.validate_checkpoint, path)):
        valid, message = validate("s3://bucket/f")
        assert not valid
        assert message.startswith("Error validating checkpoint: 's3://bucket/f' is a URL")


@pytest.mark.parametrize("name", ["lr:0.1", "run:1/f", "a:/f", "./s3:/f", "a b://f"])
def test_a_name_with_a_colon_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    genesis.save({"a": 1}, name)
    assert genesis.load(tmp_path / name) == {"a": 1}


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    genesis.save({"a": 1}, "~/f")
    genesis.save({"a": 1}, Path("~/g"))
    run(aio.save, {"a": 1}, "~/h")
    genesis.CheckpointManager("~/ckpts").save_checkpoint(Model(), Model(), 1, 0.5)
    assert sorted(os.listdir(home)) == ["ckpts", "f", "g", "h"]
    assert os.listdir(home / "ckpts") == ["epoch_000001.pth"]
    assert genesis.load("~/f") == run(aio.load, "~/g") == {"a": 1}
    genesis.remove("~/f")
    assert not (home / "f").exists()
    assert os.listdir() == []


def test_a_name_that_begins_with_a_tilde_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genesis.save({"a": 1}, "~nobody-of-this-name.pth")
    assert os.listdir() == ["~nobody-of-this-name.pth"]


# --- Looked up once -------------------------------------------------------------------------------


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


AWAITED: dict[str, Callable[[Any], Any]] = {
    "load": aio.load,
    "load_checkpoint": aio.load_checkpoint,
    "load_metadata": aio.load_metadata,
    "safe_load_checkpoint": lambda path: aio.safe_load_checkpoint(path, Model()),
    "validate_checkpoint": aio.validate_checkpoint,
}


def mark(folder: Path, name: str) -> None:
    folder.mkdir()
    state = {"model_state_dict": {"w": name}, "optimizer_state_dict": {}}
    genesis.save(state, folder / "f", metadata={"name": name})


@pytest.mark.anyio
@pytest.mark.parametrize("name", AWAITED)
@pytest.mark.parametrize("how", ["chdir", "symlink"])
async def test_a_call_that_waits_reads_the_file_of_the_moment_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str, capsys: Any
) -> None:
    mark(tmp_path / "a", "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / "a")
    path = "f" if how == "chdir" else str(tmp_path / "link" / "f")
    found: list[Any] = []

    async def read() -> None:
        found.append(await AWAITED[name](path))

    # Every thread that could read is busy, so that the call goes on only after the change.
    changed = threading.Event()
    busy = [executor.submit(changed.wait, DEADLINE) for _ in range(executor.threads)]
    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await turns()
        monkeypatch.chdir(tmp_path / "b")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("b")
        changed.set()
    assert all(each.result(DEADLINE) for each in busy)
    assert len(found) == 1
    assert found[0] is not False
    assert "No such file" not in str(found[0])
    assert "not found" not in capsys.readouterr().out


@pytest.mark.anyio
async def test_a_stream_is_of_the_file_of_the_moment_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        mark(tmp_path / name, name)
    monkeypatch.chdir(tmp_path / "a")
    pieces = aio.stream("f")
    monkeypatch.chdir(tmp_path / "b")
    async with aclosing(pieces):
        got = b"".join([piece async for piece in pieces])
    assert got == (tmp_path / "a" / "f").read_bytes()


def test_a_relative_path_without_a_working_directory_is_named(tmp_path: Path) -> None:
    code = "import os, sys, genesis; os.rmdir(os.getcwd()); genesis.save({'a': 1}, 'run.pth')"
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True)
    assert "the working directory is gone; give the whole path: 'run.pth'" in done.stderr
