"""The plain tensors of a state, written ahead of the rest and remembered from save to save.

A training state is saved many times with the same tensors in it, and nothing about them changes but
their bytes. So their opcodes are written apart, and taken over by the next save whose tensors look
the same. Nothing that is remembered keeps a tensor alive, and a tensor that is left out here is
pickled where it stands.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import accumulate, compress, count
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from torch._utils import _rebuild_tensor_v2
from torch.multiprocessing.reductions import rebuild_typed_storage

from .._file.layout import HEADER_SIZE
from .._os.memory import align, all_readable
from .._tuning import give_up, on
from .buffers import DATA, NDARRAY, SMALL, DataRegion, SmallPieces, refuse_unreadable
from .torch import FROM_BUFFER, LITTLE, PLAIN_DTYPES, Placed, Storages, is_foreign

try:
    # What a compiled model looks at its arguments with: all properties of all tensors in one call.
    from torch._C._dynamo.guards import TensorGuards
except ImportError:
    TensorGuards = None  # type: ignore[assignment, misc]

_FEWEST = 64
_MOST = 200_000
"""Tensors that a ledger is made for: it takes about 700 bytes for each, and two are kept."""

_CONTAINERS = {dict, OrderedDict, list, tuple}
_TENSOR = torch.Tensor
_NOTHING_ELSE = {torch.Tensor}
_attributes: Callable[[Any], dict[str, Any]] = attrgetter("__dict__")
_key: Callable[[torch.UntypedStorage], int] = attrgetter("_cdata")
_address, _size = torch.UntypedStorage.data_ptr, torch.UntypedStorage.nbytes
_offset: Callable[[Any], int] = _TENSOR.storage_offset  # type: ignore[assignment]
_is_nested: Callable[[Any], bool] = attrgetter("is_nested")
_DTYPES = frozenset(dtype for dtype in PLAIN_DTYPES if not dtype.is_complex)
"""Complex tensors are left out for their conjugated views."""

_FUNCTIONS = _rebuild_tensor_v2, rebuild_typed_storage

_Memo = dict[int, tuple[int, Any]]


class Found(NamedTuple):
    """Tensors of a state, and where their bytes are."""

    tensors: list[torch.Tensor]
    storages: list[torch.UntypedStorage]
    """Held besides the tensors: `tensor.data` may be set to another before the copy."""
    offsets: list[int]
    """Where each tensor begins in its storage, in elements."""


class _Seen(NamedTuple):
    """Where storages were: of all tensors considered, but for the last."""

    addresses: list[int]
    sizes: list[int]
    foreign: set[int]
    """Which of the members' may be memory that is not torch's own."""


class _Looks(NamedTuple):
    """What the opcodes of tensors depend on, property by property."""

    dtypes: list[torch.dtype]
    shapes: list[torch.Size]
    strides: list[tuple[int, ...]]
    grads: list[bool]


_Columns = TypeVar("_Columns", Found, _Looks)


def _only(columns: _Columns, chosen: list[bool]) -> _Columns:
    kept: Any = (list(compress(column, chosen)) for column in columns)
    return type(columns)(*kept)


_recent: tuple[Ledger, ...] = ()
"""The last ledgers used. Replaced as a whole: a race between threads loses a ledger, and with it
some milliseconds."""


class Ledger:
    """Tensors as the beginning of a skeleton: each is put into the memo, none stays on the stack.

    Attributes:
        looks: of all tensors that were considered.
        members: which of them are in the ledger: those that have a storage to themselves.
        offsets: of all in their storages.
        last: the storages at the last save; only to be compared with, since a save on another
            thread may have set it.
        fits: off once a tensor from elsewhere turned out to share a member's storage.
        guards: what tells in one call whether tensors look like those considered.
        opcodes: of the members.
    """

    def __init__(self, looks: _Looks, offsets: list[int], members: list[bool]) -> None:
        self.looks = looks
        self.offsets = offsets
        self.members = members
        self.last: _Seen | None = None
        self.fits = True
        self.guards: Any = None
        mine = _only(looks, members)
        sizes = [
            shape.numel() * dtype.itemsize
            for dtype, shape in zip(mine.dtypes, mine.shapes, strict=True)
        ]
        starts = [0, *accumulate(map(align, sizes))]
        self._size = starts.pop()
        self._globals, self.opcodes = _write(mine, sizes, starts)
        offsets = [HEADER_SIZE + start for start in starts]
        self._are_small = [size < SMALL for size in sizes]
        self._small_offsets = list(compress(offsets, self._are_small))
        self._small_sizes = list(compress(sizes, self._are_small))
        places = enumerate(zip(offsets, sizes, strict=True))
        self._large = [(*place, number) for number, place in places if place[1] >= SMALL]

    def knows(self, found: Found) -> bool:
        """Whether these surely look like those considered; false where that cannot be told."""
        if self.guards is None or not on.guards or self.offsets != found.offsets:
            return False
        # A tensor without shape or strides would end the process here: `_addressable` left it out.
        try:
            with torch.enable_grad():  # or guards take `requires_grad` for off
                return bool(self.guards.check(*found.tensors))
        except Exception as exc:
            give_up("guards", exc)
            return False

    def guard(self, tensors: list[torch.Tensor]) -> None:
        if TensorGuards is None or not on.guards:
            return
        try:
            with torch.enable_grad():
                self.guards = TensorGuards(
                    *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
                )
        except Exception as exc:
            give_up("guards", exc)

    def open(self, found: Found, region: DataRegion) -> _Memo:
        """Lay members out in a fresh region; return the memo to pickle the rest with. Where their
        bytes are is asked when the region is closed: what is pickled meanwhile may move them."""
        mine = found if all(self.members) else _only(found, self.members)
        region.size = self._size
        region.small = SmallPieces(
            self._small_offsets.copy(), self._small_sizes.copy(), [], [found]
        )
        region.shared = Storages(region, _Claim(self, mine.storages))
        region.endings.append(partial(self._close, found, mine, region))
        numbered = zip(count(len(self._globals)), mine.tensors, strict=False)
        return self._globals | dict(zip(map(id, mine.tensors), numbered, strict=True))

    def _close(self, found: Found, mine: Found, region: DataRegion) -> None:
        seen = self._look(found)
        if seen is None:
            self.fits = False
            region.lessons = region.lessons or {}  # asks for a layout without this ledger
            return
        addresses, sizes = seen.addresses, seen.sizes
        if mine is not found:
            addresses, sizes = (list(compress(each, self.members)) for each in seen[:2])
        region.small.addresses[:0] = compress(addresses, self._are_small)
        region.small.foreign |= bool(seen.foreign)
        region.pieces[:0] = [
            (offset, size, addresses[number], mine.storages[number], False, number in seen.foreign)
            for offset, size, number in self._large
        ]
        region.checks.append(Placed(mine.storages, addresses, sizes).check)
        if not all_readable([addresses[number] + sizes[number] - 1 for number in seen.foreign]):
            refuse_unreadable()

    def _look(self, found: Found) -> _Seen | None:
        """Where the storages of all are now; ``None`` where other members would be right then."""
        last = self.last
        addresses = list(map(_address, found.storages))
        sizes = list(map(_size, found.storages))
        # Where all are as they were, each member still has its bytes to itself.
        if last is None or (last.addresses, last.sizes) != (addresses, sizes):
            if _members(found, self.looks, addresses, sizes) != self.members:
                return None
            mine = compress(found.storages, self.members)
            foreign = {number for number, one in enumerate(mine) if is_foreign(one)}
            self.last = last = _Seen(addresses, sizes, foreign)
        return last


class _Claim:
    """The storages of a ledger's tensors, looked at only where another storage is met."""

    def __init__(self, ledger: Ledger, storages: list[torch.UntypedStorage]) -> None:
        self._ledger = ledger
        self._storages = storages
        self._keys: set[int] | None = None

    def __contains__(self, storage: object) -> bool:
        if self._keys is None:
            self._keys = set(map(_key, self._storages))
        self._ledger.fits &= storage not in self._keys
        return storage in self._keys


