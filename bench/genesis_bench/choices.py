"""What each optimisation of genesis is worth: the same measurement with it and without it, in turn.

Each row has a process of its own, and turns the switches of `genesis._tuning` for the length of one
measurement.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from . import measure, procfs
from .floors import Arena, WriteFloor
from .measure import Bed


@dataclass(frozen=True)
class Row:
    """One optimisation.

    Attributes:
        name: in the results.
        measure: a key of MEASURES.
        off: the switch. A dict: what is replaced to be without it.
        both: what is replaced with it too, since it would hide the difference.
        needs: a key of FOUND: without that on this machine, genesis goes without it anyway.
    """

    name: str
    what: str
    state: str
    measure: str
    off: str | dict[str, Any]
    both: dict[str, Any] = field(default_factory=dict)
    needs: str = ""

    @property
    def replaces(self) -> dict[str, Any]:
        """Names of genesis, and what stands for them where it is off."""
        return self.off if isinstance(self.off, dict) else {_SWITCHES + self.off: False}


PAIRS = {"small": 9, "big": 5}

_SWITCHES = "genesis._tuning.on."
_NO_KERNEL_COPIES = {f"{_SWITCHES}kernel_copies": False}
# No arena at rest either, or the one of the save before would serve once more.
_FRESH_MEMORY = {
    f"{_SWITCHES}kept_memory": False,
    "genesis._file.writer.arenas._resting": {},
}

# fmt: off
ROWS = (
    Row("ledger", "plain tensors are written ahead and remembered", "small", "call stall",
        off="ledger"),
    Row("guard", "one guard for all properties of all tensors", "small", "call stall",
        off="guards", needs="guards in torch"),
    Row("kernel-copies", "the kernel makes many small copies in one call", "small", "call stall",
        off="kernel_copies", needs="process_vm_writev"),
    Row("gil", "small copies hold the GIL", "small", "call stall beside a busy thread",
        off="held_copies", both=_NO_KERNEL_COPIES),
    Row("kept-memory", "staging memory is kept for the next save", "big", "call stall",
        off=_FRESH_MEMORY),
    Row("copy-threads", "two threads copy", "big", "call stall",
        off="threads", needs="second core"),
    Row("direct", "writes bypass the page cache", "big", "save until durable",
        off="direct_io", needs="direct I/O"),
    Row("huge-pages", "huge pages for the windows of a synchronous save", "big",
        "save until durable, in new memory",
        off="huge_pages",
        needs="huge pages for whoever asks"),
    Row("beside-write", "checksum and copy run beside the write", "big", "save until durable",
        off="overlap"),
    Row("free-behind", "the old file is freed behind the commit", "big", "save until durable",
        off="late_free"),
    Row("filler", "pages are made with their bytes in them", "big", "load, warm, verified",
        off="userfaultfd", needs="userfaultfd"),
    Row("load-threads", "two threads read and check", "big", "load, warm, verified",
        off="threads", needs="second core"),
)
# fmt: on


def choices(bed: Bed) -> measure.Result:
    """Seconds with a choice and without it, pair by pair; the first pair is the warm-up."""
    (row,) = (row for row in ROWS if row.name == bed.options["choice"])
    if row.needs and not FOUND[row.needs](bed.folder):
        return {"refused": f"this machine has no {row.needs}"}
    bed.peer.set_up(bed.state.fresh(), bed.folder)
    bed.save()
    _, take = MEASURES[row.measure]
    result: dict[str, list[float]] = {"with": [], "without": []}
    with replaced(row.both):
        for _ in range(1 + bed.options["pairs"]):
            result["with"].append(take(bed))
            with replaced(row.replaces):
                result["without"].append(take(bed))
    return {side: seconds[1:] for side, seconds in result.items()}


@contextmanager
def replaced(names: dict[str, Any]) -> Iterator[None]:
    """Let other values stand for names, which must exist, for the length of a with block."""
    with ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(mock.patch(name, value))
        yield


# ------------------------------------------------------------------------------- measurements


def _save(bed: Bed) -> measure.Result:
    bed.state.touch()
    sample = measure.timed_save(bed.peer, bed.state.fresh(), bed.path())
    # What this save left to be freed must not burden the next one, which may be of the other kind.
    if freeing := resolve_name("genesis._file.writer._freeing"):
        freeing.wait()
    return sample


def _durable_in_new_memory(bed: Bed) -> float:
    """How memory is made shows only in memory made since: an unmeasured save makes it."""
    with replaced({"genesis._file.writer.arenas._resting": {}}):
        _save(bed)
        return _save(bed)["durable"]


def _stall_beside_a_busy_thread(bed: Bed) -> float:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        return _save(bed)["stall"]
    finally:
        stop.set()
        thread.join()


MEASURES: dict[str, tuple[str, Callable[[Bed], float]]] = {
    "call stall": ("genesis background", lambda bed: _save(bed)["stall"]),
    "call stall beside a busy thread": ("genesis background", _stall_beside_a_busy_thread),
    "save until durable": ("genesis.save", lambda bed: _save(bed)["durable"]),
    "save until durable, in new memory": ("genesis.save", _durable_in_new_memory),
    "load, warm, verified": (
        "genesis.save",
        lambda bed: measure.timed_load(bed, bed.path(), "whole", None)["load"],
    ),
}
"""The peer that is measured, and how."""


# ---------------------------------------------------------------------- what a machine may lack


def _kernel_copies() -> bool:
    from genesis._os import memory

    buffer = ctypes.create_string_buffer(128)
    target = ctypes.addressof(buffer)
    return memory._gathered(target, [target + 64], [64])


def _filler_works() -> bool:
    from genesis._os.memory import PAGE, private_memory
    from genesis._os.userfaultfd import _FILLED_FROM, Filler

    with Filler(private_memory(_FILLED_FROM), -1, PAGE) as filler:
        return bool(filler._watch)


def _writes_directly(folder: str) -> bool:
    floor = WriteFloor(Arena(mmap.PAGESIZE), mmap.PAGESIZE, folder)
    floor.run()
    return floor.direct


FOUND: dict[str, Callable[[str], bool]] = {
    "guards in torch": lambda _: (
        resolve_name("genesis._pickle.torch_plain.TensorGuards") is not None
    ),
    "process_vm_writev": lambda _: _kernel_copies(),
    "second core": lambda _: resolve_name("genesis._threads.companions.SIZE") > 1,
    "direct I/O": _writes_directly,
    "huge pages for whoever asks": lambda _: "[madvise]" in procfs.huge_pages(),
    "userfaultfd": lambda _: _filler_works(),
}
"""Whether a thing is there, for checkpoints in a folder."""
