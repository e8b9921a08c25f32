"""`TrainState` and `ResumableLoader`: a run that is resumed is the run that was never stopped."""

from __future__ import annotations

import pickle
import random
import signal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import Script
from contention import run as run_script
from optional import jax, needs_torch, torch

import genesis
from genesis import ResumableLoader, TrainState

NOTED = "while the TrainState loaded its part 'second'"


class Counter:
    """The least that counts as an object with a state."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def through_a_file(state: TrainState, path: Path, **options: Any) -> Any:
    genesis.save(state.state_dict(), path)
    return genesis.load(path, **options)


@pytest.mark.parametrize("weights_only", [False, True])
def test_every_kind_of_part_comes_back(tmp_path: Path, weights_only: bool) -> None:
    generators = {
        "python": random.Random(1),
        "new": np.random.default_rng(2),
        "old": np.random.RandomState(3),
    }
    state = TrainState(counter=Counter(4), step=5, **generators)
    state.history = [0.5, 0.25]
    saved = through_a_file(state, tmp_path / "f", weights_only=weights_only)
    expected = [random.random(), np.random.rand(), *_drawn(state)]

    other = TrainState(
        counter=Counter(),
        step=0,
        python=random.Random(),
        new=np.random.default_rng(),
        old=np.random.RandomState(),
    )
    other.load_state_dict(saved)
    assert (other.counter.count, other.step, other.history) == (4, 5, [0.5, 0.25])
    assert [random.random(), np.random.rand(), *_drawn(other)] == expected


def _drawn(state: TrainState) -> list[float]:
    return [state.python.random(), state.new.random(), state.old.rand()]


@needs_torch
def test_generators_of_torch_come_back(tmp_path: Path) -> None:
    state = TrainState(generator=torch.Generator().manual_seed(1))
    saved = through_a_file(state, tmp_path / "f", weights_only=True)
    expected = torch.rand(3), torch.rand(3, generator=state.generator)
    other = TrainState(generator=torch.Generator())
    other.load_state_dict(saved)
    drawn = torch.rand(3), torch.rand(3, generator=other.generator)
    assert all(map(torch.equal, drawn, expected))


def test_a_loop_of_jax_keeps_its_pytree(tmp_path: Path) -> None:
    key = jax.random.key(0)
    state = TrainState(params={"w": jax.numpy.arange(3.0)}, key=key)
    other = TrainState(params=None, key=None)
    other.load_state_dict(through_a_file(state, tmp_path / "f"))
    assert other.params["w"].tolist() == [0, 1, 2]
    assert jax.random.bits(other.key) == jax.random.bits(key)


def test_what_does_not_fit_is_named_and_nothing_is_changed() -> None:
    saved = TrainState(one=Counter(1), two=Counter(2), step=3, rng=random.Random()).state_dict()
    mine = TrainState(one=Counter(), three=Counter(), step=Counter(), epoch=7)

    random.seed(1)
    before = random.getstate()
    with pytest.raises(ValueError, match="does not fit this TrainState; ") as caught:
        mine.load_state_dict(saved)
    assert str(caught.value).partition("; ")[2] == (
        "not in the state: three, epoch; in the state and no part here: two, rng; "
        "of another kind: step (value in the state, object here)"
    )
    assert mine.one.count == 0
    assert random.getstate() == before


def test_what_is_on_one_side_only_may_be_left_alone() -> None:
    saved = TrainState(one=Counter(1), two=Counter(2)).state_dict()
    mine = TrainState(one=Counter(), three=Counter(3))
    mine.load_state_dict(saved, strict=False)
    assert (mine.one.count, mine.three.count) == (1, 3)


@pytest.mark.parametrize("other", [{}, {"model": 1}, [1], {"train_state": 3}])
def test_another_state_is_refused(other: Any) -> None:
    with pytest.raises(ValueError, match="no state of a TrainState; it holds"):
        TrainState().load_state_dict(other)


def test_a_later_version_is_refused() -> None:
    saved = TrainState().state_dict()
    saved["train_state"]["version"] = 2
    with pytest.raises(ValueError, match="later genesis"):
        TrainState().load_state_dict(saved)


def test_an_error_of_a_part_says_which() -> None:
    class Broken(Counter):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("weights")

    saved = TrainState(first=Counter(1), second=Counter(2)).state_dict()
    with pytest.raises(KeyError) as caught:
        TrainState(first=Counter(), second=Broken()).load_state_dict(saved)
    assert caught.value.__notes__ == [NOTED]


@pytest.mark.parametrize("name", ["_private", "state_dict", "load_state_dict", "train_state"])
def test_names_that_are_taken(name: str) -> None:
    with pytest.raises(AttributeError, match="cannot name a part"):
        TrainState(**{name: 1})


def test_parts_are_attributes() -> None:
    state = TrainState(step=1)
    state.step += 1
    state.epoch = 3
    del state.step
    assert repr(state) == "TrainState(epoch=3)"
    assert "epoch" in dir(state)
    with pytest.raises(AttributeError, match="no part 'step'; it has: epoch"):
        _ = state.step
    with pytest.raises(AttributeError, match="no part 'step'"):
        del state.step


def test_half_of_the_two_methods_is_refused() -> None:
    class Half:
        def state_dict(self) -> dict[str, int]:
            return {}

    with pytest.raises(TypeError, match=r"model has state_dict\(\) but no load_state_dict\(\)"):
        TrainState(model=Half())


def test_the_object_itself_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match=r"save its \.state_dict\(\)"):
        genesis.save({"run": TrainState(step=1)}, tmp_path / "f")
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(TrainState())
    assert not (tmp_path / "f").exists()


# ResumableLoader


def loader(workers: int, *, generator: Any = None, shuffle: bool = True) -> ResumableLoader:
    from torch.utils.data import DataLoader

    options = {"shuffle": shuffle, "num_workers": workers, "generator": generator}
    return ResumableLoader(DataLoader(Noisy(), batch_size=3, **options))


class Noisy:
    """Each item with a random number that is drawn where it is loaded."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, torch.rand(()).item()


