"""What stands for something outside of a state is refused when it is saved, and the file stays.

Each kind is made, saved in several places and beside a lambda (where dill could save it), and named
with its place. Loading never opens what somebody else's pickle wants opened.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import ctypes
import datetime
import gzip
import io
import logging
import mmap
import multiprocessing
import multiprocessing.shared_memory
import pickle
import queue
import selectors
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import weakref
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import anyio
import corpus
import dill
import numpy as np
import pytest

import genesis
from genesis._engine.futures import SaveFuture


def running() -> Iterator[int]:
    yield 1


async def running_later() -> AsyncIterator[int]:
    yield 1


def closed(file: Any) -> Any:
    file.close()
    return file


def npz(folder: Path) -> Any:
    np.savez(folder / "a.npz", a=np.ones(2))
    return np.load(folder / "a.npz")


def temporary(folder: Path) -> Any:
    return tempfile.NamedTemporaryFile(dir=folder)


def spooled(folder: Path) -> Any:
    return tempfile.SpooledTemporaryFile()


def finished(*command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command)
    process.wait()
    return process


class Worker(threading.Thread):
    """A thread of the user's."""


class Forgetful(threading.Thread):
    """A thread that says itself what of it is saved."""

    def __reduce__(self) -> Any:
        return corpus.Node, ()


MADE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "log file": (lambda folder: (folder / "log").open("w"), "open or closed file"),
    "closed file": (lambda folder: closed((folder / "log").open("w")), "open or closed file"),
    "exclusive file": (lambda folder: (folder / "log").open("x"), "open or closed file"),
    "appended file": (lambda folder: (folder / "log").open("ab"), "open or closed file"),
    "file read and written": (lambda folder: (folder / "log").open("w+b"), "open or closed file"),
    "raw file": (lambda folder: (folder / "log").open("wb", buffering=0), "open or closed file"),
    "standard output": (lambda folder: sys.__stdout__, "open or closed file"),
    "gzip": (lambda folder: gzip.GzipFile(folder / "a.gz", "w"), "open or closed file"),
    "zip": (lambda folder: zipfile.ZipFile(folder / "a.zip", "w"), "open or closed file"),
    "npz": (npz, "open or closed file"),
    "mapping": (lambda folder: mmap.mmap(-1, 16), "open or closed file"),
    "temporary file": (temporary, "temporary file"),
    "spooled file": (spooled, "temporary file"),
    "temporary directory": (
        lambda folder: tempfile.TemporaryDirectory(dir=folder),
        "temporary file or directory",
    ),
    "handler": (lambda folder: logging.FileHandler(folder / "log"), "open or closed file"),
    "lock": (lambda folder: threading.Lock(), "lock"),
    "recursive lock": (lambda folder: threading.RLock(), "lock"),
    "condition": (lambda folder: threading.Condition(), "lock"),
    "semaphore": (lambda folder: threading.Semaphore(), "lock"),
    "event": (lambda folder: threading.Event(), "lock"),
    "barrier": (lambda folder: threading.Barrier(2), "lock"),
    "queue": (lambda folder: queue.Queue(), "lock"),
    "simple queue": (lambda folder: queue.SimpleQueue(), "lock"),
    "lock of a loop": (lambda folder: asyncio.Lock(), "lock"),
    "event of a loop": (lambda folder: asyncio.Event(), "lock"),
    "queue of a loop": (lambda folder: asyncio.Queue(), "lock"),
    "lock of processes": (lambda folder: multiprocessing.Lock(), "lock"),
    "queue of processes": (lambda folder: multiprocessing.SimpleQueue(), "lock"),
    "thread": (lambda folder: threading.Thread(), "thread"),
    "thread of a class": (lambda folder: Worker(), "thread"),
    "timer": (lambda folder: threading.Timer(1, print), "thread"),
    "thread's own": (lambda folder: threading.local(), "thread"),
    "executor": (lambda folder: concurrent.futures.ThreadPoolExecutor(1), "thread"),
    "process": (lambda folder: finished("true"), "another process"),
    "process of Python": (lambda folder: multiprocessing.Process(), "another process"),
    "pipe": (lambda folder: multiprocessing.Pipe()[0], "another process"),
    "socket": (lambda folder: socket.socket(), "network connection"),
    "selector": (lambda folder: selectors.DefaultSelector(), "network connection"),
    "database": (lambda folder: sqlite3.connect(":memory:"), "database"),
    "future": (lambda folder: concurrent.futures.Future(), "still to come"),
    "generator": (lambda folder: running(), "code that is running"),
    "asynchronous generator": (lambda folder: running_later(), "code that is running"),
    "frame": (lambda folder: sys._getframe(), "code that is running"),
    "loop": (lambda folder: asyncio.new_event_loop(), "code that is running"),
    "capsule": (lambda folder: datetime.datetime_CAPI, "memory of this process"),
    "library": (lambda folder: ctypes.CDLL(None), "memory of this process"),
    "pointer": (lambda folder: ctypes.pointer(ctypes.c_int(1)), "memory of this process"),
    "weak values": (lambda folder: weakref.WeakValueDictionary(), "keeps nothing alive"),
    "weak keys": (lambda folder: weakref.WeakKeyDictionary(), "keeps nothing alive"),
    "weak set": (lambda folder: weakref.WeakSet([corpus.Node()]), "keeps nothing alive"),
    "finalizer": (lambda folder: weakref.finalize(corpus.Node(), print), "end of an object"),
}


