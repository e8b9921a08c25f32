"""torch tensors: dtypes, views and what they share, parameters, sparse and other layouts, modules.

All on the CPU. What a save copies, and when, is test_background's business.
"""

from __future__ import annotations

import copy
import itertools
import random
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from pickletools import genops
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same import assert_same, assert_same_tensor
from second_reader import read, take_apart
from torch import nn
from torch._subclasses import FakeTensorMode

import genesis
from genesis._pickle import dumping
from genesis._tuning import on

SMALL = 4096
"""Bytes that the file of a few small tensors never reaches."""


def round_trip(value: Any, path: Path, **keywords: Any) -> Any:
    genesis.save({"x": value}, path, clear=False)
    return genesis.load(path, **keywords)["x"]


def dtypes() -> list[torch.dtype]:
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted(found, key=str)


QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}


def of_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of any dtype, filled through its bytes: some dtypes know no other operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about complex32
        tensor = torch.empty(shape, dtype=dtype)
    size = tensor.untyped_storage().nbytes()
    values = torch.arange(size) % (2 if dtype is torch.bool else 251)
    tensor.untyped_storage().copy_(values.to(torch.uint8).untyped_storage())
    return tensor


# --- Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize(
    "dtype", [dtype for dtype in dtypes() if dtype not in QUANTIZED], ids=lambda dtype: str(dtype)
)
def test_a_tensor_of_every_dtype_comes_back_bit_for_bit(
    dtype: torch.dtype, mmap: bool, path: Path
) -> None:
    tensor = of_bytes(dtype, (3, 4))
    for each in (tensor, tensor[1:, :2], tensor.t(), tensor[0, 0], tensor[:0]):
        assert_same_tensor(each, round_trip(each, path, mmap=mmap))


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in dtypes() if dtype not in QUANTIZED], ids=lambda dtype: str(dtype)
)
def test_a_second_reader_reads_a_tensor_of_every_dtype(dtype: torch.dtype, path: Path) -> None:
    tensor = of_bytes(dtype, (2, 3))
    genesis.save({"x": tensor}, path)
    assert_same_tensor(tensor, read(path)["x"])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_tensors_keep_their_integers_and_their_scheme(
    dtype: torch.dtype, path: Path
) -> None:
    values = torch.arange(6.0).reshape(2, 3)
    one = torch.quantize_per_tensor(values, 0.1, 2, dtype)
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    each = torch.quantize_per_channel(values, scales, zeros, 0, dtype)
    for tensor in (one, each):
        loaded = round_trip(tensor, path)
        assert loaded.qscheme() == tensor.qscheme()
        assert torch.equal(loaded.int_repr(), tensor.int_repr())
        assert torch.equal(loaded.dequantize(), tensor.dequantize())


def test_constants_of_torch_are_named_as_torchs(path: Path) -> None:
    """Not as those of whichever module imported torch first: a reader may not have that one."""
    constants = [torch.channels_last, torch.preserve_format, torch.bfloat16, torch.sparse_coo]
    assert round_trip(constants, path) == constants
    text = [part for _, part, _ in genops(take_apart(path).skeleton) if isinstance(part, str)]
    assert {"torch", "channels_last", "preserve_format"} <= set(text)
    assert not [part for part in text if part.startswith("torch.") and part.endswith("format")]
    assert not [part for part in text if part.endswith("test_torch_objects")]


# --- Views and what they share --------------------------------------------------------------------


def some_views() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    image = torch.arange(120.0).reshape(2, 3, 4, 5)
    return {
        "contiguous": base,
        "every second column": base[:, ::2],
        "transposed": base.t(),
        "expanded": torch.arange(3.0).expand(5, 3),
        "overlapping": torch.arange(10.0).as_strided((4, 4), (2, 1)),
        "one element": base[1, 1],
        "inner part": base[1:3, 2:4],
        "0-d": torch.tensor(3.5),
        "zero-size": torch.empty(0, 3),
        "zero-size view": base[:, 6:],
        "zero-size in the middle": torch.empty(3, 0, 2),
        "channels last": image.to(memory_format=torch.channels_last),
        "odd stride of an axis of one": torch.arange(4.0).as_strided((1, 4), (77, 1)),
        "requires grad": torch.ones(3, requires_grad=True),
        "view of a parameter": nn.Parameter(torch.ones(4, 4)).detach()[1],
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "imaginary part of a conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "real part": torch.tensor([1 + 2j, 3 - 4j]).real,
        "as other bits": torch.arange(4.0).view(torch.int32),
        "flipped": base.flip(0),
        "shared between processes": torch.ones(3).share_memory_(),
        "over NumPy's memory": torch.from_numpy(np.arange(5.0)),
    }


