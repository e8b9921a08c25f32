"""Faults that the kernel makes itself: a full disk, a limit, a directory that takes no files.

Nothing is injected here. Mounts are made in a mount namespace of this process's own, so that they
end with it, whatever happens; where that is not permitted, `UnavailableError` says so.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from . import tracer
from .bench import MOST, SECONDS, Bench, Result, isolated, names
from .errors import look_around
from .judge import Report, judge_failure, judge_success
from .scenarios import Scenario, in_short
from .tracer import Call, Fault, Trace

_PAGE = 4096
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_NOBODY = 65534
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2
"""The ioctl that takes ext4 and XFS down at once, and its flag: not even the journal is written."""


class UnavailableError(Exception):
    """This machine does not let us make the fault."""


def _nothing(place: Path) -> None:
    pass


class _Case:
    """One run: what to do to a place before the save, what undoes it, and what follows it all."""

    def __init__(
        self,
        disturb: Callable[[Path], None],
        relieve: Callable[[Path], None] = _nothing,
        afterwards: Callable[[Path], None] = _nothing,
    ) -> None:
        self.disturb = disturb
        self.relieve = relieve
        self.afterwards = afterwards


def _go(bench: Bench, result: Result, number: int, case: _Case, *codes: int) -> bool:
    """Save under a fault that may hit or not; ``True`` where it did."""
    place = bench.place(number)

    def body() -> dict[str, object]:
        report = look_around(
            bench.scenario, place, lambda: case.disturb(place), lambda: case.relieve(place)
        )
        return asdict(report)

    report = Report(**isolated(body))
    case.afterwards(place)
    nothing = Trace()
    judge = (
        judge_failure(bench, nothing, report, *codes)
        if report.error
        else judge_success(bench, nothing, report)
    )
    result.points += bool(report.error) or case.afterwards is not _nothing
    result.calls[report.kind or "success"] += 1
    result.seen[report.seen] += 1
    result.note(number, report.error or "success", judge)
    bench.drop(place, judge)
    return bool(report.error)


def full_disk(scenario: Scenario, folder: Path) -> Result:
    """A tmpfs of 8 MB with 0, 1, 2, ... pages left, until the save fits."""
    result = Result(scenario.name, "full")
    with _own_mounts():
        room = max(8 << 20, 10 * scenario.size)
        _mount("tmpfs", folder, "tmpfs", 0, f"size={room}")
        bench = Bench(scenario, folder)
        for pages in _growing(scenario.size // _PAGE):
            case = _Case(partial(_fill, pages), _free)
            if not _go(bench, result, pages, case, errno.ENOSPC):
                break
    return result


def _growing(expected: int) -> Iterator[int]:
    """0, 1, 2, ... where a file takes few pages; few steps on the way where it takes many."""
    yield from range(64) if expected < 64 else range(0, 4 * expected, expected // 5)


def _fill(pages: int, place: Path) -> None:
    status = os.statvfs(place)
    room = status.f_bavail * status.f_frsize - pages * _PAGE
    with open(place.parent / "ballast", "wb") as file:
        if room > 0:
            os.posix_fallocate(file.fileno(), 0, room)


def _free(place: Path) -> None:
    (place.parent / "ballast").unlink()


def file_size_limit(scenario: Scenario, folder: Path) -> Result:
    """RLIMIT_FSIZE at every half sector up to the size of the file. Writes end short there."""
    result = Result(scenario.name, "file-size")
    bench = Bench(scenario, folder)
    step = 256 if scenario.size < 1 << 20 else scenario.size // 9
    for limit in range(0, 4 * scenario.size + 65536, step):
        case = _limit(resource.RLIMIT_FSIZE, limit)
        if not _go(bench, result, limit, case, errno.EFBIG):
            break
    return result


def descriptor_limit(scenario: Scenario, folder: Path) -> Result:
    """RLIMIT_NOFILE at what is open, and 1, 2, ... more, until the save finds enough.

    First with nothing imported: what is not loaded yet cannot be loaded then, and a save must not
    begin what it may not be able to wait for.
    """
    result = Result(scenario.name, "descriptors")
    for warm in (False, True):
        bench = Bench(scenario, folder / f"warm-{warm}", warm=warm)
        for limit in range(3, 256):
            case = _limit(resource.RLIMIT_NOFILE, limit)
            if not _go(bench, result, limit, case, errno.EMFILE):
                break
    return result


def _limit(kind: int, value: int) -> _Case:
    """A soft limit: it can be lifted again."""
    soft, hard = resource.getrlimit(kind)
    return _Case(
        lambda place: resource.setrlimit(kind, (value, hard)),
        lambda place: resource.setrlimit(kind, (soft, hard)),
    )


def read_only_mount(scenario: Scenario, folder: Path) -> Result:
    """The directory is mounted read-only meanwhile."""
    result = Result(scenario.name, "read-only-mount")
    with _own_mounts():
        bench = Bench(scenario, folder)
        case = _Case(_bind_read_only, _unmount)
        if not _go(bench, result, 1, case, errno.EROFS):
            result.note(1, "read-only", ["a save in a read-only directory reported success"])
    return result


def mounted_file(scenario: Scenario, folder: Path) -> Result:
    """The file itself is a mount point, as containers make it."""
    result = Result(scenario.name, "mounted-file")
    with _own_mounts():
        bench = Bench(scenario, folder)

        def mount(place: Path) -> None:
            other = shutil.copy(scenario.path(place), folder / "other")
            _mount(str(other), scenario.path(place), "", _BIND, "")

        case = _Case(mount, lambda place: _unmount(scenario.path(place)))
        if not _go(bench, result, 1, case, errno.EXDEV, errno.EBUSY):
            result.note(1, "mounted", ["a save over a mount point reported success"])
    return result


def _bind_read_only(place: Path) -> None:
    _mount(str(place), place, "", _BIND, "")
    _mount(str(place), place, "", _BIND | _REMOUNT | _READ_ONLY, "")
    os.chdir("/")


def overlay(scenario: Scenario, folder: Path) -> Result:
    """The old file lies in the lower layer of an overlay, as in a container's image."""
    result = Result(scenario.name, "overlay")
    with _own_mounts():
        _mount("tmpfs", folder / "layers", "tmpfs", 0, "size=64m")
        bench = Bench(scenario, folder)
        case = _Case(partial(_overlay, folder / "layers"), afterwards=_unmount)
        _go(bench, result, 1, case)
    return result


