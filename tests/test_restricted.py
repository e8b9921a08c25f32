"""``weights_only=True`` and the outline: what they read, what they refuse, and how they say so.

What they do with hostile files is in `attacks`.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import io
import operator
import os
import pickle
import random
import subprocess
import sys
import types
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import assembler as asm
import dill
import numpy as np
import pytest
import torch
from same import assert_same
from torch import nn

import genesis
from genesis import _safe
from genesis._safe import machine, strict
from genesis._safe.torch import DTYPES

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse .* support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    # torch 2.8, of its own LBFGS
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning"),
]


def load_both(state: Any, path: Path, **keywords: Any) -> tuple[Any, Any]:
    """Save a state; load it with every check and without any."""
    genesis.save(state, path, clear=False)
    return genesis.load(path, weights_only=True, **keywords), genesis.load(path, **keywords)


# --- States that load -----------------------------------------------------------------------------


def _trained(optimizer: type[torch.optim.Optimizer], **options: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    used = optimizer(net.parameters(), **options)

    def closure() -> torch.Tensor:
        used.zero_grad()
        loss: torch.Tensor = net(torch.ones(2, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(2):
        used.step(closure)
    return {"model": net.state_dict(), "optimizer": used.state_dict(), "loss": 0.5, "epoch": 3}


OPTIMIZERS = {
    "Adam": {"amsgrad": True},
    "AdamW": {},
    **({"Adafactor": {}} if hasattr(torch.optim, "Adafactor") else {}),  # torch 2.5
    "Adadelta": {},
    "Adagrad": {},
    "Adamax": {},
    "ASGD": {},
    "LBFGS": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.1, "centered": True},
    "Rprop": {},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


def _schedulers() -> Any:
    used = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedulers = torch.optim.lr_scheduler
    made = [
        schedulers.StepLR(used, 2),
        schedulers.MultiStepLR(used, [2, 2, 5]),
        schedulers.CosineAnnealingLR(used, 5),
        schedulers.ReduceLROnPlateau(used),
        schedulers.LambdaLR(used, _half),
    ]
    return [each.state_dict() for each in made]


def _half(epoch: int) -> float:
    return 0.5**epoch


def _dtypes() -> Any:
    names = [name for name in DTYPES if not name.startswith(("q", "float4"))]
    names = [name for name in names if hasattr(torch, name)]  # float8_e8m0fnu came with torch 2.7
    made = {name: torch.zeros(6, dtype=torch.uint8).repeat(16) for name in names}
    return {name: made[name].view(getattr(torch, name)) for name in names if name != "bool"}


def _views() -> Any:
    base = torch.arange(24.0).reshape(2, 3, 4)
    wave = torch.complex(base, base + 1)
    return {
        "base": base,
        "part": base[1, :, 1:3],
        "transposed": base.permute(2, 0, 1),
        "expanded": base[0, 0, 0].expand(1000),
        "small": torch.arange(10_000)[5000:5003],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5),
        "empty view": base[3:],
        "conjugated": wave.conj(),
        "negated": wave.conj().imag,
        "channels last": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "bool": torch.tensor([True, False]),
        "gradient": torch.ones(2, requires_grad=True),
    }


def _parameters() -> Any:
    net = nn.Linear(2, 2)
    return [net.weight, net.weight, nn.Parameter(torch.ones(2), requires_grad=False)]


def _numpy() -> Any:
    structure = np.dtype(
        [("a", "<f4"), ("b", ">i2"), ("inner", [("c", "S3"), ("d", "<U2")])], align=True
    )
    union = np.dtype({"names": ["x", "y"], "formats": ["<u4", "u1"], "offsets": [0, 1]})
    titled = np.dtype({"names": ["x"], "formats": ["<u4"], "titles": ["the x"]})
    return {
        "plain": np.arange(6).reshape(2, 3),
        "Fortran": np.asfortranarray(np.ones((2, 3, 4), "f4")),
        "strided": np.arange(10)[::-2],
        "one": np.ones((1, 5, 1))[::-1, :, ::-1],
        "permuted": np.ones((2, 3, 4)).transpose(1, 2, 0),
        "empty": np.zeros((0, 3)),
        "scalar": np.array(2.5),
        "half": np.ones(3, "f2"),
        "big endian": np.ones(3, ">f8"),
        "long": np.ones(2, np.longdouble),
        "complex": np.ones(2, "c8"),
        "bytes": np.array([b"ab", b"c"]),
        "text": np.array(["ab", "c"]),
        "no text": np.array([""], "U0"),
        "void": np.zeros(2, "V5"),
        "dates": np.array(["2020-01-01", "NaT"], "M8[25s]"),
        "spans": np.array([1, 2], "m8[us]"),
        "structured": np.zeros(3, structure),
        "union": np.ones(2, union),
        "titled": np.ones(2, titled),
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("a"), np.bytes_(b"a")],
        "more scalars": [np.datetime64("2020-01-01"), np.zeros(1, structure)[0], np.complex64(1j)],
        "dtypes": [np.dtype("<f4"), structure, np.dtype("M8[D]")],
    }


def _ml_dtypes() -> Any:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kinds = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4
    return [np.ones(3, kind) for kind in kinds]


def _random_states() -> Any:
    generator = torch.Generator().manual_seed(1)
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "generator": np.random.default_rng(1).bit_generator.state,
        "torch": [torch.get_rng_state(), generator.get_state()],
    }


def _containers() -> Any:
    shared: list[Any] = [1, [2.5]]
    cycle: dict[str, Any] = {"shared": shared}
    cycle["itself"] = cycle
    pair: tuple[Any, ...] = ([],)
    pair[0].append(pair)
    with_attribute: collections.OrderedDict[str, Any] = collections.OrderedDict(a=shared)
    with_attribute._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return {
        "shared": [shared, shared, (shared,)],
        "cycles": [cycle, pair],
        "numbers": [0, -1, 1 << 31, 1 << 63, -(1 << 200), 1 << 5000, 0.5, float("nan"), 1j, True],
        "text": ["", "ü", "\ud800", "x" * 70_000, "y" * 300],
        "bytes": [b"", b"a" * 300, bytes(100_000), bytearray(b"ab"), bytearray(100_000)],
        "long": list(range(5000)),
        "tuples": [(), (1,), (1, 2), (1, 2, 3), tuple(range(300))],
        "sets": [set(), {1, "a"}, frozenset(), frozenset(range(2000)), {(1, 2)}],
        "dicts": [{}, {n: -n for n in range(3000)}, {(1, "a"): 1, None: 2, 1.5: 3, b"k": 4}],
        "more keys": {1j: 1, np.int64(3): 2, np.str_("a"): 3, (np.float32(0.5), 1j): 4},
        "pairs": {(row, column): 0 for row in range(60) for column in range(60)},
        "ordered": with_attribute,
        "defaults": [collections.defaultdict(list, a=[1]), collections.defaultdict(None)],
        "others": [collections.Counter("aab"), slice(1, None), range(1, 9, 2)],
        "torch": [torch.Size([1, 2]), torch.device("cuda", 1), torch.device("cpu"), torch.bfloat16],
        "formats": [torch.channels_last, torch.sparse_coo, torch.strided],
        "storages": [torch.ones(2).untyped_storage().tolist(), None],
    }


def _attributes() -> Any:
    """What frameworks hang on tensors, and `nn.Buffer`, which is a tensor with attributes."""
    tensor, parameter = torch.ones(3), nn.Parameter(torch.ones(2))
    tensor.no_decay = [1, {"a": 2}]  # type: ignore[attr-defined]
    parameter.tag = "x"  # type: ignore[attr-defined]
    sparse = torch.eye(2).to_sparse_csr()
    sparse.note = collections.defaultdict(list, a=[1])  # type: ignore[attr-defined]
    made: list[Any] = [tensor, parameter, sparse.note]  # type: ignore[attr-defined]
    return [*made, *([nn.Buffer(torch.ones(2))] if hasattr(nn, "Buffer") else [])]


def _more_keys() -> Any:
    kinds = [torch.float32, torch.device("cpu"), torch.strided, np.dtype("<f4"), (torch.int8, 1)]
    return [{key: number for number, key in enumerate(kinds)}, {torch.bfloat16}, {np.dtype("i4")}]


def _times() -> Any:
    zone = datetime.timezone(datetime.timedelta(hours=2), "X")
    day = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)
    aware = [day.replace(tzinfo=datetime.UTC), day.replace(tzinfo=zone)]
    return [day, day.date(), day.time(), datetime.timedelta(1, 2, 3), zone, *aware]


def _deques() -> Any:
    return [collections.deque([1, (2, [3])], maxlen=3), collections.deque([torch.ones(2)])]


def _deep() -> Any:
    state: Any = torch.ones(1)
    for level in range(150):
        state = [state] if level % 2 else {"inner": state}
    return state


def _beside_main() -> Any:
    """A string that makes the writer go the way of dill, which has names of its own for types."""
    return {"name": "__main__", "plain": _containers(), "torch": _views(), "numpy": _numpy()}


STATES: dict[str, Callable[[], Any]] = {
    **{
        f"trained by {name}": lambda name=name: _trained(
            getattr(torch.optim, name), **OPTIMIZERS[name]
        )
        for name in OPTIMIZERS
    },
    "schedulers": _schedulers,
    "dtypes": _dtypes,
    "views": _views,
    "parameters": _parameters,
    "numpy": _numpy,
    "ml_dtypes": _ml_dtypes,
    "random states": _random_states,
    "containers": _containers,
    "deep": _deep,
    "attributes": _attributes,
    "more keys": _more_keys,
    "times": _times,
    "deques": _deques,
    "beside __main__": _beside_main,
    "no dict": lambda: [1, 2],
    "one tensor": lambda: torch.ones(3),
}


@pytest.mark.parametrize("name", STATES)
def test_loads_what_a_normal_load_gives(name: str, path: Path) -> None:
    state = STATES[name]()

    checked, unchecked = load_both(state, path)

    assert_same(unchecked, checked)
    assert_same(state, checked)


@pytest.mark.parametrize("mmap", [False, True])
def test_what_was_tied_stays_tied_and_writable(path: Path, mmap: bool) -> None:
    weight = torch.zeros(4)

    loaded, _ = load_both({"a": weight, "b": weight[1:], "n": np.zeros(2)}, path, mmap=mmap)

    loaded["a"][2] = 5
    loaded["n"][0] = 1
    assert loaded["b"].tolist() == [0, 5, 0]


def _sparse() -> list[torch.Tensor]:
    plain = torch.eye(4)
    plain[1, 2] = 3
    repeated = torch.sparse_coo_tensor([[1, 1]], [2.0, 3.0], (5,), check_invariants=True)
    return [
        plain.to_sparse(),
        repeated,
        plain.to_sparse_csr(),
        plain.to_sparse_csc(),
        plain.to_sparse_bsr((2, 2)),
        plain.to_sparse_bsc((2, 2)),
    ]


def _components(tensor: torch.Tensor) -> list[Any]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values(), tensor.shape, tensor.is_coalesced()]
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    ends = (
        (tensor.crow_indices, tensor.col_indices)
        if rows
        else (tensor.ccol_indices, tensor.row_indices)
    )
    return [ends[0](), ends[1](), tensor.values(), tensor.shape, tensor.layout]


def test_sparse_tensors_load(path: Path) -> None:
    made = _sparse()

    checked, unchecked = load_both(made, path)

    for one, other, saved in zip(checked, unchecked, made, strict=True):
        assert_same(_components(other), _components(one))
        assert_same(_components(saved), _components(one))


def test_indices_of_a_sparse_tensor_are_nobody_elses(path: Path) -> None:
    """They were checked once: a tensor over the same bytes that is trained must not change them."""
    indices = torch.tensor([[0, 1]])
    tensor = torch.sparse_coo_tensor(indices, torch.ones(2), (2,), check_invariants=True)

    loaded, _ = load_both({"indices": tensor._indices(), "sparse": tensor}, path)
    loaded["indices"][0, 0] = 1 << 40

    assert loaded["sparse"]._indices().tolist() == [[0, 1]]


def test_quantized_tensors_load(path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3)
    made = [
        torch.quantize_per_tensor(values, 0.5, 3, kind)
        for kind in (torch.quint8, torch.qint8, torch.qint32)
    ]
    scales, zeros = torch.tensor([0.5, 0.25]), torch.tensor([1, 2])
    made.append(torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8))

    checked, _ = load_both(made, path)

    for one, saved in zip(checked, made, strict=True):
        assert torch.equal(one.int_repr(), saved.int_repr())
        assert torch.equal(one.dequantize(), saved.dequantize())
        assert (one.dtype, one.qscheme()) == (saved.dtype, saved.qscheme())


@pytest.mark.parametrize("columns", [4, 5])
def test_quantized_tensors_of_several_elements_a_byte_load(columns: int, path: Path) -> None:
    values, ones = torch.rand(3, columns), torch.ones(3)
    made = torch.quantize_per_channel(values, ones, torch.zeros(3), 0, torch.quint4x2)

    checked, unchecked = load_both({"model_state_dict": {"w": made}}, path)

    one, other = checked["model_state_dict"]["w"], unchecked["model_state_dict"]["w"]
    assert repr(one) == repr(other) == repr(made)
    assert genesis.validate_checkpoint(path) == (True, "Checkpoint is valid")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype:UserWarning")
def test_nested_tensors_load(path: Path) -> None:
    made = torch.nested.nested_tensor([torch.ones(2, 3), torch.arange(6.0).reshape(3, 2)])

    checked, _ = load_both({"model_state_dict": {"w": made}}, path)

    for one, saved in zip(checked["model_state_dict"]["w"].unbind(), made.unbind(), strict=True):
        assert_same(saved, one)
    assert genesis.validate_checkpoint(path) == (True, "Checkpoint is valid")


def test_jagged_tensors_load_and_go_on_sharing_their_offsets(path: Path) -> None:
    nested = pytest.importorskip("torch.nested._internal.nested_tensor")
    if not hasattr(nested, "_rebuild_njt"):
        pytest.skip("this torch pickles jagged tensors in another way")
    values, offsets = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 2, 6])
    made = torch.nested.nested_tensor_from_jagged(values, offsets)

    checked, _ = load_both({"model_state_dict": {"a": made, "b": made * 2}}, path)

    one, other = checked["model_state_dict"].values()
    for part, saved in zip(one.unbind(), made.unbind(), strict=True):
        assert_same(saved, part)
    assert (one + other).values().tolist() == (values * 3).tolist()
    assert genesis.validate_checkpoint(path) == (True, "Checkpoint is valid")


def test_meta_tensors_load(path: Path) -> None:
    checked, _ = load_both(torch.empty(2, 3, device="meta"), path)

    assert (checked.device.type, checked.shape) == ("meta", (2, 3))


def test_jax_arrays_load(path: Path) -> None:
    jnp = pytest.importorskip("jax.numpy")

    checked, unchecked = load_both({"w": jnp.arange(6.0).reshape(2, 3)}, path)

    assert type(checked["w"]) is type(unchecked["w"])
    assert checked["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_weakly_typed_values_and_typed_keys_of_jax_load(path: Path) -> None:
    jax = pytest.importorskip("jax")
    keys = [
        jax.random.key(3),
        jax.random.split(jax.random.key(3), 2),
        jax.random.key(1, impl="rbg"),
    ]

    checked, _ = load_both({"weak": jax.numpy.add(1.0, 2.0), "keys": keys}, path)

    assert checked["weak"].weak_type
    assert checked["weak"] == 3
    for loaded, saved in zip(checked["keys"], keys, strict=True):
        assert (loaded.dtype, loaded.shape) == (saved.dtype, saved.shape)
        assert jax.random.key_data(loaded).tolist() == jax.random.key_data(saved).tolist()


def test_states_of_optax_and_flax_load(path: Path) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    weights = {"w": jax.numpy.ones((2, 3)), "b": jax.numpy.zeros(3)}
    used = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adamw)(1e-3))

    checked, _ = load_both(used.init(weights), path)

    assert jax.tree.structure(checked) == jax.tree.structure(used.init(weights))
    core = pytest.importorskip("flax").core
    checked, _ = load_both(core.freeze({"inner": {"w": 1}}), path)
    assert checked == core.freeze({"inner": {"w": 1}})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "dumps",
    [pickle.dumps, pickle._dumps, dill.dumps],
    ids=["C", "Python", "dill"],  # type: ignore[attr-defined]
)
def test_plain_pickles_of_plain_data_load(
    path: Path, protocol: int, dumps: Callable[..., bytes]
) -> None:
    state = {
        "a": [1, (2.5, None), 1 << 70, b"bytes", "text", bytearray(b"x"), 1j],
        "b": [{1, 2}, frozenset("ab"), slice(1, None), collections.defaultdict(list, a=[1])],
        "c": collections.OrderedDict(x=list(range(2000))),
    }
    path.write_bytes(dumps(state, protocol))

    assert_same(state, genesis.load(path, weights_only=True))


def test_tensors_go_where_map_location_says(path: Path) -> None:
    seen = []

    def note(storage: Any, location: str) -> Any:
        seen.append(location)
        return storage

    genesis.save({"w": torch.ones(3)}, path)

    assert genesis.load(path, weights_only=True, map_location="meta")["w"].is_meta
    assert genesis.load(path, weights_only=True, map_location=note)["w"].tolist() == [1, 1, 1]
    assert seen == ["cpu"]


def _on_cuda() -> bytes:
    cuda = asm.call(asm.name("torch.storage", "_StorageBase.cuda"), asm.storage(0, 64), 0)
    return asm.stream(asm.tensor(asm.typed(cuda)))


def test_tensors_of_an_accelerator_come_to_the_host() -> None:
    data = bytearray(np.arange(16, dtype="<f4"))

    loaded = _safe.load(_on_cuda(), data=data, path="c", map_location="cpu")

    assert loaded.tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_tensors_of_an_accelerator_that_is_not_there_say_what_to_do() -> None:
    with pytest.raises(genesis.UnsafeLoadError, match=r"no CUDA device.*map_location='cpu'"):
        _safe.load(_on_cuda(), data=bytearray(64), path="c")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_an_accelerator_go_back_there(path: Path) -> None:
    state = {"w": torch.arange(4.0, device="cuda"), "h": torch.ones(2)}

    checked, unchecked = load_both(state, path)

    assert checked["w"].is_cuda
    assert checked["w"].tolist() == unchecked["w"].tolist() == [0, 1, 2, 3]
    assert genesis.load(path, weights_only=True, map_location="cpu")["w"].device.type == "cpu"


# --- What is refused ------------------------------------------------------------------------------


@dataclasses.dataclass
class Config:
    rate: float = 0.5
    layers: list[int] = dataclasses.field(default_factory=list)


class Point(NamedTuple):
    x: int
    y: Any


class Color(enum.Enum):
    RED = "red"


class Slots:
    __slots__ = ("a",)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int


class Tags(list[Any]):
    pass


class Table(dict[str, Any]):
    pass


class Restored:
    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, restored=True)


class Special(Config):
    pass


def make_config(rate: float) -> Config:
    return Config(rate)


class Reduced:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, self.arguments


@pytest.fixture(autouse=True)
def no_safe_globals() -> Iterator[None]:
    _safe.clear_safe_globals()
    yield
    _safe.clear_safe_globals()


def _slots() -> Slots:
    made = Slots()
    made.a = 5
    return made


def _table() -> Table:
    made = Table(a=1)
    made.note = [2]  # type: ignore[attr-defined]
    return made


OBJECTS: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
    "dataclass": (lambda: Config(1.5, [1]), (Config,)),
    "named tuple": (lambda: Point(1, torch.ones(2)), (Point,)),
    "enum": (lambda: Color.RED, (Color,)),
    "slots": (_slots, (Slots,)),
    "frozen dataclass": (lambda: Frozen(3), (Frozen,)),
    "list": (lambda: Tags([1, [2]]), (Tags,)),
    "dict": (_table, (Table,)),
    "call": (lambda: Reduced(1, [2]).arguments and Reduced(1, [2]), (Reduced,)),
    "function": (lambda: make_config, (make_config,)),
    "class": (lambda: Config, (Config,)),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_registered_classes_load(name: str, path: Path) -> None:
    make, needed = OBJECTS[name]
    state = {"before": torch.ones(2), "it": make()}
    genesis.save(state, path, clear=False)

    with pytest.raises(genesis.UnsafeLoadError, match="not on the list"):
        genesis.load(path, weights_only=True)
    genesis.add_safe_globals(needed)

    assert_same(state, genesis.load(path, weights_only=True))


def test_setstate_of_a_registered_class_runs(path: Path) -> None:
    made = Restored()
    made.a = 1  # type: ignore[attr-defined]
    genesis.save({"it": made}, path)
    genesis.add_safe_globals([Restored])

    assert vars(genesis.load(path, weights_only=True)["it"]) == {"a": 1, "restored": True}


def test_a_subclass_of_a_registered_class_is_not_registered(path: Path) -> None:
    genesis.save({"it": Special()}, path)
    genesis.add_safe_globals([Config])

    with pytest.raises(genesis.UnsafeLoadError, match=r"\.Special\b"):
        genesis.load(path, weights_only=True)


def test_an_object_may_be_registered_under_a_name_of_old(path: Path) -> None:
    path.write_bytes(asm.stream(asm.new(asm.name("old.place", "Config"))))
    _safe.add_safe_globals([(Config, "old.place.Config")])

    assert type(genesis.load(path, weights_only=True)) is Config


def test_registered_globals_are_listed_and_forgotten() -> None:
    _safe.add_safe_globals([Config])
    _safe.add_safe_globals([Point, Config])

    assert _safe.get_safe_globals() == [Config, Point]
    _safe.clear_safe_globals()
    assert _safe.get_safe_globals() == []


def test_globals_are_registered_for_a_while(path: Path) -> None:
    genesis.add_safe_globals([Point])
    genesis.save({"it": Config(2.5)}, path, clear=False)

    with genesis.safe_globals([Config, Point]):
        assert genesis.load(path, weights_only=True)["it"] == Config(2.5)

    assert _safe.get_safe_globals() == [Point]
    with pytest.raises(genesis.UnsafeLoadError, match=r"\.Config\b"):
        genesis.load(path, weights_only=True)


@pytest.mark.parametrize("wrong", ["os.system", (Config,), (Config, 5), 5, None], ids=str)
def test_what_is_no_class_and_no_function_is_not_registered(wrong: Any) -> None:
    with pytest.raises(TypeError, match="no class, no function and no pair"):
        genesis.add_safe_globals([wrong])


def test_registering_what_is_listed_changes_nothing(path: Path) -> None:
    """People register `numpy.ndarray` out of habit; its arguments are judged all the same."""
    genesis.add_safe_globals([np.ndarray, np.dtype, collections.OrderedDict])

    checked, unchecked = load_both({"a": np.arange(3)}, path)
    assert_same(unchecked, checked)
    hostile = asm.call(asm.name("numpy", "ndarray"), (1 << 40,), asm.dtype("<f8"))
    with pytest.raises(genesis.UnsafeLoadError, match="has elements and no data"):
        _safe.load(asm.stream(hostile), data=bytearray(64), path="c")


def test_registered_functions_get_what_is_listed_and_registered_for_real() -> None:
    code = asm.stream(asm.call(asm.name(Reduced.__module__, "Reduced"), asm.name("numpy", "dtype")))
    genesis.add_safe_globals([Reduced, np.dtype])

    assert _safe.load(code, data=None, path="c").arguments == (np.dtype,)


def test_registered_things_are_not_called_with_what_was_built_here() -> None:
    """Whoever registers the classes of tensors and dtypes, as torch tells people to, does not let a
    file set their state: a dtype without a copy is the one of the whole process."""
    kinds = torch.Tensor, np.ndarray, np.dtype, type(np.dtype("<f4")), enum.Enum, Color
    genesis.add_safe_globals(kinds)
    for code in (
        asm.build(asm.floats(), (asm.storage(0, 64), 0, (1 << 40,), (1,))),
        asm.build(asm.array((4,)), (1, (1 << 20,), asm.dtype("<f4"), False, bytes(1 << 22))),
        asm.build(asm.dtype("<f4"), (3, ">", None, None, None, -1, -1, 0)),
        asm.build(asm.call(asm.name(Color.__module__, "Color"), "red"), {"_value_": "green"}),
    ):
        with pytest.raises(genesis.UnsafeLoadError, match=r"the state of a .* is set"):
            _safe.load(asm.stream(code), data=bytearray(256), path="c")
    assert np.dtype("<f4").str == "<f4"
    assert Color.RED.value == "red"


@pytest.mark.parametrize("opcodes", [b"(Ne", b"Na", b"(NNu", b"NNs"])
def test_items_for_a_registered_class_that_takes_none_are_refused(opcodes: bytes) -> None:
    genesis.add_safe_globals([Reduced])
    code = asm.Code(asm.call(asm.name(Reduced.__module__, "Reduced")) + opcodes)

    with pytest.raises(genesis.UnsafeLoadError, match=r"AttributeError|TypeError"):
        _safe.load(asm.stream(code), data=None, path="c")


def test_items_of_a_registered_class_are_no_stand_ins() -> None:
    genesis.add_safe_globals([Tags])
    made = asm.call(asm.name(Tags.__module__, "Tags"))
    code = asm.Code(made + asm.name("collections", "OrderedDict") + b"a")

    with pytest.raises(genesis.UnsafeLoadError, match="stands in the place of a value"):
        _safe.load(asm.stream(code), data=None, path="c")


def test_walks_that_a_file_asks_for_again_and_again_are_paid_for() -> None:
    genesis.add_safe_globals([Reduced])
    long = asm.value(list(range(20_000)))
    make = asm.name(Reduced.__module__, "Reduced")
    code = asm.Code(make + b"\x940" + long + b"\x85\x940" + b"](" + b"h\x00h\x01R" * 20_000 + b"e")

    with pytest.raises(genesis.UnsafeLoadError, match="more is copied than the file holds"):
        _safe.load(asm.stream(code), data=None, path="c")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(6.0).reshape(2, 3),
        lambda: np.asfortranarray(np.ones((2, 3, 4), ">i2")),
        lambda: np.zeros((0, 3)),
        lambda: np.array(2.5),
        lambda: np.array(["ab", "c"]),
        lambda: np.array(["2020-01-01", "NaT"], "M8[25s]"),
        lambda: np.zeros(2, "m8"),
        lambda: np.ones(2, [("a", ">f4"), ("in", [("b", "S3"), ("c", "<U2", (2,))])]),
        lambda: np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        lambda: np.zeros(2, np.dtype([(("title", "a"), "i1")])),
        lambda: [np.float32(1.5), np.str_("a"), np.datetime64("2020-01-01"), np.bool_(True)],
    ],
)
def test_plain_pickles_of_arrays_load(make: Callable[[], Any], protocol: int, path: Path) -> None:
    path.write_bytes(pickle.dumps([make()], protocol))

    assert_same(genesis.load(path), genesis.load(path, weights_only=True))


def test_arrays_as_dill_writes_them_are_refused_by_name(path: Path) -> None:
    path.write_bytes(dill.dumps(np.ones(3)))

    with pytest.raises(genesis.UnsafeLoadError, match=r"dill\._dill\._create_array"):
        genesis.load(path, weights_only=True)


def test_registered_functions_get_no_stand_ins() -> None:
    genesis.add_safe_globals([Reduced])
    code = asm.call(asm.name(Reduced.__module__, "Reduced"), [asm.name("builtins", "set")])

    with pytest.raises(
        genesis.UnsafeLoadError, match=r"builtins\.set stands in the place of a val"
    ):
        _safe.load(asm.stream(code), data=None, path="c")


def test_an_error_of_a_registered_class_is_a_refusal(path: Path) -> None:
    genesis.save({"it": Color.RED}, path)
    damaged = asm.stream(asm.call(asm.name(Color.__module__, "Color"), "no color"))
    genesis.add_safe_globals([Color])

    with pytest.raises(genesis.UnsafeLoadError, match="ValueError: 'no color'"):
        _safe.load(damaged, data=None, path="c")


def test_a_refusal_names_everything_that_was_refused(path: Path) -> None:
    genesis.save({"w": torch.ones(2), "c": Config(), "p": [Point(1, 2)], "d": Config()}, path)

    with pytest.raises(genesis.UnsafeLoadError, match="not on the list") as caught:
        genesis.load(path, weights_only=True)

    module = Config.__module__
    assert caught.value.refused == (f"{module}.Config", f"{module}.Point")
    assert f"({module}.Config, {module}.Point) at byte" in str(caught.value)
    assert "genesis.add_safe_globals" in str(caught.value)
    assert "weights_only=False" in str(caught.value)


def test_a_refusal_names_path_and_place(path: Path) -> None:
    genesis.save({"f": lambda: 1}, path)

    with pytest.raises(genesis.UnsafeLoadError, match=r"checkpoint\.pth: ") as caught:
        genesis.load(path, weights_only=True)

    stream = path.read_bytes()
    assert caught.value.path == str(path)
    assert caught.value.offset is not None
    assert stream[caught.value.offset] == pickle.STACK_GLOBAL[0]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.refused) == (str(caught.value), caught.value.refused)


def test_a_refusal_writes_nothing_to_the_terminal() -> None:
    code = asm.call(asm.name("os\x1b[2J", "sys\ntem" + "x" * 450))

    with pytest.raises(genesis.UnsafeLoadError, match=r"os\\x1b\[2J.sys\\ntemx") as caught:
        _safe.load(asm.stream(code), data=None, path="c")

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_class_methods_are_registered_and_what_is_missing_is_named(path: Path) -> None:
    """pickle names them by a call of getattr, which nobody has to register."""
    zone = zoneinfo.ZoneInfo("UTC")
    state = {"at": datetime.datetime(2020, 1, 2, tzinfo=zone)}
    genesis.save(state, path, clear=False)

    with pytest.raises(genesis.UnsafeLoadError, match="not on the list") as caught:
        genesis.load(path, weights_only=True)
    assert "zoneinfo.ZoneInfo._unpickle" in caught.value.refused
    assert "builtins.getattr" not in caught.value.refused

    genesis.add_safe_globals([zoneinfo.ZoneInfo._unpickle])
    assert genesis.load(path, weights_only=True) == state


class Marked(torch.Tensor):
    pass


def test_a_class_of_tensors_is_registered_and_nothing_of_torch_beside_it(path: Path) -> None:
    tensor = torch.ones(2).as_subclass(Marked)
    tensor.note = [1]  # type: ignore[attr-defined]
    genesis.save({"t": tensor}, path)

    with pytest.raises(genesis.UnsafeLoadError, match="not on the list") as caught:
        genesis.load(path, weights_only=True)
    assert caught.value.refused == (f"{Marked.__module__}.Marked",)

    genesis.add_safe_globals([Marked])
    loaded = genesis.load(path, weights_only=True)["t"]
    assert (type(loaded), loaded.note, loaded.tolist()) == (Marked, [1], [1, 1])


def test_what_a_registered_class_holds_is_left_as_it_is(path: Path) -> None:
    genesis.save({"c": Config(1, collections.defaultdict(list, a=[1]))}, path, clear=False)  # type: ignore[arg-type]
    genesis.add_safe_globals([Config])

    assert genesis.load(path, weights_only=True)["c"].layers == {"a": [1]}


@pytest.mark.parametrize(
    "gadget",
    [
        eval,
        getattr,
        setattr,
        os.system,
        subprocess.Popen,
        functools.partial,
        operator.attrgetter,
        types.FunctionType,
        pickle.loads,
        dill.loads,
        dill._dill._create_code,
        torch.load,
        np.load,
        genesis.load,
        (eval, "harmless.name"),
        (Config, "builtins.eval"),
    ],
    ids=str,
)
def test_what_runs_code_is_not_registered(gadget: Any) -> None:
    with pytest.raises(ValueError, match="runs code that a file chooses"):
        genesis.add_safe_globals([gadget])
    with pytest.raises(ValueError, match="runs code"), genesis.safe_globals([gadget]):
        pass


def test_no_message_proposes_to_register_what_runs_code(path: Path) -> None:
    for state in ({"f": lambda: 1}, {"c": type("Made", (), {"f": lambda self: 1})()}):
        genesis.save(state, path)
        with pytest.raises(genesis.UnsafeLoadError, match="the file holds code") as caught:
            genesis.load(path, weights_only=True)
        assert "add_safe_globals" not in str(caught.value)


def test_objects_in_arrays_are_refused(path: Path) -> None:
    genesis.save({"a": np.array([1, "a"], object)}, path)

    with pytest.raises(genesis.UnsafeLoadError, match="a dtype of Python objects"):
        genesis.load(path, weights_only=True)


def test_nothing_falls_back_on_the_backup(path: Path, tmp_path: Path) -> None:
    """A refused file is not a damaged one."""
    genesis.save({"a": 1}, tmp_path / "good", clear=False)
    genesis.save({"f": lambda: 1}, path)
    path.with_name(path.name + ".genesis.bak").write_bytes((tmp_path / "good").read_bytes())

    with pytest.raises(genesis.UnsafeLoadError, match="not on the list"):
        genesis.load(path, weights_only=True)


RICH = asm.stream(
    asm.value(
        {
            "t": [asm.floats(), asm.array((2,), "<f8", 0, (8,))],
            "o": asm.build(asm.call(asm.name("collections", "OrderedDict")), {"_metadata": {}}),
            "p": ("text", 1 << 70, {1, 2}, 2.5, b"bytes", True, None),
        }
    )
)


@pytest.mark.parametrize("size", range(len(RICH)))
def test_every_truncation_is_a_named_error(size: int) -> None:
    with pytest.raises(genesis.CorruptCheckpointError, match="c: "):
        _safe.load(RICH[:size], data=bytearray(64), path="c")
    with pytest.raises(genesis.CorruptCheckpointError, match="c: "):
        _safe.outline(RICH[:size], path="c", data_size=64)


@pytest.mark.parametrize(
    ("where", "limit", "skeleton", "match"),
    [
        (machine, "MAX_STACK", asm.stream(asm.value(tuple(range(9)))), "stack grows beyond 5"),
        (machine, "MAX_MEMO", b"\x80\x05N" + b"\x94" * 9 + b".", "memo grows beyond 5"),
        (strict, "MAX_DEPTH", asm.stream(asm.value([[[[[[1]]]]]])), "more than 5 deep"),
        (
            strict,
            "MAX_EXPANSION",
            b"\x80\x05](](K\x01e\x94" + b"h\x00" * 9 + b"e.",
            "many times over",
        ),
    ],
)
def test_limits(
    monkeypatch: pytest.MonkeyPatch, where: Any, limit: str, skeleton: bytes, match: str
) -> None:
    _safe.load(skeleton, data=None, path="c")
    monkeypatch.setattr(where, limit, 5)
    monkeypatch.setattr(machine, "CHECK_EVERY", 1)

    with pytest.raises(genesis.UnsafeLoadError, match=match):
        _safe.load(skeleton, data=None, path="c")


def test_plain_data_loads_without_any_framework(tmp_path: Path) -> None:
    code = """
