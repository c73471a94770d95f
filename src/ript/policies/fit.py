"""Whether a policy fits a simulator."""

from __future__ import annotations

from collections.abc import Mapping

from ript.core.errors import PolicyError, RiptError
from ript.core.registry import suites
from ript.core.types import SimulatorSpec, differing, same_proprio


def require_fit(made_for: SimulatorSpec, spec: SimulatorSpec) -> None:
    """Raise `PolicyError`, saying expected against got, unless a simulator is like the one a policy was made for."""
    for what, fits, expected, got in (
        ("cameras (name: height, width)", made_for.cameras == spec.cameras, made_for.cameras, spec.cameras),
        (
            "proprioception (name: size, in order)",
            same_proprio(made_for.proprio, spec.proprio),
            made_for.proprio,
            spec.proprio,
        ),
        ("action size", made_for.action_dim == spec.action_dim, made_for.action_dim, spec.action_dim),
    ):
        if not fits:
            e, g = (dict(x) if isinstance(x, Mapping) else x for x in (expected, got))
            own = as_settings(made_for, spec)
            raise PolicyError(
                f"the policy does not fit simulator {spec.suite!r}: {what}: expected {e}, got {g}"
                + (f"; what it was made for is {own}" if own else "")
            )
    require_same_settings(made_for, spec)


def require_same_settings(made_for: SimulatorSpec, spec: SimulatorSpec) -> None:
    """Raise `PolicyError`, naming each setting that is another, unless a simulator shows what that did which a policy
    was made for, and acts as that did."""
    if spec.suite != made_for.suite:
        raise PolicyError(f"the policy was trained in {made_for.suite}, the simulator is of {spec.suite}")
    if others := differing(made_for.render, spec.render):
        raise PolicyError(
            f"the policy was trained with other settings of the simulator {spec.suite!r} than it is given: {others}; "
            f"use the policy's own{f' ({own})' if (own := as_settings(made_for, spec)) else ''}"
        )


def as_settings(made_for: SimulatorSpec, spec: SimulatorSpec) -> str:
    """The settings that make simulators like those of `spec` ones that a policy was made for, as they are typed; empty
    where there are none."""
    try:
        own, given = (suites.get(each.suite).options_of(each).to_json() for each in (made_for, spec))
    except RiptError:  # no such suite here, or its simulators do not show that
        return ""
    if own["suite"] != given["suite"]:
        return ""
    return " ".join(f"--sim.{name}={_typed(value)}" for name, value in own.items() if value != given[name])


def _typed(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_typed, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
