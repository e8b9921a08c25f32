"""The file format, held to docs/format.md: golden files, files byte by byte, and files that are
sound in every checksum and break one rule.

`second_writer` and `second_reader` are written from that page alone; nothing here asks genesis what
a file should look like.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
import second_reader
from golden_files import STATES, golden
from optional import needs_torch, torch
from same import assert_same
from second_writer import CHUNK_SIZE, PLAIN, TORCH, assemble, assemble_stream, header, index, sealed

import genesis

HELPERS = str(Path(__file__).parent / "helpers")
PICKLED = ("plain", "numpy", "torch")
SKELETON = pickle.dumps({"step": 1}, 5)
NO_ARRAYS = b"\x80\x05N\x940"
"""How a skeleton begins that calls `numpy.ndarray` for no large array."""


# --- Golden files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"mmap": True, "verify": True}], ids=str)
@pytest.mark.parametrize("name", PICKLED)
def test_genesis_reads_the_golden_file(name: str, options: dict[str, bool]) -> None:
    assert_same(STATES[name](), genesis.load(golden(name), **options))


@pytest.mark.parametrize("name", PICKLED)
def test_genesis_reads_the_golden_file_as_one_of_a_stranger(name: str) -> None:
    assert_same(STATES[name](), genesis.load(golden(name), weights_only=True))


without_genesis = pytest.mark.skipif(
    int(np.__version__.partition(".")[0]) < 2, reason="NumPy 1 lacks the names that NumPy 2 writes"
)


@without_genesis
def test_the_second_reader_reads_the_golden_files() -> None:
    for name in PICKLED:
        assert_same(STATES[name](), second_reader.read(golden(name)))


def check_of_dill(state: dict[str, Any]) -> None:
    assert state["settings"] is state["again"]
    assert type(state["settings"]).__qualname__ == "Settings"
    assert (state["settings"].rate, state["settings"].layers) == (0.5, [64, 10])
    assert torch.equal(state["w"], torch.arange(3.0))
    assert state["a"].tolist() == [None, "x", 3]


@needs_torch
@pytest.mark.parametrize(
    "read", [genesis.load, pytest.param(second_reader.read, marks=without_genesis)]
)
def test_the_golden_file_of_dill(read: Callable[[Path], dict[str, Any]]) -> None:
    check_of_dill(read(golden("dill")))


@without_genesis
@pytest.mark.parametrize(
    "name", [*("plain", "numpy"), *(pytest.param(n, marks=needs_torch) for n in ("torch", "dill"))]
)
def test_the_golden_file_opens_without_genesis(name: str) -> None:
    program = f"""
        import sys
        sys.path.insert(0, {HELPERS!r})
        for missing in ("genesis", "xxhash", {"" if name == "dill" else "dill"!r}):
            sys.modules[missing] = None
        import {"dill" if name == "dill" else "pickle"} as reader
        from golden_files import STATES, golden
        from same import assert_same

        with open(golden({name!r}), "rb") as file:
            state = reader.load(file)
        if {name!r} == "dill":
            assert (state["settings"].rate, state["again"].layers) == (0.5, [64, 10])
            assert_same([STATES["dill"]()[key] for key in "wa"], [state[key] for key in "wa"])
        else:
            assert_same(STATES[{name!r}](), state)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", STATES)
def test_the_index_of_the_golden_file(name: str) -> None:
    assert second_reader.read_index(golden(name)) == {
        "pickler": "dill" if name == "dill" else "pickle",
        "writer": "genesis 0.1.0",
        "python": "3.11",
        "metadata": {"golden": name, "größe": [1, None]},
    }


def test_the_golden_checkpoint_is_valid() -> None:
    assert genesis.validate_checkpoint(golden("torch")) == (True, "Checkpoint is valid")


@pytest.mark.parametrize("name", STATES)
def test_the_second_writer_makes_the_golden_file_byte_for_byte(name: str) -> None:
    parts = second_reader.take_apart(golden(name))
    trailing = json.dumps(parts.index, separators=(",", ":")).encode()
    prologue = TORCH if name in ("torch", "dill") else PLAIN
    made = assemble(parts.skeleton, parts.data, prologue=prologue, trailing=trailing)
    assert made == golden(name).read_bytes()


