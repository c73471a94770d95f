"""How fast is a policy: `ript bench policy`.

Act, log_prob and an update step on random pictures and tokens, each beside a naive way of doing the same and beside the
limit: the floating-point operations that it counts, at the speed of a large matrix product in the same precision on the
same device. Then what torch offers on top, one thing at a time. Those that change numerics are never on by default.
"""

from __future__ import annotations

import copy
import functools
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ript.build import computing
from ript.config.sections import LearnConfig
from ript.core.errors import ConfigError
from ript.core.types import Observation, SimulatorSpec
from ript.learn.objective import weighted_objective
from ript.policies.quest.config import SIZES, QuestConfig
from ript.policies.quest.policy import QuestPolicy
from ript.run.progress import status

REPEATS = 5
METAWORLD: dict[str, Any] = {"cameras": {"side": (64, 64)}, "proprio": {"proprio": 8}, "action_dim": 4}
"""What the quickstart's policy sees; the paper size sees two cameras of 128 pixels, as on LIBERO."""
ROWS = 512
"""Decisions of an update step; the minibatch of `LearnConfig`."""


def bench_policy(
    size: str = "small", batch: int = 16, device: str = "cpu", threads: int | None = None, rows: int = ROWS
) -> dict[str, Any]:
    """Time a policy with random weights.

    Args:
        size: of `SIZES`.
        batch: observations of one `act`.
        device: "cpu" or "cuda".
        threads: torch threads on a CPU; the recipe's by default.
        rows: decisions of one update step.

    Returns:
        {"size", "parameters", "device", "threads", "matmul_gflops", "matmul_gflops_bf16", "act", "log_prob", "update",
        "pictures", "options"}. Three of them hold "batch", "milliseconds", "ratio_to_naive", "naive" (what that is),
        "ratio_to_limit" and "peak_mib"; "options" maps a name to {"milliseconds", "plain_milliseconds" (in turn),
        "ratio", "ratio_to_limit" (of its own precision; not for TF32), "changes_numerics"} or {"error"}.

    Raises:
        ConfigError: no such size or device, or a batch below 1.
    """
    _check(size, batch, device, rows)
    threads = LearnConfig().threads if threads is None else threads
    if threads < 1:
        raise ConfigError(f"threads ({threads}) must be at least 1")
    with computing(device, threads):
        policy = _random_policy(size).to(device)
        look = _random_look(policy, batch)
        status("matrix products: the limit")
        speed, speed_bf16 = matmul_speed(device), matmul_speed(device, torch.bfloat16)
        document: dict[str, Any] = {
            "size": size,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "device": device,
            "threads": torch.get_num_threads(),
            "matmul_gflops": speed / 1e9,
            "matmul_gflops_bf16": speed_bf16 / 1e9,
        }
        status("act, log_prob, update")
        document["act"] = _act(policy, look, device, speed)
        document["pictures"] = _pictures(policy, look, device)
        inputs, sample = _decisions(policy, look, rows, device)
        document["log_prob"] = _log_prob(policy, inputs, sample, device, speed)
        update = _Update(policy, inputs, sample)
        document["update"] = _update(update, device, speed)
        status("what torch offers")
        limits = {torch.float32: speed, torch.bfloat16: speed_bf16}
        document["options"] = _options(update, document["update"], device, limits)
        return document


def _check(size: str, batch: int, device: str, rows: int) -> None:
    if size not in SIZES:
        raise ConfigError(f"size: {size!r} is not one of {', '.join(SIZES)}")
    if batch < 1 or rows < 1:
        raise ConfigError(f"batch ({batch}) and rows ({rows}) must be at least 1")


