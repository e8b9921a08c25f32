"""The options of a save and of a load, each written down once, and the type of a path.

Every call that takes them unpacks the same two dictionaries; nothing here acts on an option.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar, get_args

from ._progress import ProgressOption, check_progress

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Capture = Literal["copy", "deferred"]
OnBusy = Literal["wait", "skip", "supersede"]
Sharded = Literal["refuse", "allow"]
_CAPTURES, _ON_BUSY, _SHARDED = get_args(Capture), get_args(OnBusy), get_args(Sharded)
Only = str | Callable[[str], bool]

_Call = TypeVar("_Call", bound=Callable[..., Any])


class SaveOptions(TypedDict, total=False):
    """The options of a save, as keywords. `genesis.save` says what each does."""

    clear: bool | None
    capture: Capture
    on_busy: OnBusy
    metadata: Mapping[str, Any] | None
    sharded: Sharded
    progress: ProgressOption


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveChoices:
    """The options of one save with their defaults. Raises ValueError for a choice that is none."""

    clear: bool | None = None
    capture: Capture = "copy"
    on_busy: OnBusy = "wait"
    metadata: Mapping[str, Any] | None = None
    sharded: Sharded = "refuse"
    progress: ProgressOption = False

    def __post_init__(self) -> None:
        check_progress(self.progress)
        check_choice("capture", self.capture, _CAPTURES)
        check_choice("on_busy", self.on_busy, _ON_BUSY)
        check_choice("sharded", self.sharded, _SHARDED)


class LoadOptions(TypedDict, total=False):
    """The options of a load, as keywords. `genesis.load` says what each does."""

    verify: bool | None
    mmap: bool
    weights_only: bool
    map_location: Any
    only: Only | None
    progress: ProgressOption


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadChoices:
    """The options of one load with their defaults."""

    verify: bool | None = None
    mmap: bool = False
    weights_only: bool = False
    map_location: Any = None
    only: Only | None = None
    progress: ProgressOption = False

    def __post_init__(self) -> None:
        check_progress(self.progress)
        _check_map_location(self.map_location)
        if self.only is not None and not isinstance(self.only, str) and not callable(self.only):
            raise TypeError(f"only must be a string or take a path, not {self.only!r:.80}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of its choices, with a ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def check_names(options: Mapping[str, Any], choices: type) -> None:
    """Refuse a keyword that is no option, as Python does where keywords are spelled out.

    Args:
        choices: the class whose fields are the options.

    Raises:
        TypeError: one is unknown; the message lists those that are known.
    """
    if not options:
        return
    known = [field.name for field in _fields(choices)]
    for name in options:
        if name not in known:
            listed = ", ".join(known)
            raise TypeError(f"unexpected keyword argument {name!r}; the options are {listed}")


def spelled_out(choices: type) -> Callable[[_Call], _Call]:
    """Show every option with its default in the signature of a call that takes ``**options``: in
    `help`, and in an editor that asks the running program."""

    def decorate(call: _Call) -> _Call:
        signature = inspect.signature(call)
        *others, _options = signature.parameters.values()
        shown = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in _fields(choices)
        ]
        call.__signature__ = signature.replace(parameters=[*others, *shown])  # type: ignore[attr-defined]
        return call

    return decorate


def _fields(choices: Any) -> tuple[Field[Any], ...]:
    return fields(choices)


def _check_map_location(given: Any) -> None:
    """Raise for what `torch.load` does not take, or the file would seem to be at fault."""
    if given is None or callable(given):
        return
    wrong = [
        each
        for each in (given.values() if isinstance(given, dict) else [given])
        if not isinstance(each, str) and type(each).__name__ != "device"
    ]
    if wrong:
        raise TypeError(
            "map_location must be a device or its name, a dict of those, or a function, not "
            f"{given!r:.80}"
        )
