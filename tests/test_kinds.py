"""Kinds of policy: nothing outside a kind's folder names it, and no kind has to know the words of another."""

import ast
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_words import said
from plain_kind import PLAIN, PlainPolicy
from toy_runs import Stopped, lively_policy, stop_in, toy_config, toy_demos, weights, without_times

import ript
from ript.build import language_of, make_policy
from ript.cli import main as cli
from ript.config.sections import Config, policy_options, training_options
from ript.core.errors import ConfigError, PolicyError, UnknownNameError
from ript.core.options import replace
from ript.core.registry import kinds
from ript.evaluation import evaluate
from ript.policies.loading import load_policy
from ript.rl import train_rl
from ript.run.reading import read_config
from ript.run.settings import asked_for, leaves, settled
from ript.sft import resume_sft, train_sft
from ript.sims.registry import make_simulator
from ript.studies.bases import base_fingerprint, sft_fingerprint

PACKAGE = Path(ript.__file__).parent
FOLDERS = sorted(path.parent.name for path in (PACKAGE / "policies").glob("*/kind.py"))
MAY_SAY = ("config/recipes.py", "studies/catalogue.py", "bench/rollout.py")
"""Files that may name kinds as they like: recipes, the paper's studies and the limit of rollouts are about kinds that
there are."""
SAY_KINDS = {
    "config/defaults.py": {"quest"},
    "sims/libero/suite.py": {"quest", "openvla-"},
    "__init__.py": {
        *("QuestPolicy", "export_quest", "import_quest"),
        *("policies.quest.policy", "policies.quest.checkpoint"),
        *("ript.policies.quest.policy", "ript.policies.quest.checkpoint"),
    },
}
"""What else code outside a kind's folder says of kinds; ARCHITECTURE.md says why."""


@pytest.fixture
def plain() -> Iterator[None]:
    kinds.register(PLAIN)
    yield
    kinds.unregister("plain")


def plain_config(**changes: object) -> Config:
    sections = {name: getattr(toy_config(), name) for name in ("sim", "rollout", "sampling", "learn", "eval", "demos")}
    ours = {"recipe": "own", "tasks": ("reach-centre",), "iterations": 2, "policy": {"kind": "plain"}}
    return Config(**ours | sections | changes)


# ---------------------------------------------------------------------- who names whom


def naming(source: str, kind: str) -> list[str]:
    """What of a file's code says a kind, or the first part of its name: "openvla" of openvla_oft. Gaussian noise is
    not of a kind."""
    part = re.compile(rf"(?i)(?<![a-z]){kind.partition('_')[0]}(?![a-z]*ion|ed| noise)")
    return [text for text in said(source) if part.search(text) and text not in variables(source)]


def variables(source: str) -> set[str]:
    """Names that a file gives to values of its own, and to nothing that it imports or writes: an ordinary word, such as
    "mine", may be a variable here and a kind there."""
    nodes = [*ast.walk(ast.parse(source))]
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return own - texts - {node.name for node in nodes if isinstance(node, ast.alias)}


def test_no_code_outside_a_kinds_folder_names_it() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        for kind in FOLDERS:
            if not where.startswith((f"policies/{kind}/", *MAY_SAY)):
                found.setdefault(where, set()).update(naming(path.read_text("utf-8"), kind))
    assert "quest" in FOLDERS and {where: texts for where, texts in found.items() if texts} == SAY_KINDS


def test_the_name_of_the_kind_that_comes_next_is_free() -> None:
    """A folder `policies/flow` could be added, and no word of other code would be taken for that kind."""
    sources = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if "flow" not in path.parent.name}
    assert {path.name: texts for path, source in sources.items() if (texts := naming(source, "flow"))} == {}


