"""Settings that cannot have an effect are refused when asked for, and never recorded as used."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy_runs import Stopped, lively_policy, stop_in, toy_config, toy_demos, weights, without_times

from ript import recipe
from ript.cli import main as cli
from ript.config.sections import Config
from ript.core.errors import ConfigError
from ript.core.options import replace
from ript.evaluation import evaluate
from ript.policies.loading import load_policy
from ript.policies.quest.config import SIZES, QuestConfig
from ript.policies.quest.options import QuestOptions
from ript.policies.quest.policy import QuestPolicy
from ript.rl import train_rl
from ript.run import resuming
from ript.run.reading import read_config
from ript.run.settings import asked_for, leaves, nested, recorded, unused, uses
from ript.sft import resume_sft, train_sft

QUICK = [
    "--tasks",
    "reach-centre",
    "--sim.image_size=8",
    "--eval.trials=2",
    "--eval.every=0",
    "--eval.videos=0",
    "--sampling.group_size=4",
    "--sampling.groups=2",
    "--sampling.max_attempts=2",
    "--iterations=1",
]
SFT = ["--tasks", "reach-centre", "--sft.finetune_steps=1"]


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def settings(folder: Path) -> dict[str, Any]:
    """What a run has recorded, by dotted names."""
    return leaves(read_config(folder)["config"]["recipe_config"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with a chunk of 4 that knows object positions, `policy`, the demonstrations, and one that samples as
    published, `published`."""
    folder = tmp_path_factory.mktemp("settings")
    config = toy_config(
        policy={"privileged": True}, sft={"autoencoder_steps": 2, "policy_steps": 2, "finetune_steps": 1}
    )
    demos = toy_demos(folder / "demos.hdf5", config, "reach-centre")
    train_sft(config, [demos], folder / "sft")
    lively_policy(config).configured(sampling="published", top_k=5, temperature=0.7).save_pretrained(
        folder / "published"
    )
    return folder


# ---------------------------------------------------------------------- refused


UNCHANGEABLE = [
    ("--policy.execute=2", "policy.execute = 2 ({} has execute = 4)"),
    ("--policy.chunk=8", "policy.chunk = 8 ({} has chunk = 4)"),
    ("--policy.size=small", "policy.size = small ({} has size = tiny)"),
    ("--policy.language=clip", "policy.language = clip ({} has language = minilm)"),
    ("--policy.privileged=false", "policy.privileged = false ({} has privileged = true)"),
    ("--policy.standardise=false", "policy.standardise = false ({} has standardise = true)"),
]


