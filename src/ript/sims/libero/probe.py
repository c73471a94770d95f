"""Does LIBERO behave here as it was published? What `ript doctor` tries: objects at rest, an observation, a picture."""

from __future__ import annotations

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.libero.simulator import LiberoSimulator

STILL = 0.01
"""Metres and radians a second: the most that an object may move once it has settled."""
OBSERVED = (-0.21124163, -0.01109060, 1.17424953, 3.14089540, -0.00284782, -0.08773931, 0.03872337, -0.03872220)
"""What OpenVLA-OFT's published sample holds of libero_spatial/0, benchmark state 0, after ten steps of waiting."""
NEAR = 1e-4
PICTURE = (
    ((111, 109, 106), (108, 107, 106), (114, 113, 111), (111, 109, 106)),
    ((70, 66, 61), (77, 75, 72), (116, 109, 101), (127, 120, 111)),
    ((32, 29, 27), (127, 117, 104), (142, 129, 118), (148, 136, 125)),
    ((129, 117, 106), (164, 150, 134), (163, 148, 133), (170, 155, 140)),
)
"""Mean colours of sixteen parts of a picture."""
FAR = 8.0
"""Largest mean difference of colours, of 255: another renderer differs by one or two, a darker floor by thirty."""


def probe() -> str:
    """Try the simulator; what was found, in words.

    Raises:
        SimulatorError: it behaves otherwise.
        RiptError: it cannot be made, or draws nothing.
    """
    settings = {"settle": 10, "settle_gripper": "open", "image_size": 64, "cameras": ("agentview",)}
    with LiberoSimulator("libero_spatial/5", **settings) as simulator:  # type: ignore[arg-type]
        for number in range(3):
            simulator.set_state(simulator.states.benchmark(number))
            speed = float(np.abs(simulator.physics.data.qvel[simulator.parts.arm.finger_dof[-1] + 1 :]).max())
            if not speed < STILL:
                raise SimulatorError(
                    f"libero_spatial/5: objects of benchmark state {number} move at {speed:.3f} m/s after settling, "
                    "where they should be at rest: the physics is another one"
                )
    proprio = ("eef_pos", "eef_axis_angle", "gripper_qpos")
    with LiberoSimulator("libero_spatial/0", proprio=proprio, **settings) as simulator:  # type: ignore[arg-type]
        look = simulator.reset(simulator.states.benchmark(0))
    off = float(np.abs(look.proprio[0] - OBSERVED).max())
    if not off < NEAR:
        raise SimulatorError(f"libero_spatial/0: the robot is {off:.4f} away from where a published sample has it")
    parts = look.images["agentview"][0].reshape(4, 16, 4, 16, 3).mean((1, 3))
    difference = float(np.abs(parts - PICTURE).mean())
    if not difference < FAR:
        raise SimulatorError(f"libero_spatial/0: the picture differs from the expected one by {difference:.0f} of 255")
    return f"objects come to rest, and an observation equals a published one within {off:.0e}"
