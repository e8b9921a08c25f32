"""Where constructors of an untrusted skeleton build, and the tests that every argument must pass.

Holds the data region, the budgets and the list of constructors. It builds nothing itself.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import chain
from math import prod
from operator import mul
from typing import Any, Final

from .._pickle.region import Region
from .machine import RefusedError

MAX_INT: Final = 2**63 - 1
MAX_DIMENSIONS: Final = 64
MAX_TUPLE_KEY: Final = 256
MAX_KEY_BITS: Final = 1024
MAX_COLLISIONS: Final = 16
MAX_OWN_HASH: Final = sys.hash_info.modulus
"""Integers below it are their own hashes."""

FROM_BUFFER: Final = "torch UntypedStorage.from_buffer"
CUDA: Final = "torch.storage _StorageBase.cuda"

_ONLY_INTEGERS: Final = frozenset((int,))
_SCALARS: Final = frozenset((str, int, float, complex, bytes, bool, type(None)))
_NUMPY_KINDS: Final = "biufcSUmM"
"""Kinds of NumPy scalars that are hashed as what they stand for, without other objects."""

_TORCH_KEYS: Final = frozenset(
    ("dtype", "device", "layout", "memory_format", "qscheme", "Size", "_DimRange")
)


class ExhaustedError(RefusedError):
    """The budget is spent: whoever goes on in spite of a refusal ends here."""


class Token:
    """Stands for a global: a name, of which only the list can make something."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name.replace(" ", ".")


REGION: Final = Token("the data region")
"""Stands for the data region, so that no file gets hold of the buffer itself."""

Constructor = Callable[..., object]
"""Takes the `Site` and the arguments of a REDUCE, judges them, returns the thing."""

Finisher = Callable[..., None]
"""Takes the `Site`, the thing and the state of a BUILD, judges it, completes the thing."""

Description = Callable[..., object]
"""Takes an `Outliner` and the arguments of a REDUCE; returns what stands for the thing in an
outline. What it raises for other arguments leaves the thing opaque."""


@dataclass(slots=True)
class Entry:
    """What is known of a global.

    Attributes:
        build: how a reader of untrusted files makes a thing by it.
        new: NEWOBJ may call it too: it is a class.
        value: the module and attribute of the value that it is.
        argument: it means something to a constructor, and is no value: a type.
        describe: what stands for a thing made by it in an outline.
    """

    build: Constructor | None = None
    new: bool = False
    value: tuple[str, str] | None = None
    argument: bool = False
    describe: Description | None = None

    @property
    def listed(self) -> bool:
        """Whether an untrusted file may name it."""
        return bool(self.build or self.value or self.argument)


REGISTRY: Final[defaultdict[str, Entry]] = defaultdict(Entry)
"""The one list of globals, by ``"module name"``: for what loads, and for what outlines."""

INERT_MODULES: Final = "jax._src.prng", "jax._src.random."
"""Functions of these are arguments too: what a typed key of JAX names beside its own name."""

RECORDS: Final = frozenset(("optax", "flax"))
"""Libraries whose named tuples are states."""

NOT_LISTED: Final = "a global that is not on the list"


def builds(*names: str, new: bool = False) -> Callable[[Constructor], Constructor]:
    """Put a constructor on the list, of a class that NEWOBJ makes with `new`."""

    def register(constructor: Constructor) -> Constructor:
        for name in names:
            REGISTRY[name].build, REGISTRY[name].new = constructor, new
        return constructor

    return register


def describes(*names: str) -> Callable[[Description], Description]:
    """Put a description on the list."""

    def register(description: Description) -> Description:
        for name in names:
            REGISTRY[name].describe = description
        return description

    return register


def list_arguments(*names: str) -> None:
    """Put globals on the list that only mean something to a constructor."""
    for name in names:
        REGISTRY[name].argument = True


def list_constants(module: str, names: str, *, written_as: str | None = None) -> None:
    """Put the attributes `names` of a module on the list, as values.

    Args:
        written_as: what stands before the name in a pickle, the module by default.
    """
    for name in names.split():
        REGISTRY[(written_as or f"{module} ") + name].value = module, name


def find(key: str) -> Entry:
    """What is known of a global, ``"module name"``; of one that is not known, nothing."""
    return REGISTRY.get(key, _UNKNOWN)


_UNKNOWN: Final = Entry()


@cache
def framework(name: str) -> Any:
    """A module that one of our constructors needs; never one that a file names freely."""
    return import_module(name)


