"""Two policies where the world is not as it was in training, on the same states: a table in Markdown.

    python benchmarks/robustness.py --policies runs/one/sft/policy runs/one/rl/policy --out robustness.json \\
        --task libero_object/4 --noise 0.025 0.075 0.125 0.175 --also libero_object_swap/4 libero_object_object/4

Of the task, objects are moved by Gaussian noise of these standard deviations in metres; tasks named by --also are
measured as they are. Greedy, in this process. Resumable: what --out holds is not measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import ript
from ript.config.sections import RolloutConfig
from ript.core.errors import RiptError
from ript.core.intervals import align, difference, pairs, wilson
from ript.run.files import write_json
from ript.run.progress import status
from ript.studies.table import points


def measure(policy: str, task: str, noise: float, args: argparse.Namespace) -> dict[str, Any]:
    """What became of each state: {"states": [[id, status], ...]}, or {"error"}."""
    try:
        result = ript.evaluate(
            policy,
            [task],
            trials=args.trials,
            greedy=True,
            horizon=args.horizon,
            state_noise=noise,
            rollout=RolloutConfig(workers=0, slots=args.slots),
        )
    except RiptError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"states": result.per_state[next(iter(result.per_state))], "seconds": result.seconds}


def row(what: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    """A line of the table."""
    if problem := first.get("error") or second.get("error"):
        return f"| {what} | {problem} | | | |"
    before, after = align([{"": one["states"]} for one in (first, second)])
    counts = pairs(before, after)
    sides = []
    for side in (before, after):
        successes, trials = int(np.nansum(side)), int(np.isfinite(side).sum())
        low, high = wilson(successes, trials)
        sides.append(
            f"{100 * successes / max(1, trials):.0f} % ({successes}/{trials}, {100 * low:.0f}-{100 * high:.0f})"
        )
    gain = points(difference(before[None], after[None]))
    return f"| {what} | {' | '.join(sides)} | {gain} | {counts.gained}, {counts.lost} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--policies", nargs=2, required=True, metavar="DIR", help="before and after")
    parser.add_argument("--task", required=True)
    parser.add_argument("--noise", nargs="*", type=float, default=[0.025, 0.075, 0.125, 0.175], metavar="METRES")
    parser.add_argument("--also", nargs="*", default=[], metavar="TASK")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--horizon", type=int, default=None, help="steps (default: the policy's)")
    parser.add_argument("--slots", type=int, default=16, help="rollouts at a time")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = {"policies": args.policies, "trials": args.trials, "horizon": args.horizon}
    done = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {"asked": asked, "found": {}}
    if done["asked"] != asked:
        parser.error(f"{args.out} holds other measurements ({done['asked']}): choose another --out")
    lines = ["| | before | after | change, points | gained, lost |", "|---|---|---|---|---|"]
    conditions = [(f"{args.task}, {100 * noise:g} cm", args.task, noise) for noise in args.noise]
    for what, task, noise in [*conditions, *((task, task, 0.0) for task in args.also)]:
        found = done["found"].setdefault(what, [None, None])
        for side, policy in enumerate(args.policies):
            if found[side] is None:
                found[side] = measure(policy, task, noise, args)
                write_json(args.out, done)
        lines.append(row(what, *found))
        status(lines[-1])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
