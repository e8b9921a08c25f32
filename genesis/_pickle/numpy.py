"""NumPy arrays and dtypes as pickles that name only ``numpy.ndarray`` and ``numpy.dtype``.

Both names are the same in NumPy 1 and 2. Arrays of Python objects are left to their own reduction.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from math import prod
from operator import attrgetter, is_, mul
from typing import Any

import numpy as np

from .._os.memory import PrivateMemory, all_readable
from .buffers import DATA, NDARRAY, SMALL, Call, DataRegion, RefusedObjectError, refuse_unreadable
from .region import Region, RegionBuffer

_Restrided: Any = type(np.lib.stride_tricks.as_strided(np.zeros(1)).base)
"""Private to NumPy: what `as_strided` puts between an array and its base."""
_VIEWS = np.ndarray, _Restrided
"""What has its memory from its base."""
_FIXED = {bytes, PrivateMemory}
"""What never gives its memory up."""


Span = tuple[int, int]
"""Addresses of a first byte, and of the end of a last one."""

_SHARED = 16 << 10
"""Bytes from which on a loaded array can be freed by itself. To call Python for a smaller one costs
more than all else about it, so these share what lies between the others."""


def reducer_for(cls: type, region: DataRegion) -> Any:
    if cls is np.ndarray or cls is np.memmap:
        return partial(reduce_array, region)
    if issubclass(cls, np.ndarray):
        return partial(reduce_as_numpy, region)
    if issubclass(cls, np.void):
        return partial(reduce_void, region)
    return reduce_dtype if issubclass(cls, np.dtype) else None


def reduce_array(region: DataRegion, array: np.ndarray[Any, Any], *, frozen: bool = False) -> Any:
    """Place the array's bytes; rebuild it as a view of the data region."""
    dtype = array.dtype
    if dtype.hasobject:
        return reduce_as_numpy(region, array)
    if not array.size or not dtype.itemsize:
        return np.ndarray, (array.shape, dtype)
    placed = region.arrays
    if placed is None:
        placed = region.arrays = Placed(region)
    span = span_of(array)
    contiguous = array.flags.forc
    foreign = placed.meet(array, span)
    if not contiguous and array.nbytes < SMALL:
        array, contiguous, foreign = np.ascontiguousarray(array), True, False
        span = span_of(array)
    source: Any
    if contiguous:
        source, address, strides = array, span[0], array.strides
    else:
        source, address, strides = ScatteredBytes(array), 0, _strides_in_c_order(array)
    frozen = frozen or _is_frozen(array)
    offset = region.place(source, address, array.nbytes, frozen=frozen, foreign=foreign)
    if array.nbytes < _SHARED:
        return np.ndarray, (array.shape, dtype, DATA, offset, strides)
    region.has_arrays = True
    return NDARRAY, (array.shape, dtype, DATA, offset, strides)


class Placed:
    """Owners of placed memory, and their sizes: what is copied later must still be there."""

    def __init__(self, region: DataRegion) -> None:
        self._owners: list[np.ndarray[Any, Any]] = []
        self._sizes: list[int] = []
        region.checks.append(self._check)

        self._spans: dict[int, Span] = {}
        """Where the memory of each owner begins and ends, by id. The owners are held, and
        `_check` finds one that has other memory by then."""

    def meet(self, array: np.ndarray[Any, Any], span: Span) -> bool:
        """Note who owns an array's memory, and return whether that is foreign. Raises as
        `is_foreign`."""
        if array.base is None:
            self._hold(array)
            return False
        owner, restrided = _owner_of(array)
        memory = self._spans.get(id(owner))
        if memory is not None:
            _refuse_beyond(array, span, owner, memory)
            return False
        if isinstance(owner, np.ndarray):
            self._hold(owner)
            memory = _memory_of(owner)
            if memory is not None and type(owner) is np.ndarray:
                self._spans[id(owner)] = memory
        return _is_foreign(array, span, owner, restrided)

    def _hold(self, owner: np.ndarray[Any, Any]) -> None:
        self._owners.append(owner)
        self._sizes.append(owner.nbytes)

    def _check(self) -> None:
        if list(map(_nbytes, self._owners)) != self._sizes:
            raise RefusedObjectError(
                "an array was resized while the state was saved",
                "resize it before the save or, with capture='deferred', after wait_captured()",
            )


_nbytes: Callable[[Any], int] = attrgetter("nbytes")


def reduce_as_numpy(region: DataRegion, array: np.ndarray[Any, Any]) -> Any:
    """NumPy's or the subclass's own reduction, which reads the memory without asking."""
    for each in (array, getattr(array, "_mask", None)):
        if isinstance(each, np.ndarray):
            is_foreign(each)
    reduction = region.reduce_own(array)
    attributes = _attributes(array)
    return _with_attributes(array, reduction, attributes) if attributes else reduction


