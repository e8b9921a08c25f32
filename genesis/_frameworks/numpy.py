"""NumPy arrays and dtypes as pickles that name only ``numpy.ndarray`` and ``numpy.dtype``.

Both names are the same in NumPy 1 and 2. Arrays of Python objects are left to their own reduction.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np

from .._plan import DATA, SMALL, DataRegion


def reducer_for(cls: type, region: DataRegion) -> Any:
    if cls is np.ndarray or cls is np.memmap:
        return partial(reduce_array, region)
    return reduce_dtype if issubclass(cls, np.dtype) else None


def reduce_array(region: DataRegion, array: np.ndarray[Any, Any], *, frozen: bool = False) -> Any:
    """Place the array's bytes; rebuild it as a view of the data region."""
    dtype = array.dtype
    if dtype.hasobject:
        return array.__reduce_ex__(5)
    if not array.size or not dtype.itemsize:
        return np.ndarray, (array.shape, dtype)
    if not array.flags.forc and array.nbytes < SMALL:
        array = np.ascontiguousarray(array)
    frozen = frozen or _is_frozen(array)
    owner: Any = array
    address, strides = array.__array_interface__["data"][0], array.strides
    if not array.flags.forc:
        owner, address, strides = ScatteredBytes(array), 0, _strides_in_c_order(array)
    offset = region.place(owner, address, array.nbytes, frozen=frozen)
    return np.ndarray, (array.shape, dtype, DATA, offset, strides)


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
    return not array.flags.writeable and type(base) is bytes


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
