"""README and documentation do what they say: programs run, links and commands lead somewhere.

That its picture of the demo is what the demo prints is checked in test_examples.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from optional import needs_torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = {
    str(page.relative_to(ROOT)): "\n".join(found)
    for page in PAGES
    if "integrations" not in page.parts  # those are parts of longer ones
    and (found := re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
}
"""The programs of a page, which go on from one another."""


def test_there_is_a_program_for_each_way_to_save() -> None:
    text = "".join(PROGRAMS.values())
    for call in (
        "save_checkpoint(",
        "background=True",
        'capture="deferred"',
        "asyncio.run(",
        "trio.run(",
        "TrainState(",
        "torch.save(",
        "progress=",
    ):
        assert call in text, call


RUN_ALL = """
import logging, os, signal, sys, tempfile
for page, text in eval(sys.stdin.read()).items():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(page, flush=True)
        exec(compile(text, page, "exec"), {"__name__": "__main__"})
        assert any(name.endswith(".pth") for _, _, names in os.walk(".") for name in names), page
        left = [name for _, _, names in os.walk(".") for name in names if name[0] == "."]
        assert not left, (page, left)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.root.handlers.clear()
"""


TORCH_2_4 = "ignore:You are using `torch.load`:FutureWarning"


@needs_torch
def test_the_programs_run(tmp_path: Path) -> None:
    pytest.importorskip("trio")
    assert len(PROGRAMS) >= 8
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCH_2_4, "-c", RUN_ALL],
        cwd=tmp_path,
        input=repr(PROGRAMS),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


API = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))


@pytest.mark.parametrize("module", ["genesis", "genesis.aio", "genesis.retention"])
def test_the_reference_has_every_public_name(module: str) -> None:
    known = set(re.findall(r"^::: (\S+)$", API, re.MULTILINE))
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    aliases = {"genesis.__version__", "genesis.aio.save_async", "genesis.aio.load_async"}
    assert names - known - aliases == set()


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


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
