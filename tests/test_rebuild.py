"""A sound file whose objects cannot be built here: one error, with path, place and name, and never
the backup instead, for the file is not to blame.
"""

from __future__ import annotations

import collections
import pickle
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import corpus
import dill
import pytest
import torch

import genesis

WRITERS: dict[str, Callable[[Any, Path], object]] = {
    "genesis": lambda state, path: genesis.save(state, path, clear=False),
    "pickle": lambda state, path: path.write_bytes(pickle.dumps(state)),
    "old pickle": lambda state, path: path.write_bytes(pickle.dumps(state, 2)),
    "dill": lambda state, path: path.write_bytes(dill.dumps(state)),
    "genesis by value": lambda state, path: genesis.save([state, lambda: 0], path),
}


class Moody:
    """Raises, when it is loaded, what it was told to."""

    raises: BaseException | None = None

    def __init__(self, name: str = "a") -> None:
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        if Moody.raises is not None and state["name"] == "bad":
            raise Moody.raises
        self.__dict__ = state


class Made:
    """Raises when it is called by a load."""

    broken = False

    def __new__(cls, number: int = 0) -> Made:
        if Made.broken and number == 3:
            raise LookupError("no data file for 3")
        return super().__new__(cls)

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Made, (self.number,)


@pytest.fixture
def moods() -> Iterator[None]:
    yield
    Moody.raises = None
    Made.broken = False


def fails(path: Path, **options: Any) -> genesis.RebuildError:
    with pytest.raises(genesis.RebuildError, match="cannot be built") as caught:
        genesis.load(path, **options)
    error = caught.value
    assert isinstance(error, genesis.CorruptCheckpointError)
    assert isinstance(error, pickle.UnpicklingError)
    assert str(error).startswith(f"{path}: state")
    assert error.path == str(path)
    assert error.__cause__ is not None
    again = pickle.loads(pickle.dumps(error))
    assert (again.place, again.name, str(again)) == (error.place, error.name, str(error))
    return error


def first(writer: str) -> str:
    return "[0]" if writer == "genesis by value" else ""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_class_that_is_gone(writer: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"ok": [corpus.Node()], "model": {"head": [1, corpus.Items([2])]}}
    WRITERS[writer](state, path)
    monkeypatch.delattr(corpus, "Items")
    error = fails(path)
    assert error.name == "corpus.Items"
    assert isinstance(error.__cause__, AttributeError)
    # The class is looked up before the object is made: the place is that of what needs it.
    assert error.place.startswith(f"{first(writer)}['model']['head'][1]")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_module_that_is_gone(writer: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("of_another_machine")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    thing = type("Thing", (), {"__module__": module.__name__})
    module.Thing = thing  # type: ignore[attr-defined]
    WRITERS[writer]({"a": 1, "thing": thing()}, path)
    monkeypatch.delitem(sys.modules, module.__name__)
    error = fails(path)
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert error.name == "of_another_machine.Thing"
    assert "importable" in error.hint


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "raised",
    [
        KeyError("k"),
        FileNotFoundError(2, "No such file", "vocabulary.txt"),
        genesis.ChecksumError("other.pth", "damaged"),
        genesis.NotACheckpointError("other.pth", "text"),
        pickle.UnpicklingError("odd"),
        RecursionError("deep"),
        UserWarning("as an error"),
    ],
    ids=lambda raised: type(raised).__name__,
)
@pytest.mark.usefixtures("moods")
def test_what_an_object_raises_is_chained_and_its_place_named(
    writer: str, raised: Exception, path: Path
) -> None:
    state = {"good": [Moody() for _ in range(5)], "list": [Moody(), Moody("bad"), Moody()]}
    WRITERS[writer](state, path)
    Moody.raises = raised
    error = fails(path)
    assert error.__cause__ is raised
    assert error.place == f"{first(writer)}['list'][1]"
    assert error.name.endswith("Moody")
    assert error.offset is not None
    assert 0 < error.offset < path.stat().st_size


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.usefixtures("moods")
def test_what_a_constructor_raises(writer: str, path: Path) -> None:
    state = {"t": torch.ones(3), "objects": [Made(number) for number in range(3000)]}
    WRITERS[writer](state, path)
    Made.broken = True
    error = fails(path)
    assert isinstance(error.__cause__, LookupError)
    assert error.place == f"{first(writer)}['objects'][3]"


