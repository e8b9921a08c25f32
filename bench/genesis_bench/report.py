"""Turns results into Markdown: one block for each table, put between markers of a document.

It computes only medians, quantiles and ratios; the raw samples stay in the JSON files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import environment, goals
from .choices import ROWS, Row
from .peers import PEERS, peer_named
from .results import Results, middle
from .stats import figures, milliseconds, quantile, table

PICTURES = {
    "saves-big": "stall-big.png",
    "saves-small": "stall-small.png",
    "training": "training.png",
    "growth-bytes": "growth.png",
}
STATES = ("big", "small", "many", "few", "numpy", "jax", "objects", "plain_objects", "huge")


def blocks(results: Results, environments: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Every block by name; those without a measurement are left out."""
    makers: dict[str, Callable[[], str]] = {
        "goals": lambda: goals.as_table(results),
        "peers": peers,
        "runs": lambda: runs(environments),
        **{f"saves-{s}": _maker(saves, results.where(mode="saves", state=s)) for s in STATES},
        **{f"loads-{s}": _maker(loads, results.where(mode="loads", state=s)) for s in STATES},
        "training": _maker(training, results.where(mode="training")),
        "memory": _maker(memory, results.where(mode="memory")),
        "flat": _maker(flat, results.where(mode="flat")),
        "growth-bytes": _maker(growth, results.where(state="gpt"), "nbytes"),
        "growth-count": _maker(growth, results.where(state="tensors"), "count"),
        "choices": _maker(choices, results.where(mode="choices")),
        "check": _maker(check, results.where(mode="check")),
    }
    texts = {"environment": _environment(environments)}
    for name, make in makers.items():
        text = make()
        if text:
            texts[name] = text
    return texts


def _maker(make: Callable[..., str], results: Results, *more: str) -> Callable[[], str]:
    return lambda: make(results, *more) if results.good() else ""


def _environment(environments: dict[str, dict[str, Any]]) -> str:
    lines = dict.fromkeys(environment.line(described) for described in environments.values())
    return "\n\n".join(f"{line}." for line in [*lines]) + f"\n\n{environment.BIAS}"


def runs(environments: dict[str, dict[str, Any]]) -> str:
    """When each part was run, and what else the machine had to do then."""
    rows = [
        [
            name,
            described["date"],
            str(described["rounds"]),
            figures(described["seconds"] / 60),
            str(described["load"][0]),
        ]
        for name, described in environments.items()
    ]
    return table(["part", "started", "rounds", "minutes", "load at the start"], rows)


def page(texts: dict[str, str]) -> str:
    """All blocks, one below the other."""
    return (
        "\n\n".join(f"## {name}\n\n{text}{_picture(name)}" for name, text in texts.items()) + "\n"
    )


def _picture(name: str, folder: str = ".") -> str:
    return f"\n\n![{name}]({folder}/{PICTURES[name]})" if name in PICTURES else ""


def put(document: Path, texts: dict[str, str]) -> list[str]:
    """Replace what stands between the markers of a document; return the blocks it has no place for.

    The markers are comments, `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.
    """
    content, homeless = document.read_text(), []
    for name, text in texts.items():
        pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)"
        whole = text + _picture(name, document.stem)
        content, count = re.subn(
            pattern, lambda m, whole=whole: f"{m[1]}{whole}\n{m[2]}", content, flags=re.DOTALL
        )
        if not count:
            homeless.append(name)
    document.write_text(content)
    return homeless


# -------------------------------------------------------------------------------------- saves


def peers() -> str:
    """What each name in the other tables stands for."""
    rows = [[p.name, p.what, p.durable, "yes" if p.copies else "no"] for p in PEERS]
    return table(["peer", "what is called", "durable", "state is free at return"], rows)


def saves(results: Results) -> str:
    """Stall, time until finished and durable, and processor time, by peer."""
    header = [
        "peer",
        "call stall ms",
        "p95",
        "x floor",
        "state free ms",
        "finished, durable ms",
        "finished, not durable ms",
        "durable, synced if need be ms",
        "processor s",
        "first stall ms",
    ]
    rows = [_save_row(name, results.where(peer=name)) for name in _measured(results)]
    return f"{_state_line(results)}\n\n{table(header, rows)}{_missing(results)}"


