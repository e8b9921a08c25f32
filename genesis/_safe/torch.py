"""torch storages, tensors, dtypes and devices of an untrusted skeleton.

torch checks little of what its rebuilding functions are given, so every range is compared with its
storage here. It builds only registered tensor subclasses, sets no attribute that a tensor has, and
unpickles nothing nested.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any, Final

from .._os.memory import ALIGNMENT
from .described import (
    ArrayInfo,
    Global,
    Opaque,
    Outliner,
    Shaped,
    StorageInfo,
    expect,
    first,
    name_of,
)
from .machine import RefusedError
from .site import (
    CUDA,
    FROM_BUFFER,
    MAX_INT,
    REGION,
    Site,
    Token,
    brief,
    builds,
    check_range,
    count_of,
    describes,
    find,
    flag,
    framework,
    list_arguments,
    list_constants,
    natural,
    naturals,
    require,
    span_of,
)

DTYPES: Final = {
    name: size
    for size, names in (
        (1, "bool uint8 int8 quint8 qint8 float8_e4m3fn float8_e4m3fnuz float8_e5m2"),
        (1, "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"),
        (1, "uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7"),
        (1, "bits8 bits1x8 bits2x4 bits4x2 quint4x2 quint2x4"),
        (2, "bits16"),
        (2, "uint16 int16 float16 bfloat16"),
        (4, "uint32 int32 float32 complex32 qint32"),
        (8, "uint64 int64 float64 complex64"),
        (16, "complex128"),
    )
    for name in names.split()
}
"""Bytes an element; of `PACKED` types a byte holds several."""

PACKED: Final = {"quint4x2": 2, "quint2x4": 4}
"""Elements a byte. Each row begins with a byte of its own."""

_TENSOR, _PARAMETER = "torch.Tensor", "torch.nn.parameter.Parameter"
_JAGGED: Final = "torch.nested._internal.nested_tensor _rebuild_njt"
_JAGGED_PARTS: Final = frozenset(
    ("values", "offsets", "lengths", "_ragged_idx", "_metadata_cache", "requires_grad")
)
_REBUILDERS: Final = frozenset(
    f"torch._utils _rebuild_{what}"
    for what in [
        "tensor_v2",
        "tensor_v3",
        "qtensor",
        "sparse_tensor",
        "meta_tensor_no_storage",
        "nested_tensor",
        "parameter",
    ]
) | {_JAGGED}
"""What makes a tensor that is then given a class and attributes."""

list_arguments("torch Tensor", "torch.nn.parameter Parameter")
list_arguments("torch.nested._internal.nested_tensor NestedTensor")
_ON_HOST: Final = "load it with map_location='cpu' where there is no such device"
_METADATA: Final = "a tensor with metadata other than of a conjugated or negated view"
_LAYOUTS: Final = frozenset(
    ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged")
)

list_constants("torch", " ".join(DTYPES))
list_constants("torch", "per_tensor_affine per_channel_affine per_channel_affine_float_qparams")
list_constants("torch", "per_tensor_symmetric per_channel_symmetric")
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
    place = low, length = storage_range(offset, size, site.size)
    site.charge(length)
    storage = site.storages.get(place)
    if storage is None:
        storage = site.storages[place] = _storage_over(site, length, low, dtype)
    return storage


def _storage_over(site: Site, size: int, offset: int, dtype: object) -> object:
    where = site.map_location
    try:
        return site.once(_storage_maker)(site.data, size, offset, dtype, where)
    except RuntimeError as exc:
        raise RefusedError(f"no storage at {where!r} ({exc})", hint=_ON_HOST) from exc


def _storage_maker() -> Any:
    from .._pickle.torch import storage_maker

    return storage_maker()


def storage_range(offset: object, size: object, room: int) -> tuple[int, int]:
    """Offset and size of a storage's bytes, if they lie within `room` bytes and are aligned."""
    low, length = check_range(offset, size, room, "a storage lies at")
    if low % ALIGNMENT:
        raise RefusedError(f"a storage lies at {low:,}, which is no multiple of {ALIGNMENT}")
    return low, length


@builds("torch UntypedStorage", "torch.storage UntypedStorage")
def _empty_storage(site: Site, size: object) -> object:
    require(type(size) is int and size == 0, "a storage without data is not empty")
    from .._pickle.torch import empty_storage

    return empty_storage(map_location=site.map_location)


