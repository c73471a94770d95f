"""The policy's side of rollouts: one batched decision for many slots, and what the update needs of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ript.core import policy_calls
from ript.core.errors import NotFiniteError, RiptError, WorkerError
from ript.core.interfaces import Policy
from ript.core.interpreter import ending
from ript.core.memory import out_of_memory, ran_out
from ript.core.types import ActionChunk, Observation, Rollout, RolloutRequest, Status
from ript.rollout.engine import DECIDING, Outcome, Watch

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class _Trace:
    """One rollout as the policy saw it so far."""

    request: RolloutRequest
    generator: np.random.Generator
    version: int
    where: str
    decisions: int = 0
    sample: list[np.ndarray] = field(default_factory=list)
    log_prob: list[np.ndarray] = field(default_factory=list)
    inputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    rollout_inputs: dict[str, np.ndarray] | None = None
    term_steps: list[np.ndarray] = field(default_factory=list)

    def add(self, chunk: ActionChunk, row: int) -> None:
        """Keep a decision. Copies: a view would keep the whole batch alive until the update."""
        if self.sample and (other := _unlike(self, chunk)):
            raise WorkerError(
                f"the policy returned {other} in the first decision of {_describe([self])}; decisions of a rollout are "
                "of one shape"
            )
        self.sample.append(chunk.sample[row].copy())
        self.log_prob.append(chunk.log_prob[row].copy())
        self.inputs.append({name: value[row].copy() for name, value in chunk.inputs.items()})
        if chunk.term_steps is not None:
            self.term_steps.append(np.broadcast_to(chunk.term_steps, chunk.log_prob.shape)[row].copy())
        if self.rollout_inputs is None:
            self.rollout_inputs = {name: value[row].copy() for name, value in chunk.rollout_inputs.items()}
        elif changed := _changed(self.rollout_inputs, chunk.rollout_inputs, row):
            raise WorkerError(
                f"the policy gave another {changed} in decision {self.decisions} of {_describe([self])} than in the "
                "first: what is in rollout_inputs may not change during a rollout; move it to inputs"
            )

    def mask(self, executed: Sequence[int]) -> np.ndarray:
        """bool `[D, K]`: which terms shaped an action that was executed, given the steps of each decision."""
        if not self.term_steps:
            return np.ones((self.decisions, *self.log_prob[0].shape), bool)
        return np.stack(self.term_steps) < np.asarray(executed)[:, None]


class Recorder:
    """Decides for slots with a policy in this process, and records. A `Brain` (see `engine`).

    Every rollout draws from `request.generator()` alone, so its result depends neither on its batch nor on the order.
    Each call of the policy is a unit of work that `watch` is told of.

    Args:
        policy: acts.
        version: that it has.
        watch: see above.
        rows: of every call of the policy, which is filled up with copies of its last row; 0: as many as there are to
            decide for. Arithmetic rounds differently in batches of other sizes, but not in one size's: with a fixed one
            a rollout is the same to the bit, whatever it was decided together with.
    """

    def __init__(self, policy: Policy, version: int = 0, watch: Watch = lambda what: None, rows: int = 0):
        self.policy, self._watch, self._rows = policy, watch, rows
        self.version = version
        self.infer_seconds = 0.0
        self._traces: dict[int, _Trace] = {}

    def load(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Weights for the rollouts that begin from now on; call it only between runs."""
        policy_calls.load_weights(self.policy, weights)  # type: ignore[arg-type]
        self.version = version

    def begin(self, ticket: int, request: RolloutRequest, where: str = "") -> None:
        """Expect decisions for this rollout; `where` is the process that simulates it, for messages."""
        self._traces[ticket] = _Trace(request, request.generator(), self.version, where)

    def decide(self, tickets: Sequence[int], observation: Observation) -> np.ndarray:
        """Actions float32 `[B, H, A]` for B slots; greedy and sampled ones each make one batch.

        Raises:
            NotFiniteError: NaN or infinity, in float32, among the actions, the log-probabilities or what was drawn.
            OutOfMemory: memory ran out in the policy.
            WorkerError: the policy raised, or returned something else than an `ActionChunk` of so many rows.
        """
        traces = [self._traces[ticket] for ticket in tickets]
        actions: np.ndarray | None = None
        for greedy, rows in self._batches(traces):
            chunk = self._act([traces[i] for i in rows], _take(observation, rows), greedy)
            if actions is None:
                actions = np.empty((len(traces), *chunk.actions.shape[1:]), np.float32)
            if chunk.actions.shape[1:] != actions.shape[1:]:
                raise WorkerError(
                    f"the policy returned chunks of {chunk.actions.shape[1:]} in greedy mode and of "
                    f"{actions.shape[1:]} when it draws; expected one length"
                )
            actions[rows] = chunk.actions
        assert actions is not None
        return actions

    def _batches(self, traces: Sequence[_Trace]) -> Iterator[tuple[bool, list[int]]]:
        """(greedy, rows) of each call of the policy."""
        for greedy in (False, True):
            rows = [i for i, trace in enumerate(traces) if trace.request.greedy is greedy]
            size = self._rows or max(1, len(rows))
            yield from ((greedy, rows[start : start + size]) for start in range(0, len(rows), size))

    def rollout(self, outcome: Outcome) -> Rollout:
        """The complete record of a finished rollout; forgets it."""
        trace = self._traces.pop(outcome.ticket)
        kept: dict[str, Any] = {}
        if trace.request.record and outcome.status is not Status.ERROR:
            kept = {
                "sample": np.stack(trace.sample),
                "log_prob": np.stack(trace.log_prob),
                "mask": trace.mask(outcome.executed),
                "inputs": {name: np.stack([row[name] for row in trace.inputs]) for name in trace.inputs[0]},
                "rollout_inputs": trace.rollout_inputs,
            }
        return Rollout(
            initial_state_id=trace.request.initial_state.id,
            index=trace.request.index,
            status=outcome.status,
            decisions=outcome.decisions,
            env_steps=outcome.env_steps,
            policy_version=trace.version,
            frames=outcome.frames,
            error=outcome.error,
            **kept,
        )

    def forget(self, ticket: int) -> None:
        self._traces.pop(ticket, None)

    def clear(self) -> None:
        self._traces.clear()

    def _act(self, traces: Sequence[_Trace], observation: Observation, greedy: bool) -> ActionChunk:
        self._watch(DECIDING)
        started = time.perf_counter()

        def ours(error: BaseException) -> RiptError:
            on = _describe(traces)
            if ran_out(error):
                return out_of_memory(error, f"acting on {on}", "rollout.slots or --workers")
            return WorkerError(f"the policy raised {type(error).__name__} when acting on {on}: {error}")

        try:
            generators, spare = [trace.generator for trace in traces], max(0, self._rows - len(traces))
            with ending(ours):
                if spare:
                    last = [*range(len(traces)), *[len(traces) - 1] * spare]
                    generators += [np.random.default_rng(0) for _ in range(spare)]
                    chunk = _first(self.policy.act(_take(observation, last), generators, greedy=greedy), len(traces))
                else:
                    chunk = self.policy.act(observation, generators, greedy=greedy)
        except RiptError:
            raise
        except Exception as error:
            raise ours(error) from error
        finally:
            self.infer_seconds += time.perf_counter() - started
        _require_arrays(chunk, traces)
        _require_shapes(chunk, traces)
        with np.errstate(over="ignore"):  # what float32 does not hold is found below
            chunk = replace(chunk, actions=chunk.actions.astype(np.float32, copy=False))
        for what, array in (
            ("actions", chunk.actions),
            ("log-probabilities", chunk.log_prob),
            ("samples", chunk.sample),
        ):
            _require_finite(what, array, traces)
        for row, trace in enumerate(traces):
            trace.decisions += 1
            if trace.request.record:
                trace.add(chunk, row)
        return chunk


