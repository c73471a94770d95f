"""Supervised stages: they learn, they go on exactly where they stopped, and they say what they cannot do."""

import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import Stopped, lively_policy, stop_in, toy_config, toy_demos, weights, without_times

from ript.build import make_policy, simulator_factory
from ript.config.sections import Config
from ript.core.errors import ConfigError, DataError, NotFiniteError, PolicyError, RunError
from ript.core.metrics import Metrics, values
from ript.core.options import replace
from ript.core.types import DemoBatch
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.windows import Windows
from ript.learn import stages as sft_stages
from ript.learn.gradient import Gradient
from ript.learn.stages import Part, batch_parts, part_loss, part_threads, schedule
from ript.policies import language
from ript.policies.loading import load_policy
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.replay import replay_autoencoded
from ript.policies.quest.stages import babble, make_stages
from ript.run.checkpoint import list_checkpoints, read_checkpoint
from ript.run.folder import RunFolder
from ript.sft import resume_sft, train_sft
from ript.sims.registry import make_simulator

CONFIG = toy_config(
    policy={"privileged": True},
    sft={"autoencoder_learning_rate": 5e-3, "policy_learning_rate": 5e-3, "checkpoint_every": 5},
)
BASE = ("reach-left", "reach-corner")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Demonstrations of two tasks, and of the target."""
    folder = tmp_path_factory.mktemp("demos")
    return [toy_demos(folder / "base.hdf5", CONFIG, *BASE), toy_demos(folder / "target.hdf5", CONFIG, "reach-centre")]


@pytest.fixture(scope="module")
def reference(demos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all three stages that nothing interrupts."""
    folder = tmp_path_factory.mktemp("sft") / "run"
    train_sft(CONFIG, demos, folder)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- it learns


def test_every_stage_is_logged_and_its_loss_falls(reference: Path) -> None:
    logged = rows(reference)
    assert [row["iteration"] for row in logged] == list(range(5, 55, 5))
    reconstruction = [row["autoencoder/reconstruction_l1"] for row in logged[:4]]
    assert reconstruction[-1] < 0.7 * reconstruction[0]
    assert all(row["autoencoder/codes_used"] >= 1 for row in logged[:4])
    loss = [row["policy/token_loss"] for row in logged[4:8]]
    assert loss[-1] < 0.8 * loss[0]
    assert logged[7]["policy/token_accuracy"] > logged[4]["policy/token_accuracy"]
    assert logged[7]["policy/privileged_loss"] < logged[4]["policy/privileged_loss"]
    assert all(row["finetune/token_loss"] > 0 and row["learning_rate"] > 0 for row in logged[8:])
    stages = ["autoencoder"] * 4 + ["policy"] * 4 + ["finetune"] * 2
    assert all(math.isfinite(row[f"{stage}/grad_norm"]) for row, stage in zip(logged, stages, strict=True))


def test_the_result_is_a_policy_with_statistics_and_a_card_of_how_it_was_made(
    reference: Path, demos: list[Path]
) -> None:
    policy = load_policy(reference / "policy")
    statistics = Windows(open_demos(demos), policy.config.chunk).statistics()
    np.testing.assert_array_equal(policy.encoder.proprio_mean.numpy(), statistics.proprio_mean)
    np.testing.assert_array_equal(policy.encoder.proprio_std.numpy(), statistics.proprio_std)
    np.testing.assert_array_equal(policy.encoder.privileged_mean.numpy(), statistics.privileged_mean)
    assert policy.config.privileged_dim == 2
    card = policy.card["supervised training"]
    assert card["demonstrations"] == 6 and card["target tasks"] == "reach-centre"
    assert card["tasks"] == "reach-left, reach-corner, reach-centre"
    assert card["auxiliary loss on object positions from the simulator"] == "yes"
    assert json.loads((reference / "result.json").read_text())["reason"] == "all stages done"


