"""Files and folders of other programs are told by name, with what to do next.

Each is written by its own program where that is installed, and loaded, validated and asked for
metadata here.
"""

from __future__ import annotations

import gzip
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genesis


def of_torch(path: Path, **options: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, path, **options)


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"net/{name}", "")


def safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def of_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def several_of_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3), b=np.ones(70_000))


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def some_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "text")


def tar(path: Path) -> None:
    inner = path.with_name("sys_info")
    inner.write_text("text")
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "sys_info")
    inner.unlink()


def joblib(path: Path) -> None:
    """What joblib.dump makes: a pickle with an array's bytes in its midst."""
    head = b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x13joblib.numpy_pickle\x94."
    path.write_bytes(head + bytes(100))


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "torch": (of_torch, "a file of torch.save", "torch.load"),
    "torch, old": (
        lambda path: of_torch(path, _use_new_zipfile_serialization=False),
        "torch.save in its old form",
        "torch.load",
    ),
    "TorchScript": (script, "TorchScript", "torch.jit.load"),
    "safetensors": (safetensors, "a safetensors file", "load_file"),
    "npy": (of_numpy, "numpy.save", "numpy.load"),
    "npz": (several_of_numpy, r"\.npz", "numpy.load"),
    "keras": (keras, r"\.keras", "load_model"),
    "zip": (some_zip, "a zip archive", "torch.load"),
    "tar": (tar, "a tar archive", "unpack"),
    "joblib": (joblib, "joblib.dump", "joblib.load"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "HDF5", "h5py"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"a")), "gzip", "gzip -d"),
    "msgpack": (lambda path: path.write_bytes(b"\x82\xa4step\x01\xa1w\x02"), "msgpack", "flax"),
    "JSON": (lambda path: path.write_text('{"a": 1}'), "JSON", "json.load"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html>"), "HTML", "again"),
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS",
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_program_is_named_with_the_next_step(name: str, path: Path) -> None:
    write, problem, step = FILES[name]
    write(path)
    calls: list[Callable[[], object]] = [
        lambda: genesis.load(path),
        lambda: genesis.load(path, weights_only=True),
        lambda: genesis.load(path, mmap=True),
    ]
    if name not in ("joblib", "tar"):  # to be told from a pickle they must be read as one
        calls.append(lambda: genesis.load_metadata(path))
    for call in calls:
        with pytest.raises(genesis.NotACheckpointError, match=problem) as caught:
            call()
        assert step in caught.value.hint
    valid, message = genesis.validate_checkpoint(path)
    assert not valid
    assert step in message


FOLDERS = {
    "DCP": (
        [".metadata", "__0_0.distcp", "__1_0.distcp"],
        "distributed.checkpoint",
        "dcp_to_torch",
    ),
    "Orbax": (["_METADATA", "d", "manifest.ocdbt"], "Orbax", "StandardCheckpointer"),
    "step of Orbax": (["_CHECKPOINT_METADATA", "default"], "Orbax", "StandardCheckpointer"),
    "SavedModel": (["saved_model.pb", "variables"], "SavedModel", "saved_model.load"),
    "TensorFlow": (["checkpoint", "m.index", "m.data-00000-of-00001"], "TensorFlow", "train.load"),
    "DeepSpeed": (["latest", "zero_to_fp32.py", "global_step1"], "DeepSpeed", "zero_to_fp32"),
    "unpacked": (["data.pkl", "version", "data"], "unpacked", "zip -0"),
    "transformers": (["config.json", "model.safetensors"], "from_pretrained", "state_dict"),
    "ours": (["epoch_000001.pth", "epoch_000002.pth"], "checkpoints", r"CheckpointManager"),
    "empty": ([], "this is a directory", "name a checkpoint file"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_with_the_next_step(name: str, path: Path) -> None:
    names, problem, step = FOLDERS[name]
    path.mkdir()
    for each in names:
        (path / each).touch()
    for call in (genesis.load, genesis.load_metadata, genesis.load_checkpoint):
        with pytest.raises(genesis.NotACheckpointError, match=problem) as caught:
            call(path)
        assert step in caught.value.hint
    valid, message = genesis.validate_checkpoint(path)
    assert (valid, step in message) == (False, True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_is_taken_for_another_kind(protocol: int, path: Path) -> None:
    states: list[Any] = [
        {},
        {"a": 1},
        [],
        (),
        "text",
        b"PK\3\4",
        5,
        None,
        -1,
        1.5,
        {"{": "{"},
        set(),
    ]
    for state in [*states, "x" * 100, list(range(70_000)), bytes(300_000)]:
        path.write_bytes(pickle.dumps(state, protocol))
        assert genesis.load(path) == state


def test_metadata_of_a_pickle_is_said_to_be_none(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(genesis.NotACheckpointError, match=r"only genesis\.save stores metadata"):
        genesis.load_metadata(path)
