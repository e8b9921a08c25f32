"""The structure of any pickle, without its values: what `validate_checkpoint` and `inspect` read.

Nothing is imported or called, torch and NumPy included. What only code could tell is `Opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .._errors import CorruptCheckpointError
from .._interrupts import CollectorPaused
from . import numpy, torch
from .machine import MAX_NAME, Machine, MalformedError, RefusedError
from .numpy import array_range
from .site import CUDA, FROM_BUFFER, ExhaustedError, Site, brief, count_of, natural, naturals
from .torch import check_view, storage_range

_UNBOUNDED: Final = 2**63 - 1
_MAX_NAMES: Final = 100_000
_MAX_STEPS: Final = 64
_MAX_KEY: Final = 200


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A tensor or an array, as the skeleton describes it.

    Attributes:
        kind: ``"torch"`` or ``"numpy"``.
        dtype: its name as the framework writes it: ``"bfloat16"``, ``"<f4"``.
        shape: its lengths.
        offset: of its first element in the data region, in bytes.
        nbytes: of its elements. Of a sparse tensor: of its indices and values.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Opaque:
    """Something that only code could build.

    Attributes:
        name: the global it is made by, ``"module.name"``, or what it is in words.
        parts: what the file gives to it: arguments, states, items; outlined too.
    """

    __slots__ = ("name", "parts")

    def __init__(self, name: str, *parts: object) -> None:
        self.name = name
        self.parts = list(parts)

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


class Shaped(Opaque):
    """A tensor or an array of another writer's pickle, whose bytes only code could find.

    Attributes:
        shape: its lengths.
    """

    __slots__ = ("shape",)

    def __init__(self, name: str, shape: object) -> None:
        super().__init__(name)
        self.shape = naturals(shape)


class _Storage(Opaque):
    """A range of the data region, seen as elements of one dtype."""

    __slots__ = ("dtype", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, dtype: str) -> None:
        super().__init__("torch.UntypedStorage")
        self.offset = offset
        self.nbytes = nbytes
        self.dtype = dtype


class _Dtype(Opaque):
    """A dtype of NumPy."""

    __slots__ = ("item", "text")

    def __init__(self, text: str, item: int) -> None:
        super().__init__(f"numpy.dtype({text!r})")
        self.text = text
        self.item = item


class InertWorld:
    """Where nothing is reached: every global is a name.

    Args:
        data_size: of the data region, in bytes; ``None`` for a pickle that is no genesis skeleton.
        text_size: of the skeleton, in bytes.
    """

    strict = False

    def __init__(self, data_size: int | None, text_size: int) -> None:
        self.room = 0 if data_size is None else data_size
        self.region = Opaque("the data region")
        self.names: dict[tuple[str, str], None] = {}
        """Every global that was named, in order."""
        self._site = Site(None, text_size, None)
        self._has_region = data_size is not None

    def memo(self) -> tuple[object, ...]:
        """The slots that are set before a skeleton begins."""
        return (self.region, Opaque(_dotted(FROM_BUFFER))) if self._has_region else ()

    def named(self, module: str, name: str) -> object:
        if len(self.names) < _MAX_NAMES:
            self.names[module, name] = None
        return Opaque(f"{module}.{name}")

    def call(self, function: Any, arguments: Any) -> object:
        name = _name_of(function)
        if name in _READERS and type(arguments) is tuple:
            try:
                return _READERS[name](self, *arguments)
            except _UNREADABLE:
                pass
        return Opaque(name, arguments)

    def new(self, cls: Any, arguments: Any, keywords: Any) -> object:
        return Opaque(_name_of(cls), arguments, keywords)

    def build(self, thing: Any, state: Any) -> object:
        if isinstance(thing, Shaped) and type(state) is tuple and len(state) == 5:
            with suppress(RefusedError):
                thing.shape = naturals(state[1])
        elif isinstance(thing, Opaque):
            thing.parts.append(state)
        return thing

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Opaque):
            target.parts.extend(items)

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if isinstance(target, Opaque):
            held: dict[Any, Any] = {}
            target.parts.append(held)
            target = held
        if type(target) is dict:
            target.update(zip(self._keys(target, keys), values, strict=True))

    def add(self, target: Any, items: list[Any]) -> None:
        if type(target) is set:
            target.update(self._keys(target, items))
        else:
            self.append(target, items)

    def frozen(self, items: list[Any]) -> object:
        return frozenset(self._keys(None, items))

    def outside(self, what: str) -> object:
        return Opaque(what)

    def _keys(self, container: object, keys: list[Any]) -> list[Any]:
        try:
            self._site.check_keys(container, keys)
        except ExhaustedError:
            raise
        except RefusedError:
            return [self._key(container, key) for key in keys]
        return keys

    def _key(self, container: object, key: Any) -> Any:
        """A key that is safe to hash; any other becomes `Opaque`, which hashes by identity."""
        try:
            self._site.check_keys(container, (key,))
        except ExhaustedError:
            raise
        except RefusedError as exc:
            return Opaque(str(exc), key)
        return key


def _name_of(function: object) -> str:
    return function.name if isinstance(function, Opaque) else f"a {type(function).__name__}"


# Reading the calls that genesis writes --------------------------------------------------------

_Kind = TypeVar("_Kind")

_UNREADABLE: Final = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""Arguments of another kind than genesis writes: the thing stays opaque. A `RefusedError` is a
thing of genesis that does not lie in the data region."""


