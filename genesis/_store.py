"""One blocking save, load or check: planning, format and atomic replacement put together.

Runs on the caller's thread and companions. It keeps nothing between calls but staging memory and a
thread that may still free an old file, and takes no turns: that is the writer's part.
"""

from __future__ import annotations

import mmap as _mmap
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _crew, _format, _fs, _pickling
from ._arena import Arena, ArenaPool
from ._atomic import BACKUP_SUFFIX, Replacement
from ._descriptor import Descriptor
from ._errors import (
    CorruptCheckpointError,
    NewerFormatError,
    NotACheckpointError,
    RebuildError,
    RecoveredFromBackupWarning,
    UnpicklableStateError,
    UnsafeLoadError,
)
from ._foreign import load_pickle, read_pickle, refuse_folder, refuse_other_kinds
from ._idle import WhenIdle
from ._interrupts import Doubled
from ._memory import Filler, private_memory
from ._options import Sharded
from ._plan import SMALL, Piece, Plan, RefusedObjectError
from ._public import level_of_caller
from ._region import ApartRegion, Region
from ._version import __version__

_WINDOW = 2 * _format.CHUNK_SIZE
"""Bytes copied, checksummed and written at a time by a synchronous save."""

_STAGED_WINDOW = 8 * _format.CHUNK_SIZE
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

    @property
    def size(self) -> int:
        """Bytes of the stream, which is also what staging it takes."""
        return self.plan.size


def plan(
    state: object,
    metadata: Mapping[str, Any] | None = None,
    *,
    sharded: Sharded = "refuse",
    order: int = 0,
) -> Job:
    """Pickle the structure of `state` and lay out its arrays; nothing is copied yet.

    Args:
        sharded: see `_pickling.plan`.
        order: see `_format.Index`.

    Raises:
        UnpicklableStateError: something in it cannot be saved.
        TypeError, ValueError: something in `metadata` is not JSON; the message names its place.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    encode = partial(_format.encode_index, writer=f"genesis {__version__}", python=python)
    given: Mapping[str, Any] = {} if metadata is None else metadata
    encode("pickle", metadata=given)  # before objects are asked to hand over what they hold
    made = _pickling.plan(state, sharded=sharded)
    return Job(made, encode(made.pickler, metadata=given, order=order))


def save(path: str, job: Job) -> Written:
    """Write a planned state, copying it window by window: memory is bounded for any size.

    Raises:
        OSError: it could not be written; the file at `path` is the old one.
        DurabilityUnknownError: it was written, and may not outlive a power cut.
    """
    size = min(2 * _WINDOW, _format.align(job.size, _fs.BLOCK))
    place = Replacement(path, is_sound=is_sound)
    with place, place, arenas.borrow(size) as arena:
        place.begin()
        _wait_for_room(place, job)
        return _commit(place, job, _filled_windows(job.plan, arena))


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


def stage(job: Job, arena: Arena, *, large: bool) -> None:
    """Copy into an arena what a capture takes before it returns: all that may change, or with
    ``large=False`` only of that which is small."""
    job.plan.small.copy(arena.address, 0, job.size)
    _stage(job, arena, _may_change if large else _may_change_and_is_small)


def stage_rest(job: Job, arena: Arena, *, large: bool) -> None:
    """Copy what `stage` left.

    Raises:
        UnpicklableStateError: memory was resized or freed since.
    """
    if not large:
        try:
            job.plan.check()
        except RefusedObjectError as exc:
            raise UnpicklableStateError("", str(exc), exc.hint) from None
    at_once = _may_change if large else _may_change_and_is_small
    _stage(job, arena, lambda piece: not at_once(piece))


def _stage(job: Job, arena: Arena, select: Callable[[Piece], bool]) -> None:
    size = sum(piece[1] for piece in filter(select, job.plan.pieces))
    copies = job.plan.copies(arena.view[: job.size], arena.address, 0, select)
    _crew.run_all(copies, size=size)


def _may_change(piece: Piece) -> bool:
    return not piece[4]


def _may_change_and_is_small(piece: Piece) -> bool:
    """Of an accelerator: what is small on the host is no `Piece`."""
    return piece[1] < SMALL and not piece[4]


def save_staged(path: str, job: Job, arena: Arena) -> Written:
    """Write a state that stands in an arena, complete but for the skeleton. Raises as `save`."""
    place = Replacement(path, is_sound=is_sound)
    with place, place:
        place.begin()
        _wait_for_room(place, job)
        job.plan.fill_texts(arena.view[: job.size], 0)
        windows = (
            (start, arena.view[start : min(start + _STAGED_WINDOW, job.size)])
            for start in range(0, job.size, _STAGED_WINDOW)
        )
        return _commit(place, job, windows)


def remove(path: str) -> bool:
    """Remove a file, its backup and what killed writers left of it; ``False`` where neither file
    nor backup was there."""
    try:
        place = Replacement(path, is_sound=is_sound)
    except FileNotFoundError:
        return False  # nor is its directory
    with place, place:
        return place.remove()


def _commit(place: Replacement, job: Job, windows: Iterator[tuple[int, memoryview]]) -> Written:
    began = time.perf_counter()
    size = _write(place, job, windows)
    written = time.perf_counter()
    place.sync(size)
    place.commit()
    if (old := place.take_old()) is not None:
        _free_behind(old)
    return Written(size, written - began, time.perf_counter() - written)


_freeing: _crew.Companion | None = None
"""The last thread that frees an old file."""


def _free_behind(old: Descriptor) -> None:
    """Free an old file's blocks with nobody waiting: the save is durable. Who exits waits for every
    thread, and a save that needs the room for this one."""
    global _freeing
    companion = _crew.Companion(old.let_go)
    companion.start()
    _freeing = companion


def reset_after_fork() -> None:
    """Start empty, in a forked child: the thread that frees a file is its parent's."""
    global _freeing
    _freeing = None
    arenas.reset_after_fork()


