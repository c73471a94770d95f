from pathlib import Path

import pytest

from ript.build import some_task_keys, task_keys
from ript.config import recipes
from ript.config.overrides import load_recipe
from ript.core.errors import ConfigError, UnknownNameError
from ript.core.options import replace
from ript.policies.quest.config import SIZES, QuestConfig
from ript.rl import train_rl
from ript.sims.metaworld.tasks import CAMERAS


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_complete_knows_its_name_and_names_things_that_exist(name: str) -> None:
    config = recipes.get(name)
    assert config.recipe == name
    assert recipes.ABOUT[name].endswith(".")
    assert config.policy.kind != "quest" or config.policy.size in SIZES
    assert len(task_keys(config.sim, config.tasks + config.pretrain_tasks)) > 0 or name == "practice"
    assert not set(config.tasks) & set(config.pretrain_tasks)
    if config.sim.suite == "metaworld":
        assert set(config.sim.cameras) <= set(CAMERAS)


def test_a_recipe_file_with_settings_of_an_earlier_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"  # as version 0.1.0 printed it, which had cameras for every suite
    file.write_text('recipe = "smoke"\n[sim]\nsuite = "toy"\ncameras = ["top"]\n')
    with pytest.raises(UnknownNameError, match=r"suite toy\) in .*mine\.toml 'cameras': known.*; take it out"):
        load_recipe(str(file))


def test_the_kl_of_a_recipe_is_a_tenth_of_a_nat_for_each_token_of_its_policy() -> None:
    for config in map(recipes.get, recipes.RECIPES):
        if config.policy.kind != "quest":
            continue
        tokens = QuestConfig(**SIZES[config.policy.size]).tokens
        assert (config.learn.adapt_kl, config.learn.target_kl) == pytest.approx((0.1 * tokens, 0.3 * tokens))


def test_the_recipe_for_ones_own_environment_and_policy_names_no_task_and_is_told_which() -> None:
    config = recipes.get("practice")
    assert not config.tasks and not config.pretrain_tasks
    with pytest.raises(ConfigError, match="no task to practise on: give --tasks"):
        some_task_keys(config)


def test_targets_of_the_results_table_are_many_and_none_is_pretrained_on() -> None:
    assert len(set(recipes.TARGET_TASKS)) == len(recipes.TARGET_TASKS) >= 10
    assert not set(recipes.TARGET_TASKS) & set(recipes.PRETRAIN_TASKS)
    assert recipes.get("quickstart").pretrain_tasks == recipes.PRETRAIN_TASKS


def test_a_target_that_the_base_learns_from_is_left_out_of_it() -> None:
    config = recipes.with_tasks(recipes.get("quickstart"), ("push-v3",))
    assert config.tasks == ("push-v3",)
    assert config.pretrain_tasks == tuple(t for t in recipes.PRETRAIN_TASKS if t != "push-v3")
    short = replace(recipes.get("quickstart"), pretrain_tasks=("push", "metaworld/soccer-v3", "reach-wall"))
    assert recipes.with_tasks(short, ("push-v3", "soccer")).pretrain_tasks == ("reach-wall",)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean quickstart"):
        recipes.get("quick-start")


def test_the_smoke_recipe_learns(tmp_path: Path) -> None:
    config = recipes.smoke()
    config = replace(config, eval=replace(config.eval, every=0, trials=40, videos=0))
    result = train_rl(config, None, tmp_path / "run")
    before, after = result.before["greedy"].total, result.after["greedy"].total
    assert before.interval[1] < after.interval[0], (before, after)


def test_another_file_in_the_place_of_a_recipe_is_told_from_an_unknown_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json: a recipe is a name .* or a \.toml file .* --resume"):
        load_recipe(str(tmp_path / "config.json"))
    with pytest.raises(UnknownNameError, match="unknown recipe"):
        load_recipe("practise.json")
