"""Worker processes: the same rollouts as in one process, whatever the division of labour."""

from __future__ import annotations

import os
import resource
import threading
import time
from dataclasses import replace

import pytest
import torch

from ript.core.children import running
from ript.core.errors import ConfigError, WorkerError
from ript.core.interfaces import EnvPool
from ript.core.metrics import values
from ript.core.types import Rollout, RolloutRequest
from ript.rollout.local import limits
from ript.rollout.local.placement import Load, place
from ript.rollout.local.processes import pack_policy
from ript.rollout.pool import make_pool
from ript.rollout.stream import Flight
from tests.fakes import SPEC, FakeFactory, FakePolicy, FakeSimulator, fake_state, fake_task, same


def requests(states: int = 6, group: int = 4) -> list[RolloutRequest]:
    """Two tasks; greedy and sampled, recorded and not, with and without video, all mixed."""
    tasks = (fake_task(), fake_task("long-40", 40))
    return [
        RolloutRequest(
            initial_state=fake_state(i, 0.1, tasks[i % 2]),
            index=k,
            seed=(3, 1),
            greedy=k == 1,
            record=k != 2,
            video=i == 2 and k == 0,
        )
        for i in range(states)
        for k in range(group)
    ]


def collect(pool: EnvPool, wanted: list[RolloutRequest]) -> dict[tuple[str, int], Rollout]:
    return {(r.initial_state_id, r.index): r for r in pool.run(iter(wanted))}


def inline(wanted: list[RolloutRequest], policy: FakePolicy | None = None) -> dict[tuple[str, int], Rollout]:
    with make_pool(FakeFactory(), policy or FakePolicy(), workers=0, slots=4) as pool:
        return collect(pool, wanted)


@pytest.fixture(params=["local", "central"])
def inference(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("workers", "slots"), [(1, 5), (2, 3)])
def test_workers_make_the_rollouts_that_this_process_makes(inference, workers, slots):
    wanted = requests()
    expected = inline(wanted)
    with make_pool(FakeFactory(delay=0.001), FakePolicy(), workers=workers, slots=slots, inference=inference) as pool:
        for _ in range(2):
            done = collect(pool, wanted)
            assert done.keys() == expected.keys()
            assert all(same(done[key], expected[key]) for key in expected)


def test_new_weights_reach_every_worker_and_mark_its_rollouts(inference):
    wanted = requests()
    expected = inline(wanted, FakePolicy(bias=0.05))
    with make_pool(FakeFactory(), FakePolicy(), workers=2, slots=3, inference=inference) as pool:
        before = collect(pool, wanted)
        pool.set_policy(FakePolicy(bias=0.05).weights(), version=7)
        after = collect(pool, wanted)
    assert {r.policy_version for r in before.values()} == {0}
    assert {r.policy_version for r in after.values()} == {7}
    assert all(same(replace(after[key], policy_version=0), expected[key]) for key in expected)
    assert any(before[key].env_steps != after[key].env_steps for key in before)


def test_workers_never_see_a_policy_that_is_trained_in_place():
    class Holder(FakePolicy):
        pass

    policy = FakePolicy()
    policy.weight = torch.zeros(1000)
    pack_policy(policy)
    assert not policy.weight.is_shared()


def test_a_group_is_spread_over_the_workers(tmp_path, inference):
    log = tmp_path / "log"
    wanted = [RolloutRequest(initial_state=fake_state(1, 0.0), index=k, seed=(0,)) for k in range(8)]
    with make_pool(FakeFactory(log=str(log)), FakePolicy(), workers=2, slots=8, inference=inference) as pool:
        assert len(collect(pool, wanted)) == 8
    by_process = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(by_process.count(pid) for pid in set(by_process)) == [4, 4]


class Counting(FakeFactory):
    """Writes down how many tasks have simulators in the process that makes or closes one."""

    def __call__(self, key: str) -> FakeSimulator:
        simulator = super().__call__(key)
        OPEN.append(key)
        close = simulator.close

        def closing() -> None:
            OPEN.remove(key)
            close()

        simulator.close = closing  # type: ignore[method-assign]
        with open(str(self.log), "a") as log:
            log.write(f"{os.getpid()} {key} {len(set(OPEN))}\n")
        return FakeSimulator.__enter__(simulator)


