"""The command line, run as a person runs it: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from contention import litter
from optional import needs_torch, torch

import genesis
from genesis.retention import LastN

typer = pytest.importorskip("typer")

from genesis.cli import app  # noqa: E402

# The options of each command, beside --help.
COMMANDS = {
    "bench": "--size --tensors --repeat --dir --plot --json",
    "convert": "--to --drop --overwrite --trust",
    "diff": "--json --trust",
    "inspect": "--json",
    "ls": "--name --metric --mode --json",
    "prune": "--keep-last --keep-best --keep-every --name --dry-run",
    "recover": "",
    "report": "--output -o --name --metric --mode",
    "verify": "--quiet -q",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    manager = genesis.CheckpointManager(tmp_path, keep=LastN(9))
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        manager.save(step, {"w": np.full(3, step), "step": step}, metrics={"loss": loss})
    return tmp_path


def file(folder: Path, step: int) -> Path:
    return folder / f"epoch_{step:06d}.pth"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str) -> None:
    assert "Usage" in run(command, "--help")
    assert command in run("--help")


def test_the_help_says_what_each_command_and_option_is_for() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        options = [word for each in command.params for word in each.opts if word[0] == "-"]
        assert options == COMMANDS[name].split()
        told = [command.help.splitlines()[0], *(each.help for each in command.params)]
        assert all(text[0].isupper() and text.endswith(".") for text in told), told


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> set[str]:
        place = str(len(words.split(" ")) - 1)
        asked = {"_GENESIS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
        done = subprocess.run(
            [sys.executable, "-c", "from genesis.cli import app; app(prog_name='genesis')"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
        )
        return set(done.stdout.split())

    assert completed("genesis re") == {"recover", "report"}
    assert "--keep-last" in completed("genesis prune --keep")
    assert "--show-completion" in run("--help")


def test_it_is_a_module_and_a_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "genesis", "verify", folder], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "3 files, 0 not sound")
    assert run("--version") == f"{genesis.__version__}\n"


def test_without_typer_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['typer'] = None; from genesis.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'genesis-checkpoint[cli]'" in done.stderr


def test_inspect(folder: Path) -> None:
    shown = run("inspect", file(folder, 1))
    for part in ("1 tensors and arrays", "step 1, saved", "loss 1", "<i8", "24 B", "step"):
        assert part in shown
    found = json.loads(run("inspect", "--json", file(folder, 1)))
    assert (found["arrays"][0]["path"], found["metrics"]) == ("w", {"loss": 1.0})


def test_verify(folder: Path) -> None:
    assert run("verify", "-q", folder) == "3 files, 0 not sound\n"
    damage(file(folder, 2))
    shown = run("verify", folder, status=1)
    assert f"ok      {file(folder, 0)}" in shown
    assert f"DAMAGED {file(folder, 2)}: " in shown
    assert "at byte 0" in shown
    assert "there is no file" in run("verify", folder / "none", status=1)


def test_ls(folder: Path) -> None:
    (folder / "epoch_000004.pth").write_bytes(file(folder, 2).read_bytes()[:-5])
    shown = run("ls", folder).splitlines()
    assert "best" in shown[2]
    assert "latest" in shown[3]  # the newest whose ends are whole
    assert "latest" not in shown[4]
    assert "ends without its footer" in shown[4]
    assert shown[-1].startswith("4 checkpoints")
    assert [each["step"] for each in json.loads(run("ls", "--json", folder))] == [0, 1, 2, 4]
    assert "is no folder" in run("ls", folder / "x", status=2)


def test_diff(folder: Path) -> None:
    shown = run("diff", file(folder, 0), file(folder, 2), status=1)
    assert "changed" in shown
    assert "2 differences, 0 the same" in shown
    assert "0 differences" in run("diff", file(folder, 0), file(folder, 0))
    found = json.loads(run("diff", "--json", file(folder, 0), file(folder, 2), status=1))
    assert found["changes"][0]["max_abs"] == 2.0


def test_no_command_runs_code_of_a_file(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path(tmp_path / "ran").touch, ()

    path = tmp_path / "f.pth"
    path.write_bytes(pickle.dumps({"evil": Evil(), "a": 1}))
    run("inspect", path)
    run("verify", path)
    run("diff", path, path, status=2)
    run("convert", path, tmp_path / "g.pth", status=2)
    (tmp_path / "epoch_000001.pth").write_bytes(path.read_bytes())
    run("ls", tmp_path)
    run("report", tmp_path, "-o", tmp_path / "r.html")
    run("recover", path)
    run("prune", tmp_path, "--keep-last", 1)
    assert not (tmp_path / "ran").exists()
    run("diff", "--trust", path, path)
    assert (tmp_path / "ran").exists()


def test_prune(folder: Path) -> None:
    shown = run("prune", folder, "--keep-last", "1", "--dry-run")
    assert f"would remove {file(folder, 0)}" in shown
    assert "2 checkpoints" in shown
    run("prune", folder, "--keep-last", "1", "--keep-best", "1:loss")
    assert genesis.CheckpointManager(folder).steps() == [1, 2]
    run("prune", folder, "--keep-best", "1:loss:max", "--keep-every", "5")
    assert genesis.CheckpointManager(folder).steps() == [2]
    assert "say what to keep" in run("prune", folder, status=2)
    assert "N:METRIC" in run("prune", folder, "--keep-best", "loss", status=2)


def test_recover(folder: Path) -> None:
    path = file(folder, 1)
    assert "nothing to recover" in run("recover", path)
    whole = path.read_bytes()
    damage(path)
    assert "neither a sound backup nor" in run("recover", path, status=2)
    (folder / "epoch_000001.pth.genesis.bak").write_bytes(whole)
    assert "is now what was in" in run("recover", path)
    assert path.read_bytes() == whole
    assert litter(folder) == []
    assert (folder / "epoch_000001.pth.damaged").exists()
    path.unlink()
    (folder / ".epoch_000001.pth.genesis-aaaaaabbbbbbbbbbbb.tmp").write_bytes(whole)
    run("recover", path)
    assert path.read_bytes() == whole


@needs_torch
@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt", "genesis"])
def test_convert_there_and_back(tmp_path: Path, ending: str) -> None:
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    state = {"model": {"layer.weight": torch.randn(3, 2), "layer.bias": torch.ones(2)}}
    genesis.save(state, tmp_path / "a.pth", clear=False)
    run("convert", tmp_path / "a.pth", tmp_path / f"b.{ending}")
    run("convert", tmp_path / f"b.{ending}", tmp_path / "c.pth")
    back = genesis.load(tmp_path / "c.pth")["model"]
    assert all(np.array_equal(back[key], tensor) for key, tensor in state["model"].items())
    assert list(tmp_path.glob(".*")) == []


def test_what_a_format_cannot_hold_is_named(folder: Path) -> None:
    target = folder / "out.npz"
    shown = run("convert", file(folder, 1), target, status=2)
    assert "could not hold step (int); add --drop" in shown
    assert not target.exists()
    run("convert", "--drop", file(folder, 1), target)
    assert "is there already; add --overwrite" in run("convert", file(folder, 1), target, status=2)
    assert "says no format" in run("convert", file(folder, 1), folder / "x.bin", status=2)


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    genesis.save({"\x1b[2J": np.ones(1), "[bold]": 1}, tmp_path / "f.pth")
    shown = run("inspect", tmp_path / "f.pth")
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert "[bold]" in shown
