"""The process in which one peer is measured: reads a job, writes a result, and ends.

Started by jobs.py; a peer's crash, leftover thread or leftover memory dies with it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from typing import Any

Job = dict[str, Any]


def main() -> None:
    """Run the job in the first argument; write its result to the file in the second."""
    job, result_path = json.loads(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")
    try:
        result = _run(job)
    except BaseException as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"[:500]}
    with open(result_path, "w") as file:
        json.dump(result, file)
        file.flush()
    # A peer that cannot end its own threads or processes must not hold up the rest.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _run(job: Job) -> dict[str, Any]:
    from . import choices, measure, states
    from .peers import peer_named

    kind = peer_named(job["peer"])
    missing = kind.missing()
    if missing:
        return {"unavailable": missing}
    start = time.perf_counter()
    state = states.build(job["state"], job["nbytes"], job.get("count"))
    refused = kind.refuses(state)
    if refused:
        return {"refused": refused}
    peer = kind()
    peer.imports()
    built = time.perf_counter() - start
    bed = measure.Bed(peer, state, job["folder"], job)
    mode: Any = choices.choices if job["mode"] == "choices" else getattr(measure, job["mode"])
    result = mode(bed, _mark) if job["mode"] == "memory" else mode(bed)
    return {
        **result,
        "state": {"nbytes": state.nbytes, "count": state.count, "build_seconds": built},
    }


def _mark(name: str) -> None:
    print(f"mark {name}", flush=True)
    # Until the parent has looked: its line comes back when it has.
    sys.stdin.readline()


# The guard matters: peers that spawn a process import this file in it.
if __name__ == "__main__":
    main()
