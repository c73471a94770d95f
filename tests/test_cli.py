import contextlib
import importlib
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from disks import as_ordinary_user, open_to_all
from safetensors.torch import load_file, save_file

from ript.cli import arguments, commands
from ript.cli import main as cli
from ript.cli.answer import Answer
from ript.cli.arguments import kept_of_run, need_a_working_machine
from ript.cli.doctor import check_cache
from ript.config import recipes
from ript.core import interpreter
from ript.core.errors import ConfigError, DependencyMissing, SimulatorError
from ript.core.options import replace
from ript.report import page
from ript.run import video
from ript.run.folder import RunFolder
from ript.sims.toy.simulator import ToySimulator
from ript.studies.bases import base_is_made

RIPT = [sys.executable, "-m", "ript"]
QUICK = [
    "--recipe",
    "smoke",
    "--eval.trials=4",
    "--eval.every_trials=4",
    "--eval.videos=1",
    "--sampling.group_size=4",
    "--sampling.groups=4",
    "--sampling.max_attempts=16",
]


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict:
    """What a post-training run of the smoke recipe printed; in this process and never interrupted."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert run("rl", *QUICK, "--out", folder / "rl", "--json") == 0
    return json.loads(shown.getvalue())


@pytest.fixture(scope="module")
def rl(printed: dict) -> Path:
    """The folder of that run."""
    return Path(printed["run"])


@pytest.fixture(scope="module")
def demos(folder: Path) -> Path:
    out = folder / "demos.hdf5"
    assert run("demos", "collect", "--recipe", "smoke", "--tasks", "reach", "--per-task", 3, "--out", out) == 0
    return out


# ------------------------------------------------------------------ help, lists


def commands_and_help() -> list[list[str]]:
    groups = {
        "demos": ("collect", "info", "verify"),
        "bench": ("rollout", "update", "policy"),
        "import": ("quest",),
        "export": ("quest",),
    }
    single = [[c] for c in cli.COMMANDS if c not in groups]
    return [*single, *([c, kind] for c, kinds in groups.items() for kind in kinds)]


@pytest.mark.parametrize("words", commands_and_help(), ids=" ".join)
def test_every_command_has_a_help_text_with_an_example_of_itself(words: list[str], capsys) -> None:
    assert run(*words, "--help") == 0
    shown = capsys.readouterr().out
    assert f"\n  ript {' '.join(words)}" in shown.split("examples:")[1]


def test_the_examples_in_help_texts_parse(capsys) -> None:
    parser = cli.make_parser()
    for words in commands_and_help():
        run(*words, "--help")
        shown = capsys.readouterr().out.split("examples:")[1].replace("\\\n", " ")
        for line in shown.splitlines():
            if line.startswith("  ript "):
                example = line.split("    (")[0].split(" > ")[0].replace("'", "").split()
                args, rest = parser.parse_known_args(example[1:])
                assert args.overrides or not rest, line


def test_help_and_import_load_nothing_heavy() -> None:
    code = "import sys, ript; from ript.cli.main import main; main(['--help'])"
    code += "; print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout
    for heavy in ("torch", "numpy", "mujoco", "metaworld", "h5py", "rich", "matplotlib"):
        assert f"'{heavy}'" not in done.stderr


def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(capsys) -> None:
    assert run() == 2
    assert "quickstart" in capsys.readouterr().out


def test_tasks_are_found_by_part_pattern_and_named_list(capsys) -> None:
    def names(*words: str) -> list[str]:
        assert run("tasks", *words, "--json") == 0
        return [task["name"] for task in json.loads(capsys.readouterr().out)]

    assert names("drawer") == ["drawer-close-v3", "drawer-open-v3"]
    assert names("reach-*t") == ["reach-left"]
    assert len(names("ML45-train")) == 45
    assert len(names("metaworld/")) == 50
    assert run("tasks", "drawer-open") == 0
    assert capsys.readouterr().out == "metaworld/drawer-open-v3  Pull the drawer open by its handle.\n"


def test_a_printed_recipe_is_a_file_that_recipe_reads_back(folder: Path, capsys) -> None:
    assert run("recipes", "smoke") == 0
    file = folder / "mine.toml"
    file.write_text(capsys.readouterr().out.replace("iterations = 4", "iterations = 7"))
    assert run("recipes", file, "--json") == 0
    theirs = json.loads(capsys.readouterr().out)
    assert run("recipes", "smoke", "--json") == 0
    assert theirs == json.loads(capsys.readouterr().out) | {"iterations": 7}


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("evl", 2, "unknown command 'evl': did you mean eval?"),
        ("tasks drawr", 2, "drawer-close-v3 or drawer-open-v3"),
        ("tasks --jsn", 2, "unknown option '--jsn': did you mean --json?"),
        ("tasks drawer door", 2, "'door' belongs to no option"),
        ("--json tasks", 2, "--json belongs behind the command"),
        ("--bogus", 2, "--bogus without a command: expected one of tasks, "),
        ("recipes quikstart", 2, "unknown recipe 'quikstart': did you mean quickstart?"),
        ("recipes nowhere.toml", 1, "nowhere.toml: No such file"),
        ("demos colect", 2, "invalid choice: 'colect'"),
        (
            "demos collect --recipe smoke --tasks reach --per-task 0 --out OUT",
            2,
            "--per-task must be at least 1, got 0",
        ),
        ("demos collect --recipe smoke --tasks reech --per-task 1 --out OUT", 2, "did you mean reach"),
        (
            "demos collect --tasks reach --per-task 1 --sim.cameras neer --out OUT",
            2,
            "unknown camera 'neer': did you mean",
        ),
        ("demos info nowhere.hdf5", 1, "nowhere.hdf5"),
        ("sft --recipe smoke --out OUT", 2, "--demos needed"),
        ("rl --recipe smoke", 2, "--out needed"),
        ("rl --recipe quickstart --out OUT", 2, "starts from a trained policy: give --policy DIR"),
        ("rl --recipe smoke --out OUT --learn.epoch=3", 2, "'learn.epoch': did you mean learn.epochs?"),
        ("rl --recipe smoke --out OUT --learn.epochs=three", 2, "learn.epochs: expected a whole number, got 'three'"),
        ("rl --recipe smoke --out OUT --sampling.group_size 1", 2, "at least 2 rollouts from a state, got K = 1"),
        ("rl --recipe smoke --out OUT --sampling.groups 99", 2, "raise sampling.max_attempts or lower sampling.groups"),
        ("rl --recipe smoke --out OUT --tasks rech", 2, "unknown toy task 'rech': did you mean reach"),
        ("rl --recipe smoke --out OUT --sim.suite toys", 2, "unknown simulator suite 'toys': did you mean toy?"),
        ("rl --recipe smoke --out OUT --iterations many", 2, "iterations: expected a whole number, got 'many'"),
        ("rl --recipe smoke --out OUT --policy nowhere", 1, "no policy folder at nowhere"),
        ("rl --recipe smoke --out OUT --seed -1", 2, "seed: must be in 0..2^63 - 1, got -1"),
        ("rl --recipe smoke --out OUT --seed 99999999999999999999", 2, "seed: must be in 0..2^63 - 1"),
        ("rl --recipe smoke --out OUT --eval.seed=-2", 2, "eval.seed: must be in 0..2^63 - 1, got -2"),
        ("rl --recipe smoke --out OUT --eval.videos=-2", 2, "eval.videos: must be at least 0, got -2"),
        (
            "rl --recipe smoke --out OUT --sim.cameras=foo",
            2,
            "setting of simulators of suite toy 'sim.cameras'",
        ),
        pytest.param(
            "rl --recipe smoke --out OUT --device cuda",
            2,
            "torch sees no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ("rl --resume OUT", 1, "does not exist"),
        ("rl --resume /etc/passwd", 1, "is a file, not a run folder"),
        ("rl --resume OUT --iterations 3", 1, "does not exist"),
        ("rl --resume OUT --policy elsewhere", 2, "leave out --policy"),
        (
            "rl --recipe smoke --out OUT --sft.policy_steps=9",
            2,
            "sft.policy_steps has no effect in `ript rl`: leave it",
        ),
        ("rl --recipe smoke --out OUT --demos.target=2", 2, "(`ript quickstart` and `ript study` use it)"),
        ("rl --recipe smoke --out OUT --pretrain_tasks=push", 2, "pretrain_tasks has no effect in `ript rl`"),
        ("rl --recipe smoke --out OUT --sim.arm=mesh", 2, "unknown setting of simulators of suite toy 'sim.arm'"),
        (
            "rl --recipe smoke --out OUT --policy.privileged=true",
            2,
            "(one without demonstrations has privileged = false)",
        ),
        (
            "rl --recipe quickstart --out OUT --policy.temperature=0.5",
            2,
            "no effect while policy.entropy = 0.8 decides: leave it out, or give --policy.entropy=0",
        ),
        ("sft --recipe smoke --demos D --out OUT --iterations=9", 2, "iterations has no effect in `ript sft`"),
        (
            "sft --recipe smoke --demos D --out OUT --policy.temperature=2",
            2,
            "policy.temperature has no effect in `ript",
        ),
        (
            "sft --recipe smoke --demos D --out OUT --demos.noise=1",
            2,
            "(`ript demos collect` and `ript quickstart` use",
        ),
        ("demos collect --recipe smoke --tasks reach --per-task 1 --out OUT --demos.per_task=3", 2, "has no effect in"),
        ("demos collect --recipe smoke --tasks reach --per-task 1 --out OUT --noise 0 --demos.noise=1", 2, "the same"),
        ("quickstart --target reach --tasks push --out OUT", 2, "--target and --tasks are the same"),
        ("quickstart --policy.temperature=0.5 --out OUT", 2, "no effect while policy.entropy = 0.8 decides"),
        ("bench rollout --learn.epochs=3", 2, "learn.epochs has no effect in `ript bench rollout`"),
        ("study demos --sft.finetune_steps=5 --out OUT", 2, "no effect while sft.finetune_epochs = 40 decides"),
        ("study metaworld_ml45 --sft.finetune_share=1 --out OUT", 2, "there is no target task to fine-tune toward"),
        ("eval --policy nowhere --tasks reach", 1, "no policy folder at nowhere"),
        ("eval --policy nowhere --tasks reach --trials 0", 2, "--trials must be at least 1, got 0"),
        ("eval --policy nowhere --tasks reach --greedy --temperature 1", 2, "not allowed with argument --greedy"),
        ("report OUT --out OUT/r.html", 1, "does not exist"),
        ("rl --recipe smoke --out OUT --policy.sampling=published", 2, "draws from policy.top_k tokens: give it"),
        ("report OUT --out .", 1, "is a folder: name a file in it"),
        ("demos info .", 1, "is a folder: give a demonstration file"),
        ("quickstart --seed -1 --out OUT", 2, "seed: must be in 0..2^63 - 1, got -1"),
        ("bench rollout --recipe smoke", 2, "has no stock environment to measure beside (libero, metaworld have)"),
        ("bench rollout --tasks=", 2, "no task to practise on: give --tasks"),
        ("bench update --tasks ,", 2, "no task to practise on: give --tasks"),
        ("demos collect --recipe smoke --tasks reach --per-task 1 --out .", 1, "is a folder: name a file in it"),
        ("quickstart --target drawr-open --out OUT", 2, "did you mean drawer-open-v3"),
    ],
)
def test_a_mistake_is_one_message_an_exit_code_and_nothing_written(
    words: str, code: int, says: str, tmp_path: Path, capsys
) -> None:
    assert run(*words.replace("OUT", str(tmp_path / "out")).split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("ript: error: ")
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_policy_that_does_not_fit_the_simulator_is_refused_before_anything_is_written(
    rl: Path, tmp_path: Path, capsys
) -> None:
    words = ("rl", *QUICK, "--policy", rl / "policy", "--sim.image_size=24", "--out", tmp_path / "out")
    assert run(*words) == 1
    assert "expected {'top': (16, 16)}, got {'top': (24, 24)}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_leaves_no_run_folder_behind(
    tracker: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run("rl", *QUICK, "--out", tmp_path / "out", f"--tracker={tracker}") == 1
    assert f"pip install 'ript[{tracker}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["rl", "sft"])
def test_a_policy_folder_is_not_taken_for_a_run_folder(command: str, rl: Path, tmp_path: Path, capsys) -> None:
    assert run(command, "--resume", rl / "policy") == 1
    assert run("report", rl / "policy", "--out", tmp_path / "page.html") == 1
    assert capsys.readouterr().err.count("is not a run folder, but holds a 'quest' policy") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("config", "says"), [([], "config is no table"), ({}, "recipe_config and start missing")])
def test_a_damaged_configuration_of_a_run_is_named(config: object, says: str, rl: Path, tmp_path: Path, capsys) -> None:
    document = json.loads((rl / "config.json").read_text()) | {"config": config}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert run("rl", "--resume", tmp_path) == 1
    assert says in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(rl: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(rl / "policy", tmp_path / "policy")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    weights["prior.head.bias"][3] = torch.nan
    save_file(weights, tmp_path / "policy" / "model.safetensors")
    assert run("rl", *QUICK, "--policy", tmp_path / "policy", "--out", tmp_path / "out") == 1
    assert "prior.head.bias: holds NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_update_that_breaks_down_says_in_which_iteration_and_what_is_kept(tmp_path: Path, capsys) -> None:
    words = ("rl", *QUICK, "--workers", 0, "--learn.learning_rate=1e30", "--out", tmp_path / "out")
    assert run(*words) == 1
    err = capsys.readouterr().err
    assert "ript: error: iteration 1: update, epoch " in err
    assert f"the last good checkpoint is kept in {tmp_path / 'out' / 'checkpoints'}" in err
    assert list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_partial_policy_folder_is_refused(rl: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text((rl / "policy" / "config.json").read_text())
    assert run("eval", "--policy", tmp_path, "--tasks", "reach") == 1
    assert "model.safetensors is missing" in capsys.readouterr().err


def test_demonstrations_without_the_target_task_are_refused_before_anything_is_written(
    demos: Path, tmp_path: Path, capsys
) -> None:
    words = ("sft", "--recipe", "smoke", "--demos", demos, "--tasks", "reach-left", "--out", tmp_path / "out")
    assert run(*words) == 1
    assert "no demonstration of target task toy/reach-left" in capsys.readouterr().err
    words = ("sft", "--recipe", "quickstart", "--demos", demos, "--tasks=", "--out", tmp_path / "out")
    assert run(*words) == 1
    err = capsys.readouterr().err
    assert "are of the simulator suite 'toy', the recipe is for 'metaworld': add --sim.suite=toy" in err
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_is_taken_in_use_or_of_another_version_is_refused(rl: Path, tmp_path: Path, capsys) -> None:
    assert run("rl", *QUICK, "--out", rl) == 1
    assert (
        f"{rl} already holds a run: go on with it (ript rl --resume {rl}) or choose another --out"
        in capsys.readouterr().err
    )
    with RunFolder.open(rl):
        assert run("rl", "--resume", rl) == 1
    assert "is in use by process" in capsys.readouterr().err
    config = json.loads((rl / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99}))
    assert run("rl", "--resume", tmp_path) == 1
    assert "run format 99" in capsys.readouterr().err
    assert run("sft", "--resume", rl) == 1
    assert f"go on with `ript rl --resume {rl}`" in capsys.readouterr().err


def test_an_error_of_the_disk_is_one_line_with_the_path(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    assert run("rl", *QUICK, "--out", tmp_path / "file" / "run") == 1
    assert "a part of this path is a file" in capsys.readouterr().err

    def full(args: object) -> None:
        raise OSError(28, "No space left on device", "/mnt/run/x")

    monkeypatch.setattr(commands, "show_tasks", full)
    assert run("tasks") == 1
    assert (
        capsys.readouterr().err
        == "ript: error: /mnt/run/x cannot be used: the disk is full: free some space, or write to another disk\n"
    )


def test_tracebacks_are_shown_with_debug_only(capsys) -> None:
    assert run("recipes", "quikstart") == 2
    assert "Traceback" not in capsys.readouterr().err
    for words in (("--debug", "recipes", "quikstart"), ("recipes", "quikstart", "--debug")):
        assert run(*words) == 2
        assert "Traceback" in capsys.readouterr().err


def test_an_error_that_is_nobodys_mistake_keeps_its_traceback(monkeypatch) -> None:
    def bug(args: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(commands, "show_tasks", bug)
    with pytest.raises(KeyError):
        run("tasks")


# ------------------------------------------------------------------ output


def test_with_json_what_anything_prints_goes_to_stderr(monkeypatch, capfd) -> None:
    def noisy(args: object) -> commands.Answer:
        print("from python")
        os.write(1, b"from a library\n")
        subprocess.run(["echo", "from a child"], check=True)
        return commands.Answer(text="text", document={"x": float("nan"), "path": Path("p")})

    monkeypatch.setattr(commands, "show_tasks", noisy)
    assert run("tasks", "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"x": None, "path": "p"}
    assert {"from python", "from a library", "from a child"} <= set(err.splitlines())


def test_a_file_in_the_current_folder_stands_for_no_package_however_the_command_is_started(
    demos: Path, tmp_path: Path
) -> None:
    for name in ("h5py", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')", encoding="utf-8")
    done = subprocess.run([*RIPT, "demos", "info", demos], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rl_ends_with_before_after_and_where_to_look(rl: Path, printed: dict, capsys) -> None:
    assert printed["iterations"] == 4
    assert 4 * 4 * 4 <= printed["rollouts"] <= 4 * 16 * 4
    assert set(printed["before"]) == set(printed["after"]) == {"sampled", "greedy"}
    assert Path(printed["policy"]) == rl / "policy"
    assert (rl / "report.html").stat().st_size > 10_000
    assert run("rl", "--resume", rl) == 0
    before, after, *changes, where = capsys.readouterr().out.splitlines()[-5:]
    assert before.startswith("before   greedy ")
    assert after.startswith("after    greedy ")
    was, now = (printed[stage]["greedy"]["total"] for stage in ("before", "after"))
    found = printed["change"]["greedy"]
    assert found["gained"] - found["lost"] == now["successes"] - was["successes"]
    assert found["difference"] == pytest.approx((found["gained"] - found["lost"]) / now["trials"])
    assert [line.split()[1] for line in changes] == ["greedy", "sampled"]
    assert f" points on the same states (paired 95 % interval {100 * found['interval'][0]:+z.0f} to " in changes[0]
    assert f": {found['gained']} gained, {found['lost']} lost, p" in changes[0]
    assert str(rl / "report.html") in where
    assert str(rl / "policy") in where


def test_demonstrations_are_collected_described_and_verified(demos: Path, tmp_path: Path, capsys) -> None:
    assert run("demos", "info", demos, "--json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["toy/reach"]["demos"] == 3
    assert run("demos", "info", demos) == 0
    assert "toy/reach" in capsys.readouterr().out
    assert run("demos", "verify", demos, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["succeeded"], document["exact"], len(document["demos"])) == (3, 3, 3)

    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(demos.read_bytes())
    with h5py.File(broken, "r+") as file:
        name = next(n for n in file["data/demo_1"] if "executed" in n)
        file["data/demo_1"][name][:] = np.zeros_like(file["data/demo_1"][name])
    assert run("demos", "verify", broken) == 1
    out = capsys.readouterr().out
    assert "2 of 3 succeed" in out
    assert [line.split()[0] for line in out.splitlines() if "NO SUCCESS" in line] == ["demo_1"]


def test_sft_writes_a_policy_that_eval_measures(demos: Path, tmp_path: Path, capsys) -> None:
    steps = ("--sft.autoencoder_steps=3", "--sft.policy_steps=3", "--sft.finetune_steps=2")
    assert run("sft", "--recipe", "smoke", "--demos", demos, *steps, "--out", tmp_path / "sft", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"autoencoder/reconstruction_l1", "policy/token_accuracy", "finetune/token_loss"} <= document[
        "metrics"
    ].keys()

    options = ("--policy", document["policy"], "--tasks", "toy/reach,reach-left", "--trials", 3, "--workers", 0)
    assert run("eval", *options, "--seed", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["policy", "seed", "mode", "horizon", "state_noise", "tasks", "total", "reasons"]
    assert (found["policy"], found["seed"], list(found["tasks"])) == (document["policy"], 5, ["reach", "reach-left"])
    for row in (*found["tasks"].values(), found["total"]):
        assert list(row) == ["successes", "trials", "errors", "interval"]
    assert found["total"]["trials"] == 6

    videos = tmp_path / "videos"
    assert run("eval", *options, "--greedy", "--videos", 1, "--video-dir", videos) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out
    assert f"2 videos in {videos}" in out
    assert sorted(path.name.split("__")[0] for path in videos.iterdir()) == ["reach", "reach-left"]
    there = {path: path.read_bytes() for path in videos.iterdir()}
    assert run("eval", *options, "--videos", 1, "--video-dir", videos) == 1  # their names do not say of which policy
    said = capsys.readouterr().err
    assert f"{videos} holds videos of another evaluation" in said and "evaluating" not in said
    assert {path: path.read_bytes() for path in videos.iterdir()} == there


def test_an_evaluation_of_errors_alone_says_why_and_is_no_success(rl: Path, monkeypatch, capsys) -> None:
    def broken(self: ToySimulator, actions: object) -> None:
        raise SimulatorError("the table fell over")

    monkeypatch.setattr(ToySimulator, "step_chunk", broken)
    words = ("eval", "--policy", rl / "policy", "--tasks", "reach-centre", "--trials", 2, "--workers", 0)
    assert run(*words) == 1
    said = capsys.readouterr()
    for part in (
        "not measured, for every trial ended in ERROR: reach-centre",
        "toy/reach-centre, initial state",
        "Trace",
    ):
        assert part in said.out
    assert "2 of 2 rollouts ended in ERROR: 2 with SimulatorError: the table fell over (while stepping:" in said.err
    assert run(*words, "--json") == 1
    assert json.loads(capsys.readouterr().out)["reasons"][0]["count"] == 2


def test_an_evaluation_whose_videos_have_no_place_does_not_begin(rl: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    words = ("eval", "--policy", rl / "policy", "--tasks", "reach-centre", "--trials", 2, "--videos", 1)
    assert run(*words, "--video-dir", tmp_path / "file", "--workers", 0) == 1
    err = capsys.readouterr().err
    assert "something of that name is in the way" in err and "evaluating" not in err


@pytest.mark.parametrize("stop, code", [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit(0), 1)])
def test_an_evaluation_that_is_stopped_while_it_writes_videos_tells_what_it_measured(
    rl: Path, tmp_path: Path, monkeypatch, capsys, stop: BaseException, code: int
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr(video, "write_video", stopped)
    words = ("eval", "--policy", rl / "policy", "--tasks", "reach-centre", "--trials", 2, "--videos", 1)
    assert run(*words, "--video-dir", tmp_path, "--workers", 0) == code
    said = capsys.readouterr()
    of_its_own_choice = code == 1
    assert ("reach-centre" in said.out) != of_its_own_choice and "nothing" not in said.err
    part = "a package or simulator ended the command" if of_its_own_choice else f"that are done are in {tmp_path}"
    assert part in said.err


def test_a_record_of_a_quickstart_that_is_none_is_named(tmp_path: Path, capsys) -> None:
    for content in ("[]", '{"seconds": [1]}', '{"seconds": {"report": "x"}}'):
        (tmp_path / "quickstart.json").write_text(content)
        assert run("quickstart", "--out", tmp_path) == 1
        assert "quickstart.json is damaged: choose another --out" in capsys.readouterr().err


def test_a_policy_with_settings_that_nothing_here_writes_is_refused(rl: Path, tmp_path: Path, capsys) -> None:
    for part, name, value, says in (
        ("config", "sampling", "x", "unknown sampling 'x'"),
        ("config", "rl_trains", "x", "unknown rl_trains"),
        ("simulator", "suite", None, "suite must be a word"),
        ("simulator", "render", [], "render and unseen must be objects"),
    ):
        folder = tmp_path / f"{part}-{name}"
        shutil.copytree(rl / "policy", folder)
        document = json.loads((folder / "config.json").read_text())
        document[part][name] = value
        (folder / "config.json").write_text(json.dumps(document))
        assert run("eval", "--policy", folder, "--tasks", "reach-centre", "--trials", 2) in (1, 2)
        assert says in capsys.readouterr().err


def test_report_takes_several_runs_side_by_side(rl: Path, demos: Path, tmp_path: Path, capsys) -> None:
    steps = ("--sft.autoencoder_steps=1", "--sft.policy_steps=1", "--sft.finetune_steps=1")
    assert run("sft", "--recipe", "smoke", "--demos", demos, *steps, "--out", tmp_path / "sft") == 0
    assert run("report", rl, tmp_path / "sft", "--out", tmp_path / "r.html") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {tmp_path / 'r.html'}"
    assert (tmp_path / "r.html").exists()


def test_doctor_exits_with_1_only_when_something_needed_is_missing(monkeypatch, capsys) -> None:
    from ript.cli import doctor

    def found(**what: object) -> None:
        check = doctor.Check(name="renderer", detail="none", remedy="install one", **what)  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "_checks", lambda folder, suite: iter([check]))

    found(ok=False, required=False)
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    found(ok=False)
    assert run("doctor") == 1
    assert "MISSING  renderer: none\n         -> install one" in capsys.readouterr().out
    assert run("quickstart", "--out", "nowhere") == 1
    assert "this machine is not ready: renderer: none (install one)" in capsys.readouterr().err
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("name", ["language model", "video encoder", "cache"])
def test_what_a_run_does_not_need_may_be_missing(monkeypatch, tmp_path: Path, name: str) -> None:
    from ript.cli import doctor

    check = doctor.Check(name=name, ok=False, detail="none", remedy="install one")
    monkeypatch.setattr(doctor, "_checks", lambda folder, suite: iter([check]))
    practice, quickstart = recipes.get("practice"), recipes.get("quickstart")
    spared = replace(practice, eval=replace(practice.eval, videos=0))
    need_a_working_machine(tmp_path, [spared], needs_cache=lambda: False)
    with pytest.raises(DependencyMissing, match=f"this machine is not ready: {name}: none"):
        need_a_working_machine(tmp_path, [spared, quickstart], needs_cache=lambda: True)


def test_quickstart_goes_from_nothing_to_a_policy_and_a_report(tmp_path: Path, capsys) -> None:
    steps = ("--sft.autoencoder_steps=2", "--sft.policy_steps=2", "--sft.finetune_steps=2", "--iterations=1")
    words = ("quickstart", *QUICK, *steps, "--pretrain_tasks=reach-left,reach-centre", "--demos.per_task=1")
    assert run(*words, "--target", "reach", "--seed", 3, "--fresh", "--out", tmp_path / "qs", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    keys = ["target", "sft", "rl", "change", "iterations", "rollouts", "env_steps", "seconds", "policy", "report"]
    assert list(found) == keys
    assert (found["target"], found["iterations"]) == ("reach", 1)
    assert (
        found["sft"].keys()
        == found["rl"].keys()
        == {"policy", "seed", "mode", "horizon", "state_noise", "tasks", "total", "reasons"}
    )
    assert {"demonstrations", "pre-training", "fine-tuning", "post-train", "report"} <= found["seconds"].keys()
    assert (Path(found["policy"]) / "model.safetensors").is_file()
    assert Path(found["report"]) == tmp_path / "qs" / "report.html"
    assert "<html" in Path(found["report"]).read_text()[:200]
    assert found["change"]["difference"] == pytest.approx(
        (found["rl"]["total"]["successes"] - found["sft"]["total"]["successes"]) / found["rl"]["total"]["trials"]
    )
    assert run(*words, "--target", "reach", "--out", tmp_path / "qs") == 1
    assert "is a finished quickstart: choose another --out" in capsys.readouterr().err


# ------------------------------------------------------------------ interruption


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `ript` processes; those still there at the end are killed."""
    started: list[subprocess.Popen] = []

    def start(*words: object) -> subprocess.Popen:
        command = [*RIPT, *map(str, words)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.002)


