"""Tracing a stretch of a test, and going on with what traced before.

Coverage is measured by one: a test that ends with ``sys.settrace(None)`` ends that measurement too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def traced(trace: Callable[..., Any]) -> Iterator[None]:
    """Let `trace` be the trace function of this thread inside, and what it was before after it."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
