"""What the tests share: fixtures, and the running of single tests in an interpreter of their own.

It knows nothing of what is tested, and loosens no filter of warnings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test saves. Nothing is there yet, and nothing else is in its directory."""
    return tmp_path / "checkpoint.pth"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked ``alone`` by a pytest of its own, for the one test.

    Forking takes every thread's locks along and leaves the threads behind. JAX and Python 3.12
    rightly warn of that in a process that other tests have filled with threads, and a fork of it
    copies their memory each time.
    """
    if not pyfuncitem.get_closest_marker("alone") or os.environ.get("GENESIS_ALONE"):
        return None
    test = f"{pyfuncitem.path}::{pyfuncitem.name}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", test],
        cwd=pyfuncitem.config.rootpath,
        env={**os.environ, "GENESIS_ALONE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
    if done.returncode or "1 passed" not in done.stdout:
        pytest.fail(f"in an interpreter of its own:\n{done.stdout}", pytrace=False)
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long forms of tests run where `-m torture` asks for them, and are not counted elsewhere."""
    if "torture" in str(config.getoption("-m")) or os.environ.get("GENESIS_ALONE"):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)
