"""The contract of `LikelihoodPolicy`, checked on any policy: the kinds of this package and a user's own.

Policies that break it are trained and measured without an error, and what comes out is of another policy than the
one that is saved, or cannot be repeated. Numbers are those of the contract in docs/adding_a_policy.md.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ript.core import children, hooks, policy_calls
from ript.core.errors import ConfigError, PolicyError, RiptError
from ript.core.interfaces import PostTrainable
from ript.core.supervised import Statistics
from ript.core.types import ActionChunk, DemoBatch, Observation

if TYPE_CHECKING:
    import torch

ROUNDED = 0.05
"""Tolerance where a policy's own is None: it says that it computes in different precisions."""


class Broken(PolicyError):
    """A policy breaks its contract: what was found, and what to do."""

    def __init__(self, what: str, remedy: str):
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check of a policy found.

    Attributes:
        name: of `CHECKS`.
        number: of the contract in docs/adding_a_policy.md.
        passed: whether it holds; None: it cannot be told, for one before it that it rests on does not.
        what: what was found; "" where nothing was.
        remedy: what to do; "" where it holds, or where the policy raised.
    """

    name: str
    number: int
    passed: bool | None
    what: str = ""
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class _Subject:
    """What is checked: a policy, on B observations, how it is loaded from a folder, and H of its loss or None."""

    policy: PostTrainable
    looks: Observation
    load: Callable[[Path], PostTrainable]
    seed: int
    window: int | None = None

    @property
    def tolerance(self) -> float:
        """How far the policy may round a ratio from 1, and actions from each other."""
        return hooks.ratio_tolerance_of(self.policy) or ROUNDED

    def generators(self, rows: int | None = None) -> list[np.random.Generator]:
        """One a row, the same ones whenever they are asked for."""
        return [np.random.default_rng([self.seed, row]) for row in range(len(self.looks) if rows is None else rows)]

    def act(self, policy: PostTrainable | None = None, *, greedy: bool = False) -> ActionChunk:
        """What a policy, by default that which is checked, does with all rows."""
        return act(policy or self.policy, self.looks, self.generators(), greedy=greedy)


def act(
    policy: PostTrainable, looks: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
) -> ActionChunk:
    """What a policy does, in arrays that it cannot change afterwards.

    Raises:
        PolicyError: it raised, or answered something else than an `ActionChunk` for as many rows.
        Broken: numbers that are not finite.
    """
    with policy_calls.asking(policy, "act"):
        chunk: Any = policy.act(looks, generators, greedy=greedy)
    if not isinstance(chunk, ActionChunk):
        raise policy_calls.answer(policy, "act", "an ActionChunk", chunk)
    for name in ("actions", "sample", "log_prob"):
        array = np.asarray(getattr(chunk, name))
        if array.ndim < 1 or len(array) != len(looks):
            raise policy_calls.answer(policy, "act", f"{name} of B = {len(looks)} rows", array)
        if not np.isfinite(array).all():
            raise Broken(f"{name} {'of greedy actions ' if greedy else ''}are NaN or infinite", "return finite numbers")
    return copy.deepcopy(chunk)


def check_policy(
    policy: PostTrainable,
    looks: Observation,
    load: Callable[[Path], PostTrainable],
    *,
    seed: int = 0,
    window: int | None = None,
) -> list[Finding]:
    """Hold a policy to its contract; its weights are other ones afterwards.

    Args:
        policy: to check; on the CPU or a GPU.
        looks: B observations of a simulator that it fits, at least two.
        load: loads such a policy from a folder.
        seed: of what is drawn.
        window: H, actions in the windows that `policy.loss` learns from; None: its loss is not looked at.

    Returns:
        Every check, whether or not those before it passed.
    """
    subject, found, told = _Subject(policy, looks, load, seed, window), list[Finding](), True
    for check, number in CHECKS.items():
        what, remedy = "", ""
        try:
            if told:
                check(subject)
        except Broken as broken:
            what, remedy = broken.what, broken.remedy
        except RiptError as error:
            what = str(error)
        name, passed = check.__name__.replace("_", " "), not what if told else None
        found.append(Finding(name=name, number=number, passed=passed, what=what, remedy=remedy))
        told = told and (not what or check not in FIRST)
    return found


def what_is_returned_is_finite(subject: _Subject) -> None:
    """Actions, samples and log-probabilities, drawn and greedy."""
    for greedy in (False, True):
        subject.act(greedy=greedy)


def nothing_is_kept_between_calls(subject: _Subject) -> None:
    """The most likely actions of the same observations are the same, whatever was asked in between."""
    first = subject.act(greedy=True)
    act(subject.policy, _rows(subject.looks, [-1]), subject.generators(1))
    if (away := _apart(first, subject.act(greedy=True))) > 0:
        raise Broken(
            f"greedy actions for the same observations differ by {away:.2g} from one call of act to the next",
            "keep nothing between calls: what an action depends on is in its observation (n_obs_steps for the past)",
        )


def the_same_generators_give_the_same_actions(subject: _Subject) -> None:
    """All that is drawn comes from the generators that are given."""
    if (away := _apart(subject.act(), subject.act())) > 0:
        raise Broken(
            f"actions differ by {away:.2g} between two calls with generators of the same seeds",
            "draw from the generators that act is given, and from no other: no run could be repeated",
        )


def each_row_draws_from_its_own_generator(subject: _Subject) -> None:
    """Another generator for the first row changes no other row, and no row gets what is the first one's to draw."""
    whole, others = subject.act(), subject.generators()
    others[0] = np.random.default_rng([subject.seed, len(others)])
    changed = act(subject.policy, subject.looks, others)
    rows = [row for row in range(1, len(others)) if _apart(whole, changed, row) > subject.tolerance]
    if rows:
        raise Broken(
            f"actions of rows {rows} changed with the generator of row 0",
            "draw row i from generators[i] alone: rollouts from one state would be alike, and depend on their batch",
        )


