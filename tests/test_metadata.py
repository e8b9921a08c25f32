"""Metadata: what people have is taken, what cannot be is named, and the index stays strict JSON."""

from __future__ import annotations

import collections
import decimal
import enum
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optional import needs_torch, torch
from second_writer import assemble, index

import genesis

Pair = collections.namedtuple("Pair", "a b")


class Level(enum.IntEnum):
    HIGH = 3


def stored(metadata: Any, path: Path) -> dict[str, Any]:
    genesis.save({"a": 1}, path, metadata=metadata)
    return genesis.load_metadata(path)


def strict(path: Path) -> dict[str, Any]:
    """The index as a reader of JSON sees it that knows no word beyond the standard's."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    file = path.read_bytes()
    length = int.from_bytes(file[-32:-24], "little")
    record: dict[str, Any] = json.loads(file[-64 - length : -64], parse_constant=refuse)
    return record


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"best": math.inf}, {"best": math.inf}),
        ({"worst": -math.inf, "b": [0, {"c": (1, math.inf)}]}, None),
        ({"loss": np.float32(0.5), "step": np.int64(3), "on": np.bool_(True)}, None),
        ({"best": np.float64("-inf"), "text": np.str_("a")}, None),
        ({"array": np.array(2.5), "of one": [np.array(7)]}, {"array": 2.5, "of one": [7]}),
        ({"level": Level.HIGH}, {"level": 3}),
        (
            {7: "a", None: "b", True: "c", 0.5: "d"},
            {"7": "a", "null": "b", "true": "c", "0.5": "d"},
        ),
        ({np.int64(5): 1}, {"5": 1}),
        (types.MappingProxyType({"a": collections.OrderedDict(b=1)}), {"a": {"b": 1}}),
        ({"pair": Pair(1, 2)}, {"pair": [1, 2]}),
        ({"none": None, "text": "\ud800 ünï", "deep": [[[[]]]]}, None),
        ({}, {}),
        (None, {}),
    ],
    ids=range(13),
)
def test_what_people_have_is_taken(given: Any, expected: Any, path: Path) -> None:
    if expected is None:
        expected = json.loads(json.dumps(given, default=lambda value: value.item()))
    found = stored(given, path)
    assert found == expected
    assert genesis.load(path) == {"a": 1}
    strict(path)


def test_nan_comes_back(path: Path) -> None:
    found = stored({"a": [math.nan, np.float32("nan")], "b": 1.5}, path)
    assert [math.isnan(number) for number in found["a"]] == [True, True]
    record = strict(path)
    assert record["metadata"] == {"a": [None, None], "b": 1.5}
    assert record["nonfinite"] == [[["a", 0], "nan"], [["a", 1], "nan"]]


def test_an_index_of_finite_numbers_is_as_it_was(path: Path) -> None:
    stored({"a": 1.5}, path)
    assert "nonfinite" not in strict(path)


@pytest.mark.parametrize("framework", ["torch", "jax.numpy"])
def test_tensors_of_no_dimension_are_numbers(framework: str, path: Path) -> None:
    module = pytest.importorskip(framework)
    tensor = module.tensor if framework == "torch" else module.asarray
    given = {"loss": tensor(0.5), "step": tensor(3), "on": tensor(True), "best": tensor(math.inf)}
    found = stored(given, path)
    assert found == {"loss": 0.5, "step": 3, "on": True, "best": math.inf}
    assert type(found["step"]) is int
    if framework == "torch":
        assert stored({"a": tensor(0.5, dtype=module.bfloat16)}, path) == {"a": 0.5}


def itself() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["me"] = made
    return made


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"a": {"b": [0, {1}]}}, r"metadata\['a'\]\['b'\]\[1\] is set"),
        ({"a": np.ones(3)}, r"metadata\['a'\] is numpy.ndarray \(its tolist\(\)"),
        ({"a": decimal.Decimal(1)}, r"metadata\['a'\] is decimal.Decimal"),
        ({"a": 1j}, r"metadata\['a'\] is complex"),
        ({"a": np.complex64(1)}, r"metadata\['a'\] is numpy.complex64"),
        ({"a": np.datetime64("2026-01-01")}, r"metadata\['a'\] is numpy.datetime64"),
        ({"a": b"bytes"}, r"metadata\['a'\] is bytes"),
        ({"a": {1: "x", "1": "y"}}, r"metadata\['a'\] has the keys 1 and '1'"),
        ({None: 1, "null": 2}, r"metadata has the keys None and 'null'"),
        ({"a": {(1, 2): 3}}, r"metadata\['a'\] has the key \(1, 2\) of tuple"),
        ({math.inf: 3}, r"metadata has the key inf of float"),
        ([1], r"metadata must be a mapping.*not list"),
        (itself(), r"metadata\['me'\].* holds itself"),
        ({"a": 1 << 50_000}, r"metadata\['a'\] has more than"),
    ],
    ids=range(14),
)
def test_what_cannot_be_written_is_named(given: Any, problem: str, path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        genesis.save({"a": 1}, path, metadata=given)
    assert not path.exists()


def test_metadata_is_looked_at_before_any_object_is(path: Path) -> None:
    class HandsOver:
        given = 0

        def __getstate__(self) -> Any:
            HandsOver.given += 1
            return {}

    with pytest.raises(TypeError, match="set"):
        genesis.save({"a": HandsOver()}, path, metadata={"a": {1}})
    assert HandsOver.given == 0


@pytest.mark.parametrize(
    "notes",
    [None, 5, [5], [[["a"]]], [[[], "inf"]], [[["b"], "inf"]], [[["a"], "1"]], [[["c", 7], "nan"]]],
    ids=range(8),
)
def test_notes_that_fit_nowhere_are_damage(notes: Any, path: Path) -> None:
    trailing = index(metadata={"a": None, "b": 1, "c": []}, nonfinite=notes)
    path.write_bytes(assemble(b"\x80\x05N.", trailing=trailing))
    if notes is None:
        notes = []
        assert genesis.load_metadata(path)["a"] is None
        return
    with pytest.raises(genesis.ChecksumError, match="index cannot be read"):
        genesis.load_metadata(path)


@needs_torch
def test_a_number_without_a_value_is_named(path: Path) -> None:
    with pytest.raises(TypeError, match=r"metadata\['best'\] is torch\.Tensor without a value"):
        genesis.save({}, path, clear=False, metadata={"best": torch.empty((), device="meta")})
    with pytest.raises(TypeError, match=r"metadata\['best'\] is masked, so it has no value"):
        genesis.save({}, path, clear=False, metadata={"best": np.ma.masked})
    assert not path.exists()


def test_a_key_of_more_digits_than_python_writes_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"metadata\['a'\] has more than 10,000 bits"):
        genesis.save({}, path, clear=False, metadata={"a": {10**5000: 1}})
