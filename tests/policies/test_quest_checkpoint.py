"""Published checkpoints in and out, on the tiny reference instance."""

import argparse
import collections
import contextlib
import datetime
import hashlib
import json
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ript.core.errors import ConfigError, PolicyError, RunError, UnknownNameError
from ript.core.types import SimulatorSpec
from ript.policies.pth import load_pth
from ript.policies.quest.checkpoint import export_quest, import_quest, not_held, read_pth
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.published import published_keys, sizes_in
from ript.policies.vision import ImageEncoder
from tests.policies.policy_fixtures import make_policy

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = json.loads((GOLDEN / "tiny_config.json").read_text())


def published() -> dict[str, torch.Tensor]:
    arrays = np.load(GOLDEN / "tiny.npz", allow_pickle=False)
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def write(path: Path, state: Any) -> Path:
    torch.save({"model": state}, path)
    return path


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny.pth", published())


def test_what_is_imported_and_exported_is_the_same_file_key_for_key(pth: Path, tmp_path: Path) -> None:
    policy = import_quest(pth, GOLDEN / "tiny_config.json")
    export_quest(policy, tmp_path / "again.pth")
    before, after = (torch.load(path, weights_only=True) for path in (pth, tmp_path / "again.pth"))
    assert list(before) == list(after) == ["model"] and list(before["model"]) == list(after["model"])
    for key, tensor in before["model"].items():
        other = after["model"][key]
        # Frequencies are computed, not copied, and float32 powers differ in the last bit between processors.
        tolerance = 1e-6 if key.endswith("inv_freq") else 0
        torch.testing.assert_close(other, tensor, rtol=tolerance, atol=0, msg=lambda text, key=key: f"{key}: {text}")
    assert not list(tmp_path.glob(".*"))


def test_an_imported_policy_gives_the_reference_logits_and_is_saved_as_a_folder(pth: Path, tmp_path: Path) -> None:
    reference = np.load(GOLDEN / "tiny_io.npz", allow_pickle=False)
    import_quest(pth, CONFIG).save_pretrained(tmp_path / "policy")
    policy = QuestPolicy.from_pretrained(tmp_path / "policy")
    prefix, tokens = (torch.from_numpy(reference[name]) for name in ("context", "prior_tokens"))
    logits = policy.prior_logits(prefix, tokens).detach().numpy()
    np.testing.assert_allclose(logits, reference["prior_logits"], atol=3e-5 * np.abs(reference["prior_logits"]).max())
    actions = policy.autoencoder.decode(torch.from_numpy(reference["dec_indices"])).detach().numpy()
    np.testing.assert_allclose(actions, reference["dec_actions"], atol=3e-5 * np.abs(actions).max())


def test_the_prefix_of_a_distributed_wrapper_is_taken_off(pth: Path, tmp_path: Path) -> None:
    wrapped = write(tmp_path / "wrapped.pth", {f"module.{key}": tensor for key, tensor in published().items()})
    assert import_quest(wrapped, CONFIG) == import_quest(pth, CONFIG)


def test_the_entries_of_the_paper_size_are_the_published_ones_in_their_order() -> None:
    manifest = json.loads((GOLDEN / "full_manifest.json").read_text())["entries"]
    mine = [
        (key, list(shape), str(dtype).removeprefix("torch.")) for key, shape, dtype, _ in published_keys(QuestConfig())
    ]
    assert mine == [(entry["key"], entry["shape"], entry["dtype"]) for entry in manifest]


def test_sizes_are_read_off_the_shapes() -> None:
    config = QuestConfig(cameras={"front": (64, 64)}, proprio={"state": 8}, action_dim=4, language_dim=384, layers=3)
    state = {key: torch.empty(shape, dtype=dtype) for key, shape, dtype, _ in published_keys(config)}
    assert QuestConfig(**sizes_in(state)) == config


