"""The Gaussian kind through the whole loop: demonstrations, supervised training, practice, folder."""

import json
import signal
from pathlib import Path

import h5py
import pytest
import torch

from ript import collect_demos, load_policy, recipe, train_rl, train_sft
from ript.build import simulator_factory
from ript.config import overrides
from ript.config.sections import Config
from ript.core.errors import DataError
from ript.policies.gaussian.policy import GaussianPolicy
from ript.sft import resume_sft

torch.set_num_threads(1)


def config(**changes: str) -> Config:
    """The recipe for policies and environments of one's own, on the toy and small."""
    words = {
        "sim.suite": "toy",
        "sim.horizon": "24",
        "tasks": "reach",
        "policy.std": "1.0",
        "policy.points": "16",
        "policy.width": "64",
        "sft.policy_steps": "80",
        "sft.threads": "1",
        "rollout.workers": "0",
        "rollout.slots": "64",
        "iterations": "8",
        "sampling.groups": "16",
        "sampling.max_attempts": "24",
        "learn.learning_rate": "3e-3",
        "learn.epochs": "6",
        "learn.threads": "1",
        "eval.every": "0",
        "eval.trials": "60",
        "eval.videos": "0",
    }
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return overrides.apply(recipe("practice"), {name: [value] for name, value in {**words, **given}.items()})


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demos") / "d.hdf5"
    collect_demos(simulator_factory(config().sim), ["toy/reach"], 4, path, every=1)
    return path


@pytest.mark.timeout(240)
def test_four_demonstrations_and_practice_raise_success_on_test_states(demos: Path, tmp_path: Path) -> None:
    train_sft(config(), [demos], tmp_path / "sft")
    result = train_rl(config(), tmp_path / "sft" / "policy", tmp_path / "rl")
    before, after = (x["greedy"].total.successes for x in (result.before, result.after))
    assert before > 6 and after >= before + 15, (before, after)  # of 60
    assert isinstance(load_policy(result.policy), GaussianPolicy)


@pytest.mark.parametrize("privileged", ["0", "1"])
def test_supervised_training_that_is_resumed_ends_with_the_same_weights(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privileged: str
) -> None:
    small = config(sft__policy_steps="12", sft__checkpoint_every="5", sft__privileged=privileged)
    train_sft(small, [demos], tmp_path / "whole")
    calls = iter(range(100))
    original = GaussianPolicy.loss

    def stopping(*args, **kwargs):
        if next(calls) == 8:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, as a terminal sends it
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GaussianPolicy, "loss", stopping)
        train_sft(small, [demos], tmp_path / "parts")
    resume_sft(tmp_path / "parts")
    whole, parts = (tmp_path / name / "policy" / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_a_policy_is_trained_further_on_target_tasks_and_keeps_what_it_normalises_with(
    demos: Path, tmp_path: Path
) -> None:
    small = config(sft__policy_steps="5")
    train_sft(small, [demos], tmp_path / "base")
    other = tmp_path / "other.hdf5"
    collect_demos(simulator_factory(small.sim), ["toy/reach-left"], 2, other, every=1)
    further = config(sft__policy_steps="5", tasks="reach-left")
    policy = train_sft(further, [demos, other], tmp_path / "further", base=tmp_path / "base" / "policy")
    base = load_policy(tmp_path / "base" / "policy")
    assert torch.equal(policy.proprio_mean, base.proprio_mean) and not torch.equal(policy.mean.weight, base.mean.weight)


def test_a_policy_that_is_told_where_objects_are_learns_it_and_keeps_no_map_of_it(demos: Path, tmp_path: Path) -> None:
    trained = train_sft(config(sft__privileged="10", sft__checkpoint_every="40"), [demos], tmp_path / "told")
    assert not any("objects" in name for name in trained.weights())  # nor does practice send it about
    rows = [json.loads(line) for line in (tmp_path / "told" / "metrics.jsonl").read_text().splitlines()]
    early, late = (row["policy/objects_loss"] for row in rows)
    assert late < 0.7 * early
    policy = load_policy(tmp_path / "told" / "policy")
    assert isinstance(policy, GaussianPolicy) and not any("objects" in name for name in policy.state_dict())
    assert policy.card["supervised training"]["auxiliary loss on object positions from the simulator"] == "yes"
    with h5py.File(demos, "r") as source, h5py.File(tmp_path / "silent.hdf5", "w") as silent:
        source.copy("data", silent)
        silent.attrs.update(source.attrs)
        for demo in silent["data"].values():
            del demo["obs/privileged"]
    with pytest.raises(DataError, match=r"collect them with --sim\.privileged"):
        train_sft(config(sft__privileged="1"), [tmp_path / "silent.hdf5"], tmp_path / "silent")


def test_a_policy_of_several_observation_steps_is_trained_practised_and_measured(demos: Path, tmp_path: Path) -> None:
    small = {"sft__policy_steps": "3", "iterations": "1", "sampling__groups": "4", "sampling__max_attempts": "8"}
    two = config(policy__n_obs_steps="2", eval__trials="4", **small)
    train_sft(two, [demos], tmp_path / "sft")
    result = train_rl(config(eval__trials="4", **small), tmp_path / "sft" / "policy", tmp_path / "rl")  # ratios are 1
    policy = load_policy(result.policy)
    assert isinstance(policy, GaussianPolicy) and policy.n_obs_steps == 2
    assert policy.trunk[0].in_features == 2 * (len(policy.encoders) * 2 * 16 + 2)
    sparse = tmp_path / "sparse.hdf5"
    collect_demos(simulator_factory(two.sim), ["toy/reach"], 1, sparse, every=2)
    with pytest.raises(DataError, match=r"--demos\.every=1"):
        train_sft(two, [sparse], tmp_path / "other")
