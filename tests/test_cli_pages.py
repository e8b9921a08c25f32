"""What the command line draws: the bench's plot and the report, looked at as a browser does."""

from __future__ import annotations

import html.parser
import json
import math
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from commands import run

import genesis
from genesis.retention import EveryN, LastN

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
EVIL = "<script>document.title='x'</script>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run & <b>"
    manager = genesis.CheckpointManager(folder, keep=LastN(3) | EveryN(5))
    for step in range(12):
        metrics = {"loss": 3 / (step + 1), EVIL: math.inf if step == 10 else step}
        manager.save(step, {"w": np.full(9, step)}, metrics=metrics, background=step != 11)
    manager.flush()
    newest = folder / "epoch_000011.pth"
    newest.write_bytes(newest.read_bytes()[:-1])
    return folder


class Page(html.parser.HTMLParser):
    """What a page loads, runs and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_report_is_one_page_that_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert run("report", folder, "-o", path).startswith(f"{path}: ")
    page = Page(path.read_text())
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 5  # what is kept, size, stall, and two metrics
    assert page.tags.count("rect") == 1 + 4
    words = " ".join(page.words)
    for part in ("5 of 12 saved", "step 10", EVIL, "run & <b>", "median stall", "loss 3"):
        assert part in words
    assert "ends without its footer" in words
    # Of step 10 the second metric is infinite, and of step 11 nothing can be read.
    assert page.tags.count("circle") == 4 + 4 + 4 + 3


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_the_report(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run("report", folder, "-o", path)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("<svg") == 5
    assert "<title>x</title>" not in done.stdout  # no name of a metric ran
    assert "CONSOLE" not in done.stderr


def test_a_report_of_an_empty_folder(tmp_path: Path) -> None:
    run("report", tmp_path, "-o", tmp_path / "r.html")
    assert "0 of 0 saved" in (tmp_path / "r.html").read_text()
    assert "is no folder" in run("report", tmp_path / "none", status=2)


def test_the_stall_of_a_background_save_stands_in_its_file(folder: Path) -> None:
    found = {each.step: each for each in genesis.CheckpointManager(folder).all()}
    assert 0 < (found[10].stall or 0) < 60
    assert found[11].stall is None
    genesis.CheckpointManager(folder).save(12, {"n": 1})  # not in the background
    assert genesis.CheckpointManager(folder).all()[-1].stall is None
    assert genesis.inspect(found[10].path).metadata == {}


def test_bench_measures_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "stall.svg"
    options = ("--size", 2, "--repeat", 2, "--dir", tmp_path, "--plot", plot)
    shown = run("bench", *options)
    assert "genesis.save, background" in shown
    assert "until written" in shown
    drawing = ET.parse(plot).getroot()
    bars = drawing.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == shown.count(" ms  ") // 3
    assert [path.name for path in tmp_path.iterdir()] == ["stall.svg"]
    rows = json.loads(run("bench", "--json", *options[:6]))["rows"]
    assert all(len(row["stall"]) == 2 and min(row["stall"]) > 0 for row in rows)
    assert all(map(float.__le__, rows[-1]["stall"], rows[-1]["durable"]))


def test_bench_says_what_it_cannot_do(tmp_path: Path) -> None:
    assert "needs 2,000.0 TB" in run("bench", "--size", 10**9, "--dir", tmp_path, status=2)
    assert "name it stall.svg" in run("bench", "--plot", "stall.png", status=2)
    assert "is no folder" in run("bench", "--dir", tmp_path / "none", status=2)
