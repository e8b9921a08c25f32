"""Names of checkpoint files: a template with the step in it, and back."""

from __future__ import annotations

import operator
import os
import re
import string

_FORM = re.compile(r"(?:0?(\d{1,2}))?d?")
_MOST_DIGITS = 18


class Names:
    """A template such as ``"epoch_{step:06d}.pth"``.

    Raises:
        ValueError: it is no name of a file with exactly one ``{step}`` in it.
    """

    def __init__(self, template: str) -> None:
        parts = list(string.Formatter().parse(template))
        fields = [part for part in parts if part[1] is not None]
        literal = "".join(part[0] for part in parts)
        fits = len(fields) == 1 and fields[0][1] == "step" and not fields[0][3]
        form = _FORM.fullmatch(fields[0][2] or "") if fits else None
        if form is None or os.path.basename(literal) != literal or literal.startswith("."):
            raise ValueError(
                f"{template!r} is no template for names: it takes one {{step}}, with as many digits"
                " as in {step:06d}, in the name of a file without a folder"
            )
        self.template = template
        before, after = parts[0][0], "".join(part[0] for part in parts[1:])
        self._pattern = re.compile(
            f"{re.escape(before)}([0-9]{{1,{_MOST_DIGITS}}}){re.escape(after)}"
        )

    def name_of(self, step: int) -> str:
        """The name for a step.

        Raises:
            TypeError: `step` is no whole number.
            ValueError: it is negative.
        """
        if isinstance(step, bool):
            raise TypeError(f"a step or epoch is a whole number, and not {step}")
        number = operator.index(step)
        if number < 0:
            raise ValueError(f"a step or epoch must not be negative, and is {step}")
        return self.template.format(step=number)

    def step_of(self, name: str) -> int | None:
        """The step in a name that `name_of` gives. ``None`` for any other: ``epoch_1.pth`` would
        hide the file of the same step, or be hidden by it."""
        found = self._pattern.fullmatch(name)
        step = int(found[1]) if found else None
        return step if step is not None and self.name_of(step) == name else None
