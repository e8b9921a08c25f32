"""Runs jobs, each in a process of its own, in rounds, with the order shuffled in each.

Ends only processes that it started itself.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import procfs
from .peers import peer_named

HERE = Path(__file__).resolve().parent.parent
"""The folder that holds this package."""
Job = dict[str, Any]
Result = dict[str, Any]
SAMPLE_SECONDS = 0.005


@dataclass
class Place:
    """Where checkpoints and logs go."""

    folder: Path
    timeout: float = 900.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kind = procfs.file_system(str(self.folder))
        if kind in ("tmpfs", "ramfs"):
            raise SystemExit(f"{self.folder} is on {kind}, which is no disk: give another --dir")


def run(job: Job, place: Place) -> Result:
    """Run one job; what goes wrong in it is its result."""
    refused = _too_large(job)
    if refused:
        return {"refused": refused}
    with tempfile.TemporaryDirectory(dir=place.folder, ignore_cleanup_errors=True) as folder:
        return _run_in(folder, job, place)


def _too_large(job: Job) -> str | None:
    copies = 1.2 + max(peer_named(job["peer"]).extra_copies, 0.2)
    # The copy floor's arena comes on top, for the jobs that have one.
    need = job["nbytes"] * copies + (min(job["nbytes"], 1 << 30) if job["mode"] == "saves" else 0)
    free = procfs.available_bytes()
    if need < free:
        return None
    return f"would need {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"


def _run_in(folder: str, job: Job, place: Place) -> Result:
    data, result = os.path.join(folder, "data"), os.path.join(folder, "result.json")
    os.mkdir(data)
    log = os.path.join(folder, "log.txt")
    command = [
        sys.executable,
        "-m",
        f"{__package__}.worker",
        json.dumps(job | {"folder": data}),
        result,
    ]
    with open(log, "wb") as errors, _process(command, errors) as process:
        sampled = _attend(process, place.timeout)
    if not os.path.exists(result):
        return _told({"error": f"ended with {process.returncode}: {_last_line(log)}"})
    return _told(json.loads(Path(result).read_text())) | sampled


@contextmanager
def _process(command: list[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # The whole group: some peers start processes that outlive their parent.
        _kill_group(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _kill_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _attend(process: subprocess.Popen[str], timeout: float) -> Result:
    """Answer the worker's marks, sampling memory between them, until it ends."""
    timer = threading.Timer(timeout, _kill_group, (process,))
    timer.start()
    sampler = _Sampler(process.pid)
    try:
        assert process.stdout
        assert process.stdin
        for line in process.stdout:
            if line == "mark baseline\n":
                sampler.start()
            elif line == "mark end\n":
                sampler.stop()
            else:
                continue
            process.stdin.write("\n")
            process.stdin.flush()
        process.wait()
    except BrokenPipeError:
        process.wait()
    finally:
        timer.cancel()
        sampler.stop()
    return sampler.result()


class _Sampler:
    """Samples the memory of a process and its descendants from outside, on a thread."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._baseline = self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._baseline = procfs.proportional_bytes(self._process)
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def result(self) -> Result:
        if self._thread is None:
            return {}
        return {"peak_family": max(0, self._peak - self._baseline)}

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, procfs.proportional_bytes(self._process))


def _last_line(log: str) -> str:
    lines = Path(log).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"


def _told(result: Result) -> Result:
    """What a result says in words, without the paths of this machine and short."""
    return {
        key: _told(value)
        if isinstance(value, dict)
        else re.sub(r"(: )?'?/[^\s:']*/[^\s:']*'?", "", value)[:300]
        if isinstance(value, str)
        else value
        for key, value in result.items()
    }


# ---------------------------------------------------------------------------------- rounds


def run_rounds(
    jobs: list[Job], rounds: int, place: Place, tell: Callable[[str], None] = print
) -> list[Result]:
    """Run every job once in each round; a result for each job and round, in the order run.

    A job that was refused, or failed, is not tried again.
    """
    order = random.Random(0)
    out: set[str] = set()
    results: list[Result] = []
    for number in range(rounds):
        for job in order.sample(jobs, len(jobs)):
            key = json.dumps(job, sort_keys=True)
            if key in out:
                continue
            start = time.perf_counter()
            result = run(job, place)
            if failure(result):
                out.add(key)
            results.append({"job": job, "round": number, "result": result})
            tell(_line(job, number, result, time.perf_counter() - start))
    return results


def failure(result: Result) -> str | None:
    """Why a result holds no measurement, or None."""
    for kind in ("unavailable", "refused", "error"):
        if kind in result:
            return f"{kind}: {result[kind]}" if kind != "refused" else str(result[kind])
    return None


def _line(job: Job, number: int, result: Result, seconds: float) -> str:
    count = f"/{job['count']}" if job.get("count") else ""
    who = f"{job['peer']}, {job['choice']}" if "choice" in job else job["peer"]
    name = f"{job['mode']:8} {job['state']}{count:8} {job['nbytes'] / 1e6:6.0f} MB  {who}"
    return f"  {number + 1}  {name:70} {seconds:5.1f} s  {failure(result) or ''}".rstrip()


@contextmanager
def temporary_place(directory: str | None) -> Iterator[Place]:
    """A folder for checkpoints: under `directory`, or beside the benchmarks, which is a disk."""
    parent = Path(directory) if directory else HERE / ".work"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        yield Place(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
