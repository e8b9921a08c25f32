"""``genesis convert IN OUT``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from .._load import inspect, load
from .._save import save
from .diff import TRUST
from .output import in_one_step, say, size

FORMATS = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".pt": "torch",
    ".pth": "genesis",
    ".ckpt": "genesis",
    ".genesis": "genesis",
}


def run(
    source: Path = typer.Argument(help="A file of genesis, torch, safetensors or NumPy (.npz)."),
    target: Path = typer.Argument(help="The file to make."),
    to: str = typer.Option("", help="Overrules the ending: genesis, torch, safetensors or npz."),
    drop: bool = typer.Option(False, "--drop", help="Leave out what the format cannot hold."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that is there."),
    trust: bool = TRUST,
) -> None:
    """Convert a checkpoint.

    The ending says the format: .pth genesis, .pt torch, .safetensors, .npz. What that cannot hold
    is named, and nothing is written, unless --drop is given.
    """
    kind = to or FORMATS.get(target.suffix, "")
    if kind not in WRITERS:
        raise ValueError(f"the ending of {target} says no format; add --to {'|'.join(WRITERS)}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; add --overwrite to replace it")
    state = read(source, trust=trust)
    WRITERS[kind](state, target, drop)
    say(f"{target}: {size(target.stat().st_size)}, {kind}")


def read(source: Path, *, trust: bool) -> Any:
    """The state of a file of any of the formats, told by its first bytes."""
    with source.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        return _read_npz(source) if _is_npz(source) else _read_torch(source, trust)
    if start[8:9] == b"{":
        return _read_safetensors(source)
    return load(source, mmap=inspect(source).writer != "", weights_only=not trust)


def _is_npz(source: Path) -> bool:
    import zipfile

    with zipfile.ZipFile(source) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_npz(source: Path) -> Any:
    import numpy as np

    with np.load(source, allow_pickle=False) as archive:
        return _nested(dict(archive))


def _read_torch(source: Path, trust: bool) -> Any:
    import torch

    return torch.load(source, map_location="cpu", weights_only=not trust)


def _read_safetensors(source: Path) -> Any:
    from safetensors import safe_open

    try:
        import torch  # noqa: F401

        framework = "pt"
    except ModuleNotFoundError:
        framework = "np"
    with safe_open(source, framework=framework) as file:
        return _nested({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Names with ``/`` in them as dicts in dicts, as `flat` wrote them."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        inner = found
        for step in above:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return found


def _write_genesis(state: Any, target: Path, drop: bool) -> None:
    save(state, target, clear=False)


def _write_torch(state: Any, target: Path, drop: bool) -> None:
    import torch

    in_one_step(target, lambda path: torch.save(state, path))


def _write_safetensors(state: Any, target: Path, drop: bool) -> None:
    arrays = flat(state, target, drop)
    if any(type(value).__module__.startswith("torch") for value in arrays.values()):
        import torch
        from safetensors.torch import save_file

        # Each with memory of its own: the format knows no ties.
        tensors = {name: torch.as_tensor(value).clone() for name, value in arrays.items()}
        in_one_step(target, lambda path: save_file(tensors, path))
    else:
        import numpy as np
        from safetensors.numpy import save_file as save_arrays

        copies = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        in_one_step(target, lambda path: save_arrays(copies, path))


def _write_npz(state: Any, target: Path, drop: bool) -> None:
    import numpy as np

    arrays = {name: _as_numpy(name, value) for name, value in flat(state, target, drop).items()}

    def write(path: str) -> None:
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)

    in_one_step(target, write)


def _as_numpy(name: str, value: Any) -> Any:
    import numpy as np

    try:
        return np.asarray(value.detach() if hasattr(value, "detach") else value)
    except TypeError as exc:
        raise ValueError(f"{name} is {value.dtype}, which NumPy has no such thing as") from exc


def flat(state: Any, target: Path, drop: bool) -> dict[str, Any]:
    """The tensors and arrays of nested dicts by their path.

    Raises:
        ValueError: there is something else, and it is not to be dropped.
    """
    arrays: dict[str, Any] = {}
    others: list[str] = []
    for path, value in _leaves(state):
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            arrays[path] = value
        else:
            others.append(f"{path} ({type(value).__name__})")
    if others and not drop:
        shown = ", ".join(others[:10]) + (f" and {len(others) - 10} more" if others[10:] else "")
        raise ValueError(f"{target} could not hold {shown}; add --drop to leave that out")
    if not arrays:
        raise ValueError(f"there is no tensor and no array for {target}")
    return arrays


def _leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(part, dict) or not part:
        yield path, part
        return
    for key, value in part.items():
        yield from _leaves(value, f"{path}/{key}" if path else str(key))


WRITERS: dict[str, Callable[[Any, Path, bool], None]] = {
    "genesis": _write_genesis,
    "torch": _write_torch,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}