def test_a_golden_state_saved_today_is_laid_out_as_the_golden_file(path: Path) -> None:
    genesis.save(STATES["torch"](), path)
    then, now = second_reader.take_apart(golden("torch")), second_reader.take_apart(path)
    assert now.data == then.data
    assert now.prologue == then.prologue


# --- What genesis writes, byte by byte ------------------------------------------------------------


def test_a_small_file_byte_for_byte(path: Path) -> None:
    genesis.save({"step": 1}, path, metadata={"run": 7})
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    trailing = index(writer=f"genesis {genesis.__version__}", python=version, metadata={"run": 7})
    assert path.read_bytes() == assemble(NO_ARRAYS + SKELETON, trailing=trailing)


def test_the_header_in_numbers(path: Path) -> None:
    genesis.save({"a": np.zeros(9)}, path)
    start = path.read_bytes()[:64]
    assert start.hex(" ", 4) == (
        "80054332 8967656e 65736973 20636865 636b706f 696e740d 0a1a0a00 00000000 "
        "00000000 00000000 00000000 00000000 00000000 00003096 80000000 00000000"
    )


def test_arrays_stand_at_multiples_of_64_with_zeros_between(path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [1, 63, 64, 65, 127, 128, 1000, 70_000]
    arrays = [rng.integers(1, 256, size, dtype=np.uint8) for size in sizes]
    genesis.save({"arrays": arrays}, path, clear=False)
    # Again from staging memory that an earlier save has filled with something else.
    genesis.save({"other": np.full(100_000, 0xEE, np.uint8)}, path, background=True).result()
    genesis.save({"arrays": arrays}, path, background=True).result()
    data = second_reader.take_apart(path).data
    expected = b"".join(array.tobytes().ljust(-(-array.size // 64) * 64, b"\0") for array in arrays)
    assert data == expected


@pytest.mark.parametrize("mmap", [False, True])
def test_loaded_arrays_lie_at_multiples_of_64_and_can_be_written(path: Path, mmap: bool) -> None:
    state = {"a": np.arange(5), "t": torch.arange(7.0), "b": np.arange(3.0)}
    genesis.save(state, path, clear=False)
    before = path.read_bytes()
    found = genesis.load(path, mmap=mmap)
    assert found["a"].ctypes.data % 64 == 0
    assert found["t"].data_ptr() % 64 == 0
    found["a"] += 1
    found["t"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "size", [CHUNK_SIZE - 1024, CHUNK_SIZE, 2 * CHUNK_SIZE, 5 * CHUNK_SIZE // 2], ids=str
)
def test_a_file_of_several_chunks(path: Path, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    state = {"first": data, "second": bytes(data[: size // 3])}
    genesis.save(state, path, clear=False)
    once = path.read_bytes()
    genesis.save(state, path, clear=False, background=True).result()
    assert path.read_bytes() == once
    parts = second_reader.take_apart(path)
    assert parts.chunk_size == CHUNK_SIZE
    assert len(parts.digests) == -(-len(parts.stream) // CHUNK_SIZE)
    assert_same(state, second_reader.read(path))
    assert_same(state, genesis.load(path))


def test_the_same_state_gives_the_same_bytes_however_it_is_saved(tmp_path: Path) -> None:
    state = {
        "model": {f"layer{n}": torch.full((n + 1,), float(n)) for n in range(80)},
        "array": np.arange(1000),
        "blob": bytes(100_000),
        "epoch": 4,
    }
    files = [tmp_path / name for name in "abcd"]
    genesis.save(state, files[0], clear=False)
    genesis.save(state, files[1], clear=False)
    genesis.save(state, files[2], clear=False, background=True).result()
    genesis.save(state, files[3], clear=False, background=True, capture="deferred").result()
    assert len({file.read_bytes() for file in files}) == 1


def test_plain_pickle_stops_where_the_stream_ends(path: Path) -> None:
    genesis.save({"a": np.arange(3), "blob": bytes(70_000)}, path)
    file = io.BytesIO(path.read_bytes())
    pickle.Unpickler(file).load()
    assert file.tell() == len(second_reader.take_apart(path).stream)


# --- What genesis reads ---------------------------------------------------------------------------


def load(path: Path, content: bytes, **options: Any) -> Any:
    path.write_bytes(content)
    return genesis.load(path, **options)


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
def test_it_reads_the_smallest_chunks(path: Path, options: dict[str, bool]) -> None:
    parts = second_reader.take_apart(golden("plain"))
    skeleton = pickle.dumps(["x" * 9000, bytes(30_000)], 5)
    content = assemble(skeleton, parts.data, chunk_size=4096)
    assert load(path, content, **options) == ["x" * 9000, bytes(30_000)]


@pytest.mark.parametrize("changes", [{"later": [1]}, {"writer": None, "python": None}], ids=str)
def test_it_reads_an_index_with_unknown_keys_and_without_optional_ones(
    path: Path, changes: dict[str, Any]
) -> None:
    assert load(path, assemble(SKELETON, trailing=index(**changes))) == {"step": 1}


def test_it_reads_an_index_without_metadata(path: Path) -> None:
    assert load(path, assemble(SKELETON, trailing=index(metadata=None))) == {"step": 1}


def test_it_reads_a_data_region_that_nothing_refers_to(path: Path) -> None:
    assert load(path, assemble(SKELETON, bytes(128))) == {"step": 1}


@pytest.mark.parametrize("weights_only", [False, True])
def test_it_reads_a_skeleton_that_says_its_protocol_twice(path: Path, weights_only: bool) -> None:
    skeleton = b"\x80\x05N0" + SKELETON
    assert load(path, assemble(skeleton), weights_only=weights_only) == {"step": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_reads_what_plain_dill_wrote_in_any_protocol(path: Path, protocol: int) -> None:
    double = lambda x: 2 * x  # noqa: E731
    path.write_bytes(dill.dumps({"double": double, "a": [1, (2.5, None)]}, protocol))
    found = genesis.load(path)
    assert (found["double"](4), found["a"]) == (8, [1, (2.5, None)])


# --- Other versions -------------------------------------------------------------------------------


def with_version(version: int) -> bytes:
    return assemble(SKELETON, version=version)


@pytest.mark.parametrize("version", [2, 7, 0xFFFFFFFF])
@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
def test_a_newer_file_says_so(path: Path, version: int, options: dict[str, bool]) -> None:
    with pytest.raises(genesis.NewerFormatError, match=f"format version {version}.*up to 1") as e:
        load(path, with_version(version), **options)
    assert "upgrade" in e.value.hint
    assert (e.value.path, e.value.offset) == (str(path), path.stat().st_size - 56)


def test_a_newer_file_may_mean_something_else_by_the_rest_of_its_footer(path: Path) -> None:
    content = with_version(1)[:-64] + sealed(version=2, a=3, b=1 << 60, c=5, d=6, e=7, f=8)
    with pytest.raises(genesis.NewerFormatError, match="format version 2"):
        load(path, content)


def test_a_newer_file_is_not_taken_for_damaged(path: Path) -> None:
    genesis.save({"step": 0}, f"{path}.genesis.bak")
    with pytest.raises(genesis.NewerFormatError, match="format version 2"):
        load(path, with_version(2))
    assert genesis.validate_checkpoint(path)[0] is False


@pytest.mark.parametrize("mask", [0x02, 0x03, 0xFF])
@pytest.mark.parametrize("byte", range(4))
def test_a_damaged_version_is_not_taken_for_a_newer_one(path: Path, mask: int, byte: int) -> None:
    content = bytearray(with_version(1))
    content[-56 + byte] ^= mask
    with pytest.raises(genesis.ChecksumError, match="footer is damaged"):
        load(path, bytes(content))
    genesis.save({"step": 0}, f"{path}.genesis.bak")
    with pytest.warns(genesis.RecoveredFromBackupWarning, match="footer is damaged"):
        assert genesis.load(path) == {"step": 0}


def test_there_is_no_version_0(path: Path) -> None:
    with pytest.raises(genesis.ChecksumError, match="footer is damaged"):
        load(path, with_version(0))


# --- Files that break one rule, with every checksum right -----------------------------------------


def _data_of_odd_length() -> bytes:
    return assemble(SKELETON, bytes(100))


def _longer_data_than_said() -> bytes:
    return _patched(56, struct.pack("<Q", 64))


def _less_data_than_said() -> bytes:
    return _patched(56, struct.pack("<Q", 256))


def _enormous_data() -> bytes:
    return _patched(56, struct.pack("<Q", (1 << 64) - 64))


def _other_identifier() -> bytes:
    return _patched(10, b"X")


def _padding_in_the_identifier() -> bytes:
    return _patched(53, b"\x01")


def _patched(offset: int, part: bytes) -> bytes:
    """A file of 128 bytes of data with other bytes in its header, and digests to match."""
    size = 128
    start = bytearray(header(size))
    start[offset : offset + len(part)] = part
    whole = assemble(SKELETON, bytes(size))
    stream = bytes(start) + whole[64 : 64 + size + len(PLAIN) + len(SKELETON)]
    return assemble_stream(stream, 64 + size + len(PLAIN))


RULES: list[tuple[str, Callable[[], bytes], str]] = [
    ("data of odd length", _data_of_odd_length, "header is damaged"),
    ("longer data than said", _longer_data_than_said, "header is damaged"),
    ("less data than said", _less_data_than_said, "header is damaged"),
    ("enormous data", _enormous_data, "header is damaged"),
    ("another identifier", _other_identifier, "header is damaged"),
    ("padding that is not zero", _padding_in_the_identifier, "header is damaged"),
    ("no prologue", lambda: assemble(SKELETON, prologue=b""), "outside the stream"),
    ("another prologue", lambda: assemble(SKELETON, prologue=b"\x940K\x940"), "prologue"),
    ("a long prologue", lambda: assemble(SKELETON, prologue=PLAIN * 9), "header is damaged"),
    ("zero is not", lambda: assemble(SKELETON, zero=1), "footer is damaged"),
    ("chunk size 0", lambda: assemble(SKELETON, chunk_size=0), "chunk size 0"),
    ("chunk size 2048", lambda: assemble(SKELETON, chunk_size=2048), "chunk size 2048"),
    ("chunk size 4097", lambda: assemble(SKELETON, chunk_size=4097), "chunk size 4097"),
    ("a longer stream", lambda: assemble(SKELETON, stream_size=1 << 50), "its footer says"),
    ("stream of 0", lambda: assemble(SKELETON, stream_size=0), "its footer says"),
    ("an enormous index", lambda: assemble(SKELETON, index_size=(1 << 64) - 1), "footer says"),
    ("skeleton in the header", lambda: assemble(SKELETON, skeleton_offset=8), "outside the stream"),
    ("skeleton at the end", lambda: assemble(SKELETON, skeleton_offset=1 << 40), "outside"),
    ("skeleton off by one", lambda: assemble(SKELETON, skeleton_offset=70), "prologue"),
    ("index of no JSON", lambda: assemble(SKELETON, trailing=b"{"), "index cannot be read"),
    ("index of no text", lambda: assemble(SKELETON, trailing=b"\xff\xfe\xfd"), "cannot be read"),
    ("index of a list", lambda: assemble(SKELETON, trailing=b"[]"), "index cannot be read"),
    ("a deep index", lambda: assemble(SKELETON, trailing=b"[" * 99_999), "index cannot be read"),
    ("no index", lambda: assemble(SKELETON, trailing=b""), "index cannot be read"),
    ("no pickler", lambda: assemble(SKELETON, trailing=b"{}"), "index cannot be read"),
    ("unknown pickler", lambda: assemble(SKELETON, trailing=index(pickler="x")), "no known pick"),
    ("metadata of a list", lambda: assemble(SKELETON, trailing=index(metadata=[1])), "wrong type"),
    ("writer of a number", lambda: assemble(SKELETON, trailing=index(writer=1)), "wrong type"),
]


@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
@pytest.mark.parametrize(("make", "problem"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_a_file_that_breaks_one_rule(
    path: Path, make: Callable[[], bytes], problem: str, options: dict[str, bool]
) -> None:
    with pytest.raises(genesis.CorruptCheckpointError, match=problem) as caught:
        load(path, make(), **options)
    assert caught.value.path == str(path)
    assert genesis.validate_checkpoint(path)[0] is False


def test_the_rules_are_broken_one_by_one(path: Path) -> None:
    """The file that all of the above are variations of is sound."""
    assert load(path, assemble(SKELETON, bytes(128))) == {"step": 1}
    assert load(path, _patched(0, b"\x80")) == {"step": 1}
