"""What the loop asks of a policy besides acting, and what holds of one that has nothing to say."""

import pytest
import torch
from toy_runs import lively_policy, toy_config

from ript.core import hooks
from ript.core.errors import ConfigError


class Plain:
    """Acts, as it were, and has nothing else."""


class Warm(Plain):
    KIND = "warm"
    caveats = ("It is warm.",)

    def __init__(self, temperature: float = 1.0):
        self.temperature, self.heard = temperature, []

    def at_temperature(self, temperature: float) -> "Warm":
        return Warm(temperature)

    def read(self, instructions):
        self.heard += instructions


def test_a_policy_without_any_of_them_is_left_as_it_is() -> None:
    policy = Plain()
    assert hooks.kind_of(policy) is None and hooks.temperature_of(policy) is None
    assert hooks.ratio_tolerance_of(policy) == 1e-3
    assert (hooks.caveats_of(policy), hooks.settings_of(policy), hooks.made_with(policy)) == ((), {}, {})
    hooks.read(policy, ["open the drawer"])
    hooks.pretend_to_read(policy, ["open the drawer"])
    assert hooks.tuned(policy, object(), lambda _: pytest.fail("nobody asked for rollouts")) == (policy, "")
    with pytest.raises(ConfigError, match=r"temperature = 0.5: this policy has no temperature; leave it out"):
        hooks.at_temperature(policy, 0.5)


def test_a_policy_that_has_some_is_asked() -> None:
    policy = Warm()
    assert hooks.kind_of(policy) == "warm" and hooks.caveats_of(policy) == ("It is warm.",)
    assert hooks.at_temperature(policy, 0.5).temperature == 0.5 and hooks.temperature_of(policy) == 1.0
    hooks.read(policy, ["a"])
    hooks.pretend_to_read(policy, ["b"])  # it reads without a model that could be missing
    assert policy.heard == ["a", "b"]


def test_instructions_that_are_only_pretended_to_be_read_need_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = lively_policy(toy_config(policy={"language": "clip"}))
    hooks.pretend_to_read(policy, ["open the drawer"])
    monkeypatch.setattr("ript.policies.language.embed", lambda *_: pytest.fail("a model was asked for"))
    assert torch.equal(policy.embed(["open the drawer"]), torch.zeros(1, 512))
