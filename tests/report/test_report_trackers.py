"""Trackers are optional, and say so."""

from __future__ import annotations

import sys

import pytest

from ript.errors import DependencyMissing, UnknownNameError
from ript.report.run import RunFolder
from ript.report.trackers import make_trackers


def test_no_tracker_needs_nothing(tmp_path):
    assert make_trackers([], tmp_path, {}) == []


def test_an_unknown_tracker_suggests_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean tensorboard"):
        make_trackers(["tensorbord"], tmp_path, {})


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")], ids=["tensorboard", "wandb"]
)
def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyMissing, match=rf"pip install 'ript\[{name}\]'"):
        make_trackers([name], tmp_path, {})


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_the_same_keys_as_the_log(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder.create(tmp_path, {}) as run:
        (tracker,) = make_trackers(["tensorboard"], run.path, run.config)
        tracker.log(1, {"update/kl": 0.5, "update/entropy": float("nan")})
        tracker.log(2, {"update/kl": 0.25})
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["update/kl"]
    assert [(event.step, event.value) for event in events.Scalars("update/kl")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_the_same_keys_and_a_resumed_run_the_same_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with RunFolder.create(tmp_path, {}) as run:
        ids = []
        for iteration in (1, 2):
            (tracker,) = make_trackers(["wandb"], run.path, run.config)
            ids.append(tracker._run.id)
            tracker.log(iteration, {"update/kl": 0.5})
            assert tracker._run.summary["update/kl"] == 0.5
            assert tracker._run.summary["iteration"] == iteration
            tracker.close()
    assert ids[0] == ids[1]
