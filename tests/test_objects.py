"""Python objects: what dill saves comes back as dill gives it, whichever pickler wrote it.

Tensors and arrays of one framework have files of their own.
"""

from __future__ import annotations

import copy
import copyreg
import pickle
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus
import dill
import numpy as np
import pytest
from optional import torch
from same import assert_same
from second_reader import read_index

import genesis


def round_trip(state: Any, path: Path, **keywords: Any) -> Any:
    genesis.save(state, path, clear=False)
    return genesis.load(path, **keywords)


def python(code: str, *args: object) -> str:
    """Run a program in a fresh interpreter; return what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=[pytest.param(made, id=name) for name, made in corpus.PLAIN.items()])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return request.param


# --- The two picklers -----------------------------------------------------------------------------


def test_the_c_pickler_gives_back_what_was_saved(make: Callable[[], Any], path: Path) -> None:
    state = {"x": make()}
    assert_same(state, round_trip(state, path))
    assert read_index(path)["pickler"] == "pickle"


def test_dill_gives_back_what_was_saved(make: Callable[[], Any], path: Path) -> None:
    state = {"x": make(), "lambda": lambda: None}
    assert_same(state, round_trip(state, path))
    assert read_index(path)["pickler"] == "dill"


def test_both_picklers_give_what_dill_gives(make: Callable[[], Any], tmp_path: Path) -> None:
    state = {"x": make()}
    by_dill = dill.loads(dill.dumps(state))
    assert_same(by_dill, round_trip(state, tmp_path / "c"))
    assert_same(by_dill["x"], round_trip({**state, "f": lambda: None}, tmp_path / "dill")["x"])


@pytest.mark.parametrize("name", corpus.NEEDS_DILL)
def test_what_needs_dill_works_after_loading(name: str, path: Path) -> None:
    make, check = corpus.NEEDS_DILL[name]
    genesis.save({"x": make()}, path)
    check(genesis.load(path)["x"])
    assert read_index(path)["pickler"] == "dill"


def test_a_state_need_not_be_a_dict(path: Path) -> None:
    for state in ([1, (2,)], "text", None, 5, torch.ones(2), np.ones(2), corpus.Frozen()):
        assert_same(state, round_trip(state, path))


def test_the_state_may_hold_itself(path: Path) -> None:
    state: dict[str, Any] = {"a": torch.ones(2)}
    state["self"] = state
    loaded = round_trip(state, path)
    assert loaded["self"] is loaded


@pytest.mark.parametrize("force", [False, True], ids=["pickle", "dill"])
def test_a_save_changes_nothing_in_the_state(force: bool, path: Path) -> None:
    state = {name: make() for name, make in corpus.PLAIN.items()}
    if force:
        state["lambda"] = lambda: None
    before = copy.copy(state)
    genesis.save(state, path, clear=False)
    assert list(state) == list(before)
    assert all(state[key] is before[key] for key in before)
    fresh = {name: make() for name, make in corpus.PLAIN.items()}
    assert_same({name: state[name] for name in fresh}, fresh)


def test_a_failed_attempt_of_the_c_pickler_leaves_no_trace_in_the_file(path: Path) -> None:
    """The state is laid out anew for dill: no array of the first attempt is left in the file."""
    array = np.zeros(100_000)
    genesis.save({"a": array, "f": lambda: None}, path)
    assert path.stat().st_size < array.nbytes + 2000


def test_an_importable_class_is_saved_by_name_beside_a_lambda(path: Path) -> None:
    genesis.save({"class": corpus.Node, "optimizer": torch.optim.SGD, "f": lambda: None}, path)
    loaded = genesis.load(path)
    assert loaded["class"] is corpus.Node
    assert loaded["optimizer"] is torch.optim.SGD


class Bound:
    """Holds methods that are bound to it, under the names that its state gives them."""

    def __init__(self) -> None:
        def own(self: Bound) -> Bound:
            return self

        self.own = own.__get__(self)
        self.of_the_class = self.of_the_class

    def of_the_class(self) -> Bound:
        return self


class Slotted:
    __slots__ = ("own",)

    def __init__(self) -> None:
        self.own = types.MethodType(Slotted.own_too, self)

    def own_too(self) -> Slotted:
        return self


Slotted.own_too.__name__ = "own"


@pytest.mark.parametrize("force", [False, True])
def test_a_method_that_its_object_holds_needs_no_state_of_the_object(
    force: bool, path: Path
) -> None:
    loaded = round_trip([Bound(), Slotted(), lambda: None] if force else [Bound(), Slotted()], path)
    for made in loaded[:2]:
        assert made.own() is made
    assert loaded[0].of_the_class() is loaded[0]


class ToldMeta(type):
    """One that says how its classes are pickled; they have no hash."""

    def __eq__(cls, other: object) -> bool:
        return type(other) is ToldMeta and cls.__name__ == other.__name__  # type: ignore[attr-defined]


def _told(name: str) -> ToldMeta:
    return ToldMeta(name, (), {"__module__": None})


@pytest.mark.parametrize("force", [False, True])
def test_a_metaclass_says_through_copyreg_how_its_classes_are_pickled(
    force: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, ToldMeta, lambda cls: (_told, (cls.__name__,)))
    loaded = round_trip([_told("made"), lambda: None] if force else [_told("made")], path)
    assert loaded[0] == _told("made")


def test_large_bytes_are_saved_once_however_often_they_are_referred_to(path: Path) -> None:
    blob = bytes(300_000)
    loaded = round_trip({"a": blob, "b": [blob], "f": lambda: blob}, path)
    assert path.stat().st_size < 2 * len(blob)
    assert loaded["a"] is loaded["b"][0] is loaded["f"]()


def test_deep_nesting_is_saved_as_far_as_pickle_goes(path: Path) -> None:
    state = {"x": corpus._deep(300)}
    assert_same(state, round_trip(state, path))


def test_nesting_beyond_the_recursion_limit_is_an_error_of_its_own(path: Path) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match="RecursionError") as caught:
        genesis.save({"x": corpus._deep(100_000)}, path)
    assert len(str(caught.value)) < 2000
    assert not path.exists()


# --- What cannot be saved -------------------------------------------------------------------------


class Refuses:
    """Raises what it is given when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": {"b": [0, (1, generator())]}}, "['a']['b'][1][1]"),
        ({"m": corpus.Node(q={3: generator()})}, "['m'].q[3]"),
        ({1: [generator()]}, "[1][0]"),
        ([generator()], "[0]"),
        (generator(), ""),
        ({"f": lambda: None, "m": corpus.Node(g=generator())}, "['m'].g"),
    ],
    ids=["containers", "attributes", "number", "list", "itself", "beside a lambda"],
)
def test_what_cannot_be_saved_is_named_with_its_place(state: Any, place: str, path: Path) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match="generator") as caught:
        genesis.save(state, path)
    assert caught.value.place == place
    assert f"state{place}: " in str(caught.value)
    assert isinstance(caught.value, pickle.PicklingError)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "error",
    [
        TypeError("it says no"),
        RuntimeError("it says no"),
        NotImplementedError("it says no"),
        OSError("it says no"),
        KeyError("it says no"),
        AssertionError("it says no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_an_object_raises_when_it_is_pickled_names_its_place(
    error: Exception, path: Path
) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match="it says no") as caught:
        genesis.save({"a": [Refuses(error)]}, path)
    assert caught.value.place == "['a'][0]"
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=["ctrl-c", "exit"])
def test_an_interrupt_while_an_object_is_pickled_passes_through(
    error: BaseException, path: Path
) -> None:
    state = {"a": Refuses(error)}
    with pytest.raises(type(error)):
        genesis.save(state, path)
    assert list(state) == ["a"]
    assert list(path.parent.iterdir()) == []
    genesis.save({"a": 1}, path)
    assert genesis.load(path) == {"a": 1}


