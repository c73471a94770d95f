"""Folders, published and ours: what is read, written, refused, and how much memory that takes."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from oft_golden import ADAPTER, SCALE_HEAD, TINY
from oft_policies import generators, observation, published, ready
from safetensors.torch import load_file, save_file

from ript.core.errors import ConfigError, PolicyError
from ript.core.types import SimulatorSpec
from ript.policies.openvla_oft import llama
from ript.policies.openvla_oft.checkpoint import base_of, empty, index_of, load
from ript.policies.openvla_oft.fresh import new_policy
from ript.policies.openvla_oft.lora import add_lora, lora_layers
from ript.policies.openvla_oft.prompt import small_tokenizer
from ript.policies.openvla_oft.published import read, require_l1
from ript.policies.openvla_oft.sizes import OpenVlaSizes


@pytest.fixture
def folder(tmp_path):
    """A copy of the published folder, with what loaders of others leave there."""
    copy = tmp_path / "openvla"
    shutil.copytree(TINY, copy)
    (copy / "modeling_prismatic.py").write_text("raise SystemExit('remote code was run')")
    (copy / "config.json.back.20250101").write_text("{")
    (copy / "lora_adapter").mkdir()
    return copy


SPEC = SimulatorSpec(suite="toy", cameras={"top": (16, 16)}, proprio={"proprio": 2}, action_dim=2, render={})


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"
SHARD = "model-00001-of-00004.safetensors"


def resave(path, change):
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    torch.save(content, path)


class Pickled:
    pass


DAMAGES = {
    "a missing shard": (
        lambda f: (f / SHARD).unlink(),
        r"lacks 1 of its files of weights: model-00001-of-00004.safetensors",
    ),
    "a truncated shard": (
        lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:5000]),
        r"model-00001-of-00004.safetensors is corrupt or truncated",
    ),
    "an index without a tensor": (
        lambda f: edit(f / "model.safetensors.index.json", lambda c: c["weight_map"].pop("projector.fc1.bias")),
        r"1 tensors are missing \(projector.fc1.bias\)",
    ),
    "an index with a tensor of nobody": (
        lambda f: edit(f / "model.safetensors.index.json", lambda c: c["weight_map"].update(foreign=SHARD)),
        r"1 are of no OpenVLA-OFT \(foreign\)",
    ),
    "a shard without a tensor that it should hold": (
        lambda f: rewrite(f / "model-00003-of-00004.safetensors", lambda t: t.pop("language_model.model.norm.weight")),
        r"model-00003-of-00004.safetensors lacks language_model.model.norm.weight, which the index says",
    ),
    "an index that names a file elsewhere": (
        lambda f: edit(f / "model.safetensors.index.json", lambda c: c["weight_map"].update(x="../../etc/passwd")),
        r"names a file outside its folder",
    ),
    "a weight of another shape": (
        lambda f: rewrite(
            f / "model-00003-of-00004.safetensors",
            lambda t: t.update({"language_model.model.norm.weight": torch.ones(3)}),
        ),
        r"language_model.model.norm.weight is \[3\], expected \[24\]",
    ),
    "a weight that is NaN": (
        lambda f: rewrite(
            f / "model-00003-of-00004.safetensors", lambda t: t["language_model.model.norm.weight"].fill_(torch.nan)
        ),
        r"language_model.model.norm.weight holds NaN",
    ),
    "two heads": (
        lambda f: shutil.copy(f / HEAD, f / "action_head--50000_checkpoint.pt"),
        r"holds 2 files of action_head: action_head--150000_checkpoint.pt, action_head--50000_checkpoint.pt",
    ),
    "a head and a projector of two steps": (
        lambda f: (f / PROPRIO).rename(f / "proprio_projector--50000_checkpoint.pt"),
        r"action_head--150000_checkpoint.pt and proprio_projector--50000_checkpoint.pt are of different steps",
    ),
    "no room for a prompt": (
        lambda f: edit(f / "config.json", lambda c: c["text_config"].update(max_position_embeddings=100)),
        r"max_position_embeddings = 100 leaves no room for an instruction",
    ),
    "weights of eight bits": (
        lambda f: rewrite(
            f / "model-00003-of-00004.safetensors",
            lambda t: t.update(
                {"language_model.model.norm.weight": t["language_model.model.norm.weight"].to(torch.float8_e4m3fn)}
            ),
        ),
        r"language_model.model.norm.weight holds torch.float8_e4m3fn",
    ),
    "no head": (lambda f: (f / HEAD).unlink(), r"has no action_head .*: this is a base, or a policy that gives .* tok"),
    "no projector of proprioception": (lambda f: (f / PROPRIO).unlink(), r"has no proprio_projector .* without it"),
    "a diffusion head": (
        lambda f: resave(f / HEAD, lambda c: {k.replace("model.", "noise_predictor.", 1): v for k, v in c.items()}),
        r"is a diffusion head: only the L1 head",
    ),
    "a projector of noisy actions": (
        lambda f: shutil.copy(f / PROPRIO, f / "noisy_action_projector--150000_checkpoint.pt"),
        r"holds a diffusion head \(noisy_action_projector",
    ),
    "FiLM": (
        lambda f: shutil.copy(f / PROPRIO, f / "vision_backbone--150000_checkpoint.pt"),
        r"holds a policy with FiLM",
    ),
    "a head for another robot": (
        lambda f: resave(
            f / HEAD,
            lambda c: c | {"module.model.fc2.weight": torch.zeros(14, 24), "module.model.fc2.bias": torch.zeros(14)},
        ),
        r"gives actions of 14 numbers, expected 7: it was trained for another robot",
    ),
    "a head with something pickled in it": (
        lambda f: torch.save({"module.model.fc2.weight": Pickled()}, f / HEAD),
        r"holds more than tensors \(module.model.fc2.weight\)",
    ),
    "a head that is a pickle": (
        lambda f: (f / HEAD).write_bytes(pickle.dumps({"a": Pickled()})),
        r"was not opened, since unpickling can run code",
    ),
    "a head of another size": (
        lambda f: resave(f / HEAD, lambda c: c | {"module.model.fc1.bias": torch.zeros(23)}),
        r"model.fc1.bias is \[23\], expected \[24\]",
    ),
    "statistics of another robot": (
        lambda f: edit(
            f / "dataset_statistics.json",
            lambda c: (
                [c["libero_spatial_no_noops"]["action"].update({k: [0.0] * 14}) for k in ("q01", "q99")]
                + [c["libero_spatial_no_noops"]["action"].update(mask=[True] * 14)]
            ),
        ),
        r"an action of libero_spatial_no_noops has 14 numbers, expected 7",
    ),
    "no statistics": (
        lambda f: (f / "dataset_statistics.json").unlink(),
        r"is not a complete OpenVLA-OFT folder: dataset_statistics.json is missing",
    ),
    "a model of another type": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="llava")),
        r"holds a model of type 'llava', expected 'openvla'",
    ),
    "another vision tower": (
        lambda f: edit(f / "config.json", lambda c: c["timm_model_ids"].reverse()),
        r"timm_model_ids = \['vit_so400m",
    ),
    "grouped keys": (
        lambda f: edit(f / "config.json", lambda c: c["text_config"].update(num_key_value_heads=2)),
        r"text_config.num_key_value_heads = 2; only 4 is supported",
    ),
    "heads that do not divide": (
        lambda f: edit(f / "config.json", lambda c: c["text_config"].update(num_attention_heads=5)),
        r"num_key_value_heads = 4; only 5|does not divide into 5 heads",
    ),
    "a configuration that is none": (lambda f: (f / "config.json").write_text("[1]"), r"expected a table, got list"),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer.json is no tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(folder, damage):
    harm, message = DAMAGES[damage]
    harm(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(PolicyError, match=message):
        load(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_is_read_as_it_is_and_nothing_in_it_is_run_or_written(folder):
    folder.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    policy = ready(load(folder))
    folder.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert policy.config.statistics.key == "libero_spatial_no_noops"
    assert policy.predict(observation("s0"))[0].isfinite().all()


def test_one_file_of_weights_without_an_index_is_read_too(folder):
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).network.state_dict().keys() == load(TINY).network.state_dict().keys()


def test_loaded_weights_outlive_their_files(folder):
    policy = load(folder, dtype=torch.bfloat16)
    before = policy.network.get_parameter("language_model.model.norm.weight").clone()
    for path in folder.glob("model-*.safetensors"):
        path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(policy.network.get_parameter("language_model.model.norm.weight"), before)
    assert {p.dtype for p in policy.network.language_model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.network.action_head.parameters()} == {torch.float32}


# ------------------------------------------------------------------ adapters and scale heads


ADAPTER_DAMAGES = {
    "another kind": (lambda f: edit(f / "adapter_config.json", lambda c: c.update(peft_type="IA3")), "peft_type"),
    "DoRA": (lambda f: edit(f / "adapter_config.json", lambda c: c.update(use_dora=True)), "use_dora = True is not"),
    "a rank of another": (
        lambda f: edit(f / "adapter_config.json", lambda c: c.update(r=8)),
        r"expected \[8, .* of another base, or of another rank",
    ),
    "a rank that is no number": (lambda f: edit(f / "adapter_config.json", lambda c: c.update(r=True)), "r = True and"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "half an update": (
        lambda f: rewrite(
            f / "adapter_model.safetensors", lambda t: t.pop("base_model.model.projector.fc1.lora_B.weight")
        ),
        r"missing \(projector.fc1.lora_B.weight\)",
    ),
    "a layer of another model": (
        lambda f: rewrite(
            f / "adapter_model.safetensors",
            lambda t: t.update({"base_model.model.model.layers.0.q.lora_A.weight": torch.zeros(4, 24)}),
        ),
        "no adapter of an OpenVLA-OFT policy: it holds base_model.model.model.layers.0.q",
    ),
    "heads of something else": (
        lambda f: torch.save({"action_header": {}}, f / "openvla_headers.pt"),
        "holds no pair of heads",
    ),
}


@pytest.mark.parametrize("damage", ADAPTER_DAMAGES)
def test_an_adapter_that_cannot_be_used_is_refused_with_the_reason(tmp_path, damage):
    copy = tmp_path / "adapter"
    shutil.copytree(ADAPTER, copy)
    harm, message = ADAPTER_DAMAGES[damage]
    harm(copy)
    with pytest.raises(PolicyError, match=message):
        load(TINY, adapter=copy)


def test_an_alpha_without_an_adapter_is_refused():
    with pytest.raises(ConfigError, match="alpha = 3 is of an adapter, and none is given"):
        load(TINY, alpha=3)


def test_a_scale_head_beside_an_adapter_that_brings_its_own_is_refused():
    with pytest.raises(ConfigError, match=r"brings its scale head in openvla_headers\.pt: leave scale_head out"):
        load(TINY, adapter=ADAPTER, scale_head=SCALE_HEAD)


def test_heads_are_rounded_to_bfloat16_as_published_policies_act_with(folder):
    resave(folder / HEAD, lambda c: {name: tensor.float() + 1e-5 for name, tensor in c.items()})
    given = torch.load(folder / HEAD, weights_only=True)["module.model.fc1.weight"]
    held = load(folder).network.action_head.model.fc1.weight
    assert torch.equal(held, given.bfloat16().float()) and not torch.equal(held, given)


def test_a_file_that_is_no_scale_head_is_refused():
    with pytest.raises(PolicyError, match="holds no scale head"):
        load(TINY, scale_head=TINY / HEAD)
    with pytest.raises(PolicyError, match="is a scale head, where the L1 head is expected"):
        require_l1({"log_b_head.weight": torch.zeros(7, 24)}, SCALE_HEAD, OpenVlaSizes())


# ------------------------------------------------------------------ self-test


def test_a_policy_with_causal_attention_is_found_out(monkeypatch):
    attention = torch.nn.functional.scaled_dot_product_attention

    def causal(q, k, v, attn_mask=None):
        if k.shape[2] < 512 or q.shape[2] != k.shape[2]:  # the vision towers, and the rows that are read out
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2] - 1)
            return attention(q, k, v, attn_mask=seen if q.shape[2] != k.shape[2] else None)
        return attention(q, k, v, is_causal=True)

    monkeypatch.setattr(llama.F, "scaled_dot_product_attention", causal)
    with pytest.raises(PolicyError, match="attention is causal"):
        load(TINY)
    load(TINY, self_test=False)


@pytest.mark.parametrize(
    "bias, message", [(float("inf"), "actions are not finite"), (20.0, "normalised actions of .* not of one policy")]
)
def test_a_policy_whose_actions_cannot_be_right_is_found_out(folder, bias, message):
    def change(content):
        content["module.model.fc2.bias"][0] = bias

    resave(folder / HEAD, change)
    with pytest.raises(PolicyError, match=message if bias < 100 else "holds NaN or infinity"):
        load(folder)


# ------------------------------------------------------------------ our folders


def test_what_was_trained_is_saved_beside_a_reference_and_comes_back_to_the_bit(tmp_path):
    policy = published(adapter=ADAPTER)
    with torch.no_grad():
        for parameter in policy._trained().values():
            parameter.mul_(1.001)
    policy.card["trained on"] = "nothing"
    policy.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    held = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name.partition(".")[0] for name in held} == {"action_head", "proprio_projector", "scale_head"}
    assert held["scale_head.log_b_head.bias"].dtype == torch.bfloat16  # as exact, at half the size
    assert held["action_head.model.fc1.weight"].dtype == torch.float32
    again = load(tmp_path / "saved")
    assert (
        again == policy and again.card == policy.card and again.config.base == base_of(TINY, policy.config.base.weights)
    )
    one, other = (p.act(observation("s1"), generators(1)) for p in (ready(policy), ready(again)))
    np.testing.assert_array_equal(one.actions, other.actions)
    again.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved") == policy


def test_a_saved_adapter_is_in_pefts_format(tmp_path):
    policy = published(adapter=ADAPTER)
    policy.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    mine, theirs = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "saved", ADAPTER))
    assert mine.keys() <= theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor.float(), theirs[name].float()), name
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in mine}
    assert set(config["target_modules"]) == layers


def test_a_policy_whose_base_is_gone_or_another_says_so(folder, tmp_path):
    ready(load(folder)).save_pretrained(tmp_path / "saved")
    edit(folder / "model.safetensors.index.json", lambda c: c["metadata"].update(total_size=1))
    with pytest.raises(PolicyError, match=f"is not the base .* {index_of(folder)}, expected {index_of(TINY)}"):
        load(tmp_path / "saved")
    shutil.rmtree(folder)
    with pytest.raises(PolicyError, match="the policy's base is not there"):
        load(tmp_path / "saved")


def other_weights(folder):
    path = folder / SHARD
    save_file({name: tensor * 1.25 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    "change, what",
    [
        (other_weights, "weights"),
        (lambda f: (f / "tokenizer.json").write_text(small_tokenizer(["another"], 300).to_str()), "tokenizer"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_a_base_of_the_same_layout_with_other_content_is_another(change, what, folder, tmp_path):
    (folder / "tokenizer.json").write_text(small_tokenizer(["words"], 300).to_str())
    policy = load(folder)
    policy.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved") == policy
    change(folder)
    with pytest.raises(PolicyError, match=f"{folder} is not as it was .* the hash of its {what} is .*: fetch the base"):
        load(tmp_path / "saved")


def test_a_card_names_the_base_and_what_readers_of_results_should_know(folder, tmp_path):
    policy = load(folder).configured(sampling="published", forward="two_pass")
    policy.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"the other weights are those of `{folder}`, hash {policy.config.base.weights}, which must" in card
    assert all(f"\n- {caveat}\n" in card for caveat in policy.caveats) and len(policy.caveats) == 2


def test_the_hash_of_weights_is_of_their_content_and_not_of_their_files(folder, tmp_path):
    was = load(folder).config.base
    table = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    whole = {name: tensor for file in set(table.values()) for name, tensor in load_file(folder / file).items()}
    for file in set(table.values()):
        (folder / file).unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    now = load(folder).config.base
    assert now.weights == was.weights and now.index != was.index


def test_a_folder_of_an_earlier_version_without_these_hashes_is_read(folder, tmp_path):
    policy = load(folder)
    policy.save_pretrained(tmp_path / "saved")
    before = {name: getattr(policy.config.base, name) for name in ("name", "revision", "index")}
    edit(tmp_path / "saved" / "config.json", lambda c: c["config"].update(base=before))
    assert load(tmp_path / "saved").config.base == dataclasses.replace(policy.config.base, weights=None, tokenizer=None)


def test_a_base_on_the_hub_is_referred_to_by_its_commit(folder, tmp_path, monkeypatch):
    asked = []
    commit = tmp_path / "models--someone--openvla" / "snapshots" / ("c" * 40)
    commit.parent.mkdir(parents=True)
    folder.rename(commit)

    def snapshot_download(repository, revision=None):
        asked.append((repository, revision))
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    policy = load("hf://someone/openvla")
    assert (policy.config.base.name, policy.config.base.revision) == ("hf://someone/openvla", "c" * 40)
    policy.save_pretrained(tmp_path / "saved")
    asked.clear()
    assert load(tmp_path / "saved") == policy
    assert asked == [("someone/openvla", "c" * 40)]


def test_saving_into_a_base_is_refused(folder):
    with pytest.raises(PolicyError, match="holds more than a policy"):
        load(folder).save_pretrained(folder)


@pytest.fixture
def trained(folder, tmp_path):
    """One of ours on a copy of the published folder: its adapter and heads are others than RIPT-VLA's."""
    policy = load(folder, suite="libero_spatial", adapter=ADAPTER).configured(temperature=2.0)
    with torch.no_grad():
        for parameter in policy._trained().values():
            parameter.mul_(1.5)
    policy.save_pretrained(tmp_path / "trained")
    return policy