OPEN: list[str] = []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["tasks in turn", "task after task"])
def test_no_process_has_more_tasks_loaded_than_it_may_and_the_rollouts_are_the_same(tmp_path, workers, order):
    OPEN.clear()
    tasks = [fake_task(f"t{i}-24") for i in range(7)]
    wanted = [
        RolloutRequest(initial_state=fake_state(i, 0.1, task), index=0, seed=(3,)) for i in range(6) for task in tasks
    ]
    if order == "task after task":
        wanted.sort(key=lambda request: request.initial_state.task.name)
    expected = inline(wanted)
    log = tmp_path / "log"
    settings = {"workers": workers, "slots": 5, "loaded_tasks": 2, "frame_every": 1}
    with make_pool(Counting(log=str(log)), FakePolicy(), **settings) as pool:  # type: ignore[arg-type]
        done = collect(pool, wanted)
    assert all(same(done[key], expected[key]) for key in expected)
    rows = [line.split() for line in log.read_text().splitlines() if len(line.split()) == 3]
    assert {int(loaded) for _, _, loaded in rows} == {1, 2}


def test_a_rollout_goes_to_the_least_loaded_worker_that_need_not_close_another_task_for_it():
    def load(*flights: str, loaded: tuple[str, ...] = ()) -> Load:
        made = Load(tasks=2, loaded=dict.fromkeys(loaded))
        for ticket, name in enumerate(flights):
            request = RolloutRequest(initial_state=fake_state(0, 0.0, fake_task(name)), index=0, seed=(0,))
            made.give(Flight(ticket, request))
        return made

    a, b = "fake/a", "fake/b"
    assert place(a, [load(), load()], slots=4) == 0
    assert place(a, [load("a"), load()], slots=4) == 1, "there is room: the work is spread"
    assert place(a, [load("b", "b"), load("b", "a", "a")], slots=4) == 0, "likewise"
    full = load("b")
    full.loaded["fake/c"] = None
    assert place(a, [full, load("a", "a")], slots=4) == 1, "a has its simulators there"
    assert place(a, [full, load("a", "a", "a", "a")], slots=4) == 0, "but too much to do"
    full.give(Flight(9, RolloutRequest(initial_state=fake_state(0, 0.0, fake_task("a")), index=0, seed=(0,))))
    assert list(full.loaded) == [b, a], "c was not in use"
    assert place("fake/d", [full, load("b", "c")], slots=4) is None, "all that may be loaded is in use"
    assert place("fake/d", [full, load("b", "b", "b")], slots=4) == 1


def test_a_new_task_takes_the_place_of_the_one_that_was_used_least_recently():
    worker = Load(tasks=2)
    for task in ("a", "b", "a", "c"):
        worker.use(task)
    assert list(worker.loaded) == ["a", "c"]


def test_requests_in_flight_are_bounded(inference):
    drawn, yielded, most = 0, 0, 0

    def stream():
        nonlocal drawn
        for request in requests(states=20):
            drawn += 1
            yield request

    with make_pool(FakeFactory(), FakePolicy(), workers=2, slots=4, inference=inference) as pool:
        for _ in pool.run(stream()):
            most = max(most, drawn - yielded)
            yielded += 1
    assert yielded == 80
    assert most <= 2 * (4 + (1 if inference == "local" else 2))


def test_an_abandoned_run_leaves_the_workers_usable_and_the_next_run_unchanged(inference):
    wanted = requests()
    expected = inline(wanted)
    with make_pool(FakeFactory(delay=0.002), FakePolicy(), workers=2, slots=3, inference=inference) as pool:
        for _ in range(3):
            stream = pool.run(wanted)
            next(stream)
            stream.close()
        done = collect(pool, wanted)
        assert done.keys() == expected.keys()
        assert all(same(done[key], expected[key]) for key in expected)