def taken(batches: Any) -> list[list[float]]:
    """Batches as numbers, each beside one that the program draws between them."""
    return [[*batch[0].tolist(), *batch[1].tolist(), torch.rand(()).item()] for batch in batches]


@needs_torch
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_a_pass_goes_on_where_it_was(workers: int, own: bool, at: int) -> None:
    def generator() -> Any:
        return torch.Generator().manual_seed(5) if own else None

    torch.manual_seed(1)
    first = loader(workers, generator=generator())
    state = TrainState(loader=first)
    going = iter(first)
    taken(islice(going, at))
    saved = pickle.loads(pickle.dumps(state.state_dict()))
    expected = taken(going) + taken(first)

    torch.manual_seed(9)  # a new process is somewhere else
    second = loader(workers, generator=generator())
    TrainState(loader=second).load_state_dict(saved)
    assert second.state_dict()["batches"] == at
    assert taken(second) + taken(second) == expected
    assert len(second) == 7


@needs_torch
def test_another_loader_is_refused() -> None:
    first = loader(0)
    next(iter(first))
    from torch.utils.data import DataLoader

    second = ResumableLoader(DataLoader(range(40), batch_size=4))
    with pytest.raises(ValueError, match="length was 7, is 10; batch_size was 3, is 4"):
        second.load_state_dict(first.state_dict())


def test_any_iterable_of_batches_is_a_loader() -> None:
    first, second = ResumableLoader([1, 2, 3, 4]), ResumableLoader([1, 2, 3, 4])
    assert list(islice(first, 3)) == [1, 2, 3]
    second.load_state_dict(first.state_dict())
    assert list(second) == [4]
    assert list(second) == [1, 2, 3, 4]


@needs_torch
def test_a_distributed_sampler_has_its_epoch_again() -> None:
    from torch.utils.data import DataLoader, DistributedSampler

    def ours() -> ResumableLoader:
        sampler = DistributedSampler(range(20), num_replicas=2, rank=1)
        return ResumableLoader(DataLoader(range(20), sampler=sampler, batch_size=2))

    first, second = ours(), ours()
    first.loader.sampler.set_epoch(3)
    going = iter(first)
    next(going)
    second.load_state_dict(first.state_dict())
    assert [batch.tolist() for batch in second] == [batch.tolist() for batch in going]


@needs_torch
def test_a_plain_loader_is_refused_with_the_cure() -> None:
    with pytest.raises(TypeError, match=r"loader is a DataLoader, .*ResumableLoader\(loader\)"):
        TrainState(loader=loader(0).loader)


# A run that is killed

TRAINS = """
import sys, torch, genesis
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.optim.lr_scheduler import LambdaLR

path, steps = sys.argv[1], 40
torch.manual_seed(0)
data = TensorDataset(torch.randn(60, 8), torch.randint(0, 3, (60,)))
model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu")
scheduler = LambdaLR(optimizer, lambda step: 0.97 ** step)
loader = genesis.ResumableLoader(DataLoader(data, batch_size=4, shuffle=True, num_workers=2))
state = genesis.TrainState(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler,
                           loader=loader, step=0)
try:
    state.load_state_dict(genesis.load(path, weights_only=True))
except FileNotFoundError:
    pass
while state.step < steps:
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        state.step += 1
        print(state.step, loss.item().hex(), flush=True)
        genesis.save(state.state_dict(), path, background=True)
        if state.step == steps:
            break
genesis.flush()
print("weights", sum(p.double().sum() for p in model.parameters()).item().hex())
"""


@needs_torch
def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_not(tmp_path: Path) -> None:
    status, whole, errors = run_script(TRAINS, tmp_path / "whole")
    assert status == 0, errors
    expected = whole.splitlines()
    found: list[str] = []
    for kills in (9, 23):  # in the first pass and in the second
        with Script(TRAINS, tmp_path / "killed") as script:
            while (line := script.line()) and int(line.split()[0]) < kills:
                found.append(line)
            script.send(signal.SIGKILL)
    status, rest, errors = run_script(TRAINS, tmp_path / "killed")
    assert status == 0, errors
    assert rest.splitlines()[-1] == expected[-1]
    assert set(found) | set(rest.splitlines()) <= set(expected)
