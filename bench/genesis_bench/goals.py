"""The goals of the project as ratios in one run, and whether each is reached.

A goal without its measurement is reported as not measured, never as reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .peers import PEERS, peer_named
from .results import Results, middle
from .stats import figures, milliseconds, table

MIB = 1 << 20
SYNC, COPY, DEFERRED = "genesis.save", "genesis background", "genesis deferred"
OTHERS = [peer.name for peer in PEERS if not peer.name.startswith("genesis")]
# The fastest of each kind is what a goal is held against.
DCP_THREAD = ["dcp.async_save", "dcp.async_save, stager kept"]
DCP_STAGER = ["dcp.async_save, async staging", "dcp.async_save, async staging, process"]
# Growth over many saves that counts as none: the allocator's own breathing.
FLAT = 4 * MIB


@dataclass
class Goal:
    """A measured number, its limit, and the numbers behind it."""

    measure: str
    value: float | None
    limit: float
    behind: str = ""
    unit: str = "x"
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        reached = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "reached" if reached else "NOT REACHED"

    def row(self) -> list[str]:
        sign = ">=" if self.at_least else "<="
        value = "" if self.value is None else f"{figures(self.value)} {self.unit}"
        return [
            self.measure,
            value,
            f"{sign} {figures(self.limit)} {self.unit}",
            self.verdict,
            self.behind,
        ]


def goals(results: Results) -> list[Goal]:
    """Every goal, in the order of the table in the issue."""
    return [
        *_stall_copy(results),
        *_stall_small(results),
        *_stall_deferred(results),
        *_training(results),
        *_synchronous(results),
        *_loads(results),
        *_memory(results),
        *_many(results),
    ]


def as_table(results: Results) -> str:
    """The goals as a Markdown table."""
    header = ["measure", "measured", "goal", "verdict", "medians behind it"]
    return table(header, [goal.row() for goal in goals(results)])


# ------------------------------------------------------------------------------------- stalls


def _stall(results: Results, state: str, peer: str) -> float | None:
    return middle(results.where(mode="saves", state=state, peer=peer).samples("stall"))


def _best(names: list[str], number: Callable[[str], float | None]) -> tuple[str, float] | None:
    found = [(value, name) for name in names if (value := number(name)) is not None]
    return (min(found)[1], min(found)[0]) if found else None


def _against(
    measure: str, ours: float | None, best: tuple[str, float] | None, limit: float
) -> Goal:
    if ours is None or best is None:
        return Goal(measure, None, limit)
    name, theirs = best
    behind = f"{milliseconds(ours)} ms; {name} {milliseconds(theirs)} ms"
    return Goal(measure, ours / theirs, limit, behind)


def _stall_copy(results: Results) -> list[Goal]:
    mine = results.where(mode="saves", state="big", peer=COPY)
    behind = f"{_ms(mine.samples('stall'))} ms; floor {_ms(mine.samples('floor_copy'))} ms"
    copying = [name for name in OTHERS if peer_named(name).copies]
    best = _best(copying, lambda name: _stall(results, "big", name))
    return [
        Goal(
            "call stall, copy, big, over the copy floor",
            middle(mine.ratios("stall", "floor_copy")),
            1.25,
            behind,
        ),
        Goal(
            "the same for the first save, prewarmed",
            middle(mine.ratios("stall", "floor_copy", first=True)),
            2.0,
        ),
        _against(
            "call stall, copy, big, over the best peer that copies before it returns",
            _stall(results, "big", COPY),
            best,
            1.0,
        ),
    ]


def _ms(samples: list[float]) -> str:
    return milliseconds(middle(samples))


def _stall_small(results: Results) -> list[Goal]:
    def number(name: str) -> float | None:
        return _stall(results, "small", name)

    ours = number(COPY)
    return [
        _against(f"call stall, copy, small, over {label}", ours, _best(names, number), 1 / 8)
        for label, names in (
            ("dcp.async_save (thread)", DCP_THREAD),
            ("torch.save", ["torch.save"]),
        )
    ]


def _stall_deferred(results: Results) -> list[Goal]:
    found = [
        _against(
            f"call stall, deferred, {state}, over dcp with async staging",
            _stall(results, state, DEFERRED),
            _best(DCP_STAGER, lambda name, state=state: _stall(results, state, name)),
            1 / 4,
        )
        for state in ("big", "small")
    ]
    stall = _stall(results, "big", DEFERRED)
    value = None if stall is None else stall * 1e3
    return [*found, Goal("call stall, deferred, big", value, 5.0, unit="ms")]


# ----------------------------------------------------------------------------------- training


def lost(results: Results, peer: str) -> float | None:
    """Training time lost per checkpoint, in the median."""
    return middle(results.where(mode="training", peer=peer).pooled("lost"))


def _training(results: Results) -> list[Goal]:
    ours = _best([COPY, DEFERRED], lambda name: lost(results, name))
    mine = ours[1] if ours else None
    label = f"training time lost per checkpoint, big ({ours[0] if ours else COPY})"
    fsync = _best(["torch.save + fsync"], lambda name: lost(results, name))
    others = _best(OTHERS, lambda name: lost(results, name))
    return [
        _against(f"{label}, over the best peer", mine, others, 1.0),
        _against(f"{label}, over torch.save + fsync", mine, fsync, 1 / 8),
    ]


# -------------------------------------------------------------------------- synchronous saves


def _synchronous(results: Results) -> list[Goal]:
    mine = results.where(mode="saves", state="big", peer=SYNC)
    ours = middle(mine.samples("durable"))
    theirs = results.where(mode="saves", state="big", peer="torch.save + fsync")
    fsync = middle(theirs.samples("durable"))
    best = None if fsync is None else ("torch.save + fsync", fsync)
    shares = [1 / ratio for ratio in mine.ratios("durable", "floor_write")]
    behind = f"{_ms(mine.samples('durable'))} ms; floor {_ms(mine.samples('floor_write'))} ms"
    return [
        _against("synchronous save until durable, big, over torch.save + fsync", ours, best, 0.6),
        Goal(
            "its speed as a share of the direct-write floor",
            middle(shares),
            0.9,
            behind,
            at_least=True,
        ),
    ]


# -------------------------------------------------------------------------------------- loads


def _loads(results: Results) -> list[Goal]:
    found = []
    for state in ("big", "small"):
        loads = results.where(mode="loads", state=state)
        ours = loads.where(peer=SYNC)
        torch = loads.where(peer="torch.save")
        best = _best(["whole", "restricted"], lambda how, t=torch: middle(t.loads(how, "warm")))
        whole = middle(ours.loads("whole", "warm"))
        mapped, one = (
            middle(loads.where(peer="safetensors").loads(how, "warm"))
            for how in ("whole", "partial")
        )
        found += [
            _against(
                f"load, verified, {state}, warm, over torch.load",
                whole,
                best and (f"torch.load ({WAYS[best[0]]})", best[1]),
                0.6,
            ),
            _against(
                f"load, mapped, {state}, warm, over safetensors.load_file",
                middle(ours.loads("mapped", "warm")),
                None if mapped is None else ("safetensors", mapped),
                1.0,
            ),
            _against(
                f"load, one tensor, {state}, warm, over safetensors' get_tensor",
                middle(ours.loads("partial", "warm")),
                None if one is None else ("safetensors", one),
                1.5,
            ),
            _against(
                f"load, weights_only, {state}, warm, over the unrestricted load",
                middle(ours.loads("restricted", "warm")),
                None if whole is None else ("genesis.load", whole),
                2.0,
            ),
        ]
    return found


WAYS = {"whole": "weights_only=False", "restricted": "weights_only=True"}


# ------------------------------------------------------------------------------------- memory


def _memory(results: Results) -> list[Goal]:
    memory = results.where(mode="memory")
    sync = memory.where(peer=SYNC)
    peak = sync.peak()
    sizes = ", ".join(f"{size / 1e6:,.0f} MB" for size in sync.values("nbytes"))
    found = [
        Goal(
            "peak extra memory, synchronous, any size",
            None if peak is None else peak / MIB,
            128,
            f"states of {sizes}",
            unit="MiB",
        )
    ]
    for peer in (COPY, DEFERRED):
        found.append(_background_memory(memory.where(peer=peer), peer))
        found.append(_flat(results.where(mode="flat", peer=peer), peer))
    return found


def _background_memory(mine: Results, peer: str) -> Goal:
    shares = [
        (max(result["peak"], result.get("peak_family", 0)) - 64 * MIB) / result["state"]["nbytes"]
        for result in mine.good()
    ]
    measure = f"peak extra memory less 64 MiB, {peer}, over the state"
    return Goal(measure, max(shares, default=None), 1.05)


def _flat(mine: Results, peer: str) -> Goal:
    growths = [growth(result["resident"]) / MIB for result in mine.good()]
    count = max((len(result["resident"]) for result in mine.good()), default=0)
    measure = f"growth of memory over {count} saves, {peer}"
    return Goal(measure, max(growths, default=None), FLAT / MIB, unit="MiB")


def growth(resident: list[float]) -> float:
    """Memory in the median of the last tenth of the saves over that of the second tenth."""
    tenth = max(1, len(resident) // 10)
    early, late = resident[tenth : 2 * tenth] or resident[:1], resident[-tenth:]
    return (middle(late) or 0) - (middle(early) or 0)


# --------------------------------------------------------------------------------------- many


def _many(results: Results) -> list[Goal]:
    # The strict reading: the floor is that of the same bytes in a thousandth of the tensors.
    floor = middle(results.where(mode="saves", state="few", peer=COPY).samples("floor_copy"))
    copying = [name for name in OTHERS if peer_named(name).copies]
    ours = _stall(results, "many", COPY)
    best = _best(copying, lambda name: _stall(results, "many", name))
    tensors = max(
        (r["state"]["count"] for r in results.where(mode="saves", state="many").good()), default=0
    )
    return [
        _against(
            f"call stall, copy, {tensors:,} tensors, over the copy floor of the same bytes in few",
            ours,
            None if floor is None else ("floor", floor),
            25,
        ),
        _against(
            f"call stall, copy, {tensors:,} tensors, over the best peer that copies",
            ours,
            best,
            1.0,
        ),
    ]
