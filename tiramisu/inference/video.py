"""Videos: the overlay as a video, and the areas of each frame as a table."""

import contextlib
import errno
import functools
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ImageError
from tiramisu.files import CsvWriter, atomic_path
from tiramisu.images import DEFAULT_MAX_PIXELS
from tiramisu.inference.segmenter import Options, Segmentation, count_classes
from tiramisu.labels import LabelSet
from tiramisu.visualize import overlay

FALLBACK_RATE = 25.0  # frames a second, where a file does not tell
# Every build of OpenCV has MPEG-4 and VP8; browsers play H.264 and VP8.
CODECS = {".mp4": ("avc1", "mp4v"), ".webm": ("VP80",)}
NO_BROWSER = "Overlay videos are MPEG-4, which browsers do not play: this build of OpenCV has no H.264."
ATTEMPTS = 16  # to read on behind a damaged part; each skips up to 64 packets
EXACT = ("mov", "mp4", "m4v", "3gp", "3g2", "avi")  # kinds of files that hold the number of their frames
JITTER = 0.1  # share by which the times of frames differ where their rate is constant
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
GAPS = 3  # a stream of constant rate with more of them was recorded like that


class FrameSegmenter(Protocol):
    """What segments frames: a Segmenter, or what stands for one."""

    labels: LabelSet

    def __call__(self, image: UInt8Array, options: Options | None = None) -> Segmentation:
        """Segment an image, uint8 (H, W, 3) RGB."""
        ...


class VideoResult(NamedTuple):
    """What became of a video.

    Attributes:
        frames: that were segmented.
        height: of the frames.
        width: of the frames.
        counts: pixels of each class in all of them.
        problem: what is wrong with the file, such as that it is cut short; empty where nothing is.
    """

    frames: int
    height: int
    width: int
    counts: tuple[int, ...]
    problem: str = ""


class Frame(NamedTuple):
    """A frame of a video: uint8 (H, W, 3) RGB, and its time in seconds from the first."""

    pixels: UInt8Array
    seconds: float


