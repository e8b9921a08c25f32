"""Files that are not what their writer wrote: every bit, every length, blocks moved about, files of
others. Always a named error before any object is built; never a crash, a hang or a wrong value.

Each file is damaged on the disk and read through the public calls alone, within a bound of memory
and time.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import pickle
import random
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_reader
from contention import descriptors
from golden_files import golden, numpy_state, torch_state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optional import torch
from same import assert_same
from second_writer import PLAIN, TORCH, assemble, assemble_stream, index

import genesis

BACKUP = ".genesis.bak"
HEADROOM = 256 << 20
"""Bytes of address space that reading a small damaged file may take beyond what is there."""


@contextmanager
def bounded(seconds: float = 60, memory: int = HEADROOM) -> Iterator[None]:
    """Make an allocation or a wait without bound an error in here. Main thread only."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    old = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _too_long(*_: object) -> None:
    raise TimeoutError("reading a damaged file did not come to an end")


class Canary:
    """Counts how often one of it is built by a reader."""

    built = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        Canary.built += 1
        self.__dict__ = state


def canary() -> Canary:
    made = Canary()
    made.song = "tweet"
    return made


# --- The files ------------------------------------------------------------------------------------


def _plain() -> dict[str, Any]:
    return {"epoch": 3, "names": ["a", "b", {"c"}], "canary": canary(), "rate": 0.5}


def _arrays() -> dict[str, Any]:
    return {"canary": canary(), "a": np.arange(70.0), "f": np.asfortranarray(np.eye(3))}


def _tensors() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.arange(40.0))
    half = torch.ones(5, dtype=torch.bfloat16)
    return {"canary": canary(), "weight": weight, "tied": weight, "half": half}


def _of_dill() -> dict[str, Any]:
    return {"canary": canary(), "rule": lambda x: 2 * x, "a": np.arange(9)}


STATES = {"plain": _plain, "numpy": _arrays, "torch": _tensors, "dill": _of_dill}


@pytest.fixture(scope="module", params=STATES)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small file of one feature of the format."""
    path = tmp_path_factory.mktemp("sound") / "checkpoint.pth"
    genesis.save(STATES[request.param](), path, metadata={"of": request.param})
    assert genesis.load(path)["canary"].song == "tweet"
    return path.read_bytes()


def chunked() -> bytes:
    """A file of six small chunks: data in the first three, skeleton in the others."""
    data = random.Random(0).randbytes(3 * 4096)
    state = {"text": random.Random(1).randbytes(9000), "list": list(range(300))}
    return assemble(pickle.dumps(state, 5), data, chunk_size=4096)


def refused(path: Path, **options: Any) -> genesis.CorruptCheckpointError:
    """Load a damaged file; the error, after a look at what every such error promises."""
    built = Canary.built
    with pytest.raises(pickle.UnpicklingError, match="checkpoint") as caught:
        genesis.load(path, **options)
    assert Canary.built == built
    error = caught.value
    assert isinstance(error, genesis.CorruptCheckpointError)
    assert error.path == str(path)
    assert str(error).startswith(f"{path}: ")
    assert error.offset is None or 0 <= error.offset <= path.stat().st_size
    return error


def invalid(path: Path) -> None:
    sound, message = genesis.validate_checkpoint(path)
    assert not sound
    assert message.startswith(f"Error validating checkpoint: {path}: ")


# --- Every bit ------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path], object]] = {
    "load": refused,
    "weights only": lambda path: refused(path, weights_only=True),
    "mapped and verified": lambda path: refused(path, mmap=True, verify=True),
    "validate": invalid,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF], ids=hex)
def test_every_flipped_byte_is_found(sound: bytes, path: Path, reader: str, mask: int) -> None:
    path.write_bytes(sound)
    read = READERS[reader]
    before = descriptors()
    with path.open("r+b", buffering=0) as file, bounded(120):
        for offset, byte in enumerate(sound):
            os.pwrite(file.fileno(), bytes([byte ^ mask]), offset)
            read(path)
            os.pwrite(file.fileno(), bytes([byte]), offset)
    assert path.read_bytes() == sound
    gc.collect()  # the errors, whose frames hold what was mapped
    assert descriptors() == before
    genesis.load(path)


def test_every_single_bit_of_header_and_trailer_is_found(sound: bytes, path: Path) -> None:
    path.write_bytes(sound)
    stream = len(second_reader.take_apart(path).stream)
    with path.open("r+b", buffering=0) as file, bounded():
        for offset in (*range(64), *range(stream, len(sound))):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([sound[offset] ^ 1 << bit]), offset)
                refused(path)
            os.pwrite(file.fileno(), sound[offset : offset + 1], offset)


@pytest.mark.parametrize("reader", READERS)
def test_every_flipped_byte_is_found_in_a_file_of_many_chunks(path: Path, reader: str) -> None:
    content = chunked()
    path.write_bytes(content)
    offsets = [*range(0, len(content), 7), *range(len(content) - 400, len(content))]
    with path.open("r+b", buffering=0) as file, bounded(120):
        for offset in offsets:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 0x10]), offset)
            READERS[reader](path)
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)


def test_the_error_names_the_chunk_that_is_damaged(path: Path) -> None:
    content = bytearray(chunked())
    for number in range(6):
        content[number * 4096 + 1000] ^= 1
        path.write_bytes(content)
        error = refused(path, mmap=True, verify=True)
        assert isinstance(error, genesis.ChecksumError)
        assert (error.offset, f"chunk {number}" in error.problem) == (number * 4096, True)
        content[number * 4096 + 1000] ^= 1


def test_a_mapped_load_finds_damage_in_all_but_the_arrays(path: Path) -> None:
    content = chunked()
    for offset in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[offset] ^= 4
        path.write_bytes(damaged)
        if 64 <= offset < 3 * 4096:
            assert genesis.load(path, mmap=True)["list"] == list(range(300))
        else:
            refused(path, mmap=True)


def test_a_mapped_load_finds_damage_in_an_array_if_it_is_asked_to(path: Path) -> None:
    size = 3 * second_reader.take_apart(golden("plain")).chunk_size // 8
    genesis.save({"a": np.arange(size), "b": np.arange(10)}, path)
    with path.open("r+b") as file:
        file.seek(17 << 20)
        file.write(b"\xff")
    assert genesis.load(path, mmap=True)["b"].tolist() == list(range(10))
    assert genesis.load(path, verify=False)["b"].tolist() == list(range(10))
    error = refused(path, mmap=True, verify=True)
    assert (type(error), error.offset) == (genesis.ChecksumError, 16 << 20)
    assert refused(path).offset == 16 << 20


@pytest.mark.parametrize("part", ["header", "trailer"])
def test_without_verification_header_and_trailer_are_checked_all_the_same(
    sound: bytes, path: Path, part: str
) -> None:
    path.write_bytes(sound)
    stream = len(second_reader.take_apart(path).stream)
    for offset in range(64) if part == "header" else range(stream, len(sound)):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0x20]) + sound[offset + 1 :])
        refused(path, verify=False)


# --- Every length ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_every_truncation_is_found(sound: bytes, path: Path, reader: str) -> None:
    path.write_bytes(sound)
    with bounded(120):
        for length in reversed(range(len(sound))):
            os.truncate(path, length)
            READERS[reader](path)


def test_a_truncation_says_what_is_missing(sound: bytes, path: Path) -> None:
    path.write_bytes(sound[:-1])
    error = refused(path)
    assert isinstance(error, genesis.TruncatedError)
    assert (error.problem, error.offset) == ("the file ends without its footer", len(sound) - 65)


def test_every_cut_at_the_front_is_found(sound: bytes, path: Path) -> None:
    with bounded(120):
        for length in range(1, len(sound)):
            path.write_bytes(sound[length:])
            refused(path)


@pytest.mark.parametrize(
    "more",
    [b"\0", b"x" * 8, bytes(64), bytes(4096), b"GENESIS\x1a" + bytes(56), b"\x80\x05N."],
    ids=["1", "8", "64", "4096", "magic", "pickle"],
)
def test_bytes_at_either_end_are_found(sound: bytes, path: Path, more: bytes) -> None:
    for content in (sound + more, more + sound):
        path.write_bytes(content)
        refused(path)
        refused(path, mmap=True)
        invalid(path)


def test_its_own_footer_again_at_the_end_is_found(sound: bytes, path: Path) -> None:
    path.write_bytes(sound + sound[-64:])
    assert isinstance(refused(path), genesis.TruncatedError)


def test_a_file_after_a_file_is_found(sound: bytes, path: Path) -> None:
    for content in (sound * 2, sound + golden("plain").read_bytes(), b"text\n" + sound):
        path.write_bytes(content)
        error = refused(path)
        assert isinstance(error, genesis.TruncatedError)
        assert "its footer says" in error.problem


# --- Blocks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Two files of one size, as two saves of one model leave them: arrays, tensors, large bytes."""
    path = tmp_path_factory.mktemp("large") / "checkpoint.pth"
    contents = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        state = {
            "step": seed,
            "a": rng.random(2000),
            "t": torch.from_numpy(rng.random(2000)),
            "blob": rng.bytes(70_000),
        }
        genesis.save(state, path)
        contents.append(path.read_bytes())
    assert len(contents[0]) == len(contents[1])
    return contents[0], contents[1]


