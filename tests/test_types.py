"""What records say of themselves."""

import json

import pytest

from ript.core.errors import ConfigError, PolicyError
from ript.core.types import SimulatorSpec, same_proprio
from ript.policies.fit import require_fit


def spec(**changes: object) -> SimulatorSpec:
    fields = {"suite": "desk", "cameras": {"top": (4, 6)}, "proprio": {"hand": 3, "gripper": 1}, "action_dim": 2}
    return SimulatorSpec(**fields | {"render": {"size": (4, 6)}} | changes)


def test_a_spec_is_the_same_when_it_comes_back_from_a_file() -> None:
    back = SimulatorSpec.from_json(json.loads(json.dumps(spec().to_json())))
    assert back == spec()
    assert (back.cameras, back.proprio_dim) == ({"top": (4, 6)}, 4)


def test_settings_that_nobody_sees_are_recorded_and_fit_whatever_they_are() -> None:
    own, other = spec(unseen={"success": "a"}), spec(unseen={"success": ("b",)})
    assert SimulatorSpec.from_json(json.loads(json.dumps(other.to_json()))) == other != own
    require_fit(own, other)
    with pytest.raises(PolicyError, match=r"'desk' than it is given: size = \[4, 6\], got 4; use the policy's own"):
        require_fit(own, spec(render={"size": 4}))


def test_the_order_of_the_proprioceptions_parts_tells_simulators_apart() -> None:
    assert spec(proprio={"gripper": 1, "hand": 3}) != spec()
    assert not same_proprio({"gripper": 1, "hand": 3}, spec().proprio)
    assert same_proprio({"hand": 3, "gripper": 1}, spec().proprio)


def test_a_vector_without_names_fits_any_parts_of_its_size() -> None:
    for one, other in (({"proprio": 4}, spec().proprio), (spec().proprio, {"proprio": 4})):
        assert same_proprio(one, other)
    assert not same_proprio({"proprio": 5}, spec().proprio)
    assert not same_proprio({"state": 4}, spec().proprio)
    assert not same_proprio({"proprio": 3, "more": 1}, spec().proprio)


def test_a_spec_of_before_with_one_number_has_a_vector_without_names() -> None:
    before = {name: value for name, value in spec().to_json().items() if name != "proprio"} | {"proprio_dim": 4}
    assert SimulatorSpec.from_json(before) == spec(proprio={"proprio": 4})


def test_one_number_for_the_proprioception_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"'desk': proprio = 4; expected the sizes .* or \{\"proprio\": P\}"):
        spec(proprio=4)


@pytest.mark.parametrize("change", [{"proprio": {"hand": 0}}, {"action_dim": "2"}, {"suite": 3}, {"render": []}])
def test_what_describes_no_simulator_is_refused(change: dict) -> None:
    with pytest.raises(TypeError):
        SimulatorSpec.from_json(spec().to_json() | change)
