"""Prints what the fault tests did, as a table: kinds of save down, kinds of fault across.

The numbers are runs that met a fault; for power cuts, different disks that a cut left. It reports
and checks nothing; docs/reliability.md quotes it.
"""

from __future__ import annotations

from collections import Counter

import pytest

from . import harness

_FOR_READERS = {
    "cut": "cut (disks)",
    "ext4-cut": "ext4 cut",
    "file-size": "file size",
    **dict.fromkeys(("read-only-mount", "immutable", "no-permission", "mounted-file"), "refused"),
}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for result in harness.RESULTS:
        number = result["states"] or result["points"]
        counts[result["scenario"], _column(result["kind"])] += number
    if counts:
        terminalreporter.section("faults met by each kind of save, all survived")
        for line in _table(counts):
            terminalreporter.write_line(line)


def _column(kind: str) -> str:
    word = kind.split()[0]
    return _FOR_READERS.get(word, word)


def _table(counts: Counter[tuple[str, str]]) -> list[str]:
    rows = list(dict.fromkeys(scenario for scenario, _ in counts))
    columns = list(dict.fromkeys(column for _, column in counts))
    lines = [["", *columns, "all"]]
    for row in rows:
        cells = [counts[row, column] for column in columns]
        lines.append([row, *(str(cell or "") for cell in cells), str(sum(cells))])
    sums = [sum(counts[row, column] for row in rows) for column in columns]
    lines.append(["all", *map(str, sums), str(sum(sums))])
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in lines
    ]
