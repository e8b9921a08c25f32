"""Cut the power at every moment of a save, and load what every possible disk would hold.

One save after another is recorded, call by call; `disk` says what a cut may leave at each moment;
each such directory is made for real, and read. It cuts no real power: what a device does with a
sync that it has confirmed is beyond it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from . import tracer
from .bench import Bench, Result, isolated
from .disk import Limits, PowerCuts, Recording, State, Sync
from .replay import read_trace, snapshot
from .scenarios import Scenario, in_short
from .tracer import Call, Fault

DURABLE = 0x5EED0100
"""The mark of a save that was reported durable, plus its version."""

_SAVES = (2, 3)

_ENOUGH = 20
"""Failures that prove a flaw."""


def cuts(
    bench: Bench, flaws: list[str], *, each_sync: bool = False, thorough: bool = False
) -> list[Result]:
    """One result for each flaw, an empty one for the writer as it is.

    Args:
        each_sync: instead of those, one result for each single sync that is left out.
        thorough: more states of each cut.
    """
    place = bench.place(1)
    for entry in os.scandir(place):  # so that a mode which is lost is noticed
        if not entry.is_symlink():
            os.chmod(entry.path, 0o640)
    recording = record(bench, place)
    limits = Limits(1024, 60, 40, 4000) if thorough else Limits()
    flawed = {flaw: FLAWS[flaw](recording) for flaw in flaws}
    if each_sync:
        flawed = dict(_without_each_sync(recording))
    return [cut_everywhere(bench, other, flaw, limits) for flaw, other in flawed.items()]


def record(bench: Bench, place: Path) -> Recording:
    """Save twice in a traced child, and keep what it did to the disk."""
    scenario = bench.scenario
    before = snapshot(place)

    def body() -> None:
        tracer.mark(tracer.START)
        for version in _SAVES:
            scenario.save(place, scenario.states(version), version)
            tracer.mark(DURABLE + version)
        tracer.mark(tracer.STOP)

    def decide(call: Call) -> Fault | None:
        return Fault(error=code) if (code := bench.lacking(call)) else None

    trace = tracer.trace(body, str(place), decide, keep_data=True)
    if trace.status:
        raise RuntimeError(f"the save that was to be recorded ended with {trace.status}")
    recording = read_trace(trace, str(place), before, _umask())
    _check_replay(recording, place)
    return recording


def _check_replay(recording: Recording, place: Path) -> None:
    """All changes together must give what is really there, or the model is no model of it."""
    synced = replace_syncs(recording, [Sync(None, recording.times[-1], recording.times[-1] + 1)])
    (state,) = PowerCuts(synced).states_at(recording.times[-1] + 1)
    made = {name: (file.content, file.mode) for name, file in state.items()}
    if made != snapshot(place):
        raise RuntimeError("the replayed calls do not give the directory that is there")


def replace_syncs(recording: Recording, syncs: list[Sync]) -> Recording:
    return replace(recording, syncs=syncs)


# --- writers with a fault, made from the recording of one without -------------------------------


def _without_file_syncs(recording: Recording) -> Recording:
    kept = [sync for sync in recording.syncs if sync.inode is recording.directory]
    return replace_syncs(recording, kept)


def _without_directory_syncs(recording: Recording) -> Recording:
    kept = [sync for sync in recording.syncs if sync.inode is not recording.directory]
    return replace_syncs(recording, kept)


def _without_syncs(recording: Recording) -> Recording:
    return replace_syncs(recording, [])


def _without_each_sync(recording: Recording) -> Iterator[tuple[str, Recording]]:
    for number, sync in enumerate(recording.syncs):
        what = "directory" if sync.inode is recording.directory else "file"
        kept = recording.syncs[:number] + recording.syncs[number + 1 :]
        yield f"sync {number + 1}, of a {what}", replace_syncs(recording, kept)


def _file_syncs_late(recording: Recording) -> Recording:
    """Each file is synced right after the directory, not before it is renamed."""
    last = max(sync.ended for sync in recording.syncs)
    ends = [s.ended for s in recording.syncs if s.inode is recording.directory]

    def moved(sync: Sync) -> Sync:
        if sync.inode is recording.directory:
            return sync
        after = min((end for end in ends if end > sync.ended), default=last)
        return replace(sync, began=after, ended=after)

    return replace_syncs(recording, [moved(sync) for sync in recording.syncs])


def _reported_early(recording: Recording) -> Recording:
    """Each save says that it is durable when it has renamed, before it syncs the directory."""
    begins = sorted(s.began for s in recording.syncs if s.inode is recording.directory)
    early = [max(b for b in begins if b < at) - 1 for at in recording.durable]
    return replace(recording, durable=early)


def _mode_late(recording: Recording) -> Recording:
    """Modes are set after the file was synced."""
    changes = []
    for change in recording.changes:
        ends = [s.ended for s in recording.syncs if s.inode is change.inode]
        if change.mode is not None and ends:
            change = replace(change, began=max(ends), ended=max(ends) + 1)
        changes.append(change)
    return replace(recording, changes=changes)


FLAWS: dict[str, Callable[[Recording], Recording]] = {
    "": lambda recording: recording,
    "file syncs": _without_file_syncs,
    "directory syncs": _without_directory_syncs,
    "any syncs": _without_syncs,
    "file syncs before the rename": _file_syncs_late,
    "waiting for the directory sync": _reported_early,
    "modes before the sync": _mode_late,
}
"""What a writer may do wrong, each made by leaving something out of a recording."""


# --- cutting -------------------------------------------------------------------------------------


class _Reader:
    """Makes directories out of states and reads them; each different one once."""

    def __init__(self, scenario: Scenario, recording: Recording, template: Path) -> None:
        self._scenario = scenario
        self._template = template
        self._modes = {name: file.mode for name, file in recording.names.items()}
        self._known: dict[tuple[object, ...], tuple[str, str, str]] = {}
        fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="genesis-power-", dir=fast))

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def make(self, state: State) -> Path:
        """The directory, with its symbolic links, which the model does not change."""
        place = self.folder / "d"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for entry in os.scandir(self._template):
            if entry.is_symlink():
                (place / entry.name).symlink_to(os.readlink(entry.path))
        for name, file in state.items():
            path = place / name
            path.write_bytes(file.content)
            path.chmod(file.mode)
        return place

    def read(self, state: State) -> tuple[str, str, str]:
        """What a reader sees, what it sees without the backup, and what the backup is."""
        key = label_of(state, for_readers=True)
        if key not in self._known:
            place, spare = self.make(state), self.folder / "spare"
            seen = self._scenario.see(place)
            alone = self._scenario.see_without_backup(place, spare)
            shutil.rmtree(spare, ignore_errors=True)
            self._known[key] = seen, alone, self._backup(place)
        return self._known[key]

    def _backup(self, place: Path) -> str:
        backups = sorted(place.glob("*.genesis.bak"))
        for backup in backups:
            shutil.copy(backup, self.folder / backup.name.removesuffix(".genesis.bak"))
        found = []
        for backup in backups:
            copy = self.folder / backup.name.removesuffix(".genesis.bak")
            found.append(self._scenario.see_file(copy).partition(":")[0])
            copy.unlink()
        return ", ".join(found) or "none"

    def wrong_modes(self, state: State) -> list[str]:
        """Checkpoints that lost the mode of what they replaced."""
        return [
            f"{name} has mode {file.mode:o}"
            for name, file in state.items()
            if ".genesis" not in name and file.mode != self._modes.get(name, 0o666 & ~_umask())
        ]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cut_everywhere(bench: Bench, recording: Recording, flaw: str, limits: Limits) -> Result:
    """Read every disk that a cut may leave; save again on each that has other names in it."""
    scenario = bench.scenario
    words = ["cut", bench.environment, f"without {flaw}" if flaw else ""]
    result = Result(scenario.name, " ".join(filter(None, words)))
    reader = _Reader(scenario, recording, bench.template)
    cuts = PowerCuts(recording, limits)
    judged: set[tuple[object, ...]] = set()
    tried: set[tuple[str, ...]] = set()
    try:
        for time in recording.times:
            result.points += 1
            done = sum(at <= time for at in recording.durable)
            for state in cuts.states_at(time):
                key = (done, *label_of(state))
                if key in judged:
                    continue
                judged.add(key)
                result.states += 1
                _judge(result, scenario, reader, state, done, time)
                if flaw and len(result.failures) >= _ENOUGH:
                    return result
                if not flaw and (names := tuple(sorted(state))) not in tried:
                    tried.add(names)
                    _save_next(result, bench, reader, state)
    finally:
        reader.close()
    return result


def label_of(state: State, *, for_readers: bool = False) -> tuple[object, ...]:
    """What tells a disk from others; for readers, what is in temporary files does not."""
    return tuple(
        sorted(
            (name, () if for_readers and name.endswith(".tmp") else file.label)
            for name, file in state.items()
        )
    )


def _judge(
    result: Result, scenario: Scenario, reader: _Reader, state: State, done: int, time: int
) -> None:
    seen, alone, backup = reader.read(state)
    result.seen[in_short(seen)] += 1
    result.backups[backup] += 1
    where = f"{scenario.name}, cut at {time} after {done} durable saves, disk {sorted(state)}"
    if not scenario.may_see(seen, done):
        result.failures.append(f"{where}: a reader finds {seen!r}; the backup is {backup}")
    elif not scenario.may_see(alone, done):
        result.failures.append(f"{where}: without the backup a reader finds {alone!r}")
    if "broken" in backup:
        result.failures.append(f"{where}: the backup is broken")
    result.failures += [f"{where}: {problem}" for problem in reader.wrong_modes(state)]


def _save_next(result: Result, bench: Bench, reader: _Reader, state: State) -> None:
    """What a cut left must not keep the next save from working, nor outlast it."""
    scenario = bench.scenario
    place = reader.make(state)

    def save() -> list[str]:
        scenario.save(place, scenario.states(4), 4)
        return [scenario.see(place), *os.listdir(place)]

    seen, *names = isolated(save)
    where = f"{scenario.name}, after a cut that left {sorted(state)}"
    if "4" not in seen.split(",") or "broken" in seen:
        result.failures.append(f"{where}: after the next save a reader finds {seen!r}")
    if litter := bench.litter(names, scenario.names(seen)):
        result.failures.append(f"{where}: the next save leaves {litter}")
