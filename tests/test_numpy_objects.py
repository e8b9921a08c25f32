"""NumPy arrays, dtypes and scalars: every dtype, order and layout, in bytes and in detail."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from same import assert_same, assert_same_array
from second_reader import read, take_apart

import genesis
from genesis._pickle.numpy import ScatteredBytes

NUMPY_2 = hasattr(np.dtypes, "StringDType")

MODES = [{}, {"mmap": True}, {"weights_only": True}]


def round_trip(value: Any, path: Path, **keywords: Any) -> Any:
    genesis.save({"x": value}, path, clear=False)
    return genesis.load(path, **keywords)["x"]


ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
PADDED = np.dtype(
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [3, 16], "itemsize": 40}
)
UNION = np.dtype({"names": ["a", "b"], "formats": ["u2", "u4"], "offsets": [0, 0], "itemsize": 4})
TITLES = np.dtype([(("Title of a", "a"), "i1"), ("b", "f8")])
NESTED = np.dtype([("a", [("x", ">i2"), ("y", "S3")]), ("b", "f8", (2, 3)), ("c", "U4")])

ARRAYS: dict[str, Callable[[], np.ndarray[Any, Any]]] = {
    "structured": lambda: filled([("a", "i1"), ("b", "f8")]),
    "aligned": lambda: filled(ALIGNED),
    "padded": lambda: filled(PADDED),
    "overlapping fields": lambda: filled(UNION),
    "titles": lambda: filled(TITLES),
    "nested, with subarrays": lambda: np.zeros(3, NESTED),
    "nested and aligned": lambda: filled(np.dtype([("in", ALIGNED), ("c", "i2")], align=True)),
    "no fields": lambda: np.zeros(3, np.dtype([])),
    "dtype with metadata": lambda: np.ones(3, np.dtype("i4", metadata={"unit": "m"})),
    "structure with metadata": lambda: np.ones(2, np.dtype([("a", "i4")], metadata={"u": "m"})),
    "Fortran order": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "negative stride": lambda: np.arange(10)[::-2],
    "negative strides": lambda: np.arange(12).reshape(3, 4)[::-1, ::-1],
    "column": lambda: np.arange(12.0).reshape(3, 4)[:, 1],
    "transposed": lambda: np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "broadcast": lambda: np.broadcast_to(np.arange(3), (2, 3)),
    "overlapping windows": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(6), 3),
    "field of a structure": lambda: filled(ALIGNED)["b"],
    "unaligned": lambda: np.zeros(9, "u1")[1:].view("f8"),
    "0-d": lambda: np.array(3.5),
    "0-d structure": lambda: np.zeros((), ALIGNED),
    "empty": lambda: np.empty((0, 3), "f4"),
    "empty in the middle": lambda: np.empty((3, 0, 2)),
    "many axes": lambda: np.ones((1,) * 30 + (2,)),
    "dates": lambda: np.array(["2020-01-01", "NaT", "1600-01-01"], "M8[ns]"),
    "dates by 25 seconds": lambda: np.arange(3).astype("M8[25s]"),
    "dates without unit": lambda: np.zeros(2, "M8"),
    "big-endian dates": lambda: np.arange(3).astype(">M8[D]"),
    "spans": lambda: np.array([1, -2], "m8[us]"),
    "bytes": lambda: np.array([b"a", b"bcd", b""]),
    "text": lambda: np.array(["a", "bcd\u1234", "\U0001f600"]),
    "empty text": lambda: np.array(["", ""]),
    "text of no length": lambda: np.zeros(3, "S0"),
    "void": lambda: np.frombuffer(b"abcdef", "V2").copy(),
    "void of no length": lambda: np.zeros(3, "V0"),
    "big-endian": lambda: np.arange(3, dtype=">i4"),
    "big-endian text": lambda: np.array(["ab"], ">U2"),
    "half": lambda: np.arange(3, dtype="f2"),
    "long double": lambda: np.arange(3, dtype="g") / 3,
    "complex long double": lambda: np.arange(3, dtype="G") * 1j,
    "bool": lambda: np.array([True, False]),
    "complex": lambda: np.array([1 + 2j, complex("nan")]),
    "long": lambda: np.arange(5, dtype="l").astype("q"),
    "big-endian long": lambda: np.arange(5).astype(np.dtype("q").newbyteorder(">")),
    "records": lambda: filled(np.dtype((np.record, ALIGNED))),
    "records with metadata": lambda: filled(np.dtype((np.record, PADDED), metadata={"u": 1})),
    "metadata in a field": lambda: filled([("a", np.dtype("i4", metadata={"unit": "m"}), (2,))]),
}


def filled(dtype: Any) -> np.ndarray[Any, Any]:
    """An array whose bytes, the padding too, are all different."""
    size = 3 * np.dtype(dtype).itemsize
    return np.arange(size, dtype="u1").view(dtype)


@pytest.mark.parametrize("keywords", MODES, ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_keep_dtype_shape_and_bytes(name: str, keywords: dict[str, Any], path: Path) -> None:
    array = ARRAYS[name]()
    loaded = round_trip(array, path, **keywords)
    assert_same_array(array, loaded)
    assert loaded.flags.writeable


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_beside_a_lambda_are_the_same(name: str, path: Path) -> None:
    array = ARRAYS[name]()
    genesis.save({"x": array, "f": lambda: None}, path)
    assert_same_array(array, genesis.load(path)["x"])


@pytest.mark.parametrize("name", ARRAYS)
def test_a_second_reader_reads_every_array(name: str, path: Path) -> None:
    array = ARRAYS[name]()
    genesis.save({"x": array}, path)
    assert_same_array(array, read(path)["x"])


@settings(max_examples=150, deadline=None)
@given(
    nps.arrays(
        st.one_of(nps.scalar_dtypes(), nps.array_dtypes(max_size=3)),
        nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_arrays_of_any_dtype_and_shape_come_back(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray[Any, Any], transposed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-array"
    array = array.T if transposed else array
    assert_same_array(array, round_trip(array, path))


# --- Order, sharing, size -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_contiguous_arrays_keep_their_order(order: Any, path: Path) -> None:
    array = np.arange(24.0).reshape(2, 3, 4).copy(order=order)
    loaded = round_trip(array, path)
    assert loaded.strides == array.strides
    assert loaded.flags.c_contiguous == array.flags.c_contiguous
    assert loaded.flags.f_contiguous == array.flags.f_contiguous


def test_one_array_in_two_places_stays_one(path: Path) -> None:
    array = np.arange(1000.0)
    loaded = round_trip([array, {"again": array}], path)
    assert loaded[0] is loaded[1]["again"]
    assert path.stat().st_size < 1.5 * array.nbytes


def test_a_small_view_does_not_write_what_it_views(path: Path) -> None:
    large = np.zeros(1_000_000)
    state = [large[5:10], large[::100_000], large.reshape(1000, 1000)[3:5, :2], large[:0]]
    assert_same(state, round_trip(state, path))
    assert path.stat().st_size < 4096


def test_two_arrays_of_the_same_values_stay_two(path: Path) -> None:
    loaded = round_trip([np.zeros(3), np.zeros(3)], path)
    loaded[0][0] = 1
    assert loaded[1][0] == 0


def test_a_read_only_array_is_saved_and_comes_back_writable_as_pickle_does(path: Path) -> None:
    array = np.arange(5.0)
    array.flags.writeable = False
    loaded = round_trip(array, path)
    loaded[0] = 9
    assert (array[0], loaded.tolist()) == (0, [9, 1, 2, 3, 4])


@pytest.mark.parametrize("make", [bytes, bytearray], ids=["bytes", "bytearray"])
def test_an_array_over_the_memory_of_another_object_is_saved(make: Any, path: Path) -> None:
    array = np.frombuffer(make(range(64)), "i4")
    assert_same_array(array, round_trip(array, path))


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_memmap_becomes_a_plain_array(mode: Any, tmp_path: Path, path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(np.arange(12, dtype="f4").tobytes())
    array: np.ndarray[Any, Any] = np.memmap(source, "f4", mode=mode, shape=(3, 4))
    loaded = round_trip([array, array[1:, ::2]], path)
    assert type(loaded[0]) is np.ndarray
    assert loaded[0].tolist() == array.tolist()
    assert loaded[1].tolist() == array[1:, ::2].tolist()


@pytest.mark.parametrize("keywords", MODES, ids=str)
def test_loaded_arrays_begin_at_multiples_of_64(keywords: dict[str, Any], path: Path) -> None:
    genesis.save({size: np.ones(size, "u1") for size in (1, 63, 64, 65, 1000)}, path)
    addresses = [a.__array_interface__["data"][0] for a in genesis.load(path, **keywords).values()]
    assert {address % 64 for address in addresses} == {0}


def test_writing_to_a_mapped_array_changes_no_file(path: Path) -> None:
    genesis.save({"a": np.zeros(1000)}, path)
    before = path.read_bytes()
    genesis.load(path, mmap=True)["a"][:] = 1
    assert path.read_bytes() == before


# --- Objects, subclasses, scalars, dtypes ---------------------------------------------------------


def test_arrays_of_objects_keep_their_objects(path: Path) -> None:
    shared = [1]
    array = np.array([shared, "a", None, shared, {"k": np.ones(2)}], dtype=object)
    loaded = round_trip([array, shared], path)
    assert loaded[0][0] is loaded[0][3] is loaded[1]
    assert loaded[0][1:3].tolist() == ["a", None]
    assert loaded[0][4]["k"].tolist() == [1, 1]


def test_an_array_of_objects_may_hold_itself_and_a_lambda(path: Path) -> None:
    array = np.empty(2, dtype=object)
    array[0], array[1] = array, lambda: 5
    loaded = round_trip(array, path)
    assert loaded[0] is loaded
    assert loaded[1]() == 5


def test_structures_with_objects_keep_both(path: Path) -> None:
    array = np.array([(1, ["x"]), (2, None)], dtype=[("a", "i4"), ("b", "O")])
    loaded = round_trip(array, path)
    assert loaded.dtype == array.dtype
    assert loaded.tolist() == array.tolist()


@pytest.mark.skipif(not NUMPY_2, reason="StringDType came with NumPy 2")
@pytest.mark.parametrize("missing", [False, None, float("nan")], ids=["no NA", "None", "nan"])
def test_strings_of_any_length_keep_their_dtype(missing: Any, path: Path) -> None:
    made = {} if missing is False else {"na_object": missing}
    dtype = np.dtypes.StringDType(**made)
    texts = ["", "short", "long " * 200, "\U0001f600", *([missing] if made else [])]
    array = np.array(texts, dtype=dtype)
    loaded = round_trip(array, path)
    assert loaded.dtype == dtype
    assert [str(text) for text in loaded] == [str(text) for text in texts]


def test_masked_arrays_keep_mask_and_fill_value(path: Path) -> None:
    array = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0], fill_value=7)
    loaded = round_trip([array, np.ma.masked], path)
    assert type(loaded[0]) is type(array)
    assert loaded[0].mask.tolist() == [False, True, False]
    assert loaded[0].fill_value == 7
    assert loaded[1] is np.ma.masked


def test_record_arrays_and_matrices_keep_their_class(path: Path) -> None:
    record = np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matrix is not recommended
        matrix = np.matrix([[1, 2], [3, 4]])
        loaded = round_trip([record, record[0], matrix], path)
    assert_same_array(record, loaded[0])
    assert loaded[0].b.tolist() == [2, 4]
    assert (type(loaded[1]), loaded[1].a) == (np.record, 1)
    assert type(loaded[2]) is np.matrix
    assert loaded[2].tolist() == [[1, 2], [3, 4]]


class Tagged(np.ndarray[Any, Any]):
    """A subclass with an attribute, as NumPy's manual has it pickled."""

    def __reduce__(self) -> Any:
        function, args, state = super().__reduce__()
        return function, args, (*state, self.tag)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[:-1])
        self.tag = state[-1]


