"""Random bytes, mutations of honest skeletons and random compositions of opcodes, for both readers.

Whatever they are given, they return plain values or raise an error of genesis.
"""

from __future__ import annotations

import collections
import datetime
import pickle
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import assembler as asm
import jax
import numpy as np
import pytest
import torch
from assembler import FROM_BUFFER, REGION, Code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import assert_same

import genesis
from genesis import _safe
from genesis._pickle import picklers
from genesis._pickle.buffers import DataRegion
from genesis._pickle.once import Once
from genesis._safe import machine

SIZE = 256
"""Bytes of the data region."""

VALUES = (
    type(None), bool, int, float, complex, str, bytes, bytearray, slice, range, set, frozenset,
    np.ndarray, np.generic, np.dtype, torch.Size, torch.dtype, torch.device, torch.layout,
    torch.qscheme, torch.memory_format, torch.Tensor, torch.UntypedStorage,
    torch.storage.TypedStorage, collections.Counter, collections.deque, datetime.date,
    datetime.time, datetime.timedelta, datetime.tzinfo, jax.Array,
)  # fmt: skip
DESCRIPTIONS = (
    type(None), bool, int, float, str, bytes, bytearray, frozenset, set,
    _safe.ArrayInfo, _safe.Opaque,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")
fuzz = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


BYTE_BOUNDS = getattr(np, "byte_bounds", None) or np.lib.array_utils.byte_bounds  # NumPy 1 or 2


def check(skeleton: bytes) -> None:
    """Give a stream to both readers, with and without a data region."""
    for data in (bytearray(SIZE), None):
        with suppress(genesis.CorruptCheckpointError):
            result = _safe.load(skeleton, data=data, path="fuzz")
            for part in parts(result):
                assert isinstance(part, VALUES)
                check_bounds(part, data or b"\0")
    for size in (SIZE, None):
        with suppress(genesis.CorruptCheckpointError):
            tree = _safe.outline(skeleton, path="fuzz", data_size=size)
            assert not [part for part in parts(tree) if not isinstance(part, DESCRIPTIONS)]
            room = size or 0
            assert all(info.offset <= room for _, info in _safe.arrays(tree))


def check_bounds(part: Any, region: bytes | bytearray) -> None:
    """That a tensor or an array reaches no memory but the data region's or its own."""
    low = np.frombuffer(region, "u1").ctypes.data
    if isinstance(part, np.ndarray) and part.nbytes and part.base is not None:
        memory = np.frombuffer(part.base, "u1")
        begin, (first, end) = memory.ctypes.data, BYTE_BOUNDS(part)
        assert part.base is region or memory.nbytes == part.nbytes
        assert begin <= first
        assert end <= begin + memory.nbytes
    elif isinstance(part, torch.Tensor) and part.layout is torch.strided and not part.is_meta:
        storage, steps = part.untyped_storage(), zip(part.shape, part.stride(), strict=True)
        end = part.storage_offset() + 1 + sum((size - 1) * step for size, step in steps)
        assert not part.numel() or end * part.element_size() <= storage.nbytes()
        if storage.nbytes() and not part.is_quantized:
            assert low <= storage.data_ptr()
            assert storage.data_ptr() + storage.nbytes() <= low + len(region)
    elif isinstance(part, torch.Tensor) and part.layout is torch.sparse_coo:
        indices, limits = part._indices(), torch.tensor(part.shape[: part.sparse_dim()])
        assert not indices.numel() or bool((indices >= 0).all())
        assert not indices.numel() or bool((indices < limits[:, None]).all())


def parts(root: Any) -> Iterator[Any]:
    """Everything in the containers of `root`, once."""
    waiting, seen = [root], set[int]()
    while waiting:
        part = waiting.pop()
        if type(part) in (list, tuple):
            inner = list(part)
        elif type(part) in (dict, collections.OrderedDict, collections.defaultdict):
            inner = [*part, *part.values(), *getattr(part, "__dict__", {}).values()]
        else:
            yield part
            continue
        if id(part) not in seen:
            seen.add(id(part))
            waiting += inner


STRUCTURE = {
    "names": ["a", "b"],
    "formats": [asm.dtype("<f4"), (asm.dtype("<U2"), (2,))],
    "offsets": [0, 4],
    "itemsize": 20,
}


def honest() -> list[bytes]:
    """Skeletons of all that is on the list."""
    pieces: list[Any] = [
        {"a": [1, (2.0, None, True)], 3: {"b"}, (4, "c"): b"d"},
        asm.build(asm.call(asm.name("collections", "OrderedDict")), {"_metadata": {"": {}}}),
        asm.call(asm.name("collections", "defaultdict"), asm.name("builtins", "list")),
        [asm.floats((2, 4), (4, 1)), asm.integers(3)],
        asm.call(asm.name("torch._utils", "_rebuild_parameter"), asm.floats(), True, None),
        asm.sparse("sparse_coo", asm.integers(1, 1), asm.floats((1,)), (4,), True),
        asm.quantized((4,), (1,), (asm.name("torch", "per_tensor_affine"), 0.5, 0)),
        [asm.array((2, 3), "<i2", 64, (6, 2)), asm.dtype("<M8[ns]"), asm.dtype(">q")],
        [
            asm.dtype((asm.dtype("<f4"), (2, 3))),
            asm.dtype(STRUCTURE, True, False, {"unit": "m"}),
            asm.dtype((asm.name("numpy", "record"), asm.dtype(STRUCTURE, False))),
        ],
        asm.call(asm.name("numpy._core.multiarray", "scalar"), asm.dtype("<f8"), bytes(8)),
        asm.call(asm.name("torch", "device"), "cuda", 1),
    ]
    made = [np.arange(6.0).reshape(2, 3), np.zeros(2, [("a", ">i2", (2,)), ("b", "U2")])]
    made += [np.array(["2020-01-01"], "M8[D]"), np.float32(2.5)]
    whole = [asm.stream(asm.value(piece)) for piece in pieces]
    whole += [pickle.dumps(thing, protocol) for thing in made for protocol in (2, 5)]
    plain = [list(range(50)), {"x": "y" * 300}, (1 << 100, frozenset("ab")), [[[[]]]]]
    whole += [pickle.dumps(thing, protocol) for thing in plain for protocol in (2, 3, 4, 5)]
    whole.append(asm.stream(asm.value(pieces)))
    return whole


HONEST = honest()
NEED_REGION = [n for n, each in enumerate(HONEST) if asm.REGION in each and each[2:3] != b"\x95"]
"""Those written by hand; what pickle writes begins with a frame, or knows no data region."""


@pytest.mark.parametrize("number", range(len(HONEST)))
def test_honest_skeletons_load(number: int) -> None:
    """Or the mutations of them would prove little."""
    data = bytearray(SIZE) if number in NEED_REGION else None

    _safe.load(HONEST[number], data=data, path="honest")
    _safe.outline(HONEST[number], path="honest", data_size=data and SIZE)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x02", b"\x80\x05"]))
def test_random_bytes(noise: bytes, start: bytes) -> None:
    check(start + noise)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """An honest skeleton with some bytes changed, cut out, repeated or taken from another."""
    skeleton = bytearray(draw(st.sampled_from(HONEST)))
    for _ in range(draw(st.integers(1, 4))):
        low = draw(st.integers(0, len(skeleton)))
        high = draw(st.integers(low, min(len(skeleton), low + 40)))
        other = draw(st.sampled_from(HONEST))
        start = draw(st.integers(0, len(other)))
        skeleton[low:high] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(bytes(skeleton[low:high]) * 2),
                st.just(other[start : start + high - low]),
            )
        )
    return bytes(skeleton)


