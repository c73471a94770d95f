"""Random changes of pictures in supervised training."""

import colorsys
import itertools

import numpy as np
import pytest
import torch

from ript.core.noise import Noise, drawing_from
from ript.policies.augment import JITTERED, augment, grey, jitter, turn_hue


def test_augmentation_shifts_each_picture_by_up_to_two_pixels_and_repeats_its_edges() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 7, 9, 3), np.uint8))
    torch.manual_seed(0)
    moved = augment(images, shift=2, brightness=0.0)
    assert moved.dtype == torch.float32 and moved.shape == images.shape
    found = set()
    for image, result in zip(images.numpy(), moved.numpy(), strict=True):
        matches = [
            (dy, dx)
            for dy, dx in itertools.product(range(-2, 3), repeat=2)
            if np.allclose(
                image[np.clip(np.arange(7) + dy, 0, 6)][:, np.clip(np.arange(9) + dx, 0, 8)] / 255, result, atol=1e-6
            )
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert {dy for dy, _ in found} == {dx for _, dx in found} == {-2, -1, 0, 1, 2}


def test_augmentation_scales_the_brightness_of_each_picture_within_bounds() -> None:
    images = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    level = augment(images, shift=0, brightness=0.1) / (100 / 255)
    assert (level.flatten(1).std(1) < 1e-6).all()
    assert 0.9 <= float(level.min()) < 0.91 and 1.09 < float(level.max()) <= 1.1
    assert float(augment(torch.full((50, 4, 4, 3), 255, dtype=torch.uint8)).max()) == 1.0


def random_pictures(b: int, size: int = 5) -> torch.Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("turns", [0.0, 0.3, -0.3, 0.5, 1.0])
def test_a_turned_hue_is_that_of_hsv(turns: float) -> None:
    x = random_pictures(2)
    x[0, :, 0, 0] = 0.4  # grey has no hue
    x[0, :, 0, 1] = torch.tensor([0.9, 0.9, 0.1])  # two channels highest
    x[0, :, 0, 2] = 0.0
    turned = turn_hue(x, torch.full((2, 1, 1, 1), turns))
    for picture, y, column in np.ndindex(2, 5, 5):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[picture, :, y, column].tolist())
        expected = colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
        assert turned[picture, :, y, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_one_in_ten_pictures_keeps_its_colours() -> None:
    x = random_pictures(2000, 2)
    with drawing_from(Noise(1)):
        kept = (jitter(x, 0.3) == x).flatten(1).all(1)
    assert JITTERED == 0.9 and 0.08 < float(kept.float().mean()) < 0.12


def test_each_of_the_four_changes_is_there_and_within_bounds() -> None:
    def jittered(above: tuple[float, ...], below: tuple[float, ...], n: int = 4000) -> torch.Tensor:
        """Pictures of one colour above another."""
        x = torch.tensor([above, below]).T.reshape(1, 3, 2, 1).repeat(n, 1, 1, 1)
        with drawing_from(Noise(2)):
            return jitter(x, 0.3)

    plain = jittered((0.6,) * 3, (0.2,) * 3)  # grey, which has no saturation and no hue
    assert torch.allclose(plain[:, 0], plain[:, 2], atol=1e-6)
    top, bottom = plain[:, 0, 0, 0], plain[:, 0, 1, 0]
    for factor in ((top + bottom) / 0.8, (top - bottom) / (top + bottom) / 0.5):  # brightness, contrast
        assert 0.7 - 1e-5 <= float(factor.min()) < 0.71 and 1.29 < float(factor.max()) <= 1.3 + 1e-5
    coloured = jittered((0.6, 0.3, 0.3), (0.6, 0.3, 0.3))[:, :, 0, 0]
    hues = torch.tensor([colorsys.rgb_to_hsv(*rgb.tolist())[0] for rgb in coloured])
    for turned in (hues[hues < 0.5], 1 - hues[hues > 0.5]):  # either way, and whatever else is drawn
        assert 0.295 < float(turned.max()) <= 0.3 + 1e-5
        assert 0.4 < len(turned) / len(hues) < 0.6
    spread = (coloured.amax(1) - coloured.amin(1)) / 0.3
    assert 0.7**3 - 1e-5 <= float(spread.min()) < 0.44 and 1.77 < float(spread.max()) < 1.3**3  # three factors


def test_stronger_jitter_changes_more_and_none_changes_nothing() -> None:
    x = random_pictures(50)
    changes = []
    for strength in (0.0, 0.05, 0.3):
        with drawing_from(Noise(3)):
            changes.append(float((jitter(x, strength) - x).abs().mean()))
    assert changes[0] < 1e-6 < 0.01 < changes[1] < changes[2] / 3


def test_pictures_stay_within_their_range_and_are_still_shifted_when_colours_change() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 6, 7, 3), np.uint8))
    with drawing_from(Noise(4)):
        changed = augment(images, colour_jitter=0.3)
    assert changed.shape == images.shape and changed.dtype == torch.float32
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    with drawing_from(Noise(4)):
        shifted = augment(images, brightness=0.0)
    same = torch.isclose(changed, shifted, atol=1e-6).flatten(1).all(1)
    assert 0 < int(same.sum()) < 20  # those that kept their colours


def test_luma_weighs_green_most() -> None:
    weights = [float(grey(torch.eye(3)[i].view(1, 3, 1, 1))) for i in range(3)]
    assert weights == pytest.approx([0.299, 0.587, 0.114])
