"""The measurements, each run in a process of its own by worker.py: one peer, one state.

Every sample is kept; nothing is averaged here, and no sample is thrown away but the warm-up.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import procfs, states
from .floors import CopyFloor, WriteFloor
from .peers import Peer, Ticket
from .states import State
from .stats import median

Result = dict[str, Any]


@dataclass
class Bed:
    """A peer, a state and the folder they meet in."""

    peer: Peer
    state: State
    folder: str
    options: dict[str, Any] = field(default_factory=dict)
    _number: int = 0

    def path(self) -> str:
        """Where the next save goes: a new directory, or the file of the save before."""
        if not self.peer.directory:
            return os.path.join(self.folder, "checkpoint.bin")
        self._number += 1
        return os.path.join(self.folder, f"step-{self._number:06d}")

    def discard(self, path: str) -> None:
        """Remove a directory that a newer one follows; a file stays, to be replaced."""
        if self.peer.directory:
            shutil.rmtree(path)

    def save(self) -> str:
        """Save once, untimed, until it is on the disk."""
        path = self.path()
        self.peer.save(self.state.fresh(), path).wait()
        procfs.sync(path)
        return path


# ---------------------------------------------------------------------------------- saving


def saves(bed: Bed) -> Result:
    """Call stall, time until captured, finished and durable, and processor time, per save.

    The floors are measured right before each save, so that a ratio compares neighbours in time.
    The first save is kept apart, the second is the warm-up of the rest.
    """
    copy = CopyFloor(bed.state.nbytes)
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    # Only who syncs before it returns is held against the disk; the others are spared its noise.
    wants_write = bed.peer.durable != "no" and not bed.peer.background
    write = WriteFloor(copy.arena, bed.state.nbytes, bed.folder) if wants_write else None
    first, *later = list(_samples(bed, copy, write))
    return {
        "first": first,
        # Who is too slow for a warm-up and a sample has the one that there was time for.
        "samples": later[1:] or later,
        "copy_way": copy.way,
        "direct": write.direct if write else None,
    }


def _samples(bed: Bed, copy: CopyFloor, write: WriteFloor | None) -> Iterator[Result]:
    """A first save, a warm-up, and as many more as were asked for and as there is time for."""
    until = time.perf_counter() + bed.options.get("seconds", math.inf)
    for number in range(2 + bed.options["saves"]):
        if number < 2 or time.perf_counter() < until:
            yield _sample(bed, copy, write)


def _sample(bed: Bed, copy: CopyFloor, write: WriteFloor | None) -> Result:
    bed.state.touch()
    tree = bed.state.fresh()
    copy.aim(tree)
    floors = {"floor_copy": copy.run(), "floor_write": write.run() if write else None}
    path = bed.path()
    gc.collect()
    sample = timed_save(bed.peer, tree, path)
    bed.discard(path)
    return sample | floors


def timed_save(peer: Peer, tree: states.Tree, path: str) -> Result:
    """Save once until it is on the disk; seconds from the call to each step on the way."""
    processor = procfs.processor_seconds()
    start = time.perf_counter()
    ticket = peer.save(tree, path)
    called = time.perf_counter()
    ticket.captured()
    captured = time.perf_counter()
    ticket.wait()
    finished = time.perf_counter()
    processor = procfs.processor_seconds() - processor
    resumed = time.perf_counter()
    procfs.sync(path)
    synced = time.perf_counter() - resumed
    return {
        "stall": called - start,
        "captured": captured - start,
        "finished": finished - start,
        # What a peer leaves unsynced is synced for it, and counted.
        "durable": finished - start + (0.0 if peer.durable == "yes" else synced),
        "processor": processor,
    }


# --------------------------------------------------------------------------------- loading


def loads(bed: Bed) -> Result:
    """Seconds to load, cold and warm, in every way the peer offers; and whether it is right."""
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    expected = states.snapshot(bed.state.fresh())
    path = bed.save()
    result: Result = {"bytes": sum(map(os.path.getsize, procfs.files_of(path)))}
    for how in bed.peer.hows:
        try:
            result[how] = _loads_in_one_way(bed, path, how, expected)
        except Exception as error:  # a peer's refusal is a result
            result[how] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return result


def _loads_in_one_way(bed: Bed, path: str, how: Any, expected: dict[str, Any]) -> Result:
    samples: dict[str, list[Result]] = {"warm": [], "cold": []}
    timed_load(bed, path, how, expected)
    # The first load warms up; cold and warm take turns.
    for _ in range(bed.options["loads"]):
        procfs.drop_cache(path)
        samples["cold"].append(timed_load(bed, path, how, None))
        samples["warm"].append(timed_load(bed, path, how, None))
    return samples


def timed_load(bed: Bed, path: str, how: Any, expected: dict[str, Any] | None) -> Result:
    """Load once, into memory as a new process has it; seconds, and with every page read."""
    probe = bed.state.probe
    template = bed.peer.template(bed.state.fresh(), how, probe)
    gc.collect()
    # Who resumes does so once, in a new process, whose allocator has nothing to recycle.
    procfs.trim()
    start = time.perf_counter()
    loaded = bed.peer.load(path, how, template, probe)
    seconds = time.perf_counter() - start
    _read(loaded)
    read = time.perf_counter() - start
    if expected is not None:
        _demand_equal(loaded, how, expected, probe)
    return {"load": seconds, "load_and_read": read}


def _read(loaded: Any) -> None:
    """Read a byte of every page, since a mapped load has read none."""
    arrays = states.flat({"loaded": loaded}).values()
    for array in arrays:
        states.as_numpy(array).reshape(-1).view("uint8")[::4096].sum()


def _demand_equal(loaded: Any, how: str, expected: dict[str, Any], probe: tuple[str, str]) -> None:
    if how == "partial":
        name = "/".join(probe)
        expected = {name: expected[name]}
        loaded = {name: next(iter(states.flat({"": loaded}).values()))}
    wrong = states.differences(loaded, expected)
    if wrong:
        raise AssertionError(f"{len(wrong)} parts differ after loading, among them {wrong[0]}")


# -------------------------------------------------------------------------------- training


def training(bed: Bed) -> Result:
    """What one checkpoint costs a training loop that keeps every core busy.

    Windows with one save at their second step alternate with windows without. A window with a
    save goes on until the save is finished, so that whatever it takes from training is inside.
    """
    pairs = bed.options["pairs"]
    bare = _bare_steps(bed)
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    _window(bed, save=True)
    windows = [_window(bed, save=bool(i % 2)) for i in range(2 * pairs + 1)]
    plain, saving = windows[0::2], windows[1::2]
    return {
        "lost": [_lost(saving[i], plain[i], plain[i + 1]) for i in range(pairs)],
        # The same sum for windows without a save: what the method itself takes for a loss.
        "noise": [_lost(plain[i], plain[i], plain[i + 1]) for i in range(pairs)],
        "step": median([step for window in plain for step in window["steps"]]),
        # Before the peer was there: some slow every step down, not only those beside a save.
        "bare_step": median(bare),
        "timelines": saving,
    }


def _bare_steps(bed: Bed) -> list[float]:
    """Steps of a loop in which the peer has no part, after as many to warm up."""
    seconds = []
    for _ in range(2 * bed.options["steps"]):
        start = time.perf_counter()
        bed.state.trainer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[bed.options["steps"] :]


def _lost(window: Result, before: Result, after: Result) -> float:
    usual = median(before["steps"] + after["steps"])
    return float(sum(window["steps"]) - usual * len(window["steps"]))


def _window(bed: Bed, *, save: bool) -> Result:
    steps: list[float] = []
    ticket, stall, path = Ticket(), 0.0, bed.path() if save else ""
    while len(steps) < bed.options["steps"] or not ticket.finished():
        start = time.perf_counter()
        bed.state.trainer.step(_guard(bed, ticket))
        if save and len(steps) == 1:
            called = time.perf_counter()
            ticket = bed.peer.save(bed.state.fresh(), path)
            stall = time.perf_counter() - called
        bed.peer.tick()
        steps.append(time.perf_counter() - start)
    if save:
        ticket.wait()
        procfs.sync(path)
        bed.discard(path)
    return {"steps": steps, "stall": stall}


@contextmanager
def _guard(bed: Bed, ticket: Ticket) -> Iterator[None]:
    # The peer's guard is made when the update begins, not when the step does.
    with bed.peer.guard(ticket):
        yield


# ---------------------------------------------------------------------------------- memory


def memory(bed: Bed, mark: Callable[[str], None]) -> Result:
    """Peak extra memory of the peer, its processes and staging included; not its imports.

    worker.py's parent samples the shared-out memory of all processes between the two marks; the
    exact peak of this one process is read here.
    """
    gc.collect()
    procfs.trim()
    procfs.reset_peak()
    before = procfs.resident_bytes()
    mark("baseline")
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    for _ in range(bed.options["saves"]):
        path = bed.save()
        bed.discard(path)
    mark("end")
    return {"peak": procfs.peak_bytes() - before}


def flat(bed: Bed) -> Result:
    """Resident memory and open descriptors after each of many saves."""
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    resident, descriptors = [], []
    for _ in range(bed.options["saves"]):
        bed.state.touch()
        bed.discard(bed.save())
        resident.append(procfs.resident_bytes())
        descriptors.append(len(os.listdir("/proc/self/fd")))
    return {"resident": resident, "descriptors": descriptors}


# ------------------------------------------------------------------------------------ check


def check(bed: Bed) -> Result:
    """Whether the peer's file holds the values of the moment of the call, as it promises."""
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    found: Result = {}
    for how in bed.peer.hows:
        tree = bed.state.fresh()
        expected = states.snapshot(tree)
        path = bed.path()
        ticket = bed.peer.save(tree, path)
        with bed.peer.guard(ticket):
            bed.state.touch()
        ticket.wait()
        found[how] = _judge(bed, path, how, expected)
        bed.discard(path)
    return found


def _judge(bed: Bed, path: str, how: Any, expected: dict[str, Any]) -> str:
    probe = bed.state.probe
    try:
        template = bed.peer.template(bed.state.fresh(), how, probe)
        loaded = bed.peer.load(path, how, template, probe)
        _demand_equal(loaded, how, expected, probe)
    except Exception as error:  # to be shown beside the others
        return f"{type(error).__name__}: {error}"[:300]
    return "equal"
