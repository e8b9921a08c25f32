"""``genesis report DIR -o report.html``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path

import typer

from ..manager import CheckpointManager
from ..retention import Checkpoint
from . import svg
from .ls import METRIC, MODE, NAME
from .output import in_one_step, printable, say, size

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.3rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:1rem}
dt{opacity:.7}dd{margin:0;font-size:1.2rem;font-weight:600}
svg{display:block;margin:1.5rem 0;max-width:100%;height:auto}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid rgba(128,128,128,.3)}
td.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.bad{color:#d1495b}
"""


def run(
    folder: Path = typer.Argument(help="A folder of a CheckpointManager."),
    output: Path = typer.Option(Path("report.html"), "--output", "-o", help="The page to write."),
    name: str = NAME,
    metric: str = METRIC,
    mode: str = MODE,
) -> None:
    """Write a page about a folder: stalls, sizes, metrics, and what retention kept.

    One file that needs nothing else. Everything is read from the ends of the checkpoints.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    manager = CheckpointManager(folder, name=name, metric=metric, mode=mode)  # type: ignore[arg-type]
    text = page(str(folder), manager.all(), manager.latest(), manager.best())
    in_one_step(output, partial(_write, text=text))
    say(f"{output}: {size(output.stat().st_size)}")


def page(folder: str, found: list[Checkpoint], latest: str | None, best: str | None) -> str:
    """The page as HTML.

    Args:
        found: lowest step first.
        latest, best: paths of two of them.
    """
    title = f"Checkpoints in {_shown(folder)}"
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    parts = [
        f"<h1>{title}</h1>",
        _figures(found, latest, best),
        *_kept(found),
        *_charts(found, best),
    ]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<style>{_STYLE}{svg.STYLE}</style></head><body>{''.join(parts)}"
        f"{_table(found, latest, best)}<p>Written {escape(written)} by genesis report.</p>"
        "</body></html>\n"
    )


def _figures(found: list[Checkpoint], latest: str | None, best: str | None) -> str:
    stalls = [each.stall for each in found if each.stall is not None]
    steps = {each.path: f"step {each.step:,}" for each in found}
    figures = {
        "kept": f"{len(found)} of {_made(found)} saved",
        "on disk": size(sum(each.bytes for each in found)),
        "latest": steps.get(latest or "", "none"),
        "best": steps.get(best or "", "none"),
        "median stall": f"{statistics.median(stalls) * 1e3:,.1f} ms" if stalls else "not known",
        "damaged": str(sum(bool(each.problem) for each in found)),
    }
    cells = (f"<div><dt>{key}</dt><dd>{_shown(value)}</dd></div>" for key, value in figures.items())
    return f"<dl>{''.join(cells)}</dl>"


def _made(found: list[Checkpoint]) -> int:
    """How many saves there were, as far as their order tells."""
    return max([0, *(each.order for each in found)]) + sum(not each.order for each in found)


def _kept(found: list[Checkpoint]) -> list[str]:
    """Which of all saves retention kept."""
    marked = {each.order: f"step {each.step:,}" for each in found if each.order}
    return [svg.strip("kept, of all saves", max(marked), marked)] if marked else []


def _charts(found: list[Checkpoint], best: str | None) -> list[str]:
    """A line for each number that some checkpoints have."""
    whole = [each for each in found if not each.problem]
    stalls = [(each.step, each.stall * 1e3) for each in whole if each.stall is not None]
    lines: list[tuple[str, str, Sequence[svg.Point]]] = [
        ("size", "MB", [(each.step, each.bytes / 1e6) for each in whole]),
        ("stall", "ms", stalls),
    ]
    for name in sorted({name for each in whole for name in each.metrics}):
        values = [(each.step, each.metrics[name]) for each in whole if name in each.metrics]
        lines.append((name, "", [point for point in values if svg.is_drawable(point[1])]))
    step = next((each.step for each in whole if each.path == best), None)
    return [
        svg.line(printable(title), points, unit=unit, best=step)
        for title, unit, points in lines
        if points
    ]


def _table(found: list[Checkpoint], latest: str | None, best: str | None) -> str:
    rows = []
    for each in found:
        marks = [word for word, path in (("latest", latest), ("best", best)) if path == each.path]
        metrics = ", ".join(f"{key} {value:.6g}" for key, value in each.metrics.items())
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time))
        verdict = f"<span class='bad'>{_shown(each.problem)}</span>" if each.problem else "ok"
        stall = "" if each.stall is None else f"{each.stall * 1e3:,.1f} ms"
        cells = (f"{each.step:,}", size(each.bytes), stall)
        numbers = "".join(f"<td class='number'>{cell}</td>" for cell in cells)
        words = "".join(f"<td>{_shown(cell)}</td>" for cell in (saved, metrics, " ".join(marks)))
        rows.append(f"<tr>{numbers}{words}<td>{verdict}</td></tr>")
    names = ("step", "size", "stall", "saved", "metrics", "", "ends")
    header = "".join(f"<th>{name}</th>" for name in names)
    return f"<div class='wide'><table><tr>{header}</tr>{''.join(rows)}</table></div>"


def _shown(text: str) -> str:
    return escape(printable(text))


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
