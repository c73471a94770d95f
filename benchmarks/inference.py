"""Where should the policy act: a copy in each worker, or one batched server? Whole rollouts with random weights.

python benchmarks/inference.py --workers 2
python benchmarks/inference.py --workers 16 --device cuda --sizes small paper --rollouts 64
"""

from __future__ import annotations

import argparse

import torch

from ript.bench.rollout import measure_ours
from ript.build import computing, make_env_pool, make_policy, task_keys
from ript.config.recipes import quickstart
from ript.config.sections import Config
from ript.core.options import replace
from ript.run.states import InitialStates


def speed(config: Config, rollouts: int) -> tuple[float, dict[str, float]]:
    """(env-steps a second, shares of the workers' time)."""
    keys = task_keys(config.sim, config.tasks)
    with make_env_pool(config.sim, config.rollout) as pool:
        states = InitialStates(pool, keys, config.seed)
        policy = make_policy(config, states.spec)
        for key in keys:  # any embedding will do
            policy.remember(states.task(key).instruction, torch.zeros(policy.config.language_dim))
        done = measure_ours(config, policy.to(config.device), states, rollouts)
    return done.env_steps / done.seconds, done.split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="of the batched server: cpu or cuda")
    parser.add_argument("--sizes", nargs="+", default=["small"])
    args = parser.parse_args()
    with computing(args.device, threads=1):
        print("| policy | acts | env-steps/s | simulate | render | infer | wait |\n|---|---|---|---|---|---|---|")
        for size in args.sizes:
            for inference, device in (("local", "cpu"), ("central", args.device)):
                base = quickstart()
                config = replace(
                    base,
                    device=device,
                    policy=replace(base.policy, size=size, rl_trains="prior"),
                    rollout=replace(base.rollout, workers=args.workers, slots=args.slots, inference=inference),
                )
                found, split = speed(config, args.rollouts)
                shares = " | ".join(f"{100 * split[name]:.0f} %" for name in ("simulate", "render", "infer", "wait"))
                where = "in each worker" if inference == "local" else f"one server, {device}"
                print(f"| {size} | {where} | {found:,.0f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
