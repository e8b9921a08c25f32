"""A switch for each optimisation: what a save writes and what a load gives is the same without it.

All are on. A user who suspects one turns it off before genesis is imported, with
``GENESIS_TUNING="-userfaultfd -direct_io"``, or turns off all of them with ``GENESIS_TUNING=off``.
`make test` runs the heart of the tests once that way. The benchmark `choices` measures what each is
worth.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields

VARIABLE = "GENESIS_TUNING"


@dataclass
class Switches:
    """Which optimisations are used. Read at each use, so that a change holds from the next one on.

    Attributes:
        ledger: plain tensors are written ahead of the rest and remembered from save to save.
        guards: one guard of torch's compiler compares all properties of all tensors.
        kernel_copies: the kernel makes many small copies in one call (`process_vm_writev`).
        held_copies: small copies keep the GIL.
        kept_memory: staging memory is kept for the next save.
        threads: copies, reads and checks use several threads.
        direct_io: large writes bypass the page cache.
        huge_pages: small staging arenas ask for huge pages.
        overlap: checksum and copy run beside the write.
        late_free: the blocks of a large old file are freed behind the commit.
        userfaultfd: pages of a load are made with their bytes in them.
        paused_collector: Python's garbage collector rests while objects are built.
    """

    ledger: bool = True
    guards: bool = True
    kernel_copies: bool = True
    held_copies: bool = True
    kept_memory: bool = True
    threads: bool = True
    direct_io: bool = True
    huge_pages: bool = True
    overlap: bool = True
    late_free: bool = True
    userfaultfd: bool = True
    paused_collector: bool = True


NAMES = tuple(field.name for field in fields(Switches))


def read(words: str) -> Switches:
    """The switches that a value of the variable asks for.

    Raises:
        ValueError: a word is none.
    """
    switches = Switches()
    for word in words.replace(",", " ").split():
        if word == "off":
            switches = Switches(**dict.fromkeys(NAMES, False))
        elif word[0] == "-" and word[1:] in NAMES:
            setattr(switches, word[1:], False)
        else:
            known = " ".join("-" + name for name in NAMES)
            raise ValueError(f"{VARIABLE}: {word!r} is none of: off {known}")
    return switches


def give_up(name: str, error: BaseException) -> None:
    """Go without an optimisation from now on: what it rests on is private to another library, and
    has surprised us."""
    setattr(on, name, False)
    logging.getLogger("genesis").warning("goes on without %s: %r", name, error)


on = read(os.environ.get(VARIABLE, ""))
