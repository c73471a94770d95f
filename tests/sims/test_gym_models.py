"""MuJoCo environments that change their model: instances stay apart, and pictures show it."""

from __future__ import annotations

import contextlib

import gymnasium
import numpy as np
import pytest
from packages import needs

from ript.core.errors import ConfigError
from ript.sims.check import CHECKS, check_simulator
from ript.sims.gym.instances import RENDERERS, SHELF
from ript.sims.gym.simulator import GymSimulator
from ript.sims.mujoco import gl
from ript.sims.mujoco.rendering import CameraView, ModelRenderer
from ript.sims.soundness import in_words, soundness

pytestmark = needs("mujoco")
PACKAGE = "gym_models"
RIGHT = np.full((1, 1), 0.8, np.float32)


def made(name: str, **settings) -> GymSimulator:
    return GymSimulator(f"{PACKAGE}:{name}-v0", **settings)


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_shelf():
    yield
    SHELF.close_unused()
    assert len(SHELF) == 0


def way(simulator, state, beside=None) -> np.ndarray:
    """What is observed of 29 steps, while another instance is reset, goes its own way and is reset again."""
    simulator.reset(state)
    found = []
    for step in range(29):
        if beside is not None and step % 2:
            beside.reset(beside.initial_states(1, start=step)[0])
            beside.step_chunk(-RIGHT)
        simulator.step_chunk(RIGHT)
        found.append(simulator.state_vector())
    return np.array(found)


@pytest.mark.parametrize("name", ["Room", "DrawnWall", "LateWall", "LateMove", "LateOptions"])
def test_instances_of_one_model_go_the_environments_way_whatever_they_change_in_it_and_when(name):
    with made(name) as a, made(name) as b:
        assert a.exact == ""
        for state in a.initial_states(4):
            alone, beside, stock = way(a, state), way(a, state, b), a.stock_episode(state)
            for number, seen in enumerate(alone):
                assert np.array_equal(stock.step(RIGHT[0])[0], seen), number
            assert np.array_equal(alone, beside)


def test_what_is_too_large_to_be_taken_turns_with_makes_a_state_a_seed():
    with made("Repainted", cameras=("render",)) as a, made("Repainted", states="seed", cameras=("render",)) as b:
        assert "pictures" in a.exact and b.exact
    with made("Repainted", proprio=("observation",), cameras=("top",)) as simulator:
        assert "changes its model's tex_data, 196,608 bytes" in simulator.exact


@pytest.mark.parametrize("way_out", ["end", "reset"])
def test_a_large_change_that_comes_late_ends_the_run_and_names_the_way_out(way_out):
    with made("LatePaintOnly") as simulator, made("LatePaintOnly") as other:
        assert simulator.exact == ""
        first, second = simulator.initial_states(2)
        simulator.reset(first), other.reset(second)
        simulator.step_chunk(np.tile(RIGHT, (15, 1)))
        with pytest.raises(ConfigError, match=r"sim\.states: gym/.*changes its model's tex_data.*--sim\.states=seed"):
            other.step_chunk(np.tile(RIGHT, (30, 1))) if way_out == "end" else simulator.reset(first)


def test_pictures_that_would_not_show_a_change_are_refused():
    refused = r"sim\.cameras: .*changes its model's tex_data.*--sim\.cameras=render"
    with made("Repainted") as simulator, pytest.raises(ConfigError, match=refused):
        simulator.reset(simulator.initial_states(1)[0])
    with made("LatePaintOnly", states="seed") as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        with pytest.raises(ConfigError, match=refused):
            simulator.step_chunk(np.tile(RIGHT, (30, 1)))


@pytest.mark.parametrize("states", ["auto", "seed"])
def test_pictures_show_materials_lights_and_cameras_as_they_are_in_each_state(states):
    with made("Lamp", cameras=("side", "top"), meshes="mesh", states=states) as simulator:
        chosen = simulator.initial_states(6)
        assert (simulator.exact == "") is (states == "auto")
        ours = [simulator.reset(state).images for state in (*chosen, *chosen)]
    env = gymnasium.make(f"{PACKAGE}:Lamp-v0", render_mode="rgb_array", camera_name="top", disable_env_checker=True)
    theirs = [(env.reset(seed=int(state.state[0])), env.render())[1] for state in chosen]
    env.close()
    lamps, own = [lamp(look["top"][0]) for look in ours], [lamp(picture) for picture in theirs]
    assert lamps[:6] == lamps[6:] and len({colour for colour, _ in lamps}) == 2
    assert [colour for colour, _ in lamps[:6]] == [colour for colour, _ in own]
    assert np.abs(np.subtract([column for _, column in lamps[:6]], [column for _, column in own])).max() < 1.5
    lights = [
        [picture.mean(axis=(0, 1)) for picture in pictures]
        for pictures in (theirs, (look["top"][0] for look in ours[:6]))
    ]
    assert np.corrcoef(np.ravel(lights[0]), np.ravel(lights[1]))[0, 1] > 0.9


