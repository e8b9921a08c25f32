"""Functions and classes that no other program could import, reduced one at a time in dill's words.

What is written opens with plain ``dill.load``. Nothing here decides what is saved by value but for
classes that could not be made again; nothing runs a method of what it reduces.

A function or class that ``__main__`` holds under its name is written as ``getattr(__main__, name,
made)``: a program that has it uses its own, be it edited since, and any other the one of the file.
A class is made bare, by the metaclass that is known to be sound for that, and gets its attributes
one by one: no hook of a base class or metaclass runs a second time, and whatever refers to itself
finds itself made. What has to happen after an object is in the memo stands in the arguments of
``operator.is_``, which pickle calls with the object: its result is dropped.
"""

from __future__ import annotations

import abc
import copyreg
import functools
import operator
import pickle
import sys
import types
import typing
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from enum import EnumType
from importlib import import_module
from typing import Any

from .buffers import Call

MAINS = frozenset({"__main__", "__mp_main__"})
"""Names of the program's own module; the second is its name in a spawned child."""

_NATIVE = frozenset({range, type(...), type(NotImplemented), slice})
"""What dill has words of its own for, and pickle's are as good."""

_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)

_NOT_COPIED = frozenset(
    {
        *("__dict__", "__weakref__", "__module__", "__slots__", "_abc_impl", "__abstractmethods__"),
        *("__annotate_func__", "__annotate__", "__annotations_cache__"),
    }
)
"""Attributes of a class that are made with it, or put back in a way of their own."""

Reducer = Callable[[Any], Any]


def has_name(obj: Any) -> bool:
    """Whether ``__main__`` holds a function or class of its own, and this one, under its name. What
    stands in a class is part of that."""
    return is_of_main(obj) and place_of(obj) is not None


def is_of_main(obj: Any) -> bool:
    module = getattr(obj, "__module__", None)
    return type(module) is str and module in MAINS


def place_of(obj: Any) -> tuple[Any, str] | None:
    """The module or class that holds a function or class under its name, and that name."""
    module = obj.__module__
    holder, found = None, sys.modules.get(module) if isinstance(module, str) else None
    name = ""
    for name in obj.__qualname__.split("."):
        holder, found = found, getattr(found, name, None)
    return (holder, name) if found is obj else None


def needs_words(cls: type) -> Reducer | None:
    """The reducer of what pickle saves in a way that does not give it back; it raises
    `NeedsByValueError` where only dill's words do. ``None`` for all other classes."""
    if cls is types.MethodType:
        return _bound
    if cls in _DESCRIPTORS:
        return lambda found: _if_found(found, found.__objclass__, found.__name__)
    return _name_of_sentinel if cls.__module__ == "dataclasses" and _sentinels(cls) else None


class NeedsByValueError(Exception):
    """What is pickled has to be reduced by value."""


def _if_found(obj: Any, holder: Any, name: str) -> Any:
    if getattr(holder, name, None) != obj:
        raise NeedsByValueError
    return getattr, (holder, name)


def _bound(method: types.MethodType) -> Any:
    """As an attribute of what it is bound to, unless its state has to be there for that: the method
    is built first."""
    holder, name = method.__self__, method.__name__
    given = getattr(type(holder), name, None)
    in_slot = type(given) is types.MemberDescriptorType
    own = in_slot or (name in getattr(holder, "__dict__", ()) and given is not method.__func__)
    if own and not isinstance(holder, type):
        raise NeedsByValueError
    return _if_found(method, holder, name)


def _sentinels(cls: type) -> list[str]:
    """The names under which ``dataclasses`` holds the instances of one of its private classes."""
    return [name for name, value in vars(sys.modules[cls.__module__]).items() if type(value) is cls]


def _name_of_sentinel(obj: Any) -> str:
    found = vars(sys.modules[type(obj).__module__])
    return next(name for name in _sentinels(type(obj)) if found[name] is obj)


