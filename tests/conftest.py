"""What the tests share: fixtures, the running of single tests in an interpreter of their own, and
the skipping of those that need a library which is not installed.

It knows nothing of what is tested, and loosens no filter of warnings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from optional import OPTIONAL, skip

HERE = Path(__file__).parent


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that: tests
    of Ctrl-C would wait for ever under ``make test &``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


class _Module(pytest.Module):
    """A file of tests, skipped with the reason where a library that it imports is not installed."""

    def collect(self) -> Sequence[pytest.Item | pytest.Collector]:
        try:
            return list(super().collect())
        except self.CollectError as exc:
            _skip_if_missing(exc.__cause__)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = _Module.from_parent(parent, path=module_path)
    return module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """The same for a test that imports it itself."""
    try:
        yield
    except ModuleNotFoundError as exc:
        _skip_if_missing(exc)
        raise


def _skip_if_missing(exc: BaseException | None) -> None:
    """Only an import in a file of the tests is excused: genesis has to do without."""
    if isinstance(exc, ModuleNotFoundError) and exc.name in OPTIONAL and _is_ours(exc):
        skip(exc.name)


def _is_ours(exc: BaseException) -> bool:
    """Whether the line that imports stands in the tests, and not in something that they call."""
    frames = []
    step = exc.__traceback__
    while step is not None:
        frames.append(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    places = [Path(name) for name in frames if not name.startswith("<frozen ")]
    return bool(places) and HERE in places[-1].resolve().parents