class Plain(np.ndarray[Any, Any]):
    """A subclass whose attributes NumPy's own reduction drops."""

    unit: Any
    itself: Any

    def __array_finalize__(self, other: Any) -> None:
        if isinstance(other, Plain):
            self.unit = other.unit


@pytest.mark.parametrize("force", [False, True])
def test_attributes_of_a_subclass_are_kept_where_numpy_drops_them(force: bool, path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3).view(Plain)
    array.unit, array.itself = "m", array
    loaded = round_trip([array, *([lambda: None] if force else [])], path)[0]
    assert_same_array(array.view(np.ndarray), loaded.view(np.ndarray))
    assert type(loaded) is Plain
    assert (loaded.unit, loaded.itself is loaded, loaded[0].unit) == ("m", True, "m")
    assert genesis.verify(path).ok


def test_subclasses_keep_their_class_and_attributes(path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3).view(Tagged)
    array.tag = ["a"]
    loaded = round_trip(array, path)
    assert_same_array(array, loaded)
    assert loaded.tag == ["a"]


SCALARS = [
    *(np.float32(1.5), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j)),
    *(np.float16(0.1), np.longdouble(1) / 3, np.str_("x"), np.bytes_(b"x"), np.void(b"abc")),
    *(np.datetime64("2020-01-01"), np.datetime64("NaT", "s"), np.timedelta64(3, "m")),
    filled(ALIGNED)[0],
]


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("keywords", [{}, {"weights_only": True}], ids=str)
def test_scalars_keep_type_and_bytes(scalar: Any, keywords: dict[str, Any], path: Path) -> None:
    loaded = round_trip(scalar, path, **keywords)
    assert type(loaded) is type(scalar)
    assert loaded.dtype == scalar.dtype
    assert loaded.tobytes() == scalar.tobytes()