@pytest.mark.parametrize("block", [512, 4096])
def test_swapped_blocks_are_found(large: tuple[bytes, bytes], path: Path, block: int) -> None:
    content = large[0]
    pick = random.Random(block)
    starts = range(0, len(content) - block, block)
    for _ in range(100):
        one, other = sorted(pick.sample(starts, 2))
        swapped = bytearray(content)
        swapped[one : one + block] = content[other : other + block]
        swapped[other : other + block] = content[one : one + block]
        path.write_bytes(swapped)
        refused(path)
        invalid(path)


@pytest.mark.parametrize("block", [512, 4096])
def test_zeroed_blocks_are_found(large: tuple[bytes, bytes], path: Path, block: int) -> None:
    content = large[0]
    for start in range(0, len(content), block):
        end = min(start + block, len(content))
        path.write_bytes(content[:start] + bytes(end - start) + content[end:])
        refused(path)
        invalid(path)


def test_a_mixture_of_two_saves_is_found_at_every_sector(
    large: tuple[bytes, bytes], path: Path
) -> None:
    """A write in place that was cut off, in either order: what a plain writer leaves behind."""
    old, new = large
    for cut in range(512, len(old), 512):
        for content in (new[:cut] + old[cut:], old[:cut] + new[cut:]):
            path.write_bytes(content)
            refused(path)


def test_a_sector_of_an_older_save_is_found(large: tuple[bytes, bytes], path: Path) -> None:
    old, new = large
    for start in range(0, len(new), 512):
        content = new[:start] + old[start : start + 512] + new[start + 512 :]
        path.write_bytes(content)
        refused(path)


def test_a_hole_of_zeros_of_the_right_length_is_found(sound: bytes, path: Path) -> None:
    path.touch()
    os.truncate(path, len(sound))
    refused(path)
    invalid(path)


def test_a_huge_sparse_file_is_refused_within_bounded_memory(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)
    with bounded():
        refused(path)
        refused(path, weights_only=True)
        invalid(path)


# --- Files of others ------------------------------------------------------------------------------


def _of_torch(**options: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.ones(3)}, file, **options)
    return file.getvalue()


def _of_numpy(save: Callable[..., None], *args: Any, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, *args, **arrays)
    return file.getvalue()


def _safetensors() -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    head = json.dumps({"weight": entry}).encode()
    return struct.pack("<Q", len(head)) + head + bytes(8)


FOREIGN = {
    "empty": b"",
    "one zero": b"\0",
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "text": b"This is a checkpoint, believe me.\n" * 20,
    "a pickle's first byte": b"\x80",
    "json": b'{"model_state_dict": {}}',
    "safetensors": _safetensors(),
    "npy": _of_numpy(np.save, np.arange(9)),
    "npz": _of_numpy(np.savez, a=np.arange(9)),
    "gzip": gzip.compress(pickle.dumps({"a": 1})),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(500),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "genesis's identifier alone": b"\x80\x05C\x32\x89genesis checkpoint\r\n\x1a\n",
    "genesis's magic alone": b"GENESIS\x1a",
    "genesis's magic at the end": bytes(1000) + b"GENESIS\x1a" + bytes(56),
}
if torch:
    FOREIGN["torch"] = _of_torch()
    FOREIGN["torch of old"] = _of_torch(_use_new_zipfile_serialization=False)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_refused(path: Path, name: str) -> None:
    path.write_bytes(FOREIGN[name])
    with bounded():
        for options in ({}, {"mmap": True}, {"weights_only": True}, {"verify": False}):
            refused(path, **options)
        invalid(path)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_are_refused(path: Path, seed: int) -> None:
    pick = random.Random(seed)
    with bounded():
        for _ in range(50):
            path.write_bytes(pick.randbytes(pick.randrange(1, 300)))
            refused(path)
            invalid(path)


