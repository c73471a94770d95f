"""The quickstart recipe on many targets: one demonstration each, one fixed recipe, a table in Markdown.

    python benchmarks/targets.py --out runs/targets                      # all targets, seed 0
    python benchmarks/targets.py --out runs/targets --seeds 1 2 --targets drawer-open-v3 window-open-v3 plate-slide-v3
    python benchmarks/targets.py --out runs/no-aux --policy.privileged=false --sft.threads=1

Any field of the recipe can be changed. Resumable: a row that is done is not run again, one that failed says why and
does not stop the others. The targets are `ript.config.recipes.TARGET_TASKS`; means are given without those that the
recipe was tuned on, too. Before and after are compared state by state; of a target with several seeds each is shown,
with intervals over seeds and states.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from ript.config import overrides
from ript.config.recipes import TARGET_TASKS, TUNED_ON
from ript.config.recipes import quickstart as recipe
from ript.config.sections import Config
from ript.core.errors import RiptError
from ript.core.intervals import align, difference, success, wilson
from ript.run.files import write_json
from ript.run.folder import RunFolder
from ript.run.progress import status
from ript.run.reading import read_rows
from ript.studies.quickstart import quickstart
from ript.studies.table import points


def run(target: str, seed: int, out: Path, config: Config) -> dict:
    """One row; its run folder is `out/TARGET-seedN`."""
    file = out / f"{target}-seed{seed}.json"
    if file.exists():
        return json.loads(file.read_text("utf-8"))
    folder = out / f"{target}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    try:
        result = quickstart(target, seed=seed, out=folder, config=config)
        with RunFolder.open(folder / "rl") as opened:
            evals = [row for row in opened.evals() if row["states"] == "test"]
        row = result.to_json() | {
            "evals": [{"iteration": e["iteration"], "mode": e["mode"], "total": e["eval"]["total"]} for e in evals]
        }
    except RiptError as error:
        row = {"target": target, "error": f"{type(error).__name__}: {error}"}
    row |= {"seed": seed, "minutes": (time.perf_counter() - began) / 60}
    write_json(file, row)
    return row


def cell(row: dict, before: bool, mode: str) -> str:
    """ "63 % (52-72)" of the first or last evaluation in a mode; the interval is over states, of that one policy."""
    totals = [e["total"] for e in row["evals"] if e["mode"].startswith(mode) and (e["iteration"] == 0) == before]
    if not totals:
        return "-"
    total = totals[-1]
    low, high = wilson(total["successes"], total["trials"])
    return f"{100 * total['successes'] / total['trials']:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def outcomes(rows: list[dict], mode: str = "greedy") -> tuple[np.ndarray, np.ndarray]:
    """Every state before and after, `[rows, states]` both, from the logs of these rows' runs."""
    sides: list[list] = [[], []]
    for row in rows:
        evals = read_rows(Path(row["policy"]).parent / "evals.jsonl")
        counted = [e["per_state"] for e in evals if e["states"] == "test" and e["mode"].startswith(mode)]
        sides[0].append(counted[0])
        sides[1].append(counted[-1])
    both = align([*sides[0], *sides[1]])
    return both[: len(rows)], both[len(rows) :]


def summary(rows: list[dict]) -> str:
    """Means over targets, with and without those that the recipe was tuned on; and targets with several seeds."""
    done = [row for row in rows if "error" not in row]
    lines = []
    for seed in sorted({row["seed"] for row in done}):
        mine = [row for row in done if row["seed"] == seed]
        for what, kept in (("all", mine), ("not tuned on", [r for r in mine if r["target"] not in TUNED_ON])):
            rates = np.array([[success(side).value for side in outcomes([row])] for row in kept])
            if len(rates) > 1:
                before, after = 100 * rates.mean(0)
                lines.append(
                    f"seed {seed}, mean of {len(rates)} targets ({what}), greedy: {before:.0f} -> {after:.0f} %"
                )
    for target in dict.fromkeys(row["target"] for row in done):
        mine = [row for row in done if row["target"] == target]
        if len(mine) > 1:
            before, after = outcomes(mine)
            was, now = (
                f"{100 * e.value:.0f} % ({', '.join(f'{100 * s:.0f}' for s in e.seeds)}; "
                f"{100 * e.low:.0f}-{100 * e.high:.0f})"
                for e in (success(before), success(after))
            )
            gain = points(difference(before, after))
            lines.append(f"{target}, over seeds and states, greedy: {was} -> {now}; gain {gain}")
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| target | seed | SFT greedy | SFT sampled | after RL greedy | after RL sampled "
        "| gain greedy, points | iterations | env-steps | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['target']} | {r['seed']} | {r['error']} | | | | | | | {r['minutes']:.1f} |")
            continue
        numbers = [cell(r, before, mode) for before in (True, False) for mode in ("greedy", "sampled")]
        cells = [
            r["target"],
            str(r["seed"]),
            *numbers,
            points(difference(*outcomes([r]))),
            str(r["iterations"]),
            f"{r['env_steps']:,}",
            f"{r['minutes']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(TARGET_TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args, changes = parser.parse_known_args()
    config = overrides.apply(recipe(), overrides.split_words(changes))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in args.seeds:
        for target in args.targets:
            rows.append(run(target, seed, args.out, config))
            status(table(rows[-1:]))
    print(f"{table(rows)}\n\n{summary(rows)}")


if __name__ == "__main__":
    main()