DTYPES: list[Any] = [
    *("f4", ">i4", "U5", "S0", "O", "M8[25s]", "m8", "V7", "?"),
    *(ALIGNED, PADDED, UNION, TITLES, NESTED, np.dtype(("f4", (2, 3)))),
    np.dtype("i4", metadata={"unit": "m"}),
    np.dtype("i4", metadata={"of": (1, None)}),
    np.dtype(("f4", (2, 3)), metadata={"unit": "m"}),
    np.dtype((np.record, ALIGNED)),
    np.dtype((np.record, [("a", ALIGNED, (2,))]), metadata={1: b"m", "n": None}),
    np.dtype([]),
    np.dtype([("a", "O"), ("b", "f4")]),
    *([np.dtypes.StringDType()] if NUMPY_2 else []),
]


@pytest.mark.parametrize("keywords", [{}, {"weights_only": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.dtype(each) for each in DTYPES], ids=str)
def test_dtypes_are_the_same(dtype: np.dtype[Any], keywords: dict[str, Any], path: Path) -> None:
    if keywords and (dtype.hasobject or "of" in (dtype.metadata or {})):
        with pytest.raises(genesis.UnsafeLoadError, match="dtype"):
            round_trip(dtype, path, **keywords)
        return
    loaded = round_trip(dtype, path, **keywords)
    assert loaded == dtype
    assert (type(loaded), loaded.metadata) == (type(dtype), dtype.metadata)
    assert (loaded.isalignedstruct, loaded.fields) == (dtype.isalignedstruct, dtype.fields)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.Philox, np.random.MT19937])
