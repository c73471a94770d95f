"""Central inference: workers' questions, gathered, and answered by one decision of the policy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ript.core.types import Observation
from ript.rollout.local.messages import Answer, Ask
from ript.rollout.local.processes import RolloutWorker
from ript.rollout.recorder import Recorder


class Questions:
    """Parts of workers that wait for a decision.

    Args:
        gather: seconds that a question waits for others at most.
    """

    def __init__(self, gather: float):
        self._gather, self._since = gather, 0.0
        self._asked: list[tuple[RolloutWorker, Ask]] = []

    def put(self, worker: RolloutWorker, ask: Ask) -> None:
        self._since = self._since if self._asked else time.monotonic()
        self._asked.append((worker, ask))
        worker.asked.add(ask.part)

    def patience(self, workers: Sequence[RolloutWorker]) -> float:
        """Seconds until they are answered: when each worker has asked, or after `gather`; infinite without any."""
        if not self._asked:
            return math.inf
        if all(worker.asked for worker in workers if worker.flights):
            return 0.0
        return max(0.0, self._since + self._gather - time.monotonic())

    def answer(self, recorder: Recorder) -> None:
        """One decision for all."""
        asked, self._asked = self._asked, []
        blocks = [worker.block for worker, _ in asked if worker.block is not None]
        looks = [block.read(ask.instruction, ask.first) for block, (_, ask) in zip(blocks, asked, strict=True)]
        tickets = [ticket for _, ask in asked for ticket in ask.tickets]
        actions = recorder.decide(tickets, Observation.concatenate(looks))
        start = 0
        for block, (worker, ask) in zip(blocks, asked, strict=True):
            block.put_actions(actions[start : start + len(ask.tickets)], ask.first)
            worker.asked.discard(ask.part)
            worker.send(Answer(ask.part, actions.shape[1]))
            start += len(ask.tickets)

    def forget(self, worker: RolloutWorker) -> None:
        """Drop the questions of a worker that is lost and needs no answer."""
        self._asked = [(asking, ask) for asking, ask in self._asked if asking is not worker]

    def clear(self) -> None:
        self._asked.clear()
