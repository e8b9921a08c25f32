"""One blocking load or check: chunks, skeleton and the backup put together.

Runs on the caller's thread and companions, and keeps nothing between calls.
"""

from __future__ import annotations

import mmap as _mmap
import warnings
from contextlib import suppress
from functools import partial
from typing import Any

from .._errors import (
    CorruptCheckpointError,
    NewerFormatError,
    NotACheckpointError,
    RebuildError,
    RecoveredFromBackupWarning,
    UnsafeLoadError,
)
from .._options import LoadChoices, Only
from .._os import files
from .._os.memory import private_memory
from .._os.userfaultfd import Filler
from .._pickle import arrays, loading, sketch
from .._pickle.region import ApartRegion, Region
from .._progress import Progress
from .._public import level_of_caller
from .._threads import companions
from ..storage.folder import FileSource
from ..storage.local import BACKUP_SUFFIX
from ..storage.protocols import Source
from . import layout
from .chunks import Opened, open_file, read_chunks, read_spans, reading
from .plain import load_pickle, read_pickle, refuse_other_kinds


def load(path: str, choices: LoadChoices, progress: Progress) -> Any:
    """Read a checkpoint, or the backup beside it where the file is missing or damaged.

    Raises:
        FileNotFoundError: neither the file nor a backup is there.
        CorruptCheckpointError: the file is damaged and there is no sound backup.
        RebuildError: it is sound, and an object of it cannot be built.
    """
    load_path = _load_one if choices.only is None else _load_part
    read = partial(load_path, choices=choices, progress=progress)
    backup = path + BACKUP_SUFFIX
    while True:
        seen = files.identity(path)
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
            if files.identity(path) == seen:
                raise


def _recovered(state: Any, what: str) -> Any:
    warnings.warn(
        f"{what} was loaded instead", RecoveredFromBackupWarning, stacklevel=level_of_caller()
    )
    return state


def _load_one(path: str, choices: LoadChoices, progress: Progress) -> Any:
    map_location = choices.map_location
    with reading(path) as source:
        try:
            opened = open_file(path, source)
        except NotACheckpointError:
            weights_only = choices.weights_only
            with progress.running(source.size()):
                return load_pickle(
                    path, source, weights_only=weights_only, map_location=map_location
                )
        if choices.mmap:
            memory = _mapped(opened, progress, verify=bool(choices.verify))
        else:
            memory = _copied(opened, progress, verify=choices.verify is not False)
    data, skeleton, let_go = _split(opened, memory, mapped=choices.mmap)
    del memory  # or the state would be let go of as a whole, while it is built
    if choices.weights_only:
        from .. import _safe

        copied = bytes(skeleton)
        if let_go is not None:
            let_go(0, len(copied))
        return _safe.load(
            copied,
            data=data,
            path=path,
            base_offset=opened.footer.skeleton_offset,
            map_location=map_location,
        )
    return loading.loads(
        skeleton,
        data,
        pickler=opened.index.pickler,
        path=path,
        base_offset=opened.footer.skeleton_offset,
        map_location=map_location,
        let_go=let_go,
    )


def _load_part(path: str, choices: LoadChoices, progress: Progress) -> Any:
    """The part of a state that `only` asks for, by itself where that can be told from the rest."""
    assert choices.only is not None
    read = _read_part_safely if choices.weights_only else _read_part
    with reading(path) as source, suppress(NotACheckpointError, sketch.SketchError):
        return read(open_file(path, source), choices.only, choices, progress)
    return sketch.chosen(_load_one(path, choices, progress), choices.only)


