"""The README does what it says: its programs run, its links and commands lead somewhere.

That its picture of the demo is what the demo prints is checked in test_examples.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from optional import needs_torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_is_a_program_for_each_way_to_save() -> None:
    assert len(PROGRAMS) == 6
    for call in (
        "save_checkpoint(",
        "background=True",
        "asyncio.run(",
        "trio.run(",
        "TrainState(",
        "torch.save(",
    ):
        assert any(call in program for program in PROGRAMS), call


@needs_torch
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program_runs(number: int, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[number])
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.pth")) != []
    assert list(tmp_path.rglob(".*")) + list(tmp_path.rglob("*.bak")) == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 3
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"`make (\w+)`", README)
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(commands)
    for command in commands:
        assert re.search(f"^{command}:", makefile, re.MULTILINE), command
