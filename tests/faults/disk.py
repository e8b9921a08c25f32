"""What a disk may hold after a power cut: all that weak ordering allows, from a recorded save.

The model is weaker than any journaling file system: what was not synced may be there or not, in any
combination, whatever its order. `replay` makes the recordings; nothing here knows of system calls.

- Data: each 512-byte sector of a file is as one of the writes since the last sync of the file left
  it, or as it was before; the size is any that the file had since then; so a file may be long and
  full of zeros. Direct writes are no better: the device has a cache, too.
- Mode and owner: as before, or as after any change since the last sync.
- Names: any subset of the changes to a directory since it was last synced. One rename is one
  change: within a directory every file system in use does it in one step.
- A sync covers what had ended when it began, and of a file only the file: not its name, although
  ext4 and XFS happen to do that.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

SECTOR = 512


@dataclass(eq=False, slots=True)
class Inode:
    """A file or a directory; its content and mode as the recording began, or as it was created."""

    number: int
    content: bytes = b""
    mode: int = 0o600


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One change of one inode: data at an offset, a size, a mode, or names in a directory."""

    inode: Inode
    began: int
    ended: int
    offset: int = 0
    data: bytes | None = None
    size: int | None = None
    mode: int | None = None
    names: tuple[tuple[str, Inode | None], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sync:
    """What had changed of an inode (``None``: of everything) before it began lasts when it ends."""

    inode: Inode | None
    began: int
    ended: int
    data_only: bool = False


@dataclass(slots=True)
class Recording:
    """A save as the disk sees it.

    Attributes:
        names: the directory as it was when the recording began, all of it durable.
        durable: times at which a save was reported durable, in order.
    """

    directory: Inode
    names: dict[str, Inode]
    changes: list[Change] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    durable: list[int] = field(default_factory=list)

    @property
    def times(self) -> list[int]:
        """The moments after which a cut may leave something new."""
        ends = [change.ended for change in self.changes] + [sync.ended for sync in self.syncs]
        return [0, *sorted({*ends, *self.durable})]


@dataclass(frozen=True, slots=True)
class File:
    """What a cut may have left of one file. Equal files have equal labels."""

    label: tuple[object, ...]
    content: bytes = field(compare=False, repr=False)
    mode: int = 0o600


State = dict[str, File]


@dataclass(slots=True)
class Limits:
    """Where full enumeration ends and a seeded sample begins."""

    subsets: int = 128
    """Combinations of names at one moment."""
    samples: int = 6
    """Random mixtures of sectors for each file at one moment."""
    torn: int = 6
    """Places where each write is torn."""
    states: int = 400
    """States at one moment."""


class PowerCuts:
    """The states that a power cut may leave, by moment. The sample depends on `seed` only."""

    def __init__(self, recording: Recording, limits: Limits | None = None, seed: int = 1) -> None:
        self._recording = recording
        self._limits = limits or Limits()
        self._chance = random.Random(seed)
        self._made: dict[tuple[int, ...], list[File]] = {}

    def states_at(self, time: int) -> Iterator[State]:
        """Each state at least once, some more often."""
        names, open_names = _split(self._recording, self._recording.directory, time)
        base = dict(self._recording.names)
        for change in names:
            _rename(base, change)
        limits, chance = self._limits, self._chance
        for subset in _subsets(open_names, limits.subsets, chance):
            seen = dict(base)
            for change in subset:
                _rename(seen, change)
            variants = {inode: self._variants(inode, time) for inode in seen.values()}
            yield from _combinations(seen, variants, limits.states, chance)

    def _variants(self, inode: Inode, time: int) -> list[File]:
        fast, open_ = _split(self._recording, inode, time)
        key = inode.number, len(fast), len(open_)
        if key not in self._made:
            self._made[key] = list(_files(inode, fast, open_, self._limits, self._chance))
        return self._made[key]


def _split(recording: Recording, inode: Inode, time: int) -> tuple[list[Change], list[Change]]:
    """The changes of an inode that a cut cannot undo, and those that it can."""
    fast: list[Change] = []
    open_: list[Change] = []
    syncs = [s for s in recording.syncs if s.inode in (None, inode) and s.ended <= time]
    for change in recording.changes:
        if change.inode is not inode or change.began > time:
            continue
        covered = any(
            change.ended <= sync.began or change.ended == sync.ended
            for sync in syncs
            if not (sync.data_only and change.mode is not None)
        )
        (fast if covered else open_).append(change)
    return fast, open_


def _rename(names: dict[str, Inode], change: Change) -> None:
    for name, inode in change.names:
        names.pop(name, None)
        if inode is not None:
            names[name] = inode


def _subsets(
    changes: list[Change], limit: int, chance: random.Random
) -> Iterator[tuple[Change, ...]]:
    """All subsets, in order; where they are too many: all beginnings, all but one, and a sample."""
    if 1 << len(changes) <= limit:
        for choice in itertools.product((False, True), repeat=len(changes)):
            yield tuple(itertools.compress(changes, choice))
        return
    for count in range(len(changes) + 1):
        yield tuple(changes[:count])
        yield tuple(changes[:count] + changes[count + 1 :])
    for _ in range(limit):
        yield tuple(change for change in changes if chance.random() < 0.5)


def _files(
    inode: Inode, fast: list[Change], open_: list[Change], limits: Limits, chance: random.Random
) -> Iterator[File]:
    content, mode = bytearray(inode.content), inode.mode
    for change in fast:
        _write(content, change)
        mode = mode if change.mode is None else change.mode
    base = bytes(content)
    label = (inode.number, len(fast), len(open_))
    modes = [mode, *(change.mode for change in open_ if change.mode is not None)]
    data = [change for change in open_ if change.mode is None]
    for number, made in enumerate(_contents(base, data, limits, chance)):
        yield File((*label, number, modes[-1]), made, modes[-1])
    for other in modes[:-1]:
        whole = bytearray(base)
        for change in data:
            _write(whole, change)
        yield File((*label, "mode", other), bytes(whole), other)


def _write(content: bytearray, change: Change) -> None:
    if change.size is not None:
        _resize(content, change.size)
    if change.data is not None:
        if len(content) < change.offset:
            _resize(content, change.offset)
        content[change.offset : change.offset + len(change.data)] = change.data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _contents(
    base: bytes, changes: list[Change], limits: Limits, chance: random.Random
) -> Iterator[bytes]:
    """What the bytes of a file may be: first the telling cases, then mixtures."""
    if not changes:
        yield base
        return
    for kept in _subsets(changes, 16, chance):
        yield _with(base, kept)
    for change in changes:
        before = changes[: changes.index(change)]
        for part in _torn(change, limits.torn, chance):
            yield _with(base, [*before, *part])
            yield _with(base, [*changes[: len(before)], *part, *changes[len(before) + 1 :]])
    whole = _with(base, changes)
    yield base + bytes(max(len(whole) - len(base), 0))  # the size came, the data did not
    sizes = sorted({len(_with(base, changes[:count])) for count in range(len(changes) + 1)})
    for size in sizes:
        yield whole[:size]
    for _ in range(limits.samples):
        yield _mixture(base, whole, chance)


def _with(base: bytes, changes: Iterable[Change]) -> bytes:
    content = bytearray(base)
    for change in changes:
        _write(content, change)
    return bytes(content)


def _torn(change: Change, count: int, chance: random.Random) -> Iterator[list[Change]]:
    """A write of which some sectors are missing: the end, the beginning, one in the middle."""
    if change.data is None:
        return
    first, end = change.offset, change.offset + len(change.data)
    cuts = list(range((first // SECTOR + 1) * SECTOR, end, SECTOR))
    some = sorted({*cuts[:1], *cuts[-1:], *chance.sample(cuts, min(count, len(cuts)))})
    for cut in some:
        head = replace(change, data=change.data[: cut - first])
        tail = replace(change, offset=cut, data=change.data[cut - first :])
        rest = replace(change, offset=cut + SECTOR, data=change.data[cut + SECTOR - first :])
        yield [head]
        yield [tail]
        if rest.data:
            yield [head, rest]


def _mixture(base: bytes, whole: bytes, chance: random.Random) -> bytes:
    """Each sector from before or from after, at a rate of its own for each mixture."""
    size = chance.choice([len(base), len(whole), max(len(base), len(whole))])
    old, new = base.ljust(size, b"\0")[:size], whole.ljust(size, b"\0")[:size]
    rate = chance.choice([0.02, 0.3, 0.7, 0.98])
    mixed = bytearray(old)
    for start in range(0, size, SECTOR):
        if chance.random() < rate:
            mixed[start : start + SECTOR] = new[start : start + SECTOR]
    return bytes(mixed)


def _combinations(
    names: dict[str, Inode],
    variants: dict[Inode, list[File]],
    limit: int,
    chance: random.Random,
) -> Iterator[State]:
    """One variant for each file; two names of one file always agree."""
    inodes = list(dict.fromkeys(names.values()))
    total = 1
    for inode in inodes:
        total *= len(variants[inode])
    choices: Iterable[tuple[File, ...]]
    if total <= limit:
        choices = itertools.product(*(variants[inode] for inode in inodes))
    else:
        choices = _sampled([variants[inode] for inode in inodes], limit, chance)
    for choice in choices:
        files = dict(zip(inodes, choice, strict=True))
        yield {name: files[inode] for name, inode in names.items()}


def _sampled(
    variants: list[list[File]], limit: int, chance: random.Random
) -> Iterator[tuple[File, ...]]:
    """Each variant of each file once beside the first of the others, then at random."""
    for index, own in enumerate(variants):
        for file in own:
            yield tuple(file if i == index else other[-1] for i, other in enumerate(variants))
    for _ in range(limit):
        yield tuple(chance.choice(own) for own in variants)