def _attributes(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What an array of a subclass holds beside its elements, where NumPy's reduction drops it."""
    cls = type(array)
    own = any(getattr(cls, name) is not getattr(np.ndarray, name) for name in _REDUCE)
    if own or isinstance(array, np.memmap):  # which holds its file
        return {}
    return getattr(array, "__dict__", {})


def _with_attributes(array: Any, reduction: Any, attributes: dict[str, Any]) -> Any:
    """NumPy's state is set, and then the attributes, when the array is in the memo. The call whose
    arguments these are gives nothing: see `by_value`."""
    create, arguments, state = reduction
    fill = Call((Call((getattr, (array, "__setstate__"))), (state,)))
    update = Call((getattr, (Call((getattr, (array, "__dict__"))), "update")))
    return create, arguments, (fill, Call((update, (attributes,)))), None, None, is_


_REDUCE = "__reduce__", "__reduce_ex__", "__setstate__"


def reduce_void(region: DataRegion, record: np.void) -> Any:
    """NumPy's own reduction of a record, which may be a view of an array's memory."""
    base: Any = record.base
    if isinstance(base, np.ndarray):
        is_foreign(base)
        owner, _ = _owner_of(base)
        inside, memory = _memory_of(record), _memory_of(owner)
        if inside and memory:
            _refuse_beyond(np.empty((), record.dtype), inside, owner, memory)
    return region.reduce_own(record)


def is_foreign(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array's memory may vanish while its owner lives, as a mapped file's does.

    Raises:
        RefusedObjectError: some of it is not the owner's, or is gone already.
    """
    return _is_foreign(array, span_of(array), *_owner_of(array))


def _is_foreign(array: np.ndarray[Any, Any], span: Span, owner: Any, restrided: bool) -> bool:
    fixed = type(owner) in _FIXED or isinstance(owner, RegionBuffer)
    if owner is array or not array.size or (fixed and not restrided):
        return False
    _refuse_beyond(array, span, owner, _memory_of(owner) or span)
    while type(owner) is memoryview:
        owner = owner.obj
    foreign = isinstance(owner, mmap.mmap) and type(owner) not in _FIXED
    if foreign and not all_readable([span[1] - 1]):
        refuse_unreadable()
    return foreign


def _owner_of(array: np.ndarray[Any, Any]) -> tuple[Any, bool]:
    """Who has the memory that an array is a view of, and whether the view was made by
    `as_strided`, which does not ask how much memory there is."""
    owner: Any = array
    restrided = False
    while isinstance(owner, _VIEWS) and owner.base is not None:
        owner = owner.base
        restrided |= type(owner) is _Restrided
    return owner, restrided


def _refuse_beyond(array: np.ndarray[Any, Any], span: Span, owner: Any, memory: Span) -> None:
    if not memory[0] <= span[0] <= span[1] <= memory[1]:
        raise RefusedObjectError(
            f"an array of shape {array.shape} and {array.dtype} reaches beyond the memory of the "
            f"{type(owner).__name__} that it is a view of, which has {memory[1] - memory[0]:,} "
            "bytes: that was resized or closed after the view was made, or the view was made too "
            "large",
            "copy() the array before that",
        )


class _Interface(ctypes.Structure):
    """What `__array_struct__` points to."""

    _fields_ = (
        *(("two", ctypes.c_int), ("nd", ctypes.c_int), ("typekind", ctypes.c_char)),
        *(("itemsize", ctypes.c_int), ("flags", ctypes.c_int)),
        *(("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p), ("data", ctypes.c_void_p)),
    )


_DATA: int = _Interface.data.offset
_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _address(array: np.ndarray[Any, Any]) -> int:
    """Of the first element. `__array_interface__` says it too, and takes several times as long."""
    interface = array.__array_struct__
    return ctypes.c_void_p.from_address(_pointer_in(interface, None) + _DATA).value or 0


def span_of(array: np.ndarray[Any, Any]) -> Span:
    """The addresses of an array's first byte and of the end of its last."""
    low = high = _address(array)
    if array.flags.forc:
        return low, low + array.nbytes
    for size, step in zip(array.shape, array.strides, strict=True):
        low += min((size - 1) * step, 0)
        high += max((size - 1) * step, 0)
    return low, high + array.dtype.itemsize


def _memory_of(owner: Any) -> Span | None:
    """Where the memory of what arrays are views of begins and ends now, ``None`` where it does not
    tell."""
    if isinstance(owner, np.ndarray):
        low, high = span_of(owner)
        return (low, max(high, low + owner.nbytes)) if owner.flags.owndata else None
    if hasattr(owner, "untyped_storage"):  # a tensor, which may have been given another storage
        storage = owner.untyped_storage()
        return storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    try:
        view = memoryview(owner)
        bytes_of = np.frombuffer(view if view.contiguous else b"", np.uint8)
    except TypeError:
        return None  # it has no buffer: a capsule of DLPack, say
    except ValueError:
        return 0, 0  # it was closed
    if bytes_of.nbytes < view.nbytes:
        return None
    begin = _address(bytes_of)
    return begin, begin + bytes_of.nbytes


class ScatteredBytes:
    """The elements of an array that is not contiguous, as bytes in C order, read part by part: a
    copy of the whole would take as much memory again."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def read_into(self, target: memoryview, start: int) -> None:
        _copy_bytes(self._array, np.frombuffer(target, np.uint8), start)


def _copy_bytes(array: np.ndarray[Any, Any], target: np.ndarray[Any, Any], start: int) -> None:
    """Fill `target` with bytes of an array from `start` on: whole rows at once, the first and the
    last, which may be parts, by what they are made of."""
    if not array.ndim:
        target[:] = np.frombuffer(array.tobytes(), np.uint8)[start : start + len(target)]
        return
    row = array.nbytes // len(array)
    while len(target):
        number, skipped = divmod(start, row)
        rows = 0 if skipped else len(target) // row
        size = rows * row or min(row - skipped, len(target))
        if rows:
            some = array[number : number + rows]
            target[:size].view(array.dtype).reshape(some.shape)[...] = some
        else:
            _copy_bytes(array[number, ...], target[:size], skipped)
        target, start = target[size:], start + size


def _strides_in_c_order(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    steps = accumulate(reversed(array.shape[1:]), mul, initial=array.dtype.itemsize)
    return tuple(steps)[::-1]


def _is_frozen(array: np.ndarray[Any, Any]) -> bool:
    """Whether nobody can ever write the memory. The flag alone does not say so: it can be set
    again, and views that were made before it was cleared still write."""
    base: object = array.base
    return type(base) is bytes and not array.flags.writeable


def reduce_dtype(dtype: np.dtype[Any]) -> Any:
    """``np.dtype(spec)``, for structures and where there is metadata with all of its arguments."""
    spec = _spec(dtype)
    metadata = dict(dtype.metadata or {})
    if spec is None or not _is_plain(metadata):
        return dtype.__reduce__()
    if metadata:
        return np.dtype, (spec, dtype.isalignedstruct, False, metadata)
    return np.dtype, (spec, dtype.isalignedstruct) if dtype.names is not None else (spec,)


def _spec(dtype: np.dtype[Any]) -> Any:
    """What `np.dtype` makes the dtype of, ``None`` where only its own reduction knows."""
    if dtype.hasobject:
        return None
    if dtype.subdtype:
        return dtype.subdtype
    if dtype.names is not None:
        if dtype.type is np.record:
            return np.record, np.dtype((np.void, dtype))
        return _fields(dtype) if dtype.type is np.void else None
    if dtype.isbuiltin == 2:
        return dtype.type
    # Two integer types can have one size, and then one string: the character tells them apart.
    # That of C's long means another size on another system, so there the string has to do.
    same = type(np.dtype(dtype.str)) is type(dtype) or dtype.char in "lL"
    return dtype.str if same else dtype.str[0] + dtype.char


def _is_plain(metadata: dict[Any, Any]) -> bool:
    """Whether metadata is nothing but text and numbers, as a reader of untrusted files asks."""
    scalars = str, bytes, int, float, bool, type(None)
    return all(type(part) in scalars for pair in metadata.items() for part in pair)


def _fields(dtype: np.dtype[Any]) -> dict[str, Any]:
    names = list(dtype.names or ())
    described: Any = dtype.fields
    fields = [described[name] for name in names]
    record: dict[str, Any] = {
        "names": names,
        "formats": [field[0].subdtype or field[0] for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    titles = [field[2] if len(field) > 2 else None for field in fields]
    return record | {"titles": titles} if any(titles) else record


def maker(region: Region) -> Any:
    """What a genesis reader has in place of `numpy.ndarray` where that is called for an array in
    the region: it lets a large array be freed without the others."""

    def make_array(
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rest: Any,
        offset: int,
        strides: tuple[int, ...] | None,
    ) -> np.ndarray[Any, Any]:
        size = prod(shape) * dtype.itemsize
        data, low = region.part(offset, size) if size >= _SHARED else (rest, offset)
        return np.ndarray(shape, dtype, data, low, strides)

    return make_array


_FIRST = np.__version__.startswith("1.")
_CORE = "numpy.core" if _FIRST else "numpy._core"
_NEW = {"numpy.rec": "numpy.core.records", "numpy.char": "numpy.core.defchararray"}
"""Modules that NumPy 1 has no such names of."""


def here(module: str) -> str:
    """The name that a module of NumPy's core has in this version. Files name it as the version that
    wrote them did; NumPy 2 warns of the old names, NumPy 1 lacks most of the new ones."""
    if _FIRST and module in _NEW:
        return _NEW[module]
    for core in ("numpy.core", "numpy._core"):
        if module == core or module.startswith(core + "."):
            return _CORE + module.removeprefix(core)
    return module
