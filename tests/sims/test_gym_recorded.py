"""Demonstrations that somebody has of a Gymnasium environment: actions and seeds in a file of another program."""

import json
import re

import gymnasium
import h5py
import numpy as np
import pytest

from ript.cli.main import main
from ript.demos.demo_set import open_demos
from ript.sims.mujoco.gl import import_mujoco

ID = "gym_environments:Dot-v0"


def solve(seed):
    """Actions, in the environment's units, that bring the dot to its goal."""
    import_mujoco()  # with a renderer that works here, before the environments import it
    env, actions = gymnasium.make(ID), []
    seen, _ = env.reset(seed=seed)
    for _ in range(30):
        actions.append(np.clip(seen["goal"] - seen["place"], env.action_space.low, env.action_space.high))
        seen, _, _, _, info = env.step(actions[-1].astype(np.float32))
        if info["success"]:
            return np.array([*actions, np.zeros(2)])  # a step too many, as files of others have
    raise AssertionError(seed)


@pytest.fixture
def file(tmp_path):
    def write(seeds=(3, 900, 12), actions=solve, **attributes):
        path = tmp_path / "mine.hdf5"
        with h5py.File(path, "w") as made:
            data = made.create_group("data")
            data.attrs.update(attributes or {"env_args": json.dumps({"env_name": ID, "type": 1})})
            for number, seed in enumerate(seeds):
                demo = data.create_group(f"demo_{number}")
                demo["actions"] = actions(3 if seed is None else seed)
                if seed is not None:
                    demo.attrs["seed"] = seed
        return path

    return write


def convert(path, out, *words):
    return main(["demos", "convert", str(path), "--out", str(out), *words])


def test_they_are_replayed_seen_as_asked_and_learned_from(file, tmp_path, capsys):
    out = tmp_path / "ours.hdf5"
    assert convert(file(), out, "--pictures=rendered", "--sim.image_size=32", "--every", "2") == 0
    demos = open_demos(out)
    assert len(demos) == 3 and dict(demos.spec.cameras) == {"default": (32, 32)}
    assert [len(demo) for demo in demos.demos()] == [len(solve(seed)) - 1 for seed in (3, 900, 12)]
    assert [int(demo.initial_state.state[0]) for demo in demos.demos()] == [3, 900, 12]
    (tmp_path / "link.hdf5").symlink_to(file())  # the same file, which counts once, as it does in training
    words = ("--pictures=rendered", "--sim.image_size=32", "--every", "2")
    assert main(["demos", "convert", str(file()), str(tmp_path / "link.hdf5"), "--out", str(out), *words]) == 0
    assert len(open_demos(out)) == 3
    assert convert(out, tmp_path / "again.hdf5") == 1
    assert f"{out} is a demonstration file of ript already: use it as it is" in capsys.readouterr().err
    assert main(["demos", "verify", str(out)]) == 0
    assert "3 of 3" in capsys.readouterr().out
    words = ("--recipe", "practice", "--tasks", f"gym/{ID}", "--sft.policy_steps=2", "--sft.threads=1")
    assert main(["sft", *words, "--demos", str(out), "--out", str(tmp_path / "sft")]) == 0


@pytest.mark.parametrize(
    ("given", "words", "says"),
    [
        ({}, (), "drawn when actions are replayed: give --pictures=rendered"),
        ({"seeds": (None,)}, (), "of no suite that reads files of other programs .*--sim.suite"),
        ({"seeds": (None,)}, ("--sim.suite=gym", "--pictures=rendered"), "attribute seed is None"),
        ({"made_by": "me"}, ("--pictures=rendered",), "attribute env_name of 'data' is missing"),
        ({"env_args": "{"}, ("--pictures=rendered",), "env_args of 'data': no JSON with env_name"),
        ({"env_name": "Nothing-v0"}, ("--pictures=rendered",), "unknown Gymnasium environment .*'Nothing-v0'"),
        ({"seeds": (4,), "actions": lambda _: solve(3)}, ("--pictures=rendered",), r"reset\(seed=4\), do not solve"),
        ({"actions": lambda _: np.zeros((4, 3))}, ("--pictures=rendered",), r"expected \[T, 2\], got \[4, 3\]"),
    ],
)
def test_what_cannot_be_replayed_is_named_and_nothing_is_written(file, tmp_path, capsys, given, words, says):
    assert convert(file(**given), tmp_path / "ours.hdf5", *words) in (1, 2)
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "ours.hdf5").exists()
