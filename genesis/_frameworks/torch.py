"""torch tensors and storages as pickles that name only functions of torch.

A storage becomes a range of the data region, shared by every tensor over it, so that tied weights
stay tied; a small view takes only the bytes it spans. Everything that is not a plain dense tensor
keeps torch's own reduction, over storages of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2, _rebuild_tensor_v3
from torch.multiprocessing.reductions import rebuild_typed_storage
from torch.nn import Parameter
from torch.storage import TypedStorage, UntypedStorage, _StorageBase

from .._plan import DATA, DataRegion

FROM_BUFFER = UntypedStorage.from_buffer
"""Written as memo slot 1: pickle has no name of its own for it."""

_PLAIN_DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128"
    ).split()
)
"""Dtypes that `_rebuild_tensor_v2` takes; newer ones go through `_rebuild_tensor_v3`."""

Span = tuple[int, int]


class Range:
    """A part of one storage that is saved, and where: pickled as a storage of its own."""

    __slots__ = ("device", "low", "offset", "size", "typed")

    def __init__(self, low: int, size: int, offset: int, device: torch.device) -> None:
        self.low = low
        self.size = size
        self.offset = offset
        self.device = device
        self.typed: dict[torch.dtype, TypedRange] = {}


class HostRange:
    """The same bytes as a storage in host memory, from which one on a device is made."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size


class TypedRange:
    """A range seen as elements of one dtype."""

    __slots__ = ("dtype", "range")

    def __init__(self, saved: Range, dtype: torch.dtype) -> None:
        self.range = saved
        self.dtype = dtype


class Ranges:
    """The ranges placed so far, by storage."""

    def __init__(self, spans: dict[int, list[Span]] | None) -> None:
        self.whole: dict[int, Range] = {}
        self.parts: dict[int, list[Range]] = {}
        self.spans = spans or {}


class DeviceBytes:
    """A storage on an accelerator, read part by part into host memory."""

    def __init__(self, storage: UntypedStorage) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def read_into(self, target: memoryview, start: int) -> None:
        there = self._bytes[start : start + len(target)]
        torch.frombuffer(target, dtype=torch.uint8).copy_(there)


def reducer_for(cls: type) -> Any:
    return _REDUCERS.get(cls)


