"""The pool: order, number of threads, errors, and threads that end, also where none can start.

Threads are held by events; nothing is timed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
from contention import DEADLINE, exit_status, fork, join_threads

import genesis
from genesis._threads.companions import Companion, run_all
from genesis._threads.pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    yield Pool(2, "genesis-test")
    join_threads()


@contextmanager
def occupied(pool: Pool) -> Iterator[None]:
    """Keep all threads of a pool until the end of the with block."""
    go = threading.Event()
    begun = [threading.Event() for _ in range(pool.threads)]

    def hold(event: threading.Event) -> None:
        event.set()
        assert go.wait(DEADLINE)

    calls = [pool.submit(hold, event) for event in begun]
    try:
        for event in begun:
            assert event.wait(DEADLINE)
        yield
    finally:
        go.set()
        wait(calls, DEADLINE)


@contextmanager
def no_threads() -> Iterator[None]:
    """No thread can start: none of them gets a stack of that size."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_calls_begin_in_the_order_they_were_submitted(pool: Pool) -> None:
    pool.threads = 1
    begun: list[int] = []
    with occupied(pool):
        calls = [pool.submit(begun.append, number) for number in range(50)]
    wait(calls, DEADLINE)
    assert begun == list(range(50))


def test_never_more_threads_than_asked_for(pool: Pool) -> None:
    with occupied(pool):
        later = [pool.submit(threading.current_thread) for _ in range(20)]
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("genesis-test") == 2
        assert not any(call.done() for call in later)
    assert len({call.result(DEADLINE) for call in later}) <= 2


def test_results_and_errors_reach_the_future(pool: Pool) -> None:
    def fail(error: BaseException) -> None:
        raise error

    assert pool.submit(divmod, 7, 2).result(DEADLINE) == (3, 1)
    for error in (KeyError("x"), SystemExit(3), KeyboardInterrupt()):
        assert pool.submit(fail, error).exception(DEADLINE) is error
    assert pool.submit(divmod, 7, 2).result(DEADLINE) == (3, 1)


def test_a_queued_call_can_be_cancelled_and_a_running_one_cannot(pool: Pool) -> None:
    ran: list[int] = []
    pool.threads = 1
    go, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(DEADLINE)

    running = pool.submit(hold)
    assert begun.wait(DEADLINE)
    queued, last = pool.submit(ran.append, 1), pool.submit(ran.append, 2)
    assert not running.cancel()
    assert queued.cancel()
    go.set()
    last.result(DEADLINE)
    assert ran == [2]
    with pytest.raises(CancelledError, match=r"^$"):
        queued.result(0)


def test_idle_threads_end_and_come_again(pool: Pool) -> None:
    for _ in range(3):
        thread = pool.submit(threading.current_thread).result(DEADLINE)
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_a_call_is_let_go_of_when_it_is_done(pool: Pool) -> None:
    """Its arguments may be gigabytes, and the next call of the thread may take long."""
    dropped = threading.Event()

    class Payload:
        def __del__(self) -> None:
            dropped.set()

    pool.threads = 1
    go = threading.Event()
    first = pool.submit(lambda payload: None, Payload())
    second = pool.submit(go.wait, DEADLINE)
    first.result(DEADLINE)
    assert dropped.wait(DEADLINE)
    go.set()
    second.result(DEADLINE)


