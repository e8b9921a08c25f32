"""Hypothesis: any nested state comes back as it was saved, and any sequence of saves, failures,
damage and loads leaves what a model in memory says.

States have every kind of container, arrays, tensors and views of them, references shared and going
round in circles. The model of the second half is a dict.
"""

from __future__ import annotations

import collections
import datetime
import os
import pickle
import random
import resource
import shutil
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import second_reader
import torch
from contention import DEADLINE, litter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from same import assert_same

import genesis

DERANDOMIZE = "GENESIS_RANDOM" not in os.environ
"""`make test` tries the same examples every time; with the variable set, others."""

# --- Nested states --------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 2000), 1 << 2000),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=20),
    st.sampled_from(["", "\ud800", "é" * 300, "little", "torch", "__main__", "a.b"]),
    st.binary(max_size=20),
    st.sampled_from([b"x" * 255, b"x" * 256, b"y" * 65_536, b"y" * 70_001]),
)
HASHABLE = st.one_of(st.integers(), st.text(max_size=5), st.tuples(st.integers(), st.booleans()))
OBJECTS = st.one_of(
    SCALARS,
    st.binary(max_size=9).map(bytearray),
    st.sets(HASHABLE, max_size=4),
    st.frozensets(HASHABLE, max_size=4),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
    st.timedeltas(),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9)),
    st.sampled_from([len, dict, torch.float32, torch.Size([2, 3])]),
    st.integers().map(random.Random),
)


def dtypes(endianness: str) -> st.SearchStrategy[np.dtype[Any]]:
    order: dict[str, Any] = {"endianness": endianness}
    scalars = st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(**order),
        hnp.unsigned_integer_dtypes(**order),
        hnp.floating_dtypes(**order),
        hnp.complex_number_dtypes(**order),
        hnp.datetime64_dtypes(**order),
        hnp.timedelta64_dtypes(**order),
        hnp.byte_string_dtypes(max_len=5),
        hnp.unicode_string_dtypes(max_len=5, **order),
    )
    return scalars | hnp.array_dtypes(scalars, max_size=3)


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS, NATIVE_ARRAYS = (
    dtypes(order).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES, fill=st.nothing()))
    for order in ("?", "=")
)
"""dill does not keep the byte order of some arrays."""
OLD_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.complex64, torch.complex128),
]
NEW_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32]
"""Plain pickle and dill write tensors of these that torch cannot read."""


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(dtypes))
    count = int(np.prod(shape))
    made = torch.arange(draw(st.integers(0, 50)), count + 99)[:count].to(dtype).reshape(shape)
    if dtype.is_floating_point and dtype.itemsize > 1 and draw(st.booleans()):
        return torch.nn.Parameter(made) if draw(st.booleans()) else made.requires_grad_()
    return made


ANYTHING = ARRAYS | tensors((*OLD_DTYPES, *NEW_DTYPES))
NOTHING_NEW = NATIVE_ARRAYS | tensors(tuple(OLD_DTYPES))


@st.composite
def views(draw: st.DrawFn, of: Any) -> Any:
    """Another array or tensor over the memory of one."""
    if isinstance(of, torch.Tensor):
        of = of.detach()
    if of.ndim and draw(st.booleans()):
        of = of[draw(st.integers(0, of.shape[0])) :]
    if of.ndim and draw(st.booleans()):
        of = of[:: draw(st.integers(1, 3))]
    return of.T if of.ndim == 2 and draw(st.booleans()) else of


FILLED: dict[str, Callable[[Any, Any, list[Any]], None]] = {
    "list": lambda made, _, parts: made.extend(parts),
    "deque": lambda made, _, parts: made.extend(parts),
    "dict": lambda made, keys, parts: made.update(zip(keys, parts, strict=False)),
    "ordered": lambda made, keys, parts: made.update(zip(keys, parts, strict=False)),
    "default": lambda made, keys, parts: made.update(zip(keys, parts, strict=False)),
    "namespace": lambda made, _, parts: vars(made).update(
        {f"a{n}": p for n, p in enumerate(parts)}
    ),
}
EMPTY: dict[str, Callable[[], Any]] = {
    "list": list,
    "deque": collections.deque,
    "dict": dict,
    "ordered": collections.OrderedDict,
    "default": lambda: collections.defaultdict(list),
    "namespace": types.SimpleNamespace,
}


