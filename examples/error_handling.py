"""What a bad file looks like to a program: missing, cut short, changed, or none of genesis's."""

import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import genesis

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters())

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    good = folder / "checkpoint.pth"
    genesis.save_checkpoint(model.state_dict(), optimizer.state_dict(), good)
    content = good.read_bytes()

    cut = folder / "cut.pth"
    cut.write_bytes(content[: len(content) // 2])
    flipped = folder / "flipped.pth"
    flipped.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    foreign = folder / "foreign.pth"
    foreign.write_bytes(b"not a checkpoint at all")

    print("== loading with a yes or a no, as the specification's example does")
    for path in (good, cut, folder / "missing.pth"):
        print(f"{path.name}: {genesis.safe_load_checkpoint(path, model, optimizer)}")

    print("== validating, without running anything that the file may hold")
    for path in (good, flipped):
        is_valid, message = genesis.validate_checkpoint(path)
        print(f"{path.name}: {message}")

    print("== errors with a name")
    for path in (cut, flipped, foreign, folder / "missing.pth"):
        try:
            genesis.load(path)
        except genesis.CorruptCheckpointError as error:
            print(f"{type(error).__name__}: {error}")
        except FileNotFoundError as error:
            print(f"FileNotFoundError: {error}")

    print("== a failed save says what is in the way, and changes nothing")
    batches = (images for images in torch.rand(10, 64))
    try:
        genesis.save({"model": model.state_dict(), "position": [0, batches]}, good)
    except genesis.UnpicklableStateError as error:
        print(f"UnpicklableStateError: {error}")
    assert good.read_bytes() == content

    print("== a damaged file with a backup beside it")
    shutil.copy(good, folder / "flipped.pth.genesis.bak")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        genesis.load_checkpoint(flipped)
    print(f"{caught[0].category.__name__}: {caught[0].message}")