def a_row_alone_is_the_row_of_a_batch(subject: _Subject) -> None:
    """Alone it draws the same sample, of the same log-probability, from as many numbers."""
    drawn = subject.generators()
    whole = act(subject.policy, subject.looks, drawn)
    for row in range(len(subject.looks)):
        generator = subject.generators()[row]
        alone = act(subject.policy, _rows(subject.looks, [row]), [generator])
        expected = _row(whole, row)
        away, ratio = _apart(alone, expected), _ratio(alone.log_prob, expected.log_prob)
        if away > max(subject.tolerance, 1e-4) or ratio > subject.tolerance:
            raise Broken(
                f"row {row} of {len(subject.looks)} acts otherwise alone: actions differ by {away:.2g}, probabilities "
                f"by a factor of 1 ± {ratio:.2g} (ratio_tolerance {subject.tolerance:g})",
                "compute each row by itself: no statistics of the batch, eval mode, and draws from its own generator",
            )
        if generator.bit_generator.state != drawn[row].bit_generator.state:
            raise Broken(
                f"row {row} draws another number of values alone than in a batch of {len(subject.looks)}",
                "draw as many values a row whatever the batch",
            )


def log_prob_is_the_density_that_act_drew_from(subject: _Subject) -> None:
    """Scored again, samples have the log-probabilities that `act` recorded: ratios are 1 before the first update."""
    chunk, policy = subject.act(), subject.policy
    first, again = (_scored(policy, chunk) for _ in range(2))
    if not np.array_equal(first, again):
        raise Broken("log_prob of the same sample differs from call to call", "nothing random may happen in log_prob")
    if (ratio := _ratio(first, chunk.log_prob)) > subject.tolerance:
        raise Broken(
            f"log_prob is another density than act drew from: ratios differ from 1 by up to {ratio:.2g} "
            f"(ratio_tolerance {subject.tolerance:g})",
            "score the sample as drawn, before actions are clipped, at the same temperature and from the same inputs",
        )


def terms_belong_to_steps_of_the_chunk(subject: _Subject) -> None:
    """`term_steps`, where it is given, is for each term a step of the chunk, and some term shapes the first one."""
    chunk = subject.act()
    if chunk.term_steps is None:
        return
    steps, shape, length = np.asarray(chunk.term_steps), np.shape(chunk.log_prob), np.shape(chunk.actions)[1]
    good = steps.shape in (shape, shape[1:]) and steps.dtype.kind in "iu"
    if not good or steps.min() < 0 or steps.max() > length or steps.min(-1).any():
        raise Broken(
            f"term_steps is {steps.dtype} {list(steps.shape)} {steps.ravel()[:8].tolist()}",
            f"give [K] = {list(shape[1:])} whole numbers from 0 to H = {length}: the first step that each term shaped, "
            "0 for some; or None where all shape the first action",
        )


