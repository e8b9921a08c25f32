"""The dict that a save is given: when it is emptied, and what becomes of one that is empty already.

The rule: a plain save empties a plain dict; a background save and everything else empties nothing
unless it is told to; and no emptied dict takes a checkpoint's place unnoticed.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contention import DEADLINE, held, join_threads

import genesis
from genesis import aio


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)
    join_threads()


def save_aio(state: Any, path: Path, **options: Any) -> None:
    async def main() -> None:
        await aio.save(state, path, **options)

    asyncio.run(main())


def save_background(state: Any, path: Path, **options: Any) -> None:
    genesis.save(state, path, background=True, **options).result(DEADLINE)


SAVES: dict[str, Callable[..., Any]] = {
    "plain": genesis.save,
    "background": save_background,
    "aio": save_aio,
}
saves = pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)


# --- What is emptied ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dict, collections.OrderedDict])
@pytest.mark.parametrize("name", ["plain", "aio"])
def test_a_save_that_is_waited_for_empties_a_plain_dict(path: Path, make: Any, name: str) -> None:
    inner = {"kept": 1}
    state = make({"a": 1, "inner": inner, None: 2})
    SAVES[name](state, path)
    assert len(state) == 0
    assert inner == {"kept": 1}
    assert genesis.load(path)["inner"] == {"kept": 1}


def test_a_background_save_empties_nothing_unless_it_is_told_to(tmp_path: Path) -> None:
    state = {"a": 1, "b": np.ones(10)}
    save_background(state, tmp_path / "last.pth")
    save_background(state, tmp_path / "best.pth")
    assert set(state) == {"a", "b"}
    assert set(genesis.load(tmp_path / "best.pth")) == {"a", "b"}
    save_background(state, tmp_path / "last.pth", clear=True)
    assert state == {}


class Named(dict[str, Any]):
    """Somebody's dict."""


@saves
@pytest.mark.parametrize(
    "make",
    [
        Named,
        lambda d: collections.defaultdict(int, d),
        collections.UserDict,
        collections.Counter,
        lambda d: collections.ChainMap(d, {}),
    ],
    ids=["subclass", "defaultdict", "UserDict", "Counter", "ChainMap"],
)
def test_a_mapping_that_may_be_somebodys_live_object_is_never_emptied(
    path: Path, save: Any, make: Any
) -> None:
    inner = {"a": 1, "b": 2}
    state = make(inner)
    save(state, path, clear=True)
    assert dict(state) == {"a": 1, "b": 2}
    assert inner == {"a": 1, "b": 2}


