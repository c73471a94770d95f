"""Practice one iteration ahead: rollouts of the next iteration are made while the update learns."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from ript.cli import main as cli
from ript.core.errors import ConfigError, RatioError
from ript.core.types import Status
from ript.learn.batch import UpdateBatch
from ript.learn.update import update
from ript.rl import train_rl
from ript.rollout.local.process_pool import ProcessPool
from ript.rollout.sampling import Collection, Gathering
from ript.run.collecting import Collecting
from ript.run.files import read_lines
from ript.run.rl_progress import Progress
from tests.learn.test_update import Bandit, gradients, make_update_batch
from tests.rollout.test_dynamic_sampling import collection_of
from tests.toy_runs import Stopped, lively_policy, stop_in, toy_config, weights, without_times

WORKERS = {"workers": 1, "slots": 8, "fixed_batch": 8, "lag": 1}


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config(rollout=WORKERS)
    return train_rl(config, lively_policy(config), tmp_path_factory.mktemp("lag") / "run").folder


def versions(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The versions of the policy that made each group of each collection, filled while runs go on."""
    made: list[list[int]] = []
    original = Gathering.collection

    def noted(gathering: Gathering) -> Collection:
        collection = original(gathering)
        found = [{rollout.policy_version for rollout in group.rollouts} for group in collection.attempted]
        assert all(len(of_one) == 1 for of_one in found)  # groups never mix versions
        made.append([version for of_one in found for version in of_one])
        return collection

    monkeypatch.setattr(Gathering, "collection", noted)
    return made


@pytest.mark.parametrize(("share", "first"), [(0.5, 2), (1.0, 99)])
def test_the_first_groups_are_made_by_the_weights_from_before_the_update_and_the_others_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, first: int
) -> None:
    made = versions(monkeypatch)
    config = toy_config(rollout=WORKERS | {"ahead": share}, sampling={"groups": 4}, eval={"every": 0})
    rows = list(read_lines(train_rl(config, lively_policy(config), tmp_path / "run").folder / "metrics.jsonl"))
    assert made == [
        [iteration - (iteration > 0 and n < first) for n in range(len(of))] for iteration, of in enumerate(made)
    ]
    assert len(made) == 3 and all(len(of) >= 4 for of in made)
    assert [row["update/age_max"] for row in rows] == [0, 1, 1]
    assert [row["update/age"] == 1 for row in rows] == [False, share == 1, share == 1]
    assert ("update/first_ratio_deviation" in rows[1]) == (share < 1)
    assert all(row["update/optimiser_steps"] > 0 for row in rows)


def test_the_next_rollouts_are_made_during_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    run = ProcessPool.run

    def noted(pool, requests, heed=None):
        threads.append(threading.current_thread().name)
        return run(pool, requests, heed)

    monkeypatch.setattr(ProcessPool, "run", noted)
    config = toy_config(rollout=WORKERS, eval={"every": 0})
    train_rl(config, lively_policy(config), tmp_path / "run")
    main = threading.main_thread().name
    assert [name == main for name in threads] == [True, True, False, True, False, True, True]  # before, 1, 2, 3, after


