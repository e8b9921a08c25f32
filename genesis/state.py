"""Everything that a training run needs to go on, as one object with a `state_dict`.

It collects states and puts them back; it knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from . import _random, _restoring, data
from ._arguments import what_is_held
from ._pickle.buffers import RefusedObjectError

_KEY = "train_state"
"""Where a state dict keeps what stands for the run as a whole."""
_VERSION = 1
_ITEMS_LOOKED_AT = 100


class TrainState:
    """The parts of a training run: `state_dict` takes all, `load_state_dict` gives them back.

        state = genesis.TrainState(model=model, optimizer=optimizer, loader=loader, step=0)
        state.step += 1
        genesis.save(state.state_dict(), "run.pth", background=True)
        state.load_state_dict(genesis.load("run.pth"))

    A part is an attribute, and may be set and changed at any time. There are three kinds:

    - an object with ``state_dict()`` and ``load_state_dict()``: models, optimizers, schedulers, a
      GradScaler, a `ResumableLoader`, torchdata's StatefulDataLoader;
    - a random generator of Python, NumPy or torch;
    - any other value that can be pickled: a step, a history, a pytree of JAX arrays. It is replaced
      when a state is loaded, so read it as ``state.step``; only a tensor of torch is filled in
      place, where an optimizer may hold it.

    Besides, it takes the global random state of Python, NumPy, torch and, where CUDA is in use, of
    every CUDA device. Not thread-safe: take and load it where the training runs.

    Args:
        parts: by name. A name does not begin with an underscore, and is no method of this class.

    Raises:
        AttributeError: a name is not free.
        TypeError: a part could not be restored: a torch DataLoader, whose position nobody can ask
            for (wrap it in a `ResumableLoader`); an object with only one of the two methods; a list
            or dict of such objects, or of parameters, each of which needs a name of its own.
    """

    def __init__(self, **parts: Any) -> None:
        self.__dict__["_parts"] = {}
        for name, part in parts.items():
            setattr(self, name, part)

    def __setattr__(self, name: str, part: Any) -> None:
        if name.startswith("_") or name == _KEY or hasattr(type(self), name):
            raise AttributeError(f"{name!r} cannot name a part of a TrainState")
        _refuse_unrestorable(name, part)
        self._parts[name] = part

    def __getattr__(self, name: str) -> Any:
        # Only what is no attribute comes here; `_parts` itself, while an instance is being made.
        try:
            return self.__dict__["_parts"][name]
        except KeyError:
            known = ", ".join(self.__dict__.get("_parts", ()))
            raise AttributeError(f"TrainState has no part {name!r}; it has: {known}") from None

    def __delattr__(self, name: str) -> None:
        if name not in self._parts:
            raise AttributeError(f"TrainState has no part {name!r}")
        del self._parts[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._parts]

    def __repr__(self) -> str:
        shown = (
            f"{name}={part!r:.40}" if _kind(part) == "value" else f"{name}={type(part).__name__}"
            for name, part in self._parts.items()
        )
        return f"TrainState({', '.join(shown)})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RefusedObjectError(
            "a TrainState holds the objects of this run", "save its .state_dict()"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of every part under its name, and of the global random generators.

        Tensors and values are not copied: `genesis.save` does that before it returns.
        """
        taken: dict[str, Any] = {}
        kinds: dict[str, str] = {}
        for name, part in self._parts.items():
            kinds[name] = kind = _kind(part)
            taken[name] = _TAKE[kind](part)
        taken[_KEY] = {
            "version": _VERSION,
            "kinds": kinds,
            # After the parts: to tell its state, a StatefulDataLoader may draw a number.
            "loaders": {name: data.own_generators(self._parts[name]) for name in self._loaders()},
            "random": _random.capture(),
        }
        return taken

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Give every part its state back: objects in the order they were named, then generators and
        values, and the global random state last of all.

        Values that this object does not have yet become parts. A model is loaded before or after
        its optimizer was made: tensors keep their place in memory.

        Args:
            state_dict: of `state_dict`.
            strict: whether objects and generators must be the same by name, and every value that
                is here be in the state too. If not, whatever is on one side only is left alone.

        Raises:
            ValueError: it is no state of a TrainState, or (``strict``) something is missing or
                unexpected, or a model of torch does not take its state; all of it is named, and
                nothing was changed.
            Exception: what another object's own ``load_state_dict`` raises, with a note of its
                name. The parts before it are loaded.
        """
        about = _about(state_dict)
        kinds: dict[str, str] = about["kinds"]
        mine = {name: _kind(part) for name, part in self._parts.items()}
        orphaned = [
            name
            for name in _of_kind("value", mine, kinds)
            if _restoring.would_be_orphaned(self._parts[name], state_dict[name])
        ]
        _compare(mine, kinds, orphaned, strict=strict)
        objects = {name: self._parts[name] for name in _of_kind("object", mine, kinds)}
        loaded = _restoring.load_doubtful_modules(objects, state_dict)
        for name in [name for name in objects if name not in loaded]:
            self._load_object(name, state_dict[name])
        for name in _of_kind("generator", mine, kinds):
            _random.set_state(self._parts[name], state_dict[name])
        for name in _of_kind("value", kinds, kinds):
            here = self._parts.get(name)
            if not _restoring.filled_in_place(here, state_dict[name]):
                self._parts[name] = state_dict[name]
        for name in self._loaders():
            data.set_own_generators(self._parts[name], about.get("loaders", {}).get(name, {}))
        _random.restore(about["random"])

    def _load_object(self, name: str, state: Any) -> None:
        part = self._parts[name]
        try:
            part.load_state_dict(state)
            if data.is_torch_loader(part):
                # A StatefulDataLoader begins its pass when it is next asked for anything, and draws
                # a number for it: now, before the random state is restored, and not in the loop.
                part.state_dict()
        except Exception as exc:
            exc.add_note(f"while the TrainState loaded its part {name!r}")
            raise

    def _loaders(self) -> list[str]:
        return [name for name, part in self._parts.items() if data.is_torch_loader(part)]


_TAKE: dict[str, Callable[[Any], Any]] = {
    "object": lambda part: part.state_dict(),
    "generator": _random.state_of,
    "value": lambda part: part,
}


def _kind(part: Any) -> str:
    if _has(part, "state_dict"):
        return "object"
    return "generator" if _random.is_generator(part) else "value"


def _has(part: Any, method: str) -> bool:
    return not isinstance(part, type) and callable(getattr(part, method, None))


def _refuse_unrestorable(name: str, part: Any) -> None:
    data.refuse_plain_loader(name, part)
    for place, item in _items(part):
        if _kind(item) != "value" or _restoring.is_trained(item):
            raise TypeError(
                f"{name}[{place!r}] is a {type(item).__name__}, which would be replaced by a copy "
                "when a state is loaded: give it a name of its own"
            )
    for has, lacks in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if _has(part, has) and not _has(part, lacks):
            raise TypeError(f"{name} has {has}() but no {lacks}(), so it could not be restored")


def _items(part: Any) -> list[tuple[Any, Any]]:
    """What a short list or dict holds; nothing of a history that grows with the run."""
    if type(part) not in (list, tuple, dict) or len(part) > _ITEMS_LOOKED_AT:
        return []
    return list(part.items() if isinstance(part, dict) else enumerate(part))


def _about(state_dict: Any) -> dict[str, Any]:
    about = state_dict.get(_KEY) if isinstance(state_dict, Mapping) else None
    if not isinstance(about, Mapping) or not {"version", "kinds", "random"} <= about.keys():
        raise ValueError(f"this is no state of a TrainState; {what_is_held(state_dict)}")
    if about["version"] > _VERSION:
        raise ValueError("this state is of a later genesis; upgrade to load it")
    return dict(about)


def _of_kind(kind: str, one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] == other.get(name) == kind]


def _compare(
    mine: dict[str, str], saved: dict[str, str], orphaned: list[str], *, strict: bool
) -> None:
    """Refuse what does not fit, all of it in one message."""
    missing = [name for name in mine if name not in saved]
    unexpected = [name for name in saved if name not in mine and saved[name] != "value"]
    changed = [
        f"{name} ({saved[name]} in the state, {mine[name]} here)"
        for name in mine
        if name in saved and saved[name] != mine[name]
    ]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names, counts in (
            ("not in the state", missing, strict),
            ("in the state and no part here", unexpected, strict),
            ("of another kind", changed, True),
            ("of another shape or dtype", orphaned, True),
        )
        if names and counts
    ]
    if problems:
        raise ValueError(f"the state does not fit this TrainState; {'; '.join(problems)}")