def _wait_for_room(place: Replacement, job: Job) -> None:
    if _freeing is not None and place.room() < job.size + _SPARE:
        _freeing.wait()


def _write(place: Replacement, job: Job, windows: Iterator[tuple[int, memoryview]]) -> int:
    """Checksum and write each window, one behind the other; return the size of the file.

    Whole blocks are written directly where that is possible, the tail with the trailer through the
    page cache.
    """
    body = job.size - job.size % _fs.BLOCK
    if job.size >= _DIRECT_FROM:
        place.start_direct()
    digests: list[int] = []
    tail = b""
    behind = _Behind()
    with behind, behind:
        for start, view in windows:
            digests += map(_format.digest, _chunks(view))
            whole = view[: max(body - start, 0)]
            tail = bytes(view[len(whole) :])
            behind.run(partial(place.write, whole, start), last=start + len(view) == job.size)
    place.stop_direct()
    skeleton = job.plan.skeleton_offset
    trailer = _format.encode_trailer(
        digests, job.index, stream_size=job.size, skeleton_offset=skeleton
    )
    place.write(tail + trailer, body)
    return job.size + len(trailer)


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for offset in range(0, len(view), _format.CHUNK_SIZE):
        yield view[offset : offset + _format.CHUNK_SIZE]


class _Behind(Doubled):
    """Runs each call beside what the caller does next, and never two at a time."""

    def __init__(self) -> None:
        self._companion: _crew.Companion | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # The memory it writes from is the caller's again when this returns, so it is waited for
        # on an error too, and its own error then yields to the first.
        if self._companion is not None:
            self._companion.__exit__(kind, error, trace)

    def run(self, work: Callable[[], object], *, last: bool) -> None:
        self._wait()
        if last:
            work()
        else:
            self._companion = _crew.Companion(work)
            self._companion.start()

    def _wait(self) -> None:
        if self._companion is not None:
            self._companion.wait()
            self._companion = None


@dataclass(frozen=True, slots=True)
class Opened:
    """An open genesis file whose trailer is checked, and whose chunks are not."""

    path: str
    fd: int
    footer: _format.Footer
    digests: tuple[int, ...]
    index: _format.Index
    data_size: int

    @property
    def chunks(self) -> int:
        return self.footer.chunks

    def chunk_span(self, number: int) -> tuple[int, int]:
        """The offsets where a chunk begins and ends."""
        low = number * self.footer.chunk_size
        return low, min(low + self.footer.chunk_size, self.footer.stream_size)

    def check(self, number: int, data: Any) -> None:
        """Compare the bytes of a chunk with its digest; raise `ChecksumError` if they differ."""
        _format.check_chunk(self.path, number, data, self.digests[number], self.footer.chunk_size)

    def read(self, number: int, target: memoryview) -> memoryview:
        """Read a chunk to the start of `target`; return the part that was filled."""
        low, high = self.chunk_span(number)
        return target[: _fs.read_into(self.fd, target[: high - low], low)]


