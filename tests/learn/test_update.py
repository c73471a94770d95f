import copy
import dataclasses
import math
import threading

import numpy as np
import pytest
import torch

from ript.core.errors import ConfigError, NoSignalError, NotFiniteError, PolicyError, RatioError, TrainingError
from ript.core.types import Group, InitialState, Rollout, Status, Task
from ript.learn.batch import UpdateBatch, make_batch
from ript.learn.objective import clipped_objective
from ript.learn.rate import AdaptiveRate, make_optimiser, scale_rate
from ript.learn.update import update


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


class Bandit(torch.nn.Module):
    """A real, tiny policy: K categorical variables of V values, logits linear in the inputs `x` [R, C]."""

    def __init__(self, c=3, k=2, v=4, dropout=0.0, seed=0):
        super().__init__()
        self.k, self.v = k, v
        self.dropout = torch.nn.Dropout(dropout)
        self.linear = torch.nn.Linear(c, k * v)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.linear.weight.normal_(0, 0.3, generator=generator)
            self.linear.bias.zero_()

    def logits(self, x):
        return self.linear(self.dropout(x)).view(-1, self.k, self.v).log_softmax(-1)

    def log_prob(self, inputs, sample):
        logits = self.logits(inputs["x"])
        return logits.gather(-1, sample[..., None])[..., 0], -(logits.exp() * logits).sum(-1)

    def rl_parameters(self):
        return [{"params": [self.linear.weight]}, {"params": [self.linear.bias], "weight_decay": 0.0}]


def batch_of(lengths, advantage, *, sample, old_log_prob, mask, inputs):
    """The batch of rollouts with so many decisions each, from rows of all of them."""

    def split(rows):
        return [part.numpy().copy() for part in rows.split(list(lengths))]

    columns = {"sample": split(sample), "log_prob": split(old_log_prob), "mask": split(mask)}
    given = {name: split(rows) for name, rows in inputs.items()}
    rollouts = [
        Rollout(
            initial_state_id="0",
            index=i,
            status=Status.FAILURE,
            decisions=decisions,
            env_steps=decisions,
            policy_version=0,
            inputs={name: parts[i] for name, parts in given.items()},
            **{name: parts[i] for name, parts in columns.items()},
        )
        for i, decisions in enumerate(lengths)
    ]
    return UpdateBatch.of(rollouts, list(advantage))


def everything(batch):
    """All rows of a batch."""
    return batch.take(torch.arange(len(batch)))


def changed(batch, **columns):
    """The same batch with other rows."""
    rows = everything(batch)
    known = {name: getattr(rows, name) for name in ("sample", "old_log_prob", "mask", "inputs")}
    lengths = [rollout.decisions for rollout in batch.rollouts]
    return batch_of(lengths, batch.advantage.tolist(), **known | columns)


def make_update_batch(policy, lengths=(1, 4, 2, 3, 1, 5), seed=0, spread=0.0):
    """Random decisions of a policy; `spread` moves the old log-probabilities away from its own."""
    rng = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    x = torch.randn(rows, policy.linear.in_features, generator=rng)
    sample = torch.randint(policy.v, (rows, policy.k), generator=rng)
    mask = torch.rand(rows, policy.k, generator=rng) < 0.8
    mask[:, 0] = True
    with torch.no_grad():
        old = policy.log_prob({"x": x}, sample)[0] + spread * torch.randn(rows, policy.k, generator=rng)
    advantage = torch.randn(len(lengths), generator=rng)
    return batch_of(lengths, advantage.tolist(), sample=sample, old_log_prob=old, mask=mask, inputs={"x": x})


class Recorder(torch.optim.SGD):
    """SGD that keeps the gradients it steps with. With rate 0 the weights stay, so gradients can be compared."""

    def __init__(self, policy, lr=0.0):
        super().__init__(policy.parameters(), lr=lr)
        self.gradients = []

    def step(self, closure=None):
        self.gradients.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]))
        return super().step(closure)


def gradients(policy, batch, **options):
    optimiser = Recorder(policy)
    defaults = {"epochs": 1, "generator": None, "max_grad_norm": 1e9, "ratio_tolerance": 1e9}
    result = update(policy, optimiser, batch, **(defaults | options))
    return torch.stack(optimiser.gradients), result.metrics