def attribute(module: str, name: str) -> Any:
    """What a framework has under a listed name.

    Raises:
        RefusedError: nothing: the file was written beside a later version.
    """
    found = getattr(framework(module), name, None)
    if found is None:
        version = getattr(framework(module), "__version__", "this version")
        problem = f"{module} {version} has no {name}, which the file needs"
        raise RefusedError(problem, hint=f"load it with a later {module}")
    return found


class Site:
    """One load: its data region and what may still be spent.

    Args:
        data: the data region or a buffer of it, ``None`` where there is none.
        text_size: bytes of the skeleton.
        map_location: where tensors go.
        safe: what a person registered, by ``"module.name"``.
    """

    def __init__(
        self, data: Any, text_size: int, map_location: Any, safe: Mapping[str, Any] | None = None
    ) -> None:
        self.safe = safe or {}
        self.given: list[object] = []
        """What went into things that a walk of the result does not enter: attributes, arguments."""
        self.records: set[type] = set()
        """Classes of named tuples that were made."""
        self.data = data if data is None or isinstance(data, Region) else Region(data)
        self.size = 0 if self.data is None else self.data.size
        self.rest = None if self.data is None else self.data.rest()
        self.map_location = map_location
        self.storages: dict[tuple[int, int], object] = {}
        """By offset and size: those of the same bytes are one."""
        self.fragile: list[defaultdict[Any, Any] | deque[Any]] = []
        """Every one that was made. CPython frees a deep nest of them by recursion in C, which
        overflows the stack; while they stand here, none is freed."""
        self.structures: dict[int, tuple[object, int, int]] = {}
        """Structured dtypes by id: each with its number of fields and its depth."""
        self.unfinished: dict[int, tuple[Any, Finisher]] = {}
        """Things by id that BUILD completes, each once, and what judges their state. Nothing else
        may be made of one before."""
        # A storage, its copy on a device, the check of sparse indices: each takes every byte of an
        # honest file once. A copied container costs 16 an item, which took a byte of the skeleton.
        self._left = 4 * self.size + 32 * text_size + 65_536
        self._asked: dict[Callable[[], Any], Any] = {}
        self._hashes: dict[int, tuple[object, dict[int, int]]] = {}
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._tuples: dict[int, tuple[Any, ...]] = {}
        """Tuples that were keys, by id."""

    def charge(self, size: int) -> None:
        """Spend `size` bytes of copying or checking, which a memo makes cheap to ask for again."""
        self._left -= size
        if self._left < 0:
            raise ExhaustedError("more is copied than the file holds")

    def once(self, question: Callable[[], Any]) -> Any:
        """What a function answers, which is asked once a load: what holds for all of it may take
        longer to find out than a tensor to make."""
        if question not in self._asked:
            self._asked[question] = question()
        return self._asked[question]

    def knows(self, thing: object) -> bool:
        """Whether somebody registered it."""
        return any(thing is each for each in self.safe.values())

    def give(self, thing: object) -> None:
        """Note what is out of sight from now on. It is walked with the rest in the end, and until
        then pays for what it holds now."""
        self.charge(16)
        self.given.append(thing)

    def copied(self, part: Any, copy: Callable[[Site, Any], Any]) -> Any:
        """One copy of a part, however often it is used: what shares it goes on sharing."""
        if id(part) not in self._copies:
            self._copies[id(part)] = part, copy(self, part)
        return self._copies[id(part)][1]

    def finish(self, thing: object, state: object) -> None:
        """BUILD for what a constructor left unfinished."""
        _, finisher = self.unfinished[id(thing)]
        finisher(self, thing, state)
        del self.unfinished[id(thing)]

    def check_keys(self, container: object, keys: Collection[Any]) -> None:
        """Keys must be strings, numbers, or flat tuples of these, and not of one hash.

        A deep tuple overflows the C stack when it is hashed; the hashes of all but strings can be
        chosen, and a dict whose keys share one hash takes quadratic time.

        Args:
            container: what the keys go into, maybe together with others later; ``None`` where they
                are all that it will hold.
        """
        kinds = set(map(type, keys))
        kinds.discard(str)
        if not kinds or (kinds == {int} and _are_small(keys)):
            return  # at most two small integers share a hash: -1 and -2
        if self.unfinished:
            require(self.unfinished.keys().isdisjoint(map(id, keys)), "a key that is not finished")
        if tuple in kinds:
            self._check_tuples([key for key in keys if type(key) is tuple])
        _check_scalars([key for key in keys if type(key) is not tuple])
        self._count(container, [hash(key) for key in keys if type(key) is not str])

    def _count(self, container: object, codes: list[int]) -> None:
        """Refuse what was chosen to collide: many keys of one hash in one container."""
        if len(codes) <= MAX_COLLISIONS and container is None:
            return
        counts: dict[int, int] = {}
        if container is not None:
            counts = self._hashes.setdefault(id(container), (container, counts))[1]
        new = dict.fromkeys(codes, 1)
        if len(new) == len(codes) and counts.keys().isdisjoint(new):
            counts.update(new)
            return
        for code in codes:
            counts[code] = count = counts.get(code, 0) + 1
            require(count <= MAX_COLLISIONS, "keys were chosen to collide")

    def _check_tuples(self, keys: list[tuple[Any, ...]]) -> None:
        """The parts of each tuple once, however often it is a key; but its hash takes its time
        whenever it is one."""
        self.charge(4 * sum(map(len, keys)) + 8 * len(keys))
        new = [key for key in keys if id(key) not in self._tuples]
        longest = max(map(len, new), default=0)
        require(longest <= MAX_TUPLE_KEY, f"a key is a tuple of {longest:,}")
        parts = list(chain.from_iterable(new))
        if self.unfinished:
            require(self.unfinished.keys().isdisjoint(map(id, parts)), "a key that is not finished")
        if tuple in set(map(type, parts)):
            raise RefusedError("a key is a tuple with a tuple in it", hint=_OTHER_KEYS)
        _check_scalars(parts)
        self._tuples.update(zip(map(id, new), new, strict=True))


