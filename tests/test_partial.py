"""Reading less than a whole state: `only`, `load_into`, `inspect` and `diff`."""

from __future__ import annotations

import collections
import datetime
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optional import jax, needs_torch, torch
from same import assert_same

import genesis
from genesis import aio
from genesis._file import layout

CHUNK = layout.CHUNK_SIZE


def state_of_numpy() -> dict[str, Any]:
    return {
        "model": {f"layer.{n}": np.full(50, n, np.float32) for n in range(20)},
        "large": {"a": np.arange(1_000_000.0), "b": np.arange(2_000_000.0)[::-1]},
        "optimizer": collections.OrderedDict(state={0: {"m": np.ones(3)}, 1: {"m": np.zeros(3)}}),
        "step": 3,
        "odd": collections.Counter("abc"),
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    genesis.save(state_of_numpy(), tmp_path / "f", clear=False)
    return tmp_path / "f"


OPTIONS: list[dict[str, Any]] = [{}, {"mmap": True}, {"verify": False}]
CHOICES: dict[str, tuple[Any, list[str]]] = {
    "a key": ("model", [f"model/layer.{n}" for n in range(20)]),
    "a path": ("model/layer.7", ["model/layer.7"]),
    "through a number": ("optimizer/state/1", ["optimizer/state/1/m"]),
    "a value": ("step", ["step"]),
    "a pattern": ("*/layer.1?", [f"model/layer.1{n}" for n in range(10)]),
    "a function": (
        lambda path: path.endswith("/m"),
        ["optimizer/state/0/m", "optimizer/state/1/m"],
    ),
    "another object": ("odd", ["odd/a", "odd/b", "odd/c"]),
    "large": ("large/b", ["large/b"]),
}


def paths(part: Any, path: str = "") -> list[str]:
    if not isinstance(part, dict):
        return [path]
    return [
        each for key in part for each in paths(part[key], f"{path}/{key}" if path else str(key))
    ]


def at(state: Any, path: str) -> Any:
    for key in path.split("/"):
        state = state[int(key) if key.isdigit() else key]
    return state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("choice", CHOICES)
def test_a_part_of_a_state(file: Path, choice: str, options: dict[str, Any]) -> None:
    only, expected = CHOICES[choice]
    part = genesis.load(file, only=only, **options)
    assert paths(part) == expected
    for path in expected:
        assert_same(at(part, path), at(state_of_numpy(), path))


def test_the_dicts_are_those_that_were_saved(file: Path) -> None:
    assert type(genesis.load(file, only="optimizer")["optimizer"]) is collections.OrderedDict


@pytest.mark.parametrize("only", ["models", "model/layer.20", "x*", lambda path: False])
def test_what_is_not_there_is_a_key_error(file: Path, only: Any) -> None:
    with pytest.raises(KeyError, match=r"nothing in .* what only=.*it has 'model', 'large'"):
        genesis.load(file, only=only)


def test_what_is_no_choice(file: Path) -> None:
    with pytest.raises(TypeError, match="only must be a string or take a path"):
        genesis.load(file, only=3)  # type: ignore[arg-type]


@needs_torch
@pytest.mark.parametrize("weights_only", [False, True])
def test_tensors_that_are_tied_stay_tied(tmp_path: Path, weights_only: bool) -> None:
    base = torch.arange(100_000.0)
    state = {
        "tied": {"a": base, "b": base[10:20], "p": torch.nn.Parameter(base)},
        "small": {"a": base[:3].clone(), "t": torch.ones(2, 3).T, "e": torch.ones(0, 4)},
        "kinds": {"half": torch.ones(3, dtype=torch.float16), "dtype": torch.int8, "n": [1, (2,)]},
        "rest": torch.ones(3),
    }
    genesis.save(state, tmp_path / "f", clear=False)
    for key in ("tied", "small", "kinds"):
        part = genesis.load(tmp_path / "f", only=key, weights_only=weights_only)
        assert_same(part, {key: state[key]})
    tied = genesis.load(tmp_path / "f", only="tied", weights_only=weights_only)["tied"]
    tied["a"][10] = -1
    assert (tied["b"][0], tied["p"][10]) == (-1, -1)


@needs_torch
def test_a_part_that_is_made_by_other_code_is_taken_from_the_whole(tmp_path: Path) -> None:
    sparse = torch.eye(3).to_sparse()
    genesis.save({"a": {"sparse": sparse}, "b": torch.ones(2)}, tmp_path / "f", clear=False)
    assert torch.equal(
        genesis.load(tmp_path / "f", only="a")["a"]["sparse"].to_dense(), sparse.to_dense()
    )
    assert_same(genesis.load(tmp_path / "f", only="b"), {"b": torch.ones(2)})


def test_arrays_of_jax(tmp_path: Path) -> None:
    genesis.save({"a": jax.numpy.arange(5), "b": jax.numpy.ones(3)}, tmp_path / "f", clear=False)
    assert genesis.load(tmp_path / "f", only="a")["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_plain_pickle_too(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(pickle.dumps({"a": 1, "b": 2}))
    assert genesis.load(tmp_path / "f", only="b") == {"b": 2}


# What is read


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A file of four arrays with a chunk of their own each, and more."""
    size = 2 * CHUNK
    genesis.save({f"a{n}": np.full(size, n, np.uint8) for n in range(4)}, tmp_path / "f")
    return tmp_path / "f"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("weights_only", [False, True])
def test_only_the_chunks_that_are_needed_are_read(
    wide: Path, mmap: bool, weights_only: bool
) -> None:
    found = []
    options: Any = {"mmap": mmap, "verify": mmap or None, "weights_only": weights_only}
    for number in range(9):
        flip(wide, number * CHUNK + 100)
        try:
            part = genesis.load(wide, only="a1", **options)["a1"]
            assert (part == 1).all()
        except genesis.ChecksumError:
            found.append(number)
        flip(wide, number * CHUNK + 100)
    # The last holds the skeleton, and three the array. A mapped load verifies all if it is asked.
    assert found == ([*range(9)] if mmap else [2, 3, 4, 8])


@needs_torch
@pytest.mark.filterwarnings("ignore")  # torch's, about its own quantized tensors
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_part_of_every_kind_is_that_of_the_whole(tmp_path: Path, weights_only: bool) -> None:
    base = torch.arange(100_000.0)
    state = {
        "views": [base[10:20], base[15:50_000], base[::3]],
        "small": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(70, 70).t()),
        "quantized": torch.quantize_per_tensor(torch.randn(30), 0.1, 3, torch.qint8),
        "shape": torch.Size([2]),
        "arrays": (np.arange(9000)[::-2], np.ones((3, 4), order="F")[:, 1], np.array("text")),
        "plain": {"step": 3, "names": ["a", None, 1.5]},
    }
    genesis.save(state, tmp_path / "f", clear=False)
    for key, value in state.items():
        part = genesis.load(tmp_path / "f", only=key, weights_only=weights_only)
        assert_same(part, {key: value})
    sparse = torch.eye(30).to_sparse()
    genesis.save({"a": sparse, "b": 1}, tmp_path / "g", clear=False)
    part = genesis.load(tmp_path / "g", only="a", weights_only=weights_only)["a"]
    assert torch.equal(part.to_dense(), torch.eye(30))


def test_damage_is_found_where_it_matters(wide: Path) -> None:
    flip(wide, 3 * CHUNK)
    assert (genesis.load(wide, only="a3")["a3"] == 3).all()
    with pytest.raises(genesis.ChecksumError, match="chunk 3"):
        genesis.load(wide, only="a1")
    flip(wide, wide.stat().st_size - 300)
    with pytest.raises(genesis.CorruptCheckpointError):
        genesis.load(wide, only="a3")


def test_a_damaged_file_gives_the_part_of_its_backup(file: Path) -> None:
    (file.parent / "f.genesis.bak").write_bytes(file.read_bytes())
    flip(file, file.stat().st_size - 1000)
    with pytest.warns(genesis.RecoveredFromBackupWarning):
        assert genesis.load(file, only="step") == {"step": 3}


# load_into


@needs_torch
def test_a_model_is_filled_in_place(tmp_path: Path) -> None:
    first, second = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    weight = second.weight
    genesis.save_checkpoint(first.state_dict(), {}, tmp_path / "f")
    genesis.load_into(tmp_path / "f", second)
    assert second.weight is weight
    assert torch.equal(first.weight, weight)


@needs_torch
def test_a_part_fills_a_dict_of_tensors_and_arrays(tmp_path: Path) -> None:
    genesis.save({"a": {"b": {"x": torch.ones(2), "y": np.ones(3)}}}, tmp_path / "f")
    into = {"x": torch.zeros(2, requires_grad=True), "y": np.zeros(3)}
    genesis.load_into(tmp_path / "f", into, part="a/b", weights_only=True)
    assert into["x"].tolist() == [1, 1]
    assert into["y"].tolist() == [1, 1, 1]
    with pytest.raises(KeyError, match="only='a/c'"):
        genesis.load_into(tmp_path / "f", into, part="a/c")


@needs_torch
def test_every_difference_is_named_and_nothing_changed(tmp_path: Path) -> None:
    genesis.save({"a": torch.ones(2), "b": torch.ones(3), "d": torch.ones(1)}, tmp_path / "f")
    into = {"a": torch.zeros(2), "b": torch.zeros(4), "c": torch.zeros(1)}
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        genesis.load_into(tmp_path / "f", into)
    assert str(caught.value).partition("changed: ")[2] == (
        "b is float32 of (4,), in the file float32 of (3,); c is not in the file; "
        "d is in the file alone"
    )
    assert into["a"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="holds another state: it holds 'a', 'b', 'd'"):
        genesis.load_into(tmp_path / "f", torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="not a Adam"):
        genesis.load_into(tmp_path / "f", torch.optim.Adam([torch.ones(1)]))


@needs_torch
def test_none_of_many_differences_is_left_out(tmp_path: Path) -> None:
    genesis.save({f"w{n}": torch.ones(2) for n in range(50)}, tmp_path / "f")
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        genesis.load_into(tmp_path / "f", {f"w{n}": torch.zeros(3) for n in range(50)})
    assert str(caught.value).count("in the file float32 of (2,)") == 50


@needs_torch
def test_a_target_that_takes_no_elements_is_named_before_anything_is_changed(
    tmp_path: Path,
) -> None:
    genesis.save({name: torch.ones(2, 3) for name in "abc"} | {"d": np.ones(2)}, tmp_path / "f")
    into = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(2, 3, device="meta"),
        "c": torch.zeros(3).expand(2, 3),
        "d": np.zeros(2),
    }
    into["d"].flags.writeable = False
    with pytest.raises(ValueError, match=r"b is on the device meta.*c is expanded.*d is read-only"):
        genesis.load_into(tmp_path / "f", into)
    assert not into["a"].any()


# inspect


def test_what_a_file_holds(file: Path) -> None:
    found = genesis.inspect(file)
    assert found.bytes == file.stat().st_size
    rows = {row.path: row for row in found.arrays}
    assert (rows["model/layer.3"].shape, rows["model/layer.3"].dtype) == ((50,), "<f4")
    assert (rows["large/a"].bytes, rows["large/a"].kind) == (8_000_000, "numpy")
    assert rows.keys() == {
        path for path in paths(state_of_numpy()) if path[:3] not in ("ste", "odd")
    }
    assert found.values["step"] == 3
    assert found.array_bytes == 20 * 200 + 24_000_000 + 48
    assert found.writer == f"genesis {genesis.__version__}"
    json.dumps(found.to_dict())


def test_no_array_is_read_for_it(wide: Path) -> None:
    flip(wide, 3 * CHUNK)
    assert [row.path for row in genesis.inspect(wide).arrays] == ["a0", "a1", "a2", "a3"]


def test_what_a_manager_noted_and_a_save_was_given(tmp_path: Path) -> None:
    manager = genesis.CheckpointManager(tmp_path)
    report = manager.save(7, {"a": 1}, metrics={"loss": 0.5}, metadata={"run": "x"})
    found = genesis.inspect(report.path)
    assert (found.step, found.metrics, found.metadata) == (7, {"loss": 0.5}, {"run": "x"})


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("run!",)

    (tmp_path / "f").write_bytes(pickle.dumps({"evil": Evil(), "n": 1}))
    found = genesis.inspect(tmp_path / "f")
    assert (found.values, found.writer) == ({"n": 1}, "")


# diff


def two(tmp_path: Path, one: Any, other: Any) -> genesis.Difference:
    genesis.save(one, tmp_path / "one", clear=False)
    genesis.save(other, tmp_path / "other", clear=False)
    return genesis.diff(tmp_path / "one", tmp_path / "other")


def test_what_was_added_removed_and_changed(tmp_path: Path) -> None:
    one = {"a": np.zeros(3), "b": np.ones(2), "c": 1, "d": float("nan"), "e": [1, np.ones(1)]}
    other = {"b": np.ones((2, 1)), "c": 2, "d": float("nan"), "e": [1, np.ones(1)], "f": "x"}
    found = two(tmp_path, one, other)
    assert [(each.path, each.kind, each.what) for each in found.changes] == [
        ("a", "removed", "float64[3]"),
        ("b", "changed", "float64[2] -> float64[2, 1]"),
        ("c", "changed", "1 -> 2"),
        ("f", "added", "'x'"),
    ]
    assert found.same == 3
    assert found
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 4.0]), (2.0, 0.5)),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), None),
        (np.array([0.0]), np.array([-0.0]), None),
        (np.array([1, 200], np.uint8), np.array([2, 100], np.uint8), (100.0, 0.5)),
        (np.array([3j]), np.array([4j]), (1.0, 0.25)),
        (np.array([2**63 - 1]), np.array([2**63 - 2]), (1.0, 1 / (2**63 - 1))),
        (np.array([np.inf]), np.array([np.inf]), None),
    ],
)
def test_how_far_two_arrays_are_apart(
    tmp_path: Path, one: Any, other: Any, distance: tuple[float, float] | None
) -> None:
    found = two(tmp_path, {"a": one}, {"a": other}).changes
    assert [(each.max_abs, each.max_rel) for each in found] == ([distance] if distance else [])


def test_a_nan_on_one_side_is_a_difference_of_nan(tmp_path: Path) -> None:
    (change,) = two(tmp_path, {"a": np.array([1.0])}, {"a": np.array([np.nan])}).changes
    assert change.max_abs != change.max_abs


@needs_torch
def test_tensors_of_every_kind_are_compared(tmp_path: Path) -> None:
    one = {"half": torch.ones(3, dtype=torch.bfloat16), "q": torch.ones(2).to(torch.complex64)}
    other = {"half": torch.ones(3, dtype=torch.bfloat16) * 2, "q": torch.ones(2) + 0j}
    (change,) = two(tmp_path, one, other).changes
    assert (change.path, change.max_abs) == ("half", 1.0)


@pytest.mark.anyio
async def test_the_calls_awaited(file: Path) -> None:
    assert paths(await aio.load(file, only="step")) == ["step"]
    assert (await aio.inspect(file)).values["step"] == 3
    assert not await aio.diff(file, file, weights_only=False)
    into = state_of_numpy()["large"]
    into["a"][:] = 0
    await aio.load_into(file, into, part="large")
    assert into["a"][-1] == 999_999


def test_values_of_other_kinds_are_no_obstacle(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    state = {"a": {"when": now, "frozen": frozenset({1}), "n": np.float32(2), "b": b"x"}, "c": 1}
    genesis.save(state, tmp_path / "f", clear=False)
    assert genesis.load(tmp_path / "f", only="a") == {"a": state["a"]}


def test_an_object_that_looks_at_its_array_has_it(tmp_path: Path) -> None:
    genesis.save({"a": Looks(np.arange(3)), "b": np.ones(2)}, tmp_path / "f", clear=False)
    assert genesis.load(tmp_path / "f", only="a")["a"].total == 3
    assert genesis.load(tmp_path / "f", only="b")["b"].tolist() == [1, 1]


class Looks:
    def __init__(self, array: Any) -> None:
        self.array = array
        self.total = int(array.sum())

    def __reduce__(self) -> Any:
        return Looks, (self.array,)
