"""torch storages, tensors, dtypes and devices of an untrusted skeleton.

torch checks little of what its rebuilding functions are given, so every range is compared with its
storage here. It builds no tensor subclass, sets no attribute, and unpickles nothing nested.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from .._region import Region
from .machine import RefusedError
from .site import (
    CUDA,
    FROM_BUFFER,
    MAX_INT,
    REGION,
    Site,
    brief,
    builds,
    check_range,
    count_of,
    flag,
    framework,
    list_constants,
    natural,
    naturals,
    require,
    span_of,
)

ALIGNMENT: Final = 64

DTYPES: Final = {
    name: size
    for size, names in (
        (1, "bool uint8 int8 quint8 qint8 float8_e4m3fn float8_e4m3fnuz float8_e5m2"),
        (1, "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"),
        (1, "uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7"),
        (2, "uint16 int16 float16 bfloat16"),
        (4, "uint32 int32 float32 complex32 qint32"),
        (8, "uint64 int64 float64 complex64"),
        (16, "complex128"),
    )
    for name in names.split()
}
"""Bytes an element. Quantized types of several elements a byte are left out: no bound of theirs can
be computed from a shape."""

_ON_HOST: Final = "load it with map_location='cpu' where there is no such device"
_METADATA: Final = "a tensor with metadata other than of a conjugated or negated view"
_LAYOUTS: Final = frozenset(
    ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged")
)

list_constants("torch", " ".join(DTYPES))
list_constants("torch", "per_tensor_affine per_channel_affine per_channel_affine_float_qparams")
for _written_as in ("torch ", "torch._utils torch."):
    list_constants(
        "torch",
        "channels_last channels_last_3d contiguous_format preserve_format",
        written_as=_written_as,
    )


def _torch() -> Any:
    return framework("torch")


# Storages -----------------------------------------------------------------------------------


@builds(FROM_BUFFER)
def _storage(
    site: Site, region: object, order: object, size: object, offset: object, dtype: Any
) -> object:
    if region is not REGION or site.data is None:
        raise RefusedError("a storage over memory of its own")
    require(order == "little" and dtype is _torch().uint8, "a storage of something but bytes")
    low, length = storage_range(offset, size, site.size)
    site.charge(length)
    if (low, length) not in site.storages:
        site.storages[low, length] = _storage_over(site.data, length, low, site.map_location)
    return site.storages[low, length]


def _storage_over(region: Region, size: int, offset: int, where: object) -> object:
    from .._frameworks.torch import storage_maker

    try:
        return storage_maker()(region, size, offset, _torch().uint8, where)
    except RuntimeError as exc:
        raise RefusedError(f"no storage at {where!r} ({exc})", hint=_ON_HOST) from exc


def storage_range(offset: object, size: object, room: int) -> tuple[int, int]:
    """Offset and size of a storage's bytes, if they lie within `room` bytes and are aligned."""
    low, length = check_range(offset, size, room, "a storage lies at")
    require(not low % ALIGNMENT, f"a storage lies at {low:,}, which is no multiple of {ALIGNMENT}")
    return low, length


@builds("torch UntypedStorage", "torch.storage UntypedStorage")
def _empty_storage(site: Site, size: object) -> object:
    require(type(size) is int and size == 0, "a storage without data is not empty")
    from .._frameworks.torch import empty_storage

    return empty_storage(map_location=site.map_location)


@builds(CUDA)
def _storage_on_device(site: Site, storage: Any, index: object) -> object:
    require(type(storage) is _torch().UntypedStorage, f"{brief(storage)} to move to a device")
    _device_index(index)
    site.charge(storage.nbytes())
    from .._frameworks.torch import constructor

    module, name = CUDA.split()
    try:
        return constructor(module, name, site.map_location)(storage, index)
    except RuntimeError as exc:
        raise RefusedError(f"no storage on cuda:{index} ({exc})", hint=_ON_HOST) from exc


def _device_index(index: object) -> int:
    require(natural(index) < 1024, "a device that no machine has")
    return natural(index)


