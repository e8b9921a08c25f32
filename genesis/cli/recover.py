"""``genesis recover PATH``."""

from __future__ import annotations

from pathlib import Path

import typer

from .._load import verify
from .._os import files
from ..storage.local import restore
from .output import say


def run(
    path: Path = typer.Argument(help="A checkpoint that is missing or damaged."),
) -> None:
    """Put a sound leftover in the place of a damaged or missing checkpoint.

    That is its backup, or what a killed save had finished. The damaged file is kept beside it, as
    PATH.damaged.
    """
    if verify(path):
        say(f"{path} is sound; nothing to recover")
        return
    source = restore(files.resolve(path), is_sound=lambda each: verify(each).ok)
    if source is None:
        raise FileNotFoundError(f"{path}: neither a sound backup nor a finished leftover is there")
    say(f"{path} is now what was in {source}")
