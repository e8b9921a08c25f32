"""torch.distributed.checkpoint over genesis: real ranks, over gloo, on the CPU.

One job of each size runs all the programs; the damage and the leftovers are looked at in this
process, of one rank.
"""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contention import Script

import genesis

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo here", allow_module_level=True)
pytest.importorskip("torch.distributed.fsdp", reason="an older torch")
if not hasattr(torch.distributed.fsdp, "fully_shard"):
    pytest.skip("an older torch, without FSDP2", allow_module_level=True)

from torch.distributed import checkpoint as dcp  # noqa: E402

from genesis.integrations.distributed import GenesisReader, GenesisWriter  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

BEGIN = """
import resource, signal
mesh = init_device_mesh("cpu", (world,))

def whole(step):
    start = torch.arange(14.0) + 100 * step
    rows, columns = start.view(7, 2), start.view(2, 7)
    return {"rows": rows, "columns": columns, "same": start, "plain": start + 1}

def state(step):
    where = {"rows": [Shard(0)], "columns": [Shard(1)], "same": [Replicate()]}
    made = {name: distribute_tensor(value.clone(), mesh, where[name]) if name in where
            else value.clone() for name, value in whole(step).items()}
    return {"x": made, "step": step, "more": [step, {"name": str(step)}]}

def loaded(path):
    found = state(-1)
    dcp.load(found, storage_reader=GenesisReader(path))
    step = found["step"]
    for name, expected in whole(step).items():
        value = found["x"][name]
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert torch.equal(value, expected), (name, value)
    assert found["more"] == [step, {"name": str(step)}]
    return step

def trained(seed, steps):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    fully_shard(model[0])
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer

def parts(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith("rank"))

def fails(words, *args, **options):
    try:
        dcp.save(*args, **options)
    except dcp.api.CheckpointException as exc:
        assert words in str(exc), exc
        return exc
    raise AssertionError("saved")
"""


class Whole:
    """The state of `BEGIN`, of one rank without a process group."""

    @staticmethod
    def tensors(step: int) -> dict[str, Any]:
        start = torch.arange(14.0) + 100 * step
        return {
            "rows": start.view(7, 2),
            "columns": start.view(2, 7),
            "same": start,
            "plain": start + 1,
        }

    @classmethod
    def state(cls, step: int) -> dict[str, Any]:
        made = {name: value.clone() for name, value in cls.tensors(step).items()}
        return {"x": made, "step": step, "more": [step, {"name": str(step)}]}


def save(folder: Path, step: int) -> None:
    dcp.save(Whole.state(step), storage_writer=GenesisWriter(folder))


def loaded(folder: Path) -> int:
    found = Whole.state(-1)
    dcp.load(found, storage_reader=GenesisReader(folder))
    step: int = found["step"]
    for name, value in Whole.tensors(step).items():
        assert torch.equal(found["x"][name], value), name
    return step


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank*"))


FOUR = """
assert loaded(shared + "/one") == 1
dcp.save(state(4), storage_writer=GenesisWriter(shared + "/four"))
assert loaded(shared + "/four") == 4
assert len(parts(shared + "/four")) == 4
model, optimizer = trained(0, 3)
model_state, optimizer_state = get_state_dict(model, optimizer)
dcp.save({"m": model_state, "o": optimizer_state}, storage_writer=GenesisWriter(shared + "/fsdp"))
full = {name: value.full_tensor() for name, value in model.state_dict().items()}
if rank == 0:
    torch.save(full, shared + "/full.pt")
"""