def reference_gradient(policy, batch, reduction, trajectories=None):
    """By the public objective on padded [B, D, K]."""
    ids = range(len(batch.rollouts)) if trajectories is None else trajectories
    rows, taken = [(batch.trajectory == t).nonzero()[:, 0] for t in ids], everything(batch)
    pad = torch.nn.utils.rnn.pad_sequence
    new = policy.log_prob(taken.inputs, taken.sample)[0]
    loss, _ = clipped_objective(
        pad([new[r] for r in rows], batch_first=True, padding_value=math.nan),
        pad([taken.old_log_prob[r] for r in rows], batch_first=True),
        torch.stack([batch.advantage[t] for t in ids]),
        pad([taken.mask[r] for r in rows], batch_first=True),
        reduction=reduction,
    )
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


# ---- it learns ----


def act(policy, x, rng):
    with torch.no_grad():
        probabilities = policy.logits(torch.from_numpy(x)).exp().numpy().astype(np.float64)
    sample = np.array([[rng.choice(policy.v, p=p / p.sum()) for p in row] for row in probabilities])
    return sample, np.log(np.take_along_axis(probabilities, sample[..., None], -1)[..., 0]).astype(np.float32)


def practise(policy, rng, groups=12, size=8):
    """Groups of one-or-two-decision rollouts; success when every decision names the input's largest entry."""
    task = Task(suite="toy", name="bandit", instruction="name the largest", index=0, horizon=2)
    made = []
    for _ in range(groups):
        x = rng.normal(size=(int(rng.integers(1, 3)), 3)).astype(np.float32)
        state = InitialState(task=task, state=x.astype(np.float64).ravel(), origin="sampled")
        rollouts = []
        for index in range(size):
            sample, log_prob = act(policy, x, rng)
            won = (sample[:, 0] == x.argmax(-1)).all()
            rollouts.append(
                Rollout(
                    initial_state_id=state.id,
                    index=index,
                    status=Status.SUCCESS if won else Status.FAILURE,
                    sample=sample,
                    log_prob=log_prob,
                    mask=np.ones_like(sample, bool),
                    inputs={"x": x},
                    decisions=len(x),
                    env_steps=len(x),
                    policy_version=0,
                )
            )
        made.append(Group(initial_state=state, rollouts=tuple(rollouts)))
    return made


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
def test_a_bandit_learns_from_success_and_failure_alone(reduction):
    rng = np.random.default_rng(0)
    policy = Bandit()
    optimiser = make_optimiser(policy, learning_rate=0.05)
    successes = []
    for step in range(15):
        groups = practise(policy, rng)
        successes.append(np.mean([g.success for g in groups]))
        update(
            policy,
            optimiser,
            make_batch(groups),
            epochs=2,
            minibatch_decisions=48,
            reduction=reduction,
            generator=torch.Generator().manual_seed(step),
        )
    assert np.mean(successes[:2]) < 0.35
    assert np.mean(successes[-3:]) > 0.75


# ---- gradients ----


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
@pytest.mark.parametrize("unit", [{"minibatch_decisions": 100}, {"minibatch_trajectories": 100}])
def test_one_minibatch_has_the_gradient_of_the_public_objective(reduction, unit):
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.2)
    gradient, _ = gradients(policy, batch, reduction=reduction, **unit)
    torch.testing.assert_close(gradient, reference_gradient(policy, batch, reduction)[None])


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
@pytest.mark.parametrize("unit", [{"minibatch_decisions": 7}, {"minibatch_trajectories": 4}])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_neither_gradients_nor_metrics(reduction, unit, micro_batch):
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.2)
    whole, metrics = gradients(policy, batch, reduction=reduction, entropy_bonus=0.1, **unit)
    cut, cut_metrics = gradients(policy, batch, reduction=reduction, entropy_bonus=0.1, micro_batch=micro_batch, **unit)
    assert len(whole) > 1
    torch.testing.assert_close(cut, whole)
    for key in metrics.keys() - {"update_seconds"}:
        assert cut_metrics[key].value == pytest.approx(metrics[key].value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
@pytest.mark.parametrize("unit", [{"minibatch_decisions": 7}, {"minibatch_trajectories": 4}])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_threads_change_neither_gradients_nor_metrics(reduction, unit, micro_batch):
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.2)
    whole, metrics = gradients(policy, batch, reduction=reduction, entropy_bonus=0.1, **unit)
    runs = [
        gradients(policy, batch, reduction=reduction, entropy_bonus=0.1, micro_batch=micro_batch, threads=3, **unit)
        for _ in range(2)
    ]
    assert len(whole) > 1
    torch.testing.assert_close(runs[0][0], whole)
    assert torch.equal(runs[0][0], runs[1][0])
    for key in metrics.keys() - {"update_seconds"}:
        assert runs[0][1][key].value == pytest.approx(metrics[key].value, rel=1e-4, abs=1e-6), key


