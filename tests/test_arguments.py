"""Arguments of public functions: plain values of Python and NumPy work, others are an error that names the argument."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import lively_policy, toy_config, toy_demos

import ript
from ript.build import simulator_factory
from ript.cli.arguments import steps_or_protocol
from ript.core import arguments
from ript.core.errors import ConfigError, RiptError
from ript.core.workers import Crashed
from ript.demos.demo_set import open_demos
from ript.policies.quest.policy import QuestPolicy
from ript.run.reading import read_config

CONFIG = toy_config(iterations=1)
HERE = CONFIG.rollout


@pytest.fixture(scope="module")
def policy() -> QuestPolicy:
    return lively_policy(CONFIG)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_demos(tmp_path_factory.mktemp("demos") / "d.hdf5", CONFIG, "reach-left", "reach-centre")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_are_python_s_and_numpy_s(value: Any) -> None:
    found = arguments.whole("n", value, 1, 5)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, [3], 0, 6])
def test_what_is_no_whole_number_in_the_range_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"n must be a whole number in 1\.\.5, got "):
        arguments.whole("n", value, 1, 5)


def test_numbers_are_finite_and_no_truths() -> None:
    assert [arguments.number("x", value, 0) for value in (1, np.float32(0.5), np.int8(2))] == [1.0, 0.5, 2.0]
    for value in (True, "1", float("nan"), float("inf"), -1.0, None, 10**400):
        with pytest.raises(ConfigError, match="x must be a number of at least 0, got "):
            arguments.number("x", value, 0)


def test_settings_take_numbers_of_numpy_and_their_record_can_be_gone_on_with(tmp_path: Path) -> None:
    config = toy_config(iterations=np.int64(1), seed=np.int64(3), learn={"learning_rate": np.float32(1e-3)})
    assert type(config.seed) is int and type(config.learn.learning_rate) is float
    ript.train_rl(config, lively_policy(config), tmp_path / "run")
    assert ript.train_rl(ript.Config(), None, tmp_path / "run", resume=True).iterations == 1
    held = read_config(tmp_path / "run")["config"]["recipe_config"]
    assert (held["seed"], held["iterations"]) == (3, 1)


@pytest.mark.parametrize(
    "given",
    [{"seed": True}, {"seed": "3"}, {"iterations": 1.0}, {"iterations": np.float64(1)}, {"tasks": "reach-left"}],
    ids=str,
)
def test_settings_of_another_type_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        toy_config(**given)
    with pytest.raises(ConfigError, match=r"learn\.learning_rate"):
        toy_config(learn={"learning_rate": "1e-4"})


# ---------------------------------------------------------------------- functions


def test_an_evaluation_takes_numbers_of_numpy_and_one_task(policy: QuestPolicy) -> None:
    plain = ript.evaluate(policy, ["reach-left"], trials=3, seed=2, horizon=8, rollout=HERE)
    given = {"trials": np.int64(3), "seed": np.int32(2), "horizon": np.int64(8)}
    assert ript.evaluate(policy, "reach-left", rollout=HERE, **given).to_json() == plain.to_json()


@pytest.mark.parametrize(
    "given",
    [
        {"horizon": 24.5},
        {"horizon": "24"},
        {"trials": 1.5},
        {"trials": True},
        {"seed": 1.5},
        {"seed": -1},
        {"videos": "1"},
        {"temperature": "1"},
        {"temperature": True},
        {"greedy": "no"},
        {"rollout": {"workers": 0}},
        {"tasks": [3]},
        {"tasks": 3},
        {"policy": 3},
        {"policy": None},
    ],
    ids=str,
)
def test_an_evaluation_names_the_argument_that_cannot_work(policy: QuestPolicy, given: dict[str, Any]) -> None:
    complete = {"policy": policy, "tasks": ["reach-left"], "trials": 2, "horizon": 8, "rollout": HERE} | given
    with pytest.raises(RiptError, match=next(iter(given))):
        ript.evaluate(**complete)


@pytest.mark.parametrize(
    "given",
    [
        {"per_task": 1.0},
        {"per_task": True},
        {"seed": "0"},
        {"seed": -1},
        {"noise": "much"},
        {"noise": float("nan")},
        {"every": 0},
        {"workers": 1.5},
        {"max_tries_factor": float("inf")},
        {"try_seconds": 0},
        {"task_keys": [3]},
        {"task_keys": None},
        {"make_simulator": "toy"},
        {"out": 3},
    ],
    ids=str,
)
def test_a_collection_names_the_argument_that_cannot_work(tmp_path: Path, given: dict[str, Any]) -> None:
    make = simulator_factory(CONFIG.sim)
    complete = {"make_simulator": make, "task_keys": ["toy/reach"], "per_task": 1, "out": tmp_path / "d.hdf5"} | given
    with pytest.raises(RiptError, match=next(iter(given))):
        ript.collect_demos(**complete)
    assert not list(tmp_path.iterdir())


def test_a_collection_takes_one_task_and_numbers_of_numpy(tmp_path: Path) -> None:
    make = simulator_factory(CONFIG.sim)
    settings = {"seed": np.int64(1), "noise": np.float32(0.5), "every": np.int64(2)}
    ript.collect_demos(make, "toy/reach", np.int64(2), tmp_path / "d.hdf5", **settings)
    made = open_demos(tmp_path / "d.hdf5")
    assert len(made) == 2 and made.files[0].settings == {
        "per_task": 2,
        "seed": 1,
        "noise": 0.5,
        "every": 2,
        "source": "expert",
    }
    assert len(made.select("toy/reach")) == 2


def test_training_takes_one_file_or_several(demos: Path, tmp_path: Path) -> None:
    for name, given in (("path", demos), ("text", str(demos)), ("list", [demos]), ("set", open_demos(demos))):
        ript.train_sft(CONFIG, given, tmp_path / name)
        assert read_config(tmp_path / name)["config"]["demos"] == [str(demos)]


@pytest.mark.parametrize(
    "given", [{"config": "smoke"}, {"demos": 3}, {"demos": [3]}, {"out": 3}, {"base": 3}, {"asked": 3}], ids=str
)
def test_supervised_training_names_the_argument_that_cannot_work(
    demos: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(RiptError, match=next(iter(given))):
        ript.train_sft(**({"config": CONFIG, "demos": [demos], "out": tmp_path / "run"} | given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [{"config": "smoke"}, {"config": None}, {"policy": 3}, {"out": None}, {"resume": "yes"}, {"asked": [3]}],
    ids=str,
)
def test_post_training_names_the_argument_that_cannot_work(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(RiptError, match=next(iter(given))):
        ript.train_rl(**({"config": CONFIG, "policy": None, "out": tmp_path / "run"} | given))
    assert not list(tmp_path.iterdir())


def test_one_setting_that_was_asked_for_is_a_word_and_no_letters(policy: QuestPolicy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.size"):
        ript.train_rl(
            toy_config(policy={"size": "small"}), lively_policy(CONFIG), tmp_path / "run", asked="policy.size"
        )


@pytest.mark.parametrize("as_it_is", [Path, str])
def test_a_report_takes_one_run(tmp_path: Path, as_it_is: Any) -> None:
    run = ript.train_rl(toy_config(iterations=0), lively_policy(CONFIG), tmp_path / "run").folder
    page = ript.write_report(as_it_is(run), tmp_path / "page.html")
    assert page.read_text() == ript.write_report([run], tmp_path / "again.html").read_text()
    for given in ({"folders": 3}, {"folders": [3]}, {"out": 3}, {"max_videos": -1}):
        with pytest.raises(RiptError, match=next(iter(given))):
            ript.write_report(**({"folders": [run], "out": page} | given))


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        ("load_policy", (3,), "folder"),
        ("load_policy", (None,), "folder"),
        ("export_quest", ("runs/policy", "x.pth"), "policy"),
        ("import_quest", (3,), "path"),
        ("recipe", (3,), "recipe"),
        ("recipe", (["smoke"],), "recipe"),
        ("make_simulator", (3,), "simulator"),
        ("check_simulator", (3,), "factory"),
        (
            "check_simulator",
            (lambda: 3,),
            "factory made 3, which is no simulator: it has no task, spec, seconds, reset",
        ),
        ("check_simulator", (lambda: None,), "factory made None, which is no simulator"),
        ("check_simulator", (lambda key: None,), r"factory must .* which takes no argument; this takes \(key\)"),
        (
            "collect_demos",
            (lambda: None, "toy/reach", 1, "x.hdf5"),
            r"make_simulator .* takes 1 argument; .* takes \(\)",
        ),
        ("evaluate", (QuestPolicy, "toy/reach"), "got the class QuestPolicy: give a policy of it"),
        ("train_rl", (CONFIG, QuestPolicy, "run"), "got the class QuestPolicy: give a policy of it"),
        ("quickstart", (3,), "target"),
    ],
)
def test_other_functions_name_the_argument_that_cannot_work(function: str, given: tuple, named: str) -> None:
    with pytest.raises(RiptError, match=named):
        getattr(ript, function)(*given)


@pytest.mark.parametrize("given", [{"checks": "used equals fresh"}, {"seed": np.int64(1)}, {"steps": np.int64(9)}])
def test_a_check_of_a_simulator_takes_one_check_and_numbers_of_numpy(given: dict[str, Any]) -> None:
    few = {"checks": ["used equals fresh"], "episodes": 1, "steps": 9} | given
    assert ript.check_simulator(lambda: ript.make_simulator("toy/reach"), **few) == ["used equals fresh"]
    for wrong in ({"seed": 1.5}, {"steps": 0}, {"episodes": "2"}):
        with pytest.raises(RiptError, match=next(iter(wrong))):
            ript.check_simulator(lambda: ript.make_simulator("toy/reach"), **(few | wrong))


@pytest.mark.parametrize("word", ["\u00b2", "--5", "9" * 5000, "published", ""])
def test_a_horizon_that_is_no_number_is_refused_in_words(word: str) -> None:
    with pytest.raises(ConfigError, match=r"--horizon: expected a number of steps, got .*; suite toy has no protocols"):
        steps_or_protocol("toy", word)


def test_a_protocol_is_a_name() -> None:
    with pytest.raises(ConfigError, match=r"protocol must be a str \(the name of one of the suite's\), got 5"):
        ript.evaluate(lively_policy(toy_config()), "reach", protocol=5)  # type: ignore[arg-type]


def test_what_the_system_refuses_a_worker_has_its_remedy() -> None:
    error = Crashed.of(OSError(errno.EMFILE, "Too many open files", "f.py"), "worker 0 while starting").rebuild()
    assert "worker 0 while starting: OSError: [Errno 24]" in str(error) and "ulimit -n 4096" in str(error)
