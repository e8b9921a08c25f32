"""What macOS does otherwise: its `fsync` leaves bytes in the drive's cache.

Written from its documentation; nothing here has been run on macOS. What an error is taken for is
decided apart from the call, and tested everywhere.
"""

from __future__ import annotations

import errno
import sys

if sys.platform == "darwin":
    import fcntl

_UNKNOWN_REQUEST = {errno.EINVAL, errno.ENOTTY, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def is_unknown(exc: OSError) -> bool:
    """Whether a file system (a network's, say) does not know the request of `sync_fully`; any
    other error is one of the medium."""
    return exc.errno in _UNKNOWN_REQUEST


if sys.platform == "darwin":

    def sync_fully(fd: int) -> bool:
        """Put a file on the medium, past the drive's cache; ``False`` where that is unknown."""
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as exc:
            if is_unknown(exc):
                return False
            raise
        return True
