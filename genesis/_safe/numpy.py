"""NumPy arrays, dtypes and scalars of an untrusted skeleton, and JAX arrays over them.

No dtype with objects is ever made, and no array that is not wholly in the data region.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .described import ArrayInfo, DtypeInfo, Opaque, Outliner, Shaped, expect, first, name_of
from .machine import RefusedError
from .site import (
    REGION,
    Site,
    Token,
    attribute,
    brief,
    builds,
    check_range,
    count_of,
    describes,
    flag,
    framework,
    list_arguments,
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
_METADATA: Final = "a dtype with metadata that is more than text and numbers"
_OBJECTS: Final = "a dtype of Python objects, which may be anything"
_CHARACTER: Final = 4
"""Bytes of a character of a ``U`` dtype."""

_COST_OF_JAX: Final = 600
"""Bytes of copying that an array of JAX's takes as long as, however small it is."""

_RECORD: Final = "numpy record"
EXTENSIONS: Final = {
    f"ml_dtypes {name}": size
    for size, names in (
        (1, "float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz"),
        (1, "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"),
        (1, "int1 int2 int4 uint1 uint2 uint4"),
        (2, "bfloat16"),
        (4, "bcomplex32 complex32"),
    )
    for name in names.split()
}
"""Bytes an element."""

list_arguments(*EXTENSIONS, _RECORD)


def _np() -> Any:
    return framework("numpy")


def item_size(text: str) -> int:
    """Bytes an element of the dtype that `text` names.

    Raises:
        RefusedError: no dtype without objects and fields has that name, or NumPy 1.26 would give it
            another size, zero or less, as its integers overflow.
    """
    match = DTYPE.fullmatch(text)
    if match is None:
        objects = "O" in text[:3]
        raise RefusedError(_OBJECTS if objects else "a string that names no dtype of plain data")
    if match[4]:
        return 8 if match[4] in "qQ" else 4
    size = int(match[2]) * (_CHARACTER if match[1] == "U" else 1)
    require(size <= MAX_ITEM, "an element of 2 GiB and more")
    return size


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
    sizes, size = _measured(site, shape, dtype)
    if region is None:
        require(not size, "an array has elements and no data")
        return _np().ndarray(sizes, dtype)
    if region is not REGION or site.data is None:
        raise RefusedError("an array over memory of its own")
    low, _ = array_range(sizes, dtype.itemsize, offset, strides, site.size)
    from .._pickle.numpy import maker

    return maker(site.data)(sizes, dtype, site.rest, low, strides)


def _measured(site: Site, shape: object, dtype: Any) -> tuple[tuple[int, ...], int]:
    """The shape of an array and its bytes."""
    sizes = naturals(shape)
    _check_dtype(site, dtype, "the dtype of an array")
    require(dtype.subdtype is None, "an array whose elements are arrays")
    return sizes, count_of(sizes) * dtype.itemsize


@builds("jax.numpy asarray")
def _jax_array(site: Site, array: Any) -> object:
    require(type(array) is _np().ndarray, f"{brief(array)} as the content of a JAX array")
    site.charge(array.nbytes + _COST_OF_JAX)
    from .._pickle.jax import asarray

    return asarray(array)


_OTHER_JAX = "a JAX array of another kind"


@builds("jax._src.array _reconstruct_array")
def _jax_array_of_its_own(site: Site, begin: Any, arguments: Any, state: Any, kind: Any) -> object:
    """As JAX reduces it: of a weak type, mostly."""
    begun = type(begin) is Token and begin.name.endswith(".multiarray _reconstruct")
    require(begun and type(arguments) is tuple, "a JAX array that is begun in another way")
    require(type(kind) is dict and kind.keys() <= {"weak_type", "named_shape"}, _OTHER_JAX)
    weak, names = kind.get("weak_type", False), kind.get("named_shape", {})  # JAX up to 0.4.30
    require(type(weak) is bool and type(names) is dict and not names, _OTHER_JAX)
    array: Any = _unfinished_array(site, *arguments)
    site.finish(array, state)
    made: Any = _jax_array(site, array)
    if weak:
        made.aval = made.aval.update(weak_type=True)
    return made


@builds("jax._src.random.prng PRNGImpl", "jax._src.prng PRNGImpl", new=True)
def _jax_generator(site: Site, shape: object, *rest: Any) -> object:
    """Its name stands for it: the functions beside it are JAX's own under that name."""
    name = rest[4] if len(rest) == 6 else None
    require(type(name) is str, "a generator of other parts")
    return Token(f"jax.random {name}")


@builds("jax._src.random.prng PRNGKeyArray", "jax._src.prng PRNGKeyArray", new=True)
def _jax_keys(site: Site) -> object:
    made = object.__new__(type(framework("jax.random").key(0)))
    site.unfinished[id(made)] = made, _finish_jax_keys
    return made


