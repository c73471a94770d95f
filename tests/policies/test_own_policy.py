"""A policy of a user's own: one class in one file is a kind of policy, by its name or an entry point."""

import json
import re
from pathlib import Path

import pytest
import torch

from ript import recipe, train_rl, train_sft
from ript.build import own_code, simulator_factory
from ript.config.sections import Config, policy_options, sim_options, training_options
from ript.core import user_code
from ript.core.errors import ConfigError, PolicyError, RunError, UnknownNameError
from ript.core.hooks import made_with, settings_of
from ript.core.registry import Registry, kinds, suites
from ript.core.types import SimulatorSpec
from ript.demos.collect import collect_demos
from ript.demos.scripted import load_expert
from ript.policies import hub
from ript.policies.loading import load_policy
from ript.run.reading import read_rows
from ript.run.settings import settled
from ript.sft import resume_sft

SPEC = SimulatorSpec(suite="toy", cameras={"top": (16, 16)}, proprio={"dot": 2}, action_dim=2, render={})
PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_policy.md").read_text()
(CLASS,) = re.findall(r"^```python\n(# my_policy\.py\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""The page's example."""


@pytest.fixture
def here(imported_from_here: Path) -> Path:
    """The current folder, with the page's file in it."""
    (imported_from_here / "my_policy.py").write_text(CLASS)
    return imported_from_here


def test_a_class_that_says_nothing_of_itself_is_summed_up_by_its_name(here: Path) -> None:
    code = CLASS.replace("my_policy:MyPolicy", "silent:MyPolicy")
    (code_class,) = re.findall(r'class MyPolicy\(.*\n    """.*?"""\n', code, re.DOTALL)
    (here / "silent.py").write_text(code.replace(code_class, code_class.partition("\n")[0] + "\n"))
    assert kinds.get("silent:MyPolicy").summary == "MyPolicy"


def changed(here: Path, name: str, *changes: tuple[str, str]) -> str:
    """A file like the page's, but for some words; the name of its class."""
    text = CLASS.replace("my_policy:MyPolicy", f"{name}:MyPolicy")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (here / f"{name}.py").write_text(text)
    return f"{name}:MyPolicy"


def test_a_class_is_a_kind_whose_policies_are_made_saved_and_loaded(here: Path) -> None:
    kind = kinds.get("my_policy:MyPolicy")
    assert "my_policy:MyPolicy" in kinds and "my_policy:MyPolicy" not in kinds.names()
    policy, again, other = (kind.make(kind.options(kind=kind.kind, std=0.5), SPEC, seed, 0) for seed in (3, 3, 4))
    same = [all(torch.equal(x, p.weights()[name]) for name, x in policy.weights().items()) for p in (again, other)]
    assert same == [True, False]
    policy.save_pretrained(here / "saved")
    loaded = load_policy(here / "saved")
    assert type(loaded) is type(policy) and loaded.options.std == 0.5
    assert all(torch.equal(x, loaded.weights()[name]) for name, x in policy.weights().items())


def test_a_policy_is_ready_to_act_whatever_mode_its_class_leaves_it_in(here: Path) -> None:
    kind = kinds.get(changed(here, "trains", ("self.eval()  # until it is trained", "self.train()")))
    policy = kind.make(kind.options(kind=kind.kind), SPEC, 0, 0)
    policy.save_pretrained(here / "saved")
    assert not policy.training and not load_policy(here / "saved").training


def test_without_options_and_a_loss_it_has_neither_settings_nor_supervised_training(here: Path) -> None:
    name = changed(here, "plain", ("KIND, Options = KIND, Options", "KIND = KIND"), ("def loss", "def not_a_loss"))
    kind = kinds.get(name)
    assert set(kind.options.model_fields) == {"kind"} and kind.training is None and kind.stages is None


def test_what_practice_cannot_change_is_refused_and_what_it_can_is_not(here: Path) -> None:
    given = recipe("practice").replaced(tasks=("toy/reach",), sim=sim_options("toy"))
    tuning = ("def loss", "def tuned(self, options, decisions):\n        return self, ''\n\n    def loss")
    for name, changes in (("fixed", ()), ("tuning", (tuning,))):
        kind = kinds.get(changed(here, name, *changes))
        policy = kind.make(kind.options(), SPEC, 0, 0)
        asked = given.replaced(policy=kind.options(std=0.5), sft=kind.training())
        assert (settings_of(policy)["std"], made_with(policy)) == (0.8, {} if changes else {"std": 0.8})
        if changes:
            assert settled(asked, policy, {"policy.std"}).policy.std == 0.5
        else:
            assert settled(asked, policy, ()).policy.std == 0.8
            with pytest.raises(ConfigError, match=r"policy.std = 0.5 \(the policy has std = 0.8\): cannot be changed"):
                settled(asked, policy, {"policy.std"})


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("scoreless", [("def log_prob", "def score")], ConfigError, "MyPolicy has no log_prob; see docs/adding_a_po"),
        ("nameless", [("KIND, Options = KIND, Options", "")], ConfigError, "write KIND = 'nameless:MyPolicy'"),
        ("odd", [("Options = KIND, Options", "Options = KIND, 3")], ConfigError, "MyPolicy.Options is 3; expected a"),
        ("broken", [("import torch", "import torch, no_such")], ConfigError, "there is no module no_such"),
        ("other", [("class MyPolicy", "class MyPolice")], UnknownNameError, "did you mean MyPolice"),
        ("what", [("class MyPolicy(nn.Module)", "MyPolicy = 3\nclass Other")], ConfigError, "expected a PolicyKind"),
        (
            "maker",
            [("class MyPolicy(nn.Module)", "def MyPolicy(): ...\nclass Other")],
            ConfigError,
            "expected a PolicyKind of that name, or a class, got the function MyPolicy",
        ),
        (
            "lossless",
            [("def loss", "loss = None\n\n    def other")],
            ConfigError,
            "MyPolicy.loss is None; expected a met",
        ),
    ],
)
def test_a_class_that_cannot_be_a_policy_is_refused_with_what_to_do(
    here: Path, name: str, changes: list[tuple[str, str]], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        kinds.get(changed(here, name, *changes))


def test_a_policy_that_learns_and_does_not_say_its_chunk_is_told_what_is_missing(here: Path) -> None:
    kind = kinds.get(changed(here, "chunkless", ("    chunk = 4  # H", "    size = 4"), ("self.chunk", "self.size")))
    with pytest.raises(ConfigError, match=r"MyPolicy\.chunk is None: a policy with a loss says there how many actions"):
        kind.window(kind.make(kind.options(), SPEC, 0, 0))


def test_a_loss_that_an_instance_has_and_cannot_be_called_is_named(here: Path) -> None:
    kind = kinds.get(
        changed(
            here, "emptied", ("self.options, self.simulator", "self.loss = None\n        self.options, self.simulator")
        )
    )
    with pytest.raises(PolicyError, match=r"policy emptied:MyPolicy: loss is None; expected a method"):
        kind.stages(kind.make(kind.options(), SPEC, 0, 0), kind.training(), None, (), True)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            "../p/my_policy",
            r"\.\./p/my_policy is no .*: start `ript` in the folder \.\./p, and name it my_policy",
        ),
        ("/a/b/my_policy.py", "start `ript` in the folder /a/b, and name it my_policy"),
        ("my_policy.py", "my_policy.py is no module's name, but that of a file: name it my_policy"),
        (".my_policy", "expected a name such as my_file"),
        ("my-policy", "expected a name such as my_file"),
    ],
)
def test_a_path_in_the_place_of_a_module_is_refused_with_the_name_to_give(here: Path, module: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kinds.get(f"{module}:MyPolicy")
    with pytest.raises(ConfigError, match=said):
        load_expert(f"{module}:expert")
    pytest.importorskip("gymnasium")
    with pytest.raises(ConfigError, match=said):
        suites.get("gym").task(f"gym/{module}:Cart-v0")


def test_a_package_may_name_its_class_as_an_entry_point(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "packaged.py").write_text(CLASS.replace("my_policy:MyPolicy", "mine"))
    info = here / "packaged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packaged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ript.policies]\nmine = packaged:MyPolicy\n")
    monkeypatch.syspath_prepend(here)
    assert "mine" in kinds.names()
    policy = kinds.get("mine").make(kinds.get("mine").options(), SPEC, 0, 0)
    policy.save_pretrained(here / "saved")
    assert type(load_policy(here / "saved")).__name__ == "MyPolicy"


