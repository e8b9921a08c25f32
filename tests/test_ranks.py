"""Tensors of which each rank of a job holds a part: refused, or saved to a path of each rank's own.

Real ranks, over gloo, on the CPU. To start them takes long, so that one job runs all the programs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks

torch = pytest.importorskip("torch", reason="torch is not installed")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo here", allow_module_level=True)
pytest.importorskip("torch.distributed.tensor", reason="an older torch")

BEGIN = """
try:
    from torch.distributed import tensor as module
    module.DTensor
except AttributeError:  # torch 2.4
    from torch.distributed import _tensor as module
DTensor, Partial, distribute_tensor = module.DTensor, module.Partial, module.distribute_tensor
Replicate, Shard = module.Replicate, module.Shard
from torch.distributed.device_mesh import init_device_mesh

mesh = init_device_mesh("cpu", (world,))
values = torch.arange(8.0)
path = f"{folder}/{rank}"

def refused(state, place):
    try:
        genesis.save(state, path, clear=False)
    except genesis.UnpicklableStateError as exc:
        assert exc.place == place, exc.place
        assert not os.path.exists(path)
        return exc
    raise AssertionError("saved")

def saved(value, **options):
    for background in (False, True):
        done = genesis.save({"x": value}, path, clear=False, background=background, **options)
        if background:
            done.result(60)
        found = genesis.load(path)["x"]
        assert type(found) is type(value)
    os.remove(path)
    return found
"""


TWO_RANKS = {
    "a part of a dtensor is refused with its place and the cure": """
for placement in (Shard(0), Partial()):
    part = DTensor.from_local(values[:4], mesh, [placement])
    error = refused({"a": [part]}, "['a'][0]")
    assert "one rank's part" in error.problem and "2 ranks" in error.problem, error
    assert "full_tensor()" in error.hint and "sharded='allow'" in error.hint, error
""",
    "each rank may save its part to a path of its own": """
part = distribute_tensor(values, mesh, [Shard(0)])
found = saved(part, sharded="allow")
assert found.shape == (8,) and found.placements == (Shard(0),)
assert found.to_local().tolist() == values[4 * rank :][:4].tolist()
assert found.full_tensor().tolist() == values.tolist()
""",
    "a replicated dtensor is whole and stays one": """
found = saved(distribute_tensor(values, mesh, [Replicate()]))
assert found.to_local().tolist() == values.tolist()
grid = init_device_mesh("cpu", (world, 1))
found = saved(distribute_tensor(values, grid, [Replicate(), Shard(0)]))
assert found.to_local().tolist() == values.tolist()
""",
    "the states of a sharded model and its optimizer are refused": """
try:
    from torch.distributed.fsdp import fully_shard
    trains = True
except ImportError:  # an older torch, which trains a model like this on GPUs alone
    from torch.distributed._composable.fsdp import fully_shard
    trains = False
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
expected = {name: value.clone() for name, value in model.state_dict().items()}
fully_shard(model)
refused(model.state_dict(), "['0.weight']")
refused({"model": model}, "['model']._modules['0']._parameters['weight']")
full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
if rank == 0:
    genesis.save(dict(full), path)
    found = genesis.load(path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    os.remove(path)
if trains:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    refused({"o": optimizer.state_dict()}, "['o']['state'][0]['exp_avg']")
genesis.save(model.state_dict(), path, sharded="allow")
model.load_state_dict(genesis.load(path))
""",
    "shards of the older kind are refused": """
from torch.distributed._shard import sharded_tensor
part = sharded_tensor.Shard.from_tensor_and_offsets(torch.ones(4) * rank, [4 * rank], rank)
tensor = sharded_tensor.init_from_local_shards([part], [8])
error = refused({"x": tensor}, "['x']")
assert "1 of the 2 shards" in error.problem, error
found = saved(tensor, sharded="allow")
assert found.local_shards()[0].tensor.tolist() == [rank] * 4
""",
    "what a collective is still writing is waited for": """
from torch.distributed._functional_collectives import all_gather_tensor
for _ in range(20):
    gathered = all_gather_tensor(values, 0, (mesh, 0))
    genesis.save({"x": gathered}, path)
    found = genesis.load(path)["x"]
    assert torch.as_tensor(found).tolist() == values.tolist() * world
""",
}
ONE_RANK = {
    "of one rank everything is whole": """
found = saved(distribute_tensor(values, mesh, [Shard(0)]))
assert found.to_local().tolist() == values.tolist()
""",
}
EACH = """
import traceback
for name, program in programs.items():
    try:
        exec(program, dict(globals()))
    except BaseException:
        print("FAILED", name, traceback.format_exc())
    if os.path.exists(path):
        os.remove(path)
    dist.barrier()
"""


def run(programs: dict[str, str], folder: Path, ranks_: int) -> dict[str, list[str]]:
    """What each rank said of each program that failed."""
    outputs = ranks.run(f"{BEGIN}\nprograms = {programs!r}\n{EACH}", folder, ranks_)
    failures = [part for output in outputs for part in output.split("FAILED ")[1:]]
    return {name: [part for part in failures if part.startswith(name)] for name in programs}


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    two = run(TWO_RANKS, tmp_path_factory.mktemp("two"), 2)
    return two | run(ONE_RANK, tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("name", [*TWO_RANKS, *ONE_RANK])
def test_ranks(name: str, failures: dict[str, list[str]]) -> None:
    assert not failures[name], "\n".join(failures[name])
