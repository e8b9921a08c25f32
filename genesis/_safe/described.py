"""What an outline is made of, in the place of things that only code could build.

Nothing here reads a file; it is what constructors' descriptions return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .site import naturals

_Kind = TypeVar("_Kind")


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


class StorageInfo(Opaque):
    """A range of the data region, seen as elements of one dtype."""

    __slots__ = ("dtype", "nbytes", "offset")

    def __init__(self, offset: int, nbytes: int, dtype: str) -> None:
        super().__init__("torch.UntypedStorage")
        self.offset = offset
        self.nbytes = nbytes
        self.dtype = dtype


class DtypeInfo(Opaque):
    """A dtype of NumPy."""

    __slots__ = ("item", "text")

    def __init__(self, text: str, item: int) -> None:
        super().__init__(f"numpy.dtype({text!r})")
        self.text = text
        self.item = item


class Global(Opaque):
    """A global that was named.

    Attributes:
        key: ``"module name"``, as the list has it.
    """

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        super().__init__(key.replace(" ", ".", 1))
        self.key = key


class Outliner(Protocol):
    """What a description may ask for: the data region, and a global by its name."""

    room: int
    region: Opaque

    def named(self, module: str, name: str) -> Opaque: ...


def expect(kind: type[_Kind], thing: object) -> _Kind:
    if not isinstance(thing, kind):
        raise TypeError
    return thing


def name_of(function: object) -> str:
    return function.name if isinstance(function, Opaque) else f"a {type(function).__name__}"


def first(world: Outliner, first: Any, *rest: object) -> Any:
    """The first argument, of a call that keeps its content."""
    return first


def nothing(container: type) -> Any:
    """An empty container, of a call that begins one."""
    return lambda world, *rest: container()
