"""The long forms of the fault tests run where `-m torture` asks for them, and not otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "torture" in str(config.getoption("-m")):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("torture"):
            item.add_marker(pytest.mark.skip(reason="the long form; `make torture` runs it"))