def _read_part_safely(opened: Opened, only: Only, choices: LoadChoices, progress: Progress) -> Any:
    """`_read_part` of a file that nobody vouches for: the state is built twice, first over memory
    without content, to see which bytes the part is made of."""
    from .. import _safe

    if choices.mmap:
        raise sketch.SketchError  # nothing is read before it is touched
    verify = choices.verify is not False
    memory = _skeleton_alone(opened, verify=verify)
    skeleton = bytes(memoryview(memory)[opened.footer.skeleton_offset :])
    choose = partial(sketch.chosen, only=only)
    spans = _safe.spans_of(skeleton, choose, size=opened.data_size, path=opened.path)
    if spans is None:
        raise sketch.SketchError
    _read_data(opened, spans, memory, progress, verify=verify)
    region, _, _ = _split(opened, memory, mapped=False)
    state = _safe.load(
        skeleton,
        data=region,
        path=opened.path,
        base_offset=opened.footer.skeleton_offset,
        map_location=choices.map_location,
    )
    return choose(state)


def _read_part(opened: Opened, only: Only, choices: LoadChoices, progress: Progress) -> Any:
    verify = choices.verify is not False
    if choices.mmap:
        memory = _mapped(opened, progress, verify=bool(choices.verify))
    else:
        memory = _skeleton_alone(opened, verify=verify)
    region, skeleton, _ = _split(opened, memory, mapped=choices.mmap)
    location = choices.map_location
    part = sketch.part_of(skeleton, only, pickler=opened.index.pickler, map_location=location)
    spans = sketch.ranges(part)
    if not choices.mmap:
        _read_data(opened, spans, memory, progress, verify=verify)
    return sketch.made(part, region, map_location=location)


def _read_data(
    opened: Opened,
    spans: list[tuple[int, int]],
    memory: _mmap.mmap,
    progress: Progress,
    *,
    verify: bool,
) -> None:
    """Read parts of the data region, which begins behind the header."""
    wanted = [(layout.HEADER_SIZE + low, layout.HEADER_SIZE + high) for low, high in spans]
    read_spans(opened, wanted, memory, progress, verify=verify)


def _skeleton_alone(opened: Opened, *, verify: bool) -> _mmap.mmap:
    """Memory for the stream, with prologue and skeleton in it and nothing else."""
    memory = private_memory(opened.footer.stream_size)
    around = [(opened.end_of_data, opened.footer.stream_size)]
    read_spans(opened, around, memory, Progress(), verify=verify)
    return memory


def _copied(opened: Opened, progress: Progress, *, verify: bool) -> _mmap.mmap:
    """The stream in fresh memory."""
    memory = private_memory(opened.footer.stream_size)
    read = partial(read_chunks, opened, range(opened.chunks), memory, verify=verify)
    with progress.running(opened.footer.stream_size):
        if not isinstance(opened.source, FileSource):
            read(advance=progress.add)
            return memory
        filler = Filler(memory, opened.source.fd, opened.footer.chunk_size)
        with filler, filler:
            read(fill=filler.fill, advance=progress.add)
    return memory


def _mapped(opened: Opened, progress: Progress, *, verify: bool) -> _mmap.mmap:
    """The stream as a private mapping of the file: pages come when they are touched, and writing
    to them changes no file. Only what is read now is verified, unless `verify` asks for all."""
    if not isinstance(opened.source, FileSource):
        return _copied(opened, progress, verify=True)
    footer = opened.footer
    memory = _mmap.mmap(opened.source.fd, footer.stream_size, access=_mmap.ACCESS_COPY)
    stream = memoryview(memory)
    first = 0 if verify else opened.end_of_data // footer.chunk_size

    def check(number: int) -> None:
        low, high = opened.chunk_span(number)
        opened.check(number, stream[low:high])
        progress.add(high - low)

    size = footer.stream_size if verify else 0
    numbers = range(first, opened.chunks)
    with progress.running(sum(map(opened.chunk_size, numbers))):
        companions.run_all((partial(check, number) for number in numbers), size=size)
    return memory