def test_generators_go_on_where_they_were(kind: Any, path: Path) -> None:
    generator = np.random.Generator(kind(3))
    generator.random(5)
    assert round_trip(generator, path).random() == generator.random()


def test_the_state_of_the_global_generator_can_be_set_again(path: Path) -> None:
    state = np.random.RandomState(3).get_state()
    again = np.random.RandomState()
    again.set_state(round_trip(state, path))
    assert again.random() == np.random.RandomState(3).random()


def ml_dtypes() -> list[Any]:
    module = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    found = [value for value in vars(module).values() if isinstance(value, type)]
    return sorted((each for each in found if issubclass(each, np.generic)), key=str)


@pytest.mark.parametrize("keywords", [{}, {"weights_only": True}], ids=str)
def test_arrays_of_every_ml_dtype_come_back(keywords: dict[str, Any], path: Path) -> None:
    kinds = ml_dtypes()
    assert len(kinds) >= 8
    for kind in kinds:
        array = np.array([0, 1, 1, 0]).astype(kind).reshape(2, 2)
        for each in (array, array.T, array[0], array[:0], array[1, 1]):
            loaded = round_trip(each, path, **keywords)
            assert (type(loaded), loaded.dtype, loaded.shape) == (type(each), kind, each.shape)
            assert loaded.tobytes() == each.tobytes()
            assert genesis.validate_checkpoint(path)[1] == "Missing model_state_dict"


