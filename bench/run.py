"""Runs the benchmarks: ``python bench/run.py`` with the options of `genesis_bench.run`.

``python bench/run.py stall --params 50M``, ``machine`` and ``objects`` run the smaller ones.
"""

from __future__ import annotations

import runpy
import sys

TOOLS = ("stall", "machine", "objects")

if __name__ == "__main__":
    tool = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in TOOLS else "run"
    runpy.run_module(f"genesis_bench.{tool}", run_name="__main__", alter_sys=True)
