"""Pytrees of JAX arrays onto given shardings: each device gets its part of the mapped file, and no
array is ever whole in memory beside it.

    state = restore("run.pth", template=state)

Saving needs nothing of this: `genesis.save` takes pytrees of JAX arrays.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

from .._load import load
from .._load_into import part_of
from .._options import FilePath
from .._public import publish
from ._hosts import require

__all__ = ["restore"]

require(("jax",), (0, 4, 30), "jax")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from .._pickle.jax import on_the_host  # noqa: E402


def restore(
    file_path: FilePath,
    template: Any,
    *,
    sharding: Any = None,
    part: str | None = None,
    weights_only: bool = False,
) -> Any:
    """Load a pytree in the form of another, each array onto the sharding that it is to have.

    Args:
        file_path: the file.
        template: a pytree with the structure of what was saved: of arrays, of
            ``jax.ShapeDtypeStruct``, as ``jax.eval_shape`` gives them, or of both. What stands in
            the place of other leaves (numbers, strings) is replaced by what the file has.
        sharding: a ``jax.sharding.Sharding`` for all arrays, or a pytree of them that is a prefix
            of the template; without it each array gets that of its template, and where that has
            none, the default device.
        part: the keys, joined by ``/``, of what the state is to be taken from.
        weights_only: as for `genesis.load`. Arrays then go through the default device.

    Returns:
        The containers of the template with the file's leaves.

    Raises:
        ValueError: leaves are missing or left over, or have another shape or dtype. All of that is
            named, and no array has been made.
        KeyError: there is no such part. Otherwise as `genesis.load`.

    The file is mapped and every byte verified. Thread-safe.
    """
    # What reads untrusted files wants arrays of JAX to look at.
    with nullcontext() if weights_only else on_the_host():
        state = load(file_path, mmap=True, verify=True, weights_only=weights_only)
    found = _leaves(part_of(state, part, template))
    wanted = _leaves(template)
    _refuse_others(found, wanted, os.fsdecode(file_path))
    shardings = _shardings(template, sharding, wanted)
    made = [
        _placed(found[path], like, each)
        for (path, like), each in zip(wanted.items(), shardings, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(template), made)


Path = tuple[Any, ...]
"""Keys of dicts, names of attributes and places in sequences."""


def _leaves(tree: Any) -> dict[Path, Any]:
    """Every leaf by its path; an attribute of a record and a key of a dict look alike."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(map(_key, path)): leaf for path, leaf in paths}


def _key(entry: Any) -> Any:
    return next(
        (getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name)), entry
    )


def _name(path: Path) -> str:
    return "/".join(map(str, path))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _look(leaf: Any) -> str:
    return f"{leaf.dtype} of {tuple(leaf.shape)}" if _is_array(leaf) else "no array"


def _fits(leaf: Any, like: Any) -> bool:
    # `jax.eval_shape` makes arrays without axes of numbers.
    number = isinstance(leaf, int | float | complex) and getattr(like, "shape", None) == ()
    return not _is_array(like) or number or _look(like) == _look(leaf)


def _refuse_others(found: dict[Path, Any], wanted: dict[Path, Any], file_path: str) -> None:
    problems = [f"{_name(path)} is not in the file" for path in wanted if path not in found]
    problems += [
        f"{_name(path)} is {_look(like)}, in the file {_look(found[path])}"
        for path, like in wanted.items()
        if path in found and not _fits(found[path], like)
    ]
    problems += [f"{_name(path)} is in the file alone" for path in found if path not in wanted]
    if problems:
        listed = "; ".join(problems)
        raise ValueError(f"{file_path} does not fit the template: {listed}")


def _shardings(template: Any, given: Any, wanted: dict[Path, Any]) -> list[Any]:
    """One for each leaf; ``None`` for the default device."""
    if given is None:
        return [getattr(like, "sharding", None) for like in wanted.values()]
    spread: list[Any] = jax.tree.leaves(
        jax.tree.map(
            lambda each, below: jax.tree.map(lambda _: each, below),
            given,
            template,
            is_leaf=lambda each: isinstance(each, jax.sharding.Sharding),
        )
    )
    return spread


def _placed(leaf: Any, like: Any, sharding: Any) -> Any:
    if not _is_array(like) or not _is_array(leaf):
        return leaf
    # Copied, or on a CPU it could be a view of the mapped file, which somebody may cut short.
    if isinstance(leaf, np.ndarray) and sharding is not None:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda at: np.array(leaf[at]))
    if isinstance(leaf, np.ndarray):
        leaf = np.array(leaf)
    return jax.device_put(_with_base_of_jax(leaf), sharding)


def _with_base_of_jax(leaf: Any) -> Any:
    """Typed keys stand over an array, which was left on the host like any other."""
    base = getattr(leaf, "_base_array", None)
    if isinstance(base, np.ndarray):
        leaf._base_array = jax.numpy.asarray(base)
    return leaf


publish(globals())