@fuzz
@given(mutations())
def test_mutations_of_honest_skeletons(skeleton: bytes) -> None:
    check(skeleton)


NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**32 - 64, 2**62, 2**63 - 1, 2**63, 2**64 - 64, -(2**63)]),
)
SHAPES = st.lists(NUMBERS, max_size=3).map(tuple)
DTYPES = st.sampled_from(["float32", "int64", "uint8", "bfloat16", "complex64", "qint8", "bool"])
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=3), st.binary(max_size=3)
)


def storages() -> st.SearchStrategy[Code]:
    made = st.builds(asm.storage, NUMBERS.map(lambda n: n - n % 64), NUMBERS)
    return st.one_of(st.just(asm.storage(0, 64)), made)


def tensors() -> st.SearchStrategy[Code]:
    typed = st.builds(asm.typed, storages(), DTYPES)
    plain = st.builds(asm.tensor, typed, SHAPES, SHAPES, offset=NUMBERS)
    return st.one_of(plain, st.builds(asm.floats, SHAPES, SHAPES), st.just(asm.floats()))


def nonsense(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Calls with arguments that are nearly right."""
    listed = [key.split(" ") for key in _listed()]
    names = st.sampled_from(listed).map(lambda pair: asm.name(*pair))
    layouts = st.sampled_from(["sparse_coo", "sparse_csr", "sparse_bsr"])
    schemes = st.sampled_from(["per_tensor_affine", "per_channel_affine"])
    scheme = schemes.map(lambda text: asm.name("torch", text))
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(st.tuples(inner, inner), max_size=3).map(lambda pairs: asm.dictionary(*pairs)),
        st.builds(lambda f, a: asm.call(f, *a), names, st.lists(inner, max_size=5)),
        st.builds(asm.build, inner.map(asm.value), inner),
        st.builds(lambda k, p, s: asm.sparse(k, *p, s), layouts, st.lists(tensors()), SHAPES),
        st.builds(lambda s, t, q: asm.quantized(s, t, q), SHAPES, SHAPES, st.tuples(scheme, inner)),
        st.builds(asm.array, SHAPES, st.sampled_from(["<f4", "|u1", "<U2"]), NUMBERS, SHAPES),
        st.builds(lambda a: asm.call(FROM_BUFFER, REGION, *a), st.lists(inner, max_size=4)),
    )


def _listed() -> list[str]:
    from genesis._safe.site import REGISTRY

    return [*REGISTRY, "builtins list", "os system", "dill._dill _create_type"]


PROGRAMS = st.recursive(st.one_of(LEAVES, tensors(), st.just(REGION)), nonsense, max_leaves=12)


@fuzz
@given(PROGRAMS)
def test_compositions_of_opcodes(program: Any) -> None:
    check(asm.stream(asm.value(program)))


# The opcodes of the many plain tensors at once


def many_tensors() -> tuple[bytes, bytes]:
    """A skeleton that begins with plain tensors, and its data region."""
    shapes = [(3,), (2, 3), (), (300,), (70_000,)]
    state = {n: torch.full(shapes[n % len(shapes)], float(n)) for n in range(200)}
    region = DataRegion()
    make = picklers.by_names(Once(), main=True)
    skeleton = b"".join(picklers.dump(make, state, region))
    return skeleton, bytes(region.size)


SKELETON, DATA = many_tensors()
AT_ONCE = machine._TENSOR
ONE_BY_ONE = re.compile(rb"(?!)")


def test_a_skeleton_of_many_tensors_is_read_at_once() -> None:
    assert len(AT_ONCE.findall(SKELETON)) == 200


@fuzz
@given(st.lists(st.tuples(st.integers(0, len(SKELETON) - 1), st.binary(min_size=1, max_size=2))))
def test_tensors_read_at_once_are_those_read_one_by_one(changes: list[tuple[int, bytes]]) -> None:
    changed = bytearray(SKELETON)
    for place, new in changes:
        changed[place : place + len(new)] = new
    results = []
    for pattern in (AT_ONCE, ONE_BY_ONE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "_TENSOR", pattern)
            results.append(outcome(bytes(changed)))
    assert_same(*results)


def outcome(skeleton: bytes) -> Any:
    """What a load gives: a value, or an error without the place in the stream."""
    try:
        return _safe.load(skeleton, data=bytearray(DATA), path="fuzz")
    except genesis.CorruptCheckpointError as exc:
        return type(exc).__name__, exc.problem