def lamp(picture: np.ndarray) -> tuple[str, float]:
    """Its colour, and the column of pixels in which it is."""
    lit = picture.astype(float) + 1
    red, green = lit[..., 0] > 2 * lit[..., 1], lit[..., 1] > 2 * lit[..., 0]
    return "red" if red.sum() > green.sum() else "green", float(np.argwhere(red | green)[:, 1].mean())


@pytest.mark.parametrize("arguments, camera", [('{"camera_name": "top"}', "top"), ('{"camera_id": 0}', "side")])
def test_the_default_view_is_the_camera_that_the_environment_was_made_with(arguments, camera):
    with made("Lamp", arguments=arguments) as simulator, made("Lamp", cameras=(camera,)) as named:
        state = simulator.initial_states(1)[0]
        ours, expected = simulator.reset(state), named.reset(named.initial_states(1)[0])
        assert np.array_equal(ours.images["default"], expected.images[camera])


def test_what_an_environment_renders_itself_is_its_own_beside_other_instances_and_our_pictures():
    views = {"cameras": ("render", "top"), "meshes": "mesh"}
    with made("Lamp", **views) as simulator:
        states = simulator.initial_states(4)
        alone = [simulator.reset(state).images for state in states]
    assert all(images["render"].std() > 10 and images["top"].std() > 10 for images in alone)
    with made("Lamp", **views) as a, made("Lamp", **views) as b:
        beside = []
        for number, state in enumerate(states):
            b.reset(states[-1 - number])
            beside.append(a.reset(state).images)
            b.observe()
            if number == 1:
                b.close()
                b = made("Lamp", **views)
        b.close()
    for before, after in zip(alone, beside, strict=True):
        for name in ("render", "top"):
            assert np.array_equal(before[name], after[name]), name


def test_a_floor_in_the_middle_of_the_world_is_drawn_at_its_height():
    with GymSimulator("Reacher-v5", success="reward>=0") as simulator:
        picture = simulator.reset(simulator.initial_states(1)[0]).images["default"][0].astype(int)
    assert (picture[..., 0] > picture[..., 1] + 30).sum() > 20  # the red border, which the floor would hide


def test_a_camera_that_follows_a_body_does():
    with GymSimulator("Hopper-v5", success="reward>=1e9", cameras=("track",)) as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        reddish = []
        for place in (0, 20):
            simulator.env.data.qpos[0] = place
            picture = simulator.observe().images["track"][0].astype(int)
            reddish.append(int((picture[..., 0] > picture[..., 2] + 30).sum()))
    assert min(reddish) > 20 and abs(reddish[0] - reddish[1]) < 10


def test_a_tendon_is_drawn_between_its_sites():
    mujoco = gl.import_mujoco()
    model = mujoco.MjModel.from_xml_string(
        """<mujoco><worldbody><site name="a" pos="-.5 0 0"/><site name="b" pos=".5 0 0"/></worldbody>
        <tendon><spatial width=".05" rgba="1 0 0 1"><site site="a"/><site site="b"/></spatial></tendon></mujoco>"""
    )
    view = CameraView(position=(0.0, 0.0, 2.0), target=(0.0, 0.01, 0.0), fovy=45.0)
    renderer = ModelRenderer(model, {"above": view}, (32, 32), coarse=True)
    try:
        picture = renderer.draw(mujoco.MjData(model), model.body_pos.copy(), model.site_pos.copy())["above"].astype(int)
    finally:
        renderer.close()
    assert (picture[..., 0] > picture[..., 2] + 30).sum() > 20


def test_where_instances_disturb_each_other_the_check_advises_seeds_which_mend_it():
    found = soundness(lambda: made("LateSecret"), states=2)
    assert "interleaved instances do not leak" in [finding.name for finding in found.failed]
    assert in_words(found).endswith("try --sim.states=seed, with which each instance is built for itself")
    assert check_simulator(lambda: made("LateSecret", states="seed")) == list(CHECKS)


@pytest.mark.parametrize(
    "name, more",
    [
        *(("light_pos", 0.5), ("light_dir", 0.9), ("geom_rgba", -0.3), ("mat_rgba", -0.5), ("geom_size", 0.1)),
        *(("body_pos", 0.2), ("cam_fovy", 10), ("cam_quat", 0.2), ("geom_pos", 0.2)),
    ],
)
def test_whatever_shows_is_drawn_as_it_is_and_as_it_was_after_the_next_reset(name, more):
    with made("Room", cameras=("top",)) as simulator:
        state = simulator.initial_states(1)[0]
        before = simulator.reset(state).images["top"]
        getattr(simulator.env.model, name)[...] += more
        assert not np.array_equal(simulator.observe().images["top"], before)
        assert np.array_equal(simulator.reset(state).images["top"], before)


def test_renderers_are_bounded_and_videos_show_meshes():
    with contextlib.ExitStack() as stack:
        for size in range(16, 16 + 2 * RENDERERS):
            simulator = stack.enter_context(made("Room", image_size=size))
            simulator.reset(simulator.initial_states(1)[0])
        (environment,) = SHELF
        assert len(environment._renderers) == RENDERERS
        simulator.render()
        assert [meshes for _, _, meshes in environment._renderers] == ["boxes"] * (RENDERERS - 1) + ["mesh"]
