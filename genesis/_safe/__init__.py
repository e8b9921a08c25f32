"""Reading skeletons that nobody has vouched for: into values, or into an outline of them.

Both go through a virtual machine of our own. Nothing here falls back on `pickle`, imports what a
file names, or calls what is not on the list of constructors.

machine    opcodes, stack, memo, budgets
site       the one list of globals, and what every argument must pass
described  what an outline is made of
plain, numpy, torch    how each listed global is built, and how it is described
strict     ``weights_only=True``: what a skeleton can reach
needed     which bytes a part of a state is made of
outline    structure without values, for any pickle at all
gadgets    names that nobody should register
form       whether bytes are one whole pickle
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from .._errors import CorruptCheckpointError, UnsafeLoadError
from .._os.memory import address_of, private_memory
from .._pickle.region import Region
from .._threads.interrupts import CollectorPaused
from .described import ArrayInfo, Opaque
from .gadgets import is_gadget
from .machine import Machine, MalformedError, RefusedError
from .needed import spans
from .outline import arrays, global_names, outline
from .site import Site, require
from .strict import StrictWorld, listed, survey

__all__ = [
    "ArrayInfo",
    "Opaque",
    "add_safe_globals",
    "arrays",
    "clear_safe_globals",
    "get_safe_globals",
    "load",
    "outline",
    "safe_globals",
    "spans_of",
]

_MAX_NAMES: Final = 1000
_MAX_MESSAGE: Final = 400
_HOLDS_CODE: Final = (
    "the file holds code, which no registration makes safe: load it with weights_only=False "
    "if you trust whoever wrote it, or save it again without functions and classes of a script"
)

_safe_globals: dict[str, Any] = {}
"""Replaced as a whole, never changed, so that a load in another thread sees one state of it."""


def add_safe_globals(objs: Iterable[Callable[..., Any] | tuple[Callable[..., Any], str]]) -> None:
    """Let ``weights_only=True`` call these functions and make and fill instances of these classes.

    They run with arguments from the file: register only what is harmless whatever it is given.
    What genesis builds itself (tensors, arrays, containers) needs no registration and gains
    nothing by one.

    Args:
        objs: classes, functions and class methods, or pairs of one and the name that files know
            it by (``"module.name"``).

    Raises:
        TypeError: something else is among them.
        ValueError: something is known to run code, as ``eval`` and what is of ``os`` or dill.
    """
    global _safe_globals
    _safe_globals = _safe_globals | dict(map(_named, objs))


def _named(obj: Any) -> tuple[str, Any]:
    thing, name = obj if isinstance(obj, tuple) and len(obj) == 2 else (obj, None)
    if not callable(thing) or not isinstance(name, str | None):
        raise TypeError(f"{obj!r} is no class, no function and no pair of one and a name")
    own = _path_of(thing) if hasattr(thing, "__qualname__") or not name else ""
    for path in (own, name or ""):
        if is_gadget(path) and (path.endswith(".getattr") or not _is_listed(path)):
            raise ValueError(f"{path} runs code that a file chooses, so it cannot be made safe")
    return name or own, thing


def _path_of(thing: Any) -> str:
    """How a pickle names it; of a class method, its class and its name."""
    owner = getattr(thing, "__self__", None)
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{thing.__name__}"
    if not hasattr(thing, "__qualname__"):
        raise TypeError(f"{thing!r} has no name that a file could know it by: give (it, name)")
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_listed(path: str) -> bool:
    """Whether a file's use of this name is judged by us, so that registering it changes little."""
    parts = path.split(".")
    return any(listed(".".join(parts[:n]), ".".join(parts[n:])) for n in range(1, len(parts)))


@contextmanager
def safe_globals(
    objs: Iterable[Callable[..., Any] | tuple[Callable[..., Any], str]],
) -> Iterator[None]:
    """`add_safe_globals` for the length of a with block, in all threads of the process."""
    global _safe_globals
    named = dict(map(_named, objs))
    added = named.keys() - _safe_globals.keys()
    _safe_globals = _safe_globals | named
    try:
        yield
    finally:
        _safe_globals = {name: thing for name, thing in _safe_globals.items() if name not in added}


