"""One blocking save: planning, format and atomic replacement put together.

Runs on the caller's thread and companions. It keeps nothing between calls but staging memory and a
thread that may still free an old file, and takes no turns: that is the writer's part.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._errors import (
    UnpicklableStateError,
)
from .._options import Sharded
from .._os import files
from .._os.descriptors import Descriptor
from .._os.memory import align
from .._os.staging import Arena, ArenaPool
from .._pickle import dumping
from .._pickle.buffers import SMALL, Piece, Plan, RefusedObjectError
from .._threads import companions
from .._threads.idle import WhenIdle
from .._threads.interrupts import Doubled
from .._tuning import on
from .._version import __version__
from ..storage.local import Replacement
from ..storage.places import Elsewhere, replacement
from . import layout
from .reader import is_sound

_WINDOW = 2 * layout.CHUNK_SIZE
"""Bytes copied, checksummed and written at a time by a synchronous save."""

_STAGED_WINDOW = 8 * layout.CHUNK_SIZE
"""The same for a staged save, which has nothing to copy: each window costs a few takings of the
GIL, so there are few."""

_SPARE = 64 << 20
"""Bytes of a file system beside the file, for all else that goes on there."""

_DIRECT_FROM = 4 << 20
"""Streams from this size on bypass the page cache."""

_IDLE_FROM = 64 << 20
"""Bytes of staging memory at rest that are worth a thread which lets them go."""

arenas = ArenaPool(keep=2)
idle = WhenIdle(arenas.release, seconds=60)
"""Lets go of staging memory that no save has used for a while. What `prewarm` made present waits
for its save however long that takes."""


def keep_for(seconds: float) -> None:
    """How long staging memory is kept without a save."""
    idle.stop()
    idle.seconds = seconds
    _wait_for_idleness()


def give_back(arena: Arena) -> None:
    """Put the staging memory of a save to rest."""
    arenas.give_back(arena)
    _wait_for_idleness()


def _wait_for_idleness() -> None:
    if arenas.size > _IDLE_FROM:
        idle.note()


_Place = Replacement | Elsewhere
_Advance = Callable[[int], object]
"""Called with the bytes of each piece of the stream that is written."""


def _untold(size: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Written:
    """What one write took: bytes of the file, seconds of its parts."""

    bytes: int
    write: float
    sync: float


@dataclass(frozen=True, slots=True)
class Job:
    """A planned save: its stream and its index."""

    plan: Plan
    index: bytes

    def marked(self, mark: layout.Mark) -> Job:
        """The same with what a manager notes in the index."""
        return Job(self.plan, layout.with_mark(self.index, mark))

    @property
    def size(self) -> int:
        """Bytes of the stream, which is also what staging it takes."""
        return self.plan.size


def plan(
    state: object,
    metadata: Mapping[str, Any] | None = None,
    *,
    sharded: Sharded = "refuse",
) -> Job:
    """Pickle the structure of `state` and lay out its arrays; nothing is copied yet.

    Args:
        sharded: see `_pickle.dumping.plan`.

    Raises:
        UnpicklableStateError: something in it cannot be saved.
        TypeError, ValueError: something in `metadata` is not JSON; the message names its place.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    encode = partial(layout.encode_index, writer=f"genesis {__version__}", python=python)
    given: Mapping[str, Any] = {} if metadata is None else metadata
    if given:
        encode("pickle", metadata=given)  # before objects are asked to hand over what they hold
    made = dumping.plan(state, sharded=sharded)
    return Job(made, encode(made.pickler, metadata=given))


def save(path: str, job: Job, advance: _Advance = _untold) -> Written:
    """Write a planned state, copying it window by window: memory is bounded for any size.

    Raises:
        OSError: it could not be written; the file at `path` is the old one.
        DurabilityUnknownError: it was written, and may not outlive a power cut.
    """
    size = min(2 * _WINDOW, align(job.size, files.BLOCK))
    place = replacement(path, is_sound=is_sound)
    with place, place, arenas.borrow(size) as arena:
        place.begin()
        _wait_for_room(place, job)
        return _commit(place, job, _filled_windows(job.plan, arena), advance)


def _filled_windows(plan: Plan, arena: Arena) -> Iterator[tuple[int, memoryview]]:
    """Fill the two halves of an arena in turn; one is written while the other is filled."""
    for number, start in enumerate(range(0, plan.size, _WINDOW)):
        low = number % 2 * _WINDOW
        view = arena.view[low : low + min(_WINDOW, plan.size - start)]
        plan.small.copy(arena.address + low, start, start + len(view))
        for copy in plan.copies(view, arena.address + low, start):
            copy()
        plan.fill_texts(view, start)
        yield start, view


def make_present(size: int, *, huge: bool) -> None:
    """Let an arena of this size stand ready whose pages are all there.

    Args:
        huge: see `Arena.prefault`.
    """
    with arenas.borrow(size) as arena:
        arena.prefault(huge=huge)


Select = Callable[[Piece], bool]
"""Chooses pieces of a state."""

Changes = Callable[[int, int], bool]
"""Whether memory may change before the state is captured, by its address and size."""


