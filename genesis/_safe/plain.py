"""Plain containers and scalars that a pickler writes as calls.

Nothing here takes an argument on trust: iterables are exactly lists, keys are scalars.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any, Final

from .described import Opaque, Outliner, expect, first, nothing
from .machine import MAX_NAME, RefusedError
from .site import (
    NOT_LISTED,
    Site,
    Token,
    brief,
    builds,
    describes,
    find,
    framework,
    list_arguments,
    natural,
    require,
)

FACTORIES: Final = {
    f"{module} {kind.__name__}": kind
    for kind in (list, dict, int, float, set, str)
    for module in ("builtins", "__builtin__")
}
"""What a defaultdict may make of nothing."""

list_arguments(*FACTORIES)


@builds("collections OrderedDict")
def _ordered_dict(site: Site) -> object:
    return OrderedDict()


@builds("collections defaultdict")
def _defaultdict(site: Site, factory: object = None) -> object:
    made: defaultdict[Any, Any] = defaultdict(None if factory is None else _factory(factory))
    site.fragile.append(made)
    return made


def _factory(factory: object) -> Any:
    kind = FACTORIES.get(factory.name) if type(factory) is Token else None
    require(kind is not None, "the factory of a defaultdict is no plain type")
    return kind


@builds("collections Counter")
def _counter(site: Site, counts: object = None) -> object:
    """Of a dict: the milestones of a learning rate schedule."""
    if type(counts) is not dict or not all(type(count) is int for count in counts.values()):
        raise RefusedError(f"{brief(counts)} is no dict of counts")
    site.charge(16 * len(counts))
    made: Counter[Any] = Counter()
    dict.update(made, counts)  # whose keys were checked when they were put there
    return made


@builds("flax.core.frozen_dict FrozenDict")
def _frozen_dict(site: Site, content: Any) -> object:
    """Without its own constructor, which copies what is shared once for each place."""
    require(type(content) is dict, f"{brief(content)} as the content of a FrozenDict")
    site.give(content)
    made: Any = object.__new__(framework("flax.core.frozen_dict").FrozenDict)
    object.__setattr__(made, "_dict", content)
    object.__setattr__(made, "_hash", None)
    return made


@builds("builtins set", "__builtin__ set")
def _set(site: Site, items: object = None) -> object:
    return set(_items(site, items))


@builds("builtins frozenset", "__builtin__ frozenset")
def _frozenset(site: Site, items: object = None) -> object:
    return frozenset(_items(site, items))


def _items(site: Site, items: object) -> list[Any]:
    found = [] if items is None else items
    if type(found) is not list:
        raise RefusedError(f"{brief(found)} is no list of items")
    site.charge(16 * len(found))
    site.check_keys(None, found)
    return found


@builds("builtins complex", "__builtin__ complex")
def _complex(site: Site, real: object, imaginary: object) -> object:
    if type(real) is not float or type(imaginary) is not float:
        raise RefusedError("the parts of a complex are not floats")
    return complex(real, imaginary)


@builds("builtins bytearray", "__builtin__ bytearray")
def _bytearray(site: Site, content: object = b"", encoding: object = None) -> object:
    found = content if encoding is None else _encode(site, content, encoding)
    if type(found) is not bytes:
        raise RefusedError(f"{brief(found)} is no content of a bytearray")
    site.charge(len(found))
    return bytearray(found)


@builds("_codecs encode")
def _encode(site: Site, content: object, encoding: object) -> object:
    """Bytes, as protocol 2 writes them."""
    if type(content) is not str or encoding not in ("latin1", "latin-1"):
        raise RefusedError("an encoding that no pickler writes")
    site.charge(len(content))
    return content.encode("latin-1")


@builds("builtins bytes", "__builtin__ bytes")
def _empty_bytes(site: Site) -> object:
    return b""


@builds("builtins slice", "__builtin__ slice")
def _slice(site: Site, start: object, stop: object, step: object) -> object:
    require({type(start), type(stop), type(step)} <= {int, type(None)}, "a slice of no integers")
    return slice(start, stop, step)


@builds("builtins range", "__builtin__ xrange")
def _range(site: Site, start: object, stop: object, step: object) -> object:
    if type(start) is not int or type(stop) is not int or type(step) is not int:
        raise RefusedError("a range of no integers")
    return range(start, stop, step)


@builds("builtins getattr", "__builtin__ getattr")
def _method(site: Site, owner: object = None, name: object = None, *rest: object) -> object:
    """How pickle names a class method. Nothing is looked up: it is registered under this name."""
    path = f"{brief(owner)}.{name}" if type(name) is str and not rest else "builtins.getattr"
    if isinstance(owner, type):
        path = f"{owner.__module__}.{owner.__qualname__}.{name}"
    if path not in site.safe:
        raise RefusedError(NOT_LISTED, path[:MAX_NAME])
    return site.safe[path]


@builds("collections deque")
def _deque(site: Site, items: object = (), length: object = None) -> object:
    require(items == () and type(items) is tuple, "a deque that is begun with items")
    made: deque[Any] = deque(maxlen=None if length is None else natural(length))
    site.fragile.append(made)
    return made


# Times, as their own reductions write them: bytes that the class itself judges ----------------


def _time(kind: Any, size: int) -> Any:
    def build(site: Site, content: Any, zone: object = None) -> object:
        require(
            type(content) is bytes and len(content) == size, f"a {kind.__name__} of other parts"
        )
        require(zone is None or isinstance(zone, tzinfo), f"{brief(zone)} as a time zone")
        return kind(content) if zone is None else kind(content, zone)

    return build


builds("datetime date")(_time(date, 4))
builds("datetime time")(_time(time, 6))
builds("datetime datetime")(_time(datetime, 10))


@builds("datetime timedelta")
def _timedelta(site: Site, days: object, seconds: object, microseconds: object) -> object:
    numbers = days, seconds, microseconds
    require(set(map(type, numbers)) == {int}, "a timedelta of no integers")
    return timedelta(*numbers)  # type: ignore[arg-type]


@builds("datetime timezone")
def _timezone(site: Site, offset: Any, name: Any = "") -> object:
    require(type(offset) is timedelta and type(name) is str, "a time zone of other parts")
    return timezone(offset, name) if name else timezone(offset)


@builds("dill._dill _load_type")
def _type(site: Site, name: object) -> object:
    """How dill writes a type of this module: a name for a name."""
    token = Token(f"builtins {name}" if type(name) is str else "")
    require(find(token.name).listed, "a type that is not on the list")
    return token


# Descriptions of the same calls, for outlines ------------------------------------------------


@describes("builtins getattr", "__builtin__ getattr")
def _describe_method(world: Outliner, owner: Any, name: Any) -> Opaque:
    """How pickle names a class method."""
    where = expect(Opaque, owner).name
    if type(name) is not str or len(where) + len(name) > MAX_NAME:
        raise TypeError
    return expect(Opaque, world.named(where, name))


describes("collections OrderedDict", "collections defaultdict")(nothing(dict))
describes("collections deque")(nothing(list))
describes("collections Counter", "builtins set", "builtins frozenset")(first)