TWO = {
    "what four ranks and what one saved": """
assert loaded(shared + "/four") == 4
assert loaded(shared + "/one") == 1
dcp.save(state(2), storage_writer=GenesisWriter(shared + "/two"))
""",
    "a model and optimizer of FSDP2, sharded by four": """
model, optimizer = trained(1, 1)
m, o = get_state_dict(model, optimizer)
dcp.load({"m": m, "o": o}, storage_reader=GenesisReader(shared + "/fsdp"))
set_state_dict(model, optimizer, model_state_dict=m, optim_state_dict=o)
expected = torch.load(shared + "/full.pt")
for name, value in model.state_dict().items():
    assert torch.equal(value.full_tensor(), expected[name]), name
assert next(iter(optimizer.state.values()))["step"] == 3
""",
    "a save in the background, changed meanwhile": """
made = state(7)
future = dcp.async_save(made, storage_writer=GenesisWriter(folder + "/async"))
made["x"]["plain"].zero_()
made["x"]["rows"].to_local().zero_()
future.result()
assert loaded(folder + "/async") == 7
""",
    "a folder is saved to again": """
path, writer = folder + "/again", GenesisWriter("elsewhere")
for step in range(3):
    dcp.save(state(step), storage_writer=writer, checkpoint_id=path)
    assert loaded(path) == step
    assert len(parts(path)) == 2
""",
    "a planner that fails on one rank": """
path = folder + "/failing"
dcp.save(state(1), storage_writer=GenesisWriter(path))
class Planner(dcp.DefaultSavePlanner):
    def resolve_data(self, item):
        if rank == 1:
            raise OSError("no such luck")
        return super().resolve_data(item)
fails("no such luck", state(2), storage_writer=GenesisWriter(path), planner=Planner())
assert loaded(path) == 1
if rank == 0:
    assert len(parts(path)) == 3
dcp.save(state(3), storage_writer=GenesisWriter(path))
assert loaded(path) == 3
assert len(parts(path)) == 2
""",
    "a disk that is full for one rank, be it the coordinator": """
path = folder + "/full"
dcp.save(state(1), storage_writer=GenesisWriter(path))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
none, all_ = (100, resource.RLIM_INFINITY), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
for full in (0, 1):
    if rank == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, none)
    fails("too large", state(2), storage_writer=GenesisWriter(path))
    if rank == full:
        resource.setrlimit(resource.RLIMIT_FSIZE, all_)
    dist.barrier()
    assert loaded(path) == 1
    dist.barrier()
""",
    "what is sharded is refused by a plain save, which names the way": """
try:
    genesis.save(state(1), folder + "/plain")
except genesis.UnpicklableStateError as exc:
    assert "genesis.integrations.distributed" in exc.hint, exc.hint
else:
    raise AssertionError("saved")
""",
}
EACH = """
import traceback
for name, program in programs.items():
    try:
        exec(program, dict(globals()))
    except BaseException:
        print("FAILED", name, traceback.format_exc(), flush=True)
    dist.barrier()
"""