def test_threads_each_take_a_part_of_a_minibatch_with_one_torch_thread():
    class Threaded(Watching):
        def log_prob(self, inputs, sample):
            self.workers.add((threading.get_ident(), torch.get_num_threads()))
            together.wait(timeout=20)  # both parts are under way at the same time
            return super().log_prob(inputs, sample)

    torch_threads = torch.get_num_threads()
    together = threading.Barrier(2)
    policy = Threaded()
    policy.workers = set()
    batch = make_update_batch(Bandit())
    update(policy, Recorder(policy), batch, epochs=1, minibatch_decisions=8, threads=2, generator=None)
    assert [len(rows) for rows in policy.seen] == [4] * 4
    assert len(policy.workers) == 2 and {threads for _, threads in policy.workers} == {1}
    assert threading.get_ident() not in {worker for worker, _ in policy.workers}
    assert torch.get_num_threads() == torch_threads


def test_what_goes_wrong_in_a_thread_stops_the_update_and_leaves_no_thread():
    class Broken(Bandit):
        def log_prob(self, inputs, sample):
            raise PolicyError("no such head")

    before = threading.active_count()
    batch = make_update_batch(Bandit())
    with pytest.raises(PolicyError, match="no such head"):
        policy = Broken()
        update(policy, Recorder(policy), batch, epochs=1, minibatch_decisions=8, threads=2, generator=None)
    assert threading.active_count() == before


def test_minibatches_of_trajectories_each_have_their_own_trajectory_mean():
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.2)
    found, _ = gradients(policy, batch, reduction="trajectory", minibatch_trajectories=2)
    expected = [reference_gradient(policy, batch, "trajectory", t) for t in ([0, 1], [2, 3], [4, 5])]
    torch.testing.assert_close(found, torch.stack(expected))


def test_over_an_epoch_of_decision_minibatches_the_mean_gradient_is_the_trajectory_mean():
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.2)
    found, _ = gradients(
        policy, batch, reduction="trajectory", minibatch_decisions=5, generator=torch.Generator().manual_seed(3)
    )
    assert len(found) == 4
    torch.testing.assert_close(found.mean(0), reference_gradient(policy, batch, "trajectory"))


# ---- minibatches ----


class Watching(Bandit):
    """Notes the rows (by sample identity) that each forward pass learned from."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def log_prob(self, inputs, sample):
        if torch.is_grad_enabled():
            self.seen.append([round(v, 6) for v in inputs["x"][:, 0].tolist()])
        return super().log_prob(inputs, sample)


def watched(**settings):
    """A policy that has seen an update, and the update's batch."""
    policy = Watching()
    batch = make_update_batch(policy)
    policy.seen.clear()
    update(policy, Recorder(policy), batch, **settings)
    return policy, batch


@pytest.mark.parametrize("unit, sizes", [("minibatch_decisions", [6, 5, 5]), ("minibatch_trajectories", None)])
def test_every_epoch_sees_every_row_once_in_minibatches_of_nearly_equal_size(unit, sizes):
    policy, batch = watched(epochs=2, generator=torch.Generator().manual_seed(0), **{unit: 6 if sizes else 4})
    every_row = sorted(round(v, 6) for v in everything(batch).inputs["x"][:, 0].tolist())
    per_epoch = len(policy.seen) // 2
    assert per_epoch == (3 if sizes else 2)
    for epoch in (policy.seen[:per_epoch], policy.seen[per_epoch:]):
        assert sorted(v for minibatch in epoch for v in minibatch) == every_row
        if sizes:
            assert [len(minibatch) for minibatch in epoch] == sizes
    assert policy.seen[:per_epoch] != policy.seen[per_epoch:]


def test_a_micro_batch_bounds_the_rows_of_a_forward_pass():
    policy, _ = watched(epochs=1, minibatch_decisions=8, micro_batch=3, generator=None)
    assert [len(rows) for rows in policy.seen] == [3, 3, 2, 3, 3, 2]


def test_trajectory_minibatches_keep_trajectories_whole():
    policy, batch = watched(epochs=1, minibatch_trajectories=2, generator=torch.Generator().manual_seed(1))
    seen = [round(v, 6) for v in everything(batch).inputs["x"][:, 0].tolist()]
    owner = dict(zip(seen, batch.trajectory.tolist(), strict=True))
    owners = [{owner[v] for v in minibatch} for minibatch in policy.seen]
    assert [len(o) for o in owners] == [2, 2, 2]
    assert set.union(*owners) == set(range(6))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    def trained(seed):
        policy = Bandit()
        batch = make_update_batch(policy)
        optimiser = make_optimiser(policy, learning_rate=0.01)
        generator = torch.Generator().manual_seed(seed)
        update(policy, optimiser, batch, epochs=3, minibatch_decisions=5, generator=generator)
        return policy.linear.weight.detach()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


