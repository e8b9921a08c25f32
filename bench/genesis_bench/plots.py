"""The pictures: stall by peer, step times around a save, time lost, growth.

Draws medians with their spread, on logarithmic scales where the numbers span decades.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from .goals import COPY, DEFERRED, SYNC
from .results import Results, middle
from .stats import milliseconds, quantile

mpl.use("Agg")
from matplotlib import pyplot as plt

OURS, THEIRS, FLOOR = "#d1495b", "#8d99ae", "#2b2d42"
# Few enough to be told apart, and one of each kind.
TIMELINES = ("torch.save + fsync", "dcp.async_save", "torch_checkpointing", COPY, DEFERRED)
GROWERS = ("torch.save", "dcp.async_save, stager kept", "dcp.async_save, async staging")


def _colour(name: str) -> str:
    return OURS if name.startswith("genesis") else THEIRS


def draw(results: Results, folder: Path) -> None:
    """Every picture of the page for which there are results."""
    saves, trained = results.where(mode="saves"), results.where(mode="training")
    if saves.where(state="big").good():
        stall(saves.where(state="big"), folder / "stall-big.png")
    if saves.where(state="small").good():
        stall(saves.where(state="small"), folder / "stall-small.png")
    if trained.good():
        training(trained, folder / "training.png")
    by_bytes, by_count = saves.where(state="gpt"), saves.where(state="tensors")
    if by_bytes.good() and by_count.good():
        growth(by_bytes, by_count, folder / "growth.png")


def stall(results: Results, file: Path, timelines: Results | None = None) -> None:
    """Call stall by peer; beside it, if given, step times around a save."""
    columns = 2 if timelines is not None and timelines.good() else 1
    figure, axes = plt.subplots(1, columns, figsize=(8 * columns, 6), squeeze=False)
    _stall_bars(axes[0][0], results)
    if columns == 2 and timelines is not None:
        _timelines(axes[0][1], timelines)
    _finish(figure, file)


def _stall_bars(axis: Any, results: Results) -> None:
    rows = {name: results.where(peer=name).samples("stall") for name in results.peers()}
    rows = {name: samples for name, samples in rows.items() if samples}
    floor = middle(results.samples("floor_copy"))
    _bars(axis, rows, "call stall, ms (median, 5 to 95 %)")
    if floor:
        axis.axvline(floor * 1e3, color=FLOOR, linestyle="--", linewidth=1)
        axis.annotate(
            f" copy floor {milliseconds(floor)} ms", (floor * 1e3, -0.8), color=FLOOR, fontsize=8
        )
    axis.set_title(f"How long the call holds up training ({results.nbytes() / 1e6:,.0f} MB)")


def _bars(axis: Any, rows: dict[str, list[float]], label: str) -> None:
    names = sorted(rows, key=lambda name: middle(rows[name]) or 0, reverse=True)
    for place, name in enumerate(reversed(names)):
        low, mid, high = (1e3 * quantile(rows[name], share) for share in (0.05, 0.5, 0.95))
        axis.barh(place, mid, color=_colour(name))
        axis.plot([low, high], [place, place], color="black", linewidth=1)
        axis.annotate(f" {milliseconds(mid / 1e3)}", (max(mid, high), place), va="center")
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set_ylim(-1.2, len(names) - 0.4)
    axis.set_xscale("log")
    axis.set_xlabel(label)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)


def _timelines(axis: Any, results: Results) -> None:
    """Each step of one window with a save, over the usual step of the same peer."""
    names = [name for name in TIMELINES if results.where(peer=name).good()]
    for name in names or results.peers():
        for result in results.where(peer=name).good()[:1]:
            steps = result["timelines"][0]["steps"]
            usual = result["step"]
            axis.plot(
                range(-1, len(steps) - 1),
                [1e3 * (step - usual) for step in steps],
                marker="o",
                markersize=3,
                label=name,
            )
    axis.axvline(0, color=FLOOR, linestyle=":", linewidth=1)
    axis.set_xlabel("training step; the save is called at the end of step 0")
    axis.set_ylabel("ms more than the usual step")
    axis.set_title("Step times around one save")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def training(results: Results, file: Path) -> None:
    """Training time lost per checkpoint, and step times around a save."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 6))
    rows = {name: results.where(peer=name).pooled("lost") for name in results.peers()}
    # A loss below zero is noise; a logarithm has no place for it.
    shown = {n: [max(s, 1e-4) for s in samples] for n, samples in rows.items() if samples}
    _bars(left, shown, "training time lost per checkpoint, ms (median, 5 to 95 %)")
    left.set_title("What one checkpoint costs a training loop that keeps every core busy")
    _timelines(right, results)
    _finish(figure, file)


def growth(by_bytes: Results, by_count: Results, file: Path) -> None:
    """Call stall over bytes, and over number of arrays."""
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.5))
    _lines(axes[0], by_bytes, "nbytes", "bytes of the state, in 400 arrays")
    _lines(axes[1], by_count, "count", "arrays, of the same bytes together")
    axes[1].legend(frameon=False, fontsize=8)
    _finish(figure, file)


def _lines(axis: Any, results: Results, key: str, label: str) -> None:
    values = results.values(key)
    for name in [n for n in (*GROWERS, SYNC, COPY, DEFERRED) if n in results.peers()]:
        mine = [middle(results.where(peer=name, **{key: v}).samples("stall")) for v in values]
        points = [(v, 1e3 * m) for v, m in zip(values, mine, strict=True) if m]
        style = "-" if name.startswith("genesis") else "--"
        axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=name)
    floors = [1e3 * (middle(results.where(**{key: v}).samples("floor_copy")) or 0) for v in values]
    axis.plot(values, floors, color=FLOOR, linewidth=1, linestyle=":", label="copy floor")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel("call stall, ms")
    axis.spines[["top", "right"]].set_visible(False)


def _finish(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
