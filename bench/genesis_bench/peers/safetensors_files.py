"""safetensors."""

from __future__ import annotations

import importlib
import json
from typing import Any

from ..states import Tree, flat, leaves
from .base import How, Peer, Ticket, copied


class Safetensors(Peer):
    name = "safetensors"
    what = "safetensors save_file: arrays by name, numbers as JSON metadata"
    kinds = frozenset({"torch", "numpy", "jax"})
    needs = ("safetensors",)
    hows = ("whole", "partial")

    def set_up(self, tree: Tree, folder: str) -> None:
        array = next(iter(flat(tree).values()))
        module = type(array).__module__.split(".")[0]
        framework = {"torch": "torch", "numpy": "numpy"}.get(module, "flax")
        self._module = importlib.import_module(f"safetensors.{framework}")
        self._framework = framework

    def save(self, tree: Tree, path: str) -> Ticket:
        arrays = flat(tree)
        others = {name: leaf for name, leaf in leaves(tree) if name not in arrays}
        self._module.save_file(arrays, path, metadata={"state": json.dumps(others)})
        return Ticket()

    def load(self, path: str, how: How, template: Any, probe: tuple[str, str]) -> Any:
        from safetensors import safe_open

        if how == "whole":
            return self._module.load_file(path)
        with safe_open(path, framework=self._framework) as file:
            tensor = file.get_tensor("/".join(probe))
        return copied(tensor)
