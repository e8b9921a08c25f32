"""The examples, each run as a person runs it: as a script, in a process of its own.

Only what they print and leave behind is judged; their insides are theirs.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contention import Script
from contention import run as run_script
from optional import needs_torch
from same import assert_same

import genesis

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT = 300

pytestmark = needs_torch


def run(name: str, *args: str, folder: Path, warnings: str = "error") -> str:
    command = [sys.executable, "-W", warnings, EXAMPLES / name, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.glob(".*.genesis-*")) == []
    return done.stdout


def test_every_example_has_a_test() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []


def test_basic(tmp_path: Path) -> None:
    output = run("basic.py", folder=tmp_path)
    assert int(re.search(r"knows (\d+) of 1797", output)[1]) > 1500


def test_training_checkpoints(tmp_path: Path) -> None:
    output = run("training_checkpoints.py", folder=tmp_path)
    names = [f"checkpoint_epoch_{epoch}.pth" for epoch in (0, 10, 20, 30)]
    assert f"saved {' '.join(names)}\n" in output
    assert "loaded epoch 30" in output


def test_complete_state(tmp_path: Path) -> None:
    output = run("complete_state.py", folder=tmp_path)
    first, second = re.findall(r"run: +(.+)", output)
    assert len(first.split()) == 10
    assert first == second


def test_best_model(tmp_path: Path) -> None:
    output = run("best_model.py", folder=tmp_path)
    found = re.search(r"best loss (\d\.\d{4}), loaded (\d\.\d{4})", output)
    assert found[1] == found[2]


def test_error_handling(tmp_path: Path) -> None:
    output = run("error_handling.py", folder=tmp_path)
    for line in (
        r"checkpoint\.pth: True",
        r"missing\.pth: False",
        r"checkpoint\.pth: Checkpoint is valid",
        r"flipped\.pth: Error validating checkpoint: .*checksum.*",
        r"TruncatedError: .*cut\.pth: .*",
        r"ChecksumError: .*flipped\.pth: .*",
        r"NotACheckpointError: .*foreign\.pth: .*",
        r"FileNotFoundError: .*missing\.pth.*",
        r"UnpicklableStateError: cannot save state\['position'\]\[1\]: .*",
        r"RecoveredFromBackupWarning: .*flipped\.pth.*",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), f"no line {line} in:\n{output}"


def test_resume_after_a_kill_gives_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    text = (EXAMPLES / "resume.py").read_text()
    assert len(text.splitlines()) <= 30
    sources = {}
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        sources[name] = f"import os; os.chdir({str(tmp_path / name)!r})\n{text}"
    # Not before the fourth step, when the first save is durable for certain.
    last = random.randrange(4, 58)
    told = f"killed after step {last}"
    with Script(sources["calm"]) as calm, Script(sources["killed"]) as killed:
        found = [killed.line() for _ in range(last)]
        os.killpg(killed.process.pid, signal.SIGKILL)  # with its workers, which hold its output
        status, rest, errors = killed.end()
        lines = [calm.line() for _ in range(58)]
        assert calm.end() == (0, "", "")
    assert (status, errors) == (-signal.SIGKILL, ""), told
    found += rest.splitlines()  # of steps that it made before it died
    status, rest, errors = run_script(sources["killed"])
    assert (status, errors) == (0, ""), told
    again = rest.splitlines()
    # It went on from a save of the killed run, and every step has its loss to the last bit.
    assert len(lines) - len(found) <= len(again) < len(lines), told
    assert found == lines[: len(found)], told
    assert again == lines[len(lines) - len(again) :], told
    one, other = (genesis.load(tmp_path / name / "run.pth") for name in sources)
    for part in ("model", "optimizer", "schedule", "scaler"):
        assert_same(one[part], other[part])


def test_version_management(tmp_path: Path) -> None:
    output = run("version_management.py", folder=tmp_path)
    assert "kept epoch_000005.pth epoch_000006.pth epoch_000007.pth\nloaded epoch 7" in output


def test_trio_trainer(tmp_path: Path) -> None:
    output = run("trio_trainer.py", folder=tmp_path)
    assert re.findall(r"^step (\d+): ", output, re.MULTILINE) == ["20", "40", "60", "80", "100"]
    assert "loaded what was trained" in output


@contextmanager
def async_trainer(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A trainer that goes on until it is told to stop, and its address."""
    args = ["--port=0", "--steps=1000000", f"--folder={folder}"]
    command = [sys.executable, "-W", "error", EXAMPLES / "async_trainer.py", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            yield trainer.stdout.readline().strip(), trainer
        finally:
            trainer.kill()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=LIMIT) as response:
        return response.read()


def status_after(url: str, key: str, step: int, page: str = "status") -> dict[str, Any]:
    """Ask for the status until its `key` is past `step`; each answer is one turn of its loop."""
    while True:
        status = json.loads(get(f"{url}/{page}"))
        if (status[key] or 0) > step:
            return status


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_async_trainer_answers_while_it_trains_and_saves(tmp_path: Path) -> None:
    with async_trainer(tmp_path) as (url, trainer):
        first = status_after(url, "saved_step", 0)
        later = status_after(url, "saved_step", first["saved_step"])
        assert later["step"] > first["step"]

        downloaded = tmp_path / "downloaded.pth"
        downloaded.write_bytes(get(f"{url}/checkpoint"))
        model_state, optimizer_state = genesis.load_checkpoint(downloaded)
        assert sorted(model_state) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        assert optimizer_state["state"][0]["step"] >= later["saved_step"]

        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{url}/elsewhere")
        get(f"{url}/stop")
        last_words = trainer.stdout.read()
        assert trainer.wait(LIMIT) == 0
    step, saved = re.fullmatch(r"step (\d+), loss .*, saved at step (\d+)\n", last_words).groups()
    assert step == saved
    assert genesis.validate_checkpoint(tmp_path / "latest.pth") == (True, "Checkpoint is valid")