def clear_safe_globals() -> None:
    """Forget everything that `add_safe_globals` registered."""
    global _safe_globals
    _safe_globals = {}


def get_safe_globals() -> list[Any]:
    """What `add_safe_globals` registered, in that order."""
    return list(_safe_globals.values())


def load(
    skeleton: bytes | memoryview,
    *,
    data: Any,
    path: str,
    base_offset: int = 0,
    map_location: Any = None,
) -> Any:
    """The value of a skeleton, built by listed constructors from judged arguments only.

    Memory is bounded by a multiple of the skeleton, time by its length.

    Args:
        skeleton: a pickle of protocol 2 to 5.
        data: the data region, a buffer; ``None`` for a pickle that is no genesis skeleton.
        path: for messages.
        base_offset: of the skeleton in its file, in bytes, for messages.
        map_location: where tensors go, as `torch.load` takes it.

    Raises:
        UnsafeLoadError: the skeleton asks for more than plain data.
        CorruptCheckpointError: it is no pickle.
    """
    site = Site(data, len(skeleton), map_location, _safe_globals)
    return build(skeleton, site, path=path, base_offset=base_offset)


def build(skeleton: bytes | memoryview, site: Site, *, path: str, base_offset: int) -> Any:
    """`load` at a site that the caller has made, and goes on to look at."""
    world = StrictWorld(site)
    machine = Machine(skeleton, world, world.memo())
    reached: Container[int] = ()
    pause = CollectorPaused()
    try:
        with pause, pause:
            value = machine.run()
            if machine.left:
                raise MalformedError("the stream goes on after STOP")
            reached = survey([value, *site.given] if site.given else value, site.records)
            require(not site.unfinished, "something is begun and never finished")
    except MalformedError as exc:
        raise CorruptCheckpointError(path, str(exc), base_offset + machine.start) from exc
    except RefusedError as exc:
        refused = _refused(skeleton, exc, with_region=site.data is not None)
        problem = _message(exc, refused)
        offset = base_offset + machine.start
        hint = _HOLDS_CODE if any(map(is_gadget, refused)) else exc.hint
        raise UnsafeLoadError(path, problem, offset, hint, refused) from exc
    finally:
        _take_apart(site.fragile, reached)
    return value


def spans_of(
    skeleton: bytes | memoryview, choose: Callable[[Any], Any], *, size: int, path: str
) -> list[tuple[int, int]] | None:
    """Where the bytes of a part stand in the data region: first and last but one. ``None`` where
    that cannot be told: who builds the whole hears why.

    The state is built over memory without content, which takes none. Raises what `choose` raises.

    Args:
        choose: takes the state, gives the part.
        size: bytes of the data region.
    """
    memory = private_memory(max(size, 1))
    site = Site(Region(memoryview(memory)[:size]), len(skeleton), None, _safe_globals)
    try:
        state = build(skeleton, site, path=path, base_offset=0)
    except CorruptCheckpointError:
        return None
    part = choose(state)
    return spans(part, site, address_of(memory))


def _refused(
    skeleton: bytes | memoryview, exc: RefusedError, *, with_region: bool
) -> tuple[str, ...]:
    """What was refused, and every other global that would have been."""
    names = dict.fromkeys(exc.names)
    for module, name in global_names(skeleton, with_region=with_region):
        path = f"{module}.{name}"
        if not listed(module, name) and path not in _safe_globals:
            names[path] = None
    return tuple(names)[:_MAX_NAMES]


def _message(exc: RefusedError, refused: tuple[str, ...]) -> str:
    """The reason and the names, on one line of ASCII: a file may not write to a terminal."""
    more = f" ({', '.join(refused[:10])})" if refused else ""
    harmless = f"{exc}{more}".encode("unicode_escape").decode()
    return harmless if len(harmless) <= _MAX_MESSAGE else harmless[:_MAX_MESSAGE] + "..."


def _take_apart(made: list[Any], reached: Container[int]) -> None:
    """Empty what is about to be freed, one by one: see `Site.fragile`."""
    for each in made:
        if id(each) not in reached:
            each.clear()