def _are_small(keys: Iterable[Any]) -> bool:
    numbers = [key for key in keys if type(key) is int]
    return max(numbers) < MAX_OWN_HASH and min(numbers) > -MAX_OWN_HASH


_OTHER_KEYS = (
    "if you trust the file, load it with weights_only=False; or save it again with strings, "
    "numbers or flat tuples for keys"
)


def _check_scalars(keys: list[Any]) -> None:
    kinds = set(map(type, keys))
    if int in kinds:
        bits = max(key.bit_length() for key in keys if type(key) is int)
        require(bits <= MAX_KEY_BITS, "a key is a huge number")
    if not kinds <= _SCALARS:
        for key in keys:
            if type(key) not in _SCALARS and not _is_constant(key):
                raise RefusedError(f"a key is {brief(key)}", hint=_OTHER_KEYS)


def _is_constant(key: Any) -> bool:
    """A scalar or a dtype of NumPy, or one of torch's small values: all hashed without others."""
    module = type(key).__module__
    if module in ("torch", "torch._dynamo.decorators"):
        return type(key).__name__ in _TORCH_KEYS
    if not module.startswith("numpy"):
        return False
    np = framework("numpy")
    if isinstance(key, np.dtype):
        return not key.hasobject and key.names is None and key.subdtype is None
    return isinstance(key, np.generic) and key.dtype.kind in _NUMPY_KINDS


def require(condition: bool, problem: str) -> None:
    if not condition:
        raise RefusedError(problem)


def brief(value: object) -> str:
    """A hostile value in a message: itself only where that is short and harmless."""
    if type(value) is Token:
        return str(value)
    if type(value) is int and value.bit_length() <= 128:
        return str(value)
    return f"a {type(value).__name__}"


def natural(value: object) -> int:
    """`value`, if it is a size, an offset or a stride that fits 63 bits."""
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise RefusedError(f"{brief(value)} is no size, offset or stride")
    return value


def naturals(value: object) -> tuple[int, ...]:
    """`value`, if it is a shape or strides."""
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise RefusedError(f"{brief(value)} is no shape and no strides")
    plain = type(value) is tuple and _ONLY_INTEGERS.issuperset(map(type, value))
    if plain and (not value or (min(value) >= 0 and max(value) <= MAX_INT)):
        return value
    return tuple(map(natural, value))


def flag(value: object) -> bool:
    if type(value) is not bool:
        raise RefusedError(f"{brief(value)} is no flag")
    return value


def count_of(shape: tuple[int, ...]) -> int:
    """Elements of a shape; they must fit 63 bits even where another dimension is 0."""
    count = prod(shape)
    if not 0 < count <= MAX_INT:
        nonzero = prod(filter(None, shape))
        require(nonzero <= MAX_INT, "a shape of more elements than can be counted")
    return count


def span_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from a view's first to its last, both included; 0 where it has none."""
    require(len(shape) == len(strides), "shape and strides differ in length")
    if not count_of(shape):
        return 0
    span: int = 1 + sum(map(mul, shape, strides)) - sum(strides)
    return span


def check_range(offset: object, size: object, room: int, what: str) -> tuple[int, int]:
    """`offset` and `size`, if they lie in `room` bytes."""
    low, length = natural(offset), natural(size)
    if low + length > room:
        raise RefusedError(f"{what} [{low:,}, {low + length:,}) of {room:,} bytes")
    return low, length
