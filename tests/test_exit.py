"""The end of a process: every save that was submitted is durable where the process could finish it,
none is half there, and what is lost is lost loudly.

Real processes and real signals. A save is kept from ending before the exit begins by the lock of
its directory, which the test holds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contention import Hold, Script, held, is_waited_for, litter, run, until

import genesis

SAVES = 5
"""Two are begun, the rest are queued: the writer has two threads."""

SUBMIT = """
import os, sys, genesis
folder = sys.argv[1]
def save(name, **keywords):
    state = {"name": name, "data": name.encode() * 20_000}
    return genesis.save(state, f"{folder}/{name}", background=True, **keywords)
def submit():
    for number in range(5):
        save(f"f{number}")
def leave():
    print("leaving", flush=True)
"""


def state_of(name: str) -> dict[str, object]:
    return {"name": name, "data": name.encode() * 20_000}


def is_saved(folder: Path, name: str) -> bool:
    return (folder / name).exists() and genesis.load(folder / name) == state_of(name)


def all_saved(folder: Path, names: tuple[str, ...] = ()) -> bool:
    """Whether what `submit` saved is there, whole, with nothing else but `names`."""
    expected = [*(f"f{number}" for number in range(SAVES)), *names]
    return sorted(os.listdir(folder)) == sorted(expected) and all(
        is_saved(folder, name) for name in expected
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "saves").mkdir()
    return tmp_path / "saves"


@pytest.fixture
def hold(folder: Path) -> Iterator[Hold]:
    with held(folder) as hold:
        yield hold


def end_of(source: str, folder: Path, hold: Hold) -> tuple[int, str]:
    """Run a program whose saves cannot end before it says that it leaves; its status and errors."""
    with Script(SUBMIT + source, folder) as script:
        script.expect("leaving")
        hold.release()
        status, _, errors = script.end()
    return status, errors


# Ways to leave that finish what was submitted

ENDINGS = {
    "the end of the program": (0, "", "submit(); leave()"),
    "sys.exit": (3, "", "submit(); leave(); sys.exit(3)"),
    "SystemExit with a message": (1, "the end", "submit(); leave(); sys.exit('the end')"),
    "an unhandled exception": (1, "KeyError: 'unhandled'", "submit(); leave(); {}['unhandled']"),
    "KeyboardInterrupt": (
        -signal.SIGINT,
        "KeyboardInterrupt",
        "submit(); leave(); raise KeyboardInterrupt",
    ),
    "sys.exit in a thread": (
        0,
        "",
        """
import threading
def work():
    submit(); leave(); sys.exit(3)
thread = threading.Thread(target=work)
thread.start(); thread.join()
""",
    ),
    "an unhandled exception in a thread": (
        0,
        "KeyError: 'unhandled'",
        """
import threading
def work():
    submit(); leave(); {}['unhandled']
thread = threading.Thread(target=work)
thread.start(); thread.join()
""",
    ),
    "a daemon thread that has submitted": (
        0,
        "",
        """
import threading
thread = threading.Thread(target=submit, daemon=True)
thread.start(); thread.join(); leave()
""",
    ),
    "SIGTERM with a handler that exits": (
        143,
        "",
        """
import shutil
import signal
import time
signal.signal(signal.SIGTERM, lambda *_: (leave(), sys.exit(143)))
submit(); os.kill(os.getpid(), signal.SIGTERM)
""",
    ),
    "SIGTERM with a handler that goes on": (
        0,
        "",
        """
import shutil
import signal
import time
signal.signal(signal.SIGTERM, lambda *_: leave())
submit(); os.kill(os.getpid(), signal.SIGTERM)
""",
    ),
    "asyncio.run that does not await its saves": (
        0,
        "",
        """
import asyncio
async def main():
    submit(); leave()
asyncio.run(main())
""",
    ),
    "asyncio.run with tasks that it cancels": (
        0,
        "",
        """
