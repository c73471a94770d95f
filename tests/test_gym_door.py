"""A Gymnasium environment of a user's own, from the command line alone: the page's file and the page's commands."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from ript import recipe
from ript.build import task_keys
from ript.cli.main import main
from ript.config import overrides
from ript.config.sections import sim_options
from ript.core.errors import ConfigError, UnknownNameError
from ript.demos.demo_set import open_demos
from ript.policies.loading import load_policy
from ript.run.start import protocol

PAGE = (Path(__file__).parents[1] / "docs" / "adding_a_simulator.md").read_text()
SECTION = PAGE.partition("### An environment of your own")[2].partition("\n### ")[0]


def commands() -> list[list[str]]:
    """What the section tells to type."""
    lines = re.sub(r"\\\n\s+", "", SECTION)
    return [shlex.split(line) for line in re.findall(r"^    \$ ript (.*)$", lines, re.MULTILINE)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One with the page's file, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (code,) = re.findall(r"^```python\n(# cart\.py\n.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    Path("cart.py").write_text(code)
    yield tmp_path
    sys.modules.pop("cart", None)


@pytest.mark.timeout(240)
def test_the_pages_environment_is_checked_demonstrated_learned_and_practised_in(folder, capsys):
    check, collect, sft, rl = commands()
    assert main([*check, "--states", "3"]) == 0
    assert capsys.readouterr().out.endswith("sound: 11 of 11 checks that apply hold\n")

    assert main(collect) == 0
    demos = open_demos("cart.hdf5")
    assert len(demos) == 4 and demos.spec.render["proprio"] == ["cart"]
    assert main(["demos", "verify", "cart.hdf5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("written to cart.hdf5\n")[2])["exact"] == 4

    few = [f"--sft.{stage}_steps=4" for stage in ("autoencoder", "policy", "finetune")]
    assert main([*sft, *few]) == 0
    short = ["--iterations", "1", "--eval.trials=2", "--eval.every=0", "--eval.videos=1"]
    short += ["--sampling.group_size=4", "--sampling.groups=4", "--sampling.max_attempts=8"]
    capsys.readouterr()
    assert main([*rl, *short, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["iterations"] == 1
    assert main(["eval", "--policy", "runs/rl/policy", "--tasks", "gym/cart:Cart-v0", "--trials", "2"]) == 0
    assert list(Path("runs/rl/videos/before").iterdir())


def test_tasks_of_two_suites_are_refused(folder, capsys):
    words = ["demos", "collect", "--tasks", "gym/cart:Cart-v0", "toy/reach", "--per-task", "1", "--out", "x.hdf5"]
    assert main(words) == 2
    assert "tasks of several suites (gym, toy)" in capsys.readouterr().err


def test_an_expert_that_is_not_there_is_named_before_anything_is_made(folder, capsys):
    collect = [word.replace("cart:expert", "cart:exprt") for word in commands()[1]]
    assert main(collect) == 2
    assert "did you mean expert" in capsys.readouterr().err and not Path("cart.hdf5").exists()


def test_an_expert_has_no_effect_where_demonstrations_are_kept_in_a_cache(folder, capsys):
    assert main(["quickstart", "--demos.expert=cart:expert"]) == 2
    assert "demos.expert has no effect in `ript quickstart`" in capsys.readouterr().err


def test_the_horizon_of_an_environment_without_a_limit_is_told_once(folder, capsys):
    Path("cart.py").write_text(Path("cart.py").read_text().replace(", max_episode_steps=40", ""))
    _, collect, sft, _ = commands()
    few = [f"--sft.{stage}_steps=1" for stage in ("autoencoder", "policy", "finetune")]
    for horizon in ("40", "30"):
        file = f"of{horizon}.hdf5"
        out = [word.replace("cart.hdf5", file) for word in collect]
        assert main([*out, f"--sim.horizon={horizon}", "--per-task", "1"]) == 0
    sft = [*(word.replace("cart.hdf5", "of40.hdf5") for word in sft), *few]
    assert main(sft) == 0
    policy = load_policy("runs/sft/policy")
    assert policy.card["evaluation"] == {"horizon": 40}

    config = overrides.apply(recipe("smoke"), {"sim.suite": ["gym"], "tasks": ["cart:Cart-v0"]})
    assert protocol(config, policy, ()).sim.horizon == 40
    assert "episodes end after" not in capsys.readouterr().err
    longer = overrides.apply(config, {"sim.horizon": ["60"]})
    assert protocol(longer, policy, {"sim.horizon"}).sim.horizon == 60
    assert "episodes end after 60 steps, and the policy was measured with 40" in capsys.readouterr().err
    measure = ["eval", "--policy", "runs/sft/policy", "--tasks", "gym/cart:Cart-v0", "--trials", "1", "--json"]
    assert main(measure) == 0
    said = capsys.readouterr()
    assert set(json.loads(said.out)["horizon"].values()) == {40} and "episodes end after" not in said.err
    assert main([*measure, "--horizon", "9"]) == 0
    said = capsys.readouterr()
    assert set(json.loads(said.out)["horizon"].values()) == {9} and "after 9 steps, and the policy" in said.err

    several = [*sft, "--demos", "of40.hdf5", "of30.hdf5", "--out", "runs/both"]
    assert main(several) == 2
    assert "collected with 30 and 40: say which counts (--sim.horizon=40)" in capsys.readouterr().err
    assert main([*several, "--sim.horizon=40"]) == 0
    assert "after 40 steps, and the demonstrations were collected with 30" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{}"],
        ["tasks", "{}"],
        ["demos", "collect", "--recipe", "smoke", "--per-task", "1", "--out", "x.hdf5", "--tasks", "{}"],
        ["quickstart", "--target", "{}"],
        ["rl", "--recipe", "smoke", "--out", "o", "--tasks", "{}"],
        ["bench", "rollout", "--tasks", "{}"],
    ],
    ids=lambda words: words[0],
)
def test_a_task_whose_suite_is_left_out_is_suggested_with_it(folder, capsys, words):
    assert main([word.format("cart:Cart-v0") for word in words]) == 2
    assert "'cart:Cart-v0': did you mean gym/cart:Cart-v0?" in capsys.readouterr().err


def test_a_task_of_a_suite_that_is_not_installed_says_that_its_package_is_missing(capsys):
    for suite in ("toy", "gym"):
        with pytest.raises(UnknownNameError, match=r"unknown .*maniskill/.*install the package that brings a suite"):
            task_keys(sim_options(suite), ("maniskill/PickCube-v1",))
    assert main(["tasks", "maniskill"]) == 2
    assert "install the package that brings a suite 'maniskill'" in capsys.readouterr().err


def test_a_task_of_another_suite_than_the_simulators_is_said_to_be_one(folder):
    with pytest.raises(ConfigError, match=r"gym/cart:Cart-v0 is of suite gym; expected tasks of suite toy"):
        task_keys(sim_options("toy"), ("gym/cart:Cart-v0",))