def test_no_code_outside_a_kind_looks_for_one_of_its_settings() -> None:
    """`getattr(config.policy, "language", "none")`: what a kind's settings mean, its record says."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                of, name = node.args[:2]
                if isinstance(of, ast.Attribute) and of.attr in ("policy", "sft") and isinstance(name, ast.Constant):
                    found.append(f"{path.relative_to(PACKAGE)}: {name.value}")
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from ript.policies.quest.policy import Policy",
        "policy: QuestPolicy",
        "def load_quest(): ...",
        "x = kinds.get('quest')",
        "import_module('ript.policies.quest')",
        "raise ConfigError('only policies of quest can do that')",
        "x = f'{config} is of QueST'",
    ],
)
def test_code_that_names_a_kind_would_be_found(source: str) -> None:
    assert naming(source, "quest")


def test_requests_and_what_is_said_in_comments_and_docstrings_are_not_names() -> None:
    source = '"""QueST."""\nrequest, RolloutRequest = "a question", 1  # of QueST\n"""QueST"""'
    assert naming(source, "quest") == []
    assert naming("mine, theirs = pair\nprint(mine)", "mine") == [] and naming("mine = f(kind='mine')", "mine")


# ---------------------------------------------------------------------- a kind of a stranger's


@pytest.mark.usefixtures("plain")
def test_the_language_model_that_policies_need_is_the_one_that_their_kind_says() -> None:
    config = plain_config(pretrain_tasks=("reach",))
    without = base_fingerprint(config)
    kinds.register(dataclasses.replace(PLAIN, language=lambda options: "minilm"))
    assert language_of(config) == "minilm" and base_fingerprint(config) != without
    assert language_of(toy_config()) == toy_config().policy.language


@pytest.mark.usefixtures("plain")
def test_a_kind_that_knows_no_word_of_another_is_trained_practised_resumed_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain_config(sft={"imitation_steps": 30, "threads": 2, "checkpoint_every": 10})
    demos = toy_demos(tmp_path / "demos.hdf5", config, "reach-centre")
    train_sft(config, [demos], tmp_path / "whole")
    logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in logged] == [10, 20, 30]
    assert logged[-1]["imitation/bin_loss"] < logged[0]["imitation/bin_loss"]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 20)
        train_sft(config, [demos], tmp_path / "stopped")
    assert isinstance(resume_sft(tmp_path / "stopped"), PlainPolicy)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")
    assert load_policy(tmp_path / "whole" / "policy").card["supervised training"]["target tasks"] == "reach-centre"

    policy = tmp_path / "whole" / "policy"
    result = train_rl(config, policy, tmp_path / "rl")
    assert result.iterations == 2 and result.before["sampled"].mode == "sampled"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        train_rl(config, policy, tmp_path / "half")
    assert weights(train_rl(Config(), None, tmp_path / "half", resume=True).folder) == weights(result.folder)
    held = read_config(tmp_path / "rl")["config"]["recipe_config"]
    assert held["policy"] == {"kind": "plain", "chunk": 4} and Config.from_record(held).policy.kind == "plain"
    assert evaluate(result.policy, "reach-centre", trials=2, rollout=config.rollout).total.trials == 2
    with pytest.raises(ConfigError, match=r"temperature = 0.5: a plain policy has no temperature; leave it out"):
        evaluate(result.policy, "reach-centre", trials=2, temperature=0.5, rollout=config.rollout)


@pytest.mark.usefixtures("plain")
def test_settings_of_another_kind_cannot_be_given(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown field of policy .*plain.* 'top_k'"):
        Config(policy={"kind": "plain", "top_k": 5})
    with pytest.raises(UnknownNameError, match=r"unknown field of sft.* 'autoencoder_steps'"):
        plain_config(sft={"autoencoder_steps": 5})
    words = ["rl", "--recipe", "smoke", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--policy.kind=plain", "--policy.rl_trains=prior"]) == 2
    assert "policy.rl_trains" in capsys.readouterr().err
    assert cli.main([*words, "--policy.kind=plane"]) == 2
    assert "unknown kind of policy 'plane': did you mean plain?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("plain")
def test_a_policy_has_its_own_kinds_settings_whatever_the_recipe_is_of(tmp_path: Path) -> None:
    smoke = ript.recipe("smoke")
    policy = make_policy(plain_config(), make_simulator("toy/reach", image_size=16).spec)
    found = settled(smoke, policy, set())
    assert (found.policy.kind, found.policy.chunk, type(found.sft).__name__) == ("plain", 4, "PlainTraining")
    for asked, says in (
        (
            {"policy.top_k", "policy.chunk"},
            r"policy.top_k \(the policy is of kind plain, which has no such setting\): ",
        ),
        ({"sft.autoencoder_steps"}, r"sft.autoencoder_steps \(the policy is of kind plain, which has no such setting"),
        ({"policy.kind"}, r"policy.kind = quest \(the policy is of kind plain\): leave it out"),
    ):
        with pytest.raises(ConfigError, match=says):
            settled(smoke, policy, asked, sections=("policy", "sft"))
    other = replace(smoke, policy=replace(smoke.policy, chunk=8))  # a setting that both kinds have is judged as ever
    with pytest.raises(ConfigError, match=r"policy.chunk = 8 \(the policy has chunk = 4\): cannot be changed any more"):
        settled(other, policy, {"policy.chunk"})
    measured = replace(smoke.eval, trials=2, every=0, videos=0)
    train_rl(replace(smoke, iterations=0, eval=measured), policy, tmp_path / "rl")
    held = leaves(read_config(tmp_path / "rl")["config"]["recipe_config"])
    assert {name: value for name, value in held.items() if name.startswith("policy.")} == {
        "policy.kind": "plain",
        "policy.chunk": 4,
    }


def test_settings_are_read_as_those_of_the_policy_that_is_given_whatever_the_recipe_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = plain_config(policy=policy_options("gaussian"), sft=training_options("gaussian"))
    make_policy(config, make_simulator("toy/reach", image_size=16).spec).save_pretrained(tmp_path / "policy")
    words = ["rl", "--recipe", "smoke", "--out", str(tmp_path / "run"), "--policy", str(tmp_path / "policy")]
    for given, says in (
        ("--policy.width=7", "policy.width = 7 (the policy has width = 256): cannot be changed any more"),
        ("--policy.wide=7", "unknown setting of policies of kind gaussian 'policy.wide': did you mean policy.width"),
        ("--policy.terms=chunks", "policy.terms: expected one of"),
        ("--policy.kind=quest", "policy.kind = quest (the policy is of kind gaussian)"),
    ):
        assert cli.main([*words, given]) == 2
        assert says in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "none"), "--policy.width=7"]) == 1
    assert "no policy folder at" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plain")
def test_whoever_wants_another_kind_wants_its_settings_as_they_come() -> None:
    smoke = ript.recipe("smoke")
    other = replace(smoke, policy=PLAIN.options(), sft=PLAIN.training())
    assert asked_for(other) == {"policy.kind"}
    assert asked_for(replace(other, policy=PLAIN.options(chunk=2))) == {"policy.kind", "policy.chunk"}


def test_a_policy_of_no_kind_is_practised_and_records_no_setting_of_another(tmp_path: Path) -> None:
    """A class of a script's own, that nothing loads again."""
    config = plain_config(iterations=0, policy={})
    policy = PlainPolicy(make_simulator("toy/reach", image_size=8).spec, 4)
    train_rl(config, policy, tmp_path / "rl")
    assert "policy" not in read_config(tmp_path / "rl")["config"]["recipe_config"]
    with pytest.raises(ConfigError, match=r"policy.top_k \(the policy is of kind plain, which has no such setting\)"):
        train_rl(config, policy, tmp_path / "other", asked=["policy.top_k"])
    with pytest.raises(PolicyError, match=r"holds a 'plain' policy, but known here are: .*quest; install the package"):
        load_policy(tmp_path / "rl" / "start")