def test_what_a_folder_from_the_hub_names_is_not_imported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = kinds.get("my_policy:MyPolicy")
    kind.make(kind.options(), SPEC, 0, 0).save_pretrained(here / "saved")
    monkeypatch.setattr(hub, "fetch", lambda name: here / "saved")
    monkeypatch.setattr(Registry, "get", lambda *_: pytest.fail("imported"))
    with pytest.raises(PolicyError, match=r"is of kind 'my_policy:MyPolicy', a file that is not part of it"):
        load_policy("hf://stranger/policy")


# ------------------------------------------------------------------------------------------- what its methods do


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demos") / "five.hdf5"
    collect_demos(simulator_factory(sim_options("toy")), ["toy/reach-corner"], 5, file, every=1)
    return file


def trained(here: Path, name: str, demos: Path) -> Config:
    """`ript sft` and then an iteration of `ript rl` with a kind of policy; the latter's configuration."""
    base = recipe("practice").replaced(tasks=("reach-corner",), sim=sim_options("toy"), policy=policy_options(name))
    config = base.replaced(
        iterations=1,
        sft=training_options(name).replaced(policy_steps=2, threads=2),
        sampling=base.sampling.replaced(group_size=8, groups=1, max_attempts=8),
        eval=base.eval.replaced(trials=2, every=0, videos=0),
    )
    train_sft(config, demos, here / "sft")
    train_rl(config, here / "sft" / "policy", here / "rl")
    return config


