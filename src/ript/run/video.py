"""Rollouts as small videos that play in a browser, and the picture shown before they do."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ript.core.errors import DataError, DependencyMissing, RunError
from ript.core.files import require_content, write_bytes

Videos = Sequence[tuple[str, str, str, np.ndarray]]
"""As in `EvalResult.videos`: task name, initial state id, status value, uint8 frames `[T, h, w, 3]`."""

_CODECS = (
    ("libx264", "mp4", {"crf": "21", "preset": "medium"}),
    ("libvpx-vp9", "webm", {"crf": "34", "b": "0", "deadline": "good", "cpu-used": "4"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """An encoded video: its bytes, and the suffix of its file, ".mp4" or ".webm"."""

    data: bytes
    suffix: str


def encode(frames: np.ndarray, *, fps: float = 20) -> Video:
    """Encode uint8 `[T, h, w, 3]` as H.264 (VP9 where no H.264 encoder is installed), 4:2:0, ready for a web page.

    Odd sizes are padded by repeating the last row or column.

    Raises:
        DataError: frames of another dtype or shape, or none, or that the encoder does not take.
        DependencyMissing: PyAV is not installed or has neither encoder.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise DataError(f"video frames: expected uint8 [T, h, w, 3] with T > 0, got {frames.dtype} {frames.shape}")
    av = _import_av()
    name, container, options = _codec(av)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    target = io.BytesIO()
    try:
        with av.open(target, "w", format=container) as output:
            stream = output.add_stream(name, rate=Fraction(fps).limit_denominator(1000), options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for picture in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")):
                    output.mux(packet)
            for packet in stream.encode():
                output.mux(packet)
    except av.FFmpegError as error:
        raise DataError(f"{name} cannot encode {frames.shape[0]} frames of {frames.shape[1:3]}: {error}") from error
    return Video(data=target.getvalue(), suffix=f".{container}")


def write_video(path: str | Path, frames: np.ndarray, *, fps: float = 20) -> Path:
    """Encode and write atomically. The suffix becomes that of the codec in use; returns the path written."""
    video = encode(frames, fps=fps)
    path = Path(path).with_suffix(video.suffix)
    write_bytes(path, video.data)
    return path


def require_encoder() -> str:
    """The name of the encoder that videos are made with.

    Raises:
        DependencyMissing: there is none; before anything is measured that shall have videos.
    """
    return _codec(_import_av())[0]


def require_no_videos(folder: str | Path) -> None:
    """Raise `RunError` where a folder holds videos already: of which policy they are, no name says."""
    if found := sorted(
        path.name for path in Path(folder).iterdir() if path.suffix in (".mp4", ".webm") and path.is_file()
    ):
        raise RunError(
            f"{folder} holds videos of another evaluation, such as {found[0]}: give another --video-dir, or move them "
            "away"
        )


def write_videos(folder: str | Path, videos: Videos, *, fps: float = 20) -> tuple[list[Path], list[str]]:
    """Write each rollout as <task>__<state id>__<status>.mp4. One that cannot be written holds up nothing else.

    Returns:
        written: paths.
        missing: a sentence about each of the others: which, and why.
    """
    written, missing = [], []
    for task, state_id, outcome, frames in videos:
        name = re.sub(r"[/\\:]", "-", task)  # ids of environments have such signs
        path = Path(folder) / f"{name}__{state_id}__{outcome}.mp4"
        try:
            written.append(write_video(path, frames, fps=fps))
        except Exception as error:  # whatever went wrong: what was measured is worth more than its pictures
            missing.append(f"{path.name} is missing: {error}")
    return written, missing


def poster(frame: np.ndarray) -> bytes:
    """One uint8 `[h, w, 3]` frame as PNG."""
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(target, format="PNG", optimize=True)
    return target.getvalue()


def first_frame(path: str | Path) -> np.ndarray:
    """The first frame of a video file: uint8 `[h, w, 3]`.

    Raises:
        DataError: the file is missing, damaged or without a frame.
    """
    av = _import_av()
    require_content(path)
    try:
        with open(path, "rb") as file, av.open(file) as source:
            for frame in source.decode(video=0):
                return frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path} is not a readable video: {error}") from error
    raise DataError(f"{path} is a video without frames")


def _import_av():  # type: ignore[no-untyped-def]
    try:
        import av
    except (ImportError, OSError) as error:
        raise DependencyMissing(f"videos need PyAV, which cannot be imported ({error}): pip install av") from error
    return av


def _codec(av):  # type: ignore[no-untyped-def]
    for codec in _CODECS:
        if codec[0] in av.codecs_available:
            return codec
    names = " or ".join(codec[0] for codec in _CODECS)
    raise DependencyMissing(
        f"this build of PyAV cannot encode with {names}: install the wheel from PyPI (pip install av)"
    )
