"""Whether bytes are one whole pickle: its opcodes are walked, and nothing is made of them.

It needs one window of memory however long the pickle is. What its values are, and whether its stack
would hold them, it does not ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct, unpack_from
from typing import Final

from .machine import MalformedError

WINDOW: Final = 1 << 22
"""Bytes looked at together."""
_MAX_GAP: Final = 1 << 16
"""Memo entries that a pickler may leave out: an index far beyond what was put so far would make the
unpickler allocate a memo of that length."""

_SHORT: Final = b"|".join(b"%b.{%d}" % (re.escape(bytes((n,))), n) for n in range(256))
_SHORT_OF_FOUR: Final = b"|".join(
    b"%b\0\0\0.{%d}" % (re.escape(bytes((n,))), n) for n in range(256)
)
_WHOLE: Final = re.compile(
    rb"(?:[()\]}012NQRabdelostu\x81\x85-\x89\x8f-\x94\x97\x98]"
    rb"|K.|h.|q.|M..|J....|j....|G........"
    rb"|[\x8c\x8aCU](?:" + _SHORT + rb")"
    rb"|[XBT](?:" + _SHORT_OF_FOUR + rb")"
    rb"|\x95........|\x80[\x00-\x05]|\x82.|\x83..|\x84....|r..[\x00\x01]\x00"
    rb"|[ci][^\n]*+\n[^\n]*+\n|[SVP][^\n]*+\n"
    rb"|[ILF][-+.\w]++\n|g[0-9]++\n|p[0-9]{1,5}\n)*+",
    re.DOTALL,
)
"""Whole opcodes, as many as there are, but STOP, long ones and high indices."""

_LENGTHS: Final = {
    **dict.fromkeys(b"XBT\x8b", ("<I", 4)),
    **dict.fromkeys(b"\x8d\x8e\x96", ("<Q", 8)),
    **dict.fromkeys(b"\x8c\x8aCU", ("<B", 1)),
}
"""Where the length of what follows stands."""
_BINUNICODE, _BINBYTES, _MEMOIZE = b"XB\x94"
_length: Final = Struct("<I").unpack_from
_INDEX: Final = re.compile(rb"p([0-9]{1,10})\n")
_OPCODES: Final = frozenset(_LENGTHS) | frozenset(
    b"()]}012NQRabdelostu.KhqMJjGrciSVPILFgp\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89"
    b"\x8f\x90\x91\x92\x93\x94\x95\x97\x98"
)


def end_of_pickle(read: Callable[[int, int], bytes], size: int) -> int:
    """Where the first pickle of a file ends.

    Args:
        read: gives bytes of the file, of a count and from an offset on.
        size: of the file, in bytes.

    Raises:
        MalformedError: it holds no whole pickle; its second argument is the offset of what is
            wrong.
    """
    offset, width = 0, WINDOW
    while offset < size:
        window = read(width, offset)
        done, ended = _walk(window, offset, size)
        if ended:
            return offset + done
        if not done and offset + len(window) >= size:
            raise MalformedError("it ends in the middle of an opcode", offset)
        # An opcode longer than the window is a line of text without end, or skipped at once.
        offset, width = offset + done, WINDOW if done else 2 * width
    raise MalformedError("it ends without STOP", size)


def _walk(window: bytes, offset: int, size: int) -> tuple[int, bool]:
    """How far the whole opcodes of a window reach, and whether STOP was the last of them."""
    i = start = 0
    last = len(window) - 9
    while True:
        while i < last and ((opcode := window[i]) == _BINUNICODE or opcode == _BINBYTES):
            start = i  # most of what is too long for the expression
            i += 5 + _length(window, i + 1)[0]
            if i < last and window[i] == _MEMOIZE:
                i += 1
        if i > size - offset:
            raise MalformedError("more bytes are announced than there are", offset + start)
        if i >= len(window):
            break
        end = _WHOLE.match(window, i).end()  # type: ignore[union-attr]
        if window[end : end + 1] == b".":
            return end + 1, True
        if end == i:
            one = _end_of_one(window, i, offset, size)
            if one is None:
                break
            end = one
        i = end
    return i, False


def _end_of_one(window: bytes, i: int, offset: int, size: int) -> int | None:
    """Where the opcode at `i` ends, maybe beyond the window; ``None`` where that takes more of it
    to tell."""
    if i >= len(window):
        return None
    opcode = window[i]
    if opcode not in _OPCODES:
        raise MalformedError(f"{opcode:#04x} is no opcode", offset + i)
    if opcode in _LENGTHS and i + 9 <= len(window):
        form, width = _LENGTHS[opcode]
        (length,) = unpack_from(form, window, i + 1)
        if length > size - offset - i - 1 - width:
            raise MalformedError("more bytes are announced than there are", offset + i)
        return int(i + 1 + width + length)
    if opcode == ord("r") and i + 5 <= len(window):
        return _checked(unpack_from("<I", window, i + 1)[0], i + 5, offset)
    if match := _INDEX.match(window, i):
        return _checked(int(match[1]), match.end(), offset)
    if opcode == 0x80 and i + 2 <= len(window):
        raise MalformedError(f"pickle protocol {window[i + 1]} is not known", offset + i)
    if opcode in b"ILFgp" and b"\n" in window[i:]:
        raise MalformedError("a number cannot be read", offset + i)
    return None


def _checked(index: int, end: int, offset: int) -> int:
    if index > offset + end + _MAX_GAP:
        raise MalformedError(f"memo index {index:,} is out of all proportion", offset + end)
    return end
