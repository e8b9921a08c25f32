"""Memory by address: many buffers gathered, and fresh memory filled from a file. Each has a way for
every system and a faster one that Linux may refuse, and both must give the same bytes."""

from __future__ import annotations

import array
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import genesis
from genesis._os import memory as memory_module
from genesis._os import userfaultfd
from genesis._os.descriptors import Descriptor
from genesis._os.memory import gather, private_memory
from genesis._os.userfaultfd import Filler

MB = 1 << 20


# ------------------------------------------------------------------------------- gather


def gathered(buffers: list[bytes]) -> bytes:
    owners = [array.array("B", buffer) for buffer in buffers]
    sizes = [len(buffer) for buffer in buffers]
    memory = private_memory(sum(size + 64 for size in sizes) + 64)
    memory.write(b"\xff" * len(memory))
    gather(memory_module.address_of(memory), [owner.buffer_info()[0] for owner in owners], sizes)
    end = sum((size + 63) & -64 for size in sizes)
    assert set(memory[end:]) <= {0xFF}
    return memory[:end]


def padded(buffers: list[bytes]) -> bytes:
    return b"".join(buffer + bytes(-len(buffer) & 63) for buffer in buffers)


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=80))
def test_each_buffer_is_followed_by_zeros_up_to_a_line(buffers: list[bytes]) -> None:
    assert gathered(buffers) == padded(buffers)


MANY = [bytes([n % 251 + 1]) * (n % 700 + 1) for n in range(2500)]


def test_more_buffers_than_one_call_takes() -> None:
    assert gathered(MANY) == padded(MANY)


def refused(*_: object) -> int:
    return -1


def cut_short(*_: object) -> int:
    return 1


@pytest.mark.parametrize("answer", [None, refused, cut_short])
def test_where_the_kernel_does_not_gather(
    answer: Callable[..., int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "_write_memory", answer)
    assert gathered(MANY) == padded(MANY)


# --------------------------------------------------------------------------------- fill


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(4 * MB + 1000))
    return path


def userfaultfd_works() -> bool:
    return (
        userfaultfd._open_userfaultfd(Descriptor()) and not userfaultfd._huge_pages_come_unasked()
    )


needs_userfaultfd = pytest.mark.skipif(
    not userfaultfd_works(), reason="no userfaultfd, or huge pages come unasked"
)


@needs_userfaultfd
def test_what_is_filled_is_what_the_file_holds(file: Path) -> None:
    data, memory = file.read_bytes(), private_memory(file.stat().st_size)
    with file.open("rb") as opened, Filler(memory, opened.fileno(), MB) as filler:
        for low in (2 * MB, 0, 4 * MB, 1 * MB):
            high = min(low + MB, len(data))
            assert filler.fill(low, high)
            assert memory[low:high] == data[low:high]
    assert memory[3 * MB : 4 * MB] == bytes(MB)  # nobody waits for what was left out
    memory[:] = data[::-1]
    assert file.read_bytes() == data


def test_parts_that_begin_within_a_page_are_read(file: Path) -> None:
    memory = private_memory(file.stat().st_size)
    with file.open("rb") as opened, Filler(memory, opened.fileno(), MB + 512) as filler:
        for low in (0, MB + 512):
            assert not filler.fill(low, low + MB + 512)
            os.preadv(opened.fileno(), [memoryview(memory)[low : low + MB + 512]], low)
    assert memory[: 2 * MB + 1024] == file.read_bytes()[: 2 * MB + 1024]


@needs_userfaultfd
def test_the_block_may_be_entered_and_left_twice(file: Path) -> None:
    memory = private_memory(file.stat().st_size)
    with file.open("rb") as opened:
        filler = Filler(memory, opened.fileno(), MB)
        with filler, filler:
            assert filler.fill(0, MB)
        assert not filler.fill(0, MB)
    assert memory[: 2 * MB] == file.read_bytes()[:MB] + bytes(MB)


@needs_userfaultfd
@pytest.mark.parametrize("when", ["before it is mapped", "before it is copied"])
def test_a_file_that_became_shorter(file: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = private_memory(file.stat().st_size)

    def truncate(*_: object) -> int:
        os.truncate(file, MB)
        return 0

    with file.open("rb") as opened, Filler(memory, opened.fileno(), MB) as filler:
        if when == "before it is mapped":
            truncate()
        monkeypatch.setattr(userfaultfd, "_madvise", truncate)
        assert not filler.fill(2 * MB, 4 * MB)
        assert os.preadv(opened.fileno(), [memoryview(memory)[2 * MB :]], 0) == MB
    assert memory[2 * MB : 3 * MB] == file.read_bytes()


REFUSALS = {
    "another system": ("_SYSCALL", None),
    "a sandbox": ("_open_userfaultfd", lambda _: False),
    "an older Linux": ("_COPY", 0xC028AAFF),
    "no watching": ("_REGISTER", 0xC020AAFF),
    "huge pages come unasked": ("_huge_pages_come_unasked", lambda: True),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_loads_where_pages_cannot_be_filled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"data": bytearray(os.urandom(40 * MB)), "rest": list(range(9))}
    genesis.save(state, tmp_path / "f", clear=False)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    monkeypatch.setattr(userfaultfd, *REFUSALS[name])
    assert genesis.load(tmp_path / "f") == state
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
