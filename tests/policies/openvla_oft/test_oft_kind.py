"""The kind of policy as the loop, the command line and the registry see it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from oft_golden import ADAPTER, TINY
from oft_policies import observation, published, ready

import ript
from ript.build import simulator_factory, task_keys
from ript.cli import main as cli
from ript.config import recipes
from ript.config.sections import Config, DemoConfig, EvalConfig, LearnConfig, RolloutConfig, SamplingConfig
from ript.core import hooks
from ript.core.errors import ConfigError, PolicyError
from ript.core.options import replace
from ript.core.registry import kinds
from ript.demos.collect import collect_demos
from ript.policies.openvla_oft.checkpoint import usual_type
from ript.policies.openvla_oft.config import Base
from ript.policies.openvla_oft.options import OftOptions, OftTraining
from ript.rl import train_rl
from ript.run.start import amount
from ript.sft import train_sft
from ript.sims.toy.options import ToyOptions
from ript.studies.quickstart import quickstart


def config(**changes) -> Config:
    """A run of a few seconds."""
    return Config(
        recipe="own",
        tasks=("reach-centre",),
        iterations=2,
        sim=ToyOptions(image_size=16, horizon=16),
        policy=OftOptions(size="tiny", rank=4, alpha=4, scale_clip=(-4.0, 0.5), temperature=1.5),
        demos=DemoConfig(per_task=6, every=1),
        sft=OftTraining(
            policy_steps=20,
            policy_batch=16,
            policy_learning_rate=1.5e-3,
            finetune_steps=5,
            scale_steps=10,
            scale_batch=16,
            scale_learning_rate=1e-2,
            threads=1,
            checkpoint_every=10,
        ),
        rollout=RolloutConfig(workers=0, slots=16),
        sampling=SamplingConfig(group_size=4, groups=4, max_attempts=8),
        learn=LearnConfig(learning_rate=5e-4, epochs=1, minibatch=64, threads=1),
        eval=EvalConfig(trials=8, every=1, every_trials=5, videos=0),
        **changes,
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A policy from demonstrations."""
    folder, c = tmp_path_factory.mktemp("oft"), config()
    keys = task_keys(c.sim, c.tasks)
    collect_demos(simulator_factory(c.sim), keys, c.demos.per_task, folder / "demos.hdf5", every=1)
    train_sft(c, [folder / "demos.hdf5"], folder / "sft")
    return folder / "sft" / "policy"


def test_the_kind_is_found_by_its_name():
    assert kinds.get("openvla_oft").options is OftOptions


def test_practice_gives_an_adapter_and_is_resumed_to_the_byte(start, tmp_path):
    before = ript.load_policy(start)
    assert before.config.rank == 0 and before.config.sizes.chunk == 4
    whole = train_rl(config(), start, tmp_path / "whole")
    after = ript.load_policy(whole.policy)
    train_rl(replace(config(), iterations=1), start, tmp_path / "parts")
    parts = train_rl(config(), None, tmp_path / "parts", resume=True, asked=["iterations"])
    assert ript.load_policy(parts.policy) == after
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    assert last["update/first_ratio_deviation"] < 1e-4


def test_practice_of_the_head_in_bfloat16_is_resumed_to_the_byte(start, tmp_path):
    c = replace(config(), policy=replace(config().policy, rl_trains="head", precision="bfloat16"))
    whole = train_rl(c, start, tmp_path / "whole")
    train_rl(replace(c, iterations=1), start, tmp_path / "parts")
    parts = train_rl(c, None, tmp_path / "parts", resume=True, asked=["iterations"])
    after = ript.load_policy(whole.policy)
    assert after.network.dtype == torch.bfloat16 and ript.load_policy(parts.policy) == after
    assert ript.load_policy(start).network.dtype == torch.float32


def test_an_untrained_policy_moves_enough_to_succeed_now_and_then(tmp_path):
    c = replace(config(), iterations=1, sampling=replace(config().sampling, group_size=8))
    train_rl(c, None, tmp_path / "run")
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 0 < row["rollout/success"] < 1 and row["update/optimiser_steps"] > 0


def test_workers_give_the_rollouts_of_this_process(start, tmp_path):
    results = []
    for workers, inference in ((0, "local"), (2, "local"), (1, "central")):
        c = replace(config(), iterations=0, rollout=replace(config().rollout, workers=workers, inference=inference))
        result = train_rl(c, start, tmp_path / f"{workers}{inference}")
        results.append({mode: found.per_state for mode, found in result.before.items()})
    assert results[0] == results[1] == results[2]


def test_a_published_folder_is_a_policy_like_any_other():
    policy = ready(ript.load_policy(TINY))
    np.testing.assert_array_equal(policy.predict(observation("s0"))[0], published().predict(observation("s0"))[0])


