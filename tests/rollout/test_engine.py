"""Rollouts in this process."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from ript.core.errors import ConfigError, ErrorRateExceeded, NotFiniteError, UnknownNameError, WorkerError
from ript.core.metrics import values
from ript.core.simulators import SimulatorCache
from ript.core.types import ChunkResult, Observation, Rollout, RolloutRequest, Status
from ript.rollout.pool import InlinePool, make_pool
from tests.fakes import CHUNK, SPEC, TOKENS, FakeFactory, FakePolicy, FakeSimulator, Fault, fake_state, fake_task, same


def requests(states: int = 6, group: int = 4, **changes: object) -> list[RolloutRequest]:
    """Groups of two tasks with different horizons."""
    tasks = (fake_task(), fake_task("long-40", 40))
    initial = [fake_state(i, 0.1, tasks[i % 2]) for i in range(states)]
    return [
        RolloutRequest(initial_state=state, index=k, seed=(3, 1), **changes)  # type: ignore[arg-type]
        for state in initial
        for k in range(group)
    ]


def run(
    wanted: list[RolloutRequest], factory: FakeFactory | None = None, policy: FakePolicy | None = None, **kw: object
):
    """Run them all in this process; by (state, index)."""
    settings = {"slots": 4, "max_error_rate": 1.0} | kw
    with make_pool(factory or FakeFactory(), policy or FakePolicy(), workers=0, **settings) as pool:  # type: ignore[arg-type]
        return {(r.initial_state_id, r.index): r for r in pool.run(iter(wanted))}


def test_a_rollout_does_not_depend_on_the_slots_beside_it():
    wanted = requests()
    alone = run(wanted, slots=1)
    assert len(alone) == len(wanted)
    assert {r.status for r in alone.values()} == {Status.SUCCESS, Status.FAILURE}
    for other in (run(wanted, slots=3), run(wanted[::-1], slots=64)):
        assert all(same(alone[key], other[key]) for key in alone)


def test_rollouts_of_a_group_differ_and_another_seed_gives_others():
    wanted = requests(states=1, group=2)
    first, second = run(wanted).values()
    assert len({tuple(sample) for sample in first.sample}) == first.decisions > 1
    assert not np.array_equal(first.sample[0], second.sample[0])
    (other, _) = run([replace(r, seed=(3, 2)) for r in wanted]).values()
    assert not np.array_equal(first.sample[0], other.sample[0])


def test_a_recorded_rollout_has_one_row_for_each_decision_up_to_its_end():
    for rollout in run(requests()).values():
        decisions = -(-rollout.env_steps // CHUNK)
        assert rollout.decisions == decisions
        assert rollout.sample.shape == rollout.log_prob.shape == rollout.mask.shape == (decisions, TOKENS)
        assert rollout.mask.dtype == bool
        assert rollout.mask.all()
        assert rollout.inputs["step"].tolist() == [CHUNK * d for d in range(decisions)]
        assert rollout.inputs["pixel"].shape == (decisions, 3)


@pytest.mark.parametrize("frame_every", [None, 3])
def test_terms_count_only_where_the_step_that_they_shaped_was_executed(frame_every):
    """Success comes with the first step of a chunk here, a failure within or at the end of one."""

    class Stepwise(FakePolicy):
        """One term a step, and one that acts on no step."""

        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            return replace(
                chunk,
                log_prob=np.repeat(chunk.log_prob[:, :1], CHUNK + 1, 1),
                term_steps=np.arange(CHUNK + 1),
            )

    wanted = [replace(r, video=frame_every is not None, horizon=CHUNK * 3 - 1) for r in requests()]
    done = run(wanted, policy=Stepwise(), frame_every=frame_every or 4)
    assert {r.status for r in done.values()} == {Status.SUCCESS, Status.FAILURE}
    for rollout in done.values():
        last = rollout.env_steps - CHUNK * (rollout.decisions - 1)
        assert last == (1 if rollout.status is Status.SUCCESS else CHUNK - 1)
        assert rollout.log_prob.shape == rollout.mask.shape == (rollout.decisions, CHUNK + 1)
        assert rollout.mask[:-1, :CHUNK].all() and not rollout.mask[:, CHUNK].any()
        assert rollout.mask[-1].tolist() == [True] * last + [False] * (CHUNK + 1 - last)


def test_a_row_may_have_terms_of_its_own_steps():
    class Ragged(FakePolicy):
        """The second term of every other decision is padding."""

        def act(self, observation, generators, *, greedy=False):
            padded = observation.proprio[:, 1] % (2 * CHUNK) == 0
            steps = np.stack([np.zeros(len(observation), int), np.where(padded, CHUNK, 0)], 1)
            return replace(super().act(observation, generators, greedy=greedy), term_steps=steps)

    for rollout in run(requests(states=2), policy=Ragged()).values():
        assert rollout.mask.tolist() == [[True, d % 2 == 1] for d in range(rollout.decisions)]


def test_a_sample_is_kept_as_it_is_and_what_is_the_same_for_a_rollout_once():
    class Chain(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            words = np.stack([np.full(3, len(text), np.float32) for text in observation.instruction])
            sample = np.stack([generator.normal(size=(5, CHUNK, 2)).astype(np.float32) for generator in generators])
            return replace(chunk, sample=sample, log_prob=chunk.log_prob[:, :1], rollout_inputs={"words": words})

    wanted = requests()
    for request, rollout in zip(wanted, run(wanted, policy=Chain(), slots=1).values(), strict=True):
        assert rollout.sample.shape == (rollout.decisions, 5, CHUNK, 2) and rollout.sample.dtype == np.float32
        assert rollout.mask.shape == (rollout.decisions, 1)
        assert rollout.rollout_inputs["words"].tolist() == [len(request.initial_state.task.instruction)] * 3


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"actions": np.zeros((4, CHUNK))}, r"actions of shape \(4, 4\) .*expected \[4, H, A\]"),
        ({"log_prob": np.zeros(4)}, r"log_prob of shape \(4,\) for 4 observations of fake/plain; expected \[4, K\]"),
        ({"sample": np.zeros((3, 2))}, r"sample of shape \(3, 2\) .*expected \[4, ...\]"),
        ({"sample": np.array(["a"] * 4)}, "a sample of type <U1; expected numbers"),
        ({"inputs": {"x": np.zeros((5, 2))}}, r"inputs\['x'\] of shape \(5, 2\)"),
        ({"rollout_inputs": {"x": np.zeros(())}}, r"rollout_inputs\['x'\] of shape \(\)"),
        ({"rollout_inputs": {"step": np.zeros(4)}}, "'step' both in inputs and in rollout_inputs"),
        ({"term_steps": np.zeros(3, int)}, r"term_steps of int64 \(3,\); expected whole numbers \[2\] or \[4, 2\]"),
        ({"term_steps": np.zeros(2)}, "term_steps of float64"),
        ({"term_steps": np.array([1, CHUNK])}, f"term_steps from 1 to {CHUNK}; expected .*counted from 0, of which"),
        ({"term_steps": np.array([0, 9])}, "term_steps from 0 to 9"),
        ({"term_steps": np.array([-1, 0])}, "term_steps from -1 to 0"),
    ],
)
def test_a_chunk_whose_parts_do_not_fit_together_stops_the_run_with_expected_against_got(broken, complaint):
    class Odd(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            return replace(super().act(observation, generators, greedy=greedy), **broken)

    with pytest.raises(WorkerError, match=complaint):
        run(requests(states=1), policy=Odd(), slots=4)


def test_what_is_said_to_be_the_same_for_a_rollout_and_is_not_stops_the_run():
    class Changing(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            return replace(chunk, rollout_inputs={"step": observation.proprio[:, 1].copy()}, inputs={})

    with pytest.raises(WorkerError, match=r"another 'step' in decision 2 of fake/plain, .*move it to inputs"):
        run([replace(r, initial_state=fake_state(0, -1)) for r in requests(states=1)], policy=Changing())


def test_a_policy_may_use_its_output_arrays_again():
    class Reusing(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            for array in self.__dict__.pop("last", []):
                array.fill(99)
            self.last = [chunk.actions, chunk.sample, chunk.log_prob, *chunk.inputs.values()]
            return chunk

    expected, done = run(requests()), run(requests(), policy=Reusing())
    assert all(same(expected[key], done[key]) for key in expected)


def test_what_is_not_recorded_is_not_kept_and_nothing_else_changes():
    recorded, bare = run(requests()), run(requests(record=False))
    for key, rollout in bare.items():
        assert rollout.sample is rollout.log_prob is rollout.mask is rollout.inputs is None
        assert (rollout.status, rollout.env_steps) == (recorded[key].status, recorded[key].env_steps)


def test_greedy_and_sampled_requests_mix_in_one_batch():
    mixed = [replace(r, greedy=r.index % 2 == 0) for r in requests()]
    done, sampled = run(mixed, policy=FakePolicy(bias=0.05)), run(requests(), policy=FakePolicy(bias=0.05))
    for request in mixed:
        rollout = done[request.initial_state.id, request.index]
        if request.greedy:
            assert not rollout.sample.any()
            assert not rollout.log_prob.any()
            assert rollout.status is Status.SUCCESS
        else:
            assert same(rollout, sampled[request.initial_state.id, request.index])


def test_frames_are_kept_only_for_videos_and_change_nothing():
    wanted = [replace(r, video=r.index == 0) for r in requests()]
    plain, done = run(requests()), run(wanted, frame_every=3)
    for request in wanted:
        key = request.initial_state.id, request.index
        rollout = done[key]
        assert same(replace(rollout, frames=None), plain[key])
        assert (rollout.frames is not None) == request.video
        if rollout.frames is not None:
            shown = rollout.frames[:, 0, 0, 0].tolist()
            assert shown[0] == 0, "the first frame shows the initial state"
            assert shown[-1] == rollout.env_steps, "the last frame shows the end"
            assert max(np.diff(shown)) <= 3


def test_no_slot_is_empty_while_requests_are_left():
    class Counting(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            batches.append((len(observation), left))
            return super().act(observation, generators, greedy=greedy)

    batches: list[tuple[int, int]] = []
    left = 80

    def stream():
        nonlocal left
        for request in requests(states=20):
            left -= 1
            yield request

    with make_pool(FakeFactory(), Counting(), workers=0, slots=5) as pool:
        assert len(list(pool.run(stream()))) == 80
    assert {rows for rows, left_then in batches if left_then} == {5}
    assert sum(bool(left_then) for _, left_then in batches) > 50


def test_requests_are_drawn_only_when_a_slot_is_free():
    drawn, yielded = 0, 0

    def stream():
        nonlocal drawn
        for request in requests():
            drawn += 1
            yield request

    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=5) as pool:
        for _ in pool.run(stream()):
            yielded += 1
            assert drawn <= yielded + 5


@pytest.mark.parametrize(
    ("decision", "what", "steps"), [(0, "resetting", 0), (1, "stepping", 0), (3, "stepping", 2 * CHUNK)]
)
def test_a_simulator_that_raises_makes_one_error_with_its_address_and_the_others_go_on(decision, what, steps):
    bad, wanted = (
        fake_state(1, 0.0),
        [RolloutRequest(initial_state=fake_state(i, 0.0), index=7, seed=(0,)) for i in range(6)],
    )
    done = run(wanted, FakeFactory(faults=(Fault(kind="raise", state=1, decision=decision),)))
    failed = done.pop((bad.id, 7))
    assert {r.status for r in done.values()} == {Status.FAILURE}
    assert failed.status is Status.ERROR
    assert failed.reward is None
    assert failed.env_steps == steps
    assert failed.sample is None
    for part in (
        "ValueError: injected fault",
        what,
        "fake/plain",
        bad.id,
        "rollout 7",
        f"decision {decision}",
        "process",
    ):
        assert part in failed.error
    assert "Traceback" in failed.error
    assert "fault.strike()" in failed.error


def test_an_instance_that_failed_is_closed_and_not_used_again():
    built: list[FakeSimulator] = []

    def factory(key: str) -> FakeSimulator:
        built.append(FakeSimulator(fake_task(), [Fault(kind="raise", state=1)]))
        return built[-1]

    with make_pool(factory, FakePolicy(), workers=0, slots=1, max_error_rate=1.0) as pool:
        states = [fake_state(i) for i in (0, 1, 2, 3)]
        list(pool.run(RolloutRequest(initial_state=s, index=0, seed=(0,)) for s in states))
        assert [simulator.closed for simulator in built] == [True, False]
    assert all(simulator.closed for simulator in built)


def test_a_look_that_breaks_the_spec_is_an_error_of_that_rollout():
    class Blind(FakeSimulator):
        def observe(self) -> Observation:
            look = super().observe()
            return replace(look, images={}) if self._step else look

    with make_pool(lambda key: Blind(fake_task()), FakePolicy(), workers=0, slots=2, max_error_rate=1.0) as pool:
        (rollout,) = pool.run([RolloutRequest(initial_state=fake_state(0, 0.0), index=0, seed=(0,))])
    assert rollout.status is Status.ERROR
    assert "SimulatorError" in rollout.error
    assert "while looking" in rollout.error


def test_a_simulator_that_cannot_be_built_makes_errors_until_the_limit():
    with (
        make_pool(FakeFactory(faults=(Fault(kind="build"),)), FakePolicy(), workers=0, slots=4) as pool,
        pytest.raises(ErrorRateExceeded, match=r"(?s)20 of the last 20 .*OSError: no screen.*building the simulator"),
    ):
        list(pool.run(requests(states=20)))


def test_the_error_limit_names_the_commonest_error_and_lets_a_lower_rate_pass():
    faults = (Fault(kind="raise", state=0), Fault(kind="raise", state=2, decision=0))
    wanted = sorted(requests(group=16), key=lambda request: request.index)
    assert len(run(wanted, FakeFactory(faults=faults), max_error_rate=0.5)) == 96
    with pytest.raises(ErrorRateExceeded, match=r"(?s)limit 20%.*ValueError: injected fault.*Traceback"):
        run(wanted, FakeFactory(faults=faults), max_error_rate=0.2)


def test_one_bad_initial_state_does_not_stop_a_run_in_which_others_work():
    done = run(requests(group=16), FakeFactory(faults=(Fault(kind="raise", state=0),)), max_error_rate=0.2)
    assert [r.status for r in done.values()].count(Status.ERROR) == 16


def test_an_error_that_concerns_every_rollout_stops_the_run():
    def factory(key: str) -> FakeSimulator:
        raise UnknownNameError("task", "plane", ["plain"])

    with (
        make_pool(factory, FakePolicy(), workers=0) as pool,
        pytest.raises(UnknownNameError, match="did you mean plain"),
    ):
        list(pool.run(requests()))


def test_a_policy_that_raises_stops_the_run_and_says_on_what():
    with pytest.raises(WorkerError, match=r"KeyError when acting on 4 observations of fake/plain: 'a bug") as caught:
        run(requests(), policy=FakePolicy(breaks="raise"))
    assert isinstance(caught.value.__cause__, KeyError)


def test_actions_that_are_not_finite_stop_the_run_and_name_the_row():
    bad = fake_state(2)
    with pytest.raises(NotFiniteError, match=rf"actions for 1 of 4 observations of .*{bad.id}, rollout 0, decision 1;"):
        run(requests(group=1), policy=FakePolicy(breaks="nan", at=2), slots=4)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"actions": np.zeros((4, 0, 2), np.float32)}, r"actions .*\(4, 0, 2\).*; expected \[4, H, A\]"),
        ({"actions": np.zeros((4, CHUNK, 3), np.float32)}, "chunks of 3 numbers an action; .* takes 2"),
        ({"actions": np.zeros((4, CHUNK), np.float32)}, r"actions .*; expected \[4, H, A\]"),
        ({"actions": np.full((4, CHUNK, 2), "left")}, "actions .*<U4.*; expected numbers"),
        ({"actions": torch.zeros(4, CHUNK, 2)}, "a Tensor for actions .*; expected a NumPy array"),
        ({"log_prob": np.zeros((4, 0), np.float32)}, r"log_prob .*; expected \[4, K\]"),
        ({"sample": [1, 2, 3, 4]}, "a list for sample .*; expected a NumPy array"),
        ({"inputs": {"step": None}}, "a NoneType for step .*; expected a NumPy array"),
        (None, "a tuple for 4 observations .*; expected an ActionChunk"),
    ],
)
def test_what_a_policy_cannot_have_meant_stops_the_run_and_is_not_counted_as_the_simulators_error(broken, complaint):
    class Broken(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            return (chunk.actions, chunk.sample) if broken is None else replace(chunk, **broken)

    with pytest.raises(WorkerError, match=f"the policy returned .*{complaint}"):
        run(requests(group=1), policy=Broken(), slots=4)


def test_a_policy_whose_greedy_chunks_are_longer_is_named():
    class Longer(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            return replace(chunk, actions=np.repeat(chunk.actions, 1 + greedy, axis=1))

    with pytest.raises(WorkerError, match=r"chunks of \(8, 2\) in greedy mode and of \(4, 2\) when it draws"):
        run([replace(request, greedy=request.index == 0) for request in requests()], policy=Longer())


def test_actions_too_large_for_float32_are_not_finite():
    class Large(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            return replace(chunk, actions=chunk.actions.astype(np.float64) + 1e301)

    with pytest.raises(NotFiniteError, match="the policy returned NaN or infinite actions for 4 of 4 observations"):
        run(requests(group=1), policy=Large(), slots=4)


def test_a_policy_that_draws_another_number_of_variables_than_before_is_named():
    class Growing(FakePolicy):
        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            late = int(observation.proprio[0, 1] > 0)
            return replace(chunk, sample=chunk.sample[:, late:], log_prob=chunk.log_prob[:, late:])

    wanted = [RolloutRequest(initial_state=fake_state(0, -1), index=0, seed=(3,))]
    with pytest.raises(
        WorkerError, match=r"sample of shape \(1,\) in decision 2, and of shape \(2,\) in the first .*fake/plain"
    ):
        run(wanted, policy=Growing())


@pytest.mark.parametrize("greedy", [False, True])
def test_a_density_that_is_not_finite_stops_the_run_at_that_decision_recorded_or_not(greedy):
    class Later(FakePolicy):
        """Its density breaks at the third decision, while its actions stay well."""

        def act(self, observation, generators, *, greedy=False):
            chunk = super().act(observation, generators, greedy=greedy)
            chunk.log_prob[observation.proprio[:, 1] == 2 * CHUNK, 1] = np.inf
            return chunk

    for record in (False, True):
        wanted = [RolloutRequest(initial_state=fake_state(0, -1), index=0, seed=(3,), greedy=greedy, record=record)]
        with pytest.raises(NotFiniteError, match=r"infinite log-probabilities .*fake/plain.*rollout 0, decision 3;"):
            run(wanted, policy=Later())


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"proprio": np.array([[1, np.nan, 0]], np.float32)}, r"proprio \[1.0, nan, 0.0\]; expected finite"),
        ({"images": {"front": np.zeros((1, 6, 8, 3), np.float32)}}, "pictures of front are float32; expected uint8"),
    ],
)
def test_a_simulator_that_shows_what_no_policy_can_use_is_an_error_of_that_rollout(broken, complaint):
    class Broken(FakeSimulator):
        def observe(self):
            seen = super().observe()
            return replace(seen, **broken) if self._number == 1 else seen

    with make_pool(lambda key: Broken(fake_task()), FakePolicy(), workers=0, slots=4, max_error_rate=1.0) as pool:
        wanted = [RolloutRequest(initial_state=fake_state(i), index=0, seed=(3,)) for i in range(3)]
        done = {r.initial_state_id: r for r in pool.run(wanted)}
    bad = done.pop(fake_state(1).id)
    assert bad.status is Status.ERROR
    assert re.search(f"SimulatorError: .*{complaint}", bad.error)
    assert all(r.status is not Status.ERROR for r in done.values())


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"success": float("nan"), "done": True}, "success = nan; expected True or False"),
        ({"success": 1.0, "done": True}, "success = 1.0; expected True or False"),
        ({"success": None, "done": True}, "success = None; expected True or False"),
        ({"done": float("nan")}, "done = nan; expected True or False"),
        ({"success": True, "done": False}, "a success that is not done"),
        ({"env_steps": float("nan")}, "env_steps = nan; expected a whole number of at least 1"),
        ({"env_steps": 0}, "env_steps = 0; expected a whole number of at least 1"),
        ({"env_steps": CHUNK + 1}, f"{CHUNK + 1} steps were executed of a chunk of {CHUNK} actions"),
        (None, "step_chunk returned a tuple; expected a ChunkResult"),
    ],
)
def test_an_outcome_of_a_chunk_that_cannot_be_is_an_error_of_that_rollout_and_no_success(said, complaint):
    class Broken(FakeSimulator):
        def step_chunk(self, actions):
            result = super().step_chunk(actions)
            if self._number != 1:
                return result
            return (result.success, result.env_steps, result.done) if said is None else replace(result, **said)

    with make_pool(lambda key: Broken(fake_task()), FakePolicy(), workers=0, slots=4, max_error_rate=1.0) as pool:
        wanted = [RolloutRequest(initial_state=fake_state(i, -1.0), index=0, seed=(3,)) for i in range(3)]
        done = {r.initial_state_id: r for r in pool.run(wanted)}
    bad = done.pop(fake_state(1, -1.0).id)
    assert bad.status is Status.ERROR and f"SimulatorError: {complaint}" in bad.error.replace("a chunk's ", "")
    assert all(r.status is Status.FAILURE for r in done.values())


@pytest.mark.parametrize("kind", [bool, np.bool_])
def test_truth_and_counts_may_be_numpy_s(kind):
    result = ChunkResult(success=kind(True), env_steps=np.int64(3), done=kind(True))
    assert result.success and result.done and result.env_steps == 3


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 4, 3), (4, 4)])
def test_a_picture_that_makes_no_video_is_an_error_of_that_rollout(shape):
    class Broken(FakeSimulator):
        def render(self):
            late = self._step > 0
            return np.zeros(shape if late else (4, 4, 3), np.float32 if late and shape == (4, 4, 3) else np.uint8)

    with make_pool(lambda key: Broken(fake_task()), FakePolicy(), workers=0, slots=4, max_error_rate=1.0) as pool:
        wanted = [RolloutRequest(initial_state=fake_state(i), index=0, seed=(3,), video=i == 1) for i in range(3)]
        done = {r.initial_state_id: r for r in pool.run(wanted)}
    bad = done.pop(fake_state(1).id)
    assert bad.status is Status.ERROR and "SimulatorError: render gave a picture of shape" in bad.error
    assert all(r.status is not Status.ERROR for r in done.values())


def test_simulators_of_different_layouts_are_refused():
    class Wide(FakeSimulator):
        def __init__(self) -> None:
            super().__init__(fake_task("wide"))
            self.spec = replace(SPEC, cameras={"front": (6, 9)})

    def factory(key: str) -> FakeSimulator:
        return Wide() if key == "fake/wide" else FakeSimulator(fake_task())

    wanted = [
        RolloutRequest(initial_state=fake_state(0, 0.0, task), index=0, seed=(0,)) for task in (None, Wide().task)
    ]
    with (
        make_pool(factory, FakePolicy(), workers=0, slots=2) as pool,
        pytest.raises(ConfigError, match=r"fake/wide has cameras = .*9.* others have .*8|fake/wide has cameras"),
    ):
        list(pool.run(wanted))


def test_the_cache_reuses_instances_of_a_task_and_closes_the_least_recently_used():
    built: list[str] = []

    def factory(key: str) -> FakeSimulator:
        built.append(key)
        return FakeFactory()(key)

    cache = SimulatorCache(factory, limit=2, tasks=9)
    a, b, c, alone = (cache.take(f"fake/{name}") for name in "aaab")
    cache.release(a)
    cache.release(b)
    assert cache.take("fake/a") is b
    cache.release(alone)
    cache.release(b)
    cache.release(c)  # a is now the one that was not used for longest
    assert [simulator.closed for simulator in (a, b, c, alone)] == [True, True, False, False], "b's only one stays"
    assert cache.take("fake/a") is c
    assert cache.take("fake/a") is not b
    assert built == ["fake/a", "fake/a", "fake/a", "fake/b", "fake/a"]
    cache.close()
    assert alone.closed
    assert c.closed


def test_another_task_takes_the_place_of_the_one_used_least_recently_but_never_of_one_in_use():
    built: list[FakeSimulator] = []

    def factory(key: str) -> FakeSimulator:
        built.append(FakeFactory()(key))
        return built[-1]

    cache = SimulatorCache(factory, limit=9, tasks=2)
    a, again, b = (cache.take(f"fake/{name}") for name in "aab")
    assert cache.has_room("fake/a")
    assert not cache.has_room("fake/c")
    cache.release(a)
    assert not cache.has_room("fake/c"), "another instance of a is still in use"
    cache.release(again)
    cache.release(b)
    assert cache.take("fake/a") is again
    cache.release(again)
    c = cache.take("fake/c")
    assert [simulator.closed for simulator in built] == [False, False, True, False]
    cache.release(c)
    cache.take("fake/c")
    cache.take("fake/d")
    assert [simulator.closed for simulator in built] == [True, True, True, False, False]


def test_seconds_of_closed_simulators_still_count():
    cache = SimulatorCache(FakeFactory(), limit=0, tasks=9)
    simulator = cache.take("fake/plain")
    simulator.reset(fake_state(0))
    simulator.step_chunk(np.ones((CHUNK, 2), np.float32))
    cache.discard(simulator)
    assert simulator.closed
    assert cache.seconds()["simulate"] == pytest.approx(0.001)


def test_timings_are_those_since_the_last_call():
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4) as pool:
        rollouts = list(pool.run(requests()))
        first, second = values(pool.timings()), values(pool.timings())
    decisions = sum(r.decisions for r in rollouts)
    assert first["simulate"] == pytest.approx(0.001 * decisions)
    assert first["render"] == pytest.approx(0.001 * decisions), "one look a decision: none after the last chunk"
    assert first["infer"] > 0
    assert first["rollouts"] == len(rollouts)
    assert first["env_steps"] == sum(r.env_steps for r in rollouts)
    assert not any(second.values())


def test_an_abandoned_run_leaves_the_pool_usable_and_the_next_run_unchanged():
    wanted = requests()
    expected = run(wanted)
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4) as pool:
        stream = pool.run(wanted)
        next(stream)
        stream.close()
        assert all(same(r, expected[r.initial_state_id, r.index]) for r in pool.run(wanted))


def test_a_pool_does_one_thing_at_a_time():
    with make_pool(FakeFactory(), FakePolicy(), workers=0) as pool:
        stream = pool.run(requests())
        next(stream)
        with pytest.raises(ConfigError, match="in flight"):
            pool.set_policy(FakePolicy().weights(), 1)
        with pytest.raises(ConfigError, match="in flight"):
            next(pool.run(requests()))
        stream.close()


def test_requests_that_wait_for_nothing_are_refused():
    with make_pool(FakeFactory(), FakePolicy(), workers=0) as pool, pytest.raises(ConfigError, match="None"):
        list(pool.run([None]))


def test_requests_may_wait_for_a_rollout():
    seen: list[Rollout] = []

    def stream():
        first, second = requests(states=2, group=1)
        yield first
        while not seen:
            yield None
        yield second

    with make_pool(FakeFactory(), FakePolicy(), workers=0) as pool:
        for rollout in pool.run(stream()):
            seen.append(rollout)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": -1}, "workers"),
        ({"slots": 0}, "slots"),
        ({"inference": "remote"}, "inference"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_error_rate": 1.5}, "max_error_rate"),
        ({"frame_every": 0}, "frame_every"),
    ],
)
def test_a_pool_that_cannot_work_is_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        make_pool(FakeFactory(), FakePolicy(), **changes)


def test_no_workers_means_this_process():
    with make_pool(FakeFactory(), FakePolicy(), workers=0) as pool:
        assert isinstance(pool, InlinePool)


def test_a_practice_horizon_ends_a_rollout_as_a_failure_and_never_changes_what_came_before():
    free, short = run(requests()), run(requests(horizon=CHUNK + 1))
    assert max(r.env_steps for r in free.values()) > CHUNK + 1
    for key, rollout in short.items():
        assert rollout.env_steps <= CHUNK + 1
        assert np.array_equal(rollout.sample, free[key].sample[: rollout.decisions])
        if free[key].env_steps > CHUNK + 1:
            assert (rollout.status, rollout.env_steps) == (Status.FAILURE, CHUNK + 1)
        else:
            assert rollout.status is free[key].status


@pytest.mark.parametrize("horizon", [None, CHUNK + 1, 100])
def test_an_episode_that_its_simulator_does_not_end_is_a_failure_at_the_tasks_horizon(horizon):
    class Endless(FakeSimulator):
        def step_chunk(self, actions):
            result = super().step_chunk(actions)
            return replace(result, env_steps=1 if result.success else len(actions), done=result.success)

    wanted = requests(horizon=horizon)
    with make_pool(lambda key: Endless(FakeFactory()(key).task), FakePolicy(), workers=0, slots=4) as pool:
        done = {(r.initial_state_id, r.index): r for r in pool.run(iter(wanted))}
    expected = run(wanted)
    assert all(same(expected[key], done[key]) for key in expected)


def test_a_task_without_a_horizon_is_an_error_of_its_rollouts():
    with make_pool(lambda key: FakeSimulator(fake_task(horizon=0)), FakePolicy(), workers=0, max_error_rate=1) as pool:
        (rollout,) = pool.run([RolloutRequest(initial_state=fake_state(0), index=0, seed=(3,))])
    assert "SimulatorError: its task has horizon = 0; expected at least 1 step" in rollout.error