LOSS, SCORE = (
    "return squared[torch.from_numpy(batch.mask)].mean(), {}",
    "return density.log_prob(sample).sum(-1), density",
)
SAVE, TRAINED = "modules.save(self, folder)", '[{"params": [*self.head.parameters(), self.log_std]}]'


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "a",
            (LOSS, "return 3.0, {}"),
            r"loss returned a tuple of \(3\.0, an empty dict\); expected \(the mean loss as",
        ),
        ("b", (LOSS, LOSS.replace(", {}", "")), r"loss returned a tensor \[\]; expected"),
        (
            "c",
            (LOSS, LOSS.replace(".mean(), {}", ", {}")),
            r"loss returned a tuple of \(a tensor \[\d+\], an empty dict",
        ),
        ("d", (LOSS, "with torch.no_grad():\n            " + LOSS), "loss returned a tuple .* with a gradient"),
        ("e", (LOSS, "1 / 0"), r"loss raised ZeroDivisionError: division by zero \(.*e\.py, line \d+\)"),
        ("f", (SAVE, "1 / 0"), r"save_pretrained raised ZeroDivisionError: division by zero \(.*f\.py, line"),
        ("g", (SAVE, "pass"), "save_pretrained wrote nothing into"),
        ("h", (SAVE, "torch.save(1, folder / 'x')"), "save_pretrained wrote no config.json, without which"),
        ("i", ("dict(card)\n", "None\n"), "card is None; expected a dict"),
        ("j", ("self.eyes = ", "1 / 0\n        self.eyes = "), r"__init__ raised ZeroDivisionError.*j\.py, line"),
        (
            "k",
            ("def see(", "def set_statistics(self, x):\n        1 / 0\n\n    def see("),
            "set_statistics raised Zero",
        ),
        (
            "l",
            ("require_fit(self.simulator, spec)", "assert False"),
            r"check_simulator raised AssertionError \(.*l\.py",
        ),
        (
            "m",
            (TRAINED, "[]"),
            "rl_parameters returned an empty list; expected a list of",
        ),
        (
            "x1",
            ("def see(", "def tuned(self, o, d):\n        return self\n\n    def see("),
            "tuned returned a MyPolicy; exp",
        ),
        (
            "y1",
            ("def see(", "def tuned(self, o, d):\n        1 / 0\n\n    def see("),
            r"tuned raised Zero.*y1\.py, line",
        ),
        ("z1", ("def see(", "def read(self, words):\n        1 / 0\n\n    def see("), "read raised ZeroDivisionError"),
        ("a1", ("def see(", "def made_with(self):\n        1 / 0\n\n    def see("), "made_with raised ZeroDivision"),
        (
            "n",
            (TRAINED, "1 / 0"),
            "rl_parameters raised ZeroDivisionError",
        ),
        (
            "o",
            (TRAINED, "list(self.parameters())"),
            "rl_parameters returned a list",
        ),
        (
            "p",
            ("{name: tensor.detach() for name, tensor in self.state_dict().items()}", "{}"),
            "weights returned an em",
        ),
        (
            "q",
            ("{name: tensor.detach() for name, tensor in self.state_dict().items()}", "None"),
            "weights returned None",
        ),
        ("r", ("self.load_state_dict(dict(weights))", "1 / 0"), "load_weights raised ZeroDivisionError"),
        (
            "s",
            (SCORE, SCORE.replace(", density", "\n        density")),
            r"log_prob returned a tensor \[\d+, 4\]; expected",
        ),
        (
            "t",
            ("sample).sum(-1), density.entropy()", "sample).sum(1), density.entropy()"),
            r"log_prob returned a tuple .*2\]",
        ),
        (
            "u",
            ("density.entropy().sum(-1)", "density.entropy()"),
            r"log_prob returned .*\[\d+, 4, 2\]\); expected .* entropies \[R, K\]",
        ),
        ("v", ("density.entropy().sum(-1)", "1 / 0"), r"log_prob raised ZeroDivisionError.*v\.py, line"),
    ],
)
def test_a_method_that_raises_or_returns_something_else_is_named(
    here: Path, five: Path, name: str, change: tuple[str, str], said: str
) -> None:
    with pytest.raises(PolicyError, match=rf"policy {name}:MyPolicy: {said}"):
        trained(here, changed(here, name, change), five)


