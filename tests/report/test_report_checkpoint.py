"""Checkpoints come back equal to the bit, or not at all."""

from __future__ import annotations

import math
import random
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from ript.core.errors import DataError, RunError
from ript.run import checkpoint
from ript.run.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint

torch.set_num_threads(1)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
]


def round_trip(tmp_path, state):
    return read_checkpoint(write_checkpoint(tmp_path, 7, state)).state


def same(a, b) -> bool:
    """Equal in type and in every bit, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return a == b


def build():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, optimiser, torch.Generator().manual_seed(5), np.random.default_rng(6)


def train(model, optimiser, generator, rng, steps):
    for _ in range(steps):
        noise = torch.rand(3, 4, generator=generator) + float(rng.normal())
        optimiser.zero_grad()
        model(noise).square().mean().backward()
        optimiser.step()


def test_training_that_goes_on_from_a_checkpoint_equals_training_that_never_stopped(tmp_path):
    whole = build()
    train(*whole, 7)

    model, optimiser, generator, rng = build()
    train(model, optimiser, generator, rng, 4)
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "torch": generator.get_state(),
        "numpy": rng.bit_generator.state,
    }
    write_checkpoint(tmp_path, 4, state)
    train(model, optimiser, generator, rng, 1)  # what is lost in the crash must not matter

    found = read_checkpoint(tmp_path / "000004")
    assert found.iteration == 4
    model, optimiser, generator, rng = build()
    model.load_state_dict(found.state["model"])
    optimiser.load_state_dict(found.state["optimiser"])
    generator.set_state(found.state["torch"])
    rng.bit_generator.state = found.state["numpy"]
    train(model, optimiser, generator, rng, 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[0].state_dict()[name]), name
    assert torch.equal(generator.get_state(), whole[2].get_state())


def test_an_optimiser_state_keeps_its_integer_keys_and_its_tuples(tmp_path):
    model, optimiser, generator, rng = build()
    train(model, optimiser, generator, rng, 1)
    found = round_trip(tmp_path, {"optimiser": optimiser.state_dict()})["optimiser"]
    assert list(found["state"]) == [0, 1, 2, 3]
    assert found["param_groups"] == optimiser.state_dict()["param_groups"]
    assert found["param_groups"][0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_any_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    bits = torch.randint(0, 2, (3, 16), dtype=torch.uint8) if dtype is torch.bool else torch.randint(0, 256, (3, 16))
    tensor = bits.to(torch.uint8).view(dtype)
    found = round_trip(tmp_path, {"t": tensor})["t"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i8", "|u1", "|b1", "<c16", "<U5", "<M8[s]", "<f2"])
def test_an_array_of_any_plain_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    array = np.arange(6).astype("<i8").reshape(2, 3).astype(dtype)
    found = round_trip(
        tmp_path, {"a": array, "empty": array[:0], "scalar": array[1, 1], "zero_d": np.array(array[0, 1])}
    )
    for name, expected in (("a", array), ("empty", array[:0]), ("zero_d", np.array(array[0, 1]))):
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert found[name].tobytes() == expected.tobytes()
    assert type(found["scalar"]) is type(array[1, 1])
    assert found["scalar"] == array[1, 1]


def test_tensors_that_share_memory_or_are_views_are_saved_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    found = round_trip(tmp_path, {"a": base, "b": base, "row": base[1], "column": base[:, 2], "scalar": base[0, 0]})
    assert torch.equal(found["b"], base)
    assert torch.equal(found["row"], base[1])
    assert torch.equal(found["column"], base[:, 2])
    assert found["scalar"].shape == ()


keys = st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.just("$tensor"))
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**140), 2**140),
    st.floats(width=64),
    st.text(max_size=6),
    st.binary(max_size=6),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(tree=trees)
def test_any_nesting_of_plain_values_comes_back_equal(tmp_path_factory, tree):
    found = round_trip(tmp_path_factory.mktemp("checkpoint"), {"tree": tree})
    assert same(found["tree"], tree)


def test_the_state_of_pythons_own_generator_comes_back(tmp_path):
    ours = random.Random(4)
    found = round_trip(tmp_path, {"random": ours.getstate()})["random"]
    theirs = random.Random(0)
    theirs.setstate(found)
    assert [theirs.random() for _ in range(5)] == [ours.random() for _ in range(5)]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([None]), torch.eye(2).to_sparse(), lambda: 0])
def test_what_cannot_be_saved_exactly_is_refused_with_its_place(tmp_path, value):
    with pytest.raises(RunError, match=r"state\['learn'\]\[1\]"):
        write_checkpoint(tmp_path, 1, {"learn": [0, value]})
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"model": {"w": torch.ones(3)}, "lr": 0.1})
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "missing"])
def test_damage_to_any_file_is_found_and_named(tmp_path, name, damage):
    path = write_checkpoint(tmp_path, 1, {"w": torch.ones(100), "x": 1})
    data = bytearray((path / name).read_bytes())
    if damage == "truncated":
        (path / name).write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        (path / name).unlink()
    else:
        data[len(data) // 2] ^= 0x10
        (path / name).write_bytes(data)
    if (name, damage) == ("manifest.json", "one bit flipped"):
        with pytest.raises((DataError, RunError)):
            read_checkpoint(path)
    else:
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_checkpoint(path)


@pytest.mark.parametrize("error", [OSError("No such device (os error 19)"), SafetensorError("I/O (os error 5)")])
def test_tensors_that_the_system_does_not_hand_out_are_named_and_not_called_damaged(tmp_path, monkeypatch, error):
    def refuse(file):
        raise error

    path = write_checkpoint(tmp_path, 1, {"w": torch.ones(1)})
    monkeypatch.setattr(checkpoint, "load_file", refuse)
    with pytest.raises(RunError, match=r"000001/tensors.safetensors cannot be read: .*(try again|another disk)"):
        read_checkpoint(path)


def test_a_checkpoint_of_another_format_says_which(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"x": 1})
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(RunError, match="format 99"):
        read_checkpoint(path)


def test_only_finished_checkpoints_are_listed_oldest_first(tmp_path):
    for iteration in (2, 10, 1_000_000):
        write_checkpoint(tmp_path, iteration, {"x": iteration})
    (tmp_path / ".000011.ab.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000002", "000010", "1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []
