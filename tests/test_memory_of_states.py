"""Hypothesis: whatever memory a state's tensors and arrays stand on, a save and a load give what
`torch.save` and `torch.load` give, or refuse what they cannot.

States are made of views, ties, storages that shrank, grew or were swapped, and of memory that is
not torch's or NumPy's own. In the background everything is overwritten as soon as the state is
captured.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from same import assert_same_array, assert_same_tensor

import genesis

DEADLINE = 60.0


def _is_known_to_torchs_save(dtype: torch.dtype) -> bool:
    try:
        torch.save(torch.ones(1, dtype=dtype), io.BytesIO())
    except KeyError:  # the unsigned ones, before torch 2.5
        return False
    return True


DTYPES = [
    *(torch.float32, torch.int64, torch.uint8, torch.bfloat16, torch.complex64, torch.bool),
    torch.float8_e4m3fn,
    *filter(_is_known_to_torchs_save, [torch.uint16]),
]
SIZES = st.sampled_from([64, 640, 4096, 70_000, 200_000])
"""Bytes of a memory, on both sides of what is copied by itself."""


class Member(NamedTuple):
    """A part of a state, and whether all of its memory is there."""

    value: Any
    is_whole: bool
    alive: object = None
    """Shared memory is closed with the object that opened it, whatever stands on it."""

    def __repr__(self) -> str:
        """Without what may not be there to be read."""
        value = self.value
        return f"<{type(value).__name__} {tuple(value.shape)} {value.dtype} {self.is_whole}>"


# --- Memory ---------------------------------------------------------------------------------------


def random_bytes(size: int) -> np.ndarray[Any, Any]:
    # Not above 1: a byte is a bool too.
    return np.random.default_rng(size).integers(0, 2, size).astype(np.uint8)


def of_torch(size: int) -> torch.Tensor:
    return torch.from_numpy(random_bytes(size)).clone()


def over_bytearray(size: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(random_bytes(size)), dtype=torch.uint8)


def over_file(size: int) -> torch.Tensor:
    return torch.from_numpy(mapped(size))


def mapped(size: int) -> np.ndarray[Any, Any]:
    with tempfile.TemporaryFile() as file:
        file.write(random_bytes(size).tobytes())
        file.flush()
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)


def over_shared(size: int) -> torch.Tensor:
    return of_torch(size).share_memory_()


MEMORIES: list[Callable[[int], torch.Tensor]] = [
    *(of_torch, of_torch, over_bytearray, over_file, over_shared),
    lambda size: torch.from_numpy(random_bytes(size)),
]


# --- Tensors --------------------------------------------------------------------------------------


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """Any view of a base of bytes: some part, as some type, with some strides."""
    dtype = draw(st.sampled_from(DTYPES))
    room = base.numel() // dtype.itemsize
    start = draw(st.integers(0, room - 1) | st.just(0))
    size = draw(st.integers(0, room - start) | st.just(room - start) | st.integers(0, 9))
    view = base[start * dtype.itemsize :][: min(size, room - start) * dtype.itemsize].view(dtype)
    how = draw(st.sampled_from(["all", "every third", "turned", "repeated", "windows"]))
    if how == "every third":
        return view[::3]
    if how == "turned" and len(view) >= 6:
        return view[: len(view) // 2 * 2].view(2, -1).t()
    if how == "repeated" and len(view):
        return view[:1].expand(7)
    if how == "windows" and len(view) >= 8:
        return view.unfold(0, 4, 2)
    return view


def dressed(draw: st.DrawFn, view: torch.Tensor) -> torch.Tensor:
    how = draw(st.sampled_from(["plain", "plain", "parameter", "attribute", "conjugate"]))
    if how == "parameter":
        return torch.nn.Parameter(view, requires_grad=view.is_floating_point())
    if how == "conjugate" and view.is_complex():
        return view.conj()
    if how == "attribute":
        view.tag = "x"  # type: ignore[attr-defined]
    return view


def resize(draw: st.DrawFn, base: torch.Tensor) -> None:
    storage = base.untyped_storage()
    if storage.resizable() and not storage.is_shared():  # torch crashes on those
        size = storage.nbytes()
        # Whole elements of each dtype: torch saves others and does not load them.
        storage.resize_(
            draw(st.sampled_from([0, 8, 64, size // 16 * 8, size - 8, size, size + 640]))
        )


def has_all(tensor: torch.Tensor) -> bool:
    if not tensor.numel():
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((size - 1) * step for size, step in steps)
    return (last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes()


@st.composite
def tensors(draw: st.DrawFn) -> list[torch.Tensor]:
    base = draw(st.sampled_from(MEMORIES))(draw(SIZES))
    made = [dressed(draw, draw(views(base))) for _ in range(draw(st.integers(1, 5)))]
    if draw(st.booleans()):
        made.append(base)
    if draw(st.integers(0, 3)) == 0:
        resize(draw, base)
    if draw(st.integers(0, 3)) == 0 and type(made[0]) is torch.Tensor:
        other = draw(views(of_torch(draw(SIZES)))).to(made[0].dtype)
        made[0].data = other
    return made


# --- Arrays ---------------------------------------------------------------------------------------


def array_of_shared(size: int) -> tuple[np.ndarray[Any, Any], Callable[[], object]]:
    memory = shared_memory.SharedMemory(create=True, size=size)
    array: np.ndarray[Any, Any] = np.ndarray((size,), "u1", buffer=memory.buf)
    array[:] = random_bytes(size)
    memory.unlink()
    return array, memory.close


def array_of_bytearray(size: int) -> tuple[np.ndarray[Any, Any], Callable[[], object]]:
    memory = bytearray(random_bytes(size))
    array: np.ndarray[Any, Any] = np.ndarray((size,), "u1", buffer=memory)
    return array, lambda: memory.__delitem__(slice(1, None))


def array_of_numpy(size: int) -> tuple[np.ndarray[Any, Any], Callable[[], object]]:
    owner = random_bytes(size)
    return owner[:], lambda: owner.resize(1, refcheck=False)


def array_of_bytes(size: int) -> tuple[np.ndarray[Any, Any], None]:
    return np.frombuffer(random_bytes(size).tobytes(), np.uint8), None


@st.composite
def arrays(draw: st.DrawFn) -> list[Member]:
    kinds: list[Any] = [array_of_shared, array_of_bytearray, array_of_numpy, array_of_bytes]
    base, ruin = draw(st.sampled_from(kinds))(draw(SIZES))
    made = [base[draw(st.integers(0, 40)) :]]
    made.append(made[0][:: draw(st.sampled_from([1, 2, 3, -1, -2]))])
    made.append(base[:64].view(draw(st.sampled_from(["<f4", ">i4", "M8[s]", "S3, <i2, V3"]))))
    made.append(as_strided(base, (5, 4), (3, 2)))
    if draw(st.booleans()):
        made.append(np.ma.MaskedArray(base, mask=base > 0))
    is_whole = not (ruin and draw(st.integers(0, 3)) == 0)
    if not is_whole:
        ruin()
    return [Member(array, is_whole, ruin) for array in made]


# --- The property ---------------------------------------------------------------------------------


@st.composite
def states(draw: st.DrawFn) -> list[Member]:
    members: list[Member] = []
    for group in draw(st.lists(tensors(), min_size=1, max_size=3)):
        members += [Member(tensor, has_all(tensor)) for tensor in group]
    for of_arrays in draw(st.lists(arrays(), max_size=1)):
        members += of_arrays
    if draw(st.booleans()):  # enough for what is remembered of one save for the next
        members += [Member(torch.full((n,), float(n)), True) for n in range(1, 80)]
    return members


def as_torch_has_it(value: Any) -> Any:
    """Of one part: what is tied is told by `distances`, and torch refuses to save one memory seen
    as several types."""
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=5)
    file.seek(0)
    return torch.load(file, weights_only=False)


def overwrite(state: list[Any]) -> None:
    for value in state:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.nbytes():
                storage.fill_(0)
        elif value.flags.writeable:
            value.view(np.ndarray)[...] = np.zeros((), value.dtype)


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert_same_tensor(one, other)
    elif isinstance(one, np.ma.MaskedArray):
        assert one.tolist() == other.tolist()
    else:
        assert_same_array(one, other)


def distances(state: list[Any]) -> Iterator[int | None]:
    """How far the memory of each two tensors is apart, where they share some."""
    dense = [value for value in state if isinstance(value, torch.Tensor) and value.numel()]
    for one, other in itertools.combinations(dense[:20], 2):
        low, high = span(one)
        start, end = span(other)
        yield one.data_ptr() - other.data_ptr() if low < end and start < high else None


def span(tensor: torch.Tensor) -> tuple[int, int]:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def save(state: list[Any], path: Path, mode: str) -> None:
    if mode == "plain":
        genesis.save(state, path)
        return
    capture: Any = "deferred" if mode == "deferred" else "copy"
    future = genesis.save(state, path, background=True, capture=capture)
    future.wait_captured(DEADLINE)
    overwrite(state)
    future.result(DEADLINE)


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated", "ignore:Casting complex values")
@pytest.mark.parametrize("mode", ["plain", "background", "deferred"])
@settings(
    max_examples=80,
    deadline=None,
    derandomize="GENESIS_RANDOM" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(members=states(), twice=st.booleans())
def test_a_state_is_saved_as_torch_saves_it_or_refused(
    mode: str, members: list[Member], twice: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    __tracebackhide__ = True  # pytest would print the arrays, and read memory that is gone
    path = tmp_path_factory.getbasetemp() / f"memory-{mode}"
    path.unlink(missing_ok=True)
    state = [member.value for member in members]
    wrong = [number for number, member in enumerate(members) if not member.is_whole]
    if wrong:
        with pytest.raises(genesis.UnpicklableStateError) as caught:
            save(state, path, mode)
        assert caught.value.place in {f"[{number}]" for number in wrong}
        assert not path.exists()
        return
    expected, apart = list(map(as_torch_has_it, state)), list(distances(state))
    if twice:
        genesis.save(state, path)
    save(state, path, mode)
    found = genesis.load(path)
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)
    for before, after in zip(apart, distances(found), strict=True):
        assert before is None or before == after
