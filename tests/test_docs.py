"""The documentation says what is so: its examples run, its commands exist, its tables are complete."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ript import collect_demos, evaluate, recipe, train_rl, train_sft
from ript.build import simulator_factory
from ript.cli.main import make_parser
from ript.config import overrides
from ript.config.earlier import RENAMED
from ript.config.sections import Config
from ript.core.options import TrainingOptions, replace
from ript.core.registry import kinds, suites
from ript.policies.quest.specimens import random_look, random_policy
from ript.rollout.stream import ErrorLimit
from ript.run.rl_progress import PATIENCE, TRIED
from tests.packages import needs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])


def example_files(page: str) -> dict[str, str]:
    """Python blocks of a page whose first line is `# NAME.py`: name -> text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    named = {match.group(1): block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    assert len(named) == len(blocks), f"{page}: a Python block without a file name would not be run"
    return named


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def run_example(folder: Path, name: str, *pages: str) -> str:
    """Write the files of the pages into `folder` and run one, with warnings as errors; returns what it printed."""
    for page in pages:
        for file, text in example_files(page).items():
            (folder / file).write_text(text)
    run = python(folder, "-W", "error", name)
    assert run.returncode == 0, run.stderr
    return run.stdout


def rate(printed: str, when: str) -> float:
    ((successes, trials),) = re.findall(rf"^{when} (\d+)/(\d+)$", printed, re.MULTILINE)
    return int(successes) / int(trials)


def commands_of(page: str) -> list[list[str]]:
    """The `$ ript ...` lines of a page's indented blocks, as words; a backslash joins lines."""
    text = (DOCS / page).read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    \$ ript (.*)$", text, re.MULTILINE)]


ONE_BY_ONE = """
import json, sys
from ript.cli.main import main

for words in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        print("\\f", end="", file=stream, flush=True)
    if code := main(words):
        sys.exit(f"{' '.join(words)}: exit code {code}")
"""
"""Does commands in turn, as loading packages takes longer than any of them; form feeds part what they print."""


def run_commands(folder: Path, page: str, small: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Run a page's commands in order, beside its files; command -> what the last one of it printed.

    Args:
        small: command -> further words, which make it fast enough for a test.
    """
    for file, text in example_files(page).items():
        (folder / file).write_text(text)
    names = [" ".join(words[: 2 if words[0] == "demos" else 1]) for words in commands_of(page)]
    commands = [[*words, *small.get(name, ())] for name, words in zip(names, commands_of(page), strict=True)]
    run = python(folder, "-c", ONE_BY_ONE, json.dumps(commands))
    assert run.returncode == 0, run.stderr
    printed = [stream.split("\f")[1:] for stream in (run.stdout, run.stderr)]
    return {name: out + err for name, out, err in zip(names, *printed, strict=True)}


@pytest.mark.timeout(300)
def test_the_example_of_a_policy_imitates_and_practises_from_the_parts(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "try_policy.py", "adding_a_policy.md")
    assert rate(printed, "after") > rate(printed, "before") + 0.1


@pytest.mark.timeout(300)
def test_the_example_of_a_policy_goes_through_the_whole_command_line(tmp_path: Path) -> None:
    practice = ["--iterations=1", "--sampling.groups=4", "--sampling.max_attempts=8", "--eval.trials=4"]
    small = {
        "check": ["--states=2", "--steps=4"],
        "sft": ["--sft.policy_steps=10", "--policy.std=0.7"],
        "rl": [*practice, "--eval.every_trials=4", "--eval.videos=0", "--rollout.slots=8"],
        "eval": ["--trials=5", "--workers=0"],
    }
    printed = run_commands(tmp_path, "adding_a_policy.md", small)
    assert list(printed) == ["check", "demos collect", "sft", "rl", "eval"]
    assert "\nsound: 11 of 11 hold\n" in printed["check"]
    assert re.search(r"^reach-corner .*/5 ", printed["eval"], re.MULTILINE), printed["eval"]
    saved = json.loads((tmp_path / "runs" / "rl" / "policy" / "config.json").read_text())["config"]
    assert saved == {"kind": "my_policy:MyPolicy", "std": 0.7}
    recorded = json.loads((tmp_path / "runs" / "rl" / "config.json").read_text())["config"]
    assert recorded["policy"] == saved and recorded["recipe_config"]["policy"] == saved


@pytest.mark.timeout(300)
def test_an_environment_of_ones_own_goes_from_the_check_to_a_report(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    shutil.copy(DOCS / "examples" / "fetch_experts.py", tmp_path)
    few = ["--workers=0", "--sampling.groups=1", "--sampling.max_attempts=2", "--sampling.group_size=2"]
    small = {
        "check": ["--states=2", "--steps=4"],
        "demos collect": ["--per-task=2"],
        "sft": ["--sft.policy_steps=5"],
        "rl": [*few, "--iterations=1", "--eval.trials=1", "--eval.every=0", "--eval.videos=0"],
        "eval": ["--trials=2", "--workers=0"],
    }
    printed = run_commands(tmp_path, "your_environment.md", small)
    assert list(printed) == ["check", "demos collect", "sft", "rl", "eval"]
    assert "sound" in printed["check"] and re.search(r"^FetchReach-v4 .*/2 ", printed["eval"], re.MULTILINE)
    assert (tmp_path / "runs" / "rl" / "report.html").exists()


@pytest.mark.timeout(300)
def test_the_example_of_a_simulator_keeps_the_contract_and_is_practised_in(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "try_slider.py", "adding_a_policy.md", "adding_a_simulator.md")
    assert rate(printed, "after") > rate(printed, "before") + 0.05
    assert "refused: slider/stop-at-mark, initial state" in printed
    assert "1 iteration done" in printed


def test_the_simulator_of_the_page_is_found_through_an_entry_point(tmp_path: Path) -> None:
    """As the page says: a package with an entry point, and the command knows the suite."""
    text = (DOCS / "adding_a_simulator.md").read_text()
    (point,) = re.findall(
        r'^    \[project\.entry-points\."(ript\.suites)"\]\n    (slider = )"(.*)"$', text, re.MULTILINE
    )
    (tmp_path / "slider.py").write_text(example_files("adding_a_simulator.md")["slider.py"])
    info = tmp_path / "slider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[{}]\n{}{}\n".format(*point))
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for words, says in (("tasks slider", "slider/stop-at-mark"), ("check slider/stop-at-mark --states 3", "\nsound: ")):
        done = subprocess.run(
            [sys.executable, "-m", "ript", *words.split()],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and says in done.stdout, done.stderr


# ---------------------------------------------------------------------------------------------- what a run writes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny runs on the toy simulator: `sft` and, from its policy, `rl`."""
    folder, smoke, threads = tmp_path_factory.mktemp("runs"), recipe("smoke"), torch.get_num_threads()
    config = replace(
        smoke,
        iterations=1,
        policy=replace(smoke.policy, privileged=True),
        sft=replace(smoke.sft, autoencoder_steps=2, policy_steps=2, finetune_steps=2),
        sampling=replace(smoke.sampling, groups=2, max_attempts=16),
        eval=replace(smoke.eval, trials=2, every=1, every_trials=2),
    )
    collect_demos(simulator_factory(config.sim), ["toy/reach"], 1, folder / "one.hdf5", every=1)
    train_sft(config, [folder / "one.hdf5"], folder / "sft")
    train_rl(config, folder / "sft" / "policy", folder / "rl")
    torch.set_num_threads(threads)
    return folder


def logged(path: Path) -> set[str]:
    return {key for line in path.read_text().splitlines() for key in json.loads(line)}


def table_keys(page: str, *sections: str) -> set[str]:
    """Names in the first column of the tables of these sections."""
    parts = re.split(r"^## (.*)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    text = "".join(body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title in sections)
    return {key for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for key in re.findall(r"`([^`]+)`", row)}


def test_every_number_that_post_training_logs_is_explained_and_no_other(runs: Path) -> None:
    documented = table_keys("metrics.md", "Rollouts", "Update", "Time and cost")
    central = {"time/policy_idle", "time/workers_idle"}  # logged where one policy acts for all workers
    assert central <= documented
    assert logged(runs / "rl" / "metrics.jsonl") - {"iteration"} == documented - central


def test_every_number_that_supervised_training_logs_is_explained_and_no_other(runs: Path) -> None:
    assert logged(runs / "sft" / "metrics.jsonl") - {"iteration"} == table_keys("metrics.md", "Supervised training")


def test_every_key_of_an_evaluation_line_is_explained_and_no_other(runs: Path) -> None:
    assert logged(runs / "rl" / "evals.jsonl") == table_keys("metrics.md", "Evaluations")


def test_what_lies_in_a_run_folder_is_listed(runs: Path) -> None:
    listing = (DOCS / "schemas.md").read_text().partition("## Run folder")[2]
    for path in (runs / "rl").iterdir():
        if not path.name.startswith("."):
            assert re.search(rf"^    {path.name}\b", listing, re.MULTILINE), f"{path.name} is not in the listing"


def test_the_documented_eval_schema_has_the_keys_of_a_real_evaluation(runs: Path) -> None:
    text = (DOCS / "schemas.md").read_text().partition("## `ript eval --json`")[2].partition("##")[0]
    document = re.sub(r"  +or .*$", "", text, flags=re.MULTILINE)
    real = evaluate(runs / "rl" / "policy", ["reach"], trials=2, horizon=4, rollout=replace(recipe("smoke").rollout))

    def shape(value: object) -> object:
        if isinstance(value, dict) and "successes" not in value:
            return {name: shape(inner) for name, inner in value.items()}
        return sorted(value) if isinstance(value, dict) else type(value).__name__

    written = json.loads(document.replace("faucet-open-v3", "reach"))
    assert shape(written) == shape(real.to_json())


def test_what_rollouts_keep_of_a_decision_is_as_large_as_the_pages_say() -> None:
    """ARCHITECTURE.md, of the paper's size and of the small one: frames are kept where the encoders are trained."""
    text, kept = (ROOT / "ARCHITECTURE.md").read_text(), {}
    for size in ("paper", "small"):
        policy = random_policy(size)
        for trained in ("prior", "prior+adapter", "prior+encoders"):
            chunk = policy.configured(rl_trains=trained).act(random_look(policy, 1), [np.random.default_rng(0)])
            assert any("image" in name for name in chunk.inputs) == (trained == "prior+encoders")
            arrays = [chunk.sample, chunk.log_prob, *chunk.inputs.values()]
            kept[size, trained] = sum(array.nbytes for array in arrays) / 1000
    assert f"`prior+encoders`, {kept['paper', 'prior+encoders']:.0f} kB a decision at paper size" in text
    assert f"{kept['small', 'prior+encoders']:.0f} kB at the small one" in text
    assert f"{kept['paper', 'prior']:.1f} kB (paper size; {kept['paper', 'prior+adapter']:.1f} kB with the ad" in text


# ---------------------------------------------------------------------------------------------- what pages name


def code_of(page: Path) -> list[str]:
    """Inline code, and the lines of indented or fenced blocks."""
    text = page.read_text()
    fenced = "".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(.*)$", text, re.MULTILINE) + fenced.splitlines()


@cache
def every_field() -> frozenset[str]:
    """Dotted names of all settings, of every suite and every kind of policy that comes with the package."""
    others = [("sim", suites.get(name).options) for name in suites.names()]
    for name in kinds.names():
        others += [("policy", kinds.get(name).options), ("sft", kinds.get(name).training or TrainingOptions)]
    named = (f"{section}.{field}" for section, of in others for field in of.model_fields)
    return frozenset([*overrides.fields(Config()), *named])


whole_parser = cache(make_parser)


def command_options(words: list[str]) -> tuple[str, set[str]]:
    """(the command that the words name, the options it takes)."""
    parser, named = whole_parser(), ["ript"]
    while True:
        commands = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if commands is None or not words or words[0].startswith("-") or not re.fullmatch(r"[a-z]+", words[0]):
            break
        assert words[0] in commands.choices, f"`{' '.join([*named, words[0]])}` is not a command"
        parser = commands.choices[words[0]]
        named.append(words.pop(0))
    options = {option for action in parser._actions for option in action.option_strings}
    if parser.get_default("overrides"):
        options |= {f"--{name}" for name in [*every_field(), *overrides.SHORT]}
    return " ".join(named), options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    for line in code_of(page):
        match = re.match(r"(?:\$ )?ript ([a-z].*)", line)
        if match is None:
            continue
        words = match.group(1).partition("  ")[0].split()
        command, options = command_options(words)
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{page.name}: `{command}` has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_that_a_page_names_exist(page: Path) -> None:
    known = every_field() | (set(RENAMED) if page.name == "CHANGELOG.md" else set())
    sections = {name.partition(".")[0] for name in known if "." in name}
    for code in re.findall(r"`(?:--)?([a-z]+\.[a-z_]+)(?:=[^`]*)?`", page.read_text()):
        if code.partition(".")[0] in sections and not code.endswith((".py", ".json", ".md")):
            assert code in known, f"{page.name} names the field {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


def test_the_architecture_page_names_every_module_and_only_files_that_exist() -> None:
    """In the row of its folder; `__init__.py` and `__main__.py` need no words."""
    layout = (ROOT / "ARCHITECTURE.md").read_text().partition("## Layout")[2].partition("##")[0]
    package = ROOT / "src" / "ript"
    named = set()
    for row in re.findall(r"^\| (`.*)$", layout, re.MULTILINE):
        first = row.partition(" |")[0]
        folder = package / first.strip("`") if first.endswith("/`") else package
        for pattern in re.findall(r"`([\w*]+\.py)`", row):
            files = list(folder.glob(pattern))
            assert files, f"{folder.name}/{pattern} does not exist"
            named |= set(files)
    assert not {str(path.relative_to(package)) for path in package.rglob("[!_]*.py")} - {
        str(path.relative_to(package)) for path in named
    }


def test_what_ends_a_run_is_as_the_pages_say() -> None:
    """How many iterations and groups without a signal, and of how many rollouts the share of errors is taken."""
    errors = inspect.signature(ErrorLimit).parameters
    window, at_least = errors["window"].default, errors["at_least"].default
    words = {3: "three"}
    for page in ("metrics.md", "troubleshooting.md"):
        text = " ".join((DOCS / page).read_text("utf-8").split())
        assert f"{words[PATIENCE]} iterations in a row, with at least {TRIED} groups" in text.replace("such ", "")
        assert f"of the last {window} rollouts (or of all, from {at_least} on)" in text
        assert "rrors of one initial state alone do not stop" in text  # tests/rollout holds this


def shown_in(section: str) -> str:
    """The first indented block of a section of the page on clusters."""
    text = (DOCS / "clusters.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (block, *_) = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return textwrap.dedent(block)


def test_the_script_for_slurm_is_one_that_bash_reads_and_has_each_variable_before_it_is_used() -> None:
    script = shown_in("Slurm")
    read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=20)
    assert (read.returncode, read.stderr) == (0, "")
    known = {"SLURM_JOB_NODELIST", "SLURM_CPUS_PER_TASK", "SLURM_JOB_NUM_NODES"}
    for line in script.splitlines():
        named = re.match(r"(?:export )?(\w+)=", line)
        assert set(re.findall(r"\$(\w+)|(?<=\(\()(\w+)", line)) <= {(name, "") for name in known} | {
            ("", name) for name in known
        }, line
        known |= {named.group(1)} if named else set()
    assert "SRUN_CPUS_PER_TASK" in known, "a step of Slurm has one core without it"


@needs("yaml")
def test_the_cluster_for_kubernetes_is_yaml_whose_pods_have_shared_memory() -> None:
    import yaml

    cluster = yaml.safe_load(shown_in("Kubernetes"))
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and cluster["spec"]["rayVersion"] == pinned.group(1)
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"] if volume["emptyDir"] == {"medium": "Memory"}}
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"}
        assert container["resources"]["limits"].keys() == {"cpu", "memory"} and mounted and mounted <= volumes
