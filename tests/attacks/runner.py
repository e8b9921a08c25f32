"""Runs the hostile corpus under a limit of memory, in a process of its own, and prints JSON.

``python -m attacks.runner FOLDER READER``: a reader of genesis under test, or ``pickle`` for the
proof that the corpus is alive.
"""

from __future__ import annotations

import copyreg
import faulthandler
import json
import os
import pickle
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy  # noqa: F401  the limit counts from what these need
import torch

from genesis import GenesisError, _restricted

from .assembler import floats, stream
from .corpus import CANARY_MODULE, DATA_SIZE, EXTENSION_CODES, attacks

HEADROOM = 512 << 20
"""Bytes of address space for the whole corpus, beyond what the frameworks take."""


def main(folder: str, reader: str) -> None:
    canary = Path(folder, "canary")
    for code in EXTENSION_CODES:
        copyreg.add_extension("os", "system", code) if code == EXTENSION_CODES[0] else None
    read = READERS[reader]
    read(stream(floats()) if reader != "pickle" else pickle.dumps(torch.zeros(1)))
    _limit_memory()
    outcomes = {}
    for attack in attacks(str(canary)):
        if reader != "pickle" or attack.executes:
            print(attack.name, file=sys.stderr, flush=True)
            outcomes[attack.name] = _outcome(read, attack.skeleton) | {"ran": _ran(canary)}
    json.dump(outcomes, sys.stdout)
