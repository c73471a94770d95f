"""Pools of simulators with a policy in the loop: in this process, or in worker processes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from ript.errors import ConfigError
from ript.interfaces import EnvPool, Policy, SimulatorFactory
from ript.metrics import Metrics, Sum
from ript.rollout.engine import SimulatorCache, Slots
from ript.rollout.recorder import Recorder
from ript.rollout.stream import ErrorLimit, Stream
from ript.types import Rollout, RolloutRequest

if TYPE_CHECKING:
    import torch

Inference = Literal["local", "central"]


class InlinePool:
    """Rollouts in this process, `slots` at a time. See `make_pool` for the arguments.

    The policy is used as it is, not copied: `set_policy` loads the weights into it.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        policy: Policy,
        *,
        slots: int,
        max_error_rate: float = 0.2,
        frame_every: int = 4,
        free_simulators: int | None = None,
    ):
        self.saturation = min(slots, 8)
        self._recorder = Recorder(policy)
        limit = 2 * slots if free_simulators is None else free_simulators
        self._simulators = SimulatorCache(make_simulator, limit=limit, check=policy.check_simulator)
        self._slots = Slots(self._recorder, self._simulators, size=slots, where="this process", frame_every=frame_every)
        self._errors = ErrorLimit(max_error_rate)
        self._running = False
        self._rollouts = 0
        self._reported: dict[str, float] = {}

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        _refuse(self._running, "set_policy")
        self._recorder.load(weights, version)

    def run(self, requests: Iterable[RolloutRequest | None]) -> Generator[Rollout, None, None]:
        _refuse(self._running, "run")
        self._running = True
        try:
            for rollout in run_slots(Stream(requests), self._recorder, self._slots):
                self._rollouts += 1
                self._errors.add(rollout)
                yield rollout
        finally:
            self._running = False

    def timings(self) -> Metrics:
        now = {
            **self._simulators.seconds(),
            "infer": self._recorder.infer_seconds,
            "wait": 0.0,
            "rollouts": float(self._rollouts),
            "env_steps": float(self._slots.env_steps),
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


def run_slots(stream: Stream, recorder: Recorder, slots: Slots) -> Generator[Rollout, None, None]:
    """Run a stream of requests through slots of this process; yields rollouts as they end.

    Closing the generator abandons what is in progress; the simulators stay in their cache.
    """
    try:
        while True:
            while slots.free and (flight := stream.draw()) is not None:
                recorder.begin(flight.ticket, flight.request)
                failed = slots.start(flight.ticket, flight.request)
                if failed is not None:
                    stream.delivered()
                    yield recorder.rollout(failed)
            if not len(slots):
                if stream.finished():
                    return
                continue
            for outcome in slots.cycle():
                stream.delivered()
                yield recorder.rollout(outcome)
    finally:
        slots.abandon()
        recorder.clear()


def _refuse(running: bool, what: str) -> None:
    if running:
        raise ConfigError(f"{what} while rollouts are in flight: finish or close the iterator of `run` first")


def make_pool(
    make_simulator: SimulatorFactory,
    policy: Policy,
    *,
    workers: int = 2,
    slots: int = 32,
    inference: Inference = "local",
    request_timeout: float = 120.0,
    max_retries: int = 2,
    max_error_rate: float = 0.2,
    frame_every: int = 4,
    free_simulators: int | None = None,
) -> EnvPool:
    return InlinePool(
        make_simulator, policy, slots=slots, max_error_rate=max_error_rate, frame_every=frame_every,
        free_simulators=free_simulators,
    )  # fmt: skip


_ = time
