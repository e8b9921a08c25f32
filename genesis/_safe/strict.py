"""The world of ``weights_only=True``: what stands on the list is built, all else is refused.

No name in a file is looked up anywhere but on the list and among what a person registered; nothing
else is called. An attribute is set on nothing but an OrderedDict, ``_metadata``, and on what a
registered class or function made for this file.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator
from enum import Enum
from functools import cache
from itertools import chain
from typing import Any, Final

from . import numpy, plain, torch
from .machine import RefusedError
from .site import (
    FROM_BUFFER,
    INERT_MODULES,
    NOT_LISTED,
    RECORDS,
    REGION,
    Site,
    Token,
    attribute,
    brief,
    find,
    framework,
    require,
)

MAX_DEPTH: Final = 1000
"""Nesting of containers: what a recursive function of Python's can walk."""
MAX_EXPANSION: Final = 100_000_000
"""Values that somebody meets who walks the result and does not notice that parts are shared."""

_LISTS: Final = numpy, plain, torch
"""These modules fill the list when they are imported."""

_MAPPINGS: Final = frozenset((dict, OrderedDict, defaultdict))
_SEQUENCES: Final = frozenset((list, tuple, deque))
_OTHERS: Final = _MAPPINGS | {Token}
"""What else a walk stops at: everything but these and sequences holds nothing of the file."""


def listed(module: str, name: str) -> bool:
    """Whether a global stands on the list."""
    key = f"{module} {name}"
    return find(key).listed or module.startswith(INERT_MODULES)


@cache
def record_class(module: str, name: str) -> type | None:
    """The class of a named tuple in a library of states, ``None`` if it is none.

    The library is imported by its own name, and its modules are only looked at: a file gets no
    module imported.
    """
    root = module.partition(".")[0]
    if root not in RECORDS:
        return None
    try:
        framework(root)
    except ImportError:
        return None
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    plain = isinstance(found, type) and found.__bases__ == (tuple,) and hasattr(found, "_fields")
    return found if plain else None


