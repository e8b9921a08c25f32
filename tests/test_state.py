"""`TrainState` and `ResumableLoader`: a run that is resumed is the run that was never stopped."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import run as run_script
from optional import jax, needs_torch, torch

import genesis
from genesis import ResumableLoader, TrainState

# Python 3.12 and later say so where there are threads; the children are of torch.
pytestmark = pytest.mark.filterwarnings("ignore:This process .pid:DeprecationWarning")

NOTED = "while the TrainState loaded its part 'second'"


@pytest.fixture(autouse=True)
def forked_workers() -> Iterator[None]:
    """Python 3.14 starts workers so that they import the module of the tests, which has no name
    that could be imported."""
    before = multiprocessing.get_start_method(allow_none=True)
    if sys.version_info >= (3, 14):
        multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


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
    with pytest.raises(
        genesis.UnpicklableStateError, match=r"\['run'\]: .*run; save its \.state_dict\(\)$"
    ):
        genesis.save({"run": TrainState(step=1)}, tmp_path / "f")
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(TrainState())
    assert not (tmp_path / "f").exists()


# --- What fits and what does not ------------------------------------------------------------------


@needs_torch
def test_models_that_do_not_fit_are_all_named_and_nothing_is_changed() -> None:
    nn = torch.nn

    def state(width: int, **more: Any) -> TrainState:
        models = {"one": nn.Linear(2, 3), "two": nn.Linear(width, 1), "three": nn.Linear(width, 2)}
        return TrainState(**models, counter=Counter(width), step=width, **more)

    mine, saved = state(4), state(5).state_dict()
    before = {name: getattr(mine, name).state_dict() for name in ("one", "two", "three")}
    before = {name: {k: v.clone() for k, v in each.items()} for name, each in before.items()}
    with pytest.raises(
        ValueError, match=r"two: Error(.|\n)*size mismatch for weight.*; three: "
    ) as error:
        mine.load_state_dict(saved)
    assert isinstance(error.value.__cause__, RuntimeError)
    assert (mine.counter.count, mine.step) == (4, 4)
    for name, was in before.items():
        assert all(
            torch.equal(value, was[k]) for k, value in getattr(mine, name).state_dict().items()
        )


@needs_torch
def test_a_model_may_make_an_old_state_fit() -> None:
    class Renaming(torch.nn.Linear):  # type: ignore[misc]
        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict({k.removeprefix("old."): v for k, v in state.items()})

    model, other = torch.nn.Linear(2, 1), Renaming(2, 1)
    saved = TrainState(model=model).state_dict()
    saved["model"] = {f"old.{name}": value for name, value in saved["model"].items()}
    TrainState(model=other).load_state_dict(saved)
    assert torch.equal(other.weight, model.weight)


@needs_torch
@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_model_and_optimizer_go_on_together_in_any_order(tmp_path: Path, first: str) -> None:
    def run() -> TrainState:
        model = torch.nn.Linear(3, 1)
        state = TrainState(**{first: None, "extra": torch.ones(1, requires_grad=True)})
        state.model = model
        state.optimizer = torch.optim.Adam([*model.parameters(), state.extra])
        return state

    def trained(state: TrainState, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            state.optimizer.zero_grad()
            loss = (state.model(torch.randn(5, 3)) * state.extra).square().sum()
            loss.backward()
            state.optimizer.step()
            losses.append(loss.item())
        return losses

    one = run()
    trained(one, 3)
    saved = through_a_file(one, tmp_path / "f", weights_only=True)
    expected = trained(one, 3)
    other = run()
    held = other.extra
    other.load_state_dict(saved)
    assert trained(other, 3) == expected
    assert other.extra is held


@pytest.mark.parametrize("part", [[Counter()], {"a": Counter()}, (1, random.Random())])
def test_objects_in_a_list_need_names_of_their_own(part: Any) -> None:
    with pytest.raises(TypeError, match=r"parts\[.*\] is a (Counter|Random), .* name of its own"):
        TrainState(parts=part)


@needs_torch
def test_a_parameter_is_never_replaced() -> None:
    def parameter(size: int) -> Any:
        return torch.ones(size, requires_grad=True)

    saved = TrainState(weight=parameter(2)).state_dict()
    with pytest.raises(ValueError, match=r"; of another shape or dtype: weight$"):
        TrainState(weight=parameter(3)).load_state_dict(saved)
    with pytest.raises(TypeError, match=r"weights\[0\] is a Tensor, .* name of its own"):
        TrainState(weights=[parameter(2)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_states_come_back_wherever_they_were_loaded_to(tmp_path: Path) -> None:
    state = TrainState(generator=torch.Generator("cuda").manual_seed(1))
    torch.rand(1, device="cuda")
    saved = through_a_file(state, tmp_path / "f", map_location="cuda")

    def drawn() -> list[float]:
        numbers = torch.rand(1), torch.rand(1, device="cuda")
        own = torch.rand(1, device="cuda", generator=state.generator)
        return [number.item() for number in (*numbers, own)]

    expected = drawn()
    state.load_state_dict(saved)
    assert drawn() == expected


def test_a_loop_of_numpy_imports_no_torch() -> None:
    status, _, errors = run_script(NUMPY_LOOP)
    assert status == 0, errors


NUMPY_LOOP = """
import pickle, sys, numpy as np, genesis

