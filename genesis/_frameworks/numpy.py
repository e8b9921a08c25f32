"""NumPy arrays and dtypes as pickles that name only ``numpy.ndarray`` and ``numpy.dtype``.

Both names are the same in NumPy 1 and 2. Arrays of Python objects are left to their own reduction.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .._plan import DATA, DataRegion


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
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        array = np.ascontiguousarray(array)
    address = array.__array_interface__["data"][0]
    offset = region.place(array, address, array.nbytes, frozen=frozen or _is_frozen(array))
    return np.ndarray, (array.shape, dtype, DATA, offset, array.strides)


def _is_frozen(array: np.ndarray[Any, Any]) -> bool:
    """Whether nobody can ever write the memory. The flag alone does not say so: it can be set
    again, and views that were made before it was cleared still write."""
    base: object = array.base
    return not array.flags.writeable and type(base) is bytes


def reduce_dtype(dtype: np.dtype[Any]) -> Any:
    """``np.dtype(string)``, of a structure ``np.dtype(dict, align)``, else ``np.dtype(class)``."""
    if dtype.metadata or dtype.hasobject or dtype.subdtype or _is_special_structure(dtype):
        return dtype.__reduce__()
    if dtype.fields:
        return np.dtype, (_fields(dtype), dtype.isalignedstruct)
    if dtype.isbuiltin == 2:
        return np.dtype, (dtype.type,)
    # Two integer types can have one size, and then one string: the character tells them apart.
    same = type(np.dtype(dtype.str)) is type(dtype)
    return np.dtype, (dtype.str if same else dtype.char,)


def _is_special_structure(dtype: np.dtype[Any]) -> bool:
    """A structure of records, or of no fields."""
    return dtype.names is not None and (not dtype.names or dtype.type is not np.void)


def _fields(dtype: np.dtype[Any]) -> dict[str, Any]:
    names = list(dtype.names or ())
    described: Any = dtype.fields
    fields = [described[name] for name in names]
    record: dict[str, Any] = {
        "names": names,
        "formats": [field[0] for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    titles = [field[2] if len(field) > 2 else None for field in fields]
    return record | {"titles": titles} if any(titles) else record