def test_what_cannot_be_saved_in_the_background_is_refused_by_the_call(path: Path) -> None:
    with pytest.raises(genesis.UnpicklableStateError, match=r"state\['g'\]: "):
        genesis.save({"g": generator()}, path, background=True)


def test_a_class_that_is_gone_at_load_is_named(path: Path) -> None:
    genesis.save({"x": corpus.Node(a=1)}, path)
    broken = """
        import sys, types, genesis
        sys.modules["corpus"] = types.ModuleType("corpus")
        try:
            genesis.load(sys.argv[1])
        except genesis.RebuildError as exc:
            print(exc, repr(exc.__cause__))
    """
    assert "AttributeError" in python(broken, path)


# --- __main__ -------------------------------------------------------------------------------------

DEFINES = """
    import collections, dataclasses, enum, functools, sys
    import genesis, torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
        def forward(self, x):
            return self.layer(x) + OFFSET

    @dataclasses.dataclass
    class Config:
        rate: float = 0.25
        def doubled(self):
            return self.rate * 2

    class Base:
        def name(self):
            return "base"

    class Derived(Base):
        def name(self):
            return "derived from " + super().name()

    class Color(enum.Enum):
        RED = 1
        BLUE = 2

    def scale(x, by=3):
        return x * by

    def twice(x):
        return scale(x) * 2

    def decorate(function):
        @functools.wraps(function)
        def inner(*args):
            return function(*args) + 1
        return inner

    OFFSET = 1
"""

