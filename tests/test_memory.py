"""Memory that runs out is one line that says what to lower and what is kept, never a traceback."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import lively_policy, toy_config, toy_demos

from ript import build
from ript.cli import commands
from ript.cli import main as cli
from ript.core.errors import OutOfMemory
from ript.core.memory import enough_memory, ran_out
from ript.evaluation import evaluate
from ript.policies.quest.policy import QuestPolicy
from ript.rl import train_rl
from ript.run.checkpoint import list_checkpoints
from ript.sft import train_sft


def greedy(*_: Any, **__: Any) -> None:
    """Asks for a pebibyte and more, which no machine has."""
    torch.empty(2**50)


SAID = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((2**50,), np.dtype(float)),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB"),
    RuntimeError("could not create a primitive"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", SAID, ids=lambda error: type(error).__name__)
def test_whatever_says_that_memory_ran_out_is_understood(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemory, match=r"memory ran out in a test \(.+\): lower your sights"),
        enough_memory("in a test", "your sights"),
    ):
        raise error


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**55)], ids=["torch", "numpy"])
def test_allocations_that_really_fail_are_understood(allocate: Any) -> None:
    with pytest.raises(OutOfMemory, match=r"ran out in a test \((Unable|DefaultCPUAllocator: can't) .*\): lower it"):  # noqa: SIM117
        with enough_memory("in a test", "it"):
            allocate()


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("out of memory"), OSError(28, "full")])
def test_other_errors_are_none_of_memory(error: Exception) -> None:
    assert not ran_out(error)
    with pytest.raises(type(error)), enough_memory("in a test", "it"):
        raise error


def test_an_update_without_memory_names_its_setting_and_the_checkpoint_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, update, calls = toy_config(), build.update, [0]

    def second(*args: Any, **settings: Any) -> Any:
        calls[0] += 1
        return greedy() if calls[0] == 2 else update(*args, **settings)

    monkeypatch.setattr(build, "update", second)
    said = r"iteration 2: memory ran out in the update .*lower learn\.micro_batch; the last good checkpoint is kept in "
    with pytest.raises(OutOfMemory, match=f"{said}{tmp_path}"):
        train_rl(config, lively_policy(config), tmp_path / "run")
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
    monkeypatch.undo()
    assert train_rl(config, None, tmp_path / "run", resume=True).iterations == 3


def test_supervised_training_without_memory_names_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    demos = toy_demos(tmp_path / "d.hdf5", config, "reach-left", "reach-centre")
    monkeypatch.setattr(QuestPolicy, "loss", greedy)
    with pytest.raises(OutOfMemory, match=r"ran out in training .*lower sft\.policy_batch, .*; the last good"):
        train_sft(config, [demos], tmp_path / "run")


def test_a_policy_without_memory_when_it_acts_is_no_bug_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    policy = lively_policy(config)
    monkeypatch.setattr(policy, "act", greedy)
    with pytest.raises(OutOfMemory, match=r"ran out acting on .*toy/reach-centre.*lower rollout\.slots or --workers"):
        evaluate(policy, "reach-centre", trials=2, horizon=8, rollout=config.rollout)


def test_a_command_without_memory_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(args: object) -> None:
        with commands.saying_what_is_kept("nothing is kept"):
            greedy()

    monkeypatch.setattr(commands, "show_tasks", act)
    assert cli.main(["tasks"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ript: error: memory ran out on the way (DefaultCPUAllocator: can't allocate memory: ")
    assert "lower rollout.slots, rollout.workers (--workers)" in line and line.endswith("; nothing is kept")