@pytest.mark.parametrize(("margin", "expected"), [(1.25, 100), (0, 160)])
def test_rollouts_that_are_made_ahead_have_the_horizon_of_the_iteration_that_they_are_for(
    monkeypatch: pytest.MonkeyPatch, margin: float, expected: int
) -> None:
    collection = collection_of({"reach": [[(80, Status.SUCCESS)] * 15 + [(160, Status.FAILURE)]] * 3})
    key = collection.attempted[0].initial_state.task.key
    gathered: list[Mapping[str, int]] = []
    monkeypatch.setattr(Collecting, "_gather", lambda self, making, attempts: gathered.append(making.horizons))
    states: Any = SimpleNamespace(pool=Mock(), tasks=[key], training=lambda *args: iter(()))
    made = Mock(wraps=Gathering)
    monkeypatch.setattr("ript.run.collecting.Gathering", made)
    config = toy_config(rollout=WORKERS, sampling={"horizon_margin": margin})
    collecting = Collecting(config, lively_policy(config), states, {key: 200})
    with collecting:
        collecting.go_ahead(Progress(horizons={key: 160}), collection)
        collecting.finish()
    assert gathered == [{key: expected}] == [collecting.horizons_after(collection, {key: 160})]
    assert made.call_args.kwargs["horizon"] == {key: expected}


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_run_ahead_that_was_interrupted_goes_on_as_if_it_had_not_been(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    config = toy_config(rollout=WORKERS)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", stopped + 1)
        train_rl(config, lively_policy(config), tmp_path / "run")
    train_rl(config, None, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(ahead)
    assert without_times(tmp_path / "run") == without_times(ahead)


def test_first_ratios_are_looked_at_in_rows_of_the_present_weights_alone() -> None:
    policy = Bandit()
    batch = make_update_batch(policy, lengths=(4, 4))
    old, new = batch.rollouts
    far = dataclasses.replace(old, log_prob=old.log_prob - 1.0)
    mixed = dataclasses.replace(batch, rollouts=(far, dataclasses.replace(new, policy_version=1)))
    settings = {"minibatch_decisions": 99, "version": 1, "ratio_tolerance": 1e-3}
    _, metrics = gradients(policy, mixed, **settings)
    assert metrics["first_ratio_deviation"].value < 1e-6 and metrics["importance_max"].value > 2
    wrong = dataclasses.replace(mixed, rollouts=(old, dataclasses.replace(far, policy_version=1)))
    with pytest.raises(RatioError):
        gradients(policy, wrong, **settings)


def aged(policy: Bandit, likelier: float) -> tuple[UpdateBatch, UpdateBatch]:
    """Rollouts of the policy as it is, and the same of weights under which each term was `likelier` times as likely
    less: they are one version old."""
    fresh = make_update_batch(policy, lengths=(4, 3, 4))
    moved = [dataclasses.replace(r, log_prob=r.log_prob - math.log(likelier)) for r in fresh.rollouts]
    return fresh, dataclasses.replace(fresh, rollouts=tuple(moved))


@pytest.mark.parametrize(("likelier", "weighs"), [(1.5, 1.5), (0.4, 0.4), (9.0, 2.0)])
def test_a_term_of_earlier_weights_weighs_as_much_as_it_is_likelier_now_and_is_not_clipped_for_it(
    likelier: float, weighs: float
) -> None:
    policy = Bandit()
    fresh, old = aged(policy, likelier)
    settings = {"minibatch_decisions": 99, "ratio_tolerance": 1e-3}
    expected, _ = gradients(policy, fresh, version=0, **settings)
    found, metrics = gradients(policy, old, version=1, **settings)
    torch.testing.assert_close(found, weighs * expected)
    assert metrics["importance"].value == pytest.approx(likelier, rel=1e-5)
    assert metrics["ratio_max"].value == pytest.approx(1.0, abs=1e-5)


def test_an_update_is_not_stopped_by_how_far_the_one_before_went() -> None:
    policy = Bandit()
    _, old = aged(policy, 4.0)
    optimiser = torch.optim.SGD(policy.parameters(), lr=1e-4)
    result = update(policy, optimiser, old, epochs=2, generator=None, minibatch_decisions=4, version=1, target_kl=0.01)
    assert result.stop_reason == "all 2 epochs done" and result.kl_max < 1e-3


def test_log_probabilities_are_not_computed_again_of_earlier_weights() -> None:
    policy = Bandit()
    batch = make_update_batch(policy)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"rollout\.lag.*recompute_log_prob"):
        update(policy, optimiser, batch, epochs=1, generator=None, minibatch_decisions=9, version=1, recompute=True)


def test_log_probabilities_that_are_computed_again_are_refused_before_there_is_a_folder(
    ahead: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = toy_config(rollout=WORKERS, learn={"recompute_log_prob": True})
    with pytest.raises(ConfigError, match=r"rollout\.lag.*computed again.*give --rollout\.lag=0"):
        train_rl(config, lively_policy(config), tmp_path / "run")
    own = lively_policy(toy_config(rollout=WORKERS))
    own.ratio_tolerance = None
    with pytest.raises(ConfigError, match=r"the policy's own ratio_tolerance"):
        train_rl(toy_config(rollout=WORKERS), own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for changed in ("--rollout.lag=0", "--rollout.ahead=0.9"):  # on which results depend
        assert cli.main(["rl", "--resume", str(ahead), changed]) == 2
        said = capsys.readouterr().err
        assert f"{changed[2:].replace('=', ' = ')} (the run has " in said
        assert "cluster.* (but not rollout.lag or rollout.ahead) may change" in said


def test_a_policy_that_acts_where_it_is_trained_cannot_be_ahead(capsys) -> None:
    words = ["rl", "--recipe", "smoke", "--out", "/nowhere/at/all", "--rollout.lag=1", "--workers=0"]
    assert cli.main(words) == 2
    assert "rollout.lag = 1 lets workers act while this process trains" in capsys.readouterr().err
