"""Every Python block of the specification, run as it stands there.

The names that the blocks leave to their reader (`train_one_epoch`, `val_loader`, ...) are a small
training run on real data. Nothing in a block is changed before it runs, and nothing in genesis.
"""

from __future__ import annotations

import doctest
import inspect
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genesis

SPEC = Path(
    os.environ.get("GENESIS_SPEC")
    or Path(__file__).parent.parent.parent / "shared" / "spec" / "serialization.md"
)
Names = dict[str, Any]


class Block(NamedTuple):
    name: str
    """Of its section; a number follows where a name comes again."""
    code: str


def blocks() -> list[Block]:
    if not SPEC.exists():
        return []
    found = []
    seen: Counter[str] = Counter()
    heading_or_block = re.compile(r"(?ms)^#+ ([^\n]+)$|^```python\n(.*?)^```$")
    for match in heading_or_block.finditer(SPEC.read_text()):
        if match[1]:
            heading = match[1]
            continue
        seen[heading] += 1
        name = heading if seen[heading] == 1 else f"{heading} ({seen[heading]})"
        found.append(Block(name, match[2]))
    return found


def is_drawing(block: Block) -> bool:
    """A picture of a directory, not Python."""
    return "├──" in block.code


def is_signature(block: Block) -> bool:
    """A function with a docstring for its only statement."""
    return re.fullmatch(r'(?s)def \w+\(.*\):\n +""".*"""\n', block.code) is not None


BLOCKS = blocks()
SIGNATURES = [block for block in BLOCKS if is_signature(block)]
PROGRAMS = [block for block in BLOCKS if not is_signature(block) and not is_drawing(block)]

if not BLOCKS:
    pytest.skip(f"the specification is not at {SPEC}", allow_module_level=True)


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.rglob("*.genesis*")) == [], "a save left something behind"


@pytest.fixture
def names(capsys: pytest.CaptureFixture[str]) -> Names:
    """What a reader of the specification has at hand: a model, its data, and how far it got."""
    torch.manual_seed(0)
    train_loader, val_loader = loaders()
    model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = [train_one_epoch(model, train_loader, optimizer) for _ in range(2)]
    return {
        "genesis": genesis,
        "os": os,
        "time": time,
        "train_one_epoch": train_one_epoch,
        "validate": validate,
        "train_loader": train_loader,
        "val_loader": val_loader,
        "model": model,
        "optimizer": optimizer,
        "num_epochs": 3,
        "epoch": 2,
        "loss": history[-1],
        "best_accuracy": 0.5,
        "training_history": history,
        "state_dict": model.state_dict(),
    }


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Digits, enlarged to the 28 x 28 pixels that the specification's models take."""
    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images[:192] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    large = nn.functional.interpolate(small, size=(28, 28)).flatten(1)
    data = TensorDataset(large, torch.tensor(labels[:192]))
    train, val = torch.utils.data.random_split(data, [128, 64])
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)


def train_one_epoch(model: nn.Module, loader: DataLoader[Any], optimizer: Any) -> float:
    total = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() / len(loader)
    return total


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader[Any]) -> float:
    return sum(
        nn.functional.cross_entropy(model(images), labels).item() for images, labels in loader
    ) / len(loader)


def run(name: str, names: Names) -> None:
    code = next(block.code for block in PROGRAMS if block.name == name)
    exec(compile(code, f"specification: {name}", "exec"), names)


def same(state: Any, other: Any) -> bool:
    torch.testing.assert_close(state, other, rtol=0, atol=0)
    return True


def state_of(thing: Any) -> Any:
    """A state dict as it is now, whatever becomes of the weights."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, thing.state_dict())


def unlike(model: nn.Module) -> None:
    """Make every weight another one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)


# --- Core functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", SIGNATURES, ids=lambda block: block.name)
def test_signature(block: Block) -> None:
    stub: Names = {}
    exec(block.code, stub)
    name = block.name.removesuffix("()")
    specified = inspect.signature(stub[name])
    ours = inspect.signature(getattr(genesis, name))
    extra = list(ours.parameters.values())[len(specified.parameters) :]

    assert list(ours.parameters)[: len(specified.parameters)] == list(specified.parameters)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in extra)
    ours.bind(*specified.parameters)
    ours.bind(**dict.fromkeys(specified.parameters))


