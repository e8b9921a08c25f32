"""What a file holds is the state at the call, whatever a training loop writes into it meanwhile.

Every save of a long row is compared, value by value, with what was in the state when it was saved;
the loop goes on at once and overwrites all of it in place. Nothing is timed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from contention import DEADLINE, held, litter
from same import assert_same
from tracing import traced

import genesis
from genesis._pickle.torch_plain import Ledger

SAVES = 200
CAPTURES = ["copy", "deferred"]


@pytest.fixture(autouse=True)
def drained() -> Iterator[None]:
    yield
    genesis.flush(DEADLINE)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """OpenMP's threads spin where they wait, and its operations here are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torch_values(version: int) -> dict[str, Any]:
    """Tensors of every size and kind, each element different from the next and from itself in
    another version."""
    large = torch.arange(200_000, dtype=torch.float64) + version
    tied = torch.arange(20_000) * (version + 1)
    return {
        "large": large,
        "a view of it": large[1000:1200],
        "tied": tied,
        "tied too": tied,
        "strided": (torch.arange(40_000, dtype=torch.float32) - version)[::3],
        "turned": (torch.arange(20_000, dtype=torch.int32) + version).reshape(100, 200).t(),
        "number": torch.tensor(version),
        "flag": torch.tensor(version % 2 == 0),
        "empty": torch.empty(0, 3),
        "half": torch.full((3000,), version, dtype=torch.bfloat16),
        "weight": torch.nn.Parameter(torch.full((50, 50), float(version))),
        **{f"small {n}": torch.arange(n) + version for n in range(1, 60)},
    }


def numpy_values(version: int) -> dict[str, Any]:
    tied = np.arange(20_000) * (version + 1)
    return {
        "large": np.arange(200_000, dtype=np.float64) + version,
        "tied": tied,
        "tied too": tied,
        "strided": (np.arange(40_000, dtype=np.float32) - version)[::3],
        "turned": np.asfortranarray(np.arange(20_000).reshape(100, 200) + version),
        "number": np.array(version),
        "swapped": (np.arange(500) + version).astype(">f4"),
        "structured": np.array([(version, n) for n in range(300)], "i8,f4"),
        "objects": np.array([version, None, "x" * version, [version]], dtype=object),
        **{f"small {n}": np.arange(n, dtype=np.int16) + version for n in range(1, 60)},
    }


class Training:
    """A state that is overwritten in place, one version after the other."""

    def __init__(self, values: Callable[[int], dict[str, Any]]) -> None:
        self.values = values
        self.version = 0
        self.state = values(0)
        self._next = values(1)
        self.log: list[int] = []

    def update(self) -> None:
        self.version += 1
        self.log.append(self.version)
        with torch.no_grad():
            for name, value in self._next.items():
                if isinstance(value, np.ndarray):
                    np.copyto(self.state[name], value)
                else:
                    self.state[name].copy_(value)
        self._next = self.values(self.version + 1)

    def to_save(self) -> dict[str, Any]:
        return {"version": self.version, "log": self.log, **self.state}


def check(path: Path, version: int, values: Callable[[int], dict[str, Any]]) -> None:
    found = genesis.load(path)
    assert found.pop("version") == version
    assert found.pop("log") == list(range(1, version + 1))
    expected = values(version)
    if values is numpy_values:  # an array is saved without what its strides leave out
        expected["strided"] = np.ascontiguousarray(expected["strided"])
    assert_same(expected, found)


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("values", [torch_values, numpy_values])
def test_each_of_200_saves_holds_the_values_of_its_call(
    tmp_path: Path, values: Callable[[int], dict[str, Any]], capture: Any
) -> None:
    training = Training(values)
    for batch in range(SAVES // 10):
        saved: dict[Path, int] = {}
        # Nothing is written before all of it has been overwritten many times.
        with held(tmp_path) if capture == "copy" else nullcontext():
            for number in range(10):
                path = tmp_path / f"{batch}-{number}"
                saved[path] = training.version
                save = genesis.save(training.to_save(), path, background=True, capture=capture)
                save.wait_captured(DEADLINE)
                training.update()
        for path, version in saved.items():
            check(path, version, values)
            path.unlink()
    assert litter(tmp_path) == []


@pytest.mark.parametrize("capture", CAPTURES)
def test_200_saves_of_a_few_paths_leave_the_last_values_of_each(
    tmp_path: Path, capture: Any
) -> None:
    training = Training(torch_values)
    last: dict[Path, int] = {}
    for number in range(SAVES):
        path = tmp_path / str(number % 3)
        last[path] = training.version
        save = genesis.save(training.to_save(), path, background=True, capture=capture)
        save.wait_captured(DEADLINE)
        training.update()
    genesis.flush(DEADLINE)
    for path, version in last.items():
        check(path, version, torch_values)
    assert litter(tmp_path) == []


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", ["torch", "NumPy"])
def test_large_states_in_staging_memory_that_was_used_before(
    tmp_path: Path, kind: str, capture: Any
) -> None:
    """Sizes that go up and down, so that a save stages into what a larger one left behind."""
    sizes = [9 << 20, 1 << 10, 5 << 20, 70_001, 12 << 20, 3, 6 << 20, 300_003] * 2
    expected: dict[Path, np.ndarray[Any, Any]] = {}
    for number, size in enumerate(sizes):
        path = tmp_path / str(number)
        array = np.full(size, number + 1, np.uint8)
        expected[path] = array.copy()
        part = torch.from_numpy(array) if kind == "torch" else array
        save = genesis.save({"x": part, "y": "z" * number}, path, background=True, capture=capture)
        save.wait_captured(DEADLINE)
        array.fill(0)
    for path, array in expected.items():
        found = genesis.load(path)["x"]
        assert np.array_equal(found.numpy() if kind == "torch" else found, array)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_model_and_its_optimizer_are_saved_as_of_one_step(tmp_path: Path, capture: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    expected = []
    for step in range(30):
        expected.append(copy.deepcopy((model.state_dict(), optimizer.state_dict())))
        save = genesis.save_checkpoint(
            model.state_dict(),
            optimizer.state_dict(),
            tmp_path / str(step),
            background=True,
            capture=capture,
        )
        loss = model(torch.randn(16, 300)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        save.wait_captured(DEADLINE)
        optimizer.step()
    for step, (model_state, optimizer_state) in enumerate(expected):
        found = genesis.load_checkpoint(tmp_path / str(step))
        assert_same(dict(model_state), dict(found[0]))
        assert_same(optimizer_state, found[1])


def test_states_that_look_the_same_are_not_mixed_up_by_threads(tmp_path: Path) -> None:
    """
    Race: 1. a thread finds what an earlier save of such a state left for the next; 2. another one
    finds it too, and notes in it where its own tensors are; 3. the first reads that.
    """

    def state(value: float) -> dict[str, torch.Tensor]:
        return {f"{n}": torch.full((n,), value) for n in range(1, 100)}

    def save_another(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code is Ledger.open.__code__ and event == "call":
            sys.settrace(None)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(genesis.save, others, tmp_path / "g", clear=False).result(DEADLINE)

    mine, others = state(1.0), state(2.0)
    genesis.save(mine, tmp_path / "f", clear=False)
    with traced(save_another):
        genesis.save(mine, tmp_path / "f", clear=False)
    assert_same(genesis.load(tmp_path / "g"), others)
    assert_same(genesis.load(tmp_path / "f"), mine)