@builds(CUDA)
def _storage_on_device(site: Site, storage: Any, index: object) -> object:
    require(type(storage) is _torch().UntypedStorage, f"{brief(storage)} to move to a device")
    _device_index(index)
    site.charge(storage.nbytes())
    from .._pickle.torch import constructor

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
    if type(storage) is not torch.UntypedStorage:
        raise RefusedError(f"{brief(storage)} as a storage")
    _check_dtype(dtype)
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _check_dtype(dtype: object) -> None:
    if type(dtype) is not _torch().dtype:
        raise RefusedError(f"{brief(dtype)} as the dtype of a tensor")


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
    if type(storage) is not _torch().storage.TypedStorage:
        raise RefusedError(f"{brief(storage)} under a tensor")
    _check_view(site, storage._untyped_storage, storage.dtype, offset, size, stride)
    rest = flag(requires_grad), _hooks(hooks), _metadata(metadata, storage.dtype)
    return site.once(_tensor_maker)(storage, offset, size, stride, *rest)


def _tensor_maker() -> Any:
    from .._pickle.torch import constructor

    module, name = "torch._utils", "_rebuild_tensor_v2"
    return constructor(module, name, None) or getattr(framework(module), name)


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
    _check_view(site, storage._untyped_storage, dtype, offset, size, stride)
    rest = flag(requires_grad), _hooks(hooks), dtype, _metadata(metadata, dtype)
    return torch._utils._rebuild_tensor_v3(storage, offset, size, stride, *rest)


