"""The rooms of docs/design.md: what stands there is all there is; import-linter keeps the order.

Imports are read from the source, those inside functions included; nothing is run for that.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import genesis

PACKAGE = Path(genesis.__file__).parent
DESIGN = (Path(__file__).parent.parent / "docs" / "design.md").read_text()
FRAMEWORKS = {
    "aiofiles", "anyio", "dill", "fsspec", "jax", "jaxlib", "ml_dtypes", "numpy", "sniffio",
    "torch", "trio",
}  # fmt: skip
"""What a plain ``import genesis`` must not load."""


def layer_map() -> list[str]:
    """The modules in the order of the map: line by line, each from left to right."""
    rows = DESIGN.partition("| rooms | what lives there |")[2].partition("\n\n")[0].splitlines()[2:]
    return [name.rstrip("/") for row in rows for name in re.findall(r"`(\S+)`", row.split("|")[1])]


def modules() -> dict[str, list[Path]]:
    """The files of each entry of the map: a module, or all of a subpackage."""
    found: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file != PACKAGE / "__init__.py":
            found.setdefault(file.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(
                file
            )
    return found


def names_in_package(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name, below ``genesis``, of each import from the package."""
    tree = ast.parse(file.read_text())
    here = file.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) - node.level], *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif isinstance(node, ast.ImportFrom | ast.Import):
            for name in _absolute(node):
                assert name.partition(".")[0] != "genesis", (
                    f"{file}:{node.lineno}: import relatively"
                )


def _absolute(node: ast.ImportFrom | ast.Import) -> list[str]:
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]


def test_the_map_names_every_room() -> None:
    assert set(layer_map()) == set(modules())


def test_every_import_from_the_package_names_something_that_is_there() -> None:
    known = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")
    }
    for files in modules().values():
        for file in files:
            for line, target in names_in_package(file):
                parts = target.split(".")
                homes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
                homes |= {f"{home}.__init__" for home in homes}
                assert homes & known, f"{file}:{line}: {target}"


def imports_at_load(tree: ast.Module) -> Iterator[str]:
    """The packages that loading a module imports: outside functions and TYPE_CHECKING."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            yield from (name.partition(".")[0] for name in _absolute(node))
        pending += ast.iter_child_nodes(node)


LONGEST_CHAIN = 19
"""Modules, from `__main__` down to `_tuning`. The goal is 9, and it is not reached: this number may
only become smaller."""


def test_the_longest_chain_of_imports_grows_no_longer() -> None:
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("genesis", exclude_type_checking_imports=True)

    @functools.cache
    def depth(module: str) -> int:
        below = graph.find_modules_directly_imported_by(module)
        return 1 + max(map(depth, below), default=0)

    assert max(map(depth, graph.modules)) <= LONGEST_CHAIN


def test_no_module_loads_a_framework_but_the_one_that_is_about_it() -> None:
    for files in modules().values():
        for file in files:
            loaded = FRAMEWORKS & set(imports_at_load(ast.parse(file.read_text())))
            where = file.relative_to(PACKAGE)
            if where.parts[0] in ("aio", "integrations"):
                continue
            allowed = (
                {file.stem.partition("_")[0], "numpy"} if where.parts[0] == "_pickle" else set()
            )
            assert loaded <= allowed, where


def test_the_walk_over_imports_finds_them_where_it_should() -> None:
    source = """
import torch
if TYPE_CHECKING:
    import jax
try:
    from numpy.linalg import norm
except ImportError:
    def f():
        import anyio
class C:
    import dill
"""
    assert set(imports_at_load(ast.parse(source))) == {"torch", "numpy", "dill"}


@pytest.mark.parametrize("action", ["import genesis", "import genesis.aio", "SAVE"])
def test_plain_use_loads_no_framework(action: str, tmp_path: Path) -> None:
    """Not even a save: only a tensor in the state, or a lambda, brings in what it needs."""
    save = "import genesis; genesis.save({'a': [1]}, sys.argv[1]); genesis.load(sys.argv[1])"
    code = f"import sys; {save if action == 'SAVE' else action}; print(*sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    # The library of event loops comes with aio, and not when the first call holds one.
    for_loops = {"aiofiles", "anyio", "sniffio"} if action == "import genesis.aio" else set()
    assert roots & FRAMEWORKS <= for_loops
    assert "genesis" in roots


def test_only_the_aio_side_touches_event_loops() -> None:
    for name, files in modules().items():
        for file in files:
            tree = ast.parse(file.read_text())
            words = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
            has_loop = words & {"asyncio", "anyio", "trio", "sniffio"}
            assert not has_loop or name == "aio", f"{file} uses {has_loop}"


def test_system_calls_on_files_live_in_one_module() -> None:
    calls = {
        "open", "fdopen", "stat", "lstat", "pread", "pwrite", "write", "fsync", "ftruncate",
        "replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir",
        "chmod", "fchmod", "chown", "fchown",
    }  # fmt: skip
    allowed = {"files.py"}
    wrong = []
    for files in modules().values():
        for file in files:
            nodes = ast.walk(ast.parse(file.read_text())) if file.name not in allowed else ()
            wrong += [
                f"{file.name}:{node.lineno} {ast.unparse(node.func)}"
                for node in nodes
                if isinstance(node, ast.Call) and _is_os(node, calls)
            ]
    assert wrong == []


def _is_os(node: ast.Call, calls: set[str]) -> bool:
    if isinstance(node.func, ast.Name):
        return node.func.id == "open"
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id == "os" and node.func.attr in calls  # type: ignore