@pytest.mark.parametrize("force", [False, True], ids=["pickle", "dill"])
@pytest.mark.parametrize("name", some_views())
def test_views_keep_shape_strides_flags_and_values(name: str, force: bool, path: Path) -> None:
    tensor = some_views()[name]
    state = {"x": tensor, "f": (lambda: None) if force else None}
    genesis.save(state, path, clear=False)
    assert_same_tensor(tensor, genesis.load(path)["x"])


def tied_state() -> dict[str, Any]:
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "weight": weight,
        "again": weight,
        "transposed": weight.t(),
        "row": weight[1],
        "flat": weight.view(-1),
        "bits": weight.view(torch.int32),
        "other": torch.arange(12.0).reshape(3, 4),
    }


@pytest.mark.parametrize("keywords", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
def test_what_was_tied_stays_tied_and_nothing_else_is(
    keywords: dict[str, bool], path: Path
) -> None:
    genesis.save(tied_state(), path)
    loaded = genesis.load(path, **keywords)
    loaded["weight"][1, 2] = -1
    assert loaded["again"] is loaded["weight"]
    assert loaded["transposed"][2, 1] == loaded["row"][2] == loaded["flat"][6] == -1
    assert loaded["bits"][1, 2] == torch.tensor(-1.0).view(torch.int32)
    assert loaded["other"][1, 2] == 6


def test_a_tied_tensor_is_written_once(path: Path) -> None:
    weight = torch.zeros(300, 300)
    genesis.save({"a": weight, "b": weight.t(), "c": weight[5:], "d": nn.Parameter(weight)}, path)
    assert path.stat().st_size < weight.nbytes + SMALL


class Tagged(torch.Tensor):
    """A subclass that adds nothing."""


def small_views() -> dict[str, Any]:
    large = torch.zeros(250_000)
    tagged = large[10:20]
    tagged.tag = "here"  # type: ignore[attr-defined]
    return {
        "slice": large[10:20],
        "one element": large[99_999],
        "empty": large[7:7],
        "parameter": nn.Parameter(large[10:20]),
        "attribute": tagged,
        "subclass": large[10:20].as_subclass(Tagged),
        **({"buffer": nn.Buffer(large[10:20])} if hasattr(nn, "Buffer") else {}),  # torch 2.5
        "conjugate": large.view(torch.complex64)[5:9].conj(),
        "imaginary part": large.view(torch.complex64)[5:9].conj().imag,
        "other dtype": large.view(torch.uint8)[4:8],
        "last bytes": large[-3:],
        "in a list": [large[:5], large[100:105], large[200:201]],
        "sparse values": torch.sparse_coo_tensor(
            torch.zeros(1, 1, dtype=torch.long), large[:1], (3,), check_invariants=True
        ),
    }


@pytest.mark.parametrize("name", small_views())
def test_a_small_view_of_a_large_storage_does_not_write_the_large_storage(
    name: str, path: Path
) -> None:
    view = small_views()[name]
    loaded = round_trip(view, path)
    assert path.stat().st_size < SMALL
    if name != "sparse values":
        assert_same(view, loaded)


def test_small_views_that_overlap_share_memory_and_not_the_rest(path: Path) -> None:
    large = torch.arange(100_000.0)
    views = [large[100:200], large[150:250], large[240:260], large[500:600], large[520:530]]
    loaded = round_trip(views, path)
    assert path.stat().st_size < 2 * SMALL
    for value, view in zip(loaded, views, strict=True):
        assert torch.equal(value, view)
    loaded[0][60], loaded[2][5], loaded[4][0] = -1, -2, -3
    assert (loaded[1][10], loaded[1][95], loaded[3][20]) == (-1, -2, -3)


def test_the_whole_storage_after_a_small_view_of_it_shares_it(path: Path) -> None:
    large = torch.arange(10_000.0)
    loaded = round_trip([large[5:8], large, large[2:9]], path)
    loaded[1][6] = -1
    assert loaded[0][1] == loaded[2][4] == -1
    assert path.stat().st_size < large.nbytes + SMALL


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_parts_subclasses_and_raw_storages_of_one_memory_share_it(
    order: tuple[int, ...], path: Path
) -> None:
    large = torch.arange(10_000.0)
    parts = {
        0: large[5:8],
        1: large[:10].as_subclass(Tagged),
        2: large.untyped_storage(),
    }
    loaded = dict(zip(order, round_trip([parts[number] for number in order], path), strict=True))
    loaded[0][0] = 42
    assert loaded[1][5].item() == 42
    assert torch.empty(0).set_(loaded[2])[5] == 42  # type: ignore[call-overload]
    assert path.stat().st_size < large.nbytes + SMALL


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), min_size=1, max_size=6))
def test_any_slices_of_one_storage_share_exactly_what_they_shared(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "slices"
    base = torch.arange(400.0)
    views = [base[low : low + size] for low, size in spans]
    loaded = round_trip(views, path)
    assert [view.tolist() for view in loaded] == [view.tolist() for view in views]
    for number in range(len(spans)):
        for view, changed in zip(views, loaded, strict=True):
            view += 1000 * (number + 1) if view is views[number] else 0
            changed += 1000 * (number + 1) if changed is loaded[number] else 0
    assert [view.tolist() for view in loaded] == [view.tolist() for view in views]


def cost_of(views: list[torch.Tensor]) -> float:
    began = time.thread_time()
    dumping.plan(views)
    return time.thread_time() - began


@pytest.mark.parametrize("order", ["as they stand", "backwards", "shuffled", "overlapping"])
def test_many_small_views_of_one_storage_cost_what_many_tensors_cost(order: str) -> None:
    """Quadratic, 16 times as many would cost 256 times as much."""

    def views(count: int) -> list[torch.Tensor]:
        found = list(torch.zeros(count, 25))
        if order == "overlapping":
            found = list(torch.zeros(count + 100).unfold(0, 100, 1))
        return {
            "backwards": found[::-1],
            "shuffled": random.Random(0).sample(found, len(found)),
        }.get(order, found)

    few, many = views(500), views(8000)
    cost_of(few)  # imports
    assert cost_of(many) < 160 * min(cost_of(few) for _ in range(5))


def test_many_small_views_of_one_storage_take_no_more_than_it_does(path: Path) -> None:
    rows = list(torch.arange(25_000.0).view(-1, 25))
    loaded = round_trip(rows, path)
    assert path.stat().st_size < 200_000
    assert all(map(torch.equal, loaded, rows))


def test_storages_are_saved_as_what_they_are(path: Path) -> None:
    storage = torch.arange(5.0).untyped_storage()
    loaded = round_trip([storage, storage, torch.UntypedStorage(0)], path)
    assert loaded[0].tolist() == storage.tolist()
    assert loaded[0].data_ptr() == loaded[1].data_ptr()
    assert loaded[2].nbytes() == 0


# --- Kinds of tensors -----------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
def test_parameters_stay_parameters(requires_grad: bool, path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2, 3), requires_grad=requires_grad)
    assert_same_tensor(parameter, round_trip(parameter, path))


