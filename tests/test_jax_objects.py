"""JAX arrays: dtypes, weak types, keys and trees. Skipped where JAX is not installed."""

from __future__ import annotations

import pickletools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contention import held
from same import assert_same_array
from second_reader import read, take_apart

import genesis

jax = pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("jax.experimental")
jnp = jax.numpy

DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32"),
    *(
        "bfloat16",
        "complex64",
        "int4",
        "uint4",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3b11fnuz",
    ),
    *("float8_e4m3fnuz", "float8_e5m2fnuz"),
]


def round_trip(value: Any, path: Path, **keywords: Any) -> Any:
    genesis.save({"x": value}, path, clear=False)
    return genesis.load(path, **keywords)["x"]


def assert_same(one: Any, other: Any) -> None:
    assert isinstance(other, jax.Array)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.weak_type == other.weak_type
    assert_same_array(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("keywords", [{}, {"mmap": True}, {"weights_only": True}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_every_dtype_comes_back(
    dtype: str, keywords: dict[str, Any], path: Path
) -> None:
    array = jnp.array([[0, 1, 2], [3, 1, 0]]).astype(getattr(jnp, dtype))
    assert_same(array, round_trip(array, path, **keywords))


@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (2, 3, 4), (1,)])
def test_arrays_keep_their_shape(shape: tuple[int, ...], path: Path) -> None:
    array = jnp.arange(int(np.prod(shape)), dtype="float32").reshape(shape)
    assert_same(array, round_trip(array, path))


def test_weak_types_stay_weak(path: Path) -> None:
    """They decide the dtype of what is computed from them."""
    weak = jnp.asarray(3.0)
    assert weak.weak_type
    loaded = round_trip([weak, jnp.float32(3), jnp.asarray(1.0) * 2], path)
    assert [array.weak_type for array in loaded] == [True, False, True]
    assert (loaded[0] + jnp.ones(1, "bfloat16")).dtype == "bfloat16"


@pytest.mark.parametrize("make", ["key", "PRNGKey"])
def test_random_keys_go_on_where_they_were(make: str, path: Path) -> None:
    key = getattr(jax.random, make)(3)
    loaded = round_trip({"one": key, "split": jax.random.split(key)}, path)
    assert loaded["one"].dtype == key.dtype
    assert jax.random.uniform(loaded["one"]) == jax.random.uniform(key)
    assert jax.random.bits(loaded["split"][1]) == jax.random.bits(jax.random.split(key)[1])


def test_one_array_in_two_places_stays_one(path: Path) -> None:
    array = jnp.arange(1000.0)
    loaded = round_trip([array, {"again": array}], path)
    assert loaded[0] is loaded[1]["again"]
    assert path.stat().st_size < 1.5 * array.nbytes


def test_trees_keep_their_structure(path: Path) -> None:
    tree = {"a": [jnp.ones(2), None], "b": (jnp.zeros(()), {"c": np.ones(3)}), "d": 1.5}
    loaded = round_trip(tree, path)
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *(
        jax.tree.map(jnp.asarray, each) for each in (tree, loaded)))))  # fmt: skip


def test_partials_and_lambdas_over_arrays_work(path: Path) -> None:
    weight = jnp.arange(3.0)
    loaded = round_trip([jax.tree_util.Partial(lambda w, x: w * x, weight), weight], path)
    assert loaded[0](2.0).tolist() == [0, 2, 4]
    assert loaded[0].args[0] is loaded[1]


