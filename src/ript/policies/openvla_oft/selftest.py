"""A loaded policy looks at itself before any rollout: what goes wrong silently elsewhere is found here."""

from __future__ import annotations

import torch

from ript.core.errors import PolicyError
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.prompt import FIRST

FARTHEST = 5.0
"""Largest distance of a normalised action from zero: trained heads stay near [-1, 1]."""
WORDS = 8


@torch.no_grad()
def require_sound(network: OpenVla, where: str, last: int | None = None) -> None:
    """Raise unless a network does on a grey picture what any OpenVLA-OFT policy does.

    Results are finite; actions lie about within the statistics that normalise them; and attention sees in both
    directions: when the sequence's last token is hidden, what is read at its first place changes.

    Args:
        network: with weights.
        where: its folder, for messages.
        last: token that prompts end with.

    Raises:
        PolicyError: says which of these does not hold.
    """
    sizes, device = network.sizes, network.llama.norm.weight.device
    pixels = torch.zeros(1, sizes.pictures, 6, sizes.image, sizes.image, device=device)
    words = [3 + i % max(1, sizes.llama.vocabulary - 3) for i in range(WORDS)]
    prompt = [FIRST, *words, *([] if last is None else [last])]
    seen = network.seen(pixels, torch.zeros(1, sizes.proprio, device=device))
    embeddings, rows, _ = network.sequence(seen, [prompt])
    hidden = network.llama(embeddings, rows=rows)
    actions = network.action_head(hidden).float()
    results = {"actions": actions}
    if network.scale_head is not None:
        results["scales"] = network.scale_head(hidden).float()
    for what, result in results.items():
        if not torch.isfinite(result).all():
            raise PolicyError(
                f"{where}: its {what} are not finite: its weights are damaged, or too large for {network.dtype}"
            )
    if (farthest := actions.abs().max().item()) > FARTHEST:
        raise PolicyError(
            f"{where}: it gives normalised actions of {farthest:.1f}, where about -1 to 1 is usual: head, statistics "
            "and weights are not of one policy"
        )
    mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=device)
    mask[:, -1] = False
    hidden_again = network.llama(embeddings, rows=rows, mask=mask)
    if torch.equal(hidden_again[:, 0], hidden[:, 0]):
        raise PolicyError(
            f"{where}: attention is causal, or weights are zero: what is read first does not depend on the last token, "
            "as it must in this kind of policy"
        )
