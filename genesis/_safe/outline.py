"""The structure of any pickle, without its values: what `validate_checkpoint` and `inspect` read.

Nothing is imported or called, torch and NumPy included. What only code could tell is `Opaque`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from .._errors import CorruptCheckpointError
from .._threads.interrupts import CollectorPaused
from . import numpy, plain, torch
from .described import ArrayInfo, Global, Opaque, Shaped, name_of
from .machine import Machine, MalformedError, RefusedError
from .site import FROM_BUFFER, ExhaustedError, Site, brief, find, naturals

_LISTS: Final = numpy, plain, torch
"""These modules fill the list when they are imported."""

_UNBOUNDED: Final = 2**63 - 1
_MAX_NAMES: Final = 100_000
_MAX_STEPS: Final = 64
_MAX_KEY: Final = 200


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
        return (self.region, Global(FROM_BUFFER)) if self._has_region else ()

    def named(self, module: str, name: str) -> Opaque:
        if len(self.names) < _MAX_NAMES:
            self.names[module, name] = None
        return Global(f"{module} {name}")

    def call(self, function: Any, arguments: Any) -> object:
        describe = find(function.key).describe if type(function) is Global else None
        if describe is not None and type(arguments) is tuple:
            with suppress(*_UNREADABLE):
                return describe(self, *arguments)
        return Opaque(name_of(function), arguments)

    def new(self, cls: Any, arguments: Any, keywords: Any) -> object:
        return Opaque(name_of(cls), arguments, keywords)

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


_UNREADABLE: Final = (TypeError, ValueError, LookupError, AttributeError, RecursionError)
"""Arguments of another kind than genesis writes: the thing stays opaque. A `RefusedError` is a
thing of genesis that does not lie in the data region."""


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
