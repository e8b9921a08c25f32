"""Which checkpoints to keep. Decides over names and numbers; removes nothing."""

from __future__ import annotations

from collections.abc import Mapping


def keep_last(steps: Mapping[int, str], count: int) -> list[str]:
    """The paths to remove so that the `count` highest steps stay, lowest step first."""
    return [steps[step] for step in sorted(steps)[: max(len(steps) - count, 0)]]