class ByValue:
    """How one pickler reduces functions, classes and what they are made of.

    Args:
        by_name: ids of what is to be written as a name though it is of ``__main__``.
    """

    def __init__(self, by_name: Container[int] = ()) -> None:
        self.objects: list[Any] = []
        """The functions and classes that were reduced by value, in the order they were met."""
        self.used = False
        """Whether anything of dill's has to be read."""
        self._by_name = by_name
        self._made: dict[int, Call] = {}
        self._scopes: dict[int, Any] = {}
        self._cells: set[int] = set()
        self._alive: list[Any] = []
        self._inert: dict[bool, Call] = {}
        self._main = Call((__import__, ("__main__",)))
        from dill import _dill

        self._dill = _dill

    def reduce(self, obj: Any) -> Any:
        """A function or class; what pickle finds by name is left to it."""
        place = place_of(obj)
        if place and not is_of_main(obj):
            return NotImplemented
        if type(obj) in copyreg.dispatch_table:
            return NotImplemented  # a class whose metaclass says how it is pickled
        if not place and isinstance(obj, type) and obj in self._dill._typemap:
            self.used = True
            return self._dill._load_type, (self._dill._typemap[obj],)
        if place and (id(obj) in self._by_name or goes_by_name(obj)):
            return NotImplemented if obj.__module__ == "__main__" else self._held(*place)
        if isinstance(obj, EnumType):
            raise pickle.PicklingError(f"{obj!r} is no attribute of its module")
        held = has_name(obj)
        made = self._made.get(id(obj)) or self._make(obj, held=held)
        if not (held and place):
            return made.reduction
        found = self._held(*place, made)
        if isinstance(obj, type) or isinstance(place[0], types.ModuleType):
            return found
        found = Call(found)  # of a static method the class's dict has more than the function
        return getattr, (found, "__func__", found)

    def leaves(self, obj: Any) -> bool:
        """Whether a function or class is written as a name, and with nothing of what it holds.

        Raises:
            PicklingError: it cannot be.
        """
        return self.reduce(obj) is NotImplemented or id(obj) not in self._made

    def _held(self, holder: Any, name: str, *default: Any) -> Any:
        if isinstance(holder, types.ModuleType):
            return getattr, (self._main, name, *default)
        # Not getattr: a class that is not finished would give what it inherits under that name.
        return Call((getattr, (Call((getattr, (holder, "__dict__"))), "get"))), (name, *default)

    def _make(self, obj: Any, *, held: bool) -> Any:
        self.used = True
        self.objects.append(obj)
        made: Any = Call((None, ()))
        self._made[id(obj)] = made
        target = made if held else obj
        parts = self._class if isinstance(obj, type) else self._function
        create, arguments, later = parts(obj, target, held)
        made.reduction = create, arguments, tuple(later), None, None, operator.is_
        return made

    def reducer_for(self, cls: type) -> Reducer | None:
        """The reducer of instances that functions and classes are made of, and of all that dill has
        words for and pickle has not."""
        if cls is types.CellType:
            return self._cell
        if cls is types.MethodType:
            return _method
        if issubclass(cls, types.ModuleType):
            return _module
        if cls is functools.cached_property:
            return _cached_property
        if cls.__module__ == "typing" and cls.__name__ in ("TypeVar", "ParamSpec"):
            return self._type_variable
        if cls in _DESCRIPTORS or self._has_words(cls):
            return self._in_words
        return needs_words(cls)

    def _has_words(self, cls: type) -> bool:
        words: Any = dict.get(self._dill.Pickler.dispatch, cls)
        known = words is not None and words.__module__ == self._dill.__name__ and cls is not dict
        if known and words.__name__.startswith("save_numpy"):  # what it met before, of its own
            return False
        native = (
            cls in _NATIVE
            or cls in copyreg.dispatch_table
            or cls.__module__ in ("typing", "dataclasses")
        )
        return known and not native

    def _in_words(self, obj: Any) -> Any:
        """What dill would write, had it been asked for this one object."""
        self.used = True
        probe = _Probe()
        self._dill.Pickler.dispatch[type(obj)](probe, obj)
        if len(probe.reductions) != 1:
            raise pickle.PicklingError(f"cannot pickle {type(obj).__name__!r} object")
        return probe.reductions[0]

    def _cell(self, cell: types.CellType) -> Any:
        self.used = True
        empty = self._dill._create_cell, (self._dill._CELL_EMPTY,)
        if id(cell) in self._cells:
            return empty
        contents = _contents(cell)
        return *empty, (None, {"cell_contents": contents[0]} if contents else None)

    def _type_variable(self, variable: Any) -> Any:
        place = _place_of_variable(variable)
        if place and not is_of_main(variable):
            return variable.__reduce__()
        if id(variable) not in self._made:
            self._made[id(variable)] = Call(_type_variable(variable))
            self._alive.append(variable)
        made = self._made[id(variable)]
        return self._held(*place, made) if place else made.reduction

    # ------------------------------------------------------------------------------ functions

    def _function(self, function: Any, target: Any, held: bool) -> tuple[Any, Any, list[Call]]:
        code, names = function.__code__, function.__globals__
        cells = [cell for cell in function.__closure__ or () if id(cell) not in self._cells]
        # Made empty and filled when the function is there, which may be what they hold.
        self._cells.update(map(id, cells))
        scope = self._scope(names)
        later = [_set(target, name, value) for name, value in _extras(function, scope)]
        if type(scope) is dict:
            later.append(Call((self._dill._setitems, (scope, _used(code, names)))))
        later += [_set(cell, "cell_contents", value) for cell in cells for value in _contents(cell)]
        arguments = code, scope, function.__name__, None, function.__closure__
        return self._dill._create_function, arguments, later

    def _scope(self, names: dict[str, Any]) -> Any:
        """The globals of a function: of a module those that the reader has, be it another
        ``__main__``; of anything else a dict that its functions share."""
        if id(names) not in self._scopes:
            name = names.get("__name__")
            module = sys.modules.get(name) if isinstance(name, str) else None
            scope: Any = {"__name__": name}
            if isinstance(module, types.ModuleType) and vars(module) is names:
                imported = self._main if name in MAINS else Call(_module(module))
                scope = Call((getattr, (imported, "__dict__")))
            self._scopes[id(names)] = scope
        return self._scopes[id(names)]

    # -------------------------------------------------------------------------------- classes

    def _class(self, cls: Any, target: Any, held: bool) -> tuple[Any, Any, list[Call]]:
        meta, names, bases = type(cls), _names_of(cls, held=held), cls.__bases__
        later = []
        if _has_hook(cls):
            # A base of our own comes before those whose hook would run, and goes at once.
            bases = self._without_hook(_bare_for(cls)), *bases
            later.append(_set(target, "__bases__", cls.__bases__))
        create = meta if meta in (type, abc.ABCMeta) else _sound_new(meta) or meta
        arguments = (cls.__name__, bases, names)
        if create is not meta:
            arguments = (meta, *arguments)  # type: ignore[assignment]
        later += self._attributes(cls, target, names)
        return self._dill._create_type, (create, *arguments), later

    def _without_hook(self, slots: dict[str, Any]) -> Call:
        key = bool(slots)
        if key not in self._inert:
            names = {"__init_subclass__": Call((staticmethod, (dict,))), **slots}
            self._inert[key] = Call((self._dill._create_type, (type, "Bare", (object,), names)))
        return self._inert[key]

    def _attributes(self, cls: Any, target: Any, names: dict[str, Any]) -> Iterator[Call]:
        for name, value in vars(cls).items():
            if name not in names and name not in _NOT_COPIED and not _is_slot(cls, value):
                yield _set(target, name, value, type(cls))
        if "__qualname__" not in names and cls.__qualname__ != cls.__name__:
            yield _set(target, "__qualname__", cls.__qualname__)
        if "__annotate_func__" in vars(cls):
            yield _set(target, "__annotations__", dict(cls.__annotations__))
        if isinstance(cls, abc.ABCMeta):
            yield _set(target, "__abstractmethods__", cls.__abstractmethods__)
            for other in _registered(cls):
                yield Call((abc.ABCMeta.register, (target, other)))