@pytest.mark.parametrize(("word", "says"), UNCHANGEABLE)
def test_what_a_policy_has_decided_is_refused_with_its_own_value(
    word: str, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    policy, demos = folder / "sft" / "policy", folder / "demos.hdf5"
    assert run("rl", "--recipe", "smoke", "--policy", policy, *QUICK, word, "--out", tmp_path / "rl") == 2
    assert f"{says.format('the policy')}: cannot be changed any more; leave it out" in capsys.readouterr().err
    given = ("--base", policy, "--demos", demos, *SFT, word, "--out", tmp_path / "sft")
    assert run("sft", "--recipe", "smoke", *given) == 2
    assert f"{says.format('the base')}: cannot be changed any more; leave it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--policy.temperature=0.5", "policy.temperature = 0.5 (the policy has temperature = 0.7)"),
        ("--policy.top_k=3", "policy.top_k = 3 (the policy has top_k = 5)"),
        ("--policy.sampling=exact", "policy.sampling = exact (the policy has sampling = published)"),
        ("--policy.entropy=1", "policy.entropy = 1.0 (the policy has entropy = 0.0)"),
    ],
)
def test_a_policy_that_samples_as_published_keeps_its_density_and_says_so(
    word: str, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("rl", "--recipe", "smoke", "--policy", folder / "published", *QUICK, "--out", tmp_path / "out")
    assert run(*words, word) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_a_remedy_advises_is_not_refused_in_its_turn(folder: Path, tmp_path: Path, capsys) -> None:
    words = ("rl", "--recipe", "smoke", *QUICK, "--policy", folder / "published", "--out", tmp_path / "run")
    for given in ("--policy.sampling=exact", "--policy.temperature=1", "--policy.entropy=2", "--policy.top_k=3"):
        assert run(*words, given) == 2
        said = capsys.readouterr().err
        assert "ript sft" not in said and "start from another policy" in said and "start/" in said
    trained = ("--policy", folder / "sft" / "policy", "--out", tmp_path / "run")
    assert run("rl", "--recipe", "smoke", *QUICK, *trained, "--policy.size=small") == 2
    assert "train a policy with it (`ript sft`)" in capsys.readouterr().err
    fine_tuned = ("--demos", folder / "demos.hdf5", "--base", folder / "sft" / "policy", "--out", tmp_path / "sft")
    assert run("sft", "--recipe", "smoke", *SFT, *fine_tuned, "--policy.size=small") == 2
    assert "train a policy with it (`ript sft` without --base)" in capsys.readouterr().err
    config = toy_config()
    for command in ("rl", "sft", "demos collect", "check"):
        for name in leaves(config.to_json()):
            advice = (unused(command, config, name) or "").partition("leave it out")[2]
            for other in re.findall(r"`ript ([a-z ]+)`", advice):
                assert uses(other, config, name), f"ript {command} sends --{name} to ript {other}, which refuses it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sft.autoencoder_steps=9", "--base", "POLICY"], "a base policy keeps what it has learned"),
        (["--sft.policy_learning_rate=1", "--base", "POLICY"], "a base policy keeps what it has learned"),
        (["--sft.finetune_steps=9", "--tasks="], "there is no target task to fine-tune toward"),
        (
            ["--sim.image_size=24"],
            "sim.image_size = 24, but the demonstrations have 8: leave it out, or collect others",
        ),
    ],
)
def test_what_supervised_training_cannot_follow_is_refused(
    words: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [word.replace("POLICY", str(folder / "sft" / "policy")) for word in words]
    common = ("sft", "--recipe", "smoke", "--demos", folder / "demos.hdf5", "--out", tmp_path / "out")
    assert run(*common, *([] if "--tasks=" in words else SFT[:2]), *words) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--sampling.dynamic=false", "--sampling.max_attempts=500"],
            "sampling.max_attempts has no effect with",
        ),
        (
            ["--sampling.dynamic=false", "--sampling.equal_tasks=true"],
            "sampling.equal_tasks has no effect with",
        ),
        (["--sampling.equal_tasks=true"], "sampling.equal_tasks has no effect with one task (reach-centre)"),
        (["--workers=0", "--rollout.request_timeout=9"], "rollout.request_timeout has no effect without workers"),
        (["--workers=0", "--rollout.max_retries=9"], "rollout.max_retries has no effect without workers"),
        (["--workers=0", "--rollout.inference=central"], "give --workers N"),
    ],
)
def test_a_setting_that_another_one_leaves_nothing_to_do_is_refused(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    short = [word for word in QUICK if "max_attempts" not in word]
    assert run("rl", "--recipe", "smoke", *short, *words, "--out", tmp_path / "out") == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_server_for_workers_that_there_are_not_is_refused_wherever_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "recipe.toml").write_text(
        'recipe = "smoke"\n[sim]\nsuite = "toy"\n[rollout]\nworkers = 0\ninference = "central"\n'
    )
    assert run("rl", "--recipe", tmp_path / "recipe.toml", *QUICK, "--out", tmp_path / "out") == 2
    config = toy_config(rollout={"workers": 2, "inference": "central"}, eval={"trials": 1, "every": 0}, iterations=0)
    train_rl(config, lively_policy(config), tmp_path / "run")
    assert run("rl", "--resume", tmp_path / "run", "--workers", 0) == 2
    told = "rollout.inference = central has no effect without workers"
    assert capsys.readouterr().err.count(told) == 2 and settings(tmp_path / "run")["rollout.workers"] == 2
    with pytest.raises(ConfigError, match="central"):
        alone = replace(config, rollout=replace(config.rollout, workers=0))
        train_rl(alone, lively_policy(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run("rl", "--resume", tmp_path / "run", "--workers", 0, "--rollout.inference=local") == 0


def test_the_share_of_the_targets_is_refused_when_there_is_nothing_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("sft", "--recipe", "smoke", "--demos", folder / "demos.hdf5", *SFT, "--sft.autoencoder_steps=1")
    words = (*words, "--sft.policy_steps=1")
    assert run(*words, "--sft.finetune_share=0.1", "--out", tmp_path / "out") == 2
    assert "sft.finetune_share has no effect: all demonstrations are of target tasks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert run(*words, "--out", tmp_path / "out") == 0 and "sft.finetune_share" not in settings(tmp_path / "out")
    whole, half = (
        toy_config(sft={"autoencoder_steps": 1, "policy_steps": 1, "finetune_epochs": 1.0, "finetune_share": share})
        for share in (1.0, 0.5)
    )
    for name, config in (("whole", whole), ("half", half)):
        train_sft(config, [folder / "demos.hdf5"], tmp_path / name)
    assert weights(tmp_path / "whole") == weights(tmp_path / "half")


@pytest.mark.parametrize("stage", ["autoencoder", "policy", "finetune"])
def test_the_rate_of_a_stage_without_steps_is_refused(stage: str, folder: Path, tmp_path: Path, capsys) -> None:
    words = ("sft", "--recipe", "smoke", "--demos", folder / "demos.hdf5", *SFT[:2], f"--sft.{stage}_steps=0")
    assert run(*words, f"--sft.{stage}_learning_rate=0.1", "--out", tmp_path / "out") == 2
    told = f"sft.{stage}_learning_rate has no effect while sft.{stage}_steps = 0"
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_script_asks_for_what_it_changes_in_a_recipe_and_for_nothing_else(folder: Path, tmp_path: Path) -> None:
    smoke = recipe("smoke")
    assert asked_for(smoke) == set() and asked_for(smoke, ["policy.size"]) == {"policy.size"}
    other = replace(smoke, policy=replace(smoke.policy, execute=2))
    assert asked_for(other) == {"policy.execute"} and asked_for(Config(seed=3)) == {"seed"}
    with pytest.raises(ConfigError, match=r"policy.execute = 2 \(the policy has execute = 4\)"):
        train_rl(other, folder / "sft" / "policy", tmp_path / "rl")
    with pytest.raises(ConfigError, match=r"policy.execute = 2 \(the base has execute = 4\)"):
        train_sft(
            replace(other, tasks=("reach-centre",)),
            [folder / "demos.hdf5"],
            tmp_path / "sft",
            base=folder / "sft" / "policy",
        )
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- recorded


def test_what_a_recipe_file_of_ones_own_says_was_asked_for(folder: Path, tmp_path: Path, capsys) -> None:
    def written(name: str, *changes: tuple[str, str]) -> Path:
        assert run("recipes", "smoke") == 0
        text = capsys.readouterr().out
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    words = ("rl", *QUICK, "--policy", folder / "sft" / "policy", "--out")
    mine = written("mine.toml", ('recipe = "smoke"', 'recipe = "mine"'))
    assert run(*words, tmp_path / "a", "--recipe", mine) == 2
    said = capsys.readouterr().err
    assert "policy.chunk = 8 (the policy has chunk = 4)" not in said and "policy.size" not in said
    assert "policy.privileged = false (the policy has privileged = true): cannot be changed any more" in said
    partly = tmp_path / "partly.toml"
    partly.write_text('recipe = "mine"\n[policy]\nsize = "small"\n[sim]\nsuite = "toy"\n')
    assert run(*words, tmp_path / "b", "--recipe", partly) == 2
    assert "policy.size = small (the policy has size = tiny)" in capsys.readouterr().err
    unedited = written("unedited.toml")  # says nothing that the recipe of its name does not
    assert run(*words, tmp_path / "c", "--recipe", unedited) == 0
    assert settings(tmp_path / "c")["policy.privileged"] is True


def test_what_nobody_asked_for_is_recorded_as_the_policy_has_it(folder: Path, tmp_path: Path) -> None:
    """The recipe smoke has a chunk of 8, no object positions, and settings of supervised training."""
    policy = folder / "sft" / "policy"
    assert run("rl", "--recipe", "smoke", "--policy", policy, *QUICK, "--out", tmp_path / "rl") == 0
    held = settings(tmp_path / "rl")
    own = {"size": "tiny", "chunk": 4, "execute": 4, "privileged": True, "standardise": True, "language": "minilm"}
    assert {name: held[f"policy.{name}"] for name in own} == own
    assert not [name for name in held if name.startswith(("sft.", "demos.", "pretrain", "sim.arm"))]
    assert held["policy.rl_trains"] == "prior+encoders" and held["sampling.groups"] == 2
    base = ("--base", policy, "--demos", folder / "demos.hdf5", *SFT)
    assert run("sft", "--recipe", "smoke", *base, "--out", tmp_path / "sft") == 0
    held = settings(tmp_path / "sft")
    assert {name: held[f"policy.{name}"] for name in own} == own and held["sim.image_size"] == 8
    strange = ("demos.", "rollout.", "sampling.", "learn.", "eval.", "sft.autoencoder", "iterations", "policy.temp")
    assert not [name for name in held if name.startswith(strange)] and held["sft.finetune_steps"] == 1


def test_what_other_settings_leave_nothing_to_do_is_not_recorded(tmp_path: Path) -> None:
    """The smoke recipe has no workers, and validates when `eval.every` says so."""
    assert run("rl", "--recipe", "smoke", *QUICK, "--eval.every_trials=77", "--out", tmp_path / "a") == 0
    nothing_to_do = (
        "eval.every_trials",
        "rollout.inference",
        "rollout.request_timeout",
        "rollout.max_retries",
        "sampling.equal_tasks",
    )
    held = settings(tmp_path / "a")
    assert held.keys().isdisjoint(nothing_to_do) and held["sampling.max_attempts"] == 2 and held["eval.every"] == 0
    config = toy_config(
        iterations=1, eval={"trials": 1, "every": 0}, sampling={"dynamic": False, "groups": 40, "max_attempts": 40}
    )
    train_rl(config, lively_policy(config), tmp_path / "b")  # more groups than attempts by default, without which
    assert "sampling.max_attempts" not in settings(tmp_path / "b")  # the record reads back:
    assert run("rl", "--resume", tmp_path / "b", "--iterations", 2, "--workers", 1, "--rollout.max_retries=7") == 0
    held = settings(tmp_path / "b")
    assert (held["rollout.max_retries"], held["rollout.workers"], held["iterations"]) == (7, 1, 2)


def test_a_fresh_policy_is_recorded_without_what_only_demonstrations_give(tmp_path: Path) -> None:
    assert run("rl", "--recipe", "smoke", *QUICK, "--out", tmp_path / "out") == 0
    held = settings(tmp_path / "out")
    assert held["policy.standardise"] is False and held["policy.privileged"] is False and held["policy.chunk"] == 0


def test_a_policy_that_samples_as_published_is_recorded_with_its_density(folder: Path, tmp_path: Path) -> None:
    policy = folder / "published"
    assert run("rl", "--recipe", "smoke", "--policy", policy, *QUICK, "--out", tmp_path / "out") == 0
    held = settings(tmp_path / "out")
    assert [held[f"policy.{n}"] for n in ("sampling", "top_k", "temperature")] == ["published", 5, 0.7]


def test_the_temperature_that_the_entropy_chooses_is_not_recorded_as_given(tmp_path: Path) -> None:
    config = toy_config(iterations=0, policy={"entropy": 2.9}, eval={"trials": 1, "every": 0})
    train_rl(config, lively_policy(config), tmp_path / "out")
    held = read_config(tmp_path / "out")["config"]
    assert "temperature" not in held["recipe_config"]["policy"] and held["policy"]["temperature"] != 1.0


def test_a_size_of_no_name_is_left_out_of_the_record(tmp_path: Path) -> None:
    config = toy_config(iterations=0, eval={"trials": 1, "every": 0})
    tiny = lively_policy(config)
    policy = QuestPolicy(replace(tiny.config, width=64, language_dim=7), tiny.simulator)
    with pytest.raises(ConfigError, match=r"policy.size = tiny \(the policy has no such setting\)"):
        train_rl(config, policy, tmp_path / "out")
    assert recorded("rl", config, policy).keys().isdisjoint({"policy.size", "policy.language"})


@pytest.mark.parametrize("name", SIZES)
def test_a_policy_knows_the_name_of_its_size(name: str) -> None:
    spec = lively_policy(toy_config()).simulator
    fitted = {"cameras": dict(spec.cameras), "proprio": dict(spec.proprio), "action_dim": spec.action_dim}
    policy = QuestPolicy(QuestConfig(**SIZES[name] | fitted), spec)
    assert policy.made_with()["size"] == name
    assert QuestOptions.model_fields.keys() >= policy.made_with().keys()


def test_the_record_of_settings_reads_back() -> None:
    config = toy_config().to_json()
    assert nested(leaves(config)) == config


# ---------------------------------------------------------------------- the model card


def test_a_card_says_what_was_done_and_keeps_what_was_done_to_the_base(folder: Path, tmp_path: Path) -> None:
    auxiliary = "auxiliary loss on object positions from the simulator"
    assert load_policy(folder / "sft" / "policy").card["supervised training"][auxiliary] == "yes"
    base = ("--base", folder / "sft" / "policy", "--demos", folder / "demos.hdf5", *SFT)
    assert run("sft", "--recipe", "smoke", *base, "--out", tmp_path / "sft") == 0
    card = load_policy(tmp_path / "sft" / "policy").card
    assert card["supervised training"] | {"recipe": "toy"} == card["base: supervised training"]
    assert card["supervised training"][auxiliary] == "yes" and card["supervised training"]["recipe"] == "smoke"
    for number in (1, 2):
        policy = tmp_path / ("sft" if number == 1 else "rl1") / "policy"
        assert run("rl", "--recipe", "smoke", "--policy", policy, *QUICK, "--out", tmp_path / f"rl{number}") == 0
    once, twice = (load_policy(tmp_path / f"rl{number}" / "policy").card for number in (1, 2))
    assert once["supervised training"] == card["supervised training"] and "interactive post-training" in once
    assert once.pop("evaluation") == twice["evaluation"]  # how it is measured, not what was done
    for title, value in once.items():
        assert twice[f"base: {title}"] == value
    again = ("--base", tmp_path / "rl1" / "policy", "--demos", folder / "demos.hdf5", *SFT)
    assert run("sft", "--recipe", "smoke", *again, "--out", tmp_path / "again") == 0
    titles = set(load_policy(tmp_path / "again" / "policy").card)
    assert {title for title in titles if not title.startswith("base: ")} == {"supervised training", "evaluation"}
    assert "## Base: interactive post-training" in (tmp_path / "again" / "policy" / "README.md").read_text()


def test_a_base_whose_loss_is_not_fed_any_more_is_not_said_to_be_without_it(folder: Path, tmp_path: Path) -> None:
    import h5py

    bare = tmp_path / "bare.hdf5"
    bare.write_bytes((folder / "demos.hdf5").read_bytes())
    with h5py.File(bare, "r+") as file:
        for demo in file["data"].values():
            del demo["obs/privileged"]
    config = toy_config(sft={"finetune_steps": 1}, policy={"privileged": True})
    policy = train_sft(config, [bare], tmp_path / "sft", base=folder / "sft" / "policy")
    (said,) = [v for k, v in policy.card["supervised training"].items() if k.startswith("auxiliary loss")]
    assert said == "no, but in its base's training"


# ---------------------------------------------------------------------- a run that goes on


def test_a_run_that_ended_by_itself_refuses_more_iterations_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = toy_config(iterations=4, stop_at=0.01, sampling={"groups": 8, "max_attempts": 8, "dynamic": False})
    result = train_rl(config, lively_policy(config), tmp_path / "run")
    assert result.iterations < 4
    assert run("rl", "--resume", tmp_path / "run", "--iterations", 7) == 2
    said = capsys.readouterr().err
    assert f"ended by itself after {result.iterations} (solved: at least 1%" in said
    assert "ript rl --recipe NAME --policy" in said
    assert read_config(tmp_path / "run")["config"]["recipe_config"]["iterations"] == 4
    assert run("rl", "--resume", tmp_path / "run") == 0


@pytest.mark.parametrize("every", [1, 2])
def test_a_finished_run_that_is_given_more_iterations_ends_as_if_it_had_had_them_from_the_beginning(
    every: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its end need not have been an iteration that is validated in a longer run."""
    config = toy_config(eval={"every": every})
    whole = train_rl(config, lively_policy(config), tmp_path / "whole")
    short = replace(config, iterations=1)
    train_rl(short, lively_policy(config), tmp_path / "run")
    assert run("rl", "--resume", tmp_path / "run", "--iterations", 3) == 0
    assert weights(tmp_path / "run") == weights(whole.folder)
    assert without_times(tmp_path / "run") == without_times(whole.folder)
    held = read_config(tmp_path / "run")["config"]
    assert held["recipe_config"] == read_config(whole.folder)["config"]["recipe_config"]
    (change,) = held["changed"]
    assert change["settings"] == {"iterations": 3} and change["after iteration"] == 1 and change["when"]
    assert run("rl", "--resume", tmp_path / "run", "--iterations", 2) == 2
    assert f"iterations = 2, but {tmp_path / 'run'} has done 3 already: give more" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["reason"] == "all 3 iterations done"


def test_how_rollouts_are_run_may_change_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(eval={"trials": 2, "every": 0})
    whole = train_rl(config, lively_policy(config), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        train_rl(config, lively_policy(config), tmp_path / "run")
    words = ("--workers", 1, "--rollout.slots=5", "--rollout.request_timeout=77", "--iterations", 4)
    assert run("rl", "--resume", tmp_path / "run", *words) == 0
    held = settings(tmp_path / "run")
    assert [held[f"rollout.{n}"] for n in ("workers", "slots", "request_timeout")] == [1, 5, 77]
    ours, theirs = (without_times(f)["metrics.jsonl"] for f in (tmp_path / "run", whole.folder))
    assert len(ours) == 4 and [row["rollout/env_steps"] for row in ours[:3]] == [r["rollout/env_steps"] for r in theirs]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learn.epochs=5"], "these are others: learn.epochs = 5 (the run has 2). Leave them out"),
        (["--seed", "3", "--eval.trials=9"], "eval.trials = 9 (the run has 2); seed = 3 (the run has 0). Leave them"),
        (["--tasks", "reach"], "tasks = reach (the run has reach-centre)"),
        (["--policy.execute=2"], "policy.execute = 2 (the run has 0)"),
        (["--sft.policy_steps=2"], "sft.policy_steps has no effect in `ript rl`"),
        (["--learn.epoch=5"], "did you mean learn.epochs?"),
    ],
)
def test_every_other_setting_is_refused_by_its_name_when_a_run_goes_on(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(eval={"trials": 2, "every": 0})
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 1)
        train_rl(config, lively_policy(config), tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert run("rl", "--resume", tmp_path / "run", *words) == 2
    assert says in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    if words == ["--learn.epochs=5"]:  # in a script alike
        with pytest.raises(ConfigError, match=r"learn.epochs = 5 \(the run has 2\)"):
            other = replace(config, learn=replace(config.learn, epochs=5))
            train_rl(other, None, tmp_path / "run", resume=True)


def test_supervised_training_goes_on_with_its_own_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, demos = toy_config(), [folder / "demos.hdf5"]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "save_checkpoint", 30)
        train_sft(config, demos, tmp_path / "run")
    assert run("sft", "--resume", tmp_path / "run", "--sft.policy_steps=30") == 2
    assert "sft.policy_steps = 30 (the run has 20)" in capsys.readouterr().err
    other = replace(config, sft=replace(config.sft, finetune_learning_rate=1.0))
    with pytest.raises(ConfigError, match=r"sft.finetune_learning_rate = 1.0 \(the run has 0.0002\)"):
        train_sft(other, demos, tmp_path / "run", resume=True)
    assert resume_sft(tmp_path / "run") == train_sft(config, demos, tmp_path / "whole")


def test_a_setting_that_a_runs_record_does_not_hold_is_refused_when_it_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One of a stage that the run has not, and one that came after it was begun."""
    base = ("--base", folder / "sft" / "policy", "--demos", folder / "demos.hdf5", *SFT)
    assert run("sft", "--recipe", "smoke", *base, "--out", tmp_path / "sft") == 0
    assert "sft.policy_steps" not in settings(tmp_path / "sft")
    capsys.readouterr()
    assert run("sft", "--resume", tmp_path / "sft", "--sft.policy_steps=999") == 2
    assert "sft.policy_steps = 999 (the run has " in capsys.readouterr().err
    config = toy_config(iterations=1, eval={"trials": 1, "every": 0})
    train_rl(config, lively_policy(config), tmp_path / "rl")
    record = json.loads((tmp_path / "rl" / "config.json").read_text())
    del record["config"]["recipe_config"]["learn"]["kl_to_start"]
    (tmp_path / "rl" / "config.json").write_text(json.dumps(record))
    more = ("rl", "--resume", tmp_path / "rl", "--iterations", 2)
    assert run(*more, "--learn.kl_to_start=1") == 2
    assert "learn.kl_to_start = 1.0 (the run has 0.0)" in capsys.readouterr().err
    assert run(*more, "--learn.kl_to_start=0") == 0


@pytest.mark.parametrize("words", [(), ("--learn.ranks=0",)])
def test_a_run_that_ranks_made_goes_on_without_its_cluster_and_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    config = toy_config(iterations=1, eval={"trials": 1, "every": 0})
    train_rl(config, lively_policy(config), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    made = record["config"]["recipe_config"]
    made["cluster"], made["learn"]["ranks"] = {"address": "local", "nodes": 2}, 2
    made["recipe"] = "smoke"  # which has no workers
    del made["rollout"]["workers"]  # a cluster has its own
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    assert run("rl", "--resume", tmp_path / "run", "--cluster", "none", "--iterations", 2, *words) == 0
    (change,) = read_config(tmp_path / "run")["config"]["changed"]
    wanted = {"cluster.address": "none", "iterations": 2, "learn.ranks": 0}
    assert change["settings"] == wanted | {"rollout.workers": 0}


def test_what_nobody_gave_is_not_recorded_as_changed() -> None:
    """Workers have no effect on a cluster, so that the record of a run there lacks them."""
    held = {"recipe": "smoke", "iterations": 1, "cluster": {"address": "local"}}
    wanted = {"iterations": 2, "rollout.workers": 2}
    assert resuming.refuse_changes("rl", held, wanted, ["iterations"]) == {"iterations": 2}
    assert resuming.refuse_changes("rl", held, wanted, [*wanted]) == wanted


# ---------------------------------------------------------------------- how long an episode may last


def eval_document(capsys: pytest.CaptureFixture, policy: Path, *words: object) -> dict[str, Any]:
    capsys.readouterr()
    common = ("--tasks", "reach-centre", "--trials", 1, "--workers", 0, "--json")
    assert run("eval", "--policy", policy, *common, *words) == 0
    return json.loads(capsys.readouterr().out)


def measured_at(folder: Path) -> set[int]:
    """Horizons of all evaluations of a run."""
    rows = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    return {steps for row in rows for steps in row["eval"]["horizon"].values()}


def test_a_run_a_script_and_the_command_measure_at_one_horizon_and_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The toy suite says 40 of its tasks."""
    config = toy_config(sim={"horizon": 0}, iterations=1, eval={"trials": 1, "every": 0})
    own = lively_policy(config)
    own.save_pretrained(tmp_path / "own")
    here = config.rollout
    assert evaluate(own, "reach-centre", trials=1, rollout=here).horizon == {"reach-centre": 40}
    assert eval_document(capsys, tmp_path / "own")["horizon"] == {"reach-centre": 40}
    train_rl(config, tmp_path / "own", tmp_path / "suite")
    assert measured_at(tmp_path / "suite") == {40}
    assert "within 40 steps" in capsys.readouterr().err
    # a run with another horizon is measured with that, and so is its policy, wherever
    shorter = replace(config, sim=replace(config.sim, horizon=7))
    policy = train_rl(shorter, tmp_path / "own", tmp_path / "short").policy
    assert measured_at(tmp_path / "short") == {7}
    for folder in (policy, tmp_path / "short" / "start"):
        assert evaluate(folder, "reach-centre", trials=1, rollout=here).horizon == {"reach-centre": 7}
        assert eval_document(capsys, folder)["horizon"] == {"reach-centre": 7}
    assert "| horizon | 7 |" in (policy / "README.md").read_text()
    # what a recipe merely has gives way to what the policy was measured with; what was asked for does not
    for words, steps in ((), 7), (("--sim.horizon=24",), 24):
        out = tmp_path / f"recipe{steps}"
        assert run("rl", "--recipe", "smoke", "--policy", policy, *QUICK, *words, "--out", out) == 0
        assert measured_at(out) == {steps} and settings(out)["sim.horizon"] == steps
    assert eval_document(capsys, policy, "--horizon", 3)["horizon"] == {"reach-centre": 3}
    assert run("eval", "--policy", policy, "--tasks", "reach", "--trials", 1, "--workers", 0) == 0
    assert "horizon 7\n" in capsys.readouterr().out


def test_the_horizon_of_demonstrated_training_is_on_the_card_and_stays_there(folder: Path, tmp_path: Path) -> None:
    policy = folder / "sft" / "policy"
    assert load_policy(policy).card["evaluation"] == {"horizon": 16}
    base = ("--base", policy, "--demos", folder / "demos.hdf5", *SFT)
    assert run("sft", "--recipe", "smoke", *base, "--out", tmp_path / "sft") == 0  # the recipe says 24
    assert load_policy(tmp_path / "sft" / "policy").card["evaluation"] == {"horizon": 16}


def test_supervised_training_of_a_base_goes_on_with_the_horizon_that_was_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--base", folder / "sft" / "policy", "--demos", folder / "demos.hdf5", *SFT, "--sim.horizon=9")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "save_checkpoint", 1)
        run("sft", "--recipe", "smoke", *words, "--out", tmp_path / "sft")
    resume_sft(tmp_path / "sft")
    assert load_policy(tmp_path / "sft" / "policy").card["evaluation"] == {"horizon": 9}


def test_a_practice_horizon_beyond_the_end_of_episodes_is_refused_when_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("rl", "--recipe", "smoke", "--policy", folder / "sft" / "policy", *QUICK, "--out", tmp_path / "out")
    assert run(*words, "--sampling.horizon=20") == 2
    assert "sampling.horizon = 20 has no effect: episodes end after 16 steps" in capsys.readouterr().err
    longer = toy_config(iterations=1, sim={"horizon": 0}, sampling={"horizon": 30}, eval={"trials": 1, "every": 0})
    train_rl(longer, lively_policy(longer), tmp_path / "out")
    assert settings(tmp_path / "out")["sampling.horizon"] == 30


def test_greedy_actions_have_no_temperature(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"temperature = 0.5 has no effect in greedy mode"):
        evaluate(folder / "sft" / "policy", "reach", greedy=True, temperature=0.5)