def test_a_preset_needs_no_configuration_file(tmp_path: Path) -> None:
    config = QuestConfig(
        cameras={"corner2": (32, 32)},
        proprio={"robot_states": 8},
        action_dim=4,
        layers=1,
        encoder_layers=1,
        decoder_layers=1,
    )
    state = {
        key: torch.zeros(shape, dtype=dtype) if isinstance(source, str) else source
        for key, shape, dtype, source in published_keys(config)
    }
    policy = import_quest(write(tmp_path / "metaworld.pth", state), "metaworld")
    assert policy.config == config
    spec = policy.simulator
    assert (spec.suite, spec.proprio_dim, spec.action_dim) == ("metaworld", 8, 4)


def test_published_sampling_is_asked_for_by_name(pth: Path) -> None:
    assert import_quest(pth, CONFIG).config.sampling == "exact"
    config = import_quest(pth, CONFIG, sampling="published").config
    assert (config.sampling, config.top_k) == ("published", 5)
    with pytest.raises(UnknownNameError, match=r"sampling 'publshed'.*did you mean published"):
        import_quest(pth, CONFIG, sampling="publshed")  # type: ignore[arg-type]


def test_embeddings_of_another_sentence_model_are_given_and_saved(pth: Path, tmp_path: Path) -> None:
    policy = import_quest(pth, CONFIG)
    with pytest.raises(PolicyError, match=r"takes instruction embeddings of size 24"):
        policy.embed(["open the drawer"])
    policy.remember("open the drawer", torch.arange(24.0))
    policy.save_pretrained(tmp_path / "policy")
    loaded = QuestPolicy.from_pretrained(tmp_path / "policy")
    assert torch.equal(loaded.embed(["open the drawer"])[0], torch.arange(24.0))
    (tmp_path / "policy" / "instructions.safetensors").write_bytes(b"broken")
    with pytest.raises(PolicyError, match=r"instructions\.safetensors is corrupt or truncated"):
        QuestPolicy.from_pretrained(tmp_path / "policy")


# ---------------------------------------------------------------------- what cannot be imported


