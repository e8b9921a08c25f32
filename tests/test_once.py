"""Each object is asked for its reduction once a save, and whose error it was when that fails."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import pickle
import signal
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import genesis

torch = pytest.importorskip("torch")


class HandsOver:
    """Gives what is pending away when it is pickled."""

    def __init__(self, pending: Any = (1, 2)) -> None:
        self.pending, self.calls = list(pending), 0

    def __getstate__(self) -> dict[str, Any]:
        self.calls += 1
        pending, self.pending = self.pending, []
        return {"pending": pending, "calls": self.calls}


class HandsItemsOver(dict[str, Any]):
    """The same, by iterators."""

    def __reduce__(self) -> Any:
        items = list(self.items())
        self.clear()
        return type(self), (), None, None, iter(items)


class TensorThatHandsOver(torch.Tensor):  # type: ignore[name-defined]
    pending: list[Any]

    # Or torch asks twice: before it dispatches on the subclass and after.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getstate__(self) -> Any:
        pending, self.pending = self.pending, []
        return {"pending": pending}

    def __setstate__(self, state: Any) -> None:
        self.pending = state["pending"]


def _overlapping() -> Any:
    """Views whose first layout has to be done again."""
    base = torch.arange(10_000.0)
    return [base[:100], base[50:150], base[10:200]]


def _tied() -> Any:
    weights = [torch.ones(3) for _ in range(100)]
    return {"w": weights, "net": types.SimpleNamespace(tied=weights[5][:2])}


BESIDE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a lambda": lambda: lambda: None,
    "what needs dill": lambda: (lambda: None, types.MappingProxyType({})),
    "views that overlap": _overlapping,
    "a tie": _tied,
    "views that overlap and a lambda": lambda: [_overlapping(), lambda: None],
    "a class that is local": lambda: type("Local", (), {})(),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_an_object_hands_over_is_in_the_file(beside: str, path: Path) -> None:
    thing, items = HandsOver(), HandsItemsOver(a=1, b=2)
    genesis.save({"thing": thing, "items": items, "beside": BESIDE[beside](), "t": thing}, path)
    loaded = genesis.load(path)
    assert loaded["thing"] is loaded["t"]
    assert (loaded["thing"].pending, loaded["thing"].calls, thing.calls) == ([1, 2], 1, 1)
    assert loaded["items"] == {"a": 1, "b": 2}


def test_what_a_subclass_of_tensor_hands_over_is_in_the_file(path: Path) -> None:
    tensor = torch.ones(3).as_subclass(TensorThatHandsOver)
    tensor.pending = [1, 2]
    genesis.save({"t": tensor, "f": lambda: None, "views": _overlapping()}, path)
    assert genesis.load(path)["t"].pending == [1, 2]


# --- Errors ---------------------------------------------------------------------------------------


class StopError(Exception):
    pass


class LateError(TypeError):
    """An error that pickle itself might raise."""


@pytest.fixture(params=[StopError, LateError], ids=["its own", "like pickle's"])
def kind(request: pytest.FixtureRequest) -> type[Exception]:
    return request.param


@pytest.fixture
def handled(kind: type[Exception]) -> Iterator[None]:
    """A handler that raises once."""

    def handler(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise kind("the time is over")

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


class Interrupted:
    """Has a signal come in while it is pickled, or right after."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return Interrupted, ()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("beside", [None, lambda: None], ids=["C", "by value"])
def test_an_error_of_a_signal_handler_ends_the_save(
    beside: Any, kind: type[Exception], path: Path
) -> None:
    with pytest.raises(kind, match="the time is over"):
        genesis.save([beside, Interrupted()], path)
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such timer")
@pytest.mark.usefixtures("handled")
def test_an_error_of_a_handler_amid_the_c_pickler_ends_the_save(
    kind: type[Exception], path: Path
) -> None:
    class Signals(dict[str, Any]):
        """Read by the C pickler, which calls no method of ours by name."""

        def items(self) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return super().items()

    with pytest.raises(kind, match="the time is over"):
        genesis.save([Signals(a=1)], path)


class Refuses:
    def __reduce__(self) -> Any:
        Refuses.calls += 1
        raise ValueError("it says no")

    calls = 0


def test_an_error_of_an_objects_own_method_is_final(path: Path) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match=r"state\['a'\].*it says no"):
        genesis.save({"a": Refuses(), "f": lambda: None}, path)
    assert Refuses.calls <= 3  # once by each pickler that met it, once for its place


# --- What pickle does otherwise than dill ---------------------------------------------------------


@pytest.mark.parametrize(
    "thing",
    [
        dataclasses.MISSING,
        dataclasses.KW_ONLY,
        dataclasses._HAS_DEFAULT_FACTORY,  # type: ignore[attr-defined]
        dataclasses._FIELD,  # type: ignore[attr-defined]
        type.__dict__["__mro__"],
        type.__dict__["__dict__"],
        str.__dict__["join"],
        dict.__dict__["fromkeys"],
    ],
    ids=repr,
)
def test_singletons_and_descriptors_come_back_as_they_are(thing: Any, path: Path) -> None:
    for state in ([thing], [thing, lambda: None]):
        genesis.save(state, path)
        assert genesis.load(path)[0] is thing


def test_a_method_whose_name_is_mangled_is_loaded(path: Path) -> None:
    thing = Mangled()
    genesis.save([thing.bound(), thing], path)
    method, loaded = genesis.load(path)
    assert (method(), method.__self__) == (5, loaded)


class Mangled:
    def __secret(self) -> int:
        return 5

    def bound(self) -> Any:
        return self.__secret


# --- How much is done -----------------------------------------------------------------------------


class Node:
    def __init__(self, child: Any) -> None:
        self.children = [child]


def _tree(levels: int) -> Any:
    node = None
    for _ in range(levels):
        node = Node(node)
    return node


@pytest.mark.parametrize("beside", [None, lambda: None], ids=["names", "by value"])
def test_a_tree_of_a_thousand_levels_is_saved(beside: Any, path: Path) -> None:
    before = sys.getrecursionlimit()
    genesis.save([_tree(1000), beside], path)
    assert sys.getrecursionlimit() == before
    node, levels = genesis.load(path)[0], 0
    while node is not None:
        node, levels = node.children[0], levels + 1
    assert levels == 1000


@pytest.mark.parametrize("text", ["__main__.Net", "a __main__ b", "__main__", "__mp_main__"])
def test_a_string_that_is_the_name_of_the_main_module_needs_no_dill(
    text: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genesis._pickle.dumping.by_dill", None)
    genesis.save({"name": text, text: 1}, path)
    assert pickle.loads(path.read_bytes()) == {"name": text, text: 1}


@pytest.mark.parametrize("background", [False, True])
def test_a_save_leaves_no_circle_that_keeps_its_state(path: Path, background: bool) -> None:
    part = argparse.Namespace(n=1)
    gone = weakref.ref(part)
    gc.disable()
    try:
        done = genesis.save({"part": part}, path, background=background, clear=False)
        if isinstance(done, genesis.SaveFuture):
            done.result(60)
            genesis.flush(60)
        del part, done
        assert gone() is None
    finally:
        gc.enable()
