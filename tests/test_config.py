import json
import re
import tomllib
import types
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ript.config import overrides, recipes
from ript.config.sections import (
    Config,
    DemoConfig,
    EvalConfig,
    LearnConfig,
    RolloutConfig,
    SamplingConfig,
)
from ript.config.text import describe
from ript.core.errors import ConfigError, UnknownNameError
from ript.core.options import TrainingOptions, replace
from ript.policies.quest.options import QuestOptions, QuestTraining
from ript.run.settings import leaves
from ript.sims.metaworld.options import MetaworldOptions
from ript.sims.toy.options import ToyOptions

CONFIG = Config()
FIELDS = overrides.fields(CONFIG)
UNBOUNDED = {"sampling.group_size", "learn.entropy_bonus"}
"""Numbers of which something else is asked, in words of its own; or nothing."""
WORDS = st.text("abcdefgh-v3", min_size=1, max_size=12).filter(lambda word: not word.startswith("--"))


def value_of(hint: object) -> st.SearchStrategy:
    """Values of a field's type, whether or not they make sense."""
    if get_origin(hint) is Annotated:
        return value_of(get_args(hint)[0])
    if get_origin(hint) in (types.UnionType, Union):
        return st.one_of(*map(value_of, get_args(hint)))
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(-(10**9), 10**9)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return st.tuples(*map(value_of, get_args(hint)))
    return st.lists(WORDS, max_size=4).map(tuple) if get_origin(hint) is tuple else WORDS


