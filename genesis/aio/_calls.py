"""The awaitable calls. Each is one line through the bridge over its plain twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Unpack

from .. import _load, _save
from .._clearing import Clearing
from .._contents import Contents
from .._diff import Difference
from .._engine.futures import SaveFuture, SaveReport
from .._engine.scheduler import Request, Task, scheduler
from .._file import writer
from .._inspect import Report
from .._options import FilePath, LoadChoices, LoadOptions, SaveChoices, SaveOptions, spelled_out
from .._threads.waiting import OpenFuture
from ..storage.places import resolve
from . import _bridge


@spelled_out(SaveChoices)
async def save(state_dict: Any, file_path: FilePath, **options: Unpack[SaveOptions]) -> SaveReport:
    """Save a state; return when it is durable. Arguments and errors are those of `genesis.save`.

    The state is captured when the coroutine first runs, before it first suspends, unless it has to
    wait: for an earlier save of the path, for memory, or, where a state is large and no save before
    it has left memory of its size, until a thread has made that memory present. Started as a task,
    it first runs when the loop comes to it, not when the task is made: to capture now and go on,
    call `genesis.save` with ``background=True`` and await its future. With ``capture="deferred"``
    it must not be changed before this returns.

    Cancellation: before the state is captured the save is withdrawn; afterwards only the waiting
    ends, the file is written, and the dict is left as it is.
    """
    request, clearing = _save.make_request(state_dict, file_path, options, background=False)
    return await _saved(request, clearing)


async def _saved(request: Request, clearing: Clearing) -> SaveReport:
    """Save, and empty the dict when the coroutine goes on; not on a thread, at a moment when
    another task may be at it."""
    report = await submit(request)
    if report.outcome == "durable":
        clearing.clear()
    return report


async def submit(
    request: Request, began: Callable[[SaveFuture], object] = lambda _: None
) -> SaveReport:
    """Run the steps of a submission, waiting without holding the loop, then wait for its end.

    Args:
        began: called when the state is captured and a thread has it.
    """
    _bridge.prepare()
    task = Task(scheduler, request, make_present=_make_present)
    future = task.future
    with task, task:
        for step in scheduler.submission(task):
            await _bridge.settled(step, orphaned=task.withdraw)
    began(future)
    return await _bridge.wait(future)


def _make_present(size: int) -> OpenFuture[None]:
    # Somebody waits for it, so without huge pages.
    return _bridge.executor.submit(writer.make_present, size, huge=False)


@spelled_out(SaveChoices)
async def save_checkpoint(
    model_state_dict: Any,
    optimizer_state_dict: Any,
    file_path: FilePath,
    **options: Unpack[SaveOptions],
) -> SaveReport:
    """`genesis.save_checkpoint`, awaited; cancellation as for `save`."""
    request, clearing = _save.checkpoint_request(
        model_state_dict, optimizer_state_dict, file_path, options, background=False
    )
    return await _saved(request, clearing)


@spelled_out(LoadChoices)
async def load(file_path: FilePath, **options: Unpack[LoadOptions]) -> Any:
    """`genesis.load` on a thread. Cancelling returns at once and drops what is loaded."""
    path = resolve(file_path)  # now: another task may change the working directory meanwhile
    return await _bridge.call(partial(_load.load, path, **options))


@spelled_out(LoadChoices)
async def load_checkpoint(file_path: FilePath, **options: Unpack[LoadOptions]) -> tuple[Any, Any]:
    """`genesis.load_checkpoint` on a thread; cancellation as for `load`."""
    return _load.parts_of(await load(file_path, **options), file_path)


async def inspect(file_path: FilePath) -> Contents:
    """`genesis.inspect` on a thread."""
    return await _bridge.call(partial(_load.inspect, resolve(file_path)))


async def diff(one: FilePath, other: FilePath, *, weights_only: bool = True) -> Difference:
    """`genesis.diff` on a thread."""
    paths = resolve(one), resolve(other)
    return await _bridge.call(partial(_load.diff, *paths, weights_only=weights_only))


async def load_into(
    file_path: FilePath,
    into: Any,
    *,
    part: str | None = None,
    weights_only: bool = False,
    assign: bool = False,
) -> None:
    """`genesis.load_into` on a thread. A call that was cancelled may still fill afterwards."""
    call = partial(
        _load.load_into,
        resolve(file_path),
        into,
        part=part,
        weights_only=weights_only,
        assign=assign,
    )
    await _bridge.call(call)


async def load_metadata(file_path: FilePath) -> dict[str, Any]:
    """`genesis.load_metadata` on a thread."""
    return await _bridge.call(partial(_load.load_metadata, resolve(file_path)))


async def remove(file_path: FilePath, *, missing_ok: bool = False) -> None:
    """`genesis.remove`, awaited. Its place among the saves of the path is that of the moment when
    the coroutine first runs; cancelling it ends the waiting only."""
    _bridge.prepare()
    turn = _save.removal(file_path)
    try:
        turn.enter()
        turn.needed = None  # the event loop goes on: a thread does the rest
        removing = _bridge.executor.submit(_save.remove_in_turn, turn, missing_ok=missing_ok)
    except BaseException:
        turn.leave()
        raise
    await _bridge.wait(removing)


async def flush(timeout: float | None = None) -> None:  # noqa: ASYNC109  as the plain call
    """`genesis.flush`, awaited: the event loop goes on, which the plain call would hold. Cancelling
    ends the waiting only, and leaves every failure to the next `flush`."""
    await _bridge.call(partial(scheduler.wait_for, scheduler.under_way(), timeout))
    scheduler.raise_unseen()


async def prewarm(state_dict: Any) -> None:
    """`genesis.prewarm`, with the memory made present on a thread. The first large save does the
    same where this was not called, and captures its state after it."""
    await _bridge.call(partial(writer.make_present, _save.size_of(state_dict), huge=True))


async def safe_load_checkpoint(
    file_path: FilePath, model: Any, optimizer: Any = None, *, weights_only: bool = False
) -> bool:
    """`genesis.safe_load_checkpoint` on a thread. A call that was cancelled may still load into
    the model afterwards."""
    path = _resolved(file_path)
    return await _bridge.call(
        partial(_load.safe_load_checkpoint, path, model, optimizer, weights_only=weights_only)
    )


async def validate_checkpoint(file_path: FilePath) -> tuple[bool, str]:
    """`genesis.validate_checkpoint` on a thread."""
    return await _bridge.call(partial(_load.validate_checkpoint, _resolved(file_path)))


async def verify(file_path: FilePath) -> Report:
    """`genesis.verify` on a thread."""
    return await _bridge.call(partial(_load.verify, resolve(file_path)))


def _resolved(file_path: FilePath) -> FilePath:
    """The real path of now, since another task may change the working directory meanwhile. A path
    that cannot be resolved stays as it is: the plain call says why, in its own way."""
    with suppress(OSError, ValueError, TypeError):
        return resolve(file_path)
    return file_path


save_async = save
load_async = load