@contextmanager
def service(folder: Path) -> Iterator[str]:
    """A real uvicorn with the example in it, and its address."""
    app = Path("serve.py").stem + ":app"
    command = [sys.executable, "-m", "uvicorn", app, f"--app-dir={EXAMPLES}", "--port=0"]
    env = os.environ | {"SERVE_FOLDER": str(folder), "SERVE_WIDTH": "4096"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            said = ""
            while not (found := re.search(r"running on (http://\S+)", said)):
                said += server.stderr.readline() or pytest.fail(said)
            yield found[1]
            server.terminate()
            said += server.stderr.read()
            assert server.wait(LIMIT) in (0, -signal.SIGTERM)
            assert not re.search("Traceback|ERROR", said), said
        finally:
            server.kill()


def ask(url: str, **headers: str) -> tuple[int, Any, bytes]:
    """The answer, asked for again where a save came between."""
    while (answer := asked_once(url, headers))[0] == 503:
        pass
    return answer


def asked_once(url: str, headers: dict[str, str]) -> tuple[int, Any, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=names), timeout=LIMIT
        ) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.headers, refused.read()


def test_serve_hands_out_checkpoints_while_it_trains(tmp_path: Path) -> None:
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    with service(tmp_path) as url:
        first = status_after(url, "saved_step", 0, "state")
        while True:
            status, headers, whole = ask(f"{url}/checkpoint")
            assert (status, headers["Accept-Ranges"]) == (200, "bytes")
            # A save may have ended between the two; then the part is of another file.
            at = len(whole) - 1000
            part = ask(f"{url}/checkpoint", Range=f"bytes={at}-", If_Range=headers["ETag"])
            if part[0] == 206 and part[1]["ETag"] == headers["ETag"]:
                break
        assert part[2] == whole[at:]
        assert part[1]["Content-Range"] == f"bytes {at}-{len(whole) - 1}/{len(whole)}"
        (tmp_path / "downloaded.pth").write_bytes(whole)
        step = genesis.load_metadata(tmp_path / "downloaded.pth")["step"]
        _, optimizer_state = genesis.load_checkpoint(tmp_path / "downloaded.pth")
        assert optimizer_state["state"][0]["step"] == step >= first["saved_step"]

        for span, length in (("bytes=0-9", 10), ("bytes=-7", 7)):
            status, _, some = ask(f"{url}/checkpoint", Range=span)
            assert (status, len(some)) == (206, length)
        assert ask(f"{url}/checkpoint", Range="bytes=0-9", If_Range='"old"')[0] == 200
        assert ask(f"{url}/checkpoint", Range="bytes=1000000000-")[0] == 416
        assert ask(f"{url}/checkpoint", Range="lines=1-2")[0] == 200
        assert status_after(url, "saved_step", step, "state")["step"] > step
    assert genesis.verify(tmp_path / "serve.pth")


def test_lightning_trainer(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    # Lightning warns of its own ways.
    output = run("lightning_trainer.py", "run", folder=tmp_path, warnings="ignore")
    kept, end = output.splitlines()[-2:]
    assert re.fullmatch(r"kept (epoch=\d-step=\d+\.ckpt ){2}last\.ckpt", kept)
    assert re.fullmatch(r"step 90; the best is of epoch [45], sound and loaded", end)


def test_huggingface_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    output = run("huggingface_trainer.py", "run", folder=tmp_path, warnings="ignore")
    assert "steps kept: [60, 80] " in output.splitlines()[-1]
    assert len(list((tmp_path / "run").glob("checkpoint-*.pth"))) == 2


def test_distributed_trainer(tmp_path: Path) -> None:
    """With real torchrun; the second start has another number of ranks."""
    fsdp = pytest.importorskip("torch.distributed.fsdp", reason="torch has no distributed")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("an older torch, without FSDP2")
    for ranks, steps in ((2, "0 to 30"), (1, "30 to 60")):
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
        command = [sys.executable, "-W", "ignore", *launch, EXAMPLES / "distributed_trainer.py"]
        done = subprocess.run(
            [*command, "run"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{ranks} ranks: step {steps}, loss \d\.\d+$", done.stdout, re.MULTILINE)
        assert len(list((tmp_path / "run").glob("rank*.pth"))) == ranks


def test_demo_survives_its_kill(tmp_path: Path) -> None:
    output = run("demo.py", "--steps=30", "--every=5", "--width=1500", folder=tmp_path)
    killed_at = int(re.search(r"while step (\d+) was being saved", output)[1])
    assert f"resumed from  step {killed_at - 5}, loaded and verified" in output
    assert "weights       the same, bit for bit" in output
    assert list(tmp_path.iterdir()) == []
    assert shape(output) == shape(demo_in_readme())


def demo_in_readme() -> str:
    text = (EXAMPLES.parent / "README.md").read_text()
    return re.search(r"<!-- demo -->\n```\n(.*?)```", text, re.DOTALL)[1]


def shape(output: str) -> list[str]:
    """Lines without their numbers and with single spaces."""
    return [" ".join(re.sub(r"[\d.,]+", "#", line).split()) for line in output.splitlines()]