class Video:
    """A video that is read frame by frame, past damaged parts.

    Args:
        path: of the file.
        max_pixels: of a frame.

    Attributes:
        rate: frames a second, as the file says.
        claimed: frames that the file claims to have; 0 where it does not tell.
        times: of the frames that were read, in seconds.

    Raises:
        ImageError: it is no video, or its frames are too large.
    """

    def __init__(self, path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        if not path.is_file() or not path.stat().st_size:
            raise ImageError(f"{path}: not a video, or an empty one")
        self.path = path
        with _quiet_opencv():
            self.capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        width, height = (int(self.capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if not self.capture.isOpened() or width * height <= 0:
            self.capture.release()
            cut = "a truncated video: the index at its end is missing" if _lacks_index(path) else ""
            raise ImageError(f"{path}: {cut or 'not a video that can be read here'}")
        if width * height > max_pixels:
            self.capture.release()
            raise ImageError(f"{path}: frames of {width} x {height} are more than the limit of {max_pixels:,} pixels")
        rate, claimed = self.capture.get(cv2.CAP_PROP_FPS), self.capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if 0 < rate < 1000 else FALLBACK_RATE
        self.claimed = int(claimed) if 0 < claimed < 1e9 else 0
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames."""
        try:
            misses = 0
            while misses < ATTEMPTS:
                found, frame = self.capture.read()
                if not found:
                    misses += 1
                    continue
                misses = 0
                seconds = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if self.times and seconds <= self.times[-1]:  # the file does not tell
                    seconds = self.times[-1] + 1 / self.rate
                self.times.append(seconds)
                yield Frame(np.ascontiguousarray(frame[:, :, ::-1]), seconds)
        finally:
            self.capture.release()

    def problem(self) -> str:
        """Say what is missing after all frames were read; nothing where the file is whole, as far as it tells.

        Files of some kinds hold the number of their frames, others their duration. A gap is a hole where all other
        frames follow each other at a constant rate.
        """
        read = len(self.times)
        if self.path.suffix.lower().lstrip(".") in EXACT:
            missing = self.claimed - read
        else:
            missing = self._missing_at_the_end() + self._missing_between()
        if missing <= 0:
            return f"truncated: {read} frames can be read, which are done" if ends_early(self.path) else ""
        return f"truncated or damaged: {read} of about {read + missing} frames can be read, which are done"

    def _gap(self) -> float:
        """Return the usual time between two frames."""
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.times)]
        return statistics.median(gaps) if gaps else 1 / self.rate

    def _missing_at_the_end(self) -> int:
        left = self.claimed / self.rate - (self.times[-1] if self.times else 0)
        longest = max((later - earlier for earlier, later in itertools.pairwise(self.times)), default=1 / self.rate)
        return round(left / self._gap()) - 1 if left > max(2.5 * self._gap(), 1.5 * longest) else 0

    def _missing_between(self) -> int:
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.times)]
        usual = self._gap()
        odd = [gap for gap in gaps if abs(gap - usual) > max(JITTER * usual, 0.002)]
        wide = [gap for gap in odd if gap > 1.8 * usual]
        if not wide or len(wide) > GAPS or len(odd) - len(wide) > 0.05 * len(gaps):
            return 0
        return sum(round(gap / usual) - 1 for gap in wide)


def _lacks_index(path: Path) -> bool:
    """Tell whether an MP4 or MOV file ends before its index, the atom moov, without which nothing can be read."""
    size = path.stat().st_size
    if size < 8:
        return False
    with path.open("rb") as stream:
        at = 0
        while at + 8 <= size:
            stream.seek(at)
            head = stream.read(16)
            length, name = int.from_bytes(head[:4], "big"), head[4:8]
            if at == 0 and name != b"ftyp":
                return False
            if name == b"moov":
                return at + length > size
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:  # to the end of the file
                return True
            at += length
    return True


def ends_early(path: Path) -> bool:
    """Tell whether the end of a file is missing whose kind does not say how long the video is.

    ASF tells the size of the file, transport streams come in packets of 188 bytes, those of program streams tell their
    length.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
        stream.seek(max(0, size - (1 << 18)))
        tail = stream.read()
    if head.startswith(ASF_HEADER):
        at = head.find(ASF_FILE_PROPERTIES)
        return at >= 0 and int.from_bytes(head[at + 40 : at + 48], "little") > size
    if head[:1] == b"\x47" == head[188:189]:
        return size % 188 != 0
    if head.startswith(b"\0\0\x01\xba"):
        starts = [at for code in range(0xBD, 0xF0) if (at := tail.rfind(bytes((0, 0, 1, code)))) >= 0]
        last = max(starts, default=-1)
        return last >= 0 and last + 6 + int.from_bytes(tail[last + 4 : last + 6], "big") > len(tail)
    return False


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
    on_frame: Callable[[int, int], None] = lambda done, total: None,
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
        on_frame: is told after every frame how many are done, and how many the file claims to have.

    Returns:
        None where it was stopped.

    Raises:
        ImageError: the video cannot be read.
        OSError: the output cannot be written.
    """
    video = Video(path, max_pixels)
    with contextlib.suppress(_StoppedError):
        return _segment_frames(
            segmenter, video, output, scratch, options, opacity, stopped, max_frames, on_frame
        )  # fmt: skip
    return None


def _segment_frames(
    segmenter: FrameSegmenter,
    video: Video,
    output: Path,
    scratch: Path | None,
    options: Options | None,
    opacity: float,
    stopped: Callable[[], bool],
    max_frames: int | None,
    on_frame: Callable[[int, int], None],
) -> VideoResult:
    totals = np.zeros(len(segmenter.labels), np.int64)
    count, size = 0, (0, 0)
    with contextlib.ExitStack() as stack:
        picture = stack.enter_context(atomic_path(output, scratch))
        table = stack.enter_context(atomic_path(output.with_suffix(".csv"), scratch))
        file = stack.enter_context(table.open("w", newline="", encoding="utf-8"))
        frames = stack.enter_context(contextlib.closing(iter(video)))  # type: ignore[type-var]  # a generator
        writer: cv2.VideoWriter | None = None
        rows = CsvWriter(file)
        rows.writerow(["frame", "seconds", *segmenter.labels.names])
        for count, (frame, seconds) in enumerate(itertools.islice(frames, max_frames), 1):
            if stopped():
                raise _StoppedError
            if writer is None:
                size = frame.shape[0], frame.shape[1]
                writer = open_writer(picture, video.rate, size)
                stack.callback(writer.release)
            result = segmenter(frame, options)
            counts = count_classes(result.mask, len(totals))
            totals += counts
            shares = counts / max(counts.sum(), 1)
            rows.writerow([count - 1, f"{seconds:.3f}", *(f"{share:.6f}" for share in shares)])
            writer.write(np.ascontiguousarray(overlay(frame, result.mask, segmenter.labels, opacity)[:, :, ::-1]))
            on_frame(count, video.claimed)
        if writer is None:
            raise ImageError(f"{video.path}: a video without a frame that can be read")
        writer.release()  # before the file is renamed
        _check_written(picture, count)
    problem = video.problem() if max_frames is None or count < max_frames else ""
    return VideoResult(count, *size, tuple(int(total) for total in totals), problem)


def _check_written(path: Path, frames: int) -> None:
    """Check that a video holds its frames: OpenCV says nothing of a full disk.

    Raises:
        OSError: it does not.
    """
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    if written < frames - 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def open_writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Open a video file for frames of a height and width, in H.264 where this build of OpenCV has it.

    Raises:
        ImageError: no codec takes this size.
    """
    for codec in CODECS[path.suffix]:
        if codec == "avc1" and not has_h264():
            continue
        # MPEG-4 keeps times as fractions of small numbers, which most rates from a camera's clock are not.
        for shown in dict.fromkeys((rate, round(rate, 2), round(rate, 1), max(1.0, float(round(rate))))):
            writer = _try_writer(path, codec, shown, size)
            if writer is not None:
                return writer
    raise ImageError(f"no overlay video of {size[1]} x {size[0]} pixels can be written")


def _try_writer(path: Path, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter | None:
    with _quiet_opencv():  # that one does not fit is no error
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (size[1], size[0]))
    return writer if writer.isOpened() else None


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


@functools.cache
def has_h264() -> bool:
    """Tell whether this build of OpenCV writes H.264."""
    with tempfile.TemporaryDirectory() as folder:
        writer = _try_writer(Path(folder) / "probe.mp4", "avc1", 25.0, (64, 64))
        if writer is not None:
            writer.release()
        return writer is not None


class _StoppedError(Exception):
    """Leaves the writing of a video, so that half of one does not appear."""
