"""Makes the package `genesis_bench` of bench/ known, which is not installed, and nothing beside it.

Import it before that. It runs no benchmark.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).parents[2] / "bench" / "genesis_bench" / "__init__.py"


def _make_known() -> None:
    spec = importlib.util.spec_from_file_location("genesis_bench", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["genesis_bench"] = module
    spec.loader.exec_module(module)


_make_known()