def test_arrays_with_a_sharding_of_one_device_come_back(path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    array = jax.device_put(jnp.arange(4.0), sharding)
    assert_same(jnp.arange(4.0), round_trip(array, path))


def test_an_array_that_was_deleted_is_refused_with_its_place(path: Path) -> None:
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(genesis.UnpicklableStateError, match="deleted") as caught:
        genesis.save({"a": [array]}, path)
    assert caught.value.place == "['a'][0]"


def test_a_traced_array_is_refused(path: Path) -> None:
    @jax.jit
    def step(x: Any) -> Any:
        genesis.save({"x": x}, path)
        return x

    with pytest.raises(genesis.UnpicklableStateError, match=r"[Tt]race"):
        step(jnp.ones(3))


def test_an_array_whose_buffer_is_donated_during_a_background_save_is_saved_whole(
    path: Path,
) -> None:
    array = jnp.arange(1_000_000.0)
    future = genesis.save({"a": array}, path, background=True, clear=False)
    jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(array).block_until_ready()
    future.result()
    assert bool((genesis.load(path)["a"] == jnp.arange(1_000_000.0)).all())


def test_a_file_names_what_later_versions_of_jax_have(path: Path) -> None:
    genesis.save({"x": jnp.arange(3)}, path)
    names = [arg for _, arg, _ in pickletools.genops(take_apart(path).skeleton) if arg]
    assert "jax.numpy" in names
    assert not [name for name in names if str(name).startswith("jax._src")]


def test_a_second_reader_reads_jax_arrays(path: Path) -> None:
    array = jnp.arange(6, dtype="bfloat16").reshape(2, 3)
    genesis.save({"x": array}, path)
    assert_same(array, read(path)["x"])
    assert np.asarray(array).tobytes() in take_apart(path).data


# --- Arrays over memory that others write ---------------------------------------------------------


def over_a_tensor() -> tuple[Any, Callable[[], object]]:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(1_000_000.0)
    return jax.dlpack.from_dlpack(tensor), lambda: tensor.fill_(7)


def over_an_array() -> tuple[Any, Callable[[], object]]:
    memory = aligned(4_000_000).view("f4")
    memory[:] = np.arange(1_000_000)
    return jax.device_put(memory), lambda: memory.fill(7)


def aligned(size: int) -> np.ndarray[Any, Any]:
    """JAX takes memory for its own array that begins at a multiple of 64."""
    whole = np.zeros(size + 64, np.uint8)
    start = -whole.__array_interface__["data"][0] % 64
    return whole[start : start + size]


def passed_through() -> tuple[Any, Callable[[], object]]:
    array, change = over_a_tensor()
    return jax.jit(lambda x: x)(array), change


def over_a_loaded_array() -> tuple[Any, Callable[[], object]]:
    with tempfile.TemporaryDirectory() as folder:
        genesis.save({"x": np.arange(1_000_000, dtype="f4")}, Path(folder, "f"))
        loaded = genesis.load(Path(folder, "f"))["x"]
    return jax.device_put(loaded), lambda: loaded.fill(7)


def with_a_read_only_view() -> tuple[Any, Callable[[], object]]:
    memory = np.arange(1_000_000, dtype="f4")
    view = memory[:]
    view.flags.writeable = False
    return view, lambda: memory.fill(7)


@pytest.mark.parametrize(
    "make",
    [over_a_tensor, over_an_array, passed_through, over_a_loaded_array, with_a_read_only_view],
)
def test_what_others_write_after_a_background_save_is_not_in_the_file(
    make: Callable[[], tuple[Any, Callable[[], object]]], path: Path
) -> None:
    array, change = make()
    with held(path.parent):
        future = genesis.save({"x": [array]}, path, background=True)
        change()
    future.result(60)
    assert np.array_equal(genesis.load(path)["x"][0], np.arange(1_000_000, dtype="f4"))


@pytest.mark.parametrize("options", [{}, {"weights_only": True}], ids=["load", "weights only"])
def test_numbers_of_64_bits_that_lose_half_of_them_are_not_lost_in_silence(
    options: dict[str, Any], path: Path
) -> None:
    enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64
    with enable_x64(True):
        state = {"x": jnp.arange(3) + 2**40, "f": jnp.ones(2), "weak": jnp.asarray(0.1)}
        assert state["x"].dtype == "int64"
        if options:
            del state["weak"]
        genesis.save(state, path, clear=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert genesis.load(path, **options)["x"].tolist() == [2**40, 2**40 + 1, 2**40 + 2]
    with enable_x64(False), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert genesis.load(path, **options)["x"].dtype == "int32"
    assert [warning.category for warning in caught] == [genesis.PrecisionWarning] * len(state)
    assert {str(warning.message).split()[6] for warning in caught} == {"int64,", "float64,"}
    assert "jax_enable_x64" in str(caught[0].message)
    assert all(warning.filename == __file__ for warning in caught)
