"""The hostile corpus: skeletons that attack whoever unpickles them, one technique each.

Each goes for code of the attacker's, for memory that is not the file's, for all memory, for all
time, or for the interpreter's stack. None of them is ever run by `pickle` in this process.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .assembler import (
    FROM_BUFFER,
    NO_ARGUMENTS,
    REGION,
    Code,
    array,
    build,
    call,
    dictionary,
    dtype,
    floats,
    integers,
    name,
    new,
    storage,
    stream,
    tensor,
    text_name,
    typed,
    value,
)

DATA_SIZE = 256
"""Bytes of the data region that each of these comes with: zeros."""

EXTENSION_CODES = 0x7B, 0x7B01, 0x7B0102
"""Registered for ``os.system`` where the corpus is run."""

CANARY_MODULE = "genesis_canary"
"""What an attack without a command leaves in ``sys.modules``."""


@dataclass(frozen=True)
class Attack:
    """One hostile skeleton.

    Attributes:
        match: what the error has to say, a regular expression.
        executes: it leaves its mark when plain `pickle.loads` reads it.
    """

    name: str
    skeleton: bytes
    match: str
    executes: bool = False


Part = Iterator[Attack]


def attacks(canary: str) -> list[Attack]:
    """The corpus. What it executes creates the file `canary`."""
    return [attack for part in _PARTS for attack in part(f"touch {canary}", canary)]


def _calls(command: str, canary: str) -> Part:
    """Every way a pickle has to call something."""
    system = name("os", "system")
    run = {
        "REDUCE": call(system, command),
        "REDUCE of a name in text": call(text_name("os", "system"), command),
        "REDUCE of the module behind the name": call(name("posix", "system"), command),
        "REDUCE of a dotted name": call(name("shutil", "os.system"), command),
        "REDUCE of a name below an allowed module": call(name("collections", "abc.sys.modules.__class__.fromkeys"), [1]),
        "INST": Code(b"(" + value(command) + b"ios\nsystem\n"),
        "OBJ": Code(b"(" + system + value(command) + b"o"),
        "NEWOBJ": call(name("builtins", "list"), new(name("builtins", "map"), system, [command])),
        "NEWOBJ_EX": call(
            name("builtins", "list"),
            name("builtins", "map") + value((system, [command])) + value({}) + b"\x92",
        ),
        "BUILD through __setstate__": call(
            build(call(name("functools", "partial"), name("builtins", "print")),
                  (system, (command,), {}, {})),
        ),
        "EXT1": call(Code(b"\x82" + struct.pack("<B", EXTENSION_CODES[0])), command),
        "EXT2": call(Code(b"\x83" + struct.pack("<H", EXTENSION_CODES[1])), command),
        "EXT4": call(Code(b"\x84" + struct.pack("<i", EXTENSION_CODES[2])), command),
        "a second call after the value": Code(value(1) + call(system, command) + b"0"),
        "a call in a key": dictionary((call(system, command), 1)),
        "a call in a memo that is read twice": Code(call(system, command) + b"\x940h\x02"),
    }
    harmless = {"REDUCE of a name below an allowed module"}
    for how, code in run.items():
        yield Attack(how, stream(code), "not allowed|not on the list", how not in harmless)
