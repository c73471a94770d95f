"""The forward pass, official and two-pass, against the published code on the same weights."""

import pytest
import torch
from oft_golden import arrays, document
from oft_networks import inputs, network, prompts

from ript.policies.openvla_oft.density import Density
from ript.policies.openvla_oft.heads import ScaleHead
from ript.policies.openvla_oft.lora import lora_layers, lora_weights
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.sizes import OpenVlaSizes
from ript.policies.openvla_oft.weights import unused

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def golden():
    return arrays("io")


@pytest.fixture(scope="module", params=["base", "lora"])
def tagged(request):
    return request.param, network(request.param)


def check(result, expected):
    torch.testing.assert_close(result.detach(), torch.from_numpy(expected), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["s0", "s1", "s2"])
def test_the_official_forward_is_the_published_one(golden, tagged, name):
    tag, made = tagged
    hidden = made.hidden(made.seen(*inputs(golden, name)), prompts(golden, name))
    expected = f"{tag}/{name}/official/"
    check(hidden[0], golden[expected + "action_hidden"])
    check(made.action_head(hidden)[0], golden[expected + "normalized_actions"])
    check(made.scale_head(hidden)[0], golden[expected + "log_b"])


@torch.no_grad()
@pytest.mark.parametrize("names", [("s0",), ("s1",), ("s2",), ("s0", "s2")])
def test_the_two_pass_forward_is_ript_vlas(golden, tagged, names):
    tag, made = tagged
    words = prompts(golden, "s0") * 2 if len(names) == 2 else prompts(golden, *names)
    hidden = made.hidden_two_pass(made.seen(*inputs(golden, *names)), words)
    expected = f"{tag}/{'b2' if len(names) == 2 else names[0]}/ript/"
    check(hidden, golden[expected + "action_hidden"])
    check(made.action_head(hidden), golden[expected + "normalized_mean"])
    check(made.scale_head(hidden), golden[expected + "log_b"])


@torch.no_grad()
def test_an_alpha_that_is_given_scales_the_adapter(golden):
    made = network("lora", alpha=2)
    hidden = made.hidden(made.seen(*inputs(golden, "s0")), prompts(golden, "s0"))
    check(made.action_head(hidden)[0], golden["lora_alpha2/s0/official/normalized_actions"])


@torch.no_grad()
def test_every_step_before_the_language_model_is_the_published_one(golden):
    made, (pixels, proprio) = network(), inputs(golden, "s0")
    flat = pixels.flatten(0, 1)
    check(made.vision_backbone.featurizer(flat[:, :3]), golden["base/s0/official/dino_features"])
    check(made.vision_backbone.fused_featurizer(flat[:, 3:]), golden["base/s0/official/siglip_features"])
    check(made.projector(made.vision_backbone(pixels))[0], golden["base/s0/official/projected_patches"])
    check(made.proprio_projector(proprio)[0], golden["base/s0/official/proprio_feature"])


@torch.no_grad()
def test_a_batch_of_different_instructions_gives_the_rows_of_batches_of_one(golden):
    made, names = network(), ("s0", "s1", "s2")
    seen = made.seen(*inputs(golden, *names))
    for forward in (made.hidden, made.hidden_two_pass):
        together = forward(seen, prompts(golden, *names))
        for i, name in enumerate(names):
            torch.testing.assert_close(together[i : i + 1], forward(seen[i : i + 1], prompts(golden, name)), **CLOSE)


