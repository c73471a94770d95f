"""The Gaussian policy as a `LikelihoodPolicy`: what it draws, what it says about it, and what it learns from."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ript.core.errors import ConfigError, PolicyError
from ript.core.hooks import made_with
from ript.core.noise import Noise, drawing_from
from ript.core.supervised import Statistics
from ript.core.types import ActionChunk, DemoBatch, Observation, SimulatorSpec
from ript.policies.gaussian.options import GaussianOptions
from ript.policies.gaussian.policy import GaussianPolicy, augmented

SPEC = SimulatorSpec(
    suite="desk",
    cameras={"front": (16, 16), "wrist": (16, 12)},
    proprio={"hand": 2, "gripper": 1},
    action_dim=2,
    render={"arm": "boxes"},
)
SENTENCES = ("open the drawer", "close the door")
STATISTICS = Statistics(
    proprio_mean=np.array([0.1, 0.2, -0.3], np.float32),
    proprio_std=np.array([1, 2, 0.5], np.float32),
    privileged_mean=None,
    privileged_std=None,
)
KINDS: list[dict] = [
    {},
    {"terms": "dimension", "rl_trains": "head"},
    {"execute": 2, "std_sees": True},
    {"language": "minilm", "std": 1.5, "min_std": 0.01},
    {"n_obs_steps": 3},
    {"n_obs_steps": 2, "rl_trains": "head"},
]


def make_policy(seed: int = 0, **options: object) -> GaussianPolicy:
    """Lively: its spread is not the one that post-training starts with, and it has read `SENTENCES`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = GaussianPolicy(GaussianOptions(**{"points": 4, "width": 16, **options}), SPEC)
        with torch.no_grad():
            policy.mean.bias.normal_(std=0.5)
            policy.spread.weight.normal_(std=0.2)
            policy.spread.bias.copy_(torch.tensor([0.3, -0.7]))
        policy.set_statistics(STATISTICS)
        policy._embedded = {sentence: torch.randn(384) for sentence in SENTENCES}
    return policy


def look(rows: int, seed: int = 0, steps: int = 1) -> Observation:
    g, n = np.random.default_rng(seed), (rows, steps) if steps > 1 else (rows,)
    return Observation(
        images={name: g.integers(0, 256, (*n, h, w, 3), np.uint8) for name, (h, w) in SPEC.cameras.items()},
        proprio=g.normal(size=(*n, 3)).astype(np.float32),
        instruction=tuple(SENTENCES[i % 2] for i in range(rows)),
    )


def take(observation: Observation, rows: list[int]) -> Observation:
    return Observation(
        images={name: image[rows] for name, image in observation.images.items()},
        proprio=observation.proprio[rows],
        instruction=tuple(observation.instruction[i] for i in rows),
    )


def generators(rows: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, row]) for row in range(rows)]


def kept(chunk: ActionChunk) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    """Inputs and sample as `log_prob` takes them."""
    inputs = {name: torch.from_numpy(x) for name, x in {**chunk.inputs, **chunk.rollout_inputs}.items()}
    return inputs, torch.from_numpy(chunk.sample)


# ---------------------------------------------------------------------- one density for acting and learning


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_log_prob_of_acting_is_the_log_prob_recomputed(options: dict, greedy: bool) -> None:
    policy = make_policy(**options)
    chunk = policy.act(look(12, steps=policy.n_obs_steps), generators(12), greedy=greedy)
    log_prob, entropy = policy.log_prob(*kept(chunk))
    np.testing.assert_allclose(log_prob.detach().numpy(), chunk.log_prob, atol=1e-5)
    assert log_prob.requires_grad and entropy.shape == log_prob.shape


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_draws_have_the_mean_and_deviation_that_are_scored_and_clipping_changes_neither(options: dict) -> None:
    policy, n = make_policy(**options), 4_000
    observation = take(look(1, steps=policy.n_obs_steps), [0] * n)
    chunk = policy.act(observation, generators(n))
    inputs, _ = kept(chunk)
    density = policy.density({name: x[:1] for name, x in inputs.items()})
    e = policy.options.executed
    mean, std = density.mean[0, :e].detach().numpy(), density.stddev[0, :e].detach().numpy()
    assert chunk.sample.shape == (n, e, 2)
    np.testing.assert_allclose(chunk.sample.mean(0), mean, atol=5 * std.max() / n**0.5)
    np.testing.assert_allclose(chunk.sample.std(0), std, rtol=5 / (2 * n) ** 0.5)
    off = np.corrcoef(chunk.sample.reshape(n, -1).T) - np.eye(e * 2)
    assert np.abs(off).max() < 5 / n**0.5  # independent
    assert np.abs(chunk.sample).max() > 1
    np.testing.assert_array_equal(chunk.actions, chunk.sample.clip(-1, 1))


