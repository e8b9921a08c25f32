"""torch tensors and storages as pickles that name only functions of torch.

A storage becomes a range of the data region, shared by every tensor over it, so that tied weights
stay tied; a small view takes only the bytes it spans. Everything that is not a plain dense tensor
keeps torch's own reduction, over storages of ours.
"""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Callable, Container
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._tensor import _rebuild_from_type_v2
from torch._utils import (
    _rebuild_nested_tensor,
    _rebuild_parameter,
    _rebuild_qtensor,
    _rebuild_tensor_v2,
    _rebuild_tensor_v3,
    set_tensor_metadata,
)
from torch.multiprocessing.reductions import rebuild_typed_storage
from torch.nn import Parameter
from torch.serialization import default_restore_location
from torch.storage import TypedStorage, UntypedStorage, _StorageBase

from .._os.memory import ALIGNMENT
from .buffers import DATA, Call, DataRegion, RefusedObjectError
from .region import APART_FROM, NoSuchDeviceError, Region
from .torch_partial import check_for

_UINT8 = torch.uint8
_STRIDED = torch.strided
_HOST = torch.device("cpu")

FROM_BUFFER = UntypedStorage.from_buffer
"""Written as memo slot 1: pickle has no name of its own for it."""

LITTLE = "little"
"""The byte order that `FROM_BUFFER` is told. One object, so that pickle writes it once."""

PLAIN_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    }
)
"""Dtypes that `_rebuild_tensor_v2` takes; newer ones go through `_rebuild_tensor_v3`."""

_DTYPE = re.compile(r"(bits|q?u?int|b?float|complex)\d\w*", re.ASCII)
"""What a dtype is called, also one that this torch does not know yet."""

_DENSE = frozenset({_rebuild_tensor_v2, _rebuild_tensor_v3})

Span = tuple[int, int]


class Range:
    """A part of one storage that is saved."""

    __slots__ = ("low", "made", "storage", "typed")

    def __init__(self, storage: UntypedStorage, low: int, made: Call) -> None:
        self.storage = storage
        """Held, or another one could come to its address during the save."""
        self.low = low
        self.made = made
        self.typed: dict[torch.dtype, Call] = {}
        """The storage as elements of each dtype that it is seen in."""


class DeviceBytes:
    """Bytes `low` to `high` of a storage on an accelerator, read part by part."""

    def __init__(self, storage: UntypedStorage, low: int, high: int) -> None:
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        self._bytes = whole[low:high]
        # The copy runs on another thread, whose current stream is another one.
        on_cuda = storage.device.type == "cuda"
        self._stream = torch.cuda.current_stream(storage.device) if on_cuda else None

    def read_into(self, target: memoryview, start: int) -> None:
        there = self._bytes[start : start + len(target)]
        with torch.cuda.stream(self._stream):
            torch.frombuffer(target, dtype=torch.uint8).copy_(there)