# ---- the guards ----


def test_dropout_is_off_during_the_update():
    policy = Bandit(dropout=0.5)
    policy.eval()
    batch = make_update_batch(policy)
    policy.train()
    optimiser = make_optimiser(policy, learning_rate=0.01)
    result = update(policy, optimiser, batch, epochs=1, minibatch_decisions=8, generator=None)
    assert result.metrics["first_ratio_deviation"].value < 1e-5
    assert not policy.training


def test_a_density_other_than_the_one_that_acted_is_refused_before_any_step():
    policy = Bandit()
    batch = make_update_batch(policy, spread=0.01)
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(RatioError, match=r"must be 1, but lies in \[0\.9.*temperature, top-k and dropout"):
        update(
            policy, make_optimiser(policy, learning_rate=0.1), batch, epochs=1, minibatch_decisions=8, generator=None
        )
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


class Narrow(torch.nn.Module):
    """Normal variables whose standard deviation is as small as float32 resolves their means."""

    def __init__(self, log_sigma):
        super().__init__()
        self.mean, self.log_sigma = torch.nn.Linear(48, 64), log_sigma

    def log_prob(self, inputs, sample):
        z = (sample - self.mean(inputs["x"])) / math.exp(self.log_sigma)
        return -0.5 * z**2 - self.log_sigma - 0.5 * math.log(2 * math.pi), torch.zeros_like(z)

    def rl_parameters(self):
        return [{"params": self.parameters()}]


def narrow_batch(policy, rows=200):
    """Decisions that the policy took one by one, as workers with few slots do."""
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        noise = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2)) * math.exp(policy.log_sigma)
        sample = torch.cat([policy.mean(row[None]) for row in x]) + noise
        old = torch.cat(
            [policy.log_prob({"x": row[None]}, drawn[None])[0] for row, drawn in zip(x, sample, strict=True)]
        )
    advantage = [1.0 if i % 2 == 0 else -1.0 for i in range(rows)]
    mask = torch.ones(rows, 64, dtype=torch.bool)
    return batch_of([1] * rows, advantage, sample=sample, old_log_prob=old, mask=mask, inputs={"x": x})


def test_a_density_too_narrow_for_float32_is_said_to_be_and_may_have_a_tolerance_of_its_own():
    torch.manual_seed(0)
    options = {"epochs": 1, "minibatch_decisions": 999, "generator": None}
    policy = Narrow(log_sigma=-10.0)
    batch = narrow_batch(policy)
    with pytest.raises(RatioError, match=r"(?s)tolerance 0.001\).*rounding.*ratio_tolerance"):
        update(policy, make_optimiser(policy, learning_rate=1e-9), batch, **options)
    policy.ratio_tolerance = 0.1
    done = update(policy, make_optimiser(policy, learning_rate=1e-9), batch, **options)
    assert 0.001 < done.metrics["first_ratio_deviation"].value < 0.1
    policy.ratio_tolerance = math.nan
    with pytest.raises(ConfigError, match="this policy has ratio_tolerance = nan; expected a positive number, or None"):
        update(policy, make_optimiser(policy, learning_rate=1e-9), batch, **options)


class Rounding(Bandit):
    """Acts and learns in numbers that round differently: old log-probabilities are this far from its own."""

    def off(self, batch, nats):
        noise = torch.randn(everything(batch).old_log_prob.shape, generator=torch.Generator().manual_seed(5))
        return changed(batch, old_log_prob=everything(batch).old_log_prob + nats * noise)


@pytest.mark.parametrize("asked", [{"recompute": True}, {"recompute": True, "threads": 2}, {}])
def test_old_log_probabilities_may_be_recomputed_as_the_update_rounds_them(asked):
    policy = Rounding()
    if not asked:
        policy.ratio_tolerance = None  # it asks for it itself
    batch = make_update_batch(policy)
    clean, clean_metrics = gradients(policy, batch, minibatch_decisions=99, ratio_tolerance=None)
    again, metrics = gradients(policy, policy.off(batch, 0.1), minibatch_decisions=99, ratio_tolerance=None, **asked)
    torch.testing.assert_close(again, clean)
    assert metrics["ratio_max"].value == pytest.approx(1, abs=1e-6)
    assert 0.05 < metrics["first_ratio_deviation"].value < 0.5
    assert clean_metrics["first_ratio_deviation"].value < 1e-6
    steps = [make_optimiser(policy, learning_rate=0.01), {"epochs": 3, "minibatch_decisions": 8, "generator": None}]
    update(policy, steps[0], policy.off(batch, 0.1), **steps[1], **asked)  # of the weights before the first step


