"""A higher recursion limit for the time of one call.

Nothing here knows what the call does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ENOUGH = 8 << 20

# Beside it: how many calls want a higher limit, and the limit before the first of them. A signal
# handler may come in while it is held, and may want one too.
_lock = threading.RLock()
_calls = 0
_before = 0


@contextmanager
def recursion_limit(least: int) -> Iterator[None]:
    """Raise the limit to `least`, for all threads, until the last of such calls has ended."""
    global _calls, _before
    counted = False
    try:
        with _lock:
            if not _calls:
                _before = sys.getrecursionlimit()
            _calls, counted = _calls + 1, True
            sys.setrecursionlimit(max(least, sys.getrecursionlimit()))
        yield
    finally:
        with _lock:
            _calls -= counted
            if not _calls and counted:
                sys.setrecursionlimit(_before)


def has_stack() -> bool:
    """Whether a thread surely has 8 MiB of stack, which code that recurses deeply may need."""
    if 0 < threading.stack_size() < _ENOUGH:
        return False
    with suppress(ImportError):
        import resource

        size, _ = resource.getrlimit(resource.RLIMIT_STACK)
        return size == resource.RLIM_INFINITY or size >= _ENOUGH
    return False