def _finish_jax_keys(site: Site, keys: Any, state: Any) -> None:
    require(type(state) is dict, "typed keys of other parts")
    kind, base = state.get("_impl"), state.get("_base_array")
    known = type(kind) is Token and kind.name.startswith("jax.random ")
    require(known and isinstance(base, framework("jax").Array), "typed keys of other parts")
    sound = framework("jax.random").wrap_key_data(base, impl=kind.name.partition(" ")[2])
    vars(keys).update(vars(sound))


@builds("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
def _scalar(site: Site, dtype: Any, content: Any) -> object:
    _check_dtype(site, dtype, "the dtype of a scalar")
    require(type(content) is bytes and len(content) == dtype.itemsize, "a scalar of other bytes")
    site.charge(dtype.itemsize)
    scalar, _ = _np().float64(0).__reduce__()  # stands in another module in NumPy 1 than in 2
    return scalar(dtype, content)


@builds("numpy dtype")
def _dtype(
    site: Site, spec: Any, aligned: object = False, copied: object = False, metadata: object = None
) -> object:
    made = _of_spec(site, spec, aligned=flag(aligned))
    require(not made.hasobject, _OBJECTS)
    if metadata is None:
        return _unfinished_dtype(site, made) if copied is True and type(spec) is not tuple else made
    # NumPy walks metadata as it likes, and the judge of the whole result does not see it.
    if type(metadata) is not dict or not _SCALARS.issuperset(map(type, metadata.values())):
        raise RefusedError(_METADATA)
    site.charge(16 * len(metadata))
    return _noted(site, _np().dtype(made, made.isalignedstruct, False, metadata), made)


def _of_spec(site: Site, spec: Any, *, aligned: bool) -> Any:
    if type(spec) is dict:
        return _structure(site, spec, aligned=aligned)
    if type(spec) is tuple:
        return _of_pair(site, *_parts(spec, 2))
    if type(spec) is str:
        item_size(spec)
        return _np().dtype(spec)
    if type(spec) is not Token or spec.name not in EXTENSIONS:
        raise RefusedError(f"{brief(spec)} as a dtype")
    module, name = spec.name.split()
    return _np().dtype(attribute(module, name))


def _of_pair(site: Site, first: Any, second: Any) -> Any:
    """An array as one element, or a structure whose elements are records."""
    if type(first) is Token and first.name == _RECORD:
        _check_dtype(site, second, "what records are of")
        require(second.names is not None, "records of no structure")
        return _noted(site, _np().dtype((_np().record, second)), second)
    _check_dtype(site, first, "the elements of an array")
    shape = naturals(second)
    require(count_of(shape) * first.itemsize <= MAX_ITEM, "an element of 2 GiB and more")
    return _noted(site, _np().dtype((first, shape)), first)


def _check_dtype(site: Site, dtype: object, role: str) -> None:
    known = isinstance(dtype, _np().dtype) and id(dtype) not in site.unfinished
    require(known, f"{brief(dtype)} as {role}")


def _structure(site: Site, spec: dict[str, Any], *, aligned: bool) -> Any:
    require(spec.keys() <= _COLUMNS, "a dtype with columns that no dtype has")
    names, formats, offsets = (_column(site, spec, key) for key in ("names", "formats", "offsets"))
    require(len(names) == len(formats) == len(offsets), "the columns of a dtype differ in length")
    require(all(type(name) is str for name in names), "the name of a field is no string")
    fields = [_field(site, form) for form in formats]
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


def _field(site: Site, form: Any) -> tuple[Any, tuple[int, ...]]:
    """A dtype and a shape, of which a field is an array."""
    dtype, shape = form if type(form) is tuple and len(form) == 2 else (form, ())
    _check_dtype(site, dtype, "the format of a field")
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


# What NumPy's own reductions write, as plain pickles hold them ---------------------------------


@builds("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
def _unfinished_array(site: Site, kind: Any, shape: object, code: object) -> object:
    plain = type(kind) is Token and kind.name == "numpy ndarray"
    require(plain, f"{brief(kind)} as the class of an array")
    require(shape == (0,) and code == b"b", "an array that is begun in another way")
    made = _np().ndarray((0,), "i1")
    site.unfinished[id(made)] = made, _finish_array
    return made


def _finish_array(site: Site, array: Any, state: object) -> None:
    _version, shape, dtype, fortran, content = _parts(state, 5)
    sizes, size = _measured(site, shape, dtype)
    require(type(content) is bytes, f"{brief(content)} as the content of an array")
    require(len(content) == size, "an array of other bytes")
    site.charge(len(content))
    array.__setstate__((1, sizes, dtype, flag(fortran), content))


@builds("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
def _array_of_buffer(site: Site, content: Any, dtype: Any, shape: object, order: object) -> object:
    require(type(content) in (bytes, bytearray), f"{brief(content)} as the content of an array")
    sizes, size = _measured(site, shape, dtype)
    require(len(content) == size, "an array of other bytes")
    require(order in ("C", "F"), "an array in no order")
    return _np().ndarray(sizes, dtype, content, order=order)


def _unfinished_dtype(site: Site, dtype: Any) -> Any:
    """A dtype that is nobody else's: what NumPy makes of a string is new, or one that it shares."""
    made = _np().dtype(dtype, False, True)
    require(made is not _np().dtype(made.type), "a dtype that NumPy does not copy")
    site.unfinished[id(made)] = made, _finish_dtype
    return made


def _finish_dtype(site: Site, dtype: Any, state: object) -> None:
    """The state comes from a dtype that is made here: NumPy believes whatever it is told."""
    wanted = _described(site, dtype, state)
    same = type(wanted) is type(dtype) and wanted.itemsize == dtype.itemsize
    require(same, "the state of another dtype")
    dtype.__setstate__(wanted.__reduce__()[2])
    if noted := site.structures.get(id(wanted)):
        site.structures[id(dtype)] = dtype, *noted[1:]


def _described(site: Site, dtype: Any, state: object) -> Any:
    _version, order, subarray, names, fields, size, _alignment, flags, *more = _parts(state, 8, 9)
    metadata, time = _parts(more[0], 2) if more and dtype.kind in "mM" else (more, None)
    require(not metadata, _METADATA)
    if subarray is not None:
        return _of_pair(site, *_parts(subarray, 2))
    if names is not None:
        require(type(flags) is int, "a structure with flags that are no number")
        return _structure(site, _columns(names, fields, size), aligned=bool(flags & 128))
    require(order in ("<", ">", "|", "="), "a dtype in no order of bytes")
    if time is not None:
        unit, number, *_ = _parts(time, 2, 4)
        return _np().dtype(f"{order}{dtype.kind}8{_unit(unit, number)}")
    return dtype.newbyteorder(order)


def _unit(unit: object, number: object) -> str:
    if type(unit) is not bytes or not unit.isalpha() or len(unit) > 8:
        raise RefusedError(f"{brief(unit)} as a unit of time")
    return "" if unit == b"generic" else f"[{natural(number)}{unit.decode()}]"


def _columns(names: object, fields: object, size: object) -> dict[str, Any]:
    if type(names) is not tuple or type(fields) is not dict:
        raise RefusedError("a structure of other parts")
    require(all(type(name) is str for name in names), "the name of a field is no string")
    described = [_parts(fields.get(name), 2, 3) for name in names]
    columns = {
        "names": list(names),
        "formats": [each[0] for each in described],
        "offsets": [each[1] for each in described],
        "itemsize": size,
    }
    titles = [each[2] if len(each) > 2 else None for each in described]
    return columns | {"titles": titles} if any(titles) else columns


def _parts(thing: object, *lengths: int) -> tuple[Any, ...]:
    if type(thing) is not tuple or len(thing) not in lengths:
        raise RefusedError(f"{brief(thing)} in the place of {lengths[0]} parts")
    return thing


# Descriptions of the same calls, for outlines ------------------------------------------------


@describes("numpy ndarray")
def _describe_array(world: Outliner, shape: object, dtype: Any, *place: Any) -> ArrayInfo:
    sizes, kind = naturals(shape), expect(DtypeInfo, dtype)
    if not place:
        return ArrayInfo("numpy", kind.text, sizes, 0, 0)
    region, offset, strides = place
    if region is not world.region:
        raise TypeError
    low, size = array_range(sizes, kind.item, offset, strides, world.room)
    return ArrayInfo("numpy", kind.text, sizes, low, size)


@describes("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
def _describe_begun_array(world: Outliner, *rest: object) -> Shaped:
    """Its shape comes with BUILD."""
    return Shaped("numpy.ndarray", (0,))


@describes("dill._dill _create_array")
def _describe_array_of_dill(
    world: Outliner, begin: Any, arguments: object, state: Any, *_: object
) -> Any:
    if not name_of(begin).endswith(".multiarray._reconstruct"):
        raise TypeError
    return Shaped("numpy.ndarray", state[1])


@describes("numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer")
def _describe_array_of_buffer(
    world: Outliner, content: object, dtype: object, shape: Any, *rest: object
) -> Shaped:
    return Shaped("numpy.ndarray", shape)


@describes("numpy dtype")
def _describe_dtype(world: Outliner, spec: Any, *rest: object) -> object:
    if type(spec) is dict:
        item = natural(spec["itemsize"])
        return DtypeInfo(f"|V{item}", item)
    if type(spec) is tuple:
        return _describe_dtype_of_pair(*spec)
    if type(spec) is str and DTYPE.fullmatch(spec):
        return DtypeInfo(spec, item_size(spec))
    name = expect(Opaque, spec).name
    return DtypeInfo(name, EXTENSIONS[name.replace(".", " ")])


def _describe_dtype_of_pair(first: object, second: Any) -> DtypeInfo:
    """A structure of records, or an array as one element."""
    if isinstance(first, DtypeInfo):
        item = first.item * count_of(naturals(second))
        return DtypeInfo(f"|V{item}", item)
    return expect(DtypeInfo, second)


@describes("jax._src.array _reconstruct_array")
def _describe_jax_array_of_its_own(
    world: Outliner, begin: object, arguments: object, state: Any, kind: object
) -> Shaped:
    return Shaped("jax.Array", state[1])


describes("jax.numpy asarray")(first)
