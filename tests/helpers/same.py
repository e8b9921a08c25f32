"""Whether what was loaded is what was saved: values, types, dtypes, layout, and what is shared.

`assert_same` walks two object graphs side by side. It never calls ``==`` on a container, so that
cycles end and NaN equals itself, and it demands that two places hold one object in the one graph
exactly where they do in the other.
"""

from __future__ import annotations

import collections
import functools
import pathlib
import struct
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from optional import torch

_LEAVES = (int, str, bytes, bool, type(None), types.ModuleType)


def assert_same(one: Any, other: Any) -> None:
    """Raise AssertionError, naming the place, where `other` differs from `one`."""
    _Walk().visit(one, other, "state")


class _Walk:
    def __init__(self) -> None:
        self.partner: dict[int, int] = {}
        self.reverse: dict[int, int] = {}
        self.alive: list[Any] = []

    def visit(self, one: Any, other: Any, place: str) -> None:
        if isinstance(one, type) or _is_leaf(one):
            _demand(_leaf_equal(one, other), place, one, other)
            return
        _demand(_name(type(one)) == _name(type(other)), place, type(one), type(other))
        if self._met(one, other, place):
            return
        for kind, compare in _COMPARERS.items():
            if isinstance(one, kind):
                compare(self, one, other, place)
                return
        self._attributes(one, other, place)

    def _met(self, one: Any, other: Any, place: str) -> bool:
        """Whether both were met before, and together."""
        known = self.partner.get(id(one)), self.reverse.get(id(other))
        if known == (None, None):
            self.partner[id(one)], self.reverse[id(other)] = id(other), id(one)
            self.alive += one, other
            return False
        _demand(known == (id(other), id(one)), place, "one object", "several, or the other way")
        return True

    def _attributes(self, one: Any, other: Any, place: str) -> None:
        if one is other:  # a logger, a layout: there is only one
            return
        names = _attribute_names(one)
        _demand(names == _attribute_names(other), place, names, _attribute_names(other))
        if type(one).__eq__ is not object.__eq__ and not names:
            _demand(one == other, place, one, other)
        elif isinstance(one, BaseException) or not names:
            self.visit(one.__reduce_ex__(4), other.__reduce_ex__(4), f"{place}.__reduce__")
        for name in names:
            self.visit(getattr(one, name), getattr(other, name), f"{place}.{name}")

    def _mapping(self, one: Any, other: Any, place: str) -> None:
        _demand(len(one) == len(other), place, list(one), list(other))
        for key, other_key in zip(one, other, strict=True):
            self.visit(key, other_key, f"{place}.keys")
            self.visit(one[key], other[other_key], f"{place}[{key!r}]")
        if isinstance(one, collections.defaultdict):
            self.visit(one.default_factory, other.default_factory, f"{place}.default_factory")
        self._extra(one, other, place)

    def _sequence(self, one: Any, other: Any, place: str) -> None:
        _demand(len(one) == len(other), place, len(one), len(other))
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            self.visit(left, right, f"{place}[{number}]")
        self._extra(one, other, place)

    def _set(self, one: Any, other: Any, place: str) -> None:
        _demand(one == other, place, one, other)

    def _extra(self, one: Any, other: Any, place: str) -> None:
        self.visit(dict(_vars(one)), dict(_vars(other)), f"{place}.__dict__") if _vars(
            one
        ) else None

    def _function(self, one: Any, other: Any, place: str) -> None:
        if one is other:
            return
        _demand(one.__name__ == other.__name__, place, one, other)
        _demand(one.__code__.co_code == other.__code__.co_code, place, "code", "other code")
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            self.visit(getattr(one, name), getattr(other, name), f"{place}.{name}")
        cells = [cell.cell_contents for cell in one.__closure__ or ()]
        others = [cell.cell_contents for cell in other.__closure__ or ()]
        self._sequence(cells, others, f"{place}.__closure__")

    def _builtin(self, one: Any, other: Any, place: str) -> None:
        if isinstance(one.__self__, types.ModuleType | type | None):
            _demand(one is other or one == other, place, one, other)
            return
        _demand(one.__name__ == other.__name__, place, one, other)
        self.visit(one.__self__, other.__self__, f"{place}.__self__")

    def _method(self, one: Any, other: Any, place: str) -> None:
        self.visit(one.__self__, other.__self__, f"{place}.__self__")
        self.visit(one.__func__, other.__func__, f"{place}.__func__")

    def _partial(self, one: Any, other: Any, place: str) -> None:
        parts = lambda p: (p.func, p.args, p.keywords)  # noqa: E731
        self.visit(parts(one), parts(other), place)

    def _array(self, one: Any, other: Any, place: str) -> None:
        assert_same_array(one, other, place)
        if one.dtype.hasobject:
            self.visit(one.tolist(), other.tolist(), place)


