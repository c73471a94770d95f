"""From a simulator's picture to what the vision towers see, bit for bit as published checkpoints were trained.

A frame is turned by 180 degrees (robosuite's are upside down), goes through JPEG as the training data did, is resized
by a Lanczos kernel and cropped to its middle 90 % of area. All is done here, but JPEG: the encoder is
Pillow's, the decoder libjpeg-turbo with its fast integer transform (`simplejpeg`).
"""

from __future__ import annotations

import ctypes
import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ript.core.errors import DependencyMissing, PolicyError

JPEG_QUALITY = 95
CHROMA_HALVED = 2
"""Pillow's name of 4:2:0."""
RADIUS = 3
"""Radius of the Lanczos kernel, in pixels of the smaller picture."""
KEPT_AREA = 0.9
"""Share of a picture's area that its centre crop keeps."""

ROOM = 128 * 1024
"""Bytes in which a decision keeps the JPEGs of its frames; one of LIBERO's takes 14 to 18 thousand, noise 77."""

f32 = np.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Mean and deviation of the three channels, for DINOv2 and for SigLIP.

    Those of DINOv2 are the usual ones of ImageNet, rounded to bfloat16: so published files hold and use them.
    """

    dino_mean: tuple[float, ...] = (0.484375, 0.455078125, 0.40625)
    dino_std: tuple[float, ...] = (0.228515625, 0.2236328125, 0.224609375)
    siglip_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    siglip_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32 `[B, pictures, 6, h, w]` of uint8 `[B, pictures, h, w, 3]`."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pictures.device)
            for values in ((*self.dino_mean, *self.siglip_mean), (*self.dino_std, *self.siglip_std))
        )
        x = pictures.float() / 255
        return ((torch.cat([x, x], dim=-1) - mean) / std).movedim(-1, 2)


def prepared(image: np.ndarray, size: int, *, turn: bool = True) -> np.ndarray:
    """A picture as the towers see it, before normalisation.

    Args:
        image: uint8 `[h, w, 3]`, a simulator's frame. One of `[size, size, 3]` counts as turned and resized already
            (as the observation that OpenVLA-OFT's repository ships), and is only cropped.
        size: height and width of the result.
        turn: whether the frame stands upside down.

    Returns:
        uint8 `[size, size, 3]`.

    Raises:
        PolicyError: not such a picture.
    """
    require_picture(image)
    return cropped(image) if image.shape[:2] == (size, size) else prepared_jpeg(encoded(image, turn=turn), size)


def prepared_jpeg(jpeg: bytes, size: int) -> np.ndarray:
    """`prepared` from the frame's JPEG on."""
    return cropped(resized(decoded(jpeg), size))


def packed(jpegs: Sequence[bytes]) -> np.ndarray:
    """The JPEGs of a decision's frames in one row, uint8 `[ROOM]`: their lengths as int32, they, and zeros.

    Raises:
        PolicyError: there is no room.
    """
    head = np.array([len(jpeg) for jpeg in jpegs], "<i4").tobytes()
    content = head + b"".join(jpegs)
    if len(content) > ROOM:
        raise PolicyError(
            f"{len(jpegs)} frames of a decision take {len(content):,} bytes as JPEGs, and there is room for {ROOM:,}: "
            "frames are too large, or noise"
        )
    row = np.zeros(ROOM, np.uint8)
    row[: len(content)] = np.frombuffer(content, np.uint8)
    return row


def unpacked(row: np.ndarray, frames: int) -> list[bytes]:
    """The inverse."""
    ends = 4 * frames + np.cumsum([0, *row[: 4 * frames].view("<i4").tolist()])
    return [row[start:end].tobytes() for start, end in pairwise(ends.tolist())]


def require_picture(image: np.ndarray) -> None:
    """Raise `PolicyError` unless this is uint8 `[h, w, 3]`."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise PolicyError(f"a picture is uint8 [height, width, 3], got {got}: give the simulator's frames as they are")


def encoded(image: np.ndarray, *, turn: bool = True) -> bytes:
    """The JPEG of a frame: all that the rest of `prepared` depends on, in a tenth of the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    frame = np.ascontiguousarray(image[::-1, ::-1] if turn else image)
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=CHROMA_HALVED)
    return buffer.getvalue()


def decoded(jpeg: bytes) -> np.ndarray:
    """uint8 `[h, w, 3]`, by the fast integer transform: Pillow's decoder differs by up to 16.

    Raises:
        DependencyMissing: `simplejpeg` is not installed.
    """
    require_decoder()
    import simplejpeg

    return simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True, fastupsample=False)


def require_decoder() -> None:
    """Raise `DependencyMissing` unless frames can go through JPEG as published policies' do."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError as error:
        raise DependencyMissing(
            "OpenVLA-OFT's pictures need the package simplejpeg: `pip install 'ript[openvla]'`"
        ) from error


# ------------------------------------------------------------------ resizing


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 `[size, size, 3]` by Lanczos resampling in float32, rows first, rounded half to even."""
    x = resampled(resampled(torch.from_numpy(image).float(), size).transpose(0, 1), size).transpose(0, 1)
    return x.round().clamp(0, 255).to(torch.uint8).contiguous().numpy()


