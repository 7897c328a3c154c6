"""Videos: the overlay as a video, and the areas of each frame as a table."""

import contextlib
import csv
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ImageError
from tiramisu.files import atomic_path
from tiramisu.images import DEFAULT_MAX_PIXELS
from tiramisu.inference.segmenter import Options, Segmentation, count_classes
from tiramisu.labels import LabelSet
from tiramisu.visualize import overlay

FALLBACK_RATE = 25.0  # frames a second, where a file does not tell
# Every build of OpenCV has these; browsers play VP8.
CODECS = {".mp4": "mp4v", ".webm": "VP80"}


class FrameSegmenter(Protocol):
    """What segments frames: a Segmenter, or what stands for one."""

    labels: LabelSet

    def __call__(self, image: UInt8Array, options: Options | None = None) -> Segmentation:
        """Segment an image, uint8 (H, W, 3) RGB."""
        ...


class VideoResult(NamedTuple):
    """Frames that were segmented, their height and width, and the pixels of each class in all of them."""

    frames: int
    height: int
    width: int
    counts: tuple[int, ...]


def read_frames(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Iterator[UInt8Array], float]:
    """Return the frames of a video, uint8 (H, W, 3) RGB, and its frames a second.

    Raises:
        ImageError: it is no video, or its frames are too large.
    """
    if not path.is_file() or not path.stat().st_size:
        raise ImageError(f"{path}: not a video, or an empty one")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened() or width * height <= 0:
        capture.release()
        raise ImageError(f"{path}: not a video that can be read here")
    if width * height > max_pixels:
        capture.release()
        raise ImageError(f"{path}: frames of {width} x {height} are more than the limit of {max_pixels:,} pixels")
    rate = capture.get(cv2.CAP_PROP_FPS)

    def frames() -> Iterator[UInt8Array]:
        try:
            while True:
                found, frame = capture.read()
                if not found:
                    return
                yield np.ascontiguousarray(frame[:, :, ::-1])
        finally:
            capture.release()

    return frames(), rate if 0 < rate < 1000 else FALLBACK_RATE


def count_frames(path: Path) -> int:
    """Return how many frames a video claims to have; 0 where it does not tell."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return max(count, 0)


def segment_video(
    segmenter: FrameSegmenter,
    path: Path,
    output: Path,
    scratch: Path | None = None,
    options: Options | None = None,
    opacity: float = 0.55,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    stopped: Callable[[], bool] = lambda: False,
    max_frames: int | None = None,
) -> VideoResult | None:
    """Segment every frame of a video.

    Args:
        segmenter: for the frames.
        path: of the video.
        output: of the overlay video, .mp4 or .webm; the areas go beside it, with the suffix .csv.
        scratch: folder for half-written files.
        options: for the frames.
        opacity: of the overlay.
        max_pixels: of a frame.
        stopped: asked before every frame; where it says yes, nothing is written.
        max_frames: what comes after so many is left out.

    Returns:
        None where it was stopped.

    Raises:
        ImageError: the video cannot be read.
        OSError: the output cannot be written.
    """
    frames, rate = read_frames(path, max_pixels)
    frames = itertools.islice(frames, max_frames)
    with contextlib.suppress(_StoppedError):
        return _segment_frames(segmenter, path, frames, rate, output, scratch, options, opacity, stopped)
    return None


def _segment_frames(
    segmenter: FrameSegmenter,
    path: Path,
    frames: Iterator[UInt8Array],
    rate: float,
    output: Path,
    scratch: Path | None,
    options: Options | None,
    opacity: float,
    stopped: Callable[[], bool],
) -> VideoResult:
    totals = np.zeros(len(segmenter.labels), np.int64)
    count, size = 0, (0, 0)
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(atomic_path(output, scratch))
        table = stack.enter_context(atomic_path(output.with_suffix(".csv"), scratch))
        file = stack.enter_context(table.open("w", newline="", encoding="utf-8"))
        writer: cv2.VideoWriter | None = None
        rows = csv.writer(file)
        rows.writerow(["frame", "seconds", *segmenter.labels.names])
        for count, frame in enumerate(frames, 1):
            if stopped():
                raise _StoppedError
            if writer is None:
                size = frame.shape[0], frame.shape[1]
                writer = open_writer(video, rate, size)
                stack.callback(writer.release)
            result = segmenter(frame, options)
            counts = count_classes(result.mask, len(totals))
            totals += counts
            rows.writerow(
                [count - 1, f"{(count - 1) / rate:.3f}", *(f"{share:.6f}" for share in counts / counts.sum())]
            )
            writer.write(np.ascontiguousarray(overlay(frame, result.mask, segmenter.labels, opacity)[:, :, ::-1]))
        if writer is None:
            raise ImageError(f"{path}: a video without a frame that can be read")
        writer.release()  # before the file is renamed
    return VideoResult(count, *size, tuple(int(total) for total in totals))


def open_writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Open a video file for frames of a height and width.

    Raises:
        ImageError: its codec does not take this size.
    """
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), codec, rate, (size[1], size[0]))
    if not writer.isOpened():
        raise ImageError(f"no overlay video of {size[1]} x {size[0]} pixels can be written")
    return writer


class _StoppedError(Exception):
    """Leaves the writing of a video, so that half of one does not appear."""
