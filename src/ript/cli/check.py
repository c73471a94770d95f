"""`ript check`: whether practice on a task is sound, and whether a policy keeps its contract there."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript.cli.answer import Answer
from ript.cli.arguments import given_fields, saying_what_is_kept
from ript.config import overrides
from ript.config.sections import Config
from ript.core.errors import ConfigError, PolicyError
from ript.core.registry import kinds, suites
from ript.run.settings import refuse_unused

if TYPE_CHECKING:
    from ript.core.interfaces import PostTrainable, Simulator
    from ript.core.types import SimulatorSpec
    from ript.policies.check import Finding


def check(args: Namespace) -> Answer:
    """The simulator of a task, and, where one is named, a policy on it."""
    from ript.build import simulator_factory, task_keys
    from ript.run.progress import status
    from ript.sims.registry import find_task
    from ript.sims.soundness import in_words, soundness

    for name, least in (("states", 1), ("steps", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    prefix, given = args.task.partition("/")[0], given_fields(args)
    named = prefix if "/" in args.task and prefix in suites.names() else None
    wanted = _wanted(args.policy, {name: words for name, words in given.items() if name.startswith("policy.")})
    (suite,) = given["sim.suite"] if "sim.suite" in given else [named or find_task(args.task).suite]
    if named not in (None, suite):
        raise ConfigError(f"{args.task} is of suite {named}: leave out --sim.suite")
    settings = {name: words for name, words in given.items() if name.startswith("sim.") and name != "sim.suite"}
    others = set(given) - {"sim.suite", *settings, *(wanted.settings if wanted else ())}
    if others:
        refuse_unused("check", overrides.apply(Config(), {"sim.suite": [suite]} | given), others)
    sim = overrides.of_simulators(suite, settings)
    if wanted and wanted.loaded:
        from ript.sims.seen import as_seen_by

        if (made_for := wanted.loaded.simulator.suite) != suite:
            raise ConfigError(f"{args.policy} was made for suite {made_for}, and {args.task} is of suite {suite}")
        sim = as_seen_by(wanted.loaded, sim, {name.partition(".")[2] for name in settings})
    (key,) = task_keys(sim, (args.task,))
    status(f"checking {key}")
    with saying_what_is_kept("the check did not finish"):
        make = partial(simulator_factory(sim), key)
        found = soundness(make, seed=args.seed, states=args.states, steps=args.steps)
        text, document, good = in_words(found), found.to_json(), found.sound
        if wanted:
            from ript.policies import check as policies

            status(f"checking {args.policy}")
            of_policy = _findings(wanted, make, args.seed)
            text += "\n\n" + policies.in_words(args.policy, of_policy)
            good = good and all(finding.passed is not False for finding in of_policy)
            document |= {"policy": {"name": args.policy, "checks": [finding.to_json() for finding in of_policy]}}
    return Answer(text=text, document=document, code=0 if good else 1, costly=True)


@dataclass(frozen=True)
class _Wanted:
    """The policy that is to be checked.

    Attributes:
        loaded: of a folder; None: a new one is made.
        make: simulator's spec -> a new one.
        load: folder -> such a policy.
        settings: that it was asked for with.
    """

    loaded: PostTrainable | None
    make: Callable[[SimulatorSpec], PostTrainable]
    load: Callable[[Path], PostTrainable]
    settings: tuple[str, ...] = ()


def _wanted(what: str | None, given: dict[str, list[str]]) -> _Wanted | None:
    """A policy by its folder or name on the hub, or a new one by the name of its kind; None where none was named."""
    from ript.policies import hub
    from ript.policies.loading import load_policy, require_suite

    if what is None:
        return None
    if Path(what).exists() or hub.on_hub(what) or what not in kinds:
        if given:
            raise ConfigError(f"{', '.join(given)}: {what} is made already: leave it out, or name a kind of policy")
        if not Path(what).exists() and not hub.on_hub(what) and Path(what).name == what:
            raise PolicyError(f"{what} is no policy folder here, and no kind of policy: {kinds.unknown(what)}")
        require_suite(what)
        policy = load_policy(what)
        return _Wanted(policy, lambda spec: policy, load_policy)
    kind = kinds.get(what)
    options = overrides.apply(Config(), {"policy.kind": [what]} | given).policy
    kind.check(options)

    def make(spec: SimulatorSpec) -> Any:
        from ript.core import policy_calls

        policy = policy_calls.require_made(kind.make(options, spec, 0, None))
        kind.prepare_untrained(policy, 0)
        return policy

    return _Wanted(None, make, kind.load, tuple(given))


def _findings(wanted: _Wanted, make: Callable[[], Simulator], seed: int) -> list[Finding]:
    """What comes of checking it on what two states of the task look like, at their beginning and a little later."""
    from ript.core import hooks, policy_calls
    from ript.policies.check import check_policy
    from ript.policies.one_stage import OneStage
    from ript.sims.trajectories import looks

    with make() as simulator:
        policy = wanted.loaded or wanted.make(simulator.spec)
        policy_calls.check_simulator(policy, simulator.spec)
        hooks.read(policy, [simulator.task.instruction])
        seen = looks(simulator, simulator.initial_states(2, seed=seed), hooks.observation_steps_of(policy), seed)
    kind = kinds.get(str(hooks.kind_of(policy)))
    learns = kind.training is OneStage  # else what a `loss` is given is between the kind and its stages
    return check_policy(policy, seen, wanted.load, seed=seed, window=kind.window(policy) if learns else None)
