"""The policy: from frames to actions and back to densities."""

import dataclasses

import numpy as np
import pytest
import torch
from oft_golden import ADAPTER, arrays, document
from oft_policies import NAMES, generators, observation, published

from ript.core.errors import ConfigError, PolicyError
from ript.core.types import Observation, SimulatorSpec
from ript.policies.openvla_oft.lora import add_lora

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def policy():
    return published()


@pytest.fixture(scope="module")
def golden():
    return arrays("io")


@pytest.mark.parametrize("name", NAMES)
def test_from_a_simulators_frames_to_published_actions(policy, golden, name):
    mean, log_scale = policy.predict(observation(name))
    np.testing.assert_allclose(mean[0], golden[f"base/{name}/official/normalized_actions"], **CLOSE)
    np.testing.assert_allclose(log_scale[0], golden[f"base/{name}/official/log_b"], **CLOSE)
    actions = policy.config.statistics.simulator_actions(mean[0].numpy())
    np.testing.assert_allclose(actions, golden[f"base/{name}/official/env_actions"], **CLOSE)
    chunk = policy.act(observation(name), [], greedy=True)
    np.testing.assert_allclose(chunk.actions[0], actions.clip(-1, 1), atol=1e-6)


def test_a_policy_with_ript_vlas_adapter_acts_as_published(golden):
    for alpha, tag in ((None, "lora"), (2, "lora_alpha2")):
        adapted = published(adapter=ADAPTER, alpha=alpha)
        mean, log_scale = adapted.predict(observation("s0"))
        np.testing.assert_allclose(mean[0], golden[f"{tag}/s0/official/normalized_actions"], **CLOSE)
        np.testing.assert_allclose(log_scale[0], golden[f"{tag}/s0/official/log_b"], **CLOSE)


def test_the_two_pass_option_acts_as_ript_vla(policy, golden):
    mean, _ = policy.configured(forward="two_pass").predict(observation("s1"))
    np.testing.assert_allclose(mean, golden["base/s1/ript/normalized_mean"], **CLOSE)


@pytest.mark.parametrize("forward", ["official", "two_pass"])
@pytest.mark.parametrize("terms, size", [("action", 8), ("dimension", 56)])
def test_what_is_drawn_is_what_is_scored(policy, forward, terms, size):
    policy = policy.configured(forward=forward, terms=terms, temperature=1.7)
    chunk = policy.act(observation("s1", "s2"), generators(2))
    assert chunk.sample.shape == (2, 8, 7) and chunk.log_prob.shape == (2, size)
    inputs = {name: torch.from_numpy(array) for name, array in (chunk.inputs | chunk.rollout_inputs).items()}
    log_prob, entropy = policy.log_prob(inputs, torch.from_numpy(chunk.sample))
    np.testing.assert_allclose(log_prob.detach(), chunk.log_prob, atol=1e-4)
    assert entropy.shape == (2, size)


def test_published_sampling_scores_differently_from_what_it_draws(policy):
    observed = observation("s0")
    exact, published_ = (
        policy.configured(sampling=sampling, temperature=5.0).act(observed, generators(1))
        for sampling in ("exact", "published")
    )
    assert np.abs(exact.log_prob - published_.log_prob).max() > 1


def test_a_batch_gives_the_rows_of_batches_of_one(policy):
    together = policy.act(observation("s1", "s2"), generators(2))
    for i, name in enumerate(("s1", "s2")):
        alone = policy.act(observation(name), generators(2)[i : i + 1])
        assert all((array[0] == together.inputs[key][i]).all() for key, array in alone.inputs.items())
        np.testing.assert_allclose(alone.sample[0], together.sample[i], atol=1e-5)
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[i], atol=1e-4)


def test_records_of_an_iteration_fit_into_two_gibibytes(policy):
    """192 rollouts of LIBERO's longest suite, every one a failure."""
    chunk = policy.act(observation("s1"), generators(1))
    arrays_ = [chunk.sample, chunk.log_prob, *chunk.inputs.values()]
    decisions = 192 * 520 // policy.config.execute
    assert sum(array[0].nbytes for array in arrays_) * decisions < 2 * 2**30
    assert chunk.rollout_inputs["prompt"].nbytes < 2048


def test_several_threads_prepare_the_same_pictures(policy):
    one = policy.inputs(observation("s1", "s2"))
    torch.set_num_threads(2)
    try:
        assert all((array == one[name]).all() for name, array in policy.inputs(observation("s1", "s2")).items())
        assert torch.equal(policy.pictures(one), torch.stack([policy.pictures(row_of(one, i))[0] for i in (0, 1)]))
    finally:
        torch.set_num_threads(1)


