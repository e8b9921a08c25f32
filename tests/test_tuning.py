"""The switches: what is turned off is not used, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optional import needs_torch, torch

import genesis
from genesis import _tuning

HEART = ("save_load", "background", "loads", "numpy_objects", "torch_objects")


@pytest.mark.skipif(_tuning.VARIABLE in os.environ, reason="this is that run")
def test_the_heart_of_the_suite_passes_with_every_optimisation_off() -> None:
    """Whoever turns one off to find a fault must not meet another."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"{here}/test_{name}.py" for name in HEART)],
        env=os.environ | {_tuning.VARIABLE: "off"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_words_of_the_variable() -> None:
    assert _tuning.read("") == _tuning.Switches()
    some = _tuning.read("-userfaultfd, -direct_io")
    assert (some.userfaultfd, some.direct_io, some.ledger) == (False, False, True)
    assert not any(vars(_tuning.read("off")).values())


def test_an_unknown_word_lists_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"GENESIS_TUNING: '-directio' is none of: off .*-direct_"):
        _tuning.read("-directio")


@needs_torch
def test_a_private_interface_is_given_up_at_its_first_surprise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from genesis._pickle import torch_plain

    calls: list[object] = []

    def surprise(*args: object, **_: object) -> Any:
        calls.append(args)
        raise TypeError("the guards of this torch take something else")

    monkeypatch.setattr(_tuning, "on", _tuning.Switches())
    monkeypatch.setattr(torch_plain, "on", _tuning.on)
    monkeypatch.setattr(torch_plain, "TensorGuards", surprise)
    monkeypatch.setattr(torch_plain, "_recent", ())
    state = {str(number): torch.full((3,), number) for number in range(100)}
    for _ in range(3):
        genesis.save(state, tmp_path / "f", clear=False)
    assert len(calls) == 1
    assert "goes on without guards: TypeError" in caplog.text
    assert torch.equal(genesis.load(tmp_path / "f")["7"], state["7"])
