"""A Gymnasium environment as slots of a worker, beside stock instances of it, in one process one after the other.

    python benchmarks/gymnasium_slots.py
    python benchmarks/gymnasium_slots.py --id FetchPush-v4 --slots 48 --rounds 10 --execute 4

Slots take turns as a worker lets them: a look, then a chunk of actions. Stock instances do the same: `render()` of the
same size, then as many `step`s. Ours is timed twice: with meshes as boxes, and as they are, which is what stock draws.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings

import numpy as np
import psutil

MIB = 2**20
COLUMNS = ("", "first", "each other", "memory, each", "env steps/s, no pictures", "with a look a chunk", "a look")


def resident() -> float:
    return psutil.Process().memory_info().rss / MIB


def plans(args: argparse.Namespace, dim: int) -> np.ndarray:
    """Random actions in [-1, 1] `[rounds, slots, execute, dim]`."""
    shape = (args.rounds, args.slots, args.execute, dim)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def ours(args: argparse.Namespace, meshes: str) -> None:
    from ript.sims.registry import make_simulator

    settings = {"image_size": args.size, "meshes": meshes, "horizon": 10**6}
    begin = time.perf_counter()
    slots = [make_simulator(f"gym/{args.id}", **settings)]
    slots[0].reset(slots[0].initial_states(1)[0])
    first, states = time.perf_counter() - begin, slots[0].initial_states(args.slots)
    opened, before = time.perf_counter(), resident()
    for state in states[1:]:
        slots.append(make_simulator(f"gym/{args.id}", **settings))
        slots[-1].reset(state)
    filled, after = time.perf_counter(), resident()

    def run(look: bool) -> tuple[float, int]:
        began, steps = time.perf_counter(), 0
        for chunk in plans(args, slots[0].spec.action_dim):
            for number, (slot, actions) in enumerate(zip(slots, chunk, strict=True)):
                if look:
                    slot.observe()
                result = slot.step_chunk(actions)
                steps += result.env_steps
                if result.done:
                    slot.reset(states[number])
        return time.perf_counter() - began, steps

    report(f"ours, {meshes}", args, (first, filled - opened, after - before), run)


def stock(args: argparse.Namespace) -> None:
    from ript.sims.gym.environment import find_spec, import_gymnasium

    gymnasium, size = import_gymnasium(), {"width": args.size, "height": args.size}
    find_spec(args.id)  # registers it
    warnings.simplefilter("ignore")

    def opened_one(number: int):
        env = gymnasium.make(args.id, render_mode="rgb_array", max_episode_steps=-1, **size)
        env.reset(seed=number)
        env.render()
        return env

    begin = time.perf_counter()
    slots = [opened_one(0)]
    opened, before = time.perf_counter(), resident()
    slots += [opened_one(number) for number in range(1, args.slots)]
    filled, after = time.perf_counter(), resident()

    def run(look: bool) -> tuple[float, int]:
        began, steps = time.perf_counter(), 0
        for chunk in plans(args, slots[0].action_space.shape[0]):
            for env, actions in zip(slots, chunk, strict=True):
                if look:
                    env.render()
                for action in actions:
                    env.step(action)
                    steps += 1
        return time.perf_counter() - began, steps

    report("stock", args, (opened - begin, filled - opened, after - before), run)


def report(name: str, args: argparse.Namespace, opened: tuple[float, float, float], run) -> None:
    first, others, memory = opened
    blind, blind_steps = run(False)
    seeing, seeing_steps = run(True)
    looks = args.rounds * args.slots
    look = (seeing - blind * seeing_steps / blind_steps) / looks
    cells = (
        name,
        f"{first:.2f} s",
        f"{others / (args.slots - 1) * 1e3:.1f} ms",
        f"{memory / (args.slots - 1):.2f} MiB",
        f"{blind_steps / blind:.0f}",
        f"{seeing_steps / seeing:.0f}",
        f"{look * 1e3:.2f} ms",
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", default="FetchReach-v4")
    parser.add_argument("--slots", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--execute", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    print(f"{args.id}, {args.slots} slots, pictures of {args.size} pixels, a look every {args.execute} steps\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for target, words in ((stock, ()), (ours, ("mesh",)), (ours, ("boxes",))):  # each in a process of its own
        process = multiprocessing.get_context("spawn").Process(target=target, args=(args, *words))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