def test_attributes_of_tensors_and_parameters_are_kept(path: Path) -> None:
    tensor, parameter = torch.ones(2), nn.Parameter(torch.ones(3))
    tensor.tag, parameter.group = {"a": [parameter]}, "decay"  # type: ignore[attr-defined]
    loaded_tensor, loaded_parameter = round_trip([tensor, parameter], path)
    assert loaded_tensor.tag["a"][0] is loaded_parameter
    assert loaded_parameter.group == "decay"
    assert type(loaded_parameter) is nn.Parameter


def test_subclasses_keep_their_class_and_attributes(path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).as_subclass(Tagged)
    tensor.tag = ["a"]  # type: ignore[attr-defined]
    assert_same(tensor, round_trip(tensor, path))
    both = [tensor.as_subclass(torch.Tensor), tensor]
    loaded = round_trip(both, path)
    loaded[0][0, 0] = 9
    assert loaded[1][0, 0].item() == 9


FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize("keywords", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
@pytest.mark.parametrize("wrap", [lambda t: t, nn.Parameter], ids=["tensor", "parameter"])
def test_leaves_of_new_dtypes_that_require_gradients(
    wrap: Callable[[torch.Tensor], torch.Tensor], keywords: dict[str, bool], path: Path
) -> None:
    leaf = wrap(torch.arange(300.0).to(FLOAT8)).requires_grad_()
    part = torch.arange(300.0).to(FLOAT8)[5:9].requires_grad_()
    genesis.save({"x": [leaf, part]}, path, clear=False)
    for found in (genesis.load(path, **keywords), read(path)):
        assert_same_tensor(leaf, found["x"][0])
        assert_same_tensor(part, found["x"][1])


def test_leaves_of_new_dtypes_with_attributes_or_a_class(path: Path) -> None:
    tagged = torch.ones(3).to(FLOAT8).requires_grad_()
    tagged.tag = "x"  # type: ignore[attr-defined]
    subclass = torch.ones(3).to(FLOAT8).as_subclass(Tagged).requires_grad_()
    loaded = round_trip([tagged, subclass], path)
    assert_same(tagged, loaded[0])
    assert (type(loaded[1]), loaded[1].requires_grad) == (Tagged, True)
    assert loaded[1].detach().float().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "keywords",
    [{}, {"mmap": True}, {"weights_only": True}, {"map_location": "cpu"}, {"map_location": "meta"}],
    ids=str,
)
def test_in_a_fake_mode_a_load_gives_fake_tensors_as_torch_does(
    keywords: dict[str, Any], path: Path
) -> None:
    state = {
        "plain": torch.arange(6.0).view(2, 3).t(),
        "part": torch.arange(1000.0)[3:5],
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(3, dtype=torch.bfloat16)),
        "new": torch.ones(3).to(FLOAT8),
    }
    genesis.save(state, path, clear=False)
    torch.save(state, path.with_name("torch"))
    with FakeTensorMode():
        expected = torch.load(path.with_name("torch"), map_location=keywords.get("map_location"))
        found = genesis.load(path, **keywords)
    for name, tensor in expected.items():
        assert type(found[name]) is type(tensor)
        for what in ("shape", "dtype", "device", "requires_grad"):
            assert getattr(found[name], what) == getattr(tensor, what)
        assert found[name].stride() == tensor.stride()