def as_words(value: object) -> list[str]:
    if isinstance(value, tuple):
        return [str(v) for v in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


# ------------------------------------------------------------------ to text and back


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_configuration_comes_back_from_json_and_from_its_description(name: str) -> None:
    config = recipes.get(name)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert Config.from_json(tomllib.loads(describe(config))) == config


def test_fields_are_read_by_the_names_that_they_had_in_an_earlier_version() -> None:
    record = {"recipe": "smoke", "sampling": {"contexts": 3, "context_noise": 0.1, "groups": 2}}
    sampling = Config.from_json(record).sampling
    assert (sampling.states, sampling.state_noise, sampling.groups) == (3, 0.1, 2)
    assert overrides.apply(Config(), {"sampling.contexts": ["4"]}).sampling.states == 4
    assert leaves(record) == {"recipe": "smoke"} | {
        f"sampling.{name}": value for name, value in (("states", 3), ("state_noise", 0.1), ("groups", 2))
    }


def test_the_description_names_every_field_once_and_says_what_it_means() -> None:
    text = describe(Config())
    lines = [line.partition(" = ")[0] for line in text.splitlines() if " = " in line]
    assert sorted(lines) == sorted(name.rpartition(".")[2] for name in FIELDS)
    assert "group_size = 16  # K, rollouts from the same initial state, at least 2." in text
    assert "[sampling]  # Which initial states are practised on, and dynamic rollout sampling." in text
    without = [line for line in text.splitlines() if line and not re.search(r"  # \S.*\w\W*$", line)]
    assert not without, "settings that nobody can understand"


def test_every_field_has_a_meaning_a_type_and_where_it_is_a_number_a_range() -> None:
    for name in FIELDS:
        section, _, inner = name.rpartition(".")
        field = type(getattr(CONFIG, section) if section else CONFIG).model_fields[inner]
        assert field.description, name
        bounded = [m for m in field.metadata if any(hasattr(m, bound) for bound in ("ge", "gt", "le", "lt"))]
        assert bounded or field.annotation not in (int, float) or name in UNBOUNDED, name


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SamplingConfig(group_size=1), "sampling.group_size: leave-one-out needs at least 2 .* got K = 1"),
        (lambda: SamplingConfig(groups=9, max_attempts=8), "sampling.max_attempts: the quota of 9 .* with 8 attempts"),
        (lambda: SamplingConfig(groups=0), "sampling.groups"),
        (lambda: SamplingConfig(states=-1), "sampling.states"),
        (lambda: EvalConfig(trials=0), r"eval.trials: must be in 1..100000, got 0"),
        (lambda: EvalConfig(every_trials=0), "eval.every_trials"),
        (lambda: EvalConfig(every=-1), "eval.every"),
        (lambda: MetaworldOptions(horizon=-1), "sim.horizon: must be in 0..1000000, got -1"),
        (lambda: MetaworldOptions(image_size=4), "sim.image_size"),
        (lambda: MetaworldOptions(cameras=()), "sim.cameras"),
        (lambda: DemoConfig(per_task=0), "demos"),
        (lambda: DemoConfig(noise=-0.1), "demos.noise"),
        (lambda: QuestTraining(finetune_share=0), "sft.finetune_share"),
        (lambda: QuestTraining(policy_batch=0), "sft.policy_batch"),
        (lambda: RolloutConfig(workers=-1), "rollout.workers"),
        (lambda: RolloutConfig(slots=0), "rollout.slots"),
        (lambda: RolloutConfig(max_error_rate=1.5), "rollout.max_error_rate"),
        (lambda: LearnConfig(learning_rate=0), "learn.learning_rate: must be above 0, got 0"),
        (lambda: LearnConfig(clip_low=0), "learn.clip_low"),
        (lambda: LearnConfig(clip_low=1.5), "learn.clip_low"),
        (lambda: LearnConfig(threads=100_000), r"learn.threads: must be in 1\.\.256, got 100000"),
        (lambda: LearnConfig(target_kl=float("nan")), "learn.target_kl: must be a finite number, got nan"),
        *(
            (lambda name=name: LearnConfig(**{name: -1}), f"learn.{name}: must be")
            for name in (
                "weight_decay",
                "max_decisions",
                "adapt_kl",
                "target_kl",
                "minibatch_trajectories",
                "min_abs_advantage",
                "epochs",
                "micro_batch",
                "threads",
            )
        ),
        *(
            (lambda name=name: QuestTraining(**{name: -1}), f"sft.{name}: must be")
            for name in ("weight_decay", "autoencoder_learning_rate", "policy_steps", "finetune_epochs", "threads")
        ),
        (lambda: RolloutConfig(max_retries=-1), "rollout.max_retries: must be at least 0, got -1"),
        (lambda: SamplingConfig(horizon=-1), "sampling.horizon: must be at least 0, got -1"),
        (lambda: SamplingConfig(state_noise=100), r"sampling.state_noise: must be in 0\.\.1, got 100"),
        (lambda: QuestOptions(entropy=-100), "policy.entropy"),
        (lambda: QuestOptions(entropy=100), "policy.entropy"),
        (lambda: QuestOptions(temperature=float("inf")), "policy.temperature: must be a finite number, got inf"),
        (lambda: EvalConfig(trials=10**20), "eval.trials"),
        (lambda: MetaworldOptions(cameras=("a", "a")), "sim.cameras: named twice: a, a"),
        (lambda: Config(iterations=-1), "iterations"),
        (lambda: Config(stop_at=0), "stop_at"),
        (lambda: Config(tasks=("a", "a")), "tasks: named twice"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_construction_by_the_name_of_its_field(make, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{says}"):
        make()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"learn": {"epoch": 3}}, "unknown field of learn 'epoch': did you mean epochs"),
        ({"lern": {}}, "unknown field of config 'lern': did you mean learn"),
        ({"learn": 3}, "learn: expected fields, got 3"),
        ({"learn": {"epochs": "3"}}, "learn.epochs: expected int, got '3'"),
        ({"learn": {"epochs": 3.5}}, "learn.epochs: expected int, got 3.5"),
        ({"learn": {"epochs": True}}, "learn.epochs: expected int, got True"),
        ({"learn": {"learning_rate": True}}, "learn.learning_rate: expected float, got True"),
        ({"policy": {"size": "huge"}}, "policy.size: 'huge' is not one of 'tiny', 'small', 'paper'"),
        ({"tasks": "reach"}, "tasks: expected a list of words, got 'reach'"),
        ({"tasks": [1]}, r"tasks: expected a list of words, got \[1\]"),
    ],
)
def test_a_document_that_is_not_a_configuration_is_refused_by_the_name_of_its_field(data: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config.from_json(data)


# ------------------------------------------------------------------ whose settings they are


def test_settings_of_simulator_policy_and_training_are_those_of_the_suite_and_kind_that_they_name() -> None:
    config = Config.from_json({"sim": {"suite": "toy", "image_size": 24}, "policy": {"size": "tiny"}})
    assert (config.sim, config.policy) == (ToyOptions(image_size=24), QuestOptions(size="tiny"))
    assert config.sft == QuestTraining() and Config().sim == MetaworldOptions()
    assert config.to_json()["sim"] == {"suite": "toy", "horizon": 0, "image_size": 24}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"sim": {"suite": "toi"}}, "unknown simulator suite 'toi': did you mean toy"),
        ({"sim": {"suite": "toy", "arm": "mesh"}}, r"unknown field of sim \(suite toy\) 'arm'"),
        ({"sim": {"suite": 3}}, "sim.suite: expected one word, got 3"),
        ({"policy": {"kind": "qest"}}, "unknown kind of policy 'qest': did you mean quest"),
        ({"sft": {"steps": 3}}, "unknown field of sft 'steps'"),
        ({"sft": TrainingOptions()}, r"sft: expected the training settings of quest \(QuestTraining\), got Training"),
    ],
)
def test_settings_of_another_suite_or_kind_are_refused(data: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Config.from_json(data)


def test_another_suite_begins_with_its_own_defaults_and_what_was_given_for_it() -> None:
    words = ["--sim.suite=metaworld", "--sim.arm=hidden", "--sim.image_size", "48", "64"]
    changed = overrides.apply(recipes.get("smoke"), overrides.split_words(words))
    assert changed.sim == MetaworldOptions(arm="hidden", image_size=(48, 64))
    same = overrides.apply(recipes.get("smoke"), overrides.split_words(["--sim.suite=toy", "--policy.kind=quest"]))
    assert same == recipes.get("smoke")
    with pytest.raises(UnknownNameError, match=r"suite toy 'sim.arm': known: sim.horizon, sim.image_size, sim.suite"):
        overrides.apply(recipes.get("smoke"), {"sim.arm": ["hidden"]})


def test_records_of_0_1_0_are_read() -> None:
    old = {"recipe": "smoke", "sim": {"suite": "toy", "cameras": ["top"], "arm": "boxes", "image_size": 16}}
    assert Config.from_record(old) == Config(recipe="smoke", sim=ToyOptions(image_size=16))
    other = {"sim": {"suite": "metaworld", "cameras": ["near"], "arm": "mesh"}, "policy": {"size": "tiny"}}
    assert Config.from_record(other).sim == MetaworldOptions(cameras=("near",), arm="mesh")
    assert Config.from_record(other).policy == QuestOptions(size="tiny") and Config.from_record({}) == Config()


def test_settings_cannot_be_changed_and_a_copy_with_others_is_validated() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"learn.epochs: must be at least 1, got 0"):
        replace(config.learn, epochs=0)
    assert replace(config, seed=3) == Config(seed=3) and config.seed == 0