import pickle, sys
from genesis import _safe
skeleton = pickle.dumps({"a": [1, (2.5, "b")]})
print(_safe.load(skeleton, data=None, path="c"))
skeleton = bytes.fromhex(sys.argv[1])
print(list(_safe.arrays(_safe.outline(skeleton, path="c", data_size=64))))
print([name for name in ("torch", "numpy", "jax", "dill") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, RICH.hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)

    assert done.stdout.splitlines()[0] == "{'a': [1, (2.5, 'b')]}"
    assert "float32" in done.stdout.splitlines()[1]
    assert done.stdout.splitlines()[2] == "[]"


# --- Validation -----------------------------------------------------------------------------------


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def _save_with(writer: str, state: Any, path: Path) -> None:
    if writer == "genesis":
        genesis.save(state, path)
    else:
        path.write_bytes({"pickle": pickle, "dill": dill}[writer].dumps(state))


@pytest.mark.parametrize("writer", ["genesis", "pickle", "dill"])
def test_a_checkpoint_with_code_in_it_is_valid_and_none_of_it_runs(
    writer: str, path: Path, tmp_path: Path
) -> None:
    state = {
        "model_state_dict": {"w": torch.ones(2)},
        "optimizer_state_dict": {"trap": Trap(tmp_path / "canary")},
    }
    if writer != "pickle":
        state["schedule"] = lambda step: 1 / (step + 1)
    _save_with(writer, state, path)

    assert genesis.validate_checkpoint(path) == (True, "Checkpoint is valid")
    assert not (tmp_path / "canary").exists()
    genesis.load(path)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dumps", [pickle.dumps, dill.dumps], ids=["pickle", "dill"])
@pytest.mark.parametrize(
    "weight", [torch.ones(2, 3), nn.Parameter(torch.ones(2)), np.ones(2)], ids=["t", "p", "a"]
)
def test_checkpoints_of_other_writers_are_valid(
    weight: Any, dumps: Callable[..., bytes], protocol: int, path: Path
) -> None:
    path.write_bytes(dumps({"model_state_dict": {"w": weight, "tied": weight}}, protocol))

    assert genesis.validate_checkpoint(path) == (True, "Checkpoint is valid")


@pytest.mark.parametrize("writer", ["genesis", "pickle", "dill"])
@pytest.mark.parametrize("wrong", [1, "text", [1.0], Config(), {}, None], ids=str)
def test_what_is_no_tensor_is_not_valid(writer: str, wrong: Any, path: Path) -> None:
    _save_with(writer, {"model_state_dict": {"w": wrong}}, path)

    assert genesis.validate_checkpoint(path) == (False, "Invalid tensor for key 'w'")


def test_a_verdict_writes_nothing_to_the_terminal(path: Path) -> None:
    genesis.save({"model_state_dict": {"\x1b[2J": 1}}, path)

    assert genesis.validate_checkpoint(path) == (False, r"Invalid tensor for key '\x1b[2J'")


# --- The outline ----------------------------------------------------------------------------------


def outline_of(state: Any, path: Path) -> Any:
    from genesis._file import reader

    genesis.save(state, path, clear=False)
    return reader.outline(str(path))


def test_outline_describes_tensors_and_arrays(path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {
        "model": {"w": weight, "b": weight[1], "p": nn.Parameter(torch.ones(2).bfloat16())},
        "arrays": [np.ones((2, 3), "<f4"), np.zeros(2, [("x", "<f8")]), np.array("ab")],
        "sparse": torch.eye(2).to_sparse(),
        "empty": torch.empty(0, 3),
        "epoch": 3,
    }

    tree = outline_of(state, path)
    found = dict(_safe.arrays(tree))

    shown = {
        place: (info.kind, info.dtype, info.shape, info.nbytes) for place, info in found.items()
    }
    assert shown == {
        "['model']['w']": ("torch", "float32", (3, 4), 48),
        "['model']['b']": ("torch", "float32", (4,), 16),
        "['model']['p']": ("torch", "bfloat16", (2,), 4),
        "['arrays'][0]": ("numpy", "<f4", (2, 3), 24),
        "['arrays'][1]": ("numpy", "|V8", (2,), 16),
        "['arrays'][2]": ("numpy", "<U2", (), 8),
        "['sparse']": ("torch", "float32", (2, 2), 40),
        "['empty']": ("torch", "float32", (0, 3), 0),
    }
    assert found["['model']['b']"].offset == found["['model']['w']"].offset + 16
    assert tree["epoch"] == 3


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype("q").newbyteorder(">"),
        np.dtype([("a", "i4", (2, 3)), ("b", "U2")]),
        np.dtype((np.record, [("a", "i4")])),
        np.dtype("f4", metadata={"unit": "m"}),
        np.dtype([("a", "f4")], metadata={"unit": "m"}),
    ],
    ids=str,
)
def test_outline_knows_the_bytes_of_a_dtype(dtype: np.dtype[Any], path: Path) -> None:
    array = np.zeros((2, 3), dtype)

    info = outline_of({"a": array}, path)["a"]

    assert (info.shape, info.nbytes) == ((2, 3), array.nbytes)