def test_the_example_in_a_docstring(names: Names) -> None:
    genesis.save_checkpoint(
        names["model"].state_dict(), names["optimizer"].state_dict(), "checkpoint.pth"
    )
    before = state_of(names["model"])
    unlike(names["model"])
    stub: Names = {}
    exec(next(block.code for block in SIGNATURES if block.name == "load_checkpoint()"), stub)
    examples = doctest.DocTestParser().get_examples(stub["load_checkpoint"].__doc__)
    assert len(examples) == 3
    for example in examples:
        exec(example.source, names)
    assert same(names["model"].state_dict(), before)


# --- Programs -------------------------------------------------------------------------------------


def saving_a_model(names: Names) -> None:
    run("Saving a Model", names)
    assert same(genesis.load("model.pth"), names["model"].state_dict())


def training_checkpoints(names: Names) -> None:
    run("Training Checkpoints", names)
    saved = {path.name for path in Path().iterdir()}
    assert saved == {f"checkpoint_epoch_{epoch}.pth" for epoch in range(0, 100, 10)}
    model_state, optimizer_state = genesis.load_checkpoint("checkpoint_epoch_90.pth")
    assert same(names["model"].state_dict(), model_state)
    assert same(names["optimizer"].state_dict(), optimizer_state)


def complete_training_state(names: Names) -> None:
    before = state_of(names["model"])
    run("Complete Training State", names)
    assert same(names["model"].state_dict(), before)
    assert names["start_epoch"] == 3
    assert names["checkpoint"]["training_history"] == names["training_history"]


def best_model_tracking(names: Names) -> None:
    run("Best Model Tracking", names)
    names["model"].load_state_dict(genesis.load("best_model.pth"))
    assert validate(names["model"], names["val_loader"]) == pytest.approx(names["best_loss"])
    for epoch in range(3):
        genesis.load_checkpoint(f"checkpoint_epoch_{epoch}.pth")


def error_handling(names: Names) -> None:
    run("Error Handling", names)
    assert names["success"] is False  # there is no checkpoint yet
    a_safe_load_of(names, "Error Handling")
    genesis.save(names["model"].state_dict(), "checkpoint.pth")
    run("Error Handling", names)
    assert names["success"] is True  # a bare state dict


def robust_checkpoint_loading(names: Names) -> None:
    run("Robust Checkpoint Loading", names)
    assert names["success"] is False
    a_safe_load_of(names, "Robust Checkpoint Loading")


def a_safe_load_of(names: Names, name: str) -> None:
    before = state_of(names["model"])
    genesis.save_checkpoint(
        names["model"].state_dict(), names["optimizer"].state_dict(), "checkpoint.pth"
    )
    unlike(names["model"])
    run(name, names)
    assert names["success"] is True
    assert same(names["model"].state_dict(), before)

    whole = Path("checkpoint.pth").read_bytes()
    Path("checkpoint.pth").write_bytes(whole[:-1])
    run(name, names)
    assert names["success"] is False


def memory_management(names: Names) -> None:
    """What the block does to a dict, a save has done to it."""
    by_block, by_save = dict(names["state_dict"]), dict(names["state_dict"])
    names["state_dict"] = by_block
    run("Memory Management", names)
    genesis.save(by_save, "model.pth")
    assert by_block == by_save == {}


def checkpoint_naming(names: Names) -> None:
    run("3. Checkpoint Naming", names)
    assert re.fullmatch(r"checkpoint_epoch_2_loss_\d\.\d{4}\.pth", names["filename"])
    model_state, _ = genesis.load_checkpoint(names["filename"])
    assert same(model_state, names["model"].state_dict())


def resume_training(names: Names) -> None:
    run("4. Resume Training", names)
    before = state_of(names["model"])
    genesis.save_checkpoint(
        names["model"].state_dict(), names["optimizer"].state_dict(), "checkpoint_latest.pth"
    )
    unlike(names["model"])
    run("4. Resume Training", names)
    assert same(names["model"].state_dict(), before)


