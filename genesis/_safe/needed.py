"""Which bytes of the data region a part of a state is made of, once it has been built.

It looks at what stands in the part, and reads nothing.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from typing import Any, Final

from .site import Site

_PLAIN: Final = frozenset((bool, int, float, complex, str, bytes, type(None)))
_MAPPINGS: Final = frozenset((dict, OrderedDict, defaultdict))
_SEQUENCES: Final = frozenset((list, tuple))
_SMALL_VALUES: Final = frozenset(("dtype", "device", "Size", "layout", "memory_format"))


def spans(part: Any, site: Site, base: int) -> list[tuple[int, int]] | None:
    """Where the bytes of a part begin and end in the data region; ``None`` where it holds something
    else than tensors over storages, arrays and plain containers.

    Args:
        base: the address of the data region that it was built over.
    """
    places = {id(storage): place for place, storage in site.storages.items()}
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if type(one) in _PLAIN or id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) in _MAPPINGS:
            waiting += [*one.keys(), *one.values()]
        elif type(one) in _SEQUENCES:
            waiting += one
        elif (span := _span(one, places, site.size, base)) is not None:
            found.append(span)
        else:
            return None
    return found


def _span(
    leaf: Any, places: dict[int, tuple[int, int]], size: int, base: int
) -> tuple[int, int] | None:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and type(leaf) in (torch.Tensor, torch.nn.Parameter):
        return _span_of_tensor(leaf, torch, places)
    if numpy is not None and type(leaf) is numpy.ndarray and not leaf.dtype.hasobject:
        from .._pickle.numpy import span_of

        low, high = span_of(leaf)
        inside = base <= low <= high <= base + size
        return (low - base, high - base) if inside else None
    small = type(leaf).__module__ == "torch" and type(leaf).__name__ in _SMALL_VALUES
    return (0, 0) if small else None


def _span_of_tensor(
    tensor: Any, torch: Any, places: dict[int, tuple[int, int]]
) -> tuple[int, int] | None:
    if tensor.layout is not torch.strided or tensor.is_nested or vars(tensor):
        return None
    place = places.get(id(tensor.untyped_storage()))
    if place is None:
        return None if tensor.untyped_storage().nbytes() else (0, 0)
    return place[0], sum(place)