def test_saving_the_state_of_an_optimizer_leaves_the_optimizer_alone(path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    genesis.save(optimizer.state, path)
    assert len(optimizer.state) == 1


class Refuses:
    """A key that cannot be looked up any more, once it was saved."""

    refuses = False

    def __hash__(self) -> int:
        if Refuses.refuses:
            raise TypeError("this has no hash")
        return id(self)

    def __reduce__(self) -> str | tuple[Any, ...]:
        Refuses.refuses = True
        return Refuses, ()


@saves
def test_an_error_of_clearing_does_not_fail_a_save_that_is_durable(
    path: Path, save: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refuses, "refuses", False)
    first, second = Refuses(), Refuses()
    state = {first: 1, second: 2}
    with caplog.at_level(logging.WARNING, "genesis"):
        save(state, path, clear=True)
    monkeypatch.setattr(Refuses, "refuses", False)
    assert len(genesis.load(path)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"the dict saved to {path} was not emptied"
    ]


@pytest.mark.anyio
async def test_a_task_that_was_cancelled_leaves_the_dict_alone(path: Path) -> None:
    import anyio

    state = {"a": 1}
    with held(path.parent) as hold:
        async with anyio.create_task_group() as group:
            group.start_soon(aio.save, state, path)
            while not genesis._engine.scheduler.scheduler.pending():
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        hold.release()
    genesis.flush(DEADLINE)
    assert genesis.load(path) == {"a": 1}
    assert state == {"a": 1}


# --- A dict that was emptied before ---------------------------------------------------------------


@saves
def test_an_emptied_dict_is_saved_with_a_warning_that_explains_it(
    tmp_path: Path, save: Any
) -> None:
    state = {"a": 1}
    genesis.save(state, tmp_path / "last.pth")
    with pytest.warns(UserWarning, match="the state is empty; a save empties the dict") as caught:
        save(state, tmp_path / "best.pth")
    assert str(tmp_path / "best.pth") in str(caught[0].message)
    assert "clear=False" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert genesis.load(tmp_path / "best.pth") == {}


HELD: dict[str, Callable[[Path], object]] = {
    "arrays": lambda path: genesis.save({"w": np.ones(10)}, path),
    "numbers": lambda path: genesis.save({"epoch": 3}, path),
    "a list": lambda path: genesis.save([1], path),
    "an object": lambda path: genesis.save(Named(a=1), path),
    "a plain pickle": lambda path: path.write_bytes(pickle.dumps({"epoch": 3})),
    "a damaged file": lambda path: path.write_bytes(b"what is it?"),
    "a backup": lambda path: _only_a_backup(path),
}


def _only_a_backup(path: Path) -> None:
    genesis.save({"epoch": 3}, path)
    path.rename(f"{path}.genesis.bak")


@saves
@pytest.mark.parametrize("name", HELD)
def test_an_empty_dict_does_not_replace_a_checkpoint(path: Path, save: Any, name: str) -> None:
    HELD[name](path)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(ValueError, match="the state is empty, and the file there is not; a save"):
        save({}, path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    save({}, path, clear=False)
    assert genesis.load(path) == {}


@saves
@pytest.mark.parametrize("state", [{}, collections.OrderedDict()], ids=["dict", "OrderedDict"])
def test_an_empty_dict_that_is_meant_is_saved_without_a_word(
    path: Path, save: Any, state: Any
) -> None:
    for _ in range(2):
        save(state, path, clear=False)
    with pytest.warns(UserWarning, match="the state is empty"):
        save(state, path)  # replaces nothing but its like


def test_a_file_without_bytes_holds_nothing(path: Path) -> None:
    path.touch()
    with pytest.warns(UserWarning, match="the state is empty"):
        genesis.save({}, path)


@saves
def test_an_empty_thing_that_no_save_has_emptied_needs_no_word(path: Path, save: Any) -> None:
    for state in ([], Named(), None, 0):
        genesis.save({"a": 1}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            save(state, path)


def test_an_emptied_model_state_in_a_checkpoint_is_seen_too(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    state = model.state_dict()
    genesis.save_checkpoint(state, {"lr": 0.1}, tmp_path / "c.pth")
    genesis.save(state, tmp_path / "best.pth")
    with pytest.raises(ValueError, match="the state's 'model_state_dict' is empty, and the file"):
        genesis.save_checkpoint(state, {"lr": 0.1}, tmp_path / "c.pth")
    with pytest.warns(UserWarning, match="'model_state_dict' is empty"):
        genesis.save_checkpoint(state, {"lr": 0.1}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match="'model_state_dict' is empty"):
        asyncio.run(aio.save_checkpoint(state, {"lr": 0.1}, tmp_path / "c.pth"))
    for _ in range(2):
        genesis.save_checkpoint(state, {"lr": 0.1}, tmp_path / "d.pth", clear=False)


def test_the_state_is_looked_at_when_it_is_captured(tmp_path: Path) -> None:
    """A save that waits its turn saves what the dict holds then, so that is what must not be
    empty."""
    state = {"a": 1}
    with held(tmp_path) as hold:
        first = genesis.save(state, tmp_path / "f", background=True, clear=True)
        waiting = threading.Thread(target=hold.release)
        waiting.start()
        with pytest.raises(ValueError, match="the state is empty"):
            genesis.save(state, tmp_path / "f", background=True)
        waiting.join()
        first.result(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"a": 1}