@pytest.mark.parametrize(
    "skip", [False, *([True] if hasattr(torch.serialization, "skip_data") else [])]
)
def test_a_fake_tensor_is_refused_with_its_place(skip: bool, path: Path) -> None:
    with FakeTensorMode():
        fake = torch.ones(3, 4)
    with (
        torch.serialization.skip_data() if skip else nullcontext(),
        pytest.raises(genesis.UnpicklableStateError, match="has no values") as caught,
    ):
        genesis.save({"a": [1, fake]}, path)
    assert caught.value.place == "['a'][1]"


@pytest.mark.skipif(not hasattr(nn, "Buffer"), reason="nn.Buffer came with torch 2.5")
def test_buffers_know_whether_they_are_persistent(path: Path) -> None:
    for persistent in (True, False):
        loaded = round_trip(nn.Buffer(torch.ones(2), persistent=persistent), path)
        assert isinstance(loaded, nn.Buffer)
        assert loaded.persistent is persistent


def test_a_tensor_in_the_middle_of_a_graph_keeps_its_value_and_loses_the_graph(path: Path) -> None:
    tensor = torch.ones(3, requires_grad=True) * 2
    loaded = round_trip(tensor, path)
    assert (loaded.tolist(), loaded.requires_grad, loaded.grad_fn) == ([2, 2, 2], True, None)


@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta:UserWarning")
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_sparse_tensors_keep_layout_indices_and_values(
    layout: str, weights_only: bool, path: Path
) -> None:
    dense = torch.diag(torch.arange(4.0))
    if layout == "coo":
        tensor = dense.to_sparse()
    else:
        tensor = dense.to_sparse(
            layout=getattr(torch, f"sparse_{layout}"), blocksize=BLOCKS[layout]
        )
    loaded = round_trip(tensor, path, weights_only=weights_only)
    assert (loaded.layout, loaded.dtype) == (tensor.layout, tensor.dtype)
    assert torch.equal(loaded.values(), tensor.values())
    assert torch.equal(loaded.to_dense(), dense)


BLOCKS = {"csr": None, "csc": None, "bsr": (2, 2), "bsc": (2, 2)}