class Storages:
    """The storages of one state: what of each is saved, and where. Reduces what stands on them."""

    def __init__(self, region: DataRegion, taken: Container[int] = ()) -> None:
        self._region = region
        self._taken = taken
        """Storages that the state's ledger has. Met here too, they must be shared with it, so the
        state is laid out again without a ledger."""
        self._whole: dict[int, Range] = {}
        self._parts: dict[int, dict[Span, Range]] = {}
        self._known: dict[int, list[Span]] = region.hints or {}
        """Of each storage, spans that are saved as one: sorted, and apart from each other."""
        self._placed = Placed([], [], [])
        region.checks.append(self._placed.check)
        region.endings.append(self._learn)

    def reduce_tensor(self, tensor: torch.Tensor) -> Any:
        """A dense tensor as a view of its storage's range; any other by torch's reduction.

        This runs once a tensor while training waits, so it calls little.
        """
        if tensor.__dict__ or not _is_dense(tensor):
            return self.reduce_as_torch(tensor)
        return self._reduce_dense(tensor, tensor.requires_grad)

    def _reduce_dense(self, tensor: torch.Tensor, requires_grad: bool) -> Any:
        dtype = tensor.dtype
        typed, offset = self._place_of(tensor, dtype)
        view = typed, offset, tuple(tensor.shape), tensor.stride(), requires_grad, None
        if dtype in PLAIN_DTYPES or requires_grad:  # which v3 sets too early
            return _rebuild_tensor_v2, view
        return _rebuild_tensor_v3, (*view, dtype)

    def reduce_as_torch(self, tensor: torch.Tensor) -> Any:
        """torch's reduction of a tensor. Where it holds a dense view of a storage, with attributes
        or as a subclass, that view is made one of the storage's range."""
        function, args, *rest = self._region.reduce_own(tensor)
        if function is _rebuild_qtensor:
            _refuse_beyond(tensor)
        if function is _rebuild_nested_tensor:
            _refuse_nested_beyond(tensor, args)
        if function is _rebuild_from_type_v2 and args[0] in _DENSE:
            inner, args_of_inner = self._over_range(tensor, args[0], args[2])
            args = inner, args[1], args_of_inner, *args[3:]
        elif function in _DENSE:
            function, args = self._over_range(tensor, function, args)
        return function, args, *rest

    def _over_range(
        self, tensor: torch.Tensor, function: Any, args: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        place = self._place_of(tensor, tensor.dtype)
        if function is _rebuild_tensor_v3 and tensor.requires_grad:
            return _rebuild_tensor_v2, (*place, *args[2:6], *args[7:])  # all but the dtype
        return function, (*place, *args[2:])

    def _place_of(self, tensor: torch.Tensor, dtype: torch.dtype) -> tuple[Call, int]:
        """The typed storage that a tensor stands on, and its offset there in elements."""
        storage = tensor.untyped_storage()
        size, offset = storage.nbytes(), int(tensor.storage_offset())
        saved = self._whole.get(storage._cdata)
        if not offset and tensor.nbytes == size and tensor.is_contiguous():
            saved = saved or self._range_of_all(storage)
        else:
            low, high = _span(tensor)
            if high > size:
                raise _beyond(tensor, high, size)
            saved = saved or self._range_of(storage, size, low, high)
        typed = saved.typed.get(dtype)
        if typed is None:
            typed = saved.typed[dtype] = Call((rebuild_typed_storage, (saved.made, dtype)))
        return typed, offset - saved.low // dtype.itemsize if saved.low else offset

    def reduce_parameter(self, parameter: Parameter) -> Any:
        if parameter.__dict__:
            return self.reduce_as_torch(parameter)
        if _is_dense(parameter):
            reduction = self._reduce_dense(
                parameter, False
            )  # as its `data`, which takes long to make
        else:
            reduction = self.reduce_tensor(parameter.data)
        return _rebuild_parameter, (Call(reduction), parameter.requires_grad, None)

    def reduce_typed_storage(self, storage: TypedStorage) -> Any:
        return rebuild_typed_storage, (
            self._range_of_all(storage._untyped_storage).made,
            storage.dtype,
        )

    def reduce_storage(self, storage: UntypedStorage) -> Any:
        return self._range_of_all(storage).made.reduction

    def _range_of(self, storage: UntypedStorage, size: int, low: int, high: int) -> Range:
        """The range that holds a view. A small view of a large storage takes no more than its own
        bytes, or all that such views have in common, if that is known."""
        self._meet(storage)
        key = storage._cdata
        low -= low % ALIGNMENT
        if key in self._known:
            low, high = _around(self._known[key], low, high)
        if 2 * (high - low) >= size and (high - low == size or key not in self._parts):
            return self._range_of_all(storage)
        parts = self._parts.setdefault(key, {})
        if (low, high) not in parts:
            parts[low, high] = self._place(storage, low, high)
        return parts[low, high]

    def _range_of_all(self, storage: UntypedStorage) -> Range:
        key = storage._cdata
        if key not in self._whole:
            self._meet(storage)
            self._whole[key] = self._place(storage, 0, storage.nbytes())
        return self._whole[key]

    def _meet(self, storage: UntypedStorage) -> None:
        if storage._cdata in self._taken:
            # Members of a ledger cover their storage, so a view that comes first must know it.
            self._teach({storage._cdata: [(0, storage.nbytes())]})

    def _learn(self) -> None:
        """Find views that overlap. They share memory and must share a range; but which do is known
        when all have been met, so they were placed apart, and the state is laid out again."""
        found: dict[int, list[Span]] = {}
        for key, parts in self._parts.items():
            spans = list(parts)
            if key in self._whole:
                spans.append((0, self._whole[key].storage.nbytes()))
            merged = _merged(spans)
            if len(merged) < len(spans):
                found[key] = merged
        if found:
            self._teach(found)

    def _teach(self, found: dict[int, list[Span]]) -> None:
        """Record spans for the next layout. That there are some asks for one."""
        lessons: dict[int, list[Span]] = dict(self._region.lessons or self._known)
        for key, spans in found.items():
            lessons[key] = _merged([*lessons.get(key, ()), *spans])
        self._region.lessons = lessons

    def _place(self, storage: UntypedStorage, low: int, high: int) -> Range:
        size, device = high - low, storage.device
        if not size:
            made = Call((UntypedStorage, (0,)))
        else:
            place = self._place_on_host if device == _HOST else self._place_elsewhere
            offset = place(storage, low, size)
            made = Call((FROM_BUFFER, (DATA, LITTLE, size, offset, _UINT8)))
        if device != _HOST and device.type == "cuda":  # of other devices come back on the host
            made = Call((_StorageBase.cuda, (made, device.index)))
        return Range(storage, low, made)

    def _place_on_host(self, storage: UntypedStorage, low: int, size: int) -> int:
        address = storage.data_ptr()
        self._placed.add(storage, address, storage.nbytes())
        return self._region.place(storage, address + low, size, foreign=is_foreign(storage))

    def _place_elsewhere(self, storage: UntypedStorage, low: int, size: int) -> int:
        if storage.device.type == "meta":
            raise RefusedObjectError(
                "a storage of the device meta has no bytes", "save tensors of it, or none"
            )
        return self._region.place(DeviceBytes(storage, low, low + size), 0, size)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but a view of its storage."""
    return not (
        tensor.layout is not _STRIDED
        or not (tensor.is_cpu or tensor.is_cuda)
        or tensor.is_quantized
        or tensor.is_nested
        or tensor.is_conj()
        or tensor.is_neg()
    )


def is_foreign(storage: UntypedStorage) -> bool:
    """Whether the memory is not torch's own: of NumPy, of another process, or a map of a file."""
    return not storage.resizable() or storage.is_shared()


class Placed:
    """Storages, and where their bytes were when they were placed: what is copied later must still
    be there, for the memory may be somebody else's by then."""

    def __init__(
        self, storages: list[UntypedStorage], addresses: list[int], sizes: list[int]
    ) -> None:
        self.storages = storages
        self.addresses = addresses
        self.sizes = sizes

    def add(self, storage: UntypedStorage, address: int, size: int) -> None:
        self.storages.append(storage)
        self.addresses.append(address)
        self.sizes.append(size)

    def check(self) -> None:
        """Raises RefusedObjectError: one was resized, or has other memory."""
        if (
            list(map(UntypedStorage.data_ptr, self.storages)) != self.addresses
            or list(map(UntypedStorage.nbytes, self.storages)) != self.sizes
        ):
            raise RefusedObjectError(
                "the storage of a tensor was resized or freed while the state was saved",
                "do so before the save or, with capture='deferred', after wait_captured()",
            )


def reducer_for(cls: type, region: DataRegion) -> Any:
    """The reducer of a class's instances, ``None`` for what torch's own reduction is right for."""
    if region.shared is None:
        region.shared = Storages(region)
    storages: Storages = region.shared
    if issubclass(cls, torch.Tensor) and cls not in (torch.Tensor, Parameter):
        own = cls.__reduce_ex__ is not torch.Tensor.__reduce_ex__
        reduce = region.reduce_own if own else storages.reduce_as_torch
        check = check_for(cls, region.sharded)
        if check is None:
            return None if own else reduce
        return lambda tensor: (check(tensor), reduce(tensor))[1]
    return {
        torch.Tensor: storages.reduce_tensor,
        Parameter: storages.reduce_parameter,
        TypedStorage: storages.reduce_typed_storage,
        UntypedStorage: storages.reduce_storage,
        torch.memory_format: _reduce_format,
    }.get(cls)


def _reduce_format(memory_format: torch.memory_format) -> str:
    """Its name. torch's own reduction gives a dotted one, for which pickle takes the first module
    that has imported torch, be it a script that nobody else has."""
    return str(memory_format).removeprefix("torch.")


def _span(tensor: torch.Tensor) -> Span:
    """The bytes of the storage from a view's first element to its last."""
    item, first = tensor.element_size(), int(tensor.storage_offset())
    size = int(tensor.nbytes)
    if not size:
        return 0, 0
    if tensor.is_contiguous():
        return first * item, first * item + size
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = first + sum((size - 1) * step for size, step in steps)
    return first * item, (last + 1) * item


_PACKED = {torch.quint4x2: 2, torch.quint2x4: 4}
"""Elements of these in a byte, which torch takes for one element a byte."""


def _refuse_beyond(tensor: torch.Tensor) -> None:
    """Raise where a quantized tensor reaches beyond its storage."""
    _low, high = _span(tensor)
    high = -(-high // _PACKED.get(tensor.dtype, 1))
    if high > (size := tensor.untyped_storage().nbytes()):
        raise _beyond(tensor, high, size)


def _refuse_nested_beyond(tensor: torch.Tensor, args: tuple[Any, ...]) -> None:
    """Raise where a part of a nested tensor reaches beyond its buffer, all of its storage."""
    buffer, sizes, strides, offsets = args
    if sizes.ndim < 2:
        return  # it has no parts
    ends = (offsets + ((sizes - 1) * strides).sum(1) + 1)[(sizes > 0).all(1)]
    high = max(ends.tolist(), default=0) * tensor.element_size()
    if high > (size := buffer.nbytes):
        raise _beyond(tensor, high, size)


def _beyond(tensor: torch.Tensor, high: int, size: int) -> Exception:
    what = "freed" if not size else "shrunk"
    shape = "several shapes" if tensor.is_nested else f"shape {tuple(tensor.shape)}"
    return RefusedObjectError(
        f"a tensor of {shape} and {tensor.dtype} needs {high:,} bytes of its "
        f"storage, which has {size:,}: it was {what} after the tensor was made",
        "clone() the tensor before that, or give the storage its bytes back before the save",
    )


def _around(spans: list[Span], low: int, high: int) -> Span:
    """The one of the spans that holds another, or that other where none does."""
    before = spans[bisect_right(spans, low, key=itemgetter(0)) - 1]
    return before if before[0] <= low and high <= before[1] else (low, high)


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low < merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


def storage_maker() -> Callable[[Region, int, int, torch.dtype, Any], Any]:
    """What makes the storages of a load; to look for a fake mode each time would take twice as
    long."""
    return _make_fake if detect_fake_mode(None) else _make_storage


def _make_fake(
    region: Region, size: int, offset: int, dtype: torch.dtype, map_location: Any
) -> UntypedStorage:
    return _fake_storage(size, "cpu", map_location)


def _make_storage(
    region: Region, size: int, offset: int, dtype: torch.dtype, map_location: Any
) -> Any:
    """What a genesis reader has in memo slot 1: a storage over its part of the data region, or
    where it is small, a copy."""
    storage: Any
    if size < APART_FROM and region.copies:
        storage = FROM_BUFFER(region.view, LITTLE, size, offset, dtype)
        region.note_copy(offset, size)
    else:
        data, offset = region.part(offset, size)
        storage = torch.frombuffer(data, dtype=dtype, count=size, offset=offset).untyped_storage()
    return storage if map_location is None else _relocate(storage, "cpu", map_location)


def empty_storage(size: int = 0, *, map_location: Any = None) -> UntypedStorage:
    """What stands for a storage without bytes."""
    if detect_fake_mode(None):
        return _fake_storage(size, "cpu", map_location)
    storage = UntypedStorage(size)  # type: ignore[no-untyped-call]
    return storage if map_location is None else _relocate(storage, "cpu", map_location)


def _fake_storage(size: int, location: str, map_location: Any) -> UntypedStorage:
    """A storage without memory, for the fake tensors that a load gives in a `FakeTensorMode`. As
    `torch.load` has it, a function as `map_location` is not asked."""
    if isinstance(map_location, dict):
        map_location = map_location.get(location)
    where = location if map_location is None or callable(map_location) else map_location
    storage = UntypedStorage(size, device="meta")  # type: ignore[no-untyped-call]
    storage._fake_device = torch.device(where)
    return storage


def constructor(module: str, name: str, map_location: Any) -> Any:
    """A constructor of ours for one that a skeleton or a plain pickle names, ``None`` for all
    others.

    Raises:
        AttributeError: it is a dtype that this torch does not have.
    """
    if module == "torch":
        return _check_dtype(name)
    if (module, name) == (_StorageBase.__module__, "_StorageBase.cuda"):
        return lambda storage, index: _to_cuda(storage, index, map_location)
    if (module, name) == (_StorageBase.__module__, "_load_from_bytes"):
        return lambda content: _load_from_bytes(content, map_location)
    fake = detect_fake_mode(None) is not None
    if name == "UntypedStorage" and (fake or map_location is not None):
        return partial(empty_storage, map_location=map_location)
    return None if fake else _OURS.get((module, name))


def _check_dtype(name: str) -> None:
    if _DTYPE.fullmatch(name) and not hasattr(torch, name):
        raise AttributeError(
            f"the file holds tensors of torch.{name}, a dtype that torch {torch.__version__} does "
            "not have; load it with a later torch"
        )


def _load_from_bytes(content: bytes, map_location: Any) -> Any:
    """What pickle makes of a storage without genesis: a file of torch.save in the stream."""
    return torch.load(io.BytesIO(content), map_location=map_location, weights_only=False)


def _rebuild_tensor(
    storage: Any,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    metadata: dict[str, bool] | None = None,
) -> torch.Tensor:
    """`_rebuild_tensor_v2` but for its look for a fake mode, which takes two thirds of its time."""
    untyped = storage._untyped_storage
    tensor = torch.empty((0,), dtype=storage.dtype, device=untyped.device)
    tensor.set_(untyped, offset, size, stride)
    tensor.requires_grad = requires_grad
    if metadata:
        set_tensor_metadata(tensor, metadata)  # type: ignore[no-untyped-call]
    tensor._backward_hooks = hooks
    return tensor


def _rebuild_sparse_tensor(layout: torch.layout, data: tuple[Any, ...]) -> torch.Tensor:
    """torch's function of this name puts what it made on a list for the end of `torch.load`, where
    it would stay for ever, and an invalid one fail somebody else's load. Here it is checked now."""
    if layout is not torch.sparse_coo:
        check = not data[-2].is_meta
        return torch.sparse_compressed_tensor(*data, layout=layout, check_invariants=check)
    indices, values, size, *coalesced = data
    more = {"is_coalesced": coalesced[0]} if coalesced else {}
    check = not values.is_meta
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=check, **more)


_OURS: dict[tuple[str, str], Any] = {
    (_rebuild_tensor_v2.__module__, "_rebuild_tensor_v2"): _rebuild_tensor,
    (_rebuild_tensor_v2.__module__, "_rebuild_sparse_tensor"): _rebuild_sparse_tensor,
}


def _to_cuda(storage: UntypedStorage, index: int, map_location: Any) -> Any:
    if detect_fake_mode(None):
        return _fake_storage(storage.nbytes(), f"cuda:{index}", map_location)
    if map_location is not None:
        return _relocate(storage, f"cuda:{index}", map_location)
    if not torch.cuda.is_available():
        raise NoSuchDeviceError(f"it is of cuda:{index}, and there is no CUDA device here")
    # Not storage.cuda(index), for which 0 is the current device.
    return storage.to(device=torch.device("cuda", index))


def _relocate(storage: Any, location: str, map_location: Any) -> Any:
    """Move a storage as `torch.load` does for this `map_location`."""
    if callable(map_location):
        moved = map_location(storage, location)
        return _restored(storage, location) if moved is None else moved
    if isinstance(map_location, dict):
        map_location = map_location.get(location, location)
    elif isinstance(map_location, torch.device):
        map_location = str(map_location)
    return _restored(storage, map_location)


def _restored(storage: Any, location: Any) -> Any:
    try:
        return default_restore_location(storage, location)  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        if isinstance(exc, torch.cuda.OutOfMemoryError):
            raise
        raise NoSuchDeviceError(f"{location!r}: {exc}") from exc
