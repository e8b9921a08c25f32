"""Charts as SVG, written by hand: a page or a README shows them without a library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:currentColor}.title{font-weight:600}"
    ".mark{fill:#d1495b}.line{fill:none;stroke:#d1495b;stroke-width:2}"
    ".other{fill:#8d99ae}.grid{stroke:currentColor;stroke-opacity:.15}"
)
_FILE_STYLE = "svg{color:#1f2430}@media(prefers-color-scheme:dark){svg{color:#e6e8ee}}"
"""For a file of its own, which no page gives a colour."""

Bar = tuple[str, float, str]
"""Name, length, and what stands at its end."""
Point = tuple[float, float]

_WIDTH = 760
_LEFT, _RIGHT = 230, 110


def bars(title: str, rows: Sequence[Bar], *, ours: str = "genesis") -> str:
    """A file with horizontal bars; those whose name begins with `ours` stand out."""
    most = max([length for _, length, _ in rows] or [1]) or 1
    drawn = [_text(0, 18, title, "class='title'")]
    for number, (name, length, label) in enumerate(rows):
        top = 36 + 30 * number
        kind = "mark" if name.startswith(ours) else "other"
        width = max((_WIDTH - _LEFT - _RIGHT) * length / most, 1)
        drawn += [
            _text(_LEFT - 10, top + 15, name, "text-anchor='end'"),
            f"<rect class='{kind}' x='{_LEFT}' y='{top}' width='{width:.1f}' height='20' rx='2'/>",
            _text(_LEFT + width + 8, top + 15, label),
        ]
    return _svg("".join(drawn), 44 + 30 * len(rows), title, style=STYLE + _FILE_STYLE)


def line(title: str, points: Sequence[Point], *, unit: str = "", best: float | None = None) -> str:
    """A line over steps, for a page that has `STYLE`; the point of the step `best` is larger.

    Args:
        points: finite, the lowest step first.
    """
    height, bottom = 220, 185
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min([0.0, *ys]), max(ys)
    places = [
        (_between(x, min(xs), max(xs), 70, _WIDTH - 20), _between(y, low, high, bottom, 30))
        for x, y in points
    ]
    drawn = [_text(0, 16, f"{title}, {unit}" if unit else title, "class='title'")]
    for value in (low, (low + high) / 2, high):
        y = _between(value, low, high, bottom, 30)
        drawn.append(f"<path class='grid' d='M70 {y:.1f}H{_WIDTH - 20}'/>")
        drawn.append(_text(60, y + 4, f"{value:.4g}", "text-anchor='end'"))
    for x, anchor in ((min(xs), "start"), (max(xs), "end"))[: len(set(xs))]:
        place = 70 if anchor == "start" else _WIDTH - 20
        drawn.append(_text(place, 208, f"step {x:,.0f}", f"text-anchor='{anchor}'"))
    drawn.append(f"<polyline class='line' points='{_pairs(places)}'/>")
    for (x, y), (step, value) in zip(places, points, strict=True):
        radius = 6 if step == best else 3
        told = escape(f"step {step:,.0f}: {value:.6g} {unit}".strip())
        drawn.append(
            f"<circle class='mark' cx='{x:.1f}' cy='{y:.1f}' r='{radius}'>"
            f"<title>{told}</title></circle>"
        )
    return _svg("".join(drawn), height, title)


def strip(title: str, total: int, marked: Mapping[int, str]) -> str:
    """A row of places of which some are marked, for a page that has `STYLE`.

    Args:
        marked: what each mark tells, by its place, from 1 to `total`.
    """
    drawn = [_text(0, 16, title, "class='title'")]
    drawn.append(f"<rect class='other' x='70' y='38' width='{_WIDTH - 90}' height='4'/>")
    for place, told in marked.items():
        x = _between(place, 1, total, 70, _WIDTH - 20)
        drawn.append(
            f"<rect class='mark' x='{x - 2:.1f}' y='28' width='4' height='24'>"
            f"<title>{escape(told)}</title></rect>"
        )
    drawn.append(_text(70, 70, "first save"))
    drawn.append(_text(_WIDTH - 20, 70, f"save {total:,}", "text-anchor='end'"))
    return _svg("".join(drawn), 80, title)


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return start + share * (end - start)


def _pairs(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(words)}</text>"


def _svg(drawn: str, height: int, title: str, *, style: str = "") -> str:
    head = f"<style>{style}</style>" if style else ""
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' role='img' "
        f"width='{_WIDTH}' aria-label='{escape(title)}'>{head}{drawn}</svg>"
    )


def is_drawable(value: float | None) -> bool:
    """Whether a chart has a place for a number."""
    return value is not None and math.isfinite(value)
