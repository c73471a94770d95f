"""Supervised stages by several ranks are those of one process: here threads that speak over torch.distributed."""

from __future__ import annotations

import copy
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
import torch

from ript.cli import main as cli
from ript.core import hooks
from ript.core.errors import ConfigError, NotFiniteError
from ript.core.metrics import values
from ript.core.options import replace
from ript.demos.demo_set import open_demos
from ript.demos.windows import Windows
from ript.learn.ranks import ALONE, ElsewhereError, Ranks
from ript.learn.spread_stages import SpreadStages
from ript.learn.stages import Here, Stretch
from ript.sft import new_policy, stage_settings, trained_by_stages
from tests.learn.test_ranks import together
from tests.toy_runs import toy_config, toy_demos

CONFIG = toy_config(policy={"privileged": True})
TARGETS = ("toy/reach-centre",)
WITHOUT_GRADIENT = ("keypoints.conv.bias", "features.4.bias")
"""Ends of names of weights on which nothing depends, as a softmax over all places follows: their gradient is rounding
alone, and AdamW makes steps of it all the same. So are biases of attention's keys."""


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Windows]:
    file = toy_demos(tmp_path_factory.mktemp("demos") / "toy.hdf5", CONFIG, "reach-left", "reach-centre")
    demos = open_demos([file])
    policy = new_policy(CONFIG, demos)
    kind, _, _ = trained_by_stages(policy)
    windows = Windows(demos, kind.window(policy))
    kind.begin(policy, CONFIG.policy, windows)
    hooks.read(policy, [task.instruction for task in windows.tasks])
    return policy, windows


def trained(untrained: tuple[Any, Windows], ranks: Ranks, stage: int, steps: int, **settings: Any) -> Stretch:
    """The first steps of a stage as one of these ranks; `settings`: of `sft`."""
    policy, windows = copy.deepcopy(untrained[0]), untrained[1]
    config = replace(CONFIG, sft=replace(CONFIG.sft, **settings))
    _, make_stages, module = trained_by_stages(policy)
    stages = make_stages(policy, config.sft, windows, TARGETS, True)
    here = Here(module, stages, stage_settings(config), ranks)
    here.begin(stage, None)
    return here.go(0, steps, lambda: None)


def moved(done: Stretch) -> dict[str, torch.Tensor]:
    """Weights on which something depends."""
    found = {}
    for name, tensor in done.state["policy"].items():
        if name.endswith("in_proj_bias"):
            query, _, value = tensor.chunk(3)
            found[name] = torch.cat([query, value])
        elif tensor.is_floating_point() and not name.endswith(WITHOUT_GRADIENT):
            found[name] = tensor
    return found


def apart(one: Stretch, other: Stretch) -> float:
    """The largest relative distance of a tensor."""
    ours, theirs = moved(one), moved(other)
    distance = {n: float((t.double() - theirs[n].double()).norm()) for n, t in ours.items()}
    return max(d / max(1e-30, float(theirs[n].double().norm())) for n, d in distance.items())


@pytest.mark.parametrize(
    ("stage", "steps"), [(0, 1), (1, 8), (2, 8)]
)  # AdamW turns the autoencoder's rounding to steps
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_a_stage_as_one_process_does(untrained, stage: int, steps: int, world: int) -> None:
    alone = trained(untrained, ALONE, stage, steps)
    found = together(world, lambda ranks: trained(untrained, ranks, stage, steps))
    begun = untrained[0].state_dict()
    assert any(not torch.equal(t, begun[n]) for n, t in moved(alone).items())
    assert apart(found[0], alone) < 1e-6
    assert all(torch.equal(t, found[0].state["policy"][n]) for one in found for n, t in one.state["policy"].items())
    assert [one.state["rng"] for one in found] == [alone.state["rng"]] * world
    ours, theirs = values(found[0].metrics), values(alone.metrics)
    assert ours == pytest.approx(theirs, rel=1e-6) and ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if "codes" in name or "accuracy" in name)
    assert found[0].rate == alone.rate


def test_more_ranks_than_windows_and_micro_batches_change_nothing(untrained) -> None:
    settings = {"policy_batch": 3, "micro_batch": 2}
    alone = trained(untrained, ALONE, 1, 4, **settings)
    found = together(4, lambda ranks: trained(untrained, ranks, 1, 4, **settings))
    assert apart(found[3], alone) < 1e-6


def test_a_loss_that_is_not_finite_on_one_rank_ends_the_stage_on_all(untrained) -> None:
    policy, windows = untrained
    spoilt = copy.copy(windows)
    spoilt.actions = windows.actions.copy()
    spoilt.actions[:2] = float("nan")

    def work(ranks: Ranks) -> Stretch:
        return trained((policy, spoilt if ranks.rank else windows), ranks, 0, 20)

    errors = together(2, work)
    assert [type(error) for error in errors] == [ElsewhereError, NotFiniteError]
    assert "autoencoder became nan at step" in str(errors[1])


class Machine:
    """One node, which is this process."""

    nodes = ("here",)

    def share(self, thing: Any) -> Any:
        return thing


def test_a_policy_that_needs_whole_batches_is_refused_for_ranks() -> None:
    settings = changed(stage_settings(CONFIG), micro_batch=0)
    with pytest.raises(ConfigError, match=r"learn\.ranks = 1: the policy normalises by statistics of whole batches"):
        SpreadStages(Machine(), 1, None, torch.nn.BatchNorm1d(2), [], settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"learn\.ranks = 2, but there are 1 nodes"):
        SpreadStages(Machine(), 2, None, torch.nn.Linear(2, 2), [], settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--cluster=local"], "has no effect in `ript sft` without ranks"),
        (["--learn.ranks=2"], "learn.ranks has no effect without a cluster"),
        (["--cluster=local", "--learn.ranks=2", "--learn.epochs=3"], "learn.epochs has no effect in `ript sft`"),
    ],
)
def test_words_of_a_cluster_that_change_nothing_in_supervised_training_are_refused(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["sft", "--recipe", "smoke", "--demos", str(tmp_path / "none.hdf5"), "--out", str(tmp_path / "out")]
    assert cli.main([*asked, *words]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "out").exists()
