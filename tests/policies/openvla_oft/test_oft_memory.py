"""What memory a policy takes, said before anything is loaded."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oft_golden import ADAPTER, TINY
from torch import nn

from ript import build
from ript.bench import policy as bench
from ript.bench.policy import bench_policy, describe_policy
from ript.cli import main as cli
from ript.core import device_memory
from ript.core.capacity import Memory
from ript.core.device_memory import GIB, Demands
from ript.core.errors import DeviceTooSmall
from ript.core.registry import kinds
from ript.policies.openvla_oft import checkpoint, memory, specimens
from ript.policies.openvla_oft.heads import ActionHead
from ript.policies.openvla_oft.llama import Llama
from ript.policies.openvla_oft.lora import add_lora, lora_layers
from ript.policies.openvla_oft.memory import Use
from ript.policies.openvla_oft.options import OftOptions
from ript.policies.openvla_oft.sizes import LlamaSizes, OpenVlaSizes, TowerSizes
from ript.policies.openvla_oft.vision import Projector, VisionBackbone

PUBLISHED = OpenVlaSizes()


def kept_bytes(layers: int, tokens: int, dtype: torch.dtype, *, recompute: bool = False) -> int:
    """What the language model keeps for the gradient of its adapter, parameters apart."""
    sizes = LlamaSizes(width=64, hidden=160, layers=layers, heads=4, vocabulary=32)
    llama = Llama(sizes).to(dtype).requires_grad_(False)
    add_lora(llama, lora_layers(llama), 8, 1.0)
    given, rows = torch.randn(2, tokens, 64, dtype=dtype), torch.zeros(2, 4, dtype=torch.int64)
    return saved_bytes(llama, lambda: llama(given, rows=rows, recompute=recompute))


def saved_bytes(model: nn.Module, compute: Callable[[], torch.Tensor]) -> int:
    """What a computation keeps for its gradient, the model's parameters apart."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # alive, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_layer_keeps_for_its_gradient_what_the_plan_counts(dtype, size):
    layers, tokens = 3, 32
    more = [kept_bytes(layers + 2, t, dtype) - kept_bytes(layers, t, dtype) for t in (tokens, 2 * tokens)]
    a_token = (more[1] - more[0]) / 2 / (2 * tokens)  # of two layers, a batch of two
    expected = memory.kept_by_a_layer(LlamaSizes(width=64, hidden=160), 8, size)
    assert a_token == pytest.approx(expected, rel=0.02)


def test_recomputed_layers_keep_their_input_alone():
    more = kept_bytes(5, 32, torch.float32, recompute=True) - kept_bytes(3, 32, torch.float32, recompute=True)
    assert more / 2 == 2 * 32 * 64 * 4


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_towers_and_projector_with_adapters_keep_what_the_plan_counts(dtype, size):
    towers = {"width": 32, "heads": 2, "hidden": 128}
    sizes = OpenVlaSizes(
        image=64,
        patch=8,
        dino=TowerSizes(blocks=4, prefix=5, layer_scale=True, **towers),
        siglip=TowerSizes(blocks=3, prefix=0, layer_scale=False, **towers),
        llama=LlamaSizes(width=48, hidden=64, layers=1, heads=2, vocabulary=32),
    )
    seeing = nn.Sequential(VisionBackbone(sizes), Projector(sizes)).to(dtype).requires_grad_(False)
    add_lora(seeing, lora_layers(seeing), 8, 1.0)
    kept = [saved_bytes(seeing, lambda n=n: seeing(torch.randn(n, 2, 6, 64, 64, dtype=dtype))) for n in (1, 2)]
    pixels = 2 * 6 * 64 * 64 * size  # which the plan counts beside
    assert kept[1] - kept[0] - pixels == pytest.approx(memory.kept_by_the_towers(sizes, 8, size), rel=0.05)


def test_adapters_in_the_towers_are_counted_where_they_are_trained_and_where_they_are_not():
    language, everywhere = (Use(micro_batch=8, supervised=True, recompute=True, everywhere=e) for e in (False, True))
    more = device_memory.total(memory.needs(PUBLISHED, everywhere)) - device_memory.total(
        memory.needs(PUBLISHED, language)
    )
    assert 6 * GIB < more < 8 * GIB  # 0.8 a decision, and what is trained
    assert 32 * memory.counted(PUBLISHED)["adapter everywhere"] == 107_969_280
    practised, wide = (memory.needs(PUBLISHED, Use(micro_batch=8, recompute=True, everywhere=e)) for e in (False, True))
    assert wide["heads and adapter"] - practised["heads and adapter"] == 4 * (107_969_280 - 79_953_920)
    assert {what for what in wide if wide[what] != practised[what]} == {"heads and adapter"}  # no gradient goes there