def taken_at_once(*, large: bool, changing: Collection[Changes] = ()) -> Select:
    """What a capture copies before it returns: all that may change; or without ``large`` only what
    is small, and what changes before the rest is copied."""
    if large:
        return lambda piece: not piece[4]

    def select(piece: Piece) -> bool:
        _offset, size, address, _owner, frozen, _foreign = piece
        # Of an accelerator: what is small on the host is no `Piece`.
        return not frozen and (size < SMALL or any(each(address, size) for each in changing))

    return select


def stage(job: Job, arena: Arena, at_once: Select) -> None:
    """Copy into an arena what a capture takes before it returns."""
    job.plan.small.copy(arena.address, 0, job.size)
    _stage(job, arena, at_once)


def stage_rest(job: Job, arena: Arena, at_once: Select, *, late: bool) -> None:
    """Copy what `stage` left.

    Args:
        late: tensors are among it, which the caller may have resized or freed since.

    Raises:
        UnpicklableStateError: so it is.
    """
    if late:
        try:
            job.plan.check()
        except RefusedObjectError as exc:
            raise UnpicklableStateError("", str(exc), exc.hint) from None
    _stage(job, arena, lambda piece: not at_once(piece))


def _stage(job: Job, arena: Arena, select: Select) -> None:
    size = sum(piece[1] for piece in filter(select, job.plan.pieces))
    copies = job.plan.copies(arena.view[: job.size], arena.address, 0, select)
    companions.run_all(copies, size=size)


def save_staged(path: str, job: Job, arena: Arena, advance: _Advance = _untold) -> Written:
    """Write a state that stands in an arena, complete but for the skeleton. Raises as `save`."""
    place = replacement(path, is_sound=is_sound)
    with place, place:
        place.begin()
        _wait_for_room(place, job)
        job.plan.fill_texts(arena.view[: job.size], 0)
        windows = (
            (start, arena.view[start : min(start + _STAGED_WINDOW, job.size)])
            for start in range(0, job.size, _STAGED_WINDOW)
        )
        return _commit(place, job, windows, advance)


def remove(path: str) -> bool:
    """Remove a file, its backup and what killed writers left of it; ``False`` where neither file
    nor backup was there."""
    try:
        place = replacement(path, is_sound=is_sound)
    except FileNotFoundError:
        return False  # nor is its directory
    with place, place:
        return place.remove()


def _commit(
    place: _Place, job: Job, windows: Iterator[tuple[int, memoryview]], advance: _Advance
) -> Written:
    began = time.perf_counter()
    size = _write(place, job, windows, advance)
    written = time.perf_counter()
    place.sync(size)
    place.commit()
    if (old := place.take_old()) is not None:
        _free_behind(old)
    return Written(size, written - began, time.perf_counter() - written)


_freeing: companions.Companion | None = None
"""The last thread that frees an old file."""


def _free_behind(old: Descriptor) -> None:
    """Free an old file's blocks with nobody waiting: the save is durable. Who exits waits for every
    thread, and a save that needs the room for this one."""
    global _freeing
    if not on.late_free:
        old.let_go()
        return
    companion = companions.Companion(old.let_go)
    companion.start()
    _freeing = companion


def reset_after_fork() -> None:
    """Start empty, in a forked child: the thread that frees a file is its parent's."""
    global _freeing
    _freeing = None
    arenas.reset_after_fork()


def _wait_for_room(place: _Place, job: Job) -> None:
    if _freeing is not None and place.room() < job.size + _SPARE:
        _freeing.wait()


def _write(
    place: _Place, job: Job, windows: Iterator[tuple[int, memoryview]], advance: _Advance
) -> int:
    """Checksum and write each window, one behind the other; return the size of the file.

    Whole blocks are written directly where that is possible, the tail with the trailer through the
    page cache.
    """
    body = job.size - job.size % files.BLOCK
    if job.size >= _DIRECT_FROM and on.direct_io:
        place.start_direct()
    digests: list[int] = []
    tail = b""
    before = 0
    behind = _Behind()
    with behind, behind:
        for start, view in windows:
            digests += map(layout.digest, _chunks(view))
            whole = view[: max(body - start, 0)]
            tail = bytes(view[len(whole) :])
            behind.run(partial(place.write, whole, start), last=start + len(view) == job.size)
            advance(before)  # the window before this one: it was waited for
            before = len(view)
    place.stop_direct()
    skeleton = job.plan.skeleton_offset
    trailer = layout.encode_trailer(
        digests, job.index, stream_size=job.size, skeleton_offset=skeleton
    )
    place.write(tail + trailer, body)
    return job.size + len(trailer)


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for offset in range(0, len(view), layout.CHUNK_SIZE):
        yield view[offset : offset + layout.CHUNK_SIZE]


class _Behind(Doubled):
    """Runs each call beside what the caller does next, and never two at a time."""

    def __init__(self) -> None:
        self._companion: companions.Companion | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # The memory it writes from is the caller's again when this returns, so it is waited for
        # on an error too, and its own error then yields to the first.
        if self._companion is not None:
            self._companion.__exit__(kind, error, trace)

    def run(self, work: Callable[[], object], *, last: bool) -> None:
        self._wait()
        if last or not on.overlap:
            work()
        else:
            self._companion = companions.Companion(work)
            self._companion.start()

    def _wait(self) -> None:
        if self._companion is not None:
            self._companion.wait()
            self._companion = None
