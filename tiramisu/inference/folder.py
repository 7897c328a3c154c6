"""Segmenting many images: decoding, inference and writing beside each other, with nothing lost on the way."""

import concurrent.futures
import contextlib
import errno
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import cv2
import numpy as np

from tiramisu.errors import ImageError
from tiramisu.files import FOREIGN
from tiramisu.images import DEFAULT_MAX_PIXELS, DecodedImage, count_pixels, decode_image
from tiramisu.inference.inputs import Entry
from tiramisu.inference.journal import Journal, Record
from tiramisu.inference.outputs import OutputFolder
from tiramisu.inference.segmenter import Options, Segmentation, Segmenter, count_classes
from tiramisu.inference.video import segment_video

NO_PIXELS = np.empty((0, 0, 3), np.uint8)  # of images that are not needed any more
AHEAD = 4  # images that are decoded ahead, and as many that are being written
PIXELS_AHEAD = 64_000_000  # and no more than so many pixels of them, or one image
WORKERS = 2
# A file name that this file system does not take concerns one image; any other error of writing concerns all.
OF_ONE_FILE = {
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
}


class Progress(NamedTuple):
    """What became of one entry, and why.

    Attributes:
        entry: it.
        state: `done`, `skipped` (done before), `unread` (of a kind that is not read), `stopped` (a video) or `failed`.
        reason: why it failed or was not read.
    """

    entry: Entry
    state: str
    reason: str = ""


class Stop:
    """Ends work between two images on SIGINT or SIGTERM. Use as a context manager, in the main thread."""

    def __init__(self) -> None:
        self.signal = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt  # asked twice: at once
        self.signal = number

    def asked(self) -> bool:
        """Tell whether the end was asked for."""
        return bool(self.signal)


class _Decoded(NamedTuple):
    entry: Entry
    stamp: str
    image: DecodedImage | None
    reason: str = ""


class _Pending(NamedTuple):
    """A future, with the entry and the pixels that it holds."""

    entry: Entry
    pixels: int
    future: concurrent.futures.Future[Any]