@torch.no_grad()
def test_a_padded_batch_of_supervised_training_is_the_published_one(golden):
    made = network()
    hidden = made.hidden(made.seen(*inputs(golden, "s0", "s1")), prompts(golden, "s0", "s1"))
    check(hidden, golden["train_fwd/action_hidden"])
    predicted = made.action_head(hidden)
    check(predicted, golden["train_fwd/predicted_actions"])
    error = (predicted - torch.from_numpy(golden["train_fwd/gt_actions"])).abs().mean()
    assert error.item() == pytest.approx(golden["train_fwd/l1_loss"].item(), abs=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_the_two_pass_forward_are_ript_vlas(golden, recompute):
    made = network("lora")
    for parameter in [*made.action_head.parameters(), *lora_weights(made).values()]:
        parameter.requires_grad_(True)
    hidden = made.hidden_two_pass(
        made.seen(*inputs(golden, "s0", "s2")), prompts(golden, "s0") * 2, recompute=recompute
    )
    density = Density(sampling="published", temperature=5.0)
    given = torch.from_numpy(golden["lora/b2/ript/given_actions"])
    log_prob, _ = density.log_prob(made.action_head(hidden), made.scale_head(hidden), given)
    loss = -log_prob.mean()
    assert loss.item() == pytest.approx(golden["lora/b2/ript/neg_mean_logprob"].item(), abs=1e-5)
    loss.backward()
    own = {name: p.grad for name, p in made.named_parameters()}
    norms = {
        name.removeprefix("model.base_model.model.").replace(".default.", "."): norm
        for name, norm in document("meta")["grad_norms_lora_b2"].items()
    }
    compared = 0
    for name, norm in norms.items():
        if unused(made.sizes).match(name) or name.startswith("scale_head"):
            continue
        gradient = own[name]
        if not norm:
            assert gradient is None or not gradient.any(), name
        else:
            assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
            compared += 1
    assert compared == 42 + 16
    for key, expected in golden.items():
        if key.startswith("lora/b2/grad/"):
            name = key.removeprefix("lora/b2/grad/")
            torch.testing.assert_close(own[name], torch.from_numpy(expected), rtol=1e-4, atol=1e-6)


def test_recomputing_activations_changes_no_gradient(golden):
    gradients = []
    for recompute in (False, True):
        made = network("lora")
        for parameter in lora_weights(made).values():
            parameter.requires_grad_(True)
        seen = made.seen(*inputs(golden, "s0", "s1"))
        made.hidden(seen, prompts(golden, "s0", "s1"), recompute=recompute).sum().backward()
        gradients.append({k: p.grad for k, p in lora_weights(made).items()})
    for name, gradient in gradients[0].items():
        assert gradient.any()
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-7)


def test_float32_updates_beside_bfloat16_weights_get_float32_gradients(golden):
    made = network("lora", dtype=torch.bfloat16)
    for parameter in lora_weights(made).values():
        parameter.requires_grad_(True)
    hidden = made.hidden(made.seen(*inputs(golden, "s0")), prompts(golden, "s0"))
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().sum().backward()
    for name, parameter in lora_weights(made).items():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
    torch.testing.assert_close(
        hidden.detach().float()[0], torch.from_numpy(golden["lora/s0/official/action_hidden"]), atol=0.1, rtol=0
    )


def test_a_new_update_changes_nothing_until_it_is_trained(golden):
    made, (pixels, proprio) = network(), inputs(golden, "s0")
    with torch.no_grad():
        before = made.hidden(made.seen(pixels, proprio), prompts(golden, "s0"))
        for layer in lora_layers(made).values():
            layer.add_lora(4, 0.5)
        after = made.hidden(made.seen(pixels, proprio), prompts(golden, "s0"))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert all(weight.any() == name.endswith("lora_A.weight") for name, weight in lora_weights(made).items())


def test_names_and_shapes_are_those_of_the_published_7b_model():
    manifest = document("full_manifest")
    with torch.device("meta"):
        made = OpenVla(OpenVlaSizes())
        made_scale = ScaleHead(made.sizes)
    expected = {k: v for k, v in manifest["model"].items() if not unused(made.sizes).match(k)}
    heads = manifest["action_head (file keys carry prefix 'module.')"]
    expected |= {f"action_head.{k}": v for k, v in heads.items()}
    projector = manifest["proprio_projector (file keys carry prefix 'module.')"]
    expected |= {f"proprio_projector.{k}": v for k, v in projector.items()}
    assert {k: list(v.shape) for k, v in made.state_dict().items()} == expected
    updates = {k.removeprefix("base_model.model."): v for k, v in manifest["ript_lora_adapter_r32"].items()}
    for layer in lora_layers(made).values():
        layer.add_lora(32, 0.5)
    assert {k: list(v.shape) for k, v in lora_weights(made).items()} == {
        k: v for k, v in updates.items() if not unused(made.sizes).match(k)
    }
    assert {k: list(v.shape) for k, v in made_scale.state_dict().items()} == manifest[
        "ript_openvla_headers.scale_header"
    ]
