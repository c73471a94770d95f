import threading

import pytest
import torch

from ript.core.errors import PolicyError
from ript.core.metrics import Mean
from ript.core.supervised import Stage
from ript.learn.gradient import Gradient
from ript.learn.rate import make_optimiser
from ript.learn.stages import require_trainable, time_steps


def squares(model, x):
    """Mean square of the outputs, as a part of 8 rows' mean."""
    value = model(x).square().mean() * (len(x) / 8)
    return value, {"rows": Mean(float(len(x)))}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parts_add_up_to_the_gradient_of_the_whole(threads):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3), torch.randn(8, 4)
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    unused = torch.nn.Parameter(torch.ones(1))
    model(x).square().mean().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    with Gradient([*model.parameters(), frozen, unused], threads) as gradient:
        metrics = gradient.add(lambda part: squares(model, part), [x[:3], x[3:5], x[5:]])
        assert metrics["rows"].value == pytest.approx(8 / 3)
        torch.testing.assert_close([p.grad for p in model.parameters()], expected)
        gradient.add(lambda part: squares(model, part), [x])
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * g for g in expected])
    assert frozen.grad is None and unused.grad is None


def test_an_error_in_a_part_arrives_and_no_thread_is_left():
    def broken(part):
        raise ValueError(f"part {part}")

    before = threading.active_count()
    with pytest.raises(ValueError, match="part 0"), Gradient([torch.nn.Parameter(torch.ones(1))], 2) as gradient:
        gradient.add(broken, range(4))
    assert threading.active_count() == before


def stage(*groups, modules=()):
    return Stage(
        name="clone",
        steps=1,
        learning_rate=1e-3,
        modules=modules,
        draws=lambda rng: iter([]),
        loss=lambda rows, batch: pytest.fail("it was trained"),
        judged="loss",
        groups=groups,
    )


def test_weights_of_fewer_bits_than_float32_are_not_trained():
    short, usual = torch.nn.Linear(2, 2).bfloat16(), torch.nn.Linear(2, 2)
    said = r"clone\) would train weights in bfloat16, which rounds away what its steps change: give the policy float32"
    for refused in (stage(modules=[usual, short]), stage({"params": list(short.parameters())}, modules=[usual])):
        with pytest.raises(PolicyError, match=said):
            require_trainable([stage(modules=[usual]), refused])
        with pytest.raises(PolicyError, match=said):
            time_steps(usual, [refused], 1)
    with pytest.raises(PolicyError, match=r"practice would train weights in bfloat16"):
        make_optimiser(Practised(short), learning_rate=1e-3)
    make_optimiser(Practised(usual.double()), learning_rate=1e-3)
    short.requires_grad_(False)  # frozen ones may be of any type
    require_trainable([stage(modules=[usual, short])])


class Practised:
    def __init__(self, module):
        self.module = module

    def rl_parameters(self):
        return [{"params": list(self.module.parameters())}]