def test_equal_seeds_give_equal_policies_whatever_the_state_of_this_process(
    reference: Path, demos: list[Path], tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    returned = train_sft(CONFIG, demos, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert weights(tmp_path / "again") == weights(reference)
    assert returned == load_policy(tmp_path / "again" / "policy") and not returned.training
    train_sft(replace(CONFIG, seed=1), demos, tmp_path / "other")
    assert weights(tmp_path / "other") != weights(reference)


def test_threads_each_take_a_part_of_a_batch_and_runs_still_repeat_and_go_on(
    demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, sft=replace(CONFIG.sft, threads=3, policy_batch=16))
    sizes: list[int] = []
    workers: set[int] = set()
    loss = QuestPolicy.loss

    def watched(self: QuestPolicy, batch: DemoBatch, **scale: float) -> tuple[torch.Tensor, Metrics]:
        sizes.append(len(batch.mask))
        workers.add(threading.get_ident())
        return loss(self, batch, **scale)

    with monkeypatch.context() as patch:
        patch.setattr(QuestPolicy, "loss", watched)
        train_sft(config, demos, tmp_path / "once")
    assert sorted(sizes) == [5] * 60 + [6] * 30  # 20 steps of the policy, 10 of fine-tuning
    assert len(workers) > 1 and threading.get_ident() not in workers
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 35)
        train_sft(config, demos, tmp_path / "again")
    train_sft(config, demos, tmp_path / "again", resume=True)
    assert weights(tmp_path / "again") == weights(tmp_path / "once")
    logged = rows(tmp_path / "once")
    assert logged[7]["policy/token_loss"] < 0.8 * logged[4]["policy/token_loss"]


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_loss_and_gradient_of_a_batch_do_not_depend_on_the_threads_that_share_it(
    demos: list[Path], threads: int
) -> None:
    """Windows that are padded, dropout, augmentation, drawn tokens, the auxiliary loss: every stage, all at once."""
    config = replace(CONFIG, sft=replace(CONFIG.sft, finetune_decoder=10.0, colour_jitter=0.3, policy_batch=40))
    demo_set = open_demos(demos)
    spec = make_policy(config, demo_set.spec, 2).config.to_json()
    torch.manual_seed(0)
    policy = QuestPolicy(QuestConfig.from_json(spec | {"dropout": 0.2, "autoencoder_dropout": 0.2}), demo_set.spec)
    windows = Windows(demo_set, policy.config.chunk)
    policy.embed([task.instruction for task in windows.tasks])
    policy.train()
    for stage in make_stages(policy, config.sft, windows, ["toy/reach-centre"], fresh=True):
        rows = np.sort(next(stage.draws(np.random.default_rng(0))))  # the ends of demonstrations fall together
        parameters = [p for module in stage.modules for p in module.parameters()]
        found = []
        for n in (1, threads):
            parts = batch_parts(rows, n, (5, 6))
            assert len(parts) == n and np.concatenate([part.rows for part in parts]).tolist() == rows.tolist()
            policy.zero_grad()
            with Gradient(parameters, n) as gradient:
                metrics = gradient.add(partial(part_loss, stage), parts)
            total = sum(float(part_loss(stage, part)[0].detach()) for part in parts)
            found.append((total, [p.grad.clone() for p in parameters if p.grad is not None], values(metrics)))
        (whole, whole_gradients, whole_metrics), (parted, gradients, metrics) = found
        assert parted == pytest.approx(whole, rel=1e-5), stage.name
        assert metrics == pytest.approx(whole_metrics, rel=1e-5)
        torch.testing.assert_close(gradients, whole_gradients, rtol=1e-4, atol=2e-6)
        assert float(part_loss(stage, batch_parts(rows, 1, (5, 7))[0])[0].detach()) != whole


def test_the_windows_that_are_drawn_and_the_seeds_of_noise_do_not_depend_on_the_threads(
    demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, list[tuple[list[int], Sequence[int] | None]]] = {}
    original = sft_stages.batch_parts

    def watched(rows: np.ndarray, threads: int, seed: Sequence[int] | None) -> list[Part]:
        drawn.setdefault(threads, []).append((rows.tolist(), seed))
        return original(rows, threads, seed)

    monkeypatch.setattr(sft_stages, "batch_parts", watched)
    for n in (1, 3):
        train_sft(replace(CONFIG, sft=replace(CONFIG.sft, threads=n)), demos, tmp_path / str(n))
    assert len(drawn[1]) == 50 and drawn[1] == drawn[3]


def test_batch_statistics_are_of_the_whole_batch() -> None:
    config = replace(CONFIG, sft=replace(CONFIG.sft, threads=2))
    policy = make_policy(config, make_simulator("toy/reach", image_size=8).spec, 2)
    assert part_threads(policy, config.sft.threads) == 2
    policy.encoder.add_module("norm", torch.nn.BatchNorm2d(3))
    assert part_threads(policy, config.sft.threads) == 1


# ---------------------------------------------------------------------- it goes on where it stopped

MOMENTS: dict[str, tuple[str, Callable[..., bool] | int]] = {
    "before the first checkpoint": ("log", 5),
    "in the autoencoder stage": ("save_checkpoint", 15),
    "between autoencoder and policy": ("log", 25),
    "in the policy stage": ("log", 35),
    "between policy and fine-tuning": ("save_checkpoint", 45),
    "in fine-tuning": ("log", 50),
    "writing the policy": ("replace", lambda *_: True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_training_stopped_at_any_moment_goes_on_to_the_same_end(
    reference: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, *MOMENTS[moment])
        train_sft(CONFIG, demos, tmp_path / "run")
    assert not (tmp_path / "run" / "policy").exists()
    torch.manual_seed(99)
    resume_sft(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(reference)
    assert without_times(tmp_path / "run") == without_times(reference)


def test_finished_training_that_is_resumed_stays_what_it_is(reference: Path) -> None:
    before = weights(reference), without_times(reference)
    resume_sft(reference)
    assert (weights(reference), without_times(reference)) == before


# ---------------------------------------------------------------------- fine-tuning from a base


@pytest.fixture(scope="module")
def base(demos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    train_sft(replace(CONFIG, tasks=()), demos[:1], folder)
    return folder / "policy"


def test_a_base_learns_from_all_its_tasks_without_a_target(base: Path) -> None:
    assert [row["iteration"] for row in rows(base.parent)] == list(range(5, 45, 5))
    assert load_policy(base).card["supervised training"]["target tasks"] == "none"


def test_fine_tuning_keeps_the_base_s_skills_and_statistics_and_trains_the_rest(
    base: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, sft=replace(CONFIG.sft, finetune_learning_rate=3e-3))
    tuned = train_sft(config, demos, tmp_path / "run", base=base)
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [5, 10]
    old, new = load_policy(base).state_dict(), tuned.state_dict()
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert {n for n in old if n.startswith(("autoencoder.", "encoder.proprio_", "encoder.privileged_"))} <= same
    assert {"prior.head.weight", "encoder.task.weight", "encoder.observation.weight"} & same == set()
    assert load_policy(base).state_dict().keys() == new.keys()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 10)
        train_sft(config, demos, tmp_path / "stopped", base=base)
    resume_sft(tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "run")


def test_fine_tuning_can_train_the_action_decoder_and_nothing_else_of_the_skills(
    base: Path, demos: list[Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, sft=replace(CONFIG.sft, finetune_learning_rate=3e-3, finetune_decoder=10.0))
    tuned = train_sft(config, demos, tmp_path / "run", base=base)
    old, new = load_policy(base).state_dict(), tuned.state_dict()
    changed = {name for name in old if name.startswith("autoencoder.") and not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("autoencoder.decoder.") for name in changed)
    assert all(row["finetune/decoder_l1"] > 0 for row in rows(tmp_path / "run"))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_steps_can_be_given_as_passes_over_the_windows(
    share: float, base: Path, demos: list[Path], tmp_path: Path
) -> None:
    sft = replace(CONFIG.sft, finetune_epochs=3, finetune_share=share, checkpoint_every=1, policy_batch=8)
    train_sft(replace(CONFIG, sft=sft), demos, tmp_path / "run", base=base)
    own = [entry for entry in open_demos(demos).entries if entry.task.name in CONFIG.tasks]
    assert len(rows(tmp_path / "run")) == math.ceil(3 * sum(entry.looks for entry in own) / (8 * share))


def test_fine_tuning_batches_have_the_configured_share_of_the_target(
    base: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    loss = QuestPolicy.loss
    monkeypatch.setattr(
        QuestPolicy,
        "loss",
        lambda self, batch, **scale: (seen.extend(batch.observation.instruction), loss(self, batch, **scale))[1],
    )
    for share in (0.25, 1.0):
        seen.clear()
        config = replace(CONFIG, sft=replace(CONFIG.sft, finetune_steps=3, finetune_share=share))
        train_sft(config, demos, tmp_path / str(share), base=base)
        instruction = make_simulator("toy/reach-centre").task.instruction
        assert len(seen) == 3 * 16 and seen.count(instruction) == pytest.approx(share * 48, abs=2)


def test_fine_tuning_toward_nothing_is_refused(base: Path, demos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fine-tuned toward target tasks, and none is given"):
        train_sft(replace(CONFIG, tasks=()), demos, tmp_path / "run", base=base)
    assert not (tmp_path / "run").exists()


def test_a_base_for_another_camera_is_refused(base: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, sim=replace(CONFIG.sim, image_size=16))
    other = toy_demos(tmp_path / "other.hdf5", config, "reach-centre")
    with pytest.raises(
        PolicyError, match=r"cameras .*\(8, 8\).*\(16, 16\).*; what it was made for is --sim.image_size=8$"
    ):
        train_sft(config, [other], tmp_path / "run", base=base)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("with_base", [False, True])
def test_a_target_without_demonstrations_is_refused_by_name(
    base: Path, demos: list[Path], tmp_path: Path, with_base: bool
) -> None:
    with pytest.raises(DataError, match=r"no demonstration of target task toy/reach-centre .* toy/reach-corner"):
        train_sft(CONFIG, demos[:1], tmp_path / "run", base=base if with_base else None)
    assert not (tmp_path / "run").exists()


def test_demonstrations_that_are_not_there_or_gone_are_named(
    demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"nowhere\.hdf5"):
        train_sft(CONFIG, [tmp_path / "nowhere.hdf5"], tmp_path / "run")
    moved = tmp_path / "moved.hdf5"
    moved.write_bytes(demos[1].read_bytes())
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 5)
        train_sft(CONFIG, [demos[0], moved], tmp_path / "run")
    moved.unlink()
    with pytest.raises(DataError, match=r"moved\.hdf5"):
        resume_sft(tmp_path / "run")


def test_training_does_not_go_on_with_other_demonstrations_than_it_began_with(
    demos: list[Path], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target.hdf5"
    shutil.copy(demos[1], target)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 15)
        train_sft(CONFIG, [demos[0], target], tmp_path / "run")
    collect_demos(simulator_factory(CONFIG.sim), ["toy/reach-centre"], 2, target, every=1, seed=1)
    with pytest.raises(RunError, match=r"run goes on with what it began with.*the demonstrations are others.*--out"):
        resume_sft(tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2 and not (tmp_path / "run" / "policy").exists()
    shutil.copy(demos[1], target)
    resume_sft(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(reference)


@pytest.mark.parametrize("fate", ["gone", "another"])
def test_fine_tuning_goes_on_from_the_base_that_it_began_with_whatever_became_of_that(
    base: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    train_sft(CONFIG, demos, tmp_path / "whole", base=base)
    folder = shutil.copytree(base, tmp_path / "base")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 5)
        train_sft(CONFIG, demos, tmp_path / "run", base=folder)
    shutil.rmtree(folder)
    if fate == "another":
        train_sft(replace(CONFIG, seed=5), demos, tmp_path / "other")
        shutil.copytree(tmp_path / "other" / "policy", folder)
    resume_sft(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert load_policy(tmp_path / "run" / "policy").card == load_policy(tmp_path / "whole" / "policy").card
    assert load_policy(tmp_path / "run" / "start") == load_policy(base)


def test_fine_tuning_that_was_killed_before_it_kept_its_base_does_not_begin_with_another(
    base: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(base, tmp_path / "base")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "change_settings", lambda *_: True)
        train_sft(CONFIG, demos, tmp_path / "run", base=folder)
    assert not (tmp_path / "run" / "start").exists()
    edited = load_policy(folder)
    with torch.no_grad():
        edited.prior.head.weight.mul_(2)
    edited.save_pretrained(folder)
    with pytest.raises(RunError, match=r"what it began with.*the base is another"):
        resume_sft(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(
    demos: list[Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, sft=replace(CONFIG.sft, policy_learning_rate=1e25, max_grad_norm=1e25))
    with pytest.raises(NotFiniteError, match=r"loss of stage policy became (nan|inf) at step \d+; lower the learning"):
        train_sft(config, demos, tmp_path / "run")
    kept = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert kept.iteration == 20 and rows(tmp_path / "run")[-1]["iteration"] == 20
    assert all(torch.isfinite(tensor).all() for tensor in kept.state["policy"].values())
    assert not (tmp_path / "run" / "policy").exists()


@pytest.mark.parametrize(("step", "threads"), [(22, 1), (25, 2), (50, 1)])
def test_a_gradient_that_is_not_finite_stops_training_before_the_step(
    demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, threads: int
) -> None:
    """Step 22 is within a stage, after step 25 a checkpoint is due, step 50 is the last of all."""
    config, steps, add = replace(CONFIG, sft=replace(CONFIG.sft, threads=threads)), itertools.count(1), Gradient.add

    def broken(self: Gradient, *args: Any) -> Metrics:
        metrics = add(self, *args)
        if next(steps) == step:
            self.parameters[0].grad.fill_(torch.inf)
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(Gradient, "add", broken)
        with pytest.raises(NotFiniteError, match=r"gradient norm is inf, first in encoder\..* at step \d+; lower"):
            train_sft(config, demos, tmp_path / "run")
    kept = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert kept.iteration == (step - 1) // 5 * 5
    assert all(torch.isfinite(tensor).all() for tensor in kept.state["policy"].values())
    assert not (tmp_path / "run" / "policy").exists()
    if step == 25:
        resume_sft(tmp_path / "run")
        assert load_policy(tmp_path / "run" / "policy")


@pytest.mark.parametrize("how", ["torch refuses", "infinite"])
def test_weights_that_a_step_makes_infinite_reach_no_checkpoint(
    base: Path, demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    step, said = torch.optim.AdamW.step, "a step at learning rate 1e[+]38 is beyond the range"
    rate = 1e38

    def too_far(self: torch.optim.AdamW) -> None:
        step(self)
        self.param_groups[0]["params"][0].data[0] = torch.inf

    if how == "infinite":
        rate, said = 1e-3, r"encoder\..* became NaN or infinite"
        monkeypatch.setattr(torch.optim.AdamW, "step", too_far)
    tuned = replace(CONFIG.sft, finetune_learning_rate=rate, finetune_steps=1, warmup=0.0)
    with pytest.raises(NotFiniteError, match=rf"{said}.* at step 0; lower the .*there was no checkpoint yet"):
        train_sft(replace(CONFIG, sft=tuned), demos[1:], tmp_path / "run", base=base)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints") and not (tmp_path / "run" / "policy").exists()


def test_a_stage_that_diverges_to_a_finite_loss_says_so(
    base: Path, demos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rate in (1e-3, 3e5):
        tuned = replace(CONFIG.sft, finetune_learning_rate=rate, finetune_steps=2)
        train_sft(replace(CONFIG, sft=tuned), demos[1:], tmp_path / f"{rate}", base=base)
        found = "finetune has diverged: token_loss was " in capsys.readouterr().err
        assert found is (rate == 3e5)


def test_a_folder_with_another_run_is_neither_overwritten_nor_resumed(
    reference: Path, demos: list[Path], tmp_path: Path
) -> None:
    before = weights(reference)
    with pytest.raises(RunError, match="already holds a run"):
        train_sft(CONFIG, demos, reference)
    assert weights(reference) == before
    RunFolder.create(tmp_path / "rl", {"recipe_config": Config().to_json()}, "rl").close()
    with pytest.raises(RunError, match="not a run of supervised training: go on with `ript rl --resume"):
        resume_sft(tmp_path / "rl")


# ---------------------------------------------------------------------- parts


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [schedule(step, 100, 1.0) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0 and all(b < a for a, b in itertools.pairwise(rates[5:]))
    assert rates[52] == pytest.approx(0.55 + 0.45 * math.cos(math.pi * 47 / 95))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert schedule(0, 1, 0.5) == 0.5
    assert [schedule(step, 140, 1.0) for step in (0, 6)] == pytest.approx([1 / 7, 1.0])  # 0.05 * 140 is above 7


def test_without_a_warm_up_the_learning_rate_starts_at_its_peak() -> None:
    rates = [schedule(step, 100, 1.0, warmup=0.0) for step in range(100)]
    assert rates[0] == 1.0 and all(b < a for a, b in itertools.pairwise(rates))
    assert rates[50] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_any_seed_that_is_allowed_can_be_trained_with(demos: list[Path], tmp_path: Path) -> None:
    short = replace(CONFIG.sft, autoencoder_steps=1, policy_steps=1, finetune_steps=1)
    train_sft(replace(CONFIG, seed=2**63 - 1, sft=short), demos, tmp_path / "run")
    assert (tmp_path / "run" / "policy").is_dir()


def test_the_published_ways_of_supervised_training_reach_every_step(
    demos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No warm-up, colour jitter, targets with dropout, proprioception as it is, instructions by CLIP."""
    seen: list[tuple[dict[str, Any], bool, bool]] = []
    loss = QuestPolicy.loss

    def watched(self: QuestPolicy, batch: DemoBatch, **settings: Any) -> tuple[torch.Tensor, Metrics]:
        asked = {name: settings[name] for name in ("decoder_scale", "colour_jitter", "noisy_targets")}
        seen.append((asked, self.autoencoder.training, self.autoencoder.decoder.training))
        return loss(self, batch, **settings)

    monkeypatch.setenv("RIPT_CLIP", str(Path(__file__).parent / "policies" / "clip"))
    language._load_clip.cache_clear()
    monkeypatch.setattr(QuestPolicy, "loss", watched)
    config = replace(
        CONFIG,
        policy=replace(CONFIG.policy, standardise=False, language="clip"),
        sft=replace(CONFIG.sft, warmup=0.0, colour_jitter=0.3, noisy_targets=True, checkpoint_every=1, threads=1),
    )
    policy = train_sft(config, demos, tmp_path / "published")
    asked = {"decoder_scale": 0.0, "colour_jitter": 0.3, "noisy_targets": True}
    assert seen == [(asked, True, True)] * 30
    assert rows(tmp_path / "published")[20]["learning_rate"] == CONFIG.sft.policy_learning_rate
    assert not policy.encoder.proprio_mean.any() and (policy.encoder.proprio_std == 1).all()
    assert policy.config.language_dim == 512 and not policy.training and not policy.autoencoder.training
    seen.clear()
    train_sft(replace(CONFIG, sft=replace(CONFIG.sft, threads=1)), demos, tmp_path / "ours")
    asked = {"decoder_scale": 0.0, "colour_jitter": 0.0, "noisy_targets": False}
    assert seen == [(asked, False, False)] * 30
    language._load_clip.cache_clear()


def test_replaying_experts_through_perfect_skills_succeeds_and_through_none_fails() -> None:
    policy = lively_policy(toy_config())
    policy.autoencoder.encode = lambda actions: actions  # type: ignore[method-assign,assignment]
    policy.autoencoder.decode = lambda tokens: tokens  # type: ignore[method-assign,assignment]
    factory = simulator_factory(CONFIG.sim)
    perfect = replay_autoencoded(policy, factory, "toy/reach-centre", states=6)
    assert (perfect.total, perfect.count) == (6, 6)
    policy.autoencoder.decode = torch.zeros_like  # type: ignore[method-assign,assignment]
    assert replay_autoencoded(policy, factory, "toy/reach-centre", states=6).value == 0


def test_babbling_fits_the_skills_and_depends_on_the_seed_alone() -> None:
    config = toy_config()
    spec = make_simulator("toy/reach", image_size=8).spec
    small = make_policy(config, spec, 0).config.to_json()
    with_dropout = QuestConfig.from_json(small | {"autoencoder_dropout": 0.1})

    def babbled(seed: int, state: int) -> QuestPolicy:
        torch.manual_seed(0)
        policy = QuestPolicy(with_dropout, spec)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        babble(policy, seed, steps=50)
        assert torch.equal(torch.get_rng_state(), before) and not policy.autoencoder.training
        return policy

    first, again, other = babbled(0, 5), babbled(0, 6), babbled(1, 5)
    assert first == again and first != other
    torch.manual_seed(0)
    chunks = (2 * torch.rand(200, 1, 2) - 1).expand(-1, 4, -1)
    mask = torch.ones(200, 4, dtype=torch.bool)
    torch.manual_seed(0)
    untrained = QuestPolicy(with_dropout, spec).autoencoder_loss(chunks, mask)[0]
    assert float(first.autoencoder_loss(chunks, mask)[0].detach()) < 0.8 * float(untrained.detach())
