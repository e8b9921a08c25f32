"""A pytest plugin: what the tests of another project pickle goes through a file of genesis.

It replaces ``dumps`` and ``loads`` of pickle, dill and cloudpickle before the tests import them:
``dumps`` is a save that returns the bytes of the file, ``loads`` a load of such bytes. What genesis
did not write, a pickle in the source of a test say, is loaded as before.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import genesis

_BEGINNING = b"\x80\x05C2\x89genesis checkpoint"

_folder = tempfile.TemporaryDirectory()


def dumps_or(others: Callable[..., bytes]) -> Callable[..., bytes]:
    """A ``dumps`` that returns the bytes of a file of genesis, or what `others` do where one of the
    protocols of Python 1 is asked for."""

    def dumps(obj: object, protocol: int | None = None, *args: Any, **kwargs: Any) -> bytes:
        if protocol in (0, 1):
            return others(obj, protocol, *args, **kwargs)
        file = _new_file()
        genesis.save(obj, file, clear=False)
        written = file.read_bytes()
        file.unlink()
        return written

    return dumps


def loads_or(others: Callable[..., Any]) -> Callable[..., Any]:
    """A ``loads`` that is genesis's for a file of genesis and `others` for the rest."""

    def loads(data: Any, *args: Any, **kwargs: Any) -> Any:
        if bytes(data[: len(_BEGINNING)]) != _BEGINNING:
            return others(data, *args, **kwargs)
        file = _new_file()
        file.write_bytes(data)
        try:
            return genesis.load(file)
        finally:
            file.unlink()

    return loads


def _new_file() -> Path:
    """A name of its own for each: what is pickled may pickle."""
    with tempfile.NamedTemporaryFile(dir=_folder.name, suffix=".pth") as file:
        return Path(file.name)


def _replace(name: str) -> None:
    module: Any = importlib.import_module(name)
    module.dumps, module.loads = dumps_or(module.dumps), loads_or(module.loads)


for _name in ("pickle", "dill", "dill._dill", "cloudpickle", "cloudpickle.cloudpickle"):
    if importlib.util.find_spec(_name.partition(".")[0]):
        _replace(_name)
