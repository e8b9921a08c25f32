"""``PYTHONPATH=helpers python -m attacks``, in tests/: every reader on the corpus, as a table.

It judges nothing: that is `test_attacks`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from .corpus import attacks
from .test_attacks import READERS, run

COLUMNS = "refused", "value", "error", "ran"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = attacks(str(Path(folder, "canary")))
        outcomes = run(Path(folder), *READERS)
    print(f"{len(corpus)} attacks in {len({_group(attack.name) for attack in corpus})} groups\n")
    for attack in {_group(each.name): each for each in corpus}.values():
        group = _group(attack.name)
        count = sum(_group(each.name) == group for each in corpus)
        print(f"{count:5}  {group:14} {attack.tries}")
    print("\n" + f"{'reader':20}" + "".join(f"{column:>10}" for column in COLUMNS))
    for reader, found in outcomes.items():
        counts = Counter(kind for outcome in found.values() for kind in _kinds(outcome))
        print(f"{reader:20}" + "".join(f"{counts[column]:>10}" for column in COLUMNS))


def _group(name: str) -> str:
    return name.partition(":")[0]


def _kinds(outcome: dict[str, object]) -> list[str]:
    kind = "value" if "value" in outcome else "refused" if outcome["named"] else "error"
    return [kind, *(["ran"] if outcome["ran"] or outcome["events"] else [])]


if __name__ == "__main__":
    main()