class FolderRun:
    """Segments entries into an output folder.

    Args:
        segmenter: what segments.
        output: where to.
        journal: of the output folder.
        options: of the segmenter.
        batch_size: images of the same size that are computed together.
        max_pixels: of an image.
        stopped: asked between two images.
        made: what is written of each image, and how; an image that has all of it is done.
        on_frame: is told of a video how many frames are done, and how many it claims to have.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        output: OutputFolder,
        journal: Journal,
        options: Options,
        batch_size: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        stopped: Callable[[], bool] = lambda: False,
        made: dict[str, Any] | None = None,
        on_frame: Callable[[Entry, int, int], None] = lambda entry, done, total: None,
    ) -> None:
        self.made, self.on_frame = made or {}, on_frame
        self.segmenter, self.output, self.journal, self.options = segmenter, output, journal, options
        self.batch_size, self.max_pixels, self.stopped = batch_size, max_pixels, stopped

    def run(self, entries: Iterable[Entry]) -> Iterator[Progress]:
        """Segment, and yield what became of each entry, those in flight when stopped included.

        Raises:
            OSError: the output cannot be written, such as a full disk; what was written before stays consistent.
        """
        with (
            concurrent.futures.ThreadPoolExecutor(WORKERS, "decode") as decoders,
            concurrent.futures.ThreadPoolExecutor(WORKERS, "write") as writers,
        ):
            writing: deque[_Pending] = deque()
            try:
                for item in self._batches(self._decoded(entries, decoders)):
                    if isinstance(item, Progress):
                        yield item
                        continue
                    for decoded, result in zip(item, self._segment(item), strict=True):
                        if isinstance(result, str):
                            yield self._fail(decoded.entry, decoded.stamp, result)
                        else:
                            record = blank_record(self.output, decoded.entry, decoded.stamp)
                            self.journal.start(record, map(self.output.relative, self.output.files(decoded.entry)))
                            if self.output.wanted.overlay == "none" and decoded.image is not None:
                                decoded = decoded._replace(image=decoded.image._replace(pixels=NO_PIXELS))
                            future = writers.submit(self._write, decoded, result)
                            writing.append(_Pending(decoded.entry, result.mask.size, future))
                    while writing and (is_full(writing) or writing[0].future.done()):
                        yield self._written(writing.popleft())
                while writing:
                    yield self._written(writing.popleft())
            finally:
                decoders.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)

    def _decoded(
        self, entries: Iterable[Entry], decoders: concurrent.futures.ThreadPoolExecutor
    ) -> Iterator[_Decoded | Progress]:
        """Yield decoded images in order, and what needs no decoding, always a few ahead."""
        waiting: deque[_Pending] = deque()
        for entry in entries:
            if self.stopped():
                break
            stamp = file_stamp(entry.path)
            if entry.skipped:
                self.journal.skip(blank_record(self.output, entry, stamp)._replace(reason=entry.problem))
                yield Progress(entry, "unread", f"{entry.path}: {entry.problem}")
            elif entry.problem:
                yield self._fail(entry, stamp, entry.problem)
            elif self._is_done(entry, stamp):
                yield Progress(entry, "skipped")
            elif partial := self._partial(entry, stamp):
                yield Progress(entry, "failed", f"{entry.path}: {partial}")
            elif refusal := self._refusal(entry):
                yield self._fail(entry, stamp, refusal)
            elif entry.is_video:
                yield self._video(entry, stamp)
            else:
                pixels = min(count_pixels(entry.path), self.max_pixels)
                while waiting and is_full(waiting, pixels):
                    yield waiting.popleft().future.result()
                waiting.append(_Pending(entry, pixels, decoders.submit(self._decode, entry, stamp)))
        while waiting and not self.stopped():
            yield waiting.popleft().future.result()

    def _is_done(self, entry: Entry, stamp: str) -> bool:
        if not all(is_file(file) for file in self.output.files(entry)):
            return False
        return self.journal.finished(entry.name, str(entry.path), stamp, {} if entry.is_video else self.made)

    def _partial(self, entry: Entry, stamp: str) -> str:
        """Return what is wrong with an input of which all that can be read was done before."""
        if not all(is_file(file) for file in self.output.files(entry)):
            return ""
        return self.journal.partial(entry.name, str(entry.path), stamp)

    def _refusal(self, entry: Entry) -> str:
        """Say which file would be overwritten though it was not written here, or would lie outside of the output."""
        for file in self.output.files(entry):
            if os.path.lexists(file) and not self.journal.owns(entry.name, self.output.relative(file)):
                return f"{file} {FOREIGN}"
            if self.output.escapes(file):
                return f"{file} would lie outside of --output, behind a link; choose another --output"
        return ""

    def _decode(self, entry: Entry, stamp: str) -> _Decoded:
        try:
            image = decode_image(
                entry.path, self.max_pixels, channels=self.segmenter.channels, spool=self.output.scratch
            )
            return _Decoded(entry, stamp, image)
        except ImageError as error:
            return _Decoded(entry, stamp, None, str(error))

    def _batches(self, items: Iterable[_Decoded | Progress]) -> Iterator[list[_Decoded] | Progress]:
        """Put neighbours of the same size together; failures pass through."""
        batch: list[_Decoded] = []
        for item in items:
            if isinstance(item, Progress):
                yield item
                continue
            if item.image is None:
                yield self._fail(item.entry, item.stamp, item.reason)
                continue
            if batch and (batch[0].image is None or batch[0].image.pixels.shape != item.image.pixels.shape):
                yield batch
                batch = []
            batch.append(item)
            if len(batch) >= self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _segment(self, batch: list[_Decoded]) -> Sequence[Segmentation | str]:
        """Return the result of each image, or why there is none."""
        try:
            return self.segmenter.batch([item.image.pixels for item in batch if item.image], self.options)
        except (RuntimeError, MemoryError) as error:  # an image too large for a GPU, for example
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return [f"{item.entry.path}: could not be segmented ({lines[0]})" for item in batch]

    def _write(self, decoded: _Decoded, result: Segmentation) -> Record:
        assert decoded.image is not None
        record = blank_record(self.output, decoded.entry, decoded.stamp)._replace(made=self.made)
        return write_image(self.output, record, decoded.image, result)

    def _written(self, pending: _Pending) -> Progress:
        entry = pending.entry
        try:
            self.journal.write(pending.future.result())
        except OSError as error:
            if error.errno not in OF_ONE_FILE:
                raise
            return self._fail(entry, "", f"{entry.path}: its results cannot be written ({error.strerror})")
        return Progress(entry, "done")

    def _fail(self, entry: Entry, stamp: str, reason: str) -> Progress:
        reason = reason.removeprefix(f"{entry.path}: ")
        self.journal.write(blank_record(self.output, entry, stamp)._replace(reason=reason))
        return Progress(entry, "failed", f"{entry.path}: {reason}")

    def _video(self, entry: Entry, stamp: str) -> Progress:
        record = blank_record(self.output, entry, stamp)
        self.journal.start(record, map(self.output.relative, self.output.files(entry)))
        try:
            done = write_video(
                self.segmenter, self.output, record, entry.path, self.options, self.max_pixels, self.stopped,
                lambda frames, total: self.on_frame(entry, frames, total),
            )  # fmt: skip
        except ImageError as error:
            return self._fail(entry, stamp, str(error))
        except (RuntimeError, MemoryError, cv2.error) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return self._fail(entry, stamp, f"could not be segmented ({lines[0]})")
        if done is None:
            return Progress(entry, "stopped")
        self.journal.write(done)
        if done.partial:
            return Progress(entry, "failed", f"{entry.path}: {done.reason}")
        return Progress(entry, "done")


def blank_record(output: OutputFolder, entry: Entry, stamp: str) -> Record:
    """Return the record of an entry before it is segmented."""
    file = output.files(entry)[0]
    return Record(entry.name, output.relative(file), str(entry.path), stamp, file_name=entry.file_name)


def write_image(output: OutputFolder, record: Record, image: DecodedImage, result: Segmentation) -> Record:
    """Write the files of an image; return its record, completed.

    Raises:
        OSError: a file cannot be written.
    """
    output.write(record.name, Path(record.source), image.pixels, result)
    return record._replace(
        note=image.note,
        height=result.mask.shape[0],
        width=result.mask.shape[1],
        counts=tuple(count_classes(result.mask, len(output.labels)).tolist()),
        uncertainty=None if result.uncertainty is None else float(result.uncertainty.mean()),
        segments=output.segments(result.mask),
    )


def write_video(
    segmenter: Segmenter,
    output: OutputFolder,
    record: Record,
    file: Path,
    options: Options,
    max_pixels: int,
    stopped: Callable[[], bool] = lambda: False,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Record | None:
    """Segment a video and write its files; return its record, completed, or none where it was stopped.

    The record of a video that is cut short has a reason as well as what could be read.

    Raises:
        ImageError: the video cannot be read.
        OSError: a file cannot be written.
    """
    frames = Options(tta=options.tta, fit=options.fit)
    opacity = output.wanted.opacity
    result = segment_video(
        segmenter, file, output.video(record.name), output.scratch, frames, opacity, max_pixels, stopped,
        on_frame=on_frame,
    )  # fmt: skip
    if result is None:
        return None
    note = f"video of {result.frames} frames"
    return record._replace(
        reason=result.problem, note=note, height=result.height, width=result.width, counts=result.counts
    )


def is_file(path: Path) -> bool:
    """Tell whether a file is there; one whose name a file system does not take is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_full(pending: Collection[_Pending], more: int = 0) -> bool:
    """Tell whether so many images are decoded or being written that others must wait."""
    return len(pending) >= AHEAD or sum(item.pixels for item in pending) + more > PIXELS_AHEAD


def file_stamp(path: Path) -> str:
    """Return what changes when a file does: its size and the time of its last change; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):  # a ValueError where the name has a zero byte
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""