def test_a_published_folder_with_adapter_and_heads_is_imported_by_a_command(tmp_path, capsys):
    out = tmp_path / "imported"
    words = ["import", "openvla", str(TINY), "--adapter", str(ADAPTER)]
    assert cli.main([*words, "--statistics", "libero_spatial", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["rank"] == 4
    imported, plain = ript.load_policy(out), published(adapter=ADAPTER)
    assert imported.simulator.render["look"] == "faithful" and not plain.simulator.render
    imported.simulator = plain.simulator
    assert imported == plain
    assert cli.main([*words, "--statistics", "libero_goal", "--out", str(out)]) == 1
    assert "no statistics of 'libero_goal'" in capsys.readouterr().err


def test_a_folder_of_another_model_is_no_policy(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PolicyError):
        ript.load_policy(tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"scale_clip": (0.5, -2.0)}, "policy.scale_clip: the least log-scale must be below"),
        ({"chunk": 4, "execute": 5}, r"policy.execute: must be at most policy.chunk \(4\), got 5"),
        ({"rl_trains": "prior"}, "policy.rl_trains"),
        ({"precision": "bfloat16"}, "policy.precision"),
        ({"temperature": 0.0}, "policy.temperature"),
    ],
)
def test_options_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        OftOptions(**given)


def test_practice_without_a_scale_head_says_what_to_do(tmp_path, start):
    policy = ript.load_policy(start)
    policy.network.scale_head = None
    with pytest.raises(PolicyError, match=r"no scale head, .* train one \(`ript sft`\)"):
        train_rl(config(), policy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_small_recipe_goes_from_nothing_to_a_practised_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    recipe, small = recipes.get("openvla_oft_small"), config()
    assert recipe.policy.size == "small" and recipe.sft.scale_steps > 0
    c = replace(
        recipe,
        tasks=small.tasks,
        pretrain_tasks=("reach-left", "reach-corner"),
        iterations=1,
        sim=small.sim,
        policy=replace(recipe.policy, size="tiny"),
        demos=replace(small.demos, per_task=3),
        sft=replace(small.sft, policy_steps=5, scale_steps=5),
        rollout=small.rollout,
        sampling=replace(small.sampling, horizon=12),
        learn=replace(recipe.learn, threads=1),
        eval=replace(recipe.eval, trials=4, every=0, videos=0),
    )
    result = quickstart(config=c, out=tmp_path / "run")
    assert result.rl.iterations == 1
    adapted = ript.load_policy(result.rl.policy)
    assert recipe.policy.rl_trains == "head" and adapted.config.rank == 0 and adapted.config.base is None


def test_what_practice_changed_is_read_from_a_folder_without_its_base(start, tmp_path):
    policy = ript.load_policy(start).with_adapter(2, 1.0)
    with torch.no_grad():
        for parameter in policy._trained().values():
            parameter.add_(torch.rand(parameter.shape))
    policy.save_pretrained(tmp_path / "saved")
    found = hooks.weights_in(policy, tmp_path / "saved", lambda folder: pytest.fail("the whole policy was loaded"))
    assert found.keys() == policy.weights().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in policy.weights().items())


def test_a_run_says_how_much_it_is_before_it_begins(start, tmp_path, capsys):
    train_rl(replace(config(), iterations=0), start, tmp_path / "run")
    # 8 test states four times, 5 validation states once
    assert "0 iterations: at most 37 rollouts, 592 env-steps\n" in capsys.readouterr().err
    # 2 iterations of 8 attempts of 4 rollouts; 8 test states four times, 5 validation states before and after each
    found = amount(config(), execute=4)
    assert found.rollouts == 2 * 8 * 4 + 4 * 8 + 3 * 5
    assert found.env_steps == 16 * found.rollouts and found.decisions == 2 * 4 * 4 * 4
    # without dynamic sampling no group is made in place of another
    plain = replace(config(), sampling=replace(config().sampling, dynamic=False))
    assert amount(plain, execute=4).rollouts == 2 * 4 * 4 + 4 * 8 + 3 * 5


def test_the_rank_of_an_adapter_that_is_there_is_not_another(start, tmp_path):
    policy = ript.load_policy(start).with_adapter(2, 0.5)
    ours = replace(config(), iterations=0, policy=replace(config().policy, rank=2, alpha=1.0))
    train_rl(ours, policy, tmp_path / "same")
    with pytest.raises(ConfigError, match=r"policy\.rank = 4 \(the policy has rank = 2\)"):
        train_rl(replace(config(), iterations=0), policy, tmp_path / "other", asked=["policy.rank"])
    assert not (tmp_path / "other").exists()


