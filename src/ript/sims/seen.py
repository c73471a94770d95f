"""Settings of simulators by what a policy saw or a protocol says, and not by what somebody configures."""

from __future__ import annotations

from collections.abc import Collection

from ript.core.errors import RiptError, UnknownNameError
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
