"""The system calls of x86-64 Linux that touch files: their numbers, and which arguments name what.

It says nothing about what a call does; `disk` does that for those that change one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a system call keeps what it works on: indexes of its arguments."""

    name: str
    fds: tuple[int, ...] = ()
    paths: tuple[tuple[int | None, int], ...] = ()
    """Pairs of the descriptor a path is relative to (``None``: the working directory) and the path
    itself."""


def _shapes() -> dict[int, Shape]:
    """Every call of x86-64 Linux that names a file."""
    on_fd = {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "ioctl": 16, "pread64": 17,
        "pwrite64": 18, "readv": 19, "writev": 20, "dup": 32, "dup2": 33, "fcntl": 72, "flock": 73,
        "fsync": 74, "fdatasync": 75, "ftruncate": 77, "getdents": 78, "fchdir": 81, "fchmod": 91,
        "fchown": 93, "fstatfs": 138, "fsetxattr": 190, "fgetxattr": 193, "flistxattr": 196,
        "fremovexattr": 199, "getdents64": 217, "fadvise64": 221, "sync_file_range": 277,
        "fallocate": 285, "dup3": 292, "preadv": 295, "pwritev": 296, "syncfs": 306,
        "preadv2": 327, "pwritev2": 328,
    }  # fmt: skip
    on_path = {
        "open": 2, "stat": 4, "lstat": 6, "access": 21, "truncate": 76, "mkdir": 83, "rmdir": 84,
        "creat": 85, "unlink": 87, "readlink": 89, "chmod": 90, "chown": 92, "lchown": 94,
        "utime": 132, "mknod": 133, "statfs": 137, "setxattr": 188, "lsetxattr": 189,
        "getxattr": 191, "lgetxattr": 192, "listxattr": 194, "llistxattr": 195, "removexattr": 197,
        "lremovexattr": 198, "utimes": 235, "chdir": 80,
    }  # fmt: skip
    on_fd_and_path = {
        "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "newfstatat": 262,
        "unlinkat": 263, "readlinkat": 267, "fchmodat": 268, "faccessat": 269, "utimensat": 280,
        "statx": 332, "openat2": 437, "faccessat2": 439, "fchmodat2": 452,
    }  # fmt: skip
    on_two_paths = {"rename": 82, "link": 86}
    on_two_fds_and_paths = {"renameat": 264, "linkat": 265, "renameat2": 316}
    shapes = {number: Shape(name, (0,)) for name, number in on_fd.items()}
    shapes |= {number: Shape(name, (), ((None, 0),)) for name, number in on_path.items()}
    shapes |= {number: Shape(name, (), ((0, 1),)) for name, number in on_fd_and_path.items()}
    shapes |= {n: Shape(name, (), ((None, 0), (None, 1))) for name, n in on_two_paths.items()}
    shapes |= {n: Shape(name, (), ((0, 1), (2, 3))) for name, n in on_two_fds_and_paths.items()}
    shapes[9] = Shape("mmap", (4,))
    shapes[40] = Shape("sendfile", (0, 1))
    shapes[275] = Shape("splice", (0, 2))
    shapes[326] = Shape("copy_file_range", (0, 2))
    shapes[88] = Shape("symlink", (), ((None, 1),))
    shapes[266] = Shape("symlinkat", (), ((1, 2),))
    shapes[162] = Shape("sync")
    shapes[425] = Shape("io_uring_setup")
    return shapes


SHAPES = _shapes()
EVERYWHERE = {"sync", "io_uring_setup"}
WRITES = {"write": 2, "pwrite64": 2, "writev": 2, "pwritev": 2, "pwritev2": 2}
"""The calls that write bytes, and which argument says how many (for the vectored ones, how many
buffers)."""

OPENS = {"open", "openat", "openat2", "creat"}
SYNCS = {"fsync", "fdatasync"}
LINKS = {"link", "linkat"}
RENAMES = {"rename", "renameat", "renameat2"}
REMOVES = {"unlink", "unlinkat", "rmdir"}
