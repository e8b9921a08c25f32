"""The model of a disk: what it lets a power cut take, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .disk import SECTOR, Change, Inode, PowerCuts, Recording, State, Sync
from .replay import UnknownCallError, read_trace
from .tracer import Call, Trace

OLD, NEW = b"o" * 4 * SECTOR, b"n" * 4 * SECTOR


def _recording(*changes: Change, syncs: tuple[Sync, ...] = ()) -> Recording:
    return Recording(DIRECTORY, {"a": FILE}, list(changes), list(syncs))


DIRECTORY, FILE, OTHER = Inode(0), Inode(1, OLD), Inode(2)
WRITE = Change(FILE, 1, 2, offset=0, data=NEW)
CREATE = Change(DIRECTORY, 1, 2, names=(("b", OTHER),))
RENAME = Change(DIRECTORY, 3, 4, names=(("b", None), ("a", OTHER)))


def _states(recording: Recording, time: int = 100) -> list[State]:
    return list(PowerCuts(recording).states_at(time))


def _contents(recording: Recording) -> set[bytes]:
    return {state["a"].content for state in _states(recording)}


def test_a_write_that_was_not_synced_may_be_missing_whole_or_torn() -> None:
    seen = _contents(_recording(WRITE))
    assert {OLD, NEW} < seen
    assert NEW[:SECTOR] + OLD[SECTOR:] in seen
    assert OLD[:SECTOR] + NEW[SECTOR:] in seen
    torn = [content for content in seen if content not in (OLD, NEW)]
    sectors = {content[at : at + SECTOR] for content in torn for at in range(0, 2048, SECTOR)}
    assert sectors == {OLD[:SECTOR], NEW[:SECTOR]}


def test_a_write_that_was_synced_stays() -> None:
    assert _contents(_recording(WRITE, syncs=(Sync(FILE, 3, 4),))) == {NEW}


def test_a_sync_covers_nothing_that_ends_after_it_began() -> None:
    assert OLD in _contents(_recording(WRITE, syncs=(Sync(FILE, 1, 4),)))


def test_a_sync_of_a_file_does_not_cover_its_name() -> None:
    names = {tuple(state) for state in _states(_recording(CREATE, syncs=(Sync(OTHER, 3, 4),)))}
    assert names == {("a",), ("a", "b")}


def test_names_that_were_not_synced_come_in_any_combination() -> None:
    found = {
        tuple((name, file.label[0]) for name, file in sorted(state.items()))
        for state in _states(_recording(CREATE, RENAME))
    }
    assert found == {(("a", 1),), (("a", 1), ("b", 2)), (("a", 2),)}


def test_a_file_that_grew_may_be_long_and_empty() -> None:
    grown = Change(FILE, 1, 2, offset=len(OLD), data=NEW)
    assert OLD + bytes(len(NEW)) in _contents(_recording(grown))


def test_two_names_of_one_file_agree() -> None:
    link = Change(DIRECTORY, 1, 2, names=(("b", FILE),))
    states = _states(_recording(link, WRITE))
    assert all(state["a"] == state["b"] for state in states if "b" in state)


def test_nothing_is_lost_before_it_happens() -> None:
    assert {state["a"].content for state in _states(_recording(WRITE), time=0)} == {OLD}


def test_a_call_without_a_model_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    opened = Call(1, 9, 9, "openat", [-100, 0, os.O_RDWR, 0, 0, 0], ("/", path), 1, 2, 3)
    copied = Call(2, 9, 9, "copy_file_range", [3, 0, 3, 0, 1, 0], (path, path), 3, 4, 1)
    with pytest.raises(UnknownCallError, match="copy_file_range"):
        read_trace(Trace([opened, copied]), str(tmp_path), {"a": (OLD, 0o600)}, 0o022)
