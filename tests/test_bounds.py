"""Nothing outside of a tensor's storage, or of an array's owner, is ever read.

A view can outlive the memory that it was made of: storages are shrunk and freed, arrays and
bytearrays resized, mapped files cut short. Such a view is refused with its place, in every way to
save; read, it would end the process, or put the bytes of somebody else into the file.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contention import busy_writer
from numpy.lib.stride_tricks import as_strided
from same import assert_same

import genesis
from genesis._os import memory

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "background": {"background": True},
    "deferred": {"background": True, "capture": "deferred"},
}

needs_kernel = pytest.mark.skipif(
    not memory._kernel_copies(), reason="the kernel does not say what memory is there"
)


def save(state: Any, path: Path, mode: str = "plain") -> None:
    done = genesis.save(state, path, clear=False, **MODES[mode])
    if isinstance(done, genesis.SaveFuture):
        done.result(60)


def refused(state: Any, path: Path, place: str, match: str, mode: str = "plain") -> None:
    __tracebackhide__ = True  # pytest would print the arguments, and read the memory for it
    with pytest.raises(genesis.UnpicklableStateError, match=match) as caught:
        save(state, path, mode)
    assert caught.value.place == place
    assert not path.exists()


def many(**others: Any) -> dict[str, Any]:
    """Enough plain tensors for a ledger, beside others."""
    return {**others, "plain": {f"{n}": torch.full((n,), float(n)) for n in range(1, 100)}}


# --- Storages -------------------------------------------------------------------------------------


def shrunk(size: int = 1000) -> torch.Tensor:
    ring = torch.zeros(200_000, dtype=torch.uint8)
    last = ring[190_000:190_100]
    ring.untyped_storage().resize_(size)
    return last


def freed() -> torch.Tensor:
    tensor = torch.ones(30_000)
    tensor.untyped_storage().resize_(0)
    return tensor


def strided_beyond() -> torch.Tensor:
    base = torch.arange(1000.0)
    view = base.as_strided((3, 2), (400, 1))
    base.untyped_storage().resize_(4 * 801)
    return view


def quantized() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.quantize_per_tensor(torch.ones(1000), 0.1, 0, torch.quint8)
    tensor.untyped_storage().resize_(10)
    return tensor


def with_attribute() -> torch.Tensor:
    tensor = freed()
    tensor.tag = "x"  # type: ignore[attr-defined]
    return tensor


class Tagged(torch.Tensor):
    """A subclass that adds nothing."""


def sparse() -> torch.Tensor:
    tensor = torch.eye(300).to_sparse()
    tensor._values().untyped_storage().resize_(8)
    return tensor


def conjugate() -> torch.Tensor:
    tensor = torch.ones(300, dtype=torch.complex64)
    view = tensor.conj()
    tensor.untyped_storage().resize_(16)
    return view


BEYOND: dict[str, Callable[[], Any]] = {
    "shrunk": shrunk,
    "freed": freed,
    "strided": strided_beyond,
    "parameter": lambda: torch.nn.Parameter(freed()),
    "quantized": quantized,
    "attribute": with_attribute,
    "subclass": lambda: freed().as_subclass(Tagged),
    "sparse": sparse,
    "conjugate": conjugate,
    "float8": lambda: shrunk().view(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BEYOND)
def test_a_view_of_a_storage_that_shrank_is_refused(name: str, mode: str, path: Path) -> None:
    place = "['a'][1]" + (".__reduce_ex__(5)[1][1][1]" if name == "sparse" else "")
    refused({"a": [1, BEYOND[name]()]}, path, place, "storage, which has", mode)


def test_the_error_names_what_is_there_and_the_cure(path: Path) -> None:
    refused([shrunk(1000)], path, "[0]", r"190,100 bytes .* has 1,000: it was shrunk .* clone\(\)")
    refused([freed()], path, "[0]", "has 0: it was freed .* give the storage its bytes back")


@pytest.mark.parametrize("mode", MODES)
def test_among_many_tensors_too(mode: str, path: Path) -> None:
    refused(many(x=[shrunk()]), path, "['x'][0]", "storage, which has 1,000", mode)
    covering = torch.zeros(20)[10:]
    covering.untyped_storage().resize_(covering.nbytes)
    refused(many(x=covering), path, "['x']", "storage, which has 40", mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_storage_that_shrank_at_its_old_address_is_noticed(mode: str, tmp_path: Path) -> None:
    """What an earlier save of the same tensors learned says nothing of their storages' sizes."""
    tensor = torch.ones(5000)
    state, address = many(x=tensor), tensor.data_ptr()
    for _ in range(2):  # the second takes over what the first has learned
        save(state, tmp_path / "before", mode)
    for size in range(19_992, 10_000, -8):
        tensor.untyped_storage().resize_(8)  # others may take the memory, or we, for less
        tensor.untyped_storage().resize_(size)
        if tensor.data_ptr() == address:
            break
    else:
        pytest.skip("the allocator gave it other addresses")
    refused(state, tmp_path / "f", "['x']", f"storage, which has {size:,}", mode)