def _measured(results: Results) -> list[str]:
    return [name for name in results.peers() if results.where(peer=name).good()]


def _missing(results: Results) -> str:
    """A list of the peers without a measurement, and why."""
    return _not_measured({name: results.where(peer=name).failure() for name in results.peers()})


def _not_measured(reasons: dict[str, str | None]) -> str:
    lines = [f"- {name}: {_short(reason)}" for name, reason in reasons.items() if reason]
    return "\n\n" + "\n".join(["Not measured:", "", *lines]) if lines else ""


def _save_row(name: str, mine: Results) -> list[str]:
    finished = _ms(mine.samples("finished"))
    durable = peer_named(name).durable
    mark = " (files)" if durable == "files" else ""
    first = middle([result["first"]["stall"] for result in mine.good()])
    return [
        name,
        _ms(mine.samples("stall")),
        milliseconds(quantile(mine.samples("stall"), 0.95)),
        figures(middle(mine.ratios("stall", "floor_copy")) or 0),
        _ms(mine.samples("captured")),
        "" if durable == "no" else finished + mark,
        finished if durable == "no" else "",
        _ms(mine.samples("durable")),
        figures(middle(mine.samples("processor")) or 0),
        milliseconds(first),
    ]


def _state_line(results: Results) -> str:
    good = results.good()
    counts = [len(results.where(peer=name).samples("stall")) for name in _measured(results)]
    fewest = f"{min(counts)} to " if min(counts) < max(counts) else ""
    floors = f"copy floor {_ms(results.samples('floor_copy'))} ms"
    if results.samples("floor_write"):
        floors += f", direct write floor {_ms(results.samples('floor_write'))} ms"
    count = good[0]["state"]["count"]
    size = f"{results.nbytes() / 1e6:,.1f} MB in {count:,} arrays"
    return f"{size}; {floors}; {fewest}{max(counts)} saves a peer."


def _ms(samples: list[float]) -> str:
    return milliseconds(middle(samples))


def _short(text: str) -> str:
    return text.replace("\n", " ").replace("|", "/")[:90]


# -------------------------------------------------------------------------------------- loads

HOWS = {
    "whole": "whole",
    "restricted": "weights_only",
    "mapped": "mapped",
    "partial": "one tensor",
}


def loads(results: Results) -> str:
    """Seconds to load, by peer and way; and with a byte of every page read afterwards."""
    header = ["peer", "way", "warm ms", "warm, then read", "cold ms", "cold, then read"]
    ways = [(name, how) for name in _measured(results) for how in peer_named(name).hows]
    rows = [
        [name, HOWS[how], *cells]
        for name, how in ways
        if any(cells := _load_cells(results.where(peer=name), how))
    ]
    good = results.good()[0]["state"]
    line = f"{good['nbytes'] / 1e6:,.1f} MB in {good['count']:,} arrays. genesis verifies `whole`."
    reasons = {
        f"{name}, {HOWS[how]}": result[how]["error"]
        for name, how in ways
        for result in results.where(peer=name).good()
        if "error" in result.get(how, {})
    }
    return f"{line}\n\n{table(header, rows)}{_missing(results)}{_not_measured(reasons)}"


def _load_cells(mine: Results, how: str) -> list[str]:
    return [
        _ms(mine.loads(how, cache, key))
        for cache in ("warm", "cold")
        for key in ("load", "load_and_read")
    ]


# ----------------------------------------------------------------------- training and memory


def training(results: Results) -> str:
    """Training time lost per checkpoint, and the spread of the method itself."""
    header = [
        "peer",
        "lost ms",
        "quartiles ms",
        "in steps",
        "step ms",
        "x step before set-up",
        "without a save ms",
    ]
    rows = [_training_row(name, results.where(peer=name)) for name in _measured(results)]
    return table(header, rows) + _missing(results)


def _training_row(name: str, mine: Results) -> list[str]:
    lost, noise = mine.pooled("lost"), mine.pooled("noise")
    step = middle([result["step"] for result in mine.good()]) or 1.0
    slower = middle([result["step"] / result["bare_step"] for result in mine.good()]) or 1.0
    return [
        name,
        _ms(lost),
        _quartiles(lost),
        figures((middle(lost) or 0) / step),
        milliseconds(step),
        figures(slower),
        _quartiles(noise),
    ]


