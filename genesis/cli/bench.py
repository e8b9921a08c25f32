"""``genesis bench``."""

from __future__ import annotations

import os
import pickle
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer

from .._os import files
from .._save import save
from .._version import __version__
from . import svg
from .output import in_one_step, printable, say, show_json, show_table, size

Finish = Callable[[], object]
Way = Callable[[Any, Path], Finish | None]
"""Saves a state; returns what waits until it is durable, where that is later."""


@dataclass(frozen=True)
class Row:
    """What one way to save took, in seconds, each time."""

    name: str
    stall: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)


def run(
    megabytes: int = typer.Option(256, "--size", min=1, help="Size of the state, in MB."),
    tensors: int = typer.Option(400, min=1, help="How many tensors it is made of."),
    repeat: int = typer.Option(5, min=1, help="How often each way is measured."),
    folder: Path = typer.Option(Path(), "--dir", help="Where to write; the files are removed."),
    plot: Path | None = typer.Option(None, help="An SVG file to draw the stalls into."),
    as_json: bool = typer.Option(False, "--json", help="Print every sample as JSON."),
) -> None:
    """Measure for how long saving holds up training on this machine.

    A stall is the time until the call returns. Each way is run once before it is measured.
    """
    if plot is not None and plot.suffix != ".svg":
        raise ValueError(f"a plot is an SVG: name it {plot.with_suffix('.svg')}")
    _require_room(folder, 2 * megabytes * 10**6)
    state, ways = _state(megabytes * 10**6, tensors)
    rows = measure(state, ways, folder, repeat)
    title = f"How long saving {megabytes:,} MB holds up training (median of {repeat})"
    if as_json:
        show_json({"machine": machine(), "MB": megabytes, "rows": [asdict(row) for row in rows]})
    else:
        _show(rows)
    if plot is not None:
        drawn = svg.bars(title, [(row.name, _median(row), _label(row)) for row in rows])
        in_one_step(plot, partial(_write, text=drawn))


def measure(state: Any, ways: dict[str, Way], folder: Path, repeat: int) -> list[Row]:
    """Save a state in each way by turns, so that a slow moment of the machine hits all of them."""
    rows = {name: Row(name) for name in ways}
    with tempfile.TemporaryDirectory(prefix=".genesis-bench-", dir=folder) as made:
        for again in range(repeat + 1):
            for name, way in ways.items():
                path = Path(made, "file.pth")
                began = time.perf_counter()
                finish = way(state, path)
                stall = time.perf_counter() - began
                if finish is not None:
                    finish()
                if again:  # the first finds no memory warm
                    rows[name].stall.append(stall)
                    rows[name].durable.append(time.perf_counter() - began)
                path.unlink()  # or the next would wait for what this one left to be written
    return list(rows.values())


def machine() -> dict[str, Any]:
    """What the figures are of."""
    cores = os.cpu_count()
    return {"genesis": __version__, "python": platform.python_version(), "cores": cores}


def _require_room(folder: Path, needed: int) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"{folder} has {size(free)} free and the benchmark needs {size(needed)}")


def _state(nbytes: int, tensors: int) -> tuple[Any, dict[str, Way]]:
    """A state, of torch where that is installed, and the ways to save it."""
    count = max(nbytes // tensors // 4, 1)
    try:
        import torch
    except ModuleNotFoundError:
        import numpy as np

        arrays = {f"layer.{n}": np.full(count, n, np.float32) for n in range(tensors)}
        return arrays, {"pickle.dump + fsync": _pickled, **_OURS}
    state = {f"layer.{n}": torch.full((count,), float(n)) for n in range(tensors)}
    theirs: dict[str, Way] = {
        "torch.save": torch.save,
        "torch.save + fsync": partial(_synced, torch.save),
    }
    return state, {**theirs, **_OURS}


def _synced(dump: Callable[[Any, Any], object], state: Any, path: Path) -> None:
    with path.open("wb") as file:
        dump(state, file)
        file.flush()
        files.sync_file(file.fileno())


def _pickled(state: Any, path: Path) -> None:
    _synced(partial(pickle.dump, protocol=5), state, path)


def _plain(state: Any, path: Path) -> None:
    save(state, path, clear=False)


def _in_background(state: Any, path: Path) -> Finish:
    return save(state, path, background=True).result


_OURS: dict[str, Way] = {"genesis.save": _plain, "genesis.save, background": _in_background}


def _median(row: Row) -> float:
    return statistics.median(row.stall)


def _label(row: Row) -> str:
    return f"{_median(row) * 1e3:,.1f} ms"


def _show(rows: list[Row]) -> None:
    base = _median(rows[0])
    shown = [
        (
            row.name,
            _label(row),
            f"{max(row.stall) * 1e3:,.1f} ms",
            f"{statistics.median(row.durable) * 1e3:,.1f} ms",
            f"{_median(row) / base:.2f}",
        )
        for row in rows
    ]
    beside = f"x {rows[0].name}"
    header = ["", "stall", "worst", "until written", beside]
    show_table(header, shown)
    say(printable(", ".join(f"{key} {value}" for key, value in machine().items())))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