def packed_size(size: object, per_byte: int, room: int) -> int:
    """Bytes of a tensor of several elements a byte, if it lies within `room` bytes."""
    *rows, last = naturals(size) or (1,)
    nbytes = count_of((*rows, -(-last // per_byte)))
    require(nbytes <= room, f"a tensor ends at byte {nbytes:,} of {room:,}")
    return nbytes


def _check_view(
    site: Site, storage: Any, dtype: Any, offset: object, size: object, stride: object
) -> None:
    _charge_axes(site, size)
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
    end = (low + span) * item
    require(end <= MAX_INT, "a tensor beyond all memory")
    if span and end > room:
        raise RefusedError(f"a tensor ends at byte {end:,} of {room:,}")
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


def _charge_axes(site: Site, size: object) -> None:
    """A shape of many axes takes long to look at, and a memo makes it cheap to name again."""
    site.charge(32 * len(size) if isinstance(size, tuple) else 0)


@builds("torch._utils _rebuild_meta_tensor_no_storage")
def _meta_tensor(site: Site, dtype: Any, size: Any, stride: Any, requires_grad: object) -> object:
    _check_dtype(dtype)
    _charge_axes(site, size)
    check_view(0, size, stride, dtype.itemsize, MAX_INT)
    rebuild = _torch()._utils._rebuild_meta_tensor_no_storage
    return rebuild(dtype, size, stride, flag(requires_grad))


@builds("torch._utils _rebuild_parameter")
def _parameter(site: Site, data: Any, requires_grad: object, hooks: object) -> object:
    kinds = _torch().Tensor, _torch()._subclasses.FakeTensor
    require(type(data) in kinds, f"{brief(data)} in a Parameter")
    return _torch()._utils._rebuild_parameter(data, flag(requires_grad), _hooks(hooks))


@builds("torch._utils _rebuild_parameter_with_state")
def _parameter_with_state(
    site: Site, data: Any, requires_grad: object, hooks: object, state: object
) -> object:
    return _attach(site, _parameter(site, data, requires_grad, hooks), state)


@builds("torch._tensor _rebuild_from_type_v2")
def _tensor_of_type(site: Site, function: Any, kind: Any, arguments: Any, state: object) -> object:
    """A tensor with attributes, or of a class that somebody registered."""
    known = type(function) is Token and function.name in _REBUILDERS
    require(known and type(arguments) is tuple, f"{brief(function)} in the place of a function")
    build = find(function.name).build
    made: Any = build and build(site, *arguments)
    if function.name == _JAGGED:
        return made  # its state is what it was made of
    listed = {_TENSOR: _torch().Tensor, _PARAMETER: _torch().nn.Parameter}
    cls = listed.get(str(kind)) if type(kind) is Token else kind
    if type(made) is not cls:
        own = isinstance(cls, type) and issubclass(cls, _torch().Tensor) and site.knows(cls)
        require(own, f"{brief(kind)} as the class of a tensor")
        made = made.as_subclass(cls)
    return _attach(site, made, state)


def _attach(site: Site, tensor: Any, state: Any) -> Any:
    """Give a tensor its attributes, past whatever setting them would run."""
    attributes, slots = state if type(state) is tuple and len(state) == 2 else (state, None)
    require(type(attributes or {}) is dict and not slots, "attributes of a tensor in no dict")
    for name in attributes or {}:
        own = type(name) is str and name.isidentifier() and not name.startswith("__")
        require(own and not hasattr(_torch().Tensor, name), "an attribute that is a tensor's own")
    if attributes:
        site.give(attributes)
        vars(tensor).update(attributes)
    return tensor


@builds("torch._dynamo.decorators _DimRange", new=True)
def _dim_range(site: Site) -> object:
    """What a compiler noted on a tensor."""
    cls = framework("torch._dynamo.decorators")._DimRange
    made = cls(0, 0, 0)
    site.unfinished[id(made)] = made, _finish_dim_range
    return made


def _finish_dim_range(site: Site, made: Any, state: Any) -> None:
    numbers = type(state) in (list, tuple) and len(state) == 3
    require(numbers and set(map(type, state)) <= {int, type(None)}, "a range of no numbers")
    for name, value in zip(("dim", "min", "max"), state, strict=True):
        object.__setattr__(made, name, value)


@builds("torch._utils _rebuild_nested_tensor")
def _nested_tensor(site: Site, buffer: Any, sizes: Any, strides: Any, offsets: Any) -> object:
    """torch looks at no entry of the three tensors that say where its parts lie."""
    torch = _torch()
    for part in (buffer, sizes, strides, offsets):
        _check_plain(site, part)
    places = sizes.dtype is strides.dtype is offsets.dtype is torch.int64
    require(places and buffer.dim() == 1 and buffer.is_contiguous(), "a nested tensor's parts")
    require(offsets.dim() == 1 and sizes.shape == strides.shape, "a nested tensor's places")
    require(sizes.dim() == 2 and len(sizes) == len(offsets), "a nested tensor's places")
    sizes, strides, offsets = sizes.clone(), strides.clone(), offsets.clone()
    site.charge(64 * sizes.numel())
    for low, size, stride in zip(offsets.tolist(), sizes.tolist(), strides.tolist(), strict=True):
        check_view(low, tuple(size), tuple(stride), buffer.itemsize, buffer.nbytes)
    return torch._utils._rebuild_nested_tensor(buffer, sizes, strides, offsets)


@builds(_JAGGED)
def _jagged_tensor(site: Site, parts: Any) -> object:
    """Sequences of different lengths, one behind the other; what torch caches is left to it."""
    require(type(parts) is dict and parts.keys() <= _JAGGED_PARTS, "a jagged tensor of other parts")
    values, lengths, axis = parts.get("values"), parts.get("lengths"), parts.get("_ragged_idx", 1)
    _check_plain(site, values)
    require(1 <= natural(axis) <= values.dim(), "a jagged tensor along no axis")
    offsets = site.copied(parts.get("offsets"), _copy_of_integers)
    steps, room = offsets.tolist(), values.shape[axis - 1]
    require(len(steps) > 1 and steps[0] >= 0 and steps[-1] <= room, "a jagged tensor's offsets")
    gaps = [high - low for low, high in pairwise(steps)]
    require(min(gaps) >= 0, "a jagged tensor's offsets")
    if lengths is not None:
        lengths = site.copied(lengths, _copy_of_integers)
        each = lengths.tolist()
        require(len(each) == len(gaps), "a jagged tensor's lengths")
        fit = all(0 <= size <= gap for size, gap in zip(each, gaps, strict=True))
        require(fit, "a jagged tensor's lengths")
    made = framework("torch.nested._internal.nested_tensor").NestedTensor
    grad = flag(parts.get("requires_grad", False))
    return made(values, offsets, lengths=lengths, requires_grad=grad, _ragged_idx=axis)


def _copy_of_integers(site: Site, part: Any) -> Any:
    """Nobody else's, because another tensor of the file may lie over the same bytes."""
    _check_plain(site, part)
    site.charge(64 * part.numel())
    whole = part.dim() == 1 and part.dtype in (_torch().int64, _torch().int32)
    require(whole, f"{brief(part)} as offsets of a jagged tensor")
    return part.clone()


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
    room = storage._untyped_storage.nbytes()
    if per_byte := PACKED.get(str(storage.dtype).removeprefix("torch.")):
        whole = offset == 0 and stride == torch.empty(naturals(size), device="meta").stride()
        require(whole, "a part of a tensor of several elements a byte")
        site.charge(packed_size(size, per_byte, room))
    else:
        item = storage.dtype.itemsize
        site.charge(item * check_view(offset, size, stride, item, room))
    _check_quantizer(site, parameters, size)
    rest = parameters, flag(requires_grad), _hooks(hooks)
    return torch._utils._rebuild_qtensor(storage, offset, size, stride, *rest)


def _quantized() -> tuple[Any, ...]:
    torch = _torch()
    return torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4


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
    _charge_axes(site, size)
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


# Descriptions of the same calls, for outlines ------------------------------------------------


@describes(FROM_BUFFER)
def _describe_storage(
    world: Outliner, region: object, order: object, size: object, offset: object, dtype: object
) -> StorageInfo:
    if region is not world.region:
        raise TypeError
    low, length = storage_range(offset, size, world.room)
    return StorageInfo(low, length, "uint8")


@describes("torch UntypedStorage", "torch.storage UntypedStorage")
def _describe_empty_storage(world: Outliner, size: object) -> StorageInfo:
    if size != 0:
        raise TypeError
    return StorageInfo(0, 0, "uint8")


@describes("torch.multiprocessing.reductions rebuild_typed_storage")
def _describe_typed(world: Outliner, storage: Any, dtype: Any) -> StorageInfo:
    below = expect(StorageInfo, storage)
    return StorageInfo(below.offset, below.nbytes, _described_dtype(dtype))


def _described_dtype(dtype: Any) -> str:
    return expect(Opaque, dtype).name.removeprefix("torch.")


@describes("torch._utils _rebuild_tensor_v2")
def _describe_tensor(
    world: Outliner, storage: Any, offset: Any, size: Any, stride: Any, *rest: object
) -> ArrayInfo | Shaped:
    if name_of(storage) == "torch.storage._load_from_bytes":
        return Shaped("torch.Tensor", size)
    return _describe_view(storage, expect(StorageInfo, storage).dtype, offset, size, stride)


@describes("torch._utils _rebuild_tensor_v3")
def _describe_tensor_v3(
    world: Outliner, storage: Any, offset: Any, size: Any, stride: Any, *rest: object
) -> ArrayInfo:
    return _describe_view(storage, _described_dtype(rest[2]), offset, size, stride)


def _describe_view(storage: Any, dtype: str, offset: Any, size: Any, stride: Any) -> ArrayInfo:
    below = expect(StorageInfo, storage)
    item = DTYPES[dtype]
    count = check_view(offset, size, stride, item, below.nbytes)
    return ArrayInfo("torch", dtype, size, below.offset + offset * item, count * item)


@describes("torch._utils _rebuild_meta_tensor_no_storage")
def _describe_meta_tensor(world: Outliner, dtype: Any, size: Any, *rest: object) -> ArrayInfo:
    return ArrayInfo("torch", _described_dtype(dtype), naturals(size), 0, 0)


@describes("torch._utils _rebuild_sparse_tensor")
def _describe_sparse_tensor(world: Outliner, layout: object, data: Any) -> ArrayInfo:
    indices, values, *rest = (part for part in data if not isinstance(part, bool))
    parts = [indices, values, *rest[:-1]]
    for part in parts:
        expect(ArrayInfo, part)
    nbytes = sum(part.nbytes for part in parts)
    return ArrayInfo("torch", parts[-1].dtype, naturals(rest[-1]), parts[-1].offset, nbytes)


@describes("torch._utils _rebuild_qtensor")
def _describe_packed(
    world: Outliner, storage: Any, offset: Any, size: Any, *rest: object
) -> object:
    below = storage if isinstance(storage, StorageInfo) else None
    if below is None or below.dtype not in PACKED:
        return _describe_tensor(world, storage, offset, size, *rest)
    nbytes = packed_size(size, PACKED[below.dtype], below.nbytes)
    return ArrayInfo("torch", below.dtype, size, below.offset, nbytes)


@describes("torch._utils _rebuild_nested_tensor")
def _describe_nested(world: Outliner, buffer: Any, sizes: Any, *rest: object) -> ArrayInfo:
    below, parts = expect(ArrayInfo, buffer), expect(ArrayInfo, sizes)
    return ArrayInfo("torch", below.dtype, parts.shape[:1], below.offset, below.nbytes)


@describes(_JAGGED)
def _describe_jagged(world: Outliner, parts: Any) -> ArrayInfo:
    values, offsets = (expect(ArrayInfo, parts[key]) for key in ("values", "offsets"))
    shape = offsets.shape[0] - 1, *values.shape[1:]
    return ArrayInfo("torch", values.dtype, shape, values.offset, values.nbytes)


@describes("torch._tensor _rebuild_from_type_v2")
def _describe_of_subclass(
    world: Outliner, function: Any, kind: object, arguments: Any, *state: object
) -> object:
    describe = find(expect(Global, function).key).describe
    if describe is None:
        raise TypeError
    return describe(world, *expect(tuple, arguments))


describes(CUDA, "torch Size")(first)
describes("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")(first)