def _storage(
    world: InertWorld, region: object, order: object, size: object, offset: object, dtype: object
) -> _Storage:
    if region is not world.region:
        raise TypeError
    low, length = storage_range(offset, size, world.room)
    return _Storage(low, length, "uint8")


def _empty_storage(world: InertWorld, size: object) -> _Storage:
    if size != 0:
        raise TypeError
    return _Storage(0, 0, "uint8")


def _first(world: InertWorld, first: object, *rest: object) -> object:
    """The first argument, of a call that keeps its content."""
    return first


def _typed(world: InertWorld, storage: Any, dtype: Any) -> _Storage:
    below = _expect(_Storage, storage)
    return _Storage(below.offset, below.nbytes, _torch_dtype(dtype))


def _torch_dtype(dtype: Any) -> str:
    return _expect(Opaque, dtype).name.removeprefix("torch.")


def _expect(kind: type[_Kind], thing: object) -> _Kind:
    if not isinstance(thing, kind):
        raise TypeError
    return thing


def _tensor(
    world: InertWorld, storage: Any, offset: Any, size: Any, stride: Any, *rest: object
) -> ArrayInfo | Shaped:
    if _name_of(storage) == "torch.storage._load_from_bytes":
        return Shaped("torch.Tensor", size)
    return _view(storage, _expect(_Storage, storage).dtype, offset, size, stride)


def _tensor_v3(
    world: InertWorld, storage: Any, offset: Any, size: Any, stride: Any, *rest: object
) -> ArrayInfo:
    return _view(storage, _torch_dtype(rest[2]), offset, size, stride)


def _view(storage: Any, dtype: str, offset: Any, size: Any, stride: Any) -> ArrayInfo:
    below = _expect(_Storage, storage)
    item = torch.DTYPES[dtype]
    count = check_view(offset, size, stride, item, below.nbytes)
    return ArrayInfo("torch", dtype, size, below.offset + offset * item, count * item)


def _meta_tensor(world: InertWorld, dtype: Any, size: Any, *rest: object) -> ArrayInfo:
    return ArrayInfo("torch", _torch_dtype(dtype), naturals(size), 0, 0)


def _sparse_tensor(world: InertWorld, layout: object, data: Any) -> ArrayInfo:
    indices, values, *rest = (part for part in data if not isinstance(part, bool))
    parts = [indices, values, *rest[:-1]]
    for part in parts:
        _expect(ArrayInfo, part)
    nbytes = sum(part.nbytes for part in parts)
    return ArrayInfo("torch", parts[-1].dtype, naturals(rest[-1]), parts[-1].offset, nbytes)