def assert_same_array(one: Any, other: Any, place: str = "array") -> None:
    """Type, dtype with its every detail, shape, and the bytes of every element."""
    _demand(type(one) is type(other), place, type(one), type(other))
    _demand(one.dtype == other.dtype, place, one.dtype, other.dtype)
    _demand(type(one.dtype) is type(other.dtype), place, type(one.dtype), type(other.dtype))
    for name in ("metadata", "isalignedstruct", "itemsize", "fields"):
        left, right = getattr(one.dtype, name), getattr(other.dtype, name)
        # NumPy 1 makes an empty mapping of no metadata when it loads a datetime.
        _demand((left or None) == (right or None), f"{place}.dtype.{name}", left, right)
    _demand(one.shape == other.shape, f"{place}.shape", one.shape, other.shape)
    if not one.dtype.hasobject:
        _demand(one.tobytes() == other.tobytes(), place, one, other)


def assert_same_tensor(one: Any, other: Any, place: str = "tensor") -> None:
    """Type, dtype, shape, strides, flags, and the bits of every element of a dense tensor."""
    _demand(type(one) is type(other), place, type(one), type(other))
    for name in ("dtype", "shape", "requires_grad", "layout", "device", "is_leaf"):
        left, right = getattr(one, name), getattr(other, name)
        _demand(left == right, f"{place}.{name}", left, right)
    _demand(one.stride() == other.stride(), f"{place}.stride", one.stride(), other.stride())
    for name in ("is_conj", "is_neg"):
        _demand(getattr(one, name)() == getattr(other, name)(), f"{place}.{name}", "", "")
    with torch.no_grad():
        left, right = (_bits(tensor) for tensor in (one, other))
        _demand(left == right, place, one, other)


def _bits(tensor: Any) -> bytes:
    """The bytes of the elements, whatever the dtype, even one that torch cannot compare."""
    plain = tensor.detach().as_subclass(torch.Tensor)
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    item = plain.element_size()
    storage = torch.empty(0, dtype=torch.uint8).set_(plain.untyped_storage())
    steps = tuple(step * item for step in plain.stride())
    view = storage.as_strided((*plain.shape, item), (*steps, 1), plain.storage_offset() * item)
    return view.contiguous().numpy().tobytes()


def _tensor(walk: _Walk, one: Any, other: Any, place: str) -> None:
    assert_same_tensor(one, other, place)
    walk.visit(one.__dict__, other.__dict__, f"{place}.__dict__")


def _is_leaf(value: Any) -> bool:
    return type(value) in _LEAVES or type(value) in (float, complex)


def _leaf_equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return isinstance(one, type) and isinstance(other, type) and _name(one) == _name(other)
    if type(one) is float:
        return struct.pack("d", one) == struct.pack("d", other) or (one != one and other != other)
    if type(one) is complex:
        return _leaf_equal(one.real, other.real) and _leaf_equal(one.imag, other.imag)
    if isinstance(one, type):
        return one is other or _name(one) == _name(other)
    return bool(one == other)


def _name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _vars(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", None) or {}


def _attribute_names(value: Any) -> list[str]:
    slots = [
        name
        for cls in type(value).__mro__
        for name in _names_of(getattr(cls, "__slots__", ()))
        if not name.startswith("__") and hasattr(value, name)
    ]
    return [*slots, *_vars(value)]


def _names_of(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _demand(condition: bool, place: str, one: object, other: object) -> None:
    assert condition, f"{place}: {one!r} became {other!r}"


_COMPARERS: dict[Any, Callable[[_Walk, Any, Any, str], None]] = {
    torch.Tensor if torch else (): _tensor,
    np.ndarray: _Walk._array,
    (dict, collections.OrderedDict): _Walk._mapping,
    (list, tuple, collections.deque): _Walk._sequence,
    (set, frozenset): _Walk._set,
    types.FunctionType: _Walk._function,
    types.BuiltinFunctionType: _Walk._builtin,
    types.MethodType: _Walk._method,
    functools.partial: _Walk._partial,
    pathlib.PurePath: _Walk._set,  # Python 3.12 keeps in attributes what it worked out
}
