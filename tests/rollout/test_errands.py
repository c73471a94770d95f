"""Errands: what is found out from simulators, wherever they are, beside rollouts or without any policy."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator

import pytest

from ript.core.errors import ConfigError, PolicyError, SimulatorError, WorkerError
from ript.core.metrics import values
from ript.core.types import Errand, InitialState, RolloutRequest, Status
from ript.rollout.local.errand_queue import Errands
from ript.rollout.pool import make_pool
from tests.fakes import (
    FakeFactory,
    FakePolicy,
    FakeSimulator,
    PickyPolicy,
    fake_state,
    fake_task,
    moved,
    same,
    slow,
)


@pytest.fixture(params=[0, 2], ids=["this process", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def states(simulator: FakeSimulator, n: int, start: int) -> list[InitialState]:
    return simulator.initial_states(n, start=start)


def broken(simulator: FakeSimulator) -> None:
    raise SimulatorError(f"{simulator.task.key}: nothing to be found")


def errand(number: int, name: str = "plain", **settings: object) -> Errand:
    task = fake_task(name)
    return Errand(task.key, functools.partial(moved, state=fake_state(number, 0.0, task), **settings))


def test_answers_come_in_the_order_of_the_errands_and_a_pool_needs_no_policy_for_them(workers):
    with make_pool(FakeFactory(), workers=workers, slots=2) as pool:
        wanted = [errand(i, f"t{i % 3}") for i in range(20)]
        assert pool.ask(wanted) == [f"fake/t{i % 3} {i} " for i in range(20)]
        assert pool.ask([]) == []
        assert pool.ask([Errand("fake/plain", functools.partial(states, n=2, start=4))])[0][1].id == fake_state(5).id
        for act in (lambda: list(pool.run([])), lambda: pool.set_policy({}, 1)):
            with pytest.raises(ConfigError, match="it has no policy yet"):
                act()


def test_errands_are_shared_out_over_the_workers():
    with make_pool(FakeFactory(), workers=2, slots=2) as pool:
        pool.ask([errand(i, f"t{i}") for i in range(2)])  # both have started
        found = [answer.split() for answer in pool.ask([errand(i, f"t{i % 4}", how="where") for i in range(24)])]
        assert len({pid for _, _, pid in found}) == 2


@pytest.mark.parametrize("inference", ["local", "central"])
def test_what_requests_ask_the_pool_for_while_rollouts_are_in_flight_changes_no_rollout(workers, inference):
    if not workers and inference == "central":
        pytest.skip("needs workers")
    tasks = [fake_task("one-40", 40), fake_task("two-24")]

    def requests(ask) -> Iterator[RolloutRequest]:
        for i in range(24):
            (found,) = ask(i)
            assert [state.id for state in found] == [fake_state(i).id]
            yield RolloutRequest(initial_state=fake_state(i, 0.1, tasks[i % 2]), index=0, seed=(3,))

    settings = {"workers": workers, "slots": 3, "inference": inference}
    with make_pool(FakeFactory(delay=0.002), FakePolicy(), **settings) as pool:  # type: ignore[arg-type]

        def ask(i: int) -> list:
            return pool.ask([Errand(f"fake/plain-{i % 5 + 4}", functools.partial(drawn, number=i))])

        done = {(r.initial_state_id, r.index): r for r in pool.run(requests(ask))}
        expected = {(r.initial_state_id, r.index): r for r in pool.run(requests(lambda i: [[fake_state(i)]]))}
    assert len(done) == 24
    assert all(same(done[key], expected[key]) for key in expected)


def drawn(simulator: FakeSimulator, number: int) -> list[InitialState]:
    return [fake_state(number)]


def test_the_error_of_an_errand_arrives_as_it_is_and_the_pool_goes_on(workers):
    with make_pool(FakeFactory(), FakePolicy(), workers=workers, slots=2) as pool:
        with pytest.raises(SimulatorError, match="fake/plain: nothing to be found"):
            pool.ask([errand(0), Errand("fake/plain", broken), errand(1)])
        assert pool.ask([errand(2)]) == ["fake/plain 2 "]
        wanted = [RolloutRequest(initial_state=fake_state(i, 0.0), index=0, seed=(0,)) for i in range(4)]
        assert {r.status for r in pool.run(wanted)} == {Status.FAILURE}


def test_a_simulator_that_ends_the_program_in_an_errand_raises_with_what_it_worked_on(workers):
    class Leaving(FakeSimulator):
        def initial_states(self, n: int, seed: int = 0, split: str = "train", start: int = 0) -> list[InitialState]:
            raise KeyboardInterrupt

    where = "fake/plain, initial states number 4 to 5 of split train of seed 0"
    with make_pool(lambda key: Leaving(fake_task()), workers=workers, slots=2) as pool:
        with pytest.raises(SimulatorError, match=f"{where}: KeyboardInterrupt"):
            pool.ask([Errand("fake/plain", functools.partial(states, n=2, start=4))])
        assert pool.ask([errand(1)]) == ["fake/plain 1 "]


def test_an_instance_on_which_an_errand_failed_is_not_used_again():
    built: list[FakeSimulator] = []

    def factory(key: str) -> FakeSimulator:
        built.append(FakeSimulator(fake_task()))
        return built[-1]

    with make_pool(factory, workers=0, slots=2) as pool:
        with pytest.raises(SimulatorError):
            pool.ask([Errand("fake/plain", broken)])
        pool.ask([errand(0), errand(1)])
        assert [simulator.closed for simulator in built] == [True, False]


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_errands_of_a_worker_that_is_lost_are_run_again_and_rollouts_beside_them_too(tmp_path, how):
    tasks = [fake_task(), fake_task("long-200", 200)]  # so that not all of a worker's are over at once
    wanted = [
        RolloutRequest(initial_state=fake_state(i, 0.0, tasks[i // 2 % 2]), index=0, seed=(0,)) for i in range(12)
    ]
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=2) as pool:
        expected = {r.initial_state_id: r for r in pool.run(wanted)}
    limit = 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    marker = str(tmp_path / "tries")

    def requests() -> Iterator[RolloutRequest]:
        for i, request in enumerate(wanted):
            if i == 8:
                assert pool.ask([errand(1, marker=marker, how=how), errand(2)]) == ["fake/plain 1 ", "fake/plain 2 "]
            yield request

    factory = FakeFactory(delay=0.005)
    with make_pool(factory, FakePolicy(), workers=2, slots=3, request_timeout=limit, max_retries=1) as pool:
        done = {r.initial_state_id: r for r in pool.run(requests())}
        assert values(pool.timings())["worker_restarts"] == 1
    assert done.keys() == expected.keys()
    assert all(same(done[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("how", "died"), [("kill", "was killed by SIGKILL"), ("leave", "died with exit code 3")])
def test_an_errand_that_kills_every_worker_is_an_error_with_its_task_and_state(tmp_path, how, died):
    where = f"fake/plain, initial state {fake_state(1, 0.0).id}; that was its try number 2"
    with make_pool(FakeFactory(), workers=1, slots=2, max_retries=1) as pool:
        with pytest.raises(WorkerError, match=rf"fake/plain: worker 0 .*{died} while working on {where}"):
            pool.ask([errand(1, marker=str(tmp_path / "tries"), how=how, times=9), errand(2)])
        assert len((tmp_path / "tries").read_text()) == 2
        assert pool.ask([errand(3)]) == ["fake/plain 3 "]


def test_a_slow_errand_whose_uses_of_the_simulator_are_each_within_the_limit_is_not_silent():
    limit = 0.4 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    with make_pool(FakeFactory(), workers=1, slots=1, request_timeout=limit) as pool:
        assert pool.ask([Errand("fake/plain", functools.partial(slow, seconds=limit / 3))]) == [9]
        assert values(pool.timings())["worker_restarts"] == 0


@pytest.mark.parametrize("inference", ["local", "central"])
def test_another_policy_acts_after_use_with_the_same_simulators(tmp_path, workers, inference):
    if not workers and inference == "central":
        pytest.skip("needs workers")
    log = tmp_path / "log"
    wanted = [RolloutRequest(initial_state=fake_state(i, 0.1), index=0, seed=(0,)) for i in range(6)]

    def rollouts(pool) -> dict:
        return {r.initial_state_id: r for r in pool.run(wanted)}

    settings = {"workers": workers, "slots": 3, "inference": inference}
    expected = []
    for bias in (0.0, 0.05):
        with make_pool(FakeFactory(), FakePolicy(bias=bias), workers=0, slots=4) as pool:
            expected.append(rollouts(pool))
    with make_pool(Building(log=str(log)), FakePolicy(), **settings) as pool:  # type: ignore[arg-type]
        before = rollouts(pool)
        pool.set_policy(FakePolicy(bias=0.2).weights(), version=4)
        infer = values(pool.timings())["infer"]
        built = len(log.read_text())
        pool.use(FakePolicy(bias=0.05))
        after = rollouts(pool)
        assert len(log.read_text()) == built
        assert 0 < values(pool.timings())["infer"] < 100 * infer
        for worker in getattr(pool, "_workers", []):
            os.kill(worker.process.pid, signal.SIGKILL)
        again = rollouts(pool)
    for found, want in ((before, expected[0]), (after, expected[1]), (again, expected[1])):
        assert all(same(found[key], want[key]) for key in want)


class Building(FakeFactory):
    """Writes a letter for each simulator built."""

    def __call__(self, key: str) -> FakeSimulator:
        with open(str(self.log), "a") as log:
            log.write(".")
        return FakeFactory()(key)


@pytest.mark.parametrize("inference", ["local", "central"])
def test_a_policy_that_does_not_fit_simulators_that_are_there_is_refused(workers, inference):
    if not workers and inference == "central":
        pytest.skip("needs workers")
    settings = {"workers": workers, "slots": 3, "inference": inference}
    wanted = [RolloutRequest(initial_state=fake_state(i, 0.1), index=0, seed=(0,)) for i in range(6)]
    with make_pool(FakeFactory(), FakePolicy(), **settings) as pool:  # type: ignore[arg-type]
        list(pool.run(wanted))
        with pytest.raises(PolicyError, match="needs 7 actions, the simulator takes 2"):
            pool.use(PickyPolicy())
            list(pool.run(wanted))
        pool.use(FakePolicy())
        assert len(list(pool.run(wanted))) == 6


def test_errands_go_first_where_their_task_is_loaded_then_where_none_else_has_it():
    errands = Errands(max_retries=0)
    first, second, third = errands.begin([Errand(name, broken) for name in ("a", "b", "a")])
    assert errands.next(here=["b"], elsewhere=["a"]).number == second
    assert errands.next(here=[], elsewhere=["b"]).number == first
    assert errands.answers([first, second, third]) is None
    assert errands.next(here=[], elsewhere=["a"]) is None, "soon done where it is loaded"
    assert errands.next(here=["a"], elsewhere=[]).number == third
    assert errands.next(here=["a"], elsewhere=[]) is None
    for number in (third, first, second):
        errands.back(number, f"answer {number}")
    assert errands.answers([first, second, third]) == [f"answer {n}" for n in (first, second, third)]
    many = errands.begin([Errand("a", broken)] * 5)
    taken = [trip.number for _ in many if (trip := errands.next(here=[], elsewhere=["a"]))]
    assert taken == many[:2], "the others are soon done where it is loaded"
    (fourth,) = errands.begin([Errand("a", broken)])
    errands.back(third, "too late")
    assert errands.answers([fourth]) is None
    errands.lost(errands.next(["a"], []), "worker 0 died", blamed=False)
    errands.lost(errands.next(["a"], []), "worker 0 died", blamed=True)
    with pytest.raises(WorkerError, match="a: worker 0 died; that was its try number 1"):
        errands.answers([fourth])
