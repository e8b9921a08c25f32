"""``genesis verify PATH...``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer
from rich.progress import Progress

from .._load import verify
from .output import err, say

_ENDINGS = {".pth", ".pt", ".ckpt", ".genesis"}


def run(
    paths: list[Path] = typer.Argument(help="Checkpoints, or folders to look for them."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Name only what is not sound."),
) -> None:
    """Check every byte of checkpoints against its checksum.

    Exits with 1 where one is not sound.
    """
    files = [file for path in paths for file in _files(path)]
    bad = 0
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress(console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        shown = progress.add_task("verifying", total=len(files))
        for file, report in zip(files, pool.map(verify, files), strict=True):
            progress.advance(shown)
            bad += not report.ok
            if report.ok and quiet:
                continue
            place = f" at {report.place}" if report.place and not report.ok else ""
            problem = f": {report.problem}{place}" if not report.ok else ""
            say(f"{'ok     ' if report.ok else 'DAMAGED'} {file}{problem}")
    say(f"{len(files)} files, {bad} not sound")
    if bad:
        raise typer.Exit(1)


def _files(path: Path) -> Iterator[Path]:
    """A path that was named, or what looks like a checkpoint in a folder and those below."""
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix in _ENDINGS and not name.startswith(".") and not file.is_symlink():
                yield file