# --- The file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_the_skeleton_of_arrays_names_only_numpy_ndarray_and_dtype(name: str, path: Path) -> None:
    genesis.save({"x": ARRAYS[name]()}, path)
    skeleton = take_apart(path).skeleton
    assert b"numpy" in skeleton
    for name in ("multiarray", "_reconstruct", "_frombuffer", "scalar"):
        assert name.encode() not in skeleton


def test_a_large_array_stands_in_the_file_as_it_stands_in_memory(path: Path) -> None:
    array = np.random.default_rng(1).random(3_000_000)
    genesis.save({"a": array}, path)
    assert path.read_bytes()[64 : 64 + array.nbytes] == array.tobytes()
    assert_same_array(array, genesis.load(path)["a"])
    assert_same_array(array, genesis.load(path, mmap=True, verify=True)["a"])


def test_what_an_earlier_save_staged_shows_in_no_gap(path: Path) -> None:
    """Staging memory is used again; the bytes between arrays are zeros all the same."""
    genesis.save({"a": np.full(100_000, 0xAB, "u1")}, path)
    genesis.save({"a": np.full(3, 1, "u1"), "b": np.full(70_001, 1, "u1")}, path)
    data = take_apart(path).data
    assert data[3:64] == bytes(61)
    assert set(data[64 + 70_001 :]) <= {0}
    genesis.save({"a": np.full(3, 1, "u1")}, path, background=True).result()
    assert take_apart(path).data[3:] == bytes(61)


SCATTERED = {
    "every second": lambda: np.arange(60_000)[::2],
    "backwards": lambda: np.arange(30_000, dtype=">i4")[::-1],
    "columns": lambda: np.arange(90_000, dtype=np.int16).reshape(100, 900)[:, 3:800],
    "axes exchanged": lambda: np.arange(60_000).reshape(20, 30, 100).transpose(1, 0, 2),
    "repeated": lambda: np.broadcast_to(np.arange(300), (100, 300)),
    "one row": lambda: np.arange(200_000).reshape(1, 1, 200_000)[..., ::5],
    "structures": lambda: np.ones(20_000, [("a", "<i4"), ("b", "S3"), ("c", "<f8")])[::2],
}


@pytest.mark.parametrize("make", SCATTERED.values(), ids=SCATTERED)
def test_large_arrays_that_are_not_contiguous_are_read_in_parts(
    make: Callable[[], Any], path: Path
) -> None:
    array = make()
    assert array.nbytes >= 1 << 16
    assert not array.flags.forc
    expected = array.tobytes()
    for start, size in [(0, len(expected)), (1, 7), (65, 30_001), (len(expected) - 9, 9)]:
        part = bytearray(size)
        ScatteredBytes(array).read_into(memoryview(part), start)
        assert part == expected[start : start + size]
    loaded = round_trip(array, path)
    assert loaded.flags.c_contiguous
    assert (loaded.dtype, loaded.shape, loaded.tobytes()) == (array.dtype, array.shape, expected)
