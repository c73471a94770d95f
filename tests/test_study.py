"""Studies: their definitions, and the runner on a study of the toy simulator."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import Stopped, stop_in, toy_config

from ript import studies
from ript.cli import main
from ript.errors import ConfigError, DependencyMissing, NoSignalError, RunError, UnknownNameError
from ript.studies import ML45_TEST, ML45_TRAIN, STUDIES, Cell, Scale, Study, get_study
from ript.study import cell_folder, cost, run_study
from ript.train_rl import train_rl

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
        name="toy", question="Does it run?", expected="yes", cells=cells, seeds=(0, 1), needs="toy", shrunk=("all",)
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
    assert bool(study.shrunk) == (scale == "small") and bool(study.differs) == (scale == "paper")
    assert all(cell.config.tasks and cell.config.pretrain_tasks for cell in study.cells)
    if scale == "small":
        for s in (cell.config.sampling for cell in study.cells):  # what is said of the study holds for every cell
            rollouts, tried = s.groups * s.group_size, s.max_attempts * s.group_size
            assert f"{rollouts} rollouts in groups with a signal, out of at most {tried};" in study.shrunk[2]
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
    c = study.cells[-1].config
    many = name.startswith("libero") or name in ("metaworld_ml45", "dynamic_sampling")
    one = name.startswith("cross")
    assert c.iterations == (30 if many else 15)
    assert c.sampling.groups * c.sampling.group_size == 16 * (180 if many else 10 if one else 50)
    assert c.sft.policy_epochs == (
        200 if name in {f"libero_{s}" for s in ("goal", "spatial", "object", "long")} or one else 20
    )


def test_no_two_cells_of_a_study_or_of_libero_are_the_same() -> None:
    for scale in ("small", "paper"):
        configs = [replace(cell.config, recipe="") for name in STUDIES if STUDIES[name](scale).needs == "libero"
                   for cell in STUDIES[name](scale).cells]  # fmt: skip
        assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_the_held_out_tasks_are_those_of_ml45() -> None:
    held_out = ("box-close", "disassemble", "hand-insert", "pick-place-wall", "stick-pull")
    assert tuple(f"{name}-v3" for name in held_out) == ML45_TEST
    assert not set(ML45_TEST) & set(ML45_TRAIN) and len(ML45_TRAIN) == 45


def test_cells_differ_in_what_the_study_is_about() -> None:
    assert [c.config.demos.target for c in studies.demos("small").cells] == [1, 3, 5, 10]
    assert [c.config.sampling.contexts for c in studies.context_size("paper").cells] == [1, 5, 10, 25, 40]
    assert [c.config.sampling.context_noise for c in studies.context_noise("small").cells] == [
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
    assert not found["failed"] and found["shrunk"] == ["all"]
    table = Path(found["table"]).read_text()
    assert "| 2 groups | 0, 1 |" in table and "| 5 % | 97.2 % |" in table and "/8, " in table
    assert "Does it run?" in Path(found["report"]).read_text()
    fine_tuned = sorted((tmp_path / "out").glob("sft-*.hdf5"))
    assert len(fine_tuned) == 2  # one a seed: the cells share it, and "seen" needs none
    with pytest.raises(RunError, match="holds this study already: go on with --resume"):
        run_study(study, tmp_path / "out")


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
        (NoSignalError("every rollout failed"), "ript.errors.NoSignalError: every rollout failed"),
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
    monkeypatch.setattr("ript.study.train_rl", broken)
    found = run_study(study, out, seeds=[0])
    assert found["failed"] == {"2-groups-seed0": why}
    assert [row["cell"] for row in found["rows"]] == ["3 groups", "seen"]
    monkeypatch.undo()
    monkeypatch.setitem(STUDIES, "toy", toy_study)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    again = run_study(study, out, seeds=[0], resume=True)
    assert not again["failed"] and len(again["rows"]) == 3


def test_a_field_changes_in_every_cell_and_the_table_says_so(study: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_study(study, out, seeds=[0], changes={"iterations": ["2"]})
    assert [row["iterations"] for row in found["rows"]] == [2, 2, 2]
    assert "- Changed: iterations = 2." in (out / "table.md").read_text()
    with pytest.raises(RunError, match="another study"):
        run_study(study, out, seeds=[0], changes={"iterations": ["3"]}, resume=True)
    with pytest.raises(UnknownNameError, match="did you mean iterations"):
        run_study(study, tmp_path / "new", changes={"iteration": ["3"]})
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_left_alone(study: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        run_study(study, tmp_path / "mine")
    with pytest.raises(RunError, match="holds no study"):
        run_study(study, tmp_path / "new", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text(
        json.dumps({"study": "demos", "scale": "small", "seeds": [0], "changes": {}})
    )
    with pytest.raises(RunError, match=r"holds another study \(study demos, scale small, seeds \[0\]\)"):
        run_study(study, tmp_path / "other", resume=True)


def test_a_study_of_a_simulator_that_is_not_here_says_so(tmp_path: Path) -> None:
    with pytest.raises(DependencyMissing, match="libero_goal needs the simulator suite 'libero'"):
        run_study("libero_goal", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_cost_is_an_upper_bound_by_the_speed_here(study: str) -> None:
    expense = cost(get_study(study), [0, 1])
    practice = (2 + 3 + 2) * 4
    assert expense.cells == 6 and expense.rollouts == 2 * (practice + 3 * 4 * 4)
    assert expense.env_steps == 16 * expense.rollouts and expense.env_steps_per_second > 0
    assert expense.hours == pytest.approx(expense.env_steps / expense.env_steps_per_second / 3600)
    assert expense.machines_for_a_day == pytest.approx(expense.hours / 24)
    assert "at most a day on 1 machine like this" in expense.text(get_study(study))
    assert "on 3 machines like this" in replace(expense, machines_for_a_day=2.1).text(get_study(study))


def test_the_command_lists_and_estimates_without_running(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    assert main(["study", study, "--dry-run", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 6 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that is done, with its cache beside it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "toy", toy_study)
        patch.setenv("RIPT_CACHE", str(folder / "cache"))
        run_study("toy", folder / "out", seeds=[0])
    return folder


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: shutil.rmtree(run / "policy"), "no policy folder at"),
        (lambda run: (run / "result.json").write_text("{"), "result.json is not a readable JSON"),
        (lambda run: (run / "evals.jsonl").unlink(), "lacks the evaluation before or after"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing or empty"),
        (lambda run: (run / "config.json").unlink(), "config.json"),
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


def test_seeds_are_added_to_a_study_and_results_merge(study: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    shutil.rmtree(out / "2-groups-seed0")  # what is not there is run again
    both = run_study(study, out, seeds=[1], resume=True)
    assert [row["seed"] for row in both["rows"]] == [0] * 3 + [1] * 3 and not both["failed"]
    assert both["seeds"] == [0, 1] and "/8, " in (out / "table.md").read_text()
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
