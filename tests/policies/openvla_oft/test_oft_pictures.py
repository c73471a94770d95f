"""Preprocessing of pictures, against what the published code gives for the same frames."""

import sys

import numpy as np
import pytest
import torch
from oft_golden import arrays

from ript.core.errors import DependencyMissing, PolicyError
from ript.policies.openvla_oft import pictures

FRAMES = ("t0_agentview", "t0_wrist", "t3_agentview", "t3_wrist", "pattern", "noise")
JFIF = 20
"""Bytes of the header, which says how many dots an inch has."""


@pytest.fixture(scope="module")
def golden():
    return arrays("pictures")


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_is_prepared_as_published_bit_for_bit(golden, name):
    raw = golden[f"{name}/raw_u8"]
    jpeg = pictures.encoded(raw)
    if f"{name}/jpeg_bytes" in golden:
        assert jpeg[JFIF:] == golden[f"{name}/jpeg_bytes"].tobytes()[JFIF:]
    if f"{name}/decoded_u8" in golden:
        np.testing.assert_array_equal(pictures.decoded(jpeg), golden[f"{name}/decoded_u8"])
    np.testing.assert_array_equal(pictures.resized(pictures.decoded(jpeg), 224), golden[f"{name}/resized_u8"])
    if f"{name}/cropped_u8" in golden:
        np.testing.assert_array_equal(pictures.prepared(raw, 224), golden[f"{name}/cropped_u8"])


def test_resizing_equals_the_published_one_before_it_is_rounded(golden):
    for name in FRAMES:
        if f"{name}/lanczos_f32_rows" in golden:
            x = torch.from_numpy(pictures.decoded(pictures.encoded(golden[f"{name}/raw_u8"]))).float()
            x = pictures.resampled(pictures.resampled(x, 224).transpose(0, 1), 224).transpose(0, 1)
            np.testing.assert_array_equal(x[golden["rows_index"]], golden[f"{name}/lanczos_f32_rows"])


def forget():
    for cached in (pictures._c_sine, pictures.kernel, pictures._taps):
        cached.cache_clear()


def test_without_the_c_library_a_pixel_in_a_hundred_thousand_moves_by_one(golden, monkeypatch):
    frame = pictures.decoded(pictures.encoded(golden["t0_agentview/raw_u8"]))
    monkeypatch.setattr(pictures.ctypes, "CDLL", lambda name: object())
    forget()
    try:
        moved = pictures.resized(frame, 224).astype(int) - golden["t0_agentview/resized_u8"]
    finally:
        monkeypatch.undo()
        forget()
    assert 0 < np.count_nonzero(moved) < 10 and np.abs(moved).max() == 1


@pytest.mark.parametrize("name", ["full_image", "wrist_image"])
def test_a_picture_of_the_towers_size_is_only_cropped(golden, name):
    prepared = pictures.prepared(golden[f"pkl/{name}_u8"], 224)
    np.testing.assert_array_equal(prepared, golden[f"pkl/{name}_cropped_u8"])


def test_pixels_are_normalised_as_published_by_rounded_statistics(golden):
    for name in ("t0_agentview", "t0_wrist", "pattern"):
        picture = torch.from_numpy(golden[f"{name}/cropped_u8"])[None, None]
        rows = pictures.Normalisation().pixels(picture)[0, 0][:, golden["rows_index"]]
        np.testing.assert_array_equal(rows.numpy().reshape(-1), golden[f"{name}/pixel_values_rows"].reshape(-1))


def test_a_frame_that_stands_upright_is_not_turned(golden):
    raw = golden["t0_agentview/raw_u8"]
    upright = np.ascontiguousarray(raw[::-1, ::-1])
    np.testing.assert_array_equal(pictures.prepared(upright, 224, turn=False), pictures.prepared(raw, 224))


@pytest.mark.parametrize(
    "image, got",
    [
        (np.zeros((256, 256, 3), np.float32), r"float32 \[256, 256, 3\]"),
        (np.zeros((256, 256), np.uint8), r"uint8 \[256, 256\]"),
        (np.zeros((3, 256, 256), np.uint8), r"uint8 \[3, 256, 256\]"),
        ([[0]], "list"),
    ],
)
def test_what_is_no_picture_is_refused(image, got):
    with pytest.raises(PolicyError, match=got):
        pictures.prepared(image, 224)


def test_without_the_jpeg_decoder_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(DependencyMissing, match="simplejpeg"):
        pictures.decoded(b"")


def test_frames_are_kept_as_jpegs_in_one_row_and_come_back_whole(golden):
    jpegs = [pictures.encoded(golden[f"{name}/raw_u8"]) for name in ("t0_agentview", "noise")]
    row = pictures.packed(jpegs)
    assert row.shape == (pictures.ROOM,) and pictures.unpacked(row, 2) == jpegs
    np.testing.assert_array_equal(pictures.prepared_jpeg(jpegs[0], 224), golden["t0_agentview/cropped_u8"])
    with pytest.raises(PolicyError, match=r"2 frames of a decision take 154,978 bytes .* room for 131,072"):
        pictures.packed([jpegs[1], jpegs[1]])