TOY = ["--sim.suite=toy", "--tasks", "reach-centre"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["sft", "--demos", "d.hdf5", "--policy.rank=4", *TOY], "policy.rank has no effect on a new policy"),
        (
            ["rl", "--policy.adapts=everything"],
            "policy.adapts has no effect in `ript rl`: leave it out (`ript sft` and",
        ),
    ],
)
def test_settings_of_an_adapter_are_refused_where_they_change_nothing(words, message, start, tmp_path, capsys):
    (tmp_path / "d.hdf5").symlink_to(start.parents[1] / "demos.hdf5")
    words = [str(tmp_path / word) if word == "d.hdf5" else word for word in words]
    assert cli.main([*words, "--recipe", "openvla_oft_small", "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_supervised_training_gives_a_policy_that_computed_in_bfloat16_its_float32_weights(start, tmp_path):
    c = replace(config(), iterations=1, policy=replace(config().policy, rl_trains="head", precision="bfloat16"))
    practised = train_rl(c, start, tmp_path / "rl").policy
    assert ript.load_policy(practised).network.dtype == torch.bfloat16
    tiny_steps = replace(config().sft, finetune_learning_rate=1e-6, scale_steps=0)
    c = replace(config(), sft=tiny_steps)
    train_sft(c, start.parents[1] / "demos.hdf5", tmp_path / "sft", base=practised)
    before, after = (ript.load_policy(place) for place in (practised, tmp_path / "sft" / "policy"))
    assert after.config.precision == "float32" and {p.dtype for p in after.parameters()} == {torch.float32}
    was, now = before.network.state_dict(), after.network.state_dict()
    moved = [(now[name] != was[name].float()).float().mean() for name in was if not name.startswith("scale_head.")]
    assert sum(moved) / len(moved) > 0.5  # of bfloat16's numbers no step of 1e-6 changes any
    bits = {name for name, tensor in now.items() if not torch.equal(tensor, tensor.bfloat16().float())}
    assert len(bits) > 40


def test_what_is_trained_whole_is_kept_as_it_says_on_any_device(start):
    own = ript.load_policy(start).config
    assert usual_type("cuda", own) == usual_type("cpu", own) == torch.float32
    assert usual_type("cpu", dataclasses.replace(own, precision="bfloat16")) == torch.bfloat16
    referring = dataclasses.replace(own, base=Base(name="elsewhere", revision=None, index="0"))
    assert usual_type("cuda", referring) == usual_type("cuda", None) == torch.bfloat16
    assert usual_type("cpu", referring) == usual_type("cpu", None) == torch.float32


@pytest.mark.parametrize("word", ["rank=4", "alpha=3", "recompute=true"])
def test_settings_of_an_adapter_are_refused_where_the_head_alone_practises(word, start, tmp_path, capsys):
    words = ["rl", "--recipe", "smoke", "--policy", str(start), "--policy.rl_trains=head", f"--policy.{word}"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
    said = f"policy.{word.partition('=')[0]} has no effect while policy.rl_trains = head"
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_records_nothing_of_an_adapter_that_it_does_not_have(start, tmp_path):
    c = replace(config(), iterations=0, policy=replace(config().policy, rl_trains="head"))
    run = train_rl(c, start, tmp_path / "head").folder
    recorded = json.loads((run / "config.json").read_text())["config"]["recipe_config"]["policy"]
    assert "temperature" in recorded and not {"rank", "alpha", "recompute", "adapts"} & recorded.keys()
    demos = start.parents[1] / "demos.hdf5"
    train_sft(replace(c, sft=replace(c.sft, finetune_steps=1, scale_steps=0)), demos, tmp_path / "sft", base=start)
    recorded = json.loads((tmp_path / "sft" / "config.json").read_text())["config"]["recipe_config"]["policy"]
    assert recorded["recompute"] is False and not {"rank", "alpha", "adapts"} & recorded.keys()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("word", ["rank=4", "alpha=3", "adapts=everything"])
def test_supervised_training_refuses_settings_of_an_adapter_that_it_does_not_give(
    adapter, word, start, tmp_path, capsys
):
    (base, demos), name = (start, start.parents[1] / "demos.hdf5"), f"policy.{word.partition('=')[0]}"
    if adapter:
        base = tmp_path / "adapted"
        ript.load_policy(start).with_adapter(2, 0.5).save_pretrained(base)
    words = ["sft", "--recipe", "smoke", "--base", str(base), "--demos", str(demos), *TOY, f"--policy.{word}"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
    said = rf"{name} = \S+ \(the base has" if adapter else f"{name} has no effect: the base holds all its weights"
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / "run").exists()
