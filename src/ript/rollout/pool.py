"""Pools of simulators with a policy in the loop: in this process, or in worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ript.core.errors import ConfigError
from ript.core.hooks import observation_steps_of
from ript.core.interfaces import EnvPool, Policy, SimulatorFactory
from ript.core.interpreter import noticing
from ript.core.metrics import Metrics, Sum
from ript.core.simulators import SimulatorCache, run_errand
from ript.core.types import Errand, Heed, Rollout, RolloutRequest
from ript.rollout.engine import Slots
from ript.rollout.local.process_pool import BUSY, NO_POLICY, Inference, ProcessPool
from ript.rollout.recorder import Recorder
from ript.rollout.stream import ErrorLimit, Stream, refuse_if

if TYPE_CHECKING:
    import torch


def make_pool(
    make_simulator: SimulatorFactory,
    policy: Policy | None = None,
    *,
    workers: int = 2,
    slots: int = 32,
    inference: Inference = "local",
    request_timeout: float = 120.0,
    start_timeout: float = 120.0,
    max_retries: int = 2,
    max_error_rate: float = 0.2,
    frame_every: int = 4,
    free_simulators: int | None = None,
    loaded_tasks: int = 16,
    gather: float = 0.005,
    fixed_batch: int = 0,
) -> EnvPool:
    """A pool of simulators with a policy in the loop. Close it, or use it as a context manager.

    Results are the same for every choice of workers, slots and inference (up to the rounding of batched arithmetic):
    each rollout draws from its request's own generator.

    What happens when something fails:
        - A simulator raises (when built, reset, stepped or looked at): that rollout becomes ERROR, with address and
          traceback; the instance is closed; the others go on.
        - A worker dies or hangs: it is killed and replaced. The rollout that it worked on (all of its rollouts, if that
          is not known) has lost a try; everything it had in flight is run again, and becomes ERROR after `max_retries`
          more tries. Three workers in a row that are lost without having had work stop the run.
        - The policy raises, or returns actions, log-probabilities or samples that are not finite: the run stops with
          that error, which names the rollout and the decision.
        - ConfigError, DependencyMissing and PolicyError from a simulator stop the run too: no rollout could work.

    Args:
        make_simulator: task key -> simulator; with workers, picklable.
        policy: with workers and local inference, picklable; each worker gets a copy. Otherwise used as it is. Scripts
            and notebooks may define both; no worker runs the script again. None: only errands can be run, until the
            pool is given one to `use`.
        workers: processes; 0 runs everything in this one.
        slots: rollouts in progress in each worker, hence the largest batch; with central inference in two halves, of
            which one works while the policy decides for the other.
        inference: "local": a copy of the policy in every worker, on one thread; fastest for a small policy on a CPU.
            "central": the policy stays in this process and acts for all workers at once; for a large policy or a GPU.
        request_timeout: seconds that one unit of a worker's work may take (building or closing a simulator, a reset, a
            chunk, a look, a picture of a video, a call of its own copy of the policy) before the worker counts as hung.
        start_timeout: seconds that a worker may take to start, or to load weights.
        max_retries: how often a rollout is run again after its worker was lost.
        max_error_rate: share of ERROR among the last 100 rollouts (at least 20) above which the run stops; errors of
            one initial state alone do not stop it while others work.
        frame_every: environment steps between the frames of a video.
        free_simulators: unused instances that each process keeps for later; 2 x slots by default.
        loaded_tasks: tasks of which a process has simulators at a time, and so their models and renderers. Another
            closes those of the task used least recently; while all are in use its rollouts wait. Beyond so many,
            rollouts go preferably to a worker that has their task.
        gather: with central inference, seconds from the first question on in which those of other workers are waited
            for, so that they are decided in one batch; not longer than until each worker has asked.
        fixed_batch: rows of every call of the policy, filled up where there are fewer; 0: as many as there are. With a
            fixed size, rollouts do not depend on workers, slots and inference in their last bits either.

    Raises:
        ConfigError: an argument is out of range, or the factory or the policy cannot be pickled.
        WorkerError: workers cannot be started, or have too little memory or too few open files; says what to do.
    """
    _need(workers >= 0, f"workers must be 0 or more, got {workers}")
    _need(inference in ("local", "central"), f'inference must be "local" or "central", got {inference!r}')
    _need(workers > 0 or inference == "local", 'inference = "central" needs workers: 0 runs everything in this process')
    _need(request_timeout > 0 and start_timeout > 0, "request_timeout and start_timeout must be positive")
    _need(max_retries >= 0, f"max_retries must be 0 or more, got {max_retries}")
    _need(gather >= 0, f"gather must be 0 or more, got {gather}")
    of_a_process = _of_a_process(slots, max_error_rate, frame_every, free_simulators, loaded_tasks, fixed_batch)
    if workers == 0:
        return InlinePool(make_simulator, policy, **of_a_process)
    return ProcessPool(
        make_simulator,
        policy,
        workers=workers,
        inference=inference,
        request_timeout=request_timeout,
        start_timeout=start_timeout,
        max_retries=max_retries,
        gather=gather,
        **of_a_process,
    )


def _of_a_process(
    slots: int,
    max_error_rate: float,
    frame_every: int,
    free_simulators: int | None,
    loaded_tasks: int,
    fixed_batch: int,
) -> dict[str, Any]:
    """What rollouts in one process need to know, wherever it is; raises `ConfigError` where that cannot be."""
    _need(slots >= 1, f"slots must be at least 1, got {slots}")
    _need(0 <= max_error_rate <= 1, f"max_error_rate must lie in 0..1, got {max_error_rate}")
    _need(frame_every >= 1, f"frame_every must be at least 1, got {frame_every}")
    _need(fixed_batch >= 0, f"fixed_batch must be 0 or more, got {fixed_batch}")
    _need(loaded_tasks >= 1, f"loaded_tasks must be at least 1, got {loaded_tasks}")
    return {
        "slots": slots,
        "max_error_rate": max_error_rate,
        "frame_every": frame_every,
        "free_simulators": 2 * slots if free_simulators is None else free_simulators,
        "loaded_tasks": loaded_tasks,
        "fixed_batch": fixed_batch,
    }


class InlinePool:
    """Rollouts in this process, `slots` at a time. See `make_pool` for the arguments.

    The policy is used as it is, not copied: `set_policy` loads the weights into it.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        policy: Policy | None,
        *,
        slots: int,
        max_error_rate: float = 0.2,
        frame_every: int = 4,
        free_simulators: int | None = None,
        loaded_tasks: int = 16,
        fixed_batch: int = 0,
    ):
        self.saturation = min(slots, BUSY)
        limit = 2 * slots if free_simulators is None else free_simulators
        self._simulators = SimulatorCache(make_simulator, limit=limit, tasks=loaded_tasks)
        self._size, self._frame_every, self._rows = slots, frame_every, fixed_batch
        self._errors = ErrorLimit(max_error_rate)
        self._running = False
        self._rollouts = 0
        self._reported: dict[str, float] = {}
        self._recorder: Recorder | None = None
        self._slots: Slots | None = None
        if policy is not None:
            self.use(policy)

    def use(self, policy: Policy) -> None:
        refuse_if(self._running, "use")
        recorder, slots = Recorder(policy, rows=self._rows), self._slots
        if self._recorder is not None:
            recorder.infer_seconds = self._recorder.infer_seconds
        if slots is None:
            slots = Slots(self._simulators, size=self._size, where="this process", frame_every=self._frame_every)
        slots.check, slots.observation_steps = policy.check_simulator, observation_steps_of(policy)
        self._recorder, self._slots = recorder, slots

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        refuse_if(self._running, "set_policy")
        self._acting()[0].load(weights, version)

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Heed | None = None
    ) -> Generator[Rollout, None, None]:
        refuse_if(self._running, "run")
        recorder, slots = self._acting()
        self._running, found = True, run_slots(Stream(requests), recorder, slots, heed)
        try:
            while (rollout := _next(found)) is not None:
                self._rollouts += 1
                self._errors.add(rollout)
                yield rollout
        finally:
            found.close()
            self._running = False

    def _acting(self) -> tuple[Recorder, Slots]:
        if self._recorder is None or self._slots is None:
            raise ConfigError(NO_POLICY)
        return self._recorder, self._slots

    def ask(self, errands: Sequence[Errand]) -> list[Any]:
        with noticing():
            return [run_errand(errand, self._simulators) for errand in errands]

    def timings(self) -> Metrics:
        now = {
            **self._simulators.seconds(),
            "infer": 0.0 if self._recorder is None else self._recorder.infer_seconds,
            "wait": 0.0,
            "rollouts": float(self._rollouts),
            "env_steps": 0.0 if self._slots is None else float(self._slots.env_steps),
            "retries": 0.0,
            "worker_restarts": 0.0,
        }
        spent = {name: Sum(value - self._reported.get(name, 0.0)) for name, value in now.items()}
        self._reported = now
        return dict(spent)

    def close(self) -> None:
        self._simulators.close()

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _next(rollouts: Iterator[Rollout]) -> Rollout | None:
    """The next rollout, if any. What the caller does between two of them is not watched for a Ctrl-C."""
    with noticing():
        return next(rollouts, None)


def run_slots(
    stream: Stream, recorder: Recorder, slots: Slots, heed: Heed | None = None
) -> Generator[Rollout, None, None]:
    """Run a stream of requests through slots of this process; yields rollouts as they end.

    Closing the generator abandons what is in progress; the simulators stay in their cache.
    """
    try:
        while True:
            if heed is not None:
                heed()
                stream.ask_again()
            while slots.free and (flight := stream.draw()) is not None:
                if not slots.has_room(flight.request):
                    stream.back(flight)
                    break
                recorder.begin(flight.ticket, flight.request)
                failed = slots.start(flight.ticket, flight.request)
                if failed is not None:
                    stream.ask_again()
                    yield recorder.rollout(failed)
            if not len(slots):
                if stream.finished():
                    return
                continue
            for outcome in slots.cycle(recorder):
                stream.ask_again()
                yield recorder.rollout(outcome)
    finally:
        slots.abandon()
        recorder.clear()


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"rollout pool: {message}")