def _first(chunk: ActionChunk, rows: int) -> ActionChunk:
    """The first rows of a decision."""
    steps = chunk.term_steps
    return replace(
        chunk,
        actions=chunk.actions[:rows],
        sample=chunk.sample[:rows],
        log_prob=chunk.log_prob[:rows],
        inputs={name: value[:rows] for name, value in chunk.inputs.items()},
        rollout_inputs={name: value[:rows] for name, value in chunk.rollout_inputs.items()},
        term_steps=steps if steps is None or steps.ndim == 1 else steps[:rows],
    )


def _require_arrays(chunk: ActionChunk, traces: Sequence[_Trace]) -> None:
    """Raise WorkerError unless it is a chunk at all, of NumPy arrays, and of numbers where it is not opaque."""
    if not isinstance(chunk, ActionChunk):
        raise WorkerError(
            f"the policy returned a {type(chunk).__name__} for {_describe(traces)}; expected an ActionChunk"
        )
    parts = [("actions", chunk.actions), ("log_prob", chunk.log_prob), ("sample", chunk.sample)]
    for what, part in (*parts, *chunk.inputs.items(), *chunk.rollout_inputs.items()):
        if not isinstance(part, np.ndarray):
            raise WorkerError(
                f"the policy returned a {type(part).__name__} for {what} of {_describe(traces)}; expected a NumPy array"
            )
        if part.dtype.kind not in "iuf" and (part is chunk.actions or part is chunk.log_prob):
            raise WorkerError(
                f"the policy returned {what} of type {part.dtype} for {_describe(traces)}; expected numbers"
            )


