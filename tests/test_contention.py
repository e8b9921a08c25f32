"""The tests' own means: programs in processes of their own, missing libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from contention import Script
from optional import Missing

TESTS = Path(__file__).parent

SAYS_TWO_LINES = """
import os, sys
os.write(2, b"a first line that is longer\\n")
print("first", flush=True)
sys.stdin.readline()
os.write(2, b"second\\n")
print("second", flush=True)
"""


def test_reading_a_programs_errors_does_not_move_where_it_writes() -> None:
    with Script(SAYS_TWO_LINES) as script:
        script.expect("first")
        assert script.errors() == "a first line that is longer\n"
        script.tell("")
        script.expect("second")
        assert script.errors() == "a first line that is longer\nsecond\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_is_tested_in_a_background_job_too() -> None:
    """What a shell starts with ``&`` ignores SIGINT, and so does what that starts."""
    name = "test_an_interrupt_while_the_state_is_captured_withdraws_the_save"
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    done = subprocess.run(
        [*ignoring, sys.executable, "-m", "pytest", "-q", f"{TESTS}/test_writer.py::{name}"],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "2 passed" in done.stdout, done.stdout


def test_a_library_that_is_not_installed_skips_the_test_that_uses_it() -> None:
    torch = Missing("torch")
    assert not torch
    with pytest.raises(pytest.skip.Exception, match="torch is not installed"):
        torch.ones(2)
