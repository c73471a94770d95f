"""Resident memory of one process that opens LIBERO's tasks one after another, as a worker does, torch included.

    python benchmarks/libero_memory.py                                # LIBERO-90, fast pictures
    python benchmarks/libero_memory.py --tasks libero_object --look faithful --image_size 256

Every task is reset, seen, stepped and seen again. Models are compiled beforehand where they are not yet, by another
process, since a process that compiles one keeps more.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["libero_90"])
    parser.add_argument("--look", default="fast", choices=["fast", "faithful"])
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--loaded_tasks", type=int, default=16, help="as --rollout.loaded_tasks")
    parser.add_argument("--compile_only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.compile_only:
        subprocess.run([sys.executable, *sys.argv, "--compile_only"], check=True, stdout=subprocess.DEVNULL)

    import torch  # noqa: F401  which every worker has loaded

    from ript.build import simulator_factory, task_keys
    from ript.core.simulators import SimulatorCache
    from ript.sims.libero.options import LiberoOptions

    sim = LiberoOptions(image_size=args.image_size, look=args.look)
    cache = SimulatorCache(simulator_factory(sim), limit=4, tasks=args.loaded_tasks)
    process, largest = psutil.Process(), 0
    print(f"before: {process.memory_info().rss / 2**20:.0f} MiB")
    keys = task_keys(sim, tuple(args.tasks))
    for number, key in enumerate(keys, start=1):
        simulator = cache.take(key)
        simulator.reset(simulator.initial_states(1, seed=0)[0])
        simulator.observe()
        simulator.step_chunk(np.zeros((4, 7), np.float32))
        simulator.observe()
        cache.release(simulator)
        largest = max(largest, now := process.memory_info().rss)
        if number in (1, len(keys)) or number % 10 == 0:
            print(f"after {number} tasks: {now / 2**20:.0f} MiB", flush=True)
    print(f"largest: {largest / 2**20:.0f} MiB")
    cache.close()


if __name__ == "__main__":
    main()
