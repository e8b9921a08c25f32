"""The package as a user gets it: what is in it, what importing it costs, what its types say.

Each check runs in a process of its own; nothing here looks at how the library works.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from optional import needs_torch

import genesis

PACKAGE = Path(genesis.__file__).parent
SOURCE = Path(__file__).parent.parent / "genesis"
DISTRIBUTION = "genesis-checkpoint"

installed = pytest.mark.skipif(
    PACKAGE == SOURCE, reason="genesis is imported from the source folder, not installed"
)


def python(code: str) -> str:
    """Run a program in a fresh interpreter; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- What is installed ----------------------------------------------------------------------------


@pytest.mark.skipif(
    os.environ.get("GENESIS_EXPECT_INSTALLED") != "1", reason="GENESIS_EXPECT_INSTALLED is not 1"
)
def test_the_tests_run_against_the_installed_wheel() -> None:
    assert Path(sysconfig.get_path("purelib")) in PACKAGE.parents
    assert Path(python("import genesis; print(genesis.__file__)").strip()).parent == PACKAGE


@installed
def test_the_wheel_holds_every_module_and_nothing_else() -> None:
    assert files_of(PACKAGE) == files_of(SOURCE)
    recorded = importlib.metadata.files(DISTRIBUTION) or []
    # The command stands outside of the folder of packages.
    scripts = [path.name for path in recorded if path.parts[0] == ".."]
    assert scripts == ["genesis"]
    others = {path.parts[0] for path in recorded} - {"genesis", ".."}
    assert others == {f"genesis_checkpoint-{genesis.__version__}.dist-info"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@installed
def test_metadata() -> None:
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    assert metadata["Version"] == genesis.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (PACKAGE / "py.typed").read_bytes() == b""


# --- What importing it costs ----------------------------------------------------------------------


def test_import_loads_none_of_the_libraries_it_works_with() -> None:
    loaded = python("import genesis, sys; print(*sys.modules)").split()
    assert "genesis" in loaded
    heavy = {"torch", "jax", "numpy", "dill", "anyio", "aiofiles", "trio", "asyncio"}
    assert heavy & set(loaded) == set()


@needs_torch
def test_import_takes_under_a_fifth_of_the_time_of_torch() -> None:
    def seconds(module: str) -> float:
        return float(
            python(f"""
                import time
                started = time.perf_counter()
                import {module}
                print(time.perf_counter() - started)
                """)
        )

    pairs = [(seconds("genesis"), seconds("torch")) for _ in range(3)]
    genesis_seconds, torch_seconds = map(min, zip(*pairs, strict=True))
    assert genesis_seconds < torch_seconds / 5


# --- What it needs --------------------------------------------------------------------------------

WITH_ONLY = """
    import asyncio, sys

    allowed = set({allowed!r})

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {banned!r} - allowed:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, Refuse())

    import genesis, genesis.aio

    async def main(path):
        await genesis.aio.save({{"step": 1, "rule": lambda x: 2 * x}}, path)
        chunks = [chunk async for chunk in genesis.aio.stream(path)]
        assert b"".join(chunks) == open(path, "rb").read()
        return await genesis.aio.load(path)

    state = asyncio.run(main(sys.argv[1]))
    assert (state["step"], state["rule"](21)) == (1, 42)
    future = genesis.save(state, sys.argv[1], background=True)
    assert future.result().outcome == "durable"
    print(genesis.validate_checkpoint(sys.argv[1]))
"""


@installed
def test_works_with_nothing_but_its_dependencies(tmp_path: Path) -> None:
    """Whatever else is installed here, trio and torch among it, is made impossible to import."""
    by_module = importlib.metadata.packages_distributions()
    needed = {canonical(name) for name in requirements_of(DISTRIBUTION)}
    allowed = [module for module, names in by_module.items() if needed & set(map(canonical, names))]
    assert "dill" in allowed
    assert "torch" not in allowed
    program = WITH_ONLY.format(allowed=allowed, banned=set(by_module) - {"genesis"})
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-P", script, tmp_path / "state.pth"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.stdout == "(False, 'Missing model_state_dict')\n"


def requirements_of(distribution: str) -> Iterator[str]:
    for requirement in importlib.metadata.requires(distribution) or []:
        name = re.match(r"[\w.-]+", requirement)[0]
        if "extra ==" not in requirement and is_installed(name):
            yield name
            yield from requirements_of(name)


def is_installed(name: str) -> bool:
    """A requirement of other Pythons or platforms than this one is not."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- What its types say ---------------------------------------------------------------------------

USER = """
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any, assert_type

    import genesis
    import genesis.aio

    state: dict[str, Any] = {"step": 1}
    assert_type(genesis.save(state, "a.pth"), genesis.SaveReport)
    assert_type(genesis.save(state, Path("a.pth"), background=False), genesis.SaveReport)
    assert_type(genesis.save(state, b"a.pth", background=True), genesis.SaveFuture)
    assert_type(genesis.save_checkpoint(state, {}, "a.pth"), genesis.SaveReport)
    future = genesis.save_checkpoint(state, {}, "a.pth", background=True, capture="deferred")
    assert_type(future, genesis.SaveFuture)
    assert_type(future.captured, bool)
    future.wait_captured(timeout=1.5)
    report = future.result()
    assert_type(report, genesis.SaveReport)
    assert_type(report.throughput, float)
    assert_type(report.bytes, int)
    assert_type(genesis.load_checkpoint("a.pth", weights_only=True), tuple[Any, Any])
    assert_type(genesis.validate_checkpoint("a.pth"), tuple[bool, str])
    manager = genesis.CheckpointManager("checkpoints")
    assert_type(manager.save_checkpoint(None, None, 1, 0.5), genesis.SaveReport)
    assert_type(manager.save_checkpoint(None, None, 1, 0.5, background=True), genesis.SaveFuture)
    assert_type(genesis.safe_load_checkpoint("a.pth", object()), bool)
    assert_type(genesis.flush(1.0), None)
    genesis.configure(threads=4)
    genesis.prewarm(state)

    async def main() -> None:
        assert_type(await genesis.aio.save(state, "a.pth"), genesis.SaveReport)
        assert_type(await genesis.aio.save_async(state, "a.pth"), genesis.SaveReport)
        assert_type(await genesis.aio.load_checkpoint("a.pth"), tuple[Any, Any])
        assert_type(await future, genesis.SaveReport)
        pieces: AsyncIterator[bytes] = genesis.aio.stream("a.pth", chunk_size=1 << 20)
        async for piece in pieces:
            assert_type(piece, bytes)

    try:
        asyncio.run(main())
    except genesis.CorruptCheckpointError as error:
        assert_type(error.path, str)
        assert_type(error.offset, int | None)

    # What is wrong must be an error: mypy complains of an ignore that it does not need.
    genesis.save(state, "a.pth", capture="slowly")  # type: ignore[call-overload]
    genesis.save(state, "a.pth", True)  # type: ignore[call-overload]
    genesis.load("a.pth", False)  # type: ignore[call-arg]
    genesis.load(5)  # type: ignore[arg-type]
    genesis.flush("soon")  # type: ignore[arg-type]
"""


def test_a_typed_program_checks_in_strict_mode(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(USER))
    environment = dict(os.environ)
    if PACKAGE == SOURCE:
        environment["MYPYPATH"] = str(SOURCE.parent)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stderr