def _packed(
    world: InertWorld, storage: Any, offset: Any, size: Any, *rest: object
) -> ArrayInfo | Shaped:
    below = storage if isinstance(storage, _Storage) else None
    if below is None or below.dtype not in torch.PACKED:
        return _tensor(world, storage, offset, size, *rest)
    nbytes = torch.packed_size(size, torch.PACKED[below.dtype], below.nbytes)
    return ArrayInfo("torch", below.dtype, size, below.offset, nbytes)


def _nested(world: InertWorld, buffer: Any, sizes: Any, *rest: object) -> ArrayInfo:
    below, parts = _expect(ArrayInfo, buffer), _expect(ArrayInfo, sizes)
    return ArrayInfo("torch", below.dtype, parts.shape[:1], below.offset, below.nbytes)


def _jagged(world: InertWorld, parts: Any) -> ArrayInfo:
    values, offsets = (_expect(ArrayInfo, parts[key]) for key in ("values", "offsets"))
    shape = offsets.shape[0] - 1, *values.shape[1:]
    return ArrayInfo("torch", values.dtype, shape, values.offset, values.nbytes)


def _jax_array_of_its_own(
    world: InertWorld, begin: object, arguments: object, state: Any, kind: object
) -> Shaped:
    return Shaped("jax.Array", state[1])


def _method(world: InertWorld, owner: Any, name: Any) -> Opaque:
    """How pickle names a class method."""
    where = _expect(Opaque, owner).name
    if type(name) is not str or len(where) + len(name) > MAX_NAME:
        raise TypeError
    return _expect(Opaque, world.named(where, name))


def _of_subclass(
    world: InertWorld, function: Any, kind: object, arguments: Any, *state: object
) -> object:
    return _READERS[_name_of(function)](world, *_expect(tuple, arguments))


def _array(world: InertWorld, shape: object, dtype: Any, *place: Any) -> ArrayInfo:
    sizes, kind = naturals(shape), _expect(_Dtype, dtype)
    if not place:
        return ArrayInfo("numpy", kind.text, sizes, 0, 0)
    region, offset, strides = place
    if region is not world.region:
        raise TypeError
    low, size = array_range(sizes, kind.item, offset, strides, world.room)
    return ArrayInfo("numpy", kind.text, sizes, low, size)


def _begun_array(world: InertWorld, *rest: object) -> Shaped:
    """Its shape comes with BUILD."""
    return Shaped("numpy.ndarray", (0,))


def _array_of_dill(world: InertWorld, begin: Any, arguments: object, state: Any, *_: object) -> Any:
    if not _name_of(begin).endswith(".multiarray._reconstruct"):
        raise TypeError
    return Shaped("numpy.ndarray", state[1])


def _array_of_buffer(
    world: InertWorld, content: object, dtype: object, shape: Any, *rest: object
) -> Shaped:
    return Shaped("numpy.ndarray", shape)


def _dtype(world: InertWorld, spec: Any, *rest: object) -> object:
    if type(spec) is dict:
        item = natural(spec["itemsize"])
        return _Dtype(f"|V{item}", item)
    if type(spec) is tuple:
        return _dtype_of_pair(*spec)
    if type(spec) is str and numpy.DTYPE.fullmatch(spec):
        return _Dtype(spec, numpy.item_size(spec))
    name = _expect(Opaque, spec).name
    return _Dtype(name, numpy.EXTENSIONS[name.replace(".", " ")])


def _dtype_of_pair(first: object, second: Any) -> _Dtype:
    """A structure of records, or an array as one element."""
    if isinstance(first, _Dtype):
        item = first.item * count_of(naturals(second))
        return _Dtype(f"|V{item}", item)
    return _expect(_Dtype, second)


def _dotted(name: str) -> str:
    return name.replace(" ", ".")


