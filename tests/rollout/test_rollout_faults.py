"""What is injected, and what comes out."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ript.core.errors import ErrorRateExceeded, NotFiniteError, PolicyError, UnknownNameError, WorkerError
from ript.core.interfaces import EnvPool
from ript.core.metrics import values
from ript.core.types import Rollout, RolloutRequest, Status
from ript.rollout.pool import make_pool
from tests.fakes import (
    Bomb,
    FakeFactory,
    FakePolicy,
    FakeSimulator,
    Fault,
    PickyPolicy,
    SlowFactory,
    SlowPolicy,
    WrongName,
    fake_state,
    fake_task,
    same,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "central"])
def inference(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def patience(seconds: float) -> float:
    """So many seconds on a machine of our own; more where other work shares it."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextlib.contextmanager
def pool_of(factory: FakeFactory, policy: FakePolicy | None = None, **settings: object) -> Iterator[EnvPool]:
    chosen = {"workers": 2, "slots": 3, "request_timeout": 30.0, "max_retries": 1, "max_error_rate": 1.0} | settings
    with make_pool(factory, policy or FakePolicy(), **chosen) as pool:  # type: ignore[arg-type]
        yield pool


def requests(states: int = 12) -> list[RolloutRequest]:
    return [
        RolloutRequest(initial_state=fake_state(i, 0.05), index=k, seed=(0,)) for i in range(states) for k in (0, 1)
    ]


def collect(pool: EnvPool, wanted: list[RolloutRequest]) -> dict[tuple[str, int], Rollout]:
    return {(r.initial_state_id, r.index): r for r in pool.run(wanted)}


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], Rollout]:
    """What nothing going wrong gives."""
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4) as pool:
        return collect(pool, requests())


def split(done: dict[tuple[str, int], Rollout], expected: dict[tuple[str, int], Rollout]) -> list[Rollout]:
    """The ERROR rollouts; all others must be there and as expected."""
    assert done.keys() == expected.keys()
    errors = {key: r for key, r in done.items() if r.status is Status.ERROR}
    assert all(same(done[key], expected[key]) for key in done.keys() - errors.keys())
    return list(errors.values())


def workers_of(pool: EnvPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]  # type: ignore[attr-defined]


def test_a_worker_killed_from_outside_is_replaced_and_no_rollout_is_lost(inference, expected):
    with pool_of(FakeFactory(delay=0.005), inference=inference, max_retries=2) as pool:
        stream = pool.run(requests())
        done = [next(stream)]
        os.kill(workers_of(pool)[1], signal.SIGKILL)
        began = time.monotonic()
        done += list(stream)
        assert time.monotonic() - began < patience(5)
        assert split({(r.initial_state_id, r.index): r for r in done}, expected) == []
        spent = values(pool.timings())
    assert spent["worker_restarts"] == 1
    assert 1 <= spent["retries"] <= 4


def test_a_rollout_that_kills_its_worker_once_is_run_again_with_the_same_result(inference, expected, tmp_path):
    fault = Fault(kind="kill", state=5, once=str(tmp_path / "done"))
    with pool_of(FakeFactory(faults=(fault,)), inference=inference) as pool:
        assert split(collect(pool, requests()), expected) == []
        assert values(pool.timings())["worker_restarts"] == 1


def test_a_rollout_that_always_kills_its_worker_becomes_an_error_and_only_that_one(inference, expected):
    fault = Fault(kind="kill", state=5, decision=2)
    with pool_of(FakeFactory(faults=(fault,)), inference=inference) as pool:
        errors = split(collect(pool, requests()), expected)
        assert values(pool.timings())["worker_restarts"] == 4
    bad = fake_state(5, 0.05)
    assert sorted((r.initial_state_id, r.index) for r in errors) == [(bad.id, 0), (bad.id, 1)]
    for rollout in errors:
        assert "the worker died" in rollout.error
        for part in ("killed by SIGKILL", "fake/plain", bad.id, f"rollout {rollout.index}", "worker ", "2 times"):
            assert part in rollout.error


