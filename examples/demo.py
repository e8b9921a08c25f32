"""Kill a training run in the middle of a save, resume it, and end with the same weights.

Trains a classifier on scikit-learn's digits twice: once undisturbed, and once killed with SIGKILL
while a checkpoint is being written, then resumed. Fails unless both end with the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import genesis

LATEST = "latest.pth"
FINAL = "final.pth"
BATCH = 128


def main() -> None:
    options = parse_options()
    if options.worker:
        Run(options).train()
        return
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=".") as folder:
        compare(options, Path(folder))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80, help="training steps (%(default)s)")
    parser.add_argument("--every", type=int, default=8, help="steps per save (%(default)s)")
    parser.add_argument("--width", type=int, default=3200, help="of the model (%(default)s)")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- The training run -----------------------------------------------------------------------------


class Run:
    """One training process: starts where the checkpoint in its folder left off, if there is one."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        self.name, self.steps, self.every = options.worker, options.steps, options.every
        self.path = options.folder / LATEST
        self.images, self.labels, self.test_images, self.test_labels = digits()
        self.model = classifier(options.width)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.scheduler = LambdaLR(self.optimizer, warm_up_then_cosine(10, self.steps))
        self.order = torch.empty(0, dtype=torch.long)
        self.step = 0
        self.stalls: list[float] = []
        self.saves: list[genesis.SaveReport] = []

    def train(self) -> None:
        if self.path.exists():
            self.resume()
        genesis.prewarm(self.state())
        started = time.perf_counter()
        pending: genesis.SaveFuture | None = None
        for _ in progress(range(self.step, self.steps), self):
            self.train_one_batch()
            if self.step % self.every == 0:
                pending = self.save(pending)
        seconds = time.perf_counter() - started
        self.saves.append(pending.result())
        genesis.save(self.state(), self.path.with_name(FINAL))
        report(
            "finished",
            seconds=seconds,
            stalls=self.stalls,
            bytes=sum(save.bytes for save in self.saves),
            accuracy=self.accuracy(),
        )

    def train_one_batch(self) -> None:
        first = self.step * BATCH % (len(self.images) // BATCH * BATCH)
        if first == 0:
            self.order = torch.randperm(len(self.images))
        batch = self.order[first : first + BATCH]
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.images[batch]), self.labels[batch])
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def save(self, pending: genesis.SaveFuture | None) -> genesis.SaveFuture:
        """Save in the background. Training waits for two things, and the demo times both: that the
        save before this one is durable, and that this one's state is captured."""
        started = time.perf_counter()
        if pending is not None:
            self.saves.append(pending.result())
        report("saving", step=self.step)
        pending = genesis.save(self.state(), self.path, background=True)
        self.stalls.append(time.perf_counter() - started)
        return pending

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "schedule": self.scheduler.lr_lambdas,  # functions: the reason genesis has dill
            "order": self.order,
            "rng": torch.get_rng_state(),
        }

    def resume(self) -> None:
        started = time.perf_counter()
        state = genesis.load(self.path)
        report("resumed", step=state["step"], seconds=time.perf_counter() - started)
        self.step, self.order = state["step"], state["order"]
        self.scheduler = LambdaLR(self.optimizer, state["schedule"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])

    @torch.no_grad()
    def accuracy(self) -> float:
        self.model.eval()
        return (self.model(self.test_images).argmax(1) == self.test_labels).float().mean().item()


