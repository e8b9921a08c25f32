"""``genesis ls DIR``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from ..manager import CheckpointManager
from .output import age, say, show_json, show_table, size

NAME = typer.Option("epoch_{step:06d}.pth", help="The template of the names.")
METRIC = typer.Option("loss", help="What the best checkpoint is the best of.")
MODE = typer.Option("min", help="Whether min or max is best.")


def run(
    folder: Path = typer.Argument(help="A folder of a CheckpointManager."),
    name: str = NAME,
    metric: str = METRIC,
    mode: str = MODE,
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """List the checkpoints of a folder.

    Steps, metrics, sizes, ages and damage are read from the ends of its files.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    manager = CheckpointManager(folder, name=name, metric=metric, mode=mode)  # type: ignore[arg-type]
    found, latest, best = manager.all(), manager.latest(), manager.best()
    if as_json:
        show_json([asdict(each) for each in found])
        return
    rows = []
    for each in found:
        marks = [word for word, path in (("latest", latest), ("best", best)) if path == each.path]
        metrics = ", ".join(f"{key} {value:.6g}" for key, value in each.metrics.items())
        verdict = each.problem or "ok"
        rows.append(
            (each.step, size(each.bytes), age(each.time), metrics, " ".join(marks), verdict)
        )
    show_table(["step", "size", "age", "metrics", "", "ends"], rows, right="step size age")
    say(f"{len(found)} checkpoints, {size(sum(each.bytes for each in found))}")
