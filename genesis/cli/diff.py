"""``genesis diff A B``."""

from __future__ import annotations

from pathlib import Path

import typer

from .._load import diff
from .output import say, show_json, show_table

TRUST = typer.Option(False, "--trust", help="Let the file run code: it is from somebody you know.")


def run(
    one: Path = typer.Argument(help="A checkpoint."),
    other: Path = typer.Argument(help="Another, later one say."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
    trust: bool = TRUST,
) -> None:
    """Say what is different between two files, and how far.

    Exits with 1 where they differ.
    """
    found = diff(one, other, weights_only=not trust)
    if as_json:
        show_json(found.to_dict())
    else:
        rows = [
            (each.kind, each.path, each.what, _number(each.max_abs), _number(each.max_rel))
            for each in found.changes
        ]
        if rows:
            show_table(["", "path", "what", "max abs", "max rel"], rows)
        say(f"{len(found.changes)} differences, {found.same} the same")
    if found:
        raise typer.Exit(1)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