def loading_pytorch_models(names: Names) -> None:
    torch.save(names["model"].state_dict(), "pytorch_model.pt")
    run("Loading PyTorch Models", names)
    assert same(genesis.load("genesis_model.pth"), names["model"].state_dict())


def checkpoint_validation(names: Names) -> None:
    run("Checkpoint Validation", names)
    assert names["is_valid"] is False
    genesis.save_checkpoint(
        names["model"].state_dict(), names["optimizer"].state_dict(), "checkpoint.pth"
    )
    run("Checkpoint Validation", names)
    assert (names["is_valid"], names["message"]) == (True, "Checkpoint is valid")
    for state in (
        {"model_state_dict": names["model"].state_dict()},
        [1, 2],
        {"loss": 1.0},
        {"model_state_dict": [1]},
        {"model_state_dict": {}},
        {"model_state_dict": {"weight": "heavy"}},
    ):
        genesis.save(state, "other.pth")
        assert genesis.validate_checkpoint("other.pth") == names["validate_checkpoint"]("other.pth")


def efficient_checkpoint_save(names: Names) -> None:
    run("3. Memory Management", names)
    names["efficient_checkpoint_save"](names["model"], names["optimizer"], "checkpoint.pth")
    model_state, _ = genesis.load_checkpoint("checkpoint.pth")
    assert same(model_state, names["model"].state_dict())


def version_management(names: Names) -> None:
    Path("checkpoints").mkdir()
    run("4. Version Management", names)
    manager_keeps_three(names["manager"], names)
    for path in Path("checkpoints").iterdir():
        path.unlink()
    manager_keeps_three(genesis.CheckpointManager("checkpoints/", max_checkpoints=3), names)


def manager_keeps_three(manager: Any, names: Names) -> None:
    for epoch in range(3, 8):
        manager.save_checkpoint(names["model"], names["optimizer"], epoch, names["loss"])
    kept = [f"epoch_00000{epoch}.pth" for epoch in (5, 6, 7)]
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == kept
    newest = genesis.load("checkpoints/epoch_000007.pth")
    assert list(newest) == [
        "epoch",
        "model_state_dict",
        "optimizer_state_dict",
        "loss",
        "timestamp",
    ]
    assert same(newest["model_state_dict"], names["model"].state_dict())


CASES: dict[str, Callable[[Names], None]] = {
    "Saving a Model": saving_a_model,
    "Training Checkpoints": training_checkpoints,
    "Complete Training State": complete_training_state,
    "Best Model Tracking": best_model_tracking,
    "Error Handling": error_handling,
    "Memory Management": memory_management,
    "3. Checkpoint Naming": checkpoint_naming,
    "4. Resume Training": resume_training,
    "Loading PyTorch Models": loading_pytorch_models,
    "Robust Checkpoint Loading": robust_checkpoint_loading,
    "Checkpoint Validation": checkpoint_validation,
    "3. Memory Management": efficient_checkpoint_save,
    "4. Version Management": version_management,
}


def test_no_block_is_left_out() -> None:
    assert [block.name for block in PROGRAMS] == list(CASES)
    assert len(SIGNATURES) == 4
    assert len(BLOCKS) - len(PROGRAMS) - len(SIGNATURES) == 2  # the drawings


@pytest.mark.parametrize("name", CASES)
def test_program(name: str, names: Names) -> None:
    CASES[name](names)


# --- Where the library has the specification's function itself -----------------------------------


@pytest.mark.parametrize("checkpoint", ["whole", "bare", "damaged", "missing"])
def test_ours_answers_as_the_robust_example_does(checkpoint: str, names: Names) -> None:
    """On every kind of file but a bare state dict, which only the earlier example accepts."""
    run("Robust Checkpoint Loading", names)
    path = Path("checkpoint.pth")
    if checkpoint in ("whole", "damaged"):
        genesis.save_checkpoint(names["model"].state_dict(), {}, path)
    if checkpoint == "bare":
        genesis.save(names["model"].state_dict(), path)
    if checkpoint == "damaged":
        path.write_bytes(path.read_bytes()[:100])
    theirs = names["safe_load_checkpoint"](path, names["model"], names["optimizer"])
    ours = genesis.safe_load_checkpoint(path, names["model"], names["optimizer"])
    assert ours == (theirs or checkpoint == "bare")