class StrictWorld:
    """What an untrusted skeleton can reach.

    Args:
        site: where things are built.
    """

    strict = True

    def __init__(self, site: Site) -> None:
        self._site = site
        self._safe = site.safe
        self._registered = {id(thing) for thing in site.safe.values()}
        self._owners = {path.rpartition(".")[0] for path in site.safe}
        self._named: dict[tuple[str, str], object] = {}
        self._made: dict[int, object] = {}
        """What registered classes and functions made, by id. Only this is given a state or items:
        tensors and dtypes look as if they were of a registered class, if somebody registered it."""

    def memo(self) -> tuple[object, ...]:
        """The slots that are set before a skeleton begins."""
        return () if self._site.data is None else (REGION, Token(FROM_BUFFER))

    def named(self, module: str, name: str) -> object:
        """The list comes first: people register ``numpy.ndarray`` out of habit, and what is listed
        is built from judged arguments."""
        found = self._named.get((module, name))
        if found is None:
            found = self._named[module, name] = self._find(module, name)
        return found

    def _find(self, module: str, name: str) -> object:
        path = f"{module}.{name}"
        if listed(module, name):
            where = find(f"{module} {name}").value
            return _attempt(path, attribute, *where) if where else Token(f"{module} {name}")
        if path in self._safe:
            return self._safe[path]
        if path in self._owners or record_class(module, name):
            return Token(f"{module} {name}")
        raise RefusedError(NOT_LISTED, path)

    def call(self, function: Any, arguments: Any) -> object:
        require(type(arguments) is tuple, "a call without a tuple of arguments")
        if type(function) is Token and (build := find(function.name).build):
            try:
                return build(self._site, *arguments)
            except Exception as exc:
                raise _refusal(function, exc) from exc
        real = self._real(function)
        if id(real) not in self._registered:
            raise RefusedError(f"a call of {brief(function)}", "REDUCE")
        return self._make("a registered global", real, *self._judged(arguments))

    def new(self, cls: Any, arguments: Any, keywords: Any) -> object:
        real = self._real(cls)
        if type(real) is Token and not keywords:
            if find(real.name).new:
                return self.call(real, arguments)
            if found := record_class(*real.name.split(" ")):
                return self._record(found, arguments)
        if not isinstance(real, type) or id(real) not in self._registered:
            raise RefusedError(f"an instance of {brief(cls)}", "NEWOBJ")
        require(type(arguments) is tuple and type(keywords) is dict, "a call of other arguments")
        self._give(keywords)
        values = self._judged(arguments)
        return self._make("a registered class", real.__new__, real, *values, **keywords)

    def _record(self, cls: type, arguments: Any) -> object:
        """A named tuple, without a call of anything of its class."""
        fits = type(arguments) is tuple and len(arguments) == len(cls._fields)  # type: ignore[attr-defined]
        require(fits, f"a {cls.__name__} of other fields")
        self._site.records.add(cls)
        return tuple.__new__(cls, arguments)

    def _make(self, what: str, function: Callable[..., object], *arguments: Any, **kw: Any) -> Any:
        made = _attempt(what, function, *arguments, **kw)
        if id(type(made)) in self._registered and not isinstance(made, Enum):
            self._made[id(made)] = made
        return made

    def build(self, thing: Any, state: Any) -> object:
        """torch hangs the versions of modules on a state dict, as an attribute."""
        if type(thing) is OrderedDict and type(state) is dict and state.keys() == {"_metadata"}:
            vars(thing)["_metadata"] = state["_metadata"]
        elif id(thing) in self._site.unfinished:
            _attempt(f"the state of {brief(thing)}", self._site.finish, thing, state)
        elif id(thing) in self._made:
            self._give(state)
            _attempt("the state of a registered class", _set_state, thing, state)
        else:
            raise RefusedError(f"the state of {brief(thing)} is set", "BUILD")
        return thing

    def append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list or type(target) is deque:
            target.extend(items)
        elif id(target) in self._made:
            _attempt("a registered class", _append, target, self._judged(items))
        else:
            raise RefusedError(f"items are added to {brief(target)}", "APPENDS")

    def put(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        self._site.check_keys(target, keys)
        if type(target) in _MAPPINGS:
            target.update(zip(keys, values, strict=True))
        elif id(target) in self._made:
            _attempt("a registered class", _put, target, keys, self._judged(values))
        else:
            raise RefusedError(f"items are set in {brief(target)}", "SETITEMS")

    def add(self, target: Any, items: list[Any]) -> None:
        if type(target) is not set:
            raise RefusedError(f"items are added to {brief(target)}", "ADDITEMS")
        self._site.check_keys(target, items)
        target.update(items)

    def frozen(self, items: list[Any]) -> object:
        self._site.check_keys(None, items)
        return frozenset(items)

    def outside(self, what: str) -> object:
        raise RefusedError(what)

    def _real(self, thing: Any) -> Any:
        """What is listed and registered as well, as a registered function needs it."""
        return self._safe.get(str(thing), thing) if type(thing) is Token else thing

    def _judged(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """What registered code is given: no stand-ins, and no nest that overflows a stack."""
        real = tuple(map(self._real, values))
        self._give(real)
        return real

    def _give(self, thing: object) -> None:
        survey(thing, self._site.records, self._site)
        self._site.give(thing)


def _attempt(
    what: object, function: Callable[..., object], *arguments: Any, **keywords: Any
) -> Any:
    """Call into a framework: whatever it raises for a hostile argument is a refusal."""
    try:
        return function(*arguments, **keywords)
    except Exception as exc:
        raise _refusal(what, exc) from exc


def _refusal(what: object, exc: Exception) -> RefusedError:
    if isinstance(exc, RefusedError):
        return RefusedError(f"{what}: {exc}", *exc.names, hint=exc.hint)
    return RefusedError(f"{what}: {type(exc).__name__}: {exc}")


def _append(target: Any, items: Iterable[Any]) -> None:
    for item in items:
        target.append(item)


def _put(target: Any, keys: Iterable[Any], values: Iterable[Any]) -> None:
    for key, value in zip(keys, values, strict=True):
        target[key] = value


def _set_state(thing: Any, state: Any) -> None:
    """As pickle does it."""
    if setter := getattr(thing, "__setstate__", None):
        setter(state)
        return
    pair = state if type(state) is tuple and len(state) == 2 else (state, None)
    attributes, slots = pair
    if attributes:
        vars(thing).update(attributes)
    for name, value in (slots or {}).items():
        setattr(thing, name, value)


def survey(root: object, records: set[type], site: Site | None = None) -> Container[int]:
    """Walk all containers of `root`, each once; return their ids.

    A container within itself is no deeper for that: plain data may be cyclic.

    Args:
        records: classes of named tuples that are entered too.
        site: what pays for the walk, where a file can ask for the same walk again.

    Raises:
        RefusedError: too deep, too much when walked without a memory, or a bare global.
    """
    sequences = _SEQUENCES | records
    found = _survey_tree(root, sequences, site)
    return found if found is not None else _survey_graph(root, sequences, site)


def _survey_tree(root: object, sequences: frozenset[type], site: Site | None) -> set[int] | None:
    """Level by level, at the speed of C: whoever walks a tree meets each part once. ``None`` where
    a container stands in two places, which is no tree."""
    found: set[int] = set()
    entered = _OTHERS | sequences
    level: list[Any] = [root] if type(root) in entered else []
    parts: Iterable[Any]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return found
        kinds = set(map(type, level))
        if Token in kinds:
            raise _bare_global(level)
        size = len(found) + len(level)
        found.update(map(id, level))
        if len(found) < size:
            return None
        if site is not None:
            site.charge(sum(map(len, level)) + len(level))
        if kinds <= sequences:
            parts = chain.from_iterable(level)
        else:
            parts = chain.from_iterable(map(_parts, level))
        level = [part for part in parts if type(part) in entered and part != ()]
    raise RefusedError(f"containers nested more than {MAX_DEPTH:,} deep")


def _bare_global(parts: Iterable[object]) -> RefusedError:
    token = next(part for part in parts if type(part) is Token)
    return RefusedError(f"{token} stands in the place of a value")


class _Visit:
    """A container whose parts are being walked."""

    __slots__ = ("expansion", "height", "key", "parts")

    def __init__(self, key: int, parts: Iterator[Any]) -> None:
        self.key = key
        self.parts = parts
        self.height = 0
        self.expansion = 1

    def absorb(self, height: int, expansion: int) -> None:
        self.height = max(self.height, height + 1)
        self.expansion += expansion
        require(self.height <= MAX_DEPTH, f"containers nested more than {MAX_DEPTH:,} deep")
        require(self.expansion <= MAX_EXPANSION, "containers that hold each other many times over")


def _survey_graph(root: object, sequences: frozenset[type], site: Site | None) -> Container[int]:
    """From the inside out, with height and expansion of each container."""
    measured: dict[int, tuple[int, int]] = {}
    visits = [_Visit(0, iter((root,)))]
    while visits:
        visit = visits[-1]
        inner = _next_unmeasured(visit, measured, sequences)
        if inner is not None:
            measured[id(inner)] = 0, 0
            if site is not None:
                site.charge(1 + len(inner))
            visits.append(_Visit(id(inner), iter(_parts(inner))))
            require(len(visits) <= MAX_DEPTH + 1, f"containers nested more than {MAX_DEPTH:,} deep")
            continue
        visits.pop()
        measured[visit.key] = visit.height, visit.expansion
        if visits:
            visits[-1].absorb(visit.height, visit.expansion)
    return measured


def _next_unmeasured(
    visit: _Visit, measured: dict[int, tuple[int, int]], sequences: frozenset[type]
) -> Any:
    """The next part that has to be visited. What holds no container is measured on the way."""
    entered = _OTHERS | sequences
    for part in visit.parts:
        if type(part) not in entered:
            visit.expansion += 1
        elif type(part) is Token:
            raise _bare_global((part,))
        elif id(part) in measured:
            visit.absorb(*measured[id(part)])
        elif type(part) in sequences and entered.isdisjoint(map(type, part)):
            measured[id(part)] = size = 0, 1 + len(part)
            visit.absorb(*size)
        else:
            return part
    return None


def _parts(container: Any) -> Iterable[Any]:
    if type(container) is OrderedDict:
        return chain(container.values(), vars(container).values())
    parts: Iterable[Any] = container.values() if type(container) in _MAPPINGS else container
    return parts
