"""Runs the hostile corpus under a limit of memory, in a process of its own, and prints JSON.

``python -m attacks.runner FOLDER READER...``: readers of genesis, or ``pickle`` for the proof that
the corpus is alive.
"""

from __future__ import annotations

import copyreg
import json
import pickle
import resource
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import dill  # noqa: F401  the limit counts from what all of these take
import jax.numpy
import numpy
import torch  # noqa: F401
from assembler import array, floats, stream
from genesis_files import genesis_file

import genesis
from genesis import GenesisError, _safe
from genesis._safe import site

from .corpus import CANARY_MODULE, DATA, EXTENSION_CODES, Attack, attacks

HEADROOM = 512 << 20
"""Bytes of address space for the whole corpus, beyond what the imports take."""

WATCHED = {
    *("pickle.find_class", "exec", "compile", "marshal.loads", "import", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "os.remove"),
}
"""What the interpreter tells an audit hook, and a reader of genesis never does."""

_events: list[str] = []


def _load(skeleton: bytes, path: Path) -> object:
    return _safe.load(skeleton, data=bytearray(DATA), path=str(path))


def _outline(skeleton: bytes, path: Path) -> object:
    tree = _safe.outline(skeleton, path=str(path), data_size=len(DATA))
    return list(_safe.arrays(tree))


def _load_file(skeleton: bytes, path: Path) -> object:
    """As a whole file, of which every checksum is right."""
    path.write_bytes(genesis_file(skeleton, DATA))
    genesis.validate_checkpoint(path)
    return genesis.load(path, weights_only=True)


def _load_mapped_file(skeleton: bytes, path: Path) -> object:
    path.write_bytes(genesis_file(skeleton, DATA))
    return genesis.load(path, weights_only=True, mmap=True)


def _load_foreign_file(skeleton: bytes, path: Path) -> object:
    path.write_bytes(skeleton)
    genesis.validate_checkpoint(path)
    return genesis.load(path, weights_only=True)


READERS: dict[str, Callable[[bytes, Path], object]] = {
    "load": _load,
    "outline": _outline,
    "file": _load_file,
    "mapped file": _load_mapped_file,
    "foreign file": _load_foreign_file,
    "pickle": lambda skeleton, path: pickle.loads(skeleton),
}


def main(folder: str, *readers: str) -> None:
    for code, named in EXTENSION_CODES.items():
        copyreg.add_extension(*named, code)
    path, canary = Path(folder, "hostile"), Path(folder, "canary")
    for used in (floats(), array((4,))):
        _load_file(stream(used), path)
    _load_foreign_file(pickle.dumps([1]), path)
    _warm_up()
    _limit_memory()
    sys.addaudithook(_note)
    corpus = attacks(str(canary))
    with redirect_stdout(sys.stderr):  # some attacks print
        outcomes = {reader: _outcomes(reader, corpus, path, canary) for reader in readers}
    json.dump(outcomes, sys.stdout)


def _warm_up() -> None:
    """Codecs, and parts of frameworks, are imported when they are first used."""
    "a".encode("unicode_escape")
    b"a".decode("raw-unicode-escape")
    jax.numpy.asarray(numpy.zeros(1))
    # Whose records are states: imported by their own names, whoever asks.
    for library in site.RECORDS:
        with suppress(ImportError):
            import_module(library)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in WATCHED and len(_events) < 100:
        _events.append(f"{event} {arguments}"[:200])


def _outcomes(reader: str, corpus: list[Attack], path: Path, canary: Path) -> dict[str, Any]:
    outcomes = {}
    for attack in corpus:
        if attack.executes or reader != "pickle":
            print(f"{reader}: {attack.name}", file=sys.stderr, flush=True)
            _events.clear()
            outcome = _outcome(reader, attack, path)
            outcomes[attack.name] = outcome | {"events": list(_events), "ran": _ran(canary)}
    return outcomes


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + HEADROOM,) * 2)


def _outcome(reader: str, attack: Attack, path: Path) -> dict[str, Any]:
    try:
        found = READERS[reader](attack.skeleton, path)
    except Exception as exc:
        return {
            "error": type(exc).__name__,
            "named": isinstance(exc, GenesisError),
            "message": str(exc),
        }
    return {"value": type(found).__name__}


def _ran(canary: Path) -> bool:
    """Whether something was executed since this was asked last."""
    ran = canary.exists() or CANARY_MODULE in sys.modules
    canary.unlink(missing_ok=True)
    sys.modules.pop(CANARY_MODULE, None)
    return ran


if __name__ == "__main__":
    main(*sys.argv[1:])