def reduce_tensor(tensor: torch.Tensor, region: DataRegion) -> Any:
    """A dense tensor as a view of its storage's range; any other by torch's reduction."""
    if (
        tensor.__dict__
        or tensor.layout is not torch.strided
        or not (tensor.is_cpu or tensor.is_cuda)
        or tensor.is_quantized
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return tensor.__reduce_ex__(5)
    dtype = tensor.dtype
    storage = tensor.untyped_storage()
    saved = _range_of(tensor, storage, region)
    typed = saved.typed.get(dtype) or _typed(saved, dtype)
    offset = tensor.storage_offset() - saved.low // dtype.itemsize
    view = typed, offset, tuple(tensor.size()), tensor.stride(), tensor.requires_grad, None
    if dtype in _PLAIN_DTYPES:
        return _rebuild_tensor_v2, view
    return _rebuild_tensor_v3, (*view, dtype)


def reduce_parameter(parameter: Parameter, region: DataRegion) -> Any:
    if parameter.__dict__:
        return parameter.__reduce_ex__(5)
    return _rebuild_parameter, (parameter.data, parameter.requires_grad, None)


def reduce_typed_storage(storage: TypedStorage, region: DataRegion) -> Any:
    saved = _whole(storage._untyped_storage, _ranges(region), region)
    return rebuild_typed_storage, (saved, storage.dtype)


def reduce_storage(storage: UntypedStorage, region: DataRegion) -> Any:
    return reduce_range(_whole(storage, _ranges(region), region), region)


def reduce_typed_range(typed: TypedRange, region: DataRegion) -> Any:
    return rebuild_typed_storage, (typed.range, typed.dtype)


def reduce_range(saved: Range, region: DataRegion) -> Any:
    host = HostRange(saved.offset, saved.size)
    if saved.device.type == "cpu":
        return reduce_host_range(host, region)
    return _StorageBase.cuda, (host, saved.device.index)


def reduce_host_range(host: HostRange, region: DataRegion) -> Any:
    if not host.size:
        return UntypedStorage, (0,)
    return FROM_BUFFER, (DATA, "little", host.size, host.offset, torch.uint8)


_REDUCERS: dict[type, Any] = {
    torch.Tensor: reduce_tensor,
    Parameter: reduce_parameter,
    TypedStorage: reduce_typed_storage,
    UntypedStorage: reduce_storage,
    TypedRange: reduce_typed_range,
    Range: reduce_range,
    HostRange: reduce_host_range,
}


def _typed(saved: Range, dtype: torch.dtype) -> TypedRange:
    typed = saved.typed[dtype] = TypedRange(saved, dtype)
    return typed


def _ranges(region: DataRegion) -> Ranges:
    if region.shared is None:
        region.shared = Ranges(region.hints)
    ranges: Ranges = region.shared
    return ranges


def _range_of(tensor: torch.Tensor, storage: UntypedStorage, region: DataRegion) -> Range:
    ranges = _ranges(region)
    key = storage._cdata
    if saved := ranges.whole.get(key):
        return saved
    size = storage.nbytes()
    low, high = (0, size) if tensor.nbytes == size else _span(tensor)
    if 2 * (high - low) >= size and key not in ranges.parts:
        return _whole(storage, ranges, region)
    return _part(storage, (low, high), ranges, region)


def _span(tensor: torch.Tensor) -> Span:
    """The bytes of the storage from a view's first element to its last."""
    item = tensor.element_size()
    low = tensor.storage_offset() * item
    if not tensor.numel():
        return low - low % 64, low
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return low - low % 64, low + (last + 1) * item


def _whole(storage: UntypedStorage, ranges: Ranges, region: DataRegion) -> Range:
    key = storage._cdata
    if key in ranges.parts:
        _learn(ranges, key, (0, storage.nbytes()), region)
    if key not in ranges.whole:
        ranges.whole[key] = _place(storage, (0, storage.nbytes()), region)
    return ranges.whole[key]


def _part(storage: UntypedStorage, span: Span, ranges: Ranges, region: DataRegion) -> Range:
    """The range that holds a small view of a large storage.

    Views that overlap share memory and must share a range. A view that overlaps an earlier one and
    reaches beyond it comes too late for that: it is placed apart, and the state laid out again with
    the spans that are known by then.
    """
    key = storage._cdata
    low, high = span
    parts = ranges.parts.setdefault(key, [])
    for part in parts:
        if part.low <= low and high <= part.low + part.size:
            return part
    for known in ranges.spans.get(key, ()):
        if known[0] <= low and high <= known[1]:
            span = known
    if any(part.low < high and low < part.low + part.size for part in parts):
        _learn(ranges, key, span, region)
    parts.append(_place(storage, span, region))
    return parts[-1]


def _learn(ranges: Ranges, key: int, span: Span, region: DataRegion) -> None:
    """Record that the parts of a storage and `span` belong together."""
    region.lessons = region.lessons or dict(ranges.spans)
    spans = [*region.lessons.get(key, ()), span]
    spans += [(part.low, part.low + part.size) for part in ranges.parts[key]]
    region.lessons[key] = _merged(spans)


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for low, high in sorted(spans):
        if merged and low < merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


def _place(storage: UntypedStorage, span: Span, region: DataRegion) -> Range:
    low, high = span
    if storage.device.type == "cpu":
        offset = region.place(storage, storage.data_ptr() + low, high - low)
    else:
        offset = _place_on_device(storage, span, region)
    return Range(low, high - low, offset, storage.device)


def _place_on_device(storage: UntypedStorage, span: Span, region: DataRegion) -> int:
    whole = DeviceBytes(storage)
    whole._bytes = whole._bytes[span[0] : span[1]]
    return region.place(whole, 0, span[1] - span[0])


def make_storage(
    data: Any, order: str, size: int, offset: int, dtype: torch.dtype, *, map_location: Any = None
) -> UntypedStorage:
    """What a genesis reader has in memo slot 1: a storage over the data region itself."""
    storage = torch.frombuffer(data, dtype=dtype, count=size, offset=offset).untyped_storage()
    return storage if map_location is None else _relocate(storage, "cpu", map_location)


def constructor(module: str, name: str, map_location: Any) -> Any:
    """A constructor of ours for one that a skeleton names, ``None`` for all others."""
    if (module, name) == (_StorageBase.__module__, "_StorageBase.cuda"):
        return lambda storage, index: _to_cuda(storage, index, map_location)
    return None


def _to_cuda(storage: UntypedStorage, index: int, map_location: Any) -> UntypedStorage:
    if map_location is not None:
        return _relocate(storage, f"cuda:{index}", map_location)
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"the checkpoint holds tensors of cuda:{index} and there is no CUDA device here; "
            "load it with map_location='cpu'"
        )
    return storage.cuda(index)


def _relocate(storage: Any, location: str, map_location: Any) -> Any:
    """Move a storage as `torch.load` would for this `map_location`."""
    if callable(map_location):
        return map_location(storage, location) or storage
    if isinstance(map_location, dict):
        map_location = map_location.get(location, location)
    return storage.to(device=torch.device(map_location))
