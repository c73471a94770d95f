"""Several ranks do what one does: here threads of this process, which speak over torch.distributed as machines do."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ript.core.errors import NotFiniteError, RatioError, TrainingError
from ript.core.metrics import Mean, Sum, values
from ript.core.types import Rollout
from ript.learn import ranks as ranks_module
from ript.learn.ranks import ElsewhereError, Grouped, over, sum_gradients
from ript.learn.rate import make_optimiser
from ript.learn.spread import owners, ranked
from ript.learn.update import UpdateResult, update
from tests.learn.test_update import Bandit, changed, everything, make_update_batch

SETTINGS: dict[str, Any] = {"epochs": 3, "minibatch_decisions": 7, "micro_batch": 3, "target_kl": 9.0}


def together(
    world: int,
    work: Callable[[Grouped], Any],
    seconds: float = 20.0,
    backend: str = "gloo",
    abandoned: threading.Event | None = None,
) -> list[Any]:
    """What each of `world` ranks comes to, or the error that it raised."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found: list[Any] = [None] * world

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        try:
            found[number] = work(
                over(
                    backend,
                    number,
                    world,
                    own,
                    host="127.0.0.1",
                    device="cpu",
                    seconds=seconds,
                    abandoned=abandoned or threading.Event(),
                )
            )
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture
def nccl_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks over nccl have a group that computes on CPUs: the same calls of torch, but for the one that makes it."""

    def make(rank: int, world: int, store: Any, seconds: float) -> Any:
        return ranks_module._gloo(rank, world, store, "127.0.0.1", seconds + 0.5)

    monkeypatch.setattr(ranks_module, "_nccl", make)


def improved(
    world: int, batch: Any, policy: Bandit, backend: str = "gloo", **settings: Any
) -> list[tuple[torch.Tensor, UpdateResult]]:
    """(weights, result) of each rank."""
    homes = [f"node {number % world}" for number in range(len(batch.rollouts))]
    owner = owners(batch, homes, [f"node {number}" for number in range(world)])

    def learn(ranks: Grouped) -> tuple[torch.Tensor, UpdateResult]:
        own = copy.deepcopy(policy)
        optimiser = make_optimiser(own, learning_rate=1e-2)
        generator = torch.Generator().manual_seed(5)
        part = replace(batch, mine=owner == ranks.rank)
        result = update(own, optimiser, part, generator=generator, ranks=ranks, **(SETTINGS | settings))
        return torch.nn.utils.parameters_to_vector(own.parameters()).detach(), result

    return together(world, learn, backend=backend)


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
@pytest.mark.parametrize(("backend", "world"), [("gloo", 2), ("gloo", 4), ("nccl", 4)])
def test_ranks_learn_what_one_process_learns(backend: str, world: int, reduction: str, nccl_on_cpus: None) -> None:
    policy = Bandit()
    batch = make_update_batch(policy, lengths=(1, 4, 2, 3, 1, 5, 2, 2))
    alone = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(5)
    settings = SETTINGS | {"reduction": reduction}
    expected = update(alone, make_optimiser(alone, learning_rate=1e-2), batch, generator=generator, **settings)
    weights = torch.nn.utils.parameters_to_vector(alone.parameters()).detach()
    found = improved(world, batch, policy, backend, reduction=reduction)
    assert all(torch.equal(own, found[0][0]) for own, _ in found)
    assert float((found[0][0] - weights).norm() / weights.norm()) < 1e-6
    there, here = values(found[0][1].metrics), values(expected.metrics)
    assert there.keys() == here.keys()
    for name in here:
        if name != "update_seconds":
            assert there[name] == pytest.approx(here[name], rel=1e-5, abs=1e-7), name
    counts = ("epochs_done", "optimiser_steps", "clip_fraction", "grad_clip_fraction")
    assert [there[name] for name in counts] == [here[name] for name in counts]


def test_a_rank_without_rows_takes_part() -> None:
    policy = Bandit()
    batch = make_update_batch(policy)
    (one,) = improved(1, batch, policy)
    found = together(3, lambda ranks: _with_rows_of_rank_0(ranks, batch, policy))
    for weights in found:
        assert float((weights - one[0]).norm() / one[0].norm()) < 1e-6


def _with_rows_of_rank_0(ranks: Grouped, batch: Any, policy: Bandit) -> torch.Tensor:
    own = copy.deepcopy(policy)
    part = replace(batch, mine=torch.full((len(batch.rollouts),), ranks.rank == 0))
    generator = torch.Generator().manual_seed(5)
    update(own, make_optimiser(own, learning_rate=1e-2), part, generator=generator, ranks=ranks, **SETTINGS)
    return torch.nn.utils.parameters_to_vector(own.parameters()).detach()


def test_an_update_stops_by_the_kl_of_all_ranks_together() -> None:
    policy = Bandit()
    batch = make_update_batch(policy, lengths=(3, 3, 3, 3), spread=0.3)
    settings = {"target_kl": 1e-3, "ratio_tolerance": 9.0}
    alone = copy.deepcopy(policy)
    expected = update(alone, make_optimiser(alone, learning_rate=1e-2), batch, generator=None, **(SETTINGS | settings))
    found = improved(2, batch, policy, **settings)
    assert "passed the target" in expected.stop_reason
    assert {result.stop_reason.partition(" passed")[0][:6] for _, result in found} == {expected.stop_reason[:6]}
    assert len({result.metrics["optimiser_steps"].value for _, result in found}) == 1


def test_an_error_on_one_rank_ends_the_update_on_all() -> None:
    policy = Bandit()
    batch = make_update_batch(policy, lengths=(4, 4, 4, 4))
    rows = everything(batch).old_log_prob.clone()
    rows[0] = float("nan")
    found = improved(2, changed(batch, old_log_prob=rows), policy, minibatch_decisions=99)
    assert [type(error) for error in found] == [NotFiniteError, ElsewhereError]


def test_rollouts_of_another_density_are_refused_by_all_ranks() -> None:
    policy = Bandit()
    found = improved(2, make_update_batch(policy, spread=0.5), policy)
    assert [type(error) for error in found] == [RatioError, RatioError]


def test_a_parameter_that_no_rank_has_a_gradient_of_stays_without() -> None:
    def work(ranks: Grouped) -> list[Any]:
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        parameters[0].grad = torch.ones(2)
        if ranks.rank:
            parameters[1].grad = torch.ones(2)
        sum_gradients(ranks, parameters)
        return [None if p.grad is None else p.grad.tolist() for p in parameters]

    assert together(2, work) == [[[2.0, 2.0], [1.0, 1.0], None]] * 2


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_sums_over_ranks_are_rounded_once_from_float64(backend: str, nccl_on_cpus: None) -> None:
    parts = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    expected = parts.double().sum(0).float()
    assert not torch.equal(expected, parts[0] + parts[1] + parts[2])  # what float32 comes to

    def work(ranks: Grouped) -> torch.Tensor:
        own = parts[ranks.rank].clone()
        ranks.sum([own])
        return own

    assert all(torch.equal(found, expected) for found in together(3, work, backend=backend))


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_rank_that_has_ended_is_told_by_the_others_with_their_address(backend: str, nccl_on_cpus: None) -> None:
    def work(ranks: Grouped) -> None:
        if ranks.rank:  # its connections close with its group
            ranks.sum([torch.ones(3)])

    found = together(2, work, backend=backend)
    assert found[0] is None and isinstance(found[1], ElsewhereError)
    assert str(found[1]).startswith(f"rank 1 of 2 at 127.0.0.1 (over {backend}) does not reach the others (")
    assert "a rank has ended, or what lies between their machines" in str(found[1])


@pytest.mark.parametrize(
    ("says", "seconds", "cause"), [(True, 1.5, "a rank was lost"), (False, 0.5, "no answer within 0.5 s")]
)
def test_ranks_over_nccl_stop_to_wait_when_somebody_says_that_one_was_lost_and_in_the_end(
    says: bool, seconds: float, cause: str, nccl_on_cpus: None
) -> None:
    abandoned, over_by = threading.Event(), threading.Event()
    waited = list[float]()

    def work(ranks: Grouped) -> None:
        if ranks.rank == 0:  # is there, and does not answer
            over_by.wait(10)
            return
        began = time.monotonic()
        try:
            threading.Timer(0.2, abandoned.set).start() if says else None
            ranks.sum([torch.ones(3)])
        finally:
            waited.append(time.monotonic() - began)
            over_by.set()

    error = together(2, work, seconds, "nccl", abandoned)[1]
    assert isinstance(error, ElsewhereError) and f"(over nccl) does not reach the others ({cause}" in str(error)
    assert waited[0] == pytest.approx(0.2 if says else 0.5, abs=0.3)


def test_what_happened_on_a_rank_is_told_though_the_others_are_gone() -> None:
    def work(ranks: Grouped) -> None:
        if ranks.rank:
            with ranks.together():
                raise NotFiniteError("a loss")

    assert isinstance(together(2, work)[1], NotFiniteError)


def test_no_more_than_a_bucket_is_copied_and_sent_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "BUCKET", 4)

    class Group:
        """A rank's own, which notes how much is sent."""

        def __init__(self, group: Any):
            self.group, self.sent = group, list[int]()

        def allreduce(self, tensors: list[torch.Tensor]) -> Any:
            self.sent.append(sum(tensor.numel() for tensor in tensors))
            return self.group.allreduce(tensors)

    def work(ranks: Grouped) -> tuple[list[int], list[float]]:
        ranks._group = group = Group(ranks._group)
        tensors = [torch.full((size,), float(size)) for size in (1, 3, 2, 9, 1, 1)]
        ranks.sum(tensors)
        return group.sent, [float(n) for tensor in tensors for n in tensor.unique()]

    assert together(2, work) == [([4, 2, 9, 2], [2.0, 6.0, 4.0, 18.0, 2.0, 2.0])] * 2


