"""Whether practice on a simulator is sound: the contract, and what makes success rates say less than they seem to.

The contract (`check`) is what practice rests on: a simulator that breaks it teaches a policy something untrue, without
an error. The rest is looked at on some initial states: whether there is anything to learn, and what it costs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ript.core.errors import ConfigError, DependencyMissing, SimulatorError
from ript.core.interfaces import Simulator
from ript.core.memory import translated
from ript.core.simulators import close, surviving
from ript.core.types import InitialState, SimulatorSpec, Split, Task
from ript.sims.check import CHECKS, Finding, findings, require_simulator
from ript.sims.trajectories import Moment, alike, moment, random_actions, trajectory

MEANS = {
    "observations fit the spec": "a policy would be built for other pictures and numbers than it is shown",
    "initial states are sequences": "runs could not be repeated, or a policy would be measured on states that it "
    "practised on",
    "first observation is of the initial state": "the first decision of each rollout would be made for another scene",
    "used equals fresh": "rollouts from one state would not start or run equal: what tells them apart would be taken "
    "for merit of the policy",
    "interleaved instances do not leak": "rollouts beside each other would disturb each other",
    "chunks equal single steps": "success would depend on how many actions are executed between two observations",
    "looking changes nothing": "what happens would depend on who looks, and recorded pictures could change",
    "nothing is drawn without a look": "practice would pay for pictures that nobody sees, and its times would be wrong",
    "episodes end at the horizon": "success rates would be of other horizons than they say",
    "errors have an address": "a broken rollout could not be found, or would count as a failure of the policy",
    "equals stock": "results would not be those of the environment that it wraps",
}
"""Check -> what it would mean for practice if it failed."""


@dataclass(frozen=True, kw_only=True)
class Soundness:
    """What was found out about the simulators of a task.

    Attributes:
        task: the task.
        findings: of the contract's checks.
        states: how many initial states of the split train the rest was tried on.
        still: those that were solved by doing nothing: (id, label, steps).
        lucky: how many were solved by random actions.
        tested: how many of the split test, which may have fewer.
        alike: how many of these look like one of the others, to the last pixel and number, and go on so.
        raised: what the simulator raised meanwhile, so that not all of them were tried; "".
        odd: how many episodes came to numbers that are not finite, in what the simulator shows beside proprioception.
        plain: cameras whose first pictures of all these states are equal.
        spec: of the simulators.
        notes: what the simulator itself has to say.
        remedy: what it advises where the contract does not hold; "".
        build, instance, step, look: seconds of the first instance, of another one beside it, of a step, of a look.
        bytes: resident memory of another instance.
    """

    task: Task
    findings: tuple[Finding, ...]
    states: int
    still: tuple[tuple[str, str, int], ...]
    lucky: int
    tested: int
    alike: int
    odd: int
    raised: str
    plain: tuple[str, ...]
    spec: SimulatorSpec
    notes: tuple[str, ...]
    remedy: str
    build: float
    instance: float
    step: float
    look: float
    bytes: int

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.passed is False)

    @property
    def sound(self) -> bool:
        """The contract holds, there is something to learn, and test states that tell what was learned; and all of it
        could be tried."""
        return not (self.failed or self.raised) and len(self.still) < self.states and self.alike < self.tested

    @property
    def succeeded(self) -> bool:
        """Whether any of the episodes was a success, so that it was seen what success means."""
        return bool(self.still or self.lucky)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "task": self.task.key,
            "sound": self.sound,
            "checks": [
                {"name": finding.name, "passed": finding.passed, "found": finding.what} for finding in self.findings
            ],
            "states": self.states,
            "solved_by_doing_nothing": [
                {"initial_state": id_, "label": label, "steps": steps} for id_, label, steps in self.still
            ],
            "solved_by_random_actions": self.lucky,
            "success_was_seen": self.succeeded,
            "test_states": self.tested,
            "test_states_alike": self.alike,
            "episodes_with_numbers_that_are_not_finite": self.odd,
            "raised": self.raised,
            "cameras": {name: list(size) for name, size in self.spec.cameras.items()},
            "cameras_that_show_all_states_alike": list(self.plain),
            "proprioception": dict(self.spec.proprio),
            "notes": list(self.notes),
            "seconds": {
                "first": self.build,
                "instance": self.instance,
                "step": self.step or None,  # nothing could be measured
                "look": self.look or None,
            },
            "bytes": {"instance": self.bytes},
        }


def soundness(factory: Callable[[], Simulator], *, seed: int = 0, states: int = 20, steps: int = 40) -> Soundness:
    """Check a simulator, and look at what practice on it would be like.

    Args:
        factory: makes a new instance.
        seed: of initial states and random actions.
        states: initial states to try.
        steps: steps of each trajectory of the checks.

    Raises:
        ConfigError, DependencyMissing: no simulator can be made; says why.
        SimulatorError: not even a first reset is possible.
    """
    began = time.perf_counter()
    require_simulator(factory)
    build = time.perf_counter() - began
    with factory() as simulator, translated(lambda e: SimulatorError(f"{simulator.task.key}: {_line(e)}")):
        task = simulator.task
        notes, remedy = tuple(getattr(simulator, "notes", ())), str(getattr(simulator, "remedy", ""))
        spec = simulator.spec
        practised, tested = (_states(simulator, states, seed, split) for split in ("train", "test"))
        simulator.reset(practised[0])  # what cannot be done at all is an error, not a finding
        instance, size = _another(factory, practised[0])
    found = tuple(findings(factory, seed=seed, steps=steps))
    with factory() as simulator:
        tried = _Tried()
        try:
            with surviving():
                _try(tried, simulator, practised, tested, seed)
        except (ConfigError, DependencyMissing):
            raise
        except Exception as error:  # a simulator of anyone's, which may raise anything
            tried.raised = _line(error)
    return Soundness(
        task=task,
        findings=found,
        states=states,
        still=tuple(tried.still),
        lucky=tried.lucky,
        tested=len(tested),
        alike=tried.alike,
        odd=tried.odd,
        raised=tried.raised,
        plain=tuple(tried.plain),
        spec=spec,
        notes=notes,
        remedy=remedy,
        build=build,
        instance=instance,
        step=tried.step / max(1, tried.steps),
        look=tried.look / max(1, tried.looks),
        bytes=size,
    )


def _another(factory: Callable[[], Simulator], state: InitialState, n: int = 4) -> tuple[float, int]:
    """(seconds, bytes) of one more instance beside others, with a reset."""
    import psutil

    process, opened = psutil.Process(), []
    began, before = time.perf_counter(), process.memory_info().rss
    try:
        for _ in range(n):
            opened.append(factory())
            opened[-1].reset(state)
        return (time.perf_counter() - began) / n, max(0, process.memory_info().rss - before) // n
    finally:
        for simulator in opened:
            close(simulator)


def _states(simulator: Simulator, n: int, seed: int, split: Split) -> list[InitialState]:
    found: Any = simulator.initial_states(n, seed=seed, split=split)
    if not isinstance(found, list) or not found or not all(isinstance(state, InitialState) for state in found):
        given = f"a list of {len(found)}" if isinstance(found, list) else type(found).__name__
        raise SimulatorError(
            f"{simulator.task.key}: initial_states({n}, split={split!r}) gave {given}; expected initial states"
        )
    return found


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, SimulatorError) else f"{type(error).__name__}: {error}"


@dataclass
class _Tried:
    """What was seen of a simulator's states; see `Soundness`. `step` and `look` are seconds of all of them."""

    still: list[tuple[str, str, int]] = field(default_factory=list)
    lucky: int = 0
    alike: int = 0
    odd: int = 0
    steps: int = 0
    looks: int = 0
    step: float = 0.0
    look: float = 0.0
    raised: str = ""
    plain: list[str] = field(default_factory=list)