def test_timings_add_over_workers_and_say_how_long_they_waited(inference):
    wanted = [RolloutRequest(initial_state=fake_state(i, 0.0), index=0, seed=(0,)) for i in range(3)]
    with make_pool(FakeFactory(delay=0.01), FakePolicy(), workers=2, slots=2, inference=inference) as pool:
        pool.timings()  # all have started
        began = time.perf_counter()
        rollouts = collect(pool, wanted).values()
        seconds = time.perf_counter() - began
        time.sleep(3 * seconds)  # between runs nobody waits
        first, second = values(pool.timings()), values(pool.timings())
    decisions = sum(r.decisions for r in rollouts)
    assert first["simulate"] == pytest.approx(0.001 * decisions)
    assert first["render"] == pytest.approx(0.001 * decisions)
    assert first["rollouts"] == 3
    assert first["env_steps"] == sum(r.env_steps for r in rollouts)
    assert first["infer"] > 0
    assert 0 < first["wait"] < 2.2 * seconds
    assert first["retries"] == first["worker_restarts"] == 0
    assert not any(second.values())


def test_workers_run_on_one_thread_with_the_environment_of_the_parent(monkeypatch):
    monkeypatch.setenv("RIPT_TEST_COLOUR", "green")
    with make_pool(EnvironmentFactory(), FakePolicy(), workers=1, slots=1, max_error_rate=1.0) as pool:
        (rollout,) = collect(pool, requests(1, 1)).values()
    assert "colour green, OMP 1, MKL 1, torch 1" in (rollout.error or "")


class EnvironmentFactory:
    def __call__(self, key: str) -> FakeSimulator:
        names = ("RIPT_TEST_COLOUR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        colour, omp, mkl = (os.environ.get(name) for name in names)
        raise RuntimeError(f"colour {colour}, OMP {omp}, MKL {mkl}, torch {torch.get_num_threads()}")


def test_the_environment_of_the_parent_is_as_before_after_a_start(monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    with make_pool(FakeFactory(), FakePolicy(), workers=1, slots=1):
        assert dict(os.environ) == before


def test_a_closed_pool_leaves_no_process_and_no_open_file(inference):
    with make_pool(FakeFactory(), FakePolicy(), workers=1, slots=1):
        before = os.listdir("/proc/self/fd")  # the server of workers runs
        shared = os.listdir("/dev/shm")
        with make_pool(FakeFactory(), FakePolicy(), workers=2, slots=3, inference=inference) as pool:
            collect(pool, requests())
            assert len(running()) == 3
            list(zip(pool.run(requests()), range(2), strict=False))
            assert os.listdir("/dev/shm") == shared
        assert len(running()) == 1
        assert os.listdir("/proc/self/fd") == before
        pool.close()
    assert not running()


def test_a_policy_that_cannot_be_pickled_is_refused_with_a_remedy():
    policy = FakePolicy()
    policy.hook = lambda: None  # type: ignore[attr-defined]
    policy.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"lock.*or use workers=0"):
        make_pool(FakeFactory(), policy, workers=1)


@pytest.mark.parametrize(
    ("what", "most", "settings", "remedy"),
    [
        (resource.RLIMIT_NOFILE, 64, {"workers": 20}, "ulimit -n"),
        (resource.RLIMIT_FSIZE, 10_000, {"workers": 1, "inference": "central", "slots": 32}, "rollout.inference=local"),
    ],
)
def test_what_the_system_does_not_give_is_told_when_the_pool_is_made(what, most, settings, remedy):
    policy = FakePolicy()
    policy.simulator = SPEC  # type: ignore[attr-defined]
    soft, hard = resource.getrlimit(what)
    before = os.listdir("/proc/self/fd")
    try:
        resource.setrlimit(what, (most, hard))
        with pytest.raises(WorkerError, match=remedy):
            make_pool(FakeFactory(), policy, **settings)
    finally:
        resource.setrlimit(what, (soft, hard))
    assert os.listdir("/proc/self/fd") == before


def test_memory_that_is_needed_only_later_is_reserved_or_an_error_then():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with make_pool(FakeFactory(), FakePolicy(), workers=1, slots=32, inference="central") as pool:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            with pytest.raises(WorkerError, match=r"no shared memory .*rollout.inference=local"):
                list(pool.run(requests()))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_the_kernels_own_memory_a_temporary_file_serves(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create")
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setattr(limits, "SHARED_FOLDER", folder)
        wanted = requests(2, 2)
        with make_pool(FakeFactory(), FakePolicy(), workers=1, slots=3, inference="central") as pool:
            assert len(collect(pool, wanted)) == 4
        assert not list(tmp_path.iterdir())