@pytest.fixture(params=MADE)
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    make, kind = MADE[request.param]
    folder = tmp_path / "theirs"
    folder.mkdir()
    thing = make(folder)
    with ExitStack() as stack:
        close = None if thing is sys.__stdout__ else getattr(thing, "close", None)
        if request.param.startswith("temporary directory"):
            stack.callback(thing.cleanup)
        elif callable(close):
            stack.callback(close)
        yield thing, kind


PLACES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda thing: {"a": [0, thing]}, "['a'][1]"),
    (lambda thing: {"m": corpus.Node(log=thing)}, "['m'].log"),
    (lambda thing: {"f": lambda: None, "m": corpus.Node(log=thing)}, "['m'].log"),
    (lambda thing: {"f": lambda: thing}, "['f'].__closure__[0].cell_contents"),
]


@pytest.mark.parametrize(("wrap", "place"), PLACES, ids=["list", "object", "lambda", "closure"])
def test_it_is_refused_with_its_place_and_the_old_file_stays(
    outside: tuple[Any, str], wrap: Callable[[Any], Any], place: str, path: Path
) -> None:
    thing, kind = outside
    genesis.save({"epoch": 1}, path)
    with pytest.raises(genesis.UnpicklableStateError, match=kind) as caught:
        genesis.save(wrap(thing), path)
    assert caught.value.place == place
    assert "__getstate__" in caught.value.hint
    assert isinstance(caught.value, pickle.PicklingError)
    assert genesis.load(path) == {"epoch": 1}


def test_the_name_and_mode_of_a_file_are_in_the_message(tmp_path: Path, path: Path) -> None:
    with (
        (tmp_path / "train.log").open("w") as log,
        pytest.raises(genesis.UnpicklableStateError, match=r"train\.log.*mode 'w'"),
    ):
        genesis.save({"log": log}, path)


def test_what_lives_in_memory_only_is_saved(path: Path) -> None:
    state = {"bytes": io.BytesIO(b"ab"), "text": io.StringIO("ab"), "n": queue.Empty("x")}
    genesis.save(state, path, clear=False)
    loaded = genesis.load(path)
    assert (loaded["bytes"].getvalue(), loaded["text"].getvalue()) == (b"ab", "ab")


def test_a_class_that_says_how_it_is_pickled_is_believed(path: Path) -> None:
    genesis.save({"thread": Forgetful()}, path)
    assert type(genesis.load(path)["thread"]) is corpus.Node


def test_shared_memory_is_refused(path: Path) -> None:
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=16)
    with closing(memory):
        try:
            with pytest.raises(genesis.UnpicklableStateError, match="processes share"):
                genesis.save({"shared": memory}, path)
        finally:
            memory.unlink()


