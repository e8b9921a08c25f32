"""Folders to save in, children to save in them, and what came of it all.

Shared by everything that enumerates faults; it injects none.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import tracer
from .calls import LINKS, SYNCS, WRITES
from .scenarios import Scenario
from .tracer import Call

SECONDS = 60
MOST = 3000
"""Calls that one save may make: more would mean that it never ends."""

_F_SETFL = 4


@dataclass(slots=True)
class Result:
    """What one enumeration found.

    Attributes:
        points: how many runs met a fault; for power cuts, how many moments there were.
        calls: how often each call was the one.
        states: different disks after power cuts.
        seen: what readers saw afterwards.
        backups: what the backup held meanwhile.
        failures: what must not happen, each with what it takes to see it again.
    """

    scenario: str
    kind: str
    points: int = 0
    states: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    backups: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def hit(self, call: Call) -> None:
        self.points += 1
        self.calls[call.name] += 1

    def note(self, number: int, where: object, problems: Iterable[str]) -> None:
        self.failures += [
            f"{self.scenario} {self.kind} -n {number}: {where}: {p}" for p in problems
        ]


class Bench:
    """Copies of a folder that a scenario prepared, one for each fault.

    Args:
        environment: what the file system lacks, see `ENVIRONMENTS`.
        warm: import everything once, for all children.
    """

    def __init__(
        self, scenario: Scenario, folder: Path, environment: str = "", *, warm: bool = True
    ) -> None:
        if warm:
            scenario.warm()
        self.scenario = scenario
        self.environment = environment
        self.lacking = ENVIRONMENTS[environment]
        self.template = folder / "template"
        self._folder = folder
        self.template.mkdir(parents=True)
        isolated(lambda: scenario.prepare(self.template))
        seen = isolated(lambda: scenario.see(self.template))
        if seen != scenario.before:
            raise RuntimeError(f"{scenario.name}: prepared {scenario.before!r}, found {seen!r}")

    def where(self, number: int) -> Path:
        return self._folder / f"{number:05}" / "d"

    def place(self, number: int) -> Path:
        place = self.where(number)
        shutil.copytree(self.template, place, symlinks=True)
        for entry in os.scandir(self.template):
            status = entry.stat(follow_symlinks=False)
            if status.st_uid != os.getuid():
                os.chown(place / entry.name, status.st_uid, status.st_gid, follow_symlinks=False)
        return place

    def drop(self, place: Path, problems: Iterable[str] = ()) -> None:
        """Remove a place, unless there are problems for somebody to look into."""
        if not list(problems):
            shutil.rmtree(place.parent)

    def litter(self, names: Iterable[str], due: Iterable[str]) -> list[str]:
        """The names that should not be there. A lock file stays for ever where it is needed."""
        stays = ".genesis.lock" if self.environment == "no-locks" else "\0"
        return sorted(name for name in {*names} - {*due} if not name.endswith(stays))


def isolated(body: Callable[[], Any]) -> Any:
    """The JSON value that `body` returns in a forked child, which takes its threads along."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(SECONDS)

        def report() -> None:
            os.write(writer, json.dumps(body()).encode())

        tracer.run_and_exit(report)
    os.close(writer)
    with open(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status or not data:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"a child that no fault was injected into ended with {code}")
    return json.loads(data)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


ENVIRONMENTS: dict[str, Callable[[Call], int]] = {
    "": lambda call: 0,
    "no-hard-links": lambda call: errno.EPERM if call.name in LINKS else 0,
    "no-locks": lambda call: errno.ENOLCK if call.name == "flock" and _is_directory(call) else 0,
    "no-locks-at-all": lambda call: errno.ENOSYS if call.name == "flock" else 0,
    "no-directory-sync": lambda call: (
        errno.EINVAL if call.name in SYNCS and _is_directory(call) else 0
    ),
    "no-ownership": lambda call: errno.EPERM if call.name in ("fchown", "fchownat") else 0,
    "no-direct-io": lambda call: errno.EINVAL if _asks_for_direct(call) else 0,
    "no-direct-writes": lambda call: errno.EINVAL if _writes_directly(call) else 0,
}
"""File systems that lack something: the errno that a call gets there, or zero."""


def _is_directory(call: Call) -> bool:
    return os.path.isdir(call.paths[0])


def _asks_for_direct(call: Call) -> bool:
    if call.name == "openat":
        return bool(call.args[2] & os.O_DIRECT)
    return call.name == "fcntl" and call.args[1] == _F_SETFL and bool(call.args[2] & os.O_DIRECT)


def _writes_directly(call: Call) -> bool:
    """Whether a write goes through a descriptor with O_DIRECT."""
    if call.name not in WRITES:
        return False
    with open(f"/proc/{call.pid}/fdinfo/{call.args[0]}") as file:
        flags = next(line.split()[1] for line in file if line.startswith("flags:"))
    return bool(int(flags, 8) & os.O_DIRECT)