def test_what_no_rounding_explains_is_refused_where_old_log_probabilities_are_recomputed():
    policy = Rounding()
    far = policy.off(make_update_batch(policy), 1.0)
    with pytest.raises(RatioError, match=r"recomputed log-probabilities are 0\.\d+ nats .*at most 0.5"):
        gradients(policy, far, minibatch_decisions=99, recompute=True)


def test_the_age_of_rollouts_is_told_in_versions_of_the_policy():
    policy = Bandit()
    batch = make_update_batch(policy, lengths=(1, 3))
    batch = UpdateBatch.of(
        [
            dataclasses.replace(rollout, policy_version=version)
            for rollout, version in zip(batch.rollouts, (7, 5), strict=True)
        ]
    )
    _, metrics = gradients(policy, batch, minibatch_decisions=99, version=8)
    assert metrics["age"].value == pytest.approx((1 * 1 + 3 * 3) / 4) and metrics["age_max"].value == 3
    assert "age" not in gradients(policy, batch, minibatch_decisions=99)[1]
    with pytest.raises(TrainingError, match="made by version 7 of the policy, which is at version 6 now"):
        gradients(policy, batch, minibatch_decisions=99, version=6)


class Formless(Bandit):
    """A policy whose density has no entropy in closed form."""

    def log_prob(self, inputs, sample):
        return super().log_prob(inputs, sample)[0], None


def test_a_policy_without_an_entropy_learns_all_the_same_and_can_have_no_bonus_on_it():
    policy = Formless()
    batch = make_update_batch(policy)
    whole, metrics = gradients(policy, batch, minibatch_decisions=99)
    assert torch.equal(whole, gradients(Bandit(), batch, minibatch_decisions=99)[0])
    assert "entropy" not in metrics and "kl" in metrics
    with pytest.raises(ConfigError, match=r"entropy_bonus is 0.01, but .*closed form .*set entropy_bonus to 0"):
        gradients(policy, batch, minibatch_decisions=99, entropy_bonus=0.01)


def test_log_probabilities_so_large_that_float32_cannot_tell_them_apart_are_no_other_density():
    class Far(Bandit):
        far = 1e5

        def log_prob(self, inputs, sample):
            log_prob, entropy = super().log_prob(inputs, sample)
            return log_prob - self.far, entropy

    policy = Far()
    batch = make_update_batch(policy)
    old = everything(batch).old_log_prob
    rounded = changed(batch, old_log_prob=torch.nextafter(old, torch.tensor(0.0)))
    options = {"epochs": 1, "minibatch_decisions": 99, "generator": None}
    done = update(policy, make_optimiser(policy, learning_rate=1e-9), rounded, **options)
    assert done.metrics["first_ratio_deviation"].value > 0.005
    with pytest.raises(RatioError):
        moved = changed(batch, old_log_prob=old + 0.2)
        update(policy, make_optimiser(policy, learning_rate=1e-9), moved, **options)


def test_a_loss_that_is_not_finite_is_refused_with_its_place_and_leaves_the_weights():
    policy = Bandit()
    batch = make_update_batch(policy)
    batch.rollouts[batch.trajectory[9]].inputs["x"][batch.decision[9]] = math.nan
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(NotFiniteError, match=r"epoch 1 of 2, minibatch 2 of 2: log_prob is nan at row 1, term 0"):
        update(policy, Recorder(policy, lr=0.0), batch, epochs=2, minibatch_decisions=8, generator=None)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())


class BadGradient(Bandit):
    """Finite log-probabilities whose gradient is NaN: sqrt at 0 times 0."""

    def log_prob(self, inputs, sample):
        log_prob, entropy = super().log_prob(inputs, sample)
        return log_prob + 0 * self.linear.bias.sum().mul(0).sqrt(), entropy


def test_a_gradient_that_is_not_finite_is_refused_before_the_step():
    policy = BadGradient()
    batch = make_update_batch(policy)
    optimiser = make_optimiser(policy, learning_rate=0.1)
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(
        NotFiniteError, match=r"epoch 1 of 1, minibatch 1 of 1: the gradient norm is nan, .*linear.bias"
    ):
        update(policy, optimiser, batch, epochs=1, minibatch_decisions=99, generator=None)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert not optimiser.state
    assert all(p.grad is None for p in policy.parameters())


def test_gradients_left_over_from_before_do_not_count():
    policy = Bandit()
    batch = make_update_batch(policy)
    clean, _ = gradients(policy, batch, minibatch_decisions=99)
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    found, _ = gradients(policy, batch, minibatch_decisions=99)
    torch.testing.assert_close(found, clean)