def saved_and_loaded_acts_alike(subject: _Subject) -> None:
    """With other weights and statistics than a new policy has, a folder holds all of it."""
    with tempfile.TemporaryDirectory() as folder:
        _stirred(subject.policy, subject.seed)
        policy_calls.save(subject.policy, Path(folder) / "policy")
        loaded = subject.load(Path(folder) / "policy")
    away = max(_apart(subject.act(loaded, greedy=greedy), subject.act(greedy=greedy)) for greedy in (False, True))
    ratio = _ratio(subject.act(loaded).log_prob, subject.act().log_prob)
    if away > subject.tolerance or ratio > subject.tolerance:
        raise Broken(
            f"save_pretrained and the loaded policy differ: actions by {away:.2g}, probabilities by a factor of 1 ± "
            f"{ratio:.2g}",
            "save all that it acts by: torch saves parameters and buffers (register_buffer), not plain tensors",
        )


def weights_that_are_sent_act_alike(subject: _Subject) -> None:
    """`load_weights(weights())` gives the policy as it is, whatever practice has changed since it was copied."""
    with tempfile.TemporaryDirectory() as folder:
        policy_calls.save(subject.policy, Path(folder) / "policy")
        copied = subject.load(Path(folder) / "policy")
    before = _ratio(subject.act(copied).log_prob, subject.act().log_prob)
    _stirred(subject.policy, subject.seed + 1, statistics=False)
    policy_calls.load_weights(copied, policy_calls.weights(subject.policy))
    after = _ratio(subject.act(copied).log_prob, subject.act().log_prob)
    if after > subject.tolerance >= before:
        raise Broken(
            f"a copy that was given weights() acts otherwise: probabilities differ by a factor of 1 ± {after:.2g}",
            "let weights() return everything that rl_parameters() names: workers would act with older ones",
        )