def _try(
    found: _Tried, simulator: Simulator, practised: list[InitialState], tested: list[InitialState], seed: int
) -> None:
    """Add up what is seen of the simulator's states; what was seen before it raised is kept."""
    horizon, first = simulator.task.horizon, list[tuple[InitialState, Moment]]()
    nothing = np.zeros((horizon, simulator.spec.action_dim), np.float32)
    simulator.reset(practised[0])  # opens what the first look needs
    for number, state in enumerate(practised):
        for actions in (nothing, random_actions(simulator, horizon, seed + number)):
            seen, before = moment(simulator, 0, None, simulator.reset(state)), dict(simulator.seconds)
            result = simulator.step_chunk(actions)
            middle = dict(simulator.seconds)
            last = moment(simulator, result.env_steps, result, simulator.observe())
            found.step += middle["simulate"] - before["simulate"]
            found.look += simulator.seconds["render"] - middle["render"]
            found.steps, found.looks = found.steps + result.env_steps, found.looks + 1
            found.odd += last.vector is not None and not np.isfinite(last.vector).all()
            if actions is not nothing:
                found.lucky += result.success
                continue
            first.append((state, seen))
            if result.success:
                found.still.append((state.id, state.label, result.env_steps))
    found.plain = [name for name in simulator.spec.cameras if len(first) > 1 and _one_picture(name, first)]
    found.alike = sum(_is_among(simulator, state, first, seed) for state in tested)