def beside_each_other(do: Callable[..., None], *several: tuple) -> None:
    """`do(*each)` in a thread of its own; raises what one raised."""
    with ThreadPoolExecutor(len(several)) as threads:
        for future in [threads.submit(do, *each) for each in several]:
            future.result()


def test_a_run_killed_and_resumed_ends_with_the_same_policy_byte_for_byte(rl: Path, tmp_path: Path, start) -> None:
    def killed_at(moment: str, out: Path) -> None:
        process = start("rl", *QUICK, "--workers", 0, "--out", out)
        wait_for(out / moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "policy").exists()

    runs = (("config.json", tmp_path / "at once"), ("checkpoints/000002", tmp_path / "later"))
    beside_each_other(killed_at, *runs)
    name = "model.safetensors"
    for _, out in runs:
        assert run("rl", "--resume", out) == 0
        assert (out / "policy" / name).read_bytes() == (rl / "policy" / name).read_bytes()
    assert (rl / "policy" / name).read_bytes() != (rl / "start" / name).read_bytes()


def test_ctrl_c_ends_at_once_says_what_is_kept_and_how_to_go_on(rl: Path, tmp_path: Path, start) -> None:
    def sent(what: signal.Signals, code: int, word: str) -> None:
        out = tmp_path / word
        words = ("--policy", rl / "start", "--iterations", 100_000, "--workers", 1, "--out", out, "--json")
        process = start("rl", *QUICK, *words)
        wait_for(out / "checkpoints" / "000001", process)
        process.send_signal(what)
        began = time.monotonic()
        shown, said = process.communicate(timeout=30)
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert time.monotonic() - began < 5 * busy
        assert process.returncode == code
        assert shown == ""
        assert said.splitlines()[-1] == f"ript: {word}: checkpoints are in {out}; go on with: ript rl --resume {out}"
        assert "Traceback" not in said

    beside_each_other(sent, (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"))


def test_a_termination_stays_one_when_a_library_makes_another_exit_of_it(capsys, monkeypatch) -> None:
    def stopped(*_: object) -> None:
        with arguments.saying_what_is_kept("all of it"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except SystemExit:
                raise SystemExit(1) from None  # as Ray does while it waits

    monkeypatch.setattr(commands, "rl", stopped)
    assert run("rl", *QUICK) == 143
    assert capsys.readouterr().err == "ript: terminated: all of it\n"
    monkeypatch.setattr(commands, "rl", lambda *_: sys.exit(1))
    assert run("rl", *QUICK) == 1  # a later command is not said to be terminated


@pytest.mark.parametrize("name", ["nodes", "workers-per-node", "workers_per_node", "silence", "start_timeout"])
def test_settings_of_a_cluster_are_refused_by_eval_where_there_is_none(rl: Path, capsys, name: str) -> None:
    assert run("eval", "--policy", rl / "policy", "--tasks", "reach", f"--cluster.{name}=9") == 2
    told = f"--cluster.{name.replace('-', '_')}: no effect without --cluster"
    assert told in capsys.readouterr().err


def test_what_is_logged_as_a_warning_is_said(capsys, monkeypatch) -> None:
    def losing(*_: object) -> Answer:
        logging.getLogger("ript.rollout.anything").warning("%d rollouts are run again", 5)
        return Answer(text="done", document=None)

    monkeypatch.setattr(commands, "rl", losing)
    assert run("rl", *QUICK) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("done\n", "  5 rollouts are run again\n")
    assert not logging.getLogger("ript").handlers


@pytest.mark.parametrize(
    ("where", "what"), [(interpreter, "load_torch_where_it_can_be"), (commands, "resumed"), (commands, "rl")]
)
def test_a_run_that_was_to_go_on_is_named_when_the_command_is_stopped_before_it_does(
    rl: Path, capsys, monkeypatch, where: ModuleType, what: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, what, stopped)
    assert run("rl", "--resume", rl, "--iterations", 9) == 130
    assert capsys.readouterr().err.endswith(f"go on with: ript rl --resume {rl}\n")
    if where is interpreter:
        assert run("study", "fewshot", "--out", rl, "--resume") == 130
        assert capsys.readouterr().err.endswith(f"what is done is kept in {rl}; the same command goes on from there\n")


def test_a_command_that_a_message_names_can_be_typed_when_the_folder_has_a_space(
    rl: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "my run"
    shutil.copytree(rl, folder)
    said = [kept_of_run(folder, "rl")]
    for words in (
        ("rl", *QUICK, "--out", folder),
        ("sft", "--resume", folder),
        ("rl", "--resume", folder, "--iterations", 9),
    ):
        if words[-1] == 9:  # as if it had ended by itself
            document = json.loads((folder / "config.json").read_text())
            document["config"]["recipe_config"]["iterations"] = 8
            (folder / "config.json").write_text(json.dumps(document))
        assert run(*words) in (1, 2)
        said.append(capsys.readouterr().err)
    shutil.rmtree(folder / "checkpoints")
    assert run("rl", "--resume", folder) == 1
    said.append(capsys.readouterr().err)
    monkeypatch.setattr(page, "write_report", lambda *_, **__: 1 / 0)
    page.report_or_say([folder], folder / "report.html")
    said.append(capsys.readouterr().err)
    for text in said:
        (command,) = re.findall(r"ript ((?:rl|sft|report) -*[^`)\n]*?'[^`)\n]*)", text)
        parsed, rest = cli.make_parser().parse_known_args(shlex.split(command))
        assert not rest and str(folder) in " ".join(str(value) for value in vars(parsed).values()), text


def test_the_parser_itself_raises_what_the_command_line_prints() -> None:
    with pytest.raises(ConfigError, match="expected one argument"):
        cli.make_parser().parse_args(["eval", "--policy"])


def test_one_of_a_thing_is_told_in_the_singular(tmp_path: Path, capsys) -> None:
    out = tmp_path / "one.hdf5"
    collect = ("demos", "collect", "--recipe", "smoke", "--tasks", "reach", "--per-task", 1, "--workers", 0)
    assert run(*collect, "--out", out) == 0 and run("demos", "info", out) == 0
    said = capsys.readouterr().out
    assert "1 demonstration of 1 task (" in said and f"{out}: 1 demonstration, " in said


# ------------------------------------------------------------------ published checkpoints


def test_a_published_checkpoint_is_imported_and_exported_again(tmp_path: Path, capsys) -> None:
    golden = Path(__file__).parent / "golden"
    arrays = np.load(golden / "tiny.npz", allow_pickle=False)
    torch.save({"model": {key: torch.from_numpy(arrays[key]) for key in arrays.files}}, tmp_path / "tiny.pth")
    words = ("--config", golden / "tiny_config.json", "--out", tmp_path / "policy", "--json")
    assert run("import", "quest", tmp_path / "tiny.pth", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 1_784_531 and found["suite"] == "imported"
    assert run("export", "quest", tmp_path / "policy", tmp_path / "again.pth") == 0
    said = capsys.readouterr().out
    assert "the file does not hold the model card" in said and "heads = 4 (published: 6)" in said
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert list(again) == arrays.files
    for key in arrays.files:  # frequencies are computed anew, and differ in the last bit between processors
        np.testing.assert_allclose(again[key].numpy(), arrays[key], rtol=1e-6 if key.endswith("inv_freq") else 0)
    capsys.readouterr()
    assert run("import", "quest", tmp_path / "none.pth", "--out", tmp_path / "b") == 1
    assert capsys.readouterr().err == f"ript: error: there is no file {tmp_path / 'none.pth'}\n"
    assert not (tmp_path / "b").exists()


def test_a_folder_that_may_not_be_looked_into_is_named_and_not_what_could_be_in_it(tmp_path: Path, capsys) -> None:
    (open_to_all(tmp_path) / "closed").mkdir(mode=0)
    with as_ordinary_user():
        assert run("report", tmp_path / "closed", "--out", tmp_path / "a.html") == 1
    assert f"{tmp_path / 'closed'} cannot be read: permission denied" in capsys.readouterr().err


def test_a_cache_that_is_read_only_is_enough_when_the_base_is_in_it(tmp_path: Path, monkeypatch) -> None:
    cache = open_to_all(tmp_path) / "cache"
    monkeypatch.setenv("RIPT_CACHE", str(cache))
    monkeypatch.setattr(importlib.import_module("ript.cli.doctor"), "doctor", lambda folder, suite: [check_cache()])
    partial, whole = cache / "base-0", cache / "base-1"
    for base in (partial, whole):
        (base / "sft" / "policy").mkdir(parents=True)
    (whole / "demos.hdf5").touch()
    cache.chmod(0o555)
    with as_ordinary_user():
        need_a_working_machine(tmp_path, [recipes.get("smoke")], needs_cache=lambda: not base_is_made(whole))
        with pytest.raises(DependencyMissing, match="cache: cannot write"):
            need_a_working_machine(tmp_path, [recipes.get("smoke")], needs_cache=lambda: not base_is_made(partial))
