"""What a load gives, and what it leaves behind: sparse tensors, devices, versions of frameworks.

How much memory is held is test_memory's business.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import torch
import torch._utils as torch_utils

import genesis

# --- Sparse tensors -------------------------------------------------------------------------------


def _writers() -> dict[str, Callable[[Any, Path], object]]:
    return {
        "genesis": lambda state, path: genesis.save(state, path, clear=False),
        "pickle": lambda state, path: path.write_bytes(pickle.dumps(state)),
        "dill": lambda state, path: path.write_bytes(dill.dumps([state, lambda: 0])),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("writer", _writers())
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_a_loaded_sparse_tensor_stays_on_no_list_of_torch(
    writer: str, layout: str, path: Path
) -> None:
    blocks = (2, 2) if layout[0] == "b" else None
    tensor = torch.eye(4).to_sparse(layout=getattr(torch, f"sparse_{layout}"), blocksize=blocks)
    _writers()[writer]({"s": tensor}, path)
    loaded = genesis.load(path)
    found = (loaded[0] if writer == "dill" else loaded)["s"]
    assert found.to_dense().tolist() == torch.eye(4).tolist()
    assert not torch_utils._sparse_tensors_to_validate


def _invalid() -> torch.Tensor:
    indices = torch.tensor([[0, 7]])
    return torch.sparse_coo_tensor(indices, torch.ones(2), (2,), check_invariants=False)


def test_an_invalid_sparse_tensor_fails_its_own_load_and_no_other(path: Path) -> None:
    genesis.save({"s": _invalid()}, path)
    with pytest.raises(Exception, match="found index 7"):
        genesis.load(path)
    assert not torch_utils._sparse_tensors_to_validate
    other = path.with_name("other.pt")
    torch.save(torch.ones(1), other)
    with torch.sparse.check_sparse_tensor_invariants():
        assert torch.load(other).tolist() == [1]


def test_a_sparse_tensor_of_somebody_elses_load_stays_on_the_list(path: Path) -> None:
    genesis.save({"s": torch.eye(2).to_sparse()}, path)
    somebody = torch.eye(3).to_sparse()
    torch_utils._sparse_tensors_to_validate.append(somebody)
    try:
        genesis.load(path)
        assert torch_utils._sparse_tensors_to_validate == [somebody]
    finally:
        torch_utils._sparse_tensors_to_validate.clear()


def test_a_sparse_tensor_loads_without_memory_on_meta(path: Path) -> None:
    genesis.save({"s": torch.eye(2).to_sparse()}, path)
    assert genesis.load(path, map_location="meta")["s"].is_meta


# --- Devices --------------------------------------------------------------------------------------

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@needs_no_cuda
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("where", ["cuda", "cuda:1", torch.device("cuda"), {"cpu": "cuda"}])
def test_map_location_to_a_device_that_is_not_there_says_so(
    where: Any, weights_only: bool, path: Path
) -> None:
    genesis.save({"t": torch.ones(2)}, path)
    with pytest.raises(Exception, match=r"CUDA device but torch\.cuda\.is_available\(\) is False"):
        genesis.load(path, map_location=where, weights_only=weights_only)


@pytest.mark.parametrize("writer", ["pickle", "dill"])
def test_map_location_holds_for_the_tensors_of_a_plain_pickle(writer: str, path: Path) -> None:
    _writers()[writer](torch.ones(2), path)
    loaded = genesis.load(path, map_location="meta")
    assert (loaded[0] if writer == "dill" else loaded).is_meta


# --- Versions of frameworks -----------------------------------------------------------------------


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_dtype_of_a_later_torch_is_named(
    weights_only: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genesis.save({"t": torch.ones(2, dtype=torch.float16).to(torch.float8_e5m2)}, path)
    monkeypatch.delattr(torch, "float8_e5m2")
    with pytest.raises(Exception, match=r"float8_e5m2.* later torch"):
        genesis.load(path, weights_only=weights_only)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_names_of_numpys_core_are_those_of_this_version(core: str, path: Path) -> None:
    """NumPy 2 moved its core: what one version wrote, the other reads, without a warning."""
    values = [np.float32(2), np.array([1, "a", None], object), np.array(["x"], "U3")]
    stream = pickle.dumps(values, 4)
    for name in ("numpy._core", "numpy.core"):
        stream = _renamed(stream, name + ".multiarray", core + ".multiarray")
    path.write_bytes(stream)
    loaded = genesis.load(path)
    assert [value.tolist() for value in loaded] == [value.tolist() for value in values]
    assert {type(value) for value in loaded} == {np.float32, np.ndarray}


def _renamed(stream: bytes, old: str, new: str) -> bytes:
    """A pickle whose frame is dropped, since its length changes."""
    body = stream[11:] if stream[2:3] == b"\x95" else stream[2:]
    text = [b"\x8c" + bytes([len(name)]) + name.encode() for name in (old, new)]
    return stream[:2] + body.replace(*text)