import asyncio
async def main():
    for n in range(5):
        state = {"name": f"f{n}", "data": f"f{n}".encode() * 20_000}
        tasks.append(asyncio.create_task(genesis.aio.save(state, f"{folder}/f{n}")))
    await asyncio.sleep(0); leave()
tasks = []
asyncio.run(main())
""",
    ),
    "trio.run that is interrupted": (
        -signal.SIGINT,
        "KeyboardInterrupt",
        """
import trio
async def main():
    async with trio.open_nursery() as nursery:
        for n in range(5):
            state = {"name": f"f{n}", "data": f"f{n}".encode() * 20_000}
            nursery.start_soon(genesis.aio.save, state, f"{folder}/f{n}")
        await trio.testing.wait_all_tasks_blocked(); leave(); raise KeyboardInterrupt
import trio.testing
try:
    trio.run(main)
except BaseExceptionGroup as group:
    raise KeyboardInterrupt from group
""",
    ),
    "an executor of the standard library": (
        0,
        "",
        """
from concurrent.futures import ThreadPoolExecutor
ThreadPoolExecutor(1).submit(lambda: (submit(), leave())).result()
""",
    ),
    "a forked child that ends like a program": (
        0,
        "",
        """
child = os.fork()
if child == 0:
    submit(); leave()
else:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
    ),
    "a multiprocessing child that was forked": (
        0,
        "",
        """
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=lambda: (submit(), leave()))
child.start(); child.join(); sys.exit(child.exitcode)
""",
    ),
    "a multiprocessing child of a parent that saves": (
        0,
        "",
        """
import multiprocessing
os.mkdir(folder + "/../parent")
genesis.save({"n": 1}, folder + "/../parent/f", background=True)
child = multiprocessing.get_context("fork").Process(target=lambda: (submit(), leave()))
child.start(); child.join(); sys.exit(child.exitcode)
""",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_submitted_save_is_lost_by(ending: str, folder: Path, hold: Hold) -> None:
    expected, said, source = ENDINGS[ending]
    status, errors = end_of(source, folder, hold)
    assert status == expected, errors
    assert said in errors
    assert said or not errors
    assert all_saved(folder)


def test_deferred_saves_are_captured_and_saved_at_exit(folder: Path, hold: Hold) -> None:
    source = "for n in range(5): save(f'f{n}', capture='deferred', clear=False)\nleave()"
    assert end_of(source, folder, hold) == (0, "")
    assert all_saved(folder)


def test_a_multiprocessing_child_that_was_spawned_loses_nothing(folder: Path) -> None:
    """It imports its main module, so that is a file."""
    main = folder.parent / "main.py"
    main.write_text(
        SUBMIT
        + """
import multiprocessing
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=submit)
    child.start(); child.join(); sys.exit(child.exitcode)
"""
    )
    status, _, errors = run(
        f"import runpy; runpy.run_path({str(main)!r}, {{}}, '__main__')", folder
    )
    assert (status, errors) == (0, "")
    assert all_saved(folder)


# Saves submitted when the end has begun

IN_A_THREAD = """
import threading
def work():
    threading.main_thread().join()
    leave()
    save("late").result() if sys.argv[2] == "waited" else save("late")
threading.Thread(target=work).start()
"""

IN_ATEXIT = """
import atexit
@atexit.register
def late():
    leave()
    save("late").result() if sys.argv[2] == "waited" else save("late")
"""


IN_AN_EXECUTOR = """
import threading
from concurrent.futures import ThreadPoolExecutor
def late():
    while not threading._SHUTTING_DOWN:
        pass
    leave()
    save("late").result() if sys.argv[2] == "waited" else save("late")
ThreadPoolExecutor(1).submit(late)
"""
LATE = {
    "a thread": IN_A_THREAD,
    "atexit": IN_ATEXIT,
    "atexit, after the first save": IN_ATEXIT,
    "an executor": IN_AN_EXECUTOR,
}


@pytest.mark.parametrize("waiting", ["waited", "unheard"])
@pytest.mark.parametrize("before", ["nothing", "other saves"])
@pytest.mark.parametrize("place", LATE)
def test_a_save_submitted_when_the_end_has_begun(
    folder: Path, place: str, before: str, waiting: str
) -> None:
    earlier = "submit()\n" if before == "other saves" else ""
    last = place == "atexit, after the first save"
    source = earlier + LATE[place] if last else LATE[place] + earlier
    status, _, errors = run(SUBMIT + source, folder, waiting)
    assert (status, errors) == (0, "")
    assert is_saved(folder, "late")
    assert all_saved(folder, ("late",)) or not earlier


@pytest.mark.parametrize("place", ["a thread", "atexit"])
def test_a_plain_save_and_a_load_when_the_end_has_begun(folder: Path, place: str) -> None:
    late = LATE[place].replace('save("late")', 'genesis.load(f"{folder}/f0"), plain()')
    plain = """
def plain():
    state = {"name": "late", "data": b"late" * 20_000, "big": bytearray(80 << 20)}
    genesis.save(state, f"{folder}/late")
submit()
"""
    status, _, errors = run(SUBMIT + plain + late, folder, "unheard")
    assert (status, errors) == (0, "")
    assert genesis.load(folder / "late")["data"] == b"late" * 20_000
    assert litter(folder) == []


@pytest.mark.parametrize("place", ["a thread", "atexit"])
def test_an_awaited_save_and_load_when_the_end_has_begun(folder: Path, place: str) -> None:
    late = LATE[place].replace('save("late")', "asyncio.run(main())")
    main = """
import asyncio
async def main():
    await genesis.aio.save({"name": "late", "data": b"late" * 20_000}, f"{folder}/late")
    await genesis.aio.load(f"{folder}/late")
submit()
"""
    status, _, errors = run(SUBMIT + main + late, folder, "unheard")
    assert (status, errors) == (0, "")
    assert all_saved(folder, ("late",))


def test_threads_that_go_on_saving_while_the_process_ends_lose_nothing(folder: Path) -> None:
    source = """
import threading
def work(number):
    for n in range(30):
        save(f"t{number}-{n}")
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
save("main")
"""
    status, _, errors = run(SUBMIT + source, folder)
    assert (status, errors) == (0, "")
    names = ["main", *(f"t{number}-{n}" for number in range(4) for n in range(30))]
    assert sorted(os.listdir(folder)) == sorted(names)
    assert all(is_saved(folder, name) for name in names)


# Interrupted while it waits for the end of its saves

DRAINING = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
submit()
leave()
"""


def interrupted_while_draining(
    source: str, folder: Path, hold: Hold, *signals: tuple[signal.Signals, str]
) -> tuple[int, str]:
    """Send signals to a program that waits for its saves, each when the one before it was answered
    by its words in the log. Then let it go on."""
    with Script(SUBMIT + source, folder) as script:
        script.expect("leaving")
        until(lambda: is_waited_for(folder))
        for number, answer in signals:
            until_waiting(script)
            script.send(number)
            until(lambda answer=answer: answer in script.errors())
        hold.release()
        status, _, errors = script.end()
    return status, errors


def until_waiting(script: Script) -> None:
    """Wait until the main thread of a program waits for something: before, it may not have begun
    to."""
    stat = Path(f"/proc/{script.process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")


def test_ctrl_c_while_the_exit_waits_loses_nothing(folder: Path, hold: Hold) -> None:
    once = (signal.SIGINT, "Ctrl-C again abandons")
    status, errors = interrupted_while_draining(DRAINING, folder, hold, once)
    assert status == 0, errors
    assert all_saved(folder)


def test_a_second_ctrl_c_abandons_loudly_and_leaves_old_files_whole(
    folder: Path, hold: Hold
) -> None:
    hold.release()
    for number in range(SAVES):
        genesis.save({"n": "old"}, folder / f"f{number}")
    with held(folder) as second:
        signals = ((signal.SIGINT, "Ctrl-C again abandons"), (signal.SIGINT, "f4 was abandoned"))
        status, errors = interrupted_while_draining(DRAINING, folder, second, *signals)
    assert status == 130
    for number in range(SAVES):
        assert genesis.load(folder / f"f{number}") == {"n": "old"}
        assert f"CRITICAL the save of {folder}/f{number} was abandoned" in errors
        genesis.save({"n": "new"}, folder / f"f{number}")
    assert litter(folder) == []


EXITS_ON_SIGTERM = """
import shutil
import signal
import time
signal.signal(signal.SIGTERM, lambda *_: (print("terminated", file=sys.stderr), sys.exit(143)))
"""


def test_sigterm_whose_handler_exits_while_the_exit_waits_loses_nothing(
    folder: Path, hold: Hold
) -> None:
    """A job that is preempted when it was about to end."""
    source = EXITS_ON_SIGTERM + DRAINING
    once = (signal.SIGTERM, "terminated")
    status, errors = interrupted_while_draining(source, folder, hold, once)
    assert all_saved(folder), errors
    assert status in (0, 143)


# Interrupted at a random moment. The first save imports what saving needs: an interrupt of an
# import may come out as any error.

SAVES_FOR_EVER = """
import os, sys, genesis
path = sys.argv[1]
genesis.save({"n": 0}, path + "irst", background=True)
genesis.flush()
os.write(1, b"going\\n")
n = 0
while True:
    n += 1
    state = {"n": n, "data": bytes([n % 251]) * (n * 7919 % 300_000)}
    genesis.save(state, f"{path}{n % 3}", background=True)
    os.write(1, b"%d\\n" % n)
"""

AWAITS_FOR_EVER = """
import os, sys, genesis, {backend}
async def main():
    n = 0
    await genesis.aio.save({{"n": 0}}, sys.argv[1] + "irst")
    os.write(1, b"going\\n")
    while True:
        n += 1
        state = {{"n": n, "data": bytes([n % 251]) * (n * 7919 % 300_000)}}
        await genesis.aio.save(state, f"{{sys.argv[1]}}{{n % 3}}")
        os.write(1, b"%d\\n" % n)
{backend}.run({main})
"""

PROGRAMS = {
    "background": SAVES_FOR_EVER,
    "plain": SAVES_FOR_EVER.replace("background=True", "background=False"),
    "deferred": SAVES_FOR_EVER.replace("background=True", "background=True, capture='deferred'"),
    "asyncio": AWAITS_FOR_EVER.format(backend="asyncio", main="main()"),
    "trio": AWAITS_FOR_EVER.format(backend="trio", main="main"),
}


def last_submitted(output: str) -> dict[int, int]:
    """The number of the last save to each path of which the program knew that it was submitted."""
    numbers = [int(line) for line in output.split()]
    return {number % 3: number for number in numbers}


def found(folder: Path) -> dict[int, int]:
    """The number that each path holds. What it holds is whole."""
    numbers = {}
    for path in folder.glob("f[0-9]"):
        state = genesis.load(path)
        n = state["n"]
        assert state["data"] == bytes([n % 251]) * (n * 7919 % 300_000)
        numbers[int(path.name[-1])] = n
    return numbers


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_at_a_random_moment_loses_nothing(program: str, folder: Path) -> None:
    for seed in range(5):
        for path in folder.iterdir():
            path.unlink()
        with Script(PROGRAMS[program], folder / "f") as script:
            script.expect("going")
            time.sleep(random.Random(seed).random() / 5)
            script.send(signal.SIGINT)
            status, output, errors = script.end()
        assert status == -signal.SIGINT, errors
        # The last line but for notes: Python adds some where a class was being made, say.
        assert "KeyboardInterrupt" in errors.splitlines(), errors
        submitted, there = last_submitted(output), found(folder)
        assert all(there[path] >= number for path, number in submitted.items()), seed
        assert litter(folder) == []


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL", "SIGABRT", "SIGHUP"])
@pytest.mark.parametrize("program", ["background", "plain"])
def test_a_signal_that_kills_leaves_old_files_or_new_ones(
    program: str, kind: str, folder: Path
) -> None:
    """What was in flight is lost, and the exit status tells; what was there before is not."""
    if signal.getsignal(signal.Signals[kind]) is signal.SIG_IGN:
        pytest.skip(f"{kind} is ignored here (nohup?), and so by what is started here")
    with Script(PROGRAMS[program], folder / "f") as script:
        script.expect("going")
        time.sleep(random.Random(kind).random() / 5)
        script.send(signal.Signals[kind])
        status, output, _ = script.end()
    assert status == -signal.Signals[kind]
    submitted = last_submitted(output)
    for name in litter(folder):
        assert name.startswith(".f") or name.endswith(".genesis.bak")
    for path in range(3):
        n = genesis.load(folder / f"f{path}")["n"] if (folder / f"f{path}").exists() else 0
        # One save of a path is in flight at a time: at worst the last one of each is missing.
        assert n >= submitted.get(path, 0) - (3 if program == "background" else 0)
        genesis.save({"n": n}, folder / f"f{path}")
    assert litter(folder) == []


LEAVES_AT_ONCE = {
    "os._exit": (5, "os._exit(5)"),
    "os.execv": (6, "os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(6)'])"),
    "os.abort": (-signal.SIGABRT, "os.abort()"),
    "SIGTERM without a handler": (-signal.SIGTERM, "os.kill(os.getpid(), 15)"),
}


@pytest.mark.parametrize("way", LEAVES_AT_ONCE)
def test_a_process_that_leaves_at_once_leaves_the_old_files(
    way: str, folder: Path, hold: Hold
) -> None:
    hold.release()
    for number in range(SAVES):
        genesis.save({"n": "old"}, folder / f"f{number}")
    expected, source = LEAVES_AT_ONCE[way]
    with held(folder):
        status, _, _ = run(SUBMIT + "submit()\n" + source, folder)
    assert status == expected
    for number in range(SAVES):
        assert genesis.load(folder / f"f{number}") == {"n": "old"}
        genesis.save({"n": "new"}, folder / f"f{number}")
    assert litter(folder) == []


# Failures that nobody hears of before the end

FAILS = """
import shutil
kept = [save(f"f{n}", clear=False) for n in range(3)]
leave()
sys.stdin.readline()
"""


@pytest.mark.parametrize("ending", ["", "{}['of the body']"])
def test_failures_are_logged_at_the_end_and_hide_no_other_error(
    ending: str, folder: Path, hold: Hold
) -> None:
    with Script(SUBMIT + FAILS + ending, folder) as script:
        script.expect("leaving")
        shutil.rmtree(folder)
        script.tell("go on")
        until(lambda: script.process.poll() is None)
        hold.release()
        status, _, errors = script.end()
    assert status == bool(ending)
    for number in range(3):
        assert errors.count(f"background save of {folder}/f{number} failed") == 1
    assert ("KeyError: 'of the body'" in errors) == bool(ending)


def test_a_failure_that_was_asked_for_is_not_logged_at_the_end(folder: Path, hold: Hold) -> None:
    source = FAILS + "print([type(one.exception()).__name__ for one in kept])"
    with Script(SUBMIT + source, folder) as script:
        script.expect("leaving")
        shutil.rmtree(folder)
        hold.release()
        script.tell("go on")
        assert script.end() == (
            0,
            "['FileNotFoundError', 'FileNotFoundError', 'FileNotFoundError']\n",
            "",
        )