_READERS: Final[dict[str, Callable[..., object]]] = {
    "collections.OrderedDict": lambda world: {},
    "collections.defaultdict": lambda world, factory=None: {},
    "collections.Counter": _first,
    "builtins.set": _first,
    "builtins.frozenset": _first,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _array,
    **{
        f"numpy.{core}.{name}": reader
        for core in ("core", "_core")
        for name, reader in (
            ("multiarray._reconstruct", _begun_array),
            ("numeric._frombuffer", _array_of_buffer),
        )
    },
    "dill._dill._create_array": _array_of_dill,
    "jax.numpy.asarray": _first,
    "torch.Size": _first,
    "torch.UntypedStorage": _empty_storage,
    "torch.storage.UntypedStorage": _empty_storage,
    _dotted(FROM_BUFFER): _storage,
    _dotted(CUDA): _first,
    "torch.multiprocessing.reductions.rebuild_typed_storage": _typed,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": _packed,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
    "jax._src.array._reconstruct_array": _jax_array_of_its_own,
    "builtins.getattr": _method,
    "collections.deque": lambda world, items=(), length=None: [],
    "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
    "torch._utils._rebuild_sparse_tensor": _sparse_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
}


def outline(
    skeleton: bytes | memoryview, *, path: str, base_offset: int = 0, data_size: int | None = None
) -> object:
    """The structure of a pickle: plain containers and scalars, `ArrayInfo`, `Opaque`.

    Args:
        skeleton: a pickle of any protocol, dill's included.
        path: for messages.
        base_offset: of the skeleton in its file, in bytes, for messages.
        data_size: of the data region, in bytes; ``None`` for a pickle that is no genesis skeleton.

    Raises:
        CorruptCheckpointError: it is no pickle, or an array does not lie in the data region.
    """
    world = InertWorld(data_size, len(skeleton))
    machine = Machine(skeleton, world, world.memo())
    pause = CollectorPaused()
    try:
        with pause, pause:
            value = machine.run()
        if machine.left:
            raise MalformedError("the stream goes on after STOP")
    except (MalformedError, RefusedError) as exc:
        raise CorruptCheckpointError(path, str(exc), base_offset + machine.start) from exc
    return value


def global_names(skeleton: bytes | memoryview, *, with_region: bool) -> list[tuple[str, str]]:
    """Module and name of every global of a pickle, up to where it can be read."""
    world = InertWorld(_UNBOUNDED if with_region else None, len(skeleton))
    with suppress(MalformedError, RefusedError):
        Machine(skeleton, world, world.memo()).run()
    return list(world.names)


# Walking an outline -----------------------------------------------------------------------------


class _Place:
    """Where a part stands: a link to the container's place, so that depth costs no memory."""

    __slots__ = ("above", "step")

    def __init__(self, above: _Place | None, step: str) -> None:
        self.above = above
        self.step = step

    def __str__(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        while place is not None and len(steps) < _MAX_STEPS:
            steps.append(place.step)
            place = place.above
        return ("" if place is None else "...") + "".join(reversed(steps))


def arrays(tree: object) -> Iterator[tuple[str, ArrayInfo]]:
    """Every tensor and array of an outline with its place, as one would index it.

    A container that stands in several places is walked in the first.
    """
    seen: set[int] = set()
    waiting: list[tuple[_Place | None, object]] = [(None, tree)]
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, ArrayInfo):
            yield "" if place is None else str(place), part
        elif id(part) not in seen:
            inner = [(_Place(place, step), each) for step, each in _steps(part)]
            if inner:
                seen.add(id(part))
                waiting.extend(reversed(inner))


def _steps(part: object) -> Iterator[tuple[str, object]]:
    if isinstance(part, dict):
        return ((f"[{_shown(key)}]", value) for key, value in part.items())
    if isinstance(part, Opaque):
        return ((f".<{number}>", each) for number, each in enumerate(part.parts))
    if isinstance(part, (list, tuple)):
        return ((f"[{number}]", each) for number, each in enumerate(part))
    return iter(())


def _shown(key: object) -> str:
    """A key in a place: short, and no more digits than Python is willing to print."""
    if isinstance(key, str):
        return repr(key if len(key) <= _MAX_KEY else key[:_MAX_KEY] + "...")
    return repr(key) if type(key) in (float, bool, type(None)) else brief(key)
