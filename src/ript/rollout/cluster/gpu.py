"""The GPU of a node: the one that Ray gave its process, where the policy computes and its simulators render."""

from __future__ import annotations

import os

from ript.core.capacity import RENDER_GPU
from ript.core.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What CUDA sees. Ray sets it, when an actor starts, to the number of the GPU that it gave it."""
HOW_TO_GO_ON = "`ript doctor --cluster` looks at each machine; without --cluster.gpus_per_node nodes compute on CPUs"


def take_gpu(name: str, device: str, backend: str) -> None:
    """Make the GPU that Ray gave this process the only one that it computes on, before it computes anything, and the
    one that its child processes render on. These do not compute on GPUs, so none is hidden from them: EGL numbers GPUs
    otherwise where some are hidden from CUDA.

    Args:
        name: of the node, for messages.
        device: where it computes: "cuda", or "cpu" for one that only renders there.
        backend: see `learn.ranks.over`.

    Raises:
        ConfigError: torch does not see that GPU, sees others too, or cannot sum over GPUs as it is asked to.
    """
    given = os.environ.get(VISIBLE, "")
    if device == "cuda":
        _require(name, given, backend)
    os.environ.pop(VISIBLE, None)
    os.environ[RENDER_GPU] = given


def _require(name: str, given: str, backend: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{name}: Ray gave it GPU {given or 'none'}, but torch {torch.__version__} sees no CUDA device there: "
            f"install a build of torch for its driver, or start Ray there with --num-gpus=0; {HOW_TO_GO_ON}"
        )
    torch.cuda.init()  # from here on what CUDA sees stays, whatever becomes of the variable
    if torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{name}: Ray gave it one GPU, but torch sees {torch.cuda.device_count()} there ({VISIBLE}={given!r}): "
            f"unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES where Ray is started; {HOW_TO_GO_ON}"
        )
    if backend == "nccl" and not torch.distributed.is_nccl_available():
        raise ConfigError(
            f"{name}: torch {torch.__version__} has no NCCL there: install a build that has, or give "
            "--cluster.backend=gloo"
        )
    torch.backends.cudnn.allow_tf32 = False  # as in one process: act and log_prob agree
