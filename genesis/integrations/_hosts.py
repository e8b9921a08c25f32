"""Whether a host is installed and new enough, and which extra installs it. Imports no host."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version


def require(distributions: tuple[str, ...], least: tuple[int, ...], extra: str) -> None:
    """Refuse to go on without a host.

    Args:
        distributions: the names under which it is installed; one is enough.
        least: the first version that will do.
        extra: of this package.

    Raises:
        ImportError: none of them is installed, or each is older; the message names the extra.
    """
    found = {name: v for name in distributions if (v := _version_of(name)) is not None}
    if any(_numbers(v) >= least for v in found.values()):
        return
    there = ", ".join(f"{name} {v}" for name, v in found.items()) or "nothing of it is installed"
    wanted = f"{distributions[0]} {'.'.join(map(str, least))} or later"
    raise ImportError(
        f"genesis.integrations.{extra} needs {wanted} ({there}): "
        f"pip install 'genesis-checkpoint[{extra}]'"
    )


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    start = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, start[0].split("."))) if start else ()