def row_of(inputs, i):
    return {name: array[i : i + 1] for name, array in inputs.items()}


def test_actions_that_are_not_executed_are_no_terms(policy):
    short = dataclasses.replace(policy.config, execute=3)
    policy = policy.configured(execute=3)
    assert policy.config == short
    chunk = policy.act(observation("s0"), generators(1))
    assert chunk.actions.shape == (1, 3, 7) and chunk.log_prob.shape == (1, 3)
    inputs = {name: torch.from_numpy(array) for name, array in (chunk.inputs | chunk.rollout_inputs).items()}
    log_prob, _ = policy.log_prob(inputs, torch.from_numpy(chunk.sample))
    np.testing.assert_allclose(log_prob.detach(), chunk.log_prob, atol=1e-4)


def test_the_gripper_is_drawn_scored_and_then_only_its_sign_acts(policy):
    chunk = policy.act(observation("s0"), generators(1))
    assert set(np.unique(chunk.actions[..., -1])) <= {-1.0, 1.0}
    assert not set(np.unique(chunk.sample[..., -1])) <= {-1.0, 1.0}


def test_without_a_scale_head_it_acts_greedily_and_draws_nothing():
    policy = published(scale_head=None)
    assert policy.predict(observation("s0"))[1] is None
    assert (policy.act(observation("s0"), [], greedy=True).log_prob == 0).all()
    with pytest.raises(PolicyError, match="no scale head"):
        policy.act(observation("s0"), generators(1))


def test_only_what_post_training_updates_gets_a_gradient():
    policy = published(adapter=ADAPTER)
    trained = {id(p) for group in policy.rl_parameters() for p in group["params"]}
    inputs = {k: torch.from_numpy(v) for k, v in policy.inputs(observation("s0")).items()}
    log_prob, _ = policy.log_prob(inputs, torch.zeros(1, 8, 7))
    log_prob.sum().backward()
    for name, parameter in policy.network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained) == (name in policy.weights()), name
    assert len(policy.weights()) == 42 + 16
    assert {len(policy.configured(rl_trains=part).weights()) for part in ("adapter", "head")} == {42, 16}


def test_weights_that_are_sent_make_another_copy_equal():
    mine, other = published(adapter=ADAPTER), published(adapter=ADAPTER)
    with torch.no_grad():
        for parameter in mine._trained().values():
            parameter.add_(0.01)
    assert mine != other
    other.load_weights(mine.weights())
    assert mine == other


def test_a_policy_without_adapter_or_head_to_train_says_so():
    policy = published().configured(rl_trains="adapter")
    with pytest.raises(ConfigError, match="no adapter"):
        policy.rl_parameters()
    add_lora(policy.network, ["language_model.model.layers.0.self_attn.q_proj"], 2, 0.5)
    assert len(policy.rl_parameters()) == 1


@pytest.mark.parametrize(
    "names", [("agentview", "robot0_eye_in_hand"), ("wrist_cam", "front"), ("robot0_eye_in_hand", "agentview")]
)
def test_cameras_are_told_apart_by_the_wrist_whatever_their_order(policy, golden, names):
    of = dict(zip(("primary", "wrist"), observation("s1").images.values(), strict=True))
    images = {name: of["wrist" if "hand" in name or "wrist" in name else "primary"] for name in names}
    mean, _ = policy.predict(dataclasses.replace(observation("s1"), images=images))
    np.testing.assert_allclose(mean[0], golden["base/s1/official/normalized_actions"], **CLOSE)


def frames(name, camera):
    return observation(name).images[camera]


def changed(**fields):
    return dataclasses.replace(observation("s1"), **fields)


