"""Fixtures that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test saves. Nothing is there yet, and nothing else is in its directory."""
    return tmp_path / "checkpoint.pth"
