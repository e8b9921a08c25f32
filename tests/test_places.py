"""Places in errors are true: whatever the state, Python's own indexing finds the culprit there.

States are drawn at random, for saves that are refused and for loads that fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpus
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genesis


class Bad:
    """Cannot be saved or loaded while it is in the mood."""

    mood = ""

    def __init__(self) -> None:
        self.kept = [1]

    def __reduce__(self) -> Any:
        if Bad.mood == "save":
            raise LookupError("not now")
        return Bad.make, ()

    @staticmethod
    def make() -> Bad:
        if Bad.mood == "load":
            raise LookupError("not now")
        return Bad()


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    yield
    Bad.mood = ""


ATOMS = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.binary(max_size=3), st.floats())
NAMES = st.sampled_from("abcd")


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(corpus.Items),
        st.dictionaries(st.one_of(st.integers(-9, 9), st.text(max_size=3)), inner, max_size=4),
        st.dictionaries(NAMES, inner, max_size=4).map(lambda inside: corpus.Node(**inside)),
    )


def states() -> st.SearchStrategy[Any]:
    return st.recursive(st.one_of(ATOMS, ATOMS, st.builds(Bad)), containers, max_leaves=25)


def culprits(state: Any, depth: int = 0) -> Iterator[tuple[int, Bad]]:
    """Every bad thing in a state, and how deep it lies."""
    if isinstance(state, Bad):
        yield depth, state
    inner: Any = ()
    if isinstance(state, list | tuple):
        inner = list(state)
    elif isinstance(state, dict):
        inner = state.values()
    elif isinstance(state, corpus.Node):
        inner = vars(state).values()
    for part in inner:
        yield from culprits(part, depth + 1)


def at(state: Any, place: str) -> Any:
    return eval(f"state{place}", {"state": state})


random_states = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@random_states
@given(state=states())
def test_a_refused_save_names_the_nearest_culprit(path: Path, state: Any) -> None:
    Bad.mood = "save"
    found = list(culprits(state))
    if not found:
        genesis.save(state, path, clear=False)
        return
    with pytest.raises(genesis.UnpicklableStateError, match="not now") as caught:
        genesis.save(state, path, clear=False)
    culprit = at(state, caught.value.place)
    nearest = min(depth for depth, _bad in found)
    assert any(bad is culprit for depth, bad in found if depth == nearest)


@random_states
@given(state=states())
def test_a_failed_load_names_the_first_culprit(path: Path, state: Any) -> None:
    Bad.mood = ""
    genesis.save(state, path, clear=False)
    Bad.mood = "load"
    if not list(culprits(state)):
        genesis.load(path)
        return
    with pytest.raises(genesis.RebuildError, match="not now") as caught:
        genesis.load(path)
    Bad.mood = ""
    assert isinstance(at(state, caught.value.place), Bad)
    assert caught.value.name.endswith("Bad.make")