def test_metrics_of_all_ranks_are_merged() -> None:
    found = together(3, lambda ranks: ranks.merge({"rows": Sum(ranks.rank), "loss": Mean(ranks.rank, 1)}))
    assert found == [{"rows": Sum(3), "loss": Mean(3, 3)}] * 3


@pytest.mark.parametrize("off", [None, 0, 2])
def test_ranks_whose_weights_differ_in_one_bit_are_told_so_on_all_of_them(off: int | None) -> None:
    def work(ranks: Grouped) -> None:
        weights = [torch.zeros(3), torch.ones(2, dtype=torch.bfloat16)]
        if ranks.rank == off:
            weights[1].view(torch.uint8)[3] ^= 1
        ranks.require_equal(weights)

    for found in together(3, work):
        if off is None:
            assert found is None
        else:
            assert isinstance(found, TrainingError) and "weights are not equal" in str(found)


def test_rows_of_a_node_that_is_no_rank_go_to_the_rank_with_the_fewest() -> None:
    batch = make_update_batch(Bandit(), lengths=(5, 1, 2, 9))
    assert owners(batch, ["a", "b", "gone", None], ["a", "b"]).tolist() == [0, 1, 1, 1]


class Holding:
    """Nodes, and which of them holds each rollout's record."""

    nodes = ("a", "b", "c")

    def __init__(self, homes: dict[int, str | None]):
        self.homes = homes

    def home(self, rollout: Rollout) -> str | None:
        return self.homes[id(rollout)]


def test_ranks_are_the_nodes_that_hold_most_records() -> None:
    batch = make_update_batch(Bandit(), lengths=(1, 1, 1, 1, 1))
    homes = ["b", "c", None, "c", "gone"]
    machines: Any = Holding({id(rollout): home for rollout, home in zip(batch.rollouts, homes, strict=True)})
    assert ranked(batch, machines, 0) == ["c", "b", "a"]
    assert ranked(batch, machines, 2) == ["c", "b"]
