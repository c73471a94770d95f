"""The policy benchmark: what it counts, on a tiny policy."""

import json

import pytest
import torch

from ript.bench.policy import bench_policy, describe_policy, matmul_speed
from ript.cli.main import main


@pytest.fixture(scope="module")
def document() -> dict:
    return bench_policy("tiny", batch=3, rows=16, threads=1)


def test_it_counts_operations_and_measures_ratios(document: dict) -> None:
    assert json.loads(json.dumps(document)) == document
    for name, batch in (("act", 3), ("log_prob", 16), ("update", 16)):
        part = document[name]
        assert part["batch"] == batch and part["milliseconds"] > 0 and part["ratio_to_naive"] > 0
        # The limit is what the operations take at the speed of a matrix product.
        limit = part["gflop"] / document["matmul_gflops"] * 1000
        assert part["ratio_to_limit"] == pytest.approx(limit / part["milliseconds"], rel=1e-6)
    assert document["update"]["gflop"] > 2 * document["log_prob"]["gflop"]  # forward and backward
    assert document["log_prob"]["ratio_to_naive"] > 1  # a batch is faster than one decision at a time


def test_options_say_what_they_give_or_why_not(document: dict) -> None:
    assert set(document["options"]) == {
        "fused AdamW",
        "attention as plain products",
        "torch.compile",
        "bf16 autocast",
        "bf16 autocast, torch.compile",
    }
    for option in document["options"].values():
        assert "error" in option or option["ratio"] == pytest.approx(
            option["plain_milliseconds"] / option["milliseconds"]
        )
    assert document["options"]["bf16 autocast"].get("changes_numerics", True)


def test_the_layout_of_pictures_is_timed_both_ways(document: dict) -> None:
    pictures = document["pictures"]
    assert pictures["batch"] == 3 and pictures["milliseconds"] > 0 and 0.1 < pictures["ratio_to_channels_first"] < 10


def test_its_text_has_every_part(document: dict) -> None:
    text = describe_policy(document)
    assert all(
        word in text
        for word in ("tiny", "act", "log_prob", "update", "fused AdamW", "without a cache", "channels first")
    )


def test_a_matrix_product_takes_as_long_as_its_operations() -> None:
    torch.set_num_threads(1)
    assert 1e8 < matmul_speed("cpu", size=256) < 1e13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "huge"], "size: 'huge' is not one of paper, small, tiny"),
        (["--batch", "0"], "batch (0) and rows (512) must be at least 1"),
        (["--threads", "0"], "threads (0) must be at least 1"),
        (["--device", "tpu"], "device: 'tpu' is neither cpu nor cuda"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "policy", *words]) != 0
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "policy", "--device", "cuda"]) != 0
    assert "torch sees no CUDA device here" in capsys.readouterr().err