# ------------------------------------------------------------------ from the command line


@settings(deadline=None)
@given(data=st.data())
def test_a_value_written_as_words_is_read_back_whichever_way_it_is_written(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    value = data.draw(value_of(FIELDS[name]))
    words = as_words(value)
    assert overrides.parse_value(name, FIELDS[name], words) == value
    apart = overrides.split_words([f"--{name}", *words])
    joined = overrides.split_words([f"--{name.replace('_', '-')}={','.join(words)}"])
    assert apart == {name: words}
    assert overrides.parse_value(name, FIELDS[name], joined[name]) == value


@settings(max_examples=50, deadline=None)
@given(
    epochs=st.integers(1, 100),
    rate=st.floats(1e-9, 1.0),
    cameras=st.lists(WORDS, min_size=1, max_size=3, unique=True),
    dynamic=st.booleans(),
)
def test_overrides_change_their_fields_and_no_others(
    epochs: int, rate: float, cameras: list[str], dynamic: bool
) -> None:
    base = recipes.get("quickstart")
    words = [f"--learn.epochs={epochs}", "--learn.learning_rate", repr(rate), "--sim.cameras", *cameras]
    changed = overrides.apply(base, overrides.split_words([*words, f"--sampling.dynamic={dynamic}", "--workers", "3"]))
    assert changed == replace(
        base,
        learn=replace(base.learn, epochs=epochs, learning_rate=rate),
        sim=replace(base.sim, cameras=tuple(cameras)),
        sampling=replace(base.sampling, dynamic=dynamic),
        rollout=replace(base.rollout, workers=3),
    )


def test_contradictions_are_judged_when_all_overrides_are_in() -> None:
    words = ["--sampling.groups=64", "--sampling.max_attempts=128"]
    assert overrides.apply(Config(), overrides.split_words(words)).sampling.groups == 64


def test_a_flag_alone_is_true_and_of_an_option_given_twice_the_last_counts() -> None:
    given_words = overrides.split_words(["--policy.privileged", "--seed", "1", "--seed=2"])
    config = overrides.apply(Config(), given_words)
    assert (config.policy.privileged, config.seed) == (True, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learn.epochs"], "learn.epochs: expected a whole number, got nothing"),
        (["--learn.epochs", "1", "2"], "learn.epochs: expected a whole number, got '1 2'"),
        (["--learn.epochs=1.5"], "learn.epochs: expected a whole number, got '1.5'"),
        (["--learn.learning_rate=nan"], "learn.learning_rate: expected a number, got 'nan'"),
        (["--sampling.dynamic=perhaps"], "sampling.dynamic: expected true or false, got 'perhaps'"),
        (["--policy.size", "big"], "policy.size: expected one of tiny, small, paper, got 'big'"),
        (["--learn.epochs=2", "3"], "'3' belongs to no option"),
        (["stray"], "'stray' belongs to no option"),
        (["--learning_rte=1"], "unknown option or field 'learning_rte': did you mean learn.learning_rate"),
        (["--learn=1"], "unknown option or field 'learn'"),
    ],
)
def test_a_mistaken_override_names_the_field_what_was_expected_and_what_was_given(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        overrides.apply(Config(), overrides.split_words(words))


# ------------------------------------------------------------------ unknown names


def test_the_nearest_names_are_suggested_best_first_and_nothing_far_away() -> None:
    tasks = ["drawer-open-v3", "drawer-close-v3", "door-open-v3", "reach-v3"]
    assert "did you mean drawer-open-v3" in str(UnknownNameError("task", "drawer-opn", tasks))
    assert str(UnknownNameError("task", "REACH", tasks)) == "unknown task 'REACH': did you mean reach-v3?"
    nothing = UnknownNameError("task", "zzz", tasks)
    assert str(nothing) == f"unknown task 'zzz': known: {', '.join(sorted(tasks))}"


def test_an_unknown_name_crosses_a_process_border() -> None:
    import pickle

    error = UnknownNameError("camera", "neer", ["near", "far"])
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.known) == (UnknownNameError, str(error), ["far", "near"])


@pytest.mark.parametrize("field", ["tasks", "pretrain_tasks"])
def test_a_task_under_two_names_is_named_twice(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}: named twice: reach, toy/reach"):
        Config.from_json({"sim": {"suite": "toy"}, field: ["reach", "toy/reach"]})
