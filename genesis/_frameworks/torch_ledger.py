"""The plain tensors of a state, pickled ahead of the rest and remembered from save to save.

A training state is saved many times with the same tensors in it, and nothing about them changes but
their bytes. So they are pickled apart; a later save whose tensors look the same takes over opcodes
and places, and pickles only what refers to them. Nothing that is remembered keeps memory of a
tensor alive, and a tensor that is missed here is pickled where it stands.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from itertools import compress
from operator import attrgetter
from typing import Any

import torch

from .._plan import DATA, Call, DataRegion
from .torch import FROM_BUFFER, Storages

_FEWEST = 64
_MOST = 50_000
"""Tensors that a ledger is made for: it takes about 1 KB for each."""

_CONTAINERS = {dict, OrderedDict, list, tuple}
_PROPERTIES = attrgetter("dtype", "shape", "requires_grad", "layout", "is_cpu", "is_quantized")

_Memo = dict[int, tuple[int, Any]]
_Looks = tuple[list[Any], ...]

_recent: tuple[Ledger, ...] = ()
"""The last ledgers used. Replaced as a whole: a race between threads loses a ledger, and with it
some milliseconds."""


class Ledger:
    """Tensors as the beginning of a skeleton.

    Attributes:
        opcodes: put the tensors into the memo, and leave nothing on the stack.
        looks: what made it right for those tensors.
    """

    def __init__(self, tensors: list[torch.Tensor], looks: _Looks) -> None:
        region = DataRegion()
        storages = Storages(region)
        written: list[bytes] = []
        memo = _dump(tensors, storages, written)
        self.looks = looks
        # The STOP of a finished pickle becomes a POP: what follows goes on with the same memo.
        self.opcodes = b"".join(written)[:-1] + b"0"
        self._size = region.size
        self._places = [piece[:3] for piece in region.pieces]
        self._whole = storages.whole
        self._numbers = [memo.pop(id(tensor))[0] for tensor in tensors]
        # The list of them is no object of the next save, but keeps its number.
        self._memo = memo | {-1: (memo.pop(id(tensors))[0], None)}

    def open(self, tensors: list[torch.Tensor], region: DataRegion) -> _Memo:
        """Lay the tensors out in a fresh region; return the memo to pickle the rest with."""
        region.size = self._size
        region.pieces = [(*place, tensors, False) for place in self._places]
        region.shared = storages = Storages(region)
        storages.whole.update(self._whole)
        numbered = zip(tensors, self._numbers, strict=True)
        return self._memo | {id(tensor): (number, tensor) for tensor, number in numbered}


class _Sink:
    def __init__(self, parts: list[bytes]) -> None:
        self.write = parts.append


def _dump(tensors: list[torch.Tensor], storages: Storages, written: list[bytes]) -> _Memo:
    pickler = pickle.Pickler(_Sink(written), 5)
    pickler.dispatch_table = {
        torch.Tensor: storages.reduce_tensor,
        Call: attrgetter("reduction"),
    }
    pickler.memo = {id(DATA): (0, DATA), id(FROM_BUFFER): (1, FROM_BUFFER)}
    pickler.dump(tensors)
    return pickler.memo.copy()


def ledger_for(state: object) -> tuple[Ledger, list[torch.Tensor]] | None:
    """The ledger of the plain tensors of a state and these tensors; ``None`` where they are too
    few to be worth it, or too many to be remembered."""
    global _recent
    found = [tensor for tensor in _tensors_in(state) if _is_dense(tensor)]
    if not _FEWEST <= len(found) <= _MOST:
        return None
    looks = _looks(found)
    tensors = list(compress(found, _are_plain(looks)))
    ledger = next((known for known in _recent if known.looks == looks), None)
    if ledger is None:
        ledger = Ledger(tensors, looks)
    _recent = (ledger, *[known for known in _recent if known is not ledger][:1])
    return ledger, tensors


def _tensors_in(state: object) -> list[torch.Tensor]:
    """Every tensor that plain containers lead to, once."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    waiting: list[Any] = [state] if type(state) in _CONTAINERS else []
    while waiting:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        values = container.values() if isinstance(container, dict) else container
        types = set(map(type, values))
        if torch.Tensor in types:
            found |= {id(value): value for value in values if type(value) is torch.Tensor}
        if not types.isdisjoint(_CONTAINERS):
            waiting += [value for value in values if type(value) in _CONTAINERS]
    return list(found.values())


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.is_cpu and not tensor.is_quantized


def _looks(tensors: list[torch.Tensor]) -> _Looks:
    """Everything that the opcodes and the places of tensors depend on, property by property: each
    list is made by a loop in C."""
    kind = torch.Tensor
    storages = list(map(kind.untyped_storage, tensors))
    return (
        list(map(_PROPERTIES, tensors)),
        list(map(kind.stride, tensors)),
        list(map(kind.storage_offset, tensors)),
        list(map(kind.data_ptr, tensors)),
        list(map(attrgetter("nbytes"), tensors)),
        list(map(torch.UntypedStorage.nbytes, storages)),
        list(map(attrgetter("_cdata"), storages)),
        list(map(bool, map(attrgetter("__dict__"), tensors))),
        list(map(kind.is_conj, tensors)),
        list(map(kind.is_neg, tensors)),
    )


def _are_plain(looks: _Looks) -> list[bool]:
    """Which tensors cover their storage, and are nothing besides that."""
    _, _, _, _, sizes, storage_sizes, _, marked, conjugate, negative = looks
    return [
        size == storage_size and not (special or conj or neg)
        for size, storage_size, special, conj, neg in zip(
            sizes, storage_sizes, marked, conjugate, negative, strict=True
        )
    ]
