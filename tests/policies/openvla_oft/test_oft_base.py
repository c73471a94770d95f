"""Supervised training of a published base: an adapter, both heads, and a base that is only referred to."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_oft_checkpoint import folder  # noqa: F401  a copy of the published folder

import ript
from ript.config.sections import Config
from ript.core.errors import ConfigError, PolicyError
from ript.core.options import replace
from ript.core.types import InitialState, Task
from ript.demos.formats.writer import DemoWriter
from ript.demos.records import Demo
from ript.learn.stages import StageSettings, run_stages
from ript.policies.openvla_oft.checkpoint import load
from ript.policies.openvla_oft.options import OftOptions, OftTraining
from ript.policies.openvla_oft.prompt import small_tokenizer
from ript.run.checkpoint import list_checkpoints, read_checkpoint
from ript.sft import resume_sft, train_sft
from ript.sims.toy.options import ToyOptions

TASK = Task(suite="toy", name="reach-centre", instruction="pick up the black bowl", index=0, horizon=16)


@pytest.fixture
def base(folder, tmp_path):  # noqa: F811
    """A policy folder that refers to a published one; said to be of a suite that is installed everywhere."""
    (folder / "tokenizer.json").write_text(small_tokenizer([TASK.instruction], 300).to_str())
    policy = load(folder, suite="libero_spatial")
    policy.simulator = dataclasses.replace(policy.simulator, suite="toy")
    policy.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def demos(base, tmp_path):
    """Two looks of one demonstration of seven actions."""
    spec, rng = ript.load_policy(base).simulator, np.random.default_rng(0)
    colours = rng.integers(0, 256, (2, 2, 8, 8, 3), np.uint8).repeat(32, axis=2).repeat(32, axis=3)
    actions = rng.uniform(-0.5, 0.5, (7, 7)).astype(np.float32)
    demo = Demo(
        initial_state=InitialState(task=TASK, state=np.zeros(2), origin="demo"),
        actions=actions,
        executed_actions=actions,
        frame_steps=np.array([0, 4]),
        images=dict(zip(spec.cameras, colours, strict=True)),
        proprio=rng.normal(size=(2, 8)).astype(np.float32),
        privileged=None,
        tries=1,
    )
    with DemoWriter(tmp_path / "demos.hdf5", {}) as writer:
        writer.add(0, demo, spec)
    return tmp_path / "demos.hdf5"


def config(**training) -> Config:
    return Config(
        recipe="own",
        tasks=("reach-centre",),
        sim=ToyOptions(),
        policy=OftOptions(rank=2, alpha=1.0, adapts="everything"),
        sft=OftTraining(
            **{"finetune_steps": 3, "scale_steps": 2, "policy_batch": 4, "scale_batch": 2, "threads": 1} | training
        ),
    )


def written(folder):  # noqa: F811
    return {path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors")}


def test_adapter_and_heads_are_trained_and_nothing_else_is_kept(base, demos, tmp_path):
    policy = train_sft(config(checkpoint_every=1), demos, tmp_path / "run", base=base)
    files = written(tmp_path / "run" / "policy")
    assert files == {"config.json", "adapter_config.json", "adapter_model.safetensors", "model.safetensors"}
    heads = load_file(tmp_path / "run" / "policy" / "model.safetensors")
    assert {name.partition(".")[0] for name in heads} == {"action_head", "proprio_projector", "scale_head"}
    again, before = ript.load_policy(tmp_path / "run" / "policy"), ript.load_policy(base)
    assert again == policy and again.config.base == before.config.base and again.config.rank == 2
    was, now = before.network.state_dict(), again.network.state_dict()
    changed = {name.partition(".")[0] for name in was if not torch.equal(was[name], now[name])}
    assert changed == {"action_head", "proprio_projector"}
    adapters = {name.partition(".")[0] for name in now if name.endswith("lora_B.weight") and now[name].any()}
    assert adapters == {"vision_backbone", "projector", "language_model"}
    (*_, newest) = list_checkpoints(tmp_path / "run" / "checkpoints")
    kept = set(read_checkpoint(newest).state["policy"])
    assert all(".lora_" in name or "_head." in name or "proprio_projector." in name for name in kept)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(base, demos, tmp_path, monkeypatch):
    whole = train_sft(config(checkpoint_every=1), demos, tmp_path / "whole", base=base)
    from ript.run.folder import RunFolder

    save, done = RunFolder.save_checkpoint, []

    def stopping(self, iteration, state):
        path = save(self, iteration, state)
        done.append(iteration)
        if iteration == 2:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(RunFolder, "save_checkpoint", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_sft(config(checkpoint_every=1), demos, tmp_path / "parts", base=base)
    monkeypatch.setattr(RunFolder, "save_checkpoint", save)
    assert done == [1, 2]
    resume_sft(tmp_path / "parts")
    assert ript.load_policy(tmp_path / "parts" / "policy") == whole


def test_passes_of_a_batch_change_nothing(base, demos, tmp_path):
    steps = {"finetune_steps": 1, "scale_steps": 1}
    whole = train_sft(config(**steps), demos, tmp_path / "whole", base=base).network.state_dict()
    cut = train_sft(config(**steps, micro_batch=1), demos, tmp_path / "cut", base=base).network.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=2e-6)


def test_a_policy_that_normalises_over_batches_is_not_trained_in_passes():
    settings = StageSettings(
        seed=0, threads=1, weight_decay=0.0, max_grad_norm=1.0, warmup=0.0, checkpoint_every=1, micro_batch=2
    )
    with pytest.raises(
        ConfigError, match=r"sft\.micro_batch = 2: the policy normalises by statistics of whole batches"
    ):
        run_stages(None, torch.nn.BatchNorm1d(2), [], settings)


def test_the_adapter_is_where_it_was_asked_for(base, demos, tmp_path):
    c = replace(config(finetune_steps=1, scale_steps=0), policy=OftOptions(rank=2, alpha=1.0))
    train_sft(c, demos, tmp_path / "run", base=base)
    told = json.loads((tmp_path / "run" / "policy" / "adapter_config.json").read_text())
    assert all(name.startswith("language_model.") for name in told["target_modules"])


def test_a_base_without_heads_learns_new_ones_and_the_demonstrations_statistics(folder, demos, tmp_path):  # noqa: F811
    for file in (*folder.glob("*.pt"), folder / "dataset_statistics.json"):
        file.unlink()
    policy = load(folder, heads="new")
    assert policy.caveats == ("New heads: it acts at random until `ript sft` has trained them on demonstrations.",)
    policy.simulator = dataclasses.replace(policy.simulator, suite="toy")
    policy.save_pretrained(tmp_path / "new")
    trained = train_sft(config(), demos, tmp_path / "run", base=tmp_path / "new")
    assert trained.config.statistics.key == "toy" and not trained.caveats
    with_demos = ript.load_policy(tmp_path / "run" / "policy")
    assert with_demos == trained and with_demos.config.base == policy.config.base
    was, now = policy.network.state_dict(), with_demos.network.state_dict()
    changed = {name.partition(".")[0] for name in was if not torch.equal(was[name], now[name])}
    assert changed == {"action_head", "proprio_projector"}


def test_new_heads_are_for_a_base_without_any(folder):  # noqa: F811
    with pytest.raises(PolicyError, match=r"has an L1 head .action_head--150000_checkpoint.pt.: read it as it is"):
        load(folder, heads="new")
    with pytest.raises(ConfigError, match="new heads are trained with statistics and an adapter of their own"):
        load(folder, heads="new", suite="libero_spatial")
