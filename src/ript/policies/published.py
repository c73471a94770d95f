"""What a policy that another program trained was shown: its files do not say it, the protocol of its suite does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from ript.core import hooks, policy_calls
from ript.core.errors import ConfigError, DependencyMissing, UnknownNameError
from ript.core.interfaces import PostTrainable
from ript.core.options import SimOptions
from ript.core.registry import suites


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


def show_published(policy: PostTrainable) -> None:
    """`show` a policy what its protocol does. Nothing changes where its suite is not here, or has no such protocol: it
    then acts on what it is given, in no simulator.

    Raises:
        PolicyError: the policy does not fit these simulators.
    """
    with contextlib.suppress(ConfigError, DependencyMissing, UnknownNameError):
        show(policy, as_published(policy, policy.simulator.suite))