@pytest.mark.parametrize("terms", ["step", "dimension"])
def test_log_probability_and_entropy_are_those_of_normal_variables(terms: str) -> None:
    policy = make_policy(terms=terms, execute=3)
    chunk = policy.act(look(5), generators(5))
    inputs, sample = kept(chunk)
    log_prob, entropy = (x.detach().numpy() for x in policy.log_prob(inputs, sample))
    density = policy.density(inputs)
    mean, std = density.mean[:, :3].detach().double().numpy(), density.stddev[:, :3].detach().double().numpy()
    each = -0.5 * ((chunk.sample - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)
    nats = np.log(std) + 0.5 * math.log(2 * math.pi * math.e)
    expected = (each.sum(-1), nats.sum(-1)) if terms == "step" else (each.reshape(5, 6), nats.reshape(5, 6))
    np.testing.assert_allclose(log_prob, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy, expected[1], rtol=1e-4, atol=1e-5)
    steps = chunk.term_steps
    assert steps is not None and steps.tolist() == ([0, 1, 2] if terms == "step" else [0, 0, 1, 1, 2, 2])


def test_proprioception_far_from_the_demonstrations_is_cut() -> None:
    policy = make_policy()
    means = []
    for far in (4.0, 6.0, 500.0):  # standard deviations
        proprio = STATISTICS.proprio_mean + far * STATISTICS.proprio_std
        means.append(policy.act(replace(look(1), proprio=proprio[None]), generators(1), greedy=True))
    near, beyond, farther = (chunk.sample for chunk in means)
    assert not np.array_equal(near, beyond) and np.array_equal(beyond, farther)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_row_depends_on_its_own_observation_and_generator_alone(options: dict) -> None:
    policy = make_policy(**options)
    whole = policy.act(look(6, steps=policy.n_obs_steps), generators(6))
    alone = policy.act(take(look(6, steps=policy.n_obs_steps), [4]), generators(6)[4:5])
    for name in ("actions", "sample", "log_prob"):
        np.testing.assert_allclose(getattr(alone, name)[0], getattr(whole, name)[4], atol=1e-4)


def test_the_greedy_action_is_the_mean_and_draws_nothing() -> None:
    policy = make_policy()
    inputs, _ = kept(chunk := policy.act(look(4), [], greedy=True))
    np.testing.assert_allclose(chunk.sample, policy.density(inputs).mean.detach().numpy(), atol=1e-6)


def test_the_deviation_starts_as_asked_for_and_has_a_floor() -> None:
    policy = GaussianPolicy(GaussianOptions(points=4, width=16, std=0.5, min_std=0.2, std_sees=True), SPEC)
    std = policy.density(policy.inputs(look(3))).stddev
    torch.testing.assert_close(std, torch.full((3, 4, 2), 0.5))
    with torch.no_grad():
        policy.spread.bias.fill_(-50)
    torch.testing.assert_close(policy.density(policy.inputs(look(3))).stddev, torch.full((3, 4, 2), 0.2))


@pytest.mark.parametrize("sees", [False, True])
def test_the_deviation_depends_on_what_is_seen_when_it_is_to(sees: bool) -> None:
    policy = make_policy(std_sees=sees)
    std = policy.density(policy.inputs(look(8))).stddev
    assert torch.equal(std, std[:1].expand_as(std)) is not sees


def test_proprioception_is_seen_in_units_of_its_deviation_from_the_demonstrations_mean() -> None:
    seen = look(3)
    features = make_policy().features(make_policy().inputs(seen))[:, -3:].detach().numpy()
    expected = (seen.proprio - STATISTICS.proprio_mean) / STATISTICS.proprio_std
    np.testing.assert_allclose(features, expected, rtol=1e-5)


# ---------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_all_that_post_training_updates_has_a_gradient_and_is_sent_to_workers_and_nothing_else(options: dict) -> None:
    policy = make_policy(**options)
    log_prob, _ = policy.log_prob(*kept(policy.act(look(8, steps=policy.n_obs_steps), generators(8))))
    log_prob.sum().backward()
    touched = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    trained = {name for name in policy.weights() if not name.startswith("proprio")}
    assert touched | {"spread.weight"} == trained
    own = {id(p) for group in policy.rl_parameters() for p in group["params"]}
    assert own == {id(p) for name, p in policy.named_parameters() if name in trained}
    assert any("encoders" in name for name in trained) == (policy.options.rl_trains == "all")


def test_pictures_are_kept_where_their_encoders_are_trained_and_an_instruction_once_a_rollout() -> None:
    chunk = make_policy(language="minilm").act(look(2), generators(2))
    assert set(chunk.inputs) == {"image/front", "image/wrist", "proprio"}
    assert set(chunk.rollout_inputs) == {"language"}
    head = make_policy(language="minilm", rl_trains="head").act(look(2), generators(2))
    assert set(head.inputs) == {"features"} and set(head.rollout_inputs) == {"language"}


def test_weights_that_are_sent_make_another_copy_act_alike() -> None:
    policy, other = make_policy(0), make_policy(1)
    before = other.act(look(3), generators(3)).actions
    other.load_weights(policy.weights())
    expected = policy.act(look(3), generators(3)).actions
    np.testing.assert_array_equal(other.act(look(3), generators(3)).actions, expected)
    assert not np.array_equal(before, expected)


def demonstrated(rows: int, seed: int = 0, steps: int = 4) -> DemoBatch:
    g = np.random.default_rng(seed)
    mask = np.arange(steps) < g.integers(1, steps + 1, rows)[:, None]
    return DemoBatch(
        observation=look(rows, seed), actions=g.uniform(-1, 1, (rows, steps, 2)).astype(np.float32), mask=mask
    )


def test_the_loss_is_the_mean_squared_error_over_demonstrated_actions() -> None:
    policy, batch = make_policy(), demonstrated(7)
    loss, metrics = policy.loss(batch)
    mean = policy.density(policy.inputs(batch.observation)).mean.detach().numpy()
    expected = ((mean - batch.actions) ** 2)[batch.mask].mean()
    np.testing.assert_allclose([loss.item(), metrics["action_mse"].value], expected, rtol=1e-5)


def test_pictures_are_moved_about_in_training_alone() -> None:
    policy, batch = make_policy(), demonstrated(9)

    def loss(shift: int) -> float:
        with drawing_from(Noise(0)):
            return policy.loss(batch, shift=shift)[0].item()

    assert loss(0) == loss(3)
    policy.train()
    assert loss(0) != loss(3)
    assert loss(3) == loss(3)


def test_pictures_of_one_row_are_moved_about_together_whatever_step_they_are_of() -> None:
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    with drawing_from(Noise(0)):
        changed = augmented(torch.stack([picture, picture, 255 - picture], 1), 3)
    assert changed.shape == (5, 3, 8, 8, 3)
    assert torch.equal(changed[:, 0], changed[:, 1]) and not torch.equal(changed[:, 0], changed[:, 2])
    with drawing_from(Noise(0)):
        assert torch.equal(changed[:, 0], augmented(picture, 3))


def told_apart(policy: GaussianPolicy, observation: Observation) -> float:
    """The loss after a few steps of learning opposite actions for two rows."""
    actions = np.stack([np.ones((4, 2)), -np.ones((4, 2))]).astype(np.float32)
    batch = DemoBatch(observation=observation, actions=actions, mask=np.ones((2, 4), bool))
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(60):
        loss, _ = policy.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return loss.item()


def test_it_learns_from_what_moved() -> None:
    """Two rows look alike now and came from opposite sides."""
    for steps in (1, 2):
        policy = make_policy(n_obs_steps=steps)
        now, before = look(1), look(2, seed=1)
        observation = Observation.stacked([before, take(now, [0, 0])][-steps:])
        loss = told_apart(policy, observation)
        assert loss < 0.01 if steps == 2 else loss > 0.9


def test_it_imitates_and_instructions_make_a_difference() -> None:
    """Two instructions, one look, opposite actions."""
    for reads in ("minilm", "none"):
        policy = make_policy(language=reads)
        observation = take(look(1), [0, 0])
        loss = told_apart(policy, replace(observation, instruction=SENTENCES))
        assert loss < 0.01 if reads == "minilm" else loss > 0.9


# ---------------------------------------------------------------------- settings and disk


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_saved_and_loaded_policy_is_equal(options: dict, tmp_path: Path) -> None:
    policy = make_policy(**options)
    policy.card["how"] = "by hand"
    policy.save_pretrained(tmp_path / "p")
    again = GaussianPolicy.from_pretrained(tmp_path / "p")
    assert again.options == policy.options and again.simulator == policy.simulator and again.card == policy.card
    assert again.state_dict().keys() == policy.state_dict().keys()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_post_training_may_begin_with_another_deviation_on_the_same_weights() -> None:
    policy = make_policy()
    tuned, _ = policy.tuned(policy.options.replaced(std=1.3, rl_trains="head", chunk=9), None)
    assert (tuned.options.std, policy.options.std) == (1.3, 0.6)
    assert (tuned.options.rl_trains, tuned.options.chunk) == ("head", 4)  # a chunk is decided when it is made
    assert tuned.mean.weight is policy.mean.weight
    assert set(made_with(policy)) == {"chunk", "execute", "n_obs_steps", "points", "width", "language", "std_sees"}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"execute": 9}, "policy.execute: must be at most"), ({"std": 0.05}, "policy.min_std: must be below policy.std")],
)
def test_options_that_cannot_be_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GaussianOptions(**options)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": {"front": (16, 16)}}, "cameras"),
        ({"proprio": {"gripper": 1, "hand": 2}}, "proprioception"),
        ({"action_dim": 3}, "action size"),
        ({"render": {"arm": "mesh"}}, "arm = boxes, got mesh; use the policy's own"),
    ],
)
def test_a_simulator_that_does_not_fit_is_refused(changes: dict, said: str) -> None:
    fields = {name: getattr(SPEC, name) for name in ("suite", "cameras", "proprio", "action_dim", "render")}
    with pytest.raises(PolicyError, match=said):
        make_policy().check_simulator(SimulatorSpec(**fields | changes))


def test_a_folder_with_settings_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path / "p")
    config = tmp_path / "p" / "config.json"
    config.write_text(config.read_text().replace('"chunk": 4', '"chunk": -1'))
    with pytest.raises(PolicyError, match=r"config\.json describes no policy.*policy\.chunk"):
        GaussianPolicy.from_pretrained(tmp_path / "p")