@pytest.mark.parametrize("nnz", [3, 0])
def test_a_sparse_tensor_that_is_not_coalesced_stays_so(nnz: int, path: Path) -> None:
    indices, values = torch.tensor([[0, 0, 1][:nnz]], dtype=torch.long), torch.ones(nnz)
    tensor = torch.sparse_coo_tensor(indices, values, (4,), check_invariants=True)
    loaded = round_trip(tensor, path)
    assert loaded.is_coalesced() == tensor.is_coalesced()
    assert torch.equal(loaded._indices(), tensor._indices())
    assert torch.equal(loaded._values(), values)


def test_jagged_nested_tensors_keep_their_parts(path: Path) -> None:
    parts = [torch.ones(2, 3), torch.zeros(4, 3)]
    tensor = torch.nested.nested_tensor(parts, layout=torch.jagged)
    loaded = round_trip(tensor, path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.unbind(), parts, strict=True))


@pytest.mark.parametrize("wrap", [lambda t: t, nn.Parameter], ids=["tensor", "parameter"])
def test_meta_tensors_keep_shape_and_dtype(
    wrap: Callable[[torch.Tensor], torch.Tensor], path: Path
) -> None:
    tensor = wrap(torch.empty(10**6, 10**6, dtype=torch.bfloat16, device="meta"))
    loaded = round_trip(tensor, path)
    assert (loaded.device.type, loaded.shape, loaded.dtype) == ("meta", tensor.shape, tensor.dtype)
    assert type(loaded) is type(tensor)
    assert path.stat().st_size < SMALL


def test_lazy_parameters_stay_uninitialized(path: Path) -> None:
    loaded = round_trip(nn.LazyLinear(3).state_dict(), path)
    assert isinstance(loaded["weight"], nn.UninitializedParameter)


def test_packed_sequences_keep_their_order(path: Path) -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3), torch.zeros(2)])
    loaded = round_trip(packed, path)
    assert torch.equal(loaded.data, packed.data)
    assert torch.equal(loaded.batch_sizes, packed.batch_sizes)


@pytest.mark.filterwarnings("ignore:.*(nested tensors is in prototype|deprecated):Warning")
@pytest.mark.parametrize("kind", ["nested strided", "mkldnn", "parametrized module"])
def test_what_torch_cannot_pickle_is_refused_with_its_place(kind: str, path: Path) -> None:
    if kind == "nested strided":
        thing: Any = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    elif kind == "mkldnn":
        if not torch.backends.mkldnn.is_available():
            pytest.skip("torch was built without mkldnn")
        thing = torch.ones(2, 3).to_mkldnn()
    else:
        thing = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    state = {"a": [thing]}
    try:
        genesis.save(state, path)
    except genesis.UnpicklableStateError as exc:
        assert exc.place == "['a'][0]"  # noqa: PT017
        assert list(state) == ["a"]
        assert not path.exists()
    else:  # a torch that has learned it
        assert genesis.load(path)["a"][0] is not None


# --- Modules, optimizers, random states -----------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 5), nn.Linear(5, 3, bias=False)
        self.down.weight = nn.Parameter(torch.ones(3, 5))
        self.tied = self.up.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))) * self.scale


def test_a_nested_module_computes_the_same(path: Path) -> None:
    net = nn.Sequential(Block(), nn.BatchNorm1d(3), nn.ModuleDict({"a": Block()})["a"])
    net(torch.ones(4, 3))
    net.eval()
    loaded = round_trip(net, path)
    assert not loaded.training
    assert torch.equal(loaded(torch.ones(2, 3)), net(torch.ones(2, 3)))
    assert loaded[0].tied is loaded[0].up.weight


def test_tied_weights_of_state_dicts_stay_tied(path: Path) -> None:
    encoder, decoder = nn.Linear(3, 3), nn.Linear(3, 3)
    decoder.weight = encoder.weight
    loaded = round_trip({"e": encoder.state_dict(), "d": decoder.state_dict()}, path)
    loaded["e"]["weight"][0, 0] = 9
    assert loaded["d"]["weight"][0, 0] == 9


def test_a_state_dict_keeps_its_metadata(path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    for weights_only in (False, True):
        assert round_trip(state, path, weights_only=weights_only)._metadata == state._metadata


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1),
    "two groups": lambda p: torch.optim.AdamW([{"params": [q], "lr": 0.1} for q in p]),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1), capturable=False),
}