@st.composite
def states(draw: st.DrawFn, *, arrays: Any = ANYTHING) -> list[Any]:
    """A list of everything in a state: leaves, then tuples of what stands before them, and
    containers of anything at all, themselves included."""
    nodes: list[Any] = draw(st.lists(OBJECTS, max_size=6))
    if arrays is not None:
        made = draw(st.lists(arrays, max_size=4))
        bases = draw(st.lists(st.sampled_from(made), max_size=3)) if made else []
        nodes += [*made, *(draw(views(base)) for base in bases)]
    for _ in range(draw(st.integers(0, 2))):
        nodes.append(tuple(draw(st.lists(st.sampled_from(nodes), max_size=3))) if nodes else ())
    kinds = draw(st.lists(st.sampled_from(sorted(EMPTY)), max_size=4))
    containers = [EMPTY[kind]() for kind in kinds]
    nodes += containers
    for kind, container in zip(kinds, containers, strict=True):
        keys = draw(st.lists(HASHABLE, max_size=4, unique=True))
        parts = draw(st.lists(st.sampled_from(nodes), max_size=4))
        FILLED[kind](container, keys, parts)
    return nodes


unhurried = settings(
    deadline=None,
    derandomize=DERANDOMIZE,
    max_examples=150,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


@unhurried
@given(state=states(), background=st.booleans(), mmap=st.booleans())
def test_a_state_comes_back_as_it_was(
    path: Path, state: list[Any], background: bool, mmap: bool
) -> None:
    done = genesis.save({"state": state}, path, clear=False, background=background)
    if isinstance(done, genesis.SaveFuture):
        done.result(DEADLINE)
    found = genesis.load(path, mmap=mmap)["state"]
    assert_same(state, found)
    _assert_tied(state, found)
    assert_same(state, second_reader.read(path)["state"])


def _assert_tied(state: list[Any], found: list[Any]) -> None:
    """Tensors over one memory are over one memory again, at the same distance."""
    tensors = [
        (one, other)
        for one, other in zip(state, found, strict=True)
        if isinstance(one, torch.Tensor) and one.numel()
    ]
    for one, other in tensors:
        for second, other_second in tensors:
            if _overlap(one, second):
                distance = second.data_ptr() - one.data_ptr()
                assert other_second.data_ptr() - other.data_ptr() == distance


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return False
    (low, high), (start, stop) = _span(one), _span(other)
    return low < stop and start < high


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    low = tensor.data_ptr()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return low, low + (last + 1) * tensor.element_size()


@unhurried
@given(state=states(arrays=NOTHING_NEW))
@pytest.mark.filterwarnings("ignore")
def test_a_state_comes_back_as_dill_would_give_it(path: Path, state: list[Any]) -> None:
    expected = dill.loads(dill.dumps(state))
    genesis.save(state, path, clear=False)
    assert_same(expected, genesis.load(path))
    with path.open("rb") as file:
        assert_same(expected, dill.load(file))


@unhurried
@given(state=states(), value=st.integers())
def test_a_state_with_a_lambda_comes_back_as_it_was(
    path: Path, state: list[Any], value: int
) -> None:
    """The same through dill's pickler, which the lambda calls for."""
    genesis.save({"state": state, "rule": lambda: value}, path, clear=False)
    found = genesis.load(path)
    assert second_reader.read_index(path)["pickler"] == "dill"
    assert_same(state, found["state"])
    _assert_tied(state, found["state"])
    assert found["rule"]() == value


PLAIN = st.recursive(
    SCALARS | ANYTHING.filter(lambda array: not getattr(array.dtype, "names", None)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)


@unhurried
@given(state=PLAIN)
def test_a_state_of_plain_data_comes_back_from_a_stranger(path: Path, state: Any) -> None:
    genesis.save({"state": state}, path, clear=False)
    assert_same(state, genesis.load(path, weights_only=True)["state"])
    assert genesis.validate_checkpoint(path) == (False, "Missing model_state_dict")


@unhurried
@given(state=states(arrays=None), protocol=st.integers(2, 5), dump=st.sampled_from([pickle, dill]))
def test_a_plain_pickle_of_a_state_is_loaded(
    path: Path, state: list[Any], protocol: int, dump: Any
) -> None:
    path.write_bytes(dump.dumps(state, protocol))
    assert_same(state, genesis.load(path))


# --- Sequences of calls ---------------------------------------------------------------------------

SIZE = 3000


def make(number: int) -> dict[str, Any]:
    return {
        "number": number,
        "array": np.full(SIZE, number),
        "tensor": torch.full((SIZE,), float(number)),
        "list": [number],
    }


def overwrite(state: dict[str, Any]) -> None:
    """What a training loop does to its state as soon as it may."""
    for value in state.values():
        if isinstance(value, np.ndarray):
            value.fill(-1)
        elif isinstance(value, torch.Tensor):
            value.fill_(-1)
        elif isinstance(value, list):
            value.append(-1)


class Module:
    """Something with a state_dict."""

    def __init__(self, number: int) -> None:
        self._number = number

    def state_dict(self) -> dict[str, Any]:
        return {"w": np.full(9, self._number)}


MISSING, DAMAGED = "missing", "damaged"
NAMES = st.sampled_from(["a", "b", "link to b"])
NUMBERS = st.integers(0, 1 << 30)


class Machine(RuleBasedStateMachine):
    """Calls of one process on two files and a directory of checkpoints."""

    @initialize(keep=st.integers(1, 3))
    def start(self, keep: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="genesis-"))
        (self.folder / "link to b").symlink_to("b")
        self.files: dict[str, Any] = {"a": MISSING, "b": MISSING}
        self.backed_up: set[str] = set()
        """Files that are missing or damaged, and have a sound backup of the model's value."""
        self.futures: list[tuple[genesis.SaveFuture, dict[str, Any], str]] = []
        self.manager = genesis.CheckpointManager(self.folder / "run", max_checkpoints=keep)
        self.epochs: dict[int, int] = {}  # in the order of writing

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.flush()
            for name in self.files:
                self.load(name, weights_only=False, mmap=False)
            shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _set(self, name: str, number: int) -> None:
        self.files[name[-1]] = number
        self.backed_up.discard(name[-1])

    @rule(name=NAMES, number=NUMBERS, clear=st.booleans())
    def save(self, name: str, number: int, clear: bool) -> None:
        state = make(number)
        report = genesis.save(state, self._path(name), clear=clear)
        assert report.outcome == "durable"
        assert bool(state) is not clear
        self._set(name, number)

    @rule(
        name=NAMES,
        number=NUMBERS,
        capture=st.sampled_from(["copy", "deferred"]),
        on_busy=st.sampled_from(["wait", "supersede", "skip"]),
    )
    def save_in_the_background(self, name: str, number: int, capture: Any, on_busy: Any) -> None:
        state = make(number)
        future = genesis.save(
            state, self._path(name), background=True, capture=capture, on_busy=on_busy
        )
        future.wait_captured(DEADLINE)
        overwrite(dict(state))
        # What is skipped has ended when the call returns.
        if future.done() and future.result().outcome == "skipped":
            return
        self.futures.append((future, state, on_busy))
        self._set(name, number)

    @rule(name=NAMES, background=st.booleans())
    def save_what_cannot_be_saved(self, name: str, background: bool) -> None:
        state = {"number": 1, "bad": (n for n in ())}
        with pytest.raises(genesis.UnpicklableStateError, match=r"\['bad'\]"):
            genesis.save(state, self._path(name), background=background)
        assert len(state) == 2

    @rule(name=NAMES, background=st.booleans())
    def save_without_room(self, name: str, background: bool) -> None:
        self.flush()
        state = make(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                _waited(genesis.save(state, self._path(name), background=background))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(state) == 4

    @rule(name=NAMES, weights_only=st.booleans(), mmap=st.booleans())
    def load(self, name: str, weights_only: bool, mmap: bool) -> None:
        expected = self.files[name[-1]]
        options = {"weights_only": weights_only, "mmap": mmap}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if expected == MISSING:
                with pytest.raises(FileNotFoundError, match="No such file"):
                    genesis.load(self._path(name), **options)
            elif expected == DAMAGED:
                with pytest.raises(genesis.CorruptCheckpointError, match=name[-1]):
                    genesis.load(self._path(name), **options)
            else:
                assert_same(make(expected), genesis.load(self._path(name), **options))
        recovered = [warning.category for warning in caught]
        assert recovered == [genesis.RecoveredFromBackupWarning] * (name[-1] in self.backed_up)

    @rule()
    def flush(self) -> None:
        genesis.flush(DEADLINE)
        for future, state, _ in self.futures:
            assert future.result(0).outcome in ("durable", "superseded")
            assert state  # in the background nothing is emptied
        self.futures.clear()

    @precondition(lambda self: self.futures)
    @rule()
    def wait_for_the_oldest(self) -> None:
        future, state, _ = self.futures.pop(0)
        report = future.result(DEADLINE)
        assert report.outcome in ("durable", "superseded")
        assert state

    @rule(
        name=st.sampled_from("ab"),
        backup=st.booleans(),
        how=st.sampled_from(["cut", "flip", "gone"]),
    )
    def damage(self, name: str, backup: bool, how: str) -> None:
        """As a crash of another writer, or a disk, would."""
        self.flush()
        path = self._path(name)
        if self.files[name] in (MISSING, DAMAGED) or name in self.backed_up:
            return
        if backup:
            shutil.copy(path, f"{path}.genesis.bak")
            self.backed_up.add(name)
        if how == "gone":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            if how == "cut":
                content.pop()
            else:
                content[len(content) // 2] ^= 1
            path.write_bytes(content)
        if not backup:
            self.files[name] = MISSING if how == "gone" else DAMAGED

    @rule(epoch=st.integers(0, 20), background=st.booleans())
    def save_an_epoch(self, epoch: int, background: bool) -> None:
        module = Module(epoch)
        done = self.manager.save_checkpoint(module, module, epoch, 0.5, background=background)
        _waited(done)  # two in the background may end in either order, and so prune
        written = [n for n in self.epochs if n != epoch] + [epoch]
        self.epochs = {n: n for n in written[-self.manager.max_checkpoints :]}
        assert list(self.manager.checkpoints()) == sorted(self.epochs)

    @precondition(lambda self: self.epochs)
    @rule()
    def resume(self) -> None:
        latest = self.manager.latest()
        assert latest is not None
        found = genesis.load(latest)
        newest = next(reversed(self.epochs))
        assert found["epoch"] == newest
        assert found["model_state_dict"]["w"].tolist() == [newest] * 9
        assert genesis.validate_checkpoint(latest) == (True, "Checkpoint is valid")

    @invariant()
    def nothing_is_left_beside_idle_files(self) -> None:
        if hasattr(self, "folder") and not self.futures:
            assert litter(self.folder) == sorted(f"{name}.genesis.bak" for name in self.backed_up)
            assert os.readlink(self.folder / "link to b") == "b"


def _waited(done: genesis.SaveReport | genesis.SaveFuture) -> genesis.SaveReport:
    return done.result(DEADLINE) if isinstance(done, genesis.SaveFuture) else done


Machine.TestCase.settings = settings(
    deadline=None,
    derandomize=DERANDOMIZE,
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSequences = Machine.TestCase
