"""Tests that any `genesis.storage.Storage` must pass. They run under pytest, unittest or by hand.

    from genesis.testing import StorageTests

    class TestMine(StorageTests):
        def make_storage(self):
            return Mine()

Nothing of pytest is imported, and a storage is used only through what its protocol promises.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import Any

from . import _public
from ._load import load, verify
from ._save import remove, save
from .storage import Location, Storage

__all__ = ["StorageTests"]

_BIG = 9 << 20
"""Bytes of a state that is written in several windows and read in many chunks."""


class StorageTests:
    """One behaviour of a storage a method; each begins with a fresh, empty one."""

    def make_storage(self) -> Storage:
        """An empty storage, which no other test uses."""
        raise NotImplementedError(f"{type(self).__name__} must say how its storage is made")

    # What is written is what is read

    def test_committed_bytes_are_read(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"first ", b"second")
        assert _get(storage, "a") == b"first second"
        assert list(storage.names()) == ["a"]

    def test_ranges_are_read_where_they_are(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", bytes(range(100)))
        source = storage.open("a")
        try:
            target = bytearray(10)
            assert source.size() == 100
            assert source.read(3, 50) == bytes([50, 51, 52])
            assert source.read_into(memoryview(target), 90) == 10
            assert target == bytes(range(90, 100))
        finally:
            source.close()

    def test_a_range_past_the_end_is_shorter(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"0123456789")
        source = storage.open("a")
        try:
            target = bytearray(8)
            assert source.read(8, 7) == b"789"
            assert source.read(8, 20) == b""
            assert source.read_into(memoryview(target), 7) == 3
            assert target == b"789" + bytes(5)
        finally:
            source.close()

    def test_a_writer_may_use_its_buffer_again(self) -> None:
        storage = self.make_storage()
        buffer = bytearray(b"one")
        sink = storage.create("a")
        sink.write(buffer, 0)
        buffer[:] = b"two"
        sink.write(memoryview(buffer), 3)
        sink.commit()
        assert _get(storage, "a") == b"onetwo"

    def test_no_bytes_at_all_are_a_name_too(self) -> None:
        storage = self.make_storage()
        _put(storage, "a")
        assert _get(storage, "a") == b""
        assert list(storage.names()) == ["a"]

    def test_a_source_is_read_by_several_threads(self) -> None:
        storage = self.make_storage()
        data = bytes(range(256)) * 256
        _put(storage, "a", data)
        source = storage.open("a")
        parts: dict[int, bytes] = {}

        def read(offset: int) -> None:
            parts[offset] = source.read(4096, offset)

        try:
            offsets = range(0, len(data), 4096)
            threads = [threading.Thread(target=read, args=(offset,)) for offset in offsets]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            source.close()
        assert b"".join(parts[offset] for offset in offsets) == data

    # Whole or not at all

    def test_nothing_is_seen_before_the_commit(self) -> None:
        storage = self.make_storage()
        sink = storage.create("a")
        sink.write(b"half", 0)
        assert list(storage.names()) == []
        _raises(FileNotFoundError, lambda: storage.open("a"))
        sink.commit()
        assert _get(storage, "a") == b"half"

    def test_the_old_bytes_stand_until_the_commit(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"the old ones")
        sink = storage.create("a")
        sink.write(b"new", 0)
        assert _get(storage, "a") == b"the old ones"
        sink.commit()
        assert _get(storage, "a") == b"new"

    def test_what_is_discarded_was_never_there(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"old")
        for name in ("a", "b"):
            sink = storage.create(name)
            sink.write(b"new", 0)
            sink.discard()
            sink.discard()
        assert list(storage.names()) == ["a"]
        assert _get(storage, "a") == b"old"

    def test_to_discard_after_a_commit_undoes_nothing(self) -> None:
        storage = self.make_storage()
        sink = storage.create("a")
        sink.write(b"new", 0)
        sink.commit()
        sink.discard()
        assert _get(storage, "a") == b"new"

    def test_an_open_source_keeps_what_it_began_with(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"old" * 1000)
        source = storage.open("a")
        try:
            assert source.read(3, 0) == b"old"
            _put(storage, "a", b"new")
            assert source.size() == 3000
            assert source.read(3, 2997) == b"old"
        finally:
            source.close()
            source.close()

    def test_the_last_commit_wins(self) -> None:
        storage = self.make_storage()
        one, other = storage.create("a"), storage.create("a")
        one.write(b"one", 0)
        other.write(b"other", 0)
        other.commit()
        one.commit()
        assert _get(storage, "a") == b"one"

    # Names

    def test_a_name_that_is_not_there_is_an_error(self) -> None:
        storage = self.make_storage()
        _raises(FileNotFoundError, lambda: storage.open("a"))

    def test_a_removed_name_is_gone(self) -> None:
        storage = self.make_storage()
        _put(storage, "a", b"1")
        _put(storage, "b", b"2")
        assert storage.remove("a")
        assert not storage.remove("a")
        assert list(storage.names()) == ["b"]
        _raises(FileNotFoundError, lambda: storage.open("a"))

    # Checkpoints

    def test_a_state_is_saved_and_loaded(self) -> None:
        place = Location(self.make_storage(), "a")
        state = {"big": array("B", bytes(_BIG)), "step": 3}
        save(state, place, clear=False)
        for options in ({}, {"mmap": True}):
            found = load(place, **options)  # type: ignore[arg-type]
            assert found == state
        report = verify(place)
        assert report, report.problem

    def test_a_background_save_replaces_the_state(self) -> None:
        storage = self.make_storage()
        place = Location(storage, "a")
        saves: list[Any] = [save({"step": n}, place, background=True) for n in range(3)]
        assert load(place) == {"step": 2}
        assert [each.result().outcome for each in saves] == ["durable"] * 3
        remove(place)
        assert list(storage.names()) == []
        _raises(FileNotFoundError, lambda: load(place))
        _raises(FileNotFoundError, lambda: remove(place))


def _put(storage: Storage, name: str, *parts: bytes) -> None:
    sink = storage.create(name)
    offset = 0
    for part in parts:
        sink.write(part, offset)
        offset += len(part)
    sink.commit()


def _get(storage: Storage, name: str) -> bytes:
    source = storage.open(name)
    try:
        return source.read(source.size(), 0)
    finally:
        source.close()


def _raises(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected, and nothing was raised")


_public.publish(globals())
