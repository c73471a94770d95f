"""A study's numbers beside the paper's: every seed, and intervals over seeds and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.core.intervals import Estimate, align, difference, measured_once, success
from ript.studies.catalogue import Cell, Study
from ript.studies.notes import finetunes


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one cell came to.

    Attributes:
        cell: name.
        seeds: in the order of the estimates' own.
        before, after: success.
        gain: after minus before, state by state and seed by seed.
        over_first: after minus that of the study's first cell, in the same way; None for the first cell, where
            that has no run, and for one that shares no state or seed with it.
        shared_seeds: those that `over_first` is over, which both cells have.
        counts: "before" and "after" -> (successes, trials) of each seed.
        env_steps: of practice, mean over seeds.
    """

    cell: str
    seeds: tuple[int, ...]
    before: Estimate
    after: Estimate
    gain: Estimate
    over_first: Estimate | None
    shared_seeds: tuple[int, ...]
    counts: Mapping[str, Sequence[tuple[int, int]]]
    env_steps: int

    def to_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("before", "after", "gain", "over_first")}
        told = {"cell": self.cell, "seeds": list(self.seeds), "shared_seeds": list(self.shared_seeds)}
        return (
            told
            | {"env_steps": self.env_steps}
            | {
                name: None if e is None else {"value": e.value, "interval": [e.low, e.high], "seeds": list(e.seeds)}
                for name, e in named.items()
            }
        )


def summarise(study: Study, runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each cell that has a run.

    Args:
        study: whose cells the runs are of.
        runs: one for each cell and seed: "cell", "seed", "env_steps", and for "before" and "after" the total, with the
            outcome on every state under "states".
    """
    of_cell = {
        cell.name: sorted((run for run in runs if run["cell"] == cell.name), key=lambda run: run["seed"])
        for cell in study.cells
    }
    first = study.cells[0]
    return [
        _row(cell, of_cell[cell.name], [] if cell is first else of_cell[first.name])
        for cell in study.cells
        if of_cell[cell.name]
    ]


def _row(cell: Cell, mine: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> Row:
    outcomes = align([run["states"][side] for side in ("before", "after") for run in mine])
    before, after = outcomes[: len(mine)], outcomes[len(mine) :]
    gain = difference(before, after)
    counts = {side: [(run[side]["successes"], run[side]["trials"]) for run in mine] for side in ("before", "after")}
    if not finetunes(cell.config):  # all seeds begin with the base itself, and end with it when there is no practice
        before = measured_once(before)
        after = after if cell.config.iterations else measured_once(after)
        counts = {"before": counts["before"][: len(before)], "after": counts["after"][: len(after)]}
    seeds = tuple(run["seed"] for run in mine)
    over = _over(first, mine) if first else None
    return Row(
        cell=cell.name,
        seeds=seeds,
        before=success(before),
        after=success(after),
        gain=gain,
        over_first=over,
        shared_seeds=tuple(run["seed"] for run in first if run["seed"] in seeds) if over else (),
        counts=counts,
        env_steps=sum(run["env_steps"] for run in mine) // len(mine),
    )


def _over(first: Sequence[Mapping[str, Any]], mine: Sequence[Mapping[str, Any]]) -> Estimate | None:
    """One cell's success minus that of another, over the seeds that both have."""
    theirs = {run["seed"]: run for run in first}
    shared = [(theirs[run["seed"]], run) for run in mine if run["seed"] in theirs]
    if not shared:
        return None
    outcomes = align([run["states"]["after"] for pair in shared for run in pair])
    found = difference(outcomes[::2], outcomes[1::2])
    return None if np.isnan(found.value) else found


COLUMNS = ("", "seeds", "SFT", "post-trained", "gain", "over the first row", "env-steps")


def study_table(study: Study, rows: Sequence[Row], failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The table of a study; see `write_report`.

    Args:
        study: whose cells the rows are of.
        rows: see `summarise`.
        failed: name of a run that has no result -> why.
    """
    by_name = {row.cell: row for row in rows}
    compared = len(study.cells) > 1
    body = []
    for cell in study.cells:
        row = by_name.get(cell.name)
        paper = ["-" if value is None else f"{value:g} %" for value in cell.paper]
        if row is None:
            body.append([cell.name, *["-"] * (5 + compared), *paper])
            continue
        body.append(
            [
                cell.name,
                ", ".join(map(str, row.seeds)),
                rate(row.before, row.counts["before"]),
                rate(row.after, row.counts["after"]),
                points(row.gain),
                *([_over_first(row)] if compared else []),
                f"{row.env_steps:,}",
                *paper,
            ]
        )
    columns = [column for column in COLUMNS if compared or column != "over the first row"]
    return {
        "title": study.question,
        "columns": [*columns, "paper: SFT", "paper: post-trained"],
        "rows": body,
        "notes": [
            *(
                f"Failed, and in no mean here: {name}: {why.partition('. ')[0].rstrip('.')}."
                for name, why in (failed or {}).items()
            ),
            *explained(rows),
            f"The paper: {study.expected}.",
            *(f"Shrunk: {what}." for what in study.shrunk),
            *(f"Differs: {what}." for what in study.differs),
            *(f"Changed: {what}." for what in study.changed),
        ],
    }


def _over_first(row: Row) -> str:
    """In points, with its seeds where they are fewer than the row's."""
    if row.over_first is None:
        return "-"
    fewer = row.shared_seeds != row.seeds
    seeds = f" of seed {' and '.join(map(str, row.shared_seeds))} alone" if fewer else ""
    return points(row.over_first) + seeds


def explained(rows: Sequence[Row]) -> list[str]:
    """What the numbers and intervals are, for as many seeds as there are."""
    seeds = sorted({len(row.seeds) for row in rows})
    if not seeds:
        return []
    notes = [
        "Success: mean over seeds (successes/trials of each seed; 95 % interval). Gains, in points, are differences on "
        "the same states, seed by seed (of each seed; 95 % interval)."
    ]
    if seeds[-1] > 1:
        notes.append(
            "Intervals of several seeds are over seeds and states. With two seeds their spread is hardly known: such "
            "an interval is wide unless the seeds agree."
        )
    if seeds[0] == 1:
        notes.append("Intervals of one seed are over states: another seed may differ by more than they say.")
    return notes


def rate(estimate: Estimate, counts: Sequence[tuple[int, int]]) -> str:
    """ "24 % (30/100, 17/100; 0-100)": mean over seeds, each seed, 95 % interval."""
    if not estimate.seeds:
        return "-"
    each = ", ".join(f"{successes}/{trials}" for successes, trials in counts)
    return f"{100 * estimate.value:.0f} % ({each}; {100 * estimate.low:.0f}-{100 * estimate.high:.0f})"


def points(estimate: Estimate) -> str:
    """ "+20 (+23, +16; -29 to +68)": points, mean over seeds, each seed, 95 % interval."""
    if not estimate.seeds:
        return "-"
    each = f"{', '.join(f'{100 * seed:+z.0f}' for seed in estimate.seeds)}; " if len(estimate.seeds) > 1 else ""
    return f"{100 * estimate.value:+z.0f} ({each}{100 * estimate.low:+z.0f} to {100 * estimate.high:+z.0f})"


def markdown(table: dict[str, Any]) -> str:
    lines = [f"**{table['title']}**", ""]
    lines += [f"| {' | '.join(row)} |" for row in (table["columns"], ["---"] * len(table["columns"]), *table["rows"])]
    return "\n".join([*lines, "", *(f"- {note}" for note in table["notes"]), ""])
