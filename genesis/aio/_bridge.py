"""The one place where a coroutine waits for a thread, on asyncio or trio.

Guarantees:
- Cancelling the waiting task ends the waiting and nothing else. A save that was submitted is
  written, its backup and rollback are done, and its future resolves; its error, if nobody is left
  to see it, is logged and raised by the next `flush`.
- A save that has not captured its state when it is cancelled never happened: its turn and memory
  are given back, and no byte was written.
- The event loop is woken once, by the thread that resolves the future, through the loop's own
  thread-safe call. If the loop is gone by then, and with it whoever waited, what waited for its
  turn is withdrawn there and then: the collector may come to the coroutine much later.

It knows futures and event loops, and nothing of checkpoints.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import TypeVar

from .._threads.pool import Pool
from .._threads.waiting import OpenFuture

T = TypeVar("T")

executor = Pool(8, "genesis-aio")
"""Runs the blocking part of an awaited load; apart from the writer, whose saves may take long."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=executor.reset_after_fork)


def on_trio() -> bool:
    """Whether trio runs the calling coroutine; if not, asyncio does.

    Not whether trio runs in this thread: it may be the guest of the event loop that runs us.
    """
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def load_backends() -> None:
    """Import what waiting needs on asyncio, and on trio where that is loaded. A backend has no
    public name; where it has moved, it is loaded at the first wait, as anyio does it."""
    for name in ("asyncio", "trio"):
        if name in sys.modules:
            with suppress(ImportError):
                import_module(f"anyio._backends._{name}")


def prepare() -> None:
    """Load what waiting needs, before anything begins that has to be waited for: with too many
    open files nothing can be loaded, and what had begun would end unheard."""
    import anyio

    anyio.Event()


async def call(work: Callable[[], T]) -> T:
    """Run a blocking call on a thread. Cancelling leaves it to finish unheard."""
    return await wait(executor.submit(work))


async def wait(future: Future[T]) -> T:
    """The result of a future that another thread resolves. Raises what it raises."""
    await settled(future)
    return future.result()


async def settled(future: Future[T], orphaned: Callable[[], object] = lambda: None) -> None:
    """Wait until a future is resolved, with or without an error.

    Args:
        orphaned: called instead of going on, where the event loop is closed by then.
    """
    import anyio

    if future.done():
        await anyio.lowlevel.checkpoint()
        return
    event = anyio.Event()
    wake = _waker(event.set, orphaned)
    # Race: 1. the future resolves on its thread between `done` above and here; 2. then `wake` is
    # called at once, on this thread, which is as good.
    if isinstance(future, OpenFuture):
        future._when_done(wake)  # no callback: those of a save may take long, one after the other
    else:
        future.add_done_callback(lambda _: wake())
    await event.wait()


def _waker(call: Callable[[], object], orphaned: Callable[[], object]) -> Callable[[], None]:
    """A function that runs `call` on the running event loop from any thread."""
    if on_trio():
        import trio

        schedule: Callable[..., object] = trio.lowlevel.current_trio_token().run_sync_soon
        gone: type[Exception] = trio.RunFinishedError
    else:
        import asyncio

        schedule, gone = asyncio.get_running_loop().call_soon_threadsafe, RuntimeError

    def wake() -> None:
        try:
            schedule(call)
        except gone:
            orphaned()

    return wake