def test_a_worker_that_hangs_once_is_killed_and_its_rollouts_are_run_again(inference, expected, tmp_path):
    fault = Fault(kind="hang", state=5, once=str(tmp_path / "done"))
    with pool_of(FakeFactory(faults=(fault,)), inference=inference, request_timeout=patience(0.5)) as pool:
        began = time.monotonic()
        assert split(collect(pool, requests()), expected) == []
        assert time.monotonic() - began < patience(5)
        assert values(pool.timings())["worker_restarts"] == 1


def test_a_rollout_that_always_hangs_becomes_an_error(expected):
    fault, limit = Fault(kind="hang", state=5, decision=0), patience(0.3)
    with pool_of(FakeFactory(faults=(fault,)), request_timeout=limit) as pool:
        errors = split(collect(pool, requests()), expected)
    assert {r.initial_state_id for r in errors} == {fake_state(5, 0.05).id}
    assert "the worker hung" in errors[0].error
    assert f"no sign of life for {limit:g} s while working on fake/plain" in errors[0].error


@pytest.mark.parametrize("when", ["at work", "waiting for work"])
def test_a_worker_that_is_frozen_is_detected_too(expected, when):
    with pool_of(FakeFactory(delay=0.005), request_timeout=patience(0.5), max_retries=2) as pool:
        pool.timings()  # all have started
        if when == "waiting for work":
            os.kill(workers_of(pool)[0], signal.SIGSTOP)
        stream = pool.run(requests())
        done = [next(stream)]
        if when == "at work":
            os.kill(workers_of(pool)[0], signal.SIGSTOP)
        done += list(stream)
        assert split({(r.initial_state_id, r.index): r for r in done}, expected) == []
        assert values(pool.timings())["worker_restarts"] == 1


def test_a_slow_consumer_is_not_taken_for_a_hung_worker(inference, expected):
    limit = patience(0.5)
    with pool_of(FakeFactory(), inference=inference, request_timeout=limit) as pool:
        done = {}
        for number, rollout in enumerate(pool.run(requests())):
            time.sleep(limit + 0.1 if number % 8 == 0 else 0)
            done[rollout.initial_state_id, rollout.index] = rollout
        time.sleep(limit + 0.1)
        assert split(done, expected) == []
        assert split(collect(pool, requests()), expected) == []
        assert values(pool.timings())["worker_restarts"] == 0


class Slow(FakePolicy):
    """Takes longer for a decision than a worker may be silent, the first few times (as compilation does)."""

    seconds, times = 0.6, 3

    def act(self, observation, generators, *, greedy=False):
        if self.times:
            self.times -= 1
            time.sleep(self.seconds)
        return super().act(observation, generators, greedy=greedy)


def test_workers_that_wait_while_the_parent_decides_for_others_are_not_hung(expected):
    policy = Slow()
    with pool_of(FakeFactory(delay=0.005), policy, inference="central", workers=4, request_timeout=0.4) as pool:
        assert split(collect(pool, requests()), expected) == []
        assert values(pool.timings())["worker_restarts"] == 0
    assert policy.times == 0


def test_workers_are_not_hung_when_everything_was_stopped_for_longer_than_the_limit(inference, expected):
    """As Ctrl-Z and fg do to the whole group, or a machine that sleeps."""
    limit = patience(0.6)
    with pool_of(FakeFactory(delay=0.005), inference=inference, request_timeout=limit) as pool:
        stream = pool.run(requests())
        done = [next(stream)]
        for pid in workers_of(pool):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * limit)
        threading.Timer(limit / 3, lambda: [os.kill(pid, signal.SIGCONT) for pid in workers_of(pool)]).start()
        done += list(stream)
        assert split({(r.initial_state_id, r.index): r for r in done}, expected) == []
        assert values(pool.timings())["worker_restarts"] == 0