@pytest.mark.usefixtures("moods")
def test_it_never_leads_to_the_backup(path: Path) -> None:
    genesis.save({"epoch": 1}, path.with_name(path.name + ".genesis.bak"))
    genesis.save({"epoch": 2, "m": Moody("bad")}, path.with_name("new"))
    path.with_name("new").rename(path)
    Moody.raises = FileNotFoundError(2, "No such file", "vocabulary.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fails(path).__cause__ is Moody.raises


@pytest.mark.usefixtures("moods")
def test_a_file_of_its_own_that_is_missing_is_no_missing_checkpoint(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    genesis.save({"model_state_dict": {"m": Moody("bad")}}, path)
    Moody.raises = FileNotFoundError(2, "No such file", "vocabulary.txt")
    assert not genesis.safe_load_checkpoint(path, torch.nn.Linear(1, 1))
    assert "vocabulary.txt" in capsys.readouterr().out


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
@pytest.mark.usefixtures("moods")
def test_an_interrupt_and_lack_of_memory_pass_through(raised: BaseException, path: Path) -> None:
    genesis.save({"m": Moody("bad")}, path)
    Moody.raises = raised
    with pytest.raises(type(raised)):
        genesis.load(path)


@pytest.mark.usefixtures("moods")
def test_places_go_through_every_container(path: Path) -> None:
    bad = Moody("bad")
    states: list[tuple[Any, str]] = [
        (bad, ""),
        ((1, bad), "[1]"),
        ({1: {"a": (bad,)}}, "[1]['a'][0]"),
        (collections.OrderedDict(a=[bad]), "['a'][0]"),
        (corpus.Node(a=corpus.Node(b=bad)), ".a.b"),
        ([0] * 2500 + [bad], "[2500]"),
        ([torch.ones(2), {"b": bad}], "[1]['b']"),
    ]
    for state, place in states:
        Moody.raises = None
        genesis.save(state, path, clear=False)
        Moody.raises = ValueError("bad")
        assert fails(path).place == place
        assert fails(path, mmap=True).place == place


def test_a_callable_location_that_raises_is_not_the_files_fault(path: Path) -> None:
    genesis.save({"epoch": 1}, path.with_name(path.name + ".genesis.bak"))
    path.with_name(path.name + ".genesis.bak").rename(path.with_name("kept"))
    genesis.save({"w": torch.ones(2)}, path)
    path.with_name("kept").rename(path.with_name(path.name + ".genesis.bak"))

    def location(storage: Any, where: str) -> Any:
        raise FileNotFoundError(where)

    assert "FileNotFoundError: cpu" in str(fails(path, map_location=location))


@pytest.mark.usefixtures("moods")
def test_a_registered_class_that_misses_its_file_is_no_missing_checkpoint(path: Path) -> None:
    genesis.save({"epoch": 1}, path.with_name("kept"))
    genesis.save({"m": Moody("bad")}, path)
    path.with_name("kept").rename(path.with_name(path.name + ".genesis.bak"))
    Moody.raises = FileNotFoundError(2, "No such file", "vocabulary.txt")
    with (
        genesis.safe_globals([Moody]),
        pytest.raises(genesis.CorruptCheckpointError, match=r"vocabulary\.txt"),
    ):
        genesis.load(path, weights_only=True)


@pytest.mark.parametrize("where", ["nonsense", {"cpu": "nonsense"}])
def test_a_device_that_is_not_there_has_a_cure(path: Path, where: Any) -> None:
    genesis.save({"w": torch.ones(2)}, path, clear=False)
    with pytest.raises(
        genesis.RebuildError, match=r"'nonsense'.*; load it with map_location='cpu'"
    ):
        genesis.load(path, map_location=where)


def test_the_place_of_an_object_whose_class_was_saved_by_value(path: Path) -> None:
    script = """
import sys, genesis
class Needing:
    def __getstate__(self):
        return {"x": 1}
    def __setstate__(self, state):
        raise FileNotFoundError(2, "No such file", "vocabulary")
genesis.save({"t": [1, Needing()]}, sys.argv[1], clear=False)
try:
    genesis.load(sys.argv[1])
except genesis.RebuildError as exc:
    print(exc.place, exc.name or "by value")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['t'][1] by value\n", done.stderr