def test_a_loss_may_log_numbers_and_parameters_may_come_one_by_one(here: Path, five: Path) -> None:
    logged = (LOSS, LOSS.replace("{}", "{'mine': 2.0, 'other': squared.detach().sum()}"))
    trained(here, changed(here, "w", logged, ("[*self.head.parameters(), self.log_std]", "self.parameters()")), five)
    row = read_rows(here / "sft" / "metrics.jsonl")[-1]
    assert row["policy/mine"] == 2.0 and row["policy/other"] > 0


def test_a_run_does_not_go_on_with_other_code_than_it_began_with(here: Path, five: Path) -> None:
    (here / "layers.py").write_text("from torch import nn\n\n\ndef bend():\n    return nn.Tanh()\n")
    name = changed(here, "x", ("nn.Tanh()", "layers.bend()"), ("import torch\n", "import layers\nimport torch\n"))
    config = trained(here, name, five)
    for run in ("sft", "rl"):
        assert set(json.loads((here / run / "config.json").read_text())["config"]["code"]) == {"x", "layers"}
    for file in ("layers", "x"):
        before = (here / f"{file}.py").read_text()
        (here / f"{file}.py").write_text(f"{before}# another\n")
        with pytest.raises(RunError, match=f"the code that it began with, and {file} is another file now: put back"):
            train_rl(config.replaced(iterations=2), None, here / "rl", resume=True)
        with pytest.raises(RunError, match=f"{file} is another file now"):
            resume_sft(here / "sft")
        (here / f"{file}.py").write_text(before)
    assert train_rl(config.replaced(iterations=2), None, here / "rl", resume=True).iterations == 2


def test_code_of_this_package_of_python_and_of_packages_is_not_compared() -> None:
    policy = kinds.get("gaussian").make(policy_options("gaussian"), SPEC, 0, 0)
    assert own_code(sim_options("toy"), ["toy/reach"], policy) == {}
    assert user_code.fingerprints(["torch.nn", "pytest", "json", "__main__", "builtins", "no_such_module"]) == {}