def _overlay(layers: Path, place: Path) -> None:
    upper, work = layers / "upper", layers / "work"
    upper.mkdir()
    work.mkdir()
    lower = shutil.copytree(place, layers / "lower", symlinks=True)
    _mount("overlay", place, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


def immutable_directory(scenario: Scenario, folder: Path) -> Result:
    """The directory has the attribute `i`: nothing can be created or renamed in it, by anybody."""
    probe = folder / "probe"
    probe.mkdir(parents=True)
    _set_immutable(probe, on=True)
    _set_immutable(probe, on=False)
    result = Result(scenario.name, "immutable")
    bench = Bench(scenario, folder)
    case = _Case(
        lambda place: _set_immutable(place, on=True), lambda place: _set_immutable(place, on=False)
    )
    if not _go(bench, result, 1, case, errno.EPERM, errno.EACCES):
        result.note(1, "immutable", ["a save in an immutable directory reported success"])
    return result


def _set_immutable(place: Path, *, on: bool) -> None:
    _run("chattr", "+i" if on else "-i", str(place))


def no_permission(scenario: Scenario, folder: Path) -> Result:
    """Somebody saves in a directory where they may not create files."""
    result = Result(scenario.name, "no-permission")
    # Away from the tests' own folder, which nobody else may enter.
    with _open_folder() as public:
        bench = Bench(scenario, public / "bench")
        _imports_done(scenario, public / "warm")
        case = _Case(_become_nobody, _become_root_again)
        if not _go(bench, result, 1, case, errno.EACCES, errno.EPERM):
            result.note(1, "no permission", ["a save without permission reported success"])
    return result


@contextmanager
def _open_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="genesis-faults-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _imports_done(scenario: Scenario, folder: Path) -> None:
    """Import all that a save needs, while the interpreter's files may be read."""
    folder.mkdir()
    scenario.prepare(folder)


def _become_nobody(place: Path) -> None:
    place.chmod(0o555)
    if os.getuid() == 0:
        for path in place.iterdir():
            os.chown(path, _NOBODY, _NOBODY)
        os.seteuid(_NOBODY)


def _become_root_again(place: Path) -> None:
    if os.getuid() == 0:
        os.seteuid(0)
    place.chmod(0o755)


# --- power cuts of a real file system ------------------------------------------------------------


def ext4_cut(scenario: Scenario, folder: Path) -> Result:
    """An ext4 that goes down, without writing back anything, before call 1, 2, 3, ... of a save,
    and after the save has returned. Then it is mounted again.

    Without ext4's own guesses at what a writer forgot to sync.
    """
    result = Result(scenario.name, "ext4-cut")
    bench = Bench(scenario, folder)
    _make_ext4(folder)
    with _own_mounts():
        _mount_ext4(folder)
        for number in range(1, MOST):
            place = _fresh_ext4(bench.template, folder / "disk")
            status = _cut_at(scenario, place, number)
            _down(place)
            _remount_ext4(folder)
            seen = isolated(partial(scenario.see, place))
            result.points += 1
            result.seen[in_short(seen)] += 1
            if not (seen in scenario.allowed if status else scenario.may_see(seen, 1)):
                result.note(number, "cut", [f"a reader finds {seen!r} among {names(place)}"])
            if not status:
                break
        _unmount(folder / "disk")
    return result


def _cut_at(scenario: Scenario, place: Path, number: int) -> int:
    """The exit status of a save that is cut and killed before a call; zero where it has fewer."""

    def body() -> None:
        states = scenario.states(2)
        tracer.mark(tracer.START)
        scenario.save(place, states, 2)
        tracer.mark(tracer.STOP)

    def decide(call: Call) -> Fault | None:
        if call.number != number:
            return None
        return Fault(meanwhile=lambda: (_down(place), os.kill(call.pid, signal.SIGKILL)))

    return tracer.trace(body, str(place), decide, seconds=SECONDS).status


def _down(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
    finally:
        os.close(fd)


def _make_ext4(folder: Path) -> None:
    image = folder / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image))


