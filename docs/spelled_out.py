"""For the reference: a call that takes ``**options`` is shown with every option, as `help` does.

The options stand in one class, which `genesis._options.spelled_out` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe


class SpelledOut(griffe.Extension):
    """Puts the fields of that class in the place of ``**options``."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **kwargs: Any) -> None:
        for call in _calls(pkg):
            named = [
                re.fullmatch(r"spelled_out\((\w+)\)", str(one.value)) for one in call.decorators
            ]
            for choices in filter(None, named):
                _replace(call, pkg[f"_options.{choices[1]}"])


def _calls(thing: Any) -> Iterator[griffe.Function]:
    for member in thing.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            yield member
        elif member.is_module or member.is_class:
            yield from _calls(member)


def _replace(call: griffe.Function, choices: griffe.Class) -> None:
    del call.parameters["options"]
    for name, field in choices.attributes.items():
        call.parameters.add(
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.keyword_only,
                default=field.value,
            )
        )