def test_an_adapter_of_ours_comes_with_its_heads_and_settings_wherever_its_base_lies_now(trained, folder, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    again = load(tmp_path / "elsewhere", adapter=tmp_path / "trained")
    assert again.config.base == base_of(tmp_path / "elsewhere", trained.config.base.weights)
    assert dataclasses.replace(again.config, base=trained.config.base) == trained.config
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    doubled = load(tmp_path / "elsewhere", adapter=tmp_path / "trained", alpha=2 * 4)
    assert doubled.config.scaling == 2 * again.config.scaling


def test_an_adapter_of_ours_is_put_on_no_other_base(trained, folder, tmp_path):
    other_weights(folder)
    with pytest.raises(PolicyError, match=f"{folder} is not as it was .* the hash of its weights is"):
        load(folder, adapter=tmp_path / "trained")
    edit(folder / "model.safetensors.index.json", lambda c: c["metadata"].update(total_size=1))
    with pytest.raises(PolicyError, match=f"{folder} is not the base that this policy was trained on"):
        load(folder, adapter=tmp_path / "trained")


def test_an_adapter_of_ours_has_its_statistics_and_scale_head_already(trained, folder, tmp_path):
    assert load(folder, suite="libero_spatial", adapter=tmp_path / "trained") == trained
    with pytest.raises(ConfigError, match=r"of libero_spatial_no_noops, .* not of 'libero_goal'"):
        load(folder, suite="libero_goal", adapter=tmp_path / "trained")
    with pytest.raises(ConfigError, match="brings its heads: leave scale_head out"):
        load(folder, scale_head=SCALE_HEAD, adapter=tmp_path / "trained")


def test_a_whole_policy_of_ours_is_no_adapter(folder, tmp_path):
    small = new_policy("tiny", SPEC, seed=0)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(PolicyError, match="holds a whole policy, not an adapter: load it as it is"):
        load(folder, adapter=tmp_path / "small")


def test_our_own_policy_has_its_statistics_and_adapter_already(tmp_path):
    load(TINY).save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="give none"):
        load(tmp_path / "saved", suite="libero_goal")


