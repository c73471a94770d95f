"""The policy benchmark: what it counts, on a tiny policy."""

import json

import pytest
import torch

from ript.bench.measuring import matmul_speed
from ript.bench.policy import _Update, bench_policy, describe_policy
from ript.cli.main import main
from ript.core.registry import kinds


@pytest.fixture(scope="module")
def document() -> dict:
    return bench_policy("tiny", batch=3, rows=16, threads=1)


def test_it_counts_operations_and_measures_ratios(document: dict) -> None:
    assert json.loads(json.dumps(document)) == document
    (act,) = document["act"]
    for part, batch in ((act, 3), (document["log_prob"], 16), (document["update"], 16)):
        assert part["batch"] == batch and part["milliseconds"] > 0 and part["ratio_to_one_by_one"] > 0
        assert part["a_second"] == pytest.approx(1000 * batch / part["milliseconds"])
        # The limit is what the operations take at the speed of a matrix product.
        limit = part["gflop"] / document["matmul_gflops"] * 1000
        assert part["ratio_to_limit"] == pytest.approx(limit / part["milliseconds"], rel=1e-6)
    assert document["update"]["gflop"] > 2 * document["log_prob"]["gflop"]  # forward and backward
    assert document["log_prob"]["ratio_to_one_by_one"] > 1  # a batch is faster than one decision at a time


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


def test_what_a_kind_compares_is_timed_both_ways(document: dict) -> None:
    for found in document["comparisons"]:
        assert found["milliseconds"] > 0 and 0.05 < found["ratio"] < 20
    assert [found["name"] for found in document["comparisons"]] == ["act", "tokens alone", "pictures alone"]


def test_its_text_has_every_part(document: dict) -> None:
    text = describe_policy(document)
    words = ("quest tiny", "act", "log_prob", "update", "fused AdamW", "without a key/value cache", "channels first")
    assert all(word in text for word in words)


def test_a_step_in_passes_is_the_step() -> None:
    specimens = kinds.get("quest").specimens()
    gradients = []
    for micro_batch in (0, 3):
        policy = specimens.make("tiny", "cpu")
        inputs, sample = specimens.decisions(policy, specimens.look(policy, 4), 8)
        update = _Update(policy, inputs, sample, micro_batch)
        update.step(update.optimiser())
        gradients.append(torch.cat([p.grad.flatten() for group in policy.rl_parameters() for p in group["params"]]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_a_matrix_product_takes_as_long_as_its_operations() -> None:
    torch.set_num_threads(1)
    assert 1e8 < matmul_speed("cpu", size=256) < 1e13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "huge"], "unknown size 'huge'"),
        (["--batch", "0"], "batch (0), rows (512) and threads (2) must be at least 1"),
        (["--threads", "0"], "threads (0) must be at least 1"),
        (["--kind", "gaussian"], "kind 'gaussian' brings no random policies that could be measured"),
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
