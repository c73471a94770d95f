"""The contract of a policy, checked: the kinds that ship keep it, and each way to break it is named by its number."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from ript.cli.main import main
from ript.core import hooks
from ript.core.registry import kinds
from ript.policies.check import CHECKS, Finding, check_policy, in_words
from ript.sims.registry import make_simulator
from ript.sims.trajectories import looks

PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_policy.md").read_text()
(CLASS,) = re.findall(r"^```python\n(# my_policy\.py\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
"""The page's example."""

ACT = "    def act(self, observation, generators, *, greedy=False):\n"
RETURN = "        return ActionChunk(\n            actions=sample.clamp(-1, 1).numpy(),"
BROKEN: dict[str, tuple[int, str, str]] = {
    "it adds something each time": (
        3,
        RETURN,
        "        self.count = getattr(self, 'count', 0) + 1\n"
        + RETURN.replace("sample.", "(sample + self.count / 99)."),
    ),
    "it draws from its own generator": (
        2,
        ACT,
        f"{ACT}        generators = [np.random.default_rng() for _ in generators]\n",
    ),
    "all rows draw from the first generator": (
        2,
        ACT,
        f"{ACT}        generators = [generators[0] for _ in generators]\n",
    ),
    "rows are compared with their batch": (
        2,
        "(self.head(seen)",
        "(self.head(seen - (seen.mean(0) if len(seen) > 1 else 0))",
    ),
    "it scores clipped actions": (
        1,
        "        return density.log_prob(sample).sum(-1), ",
        "        return density.log_prob(sample.clamp(-1, 1)).sum(-1), ",
    ),
    "it scores with noise": (
        1,
        "        return density.log_prob(sample).sum(-1), ",
        "        return density.log_prob(sample + 1e-6 * torch.randn(sample.shape)).sum(-1), ",
    ),
    "terms are of steps before the first": (4, "np.arange(self.chunk)", "np.arange(self.chunk) - 1"),
    "what normalises is not saved": (
        5,
        '        self.register_buffer("proprio_mean", torch.zeros(simulator.proprio_dim))',
        "        self.proprio_mean = torch.zeros(simulator.proprio_dim)",
    ),
    "a parameter is not saved": (
        5,
        "    def weights(self):",
        "    def state_dict(self, *a, **k):\n"
        "        return {n: x for n, x in super().state_dict(*a, **k).items() if n != 'log_std'}\n\n"
        "    def load_state_dict(self, found, strict=True):\n"
        "        return super().load_state_dict(found, strict=False)\n\n"
        "    def weights(self):",
    ),
    "a parameter is not sent": (
        5,
        "in self.state_dict().items()}\n\n    def load_weights(self, weights):\n"
        "        self.load_state_dict(dict(weights))",
        "in self.state_dict().items() if name != 'log_std'}\n\n    def load_weights(self, weights):\n"
        "        self.load_state_dict(dict(weights), strict=False)",
    ),
    "greedy scores are not finite": (
        6,
        "log_prob=density.log_prob",
        "log_prob=(math.nan if greedy else 1) * density.log_prob",
    ),
    "its density has no gradient": (
        8,
        "    def log_prob(self, inputs, sample):\n",
        "    @torch.no_grad()\n    def log_prob(self, inputs, sample):\n",
    ),
    "it scores by other parameters than those that are updated": (
        8,
        '        return [{"params": [*self.head.parameters(), self.log_std]}]',
        '        return [{"params": [*self.eyes.parameters()]}]',
    ),
    "its loss is not finite": (8, "squared[torch.from_numpy(batch.mask)].mean(), {}", "squared.mean() * math.nan, {}"),
    "its loss is detached": (
        8,
        "squared = (mean - torch.from_numpy(batch.actions))",
        "squared = (mean.detach() - torch.from_numpy(batch.actions) + 0 * self.log_std.detach().requires_grad_())",
    ),
    "it holds a lock": (
        7,
        "        self.eval()  # until",
        "        self.lock = __import__('threading').Lock()\n        self.eval()  # until",
    ),
}
"""What is wrong -> number of the contract, words of the page's class, and what stands in their place."""


