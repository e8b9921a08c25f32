"""``genesis prune DIR``."""

from __future__ import annotations

from functools import reduce
from operator import or_
from pathlib import Path

import typer

from .._save import remove
from ..manager import CheckpointManager
from ..retention import BestN, Checkpoint, EveryN, LastN, Retention
from .ls import NAME
from .output import say, size


def run(
    folder: Path = typer.Argument(help="A folder of a CheckpointManager."),
    keep_last: int = typer.Option(0, help="Keep so many of the newest."),
    keep_best: list[str] = typer.Option(
        [], help="N:METRIC or N:METRIC:max: keep the N best. May be given several times."
    ),
    keep_every: int = typer.Option(0, help="Keep those whose step is a multiple of this."),
    name: str = NAME,
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would go, and remove nothing."),
) -> None:
    """Remove old checkpoints of a folder.

    The latest always stays, and so does what is damaged.
    """
    rules = [*map(_best, keep_best)]
    rules += [LastN(keep_last)] if keep_last else []
    rules += [EveryN(keep_every)] if keep_every else []
    if not rules:
        raise ValueError("say what to keep: --keep-last, --keep-best or --keep-every")
    gone = removed(folder, reduce(or_, rules), name)
    for old in gone:
        if not dry_run:
            remove(old)
        say(f"{'would remove' if dry_run else 'removed'} {old.path}")
    what = "would be freed" if dry_run else "freed"
    say(f"{len(gone)} checkpoints, {size(sum(each.bytes for each in gone))} {what}")


def removed(folder: Path, keep: Retention, name: str) -> list[Checkpoint]:
    """What a retention gives up of a folder."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    manager = CheckpointManager(folder, name=name)
    whole = [each for each in manager.catalogue.found() if not each.problem]
    stays = {each.path for each in (*keep.keeps(whole), *whole[-1:])}
    return [each for each in whole if each.path not in stays]


def _best(text: str) -> Retention:
    count, _, rest = text.partition(":")
    metric, _, mode = rest.partition(":")
    if not count.isdigit() or not metric:
        raise ValueError(f"--keep-best takes N:METRIC or N:METRIC:max, not {text!r}")
    return BestN(int(count), metric, mode or "min")  # type: ignore[arg-type]
