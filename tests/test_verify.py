"""`verify` and `validate_checkpoint`: what is sound, what is damaged, what is only laid out
in another way."""

from __future__ import annotations

import dataclasses
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assembler import call, name, stream
from genesis_files import genesis_file

import genesis

BACKUP = ".genesis.bak"
CHECKPOINT = {"model_state_dict": {"w": np.ones(3)}, "optimizer_state_dict": {}}


def _saved(path: Path, state: Any = CHECKPOINT) -> bytes:
    genesis.save(state, path, clear=False)
    return path.read_bytes()


def test_a_sound_file(path: Path) -> None:
    _saved(path)

    report = genesis.verify(path)

    assert report == genesis.Report(True, "sound", "", "")
    assert report
    with pytest.raises(dataclasses.FrozenInstanceError, match="ok"):
        report.ok = False  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_missing_file(path: Path) -> None:
    report = genesis.verify(path)

    assert (report.ok, report.kind, report.place) == (False, "missing", "")
    assert str(path) in report.problem


def test_a_file_that_ends_early(path: Path) -> None:
    whole = _saved(path)
    path.write_bytes(whole[:-10])

    assert not genesis.verify(path)
    assert genesis.verify(path).kind == "truncated"


def test_a_changed_byte_is_damage_with_its_place(path: Path) -> None:
    whole = bytearray(_saved(path))
    whole[80] ^= 1
    path.write_bytes(whole)

    report = genesis.verify(path)

    assert (report.ok, report.kind) == (False, "damaged")
    assert report.place.startswith("byte ")


def test_a_file_of_a_later_version(path: Path) -> None:
    import xxhash

    whole = bytearray(_saved(path))
    whole[-56:-52] = struct.pack("<I", 99)
    whole[-8:] = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(whole[-64:-8])))
    path.write_bytes(whole)

    assert genesis.verify(path).kind == "newer-format"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x05N", b"PK\x03\x04", b"\x80\x05N.."])
def test_what_is_no_checkpoint(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    report = genesis.verify(path)

    assert (report.ok, report.kind) == (False, "not-a-checkpoint")
    assert report.problem


def test_a_directory_is_unreadable_or_no_checkpoint(path: Path) -> None:
    path.mkdir()

    assert not genesis.verify(path)
    assert genesis.verify(path).kind in ("unreadable", "not-a-checkpoint")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("state", "place"),
    [
        ([1], ""),
        ({"a": 1}, ""),
        ({"model_state_dict": {}}, "['model_state_dict']"),
        ({"model_state_dict": {"w": 1}}, "['model_state_dict']['w']"),
    ],
    ids=str,
)
def test_another_layout_is_no_damage(path: Path, state: Any, place: str, plain: bool) -> None:
    if plain:
        path.write_bytes(pickle.dumps(state))
    else:
        _saved(path, state)

    report = genesis.verify(path)

    assert (report.ok, report.kind, report.place) == (True, "layout", place)
    assert genesis.validate_checkpoint(path) == (False, report.problem)


@pytest.mark.parametrize("whole", [genesis_file, lambda skeleton, data: skeleton])
def test_nothing_of_the_file_is_run(
    tmp_path: Path, path: Path, whole: Callable[[bytes, bytes], bytes]
) -> None:
    canary = tmp_path / "canary"
    hostile = stream(call(name("os", "system"), f"touch {canary}"))
    path.write_bytes(whole(hostile, bytes(64)))
    path.with_name(path.name + BACKUP).write_bytes(whole(hostile, bytes(64)))

    assert genesis.verify(path).kind == "layout"
    path.unlink()
    assert genesis.verify(path).kind == "missing"
    assert genesis.verify(f"{path}{BACKUP}").kind == "layout"
    assert not canary.exists()


def test_the_backup_that_a_load_would_return_is_named(path: Path) -> None:
    whole = _saved(path)
    path.with_name(path.name + BACKUP).write_bytes(whole)
    path.write_bytes(whole[:100])

    report = genesis.verify(path)

    assert not report.ok
    assert f"{path}{BACKUP}" in report.problem


def test_a_skeleton_that_is_no_pickle_is_damage_though_its_checksums_are_right(path: Path) -> None:
    path.write_bytes(genesis_file(b"\x80\x05\xff.", bytes(64)))

    assert genesis.verify(path).kind == "damaged"


# --- State dicts of torch that hold more than tensors ---------------------------------------------


def _judged(state: Any, path: Path) -> tuple[bool, str]:
    genesis.save({"model_state_dict": state, "optimizer_state_dict": {}}, path, clear=False)
    assert genesis.verify(path).ok
    return genesis.validate_checkpoint(path)


def test_extra_state_is_valid(path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Counting(torch.nn.Linear):  # type: ignore[misc, name-defined]
        def get_extra_state(self) -> Any:
            return {"calls": 3}

    net = torch.nn.Sequential(Counting(2, 2))

    assert "0._extra_state" in net.state_dict()
    assert _judged(net.state_dict(), path) == (True, "Checkpoint is valid")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_quantized_model_is_valid(path: Path) -> None:
    torch = pytest.importorskip("torch")
    packed = (torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 0, torch.qint8), torch.ones(2))
    state = {
        "fc.scale": torch.tensor(1.0),
        "fc.zero_point": torch.tensor(0),
        "fc._packed_params.dtype": torch.qint8,
        "fc._packed_params._packed_params": packed,
    }

    assert _judged(state, path) == (True, "Checkpoint is valid")
    assert _judged({"fc._packed_params._packed_params": (1, 2)}, path)[0] is False


def test_a_model_without_parameters_is_sound_and_has_an_empty_state_dict(path: Path) -> None:
    """The specification's example calls it invalid; `verify` tells it from damage."""
    assert _judged({}, path) == (False, "model_state_dict is empty")
    assert genesis.verify(path).kind == "layout"