def _fresh_ext4(template: Path, disk: Path) -> Path:
    """A folder on the disk with a checkpoint that is durable."""
    place = disk / "d"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
    fd = os.open(place, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)
    return place


def _remount_ext4(folder: Path) -> None:
    _unmount(folder / "disk")
    _mount_ext4(folder)


def _mount_ext4(folder: Path) -> None:
    (folder / "disk").mkdir(exist_ok=True)
    options = "loop,noauto_da_alloc"
    _run("mount", "-t", "ext4", "-o", options, str(folder / "image"), str(folder / "disk"))


def _run(name: str, *arguments: str) -> None:
    program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UnavailableError(f"{name} is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{name}: {done.stderr.strip()}")


# --- mounts --------------------------------------------------------------------------------------


@contextmanager
def _own_mounts() -> Iterator[None]:
    """Mounts from here on are seen by this process and its children only, and end with them."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    flags = _NEWNS if user == 0 else _NEWNS | _NEWUSER
    if libc.unshare(flags) != 0:
        code = ctypes.get_errno()
        raise UnavailableError(f"no mount namespace of our own: {os.strerror(code)}")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), "", _RECURSIVE | _PRIVATE, "")
    yield


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not target.exists():
        target.mkdir(parents=True)
    arguments = [os.fsencode(part) if part else None for part in (source, str(target), kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options) or None) != 0:
        code = ctypes.get_errno()
        raise UnavailableError(f"mount on a directory of our own: {os.strerror(code)}")


def _unmount(place: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount(os.fsencode(place)) != 0:
        raise OSError(ctypes.get_errno(), "umount")


FAULTS: dict[str, Callable[[Scenario, Path], Result]] = {
    "full": full_disk,
    "file-size": file_size_limit,
    "descriptors": descriptor_limit,
    "read-only-mount": read_only_mount,
    "mounted-file": mounted_file,
    "overlay": overlay,
    "immutable": immutable_directory,
    "ext4-cut": ext4_cut,
    "no-permission": no_permission,
}
