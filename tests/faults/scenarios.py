"""What is saved, how, and what a reader may see: the subjects of every fault test.

A scenario prepares a folder, makes one save in it, and tells what a reader finds there. It injects
nothing and judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import warnings
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

State = dict[str, Any]

NAME = "model.ckpt"
_KIB = 1024


def make_state(version: int, size: int = 24 * _KIB) -> State:
    """A state in which every byte depends on the version, in all the forms a writer treats apart.

    Without NumPy nothing of it lies in the file's data region.
    """
    pattern = bytes((version * 37 + index) % 251 for index in range(251))
    data = (pattern * (size // 251 + 1))[:size]
    state: State = {
        "version": version,
        "size": size,
        "blob": data[: size // 3],
        "numbers": array("d", [version + index / 7 for index in range(50)]),
        "nested": {"text": f"version {version}", "list": [version] * 20},
    }
    numpy = _numpy()
    if numpy is not None:
        state["weights"] = numpy.frombuffer(data, dtype=numpy.uint8).copy()
        state["bias"] = numpy.full((17, 3), version, dtype=numpy.float32)
    return state


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def recognise(state: Any) -> int:
    """The version of a state, if it is complete to the last byte.

    Raises:
        ValueError: it is a state of no version, or of several.
    """
    version = state["version"]
    if is_same(state, make_state(version, state["size"])):
        return int(version)
    raise ValueError(f"a state that says it is version {version} is not")


def is_same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if hasattr(one, "dtype"):
        return bool(one.dtype == other.dtype and one.shape == other.shape) and bool(
            one.tobytes() == other.tobytes()
        )
    return bool(one == other)


class Scenario(ABC):
    """One kind of save.

    Attributes:
        before, after: what a reader sees before the save of version 2, and after it.
        between: what else it may see on the way.
        files: the names that are there after a save that met no fault.
        size: of the state, roughly, in bytes.
    """

    before = "1"
    after = "2"
    between: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset({NAME})
    size = 24 * _KIB

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, folder: Path) -> None:
        self.save(folder, self.states(1), 1)

    def states(self, version: int) -> list[State]:
        """What the save is given; what it does to it is looked at afterwards."""
        return [make_state(version, self.size)]

    def path(self, folder: Path) -> Path:
        return folder / NAME

    def save(self, folder: Path, states: list[State], version: int) -> None:
        """Save durably, or raise."""
        self.write(self.path(folder), states, version)

    @abstractmethod
    def write(self, path: Path, states: list[State], version: int) -> None: ...

    @abstractmethod
    def read(self, path: Path) -> State: ...

    def warm(self) -> None:
        """Import what the save will need, once for all children."""
        recognise(self.states(2)[0])
        self.see(Path("nowhere"))

    def settle(self) -> None:  # noqa: B027  # there is nothing to wait for in a plain writer
        """Wait for what still runs; raise what nobody asked for."""

    def see(self, folder: Path) -> str:
        """What a reader finds: a version, `absent`, or how it is broken."""
        return self.see_file(self.path(folder))

    def see_without_backup(self, folder: Path, spare: Path) -> str:
        """The same where only the file itself counts. `spare` is a folder for a copy of it."""
        names = os.listdir(folder)
        if not any(name.endswith(".genesis.bak") for name in names):
            return self.see(folder)
        shutil.copytree(folder, spare, symlinks=True)
        for name in names:
            if name.endswith(".genesis.bak"):
                (spare / name).unlink()
        return self.see(spare)

    def see_file(self, path: Path) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return str(recognise(self.read(path)))
        except FileNotFoundError:
            return "absent"
        except Exception as exc:
            return f"broken: {type(exc).__name__}: {exc}"

    @property
    def allowed(self) -> frozenset[str]:
        """What a reader may see while version 2 is saved."""
        return self.between | {self.before, self.after}

    def may_see(self, seen: str, done: int) -> bool:
        """Whether a reader may find this once so many saves, of versions 2 and 3, were reported
        durable and the next one may have begun."""
        versions = (self.before, "2", "3")
        return seen in versions[done : done + 2]

    def next(self, seen: str) -> str:
        """What a reader sees after a save of version 3, if it saw this before."""
        return "3"

    def names(self, seen: str) -> frozenset[str]:
        """The names that stand in a folder where a reader sees this, and no others."""
        return self.files - {NAME} if seen == "absent" else self.files


class _Genesis(Scenario):
    """Shared by all that save with the library, which is imported when first used."""

    def write(self, path: Path, states: list[State], version: int) -> None:
        import genesis

        genesis.save(states[0], path)

    def read(self, path: Path) -> State:
        import genesis

        state: State = genesis.load(path)
        return state

    def settle(self) -> None:
        import genesis

        genesis.flush(timeout=30)


class Fresh(_Genesis):
    """A file that was not there before."""

    before = "absent"

    def prepare(self, folder: Path) -> None:
        pass


class Overwrite(_Genesis):
    """A file that replaces another."""


class Large(_Genesis):
    """Large enough for direct writes, with a tail through the page cache."""

    size = 4200 * _KIB


class Windows(_Genesis):
    """Written in several parts, on two threads."""

    size = 70 << 20


class Owned(_Genesis):
    """The file belongs to somebody else, who wants it to be seen by a group. Takes root."""

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        os.chown(self.path(folder), 12, 34)
        self.path(folder).chmod(0o640)

    def read(self, path: Path) -> State:
        status = path.stat()
        if status.st_mode & 0o7777 != 0o640:
            raise ValueError(f"the mode became {status.st_mode:o}")
        return super().read(path)


class Symlink(_Genesis):
    """The path is a symbolic link to the file."""

    files = frozenset({NAME, "latest.ckpt"})

    def prepare(self, folder: Path) -> None:
        (folder / "latest.ckpt").symlink_to(NAME)
        super().prepare(folder)

    def path(self, folder: Path) -> Path:
        return folder / "latest.ckpt"

    def read(self, path: Path) -> State:
        if path.name != NAME and not path.is_symlink():
            raise ValueError("the symbolic link was replaced")
        return super().read(path)


class Background(_Genesis):
    """In the background, waited for."""

    def write(self, path: Path, states: list[State], version: int) -> None:
        import genesis

        genesis.save(states[0], path, background=True, clear=True).result(timeout=30)


class Deferred(_Genesis):
    """In the background, copied later."""

    def write(self, path: Path, states: list[State], version: int) -> None:
        import genesis

        future = genesis.save(states[0], path, background=True, capture="deferred", clear=True)
        future.wait_captured(timeout=30)
        future.result(timeout=30)


class DeferredLarge(Deferred):
    """The same, large enough for direct writes."""

    size = 4200 * _KIB


async def _load_anyio() -> None:
    """Let anyio import what it imports when it is first used, and us what we do."""
    import anyio

    from genesis import aio

    with anyio.CancelScope():
        await anyio.lowlevel.checkpoint()
    anyio.Event().set()
    assert aio.save is not None


class Asyncio(_Genesis):
    """From a coroutine."""

    def warm(self) -> None:
        asyncio.run(_load_anyio())
        super().warm()

    def write(self, path: Path, states: list[State], version: int) -> None:
        from genesis import aio

        async def main() -> None:
            await aio.save(states[0], path)

        asyncio.run(main())


class Trio(_Genesis):
    """From a coroutine of trio."""

    def warm(self) -> None:
        import trio

        trio.run(_load_anyio)
        super().warm()

    def write(self, path: Path, states: list[State], version: int) -> None:
        import trio

        from genesis import aio

        async def main() -> None:
            await aio.save(states[0], path)

        trio.run(main)


class _Part:
    """A model or an optimizer, as far as a checkpoint sees it."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state_dict(self) -> State:
        return self._state


