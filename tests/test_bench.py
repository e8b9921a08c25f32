"""The benchmark harness in bench/: what it runs, keeps, judges and writes.

Runs it on tiny states and without its peers' packages; no test here looks at how fast anything is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import benchmarks  # noqa: F401  makes genesis_bench known
import pytest
from genesis_bench import choices, goals, jobs, machine, report, run
from genesis_bench.parts import choose, parts
from genesis_bench.peers import PEERS
from genesis_bench.results import Record, Results, read_parts, seconds_of, write_part

ENVIRONMENT = {
    "date": "2026-01-01 00:00 UTC",
    "processor": "a processor",
    "cores": 2,
    "memory_gb": 8,
    "kernel": "Linux",
    "file_system": "ext4",
    "python": "3.11",
    "load": [0.5, 0.5, 0.5],
    "packages": {"torch": "2", "joblib": "absent"},
    "rounds": 1,
    "seconds": 60,
}


@pytest.fixture(scope="module")
def place() -> Iterator[jobs.Place]:
    with jobs.temporary_place(None) as place:
        yield place


@pytest.fixture(scope="module")
def measured(place: jobs.Place) -> Results:
    """Two peers on a tiny model, as a part of a run measures them."""
    pytest.importorskip("torch")
    common = {"mode": "saves", "state": "big", "nbytes": 1_000_000, "saves": 1}
    some = [common | {"peer": name} for name in ("torch.save", goals.COPY)]
    return Results(jobs.run_rounds(some, 1, place, lambda _line: None))


def saved(peer: str, state: str = "big", **sample: float) -> Record:
    """A record of three equal saves."""
    numbers = {"stall": 1.0, "durable": 1.0, "floor_copy": 1.0, "floor_write": 1.0} | sample
    result = {
        "first": numbers,
        "samples": [numbers] * 3,
        "state": {"nbytes": 1000, "count": 4},
    }
    job = {"mode": "saves", "state": state, "nbytes": 1000, "peer": peer}
    return {"job": job, "round": 0, "result": result}


def judged(records: list[Record], words: str) -> goals.Goal:
    """The one goal whose measure contains some words."""
    (goal,) = [goal for goal in goals.goals(Results(records)) if words in goal.measure]
    return goal


# --------------------------------------------------------------------------------- a real run


def test_a_run_measures_every_peer_that_is_asked(measured: Results) -> None:
    assert measured.peers() == ["torch.save", goals.COPY]
    assert [measured.where(peer=name).failure() for name in measured.peers()] == [None, None]


def test_a_save_takes_longer_than_its_stall_and_is_durable_last(measured: Results) -> None:
    for result in measured.good():
        for sample in result["samples"]:
            assert 0 < sample["stall"] <= sample["finished"] <= sample["durable"]
            assert sample["floor_copy"] > 0


def test_the_goals_are_ratios_of_what_was_measured(measured: Results) -> None:
    (goal,) = [g for g in goals.goals(measured) if g.measure.endswith("over the copy floor")]
    mine = measured.where(peer=goals.COPY).good()[0]["samples"]
    assert goal.value == pytest.approx(mine[0]["stall"] / mine[0]["floor_copy"])


def test_the_page_shows_every_peer_and_every_goal(measured: Results) -> None:
    texts = report.blocks(measured, {"saves-big": ENVIRONMENT})
    assert {"goals", "peers", "runs", "environment", "saves-big"} == set(texts)
    assert texts["saves-big"].count("torch.save") == 1
    assert texts["goals"].count("\n") == 1 + len(goals.goals(measured))


def test_what_goes_wrong_in_a_job_is_its_result(place: jobs.Place) -> None:
    pytest.importorskip("torch")
    job = {"mode": "saves", "state": "no such state", "nbytes": 1, "peer": "torch.save"}
    assert "no such state" in (jobs.failure(jobs.run(job, place)) or "")


def test_the_figures_of_the_design_page_have_a_command(place: jobs.Place) -> None:
    rows = dict(machine.rows(1_000_000, str(place.folder)))
    assert "s per GB" in rows["write and sync a file, through the page cache"]
    assert "GB/s" in rows["digest, xxh3-64"]


def test_a_choice_is_measured_with_it_and_without_it(place: jobs.Place) -> None:
    pytest.importorskip("torch")
    (part,) = choose(parts(quick=True), ["choices"])
    some = [job | {"nbytes": 1_000_000} for job in part.jobs if job["choice"] in ("gil", "direct")]
    results = Results(jobs.run_rounds(some, 1, place, lambda _line: None))
    for result in results.good():
        assert len(result["with"]) == len(result["without"]) == 2
    text = report.blocks(results, {"choices": ENVIRONMENT})["choices"]
    assert text.count("not run") == len(choices.ROWS) - 2


@pytest.mark.parametrize("row", choices.ROWS, ids=lambda row: row.name)
def test_what_a_choice_replaces_is_there_before_and_after(row: choices.Row) -> None:
    pytest.importorskip("torch")
    names = {**row.replaces, **row.both}
    before = [resolve_name(name) for name in names]
    with choices.replaced(names):
        assert [resolve_name(name) for name in names] == list(names.values())
    assert [resolve_name(name) for name in names] == before


# ------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("stall", "verdict"), [(1.2, "reached"), (1.25, "reached"), (1.3, "NOT REACHED")]
)
def test_a_goal_is_reached_at_its_limit_and_not_beyond(stall: float, verdict: str) -> None:
    assert judged([saved(goals.COPY, stall=stall)], "copy, big, over the copy").verdict == verdict


def test_a_goal_that_wants_much_is_reached_from_its_limit_on() -> None:
    words = "share of the direct-write floor"
    assert judged([saved(goals.SYNC, durable=1.1)], words).verdict == "reached"
    assert judged([saved(goals.SYNC, durable=1.2)], words).verdict == "NOT REACHED"


def test_a_goal_without_its_measurement_is_not_reached() -> None:
    assert {goal.verdict for goal in goals.goals(Results([]))} == {"not measured"}


def test_the_fastest_peer_is_the_one_that_counts() -> None:
    records = [
        saved(goals.COPY, stall=1.0),
        saved("torch.save", stall=4.0),
        saved("joblib", stall=2.0),
        # It returns before it has copied, and so stands in no comparison with those that have.
        saved("torch_checkpointing", stall=0.1),
    ]
    goal = judged(records, "big, over the best peer that copies")
    assert goal.value == 0.5
    assert "joblib" in goal.behind


def test_a_peer_that_failed_is_no_measurement() -> None:
    broken = saved("joblib") | {"result": {"error": "it broke"}}
    goal = judged([saved(goals.COPY), broken], "big, over the best peer that copies")
    assert goal.verdict == "not measured"


# ------------------------------------------------------------------------------- files and page


def test_results_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    records = [saved("torch.save", stall=0.125), saved(goals.COPY)]
    write_part(tmp_path / "saves-big.json", ENVIRONMENT, records)
    environments, results = read_parts(tmp_path)
    assert environments == {"saves-big": ENVIRONMENT}
    assert results.records == records
    assert seconds_of(tmp_path / "saves-big.json") == 60


def test_a_part_that_is_run_again_replaces_its_results_only(tmp_path: Path) -> None:
    write_part(tmp_path / "saves-big.json", ENVIRONMENT, [saved("torch.save")])
    write_part(tmp_path / "saves-small.json", ENVIRONMENT, [saved("joblib", "small")])
    write_part(tmp_path / "saves-big.json", ENVIRONMENT, [saved(goals.COPY)])
    assert read_parts(tmp_path)[1].peers() == ["joblib", goals.COPY]


def test_the_page_changes_between_its_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- bench:goals -->\nold\n<!-- /bench:goals -->\nAfter.\n")
    homeless = report.put(page, {"goals": r"new \1", "flat": "no place for it"})
    assert homeless == ["flat"]
    expected = "Before.\n<!-- bench:goals -->\nnew \\1\n<!-- /bench:goals -->\nAfter.\n"
    assert page.read_text() == expected


def test_the_page_is_what_the_results_beside_it_say(tmp_path: Path) -> None:
    environments, results = read_parts(run.RESULTS)
    if not environments:
        pytest.skip("no results are committed")
    page = tmp_path / run.PAGE.name
    shutil.copy(run.PAGE, page)
    assert report.put(page, report.blocks(results, environments)) == []
    assert page.read_text() == run.PAGE.read_text(), "run `python bench/run.py --render`"


def test_the_page_has_a_place_for_every_part_and_picture() -> None:
    text = run.PAGE.read_text()
    places = (
        "goals", "environment", "runs", "peers", "training", "memory", "flat", "choices", "check"
    )  # fmt: skip
    states = [f"{mode}-{s}" for mode in ("saves", "loads") for s in report.STATES]
    measured_states = {f"{j['mode']}-{j['state']}" for part in parts() for j in part.jobs}
    wanted = [*places, *(name for name in states if name in measured_states), *report.PICTURES]
    assert [name for name in wanted if f"<!-- bench:{name} -->" not in text] == []


# ----------------------------------------------------------------------------------- the parts


def test_every_peer_is_measured_on_every_state_it_takes() -> None:
    measured = {(j["state"], j["peer"]) for part in parts() for j in part.jobs}
    for state in ("big", "small", "many"):
        takers = {peer.name for peer in PEERS if "torch" in peer.kinds}
        assert {name for s, name in measured if s == state} == takers


def test_every_number_of_a_goal_is_in_the_full_run() -> None:
    wanted: set[tuple[Any, ...]] = {
        ("saves", "big"), ("saves", "small"), ("saves", "many"), ("saves", "few"),
        ("training", "big"), ("loads", "big"), ("loads", "small"), ("memory", "big"),
        ("flat", "big"),
    }  # fmt: skip
    assert wanted <= {(j["mode"], j["state"]) for part in parts() for j in part.jobs}


def test_parts_are_chosen_by_how_their_names_begin() -> None:
    names = [part.name for part in choose(parts(), ["saves-b", "loads"])]
    assert names == ["saves-big", "loads-big", "loads-small", "loads-numpy", "loads-jax"]


def test_a_part_that_does_not_exist_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no part begins with 'speed': saves-big, "):
        choose(parts(), ["speed"])
