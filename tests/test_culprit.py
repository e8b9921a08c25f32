"""The search for what made a save fail: the nearest thing is named, and each is looked at once."""

from __future__ import annotations

import collections
import functools
import time
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus
import pytest
import torch

import genesis


def running() -> Iterator[int]:
    yield 1


def refused(state: Any, path: Path) -> genesis.UnpicklableStateError:
    with pytest.raises(genesis.UnpicklableStateError, match="state") as caught:
        genesis.save(state, path)
    assert not path.exists()
    return caught.value


class Counted:
    """Counts how often its instances are asked for their state."""

    asked = 0

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __getstate__(self) -> dict[str, Any]:
        Counted.asked += 1
        return self.__dict__


class Slotted:
    __slots__ = ("inner",)


class Refuses:
    def __reduce__(self) -> Any:
        raise LookupError("it says no")


def trainer_and_model() -> Any:
    trainer, model = corpus.Node(), corpus.Node()
    trainer.model, model.trainer = model, trainer
    trainer.numbers = running()
    return trainer


def test_things_that_refer_to_each_other_are_no_maze(path: Path) -> None:
    assert refused({"t": trainer_and_model()}, path).place == "['t'].numbers"


def test_the_nearest_is_named_not_the_first(path: Path) -> None:
    state = {"a": {"b": [{"c": running()}]}, "near": running()}
    assert refused(state, path).place == "['near']"


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda thing: collections.OrderedDict(a=thing), "['a']"),
        (lambda thing: collections.deque([0, thing]), "[1]"),
        (lambda thing: corpus.Items([0, thing]), "[1]"),
        (lambda thing: {thing}, " (the element <Refuses>)"),
        (lambda thing: {thing: 1}, " (the key <Refuses>)"),
        (lambda thing: {(1, thing): 1}, " (the key (1, <"),
        (lambda thing: functools.partial(corpus.function, thing), ".args[0]"),
        (lambda thing: functools.partial(corpus.function, by=thing), ".keywords['by']"),
        (lambda thing: ValueError("a", thing), ".args[1]"),
        (lambda thing: types.SimpleNamespace(a=thing), ".a"),
        (lambda thing: corpus.Node(a=thing).method, ".__self__.a"),
        (lambda thing: types.MappingProxyType({"a": thing}), "['a']"),
        (lambda thing: lambda x=thing: x, ".__defaults__[0]"),
        (lambda thing: lambda *, x=thing: x, ".__kwdefaults__['x']"),
        (lambda thing: functools.wraps(corpus.Node(a=thing))(lambda: 0), ".a"),
        (lambda thing: property(lambda self: thing), ".fget.__closure__[0].cell_contents"),
        (lambda thing: corpus.function, None),
        (lambda thing: collections.defaultdict(lambda: thing), ".default_factory.__closure__[0]"),
        (lambda thing: {"x" * 500: thing}, f"['{'x' * 59}...]"),
    ],
    ids=range(19),
)
def test_every_container_says_where(
    wrap: Callable[[Any], Any], place: str | None, path: Path
) -> None:
    if place is None:
        genesis.save({"s": wrap(Refuses())}, path)
        return
    error = refused({"s": wrap(Refuses())}, path)
    assert error.place.startswith(f"['s']{place}")
    assert "LookupError: it says no" in error.problem


def test_slots_are_attributes(path: Path) -> None:
    slotted = Slotted()
    slotted.inner = running()
    assert refused([slotted], path).place == "[0].inner"


def test_modules_of_torch_are_walked(path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    net[0].log = running()
    assert refused({"net": net}, path).place.endswith("['0'].log")
    weight = torch.nn.Parameter(torch.ones(2))
    weight.log = running()
    assert "log" in refused({"w": weight}, path).place


def test_a_weak_reference_is_followed(path: Path) -> None:
    node = corpus.Node(log=running())
    assert refused({"r": weakref.ref(node)}, path).place == "['r']().log"


def test_each_object_is_asked_a_few_times_however_many_ways_lead_to_it(path: Path) -> None:
    Counted.asked = 0
    layer = [Counted(1)]
    for _ in range(12):
        layer = [Counted(*layer), Counted(*layer)]
    refused({"maze": layer, "g": [[[running()]]]}, path)
    assert Counted.asked <= 3 * 25


def test_refusing_takes_time_in_proportion(path: Path) -> None:
    def seconds(numbers: int) -> float:
        state = {"numbers": [float(n) for n in range(numbers)], "g": running()}
        began = time.perf_counter()
        refused(state, path)
        return time.perf_counter() - began

    seconds(10)
    assert min(seconds(400_000) for _ in range(3)) < 60 * min(seconds(50_000) for _ in range(3))


def test_a_place_is_short_however_deep_it_is(path: Path) -> None:
    state: Any = [running()]
    for _ in range(200):
        state = [state]
    place = refused(state, path).place
    assert place == "[0]" * 20 + " ... " + "[0]" * 20


def test_a_dict_that_another_thread_changes_is_named_as_such(path: Path) -> None:
    table: dict[Any, Any] = {}

    class Grows:
        def __reduce__(self) -> Any:
            table[len(table)] = 0
            return str, ("a",)

    table.update({"a": Grows(), "b": 1})
    error = refused({"table": table}, path)
    assert "was changed while it was saved" in str(error)
    assert "another thread" in error.hint
