"""``genesis inspect FILE``."""

from __future__ import annotations

from pathlib import Path

import typer

from .._load import inspect
from .output import age, say, show_json, show_table, size


def run(
    file: Path = typer.Argument(help="A checkpoint."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """List what is in a file, and run nothing of it.

    Every tensor and array, plain values, the writer, metadata, and what a manager noted.
    """
    found = inspect(file)
    if as_json:
        show_json(found.to_dict())
        return
    say(f"{found.path}: {size(found.bytes)}, {len(found.arrays)} tensors and arrays")
    say(f"written by {found.writer or 'another program'}, Python {found.python or 'unknown'}")
    if found.step is not None:
        metrics = ", ".join(f"{name} {value:.6g}" for name, value in found.metrics.items())
        say(f"step {found.step}, saved {age(found.time)} ago{metrics and ', '}{metrics}")
    for key, value in found.metadata.items():
        say(f"metadata {key}: {value}")
    rows = [
        (row.path, row.dtype, "x".join(map(str, row.shape)) or "scalar", size(row.bytes))
        for row in found.arrays
    ]
    show_table(["path", "dtype", "shape", "size"], rows, right="size")
    if found.values:
        show_table(
            ["value", "is"], [(path, repr(value)[:80]) for path, value in found.values.items()]
        )
