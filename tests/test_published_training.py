"""Published checkpoints practise like any other policy: nothing in the loop knows where a policy came from."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy_runs import toy_config

from ript.cli.main import main
from ript.core.options import Words
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.core.types import ChunkResult, Observation, SimulatorSpec, Task
from ript.policies.loading import load_policy
from ript.policies.quest.checkpoint import export_quest, import_quest
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.options import QuestOptions
from ript.policies.quest.policy import QuestPolicy
from ript.report.page import write_report
from ript.rl import train_rl
from ript.run.folder import RunFolder
from ript.sims.metaworld.instructions import INSTRUCTIONS
from ript.sims.seen import sim_options_of
from ript.sims.toy.options import ToyOptions
from ript.sims.toy.simulator import ToySimulator

GOLDEN = Path(__file__).parent / "golden"
CONFIG = json.loads((GOLDEN / "tiny_config.json").read_text())
SPEC = SimulatorSpec(
    suite="desk",
    cameras={"agentview_rgb": (32, 32), "eye_in_hand_rgb": (32, 32)},
    proprio={"proprio": 12},
    action_dim=7,
    render={},
)


class Desk(ToySimulator):
    """2-D reaching with the cameras, proprioception and actions of the golden checkpoint."""

    def __init__(self, task_name: str, *, horizon: int = 40, image_size: int = 32):
        super().__init__(task_name, horizon=horizon, image_size=image_size)
        self.task, self.spec = replace(self.task, suite="desk"), SPEC

    def observe(self) -> Observation:
        seen = super().observe()
        (picture,) = seen.images.values()
        return replace(
            seen, images=dict.fromkeys(SPEC.cameras, picture), proprio=np.tile(seen.proprio, 6).astype(np.float32)
        )

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        return super().step_chunk(actions[:, :2])


class DeskOptions(ToyOptions):
    suite: Literal["desk"] = "desk"
    cameras: Words = tuple(SPEC.cameras)


def make_desk(key: str, options: DeskOptions) -> Desk:
    return Desk(key.removeprefix("desk/"), horizon=options.horizon or 40, image_size=options.image_size)


def desk_tasks() -> tuple[Task, ...]:
    return (Task(suite="desk", name="reach-centre", instruction="reach", index=1, horizon=40),)


DESK = Suite(
    name="desk",
    summary="a desk",
    options=DeskOptions,
    tasks=desk_tasks,
    make=make_desk,
    options_of=lambda spec: DeskOptions(image_size=32),
)


@pytest.fixture
def desk() -> Iterator[None]:
    suites.register(DESK)
    yield
    suites.unregister("desk")


def published(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("sampling", ["exact", "published"])
def test_an_imported_checkpoint_is_post_trained_and_exported_again(sampling: str, tmp_path: Path, desk: None) -> None:
    arrays = np.load(GOLDEN / "tiny.npz", allow_pickle=False)
    pth = published(tmp_path / "tiny.pth", {key: torch.from_numpy(arrays[key]) for key in arrays.files})
    policy = import_quest(pth, CONFIG, simulator=SPEC, sampling=sampling)  # type: ignore[arg-type]
    policy.remember(make_desk("desk/reach-centre", DeskOptions()).task.instruction, torch.ones(24))
    policy.save_pretrained(tmp_path / "policy")
    config = toy_config(
        seed=2,
        iterations=1,
        sim={"suite": "desk", "cameras": tuple(SPEC.cameras), "image_size": 32, "horizon": 64},
        sampling={"group_size": 8, "groups": 1, "max_attempts": 24},
        eval={"trials": 2, "every": 0},
        learn={"learning_rate": 1e-4, "target_kl": 0.0},
        policy=QuestOptions(temperature=0.7, top_k=3) if sampling == "exact" else QuestOptions(),
    )
    result = train_rl(config, tmp_path / "policy", tmp_path / "run")
    with RunFolder.open(tmp_path / "run") as run:
        rows = run.metrics()
        report = write_report([run.path], tmp_path / "report.html").read_text()
    assert sum(row.get("update/optimiser_steps", 0) for row in rows) > 0
    assert ("Published sampling: draws from the top k" in report) == (sampling == "published")
    settings = load_policy(result.policy).settings()
    density = tuple(settings[name] for name in ("sampling", "temperature", "top_k"))
    assert density == (("published", 1.0, 5) if sampling == "published" else ("exact", 0.7, 3))  # asked for, or its own

    export_quest(load_policy(result.policy), tmp_path / "trained.pth")  # type: ignore[arg-type]
    before, after = (torch.load(path, weights_only=True)["model"] for path in (pth, tmp_path / "trained.pth"))
    changed = {key for key in before if not torch.allclose(before[key], after[key], rtol=1e-6, atol=0)}
    assert list(before) == list(after)
    assert changed and all(key.startswith("policy_prior.") for key in changed)


def test_a_checkpoint_of_meta_world_practises_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sizes = QuestConfig(
        action_dim=4,
        chunk=32,
        execute=16,
        autoencoder_width=32,
        encoder_layers=1,
        decoder_layers=1,
        width=48,
        layers=1,
        heads=4,
        cameras={"corner_rgb": (32, 32)},
        image_dim=16,
        proprio={"proprio": 8},
        proprio_dim=8,
        language_dim=6,
    )
    spec = SimulatorSpec(suite="any", cameras=sizes.cameras, proprio={"proprio": 8}, action_dim=4, render={})
    export_quest(QuestPolicy(sizes, spec), tmp_path / "model.pth")
    save_file({INSTRUCTIONS["reach-v3"]: torch.ones(6)}, tmp_path / "clip.safetensors")
    hyperparameters = CONFIG["hyperparameters"]
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "hyperparameters": hyperparameters
                | {
                    "autoencoder": hyperparameters["autoencoder"]
                    | {"action_dim": 4, "encoder_layers": 1, "decoder_layers": 1, "encoder_heads": 4},
                    "policy_prior": hyperparameters["policy_prior"] | {"action_dim": 4, "n_layer": 1},
                    "image_encoder_factory": {"output_size": 16},
                    "lowdim_encoder_factory": {"output_size": 8},
                    "action_horizon": 16,
                    "shape_meta": {
                        "observation": {"rgb": {"corner_rgb": [3, 32, 32]}, "lowdim": {"proprio": 8}},
                        "task": {"dim": 6},
                    },
                }
            }
        )
    )

    def run(*words: object) -> int:
        return main([str(word) for word in words])

    given = ("import", "quest", tmp_path / "model.pth", "--config", tmp_path / "config.json")
    seen = ("--sim.suite=metaworld",)
    assert run(*given, "--cameras", "corner2", "--out", tmp_path / "no") == 2  # of which suite?
    assert run(*given, *seen, "--learn.epochs=2", "--out", tmp_path / "no") == 2  # no effect here
    assert run(*given, *seen, "--cameras", "corner2", "side", "--out", tmp_path / "no") == 2  # one camera, two views
    assert run(*given, *seen, "--cameras", "corner", "--sim.arm=stick", "--out", tmp_path / "no") == 2
    assert run(*given, "--embeddings", tmp_path / "none.safetensors", "--out", tmp_path / "no") == 1
    assert not (tmp_path / "no").exists()
    save_file({}, tmp_path / "empty.safetensors")
    assert run(*given, *seen, "--embeddings", tmp_path / "empty.safetensors", "--out", tmp_path / "no") == 1
    assert "empty.safetensors holds no embeddings: expected tensors whose names are" in capsys.readouterr().err
    save_file({"Reach the goal": torch.ones(6)}, tmp_path / "others.safetensors")
    assert run(*given, *seen, "--embeddings", tmp_path / "others.safetensors", "--out", tmp_path / "policy") == 0
    assert "others.safetensors has none of the 50 instructions of metaworld's tasks; others" in capsys.readouterr().out
    embeddings = ("--embeddings", tmp_path / "clip.safetensors")
    assert run(*given, *seen, "--cameras", "corner2", "--sim.arm=boxes", *embeddings, "--out", tmp_path / "policy") == 0
    said = capsys.readouterr().out
    assert f"replaces the policy in {tmp_path / 'policy'} that was imported from {tmp_path / 'model.pth'}\n" in said
    assert "clip.safetensors has 1 of the 50 instructions of metaworld's tasks; others need CLIP" in said
    assert sim_options_of(load_policy(tmp_path / "policy")).cameras == ("corner_rgb=corner2",)
    practise = (
        "rl",
        "--recipe",
        "quickstart",
        "--policy",
        tmp_path / "policy",
        "--tasks",
        "reach",
        "--iterations",
        1,
        "--out",
        tmp_path / "run",
        "--workers",
        0,
        "--sim.cameras=corner_rgb=corner2",
        "--sim.image_size=32",
        "--rollout.slots=2",
        "--sim.horizon=16",
        "--sampling.horizon=16",
        "--sampling.groups=1",
        "--sampling.max_attempts=2",
        "--sampling.group_size=2",
        "--policy.entropy=0",
        "--policy.rl_trains=prior",
        "--eval.trials=1",
        "--eval.every=0",
        "--eval.videos=0",
        "--learn.threads=1",
    )
    assert run(*practise) == 0
    shutil.copytree(tmp_path / "run" / "policy", tmp_path / "copy")
    kept = (tmp_path / "copy" / "model.safetensors").read_bytes()
    for name, why in (("run/policy", f"is a policy of the run {tmp_path / 'run'}"), ("copy", "was trained here")):
        assert run(*given, *seen, "--out", tmp_path / name) == 1
        assert f"{why}, which would be lost: choose another --out" in capsys.readouterr().err
        assert (tmp_path / name / "model.safetensors").read_bytes() == kept
    assert (
        run(
            "eval",
            "--policy",
            tmp_path / "run" / "policy",
            "--tasks",
            "reach",
            "--trials",
            1,
            "--horizon",
            16,
            "--workers",
            0,
        )
        == 0
    )