class _Unused(abc.ABCMeta):
    """Makes classes that take attributes and forget them."""

    def __setattr__(cls, name: str, value: object) -> None:
        if name == "_abc_impl":
            super().__setattr__(name, value)


def constructor(module: str, name: str) -> Callable[..., Any] | None:
    """What a reader calls in place of a function of dill, ``None`` for every other one."""
    return _create_type if (module, name) == ("dill._dill", "_create_type") else None


def _create_type(create: Any, *arguments: Any) -> Any:
    """`dill._dill._create_type` for what `ByValue` wrote: makes no class that ``__main__`` has, or
    its bases would have another subclass until the next garbage collection."""
    names = arguments[-1] if arguments else None
    if isinstance(names, dict) and names.get("__module__") == "__main__":
        found: Any = sys.modules["__main__"]
        for name in names.get("__qualname__", "?").split("."):
            found = getattr(found, name, None)
        if isinstance(found, type):
            return _Unused("Unused", (), {})
    return create(*arguments)


class _Probe:
    """Takes down what a function of dill wants to have written."""

    def __init__(self) -> None:
        self.reductions: list[Any] = []
        self._trace_depth = None

    def save_reduce(self, *reduction: Any, obj: Any = None) -> None:
        self.reductions.append(reduction)

    def write(self, _: bytes) -> None:
        raise pickle.PicklingError("dill writes opcodes of its own for this")


def _set(target: Any, name: str, value: Any, meta: type = type) -> Call:
    own: Any = meta.__setattr__
    function: Any = setattr if own is type.__setattr__ else type.__setattr__
    return Call((function, (target, name, value)))


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing is in it
        return []


def _module(module: types.ModuleType) -> Any:
    name = module.__name__
    if name in MAINS:
        return __import__, ("__main__",)
    if sys.modules.get(name) is not module:
        raise pickle.PicklingError(f"cannot pickle {module!r}: it cannot be imported")
    return import_module, (name,)