@pytest.mark.parametrize("work", ["both modes", "weights", "video", "building and resetting"])
def test_work_that_is_within_the_limit_piece_by_piece_is_not_taken_for_silence(work):
    """Each piece takes two thirds of the limit; no two of them are one unit. Weights have the limit of a start."""
    limit = patience(0.45)
    piece = limit * 2 / 3
    task = fake_task("plain-4")
    wanted = [
        RolloutRequest(
            initial_state=fake_state(i, 0.0, task if work == "both modes" else None),
            index=0,
            seed=(0,),
            horizon=4,
            greedy=work == "both modes" and i % 2 == 0,
            video=work == "video",
            record=False,
        )
        for i in range(2)
    ]
    policy = SlowPolicy(act=piece if work == "both modes" else 0.0, load=2 * limit if work == "weights" else 0.0)
    chosen = {"video": {"render": piece}, "building and resetting": {"build": piece, "reset": piece}}
    factory = FakeFactory() if work == "both modes" else SlowFactory(**chosen.get(work, {}))
    settings = {"workers": 1, "slots": 2, "request_timeout": limit, "frame_every": 1, "max_retries": 0}
    with pool_of(factory, policy, **settings) as pool:
        pool.set_policy(policy.weights(), version=1)
        done = collect(pool, wanted)
        assert {r.status for r in done.values()} == {Status.FAILURE}, [r.error for r in done.values()]
        assert values(pool.timings())["worker_restarts"] == 0


def test_an_exception_in_a_simulator_arrives_whole_with_its_address(inference, expected):
    with pool_of(FakeFactory(faults=(Fault(kind="raise", state=5, decision=1),)), inference=inference) as pool:
        errors = split(collect(pool, requests()), expected)
        assert values(pool.timings())["worker_restarts"] == 0
    assert len(errors) == 2
    for part in (
        "ValueError: injected fault",
        "stepping",
        fake_state(5, 0.05).id,
        "decision 1, worker ",
        "fault.strike()",
    ):
        assert part in errors[0].error


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("exit", "it ends the program (SystemExit: 3)"),
        ("interrupt", "it ends the program (KeyboardInterrupt)"),
        ("close", "it raised GeneratorExit"),
        ("panic", "it raised PanicException: index out of bounds"),
    ],
)
@pytest.mark.parametrize("decision", [0, 1])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_simulator_raises_that_is_no_exception_ends_its_own_rollout_alone_with_address_and_traceback(
    workers, decision, kind, said, expected
):
    fault = Fault(kind=kind, state=5, decision=decision)
    with pool_of(FakeFactory(faults=(fault,)), workers=workers) as pool:
        errors = split(collect(pool, requests()), expected)
        assert workers == 0 or values(pool.timings())["worker_restarts"] == 0
    assert len(errors) == 2
    for part in (
        said,
        "stepping" if decision else "resetting",
        fake_state(5, 0.05).id,
        "fault.strike()",
    ):
        assert part in errors[0].error


@pytest.mark.parametrize("workers", [0, 1])
def test_a_policy_that_raises_what_is_no_exception_stops_the_run_with_its_address(workers, expected):
    with (
        pool_of(FakeFactory(), FakePolicy(breaks="panic", at=50), workers=workers) as pool,
        pytest.raises(WorkerError, match=r"PanicException when acting on .*fake/plain.*index out of bounds"),
    ):
        list(pool.run([RolloutRequest(initial_state=fake_state(i), index=0, seed=(0,)) for i in range(40, 60)]))


def test_what_cannot_be_unpacked_in_a_worker_is_named_whatever_it_raises():
    with (
        pytest.raises(WorkerError, match=r"worker 0 while starting: .*PanicException: index out of bounds"),
        pool_of(Bomb("panic"), workers=1),  # type: ignore[arg-type]
    ):
        pass


def test_between_two_rollouts_of_this_process_a_ctrl_c_is_handled_as_the_caller_wants():
    handler = signal.getsignal(signal.SIGINT)
    with pool_of(FakeFactory(), workers=0) as pool:
        rollouts = pool.run(requests())
        next(rollouts)
        assert signal.getsignal(signal.SIGINT) is handler
        rollouts.close()  # type: ignore[attr-defined]


