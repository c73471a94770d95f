"""Whether a policy fits a simulator."""

from __future__ import annotations

from collections.abc import Mapping

from ript.core.errors import PolicyError
from ript.core.types import SimulatorSpec, same_proprio


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
            raise PolicyError(f"the policy does not fit simulator {spec.suite!r}: {what}: expected {e}, got {g}")
    if (spec.suite, spec.render) != (made_for.suite, made_for.render):
        raise PolicyError(
            f"the policy was trained on pictures of {made_for.suite} {dict(made_for.render)}, "
            f"the simulator shows {spec.suite} {dict(spec.render)}: use the same render settings"
        )