@builds("torch.multiprocessing.reductions rebuild_typed_storage")
def _typed_storage(site: Site, storage: Any, dtype: Any) -> object:
    torch = _torch()
    require(type(storage) is torch.UntypedStorage, f"{brief(storage)} as a storage")
    _check_dtype(dtype)
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _check_dtype(dtype: object) -> None:
    require(type(dtype) is _torch().dtype, f"{brief(dtype)} as the dtype of a tensor")


# Tensors ------------------------------------------------------------------------------------


@builds("torch._utils _rebuild_tensor_v2")
def _tensor(
    site: Site,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> object:
    require(type(storage) is _torch().storage.TypedStorage, f"{brief(storage)} under a tensor")
    _check_view(storage._untyped_storage, storage.dtype, offset, size, stride)
    rest = flag(requires_grad), _hooks(hooks), _metadata(metadata, storage.dtype)
    return _torch()._utils._rebuild_tensor_v2(storage, offset, size, stride, *rest)


@builds("torch._utils _rebuild_tensor_v3")
def _tensor_of_new_dtype(
    site: Site,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: object,
    hooks: object,
    dtype: Any,
    metadata: object = None,
) -> object:
    torch = _torch()
    kinds = torch.storage.TypedStorage, torch.UntypedStorage
    require(type(storage) in kinds, f"{brief(storage)} under a tensor")
    _check_dtype(dtype)
    _check_view(storage._untyped_storage, dtype, offset, size, stride)
    rest = flag(requires_grad), _hooks(hooks), dtype, _metadata(metadata, dtype)
    return torch._utils._rebuild_tensor_v3(storage, offset, size, stride, *rest)


def _check_view(storage: Any, dtype: Any, offset: object, size: object, stride: object) -> None:
    require(dtype not in _quantized(), "a quantized tensor without a quantizer")
    check_view(offset, size, stride, dtype.itemsize, storage.nbytes())


def check_view(offset: object, size: object, stride: object, item: int, room: int) -> int:
    """Elements of a tensor, if they all lie within `room` bytes.

    Args:
        offset: of its first element, in elements.
        size, stride: tuples, in elements.
        item: bytes an element.
        room: bytes of the storage.
    """
    low, sizes, steps = natural(offset), naturals(size), naturals(stride)
    span = span_of(sizes, steps)
    require((low + span) * item <= MAX_INT, "a tensor beyond all memory")
    end = (low + span) * item
    require(not span or end <= room, f"a tensor ends at byte {end:,} of {room:,}")
    return count_of(sizes)


def _hooks(hooks: Any) -> object:
    """The place of backward hooks, which are never saved. Filled later, they would be called."""
    require(hooks is None or (type(hooks) is OrderedDict and not hooks), "a tensor with hooks")
    return None if hooks is None else OrderedDict()


def _metadata(metadata: Any, dtype: Any) -> dict[str, bool] | None:
    """The lazy conjugation and negation of a view: of integers, they would hide what is indexed."""
    if metadata is None:
        return None
    require(type(metadata) is dict and metadata.keys() <= {"conj", "neg"}, _METADATA)
    require(all(value is True for value in metadata.values()), _METADATA)
    require(dtype.is_complex or (dtype.is_floating_point and "conj" not in metadata), _METADATA)
    return dict(metadata)


@builds("torch._utils _rebuild_meta_tensor_no_storage")
def _meta_tensor(site: Site, dtype: Any, size: Any, stride: Any, requires_grad: object) -> object:
    _check_dtype(dtype)
    check_view(0, size, stride, dtype.itemsize, MAX_INT)
    rebuild = _torch()._utils._rebuild_meta_tensor_no_storage
    return rebuild(dtype, size, stride, flag(requires_grad))


@builds("torch._utils _rebuild_parameter")
def _parameter(site: Site, data: Any, requires_grad: object, hooks: object) -> object:
    kinds = _torch().Tensor, _torch()._subclasses.FakeTensor
    require(type(data) in kinds, f"{brief(data)} in a Parameter")
    return _torch()._utils._rebuild_parameter(data, flag(requires_grad), _hooks(hooks))


@builds("torch._utils _rebuild_sparse_tensor")
def _sparse_tensor(site: Site, layout: Any, data: Any) -> object:
    """Checked as torch can but by default does not: a sparse tensor with indices beyond its size
    reads and writes memory that is not its own."""
    torch = _torch()
    require(type(layout) is torch.layout and type(data) is tuple, "a sparse tensor of other parts")
    coordinates = layout is torch.sparse_coo
    *indices, values, size = data[:3] if coordinates else data
    for part in (*indices, values):
        _check_plain(site, part)
    count_of(naturals(size))
    # Copies, because another tensor of the file may lie over the same bytes and be trained.
    indices = [part.clone() for part in indices]
    if coordinates:
        more = {"is_coalesced": flag(data[3])} if len(data) > 3 else {}
        return torch.sparse_coo_tensor(*indices, values, size, check_invariants=True, **more)
    make = torch.sparse_compressed_tensor
    return make(*indices, values, size, layout=layout, check_invariants=True)


def _check_plain(site: Site, part: Any) -> None:
    """A dense tensor in memory, at the cost of looking at each of its elements."""
    require(type(part) is _torch().Tensor, f"{brief(part)} as a part of a tensor")
    plain = part.layout is _torch().strided and not part.is_quantized and not part.is_meta
    require(plain, "a tensor without plain elements as a part of another")
    site.charge(part.nbytes)


@builds("torch._utils _rebuild_qtensor")
def _quantized_tensor(
    site: Site,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    parameters: Any,
    requires_grad: object,
    hooks: object,
) -> object:
    """torch allocates the whole of a quantized tensor before it looks at the storage."""
    torch = _torch()
    require(type(storage) is torch.storage.TypedStorage, f"{brief(storage)} under a tensor")
    require(storage.dtype in _quantized(), "a dtype of no quantized tensor")
    item = storage.dtype.itemsize
    site.charge(item * check_view(offset, size, stride, item, storage._untyped_storage.nbytes()))
    _check_quantizer(site, parameters, size)
    rest = parameters, flag(requires_grad), _hooks(hooks)
    return torch._utils._rebuild_qtensor(storage, offset, size, stride, *rest)


def _quantized() -> tuple[Any, ...]:
    torch = _torch()
    return torch.quint8, torch.qint8, torch.qint32


def _check_quantizer(site: Site, parameters: Any, size: tuple[int, ...]) -> None:
    require(type(parameters) is tuple and len(parameters) > 2, "a quantizer of other parts")
    scheme, scales, zero_points, *axis = parameters
    require(type(scheme) is _torch().qscheme, f"{brief(scheme)} as a scheme of quantization")
    if scheme is _torch().per_tensor_affine:
        require(type(scales) is float and type(zero_points) is int, "a quantizer of other parts")
        require(zero_points.bit_length() < 32 and not axis, "a zero point of more than 32 bits")
        return
    require(len(axis) == 1 and natural(axis[0]) < len(size), "a quantizer of an axis that is not")
    for each in (scales, zero_points):
        _check_plain(site, each)
        require(each.shape == (size[axis[0]],), "a quantizer of another length than its axis")


# Values -------------------------------------------------------------------------------------


@builds("torch Size")
def _size(site: Site, size: Any) -> object:
    return _torch().Size(naturals(size))


@builds("torch device")
def _device(site: Site, kind: Any, index: object = None) -> object:
    require(type(kind) is str and len(kind) < 32, f"{brief(kind)} as a device")
    if index is None:
        return _torch().device(kind)
    return _torch().device(kind, _device_index(index))


@builds("torch.serialization _get_layout")
def _layout(site: Site, name: Any) -> object:
    require(type(name) is str and name.removeprefix("torch.") in _LAYOUTS, "an unknown layout")
    return getattr(_torch(), name.removeprefix("torch."))