def a_pickled_copy_acts_alike(subject: _Subject) -> None:
    """What a worker process is sent is the policy."""
    try:
        copied = children.unpack(children.pack(subject.policy))
    except (ConfigError, pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise Broken(str(error), "hold no open files or locks before it acts; --workers 0 does without") from error
    if (away := _apart(subject.act(copied), subject.act())) > subject.tolerance:
        raise Broken(f"its actions differ by {away:.2g}", "let what __getstate__ leaves out be made anew, alike")


def gradients_reach_what_is_trained(subject: _Subject) -> None:
    """`log_prob` has a gradient by what post-training updates; `loss`, where there is one, by the policy's weights."""
    import torch

    policy, chunk = subject.policy, subject.act()
    updated = [tensor for group in policy_calls.rl_parameters(policy) for tensor in group["params"]]
    with torch.enable_grad():
        _require_gradient("log_prob", _log_prob(policy, chunk).sum(), updated)
    if subject.window is None or not isinstance(policy, torch.nn.Module):
        return
    value = _loss(policy, subject.looks, subject.window, subject.seed)
    if not torch.isfinite(value):
        raise Broken(f"loss is {value.item()} on random actions", "return a finite number for all actions in [-1, 1]")
    _require_gradient("loss", value, list(policy.parameters()))


FIRST = (
    what_is_returned_is_finite,
    nothing_is_kept_between_calls,
    the_same_generators_give_the_same_actions,
)
"""Without these, nothing can be told by comparing what it does."""
CHECKS: Mapping[Callable[[_Subject], None], int] = {
    what_is_returned_is_finite: 6,
    log_prob_is_the_density_that_act_drew_from: 1,
    terms_belong_to_steps_of_the_chunk: 4,
    nothing_is_kept_between_calls: 3,
    the_same_generators_give_the_same_actions: 2,
    each_row_draws_from_its_own_generator: 2,
    a_row_alone_is_the_row_of_a_batch: 2,
    saved_and_loaded_acts_alike: 5,
    weights_that_are_sent_act_alike: 5,
    a_pickled_copy_acts_alike: 7,
    gradients_reach_what_is_trained: 8,
}
"""Check -> number of the contract that it is of."""


def in_words(name: str, found: Sequence[Finding]) -> str:
    """All findings as text."""
    width = max(len(finding.name) for finding in found)
    lines, marks = [f"{name}: the contract of docs/adding_a_policy.md", ""], {True: "holds", False: "FAILS", None: "-"}
    for finding in found:
        lines.append(f"  {finding.number}  {finding.name:<{width}}  {marks[finding.passed]}")
        lines += [f"         found: {finding.what}"] * bool(finding.what)
        lines += [f"         do:    {finding.remedy}"] * bool(finding.remedy)
    failed = ", ".join(sorted({str(finding.number) for finding in found if finding.passed is False}))
    verdict = f"not sound: it breaks contract {failed}" if failed else f"sound: {len(found)} of {len(found)} hold"
    return "\n".join([*lines, "", verdict])


def _stirred(policy: PostTrainable, seed: int, *, statistics: bool = True) -> None:
    """Give a policy other weights than a new one has, by small noise, and other statistics of what it sees."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in policy_calls.rl_parameters(policy):
            for tensor in group["params"]:
                noise = torch.randn(tensor.shape, generator=generator).to(tensor)
                tensor.add_(noise * (0.1 * tensor.abs().mean() + 0.01))
    if statistics and hasattr(policy, "set_statistics"):
        drawn, size = np.random.default_rng(seed), policy.simulator.proprio_dim
        given = Statistics(
            proprio_mean=drawn.normal(0, 0.1, size).astype(np.float32),
            proprio_std=drawn.uniform(0.5, 2, size).astype(np.float32),
            privileged_mean=None,
            privileged_std=None,
        )
        with policy_calls.asking(policy, "set_statistics"):
            policy.set_statistics(given)


def _scored(policy: PostTrainable, chunk: ActionChunk) -> np.ndarray:
    """`log_prob` of a chunk's samples, [B, K]."""
    import torch

    with torch.no_grad():
        return _log_prob(policy, chunk).float().cpu().numpy()


def _log_prob(policy: PostTrainable, chunk: ActionChunk) -> torch.Tensor:
    """`log_prob` of a chunk's samples, [B, K]."""
    import torch

    given = {name: torch.as_tensor(np.array(x)) for name, x in {**chunk.inputs, **chunk.rollout_inputs}.items()}
    terms = np.asarray(chunk.log_prob).shape[1]
    return policy_calls.log_prob(policy, given, torch.as_tensor(np.array(chunk.sample)), terms)[0]


def _loss(policy: Any, looks: Observation, window: int, seed: int) -> torch.Tensor:
    """`loss` of random actions, in training mode as in supervised training, and with random numbers of its own."""
    import torch

    shape = (len(looks), window)
    mask = np.ones(shape, bool)
    mask[0, 1:] = False  # a window that runs past the end of its demonstration
    actions = np.random.default_rng(seed).uniform(-1, 1, (*shape, policy.simulator.action_dim)).astype(np.float32)
    batch, loss = DemoBatch(observation=looks, actions=actions, mask=mask), policy.loss
    policy.train()
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            with policy_calls.asking(policy, "loss"):
                found = loss(batch)
            return policy_calls.loss(policy, found)[0]
    finally:
        policy.eval()


def _require_gradient(of: str, value: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
    """Raise unless the gradient of a number is finite, and other than 0 by some of these."""
    import torch

    wanted = [tensor for tensor in parameters if tensor.requires_grad]
    found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad and wanted else ()
    given = [gradient for gradient in found if gradient is not None]
    trained = "what rl_parameters() names" if of == "log_prob" else "the policy's parameters"
    if not any(bool(gradient.any()) for gradient in given):
        raise Broken(
            f"{of} has no gradient by {trained}",
            f"compute {of} with them, without no_grad, detach or numpy: nothing would be learned",
        )
    if not all(bool(torch.isfinite(gradient).all()) for gradient in given):
        raise Broken(
            f"the gradient of {of} by {trained} is NaN or infinite", "keep its parts finite: scales and roots above 0"
        )


def _rows(looks: Observation, rows: list[int]) -> Observation:
    images = {name: np.ascontiguousarray(image[rows]) for name, image in looks.images.items()}
    return Observation(
        images=images, proprio=looks.proprio[rows], instruction=tuple(looks.instruction[row] for row in rows)
    )


def _row(chunk: ActionChunk, row: int) -> ActionChunk:
    return replace(
        chunk,
        actions=chunk.actions[row : row + 1],
        sample=chunk.sample[row : row + 1],
        log_prob=chunk.log_prob[row : row + 1],
    )


def _apart(one: ActionChunk, other: ActionChunk, row: int | None = None) -> float:
    """Largest difference of actions, of a row or of all."""
    if np.shape(one.actions) != np.shape(other.actions):
        return float("inf")
    difference = np.abs(np.asarray(one.actions, np.float64) - np.asarray(other.actions, np.float64))
    return float((difference if row is None else difference[row]).max(initial=0))


def _ratio(one: np.ndarray, other: np.ndarray) -> float:
    """Largest |ratio - 1| of the terms' probabilities."""
    if np.shape(one) != np.shape(other):
        return float("inf")
    with np.errstate(over="ignore"):
        away = np.abs(np.expm1(np.asarray(one, np.float64) - np.asarray(other, np.float64)))
    return float(away.max(initial=0))
