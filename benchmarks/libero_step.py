"""LIBERO's control step beside the physics alone and the stock environment: in one process, in turn, without pictures.

    python benchmarks/libero_step.py
    python benchmarks/libero_step.py --tasks libero_spatial/0 libero_10/2 --steps 100 --rounds 5

Every task's human demonstration is executed `rounds` times by each; of a step the smallest time counts, of the steps
the mean. Time is this thread's own, so that other programs count less. "raw" is 25 `mj_step` from the same states. A
reset is timed of a state that settled before, as all but the first rollout of a group begin, and of a new one, which
takes five steps to settle.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

COLUMNS = ("raw", "exact", "inexact", "stock", "reset", "reset, new")


def timed(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - begin)


def measure(name: str, steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds."""
    import mujoco

    from ript.sims.libero.human import human_demonstration
    from ript.sims.libero.simulator import LiberoSimulator

    actions = human_demonstration(name).actions[:steps]
    exact, inexact = (LiberoSimulator(name, physics=physics) for physics in ("exact", "inexact"))
    state = exact.states.human()
    model, data = exact.parts.model, exact.physics.data
    raw, kind = mujoco.MjData(model), mujoco.mjtState.mjSTATE_INTEGRATION
    buffer = np.empty(mujoco.mj_stateSize(model, kind))
    stock = None
    found: dict[str, list[list[float]]] = {column: [] for column in COLUMNS}

    def ours(simulator: LiberoSimulator) -> Iterator[float]:
        simulator.set_state(state)
        for action in actions:
            yield timed(partial(simulator.physics.step, action))

    def alone() -> Iterator[float]:
        exact.set_state(state)
        for action in actions:
            mujoco.mj_getState(model, data, buffer, kind)
            mujoco.mj_setState(model, raw, buffer, kind)
            yield timed(partial(mujoco.mj_step, model, raw, 25))
            exact.physics.step(action)

    for number in range(rounds):
        found["raw"].append(list(alone()))
        found["exact"].append(list(ours(exact)))
        found["inexact"].append(list(ours(inexact)))
        stock = exact.stock_episode(state, None if stock is None else stock.env)
        execute = stock.env.step
        found["stock"].append([timed(partial(execute, action)) for action in actions])
        found["reset"].append([timed(partial(exact.set_state, state)) for _ in range(20)])
        new = exact.initial_states(5, seed=number)
        found["reset, new"].append([timed(partial(exact.set_state, one)) for one in new])
    exact.close()
    inexact.close()
    return {column: float(np.min(times, axis=0).mean()) for column, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = ["libero_spatial/0", "libero_object/0", "libero_goal/7", "libero_10/9", "libero_90/73"]
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = {}
    for name in args.tasks:
        results[name] = measure(name, args.steps, args.rounds)
        gc.collect()
        if not args.json:
            line = "  ".join(f"{column} {ms:6.2f}" for column, ms in results[name].items())
            ratios = {k: results[name][k] / results[name]["raw"] for k in ("exact", "inexact", "stock")}
            print(f"{name:18} {line}   of raw: " + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()), flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
