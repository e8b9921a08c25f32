"""The few ptrace requests that a tracer of system calls needs, through the C library.

Nothing here knows what a call is for; registers are those of x86-64.
"""

from __future__ import annotations

import ctypes
import os
import struct

CONT, _GETREGS, _SETREGS, SYSCALL = 7, 12, 13, 24
SEIZE, INTERRUPT, LISTEN, SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100000  # good syscall stops, children, exec, exit-kill
WALL = 0x40000000
EVENT_STOP, EVENT_EXEC = 128, 4
RAX, ORIG_RAX = 10, 15
ARGUMENT_REGISTERS = (14, 13, 12, 7, 9, 8)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def request(number: int, tid: int, address: int = 0, data: object = 0) -> int:
    result: int = _libc.ptrace(number, tid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def registers(tid: int) -> list[int]:
    buffer = ctypes.create_string_buffer(27 * 8)
    request(_GETREGS, tid, 0, ctypes.addressof(buffer))
    return list(struct.unpack("<27Q", buffer.raw))


def set_registers(tid: int, values: list[int]) -> None:
    buffer = ctypes.create_string_buffer(struct.pack("<27Q", *values), 27 * 8)
    request(_SETREGS, tid, 0, ctypes.addressof(buffer))