def test_damaged_settings_of_ours_are_refused(tmp_path):
    load(TINY).save_pretrained(tmp_path / "saved")
    edit(tmp_path / "saved" / "config.json", lambda c: c["config"].update(forward="sideways"))
    with pytest.raises(PolicyError, match=r"config.json describes no policy .* 'sideways'"):
        load(tmp_path / "saved")


def test_an_adapter_that_is_new_is_saved_with_its_scaling(tmp_path):
    policy = load(TINY)
    add_lora(policy.network, [n for n in lora_layers(policy.network) if n.startswith("language_model")], 2, 0.25)
    policy = policy.configured(rank=2, scaling=0.25)
    with torch.no_grad():
        for parameter in policy._trained().values():
            parameter.add_(0.01)
    policy.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved") == policy


# ------------------------------------------------------------------ memory


MEASURE = """
import sys, torch
from ript.policies.openvla_oft.checkpoint import empty
from ript.policies.openvla_oft.published import read
from ript.policies.openvla_oft.weights import load_backbone
from pathlib import Path
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) * 1024
found = read(Path(sys.argv[1]))
network = empty(found.sizes)
before = peak()
load_backbone(network, found.shards, dtype=torch.float32)
size = sum(p.numel() * p.element_size() for n, p in network.named_parameters() if not p.is_meta)
print(peak() - before, size)
"""


def test_loading_many_shards_takes_the_weights_and_at_most_one_shard_of_memory(folder):
    edit(
        folder / "config.json",
        lambda c: c["text_config"].update(
            hidden_size=256, intermediate_size=704, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=8
        ),
    )
    sizes = read(folder).sizes
    names = {
        k: v.shape
        for k, v in empty(sizes).state_dict().items()
        if k.split(".")[0] not in ("action_head", "proprio_projector")
    }
    for path in folder.glob("model-*.safetensors"):
        path.unlink()
    shards, table = 30, {}
    ordered = sorted(names)
    for i in range(shards):
        part = {name: torch.full(names[name], 0.01, dtype=torch.bfloat16) for name in ordered[i::shards]}
        table |= dict.fromkeys(part, file := f"model-{i + 1:05}-of-{shards:05}.safetensors")
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    largest = max(path.stat().st_size for path in folder.glob("model-*.safetensors"))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size > 100e6 and largest < 30e6
    assert grown < size + largest + 8e6
