"""The command line: one file a command.

A command prints what the library tells, and does nothing that the library cannot do. Needs typer
and rich, the extra ``cli``. No command runs code of a file unless ``--trust`` is given.

Exit status: 0; 1 where a file is damaged (`verify`) or two differ (`diff`); 2 for an error.
"""

from __future__ import annotations

import typer

from .._version import __version__
from . import bench, convert, diff, inspect, ls, prune, recover, report, verify
from .output import fails_with_a_message

app = typer.Typer(
    name="genesis",
    help="Looks into checkpoints, checks, compares, converts and tidies them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _module in (inspect, verify, ls, diff, prune, recover, convert, bench, report):
    app.command()(fails_with_a_message(_module.run))  # named after the function that it wraps


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Looks into checkpoints, checks, compares, converts and tidies them."""
