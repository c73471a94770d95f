"""Memory of an update beside the rollout records that it learns from, for everything that post-training may train.

    python benchmarks/memory.py
    python benchmarks/memory.py --size paper --groups 40 --trained prior prior+adapter
    python benchmarks/memory.py --kind gaussian

Records are made from an act of the real policy, as the recorder lays them out; every rollout has memory of its own.
Then one epoch of the real update is run on them. Columns: bytes of a decision; the records, counted, and as the
growth of the resident set; the largest resident set during the update above what there was before the records, less
what an update of a single minibatch takes (weights, gradients, activations); and that in records: 1 is no copy of
anything, 2 a second copy. Each row is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ript.config.sections import policy_options
from ript.core.registry import kinds
from ript.core.types import ActionChunk, Group, InitialState, Observation, Rollout, SimulatorSpec, Status, Task
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update
from ript.policies.quest.specimens import random_look, random_policy

MIB = 2**20
M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
TRAINED = {"quest": ("prior", "prior+adapter", "prior+encoders"), "gaussian": ("head", "all")}
"""Kind of policy -> what post-training may update."""


def resident(what: str = "VmRSS") -> float:
    """MiB of this process, now or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def settle() -> None:
    """Give back what is free, and forget how large the process was."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")


def record(chunk: ActionChunk, decisions: int, index: int) -> Rollout:
    """A rollout of that many decisions."""

    def rows(array: np.ndarray) -> np.ndarray:
        return np.repeat(array[:1], decisions, axis=0)

    return Rollout(
        initial_state_id="synthetic",
        index=index,
        status=Status.SUCCESS if index % 2 else Status.FAILURE,
        decisions=decisions,
        env_steps=decisions,
        policy_version=0,
        sample=rows(chunk.sample),
        log_prob=rows(chunk.log_prob),
        mask=np.ones((decisions, chunk.log_prob.shape[1]), bool),
        inputs={name: rows(array) for name, array in chunk.inputs.items()},
        rollout_inputs={name: array[0].copy() for name, array in chunk.rollout_inputs.items()},
    )


def decision_bytes(rollout: Rollout) -> float:
    """Of a rollout's records."""
    arrays = [rollout.sample, rollout.log_prob, rollout.mask, *(rollout.inputs or {}).values()]
    once = sum(array.nbytes for array in (rollout.rollout_inputs or {}).values())
    return (once + sum(array.nbytes for array in arrays if array is not None)) / rollout.decisions


def made(chunk: ActionChunk, groups: int, size: int, decisions: int) -> list[Group]:
    task = Task(suite="none", name="none", instruction="", index=0, horizon=decisions)
    state = InitialState(task=task, state=np.zeros(1), origin="sampled")
    return [
        Group(initial_state=state, rollouts=tuple(record(chunk, decisions, i) for i in range(size)))
        for _ in range(groups)
    ]


def quest(size: str, trained: str) -> tuple[Any, ActionChunk]:
    """A random policy of that size, and an act of it."""
    policy = random_policy(size)
    look, generators = random_look(policy, 64), [np.random.default_rng(i) for i in range(64)]
    policy = policy.configured(rl_trains=trained)
    if trained == "prior+adapter":
        seen = policy.act(look, generators)
        inputs = {name: torch.from_numpy(array) for name, array in {**seen.inputs, **seen.rollout_inputs}.items()}
        policy = policy.with_adapter(inputs)
    return policy, policy.act(look, generators)


def gaussian(size: str, trained: str) -> tuple[Any, ActionChunk]:
    """A random policy that sees two cameras of 64 pixels, and an act of it; there is one size."""
    cameras = {"front": (64, 64), "side": (64, 64)}
    spec = SimulatorSpec(suite="random", cameras=cameras, proprio={"proprio": 8}, action_dim=4, render={})
    kind = kinds.get("gaussian")
    policy = kind.make(policy_options("gaussian", rl_trains=trained), spec, 0, None)
    kind.prepare_untrained(policy, 0)
    rng = np.random.default_rng(0)
    look = Observation(
        images={name: rng.integers(0, 256, (1, *side, 3), np.uint8) for name, side in cameras.items()},
        proprio=rng.normal(size=(1, 8)).astype(np.float32),
        instruction=("",),
    )
    return policy, policy.act(look, [rng])


def peak(policy: Any, optimiser: torch.optim.Optimizer, groups: list[Group], minibatch: int) -> float:
    """The largest resident set while the policy learns from the groups for an epoch, MiB."""
    settle()
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(groups)
    update(policy, optimiser, batch, epochs=1, generator=generator, minibatch_decisions=minibatch)
    return resident("VmHWM")


def measure(args: argparse.Namespace, trained: str) -> None:
    """Print a row."""
    torch.set_num_threads(1)
    # Large blocks go back to the system when they are freed: what is measured is in use, not kept for later.
    ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 128 * 1024)
    policy, chunk = {"quest": quest, "gaussian": gaussian}[args.kind](args.size, trained)
    decisions = math.ceil(args.steps / chunk.actions.shape[1])
    optimiser = make_optimiser(policy, learning_rate=0.0)  # weights that stay, as records of theirs do
    few = made(chunk, math.ceil(args.minibatch / (args.group_size * decisions)), args.group_size, decisions)
    peak(policy, optimiser, few, args.minibatch)  # once, so that all is there that stays
    settle()
    started = resident()
    alone = peak(policy, optimiser, few, args.minibatch) - started
    del few
    settle()
    started = resident()
    groups = made(chunk, args.groups, args.group_size, decisions)
    settle()
    records = resident() - started
    most = peak(policy, optimiser, groups, args.minibatch) - started - alone
    size = decision_bytes(groups[0].rollouts[0])
    counted = size * args.groups * args.group_size * decisions / MIB
    print(
        f"| {args.kind}, {args.size}, {trained} | {size:,.0f} | {counted:,.0f} MiB | {records:,.0f} MiB | "
        f"{most:,.0f} MiB | {most / records:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=TRAINED, default="quest")
    parser.add_argument("--size", default="small", help="of a QueST policy")
    parser.add_argument("--trained", nargs="+")
    parser.add_argument("--groups", type=int, default=180)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--minibatch", type=int, default=512, help="decisions of an optimiser step")
    args = parser.parse_args()
    if unknown := set(args.trained or ()) - set(TRAINED[args.kind]):
        parser.error(f"--trained {' '.join(unknown)}: {args.kind} has {', '.join(TRAINED[args.kind])}")
    print("| policy, what is trained | bytes a decision | records counted | records | update, at most | in records |")
    print("|---|---|---|---|---|---|", flush=True)
    for trained in args.trained or TRAINED[args.kind]:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(args, trained))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