@pytest.mark.usefixtures("plain")
def test_a_kind_without_supervised_stages_says_so(tmp_path: Path) -> None:
    kinds.register(dataclasses.replace(PLAIN, training=None, stages=None))
    config = plain_config()
    demos = toy_demos(tmp_path / "demos.hdf5", config, "reach-centre")
    with pytest.raises(ConfigError, match="plain policies have no supervised stages: `ript sft` cannot train them"):
        train_sft(config, [demos], tmp_path / "run")
    kinds.register(dataclasses.replace(PLAIN, stages=lambda *_: []))
    with pytest.raises(ConfigError, match="plain policies have no stage for this: nothing would be trained"):
        train_sft(plain_config(), [demos], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plain")
def test_a_base_depends_on_the_code_of_a_users_own_that_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "kind_of_mine.py"
    file.write_text("def make(options, spec, seed, privileged_dim): ...")
    before = base_fingerprint(plain_config()), sft_fingerprint(plain_config())
    kinds.register(dataclasses.replace(PLAIN, make=importlib.import_module("kind_of_mine").make))
    mine = base_fingerprint(plain_config()), sft_fingerprint(plain_config())
    file.write_text("def make(options, spec, seed, privileged_dim): return None")
    changed = base_fingerprint(plain_config()), sft_fingerprint(plain_config())
    assert len({*before, *mine, *changed}) == 6


@pytest.mark.usefixtures("plain")
def test_bases_of_two_kinds_and_of_other_settings_are_told_apart() -> None:
    shorter = plain_config(policy={"kind": "plain", "chunk": 2})
    assert len({base_fingerprint(config) for config in (toy_config(), plain_config(), shorter)}) == 3
    longer = plain_config(sft={"imitation_steps": 7})  # its one stage makes bases, and trains them further
    assert base_fingerprint(longer) != base_fingerprint(plain_config())
    assert sft_fingerprint(longer) != sft_fingerprint(plain_config())
    tuned = toy_config(sft={"finetune_steps": 7})
    assert base_fingerprint(tuned) == base_fingerprint(toy_config()) and sft_fingerprint(tuned) != sft_fingerprint(
        toy_config()
    )


def test_old_policy_folders_are_of_their_kind(tmp_path: Path) -> None:
    lively_policy(toy_config()).save_pretrained(tmp_path / "p")
    assert load_policy(tmp_path / "p") == lively_policy(toy_config())