@pytest.mark.parametrize(
    "given, message",
    [
        (lambda: changed(images={"a": np.zeros((1, 9, 9, 3), np.uint8)}), "no primary, wrist among a"),
        (lambda: changed(images=dict.fromkeys(("a", "b"), np.zeros((1, 9, 9, 3), np.uint8))), "no primary, wrist"),
        (
            lambda: changed(images=dict.fromkeys(("primary", "wrist"), np.zeros((1, 9, 9, 3), np.float32))),
            r"uint8 .* got float32 \[9, 9, 3\]",
        ),
        (
            lambda: changed(images=dict.fromkeys(("primary", "wrist"), np.zeros((1, 128, 128, 3), np.uint8))),
            "a picture of 128 x 128: the policy takes frames of 256 x 256, or of 224 x 224 that are turned and resized",
        ),
        (
            lambda: changed(images={"primary": frames("s0", "primary"), "wrist": frames("s1", "wrist")}),
            "pictures of 224 x 224 and 256 x 256 together",
        ),
        (
            lambda: changed(images={"primary": frames("s1", "primary"), "wrist": frames("s0", "wrist")}),
            "pictures of 224 x 224 and 256 x 256 together",
        ),
        (
            lambda: Observation(
                images=dict.fromkeys(("primary", "wrist"), np.zeros((0, 256, 256, 3), np.uint8)),
                proprio=np.zeros((0, 8)),
                instruction=(),
            ),
            "an observation without rows",
        ),
        (lambda: changed(instruction=(None,)), "instruction None: expected words"),
        (lambda: changed(proprio=np.zeros((1, 9))), r"proprioception \[B, 8\], got \[1, 9\]"),
        (lambda: changed(instruction=("fly",)), "no tokenizer.json, so the instruction 'fly' cannot be read"),
    ],
)
def test_what_it_cannot_take_is_refused(policy, given, message):
    with pytest.raises(PolicyError, match=message):
        policy.predict(given())


def test_a_single_picture_of_another_size_is_refused_too(policy):
    with pytest.raises(PolicyError, match="a picture of 100 x 200"):
        policy.preprocess(np.zeros((100, 200, 3), np.uint8))


def test_an_instruction_longer_than_the_context_is_refused(policy):
    with pytest.raises(PolicyError, match=r"has 301 tokens .* there is room for 256"):
        policy.remember({"x": [1] * 300})
    policy.remember({"y": [1] * 255})
    assert policy.predict(changed(instruction=("y",)))[0].isfinite().all()


def spec(**changes) -> SimulatorSpec:
    fields = {"suite": "libero", "cameras": {"agentview": (256, 256), "eye_in_hand": (256, 256)}}
    fields |= {"proprio": {"proprio": 8}, "action_dim": 7, "render": {}}
    return SimulatorSpec(**fields | changes)


def test_a_simulator_that_fits_is_taken_and_another_refused(policy):
    policy.check_simulator(spec())
    for changes, message in (
        ({"suite": "metaworld"}, "trained in libero"),
        ({"action_dim": 4}, "action size: expected 7, got 4"),
        ({"proprio": {"proprio": 9}}, r"proprioception .*'gripper_qpos': 2}, got {'proprio': 9}"),
        ({"proprio": {"joint": 8}}, r"proprioception .*'gripper_qpos': 2}, got {'joint': 8}"),
        (
            {"proprio": {"gripper_qpos": 2, "eef_pos": 3, "eef_axis_angle": 3}},
            r"proprioception \(name: size, in order\): expected {'eef_pos': 3",
        ),
        ({"cameras": {"agentview": (128, 128), "eye_in_hand": (128, 128)}}, r"cameras .* got .*\(128, 128\)"),
        ({"cameras": {"agentview": (256, 256), "eye_in_hand": (128, 128)}}, r"cameras .* got .*\(128, 128\)"),
        ({"cameras": {"agentview": (256, 256)}}, "no primary, wrist among agentview"),
    ):
        with pytest.raises(PolicyError, match=message):
            policy.check_simulator(spec(**changes))


def test_a_simulators_frames_that_would_count_as_turned_already_are_refused(policy):
    cameras = {"agentview": (224, 224), "eye_in_hand": (224, 224)}
    other = published()
    other.simulator = dataclasses.replace(other.simulator, cameras=dict.fromkeys(("primary", "wrist"), (224, 224)))
    with pytest.raises(PolicyError, match="frames of 224 x 224 count as turned and resized already"):
        other.check_simulator(spec(cameras=cameras))


def test_nothing_that_is_not_finite_looks_well(policy):
    broken = published()
    with torch.no_grad():
        broken.network.action_head.model.fc2.bias[0] = torch.inf
    for greedy in (True, False):
        chunk = broken.act(observation("s0"), generators(1), greedy=greedy)
        assert not np.isfinite(chunk.actions).all()


def test_questions_are_asked_as_published():
    from ript.policies.openvla_oft.prompt import question

    for name, entry in document("meta")["observations"].items():
        assert question(entry["task"]) == entry["prompt"], name


def test_rounding_apart_is_refused_in_float32_and_recomputed_in_bfloat16(policy):
    assert policy.ratio_tolerance == 1e-3
    assert published(dtype=torch.bfloat16).ratio_tolerance is None
