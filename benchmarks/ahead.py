"""What `rollout.lag = 1` gains where simulators and learner share nothing: both wait instead of computing.

A chunk of the toy's simulators takes `--chunk` seconds, an update as long as makes it `--share` of an iteration.

python benchmarks/ahead.py --share 0.27
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from waiting import Waiting

from ript import build
from ript.config.recipes import smoke
from ript.config.sections import Config
from ript.core.options import replace
from ript.rl import train_rl
from ript.run.files import read_lines


def seconds_of(config: Config, update: float) -> tuple[float, float]:
    """Seconds of an iteration, and of collecting its rollouts, in the mean over all but the first two iterations."""
    learn = build.update

    def waiting(*args: Any, **settings: Any) -> Any:
        result = learn(*args, **settings)
        time.sleep(update)
        return result

    build.update = waiting
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = train_rl(config, None, f"{folder}/run")
            rows = list(read_lines(done.folder / "metrics.jsonl"))[2:]
    finally:
        build.update = learn
    return (sum(r["time/total"] for r in rows) / len(rows), sum(r["time/collect"] for r in rows) / len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.27, help="of the update in an iteration of lag 0")
    parser.add_argument("--chunk", type=float, default=0.02, help="seconds")
    parser.add_argument("--iterations", type=int, default=8)
    args = parser.parse_args()
    make = build.simulator_factory
    build.simulator_factory = lambda sim: Waiting(make(sim), args.chunk)
    base = smoke()
    config = replace(
        base,
        iterations=args.iterations,
        rollout=replace(base.rollout, workers=1, slots=16, fixed_batch=16),
        sampling=replace(base.sampling, dynamic=False, groups=6, group_size=8),
        eval=replace(base.eval, every=0, trials=4, videos=0),
    )
    _, rollouts = seconds_of(replace(config, iterations=4), 0.0)
    update = args.share / (1 - args.share) * rollouts
    print(f"rollouts {rollouts:.2f} s, update {update:.2f} s")
    found = {}
    for lag in (0, 1, 0, 1):
        seconds, _ = seconds_of(replace(config, rollout=replace(config.rollout, lag=lag)), update)
        found.setdefault(lag, []).append(seconds)
        print(f"lag {lag}: {seconds:.2f} s an iteration", flush=True)
    print(f"iterations an hour, lag 1 beside lag 0: {sum(found[0]) / sum(found[1]):.2f}")


if __name__ == "__main__":
    main()