def ledger_for(state: object) -> tuple[Ledger, Found] | None:
    """The ledger of the plain tensors of a state, and its members; ``None`` where there are too few
    to be worth it, or one shares a storage with a tensor that is no member."""
    global _recent
    if not on.ledger:
        return None
    found = _addressable(_tensors_in(state))
    ledger = next((one for one in _recent if one.knows(found)), None)
    if ledger is None:
        plain = _plain(found)
        if not _FEWEST <= len(plain.tensors) <= _MOST:
            return None
        ledger = _fitting_ledger(plain)
        if len(plain.tensors) == len(found.tensors):
            ledger.guard(plain.tensors)
        found = plain
    _recent = (ledger, *[one for one in _recent if one is not ledger][:1])
    return (ledger, found) if ledger.fits else None


def _fitting_ledger(found: Found) -> Ledger:
    """An earlier one, or a new one that has to be filled."""
    looks = _looks(found.tensors)
    addresses, sizes = map(_address, found.storages), map(_size, found.storages)
    members = _members(found, looks, list(addresses), list(sizes))
    for one in _recent:
        if (one.looks, one.offsets, one.members) == (looks, found.offsets, members):
            return one
    return Ledger(looks, found.offsets, members)


def _tensors_in(state: object) -> list[torch.Tensor]:
    """Every tensor that plain containers lead to, once."""
    found: list[torch.Tensor] = []
    seen: set[int] = set()
    waiting: list[Any] = [state] if type(state) in _CONTAINERS else []
    while waiting:
        container = waiting.pop()
        values = container.values() if isinstance(container, dict) else container
        types = set(map(type, values))
        if types == _NOTHING_ELSE:
            found += values
        elif id(container) not in seen:
            seen.add(id(container))
            found += [value for value in values if type(value) is _TENSOR]
            waiting += [value for value in values if type(value) in _CONTAINERS]
    return list(dict(zip(map(id, found), found, strict=True)).values())