def _require_shapes(chunk: ActionChunk, traces: Sequence[_Trace]) -> None:
    """Raise WorkerError, saying expected against got, unless the parts of a chunk fit together."""
    rows, terms = len(traces), chunk.log_prob.shape[1:]
    arrays = {"actions": chunk.actions, "log_prob": chunk.log_prob, "sample": chunk.sample}
    for kind, inputs in (("inputs", chunk.inputs), ("rollout_inputs", chunk.rollout_inputs)):
        arrays |= {f"{kind}[{name!r}]": array for name, array in inputs.items()}
    for what, array in arrays.items():
        more = {"actions": ["H", "A"], "log_prob": ["K"]}.get(what)
        if array.shape[:1] != (rows,) or (more is not None and (array.ndim != 1 + len(more) or not array.size)):
            expected = ", ".join([str(rows), *(more or ["..."])])
            raise WorkerError(
                f"the policy returned {what} of shape {array.shape} for {_describe(traces)}; expected [{expected}]"
            )
    if both := chunk.inputs.keys() & chunk.rollout_inputs.keys():
        raise WorkerError(f"the policy returned {', '.join(map(repr, both))} both in inputs and in rollout_inputs")
    if chunk.sample.dtype.kind not in _NUMBERS:
        raise WorkerError(f"the policy returned a sample of type {chunk.sample.dtype}; expected numbers")
    steps = chunk.term_steps
    if steps is not None and (steps.dtype.kind not in "iu" or steps.shape not in (terms, (rows, *terms))):
        raise WorkerError(
            f"the policy returned term_steps of {steps.dtype} {steps.shape}; expected whole numbers {[*terms]} or "
            f"{[rows, *terms]}: for each term the first step of the chunk that it shaped"
        )
    if steps is not None and not ((steps.min(-1) == 0).all() and steps.max() <= chunk.actions.shape[1]):
        raise WorkerError(
            f"the policy returned term_steps from {steps.min()} to {steps.max()}; expected steps of the chunk's "
            f"{chunk.actions.shape[1]} actions, counted from 0, of which some term shapes the first "
            f"({chunk.actions.shape[1]}: a term that shapes none)"
        )


_NUMBERS = "biufc"
"""Kinds of numpy types that are numbers."""


def _unlike(trace: _Trace, chunk: ActionChunk) -> str:
    """The first part of a decision that has another shape than in the first one, in words; empty when none has."""
    first = {"sample": trace.sample[0], "log_prob": trace.log_prob[0], **trace.inputs[0]}
    now = {"sample": chunk.sample, "log_prob": chunk.log_prob, **chunk.inputs}
    for what in (*first, *now):
        have, had = (x[what].shape if what in x else () for x in (now, first))
        if what not in now or what not in first or have[1:] != had:
            there, was = (f"of shape {shape}" if what in x else "none" for shape, x in ((have[1:], now), (had, first)))
            return f"{what} {there} in decision {trace.decisions}, and {was}"
    return ""


def _changed(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], row: int) -> str:
    """Which rollout inputs are others than before; empty when none is."""
    differ = [name for name in before if name not in now or not np.array_equal(before[name], now[name][row])]
    return ", ".join(map(repr, [*differ, *(name for name in now if name not in before)]))


def _require_finite(what: str, array: np.ndarray, traces: Sequence[_Trace]) -> None:
    """Raise NotFiniteError, with the address of the first bad row, unless all rows `[B, ...]` are finite.

    Scores of NaN may decode to actions that look well: an argmax of NaN is an index like any other.
    """
    finite = np.isfinite(array)
    if finite.all():
        return
    bad = [trace for trace, good in zip(traces, finite, strict=True) if not good.all()]
    first = bad[0]
    where = f", {first.where}" if first.where else ""
    raise NotFiniteError(
        f"the policy returned NaN or infinite {what} for {len(bad)} of {_describe(traces)}, first for "
        f"{_describe([first])}, decision {first.decisions + 1}{where}; its weights or its inputs are broken"
    )


def _take(observation: Observation, rows: Sequence[int]) -> Observation:
    if list(rows) == list(range(len(observation))):
        return observation
    index = np.asarray(rows)
    return Observation(
        images={name: image[index] for name, image in observation.images.items()},
        proprio=observation.proprio[index],
        instruction=tuple(observation.instruction[i] for i in rows),
    )


def _describe(traces: Sequence[_Trace]) -> str:
    tasks = sorted({trace.request.initial_state.task.key for trace in traces})
    named = ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
    if len(traces) == 1:
        request = traces[0].request
        return f"{named}, initial state {request.initial_state.id}, rollout {request.index}"
    return f"{len(traces)} observations of {named}"
