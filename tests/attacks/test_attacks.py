"""The hostile corpus against every reader: nothing runs, each attack ends in an error by name.

One process runs all of it, under a limit of memory: a crash, a hang or an allocation driven by the
file fails every test here, and the last line of its output names the attack.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from assembler import call, name, stream, value
from genesis_files import genesis_file
from optional import jax, torch

import genesis

from .corpus import Attack, attacks

_HANG = 900
"""Seconds; the corpus takes less than a tenth of it."""

READERS = "load", "outline", "file", "mapped file", "foreign file"

_LEGITIMATE_ELSEWHERE = {"lies: BINPUT over the data region"}
"""Attacks that need a data region, and are ordinary pickles where there is none."""

Outcomes = dict[str, dict[str, Any]]


def run(folder: Path, *readers: str) -> dict[str, Outcomes]:
    if not (torch and jax):
        pytest.skip("the corpus needs torch and JAX")
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "attacks.runner", str(folder), *readers],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=_HANG,
        check=False,
    )
    assert done.returncode == 0, f"died of {done.returncode} at {done.stderr[-2000:]}"
    found: dict[str, Outcomes] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Attack]:
    return attacks(str(tmp_path_factory.mktemp("never") / "canary"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcomes]:
    return run(tmp_path_factory.mktemp("attacks"), *READERS)


def test_corpus_is_alive(tmp_path: Path, corpus: list[Attack]) -> None:
    """Each attack that claims to execute something does, when pickle itself reads it."""
    found = run(tmp_path, "pickle")["pickle"]

    assert len(found) == sum(attack.executes for attack in corpus) > 30
    assert [name for name, outcome in found.items() if not outcome["ran"]] == []


def test_attacks_have_names_of_their_own_and_say_what_they_try(corpus: list[Attack]) -> None:
    assert len({attack.name for attack in corpus}) == len(corpus) > 450
    assert all(attack.tries.endswith(".") for attack in corpus)


def test_the_page_on_reliability_states_the_counts(corpus: list[Attack]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")
    groups = {attack.name.partition(":")[0] for attack in corpus}
    refused = sum(bool(attack.match) for attack in corpus)

    assert f"{len(corpus)} attacks in {len(groups)} groups" in page
    assert f"{sum(attack.executes for attack in corpus)} of them execute something" in page
    assert f"{refused} end in a named error" in page
    assert f"{len(corpus) - refused} are odd and harmless values" in page


@pytest.mark.parametrize("reader", READERS)
def test_nothing_runs(outcomes: dict[str, Outcomes], reader: str) -> None:
    assert [name for name, outcome in outcomes[reader].items() if outcome["ran"]] == []


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_imported_looked_up_or_compiled(
    outcomes: dict[str, Outcomes], reader: str
) -> None:
    """As the interpreter's own audit events tell."""
    found = {name: outcome["events"] for name, outcome in outcomes[reader].items()}

    assert {name: events for name, events in found.items() if events} == {}


@pytest.mark.parametrize("reader", ["load", "file", "mapped file"])
def test_each_attack_is_refused_by_name(
    outcomes: dict[str, Outcomes], corpus: list[Attack], reader: str
) -> None:
    found = outcomes[reader]

    assert [a.name for a in corpus if a.match and not found[a.name].get("named")] == []


@pytest.mark.parametrize("reader", ["load", "file", "mapped file"])
def test_what_is_only_odd_gives_a_value(
    outcomes: dict[str, Outcomes], corpus: list[Attack], reader: str
) -> None:
    odd = {a.name: outcomes[reader][a.name] for a in corpus if not a.match}

    assert len(odd) > 20
    assert {name: outcome for name, outcome in odd.items() if "value" not in outcome} == {}


def test_each_attack_is_refused_in_a_foreign_file(
    outcomes: dict[str, Outcomes], corpus: list[Attack]
) -> None:
    found = outcomes["foreign file"]
    passed = {a.name for a in corpus if a.match and not found[a.name].get("named")}

    assert passed == _LEGITIMATE_ELSEWHERE


def test_each_attack_is_refused_for_the_right_reason(
    outcomes: dict[str, Outcomes], corpus: list[Attack]
) -> None:
    """Not, say, because memory ran out first."""
    found = outcomes["load"]

    for attack in filter(lambda attack: attack.match, corpus):
        assert re.search(attack.match, found[attack.name]["message"]), attack.name
    messages = [outcome.get("message", "") for outcome in found.values()]
    assert not [message for message in messages if "alloc" in message or "Memory" in message]


def test_outline_gives_an_outline_or_a_named_error(outcomes: dict[str, Outcomes]) -> None:
    errors = {outcome.get("error") for outcome in outcomes["outline"].values()}

    assert errors == {None, "CorruptCheckpointError"}


def test_outline_knows_the_bounds_of_arrays(
    outcomes: dict[str, Outcomes], corpus: list[Attack]
) -> None:
    names = [
        f"{kind} {what}"
        for kind, thing in (("numpy:", ""), ("torch: a storage", ""), ("torch: a tensor", ""))
        for what in ("too long", "too far", "before the start")
    ]

    found = outcomes["outline"]
    assert {found[name].get("error") for name in names} == {"CorruptCheckpointError"}


def test_a_long_name_in_the_index_makes_no_long_message(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(genesis_file(stream(value(None)), b"", pickler="x" * 1_000_000))

    with pytest.raises(genesis.ChecksumError, match="names no known pickler: 'xxx") as caught:
        genesis.load(path, weights_only=True)

    assert len(str(caught.value)) < 1000


def _names_in_the_index(skeleton: bytes, data: bytes) -> bytes:
    return genesis_file(skeleton, data, pickler="os.system")


def _begins_before_the_prologue(skeleton: bytes, data: bytes) -> bytes:
    return genesis_file(skeleton, data, skeleton_offset=64)


def _begins_in_the_data(skeleton: bytes, data: bytes) -> bytes:
    return genesis_file(b"N.", skeleton, skeleton_offset=64)


def _begins_after_an_opcode(skeleton: bytes, data: bytes) -> bytes:
    honest = genesis_file(b"", data)
    start = int.from_bytes(honest[-40:-32], "little")
    return genesis_file(b"N0" + skeleton, data, skeleton_offset=start + 2)


def _ends_early(skeleton: bytes, data: bytes) -> bytes:
    honest = genesis_file(b"N.", data)
    size = int.from_bytes(honest[-48:-40], "little")
    return genesis_file(b"N." + skeleton, data, stream_size=size)


def _says_dill(skeleton: bytes, data: bytes) -> bytes:
    return genesis_file(skeleton, data, pickler="dill")


@pytest.mark.parametrize(
    "make",
    [
        _names_in_the_index,
        _begins_before_the_prologue,
        _begins_in_the_data,
        _begins_after_an_opcode,
        _ends_early,
        _says_dill,
    ],
)
def test_a_trailer_that_disagrees_with_the_stream_runs_nothing(
    tmp_path: Path, make: Callable[[bytes, bytes], bytes]
) -> None:
    canary = tmp_path / "canary"
    hostile = stream(call(name("os", "system"), f"touch {canary}"))
    path = tmp_path / "checkpoint"
    path.write_bytes(make(hostile, bytes(64)))

    sound, _message = genesis.validate_checkpoint(path)
    with pytest.raises(genesis.CorruptCheckpointError, match="checkpoint"):
        genesis.load(path, weights_only=True)

    assert not sound
    assert not canary.exists()