def test_a_directory_is_named_as_one(path: Path) -> None:
    path.mkdir()
    with pytest.raises(genesis.NotACheckpointError, match="this is a directory"):
        genesis.load(path)
    assert "this is a directory" in genesis.validate_checkpoint(path)[1]


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with bounded(10):
        assert "no regular file" in refused(path).problem
        invalid(path)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_a_device_is_refused(tmp_path: Path, device: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(device)
    with bounded(10):
        try:
            genesis.load(link)
        except genesis.NotACheckpointError as error:
            assert "no regular file" in str(error)  # noqa: PT017
        except OSError as error:
            assert device == "/dev/tty", error  # noqa: PT017  there is no terminal here
        else:
            pytest.fail("it was loaded")


def test_a_socket_is_an_error_of_the_system(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="No such device"):
            genesis.load(tmp_path / "s")


def test_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        genesis.load(tmp_path / "a")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_damaged_plain_pickle_is_refused_or_some_value(path: Path, protocol: int) -> None:
    """It has no checksums, so a wrong value cannot be told; a crash, a hang and an error without a
    name can."""
    state = {"epoch": 3, "names": ["a", "b"] * 5, "rates": (0.5, 1e-3, None), "blob": bytes(30)}
    content = pickle.dumps(state, protocol)
    counts = {"refused": 0, "loaded": 0}
    with bounded(120):
        for offset in range(len(content)):
            for mask in (0x01, 0x20, 0x80):
                damaged = bytearray(content)
                damaged[offset] ^= mask
                path.write_bytes(damaged)
                try:
                    genesis.load(path)
                    counts["loaded"] += 1
                except (genesis.NotACheckpointError, genesis.RebuildError):
                    counts["refused"] += 1
                genesis.validate_checkpoint(path)
    assert min(counts.values()) > 0


# --- Damage with a backup beside it ---------------------------------------------------------------


def test_every_flipped_byte_is_recovered_from_the_backup(sound: bytes, path: Path) -> None:
    genesis.save({"of": "the backup"}, f"{path}{BACKUP}")
    for offset in range(0, len(sound), 5):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0x40]) + sound[offset + 1 :])
        with pytest.warns(genesis.RecoveredFromBackupWarning, match="was loaded instead"):
            assert genesis.load(path) == {"of": "the backup"}


def test_a_damaged_backup_is_never_loaded(sound: bytes, path: Path) -> None:
    path.write_bytes(sound[:-1])
    for offset in range(0, len(sound), 5):
        damaged = sound[:offset] + bytes([sound[offset] ^ 0x40]) + sound[offset + 1 :]
        Path(f"{path}{BACKUP}").write_bytes(damaged)
        assert isinstance(refused(path), genesis.TruncatedError)


# --- Fuzzing: behind the checksums, and in front of them ------------------------------------------

fuzz = settings(
    deadline=None,
    derandomize="GENESIS_RANDOM" not in os.environ,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SKELETON = pickle.dumps({"step": 1}, 5)
EDGES = [0, 1, 5, 63, 64, 65, 69, 4095, 4096, 4097, 1 << 24, 1 << 31, 1 << 32, 1 << 40]
FOURS = st.one_of(st.sampled_from([e for e in EDGES if e < 1 << 32]), st.integers(0, (1 << 32) - 1))
EIGHTS = st.one_of(
    st.sampled_from([*EDGES, (1 << 63) - 1, 1 << 63, (1 << 64) - 64, (1 << 64) - 1]),
    st.integers(0, 1 << 10),
    st.integers(0, (1 << 64) - 1),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
INDEXES = st.one_of(
    st.binary(max_size=100),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["pickler", "writer", "python", "metadata", "new"]), JSON).map(
        lambda changes: index(**changes)
    ),
)
FOOTERS = st.fixed_dictionaries(
    {},
    optional={
        "version": FOURS,
        "chunk_size": FOURS,
        "stream_size": EIGHTS,
        "skeleton_offset": EIGHTS,
        "index_size": EIGHTS,
        "trailer_digest": EIGHTS,
        "zero": EIGHTS,
    },
)