def load(
    path: str,
    *,
    verify: bool | None = None,
    mmap: bool = False,
    weights_only: bool = False,
    map_location: Any = None,
) -> Any:
    """Read a checkpoint, or the backup beside it where the file is missing or damaged.

    Raises:
        FileNotFoundError: neither the file nor a backup is there.
        CorruptCheckpointError: the file is damaged and there is no sound backup.
        RebuildError: it is sound, and an object of it cannot be built.
    """
    read = partial(
        _load_one, verify=verify, mmap=mmap, weights_only=weights_only, map_location=map_location
    )
    backup = path + BACKUP_SUFFIX
    while True:
        seen = _fs.identity(path)
        try:
            return read(path)
        except (NewerFormatError, RebuildError, UnsafeLoadError):
            raise
        except (FileNotFoundError, CorruptCheckpointError) as exc:
            with suppress(FileNotFoundError):
                if is_sound(backup):
                    return _recovered(read(backup), f"{exc}; its backup {backup}")
            # Race: 1. we find the file damaged; 2. another process saves, and removes the backup
            # before we get to it; 3. we find none. But there is a sound file now.
            if _fs.identity(path) == seen:
                raise


def _recovered(state: Any, what: str) -> Any:
    warnings.warn(
        f"{what} was loaded instead", RecoveredFromBackupWarning, stacklevel=level_of_caller()
    )
    return state


def _load_one(
    path: str, *, verify: bool | None, mmap: bool, weights_only: bool, map_location: Any
) -> Any:
    with _reading(path) as fd:
        try:
            opened = open_file(path, fd)
        except NotACheckpointError:
            return load_pickle(path, fd, weights_only=weights_only, map_location=map_location)
        if mmap:
            memory = _mapped(opened, verify=bool(verify))
        else:
            memory = _copied(opened, verify=verify is not False)
    data, skeleton, let_go = _split(opened, memory, mapped=mmap)
    del memory  # or the state would be let go of as a whole, while it is built
    if weights_only:
        from . import _restricted

        copied = bytes(skeleton)
        if let_go is not None:
            let_go(0, len(copied))
        return _restricted.load(
            copied,
            data=data,
            path=path,
            base_offset=opened.footer.skeleton_offset,
            map_location=map_location,
        )
    return _pickling.loads(
        skeleton,
        data,
        pickler=opened.index.pickler,
        path=path,
        base_offset=opened.footer.skeleton_offset,
        map_location=map_location,
        let_go=let_go,
    )


@contextmanager
def _reading(path: str) -> Iterator[int]:
    """`_fs.reading`, with an error for a folder that says what it is a checkpoint of."""
    try:
        with _fs.reading(path) as fd:
            yield fd
    except IsADirectoryError as exc:
        if exc.filename != path:
            raise
        refuse_folder(path)


def open_file(path: str, fd: int) -> Opened:
    """Check the ends and the trailer of an open file.

    Raises:
        CorruptCheckpointError: they are damaged.
        NotACheckpointError: it is no genesis file.
    """
    size = _fs.size(fd)
    start = _fs.read(fd, _format.HEADER_SIZE, 0)
    end = _fs.read(fd, _format.FOOTER_SIZE, max(size - _format.FOOTER_SIZE, 0))
    if not _format.is_ours(start, end):
        raise NotACheckpointError(path, "this is not a genesis file", 0)
    footer = _format.decode_footer(path, end, size)
    body = _fs.read(fd, footer.trailer_size, footer.stream_size)
    digests, index = _format.decode_trailer(path, footer, body)
    return Opened(path, fd, footer, digests, index, _format.data_size(path, start, footer))


def _copied(opened: Opened, *, verify: bool) -> _mmap.mmap:
    """The stream in fresh memory, read and verified on as many threads as it pays."""
    size = opened.footer.stream_size
    memory = private_memory(size)
    stream = memoryview(memory)
    filler = Filler(memory, opened.fd, opened.footer.chunk_size)
    with filler, filler:

        def read(number: int) -> None:
            low, high = opened.chunk_span(number)
            data = stream[low:high]
            if not filler.fill(low, high):
                data = opened.read(number, data)
            if verify or len(data) < high - low:
                opened.check(number, data)

        _crew.run_all((partial(read, number) for number in range(opened.chunks)), size=size)
    return memory


def _mapped(opened: Opened, *, verify: bool) -> _mmap.mmap:
    """The stream as a private mapping of the file: pages come when they are touched, and writing
    to them changes no file. Only what is read now is verified, unless `verify` asks for all."""
    footer = opened.footer
    memory = _mmap.mmap(opened.fd, footer.stream_size, access=_mmap.ACCESS_COPY)
    stream = memoryview(memory)
    end_of_data = _format.HEADER_SIZE + opened.data_size
    first = 0 if verify else end_of_data // footer.chunk_size

    def check(number: int) -> None:
        low, high = opened.chunk_span(number)
        opened.check(number, stream[low:high])

    size = footer.stream_size if verify else 0
    _crew.run_all((partial(check, number) for number in range(first, opened.chunks)), size=size)
    return memory


