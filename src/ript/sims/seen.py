"""Settings of simulators by what a policy saw or a protocol says, and not by what somebody configures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ript.core import hooks, policy_calls
from ript.core.errors import ConfigError, RiptError, UnknownNameError
from ript.core.interfaces import PostTrainable
from ript.core.options import SimOptions
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.core.types import SimulatorSpec


def sim_options_of(policy: PostTrainable, horizon: int = 0) -> SimOptions:
    """The simulator settings that a policy was trained with."""
    return sim_options_of_spec(policy.simulator, horizon)


def sim_options_of_spec(spec: SimulatorSpec, horizon: int = 0) -> SimOptions:
    """The simulator settings that give this spec.

    Raises:
        UnknownNameError: its suite is not here.
        PolicyError: the suite's simulators cannot show such pictures.
    """
    return suites.get(spec.suite).options_of(spec).replaced(horizon=horizon)


def by_protocol(sim: SimOptions, name: str) -> SimOptions:
    """The settings with those of a published protocol that change nothing of what a policy is shown, such as horizon
    and settling.

    Raises:
        UnknownNameError: the suite has no such protocol.
    """
    suite = suites.get(sim.suite)
    if name not in suite.protocols:
        raise UnknownNameError(f"protocol of suite {sim.suite}", name, suite.protocols)
    changes = {"horizon": suite.protocols[name].horizon}
    if suite.spec is not None:
        shown = suite.spec(sim)
        for field, value in suite.protocols[name].values().items():
            if suite.spec(sim.replaced(**{field: value})) == shown:
                changes[field] = value
    return sim.replaced(**changes)


def as_seen_by(policy: PostTrainable, sim: SimOptions, asked: Collection[str] = ()) -> SimOptions:
    """These settings, but with what the policy was trained to see; how episodes begin and go on stays.

    Args:
        policy: of the suite that the settings are of.
        asked: names of settings that stay, too.

    Raises:
        PolicyError: the suite's simulators cannot show what the policy sees.
    """
    own, suite = sim_options_of(policy).values(), suites.get(sim.suite)
    changes = {name: own[name] for name in own if name not in SimOptions.model_fields and name not in asked}
    if suite.spec is not None:  # settings that what is seen does not depend on are not the policy's
        shown = suite.spec(sim)
        changes = {n: v for n, v in changes.items() if _shows_another(suite, sim.replaced(**{n: v}), shown)}
    return sim.replaced(**changes)


def _shows_another(suite: Suite, sim: SimOptions, shown: SimulatorSpec) -> bool:
    assert suite.spec is not None
    try:
        return suite.spec(sim) != shown
    except RiptError:  # a setting that fits only with others
        return True


def as_published(policy: PostTrainable, suite: str, views: Sequence[str] = ()) -> SimOptions:
    """The settings with which the suite's simulators show an imported policy what it was trained on.

    Args:
        policy: whose cameras have names and sizes, but no views yet.
        suite: has the protocol that the policy names, or "published".
        views: of the suite, for the policy's cameras in order; none: the published one for each.

    Raises:
        ConfigError: the suite has no published look or no cameras of one size, or there are not as many views as
            cameras.
    """
    published = suites.get(suite).protocols.get(hooks.protocol_of(policy))
    if published is None or not {"cameras", "image_size"} <= type(published).model_fields.keys():
        raise ConfigError(f"suite {suite} does not say which pictures published policies saw: give a simulator's spec")
    names, sizes = list(policy.simulator.cameras), set(policy.simulator.cameras.values())
    usual = [word.rpartition("=")[2] for word in published.cameras]
    views = list(views) or usual * (len(names) if len(usual) == 1 else 1)
    if len(views) != len(names):
        raise ConfigError(f"the policy has {len(names)} cameras ({', '.join(names)}), got {len(views)} views for them")
    if len(sizes) != 1:
        raise ConfigError(f"{suite} shows pictures of one size, the policy takes {dict(policy.simulator.cameras)}")
    height, width = sizes.pop()
    cameras = tuple(f"{name}={view}" for name, view in zip(names, views, strict=True))
    changes: dict[str, Any] = {"cameras": cameras, "image_size": height if height == width else (height, width)}
    if "proprio" in type(published).model_fields:
        changes["proprio"] = tuple(policy.simulator.proprio)
    return published.replaced(**changes)


def show(policy: PostTrainable, sim: SimOptions) -> None:
    """Say that an imported policy was trained on what simulators with these settings show.

    Raises:
        UnknownNameError: no such camera.
        PolicyError: the policy does not fit these simulators.
    """
    suite = suites.get(sim.suite)
    if suite.spec is None:
        raise ConfigError(f"what simulators of suite {suite.name} show depends on the task: give a simulator's spec")
    policy.simulator = suite.spec(sim)
    policy_calls.check_simulator(policy, policy.simulator)