def findings(name: str, **options: object) -> list[Finding]:
    """Of a new policy of a kind."""
    kind = kinds.get(name)
    with make_simulator("toy/reach-corner", image_size=16) as simulator:
        policy = kind.make(kind.options(**options), simulator.spec, 0, None)
        kind.prepare_untrained(policy, 0)
        hooks.read(policy, [simulator.task.instruction])
        seen = looks(simulator, simulator.initial_states(2), hooks.observation_steps_of(policy), 0)
    return check_policy(policy, seen, kind.load, window=kind.window(policy))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gaussian", {}),
        ("gaussian", {"n_obs_steps": 2}),
        ("quest", {"size": "tiny"}),
        ("openvla_oft", {"size": "tiny"}),
        ("openvla_oft", {"size": "tiny", "rl_trains": "head"}),
    ],
)
def test_every_kind_keeps_the_contract(kind: str, options: dict) -> None:
    found = findings(kind, **options)
    assert all(finding.passed for finding in found), in_words(kind, found)
    assert len(found) == len(CHECKS) and {finding.number for finding in found} == set(range(1, 9))


def test_the_pages_class_keeps_the_contract(imported_from_here: Path) -> None:
    Path("my_policy.py").write_text(CLASS)
    found = findings("my_policy:MyPolicy")
    assert all(finding.passed for finding in found), in_words("", found)


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_breaks_the_contract_is_named_by_its_number_with_what_to_do(wrong: str, imported_from_here: Path) -> None:
    number, words, instead = BROKEN[wrong]
    assert words in CLASS
    code = CLASS.replace("my_policy:MyPolicy", "odd_policy:MyPolicy").replace(words, instead)
    Path("odd_policy.py").write_text(code)
    found = findings("odd_policy:MyPolicy")
    failed = [finding for finding in found if finding.passed is False]
    assert {finding.number for finding in failed} == {number} and all(f.what and f.remedy for f in failed)
    assert f"not sound: it breaks contract {number}" in in_words("odd", found)


def test_a_loss_that_supervised_training_cannot_use_is_named(
    imported_from_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = CLASS.replace("my_policy:MyPolicy", "bare:MyPolicy").replace("mask)].mean(), {}", "mask)].mean()")
    Path("bare.py").write_text(code)
    assert main(["check", "toy/reach-corner", "--states", "2", "--steps", "2", "--policy", "bare:MyPolicy"]) == 1
    printed = capsys.readouterr().out
    assert "8  gradients reach what is trained" in printed and "not sound: it breaks contract 8" in printed
    assert "loss returned a tensor []; expected (the mean loss as a tensor [] with a gradient" in printed


def test_a_word_that_is_neither_folder_nor_kind_is_told_the_kinds_and_what_to_install(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "toy/reach-corner", "--policy", "pi0"]) != 0
    told = capsys.readouterr().err
    assert "pi0 is no policy folder here" in told and "gaussian, openvla_oft, quest" in told
    assert "install the package that brings it (an entry point of ript.policies)" in told


def test_check_takes_a_kind_with_its_settings_and_a_folder(
    imported_from_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_policy.py").write_text(CLASS)
    short = ["check", "toy/reach-corner", "--states", "2", "--steps", "2", "--policy"]
    assert main([*short, "my_policy:MyPolicy", "--policy.std=0.5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sound"] and len(document["policy"]["checks"]) == len(CHECKS)

    kind = kinds.get("my_policy:MyPolicy")
    with make_simulator("toy/reach-corner", image_size=16) as simulator:
        kind.make(kind.options(), simulator.spec, 0, None).save_pretrained(imported_from_here / "policy")
    assert main([*short, "policy"]) == 0  # of pictures of 16 pixels, as it was made for
    assert capsys.readouterr().out.endswith(f"sound: {len(CHECKS)} of {len(CHECKS)} hold\n")
    Path("my_policy.py").write_text(CLASS.replace(*BROKEN["terms are of steps before the first"][1:]))
    del sys.modules["my_policy"]
    kinds._loaded.clear()
    assert main([*short, "policy"]) == 1
    assert "it breaks contract 4" in capsys.readouterr().out
    assert main([*short, "policy", "--policy.std=0.5"]) == 2
    assert "policy.std: policy is made already: leave it out" in capsys.readouterr().err
    assert main(["check", "metaworld/reach-v3", "--policy", "policy"]) == 2
    assert "policy was made for suite toy, and metaworld/reach-v3 is of suite metaworld" in capsys.readouterr().err