# torch 2.8 says so of its own LBFGS.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("whole", [False, True], ids=["state dict", "object"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_from_a_loaded_optimizer_as_if_it_had_not_stopped(
    name: str, whole: bool, path: Path
) -> None:
    if whole and name == "LBFGS":
        pytest.skip("torch drops what LBFGS needs when it is pickled")
    weights = [nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(2))]
    optimizer = OPTIMIZERS[name](weights)
    train(weights, optimizer)
    if whole:
        loaded_weights, loaded = round_trip([weights, optimizer], path)
        assert type(loaded) is type(optimizer)
    else:
        state = round_trip([weights, optimizer.state_dict()], path)
        loaded_weights = state[0]
        loaded = OPTIMIZERS[name](loaded_weights)
        loaded.load_state_dict(state[1])
    train(weights, optimizer)
    train(loaded_weights, loaded)
    for one, other in zip(weights, loaded_weights, strict=True):
        assert torch.equal(one, other)


def train(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = sum((weight**2).sum() for weight in weights)
        assert isinstance(total, torch.Tensor)
        total.backward()
        return total

    for _ in range(3):
        optimizer.step(loss)  # type: ignore[arg-type]


def test_a_scheduler_of_a_lambda_steps_on_with_its_optimizer(path: Path) -> None:
    weights = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.AdamW(weights, lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    train(weights, optimizer)
    scheduler.step()
    loaded_weights, loaded_optimizer, loaded = round_trip([weights, optimizer, scheduler], path)
    assert loaded.optimizer is loaded_optimizer
    assert isinstance(loaded_optimizer, torch.optim.AdamW)
    for each in (scheduler, loaded):
        each.step()
        assert each.get_last_lr() == [0.125]
    train(weights, optimizer)
    train(loaded_weights, loaded_optimizer)
    assert torch.equal(weights[0], loaded_weights[0])


@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward"])
def test_modules_with_hooks_keep_them(hook: str, path: Path) -> None:
    net = nn.Linear(2, 2)
    getattr(net, f"register_{hook}_hook")(HOOKS[hook])
    loaded = round_trip(net, path)
    results = [backward(each) for each in (net, loaded)]
    assert_same(results[0], results[1])


HOOKS: dict[str, Any] = {
    "forward": lambda module, args, output: output + 1,
    "forward_pre": lambda module, args: (args[0] * 2,),
    "full_backward": lambda module, grads, outputs: (grads[0] * 3,),
}


def backward(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    x = torch.ones(1, 2, requires_grad=True)
    y = net(x)
    y.sum().backward()
    return y.detach(), x.grad


def test_random_states_go_on_where_they_were(path: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    torch.rand(5, generator=generator)
    loaded = round_trip([generator.get_state(), generator], path)
    expected = torch.rand(5, generator=generator)
    assert torch.equal(torch.rand(5, generator=torch.Generator().set_state(loaded[0])), expected)
    assert torch.equal(torch.rand(5, generator=loaded[1]), expected)


# --- What loading gives ---------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
def test_loaded_tensors_can_be_trained_copied_and_saved_again(mmap: bool, path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    loaded = round_trip(weight, path, mmap=mmap)
    loaded.sum().backward()
    with torch.no_grad():
        loaded += 1
    twin = copy.deepcopy(loaded)
    genesis.save({"w": loaded}, path)
    assert torch.equal(genesis.load(path)["w"], twin)
    assert loaded.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("verify", [None, True, False])
def test_writing_to_a_mapped_tensor_changes_no_file(verify: bool | None, path: Path) -> None:
    genesis.save({"w": torch.zeros(1000)}, path)
    before = path.read_bytes()
    loaded = genesis.load(path, mmap=True, verify=verify)["w"]
    loaded += 1
    assert path.read_bytes() == before
    assert genesis.load(path)["w"].sum() == 0


def test_a_mapped_tensor_keeps_its_values_when_the_file_is_replaced_and_removed(path: Path) -> None:
    genesis.save({"w": torch.arange(100_000.0)}, path)
    loaded = genesis.load(path, mmap=True)["w"]
    genesis.save({"w": torch.zeros(5)}, path)
    path.unlink()
    assert torch.equal(loaded, torch.arange(100_000.0))


@pytest.mark.parametrize("mmap", [False, True], ids=["copied", "mapped"])
def test_loaded_tensors_begin_at_multiples_of_64(mmap: bool, path: Path) -> None:
    state = {str(size): torch.ones(size) for size in (1, 3, 16, 17, 1000)}
    genesis.save(state, path)
    assert {t.data_ptr() % 64 for t in genesis.load(path, mmap=mmap).values()} == {0}


MAPS: dict[str, Any] = {
    "name": "cpu",
    "device": torch.device("cpu"),
    "dict": {"cuda:0": "cpu"},
    "function": lambda storage, location: storage,
    "function of nothing": lambda storage, location: None,
}


@pytest.mark.parametrize("force", [False, True], ids=["pickle", "dill"])
@pytest.mark.parametrize("name", MAPS)
def test_map_location_is_taken_as_torch_takes_it(name: str, force: bool, path: Path) -> None:
    state = tied_state() | {"f": (lambda: None) if force else None}
    genesis.save(state, path)
    loaded = genesis.load(path, map_location=MAPS[name])
    loaded["weight"][1, 2] = -1
    assert loaded["transposed"][2, 1] == -1
    assert loaded["weight"].device.type == "cpu"


def test_map_location_meta_gives_shapes_without_memory(path: Path) -> None:
    tensors = [nn.Parameter(torch.ones(2, 3)), torch.ones(2).bfloat16(), torch.empty(0, 3)]
    for weights_only in (False, True):
        loaded = round_trip(tensors, path, map_location="meta", weights_only=weights_only)
        assert [tensor.device.type for tensor in loaded] == ["meta", "meta", "meta"]
        assert [tuple(tensor.shape) for tensor in loaded] == [(2, 3), (2,), (0, 3)]


def test_map_location_is_asked_once_for_each_storage(path: Path) -> None:
    asked: list[tuple[int, str]] = []

    def remember(storage: Any, location: str) -> Any:
        asked.append((storage.nbytes(), location))
        return storage

    genesis.save(tied_state(), path)
    genesis.load(path, map_location=remember)
    assert asked == [(48, "cpu"), (48, "cpu")]


# --- The file -------------------------------------------------------------------------------------


def test_dense_tensors_stand_in_the_data_region_and_not_in_the_skeleton(path: Path) -> None:
    tensor = torch.full((1000,), 1.5)
    genesis.save({"a": tensor, "b": tensor[10:], "f": None}, path)
    parts = take_apart(path)
    assert tensor.numpy().tobytes() in parts.data
    assert len(parts.data) == 4032
    assert len(parts.skeleton) < 600


def test_the_skeleton_of_tensors_names_only_functions_of_torch(path: Path) -> None:
    import pickletools

    state = {"a": torch.ones(2), "p": nn.Parameter(torch.ones(1)), "c": torch.ones(2).bfloat16()}
    genesis.save(state, path)
    strings = [
        argument
        for opcode, argument, _ in pickletools.genops(take_apart(path).skeleton)
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE") and "." in str(argument)
    ]
    assert strings
    assert {name.partition(".")[0] for name in strings} == {"torch"}


def test_many_small_tensors_do_not_cost_much_space(path: Path) -> None:
    genesis.save({str(n): torch.full((2,), float(n)) for n in range(500)}, path)
    assert path.stat().st_size < 500 * 256
    assert [int(t[0]) for t in genesis.load(path).values()] == list(range(500))


# What the ledger of plain tensors must notice


def many(**others: Any) -> dict[str, Any]:
    """Enough plain tensors for a ledger, beside others."""
    return {**others, "plain": {f"{n}": torch.full((n,), float(n)) for n in range(1, 100)}}


def test_a_view_before_the_tensor_it_is_of_stays_tied_on_every_save(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    state = many(view=torch.nn.Parameter(base[:4], requires_grad=False), base=base)
    for _ in range(3):
        loaded = round_trip(state, tmp_path / "f")
        loaded["base"].fill_(7)
        assert loaded["view"].tolist() == [7] * 4


def test_a_repeated_last_element_is_read_within_its_storage(tmp_path: Path) -> None:
    state = many(x=torch.arange(64.0)[-1:].expand(64), y=torch.arange(9.0).expand(3, 9)[:, 8:])
    for _ in range(2):
        loaded = round_trip(state, tmp_path / "f")
        assert loaded["x"].tolist() == [63.0] * 64
        assert loaded["y"].tolist() == [[8.0]] * 3


def test_an_empty_view_beyond_its_storage_takes_nothing(tmp_path: Path) -> None:
    empty = torch.zeros(25).as_strided((0,), (1,), 1000)
    loaded = round_trip(many(empty=empty), tmp_path / "f")["empty"]
    assert loaded.shape == (0,)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dequantize() if tensor.is_quantized else tensor.to_dense()


def strange_tensors() -> dict[str, Callable[[], torch.Tensor]]:
    """What has no memory of its own, no address, no strides or no shape."""
    return {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "compressed": lambda: torch.eye(3).to_sparse_csr(),
        "blocks": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.quint8),
        "negative": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
        "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
        "meta": lambda: torch.empty(3, device="meta"),
    }


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", strange_tensors())
def test_a_strange_tensor_among_plain_ones(kind: str, before: bool, tmp_path: Path) -> None:
    strange = strange_tensors()[kind]()
    if before:  # a plain one in its place, so that only it is another than in the last save
        round_trip(many(other=torch.ones(3)), tmp_path / "f")
    for _ in range(2):
        loaded = round_trip(many(other=strange), tmp_path / "f")["other"]
        assert (loaded.layout, loaded.dtype) == (strange.layout, strange.dtype)
        if not strange.is_meta:
            assert torch.equal(dense(loaded), dense(strange))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_saved(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for other in (torch.ones(3), nested, nested):
        loaded = round_trip(many(nested=other), tmp_path / "f")["nested"]
        assert [part.tolist() for part in loaded.unbind()] == [part.tolist() for part in other]


CHANGES: dict[str, Callable[[torch.Tensor], object]] = {
    "transposed in place": lambda t: setattr(t, "data", t.data.t()),
    "another shape": lambda t: setattr(t, "data", t.data.view(2, 8)),
    "other strides": lambda t: setattr(t, "data", t.data.as_strided((4, 4), (1, 4))),
    "another type": lambda t: setattr(t, "data", t.data.view(torch.int32)),
    "a part of it": lambda t: setattr(t, "data", t.data[:2]),
    "elsewhere": lambda t: setattr(t, "data", t.data.clone()),
    "with gradients": lambda t: t.requires_grad_(),
    "with an attribute": lambda t: setattr(t, "name_of_its_own", "x"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_changed_since_the_last_save(change: str, grad: bool, tmp_path: Path) -> None:
    state = many(x=torch.arange(16.0).view(4, 4))
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            assert_same(round_trip(state, tmp_path / "f"), state)
        CHANGES[change](state["x"])
        for _ in range(2):
            assert_same(round_trip(state, tmp_path / "f"), state)


@pytest.mark.skipif(not on.ledger, reason="the ledger is turned off")
def test_tensors_that_look_as_before_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = pytest.importorskip("genesis._pickle.torch_plain")
    if ledger.TensorGuards is None:
        pytest.skip("this torch has no guards")
    monkeypatch.setattr(ledger, "_recent", ())
    looked: list[int] = []
    looks = ledger._looks
    monkeypatch.setattr(ledger, "_looks", lambda found: looked.append(len(found)) or looks(found))
    state = many()
    for _ in range(3):
        state["plain"]["1"].add_(1)
        assert_same(round_trip(state, tmp_path / "f"), state)
    assert len(looked) == 1


class MovesTensors:
    """Gives tensors other memory while it is pickled, as one that flattens parameters might."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    def __reduce__(self) -> tuple[Any, ...]:
        for tensor in self.tensors:
            tensor.data = tensor.data.clone()
        self.waste = [torch.full((6,), -1.0) for _ in range(200)]
        return (set, ())


@pytest.mark.parametrize("background", [False, True])
def test_memory_that_is_given_up_during_a_save_is_still_read(
    background: bool, tmp_path: Path
) -> None:
    tensors = [torch.full((6,), float(n)) for n in range(100)]
    state = {"tensors": tensors, "moves": MovesTensors(tensors)}
    for _ in range(2):
        if background:
            genesis.save(state, tmp_path / "f", clear=False, background=True).result()
        else:
            genesis.save(state, tmp_path / "f", clear=False)
        assert_same(genesis.load(tmp_path / "f")["tensors"], tensors)