def test_the_watch_for_a_ctrl_c_is_set_once_a_rollout_and_not_for_each_call(monkeypatch):
    calls, changes = [0], [0]
    change = signal.signal
    monkeypatch.setattr(signal, "signal", lambda *given: (changes.__setitem__(0, changes[0] + 1), change(*given))[1])
    step = FakeSimulator.step_chunk
    monkeypatch.setattr(
        FakeSimulator, "step_chunk", lambda *given: (calls.__setitem__(0, calls[0] + 1), step(*given))[1]
    )
    with pool_of(FakeFactory(), workers=0) as pool:
        done = list(pool.run(requests()))
    assert calls[0] > 3 * len(done)
    assert changes[0] <= 3 * (len(done) + 1)


def test_a_ctrl_c_while_a_simulator_of_this_process_works_interrupts_the_caller():
    handler = signal.getsignal(signal.SIGINT)
    with pool_of(FakeFactory(faults=(Fault(kind="ctrl-c", state=5),)), workers=0) as pool:
        with pytest.raises(KeyboardInterrupt):
            collect(pool, requests())
        assert signal.getsignal(signal.SIGINT) is handler


def test_a_simulator_that_ends_its_process_is_named_with_the_exit_code(inference, expected):
    fault = Fault(kind="leave", state=5, decision=2)
    with pool_of(FakeFactory(faults=(fault,)), inference=inference, workers=1, max_retries=0) as pool:
        errors = split(collect(pool, requests()), expected)
    assert len(errors) == 2
    for number, error in enumerate(errors):
        where = f"fake/plain, initial state {fake_state(5, 0.05).id}, rollout {number}"
        assert re.search(rf"died with exit code 3 while working on {where}", error.error)


def test_a_bug_in_the_policy_arrives_whole_and_the_pool_can_go_on(inference, expected):
    with pool_of(FakeFactory(), FakePolicy(breaks="raise", at=50), inference=inference) as pool:
        bad = [RolloutRequest(initial_state=fake_state(i), index=0, seed=(0,)) for i in range(40, 60)]
        with pytest.raises(WorkerError, match=r"KeyError when acting on .*fake/plain.*a bug in the policy") as caught:
            list(pool.run(bad))
        if inference == "local":
            assert str(caught.value).startswith("worker ")
            assert 'raise KeyError("a bug in the policy")' in caught.value.__notes__[0]
        assert split(collect(pool, requests()), expected) == []


@pytest.mark.parametrize(("breaks", "what"), [("nan", "actions"), ("density", "log-probabilities")])
def test_what_a_policy_returns_that_is_not_finite_stops_the_run_with_its_address(inference, breaks, what):
    bad = fake_state(7, 0.05)
    with pool_of(FakeFactory(), FakePolicy(breaks=breaks, at=7), inference=inference) as pool:
        for greedy in (False, True):
            wanted = [replace(r, greedy=greedy, record=False) for r in requests()]
            with pytest.raises(NotFiniteError, match=rf"NaN or infinite {what} .*fake/plain.*{bad.id}") as caught:
                list(pool.run(wanted))
            assert re.search(
                r"worker \d.*rollout [01], decision 1|rollout [01], decision 1, worker \d", str(caught.value)
            )


def test_simulators_that_cannot_be_built_stop_the_run_at_the_error_limit(inference):
    with (
        pool_of(FakeFactory(faults=(Fault(kind="build"),)), inference=inference, max_error_rate=0.5) as pool,
        pytest.raises(ErrorRateExceeded, match=r"(?s)OSError: no screen.*while building the simulator"),
    ):
        list(pool.run(requests()))


def test_an_error_that_concerns_every_rollout_keeps_its_class(inference):
    with pool_of(WrongName(), inference=inference) as pool, pytest.raises(UnknownNameError, match="mean plain"):  # type: ignore[arg-type]
        list(pool.run(requests()))


def test_a_policy_that_does_not_fit_the_simulator_is_refused_before_it_acts(inference):
    with (
        pool_of(FakeFactory(), PickyPolicy(), inference=inference) as pool,
        pytest.raises(PolicyError, match="7 actions"),
    ):
        list(pool.run(requests()))


def test_a_worker_that_dies_at_every_start_is_told_when_the_pool_is_made():
    with (
        pytest.raises(WorkerError, match=r"3 workers in a row .*killed by SIGKILL while starting"),
        pool_of(Bomb("kill")),  # type: ignore[arg-type]
    ):
        pass


