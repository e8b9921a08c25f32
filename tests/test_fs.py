"""What the errors of systems are taken for that these tests do not run on.

Only the pure parts: an error goes in, a decision comes out. Calls of Windows are not imitated.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from genesis._os import darwin, files, windows
from genesis._os.descriptors import Descriptor


class WindowsError(OSError):
    """An error as Windows gives it: with its own number beside the errno that stands for many."""

    def __init__(self, number: int, code: int = errno.EINVAL) -> None:
        super().__init__(code, "said Windows")
        self.winerror = number


def failing(*errors: OSError) -> Callable[[], None]:
    """A call that raises one error after the other, and then succeeds."""
    left = list(errors)

    def call() -> None:
        if left:
            raise left.pop(0)

    return call


# --- Hard links -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(WindowsError(1), id="exFAT and FAT on Windows"),
        pytest.param(WindowsError(50), id="a share of Windows"),
        pytest.param(WindowsError(1142, errno.EMLINK), id="too many links"),
        pytest.param(OSError(errno.EPERM, ""), id="FAT and exFAT on Linux"),
        pytest.param(OSError(errno.ENOTSUP, ""), id="exFAT on macOS"),
    ],
)
def test_without_hard_links_the_backup_is_a_copy(error: OSError) -> None:
    assert files._has_no_hard_links(error)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.EINVAL, ""), id="wrong arguments on POSIX"),
        pytest.param(WindowsError(87), id="wrong arguments on Windows"),
        pytest.param(WindowsError(5, errno.EACCES), id="no permission"),
        pytest.param(OSError(errno.EIO, ""), id="a broken disk"),
    ],
)
def test_other_errors_of_linking_are_errors(error: OSError) -> None:
    assert not files._has_no_hard_links(error)


# --- Locks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(windows.LOCKED))
def test_a_lock_that_another_process_has_is_waited_for(code: int) -> None:
    lock = failing(OSError(code, "locked"), OSError(code, "locked"))
    assert files._acquire(lock, poll=True, locked=windows.LOCKED)


@pytest.mark.parametrize("code", sorted(windows.LOCKED))
def test_a_lock_that_another_process_has_is_not_waited_for_unasked(code: int) -> None:
    assert not files._acquire(failing(OSError(code, "")), poll=False, locked=windows.LOCKED)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_where_there_are_no_locks_nobody_waits_for_one(code: int) -> None:
    def lock() -> None:
        raise OSError(code, "no locks here")

    assert not files._acquire(lock, poll=True, locked=windows.LOCKED)


def test_an_error_that_says_neither_is_raised() -> None:
    with pytest.raises(OSError, match="broken"):
        files._acquire(failing(OSError(errno.EIO, "broken")), poll=True, locked=windows.LOCKED)


def test_a_lock_of_this_system(tmp_path: Path) -> None:
    one, other = Descriptor(), Descriptor()
    for file in (one, other):
        files.open_lock_file(file, str(tmp_path / "lock"))
    assert files.lock_file(one.number, wait=True)
    assert not files.lock_file(other.number, wait=False)
    files.unlock_file(one.number)
    assert files.lock_file(other.number, wait=True)


# --- Files that are held --------------------------------------------------------------------------

HELD = [
    pytest.param(WindowsError(5, errno.EACCES), id="access denied"),
    pytest.param(WindowsError(32, errno.EACCES), id="open elsewhere"),
    pytest.param(WindowsError(33, errno.EACCES), id="locked"),
    pytest.param(WindowsError(1224), id="mapped"),
]


@pytest.mark.parametrize("error", HELD)
def test_a_file_that_is_held_on_windows_is_tried_again(error: OSError) -> None:
    windows.while_held(failing(error, error), "file")


@pytest.mark.parametrize("error", HELD[-1:])
def test_a_file_that_stays_held_is_an_error_with_its_cure(error: OSError) -> None:
    with pytest.raises(PermissionError, match=r"open or mapped.*close it there.*'file'$") as caught:
        windows.while_held(failing(*[error] * 1000), "file")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "says"), OSError(errno.EINVAL, "says"), WindowsError(112)]
)
def test_what_does_not_pass_is_not_tried_again(error: OSError) -> None:
    with pytest.raises(OSError, match=r"say|said") as caught:
        windows.while_held(failing(error), "file")
    assert caught.value is error


# --- Bytes in a drive's cache ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTTY, errno.ENOTSUP])
def test_a_file_system_of_macos_without_the_full_sync_gets_the_plain_one(code: int) -> None:
    assert darwin.is_unknown(OSError(code, ""))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EBADF])
def test_a_full_sync_of_macos_that_failed_is_an_error(code: int) -> None:
    assert not darwin.is_unknown(OSError(code, ""))


@pytest.mark.parametrize("name", ["darwin", "windows"])
def test_what_was_not_run_says_so(name: str) -> None:
    text = (Path(files.__file__).parent / f"{name}.py").read_text()
    assert "nothing here has been run on" in text.split('"""')[1]


def test_a_descriptor_that_was_interrupted_before_it_began_ends_quietly() -> None:
    file = Descriptor.__new__(Descriptor)
    del file  # an unraisable error here fails the test
