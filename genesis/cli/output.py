"""What commands have in common: tables, sizes, ages, JSON, and errors as one line."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Call = TypeVar("Call", bound=Callable[..., Any])

out = Console()
err = Console(stderr=True)


def fails_with_a_message(command: Call) -> Call:
    """Let an error of a command be a line on standard error and the exit status 2."""

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as exc:
            fail(str(exc.args[0]) if isinstance(exc, KeyError) and exc.args else str(exc))
        except Exception as exc:
            if type(exc).__module__ != "genesis":
                raise
            fail(str(exc))

    # The command's own name, from its module: genesis.cli.ls -> ls.
    run.__name__ = command.__module__.rpartition(".")[2]
    return run  # type: ignore[return-value]


def fail(message: str, status: int = 2) -> None:
    """Print one line, whatever a file's name or a key holds, and end."""
    err.print(Text(f"genesis: {printable(message)}"), soft_wrap=True)
    raise typer.Exit(status)


def say(line: str) -> None:
    out.print(Text(printable(line)), soft_wrap=True)


def printable(text: object) -> str:
    """Text that cannot steer a terminal."""
    shown = "".join(
        char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in str(text)
    )
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def show_json(value: Any) -> None:
    """Print plain containers as JSON; what JSON has no word for comes as a string."""
    typer.echo(json.dumps(_plain(value), indent=2, default=str))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def show_table(header: Iterable[str], rows: Iterable[Iterable[object]], right: str = "") -> None:
    """Print a table.

    Args:
        right: the names of columns of numbers, separated by spaces.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(
            name, justify="right" if name in right.split() else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)


def size(count: float) -> str:
    """Bytes in a unit that leaves two to four digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def age(moment: float) -> str:
    """How long ago, of seconds since 1970."""
    seconds = max(time.time() - moment, 0)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def in_one_step(target: Path, write: Callable[[str], object]) -> None:
    """Have a file written beside its place, and renamed to it."""
    made = target.with_name(f".{target.name}.making")
    try:
        write(str(made))
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