def test_an_exception_at_the_start_of_a_worker_arrives_whole():
    with (
        pytest.raises(WorkerError, match="while starting: ImportError: no module named left_at_home") as caught,
        pool_of(Bomb("raise")),  # type: ignore[arg-type]
    ):
        pass
    assert "__setstate__" in caught.value.__notes__[0]


def test_workers_killed_between_runs_are_replaced_with_the_present_weights(inference):
    with pool_of(FakeFactory(), inference=inference) as pool:
        pool.set_policy(FakePolicy(bias=-0.05).weights(), version=3)
        before = collect(pool, requests())
        for pid in workers_of(pool):
            os.kill(pid, signal.SIGKILL)
        assert split(collect(pool, requests()), before) == []
        assert {r.policy_version for r in before.values()} == {3}


def test_weights_that_do_not_fit_are_an_error_and_not_a_hang():
    with pool_of(FakeFactory()) as pool:
        pool.set_policy({"other": torch.zeros(1)}, version=1)
        with pytest.raises(PolicyError, match="load_weights raised KeyError: 'bias'"):
            collect(pool, requests())


PROGRAM = """
    import os, sys
    sys.path.insert(0, {root!r})
    from tests.fakes import FakeFactory, FakePolicy, Fault, fake_state
    from ript.rollout.pool import make_pool
    from ript.core.types import RolloutRequest

    def rollouts(pool):
        return pool.run(RolloutRequest(initial_state=fake_state(i, 0.0), index=0, seed=(0,)) for i in range(10**6))

    if __name__ == "__main__":
        hang = (Fault(kind="hang", state=12),)
        local, central = (
            make_pool(FakeFactory(faults=hang, delay=0.01), FakePolicy(), workers=2, slots=4, inference=inference)
            for inference in ("local", "central")
        )
        with local, central:
            for number, _ in enumerate(zip(rollouts(local), rollouts(central))):
                if number == 30:
                    print(*(worker.process.pid for pool in (local, central) for worker in pool._workers), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program in the middle of endless rollouts, in a process group of its own, and all its descendants.

    It has a pool of each kind, and in each pool one worker hangs while the other works.
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM).format(root=str(ROOT)))
    running = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout is not None
        workers = {int(pid) for pid in running.stdout.readline().split()}
        descendants = psutil.Process(running.pid).children(recursive=True)
        assert len(workers) == 4
        assert workers <= {process.pid for process in descendants}
        yield running, descendants
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def alive_at(deadline: float, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Which of them still run then; returns as soon as none does. (Who reaps an orphan is not our business.)"""
    while True:
        late = time.monotonic() > deadline
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if late or not alive:
            return alive
        time.sleep(0.02)


def test_ctrl_c_ends_everything_within_five_seconds(program):
    running, descendants = program
    deadline = time.monotonic() + patience(5)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert alive_at(deadline, descendants) == []
    assert running.returncode == -signal.SIGINT
    assert stderr.count("Traceback") == 1, f"only the program itself reports the interruption:\n{stderr}"


def test_workers_of_a_killed_parent_exit_by_themselves(program):
    running, descendants = program
    running.kill()
    running.wait()
    assert alive_at(time.monotonic() + patience(5), descendants) == []


class FullPipe(FakeFactory):
    """Simulators in a process that cannot send any more from the first of them on."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def __call__(self, key: str) -> Any:
        def refuse(connection: Connection, message: object) -> None:
            raise OSError(self.number, os.strerror(self.number))

        Connection.send = refuse  # type: ignore[method-assign]
        return super().__call__(key)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EMFILE])
def test_a_worker_that_cannot_send_says_why(number: int) -> None:
    with pool_of(FullPipe(number), workers=1, max_retries=0, inference="local") as pool:
        (rollout,) = pool.run(requests()[:1])
    assert rollout.status is Status.ERROR
    assert f"died, for its pipe broke ({os.strerror(number)})" in rollout.error
    assert ("ulimit -n" in rollout.error) is (number == errno.EMFILE)