def test_supervised_training_with_an_adapter_everywhere_asks_for_more(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(memory, "require", lambda sizes, use, demands: asked.append(use.everywhere))
    kind, wide = kinds.get("openvla_oft"), OftOptions(adapts="everything")
    checkpoint.load(TINY, suite="libero_spatial", adapter=ADAPTER).save_pretrained(tmp_path / "own")
    for folder, options, supervised in (
        (TINY, wide, True),
        (TINY, wide, False),  # practice puts its adapter into the language model
        (TINY, OftOptions(), True),
        (tmp_path / "own", OftOptions(), False),  # its adapter is everywhere already
    ):
        kind.require_room(folder, options, Demands(device_bytes=GIB, micro_batch=8, supervised=supervised))
    assert asked == [True, False, False, True]


def test_an_update_of_the_head_alone_takes_what_the_plan_counts_and_no_pass_through_the_network():
    sizes = OpenVlaSizes(llama=LlamaSizes(width=64, hidden=160, layers=2, heads=4, vocabulary=32))
    head, hidden = ActionHead(sizes), torch.randn(3, sizes.slots, 64, dtype=torch.bfloat16)
    own = saved_bytes(head, lambda: head(hidden))
    assert own + hidden.nbytes == pytest.approx(3 * memory.kept_by_the_head(sizes, 2), rel=0.05)
    head_alone = Use(trains="head", micro_batch=32)
    assert device_memory.total(memory.needs(PUBLISHED, head_alone)) < device_memory.total(
        memory.needs(PUBLISHED, Use(act_batch=32))
    )
    assert not any("recompute" in words for words, _ in memory.ways(PUBLISHED, head_alone))


def test_the_published_size_is_counted_as_its_manifest_has_it():
    counted = memory.counted(PUBLISHED)
    assert 7.3e9 < counted["backbone"] < 7.54e9  # 982 tensors have 7.54e9; unused ones are not loaded
    assert 32 * counted["adapter"] == 79_953_920
    needed = memory.needs(PUBLISHED, Use(act_batch=1))
    assert needed["weights"] == 2 * counted["backbone"]


def test_the_page_tells_what_the_plan_computes():
    def at_work(what: str, **use) -> float:
        (found,) = (n for name, n in memory.needs(PUBLISHED, Use(**use)).items() if name.startswith(what))
        return found / GIB

    page = (Path(__file__).parents[3] / "docs" / "openvla_oft.md").read_text()
    table = dict(re.findall(r"^\| (.*?) \| ([0-9.; ]+) \|$", page, re.MULTILINE))
    acting = at_work("acting", act_batch=2) - at_work("acting", act_batch=1)
    passes = [
        at_work("gradients", micro_batch=2, **use) - at_work("gradients", micro_batch=1, **use)
        for use in (
            {},
            {"recompute": True},
            {"recompute": True, "supervised": True},
            {"recompute": True, "supervised": True, "everywhere": True},
        )
    ]
    assert table["acting, each decision of a batch"] == f"{acting:.2f}"
    assert table["a pass of an update, each decision: all activations; with `policy.recompute`"] == (
        f"{passes[0]:.1f}; {passes[1]:.2f}"
    )
    more = table["with `policy.adapts=everything`, each decision of a pass of `ript sft`: so much more"]
    assert more == f"{passes[3] - passes[2]:.1f}"


def test_training_fits_a_small_card_only_with_less_at_once_and_a_large_one_as_asked():
    use = Use(recompute=True, act_batch=32, micro_batch=16)
    small, middle, large = memory.plan(PUBLISHED, use)[1:]
    assert "24 GB" in small and "learn.micro_batch=" in small and "as asked" not in small
    assert "as asked" in middle and "as asked" in large
    without = memory.plan(PUBLISHED, dataclasses.replace(use, recompute=False))
    assert "policy.recompute=true" in without[2]


def test_a_second_copy_and_what_the_scale_head_learns_from_take_room_too():
    plain = memory.needs(PUBLISHED, Use(act_batch=1))
    assert memory.needs(PUBLISHED, Use(act_batch=1, copies=2))["weights"] == 2 * plain["weights"]
    kept = memory.needs(PUBLISHED, Use(micro_batch=1, supervised=True))["hidden states for the scale head"]
    assert kept == 4096 * 56 * 4096 * 2


def test_ways_to_need_less_need_less_and_less():
    use = Use(act_batch=32, micro_batch=32)
    needed = [device_memory.total(memory.needs(PUBLISHED, other)) for _, other in memory.ways(PUBLISHED, use)]
    assert needed == sorted(needed, reverse=True) and needed[0] < device_memory.total(memory.needs(PUBLISHED, use))


def test_a_device_that_is_too_small_is_told_what_is_needed_for_what_and_what_fits():
    with pytest.raises(DeviceTooSmall) as caught:
        memory.require(PUBLISHED, Use(), Demands(device_bytes=22 * GIB, act_batch=32, micro_batch=32))
    message = str(caught.value)
    assert "a device with 22.0 GiB free is too small for an OpenVLA-OFT policy of 7.37 billion parameters" in message
    assert "(weights 13.72, heads and adapter 1.55" in message
    assert "what fits: policy.recompute=true, learn.micro_batch=" in message
    with pytest.raises(DeviceTooSmall, match=r"at the least it takes 1\d\.\d GiB"):
        memory.require(PUBLISHED, Use(), Demands(device_bytes=10 * GIB, act_batch=1))


@pytest.fixture
def small_gpu(monkeypatch):
    """A GPU with 0.1 GiB free, as far as questions of memory go."""

    def free(device: str) -> int | None:
        return GIB // 10 if device == "cuda" else None

    for module in (checkpoint, build, specimens):
        monkeypatch.setattr(module, "free_on", free)


def test_a_folder_is_not_loaded_where_there_is_no_room(small_gpu, monkeypatch):
    for name in ("load_heads", "load_backbone"):
        monkeypatch.setattr(checkpoint, name, lambda *_, **__: pytest.fail("something was loaded"))
    with pytest.raises(DeviceTooSmall, match=r"set aside 1\.00"):
        checkpoint.load(TINY, suite="libero_spatial", device="cuda")


def test_practice_and_supervised_training_ask_before_they_load(small_gpu, monkeypatch):
    options = OftOptions(rank=4, alpha=4)
    kind = kinds.get("openvla_oft")
    with pytest.raises(DeviceTooSmall):
        kind.require_room(TINY, options, Demands(device_bytes=GIB // 10, act_batch=8, micro_batch=8))
    kind.require_room(TINY, options, Demands(device_bytes=2 * GIB, act_batch=8, micro_batch=8))
    kind.require_room(None, options, Demands(device_bytes=0))  # new policies are small


def test_the_rank_of_a_saved_policy_counts(tmp_path):
    policy = checkpoint.load(TINY, suite="libero_spatial", adapter=ADAPTER)
    policy.save_pretrained(tmp_path / "own")
    assert checkpoint.sizes_in(tmp_path / "own") == (policy.config.sizes, 4, True)
    assert checkpoint.sizes_in(TINY) == (policy.config.sizes, 0, False)


# ------------------------------------------------------------------ the benchmark


def test_the_benchmark_of_this_kind_measures_each_batch_and_passes_of_an_update(monkeypatch):
    monkeypatch.setattr(bench, "matmul_speed", lambda *_: 1e11)  # has a test of its own
    document = bench_policy("tiny", batch=[1, 3], kind="openvla_oft", rows=6, micro_batch=2, threads=1)
    assert [part["batch"] for part in document["act"]] == [1, 3]
    assert document["update"]["batch"] == 6 and document["precision"] == "float32"
    assert 2 * document["log_prob"]["gflop"] < document["update"]["gflop"] < 3 * document["log_prob"]["gflop"]
    assert "prepared" in describe_policy(document)


def test_a_random_policy_of_published_layout_acts_and_is_scored(monkeypatch):
    tiny = checkpoint.sizes_in(TINY)[0]
    policy = specimens._published(tiny, "cpu").with_adapter(2, 0.5)
    look = specimens.random_look(policy, 2)
    inputs, sample = specimens.decisions(policy, look, 3)
    log_prob, _ = policy.log_prob(inputs, sample)
    chunk = policy.act(look, [np.random.default_rng(i) for i in range(2)])
    np.testing.assert_allclose(log_prob.detach().numpy()[:2], chunk.log_prob, rtol=1e-4)


def test_the_synthetic_benchmark_says_that_a_gpu_is_too_small_before_it_makes_anything(small_gpu, monkeypatch):
    monkeypatch.setattr(specimens, "_published", lambda *_: pytest.fail("a policy was made"))
    with pytest.raises(DeviceTooSmall, match=r"what fits|at the least"):
        specimens.require_room("published", "cuda", 32, 8)
    assert not specimens.plan("small", 32, 8)


def test_what_fits_on_which_card_is_told_where_there_is_none(monkeypatch, capsys):
    """The words of docs/openvla_oft.md."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["bench", "policy", "--kind", "openvla_oft", "--synthetic", "--device", "cuda"]
    assert cli.main(words) == 2
    told = capsys.readouterr().err.splitlines()
    assert re.match(r"memory: \d+\.\d GiB \(weights 13\.72, .*acting on 32 decisions", told[0]), told
    assert [line.split(" GB ")[0] for line in told[1:4]] == [f"  a device of {gb}" for gb in (24, 48, 80)]
    assert "torch sees no CUDA device here" in told[4]
    cli.main([*words, "--batch", "64", "--micro_batch", "1"])  # as it is asked for
    assert "acting on 64 decisions" in capsys.readouterr().err.splitlines()[0]


def test_the_synthetic_benchmark_on_a_cpu_without_room_for_it_is_refused_too(monkeypatch, capsys):
    monkeypatch.setattr(specimens.capacity, "memory", lambda: Memory(16 * GIB, 12 * GIB, ""))
    monkeypatch.setattr(specimens, "_published", lambda *_: pytest.fail("a policy was made"))
    assert cli.main(["bench", "policy", "--kind", "openvla_oft", "--synthetic", "--threads", "1"]) == 1
    message = capsys.readouterr().err
    assert "a device with 12.0 GiB free is too small" in message and "weights 27.44" in message
    specimens.require_room("tiny", "cpu", 32, 8)


def test_the_command_names_the_sizes_that_there_are(capsys):
    assert cli.main(["bench", "policy", "--kind", "openvla_oft", "--size", "paper"]) == 2
    assert "unknown size 'paper': known: published, small, tiny" in capsys.readouterr().err