def _random_policy(size: str) -> QuestPolicy:
    settings = dict(SIZES[size]) if size == "paper" else {**SIZES[size], **METAWORLD}
    config = QuestConfig(**settings, rl_trains="prior")
    spec = SimulatorSpec(
        suite="random",
        cameras=config.cameras,
        proprio=config.proprio,
        action_dim=config.action_dim,
        render={},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return QuestPolicy(config, spec)


def _random_look(policy: QuestPolicy, batch: int) -> Observation:
    """Random pictures of `batch` different tasks."""
    rng = np.random.default_rng(0)
    instructions = tuple(f"task {i}" for i in range(batch))
    for i, instruction in enumerate(instructions):
        policy.remember(instruction, torch.full((policy.config.language_dim,), i / batch))
    images = {c: rng.integers(0, 256, (batch, *size, 3), np.uint8) for c, size in policy.config.cameras.items()}
    proprio = rng.normal(size=(batch, policy.simulator.proprio_dim)).astype(np.float32)
    return Observation(images=images, proprio=proprio, instruction=instructions)


def _decisions(
    policy: QuestPolicy, look: Observation, rows: int, device: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs and tokens of `rows` decisions."""
    with torch.no_grad():
        prefix = policy.prefix(look)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(0, policy.config.codebook, (rows, policy.config.tokens), generator=generator)
    repeated = prefix[torch.arange(rows) % len(prefix)]
    return {"task_token": repeated[:, 0], "observation_token": repeated[:, 1]}, sample.to(device)


# ------------------------------------------------------------------ the three things a policy does


def _act(policy: QuestPolicy, look: Observation, device: str, speed: float) -> dict[str, Any]:
    generators = [np.random.default_rng(i) for i in range(len(look))]

    def act() -> object:
        return policy.act(look, generators)

    @torch.no_grad()
    def naive() -> None:
        """No key/value cache: the whole sequence again for each token, encoders once."""
        policy.autoencoder.decode(_generate_without_cache(policy, policy.prefix(look)))

    def one_by_one() -> None:
        for i, generator in enumerate(generators):
            policy.act(_row(look, i), [generator])

    result = _measured(act, naive, "no key/value cache", device, speed, len(look))
    with torch.no_grad():
        prefix = policy.prefix(look)
    cached, uncached = _in_turn(
        device, lambda: policy.generate(prefix), lambda: _generate_without_cache(policy, prefix)
    )
    result["tokens_milliseconds"], result["tokens_ratio_to_no_cache"] = cached, uncached / cached
    if device == "cuda":
        launched = _milliseconds(lambda: policy.generate(prefix, graphs=False), device)
        result["tokens_ratio_to_no_graph"] = launched / cached
    result["ratio_to_one_by_one"] = _milliseconds(one_by_one, device) / result["milliseconds"]
    return result


@torch.no_grad()
def _generate_without_cache(policy: QuestPolicy, prefix: torch.Tensor) -> torch.Tensor:
    tokens = torch.zeros((len(prefix), policy.config.tokens), dtype=torch.int64, device=prefix.device)
    for step in range(policy.config.tokens):
        tokens[:, step] = policy.prior_logits(prefix, tokens[:, : step + 1])[:, -1].argmax(-1)
    return tokens


def _row(look: Observation, i: int) -> Observation:
    return Observation(
        images={name: images[i : i + 1] for name, images in look.images.items()},
        proprio=look.proprio[i : i + 1],
        instruction=look.instruction[i : i + 1],
    )


def _pictures(policy: QuestPolicy, look: Observation, device: str) -> dict[str, float]:
    """The encoders on pictures as they are stored, channels last, and laid out channels first."""
    inputs = policy.inputs(look)
    images = {name: inputs[f"image/{name}"] for name in policy.config.cameras}
    first = {name: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for name, x in images.items()}
    channels_first = copy.deepcopy(policy.encoder).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def last() -> None:
        policy.encoder.features(images, inputs["proprio"])

    @torch.no_grad()
    def other() -> None:
        channels_first.features(first, inputs["proprio"])

    took, otherwise = _in_turn(device, last, other)
    return {"batch": len(look), "milliseconds": took, "ratio_to_channels_first": otherwise / took}


def _log_prob(
    policy: QuestPolicy, inputs: dict[str, torch.Tensor], sample: torch.Tensor, device: str, speed: float
) -> dict[str, Any]:
    @torch.no_grad()
    def log_prob() -> None:
        policy.log_prob(inputs, sample)

    @torch.no_grad()
    def naive() -> None:
        for i in range(few):
            policy.log_prob({name: tensor[i : i + 1] for name, tensor in inputs.items()}, sample[i : i + 1])

    few = min(64, len(sample))
    result = _measured(log_prob, naive, "one decision at a time", device, speed, len(sample))
    result["ratio_to_naive"] *= len(sample) / few  # of which few were done
    return result


class _Update:
    """One optimiser step of the clipped objective on the prior."""

    def __init__(self, policy: QuestPolicy, inputs: dict[str, torch.Tensor], sample: torch.Tensor):
        self.policy, self.inputs, self.sample = policy, inputs, sample
        self.mask = torch.ones_like(sample, dtype=torch.bool)
        self.weight = self.mask.float()
        self.advantage = torch.linspace(-1, 1, len(sample), device=sample.device)
        with torch.no_grad():
            self.old = policy.log_prob(inputs, sample)[0]
        self.log_prob: Callable[..., Any] = policy.log_prob

    def optimiser(self, **settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.policy.rl_parameters(), lr=1e-9, **settings)

    def step(self, optimiser: torch.optim.Optimizer, rows: slice = slice(None)) -> None:
        inputs = {name: tensor[rows] for name, tensor in self.inputs.items()}
        log_prob, entropy = self.log_prob(inputs, self.sample[rows])
        loss, _ = weighted_objective(
            log_prob.float(),
            self.old[rows],
            self.advantage[rows],
            self.mask[rows],
            self.weight[rows],
            normaliser=float(self.mask[rows].sum()),
            clip_low=0.2,
            clip_high=0.2,
            entropy=entropy.float(),
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def _update(update: _Update, device: str, speed: float) -> dict[str, Any]:
    optimiser = update.optimiser()

    def naive() -> None:
        for start in range(0, few, 8):
            update.step(optimiser, slice(start, start + 8))

    few = min(512, len(update.sample))
    result = _measured(
        lambda: update.step(optimiser), naive, "minibatches of 8 decisions", device, speed, len(update.sample)
    )
    result["ratio_to_naive"] *= len(update.sample) / few  # of which few were done
    return result


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
            took, plainly = _in_turn(device, work, step)
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


# ------------------------------------------------------------------ measuring


def _measured(
    work: Callable[[], object], naive: Callable[[], object], what: str, device: str, speed: float, batch: int
) -> dict[str, Any]:
    before = _peak_mib(device)
    work()
    peak = _peak_mib(device) - (before if device == "cpu" else 0.0)
    took, took_naively = _in_turn(device, work, naive)
    with FlopCounterMode(display=False) as counter:
        work()
    return {
        "batch": batch,
        "milliseconds": took,
        "naive": what,
        "ratio_to_naive": took_naively / took,
        "gflop": counter.get_total_flops() / 1e9,
        "ratio_to_limit": counter.get_total_flops() / speed / (took / 1000),
        "peak_mib": peak,
    }


def _milliseconds(work: Callable[[], object], device: str) -> float:
    return _in_turn(device, work)[0]


def _in_turn(device: str, *works: Callable[[], object]) -> list[float]:
    """Milliseconds of each, the best of a few repeats after one to warm up; in turn, so that a machine whose speed
    changes meanwhile does not favour one."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS + 1):
        for work, of_work in zip(works, times, strict=True):
            _synchronise(device)
            began = time.perf_counter()
            work()
            _synchronise(device)
            of_work.append(1000 * (time.perf_counter() - began))
    return [min(of_work[1:]) for of_work in times]


def matmul_speed(device: str, dtype: torch.dtype = torch.float32, size: int | None = None) -> float:
    """Floating-point operations a second of a matrix product `[size, size]`, large enough to fill the device."""
    size = size or (8192 if device == "cuda" else 1024 if dtype is torch.float32 else 512)
    a = torch.randn(size, size, device=device, dtype=dtype)
    rounds = 8 if dtype is torch.float32 else 1  # the best of a second, on a machine that others use too
    return 2 * size**3 / (min(_milliseconds(lambda: a @ a, device) for _ in range(rounds)) / 1000)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mib(device: str) -> float:
    """On a GPU what torch had allocated at most since the last call; on a CPU the process's largest size ever."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def describe_policy(document: dict[str, Any]) -> str:
    """The numbers of `bench_policy` for a person."""
    head = f"{document['size']}: {document['parameters']:,} parameters on {document['device']}"
    speeds = f"{document['matmul_gflops']:,.0f} GFLOP/s, in bf16 at {document['matmul_gflops_bf16']:,.0f}"
    lines = [f"{head}, {document['threads']} threads; a matrix product runs at {speeds}"]
    for name in ("act", "log_prob", "update"):
        part = document[name]
        lines.append(
            f"{name:9s} {part['milliseconds']:8.2f} ms for {part['batch']:4d}, {part['ratio_to_naive']:5.1f} times as "
            f"fast as with {part['naive']}, {100 * part['ratio_to_limit']:3.0f} % of the limit, "
            f"+{part['peak_mib']:.0f} MiB"
        )
    act = document["act"]
    lines.append(
        f"  tokens alone: {act['tokens_milliseconds']:.2f} ms, {act['tokens_ratio_to_no_cache']:.1f} times as fast as "
        f"without a cache; a batch is {act['ratio_to_one_by_one']:.1f} times as fast as one by one"
    )
    if "tokens_ratio_to_no_graph" in act:
        lines.append(f"  tokens with a CUDA graph: {act['tokens_ratio_to_no_graph']:.1f} times as fast as without")
    pictures = document["pictures"]
    lines.append(
        f"  pictures alone: {pictures['milliseconds']:.2f} ms, {pictures['ratio_to_channels_first']:.2f} times as fast "
        "as laid out channels first"
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