def digits() -> tuple[torch.Tensor, ...]:
    """1,500 images to train on and 297 to test on, 64 grey values each."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def classifier(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(width, 10),
    )


def warm_up_then_cosine(warm_up: int, steps: int) -> Callable[[int], float]:
    return lambda step: min((step + 1) / warm_up, (1 + math.cos(math.pi * step / steps)) / 2)


def progress(steps: Iterable[int], run: Run) -> Iterable[int]:
    """A progress bar where there is a terminal and tqdm to draw it with."""
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, run.name, initial=run.step, total=run.steps, disable=None, leave=False)


def report(event: str, **facts: object) -> None:
    """Tell the parent process."""
    print(json.dumps({"event": event, **facts}), flush=True)


# --- The experiment -------------------------------------------------------------------------------


def compare(options: argparse.Namespace, folder: Path) -> None:
    print(f"1. an uninterrupted run: {options.steps} steps, a save every {options.every}")
    calm = finish(start(options, folder, "uninterrupted"))
    print("2. the same run, killed with SIGKILL in the middle of a save")
    killed_at = start_and_kill(options, folder, at=options.steps // 2)
    print("3. the killed run, resumed")
    resumed = finish(start(options, folder, "resumed"))
    same = same_bits(*(genesis.load(folder / name / FINAL) for name in ("uninterrupted", "killed")))
    print_table(calm["finished"], resumed["finished"])
    print(f"killed        while step {killed_at} was being saved")
    print(f"resumed from  step {resumed['resumed']['step']}, ", end="")
    print(f"loaded and verified in {resumed['resumed']['seconds'] * 1e3:.0f} ms")
    print(f"accuracy      {calm['finished']['accuracy']:.1%} on images not trained on")
    print(f"weights       {'the same, bit for bit' if same else 'DIFFERENT'}")
    if not same or resumed["resumed"]["step"] != killed_at - options.every:
        sys.exit("the resumed run is not what the uninterrupted run was")


def start(options: argparse.Namespace, folder: Path, name: str) -> subprocess.Popen[str]:
    place = folder / ("uninterrupted" if name == "uninterrupted" else "killed")
    place.mkdir(exist_ok=True)
    sizes = [f"--{key}={getattr(options, key)}" for key in ("steps", "every", "width")]
    command = [sys.executable, __file__, f"--worker={name}", f"--folder={place}", *sizes]
    # Sums come out the same bit for bit only on the same number of threads, which the library
    # underneath may otherwise choose anew when the machine is busy.
    fixed = {"MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | fixed)


def finish(worker: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    """Wait for a run; return its last report of each event."""
    reports = {}
    with worker:
        for line in worker.stdout or ():
            fact = json.loads(line)
            reports[fact["event"]] = fact
    if worker.returncode > 0:
        sys.exit(f"a training run failed with exit status {worker.returncode}")
    return reports


def start_and_kill(options: argparse.Namespace, folder: Path, at: int) -> int:
    """Kill a run while it writes a checkpoint, at step `at` or later; return that step.

    A kill that comes an instant too late, when the new file already stands in its place, proves
    nothing: the run then goes on from there and is killed in a later save.
    """
    for target in range(at, options.steps, options.every):
        worker = start(options, folder, "killed")
        step = wait_for_save(worker, target)
        mid_save = kill_while_writing(worker, folder / "killed")
        reports = finish(worker)
        if mid_save:
            return reports.get("saving", {"step": step})["step"]
        if "finished" in reports:
            break
    sys.exit("every save was over before it could be interrupted: try a larger --width")


def wait_for_save(worker: subprocess.Popen[str], step: int) -> int:
    for line in worker.stdout or ():
        fact = json.loads(line)
        if fact["event"] == "saving" and fact["step"] >= step:
            return fact["step"]
    sys.exit(f"the run ended before it saved step {step}")


def kill_while_writing(worker: subprocess.Popen[str], place: Path) -> bool:
    """Kill the process as soon as the temporary file of a save is there. Return whether that file
    was still there when the process was dead, so that the save was cut off for certain."""
    while worker.poll() is None:
        if written := list(place.glob(f".{LATEST}.genesis-*.tmp")):
            worker.kill()
            worker.wait()
            return written[0].exists()
    return False


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return callable(a) or bool(a == b)  # of functions, the schedule is not a result


def print_table(calm: dict[str, Any], resumed: dict[str, Any]) -> None:
    print()
    print("run            checkpoints     bytes  median stall  worst stall  share of training time")
    for name, run in (("uninterrupted", calm), ("resumed", resumed)):
        stalls = run["stalls"]
        print(
            f"{name:13}  {len(stalls):11}  {run['bytes'] / 1e6:5,.0f} MB"
            f"  {statistics.median(stalls) * 1e3:9.1f} ms  {max(stalls) * 1e3:8.1f} ms"
            f"  {sum(stalls) / run['seconds']:22.2%}"
        )
    print()


if __name__ == "__main__":
    main()
