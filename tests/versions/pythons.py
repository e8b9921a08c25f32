"""The interpreters of this machine, and one of a newer Debian where it has none new enough.

A name on PATH counts if it starts and can make a virtual environment: pyenv's shims often do not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST = (3, 11)

_ASK = "import ensurepip, ssl, sys, venv; print(*sys.version_info[:4])"


def found() -> dict[str, str]:
    """The interpreter of each version, such as "3.12", oldest first: its latest release."""
    best: dict[tuple[int, int], tuple[int, str]] = {}
    for path in _candidates():
        version = _version(path)
        if version is not None and version[:2] >= OLDEST:
            best[version[:2]] = max(best.get(version[:2], (-1, "")), (version[2], path))
    return {f"{major}.{minor}": best[major, minor][1] for major, minor in sorted(best)}


def _candidates() -> Iterator[str]:
    """`GENESIS_PYTHONS`, this one, PATH, and pyenv's folder."""
    yield from filter(None, os.environ.get("GENESIS_PYTHONS", "").split(os.pathsep))
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield str(Path(sys.base_prefix) / "bin" / here)
    for minor in range(OLDEST[1], 40):
        if path := shutil.which(f"python3.{minor}"):
            yield path
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(root.glob("versions/3.*/bin/python3")))


def _version(path: str) -> tuple[int, int, int] | None:
    """What an interpreter says it is; ``None`` if it does not start, or is no release."""
    try:
        done = subprocess.run([path, "-c", _ASK], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    major, minor, micro, level = (done.stdout.split() or ["0", "0", "0", "none"])[:4]
    return (int(major), int(minor), int(micro)) if level == "final" else None


def of_debian(version: str, folder: Path, patchelf: str) -> str | None:
    """Unpack an interpreter of Debian's unstable release with the libraries that it needs.

    Nothing is installed: packages are unpacked below `folder`, and the interpreter is told to look
    for its libraries there, the C library included, which is newer than this system's may be.
    Returns ``None`` where this is no Debian, or Debian has no such version.
    """
    root = folder / f"debian-{version}"
    python = root / "usr" / "bin" / f"python{version}"
    ready = root / "ready"
    if not ready.exists():
        if shutil.which("apt-get") is None or not _download(version, root):
            return None
        for package in sorted((root / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        loader = next(root.glob("usr/lib64/ld-linux*.so.*"))
        arguments = ["--set-interpreter", loader, "--force-rpath", "--set-rpath", libraries]
        subprocess.run([patchelf, *arguments, python], check=True)
        _use_wheels_below(root, version)
        ready.touch()
    return str(python)


def _download(version: str, root: Path) -> bool:
    """Fetch the packages with lists of our own, from where this system gets its own packages."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    places = [line.split()[1] for line in lines if re.match(r"Debian .*/debian/?$", line)]
    if not places:
        return False
    for name in ("archives/partial", "lists/partial"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (root / "sources").write_text(f"deb [signed-by={keys}] {places[0]} unstable main\n")
    settings = {
        "Dir::Etc::sourcelist": root / "sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": root / "lists",
        "Dir::State::status": root / "status",
        "Dir::Cache": root,
        "APT::Install-Recommends": "0",
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    wanted = ["install", "-y", "--download-only", f"python{version}-venv"]
    return all(
        subprocess.run(["apt-get", "-qq", *options, *words]).returncode == 0
        for words in (["update"], wanted)
    )


def _use_wheels_below(root: Path, version: str) -> None:
    """Let `ensurepip` find Debian's wheel of pip, whose place is compiled in."""
    file = root / "usr" / "lib" / f"python{version}" / "ensurepip" / "__init__.py"
    wheels = root / "usr" / "share" / "python-wheels"
    text = re.sub(r"(?m)^_pkg_dir = .*$", f"_pkg_dir = {str(wheels)!r}", file.read_text())
    file.write_text(text)