def named_error_or(expected: object, path: Path) -> None:
    for options in ({}, {"mmap": True}, {"weights_only": True}, {"verify": False}):
        with bounded(30):
            try:
                found = genesis.load(path, **options)
            except genesis.CorruptCheckpointError as error:
                assert error.path == str(path)  # noqa: PT017
            else:
                assert found == expected
    with bounded(30):
        genesis.validate_checkpoint(path)


@fuzz
@given(footer=FOOTERS, trailing=INDEXES | st.none(), size=st.sampled_from([0, 64, 8192]))
def test_fuzzed_footers_and_indexes(
    path: Path, footer: dict[str, int], trailing: bytes | None, size: int
) -> None:
    path.write_bytes(assemble(SKELETON, bytes(size), trailing=trailing, **footer))
    named_error_or({"step": 1}, path)


@fuzz
@given(
    start=st.binary(max_size=80),
    said=EIGHTS,
    prologue=st.sampled_from([PLAIN, TORCH, b"", PLAIN[:-1]]) | st.binary(max_size=48),
    begin=st.integers(0, 400),
    chunk=st.sampled_from([4096, 8192, 1 << 24]),
)
def test_fuzzed_headers_and_prologues(
    path: Path, start: bytes, said: int, prologue: bytes, begin: int, chunk: int
) -> None:
    sound = assemble(SKELETON, bytes(64))
    whole = sound[:56] + struct.pack("<Q", said) + bytes(64) + prologue + SKELETON
    stream = start + whole[len(start) :]
    path.write_bytes(assemble_stream(stream, min(begin, len(stream)), chunk_size=chunk))
    named_error_or({"step": 1}, path)


def _parts(name: str) -> tuple[bytes, int, bytes]:
    parts = second_reader.take_apart(golden(name))
    begin = len(parts.stream) - len(parts.skeleton)
    return parts.stream, begin, json.dumps(parts.index).encode()


SEEDS = {"numpy": (_parts("numpy"), numpy_state())}
if torch:
    SEEDS["torch"] = _parts("torch"), torch_state()
EDITS = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 12), st.binary(max_size=12)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Put bytes in the place of others."""
    for offset, length, new in edits:
        start = offset % len(content)
        content = content[:start] + new + content[start + length :]
    return content


@pytest.mark.parametrize("name", SEEDS)
@fuzz
@given(edits=EDITS)
@pytest.mark.filterwarnings("ignore")
def test_fuzzed_skeletons_in_files_of_right_checksums(
    path: Path, name: str, edits: list[tuple[int, int, bytes]]
) -> None:
    """The restricted reader makes plain data or an error of them; test_fuzz looks closer."""
    stream, begin, trailing = SEEDS[name][0]
    content = stream[:begin] + edited(stream[begin:], edits)
    path.write_bytes(assemble_stream(content, begin, trailing=trailing))
    with bounded(30):
        try:
            genesis.load(path, weights_only=True)
        except genesis.CorruptCheckpointError as error:
            assert error.path == str(path)  # noqa: PT017
        sound, message = genesis.validate_checkpoint(path)
        assert sound or message


@pytest.mark.parametrize("name", SEEDS)
@fuzz
@given(edits=EDITS)
def test_fuzzed_files(path: Path, name: str, edits: list[tuple[int, int, bytes]]) -> None:
    """Without new checksums: refused, or the file was not changed at all."""
    content = golden(name).read_bytes()
    changed = edited(content, edits)
    path.write_bytes(changed)
    with bounded(30):
        if changed == content:
            assert_same(SEEDS[name][1], genesis.load(path))
        else:
            refused(path)
            refused(path, mmap=True, verify=True)
            invalid(path)
