"""Memory of an iteration's rollout records, from an act of the real policy: 180 groups of 16 rollouts of 500 steps.

    python benchmarks/memory.py
    python benchmarks/memory.py --size small --groups 48 --steps 200

Bytes of a decision are counted from what `act` returns; the resident set is measured as records and then the update's
batch are made. Rollouts keep what the encoders made of frames, unless post-training trains the encoders
(`prior+encoders`, not measured here): then the frames themselves, 100 kB a decision at paper size.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing

import numpy as np
import psutil

from ript.bench.policy import _random_look, _random_policy
from ript.core.types import ActionChunk, Group, InitialState, Rollout, Status, Task
from ript.learn.batch import make_batch

MIB = 2**20


def resident() -> float:
    return psutil.Process().memory_info().rss / MIB


def record(chunk: ActionChunk, decisions: int, index: int) -> Rollout:
    """A rollout of that many decisions, each with its own memory as the engine's records have."""

    def rows(array: np.ndarray) -> np.ndarray:
        return np.repeat(array[:1], decisions, axis=0)

    sample = rows(chunk.sample)
    return Rollout(
        initial_state_id="synthetic",
        index=index,
        status=Status.SUCCESS if index % 2 else Status.FAILURE,
        sample=sample,
        log_prob=rows(chunk.log_prob),
        mask=np.ones(sample.shape, bool),
        inputs={name: rows(array) for name, array in chunk.inputs.items()},
        decisions=decisions,
        env_steps=decisions,
        policy_version=0,
    )


def measure(args: argparse.Namespace, trained: str) -> None:
    """Print a row."""
    policy = _random_policy(args.size).configured(rl_trains=trained)
    chunk = policy.act(_random_look(policy, 2), [np.random.default_rng(i) for i in range(2)])
    decisions = math.ceil(args.steps / policy.config.execute)
    one = record(chunk, 1, 0)
    arrays = [one.sample, one.log_prob, one.mask, *(one.inputs or {}).values()]
    size = sum(array.nbytes for array in arrays if array is not None)
    task = Task(suite="none", name="none", instruction="", index=0, horizon=args.steps)
    state = InitialState(task=task, state=np.zeros(1), origin="synthetic")
    before = resident()
    groups = [
        Group(initial_state=state, rollouts=tuple(record(chunk, decisions, i) for i in range(args.group_size)))
        for _ in range(args.groups)
    ]
    records = resident() - before
    batch = make_batch(groups)
    both = resident() - before
    assert len(batch) == args.groups * args.group_size * decisions
    counted = size * len(batch) / MIB
    print(f"| {trained} | {size:,} | {counted:,.0f} MiB | {records:,.0f} MiB | {both:,.0f} MiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="paper")
    parser.add_argument("--groups", type=int, default=180)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    print("| post-training updates | bytes a decision | records counted | records | with the update's batch |")
    print("|---|---|---|---|---|", flush=True)
    for trained in ("prior", "prior+adapter"):  # each in a process of its own: freed memory would be used again
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(args, trained))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
