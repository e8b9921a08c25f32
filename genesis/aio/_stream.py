"""A checkpoint file as a stream of verified bytes, for an upload say.

Each chunk is checked against its digest before any byte of it is handed out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from anyio import open_file

from .._file import chunks
from .._options import FilePath
from .._os import files
from .._os.descriptors import Descriptor
from ..storage.folder import FileSource
from . import _bridge

with suppress(ImportError):  # which trio does without
    import aiofiles  # now: the first call would hold the event loop


def stream(file_path: FilePath, *, chunk_size: int = 1 << 20) -> AsyncGenerator[bytes, None]:
    """The bytes of a checkpoint file, in order, in pieces of at most `chunk_size` bytes.

    The file that is open when the first piece is asked for is the one that is streamed: saves of
    the path go on and change nothing. Close the iterator (``contextlib.aclosing``) if you leave it
    early. On asyncio the file is read with aiofiles on genesis's threads, on trio with anyio.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: a chunk does not match its checksum; what was handed out before it
            was sound.
        ValueError: `chunk_size` is less than 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    # Now, not when the first piece is asked for: the working directory may be another one by then.
    return _stream(files.resolve(file_path), chunk_size)


async def _stream(path: str, chunk_size: int) -> AsyncGenerator[bytes, None]:
    async with _descriptor(path) as fd, _open(fd) as file:
        opened = await _bridge.call(partial(chunks.open_file, path, FileSource(fd)))
        for number in range(opened.chunks):
            low, high = opened.chunk_span(number)
            chunk = await file.read(high - low)
            await _bridge.call(partial(opened.check, number, chunk))
            for piece in _pieces(chunk, chunk_size):
                yield piece
        rest = opened.footer.file_size - opened.footer.stream_size
        for piece in _pieces(await file.read(rest), chunk_size):
            yield piece


@asynccontextmanager
async def _descriptor(path: str) -> AsyncIterator[int]:
    """A file open for reading.

    Race: 1. the task is cancelled while a thread opens the file; 2. the thread has it open, for
    nobody. So it is closed when both are over, whichever is the last.
    """
    file = Descriptor()
    opening = _bridge.executor.submit(files.open_for_reading, file, path)
    try:
        await _bridge.wait(opening)
        yield file.number
    finally:
        opening.add_done_callback(lambda _: file.let_go())


@asynccontextmanager
async def _open(fd: int) -> AsyncIterator[Any]:
    """An open descriptor as an asynchronous file. The descriptor stays open."""
    if _bridge.on_trio():
        opening: Any = await open_file(fd, "rb", closefd=False)
    else:
        opening = aiofiles.open(fd, "rb", closefd=False, executor=_bridge.executor)
    async with opening as file:
        yield file


def _pieces(chunk: bytes, size: int) -> list[bytes]:
    return [chunk[low : low + size] for low in range(0, len(chunk), size)]
