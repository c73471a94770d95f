"""From nothing to a post-trained policy and a report, on the toy simulator."""

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from toy_runs import Stopped, stop_in, toy_config, weights

from ript.config.sections import Config
from ript.core.errors import ConfigError, DataError, DependencyMissing, PolicyError, RunError, UnknownNameError
from ript.core.files import make_folder
from ript.core.options import replace
from ript.core.places import cache_folder
from ript.demos.demo_set import open_demos
from ript.policies import language_files
from ript.policies.language_files import CLIP_FOLDER
from ript.policies.loading import load_policy
from ript.run.files import write_json
from ript.run.lock import locked
from ript.run.reading import read_config
from ript.studies.bases import base_fingerprint, base_folder, make_base
from ript.studies.quickstart import QuickstartResult, _Quickstart, output_folder, quickstart

CONFIG = toy_config(
    iterations=2,
    pretrain_tasks=("reach-left", "reach-corner"),
    policy={"privileged": True},
    sft={"autoencoder_steps": 10, "policy_steps": 10, "finetune_steps": 5, "autoencoder_batch": 16},
    sampling={"groups": 2, "max_attempts": 8, "group_size": 8},
    eval={"trials": 4, "every": 0, "videos": 1, "mode": "greedy"},
)


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> pytest.MonkeyPatch:
    """The module's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


@pytest.fixture(scope="module")
def first(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuickstartResult, Path]:
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    return quickstart(config=CONFIG, out=folder, seed=3), folder


def base() -> Path:
    (folder,) = cache_folder().glob("base-*")
    return folder


def test_one_that_was_refused_before_it_made_anything_leaves_the_folder_to_another(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped

    out = tmp_path / "out"
    with pytest.raises(
        ConfigError, match="has no task besides its targets to pre-train the base on: give --pretrain_tasks"
    ):
        quickstart(config=replace(CONFIG, pretrain_tasks=()), out=out)
    far = replace(CONFIG, sampling=replace(CONFIG.sampling, horizon=99))
    with pytest.raises(ConfigError, match="horizon = 99 has no effect: episodes end after 16 steps"):
        quickstart(config=far, out=out)
    human = replace(CONFIG, demos=replace(CONFIG.demos, target_source="human"))
    with pytest.raises(ConfigError, match=r"demos\.target_source = human: suite toy has none"):
        quickstart(config=human, out=out)
    assert not out.exists() and not list(cache_folder().glob("base-*"))
    with patch.context() as broken:
        broken.setattr(_Quickstart, "demonstrations", stopped)
        with pytest.raises(Stopped):
            quickstart(config=CONFIG, out=out, seed=4)
    assert json.loads((out / "quickstart.json").read_text())["config"]["seed"] == 4
    other = replace(CONFIG, seed=5)
    assert output_folder(other, False, out) == out
    with patch.context() as broken:
        broken.setattr(_Quickstart, "practice", stopped)
        with pytest.raises(Stopped):
            quickstart(config=other, out=out)
    assert json.loads((out / "quickstart.json").read_text())["config"]["seed"] == 5
    with pytest.raises(RunError, match="an interrupted quickstart with other settings"):
        output_folder(CONFIG, False, out)


def test_it_leaves_a_policy_a_report_and_everything_in_between(first: tuple[QuickstartResult, Path]) -> None:
    result, folder = first
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["quickstart.json", "report.html", "rl", "sft", "target.hdf5"]
    assert sorted(path.name for path in base().iterdir() if not path.name.startswith(".")) == ["demos.hdf5", "sft"]
    policy = load_policy(result.to_json()["policy"])
    assert policy == load_policy(folder / "rl" / "policy") != load_policy(folder / "sft" / "policy")
    assert {"supervised training", "interactive post-training"} <= policy.card.keys()
    html = (folder / "report.html").read_text()
    assert "reach-centre" in html and html.count("<video") == 2
    shown = open_demos([folder / "target.hdf5"])
    assert [task.name for task in shown.tasks] == ["reach-centre"] and len(shown) == 1
    pretrained = open_demos([base() / "demos.hdf5"])
    assert [task.name for task in pretrained.tasks] == ["reach-left", "reach-corner"] and len(pretrained) == 4


def test_its_document_is_the_documented_one(first: tuple[QuickstartResult, Path]) -> None:
    result, folder = first
    document = json.loads(json.dumps(result.to_json()))
    assert list(document) == [
        "target",
        "sft",
        "rl",
        "change",
        "iterations",
        "rollouts",
        "env_steps",
        "seconds",
        "policy",
        "report",
    ]
    assert document["target"] == "reach-centre" and document["iterations"] == 2
    for stage in ("sft", "rl"):
        evaluation = document[stage]
        assert list(evaluation) == ["policy", "seed", "mode", "horizon", "state_noise", "tasks", "total", "reasons"]
        assert evaluation["mode"] == "greedy" and evaluation["horizon"] == {"reach-centre": 16}
        assert list(evaluation["tasks"]) == ["reach-centre"] and evaluation["total"]["trials"] == 4
    assert document["rollouts"] == 8 * sum(
        json.loads(line)["rollout/attempted"] for line in (folder / "rl" / "metrics.jsonl").read_text().splitlines()
    )
    assert document["env_steps"] >= document["rollouts"]
    stages = [
        "demonstrations",
        "pre-training",
        "fine-tuning",
        "evaluate before",
        "post-train",
        "evaluate after",
        "report",
    ]
    assert list(document["seconds"]) == stages and all(s >= 0 for s in document["seconds"].values())
    assert Path(document["policy"]).is_dir() and Path(document["report"]).is_file()


def test_practice_is_longer_than_the_recipe_says_where_a_demonstration_is(
    first: tuple[QuickstartResult, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = open_demos([first[1] / "target.hdf5"]).info()["tasks"]["toy/reach-centre"]["steps"]["max"]
    for horizon in (2, longest + 1):
        config = replace(CONFIG, iterations=0, sampling=replace(CONFIG.sampling, horizon=horizon))
        folder = tmp_path / str(horizon)
        quickstart(config=config, out=folder, seed=3)
        held = read_config(folder / "rl")["config"]["recipe_config"]["sampling"]["horizon"]
        assert held == (min(16, math.ceil(1.5 * longest)) if horizon == 2 else horizon)
        told = f"instead of 2: a demonstration took {longest}" in capsys.readouterr().err
        assert told == (horizon == 2)


def test_the_base_is_cached_between_targets_and_seeds_and_not_touched(
    first: tuple[QuickstartResult, Path], tmp_path: Path
) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in base().rglob("*") if path.is_file()}
    result = quickstart("reach", config=replace(CONFIG, iterations=0), out=tmp_path / "out", seed=4)
    assert result.target == "reach" and list(result.rl.before["greedy"].tasks) == ["reach"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert len(list(cache_folder().iterdir())) == 1


def test_fresh_uses_no_cache_and_gives_the_same_base(
    first: tuple[QuickstartResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = weights(base() / "sft")
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    result = quickstart(config=CONFIG, out=tmp_path / "out", seed=3, fresh=True)
    assert not (tmp_path / "cache").exists()
    assert weights(tmp_path / "out" / "base" / "sft") == cached
    assert weights(tmp_path / "out" / "rl") == weights(first[1] / "rl")  # and, with the same seed, the same result
    assert result.rl.env_steps == first[0].rl.env_steps


def test_a_base_whose_making_was_interrupted_is_finished_by_the_next_run(
    first: tuple[QuickstartResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = weights(base() / "sft")
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    config = replace(CONFIG, iterations=0)
    with monkeypatch.context() as stop, pytest.raises(Stopped):
        stop_in(stop, "log", 20)
        quickstart(config=config, out=tmp_path / "a")
    made = (base() / "demos.hdf5").stat().st_mtime_ns
    quickstart(config=config, out=tmp_path / "b")
    assert weights(base() / "sft") == cached and (base() / "demos.hdf5").stat().st_mtime_ns == made


@pytest.mark.parametrize("moment", [5, 1, 2], ids=["fine-tuning", "first iteration", "second iteration"])
def test_one_that_was_interrupted_goes_on_with_the_same_call_to_the_same_end(
    first: tuple[QuickstartResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as stop, pytest.raises(Stopped):
        stop_in(stop, "log", moment)
        quickstart(config=CONFIG, seed=3)
    (folder,) = Path("runs").iterdir()
    made = (folder / "target.hdf5").stat().st_mtime_ns
    result = quickstart(config=CONFIG, seed=3)
    assert list(Path("runs").iterdir()) == [folder] and (folder / "target.hdf5").stat().st_mtime_ns == made
    assert weights(folder / "rl") == weights(first[1] / "rl") and result.rl.env_steps == first[0].rl.env_steps
    assert all(seconds > 0 for name, seconds in result.seconds.items() if name != "pre-training")
    assert json.loads((folder / "quickstart.json").read_text())["finished"]
    quickstart(config=CONFIG, seed=3)  # a finished one is not touched
    assert sorted(path.name for path in Path("runs").iterdir()) == [folder.name, f"{folder.name}-2"]


def test_an_output_folder_that_holds_something_else_is_left_alone(
    first: tuple[QuickstartResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out, what in ((tmp_path, "not empty"), (tmp_path / "mine.txt", "a file"), (first[1], "a finished quickstart")):
        with pytest.raises(RunError, match=f"{out} is {what}: choose another --out"):
            quickstart(config=CONFIG, out=out, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with monkeypatch.context() as stop, pytest.raises(Stopped):
        stop_in(stop, "log", 1)
        quickstart(config=CONFIG, out=tmp_path / "out", seed=3)
    with pytest.raises(RunError, match="an interrupted quickstart with other settings"):
        quickstart(config=CONFIG, out=tmp_path / "out", seed=4)
    with locked(tmp_path / "out"), pytest.raises(RunError, match=r"out is in use by process"):
        quickstart(config=CONFIG, out=tmp_path / "out", seed=3)


def test_how_rollouts_are_run_may_change_when_a_quickstart_goes_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out")
    asked = {"fresh": False, "finished": False, "seconds": {}}
    write_json(folder / "quickstart.json", asked | {"config": CONFIG.to_json()})
    (folder / "target.hdf5").touch()
    others = replace(CONFIG, rollout=replace(CONFIG.rollout, workers=7, slots=3))
    assert output_folder(others, False, folder) == folder
    with pytest.raises(RunError, match="an interrupted quickstart with other settings"):
        output_folder(replace(others, stop_at=0.5), False, folder)


def test_an_empty_folder_will_do_and_without_out_one_under_runs_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert output_folder(CONFIG, False, tmp_path / "empty") == tmp_path / "empty"
    for number in range(1, 4):
        folder = output_folder(CONFIG, False, None)
        assert folder == Path("runs") / ("quickstart-reach-centre-seed0" + ("" if number == 1 else f"-{number}"))
        folder.mkdir(parents=True)


@pytest.mark.parametrize("damaged", ["demos.hdf5", "sft/policy/model.safetensors", "sft/policy/config.json"])
def test_a_damaged_base_of_the_cache_is_to_be_deleted(
    first: tuple[QuickstartResult, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    shutil.copytree(base(), kept := tmp_path / base().name)
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path))
    if damaged.endswith(".json"):
        (kept / damaged).unlink()
    else:
        (kept / damaged).write_bytes((kept / damaged).read_bytes()[:2000])
    with pytest.raises((DataError, PolicyError), match=f"It is of a base that ript keeps: delete {kept}, and it is"):
        quickstart(config=CONFIG, out=tmp_path / "out", seed=3)


def test_several_targets_share_one_policy(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = replace(CONFIG, tasks=("reach-centre", "reach"), iterations=1)
    result = quickstart(config=config, out=tmp_path / "out")
    assert result.target == "reach-centre, reach" and len(result.rl.after["greedy"].tasks) == 2
    shown = open_demos([tmp_path / "out" / "target.hdf5"])
    assert [task.name for task in shown.tasks] == ["reach-centre", "reach"] and len(shown) == 2


def test_a_base_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    folder = make_folder(base_folder(CONFIG))
    with ThreadPoolExecutor(1) as other:
        with locked(folder):
            making = other.submit(make_base, CONFIG, folder)
            for _ in range(500):
                if "waiting for" in (said := capsys.readouterr().err):
                    break
                time.sleep(0.01)
            assert f"waiting for {folder}, which is in use by process" in said and not making.done()
            assert not (folder / "demos.hdf5").exists()
        assert (making.result(timeout=60) / "sft" / "policy").exists()


def test_it_takes_known_targets(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean reach-centre"):
        quickstart("reach-centr", config=CONFIG, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="no target task: give --target"):
        quickstart(config=replace(CONFIG, tasks=()), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"seed": 5}, True),
        ({"tasks": ("reach",)}, True),
        ({"learn": {"learning_rate": 1.0}}, True),
        ({"sft": {"finetune_steps": 99}}, True),
        ({"policy": {"temperature": 0.1}}, True),
        ({"pretrain_tasks": ("reach-left",)}, False),
        ({"sim": {"image_size": 16}}, False),
        ({"demos": {"per_task": 9}}, False),
        ({"demos": {"noise": 0.1}}, False),
        ({"policy": {"privileged": False}}, False),
        ({"policy": {"chunk": 8}}, False),
        ({"policy": {"standardise": False}}, False),
        ({"policy": {"language": "clip"}}, False),
        ({"sft": {"warmup": 0.0}}, False),
        ({"sft": {"colour_jitter": 0.3}}, False),
        ({"sft": {"threads": 3}}, False),  # sums are rounded in another order
        ({"device": "cuda"}, False),
        ({"learn": {"threads": 7}}, True),
        ({"sft": {"policy_steps": 99}}, False),
    ],
    ids=str,
)
def test_a_cached_base_is_used_exactly_where_it_fits(change: dict, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_files, "_from_hub", nothing_to_fetch)
    config: Config = CONFIG
    for name, value in change.items():
        changed = replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = replace(config, **{name: changed})
    assert (base_fingerprint(config) == base_fingerprint(CONFIG)) == same


def nothing_to_fetch(name: str) -> None:
    raise DependencyMissing(f"no {name} here")


def test_a_cached_base_is_of_the_files_of_its_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, policy=replace(CONFIG.policy, language="clip"))
    monkeypatch.delenv(CLIP_FOLDER, raising=False)
    monkeypatch.setattr(language_files, "_from_hub", nothing_to_fetch)
    found = {base_fingerprint(config)}
    for commit in ("a" * 40, "b" * 40):
        monkeypatch.setattr(language_files, "_from_hub", (tmp_path / "snapshots" / commit).joinpath)
        found.add(base_fingerprint(config))
    assert len(found) == 3
    found.clear()
    for name in ("a", "b", "again"):
        shutil.copytree(Path(__file__).parent / "policies" / "clip", tmp_path / name)
    weights = load_file(tmp_path / "b" / "model.safetensors")
    save_file({n: w * (1 if w.ndim < 2 else 1.001) for n, w in weights.items()}, tmp_path / "b" / "model.safetensors")
    for name in ("a", "b"):
        monkeypatch.setenv(CLIP_FOLDER, str(tmp_path / name))
        found.add(base_fingerprint(config))
    assert len(found) == 2
    monkeypatch.setenv(CLIP_FOLDER, str(tmp_path / "again"))
    assert base_fingerprint(config) in found
    (tmp_path / "again" / "tokenizer.json").write_text("{}")
    assert base_fingerprint(config) not in found
