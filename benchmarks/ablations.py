"""What each ingredient is worth: the same policy, task and seeds, one ingredient changed, compared at equal env-steps.

    python benchmarks/ablations.py --policy runs/targets/drawer-open-v3-seed0/sft/policy --task drawer-open-v3 \
        --out runs/ablations --seeds 0 1

Any field of the recipe can be changed (`--learn.threads=1`). Resumable. Writes a run folder per cell and seed,
`report.html` with all of them overlaid, and prints a table. Success is read off the validation states (40, every 3
iterations) at the largest number of env-steps that every run reached.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ript.config import overrides
from ript.config.recipes import quickstart as recipe
from ript.config.recipes import with_tasks
from ript.config.sections import Config
from ript.core.intervals import over_seeds
from ript.core.options import replace
from ript.report.page import write_report
from ript.rl import train_rl
from ript.run.files import read_lines
from ript.run.progress import status

CELLS: dict[str, Callable[[Config], Config]] = {
    "full": lambda c: c,
    "no-dynamic-sampling": lambda c: replace(c, sampling=replace(c.sampling, dynamic=False)),
    "std-normalised": lambda c: replace(c, learn=replace(c.learn, normalise_std=True)),
    "no-adapter": lambda c: replace(c, policy=replace(c.policy, rl_trains="prior")),
    "fixed-horizon": lambda c: replace(c, sampling=replace(c.sampling, horizon_margin=0.0)),
    # The next two draw from the five likeliest tokens at temperature 1; they differ in the density that is optimised.
    "top5-exact": lambda c: replace(c, policy=replace(c.policy, top_k=5, temperature=1.0, entropy=0.0)),
    "top5-mismatch": lambda c: replace(
        c, policy=replace(c.policy, top_k=5, temperature=1.0, entropy=0.0, sampling="published")
    ),
}


def run(cell: str, seed: int, args: argparse.Namespace) -> Path:
    folder = args.out / f"{cell}-seed{seed}"
    if (folder / "result.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    config = replace(with_tasks(recipe(), (args.task,)), seed=seed, iterations=args.iterations, stop_at=1.0)
    config = replace(config, eval=replace(config.eval, every=3, trials=50, mode="sampled", videos=0))
    config = overrides.apply(config, overrides.split_words(args.changes))
    status(f"{cell}, seed {seed}")
    train_rl(CELLS[cell](config), args.policy, folder)
    return folder


def curve(folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """(env-steps, validation success, trials) of a run."""
    rows = [r for r in read_lines(folder / "evals.jsonl") if r["states"] == "validation"]
    totals = [r["eval"]["total"] for r in rows]
    return (
        np.array([r["env_steps"] for r in rows]),
        np.array([t["successes"] / t["trials"] for t in totals]),
        totals[0]["trials"],
    )


def table(folders: dict[str, list[Path]]) -> str:
    """Success at equal env-steps: each seed, and the mean with its interval over seeds and states.

    Beside it each seed's difference from the same seed of the first cell.
    """
    curves = {cell: [curve(folder) for folder in paths] for cell, paths in folders.items()}
    budget = min(steps[-1] for runs in curves.values() for steps, _, _ in runs)
    lines = [
        f"At {budget:,} env-steps:",
        "",
        "| cell | success, per seed | mean, interval over seeds and states | over the first cell, per seed |",
        "|---|---|---|---|",
    ]
    first: list[float] = []
    for cell, runs in curves.items():
        at = [float(np.interp(budget, steps, success)) for steps, success, _ in runs]
        found = over_seeds(at, min(trials for _, _, trials in runs))
        each = ", ".join(f"{100 * s:.0f} %" for s in at)
        over = ", ".join(f"{100 * (mine - theirs):+.0f}" for mine, theirs in zip(at, first, strict=False)) or "-"
        first = first or at
        lines.append(
            f"| {cell} | {each} | {100 * found.value:.0f} % ({100 * found.low:.0f}-{100 * found.high:.0f}) | {over} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--iterations", type=int, default=9)
    args, args.changes = parser.parse_known_args()
    folders: dict[str, list[Path]] = {}
    for seed in args.seeds:
        for cell in args.cells:
            folders.setdefault(cell, []).append(run(cell, seed, args))
    write_report([p for paths in folders.values() for p in paths], args.out / "report.html")
    text = table(folders)
    (args.out / "table.json").write_text(json.dumps({"table": text}), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
