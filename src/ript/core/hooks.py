"""What a policy may have besides acting and its density, and what holds of one that has not.

The loop, evaluation and the command line ask a policy through these functions alone; each names the member that it
looks for. A policy that is written for one task and one script needs none of them.

    KIND                         name of the kind of policy, as in its folder            `kind_of`
    options                      its kind's options, as it was made with them            `settings_of`, `made_with`
    settings()                   its whole configuration, plain values                   `settings_of`
    made_with()                  options that are part of it and cannot be changed       `made_with`
    caveats                      what readers of its results should know                 `caveats_of`
    read(instructions)           prepare instructions once, before it is copied          `read`
    pretend_to_read(...)         the same without a model that understands them          `pretend_to_read`
    temperature                  of its sampling density                                 `temperature_of`
    at_temperature(t)            the same policy at another one                          `at_temperature`
    tuned(options, decisions)    made ready for post-training by its kind's options      `tuned`
    weights_in(folder)           what practice changed, of a folder it wrote itself      `weights_in`
    protocol                     of its suite, that its published results follow         `protocol_of`
    ratio_tolerance              how far `act` and `log_prob` may round apart            `ratio_tolerance_of`
    n_obs_steps                  observation steps that it sees at a time                `observation_steps_of`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ript.core.errors import ConfigError
from ript.core.interfaces import LikelihoodPolicy, Policy, PostTrainable
from ript.core.options import PolicyOptions
from ript.core.policy_calls import answer, asking

if TYPE_CHECKING:
    import torch

FLOAT32_RATIO_TOLERANCE = 1e-3
"""How far float32 may round a ratio from 1; those of QueST stay within 1e-5."""

P = TypeVar("P", bound=PostTrainable)

Decisions = Callable[[Any], "tuple[Mapping[str, torch.Tensor], torch.Tensor]"]
"""Policy -> (inputs, sample), `[N, ...]` both, of its decisions in a few rollouts from training states."""


def kind_of(policy: LikelihoodPolicy) -> str | None:
    """The name of the policy's kind; None for a policy of no kind, which no policy folder can hold."""
    return getattr(policy, "KIND", None)


def settings_of(policy: LikelihoodPolicy) -> dict[str, Any]:
    """The policy's whole configuration as plain JSON values, for the record; empty for a policy that has none."""
    if hasattr(policy, "settings"):
        with asking(policy, "settings"):
            return dict(policy.settings())
    options = _options(policy)
    return {} if options is None else options.to_json()


def made_with(policy: LikelihoodPolicy) -> dict[str, Any]:
    """Options of its kind that are part of it and cannot be changed any more -> its own values, such as "chunk".

    None stands for a value that the options have no word for, or, of those that it may be given when it is trained
    further (`PolicyOptions.FURTHER`), for one that it does not have yet.
    """
    if hasattr(policy, "made_with"):
        with asking(policy, "made_with"):
            return dict(policy.made_with())
    options = _options(policy)
    return {} if options is None else options.decided()


def caveats_of(policy: LikelihoodPolicy) -> tuple[str, ...]:
    """Whole sentences for readers of its results: privileged information in training, known mismatches, ..."""
    with asking(policy, "caveats"):
        return tuple(getattr(policy, "caveats", ()))


def read(policy: LikelihoodPolicy, instructions: Sequence[str]) -> None:
    """Let it prepare instructions once, before it is copied into workers."""
    if hasattr(policy, "read"):
        with asking(policy, "read"):
            policy.read(instructions)


def pretend_to_read(policy: LikelihoodPolicy, instructions: Sequence[str]) -> None:
    """Let it take instructions for something that it has read, whatever they mean: where speed alone is measured, and
    the model that reads them may not be there."""
    getattr(policy, "pretend_to_read", lambda _: read(policy, instructions))(instructions)


def temperature_of(policy: LikelihoodPolicy) -> float | None:
    """The temperature of its sampling density; None for a policy without one."""
    return getattr(policy, "temperature", None)


def at_temperature(policy: P, temperature: float) -> P:
    """The same policy, sharing its weights, at another temperature.

    Raises:
        ConfigError: it has none, or cannot have this one.
    """
    if not hasattr(policy, "at_temperature"):
        raise ConfigError(f"temperature = {temperature:g}: {_named(policy)} has no temperature; leave it out")
    with asking(policy, "at_temperature"):
        found: Any = policy.at_temperature(temperature)
    if found is None:
        raise answer(policy, "at_temperature", "a policy", found)
    return found


def tuned(policy: P, options: Any, decisions: Decisions | None) -> tuple[P, str]:
    """The policy as post-training begins with it: its sampling density and what is trained.

    Args:
        policy: shares its weights with the result, as far as both have them.
        options: of its kind.
        decisions: what it may choose something by, a temperature for instance; None leaves that undone.

    Returns:
        policy: ready, or the same one.
        told: what was chosen, in words; empty when nothing was.

    Raises:
        ConfigError: options that it cannot follow.
    """
    if not hasattr(policy, "tuned"):
        return policy, ""
    with asking(policy, "tuned"):
        found: Any = policy.tuned(options, decisions)
    if not (isinstance(found, tuple | list) and len(found) == 2 and found[0] is not None):
        raise answer(policy, "tuned", "(the policy that post-training begins with, what was chosen in words)", found)
    return found[0], found[1] or ""


def weights_in(policy: LikelihoodPolicy, folder: Path, load: Callable[[Path], PostTrainable]) -> Mapping[str, Any]:
    """What `policy.weights()` was when it wrote a folder, without a second copy of a large base; else of what `load`
    finds there."""
    return policy.weights_in(folder) if hasattr(policy, "weights_in") else load(folder).weights()


def protocol_of(policy: LikelihoodPolicy) -> str:
    """The name, among its suite's protocols, of that by which it was trained and measured when it was published."""
    return getattr(policy, "protocol", "published")


def ratio_tolerance_of(policy: LikelihoodPolicy) -> float | None:
    """Largest |new / old probability - 1| before the first step of an update that is rounding, not another density.

    1e-3 of a policy that says nothing, which suits float32. One that computes in bfloat16, or whose density is narrow
    beside its mean, says more; one whose `act` and `log_prob` round so differently that the update shall compute the
    old log-probabilities again, as it rounds itself, says None.

    Raises:
        ConfigError: it says something else than a positive number or None.
    """
    tolerance = getattr(policy, "ratio_tolerance", FLOAT32_RATIO_TOLERANCE)
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance > 0):
        raise ConfigError(f"{_named(policy)} has ratio_tolerance = {tolerance!r}; expected a positive number, or None")
    return tolerance


def observation_steps_of(policy: Policy) -> int:
    """n, consecutive environment steps whose observations it sees at a time, the present one included.

    1 of a policy that says nothing: observations are `[B, ...]` then, and `[B, n, ...]` of more steps, the latest last.
    Before an episode's first step stands its first observation, repeated. With n > 1 the simulators are looked at after
    each of a chunk's last n - 1 steps besides, and demonstrations need an observation of every step.

    Raises:
        ConfigError: it says something else than a whole number of at least 1.
    """
    steps = getattr(policy, "n_obs_steps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"the policy has n_obs_steps = {steps!r}; expected a whole number of at least 1")
    return steps


def _options(policy: LikelihoodPolicy) -> PolicyOptions | None:
    options = getattr(policy, "options", None)
    return options if isinstance(options, PolicyOptions) else None


def _named(policy: LikelihoodPolicy) -> str:
    kind = kind_of(policy)
    return f"a {kind} policy" if kind else "this policy"
