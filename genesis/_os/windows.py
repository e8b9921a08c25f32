"""What Windows does otherwise: its own numbers of errors, files that are held, locks, moves.

Written from its documentation; nothing here has been run on Windows. The decisions take an error
and no system, so the tests make them everywhere; the calls have no meaning on other systems, and
`files` makes them on Windows only.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable

if sys.platform == "win32":
    import ctypes
    import msvcrt

# Errors by Windows's own numbers: several of them come as EINVAL, which says too little.
_NO_HARD_LINKS = {1, 50, 1142}
"""ERROR_INVALID_FUNCTION (FAT, exFAT), ERROR_NOT_SUPPORTED (shares), ERROR_TOO_MANY_LINKS."""
_HELD = {5, 32, 33, 1224}
"""ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION, ERROR_USER_MAPPED_FILE."""
LOCKED = {errno.EACCES, errno.EDEADLK}
"""What `lock` gives where another process has it."""


def _number(exc: OSError) -> int | None:
    """Windows's own number of an error; ``None`` on other systems."""
    number: int | None = getattr(exc, "winerror", None)
    return number


def has_no_hard_links(exc: OSError) -> bool:
    return _number(exc) in _NO_HARD_LINKS


def while_held(call: Callable[[], None], path: str) -> None:
    """A file that somebody has open or mapped can be neither replaced nor removed: try for a
    second. An error of another system is raised at once.

    Raises:
        PermissionError: it is held all that time.
    """
    for tries_left in reversed(range(100)):
        try:
            call()
        except OSError as exc:
            if _number(exc) not in _HELD:
                raise
            if not tries_left:
                cure = "this file is open or mapped in a program, perhaps in this one, or may not "
                cure += "be changed; close it there, check its permissions, or use another name"
                raise PermissionError(errno.EACCES, cure, path) from exc
            time.sleep(0.01)
        else:
            return


if sys.platform == "win32":

    def move(name: str, new_name: str) -> None:
        """`os.replace` that returns when the move is on the medium, as far as Windows says so."""
        replace_existing, write_through = 0x1, 0x8
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        if not kernel.MoveFileExW(name, new_name, replace_existing | write_through):
            raise ctypes.WinError(ctypes.get_last_error())

    def lock(fd: int) -> None:
        """Lock the first byte of an open file, or raise one of `LOCKED`. Waiting in the system's
        own call ends after ten tries, and no Ctrl-C comes through."""
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def unlock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