class Manager(_Genesis):
    """A manager that keeps the last two of its checkpoints."""

    before = "0,1"
    after = "1,2"
    between = frozenset({"0,1,2"})

    def prepare(self, folder: Path) -> None:
        for version in (0, 1):
            self.save(folder, self.states(version), version)

    def save(self, folder: Path, states: list[State], version: int) -> None:
        import genesis

        manager = genesis.CheckpointManager(folder, max_checkpoints=2)
        manager.save_checkpoint(
            _Part(states[0]), _Part({"version": version}), epoch=version, loss=1 / (version + 1)
        )
        genesis.flush(timeout=30)
        states[0].clear()  # the manager leaves the model alone

    def see(self, folder: Path) -> str:
        found = sorted(folder.glob("epoch_*.pth"))
        return ",".join(self.see_file(path) for path in found) or "absent"

    def may_see(self, seen: str, done: int) -> bool:
        """Nothing broken, at least two, and the last durable one among them."""
        epochs = seen.split(",")
        return all(map(str.isdigit, epochs)) and len(epochs) > 1 and str(1 + done) in epochs

    def next(self, seen: str) -> str:
        return ",".join([*filter(str.isdigit, seen.split(",")), "3"][-2:])

    def names(self, seen: str) -> frozenset[str]:
        epochs = filter(str.isdigit, seen.split(","))
        return frozenset(f"epoch_{int(epoch):06d}.pth" for epoch in epochs)

    def read(self, path: Path) -> State:
        import genesis

        whole = genesis.load(path)
        state: State = whole["model_state_dict"]
        expected = int(path.stem.removeprefix("epoch_"))
        if not state["version"] == whole["epoch"] == whole["optimizer_state_dict"]["version"]:
            raise ValueError("parts of several versions in one checkpoint")
        if whole["epoch"] != expected:
            raise ValueError(f"epoch {whole['epoch']} under the name of {expected}")
        return state


def in_short(seen: str) -> str:
    """What a reader saw, without the words of its error."""
    return ": ".join(seen.split(": ")[:2])


_ALL: Sequence[Scenario] = (
    Fresh("fresh"),
    Overwrite("overwrite"),
    Symlink("symlink"),
    Owned("owned"),
    Large("large"),
    Windows("windows"),
    Background("background"),
    Deferred("deferred"),
    DeferredLarge("deferred-large"),
    Asyncio("asyncio"),
    Trio("trio"),
    Manager("manager"),
)


def find(name: str) -> Scenario:
    if name.partition(":")[0] == "toy":
        from .toy import Toy

        return Toy(name.partition(":")[2])
    return {scenario.name: scenario for scenario in _ALL}[name]


def main() -> None:
    """Run as a program by a traced interpreter of its own: one watched save."""
    from . import tracer

    scenario, folder = find(sys.argv[1]), Path(sys.argv[2])
    scenario.warm()
    states = scenario.states(2)
    tracer.mark(tracer.START)
    scenario.save(folder, states, 2)
    tracer.mark(tracer.STOP)
