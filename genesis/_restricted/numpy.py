"""NumPy arrays, dtypes and scalars of an untrusted skeleton, and JAX arrays over them.

No dtype with objects is ever made, and no array that is not wholly in the data region.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .machine import RefusedError
from .site import (
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
)

MAX_FIELDS: Final = 1 << 14
MAX_DEPTH: Final = 16
MAX_ITEM: Final = 2**31 - 1
DTYPE: Final = re.compile(
    r"[<>|=]?(?:([biufcSUVmM])([0-9]{1,10})(\[\w{1,24}\])?|([iIqQ]))", re.ASCII
)
"""A dtype that is no structure and holds no objects, as ``dtype.str`` writes it, or an integer by
the character of its type."""

_COLUMNS: Final = frozenset(("names", "formats", "offsets", "itemsize", "titles"))
_SCALARS: Final = frozenset((str, bytes, int, float, bool, type(None)))
_CHARACTER: Final = 4
"""Bytes of a character of a ``U`` dtype."""

list_constants("numpy", "record")
list_constants(
    "ml_dtypes",
    "bfloat16 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz "
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu int1 int2 int4 uint1 "
    "uint2 uint4",
)


def _np() -> Any:
    return framework("numpy")


def item_size(text: str) -> int:
    """Bytes an element of the dtype that `text` names.

    Raises:
        RefusedError: no dtype without objects and fields has that name.
    """
    match = DTYPE.fullmatch(text)
    if match is None:
        raise RefusedError("a string that names no dtype of plain data")
    if match[4]:
        return 8 if match[4] in "qQ" else 4
    return int(match[2]) * (_CHARACTER if match[1] == "U" else 1)


def array_range(
    shape: tuple[int, ...], item: int, offset: object, strides: object, room: int
) -> tuple[int, int]:
    """Offset and size of an array's bytes, if they lie within `room` bytes.

    An array is written without gaps, in whatever order of its axes. The stride of an axis of
    length 1 leads nowhere and may be anything.
    """
    if not isinstance(strides, tuple) or len(strides) != len(shape):
        raise RefusedError("shape and strides differ in length")
    size = count_of(shape) * item
    steps = [(n - 1) * natural(step) for n, step in zip(shape, strides, strict=True) if n > 1]
    require(not size or item + sum(steps) == size, "an array with gaps or overlaps")
    return check_range(offset, size, room, "an array lies at")


@builds("numpy ndarray")
def _ndarray(
    site: Site,
    shape: object,
    dtype: Any,
    region: object = None,
    offset: object = 0,
    strides: object = None,
) -> object:
    sizes = naturals(shape)
    _check_dtype(dtype, "the dtype of an array")
    require(dtype.subdtype is None, "an array whose elements are arrays")
    if region is None:
        require(not count_of(sizes) * dtype.itemsize, "an array has elements and no data")
        return _np().ndarray(sizes, dtype)
    require(region is REGION and site.data is not None, "an array over memory of its own")
    low, _ = array_range(sizes, dtype.itemsize, offset, strides, site.size)
    return _np().ndarray(sizes, dtype, site.data, low, strides)


@builds("jax.numpy asarray")
def _jax_array(site: Site, array: Any) -> object:
    require(type(array) is _np().ndarray, f"{brief(array)} as the content of a JAX array")
    site.charge(array.nbytes)
    return framework("jax.numpy").asarray(array)


@builds("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
def _scalar(site: Site, dtype: Any, content: Any) -> object:
    _check_dtype(dtype, "the dtype of a scalar")
    require(type(content) is bytes and len(content) == dtype.itemsize, "a scalar of other bytes")
    site.charge(dtype.itemsize)
    scalar, _ = _np().float64(0).__reduce__()  # stands in another module in NumPy 1 than in 2
    return scalar(dtype, content)


@builds("numpy dtype")
def _dtype(
    site: Site, spec: Any, aligned: object = False, copied: object = False, metadata: object = None
) -> object:
    made = _of_spec(site, spec, aligned=flag(aligned))
    require(not made.hasobject, "a dtype of Python objects")
    if metadata is None:
        return made
    # NumPy walks metadata as it likes, and the judge of the whole result does not see it.
    if type(metadata) is not dict or not _SCALARS.issuperset(map(type, metadata.values())):
        raise RefusedError("a dtype with metadata that is more than text and numbers")
    site.charge(16 * len(metadata))
    return _noted(site, _np().dtype(made, made.isalignedstruct, False, metadata), made)


def _of_spec(site: Site, spec: Any, *, aligned: bool) -> Any:
    if type(spec) is dict:
        return _structure(site, spec, aligned=aligned)
    if type(spec) is tuple:
        return _of_pair(site, *_pair(spec))
    if type(spec) is str:
        item_size(spec)
    else:
        extension = isinstance(spec, type) and spec.__module__ == "ml_dtypes"
        require(extension, f"{brief(spec)} as a dtype")
    return _np().dtype(spec)


def _pair(spec: tuple[Any, ...]) -> tuple[Any, Any]:
    require(len(spec) == 2, "a dtype of other parts")
    return spec[0], spec[1]


def _of_pair(site: Site, first: Any, second: Any) -> Any:
    """An array as one element, or a structure whose elements are records."""
    if first is _np().record:
        _check_dtype(second, "what records are of")
        require(second.names is not None, "records of no structure")
        return _noted(site, _np().dtype((first, second)), second)
    _check_dtype(first, "the elements of an array")
    shape = naturals(second)
    require(count_of(shape) * first.itemsize <= MAX_ITEM, "an element of 2 GiB and more")
    return _noted(site, _np().dtype((first, shape)), first)


def _check_dtype(dtype: object, role: str) -> None:
    require(isinstance(dtype, _np().dtype), f"{brief(dtype)} as {role}")


def _structure(site: Site, spec: dict[str, Any], *, aligned: bool) -> Any:
    require(spec.keys() <= _COLUMNS, "a dtype with columns that no dtype has")
    names, formats, offsets = (_column(site, spec, key) for key in ("names", "formats", "offsets"))
    require(len(names) == len(formats) == len(offsets), "the columns of a dtype differ in length")
    require(all(type(name) is str for name in names), "the name of a field is no string")
    fields = [_field(form) for form in formats]
    size = natural(spec.get("itemsize"))
    for (dtype, shape), offset in zip(fields, offsets, strict=True):
        check_range(offset, count_of(shape) * dtype.itemsize, size, "a field lies at")
    clean: dict[str, Any] = {
        "names": names,
        "formats": fields,
        "offsets": offsets,
        "itemsize": size,
    }
    if "titles" in spec:
        clean["titles"] = _column(site, spec, "titles")
        require(all(type(t) in (str, type(None)) for t in clean["titles"]), "a title is no string")
    return _noted(site, _np().dtype(clean, align=aligned), *(dtype for dtype, _ in fields))


def _column(site: Site, spec: dict[Any, Any], key: str) -> list[Any]:
    column = spec.get(key)
    if type(column) is not list:
        raise RefusedError(f"a dtype without a list of {key}")
    site.charge(16 * len(column))
    return column


def _field(form: Any) -> tuple[Any, tuple[int, ...]]:
    """A dtype and a shape, of which a field is an array."""
    dtype, shape = form if type(form) is tuple and len(form) == 2 else (form, ())
    _check_dtype(dtype, "the format of a field")
    return dtype, naturals(shape)


def _noted(site: Site, made: Any, *parts: object) -> Any:
    """A dtype of other dtypes. NumPy walks these by recursion, and shared parts each time anew:
    both are bounded where they are made."""
    known = [site.structures.get(id(each), (each, 1, 0)) for each in parts]
    fields = 1 + sum(count for _, count, _ in known)
    depth = 1 + max((depth for _, _, depth in known), default=0)
    require(fields <= MAX_FIELDS and depth <= MAX_DEPTH, "a dtype of very many parts")
    site.structures[id(made)] = made, fields, depth
    return made