def test_the_gradient_norm_is_clipped_and_reported_before_clipping():
    policy = Bandit()
    batch = make_update_batch(policy)
    free, free_metrics = gradients(policy, batch, minibatch_decisions=99)
    norm = float(free.norm())
    clipped, metrics = gradients(policy, batch, minibatch_decisions=99, max_grad_norm=norm / 4)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=1e-6)
    assert metrics["grad_norm"].value == pytest.approx(norm, rel=1e-5)
    assert (free_metrics["grad_clip_fraction"].value, metrics["grad_clip_fraction"].value) == (0, 1)


def test_the_step_that_took_kl_past_its_target_is_taken_back_and_ends_the_update():
    policy = Bandit()
    batch = make_update_batch(policy)
    optimiser = make_optimiser(policy, learning_rate=0.1)
    options = {"minibatch_decisions": 8, "generator": None}
    result = update(policy, optimiser, batch, epochs=9, target_kl=0.1, **options)
    assert result.kl_last < 0.1 < result.kl_max
    kept = int(result.metrics["optimiser_steps"].value)
    assert 1 <= kept < 17
    assert result.metrics["epochs_done"].value == kept / 2
    place = f"epoch {(kept + 1) // 2 + 1} of 9, minibatch {(kept + 1) % 2 + 1} of 2"
    assert result.stop_reason == f"KL {result.kl_max:.3g} passed the target 0.1 in {place}"
    # What is left equals an update that was stopped after the kept steps.
    other = Bandit()
    taken = []

    def stop(done: int, total: int) -> None:
        taken.append([p.detach().clone() for p in other.parameters()])

    update(other, make_optimiser(other, learning_rate=0.1), batch, epochs=9, on_minibatch=stop, **options)
    for mine, theirs in zip(policy.parameters(), taken[kept - 1], strict=True):
        assert torch.equal(mine, theirs)


def test_how_far_the_policy_moved_is_the_mean_of_the_last_epoch():
    batch, seen = make_update_batch(Bandit()), []
    for epochs in (1, 2, 3):
        policy = Bandit()
        options = {"minibatch_decisions": 8, "generator": None, "epochs": epochs}
        result = update(policy, make_optimiser(policy, learning_rate=0.1), batch, **options)
        assert result.kl_end == result.metrics["kl_end"].value != result.kl_last
        assert result.kl_max == result.metrics["kl_max"].value >= result.kl_last == result.metrics["kl_last"].value
        seen.append((result.metrics["kl"], result.kl_end))
    # Minibatches of one size: the mean over two epochs is the mean of the two epochs' means.
    (first, end1), (two, end2), (_, end3) = seen
    assert first.value == pytest.approx(end1) and end1 < end2 < end3
    assert two.value == pytest.approx((end1 + end2) / 2, rel=0.05)


def test_a_first_step_past_the_target_leaves_the_weights_as_they_were():
    policy = Bandit()
    start = [p.detach().clone() for p in policy.parameters()]
    for epochs in (2, 1):  # seen by the next minibatch, or after the last step
        result = update(
            policy,
            make_optimiser(policy, learning_rate=5.0),
            make_update_batch(policy),
            epochs=epochs,
            minibatch_decisions=99,
            generator=None,
            target_kl=0.05,
        )
        assert result.metrics["optimiser_steps"].value == 0 and result.kl_max > 0.05
        assert result.kl_last == pytest.approx(0, abs=1e-6)
        assert all(torch.equal(p, old) for p, old in zip(policy.parameters(), start, strict=True))
    assert result.stop_reason == f"KL {result.kl_max:.3g} passed the target 0.05 after the last step"


@pytest.mark.parametrize("target_kl", [None, 0.3, 0.02])
def test_the_kl_that_is_logged_last_is_that_of_the_weights_that_are_left(target_kl):
    policy = Bandit()
    batch = make_update_batch(policy)
    result = update(
        policy,
        make_optimiser(policy, learning_rate=0.05),
        batch,
        epochs=4,
        minibatch_decisions=99,
        generator=None,
        target_kl=target_kl,
    )
    assert (result.stop_reason == "all 4 epochs done") == (target_kl != 0.02)
    rows = everything(batch)
    log_ratio = ((policy.log_prob(rows.inputs, rows.sample)[0] - rows.old_log_prob) * rows.mask).detach()
    assert result.kl_last == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).sum(1).mean()), rel=1e-4)


