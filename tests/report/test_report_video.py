"""Videos decode to what was put in."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from PIL import Image
from synthetic_run import moving_square

from ript.core.errors import DataError
from ript.report.read import _pair_videos
from ript.run import video


def decode(data: bytes) -> tuple[str, str, np.ndarray]:
    with av.open(io.BytesIO(data)) as source:
        stream = source.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(stream)]
        return stream.codec_context.name, stream.codec_context.pix_fmt, np.stack(frames)


def test_a_video_is_h264_that_browsers_play_and_has_every_frame():
    frames = moving_square(frames=17, size=64)
    encoded = video.encode(frames, fps=20)
    codec, pixels, decoded = decode(encoded.data)
    assert (codec, pixels, encoded.suffix) == ("h264", "yuv420p", ".mp4")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_odd_sizes_are_padded_at_the_far_edges():
    frames = moving_square(frames=3, size=64)[:, :63, :61]
    _, _, decoded = decode(video.encode(frames).data)
    assert decoded.shape == (3, 64, 62, 3)
    assert np.abs(decoded[:, :63, :61].astype(int) - frames).mean() < 4


def test_the_frame_rate_is_kept():
    with av.open(io.BytesIO(video.encode(moving_square(20), fps=12.5).data)) as source:
        assert float(source.streams.video[0].average_rate) == 12.5


def test_without_an_h264_encoder_it_falls_back_to_vp9(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    path = video.write_video(tmp_path / "a.mp4", moving_square(5))
    assert path.name == "a.webm"
    assert [file.name for file in tmp_path.iterdir()] == ["a.webm"]
    codec, _, decoded = decode(path.read_bytes())
    assert codec in ("vp9", "libvpx-vp9")
    assert len(decoded) == 5


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_what_is_no_video_is_refused_with_its_shape(frames):
    with pytest.raises(DataError, match=r"expected uint8 \[T, h, w, 3\]"):
        video.encode(frames)


def test_the_poster_is_the_first_frame(tmp_path):
    path = video.write_video(tmp_path / "a.mp4", moving_square(6))
    picture = np.asarray(Image.open(io.BytesIO(video.poster(video.first_frame(path)))))
    assert np.abs(picture.astype(int) - moving_square(6)[0]).mean() < 4


def test_a_damaged_video_is_named(tmp_path):
    path = video.write_video(tmp_path / "a.mp4", moving_square(6))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"a\.mp4 is not a readable video"):
        video.first_frame(path)


def test_a_task_whose_name_no_file_can_have_is_written_and_read_all_the_same(tmp_path):
    stage = tmp_path / "before"
    stage.mkdir()
    written, missing = video.write_videos(stage, [("my_pkg:space/Push__T-v0", "0" * 16, "success", moving_square(3))])
    assert (len(written), missing) == (1, [])
    (pair,) = _pair_videos(tmp_path, {})
    assert pair.task == "my_pkg-space-Push__T-v0" and pair.before is not None