def _one_picture(camera: str, first: list[tuple[InitialState, Moment]]) -> bool:
    """Whether all these states look the same through a camera."""
    pictures = [look.observation.images[camera] for _, look in first]
    return all(np.array_equal(pictures[0], other) for other in pictures)


def _is_among(
    simulator: Simulator, state: InitialState, first: list[tuple[InitialState, Moment]], seed: int, steps: int = 20
) -> bool:
    """Whether a state looks like one of these, and the same actions lead to what looks the same."""
    seen = moment(simulator, 0, None, simulator.reset(state))
    if (other := next((other for other, look in first if alike(seen, look)), None)) is None:
        return False
    actions = random_actions(simulator, min(steps, simulator.task.horizon), seed)
    return alike(*(trajectory(simulator, one, actions, chunk=steps)[-1] for one in (state, other)))


def in_words(found: Soundness) -> str:
    """The whole of it as text, what matters first."""
    lines = [f"{found.task.key}: {found.task.instruction}", ""]
    width = max(map(len, CHECKS))
    marks, said = {True: "holds", False: "FAILS", None: "-"}, set[str]()
    for finding in found.findings:
        lines.append(f"  {finding.name:<{width}}  {'RAISES' if finding.raised else marks[finding.passed]}")
        cause = re.sub(r"[-+.\d]|, initial state \w+", "", finding.what)
        if finding.raised and cause not in said:
            said.add(cause)
            lines.append(f"      found: {finding.what}")
            lines.append("      means: this cannot be checked, and such rollouts end in ERROR")
        elif finding.passed is False and not finding.raised:
            lines += [f"      found: {finding.what}", f"      means: {MEANS[finding.name]}"]
    lines += ["", *_about(found), "", _verdict(found)]
    return "\n".join(lines)


def _about(found: Soundness) -> list[str]:
    n = found.states
    lines = [f"  {len(found.still)} of {n} states are solved by doing nothing, {found.lucky} by random actions"]
    if found.still:
        named = ", ".join(f"{label} ({id_}, after {steps} steps)" for id_, label, steps in found.still[:5])
        more = f", and {len(found.still) - 5} more" if len(found.still) > 5 else ""
        lines.append(f"      {named}{more}: nothing can be learned from these, and they raise every success rate")
    if not found.succeeded:
        lines.append(
            "      no episode succeeded, so success itself was not tried: collect demonstrations, which do succeed"
        )
    if found.alike:
        lines.append(
            f"  {found.alike} of {found.tested} test states look like one that is practised on: success on them is not"
        )
        lines.append("      success on what was never seen")
    if found.raised:
        lines.append(f"      but not all were tried, for it raised {found.raised}")
    if found.odd:
        lines.append(f"  {found.odd} of {2 * n} episodes came to NaN or infinity in numbers that a policy is not shown")
    cameras = ", ".join(f"{name} {height} x {width}" for name, (height, width) in found.spec.cameras.items())
    numbers = ", ".join(f"{name} ({size})" for name, size in found.spec.proprio.items())
    lines.append(f"  a policy sees pictures: {cameras or 'none'}; and numbers: {numbers or 'none'}")
    if found.plain:
        lines.append(
            f"      {', '.join(found.plain)}: the pictures of all {n} states are equal, and tell a policy nothing"
        )
    lines += [f"  {note}" for note in found.notes]
    first, other = f"{found.build:.2f} s", f"{found.instance * 1e3:.1f} ms and {found.bytes / 2**20:.1f} MiB"
    lines.append(f"  cost here: {first} for the first instance, {other} for each other")
    if found.step:
        lines[-1] += ";"
        lines.append(f"      {found.step * 1e3:.2f} ms a step, {found.look * 1e3:.2f} ms an observation")
    return lines


def _verdict(found: Soundness) -> str:
    if found.failed:
        names = ", ".join(finding.name for finding in found.failed if not finding.raised)
        if not names:
            return f"not sound: the simulator raises in {len(found.failed)} of {len(found.findings)} checks"
        remedy = f"; {found.remedy}" if found.remedy else ""
        return f"not sound: practice here would learn from what is not so ({names}){remedy}"
    if not found.sound and not found.raised:
        if len(found.still) == found.states:
            return "not sound: every state that was tried is solved by doing nothing, so there is nothing to learn"
        return (
            "not sound: every test state looks like one that is practised on, so success on them would not say what "
            "was learned"
        )
    held = sum(finding.passed is True for finding in found.findings)
    if found.raised:
        return (
            f"not known to be sound: {held} of {held} checks that apply hold, but the simulator raises in states "
            "beyond them, where rollouts end in ERROR"
        )
    return f"sound: {held} of {held} checks that apply hold"
