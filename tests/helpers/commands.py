"""Runs a command of genesis in this process. Tests that import it are skipped without typer."""

from __future__ import annotations

import pytest

typer_testing = pytest.importorskip("typer.testing")

from genesis.cli import app  # noqa: E402


def run(*arguments: object, status: int = 0) -> str:
    """What a command prints, on both of its streams."""
    found = typer_testing.CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))
    assert found.exit_code == status, (found.output, found.exception)
    return str(found.output)