def _quartiles(samples: list[float]) -> str:
    low, high = quantile(samples, 0.25), quantile(samples, 0.75)
    return f"{milliseconds(low)} to {milliseconds(high)}"


def memory(results: Results) -> str:
    """Peak extra memory by peer and size, in MB and as a share of the state."""
    sizes = results.values("nbytes")
    header = ["peer", *(f"state of {size / 1e6:,.0f} MB" for size in sizes)]
    rows = [
        [name, *(_peak(results.where(peer=name, nbytes=size)) for size in sizes)]
        for name in results.peers()
    ]
    return table(header, rows)


def _peak(mine: Results) -> str:
    peak = mine.peak()
    if peak is None:
        return _short(mine.failure() or "")
    return f"{peak / 1e6:,.0f} MB ({peak / mine.nbytes():.2f} x)"


def flat(results: Results) -> str:
    """Memory and descriptors over many saves."""
    header = ["peer", "saves", "growth KiB", "descriptors, first and last"]
    rows = []
    for name in results.peers():
        for result in results.where(peer=name).good():
            resident, descriptors = result["resident"], result["descriptors"]
            grown = figures(goals.growth(resident) / 1024)
            rows.append([name, str(len(resident)), grown, f"{descriptors[0]}, {descriptors[-1]}"])
    return table(header, rows)


# ------------------------------------------------------------------ growth, choices and check


def growth(results: Results, key: str) -> str:
    """Call stall, and time until durable, by bytes or by number of arrays."""
    values = results.values(key)
    label = "{:,.0f} MB" if key == "nbytes" else "{:,} arrays"
    header = ["peer", *(label.format(v / 1e6 if key == "nbytes" else v) for v in values)]
    rows = []
    for name in results.peers():
        mine = [results.where(peer=name, **{key: value}) for value in values]
        rows.append([name, *(_stall_and_durable(m) for m in mine)])
    rows.append(
        ["copy floor", *(_ms(results.where(**{key: v}).samples("floor_copy")) for v in values)]
    )
    return f"Call stall / until durable, in ms.\n\n{table(header, rows)}"


def _stall_and_durable(mine: Results) -> str:
    failure = mine.failure()
    if failure:
        return _short(failure)
    return f"{_ms(mine.samples('stall'))} / {_ms(mine.samples('durable'))}"


def choices(results: Results) -> str:
    """What each optimisation is worth: a measurement with it and without it."""
    header = ["choice", "what is measured", "with ms", "without ms", "without / with"]
    rows = [_choice_row(row, results.where(choice=row.name)) for row in ROWS]
    lines = [_choice_state(results.where(state=state)) for state in results.values("state")]
    return "\n\n".join([*filter(None, lines), table(header, rows)])


def _choice_row(row: Row, mine: Results) -> list[str]:
    measured = f"{row.measure}, {row.state}"
    on, off = middle(mine.pooled("with")), middle(mine.pooled("without"))
    if on is None or off is None:
        return [row.what, f"{measured}: {_short(mine.failure() or '')}", "", "", ""]
    return [row.what, measured, milliseconds(on), milliseconds(off), figures(off / on)]


def _choice_state(results: Results) -> str:
    if not results.good():
        return ""
    name, pairs = results.values("state")[0], results.values("pairs")[0]
    count = results.good()[0]["state"]["count"]
    return f"{name}: {results.nbytes() / 1e6:,.1f} MB in {count:,} arrays, {pairs} pairs a row."


def check(results: Results) -> str:
    """Whether what was loaded is what the state was at the call, by peer and state."""
    asked = results.values("state")
    rows = [
        [name, *(_verdict(results.where(peer=name, state=state)) for state in asked)]
        for name in results.peers()
    ]
    return table(["peer", *asked], rows)


def _verdict(mine: Results) -> str:
    failure = mine.failure()
    if failure:
        return _short(failure)
    wrong = [
        f"{HOWS[how]}: {_short(found)}"
        for result in mine.good()
        for how, found in result.items()
        if how in HOWS and found != "equal"
    ]
    return "; ".join(wrong) or "equal"
