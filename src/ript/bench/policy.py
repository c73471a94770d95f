"""How fast is a policy: `ript bench policy`.

Act, log_prob and an update step of a policy with random weights, each beside one decision at a time and beside the
limit: the floating-point operations that it counts, at the speed of a large matrix product in the same precision on the
same device. A kind of policy brings the policies and what else is worth comparing (`core.specimens`). Then what torch
offers on top, one thing at a time. Those that change numerics are never on by default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ript.bench.measuring import in_turn, matmul_speed, measured
from ript.build import computing
from ript.config import defaults
from ript.config.sections import LearnConfig
from ript.core import policy_calls
from ript.core.errors import ConfigError, UnknownNameError
from ript.core.registry import kinds
from ript.core.specimens import Specimens
from ript.core.types import Observation
from ript.learn.objective import weighted_objective
from ript.run.progress import status

FEW = 64
"""Decisions of an update or of log_prob that are done one at a time, at most; each takes as long as the others."""


def bench_policy(
    size: str | None = None,
    batch: int | Sequence[int] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    rows: int | None = None,
    *,
    kind: str = defaults.KIND,
    synthetic: bool = False,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """Time a policy with random weights, made on the device. What memory it takes is said first, on the screen, so that
    it is known where there is no such device, or one without room.

    Args:
        size: one of the kind's; None: its usual one.
        batch: observations of one `act`, or several such numbers, each measured; None: the kind's.
        device: "cpu" or "cuda".
        threads: torch threads on a CPU; the recipe's by default.
        rows: decisions of one update step; None: the kind's.
        kind: of policy.
        synthetic: the published size is meant, where none is named.
        micro_batch: decisions of a pass of an update step, at most; 0: all; None: the kind's.

    Returns:
        {"kind", "size", "parameters", "device", "threads", "precision", "matmul_gflops", "matmul_gflops_bf16", "plan",
        "act", "log_prob", "update", "comparisons", "options"}. "act" is a list, one a batch; its entries, "log_prob"
        and "update" hold "batch", "milliseconds", "a_second", "ratio_to_one_by_one", "gflop", "ratio_to_limit" (in the
        policy's precision) and "peak_mib"; "comparisons" is a list of {"name", "milliseconds", "otherwise", "ratio"};
        "options" maps a name to {"milliseconds", "plain_milliseconds" (in turn), "ratio", "ratio_to_limit" (of its own
        precision; not for TF32), "changes_numerics"} or {"error"}; "plan" says in words what memory it takes.

    Raises:
        ConfigError: no such kind, size or device, a kind that cannot be measured, or a number below 1.
        DeviceTooSmall: the policy does not fit; nothing was made.
    """
    of_kind = kinds.get(kind).specimens
    if of_kind is None:
        raise ConfigError(f"kind {kind!r} brings no random policies that could be measured")
    specimens = of_kind()
    size = size or (specimens.sizes[-1] if synthetic else specimens.usual)
    batches = tuple(specimens.batches if batch is None else (batch,) if isinstance(batch, int) else batch)
    rows = specimens.rows if rows is None else rows
    micro_batch = specimens.micro_batch if micro_batch is None else micro_batch
    threads = LearnConfig().threads if threads is None else threads
    if size not in specimens.sizes:
        raise UnknownNameError("size", size, specimens.sizes)
    if min(*batches, rows, threads) < 1 or micro_batch < 0:
        numbers = " ".join(map(str, batches))
        raise ConfigError(
            f"batch ({numbers}), rows ({rows}) and threads ({threads}) must be at least 1, micro_batch ({micro_batch}) "
            "0 or more"
        )
    largest, each = max(batches), micro_batch or rows
    plan = list(specimens.plan(size, largest, each))
    for line in plan:
        status(line)
    with computing(device, threads):
        specimens.require_room(size, device, largest, each)
        return _measure(specimens, kind, size, batches, device, rows, micro_batch) | {"plan": plan}


def _measure(
    specimens: Specimens, kind: str, size: str, batches: Sequence[int], device: str, rows: int, micro_batch: int
) -> dict[str, Any]:
    policy = specimens.make(size, device)
    parameters = list(policy.parameters())
    precision = max({p.dtype for p in parameters}, key=lambda d: sum(p.numel() for p in parameters if p.dtype is d))
    status("matrix products: the limit")
    limits = {dtype: matmul_speed(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    speed = limits[precision]
    document: dict[str, Any] = {
        "kind": kind,
        "size": size,
        "parameters": sum(p.numel() for p in parameters),
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": str(precision).removeprefix("torch."),
        "matmul_gflops": limits[torch.float32] / 1e9,
        "matmul_gflops_bf16": limits[torch.bfloat16] / 1e9,
    }
    status("act, log_prob, update")
    document["act"] = [_act(policy, specimens.look(policy, batch), device, speed) for batch in batches]
    look = specimens.look(policy, batches[0])
    document["comparisons"] = []
    for found in specimens.comparisons(policy, look):
        took, otherwise = in_turn(device, found.work, found.other)
        document["comparisons"].append(
            {"name": found.name, "milliseconds": took, "otherwise": found.otherwise, "ratio": otherwise / took}
        )
    inputs, sample = specimens.decisions(policy, look, rows)
    update = _Update(policy, inputs, sample, micro_batch)
    document["log_prob"] = _log_prob(update, device, speed)
    document["update"] = _update(update, device, speed)
    document["options"] = {}
    if specimens.options:
        status("what torch offers")
        document["options"] = _options(update, document["update"], device, limits)
    return document


# ------------------------------------------------------------------ the three things a policy does


def _act(policy: Any, look: Observation, device: str, speed: float) -> dict[str, Any]:
    generators = [np.random.default_rng(i) for i in range(len(look))]
    few = range(min(8, len(look)))

    def one_by_one() -> None:
        for i in few:
            policy.act(_row(look, i), [generators[i]])

    return measured(
        lambda: policy.act(look, generators), one_by_one, len(few) / len(look), device, speed, batch=len(look)
    )


def _row(look: Observation, i: int) -> Observation:
    return Observation(
        images={name: images[i : i + 1] for name, images in look.images.items()},
        proprio=look.proprio[i : i + 1],
        instruction=look.instruction[i : i + 1],
    )


class _Update:
    """One optimiser step of the clipped objective on what post-training updates, in passes of `micro_batch`."""

    def __init__(self, policy: Any, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor, micro_batch: int):
        self.policy, self.inputs, self.sample = policy, inputs, sample
        self.micro_batch = micro_batch or len(sample)
        self.log_prob: Callable[..., Any] = policy.log_prob
        self.old = self.densities(range(len(sample)), self.micro_batch)
        self.mask = torch.ones_like(self.old, dtype=torch.bool)
        self.advantage = torch.linspace(-1, 1, len(sample), device=sample.device)

    @torch.no_grad()
    def densities(self, rows: range, each: int) -> torch.Tensor:
        """Log-probabilities of decisions, so many a pass."""
        return torch.cat([self.log_prob(*self.taken(part))[0].float() for part in _cut(rows, each)])

    def taken(self, rows: slice) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return {name: tensor[rows] for name, tensor in self.inputs.items()}, self.sample[rows]

    def optimiser(self, **settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(policy_calls.rl_parameters(self.policy), lr=1e-9, **settings)

    def step(self, optimiser: torch.optim.Optimizer, rows: range | None = None, each: int | None = None) -> None:
        rows = range(len(self.sample)) if rows is None else rows
        optimiser.zero_grad(set_to_none=True)
        for part in _cut(rows, each or self.micro_batch):
            log_prob, entropy = self.log_prob(*self.taken(part))
            loss, _ = weighted_objective(
                log_prob.float(),
                self.old[part],
                self.advantage[part],
                self.mask[part],
                self.mask[part].float(),
                normaliser=float(len(rows) * self.mask.shape[1]),
                clip_low=0.2,
                clip_high=0.2,
                entropy=entropy.float(),
            )
            loss.backward()
        optimiser.step()


def _cut(rows: range, each: int) -> list[slice]:
    return [slice(start, min(start + each, rows.stop)) for start in range(rows.start, rows.stop, each)]


def _log_prob(update: _Update, device: str, speed: float) -> dict[str, Any]:
    rows = range(len(update.sample))
    few = range(min(FEW, len(rows)))
    return measured(
        lambda: update.densities(rows, update.micro_batch),
        lambda: update.densities(few, 1),
        len(few) / len(rows),
        device,
        speed,
        batch=len(rows),
    )


def _update(update: _Update, device: str, speed: float) -> dict[str, Any]:
    optimiser, rows = update.optimiser(), len(update.sample)
    few = range(min(FEW, rows))
    return measured(
        lambda: update.step(optimiser),
        lambda: update.step(optimiser, few, each=1),
        len(few) / rows,
        device,
        speed,
        batch=rows,
    )


# ------------------------------------------------------------------ what torch offers on top


def _options(
    update: _Update, plain: dict[str, Any], device: str, limits: Mapping[torch.dtype, float]
) -> dict[str, Any]:
    """Name -> what an update step takes with it, in turn with the plain one; last, since some cannot be undone."""
    original = update.log_prob
    plain_optimiser, fused = update.optimiser(), update.optimiser(fused=True)
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16)

    @functools.cache
    def fast() -> Callable:
        return torch.compile(original, dynamic=False)

    def step(optimiser: torch.optim.Optimizer = plain_optimiser, *, compiled: bool = False) -> None:
        update.log_prob = fast() if compiled else original
        update.step(optimiser)

    def bf16(**settings: Any) -> None:
        with autocast():
            step(**settings)

    def plain_attention() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            step()

    # Name, work, precision of its limit, whether results change by more than the order of sums.
    tried: list[tuple[str, Callable[[], None], torch.dtype | None, bool]] = [
        ("fused AdamW", lambda: step(fused), torch.float32, False),
        ("attention as plain products", plain_attention, torch.float32, False),
        ("torch.compile", lambda: step(compiled=True), torch.float32, True),
        ("bf16 autocast", bf16, torch.bfloat16, True),
        ("bf16 autocast, torch.compile", lambda: bf16(compiled=True), torch.bfloat16, True),
    ]
    if device == "cuda":
        tried.append(("TF32", lambda: _with_tf32(step), None, True))
    found: dict[str, Any] = {}
    for name, work, precision, numerics in tried:
        if precision is torch.bfloat16 and limits[torch.bfloat16] < limits[torch.float32] / 4:
            found[name] = {"error": "bf16 products are many times slower than float32's"}  # minutes for nothing
            continue
        try:
            took, plainly = in_turn(device, work, step)
        except Exception as error:  # a missing compiler, an unsupported operation: this machine cannot, and says why
            found[name] = {"error": str(error).splitlines()[0]}
        else:
            found[name] = {
                "milliseconds": took,
                "plain_milliseconds": plainly,
                "ratio": plainly / took,
                "changes_numerics": numerics,
                "ratio_to_limit": None if precision is None else 1e9 * plain["gflop"] / limits[precision] / took * 1000,
            }
        finally:
            update.log_prob = original
    return found


def _with_tf32(work: Callable[[], None]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        work()
    finally:
        torch.set_float32_matmul_precision(before)


# ------------------------------------------------------------------ for a person


def describe_policy(document: dict[str, Any]) -> str:
    """The numbers of `bench_policy` for a person."""
    head = f"{document['kind']} {document['size']}: {document['parameters']:,} parameters, most in "
    head += f"{document['precision']}, on {document['device']}, {document['threads']} threads"
    speeds = f"{document['matmul_gflops']:,.0f} GFLOP/s, in bf16 at {document['matmul_gflops_bf16']:,.0f}"
    lines = [f"{head}; a matrix product runs at {speeds}"]
    parts = [("act", part) for part in document["act"]] + [(n, document[n]) for n in ("log_prob", "update")]
    for name, part in parts:
        lines.append(
            f"{name:9s} {part['milliseconds']:8.2f} ms for {part['batch']:4d}, {part['a_second']:,.1f} a second, "
            f"{part['ratio_to_one_by_one']:5.1f} times as fast as one by one, "
            f"{100 * part['ratio_to_limit']:3.0f} % of the limit, +{part['peak_mib']:.0f} MiB"
        )
    for found in document["comparisons"]:
        lines.append(
            f"  {found['name']}: {found['milliseconds']:.2f} ms, {found['ratio']:.2f} times as fast as "
            f"{found['otherwise']}"
        )
    for name, option in document["options"].items():
        if "error" in option:
            lines.append(f"  update with {name}: not here ({option['error']})")
            continue
        limit = "" if option["ratio_to_limit"] is None else f", {100 * option['ratio_to_limit']:.0f} % of the limit"
        changes = ", changes numerics" if option["changes_numerics"] else ""
        lines.append(
            f"  update with {name}: {option['milliseconds']:.2f} ms, {option['ratio']:.2f} times{limit}{changes}"
        )
    return "\n".join(lines)