def resampled(x: torch.Tensor, size: int) -> torch.Tensor:
    """float32 `[size, ...]` of `[n, ...]`: each row a weighted sum, added up tap after tap."""
    flat = x.reshape(len(x), -1)  # products and sums in operations of their own: fused, they would round once less
    total = torch.zeros(size, flat.shape[1])
    product = torch.empty_like(total)
    for rows, weights in _taps(len(x), size):
        torch.index_select(flat, 0, rows, out=product)
        total.add_(product.mul_(weights))
    return total.reshape(size, *x.shape[1:])


@functools.lru_cache(maxsize=16)
def _taps(n: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(rows int64 `[size]`, weights float32 `[size, 1]`) of each tap; beyond the last row the weight is zero."""
    start, weights = kernel(n, size)
    return [
        (torch.from_numpy(np.minimum(start + tap, n - 1)), torch.from_numpy(weights[:, tap : tap + 1].copy()))
        for tap in range(weights.shape[1])
    ]


@functools.lru_cache(maxsize=16)
def kernel(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First row int64 `[size]` and weights float32 `[size, taps]` of each of `size` rows made of `n`.

    Half-pixel centres; the kernel is stretched when the picture shrinks; weights of a row add to one, so borders are
    renormalised. Every operation is rounded to float32: positions decide the last bits of weights.
    """
    step = f32(1) / f32(size / n)
    stretch = max(step, f32(1))
    narrow = f32(1) / stretch
    centre = (np.arange(size, dtype=f32) + f32(0.5)) * step
    start = np.ceil(centre - f32(RADIUS) * stretch - f32(0.5)).astype(int).clip(0)
    end = np.floor(centre + f32(RADIUS) * stretch - f32(0.5)).astype(int).clip(max=n - 1) + 1
    weights = np.zeros((size, int((end - start).max())), f32)
    for row in range(size):
        source = np.arange(start[row], end[row], dtype=f32)
        values = _lanczos((source + f32(0.5) - centre[row]) * narrow)
        total = functools.reduce(lambda a, b: f32(a + b), values, f32(0))
        weights[row, : len(values)] = values * (f32(1) / total)
    return start, weights


def _lanczos(x: np.ndarray) -> np.ndarray:
    """sin(pi x) sin(pi x / 3) * 3 / (pi x)^2 within the radius, in float32."""
    x, pi = np.abs(x), f32(math.pi)
    wide = np.maximum(x, f32(1e-3))  # nearer the middle it is 1
    product = f32(RADIUS) * _sin(pi * wide) * _sin(pi * wide / f32(RADIUS))
    value = product / (pi * pi * wide * wide)
    return np.where(x <= f32(1e-3), f32(1), np.where(x > RADIUS, f32(0), value)).astype(f32)


def _sin(x: np.ndarray) -> np.ndarray:
    """Sine in float32 as the C library rounds it: NumPy's and a rounded float64 sine differ in last bits, which moves
    one of 100,000 pixels by one."""
    sine = _c_sine()
    return np.array([sine(value) for value in x.tolist()], f32)


@functools.cache
def _c_sine() -> Callable[[float], float]:
    try:
        sine = ctypes.CDLL(None).sinf
    except (OSError, AttributeError, TypeError):  # no such library to be had: within one of 255
        return math.sin
    sine.restype, sine.argtypes = ctypes.c_float, [ctypes.c_float]
    return sine


# ------------------------------------------------------------------ cropping


def cropped(image: np.ndarray) -> np.ndarray:
    """The middle of a square picture, uint8 `[n, n, 3]`, resized back to `[n, n, 3]`.

    Bilinear between corners that coincide, in float32; values are cut, not rounded, on the way back to uint8.
    """
    low, high, share = _crop(len(image))
    x = torch.from_numpy(np.ascontiguousarray(image)).float().mul_(float(f32(1 / 255)))
    x = _between(x.transpose(0, 1), low, high, share).transpose(0, 1)
    x = _between(x, low, high, share)
    return x.clamp_(0, 1).mul_(255.5).to(torch.uint8).contiguous().numpy()


def _between(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """`x[low] + (x[high] - x[low]) * share`, rounded after each operation."""
    first, second = x.index_select(0, low), x.index_select(0, high)
    return second.sub_(first).mul_(share).add_(first)


@functools.lru_cache(maxsize=16)
def _crop(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of n samples: the pixels on its two sides, and how far it lies from the first to the second."""
    side, last = np.sqrt(f32(KEPT_AREA)), f32(n - 1)
    offset = (f32(1) - side) / f32(2)
    step = ((offset + side) - offset) * last / last
    place = offset * last + np.arange(n, dtype=f32) * step
    low, high = np.floor(place), np.ceil(place)
    share = torch.from_numpy(place - low)[:, None, None]
    return torch.from_numpy(low.astype(np.int64)), torch.from_numpy(high.astype(np.int64)), share
