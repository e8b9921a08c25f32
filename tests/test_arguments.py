"""Arguments that were meant otherwise: the error names the call that was meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import genesis
from genesis import aio


class Model:
    def state_dict(self) -> dict[str, int]:
        return {"w": 1}


class Shaped:
    shape = (2, 3)


def run(call: Callable[..., Any], *arguments: Any) -> Any:
    async def main() -> Any:
        return await call(*arguments)

    return asyncio.run(main())


def plain(name: str) -> Any:
    return getattr(genesis, name)


def awaited(name: str) -> Any:
    return lambda *arguments: run(getattr(aio, name), *arguments)


both = pytest.mark.parametrize("of", [plain, awaited])


@both
@pytest.mark.parametrize(
    ("state", "held"),
    [
        ({"model": 1, "epoch": 3}, "it holds 'model', 'epoch'; genesis.load"),
        ({n: n for n in range(50)}, r"8, 9 and 40 more; genesis\.load"),
        ({"k" * 500: 1}, "it holds 'k{40,59}; genesis.load"),
        ({"a.weight": Shaped(), "a.bias": Shaped()}, "'a.bias'; these look like a bare model"),
        ([1, 2], "it holds a list; genesis.load"),
        (Model(), "it holds a Model; genesis.load"),
    ],
    ids=range(6),
)
def test_load_checkpoint_of_something_else_lists_what_is_there(
    path: Path, of: Any, state: Any, held: str
) -> None:
    genesis.save(state, path, clear=False)
    with pytest.raises(KeyError, match=held) as caught:
        of("load_checkpoint")(path)
    assert str(path) in str(caught.value)


@both
def test_swapped_arguments_are_seen(path: Path, of: Any) -> None:
    with pytest.raises(TypeError, match=r"the path comes last, and is a dict here; .* swap them"):
        of("save")(str(path), {"a": 1})
    with pytest.raises(TypeError, match="the path comes last, and is a Model here"):
        of("save")(path, Model())
    with pytest.raises(TypeError, match="the path comes last, and is a dict here"):
        of("save_checkpoint")(path, {"a": 1}, {"b": 2})
    of("save")("a text is a state too", path)
    assert genesis.load(path) == "a text is a state too"


@both
def test_objects_instead_of_their_states_are_seen(path: Path, of: Any) -> None:
    with pytest.raises(TypeError, match=r"model_state_dict is a Model, .* pass its \.state_dict"):
        of("save_checkpoint")(Model(), {}, path)
    with pytest.raises(TypeError, match="optimizer_state_dict is a Model, not its state"):
        of("save_checkpoint")({"w": 1}, Model(), path)
    assert not path.exists()


@pytest.mark.parametrize("manager", [genesis.CheckpointManager, aio.CheckpointManager])
def test_states_instead_of_their_objects_are_seen(path: Path, manager: Any) -> None:
    async def save(model: Any, optimizer: Any) -> None:
        done = manager(path).save_checkpoint(model, optimizer, 1, 0.5)
        if manager is aio.CheckpointManager:
            await done

    with pytest.raises(TypeError, match=r"model is a dict, .* pass the object itself"):
        asyncio.run(save({"w": 1}, Model()))
    with pytest.raises(TypeError, match=r"optimizer is a NoneType, .* an object that has one"):
        asyncio.run(save(Model(), None))


@both
def test_an_open_file_is_no_path(path: Path, of: Any) -> None:
    with path.open("wb") as file:
        with pytest.raises(TypeError, match=r"a path is expected, not an open file \(BufferedWri"):
            of("save")({"a": 1}, file)
        with pytest.raises(TypeError, match="a path is expected, not an open file"):
            of("load")(file)


class ReadablePath:
    """As that of the py library, which has methods of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def read(self) -> bytes:
        raise AssertionError


@both
def test_a_path_that_can_read_is_a_path(path: Path, of: Any) -> None:
    of("save")({"a": 1}, ReadablePath(path))
    assert of("load")(ReadablePath(path)) == {"a": 1}


@pytest.mark.parametrize("name", ["save", "save_checkpoint"])
def test_awaiting_a_plain_save_says_what_to_await(path: Path, name: str) -> None:
    arguments = [{"a": 1}] * (1 + (name == "save_checkpoint"))
    with pytest.raises(TypeError, match=r"await genesis\.aio\.save\(\.\.\.\)"):
        run(getattr(genesis, name), *arguments, path)
    assert path.exists()


@both
def test_a_state_dict_that_nobody_called(path: Path, of: Any) -> None:
    class Net:
        def state_dict(self) -> dict[str, int]:
            return {"w": 1}

    with pytest.raises(TypeError, match=r"model_state_dict is the method state_dict, .* call it"):
        of("save_checkpoint")(Net().state_dict, {}, path)


@pytest.mark.parametrize("where", [5, b"cpu", True, [], {"cpu": 5}])
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_map_location_that_is_no_device_is_not_the_files_fault(
    where: object, weights_only: bool, tmp_path: Path
) -> None:
    genesis.save({"a": 1}, tmp_path / "p")
    with pytest.raises(TypeError, match=r"map_location must be a device or its name"):
        genesis.load(tmp_path / "p", map_location=where, weights_only=weights_only)