def test_outline_offsets_lead_to_the_bytes(path: Path) -> None:
    array = np.arange(5, dtype="<f8")

    info = outline_of({"a": array}, path)["a"]

    assert path.read_bytes()[64 + info.offset :][: info.nbytes] == array.tobytes()


def test_outline_does_not_run_what_it_describes(path: Path) -> None:
    state = {"f": lambda: 1, "c": Config(2.5, [3]), "w": torch.ones(2), "t": torch.nn.Linear(2, 2)}

    tree = outline_of(state, path)

    assert isinstance(tree["f"], _safe.Opaque)
    assert tree["c"].name.endswith(".Config")
    assert {"rate": 2.5, "layers": [3]} in tree["c"].parts
    assert tree["w"].shape == (2,)
    assert (2, 2) in {info.shape for _, info in _safe.arrays(tree["t"])}


class Traced(torch.Tensor):
    """A tensor of a class of its own."""


def test_outline_sees_through_subclasses_and_attributes(path: Path) -> None:
    marked = nn.Parameter(torch.ones(3))
    marked.no_decay = True  # type: ignore[attr-defined]

    tree = outline_of({"s": torch.ones(2).as_subclass(Traced), "p": marked}, path)

    assert {place: info.shape for place, info in _safe.arrays(tree)} == {
        "['s']": (2,),
        "['p']": (3,),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dumps", [pickle.dumps, dill.dumps])
def test_outline_reads_pickles_of_every_protocol(
    dumps: Callable[..., bytes], protocol: int
) -> None:
    plain = {"a": [1, -1, 1 << 70, 2.5, True, None], "text\n'ü'": ("x", b"y"), "c": {}}
    state = plain | {"object": Config(), "set": {1}, "function": make_config, "array": np.ones(2)}

    tree: Any = _safe.outline(dumps(state, protocol), path="c")

    assert list(tree)[:2] == ["a", "text\n'ü'"]
    assert tree["a"] == plain["a"]
    assert tree["text\n'ü'"][0] == "x"
    assert isinstance(tree["object"], _safe.Opaque)


def test_outline_reads_persistent_ids_extensions_and_buffers() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "weights" if isinstance(obj, Config) else None

    for protocol in (0, 5):
        file = io.BytesIO()
        Pickler(file, protocol).dump([Config()])
        assert repr(_safe.outline(file.getvalue(), path="c")) == "[Opaque('persistent id')]"
    buffers = pickle.dumps([pickle.PickleBuffer(b"ab")], 5, buffer_callback=lambda buffer: None)
    assert repr(_safe.outline(buffers, path="c")) == "[Opaque('out-of-band buffer')]"
    extended = b"\x80\x02]\x82\x7ba."
    assert repr(_safe.outline(extended, path="c")) == "[Opaque('extension code')]"


def test_outline_of_a_cycle_ends() -> None:
    loop: list[Any] = [np.int64(1)]
    loop.append(loop)

    tree = _safe.outline(pickle.dumps(loop), path="c")

    assert tree[1] is tree
    assert list(_safe.arrays(tree)) == []


def test_outline_names_places_however_deep() -> None:
    code = asm.value([asm.floats()])
    for _ in range(5000):
        code = asm.Code(b"]" + code + b"a")

    tree = _safe.outline(asm.stream(code), path="c", data_size=64)

    ((place, info),) = _safe.arrays(tree)
    assert info.shape == (4,)
    assert place.startswith("...[0]")


def test_outline_refuses_what_is_not_in_the_region() -> None:
    inside = asm.stream(asm.array((16,)))

    assert _safe.outline(inside, path="c", data_size=64).nbytes == 64
    with pytest.raises(genesis.CorruptCheckpointError, match="an array lies at") as caught:
        _safe.outline(inside, path="c", data_size=63, base_offset=1000)
    assert caught.value.offset == 1000 + len(inside) - 2


def test_what_has_no_name_needs_one_to_be_registered() -> None:
    nameless = functools.partial(int)
    with pytest.raises(TypeError, match=r"no name that a file could know it by: give \(it, name\)"):
        _safe.add_safe_globals([nameless])
    with _safe.safe_globals([(nameless, "old.place.Config")]):
        assert nameless in _safe.get_safe_globals()


@pytest.mark.parametrize("key", [((1, 2), 3), (1, (2, "a")), frozenset([1])])
def test_a_key_that_is_refused_has_a_cure_that_helps(key: object, path: Path) -> None:
    genesis.save({key: 1}, path)
    with pytest.raises(genesis.UnsafeLoadError, match=r"a key is .*flat tuples") as caught:
        genesis.load(path, weights_only=True)
    assert "add_safe_globals" not in str(caught.value)
