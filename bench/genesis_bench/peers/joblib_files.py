"""joblib."""

from __future__ import annotations

from typing import Any

from ..states import Tree
from .base import How, Peer, Ticket


class Joblib(Peer):
    name = "joblib"
    what = "joblib.dump(state, path)"
    needs = ("joblib",)
    extra_copies = 2.0

    def save(self, tree: Tree, path: str) -> Ticket:
        import joblib

        joblib.dump(tree, path)
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        import joblib

        return joblib.load(path)