def _addressable(tensors: list[torch.Tensor]) -> Found:
    """Those with an address, a shape and strides, and no attributes of their own. Each property is
    looked at by a loop in C, and most often no tensor is left out."""
    if any(map(_attributes, tensors)):
        tensors = [tensor for tensor in tensors if not _attributes(tensor)]
    if True in map(_is_nested, tensors):
        tensors = [tensor for tensor in tensors if not tensor.is_nested]
    try:
        return _found(tensors)
    except RuntimeError:  # something sparse or opaque
        return _found([tensor for tensor in tensors if _has_address(tensor)])


def _found(tensors: list[torch.Tensor]) -> Found:
    storages = list(map(_TENSOR.untyped_storage, tensors))
    return Found(tensors, storages, list(map(_offset, tensors)))


def _has_address(tensor: torch.Tensor) -> bool:
    with suppress(RuntimeError):
        tensor.data_ptr()
        return True
    return False


def _plain(found: Found) -> Found:
    """Those that are nothing but bytes in the memory of this machine."""
    return _only(found, [tensor.is_cpu and not tensor.is_neg() for tensor in found.tensors])


def _looks(tensors: list[torch.Tensor]) -> _Looks:
    return _Looks(
        list(map(attrgetter("dtype"), tensors)),
        list(map(attrgetter("shape"), tensors)),
        list(map(_TENSOR.stride, tensors)),
        list(map(attrgetter("requires_grad"), tensors)),
    )


def _members(found: Found, looks: _Looks, addresses: list[int], sizes: list[int]) -> list[bool]:
    """Which tensors cover a storage that none of the others stands on, without gap or overlap.

    Args:
        addresses, sizes: of the storages, in bytes.
    """
    keys = list(map(_key, found.storages))
    shared = {key for key, uses in Counter(keys).items() if uses > 1}
    extents = map(_extent, looks.dtypes, looks.shapes, looks.strides)
    bytes_of = map(attrgetter("nbytes"), found.tensors)
    return [
        not offset
        and 0 < size == of == extent
        and address != 0
        and key not in shared
        and dtype in _DTYPES
        for offset, size, of, extent, address, key, dtype in zip(
            found.offsets, bytes_of, sizes, extents, addresses, keys, looks.dtypes, strict=True
        )
    ]


def _extent(dtype: torch.dtype, shape: torch.Size, stride: tuple[int, ...]) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return (last + 1) * dtype.itemsize


# ------------------------------------------------------------------------------- opcodes


def _write(looks: _Looks, sizes: list[int], offsets: list[int]) -> tuple[_Memo, bytes]:
    """Opcodes that leave the tensors in the memo, and the memo before the first of them."""
    names = [
        (LITTLE, _string(LITTLE)),
        *((function, _global(function.__module__, function.__name__)) for function in _FUNCTIONS),
        *((dtype, _global(*str(dtype).split("."))) for dtype in {torch.uint8, *looks.dtypes}),
    ]
    memo: _Memo = {
        id(slot): (number, slot) for number, slot in enumerate((DATA, FROM_BUFFER, NDARRAY))
    }
    memo |= {id(named): (number, named) for number, (named, _) in enumerate(names, len(memo))}
    get = {named: b"h" + bytes([number]) for number, named in memo.values()}
    parts = [text + _KEEP for _, text in names]
    ends: dict[Any, tuple[bytes, bytes]] = {}
    for offset, size, *look in zip(offsets, sizes, *looks, strict=True):
        key = tuple(look)
        if key not in ends:
            ends[key] = _around_offset(get, size, *key)
        before, after = ends[key]
        parts += before, _integer(offset), after
    return memo, b"".join(parts)


def _around_offset(
    get: dict[Any, bytes],
    size: int,
    dtype: torch.dtype,
    shape: torch.Size,
    stride: tuple[int, ...],
    grad: bool,
) -> tuple[bytes, bytes]:
    """What stands before and after the data offset of a tensor: the same for all that look alike.

    ``_rebuild_tensor_v2(rebuild_typed_storage(from_buffer(DATA, 'little', size, offset, uint8),
    dtype), 0, shape, stride, grad, None)``
    """
    rebuild_tensor, rebuild_storage = (get[function] for function in _FUNCTIONS)
    before = rebuild_tensor + b"(" + rebuild_storage + get[FROM_BUFFER] + b"("
    before += get[DATA] + get[LITTLE] + _integer(size)
    storage = get[torch.uint8] + b"tR" + get[dtype] + b"\x86R"
    flag = b"\x88" if grad else b"\x89"
    view = _integer(0) + _integers(shape) + _integers(stride) + flag + b"N"
    return before, storage + view + b"tR" + _KEEP


_KEEP = b"\x940"
"""MEMOIZE, POP."""


def _global(module: str, name: str) -> bytes:
    return _string(module) + _string(name) + b"\x93"


def _string(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _integers(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"


def _integer(number: int) -> bytes:
    if number < 1 << 8:
        return b"K" + number.to_bytes(1, "little")
    if number < 1 << 16:
        return b"M" + number.to_bytes(2, "little")
    if number < 1 << 31:
        return b"J" + number.to_bytes(4, "little")
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little")