def test_a_view_that_moved_within_its_storage_is_noticed(tmp_path: Path) -> None:
    """The address of its first byte, the storage's size and all else are what they were."""
    base = torch.arange(30.0)
    tensor = base[10:20]
    state = many(x=tensor)
    for _ in range(2):
        save(state, tmp_path / "f")
    tensor.set_(base.untyped_storage(), 20, (10,))  # type: ignore[call-overload]
    save(state, tmp_path / "f")
    assert genesis.load(tmp_path / "f")["x"].tolist() == list(range(20, 30))


def test_a_storage_without_bytes_is_refused(path: Path) -> None:
    storage = torch.empty(3, device="meta").untyped_storage()
    refused([storage], path, "[0]", "meta has no bytes")


class Resizes:
    """Resizes memory of the state while it is pickled, as a module that gathers its shards may."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        self.what()
        return (set, ())


@pytest.mark.parametrize("ledger", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_storage_that_is_freed_while_the_state_is_pickled(
    mode: str, ledger: bool, path: Path
) -> None:
    tensor = torch.ones(3_000_000)
    freed = Resizes(lambda: tensor.untyped_storage().resize_(0))
    state = {"x": tensor, "z": freed}
    if ledger:
        state = many(**state)
        save({**state, "z": None}, path)
        path.unlink()
    with pytest.raises(genesis.UnpicklableStateError, match=r"resized or freed|storage, which"):
        save(state, path, mode)
    assert not path.exists()


@pytest.mark.parametrize("ledger", [False, True])
def test_a_storage_that_is_freed_before_a_deferred_copy(ledger: bool, path: Path) -> None:
    tensor = torch.ones(3_000_000)
    state = many(x=tensor) if ledger else {"x": tensor}
    with busy_writer(path.parent / "busy"):
        future = genesis.save(state, path, background=True, capture="deferred", clear=False)
        tensor.untyped_storage().resize_(0)
    with pytest.raises(genesis.UnpicklableStateError, match=r"resized or freed .*wait_captured"):
        future.result(60)
    assert not path.exists()


# --- NumPy ----------------------------------------------------------------------------------------


def view_of_resized() -> np.ndarray[Any, Any]:
    owner = np.zeros(300_000)
    view = owner[200_000:]
    owner.resize(10, refcheck=False)
    return view


def over_a_shrunk_bytearray() -> np.ndarray[Any, Any]:
    owner = bytearray(100_000)
    array: np.ndarray[Any, Any] = np.ndarray((90_000,), "u1", buffer=owner)
    del owner[100:]
    return array


def over_a_closed_map() -> np.ndarray[Any, Any]:
    memory = mmap.mmap(-1, 1 << 20)
    array: np.ndarray[Any, Any] = np.ndarray((1 << 20,), "u1", buffer=memory)
    memory.close()
    return array


def over_closed_shared_memory() -> np.ndarray[Any, Any]:
    memory = shared_memory.SharedMemory(create=True, size=1 << 20)
    array: np.ndarray[Any, Any] = np.ndarray((1 << 20,), "u1", buffer=memory.buf)
    memory.close()
    memory.unlink()
    return array


def objects() -> np.ndarray[Any, Any]:
    owner = np.zeros(100_000, object)
    view = owner[90_000:]
    owner.resize(10, refcheck=False)
    return view


BEYOND_NUMPY: dict[str, Callable[[], Any]] = {
    "a view of a resized array": view_of_resized,
    "backwards": lambda: view_of_resized()[::-1],
    "strided": lambda: view_of_resized()[::3],
    "a subclass": lambda: view_of_resized().view(np.recarray),
    "masked": lambda: np.ma.MaskedArray(view_of_resized(), mask=False),
    "a mask": lambda: np.ma.MaskedArray(np.zeros(800_000), mask=view_of_resized().view("?")),
    "objects": objects,
    "as_strided": lambda: as_strided(np.zeros(10), (1_000_000,), (8,)),
    "as_strided before it": lambda: as_strided(np.zeros(10)[5:], (100,), (-80,)),
    "a bytearray": over_a_shrunk_bytearray,
    "a closed map": over_a_closed_map,
    "closed shared memory": over_closed_shared_memory,
    "a loaded array": lambda: as_strided(loaded_array(), (1 << 22,), (8,)),
}


def loaded_array() -> np.ndarray[Any, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save({"x": np.zeros(10)}, Path(folder, "f"))
        found: np.ndarray[Any, Any] = genesis.load(Path(folder, "f"))["x"]
        return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BEYOND_NUMPY)
def test_an_array_that_reaches_beyond_its_owner_is_refused(
    name: str, mode: str, path: Path
) -> None:
    refused({"a": [1, BEYOND_NUMPY[name]()]}, path, "['a'][1]", r"reaches beyond .*copy\(\)", mode)


WITHIN: dict[str, Callable[[], Any]] = {
    "as_strided": lambda: as_strided(np.arange(10.0)[2:4], (4,), (16,)),
    "as_strided before it": lambda: as_strided(np.arange(10.0)[5:], (5,), (-8,)),
    "windows": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(6), 3),
    "broadcast": lambda: np.broadcast_to(np.arange(3), (4, 3)),
    "dates": lambda: np.arange(9).astype("M8[D]")[::-2],
    "a part of bytes": lambda: np.frombuffer(b"x" * 80, "f8")[3:],
    "over a bytearray": lambda: np.ndarray((5,), "u1", buffer=bytearray(9), offset=4),
    "over a part of a memoryview": lambda: np.frombuffer(memoryview(bytearray(9))[3:], "u1"),
    "a tensor's": lambda: torch.arange(9.0)[3:].numpy(),
    "through DLPack": lambda: np.from_dlpack(torch.arange(9.0)[3:]),
    "the owner after it grew": lambda: grown(),
    "masked": lambda: np.ma.MaskedArray(np.arange(9)[3:], mask=np.arange(9)[3:] > 5)[::2],
    "objects": lambda: np.array([1, None, "x"], object)[1:],
    "empty beyond": lambda: view_of_resized()[:0],
    "restrided in place": lambda: restrided(),
}


def grown() -> np.ndarray[Any, Any]:
    array = np.arange(9.0)
    array.resize(100_000, refcheck=False)
    return array


def restrided() -> np.ndarray[Any, Any]:
    owner = np.arange(12.0).reshape(3, 4)
    view = owner[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        owner.shape = (4, 3)
    return view


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WITHIN)
def test_an_array_that_stays_within_its_owner_is_saved(name: str, mode: str, path: Path) -> None:
    array = WITHIN[name]()
    save({"x": array}, path, mode)
    assert_same(array.tolist(), genesis.load(path)["x"].tolist())


@pytest.mark.parametrize("mode", MODES)
def test_an_array_that_is_resized_while_the_state_is_pickled(mode: str, path: Path) -> None:
    array = np.ones(3_000_000)
    state = {"x": array, "z": Resizes(lambda: array.resize(10, refcheck=False))}
    try:
        save(state, path, mode)
    except genesis.UnpicklableStateError as exc:
        assert "resized" in exc.problem  # noqa: PT017
    else:  # the state was pickled again, with what the array had become
        assert genesis.load(path)["x"].tolist() == [1] * 10


def test_an_array_that_is_resized_before_a_deferred_copy(path: Path) -> None:
    array = np.ones(3_000_000)
    with busy_writer(path.parent / "busy"):
        future = genesis.save([array], path, background=True, capture="deferred")
        array.resize(10, refcheck=False)
    with pytest.raises(genesis.UnpicklableStateError, match=r"resized .*wait_captured"):
        future.result(60)


# --- Mapped files that become shorter -------------------------------------------------------------

SIZE = 3 << 20


def array_of_memmap(file: Path) -> Any:
    return np.memmap(file, "u1", mode="r+")


def array_of_mmap(file: Path) -> Any:
    with file.open("r+b") as opened:
        return np.frombuffer(mmap.mmap(opened.fileno(), 0), "u1")


MAPPED: dict[str, Callable[[Path], Any]] = {
    "memmap": array_of_memmap,
    "memmap, copied on writing": lambda file: np.memmap(file, "u1", mode="c"),
    "a part of a memmap": lambda file: array_of_memmap(file)[SIZE // 2 :],
    "memmap, turned": lambda file: array_of_memmap(file).reshape(-1, 1024).T[::2],
    "a small part": lambda file: array_of_memmap(file)[-100:],
    "a small strided part": lambda file: array_of_memmap(file)[-100::3],
    "mmap": array_of_mmap,
    "tensor of a memmap": lambda file: torch.from_numpy(array_of_memmap(file)),
    "tensor of a file": lambda file: torch.from_file(
        str(file), shared=True, size=SIZE, dtype=torch.uint8
    ),
    "a small part of that": lambda file: MAPPED["tensor of a file"](file)[-100:],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mapped"
    file.write_bytes(os.urandom(SIZE))
    return file


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_file_is_saved(name: str, mode: str, file: Path, path: Path) -> None:
    mapped = MAPPED[name](file)
    save([mapped], path, mode)
    assert genesis.load(path)[0].tolist() == mapped.tolist()


@needs_kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_file_that_became_shorter_is_refused(
    name: str, mode: str, file: Path, path: Path
) -> None:
    mapped = MAPPED[name](file)
    os.truncate(file, 4096)
    refused({"a": [1, mapped]}, path, "['a'][1]", "became shorter", mode)


@needs_kernel
@pytest.mark.parametrize("number", [2, 90])
@pytest.mark.parametrize("mode", MODES)
def test_among_many_tensors_of_mapped_files(mode: str, number: int, file: Path, path: Path) -> None:
    whole = torch.from_file(str(file), shared=True, size=SIZE, dtype=torch.uint8).numpy()
    parts = {f"{n}": torch.from_numpy(whole[n * 4096 :][:100]) for n in range(100)}
    for _ in range(2):
        save(parts, path, mode)
        path.unlink()
    os.truncate(file, number * 4096)
    refused(parts, path, f"['{number}']", "became shorter", mode)


@needs_kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in MAPPED if name != "memmap, turned"])
def test_a_file_that_becomes_shorter_during_the_save_is_an_error_and_no_signal(
    name: str, mode: str, file: Path, path: Path
) -> None:
    state = [MAPPED[name](file), Resizes(lambda: os.truncate(file, 4096))]
    if name == "a small strided part":  # copied before
        save(state, path, mode)
        return
    with pytest.raises((memory.UnreadableMemoryError, genesis.UnpicklableStateError)):
        save(state, path, mode)
    assert not path.exists()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_whose_storage_shrank_is_refused(path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(100), torch.ones(200)])
    whole = path.with_name("whole")
    save({"x": nested}, whole)
    assert_same(genesis.load(whole)["x"].unbind()[1], torch.ones(200))
    nested.untyped_storage().resize_(4)
    refused({"x": nested}, path, "['x']", "1,200 bytes")


@pytest.mark.parametrize("record", [False, True])
def test_a_record_of_an_array_that_was_resized_is_refused(record: bool, path: Path) -> None:
    array = np.zeros(1_000_000, dtype="i4,f8")
    array[900_000] = (3, 4.0)
    one = (array.view(np.recarray) if record else array)[900_000]
    whole = path.with_name("whole")
    save({"x": one}, whole)
    assert genesis.load(whole)["x"].item() == (3, 4.0)
    array.resize(10, refcheck=False)
    refused({"x": one}, path, "['x']", "reaches beyond the memory")