def test_one_large_ratio_neither_stops_an_update_nor_ends_the_run():
    """At log ratio 6 the k3 estimator alone would be 25 nats a decision; at 100 the ratio overflows in float32."""
    for log_ratio, advantage in ((6.0, 1.0), (100.0, 1.0), (100.0, -1.0)):
        policy = Bandit()
        batch = make_update_batch(policy)
        batch.rollouts[0].log_prob[0, 0] -= log_ratio
        batch.advantage[0] = advantage
        gradient, metrics = gradients(policy, batch, minibatch_decisions=99, target_kl=15.0, ratio_tolerance=math.inf)
        assert torch.isfinite(gradient).all() and metrics["optimiser_steps"].value == 1
        assert metrics["kl_k3"].value > 20 > 15 > metrics["kl"].value > 0.4


def test_the_kl_of_a_decision_does_not_depend_on_how_its_variables_are_counted():
    """Two variables of which the second repeats the first: twice the KL of a decision that has the first alone."""
    found = []
    for k in (1, 2):
        policy = Bandit(k=k)
        batch = make_update_batch(Bandit(k=1), spread=0.3)
        rows = everything(batch)
        repeated = {name: getattr(rows, name).repeat(1, k) for name in ("sample", "old_log_prob", "mask")}
        with torch.no_grad():
            policy.linear.weight.copy_(Bandit(k=1).linear.weight.repeat(k, 1))
        _, metrics = gradients(policy, changed(batch, **repeated), minibatch_decisions=99)
        found.append([metrics[name].value for name in ("kl", "kl_k1", "kl_k3", "kl_end", "kl_last", "kl_max")])
    assert found[1] == pytest.approx([2 * value for value in found[0]])


def test_without_a_target_all_epochs_are_done_and_said_to_be():
    policy = Bandit()
    calls = []
    result = update(
        policy,
        make_optimiser(policy, learning_rate=0.01),
        make_update_batch(policy),
        epochs=3,
        minibatch_decisions=8,
        generator=None,
        on_minibatch=lambda done, total: calls.append((done, total)),
    )
    assert result.stop_reason == "all 3 epochs done"
    assert result.metrics["epochs_done"].value == 3
    assert calls == [(i, 6) for i in range(1, 7)]
    expected = {
        "loss",
        "clip_fraction",
        "kl",
        "kl_k1",
        "kl_k3",
        "ratio_mean",
        "ratio_min",
        "ratio_max",
        "entropy",
        "grad_norm",
        "grad_norm_max",
        "grad_clip_fraction",
        "learning_rate",
        "epochs_done",
        "optimiser_steps",
        "first_ratio_deviation",
        "kl_last",
        "kl_end",
        "kl_max",
        "update_seconds",
    }
    assert result.metrics.keys() == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give one of"),
        ({"minibatch_decisions": 4, "minibatch_trajectories": 2}, "give one of"),
        ({"minibatch_decisions": 0}, "at least 1"),
        ({"minibatch_decisions": 4, "epochs": 0}, "epochs"),
        ({"minibatch_decisions": 4, "micro_batch": 0}, "micro_batch"),
        ({"minibatch_decisions": 4, "threads": 0}, "threads"),
        ({"minibatch_decisions": 4, "max_grad_norm": 0.0}, "max_grad_norm"),
        ({"minibatch_decisions": 4, "clip_low": 1.5}, "clip_low"),
        ({"minibatch_decisions": 4, "reduction": "mean"}, "reduction"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    policy = Bandit()
    with pytest.raises(ConfigError, match=message):
        gradients(policy, make_update_batch(policy), **options)


def test_a_batch_without_valid_tokens_is_refused():
    policy = Bandit()
    batch = make_update_batch(policy)
    batch = changed(batch, mask=torch.zeros_like(everything(batch).mask))
    with pytest.raises(NoSignalError, match="none of the batch's 16 rows"):
        gradients(policy, batch, minibatch_decisions=4)


def test_parameters_that_get_no_gradient_are_refused():
    policy, other = Bandit(), Bandit()
    batch = make_update_batch(policy)
    with pytest.raises(TrainingError, match="does not depend on any of them"):
        update(policy, torch.optim.SGD(other.parameters()), batch, epochs=1, minibatch_decisions=4, generator=None)
    policy.requires_grad_(False)
    with pytest.raises(TrainingError, match="returned no gradient"):
        update(policy, torch.optim.SGD(other.parameters()), batch, epochs=1, minibatch_decisions=4, generator=None)


# ---- staying near a policy ----


def far_from(policy, other, batch):
    """Mean over decisions of the sum over their valid tokens of r - 1 - log r, r = other / policy; with gradient."""
    rows = everything(batch)
    with torch.no_grad():
        start = other.log_prob(rows.inputs, rows.sample)[0]
    away = (start - policy.log_prob(rows.inputs, rows.sample)[0]) * rows.mask
    assert float(away.detach().max()) < 1
    return (away.exp() - 1 - away).sum(1).mean()


@pytest.mark.parametrize("options", [{}, {"micro_batch": 3}, {"threads": 3}])
def test_the_kl_to_the_start_adds_its_gradient_in_nats_a_decision(options):
    policy, start = Bandit(), Bandit(seed=1)
    batch = make_update_batch(policy)
    batch = changed(batch, mask=torch.ones_like(everything(batch).mask))
    plain, metrics = gradients(policy, batch, minibatch_decisions=99)
    held, held_metrics = gradients(policy, batch, minibatch_decisions=99, kl_to_start=0.3, start=start, **options)
    distance = far_from(policy, start, batch)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(0.3 * distance, list(policy.parameters()))])
    torch.testing.assert_close(held - plain, expected[None], rtol=1e-4, atol=1e-6)
    assert held_metrics["kl_to_start"].value == pytest.approx(float(distance.detach()), rel=1e-5)
    assert held_metrics["loss"].value == pytest.approx(metrics["loss"].value, abs=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), Bandit(seed=1).parameters(), strict=True))