def _split(
    opened: Opened, memory: _mmap.mmap, *, mapped: bool
) -> tuple[Region, memoryview, _pickling.LetGo | None]:
    """The data region and the skeleton of a stream, and how to let go of parts of the latter;
    header and prologue are checked."""
    view = memoryview(memory)
    start, end = opened.footer.skeleton_offset, _format.HEADER_SIZE + opened.data_size
    head, between = bytes(view[: _format.HEADER_SIZE]), bytes(view[end:start])
    _format.check_header(opened.path, head, between, opened.footer)
    if mapped or not _pickling.keeps_arrays_apart(view[start:]):
        return Region(view[_format.HEADER_SIZE : end]), view[start:], None
    region = ApartRegion(memory, _format.HEADER_SIZE, opened.data_size)
    return region, view[start:], lambda low, high: region.discard(start + low, start + high)


def verify(path: str, fd: int) -> tuple[Opened, bytes]:
    """Check every byte of an open genesis file with little memory; unpickle nothing.

    Returns:
        What the trailer says, and the skeleton.

    Raises:
        CorruptCheckpointError: it is damaged.
        NotACheckpointError: it is no genesis file.
    """
    opened = open_file(path, fd)
    footer = opened.footer
    buffer = memoryview(bytearray(min(footer.chunk_size, footer.stream_size)))
    for number in range(opened.chunks):
        opened.check(number, opened.read(number, buffer))
    end = _format.HEADER_SIZE + opened.data_size
    start = _fs.read(fd, _format.HEADER_SIZE, 0)
    between = _fs.read(fd, footer.skeleton_offset - end, end)
    _format.check_header(path, start, between, footer)
    size = footer.stream_size - footer.skeleton_offset
    return opened, _fs.read(fd, size, footer.skeleton_offset)


def outline(path: str) -> Any:
    """What a checkpoint holds, as plain containers with descriptions for tensors and arrays.

    Every byte is verified first; nothing of the file is run. Raises as `verify`.
    """
    from . import _restricted

    with _reading(path) as fd:
        try:
            opened, skeleton = verify(path, fd)
        except NotACheckpointError:
            return _restricted.outline(read_pickle(path, fd), path=path)
    return _restricted.outline(
        skeleton,
        path=path,
        base_offset=opened.footer.skeleton_offset,
        data_size=opened.data_size,
    )


def metadata(path: str) -> dict[str, Any]:
    """What a save was given as metadata; of the file only header, footer and index are read. Raises
    as `verify`."""
    with _reading(path) as fd:
        try:
            return open_file(path, fd).index.metadata
        except NotACheckpointError as exc:
            refuse_other_kinds(path, fd)
            hint = "only genesis.save stores metadata; genesis.load reads plain pickles too"
            raise NotACheckpointError(path, exc.problem, 0, hint) from None


def order_of(path: str, fd: int) -> int:
    """The place of an open file in the order in which a manager wrote its files; 0 where it tells
    none. Reads its ends only."""
    try:
        return open_file(path, fd).index.order
    except CorruptCheckpointError:
        return 0


def holds_something(path: str, part: str | None = None) -> bool:
    """Whether `load` finds more at a path than an empty dict. What cannot be told counts as more.

    Args:
        part: a key of that dict, to look at what stands there instead.
    """
    for name in (path, path + BACKUP_SUFFIX):
        try:
            if _is_blank(name):
                continue
            return (part is None and _has_arrays(name)) or _is_more(outline(name), part)
        except CorruptCheckpointError:
            return True
        except FileNotFoundError:
            continue
        except OSError:
            break  # a directory, or not for us to read: the save will say so
    return False


def _is_blank(path: str) -> bool:
    """Whether a file has no bytes at all, as one that was made to reserve its name."""
    with _reading(path) as fd:
        return _fs.size(fd) == 0


def _has_arrays(path: str) -> bool:
    """Whether a file that genesis wrote holds bytes of any array. Reads its ends only."""
    with _reading(path) as fd, suppress(NotACheckpointError):
        return open_file(path, fd).data_size > 0
    return False


def _is_more(held: Any, part: str | None) -> bool:
    if isinstance(held, dict) and part is not None:
        held = held.get(part, held)
    return not isinstance(held, dict) or bool(held)


def is_sound(path: str) -> bool:
    """Whether the file at `path` is a whole genesis file, or one whole pickle of another writer."""
    try:
        with _reading(path) as fd:
            _check_any(path, fd)
    except (OSError, CorruptCheckpointError):
        return False
    return True


def _check_any(path: str, fd: int) -> None:
    try:
        verify(path, fd)
    except NotACheckpointError:
        read_pickle(path, fd)