class Jobs:
    """Starts ranks quickly: they are forked from a process that has imported torch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, program: str, folder: Path, number: int, kill_after: float | None = None
    ) -> list[str]:
        """The lines that the ranks printed, without those of gloo, which torch 2.8 lets out."""
        print(json.dumps([program, str(folder), number, kill_after]), file=self._process.stdin)
        lines: list[str] = json.loads(self._process.stdout.readline())
        return [line for line in lines if not line.startswith("[Gloo]")]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    command = [sys.executable, Path(__file__).parent / "helpers" / "forked_ranks.py"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield Jobs(process)
        process.stdin.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, jobs: Jobs) -> Path:
    """Folders that one rank (``one``) and four (``four``, ``fsdp``) have saved."""
    folder = tmp_path_factory.mktemp("shared")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(folder / "one", 1)
    program = f"shared = {str(folder)!r}\n{BEGIN}\n{FOUR}"
    assert jobs.run(program, tmp_path_factory.mktemp("four"), 4) == []
    return folder


@pytest.fixture(scope="module")
def failures(shared: Path, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> str:
    program = f"shared = {str(shared)!r}\n{BEGIN}\nprograms = {TWO!r}\n{EACH}"
    return "".join(jobs.run(program, tmp_path_factory.mktemp("two"), 2))


@pytest.mark.parametrize("name", TWO)
def test_two_ranks(name: str, failures: str) -> None:
    found = [part for part in failures.split("FAILED ")[1:] if part.startswith(name)]
    assert not found, "\n".join(found)


def test_one_rank_loads_what_four_and_two_saved(shared: Path, failures: str) -> None:
    assert loaded(shared / "four") == 4
    assert loaded(shared / "two") == 2


def test_the_files_are_genesis_files(shared: Path) -> None:
    found = [shared / "four" / "metadata.pth", *parts(shared / "four")]
    assert len(found) == 5
    assert all(genesis.verify(path) for path in found)
    assert all(genesis.load(path, weights_only=True) for path in found[1:])


@pytest.mark.parametrize("which", ["metadata", "rank"])
def test_damage_is_found_and_named(tmp_path: Path, which: str) -> None:
    save(tmp_path, 1)
    (path,) = tmp_path.glob(f"{which}*.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(dcp.api.CheckpointException, match=path.name):
        loaded(tmp_path)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch 2.8, of its own writer
def test_a_folder_without_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(dcp.api.CheckpointException, match="no checkpoint of GenesisWriter"):
        loaded(tmp_path)
    dcp.save(Whole.state(1), storage_writer=dcp.FileSystemWriter(tmp_path))
    with pytest.raises(dcp.api.CheckpointException, match="load it with its FileSystemReader"):
        loaded(tmp_path)
    genesis.save({"x": 1}, tmp_path / "metadata.pth")
    with pytest.raises(dcp.api.CheckpointException, match="no metadata of GenesisWriter"):
        loaded(tmp_path)


def test_a_missing_file_is_told_from_one_that_was_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = Whole.state(-1)

    class Late(GenesisReader):
        def set_up_storage_reader(self, *args: Any, **options: Any) -> None:
            super().set_up_storage_reader(*args, **options)
            save(tmp_path, 2)

    with pytest.raises(dcp.api.CheckpointException, match="replaced the checkpoint during"):
        dcp.load(found, storage_reader=Late(tmp_path))
    parts(tmp_path)[0].unlink()
    with pytest.raises(dcp.api.CheckpointException, match="is missing"):
        loaded(tmp_path)


def test_leftovers_go_with_the_next_save_and_nothing_else_does(tmp_path: Path) -> None:
    save(tmp_path, 1)
    old = parts(tmp_path)[0]
    dead = tmp_path / f"rank3.{'0' * 16}.pth"
    for path in (dead, tmp_path / "rank3.pth", tmp_path / "notes"):
        path.write_text("mine")
    save(tmp_path, 2)
    assert not dead.exists()
    assert not old.exists()
    assert (tmp_path / "rank3.pth").exists()
    assert (tmp_path / "notes").exists()
    assert loaded(tmp_path) == 2


def test_nothing_is_swept_where_the_metadata_cannot_be_read(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "metadata.pth"
    content = path.read_bytes()
    path.write_bytes(content[:-1])

    class Failing(dcp.DefaultSavePlanner):
        def resolve_data(self, item: Any) -> Any:
            raise OSError("enough")

    with pytest.raises(dcp.api.CheckpointException, match="enough"):
        dcp.save(Whole.state(2), storage_writer=GenesisWriter(tmp_path), planner=Failing())
    path.write_bytes(content)
    assert loaded(tmp_path) == 1


HOLD = """
import sys
from genesis.integrations.distributed import _Saving
held = _Saving.begin(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_save_to_one_folder(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with Script(HOLD, tmp_path) as other:
        other.expect("held")
        with pytest.raises(dcp.api.CheckpointException, match="another process is saving"):
            save(tmp_path, 2)
        assert loaded(tmp_path) == 1
    save(tmp_path, 2)  # its lock died with it
    assert loaded(tmp_path) == 2


def test_a_later_save_of_the_process_takes_over(tmp_path: Path) -> None:
    """As after a failure on another rank, of which the coordinator's writer is never told."""

    class Overtaken(GenesisWriter):
        def finish(self, *args: Any, **options: Any) -> None:
            save(tmp_path, 2)
            super().finish(*args, **options)

    with pytest.raises(dcp.api.CheckpointException, match="took over"):
        dcp.save(Whole.state(1), storage_writer=Overtaken(tmp_path))
    assert loaded(tmp_path) == 2
    assert len(parts(tmp_path)) == 1


@pytest.mark.skipif(
    "use_collectives" not in inspect.signature(dcp.save).parameters, reason="an older torch"
)
def test_ranks_that_do_not_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use_collectives"):
        dcp.save(
            Whole.state(1), storage_writer=GenesisWriter(tmp_path), no_dist=True,
            use_collectives=False,
        )  # fmt: skip


def test_only_what_is_saved_goes_to_the_file(tmp_path: Path) -> None:
    large = torch.zeros(1 << 20)
    views = {
        "half": large[: 1 << 19],
        "small": large[:1000],
        "column": large.view(1024, 1024)[:, 0],
    }
    dcp.save(views, storage_writer=GenesisWriter(tmp_path))
    assert parts(tmp_path)[0].stat().st_size < 3 << 20


KILLED = """
mesh = init_device_mesh("cpu", (world,))
for step in range(start, 1_000_000):
    rows = distribute_tensor(torch.full((world, 50_000), float(step)), mesh, [Shard(0)])
    dcp.save({"rows": rows, "step": step}, storage_writer=GenesisWriter(path))
    if rank == 0:
        print(step, flush=True)
"""


def step_of(path: Path, number: int) -> int:
    found = {"rows": torch.zeros(number, 50_000), "step": -1}
    dcp.load(found, storage_reader=GenesisReader(path))
    step: int = found["step"]
    assert found["rows"].unique().tolist() == [float(step)]
    return step


@pytest.mark.parametrize(
    ("number", "rounds"),
    [
        (2, 4),
        pytest.param(2, 60, marks=pytest.mark.torture),
        pytest.param(4, 40, marks=pytest.mark.torture),
    ],
)
def test_a_killed_rank_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, jobs: Jobs, number: int, rounds: int
) -> None:
    path, start, chance = tmp_path / "run", 0, random.Random(number)
    for each in range(rounds):
        (folder := tmp_path / str(each)).mkdir()
        program = f"path = {str(path)!r}; start = {start}\n{KILLED}"
        said = jobs.run(program, folder, number, chance.random() * 0.05)
        last = max(int(line) for line in said if line.strip().isdigit())
        step = step_of(path, number)
        assert step in (last, last + 1), said
        start = step + 1
    save(path, 0)
    assert len(parts(path)) == 1  # whatever the dead had left