def _split(
    opened: Opened, memory: _mmap.mmap, *, mapped: bool
) -> tuple[Region, memoryview, loading.LetGo | None]:
    """The data region and the skeleton of a stream, and how to let go of parts of the latter; the
    prologue is checked."""
    view = memoryview(memory)
    start, end = opened.footer.skeleton_offset, opened.end_of_data
    layout.check_prologue(opened.path, bytes(view[end:start]), end)
    if mapped or not arrays.keeps_arrays_apart(view[start:]):
        return Region(view[layout.HEADER_SIZE : end]), view[start:], None
    region = ApartRegion(memory, layout.HEADER_SIZE, opened.data_size)
    return region, view[start:], lambda low, high: region.discard(start + low, start + high)


def verify(path: str, source: Source) -> tuple[Opened, bytes]:
    """Check every byte of an open genesis file with little memory; unpickle nothing.

    Returns:
        What the trailer says, and the skeleton.

    Raises:
        CorruptCheckpointError: it is damaged.
        NotACheckpointError: it is no genesis file.
    """
    opened = open_file(path, source)
    footer = opened.footer
    buffer = memoryview(bytearray(min(footer.chunk_size, footer.stream_size)))
    for number in range(opened.chunks):
        opened.check(number, opened.read(number, buffer))
    end = opened.end_of_data
    layout.check_prologue(path, source.read(footer.skeleton_offset - end, end), end)
    size = footer.stream_size - footer.skeleton_offset
    return opened, source.read(size, footer.skeleton_offset)


def outline(path: str) -> Any:
    """What a checkpoint holds, as plain containers with descriptions for tensors and arrays.

    Every byte is verified first; nothing of the file is run. Raises as `verify`.
    """
    from .. import _safe

    with reading(path) as source:
        try:
            opened, skeleton = verify(path, source)
        except NotACheckpointError:
            return _safe.outline(read_pickle(path, source), path=path)
    return _safe.outline(
        skeleton,
        path=path,
        base_offset=opened.footer.skeleton_offset,
        data_size=opened.data_size,
    )


def contents(path: str) -> tuple[int, layout.Index | None, Any]:
    """The size of a file, its index and its outline; only its ends and the skeleton are read and
    verified. The index is ``None`` for a plain pickle, which is read as a whole. Raises as
    `verify`."""
    from .. import _safe

    with reading(path) as source:
        try:
            opened = open_file(path, source)
        except NotACheckpointError:
            return source.size(), None, _safe.outline(read_pickle(path, source), path=path)
        memory = _skeleton_alone(opened, verify=True)
    _, skeleton, _ = _split(opened, memory, mapped=True)
    outline = _safe.outline(
        skeleton,
        path=path,
        base_offset=opened.footer.skeleton_offset,
        data_size=opened.data_size,
    )
    return opened.footer.file_size, opened.index, outline


def metadata(path: str) -> dict[str, Any]:
    """What a save was given as metadata; of the file only header, footer and index are read. Raises
    as `verify`."""
    with reading(path) as source:
        try:
            return open_file(path, source).index.metadata
        except NotACheckpointError as exc:
            refuse_other_kinds(path, source)
            hint = "only genesis.save stores metadata; genesis.load reads plain pickles too"
            raise NotACheckpointError(path, exc.problem, 0, hint) from None


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
    with reading(path) as source:
        return source.size() == 0


def _has_arrays(path: str) -> bool:
    """Whether a file that genesis wrote holds bytes of any array. Reads its ends only."""
    with reading(path) as source, suppress(NotACheckpointError):
        return open_file(path, source).data_size > 0
    return False


def _is_more(held: Any, part: str | None) -> bool:
    if isinstance(held, dict) and part is not None:
        held = held.get(part, held)
    return not isinstance(held, dict) or bool(held)


def is_sound(path: str) -> bool:
    """Whether the file at `path` is a whole genesis file, or one whole pickle of another writer."""
    try:
        with reading(path) as source:
            _check_any(path, source)
    except (OSError, CorruptCheckpointError):
        return False
    return True


def _check_any(path: str, source: Source) -> None:
    try:
        verify(path, source)
    except NotACheckpointError:
        read_pickle(path, source)
