"""What all integrations have in common: a host that is missing or too old names the extra."""

from __future__ import annotations

import importlib.metadata

import pytest

from genesis.integrations import _hosts


def test_a_missing_host_names_the_extra() -> None:
    with pytest.raises(
        ImportError, match=r"nosuchhost 2\.1 or later \(nothing.*\): pip install 'ge.*\[x\]'"
    ):
        _hosts.require(("nosuchhost", "nor-this"), (2, 1), "x")


def test_a_host_that_is_too_old_is_named_with_its_version() -> None:
    there = importlib.metadata.version("pytest")
    _hosts.require(("nosuchhost", "pytest"), (8, 3), "x")
    with pytest.raises(ImportError, match=rf"pytest 1000 or later \(pytest {there}\).*\[x\]"):
        _hosts.require(("pytest",), (1000,), "x")


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.10.0rc1", (2, 10, 0)), ("2.13.0+cpu", (2, 13, 0)), ("odd", ())]
)
def test_versions_are_compared_by_their_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert _hosts._numbers(text) == numbers