def test_a_token_of_a_context_is_refused(path: Path) -> None:
    token = contextvars.ContextVar[int]("number").set(1)
    with pytest.raises(genesis.UnpicklableStateError, match="thread or what belongs"):
        genesis.save({"token": token}, path)


def test_what_trio_and_anyio_wait_with_is_refused(path: Path) -> None:
    trio = pytest.importorskip("trio")

    async def save_each() -> None:
        things = [
            *(trio.Lock(), trio.Event(), trio.Semaphore(1), trio.CapacityLimiter(1)),
            *(trio.Condition(), trio.CancelScope(), *trio.open_memory_channel(1)),
            *(anyio.Lock(), anyio.Event(), anyio.Semaphore(1), anyio.CapacityLimiter(1)),
            *(anyio.Condition(), anyio.CancelScope(), trio.lowlevel.current_task()),
        ]
        for thing in things:
            with pytest.raises(
                genesis.UnpicklableStateError, match=r"means to wait|running"
            ) as got:
                genesis.save({"thing": thing}, path)
            assert got.value.place == "['thing']"

    trio.run(save_each)


# --- Loading --------------------------------------------------------------------------------------


def dill_with_file(file: Any, path: Path) -> None:
    with path.open("wb") as target:
        dill.dump({"log": file}, target)


@pytest.mark.parametrize("mode", ["w", "wb", "a", "r", "x", "w+"])
def test_a_pickle_of_dill_that_holds_a_file_does_not_open_it(
    mode: str, tmp_path: Path, path: Path
) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"x" * 10_000)
    if mode == "x":
        log.unlink()
    with log.open(mode) as file:
        dill_with_file(file, path)
    log.write_bytes(b"x" * 10_000)
    with pytest.raises(genesis.CorruptCheckpointError, match=r"train\.log") as caught:
        genesis.load(path)
    assert caught.value.path == str(path)
    assert log.read_bytes() == b"x" * 10_000


def test_a_pickle_of_dill_that_holds_a_standard_stream_is_loaded(path: Path) -> None:
    dill_with_file(sys.__stdout__, path)
    assert genesis.load(path)["log"] is sys.stdout


def test_an_address_of_another_process_is_not_taken_from_a_pickle(path: Path) -> None:
    path.write_bytes(dill.dumps({"a": datetime.datetime_CAPI}))
    with pytest.raises(genesis.CorruptCheckpointError, match="PyCapsule"):
        genesis.load(path)


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock], ids=["lock", "recursive"])
def test_a_lock_that_somebody_else_saved_held_comes_back_free(make: Any, path: Path) -> None:
    lock = make()
    with lock:
        path.write_bytes(dill.dumps({"lock": lock}))
    loaded = genesis.load(path)["lock"]
    assert type(loaded) is type(lock)
    assert loaded.acquire(blocking=False)


# --- Saves that are under way ---------------------------------------------------------------------


def test_a_future_that_is_done_is_saved_as_its_report(path: Path) -> None:
    future = genesis.save({"a": 1}, path.with_name("last"), background=True)
    report = future.result()
    genesis.save({"trainer": corpus.Node(last=future), "f": lambda: 0}, path)
    assert genesis.load(path)["trainer"].last == report
    assert copy.deepcopy(future) == report


def test_a_future_of_a_save_that_failed_is_saved_as_its_error(path: Path) -> None:
    missing = path.with_name("missing") / "last"
    future = genesis.save({"a": 1}, missing, background=True)
    assert isinstance(future.exception(), FileNotFoundError)
    genesis.save({"last": future}, path)
    loaded = genesis.load(path)["last"]
    assert isinstance(loaded, FileNotFoundError)


def test_a_future_that_is_not_done_is_refused(path: Path) -> None:
    future = SaveFuture("elsewhere")
    with pytest.raises(genesis.UnpicklableStateError, match="still to come") as caught:
        genesis.save({"trainer": corpus.Node(last=future)}, path)
    assert caught.value.place == "['trainer'].last"
    assert "result()" in caught.value.hint
    with pytest.raises(pickle.PicklingError, match="still to come"):
        pickle.dumps(future)