FILLS = """
    torch.manual_seed(0)
    net = Net()
    state = {
        "net": net,
        "weight": net.layer.weight,
        "config": Config(0.5),
        "derived": Derived(),
        "scale": scale,
        "twice": twice,
        "decorated": decorate(lambda x: x),
        "class": Net,
        "factory": collections.defaultdict(lambda: [0]),
        "method": Config(2.0).doubled,
        "expected": net.layer(torch.ones(1, 2)).detach(),
    }
    genesis.save(state, sys.argv[1])
    genesis.save({"color": Color.RED, "table": {Color.BLUE: 1}}, sys.argv[1] + "-enum")
"""

CHECKS = """
    ones = torch.ones(1, 2)
    assert state["weight"] is state["net"].layer.weight
    assert type(state["net"]) is state["class"]
    assert torch.equal(state["net"].layer(ones), state["expected"])
    assert (state["config"].rate, state["config"].doubled()) == (0.5, 1.0)
    assert state["derived"].name() == "derived from base"
    assert (state["scale"](2), state["decorated"](4)) == (6, 5)
    assert state["factory"]["new"] == [0]
    assert state["method"]() == 4.0
"""


def dedented(*parts: str) -> str:
    return "\n".join(textwrap.dedent(part) for part in parts)


@pytest.fixture(scope="module")
def of_main(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose state is made of what the program that saved it defines."""
    if not torch:
        pytest.skip("torch is not installed")
    path = tmp_path_factory.mktemp("main") / "checkpoint.pth"
    python(dedented(DEFINES, FILLS), path)
    assert read_index(path)["pickler"] == "dill"
    return path


def test_classes_and_functions_of_main_load_where_main_is_another(of_main: Path) -> None:
    load = "import sys, genesis, torch\nstate = genesis.load(sys.argv[1])"
    enum_of_main = """
        try:
            genesis.load(sys.argv[1] + "-enum")
        except genesis.RebuildError as exc:
            assert exc.name == "__main__.Color", exc
        else:
            raise AssertionError("an enum is saved by its name, and there is none here")
    """
    python(dedented(load, CHECKS, enum_of_main), of_main)


def test_classes_and_functions_of_main_load_with_plain_dill(of_main: Path) -> None:
    load = "with open(sys.argv[1], 'rb') as file:\n    state = dill.load(file)"
    head = "import sys, dill, torch\nsys.modules['genesis'] = None"
    python(dedented(head, load, CHECKS), of_main)


def test_what_main_defined_finds_its_globals_where_the_same_program_resumes(of_main: Path) -> None:
    resumed = """
        state = genesis.load(sys.argv[1])
        assert torch.equal(state["net"](torch.ones(1, 2)), state["expected"] + OFFSET)
        assert state["twice"](2) == 12
        colors = genesis.load(sys.argv[1] + "-enum")
        assert colors["color"] is Color.RED
        assert colors["table"] == {Color.BLUE: 1}
    """
    python(dedented(DEFINES, resumed, CHECKS), of_main)


# --- Readers without genesis ----------------------------------------------------------------------


def test_plain_pickle_reads_basic_objects_without_genesis_numpy_or_torch(path: Path) -> None:
    state = {"epoch": 3, "history": [0.5, 0.25], "names": {"a", "b"}, "nested": {"x": (1, None)}}
    genesis.save(state, path, clear=False)
    code = """
        import json, pickle, sys
        for name in ("genesis", "numpy", "torch", "dill", "xxhash"):
            sys.modules[name] = None
        with open(sys.argv[1], "rb") as file:
            state = pickle.load(file)
        print(json.dumps(repr(state["nested"])), json.dumps(state["history"]), state["epoch"])
    """
    assert python(code, path) == "\"{'x': (1, None)}\" [0.5, 0.25] 3\n"


def test_plain_pickle_reads_numpy_without_genesis(path: Path) -> None:
    state = {
        "a": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.eye(3)),
        "s": np.ones(2, dtype=[("x", "i4"), ("y", "f8")]),
        "e": np.empty((0, 2)),
    }
    genesis.save(state, path, clear=False)
    code = """
        import pickle, sys
        for name in ("genesis", "torch", "dill", "xxhash"):
            sys.modules[name] = None
        with open(sys.argv[1], "rb") as file:
            state = pickle.load(file)
        state["a"] += 1
        print(state["a"].tolist(), state["f"].flags.f_contiguous, state["s"]["y"], state["e"].shape)
    """
    assert python(code, path) == "[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]] True [1. 1.] (0, 2)\n"


def test_plain_pickle_reads_torch_without_genesis(path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    state = {
        "weight": weight,
        "tied": weight.t(),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "eight": torch.ones(2).to(torch.float8_e4m3fn),
        "empty": torch.empty(0, 3),
    }
    genesis.save(state, path, clear=False)
    code = """
        import pickle, sys
        for name in ("genesis", "dill", "xxhash"):
            sys.modules[name] = None
        with open(sys.argv[1], "rb") as file:
            state = pickle.load(file)
        with __import__("torch").no_grad():
            state["weight"][0, 2] = 9
        print(type(state["weight"]).__name__, state["tied"][2, 0].item(), state["half"].dtype)
        print(state["eight"].float().tolist(), tuple(state["empty"].shape))
    """
    assert python(code, path) == "Parameter 9.0 torch.bfloat16\n[1.0, 1.0] (0, 3)\n"


# --- Files of other writers -----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_file_of_plain_pickle_is_loaded(protocol: int, path: Path) -> None:
    state = {"a": [1, "b", (None, 2.5)], "n": np.arange(3), "t": torch.ones(2)}
    path.write_bytes(pickle.dumps(state, protocol))
    assert_same(state, genesis.load(path))


def test_a_file_of_plain_dill_is_loaded(path: Path) -> None:
    with path.open("wb") as file:
        dill.dump({"f": lambda x: x + 1, "w": torch.ones(2)}, file)
    loaded = genesis.load(path)
    assert loaded["f"](2) == 3
    assert torch.equal(loaded["w"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"hello, world", "not a pickle"),
        (b'{"a": 1}', r"a text, of JSON.*json\.load"),
        (b"\x00" * 4096, "not a pickle"),
        (b"\x7fELF" + bytes(60), "not a pickle"),
        (b"PK\x03\x04rest", r"zip archive.*torch\.load"),
        (pickle.dumps({"a": 1}) + b"x", "1 more bytes follow"),
        (pickle.dumps(1) * 2, "more bytes follow"),
        (b".", "cannot be loaded"),
        (b"\x80\xff.", "not a pickle|cannot be loaded"),
        (b"I5\n0.", "cannot be loaded"),
        (b"(.", "cannot be loaded"),
    ],
    ids=range(12),
)
def test_what_is_no_checkpoint_is_named_as_such(content: bytes, problem: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(genesis.NotACheckpointError, match=problem) as caught:
        genesis.load(path)
    assert isinstance(caught.value, pickle.UnpicklingError)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("dump", [pickle.dumps, dill.dumps], ids=["pickle", "dill"])
def test_every_truncation_of_a_plain_pickle_is_refused(
    dump: Callable[[Any], bytes], path: Path
) -> None:
    content = dump({"epoch": 3, "names": ["a", "b"], "rates": (0.5, 1e-3), "blob": bytes(30)})
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(genesis.NotACheckpointError, match=r"empty|not a pickle"):
            genesis.load(path)


def test_a_file_of_torch_save_names_the_way_to_convert_it(path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(genesis.NotACheckpointError, match=r"torch\.load") as caught:
        genesis.load(path)
    assert "genesis.save" in caught.value.hint
    genesis.save(torch.load(path, weights_only=True), path)
    assert genesis.load(path)["w"].tolist() == [1, 1]


# --- Names that lead astray -----------------------------------------------------------------------


def test_modules_that_are_called_like_a_framework_are_not_taken_for_it(path: Path) -> None:
    code = """
        import sys, types, genesis
        for name in ("torch_tools", "torch", "jax", "numpy"):
            module = types.ModuleType(name)
            module.Thing = type("Thing", (), {"__module__": name})
            sys.modules[name] = module
        state = {name: sys.modules[name].Thing() for name in ("torch_tools", "torch", "jax")}
        genesis.save(state, sys.argv[1], clear=False)
        loaded = genesis.load(sys.argv[1])
        print({name: type(thing).__module__ for name, thing in loaded.items()})
    """
    names = "{'torch_tools': 'torch_tools', 'torch': 'torch', 'jax': 'jax'}\n"
    assert python(code, path) == names


def test_a_framework_whose_import_is_forbidden_is_not_imported(path: Path) -> None:
    code = """
        import sys
        sys.modules["torch"] = sys.modules["jax"] = None
        import genesis
        genesis.save({"a": [1]}, sys.argv[1], clear=False)
        print(genesis.load(sys.argv[1]))
        try:
            genesis.load(sys.argv[2])
        except genesis.RebuildError as exc:
            print(type(exc.__cause__).__name__, exc)
    """
    other = path.with_name("torch")
    genesis.save({"weights": torch.ones(2)}, other)
    printed = python(code, path, other)
    assert printed.startswith("{'a': [1]}\nModuleNotFoundError")
    assert "torch" in printed


class OfNoModule:
    def __init__(self) -> None:
        self.number = 5


def test_a_class_that_names_no_module_is_found_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfNoModule, "__module__", None)
    assert round_trip({"x": OfNoModule()}, path)["x"].number == 5