def test_an_update_with_a_weight_on_the_start_stays_nearer_to_it_and_one_of_zero_changes_no_bit():
    ends = []
    for weight in (None, 0.0, 1.0, 10.0):
        policy = Bandit()
        options = {} if weight is None else {"kl_to_start": weight, "start": Bandit()}
        update(
            policy,
            make_optimiser(policy, learning_rate=0.02),
            make_update_batch(policy),
            epochs=6,
            minibatch_decisions=8,
            generator=None,
            **options,
        )
        ends.append(policy)
    assert all(torch.equal(p, q) for p, q in zip(ends[0].parameters(), ends[1].parameters(), strict=True))
    moved = [float(far_from(policy, Bandit(), make_update_batch(Bandit())).detach()) for policy in ends[1:]]
    assert moved[0] > 1.5 * moved[1] > 2 * moved[2]


def test_a_weight_on_the_start_without_one_is_refused():
    with pytest.raises(ConfigError, match="no policy to stay near was given"):
        gradients(Bandit(), make_update_batch(Bandit()), minibatch_decisions=4, kl_to_start=0.1)


def test_a_start_that_rules_out_what_was_drawn_or_a_policy_that_does_leaves_the_loss_finite():
    for of_start in (True, False):
        policy, start = Bandit(), Bandit()
        ruled = start if of_start else policy
        batch = make_update_batch(policy)
        original = ruled.log_prob

        def log_prob(inputs, sample, original=original):
            log_prob, entropy = original(inputs, sample)
            return torch.where(torch.arange(len(sample))[:, None] == 0, -math.inf, log_prob), entropy

        ruled.log_prob = log_prob
        gradient, metrics = gradients(
            policy, batch, minibatch_decisions=99, kl_to_start=0.1, start=start, ratio_tolerance=math.inf
        )
        assert torch.isfinite(gradient).all() and math.isfinite(metrics["kl_to_start"].value)


# ---- optimiser and rate ----


def test_the_optimiser_keeps_each_groups_own_weight_decay():
    optimiser = make_optimiser(Bandit(), learning_rate=1e-3, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(1e-3, 0.1), (1e-3, 0.0)]


def test_the_adaptive_rate_falls_above_its_target_rises_below_and_rests_near_it():
    rate = AdaptiveRate(target_kl=0.05)
    assert rate.after(0.08).scale == pytest.approx(0.67)
    assert rate.after(0.03).scale == pytest.approx(1.2)
    assert rate.after(0.05) == rate.after(0.07) == rate.after(0.035) == rate


def test_the_adaptive_rate_stays_within_its_bounds():
    rate = AdaptiveRate(target_kl=0.05, low=0.5, high=2.0)
    assert rate.after(1.0).after(1.0).scale == 0.5
    assert rate.after(0.0).after(0.0).after(0.0).after(0.0).scale == 2.0
    with pytest.raises(ConfigError, match="adaptive rate"):
        AdaptiveRate(target_kl=0.05, scale=0.01)


def test_the_adaptive_rate_scales_the_initial_rates_and_survives_a_checkpoint():
    policy = Bandit()
    optimiser = make_optimiser(policy, learning_rate=0.1)
    scale_rate(optimiser, AdaptiveRate(target_kl=0.05).after(1.0).scale)
    scale_rate(optimiser, 0.5)
    assert [g["lr"] for g in optimiser.param_groups] == [0.05, 0.05]
    resumed = make_optimiser(Bandit(), learning_rate=7.0)
    resumed.load_state_dict(optimiser.state_dict())
    scale_rate(resumed, 2.0)
    assert [g["lr"] for g in resumed.param_groups] == [0.2, 0.2]