def test_a_file_with_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "trap.pth"
    torch.save({"model": {"a": Trap()}}, path)
    with pytest.raises(PolicyError, match=r"trap\.pth holds more than tensors"):
        read_pth(path)
    path.write_bytes(pickle.dumps({"model": Trap()}))
    with pytest.raises(PolicyError, match=r"trap\.pth"):
        read_pth(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoints_are_refused_with_what_they_are(pth: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no file"):
        read_pth(tmp_path / "missing.pth")
    with pytest.raises(PolicyError, match="is a folder"):
        read_pth(tmp_path)
    (tmp_path / "cut.pth").write_bytes(pth.read_bytes()[:5000])
    with pytest.raises(PolicyError, match=r"cut\.pth is not a readable \.pth file"):
        read_pth(tmp_path / "cut.pth")
    with pytest.raises(PolicyError, match="holds no state dict"):
        read_pth(write(tmp_path / "list.pth", [torch.zeros(1)]))
    with pytest.raises(PolicyError, match="not a checkpoint of the published QueST"):
        import_quest(write(tmp_path / "other.pth", {"layer.weight": torch.zeros(2, 2)}), "libero")


def test_a_byte_that_is_damaged_anywhere_in_the_first_entry_is_said_or_harmless(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", {"a": torch.zeros(1)}).read_bytes()
    for place in range(120):
        damaged = bytearray(whole)
        damaged[place] ^= 0x80
        (tmp_path / "damaged.pth").write_bytes(damaged)
        with contextlib.suppress(PolicyError):
            load_pth(tmp_path / "damaged.pth")


def test_missing_extra_and_misshaped_keys_are_named_and_the_sizes_of_the_file_suggested(tmp_path: Path) -> None:
    state = published()
    del state["obs_proj.bias"]
    state["surprise"] = torch.zeros(1)
    with pytest.raises(PolicyError, match=r"missing obs_proj\.bias; extra surprise$"):
        import_quest(write(tmp_path / "a.pth", state), CONFIG)
    config = json.loads(json.dumps(CONFIG))
    config["hyperparameters"]["policy_prior"]["n_embd"] = config["hyperparameters"]["embed_dim"] = 96
    with pytest.raises(PolicyError, match=r"obs_proj\.bias: expected \[96\], got \[48\].*The file implies width = 48$"):
        import_quest(write(tmp_path / "b.pth", published()), config)


def test_configurations_that_cannot_be_read_say_what_is_expected(pth: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a suite \(libero, .*metaworld.*\) nor a file"):
        import_quest(pth, "libreo")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json is not a readable JSON file"):
        import_quest(pth, tmp_path / "broken.json")
    with pytest.raises(ConfigError, match="lacks 'hyperparameters'"):
        import_quest(pth, {})


def test_a_policy_that_the_published_model_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    policy = make_policy()
    with pytest.raises(PolicyError, match="cannot hold"):
        export_quest(policy.configured(adapter=4) if policy.config.vision == "resnet18" else policy, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_half_written(pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = import_quest(pth, CONFIG)

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("the file could not be written")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(PolicyError, match=r"cannot write .*out\.pth: the file could not be written"):
        export_quest(policy, tmp_path / "out.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pth"]


def test_statistics_of_proprioception_are_exported_inside_its_layers(pth: Path, tmp_path: Path) -> None:
    policy = import_quest(pth, CONFIG)
    generator = torch.Generator().manual_seed(0)
    policy.encoder.proprio_mean.uniform_(-1, 1, generator=generator)
    policy.encoder.proprio_std.uniform_(0.1, 2, generator=generator)
    export_quest(policy, tmp_path / "out.pth")
    again = import_quest(tmp_path / "out.pth", CONFIG)
    observation = {
        **{f"image/{c}": torch.zeros(3, *size, 3, dtype=torch.uint8) for c, size in policy.config.cameras.items()},
        "proprio": torch.randn(3, 12, generator=generator),
        "language": torch.randn(3, 24, generator=generator),
    }
    plain = import_quest(pth, CONFIG).prefix(observation)
    assert (policy.prefix(observation) - plain).abs().max() > 0.1
    torch.testing.assert_close(again.prefix(observation), policy.prefix(observation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(84, 84), (96, 64), (256, 96)])
def test_pictures_of_any_size_are_exported_with_the_grid_that_the_network_has(
    size: tuple[int, int], tmp_path: Path
) -> None:
    config = QuestConfig(
        cameras={"view": size},
        proprio={"state": 2},
        action_dim=4,
        layers=1,
        encoder_layers=1,
        decoder_layers=1,
        autoencoder_width=32,
        width=48,
    )
    spec = SimulatorSpec(suite="any", cameras=config.cameras, proprio=config.proprio, action_dim=4, render={})
    policy = QuestPolicy(config, spec)
    with torch.no_grad():
        seen = policy.encoder.images["view"].features(torch.zeros(1, 3, *ImageEncoder.size_seen(*size)))
        policy.features({"image/view": torch.zeros(1, *size, 3, dtype=torch.uint8), "proprio": torch.zeros(1, 2)})
    export_quest(policy, tmp_path / "x.pth")
    grid = read_pth(tmp_path / "x.pth")["image_encoders.view.projection_layer.spatial_softmax.pos_x"]
    assert grid.shape == (1, seen.shape[2] * seen.shape[3])


def changed(*path: str, to: Any) -> dict:
    config = json.loads(json.dumps(CONFIG))
    at = config["hyperparameters"]
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = to
    return config


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("autoencoder", "vq_type"), "vq", r"autoencoder\.vq_type = 'vq': only 'fsq' is supported"),
        (("autoencoder", "use_causal_encoder"), False, "use_causal_encoder = False: only True"),
        (("lowdim_encoder_factory", "num_layers"), 2, "num_layers = 2: only 1"),
        (("policy_prior", "start_token"), 7, "start_token = 7: the other values say 1000"),
        (("policy_prior", "n_head"), 0, "n_head: expected a whole number from 1 to 65536, got 0"),
        (("policy_prior", "n_embd"), "48", "n_embd: expected a whole number from 1 to 65536, got '48'"),
        (("policy_prior", "action_dim"), 4, "policy_prior.action_dim = 4: the other values say 7"),
        (("shape_meta", "action_dim"), 4, "shape_meta.action_dim = 4: the other values say 7"),
        (("shape_meta", "task", "type"), "onehot", "task.type = 'onehot': only 'vector'"),
        (("embed_dim",), 96, "embed_dim = 96: the other values say 48"),
        (("policy_prior", "embd_pdrop"), 0.5, "embd_pdrop = 0.5: the other values say 0.1"),
        (("policy_prior", "beam_size"), 1, "beam_size = 1: the other values say 5"),
        (("policy_prior", "attn_pdrop"), 5, "policy_prior.attn_pdrop: expected a number from 0 and below 1, got 5"),
        (("autoencoder", "attn_pdrop"), math.nan, "autoencoder.attn_pdrop: expected a number from 0 and below 1"),
        (("policy_prior", "temperature"), True, "temperature: expected a number from 0 and below inf, got True"),
        (("policy_prior", "temperature"), "hot", "temperature: expected a number .* got 'hot'"),
        (("shape_meta", "observation", "rgb", "agentview_rgb"), [1, 32, 32], r"agentview_rgb: expected \[3, height"),
        (("shape_meta", "observation", "rgb", "agentview_rgb"), [3, -32, 32], r"agentview_rgb: expected \[3, height"),
        (("shape_meta", "observation", "rgb", "agentview_rgb"), [3, 32, 32.9], r"agentview_rgb: expected \[3, height"),
        (
            ("shape_meta", "observation", "lowdim", "ee_pos"),
            3.7,
            "ee_pos: expected a whole number from 1 to 65536, got 3.7",
        ),
        (("fsq_levels",), "8555", "fsq_levels: expected whole numbers above 1, got '8555'"),
        (("fsq_levels",), [8, 5, 5, 5.9], "fsq_levels: expected whole numbers above 1"),
        (("fsq_levels",), [1000, 1, 1, 1], "fsq_levels: expected whole numbers above 1"),
        (("autoencoder", "fsq_level"), [10, 10, 5, 2], "autoencoder.fsq_level = .* and fsq_levels = .* disagree"),
        (("fsq_levels",), [8, 5, 5], r"vocab_size = 1000: the other values say 200|start_token = 1000"),
    ],
)
def test_a_configuration_of_what_is_not_implemented_is_refused(
    path: tuple[str, ...], value: Any, message: str, pth: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_quest(pth, changed(*path, to=value))


def test_other_levels_of_the_same_codebook_are_used(pth: Path) -> None:
    assert import_quest(pth, changed("fsq_levels", to=[10, 10, 5, 2])).config.fsq_levels == (10, 10, 5, 2)


def test_cameras_and_proprioception_are_named_in_the_order_of_the_file(pth: Path) -> None:
    for kind, prefix in (("rgb", "image_encoders"), ("lowdim", "lowdim_encoders")):
        entries = CONFIG["hyperparameters"]["shape_meta"]["observation"][kind]
        swapped = changed("shape_meta", "observation", kind, to=dict(reversed(entries.items())))
        with pytest.raises(PolicyError, match=rf"{prefix}\.\* in the order"):
            import_quest(pth, swapped)


@pytest.mark.parametrize("config", [None, 5, []])
def test_a_configuration_of_no_kind_is_refused(config: Any, pth: Path) -> None:
    with pytest.raises(ConfigError, match="expected the name of a suite, a file or its content"):
        import_quest(pth, config)


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("policy_prior.add_positional_emb.penc.inv_freq", lambda t: 2 * t, "is a constant of the published model"),
        (
            "image_encoders.agentview_rgb.projection_layer.spatial_softmax.pos_x",
            lambda t: t.flip(1),
            "is a constant of the published model",
        ),
        ("image_encoders.agentview_rgb.resnet18_base.1.running_var", lambda t: -t, "holds a negative variance"),
        ("obs_proj.bias", lambda t: t.to_sparse(), "expected a dense tensor"),
        ("obs_proj.bias", lambda t: t.to("meta"), "expected a dense tensor"),
    ],
)
def test_values_that_the_published_model_cannot_have_are_refused(
    key: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    state = published()
    state[key] = change(state[key])
    with pytest.raises(PolicyError, match=message):
        import_quest(write(tmp_path / "odd.pth", state), CONFIG)


def training_file(path: Path, **more: Any) -> Path:
    """As published training leaves it: the model beside all that training needs to go on."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
    state = {
        "model": published(),
        "optimizers": [optimiser.state_dict()],
        "schedulers": [schedule.state_dict()],
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "epoch": 100,
        "steps": 5000,
        "config": {"seed": 0},
    }
    torch.save(state | more, path)
    return path


def test_of_a_training_file_the_model_is_taken_and_the_rest_is_named(pth: Path, tmp_path: Path) -> None:
    policy = import_quest(training_file(tmp_path / "t.pth"), CONFIG)
    assert policy == import_quest(pth, CONFIG)
    assert policy.card["imported from"] == {
        "file": str(tmp_path / "t.pth"),
        "SHA-256 of the file": sha256(tmp_path / "t.pth"),
        "configuration": "a document that was given",
        "not read from it": "optimizers, schedulers, scaler, epoch, steps, config",
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_which_file_and_configuration_it_was_is_on_the_model_card(
    pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "tiny_config.json", "sizes.json")
    assert import_quest(pth.name, "sizes.json").card["imported from"] == {
        "file": str(pth),
        "SHA-256 of the file": sha256(pth),
        "configuration": str(tmp_path / "sizes.json"),
        "SHA-256 of the configuration": sha256(tmp_path / "sizes.json"),
    }


def test_what_a_published_file_does_not_hold_is_said(pth: Path) -> None:
    policy = import_quest(pth, CONFIG)
    beside, others = not_held(policy)
    assert beside == "the file does not hold the model card, nor what the policy's simulator shows"
    assert "; encoder_heads = 2 (published: 4)" in others or ": encoder_heads = 2 (published: 4)" in others
    assert "; heads = 4 (published: 6)" in others
    assert "cameras" not in others and "width" not in others and "execute" not in others
    policy = policy.configured(temperature=0.7)
    policy.remember("open the drawer", torch.ones(policy.config.language_dim))
    beside, others = not_held(policy)
    assert beside.startswith("the file does not hold the embeddings that were given (1), the model card, nor")
    assert "temperature = 0.7 (published: 1.0)" in others


class Settings(collections.UserDict):
    """A configuration that has a class of its own, with nested values of others."""

    class Nested:
        __slots__ = ("a",)


def test_objects_of_any_class_beside_the_model_are_passed_over_and_none_is_made(pth: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    settings = Settings(
        path=tmp_path,
        namespace=argparse.Namespace(a=1),
        dtype=np.dtype("float32"),
        numbers=np.arange(3),
        number=np.float64(1),
        deque=collections.deque([1], 3),
        default=collections.defaultdict(list, a=[1]),
        simulator=SimulatorSpec(suite="a", cameras={}, proprio={"proprio": 1}, action_dim=1, render={}),
        what=slice(1),
        function=math.sqrt,
        kind=torch.optim.AdamW,
        member=signal.SIGINT,
        when=datetime.datetime.now(),
        partial=partial(max, 1),
        nested=Settings.Nested(),
    )
    whole = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    path = training_file(tmp_path / "t.pth", config=settings, optimizers=[whole], trap=Trap(), **{"a b": {1, 2}})
    assert import_quest(path, CONFIG) == import_quest(pth, CONFIG)
    assert not (tmp_path / "ran").exists()


def test_what_the_reader_passes_over_is_still_refused_inside_the_model(tmp_path: Path) -> None:
    path = training_file(tmp_path / "t.pth", model=published() | {"settings": Settings()})
    with pytest.raises(PolicyError, match=r"t\.pth holds more than tensors \(settings\)"):
        import_quest(path, CONFIG)
    with pytest.raises(PolicyError, match=r"t\.pth holds no state dict"):
        import_quest(training_file(path, model=Settings()), CONFIG)


def test_weights_that_are_not_finite_or_of_another_type_are_refused(tmp_path: Path) -> None:
    state = published()
    state["obs_proj.bias"] = torch.full_like(state["obs_proj.bias"], torch.nan)
    with pytest.raises(PolicyError, match=r"obs_proj\.bias holds NaN"):
        import_quest(write(tmp_path / "nan.pth", state), CONFIG)
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in published().items()}
    with pytest.raises(PolicyError, match=r"expected torch\.float32, got torch\.float16"):
        import_quest(write(tmp_path / "half.pth", half), CONFIG)


def test_a_preset_is_for_the_published_size(pth: Path) -> None:
    with pytest.raises(PolicyError, match=r"not of the published size \(width = 48, .*give its configuration file"):
        import_quest(pth)


def test_a_tensor_that_only_repeats_values_is_compared_by_shape_before_it_is_read(tmp_path: Path) -> None:
    state = published() | {"policy_prior.head.weight": torch.zeros(1).expand(1 << 22, 1 << 22)}
    with pytest.raises(PolicyError, match=r"policy_prior\.head\.weight: expected \[.*\], got \[4194304, 4194304\]"):
        import_quest(write(tmp_path / "wide.pth", state), CONFIG)


def test_a_file_with_a_flipped_byte_is_refused(pth: Path) -> None:
    content = bytearray(pth.read_bytes())
    content[len(content) // 2] ^= 1
    pth.write_bytes(content)
    with pytest.raises(PolicyError, match="does not have its checksum"):
        import_quest(pth, CONFIG)


@pytest.mark.parametrize("name", ["keys", "a.b", ""])
def test_names_that_parts_of_a_policy_cannot_have_are_refused(name: str, pth: Path) -> None:
    config = changed("shape_meta", "observation", "rgb", to={name: [3, 32, 32]})
    with pytest.raises(ConfigError, match=f"is called '{name}', which cannot be"):
        import_quest(pth, config)


def test_an_export_replaces_nothing_but_a_checkpoint(pth: Path, tmp_path: Path) -> None:
    policy = import_quest(pth, CONFIG)
    (tmp_path / "notes.txt").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("notes.txt", r"is not a \.pth file"), ("pipe", "is no regular file")):
        with pytest.raises(RunError, match=what):
            export_quest(policy, tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "pipe").is_fifo()
    np.savez(tmp_path / "arrays.npz", mine=np.zeros(3))
    torch.save({"model": {"fc.weight": torch.zeros(3)}}, tmp_path / "resnet.pth")
    (tmp_path / "broken.pth").write_bytes(pth.read_bytes()[:1000])
    for name in ("arrays.npz", "resnet.pth", "broken.pth"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RunError, match=r"is there already, and is not a \.pth file of QueST"):
            export_quest(policy, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    export_quest(policy, tmp_path / "out.pth")
    export_quest(policy, tmp_path / "out.pth")  # again, in its place


def test_a_configuration_without_end_gets_a_message(pth: Path, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="not a readable JSON file"):
        import_quest(pth, tmp_path / "deep.json")
    with pytest.raises(ConfigError, match="n_layer: expected a whole number from 1 to"):
        import_quest(pth, changed("policy_prior", "n_layer", to=1_000_000_000))


def test_odd_files_get_a_message(pth: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(PolicyError, match=r"empty\.pth is not a readable \.pth file: it is empty"):
        read_pth(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("epoch loss")
    with pytest.raises(PolicyError, match=r"text\.pth"):
        read_pth(tmp_path / "text.pth")
    for prefix in ("image_encoders.", "lowdim_encoders.", "autoencoder.conv_block."):
        rest = {key: tensor for key, tensor in published().items() if not key.startswith(prefix)}
        with pytest.raises(PolicyError, match=rf"not a checkpoint of the published QueST.*{prefix}"):
            import_quest(write(tmp_path / "part.pth", rest), "libero")
        with pytest.raises(PolicyError, match=rf"missing {prefix}"):
            import_quest(tmp_path / "part.pth", CONFIG)
    flat = published() | {"task_encoder.weight": torch.zeros(48)}
    with pytest.raises(PolicyError, match=r"task_encoder\.weight"):
        import_quest(write(tmp_path / "flat.pth", flat), "libero")
    twice = published() | {"module.obs_proj.bias": torch.zeros(48)}
    with pytest.raises(PolicyError, match=r"obs_proj\.bias twice"):
        read_pth(write(tmp_path / "twice.pth", twice))
