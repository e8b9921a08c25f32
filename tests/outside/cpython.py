"""CPython's own tests of pickle, over save and load.

Run by `suites.py` and not by `make test`: not every Python ships its tests.
"""

from __future__ import annotations

import pickle
import unittest
from typing import Any

import pytest

pickletester = pytest.importorskip("test.pickletester")


class TestPickle(pickletester.AbstractPickleTests, unittest.TestCase):  # type: ignore[name-defined]
    """All in the one protocol that genesis writes; tests of others fail both ways."""

    py_version = None

    def dumps(self, obj: Any, protocol: int | None = None, **_: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes, **kwargs: Any) -> Any:
        return pickle.loads(data)