def run():
    loader = genesis.ResumableLoader(np.arange(12.0).reshape(6, 2))
    params = {"w": np.zeros(2)}
    return genesis.TrainState(params=params, rng=np.random.default_rng(), loader=loader, step=0)

def train(state, saved):
    while state.step < 12:
        for row in state.loader:
            noise = state.rng.normal(size=2) + np.random.rand()
            state.params = {"w": state.params["w"] * 0.9 + row + noise}
            state.step += 1
            saved.append(pickle.dumps(state.state_dict()))
    return state.params["w"].tolist()

whole = train(run(), saved := [])
again = run()
again.load_state_dict(pickle.loads(saved[3]))
assert train(again, []) == whole
assert "torch" not in sys.modules
"""


def test_a_library_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = TrainState(step=3).state_dict()
    assert "numpy" in saved["train_state"]["random"]
    monkeypatch.setitem(sys.modules, "numpy", None)
    state = TrainState(step=0)
    with pytest.warns(UserWarning, match="numpy, which is not installed"):
        state.load_state_dict(saved)
    assert state.step == 3


# --- ResumableLoader ------------------------------------------------------------------------------


def loader(workers: int = 0, *, reload: bool = False, **options: Any) -> ResumableLoader:
    from torch.utils.data import DataLoader

    options = {"shuffle": "sampler" not in options, "batch_size": 3, **options}
    return ResumableLoader(DataLoader(Noisy(), num_workers=workers, **options), reload=reload)


class Noisy:
    """Each item with random numbers that are drawn where it is loaded."""

    def __init__(self) -> None:
        self.loaded = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> list[float]:
        self.loaded += 1
        return [index, torch.rand(()).item(), random.random(), np.random.rand()]


def taken(batches: Any) -> list[Any]:
    """Batches as numbers, each beside one that the program draws between them."""
    return [
        (
            torch.stack([*map(torch.as_tensor, batch)]).tolist(),
            torch.rand(()).item(),
            random.random(),
        )
        for batch in batches
    ]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def goes_on(make: Any, at: int, also: Any = None) -> ResumableLoader:
    """A loader of `make` that is stopped after `at` batches goes on in another one, and after one
    more batch in a third: the rest of this pass and the next are compared."""
    seed_all(1)
    first = make()
    going = iter(first)
    taken(islice(going, at))
    saved = state_of(first)
    expected = taken(going) + taken(first)

    second = resumed(make, saved, seed=8)
    assert second.batches == at
    found = taken(islice(second, 1))
    third = resumed(also or make, state_of(second), seed=9)
    found += taken(third) + taken(third)
    assert found[: len(expected)] == expected
    return third


def state_of(loader: Any) -> Any:
    return pickle.loads(pickle.dumps(TrainState(loader=loader).state_dict()))


def resumed(make: Any, saved: Any, seed: int) -> ResumableLoader:
    seed_all(seed)  # a new process is somewhere else
    loader: ResumableLoader = make()
    TrainState(loader=loader).load_state_dict(saved)
    return loader


def own_generator() -> Any:
    return torch.Generator().manual_seed(5)


@needs_torch
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("at", [0, 4, 7])
def test_a_pass_goes_on_where_it_was(workers: int, own: bool, at: int) -> None:
    def make() -> ResumableLoader:
        return loader(workers, generator=own_generator() if own else None)

    assert len(goes_on(make, at)) == 7


@needs_torch
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_with_a_generator_of_its_own_goes_on(workers: int) -> None:
    from torch.utils.data import RandomSampler

    def make() -> ResumableLoader:
        # With replacement it draws in the middle of a pass, too.
        drawing = {"replacement": True, "num_samples": 100, "generator": own_generator()}
        return loader(workers, sampler=RandomSampler(range(20), **drawing))

    goes_on(make, 14)


@needs_torch
def test_a_program_may_draw_from_the_generator_of_its_loader() -> None:
    def drawn(batches: Any, own: Any) -> list[Any]:
        return [(batch[0].tolist(), torch.rand(1, generator=own).item()) for batch in batches]

    first = loader(generator=own_generator())
    going = iter(first)
    drawn(islice(going, 3), first.loader.generator)
    saved = state_of(first)
    expected = drawn(going, first.loader.generator)
    second = resumed(lambda: loader(generator=torch.Generator()), saved, seed=9)
    assert drawn(second, second.loader.generator) == expected


@needs_torch
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": None, "workers": 2},
        {"persistent_workers": True, "workers": 1},
        {"reload": True, "workers": 2},
    ],
    ids=str,
)
def test_loaders_of_other_kinds_go_on(options: dict[str, Any]) -> None:
    goes_on(lambda: loader(**options), 3)


@needs_torch
def test_the_number_of_workers_makes_no_difference() -> None:
    goes_on(lambda: loader(2), 3, also=lambda: loader(1))


@needs_torch
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on(workers: int) -> None:
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            worker = get_worker_info()
            for index in range(worker.id if worker else 0, 20, worker.num_workers if worker else 1):
                yield [index, torch.rand(()).item()]

    goes_on(lambda: ResumableLoader(DataLoader(Stream(), batch_size=3, num_workers=workers)), 4)


@needs_torch
def test_what_was_handed_out_is_not_loaded_again() -> None:
    assert goes_on(loader, 4).loader.dataset.loaded == 5 + 20  # the last two batches, the next pass


@needs_torch
@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_is_that_of_the_plain_loader(workers: int) -> None:
    ours = loader(workers)
    torch.manual_seed(3)
    plain = [batch[0].tolist() for batch in ours.loader]
    torch.manual_seed(3)
    assert [batch[0].tolist() for batch in ours] == plain


@needs_torch
def test_batches_have_numbers_of_their_own_in_workers() -> None:
    numbers = [number for batch in loader(2) for drawn in batch[1:] for number in drawn.tolist()]
    assert len(set(numbers)) == 3 * 20


@needs_torch
def test_another_loader_is_refused() -> None:
    from torch.utils.data import DataLoader

    first = loader()
    next(iter(first))
    second = ResumableLoader(DataLoader(range(40), batch_size=4, num_workers=1))
    with pytest.raises(ValueError, match="another loader than") as caught:
        second.load_state_dict(first.state_dict())
    assert str(caught.value).partition(": ")[2] == (
        "length was 7, is 10; batch_size was 3, is 4; items was 20, is 40; "
        "sampler was RandomSampler, is SequentialSampler; workers was False, is True"
    )
    assert second.batches == 0


def test_a_loader_that_could_not_go_on_is_refused() -> None:
    with pytest.raises(TypeError, match="list_iterator is an iterator, which has one pass only"):
        ResumableLoader(iter([1]))
    with pytest.raises(
        TypeError, match=r"Counter .* own state_dict\(\): give it to the TrainState"
    ):
        ResumableLoader(Counter())


@needs_torch
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("at", [0, 4, 7])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # of torchdata
def test_a_stateful_loader_shifts_no_random_numbers(workers: int, own: bool, at: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        generator = own_generator() if own else None
        options = {"shuffle": True, "num_workers": workers, "generator": generator}
        return stateful.StatefulDataLoader(range(20), batch_size=3, **options)

    def numbers(batches: Any) -> list[Any]:
        return [(batch.tolist(), torch.rand(()).item()) for batch in batches]

    seed_all(1)
    first = make()
    going = iter(first)
    numbers(islice(going, at))
    saved = state_of(first)
    expected = numbers(going) + numbers(first)
    second = resumed(make, saved, seed=9)
    found = numbers(second) + numbers(second)
    assert found[: len(expected)] == expected


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
        TrainState(loader=loader().loader)