def test_no_call_is_lost_when_threads_come_and_go(pool: Pool) -> None:
    """A thread that ends and a call that counts on it: see `Pool._next`."""
    done: list[int] = []

    def submit(start: int) -> None:
        for number in range(start, start + 300):
            pool.submit(done.append, number).result(DEADLINE)

    threads = [threading.Thread(target=submit, args=(n * 300,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(done) == list(range(1800))


def test_inline_runs_what_is_submitted_and_what_is_queued_in_the_caller(pool: Pool) -> None:
    with occupied(pool):
        queued = pool.submit(threading.current_thread)
        pool.inline = True
        later = pool.submit(threading.current_thread)
        assert later.result(0) is queued.result(0) is threading.current_thread()


def test_help_runs_what_is_queued_in_the_caller(pool: Pool) -> None:
    with occupied(pool):
        queued = [pool.submit(threading.current_thread) for _ in range(3)]
        pool.help()
        assert {call.result(0) for call in queued} == {threading.current_thread()}


def test_the_caller_does_the_work_where_no_thread_can_start(pool: Pool) -> None:
    with no_threads():
        assert pool.submit(threading.current_thread).result(0) is threading.current_thread()
    assert pool.submit(threading.current_thread).result(DEADLINE) is not threading.current_thread()


@pytest.mark.alone
def test_a_forked_child_has_an_empty_pool_that_works(pool: Pool) -> None:
    with occupied(pool):
        pool.submit(os._exit, 9)  # the parent's, never to run in the child
        child = fork()
        if child == 0:
            status = 1
            try:
                pool.reset_after_fork()
                status = pool.submit(lambda: 0).result(DEADLINE)
            finally:
                os._exit(status)
        status = exit_status(child)
        while pool.next() is not None:
            pass
    assert status == 0


def test_saves_and_loads_go_on_where_no_thread_can_start(tmp_path: Path) -> None:
    state = {"x": bytes(80 << 20), "n": 1}
    with no_threads():
        save = genesis.save(state, tmp_path / "f", background=True, clear=False)
        assert save.result(0).outcome == "durable"
        assert genesis.load(tmp_path / "f") == state
        assert genesis.save({"n": 2}, tmp_path / "f").outcome == "durable"
    genesis.save({"n": 3}, tmp_path / "f", background=True).result(DEADLINE)
    assert genesis.load(tmp_path / "f") == {"n": 3}


# The crew: threads for one call


def test_a_companion_hands_its_error_to_whoever_waits() -> None:
    def fail() -> None:
        raise KeyError("of the companion")

    companion = Companion(fail)
    companion.start()
    with pytest.raises(KeyError, match="of the companion"):
        companion.wait()
    companion.wait()


def test_an_interrupt_does_not_end_the_wait_for_a_companion() -> None:
    """What it works with, memory and a file, is used for something else afterwards."""
    main = threading.main_thread()
    assert threading.current_thread() is main
    go = threading.Event()
    ended: list[bool] = []

    def interrupt() -> None:
        for _ in range(5):
            # To this thread alone: another that gets it may say so when the test is over.
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
        go.set()

    def wait() -> None:
        with companion:
            companion.start()
            thread.start()

    companion = Companion(lambda: ended.append(go.wait(DEADLINE)))
    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        wait()
    assert ended == [True]
    thread.join(DEADLINE)


def test_a_companion_that_was_given_up_before_it_began_does_nothing() -> None:
    done: list[int] = []
    companion = Companion(lambda: done.append(1))
    companion.wait()
    companion.start()
    companion.wait()
    assert done == []


def test_run_all_runs_everything_once_on_several_threads() -> None:
    both = threading.Barrier(2, timeout=DEADLINE)
    done: list[int] = []

    def work(number: int) -> Callable[[], object]:
        def call() -> None:
            if number < 2:
                both.wait()  # only passes with two threads inside
            done.append(number)

        return call

    run_all((work(number) for number in range(100)), size=1 << 30, threads=2)
    assert sorted(done) == list(range(100))


def test_run_all_raises_the_error_of_any_thread_and_leaves_none_behind() -> None:
    go = threading.Event()

    def fail() -> None:
        go.set()
        raise KeyError("of one")

    def work() -> Iterator[Callable[[], object]]:
        yield lambda: go.wait(DEADLINE)
        yield fail
        yield from (lambda: None for _ in range(10))

    with pytest.raises(KeyError, match="of one"):
        run_all(work(), size=1 << 30, threads=2)
    assert [t for t in threading.enumerate() if t.name == "genesis-companion"] == []


def test_run_all_does_little_work_on_the_calling_thread_alone() -> None:
    threads: list[threading.Thread] = []
    run_all((lambda: threads.append(threading.current_thread()) for _ in range(9)), size=100)
    assert set(threads) == {threading.current_thread()}


def test_futures_of_the_pool_are_those_of_the_standard_library(pool: Pool) -> None:
    assert isinstance(pool.submit(int), Future)