def _method(method: types.MethodType) -> Any:
    try:
        return _bound(method)
    except NeedsByValueError:
        return types.MethodType, (method.__func__, method.__self__)


def _place_of_variable(variable: Any) -> tuple[Any, str] | None:
    module = sys.modules.get(variable.__module__)
    found = getattr(module, variable.__name__, None) is variable
    return (module, variable.__name__) if found else None


def _cached_property(made: functools.cached_property[Any]) -> Any:
    """Without its lock, which it has up to Python 3.11."""
    state = {name: value for name, value in vars(made).items() if name not in ("func", "lock")}
    return functools.cached_property, (made.func,), state


def _type_variable(variable: Any) -> tuple[Any, ...]:
    names = "bound", "covariant", "contravariant"
    given = {name: value for name in names if (value := getattr(variable, f"__{name}__", None))}
    constraints = getattr(variable, "__constraints__", ())
    kind: Any = type(variable)
    made = functools.partial(kind, variable.__name__, *constraints, **given)
    return made, (), (None, {"__module__": _module_name(variable)})


def _module_name(obj: Any) -> Any:
    return "__main__" if obj.__module__ == "__mp_main__" else obj.__module__


def _extras(function: Any, scope: Any) -> Iterator[tuple[str, Any]]:
    """What a function has besides its code, as attributes to set."""
    code = function.__code__
    if function.__defaults__:
        yield "__defaults__", function.__defaults__
    if function.__kwdefaults__:
        yield "__kwdefaults__", function.__kwdefaults__
    if function.__qualname__ != code.co_qualname:
        yield "__qualname__", function.__qualname__
    if function.__doc__ != (code.co_consts[0] if code.co_consts else None):
        yield "__doc__", function.__doc__
    if function.__module__ != function.__globals__.get("__name__"):
        yield "__module__", _module_name(function)
    with suppress(NameError):  # annotations that cannot be evaluated, from Python 3.14 on
        if function.__annotations__:
            yield "__annotations__", function.__annotations__
    if getattr(function, "__type_params__", ()):
        yield "__type_params__", function.__type_params__
    yield from vars(function).items()


def _used(code: types.CodeType, names: dict[str, Any]) -> dict[str, Any]:
    """The globals that a function refers to, functions within it included."""
    used = {name: names[name] for name in code.co_names if name in names}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            used |= _used(constant, names)
    return used


def goes_by_name(cls: Any) -> bool:
    """Whether a class is written as a name where that is possible: what a metaclass of a library
    makes, an enum say, is nothing that we could make without it."""
    return isinstance(cls, type) and _sound_new(type(cls)) is None


def _sound_new(meta: Any) -> Any:
    """What makes a bare class of a metaclass: of those that programs define themselves the one that
    they build on, so that no code of theirs runs, and asks for keywords."""
    for base in meta.__mro__:
        if base in _SOUND:
            return base.__new__
        ours = is_of_main(base) or place_of(base) is None
        if not ours and any(isinstance(vars(base).get(name), _PYTHON) for name in _MAKERS):
            return None
    return None


_MAKERS = "__new__", "__init__"
_PYTHON = types.FunctionType, staticmethod
_SOUND = {type, abc.ABCMeta, type(typing.Protocol)}


def _names_of(cls: Any, *, held: bool) -> dict[str, Any]:
    """What a class has from the beginning."""
    names: dict[str, Any] = {"__module__": _module_name(cls)}
    if held:
        names["__qualname__"] = cls.__qualname__
    if "__orig_bases__" in vars(cls):
        names["__orig_bases__"] = cls.__orig_bases__  # or typing.Generic refuses it
    if "__slots__" in vars(cls):
        slots = vars(cls)["__slots__"]
        names["__slots__"] = slots if isinstance(slots, str) else tuple(slots)
    return names


def _is_slot(cls: type, value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType) and value.__objclass__ is cls


def _has_hook(cls: Any) -> bool:
    hook = super(cls, cls).__init_subclass__
    return getattr(hook, "__module__", None) not in (None, "typing")


def _bare_for(cls: Any) -> dict[str, Any]:
    """What the base in front of the others has to have, for the layout of instances to be the one
    that it is without it."""
    base = cls.__base__
    while base.__base__ is not object and _layout(base) == _layout(base.__base__):
        base = base.__base__
    return {} if base.__base__ is object and base.__dictoffset__ else {"__slots__": ()}


def _layout(cls: type) -> tuple[int, int, int]:
    return cls.__basicsize__, cls.__dictoffset__, cls.__weakrefoffset__


def _registered(cls: abc.ABCMeta) -> list[type]:
    references = abc._get_dump(cls)[0]  # type: ignore[attr-defined]
    return [found for reference in references if (found := reference()) is not None]
