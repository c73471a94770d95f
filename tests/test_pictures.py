"""Pictures of several and of oblong sizes go all the way: demonstrations, training, practice, evaluation, resuming."""

from collections.abc import Iterator
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from toy_runs import Stopped, stop_in, toy_config, toy_demos, weights

from ript.cli.main import main
from ript.config.sections import Config
from ript.core.errors import ConfigError
from ript.core.options import SimOptions, Size, replace
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.core.types import Observation, SimulatorSpec
from ript.evaluation import evaluate
from ript.rl import train_rl
from ript.sft import resume_sft, train_sft
from ript.sims.toy.simulator import ToySimulator, toy_tasks

TASK = "reach-centre"


class WideOptions(SimOptions):
    """A toy with a wide picture and a small square one."""

    suite: Literal["wide"] = "wide"
    wide: Size = (12, 20)
    small: Size = 8


def wide_spec(options: WideOptions) -> SimulatorSpec:
    height, width = options.wide if isinstance(options.wide, tuple) else (options.wide, options.wide)
    small = (options.small, options.small) if isinstance(options.small, int) else options.small
    cameras = {"wide": (height, width), "small": small}
    return SimulatorSpec(suite="wide", cameras=cameras, proprio={"proprio": 2}, action_dim=2, render={})


def options_of(spec: SimulatorSpec) -> WideOptions:
    return WideOptions(wide=spec.cameras["wide"], small=spec.cameras["small"][0])


class Wide(ToySimulator):
    """2-D reaching, seen twice."""

    def __init__(self, name: str, options: WideOptions):
        super().__init__(name, horizon=options.horizon or 40, image_size=32)
        self.task, self.spec = replace_fields(self.task, suite="wide"), wide_spec(options)

    def observe(self) -> Observation:
        seen = super().observe()
        (picture,) = seen.images.values()
        images = {
            name: picture[:, np.linspace(0, 31, height).astype(int)][:, :, np.linspace(0, 31, width).astype(int)]
            for name, (height, width) in self.spec.cameras.items()
        }
        return replace_fields(seen, images=images)


def make_wide(key: str, options: WideOptions) -> Wide:
    return Wide(key.removeprefix("wide/"), options)


@pytest.fixture(autouse=True)
def _suite() -> Iterator[None]:
    tasks = tuple(replace_fields(task, suite="wide") for task in toy_tasks())
    suites.register(
        Suite(
            name="wide",
            summary="a toy with two pictures",
            options=WideOptions,
            tasks=lambda: tasks,
            make=make_wide,
            spec=wide_spec,
            options_of=options_of,
            demonstrations=("expert",),
        )
    )
    yield
    suites.unregister("wide")


def config() -> Config:
    return toy_config(
        sim=WideOptions(horizon=16), tasks=(TASK,), iterations=2, eval={"trials": 2, "every": 0, "every_trials": 2}
    )


def test_pictures_of_two_sizes_one_of_them_oblong_go_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = toy_demos(tmp_path / "demos.hdf5", config(), TASK)
    assert main(["demos", "verify", str(demos)]) == 0
    other = replace(config(), sim=WideOptions(wide=(10, 16), horizon=16))
    with pytest.raises(ConfigError, match=r"sim.wide = 10, 16, but the demonstrations have 12, 20: leave it out"):
        train_sft(other, [demos], tmp_path / "sft")
    with monkeypatch.context() as patch:
        stop_in(patch, "save_checkpoint", 10)
        with pytest.raises(Stopped):
            train_sft(config(), [demos], tmp_path / "sft")
    policy = resume_sft(tmp_path / "sft")
    assert dict(policy.simulator.cameras) == {"wide": (12, 20), "small": (8, 8)}
    found = evaluate(tmp_path / "sft" / "policy", [TASK], trials=2, horizon=16)
    assert found.total.trials == 2
    words = ["eval", "--policy", str(tmp_path / "sft" / "policy"), "--tasks", TASK, "--trials", "1", "--workers", "0"]
    assert main(words) == 0
    train_rl(config(), tmp_path / "sft" / "policy", tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in(patch, "save_checkpoint", 2)
        with pytest.raises(Stopped):
            train_rl(config(), tmp_path / "sft" / "policy", tmp_path / "run")
    train_rl(config(), None, tmp_path / "run", resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert (
        main(["rl", "--recipe", "smoke", "--sim.suite=wide", "--sim.cameras=top", "--out", str(tmp_path / "no")]) == 2
    )
    assert "setting of simulators of suite wide 'sim.cameras': known: sim.horizon, sim.small" in capsys.readouterr().err
