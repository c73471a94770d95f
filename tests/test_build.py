"""Configuration -> objects."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from toy_runs import Stopped, initial_states, lively_policy, toy_config, toy_demos

from ript import build
from ript.build import (
    demonstrator_factory,
    make_env_pool,
    make_policy,
    simulator_factory,
    task_keys,
    too_large,
)
from ript.config.sections import Config, RolloutConfig, sim_options
from ript.core.errors import ConfigError, PolicyError, UnknownNameError
from ript.core.options import SimOptions
from ript.core.types import SimulatorSpec
from ript.evaluation import evaluate, run_evaluation
from ript.policies.loading import load_policy, origin_of
from ript.policies.quest.options import QuestOptions
from ript.policies.quest.policy import QuestPolicy
from ript.rl import train_rl
from ript.run.reading import read_config
from ript.sft import resume_sft, train_sft
from ript.sims.metaworld.options import MetaworldOptions
from ript.sims.registry import make_simulator
from ript.sims.seen import sim_options_of, sim_options_of_spec
from ript.sims.toy.options import ToyOptions

TOY = toy_config().sim
SPEC = make_simulator("toy/reach", image_size=8).spec


# ---------------------------------------------------------------------- names and settings


def test_tasks_are_found_by_name_key_or_without_the_version() -> None:
    names = ("drawer-open-v3", "metaworld/reach-v3", "window-open")
    assert task_keys(MetaworldOptions(), names) == (
        "metaworld/drawer-open-v3",
        "metaworld/reach-v3",
        "metaworld/window-open-v3",
    )
    assert task_keys(TOY, ("reach", "toy/reach-left")) == ("toy/reach", "toy/reach-left")
    assert task_keys(TOY, ()) == ()


@pytest.mark.parametrize(
    ("sim", "name", "message"),
    [
        (
            MetaworldOptions(),
            "drawr-open-v3",
            r"unknown metaworld task or named list 'drawr-open-v3': did you mean drawer-open-v3",
        ),
        (TOY, "reach-centr", "did you mean reach-centre"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(sim: SimOptions, name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        task_keys(sim, (name,))


def test_an_unknown_camera_or_suite_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UnknownNameError, match="corner2"):
        simulator_factory(MetaworldOptions(cameras=("corner22",)))
    with pytest.raises(UnknownNameError, match="unknown simulator suite 'metawrld': did you mean metaworld"):
        sim_options("metawrld")


def test_the_factory_makes_the_configured_simulator_and_can_be_sent_to_workers() -> None:
    factory = pickle.loads(pickle.dumps(simulator_factory(TOY)))
    with factory("toy/reach-left") as simulator:
        assert simulator.task.name == "reach-left" and simulator.task.horizon == TOY.horizon
        assert simulator.spec == SPEC


@pytest.mark.parametrize("arm", ["boxes", "hidden"])
def test_a_policy_remembers_the_simulator_settings_it_was_made_for(arm: str) -> None:
    sim = MetaworldOptions(cameras=("near",), image_size=32, horizon=60, arm=arm)  # type: ignore[arg-type]
    with simulator_factory(sim)("metaworld/reach-v3") as simulator:
        spec = simulator.spec
    assert sim_options_of_spec(spec, 60) == sim
    assert sim_options_of(make_policy(Config(policy=QuestOptions(size="tiny")), spec, 0), 60) == sim
    assert sim_options_of_spec(SPEC, 16) == TOY


@pytest.mark.parametrize(
    ("suite", "cameras", "says"),
    [
        ("toy", {"top": (8, 8), "b": (16, 16)}, "the toy shows one square picture"),
        ("toy", {"top": (8, 16)}, "the toy shows one square picture"),
        ("metaworld", {"near": (8, 8), "side": (16, 16)}, "Meta-World shows pictures of one size"),
    ],
)
def test_pictures_that_a_suite_does_not_show_are_refused(suite: str, cameras: dict, says: str) -> None:
    spec = SimulatorSpec(suite=suite, cameras=cameras, proprio={"proprio": 2}, action_dim=2, render={})
    with pytest.raises(PolicyError, match=says):
        sim_options_of_spec(spec)


def test_a_suite_without_experts_demonstrates_with_one_of_a_users_own_alone() -> None:
    config = toy_config(sim=sim_options("gym"))
    with pytest.raises(ConfigError, match=r"suite gym has no scripted experts: name one .*--demos.expert MODULE:FUNC"):
        demonstrator_factory(config)
    assert demonstrator_factory(toy_config()) is not None


# ---------------------------------------------------------------------- policies


def test_simulators_that_will_not_fit_into_memory_are_said_beforehand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sim, faithful = sim_options("libero"), sim_options("libero", look="faithful")
    spatial, every = task_keys(sim, ("libero_spatial",)), task_keys(sim, ("libero_90",))
    two, three = RolloutConfig(workers=2), RolloutConfig(workers=3)
    assert not too_large(sim, every, two, 3 << 30) and not too_large(faithful, spatial, two, 4 << 30)  # one scene
    assert not too_large(sim_options("toy"), ("toy/reach",), three, 0) and not too_large(sim, (), three, 0)
    assert too_large(faithful, every, three, 30 << 30) == (
        "simulators of these tasks need about 13.3 GiB in each of 3 processes, and 30.0 GiB are available, so workers "
        "may be lost: give --workers 2, or a smaller --rollout.loaded_tasks"
    )
    few = RolloutConfig(workers=3, loaded_tasks=2)
    assert not too_large(faithful, every, few, 30 << 30) and "--workers" not in too_large(faithful, every, few, 1 << 30)
    monkeypatch.setattr(build.capacity, "memory", lambda: build.capacity.Memory(1 << 30, 1 << 29))
    with make_env_pool(faithful, RolloutConfig(workers=0), tasks=spatial):
        assert "need about 1.6 GiB in each of 1 processes, and 0.5 GiB are available" in capsys.readouterr().err


def test_new_policies_are_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = make_policy(toy_config(), SPEC, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert make_policy(toy_config(), SPEC, 0) == first
    assert make_policy(toy_config(seed=1), SPEC, 0) != first
    assert make_policy(toy_config(), SPEC, 0, seed=1) == make_policy(toy_config(seed=1), SPEC, 0)


@pytest.mark.parametrize(
    ("settings", "chunk", "execute"),
    [
        ({}, 8, 8),
        ({"chunk": 16}, 16, 16),
        ({"chunk": 16, "execute": 4}, 16, 4),
        ({"execute": 4}, 8, 4),
    ],
)
def test_chunk_and_execute_follow_the_size_unless_set(settings: dict, chunk: int, execute: int) -> None:
    policy = make_policy(Config(policy=QuestOptions(size="tiny", **settings)), SPEC, 0)
    assert (policy.config.chunk, policy.config.execute) == (chunk, execute)


def test_chunks_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"chunk \(6\) must be a multiple of downsample"):
        make_policy(Config(policy=QuestOptions(size="tiny", chunk=6)), SPEC, 0)
    with pytest.raises(ConfigError, match=r"execute must be in 1\.\.chunk \(8\), got 9"):
        make_policy(Config(policy=QuestOptions(size="tiny", execute=9)), SPEC, 0)


def test_a_new_policy_fits_the_simulator_and_has_an_auxiliary_head_only_when_asked() -> None:
    policy = make_policy(toy_config(policy={"privileged": True}), SPEC, 2)
    policy.check_simulator(SPEC)
    assert policy.config.privileged_dim == 2 and policy.simulator == SPEC
    assert make_policy(toy_config(), SPEC, 2).config.privileged_dim == 0


def test_post_training_shares_the_weights_and_takes_the_configured_density_and_parts() -> None:
    policy = lively_policy(toy_config())
    original = copy.deepcopy(policy.config)
    settings = QuestOptions(size="tiny", temperature=0.6, top_k=5, sampling="published", rl_trains="prior")
    learner, told = policy.tuned(settings, None)
    c = learner.config
    assert (c.temperature, c.top_k, c.sampling, c.rl_trains) == (0.6, 5, "published", "prior")
    assert policy.config == original and not told
    ours, theirs = dict(policy.named_parameters()), dict(learner.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    with pytest.raises(ConfigError, match=r"top_k must be in 0\.\.25, got 26"):
        policy.tuned(QuestOptions(size="tiny", top_k=26), None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's cache, without a connection: someone/policy at two commits, the second of them the branch main."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--policy"
    for commit, seed in ((OLD, 1), (NEW, 2)):
        lively_policy(toy_config(), seed=seed).save_pretrained(repository / "snapshots" / commit)
    for ref, commit in (("main", NEW), ("v1", OLD)):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    return repository


OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "seed", "commit"),
    [("", 2, NEW), ("@main", 2, NEW), ("@v1", 1, OLD), (f"@{OLD}", 1, OLD)],
    ids=["none", "branch", "tag", "commit"],
)
def test_a_policy_on_the_hub_is_the_one_of_its_revision_and_known_by_its_commit(
    hub: Path, name: str, seed: int, commit: str
) -> None:
    name = f"hf://someone/policy{name}"
    origin = origin_of(name)
    assert (origin.name, origin.revision, origin.place) == (name, commit, f"hf://someone/policy@{commit}")
    assert load_policy(name) == load_policy(origin.place) == lively_policy(toy_config(), seed=seed)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf://someone/other", "cannot fetch hf://someone/other from the model hub: "),
        ("hf://someone/policy@v2", "cannot fetch hf://someone/policy@v2 from the model hub: "),
        ("hf://some one/policy", "cannot fetch hf://some one/policy from the model hub: "),
        *(
            (f"hf://{bad}", "is named hf://owner/name or hf://owner/name@revision")
            for bad in ("", "policy", "someone/", "/policy", "someone/policy@", "someone/policy/best")
        ),
    ],
)
def test_what_the_hub_does_not_have_is_a_clear_error(hub: Path, name: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        load_policy(name)


@pytest.mark.parametrize("failure", [OSError("no route"), RuntimeError("a proxy says no")])
def test_whatever_breaks_on_the_way_to_the_hub_is_one_error(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def broken(*args: object, **settings: object) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(PolicyError, match=f"cannot fetch hf://someone/policy from the model hub: {failure}"):
        load_policy("hf://someone/policy")


def test_runs_and_evaluations_from_the_hub_say_the_commit_and_go_on_from_it_when_the_branch_has_moved(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(iterations=1, eval={"trials": 2, "every": 0}, sft={"finetune_steps": 1})
    demos = toy_demos(tmp_path / "demos.hdf5", config, "reach-centre")
    monkeypatch.chdir(tmp_path)

    def stopped(*args: object) -> None:
        raise Stopped

    for folder, key in (("rl", "start"), ("sft", "base")):
        with monkeypatch.context() as patch, pytest.raises(PolicyError):  # before a copy of the policy is kept
            patch.setattr(QuestPolicy, "save_pretrained", stopped)
            if key == "start":
                train_rl(config, "hf://someone/policy@v1", "rl")
            else:
                train_sft(config, [demos], "sft", base="hf://someone/policy@v1")
        held = read_config(folder)["config"]
        assert (held[key], held[f"{key}_revision"]) == ("hf://someone/policy@v1", OLD)
        assert "changed" not in held
    (hub / "refs" / "v1").write_text(NEW)
    assert load_policy(train_rl(Config(), None, "rl", resume=True).folder / "start") == load_policy(
        hub / "snapshots" / OLD
    )
    assert torch.equal(resume_sft("sft").autoencoder.action_out.bias, lively_policy(config).autoencoder.action_out.bias)
    told = evaluate("hf://someone/policy@v1", ["reach"], trials=1, horizon=4, rollout=config.rollout)
    assert told.policy == f"hf://someone/policy@{NEW}"


# ---------------------------------------------------------------------- pools


def test_a_pool_refuses_a_policy_that_does_not_fit() -> None:
    policy = lively_policy(toy_config())
    other = ToyOptions(image_size=16, horizon=16)
    pool = make_env_pool(other, RolloutConfig(workers=0), policy)
    with initial_states(TOY, ("toy/reach",)) as source:
        states = source.measured("test", 1)
    with pytest.raises(PolicyError, match=r"expected \{'top': \(8, 8\)\}, got \{'top': \(16, 16\)\}"):
        run_evaluation(pool, states, name="p", seed=0)
    pool.close()
