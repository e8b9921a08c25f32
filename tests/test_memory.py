"""How much memory saves and loads take beyond the state itself, and that it does not grow.

Each measurement runs in a process of its own, which says what it found: the highest resident memory
since a mark, as Linux counts it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from contention import run
from optional import needs_torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 1 << 20

TOOLS = """
import gc, json, os, sys, threading
import numpy as np
import genesis
MB = 1 << 20
path = sys.argv[1]
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
def mark():
    "Forget the highest resident memory so far; return the present one."
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")
def join():
    for thread in threading.enumerate():
        if thread.name.startswith("genesis"):
            thread.join()
def facts():
    join()
    gc.collect()
    maps = sum(1 for line in open("/proc/self/maps"))
    return {"memory": status("VmRSS"), "descriptors": len(os.listdir("/proc/self/fd")),
            "maps": maps, "threads": threading.active_count(), "objects": len(gc.get_objects())}
def state(size, parts=8):
    return {f"x{n}": np.full(size // parts, n, np.uint8) for n in range(parts)}
genesis.save(state(MB), path + ".first")
genesis.load(path + ".first")
"""


def measure(source: str, *arguments: object) -> Any:
    status, output, errors = run(TOOLS + source, *arguments)
    assert (status, errors) == (0, "")
    return json.loads(output)


PEAK = """
import torch
size = int(sys.argv[2])
made = state(size)
if sys.argv[3] == "torch":
    made = {name: torch.from_numpy(array) for name, array in made.items()}
if sys.argv[3] == "scattered":
    made = {name: array[::2] for name, array in made.items()}
before = mark()
{save}
print(status("VmHWM") - before)
"""


@needs_torch
@pytest.mark.parametrize("kind", ["NumPy", "torch", "scattered"])
@pytest.mark.parametrize("size", [200 * MB, 600 * MB])
def test_a_plain_save_takes_the_same_little_memory_for_any_size(
    tmp_path: Path, size: int, kind: str
) -> None:
    source = PEAK.replace("{save}", "genesis.save(made, path, clear=False)")
    assert measure(source, tmp_path / "f", size, kind) <= 128 * MB


@needs_torch
@pytest.mark.parametrize("capture", ["copy", "deferred"])
def test_a_background_save_takes_one_copy_of_the_state(tmp_path: Path, capture: str) -> None:
    size = 400 * MB
    save = f"genesis.save(made, path, background=True, clear=False, capture={capture!r}).result()"
    source = PEAK.replace("{save}", f"for _ in range(3): {save}")
    assert measure(source, tmp_path / "f", size, "torch") <= 1.05 * size + 64 * MB


@needs_torch
def test_a_verified_load_takes_no_more_than_what_it_loads(tmp_path: Path) -> None:
    size = 400 * MB
    load = "genesis.save(made, path); made.clear(); before = mark(); found = genesis.load(path)"
    assert measure(PEAK.replace("{save}", load), tmp_path / "f", size, "torch") <= size + 64 * MB


@needs_torch
@needs_torch
@pytest.mark.parametrize("wrap", ["Parameter", "Tensor"])
def test_a_save_keeps_the_state_from_no_one(tmp_path: Path, wrap: str) -> None:
    """Its memory is freed when the caller drops it, not when the collector comes by."""
    source = f"""
import torch, weakref
wrap = torch.nn.{wrap} if {wrap!r} == "Parameter" else torch.as_tensor
gc.disable()
alive = []
for number in range(3):
    arrays = [np.ones(100, np.float32) for _ in range(200)]
    alive += map(weakref.ref, arrays)
    genesis.save([wrap(torch.from_numpy(array)) for array in arrays], path)
    del arrays
print(sum(ref() is not None for ref in alive))
"""
    assert measure(source, tmp_path / "x") == 0


def test_a_part_takes_the_memory_of_that_part(tmp_path: Path) -> None:
    source = """
genesis.save(state(128 * MB, parts=16), path)
genesis.load(path, only="x1")
before = mark()
part = genesis.load(path, only="x3")
print(json.dumps(status("VmHWM") - before))
"""
    assert measure(source, tmp_path / "x") < 8 * MB + 6 * MB


def test_a_mapped_load_reads_nothing_that_is_not_touched(tmp_path: Path) -> None:
    load = (
        "genesis.save(made, path); made.clear(); before = mark(); "
        "found = genesis.load(path, mmap=True)"
    )
    source = PEAK.replace("{save}", load)
    assert measure(source, tmp_path / "f", 400 * MB, "torch") <= 48 * MB


KEEP = """
size = int(sys.argv[2])
def make():
    made = {name: state(size // 2, 40) for name in ("model", "optimizer")}
    made["step"] = np.ones(3, "f4")
    if sys.argv[3] == "torch":
        import torch
        for part in (made["model"], made["optimizer"]):
            part.update({name: torch.from_numpy(array) for name, array in part.items()})
        made["step"] = torch.ones(3)
    return made
genesis.save(make(), path)
genesis.load(path, weights_only=eval(sys.argv[4]))
before = mark()
loaded = genesis.load(path, weights_only=eval(sys.argv[4]))
whole = mark() - before
{keep}
print(json.dumps([whole, mark() - before]))
"""


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("kind", ["NumPy", "torch"])
@pytest.mark.parametrize(
    ("keep", "share"),
    [
        ("loaded = loaded['step']", 0),
        ("loaded = loaded['model']", 1 / 2),
        ("del loaded['model']['x7']", 79 / 80),
        ("loaded = [*loaded['model'].values()][::2]", 1 / 4),
    ],
    ids=["a scalar", "a half", "all but one", "a quarter"],
)
def test_what_is_kept_of_a_load_keeps_nothing_else(
    tmp_path: Path, kind: str, keep: str, share: float, weights_only: bool
) -> None:
    size = 80 * MB
    source = KEEP.replace("{keep}", keep)
    whole, kept = measure(source, tmp_path / "f", size, kind, weights_only)
    assert size <= whole <= size + 8 * MB
    assert kept <= share * size + 8 * MB


def test_small_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    make = """
import torch
genesis.save([torch.full((10_000,), float(number)) for number in range(2000)], path)
print(0)
"""
    source = """
import torch
before = mark()
kept = [genesis.load(path)[number] for number in range(8)]
print(status("VmHWM") - before)
"""
    measure(make, tmp_path / "f")
    # Twice the size, not eight times: what is read, and what the C library keeps for the next.
    assert measure(source, tmp_path / "f") <= 240 * MB


LOAD = """
import pickle
def frames(): return [os.urandom(4000) for _ in range(50_000)]
def text(): return ["%07d" % n * 143 for n in range(200_000)]
def large(): return {n: os.urandom(100 * MB) for n in range(2)}
def masked(): return [np.ma.masked_array(np.full(25 * MB, n, "u1"), False) for n in range(4)]
def matrix():
    import warnings
    warnings.simplefilter("ignore")
    return [np.matrix(np.full((5, 5 * MB), n, "u1")) for n in range(8)]
if sys.argv[3] == "make":
    made = globals()[sys.argv[2]]()
    with open(path + ".pickle", "wb") as file:
        pickle.dump(made, file, 5)
    genesis.save({"x": made}, path)
def with_pickle():
    with open(path + ".pickle", "rb") as file:
        return pickle.load(file)
before = mark()
loaded = with_pickle() if sys.argv[3] == "pickle" else genesis.load(path)
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("what", ["frames", "text", "large", "masked", "matrix"])
def test_a_load_takes_little_more_memory_than_pickles(tmp_path: Path, what: str) -> None:
    ways = "make", "pickle", "genesis"
    _, theirs, ours = (measure(LOAD, tmp_path / "f", what, way) for way in ways)
    assert ours <= 1.2 * theirs + 16 * MB


FLAT = """
genesis.save(state(MB), path)
def once(number):
    {work}
for number in range(30):
    once(number)
early = facts()
for number in range(30, 230):
    once(number)
late = facts()
print(json.dumps([early, late]))
"""

WORK = {
    "plain saves": "genesis.save(state(3 * MB), path)",
    "background saves": "genesis.save(state(9 * MB), f'{path}{number % 3}', background=True)",
    "deferred saves": (
        "genesis.save(state(3 * MB), path, background=True, capture='deferred').wait_captured()"
    ),
    "saves of sizes that change": (
        "genesis.save(state((1 + number % 5) * MB), path, background=True)"
    ),
    "saves that dill does": (
        "genesis.save({'f': lambda: number, **state(MB)}, path, background=True)"
    ),
    "saves that fail": """
    try:
        genesis.save({"bad": (n for n in ()), **state(MB)}, path, background=True)
    except genesis.UnpicklableStateError:
        pass
    try:
        genesis.save(state(MB), "/proc/genesis", background=True).result()
    except OSError:
        pass""",
    "saves that are skipped": """
    first = genesis.save(state(MB), path, background=True)
    for _ in range(3):
        genesis.save(state(MB), path, background=True, on_busy="skip")
    first.result()""",
    "loads": "genesis.load(path)",
    "mapped loads": "genesis.load(path, mmap=True)['x0'].sum()",
    "loads of weights only": "genesis.load(path, weights_only=True)",
    "loads that fail": """
    with open(path + 'bad', 'wb') as file:
        file.write(open(path, 'rb').read()[:-1])
    try:
        genesis.load(path + 'bad')
    except genesis.CorruptCheckpointError:
        pass""",
    "awaited saves and loads": """
    import asyncio
    async def main():
        await asyncio.gather(*(genesis.aio.save(state(MB), path) for _ in range(3)))
        await genesis.aio.load(path)
        async for chunk in genesis.aio.stream(path):
            pass
    asyncio.run(main())""",
}


@pytest.mark.parametrize("work", WORK)
def test_200_times_and_nothing_grows(tmp_path: Path, work: str) -> None:
    early, late = measure(FLAT.replace("{work}", WORK[work]), tmp_path / "f")
    assert late["memory"] - early["memory"] <= 12 * MB
    assert late["descriptors"] == early["descriptors"]
    assert late["threads"] == early["threads"] == 1
    # The C library maps memory for as many threads as once ran together; a leak would map 200.
    assert late["maps"] - early["maps"] <= 16
    assert late["objects"] - early["objects"] <= 100
