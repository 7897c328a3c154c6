"""The images of one visitor and what the networks saw in them, in a folder that goes with the visitor."""

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import psutil
from PIL import Image

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.demo.limits import LIMITS, MIB, Limits
from tiramisu.demo.service import Service, Step, Tell, keep_quiet
from tiramisu.errors import ImageError, TiramisuError
from tiramisu.images import DecodedImage, count_pixels, decode_image
from tiramisu.inference.segmenter import Options, Segmentation, count_classes
from tiramisu.labels import LabelSet
from tiramisu.visualize import data_url, overlay, with_safe_colors

logger = logging.getLogger(__name__)

PREFIX = "tiramisu-"
THUMBNAIL_SIDE = 96


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that a visitor brought: content hash, file name as given, and where its bytes lie."""

    key: str
    name: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a result depends on besides the image: the network's content hash, the engine, and the options."""

    weights: str
    engine: str
    options: Options


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a picture under one setup; its maps lie in files.

    Attributes:
        picture: the image.
        setup: what it was segmented with.
        labels: the classes.
        folder: of the maps.
        height: in pixels.
        width: in pixels.
        counts: pixels of each class.
        seconds: that the network took.
        confidence: mean probability of the pixels' classes.
        uncertainty: mean over the pixels, where it was asked for.
        note: what is worth saying about how the image was read.
        thumbnails: of the overlay, as data URLs: in the colours of the classes, and in those safe for the colour-blind.
        error: why there is no result; empty where there is one.
    """

    picture: Picture
    setup: Setup
    labels: LabelSet
    folder: Path
    height: int = 0
    width: int = 0
    counts: tuple[int, ...] = ()
    seconds: float = 0.0
    confidence: float = 0.0
    uncertainty: float | None = None
    note: str = ""
    thumbnails: tuple[str, str] = ("", "")
    error: str = ""

    @property
    def areas(self) -> dict[str, float]:
        """Return the share of each class, 0 to 1."""
        total = max(sum(self.counts), 1)
        return {name: count / total for name, count in zip(self.labels.names, self.counts, strict=bool(self.counts))}

    def read(self, kind: str) -> UInt8Array:
        """Return a map, uint8 (H, W): `mask`, `confidence` or `uncertainty`, the latter two from 0 to 255."""
        with Image.open(self.folder / f"{kind}.png") as picture:
            return np.asarray(picture)

    def segmentation(self, labels: LabelSet) -> Segmentation:
        """Return the result as `Segmenter` gave it, to 8 bits, with the classes in the colours of labels."""
        uncertainty = None if self.uncertainty is None else self.read("uncertainty") * np.float32(1 / 255)
        return Segmentation(self.read("mask"), labels, uncertainty=uncertainty)


class Disk:
    """The room for the files of all visitors.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int = LIMITS.server_mib * MIB) -> None:
        self.free = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserve bytes; tell whether there are enough."""
        with self._lock:
            if size > self.free:
                return False
            self.free -= size
            return True

    def give(self, size: int) -> None:
        """Return bytes."""
        with self._lock:
            self.free += size


class CancelledError(Exception):
    """Ends the work on an image that nobody wants any more."""


class Work:
    """An image at work beside the page, so that clicking on something else does not begin it again.

    Args:
        worker: the visitor's thread; a new one for each image would spread their memory over the allocator's arenas.
        gallery: of the picture.
        picture: to segment.
        service: segments it.
        setup: the options, and what else the result depends on.

    Attributes:
        step: how far it is.
        error: why it ended without a result; it can be tried again.
    """

    def __init__(self, worker: Executor, gallery: "Gallery", picture: Picture, service: Service, setup: Setup) -> None:
        self.picture, self.setup = picture, setup
        self.step = Step(0)
        self.error: TiramisuError | None = None
        self._gallery, self._service = gallery, service
        self._cancelled = threading.Event()
        self._future = worker.submit(self._run)

    @property
    def running(self) -> bool:
        """Tell whether it is not done yet."""
        return not self._future.done()

    def wait(self, seconds: float) -> None:
        """Wait until it is done, but not for long."""
        wait([self._future], seconds)

    def cancel(self) -> None:
        """End it soon, and forget it."""
        self._cancelled.set()

    def _tell(self, step: Step) -> None:
        self.step = step
        if self._cancelled.is_set():
            raise CancelledError

    def _run(self) -> None:
        try:
            self._tell(Step(0))
            self._gallery.analyse(self.picture, self._service, self.setup, self._tell)
        except CancelledError:
            pass
        except TiramisuError as error:
            self.error = error
        except Exception:  # in a thread of its own nobody would hear of it, and the page would try for ever
            logger.exception("%s could not be segmented", self.picture.name)
            self.error = TiramisuError(f"{self.picture.name} could not be segmented; the server's log says why")


class Gallery:
    """Keeps the pictures of one visitor and their results on disk, within limits; nothing of it is shared.

    Args:
        limits: on count and sizes.
        disk: for all visitors.
    """

    def __init__(self, limits: Limits = LIMITS, disk: Disk | None = None) -> None:
        self.limits, self.disk = limits, disk or Disk()
        # With the number of the process, so that `sweep` knows what a server that was killed has left behind.
        self._temporary = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)
        self.root = Path(self._temporary.name)
        self.pictures: dict[str, Picture] = {}
        self._results: OrderedDict[tuple[str, Setup], Result] = OrderedDict()
        self._sizes: dict[Path, int] = {}  # in bytes, of files of pictures and folders of results
        self._made = 0
        self._work: Work | None = None
        self._worker = ThreadPoolExecutor(1, "gallery")
        self._lock = threading.RLock()  # of the tables: work goes on beside the page

    def begin(self, picture: Picture, service: Service, setup: Setup) -> Work:
        """Begin to segment a picture, or return the work on it; work on anything else is cancelled."""
        work = self._work
        if work is None or (work.picture, work.setup) != (picture, setup) or not work.running:
            self.stop()
            work = self._work = Work(self._worker, self, picture, service, setup)
        return work

    def stop(self) -> None:
        """Cancel what is at work."""
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def close(self) -> None:
        """Remove everything; it also goes when the gallery is no longer used."""
        self.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._temporary.cleanup()
        for path in list(self._sizes):
            self._release(path)

    def add(self, name: str, data: bytes) -> Picture:
        """Keep an image; the same bytes are kept once.

        Raises:
            ImageError: it is too large, or one too many.
        """
        self.limits.check_file(name, len(data))
        key = hashlib.sha256(data).hexdigest()[:20]
        if key in self.pictures:
            return self.pictures[key]
        if len(self.pictures) >= self.limits.images:
            raise ImageError(f"{name}: {self.limits.images} images are enough for one visit; remove some first")
        picture = Picture(key, name, self.root / f"{key}.image")
        self._reserve(picture.path, len(data), name)
        try:
            picture.path.write_bytes(data)
        except OSError as error:
            picture.path.unlink(missing_ok=True)
            self._release(picture.path)
            raise ImageError(f"{name}: this server cannot keep it now ({error.strerror}); try again later") from error
        self.pictures[key] = picture
        return picture

    def remove(self, key: str) -> None:
        """Forget a picture and its results."""
        if self._work is not None and self._work.picture.key == key:
            self.stop()
        with self._lock:
            picture = self.pictures.pop(key, None)
            if picture is None:
                return
            picture.path.unlink()
            self._release(picture.path)
            for known in [known for known in self._results if known[0] == key]:
                self._forget(known)

    def _reserve(self, path: Path, size: int, name: str, spare: Setup | None = None) -> None:
        """Reserve room for a file or folder; where there is none, old results of other setups than `spare` go.

        Raises:
            ImageError: there is none.
        """
        limit = self.limits.session_mib * MIB
        with self._lock:
            old = [known for known in self._results if known[1] != spare]
            while sum(self._sizes.values()) + size > limit and old:
                self._forget(old.pop(0))
            if sum(self._sizes.values()) + size > limit:
                raise ImageError(
                    f"{name}: {self.limits.session_mib} MiB are enough for one visit; remove some images first"
                )
            if not self.disk.take(size):
                raise ImageError(f"{name}: this server is full right now; try again later")
            self._sizes[path] = size

    def _release(self, path: Path) -> None:
        self.disk.give(self._sizes.pop(path, 0))

    def _forget(self, known: tuple[str, Setup]) -> None:
        folder = self._results.pop(known).folder
        shutil.rmtree(folder, ignore_errors=True)
        self._release(folder)

    def decode(self, picture: Picture) -> DecodedImage:
        """Decode a picture.

        Raises:
            ImageError: it is none, damaged, or too large.
        """
        pixels = count_pixels(picture.path)
        if pixels > self.limits.pixels:
            raise ImageError(f"{picture.name}: {pixels / 1e6:.0f} megapixels are more than the limit of "
                             f"{self.limits.pixels / 1e6:g}; make it smaller")  # fmt: skip
        return decode_image(picture.path, self.limits.pixels, picture.name)

    def find(self, picture: Picture, setup: Setup) -> Result | None:
        """Return the result of a picture, if there is one."""
        return self._results.get((picture.key, setup))

    def analyse(self, picture: Picture, service: Service, setup: Setup, tell: Tell = keep_quiet) -> Result:
        """Segment a picture and keep the result; one that cannot be read has a result that says why.

        Args:
            picture: one of those here.
            service: segments it.
            setup: the options, and what else the result depends on.
            tell: is told how far it is.

        Raises:
            BusyError: too many visitors want something at once.
            ConfigError: the engine cannot do what the options ask for.
        """
        known = self.find(picture, setup)
        if known is not None:
            return known
        self._made += 1
        folder = self.root / f"result{self._made}"
        try:
            with service.place(tell):
                result = self._analyse(picture, service, setup, folder, tell)
            self._reserve(folder, sum(file.stat().st_size for file in folder.iterdir()), picture.name, spare=setup)
            return self._keep(result)
        except ImageError as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(error)
        except (OSError, RuntimeError, MemoryError) as error:  # a full disk, a full GPU
            logger.exception("%s could not be segmented", picture.name)
            shutil.rmtree(folder, ignore_errors=True)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"{picture.name}: could not be segmented ({lines[0]})"
        return self._keep(Result(picture, setup, service.labels, folder, error=reason))

    def _analyse(self, picture: Picture, service: Service, setup: Setup, folder: Path, tell: Tell) -> Result:
        image = self.decode(picture)
        self.limits.check_work(picture.name, image.pixels.shape[0] * image.pixels.shape[1], setup.options.views)
        found, seconds = service.segment(image.pixels, setup.options, tell)
        folder.mkdir()
        Image.fromarray(found.mask).save(folder / "mask.png", compress_level=3)
        means = {
            kind: _save_share(values, folder / f"{kind}.png")
            for kind, values in (("confidence", found.confidence), ("uncertainty", found.uncertainty))
            if values is not None
        }
        return Result(
            picture,
            setup,
            service.labels,
            folder,
            height=found.mask.shape[0],
            width=found.mask.shape[1],
            counts=tuple(count_classes(found.mask, len(service.labels)).tolist()),
            seconds=seconds,
            confidence=means.get("confidence", 0.0),
            uncertainty=means.get("uncertainty"),
            note=image.note,
            thumbnails=(
                thumbnail(image.pixels, found.mask, service.labels),
                thumbnail(image.pixels, found.mask, with_safe_colors(service.labels)),
            ),
        )

    def _keep(self, result: Result) -> Result:
        with self._lock:
            if result.picture.key not in self.pictures:  # it was removed meanwhile
                shutil.rmtree(result.folder, ignore_errors=True)
                self._release(result.folder)
                return result
            self._results[result.picture.key, result.setup] = result
            while len(self._results) > self.limits.results:
                self._forget(next(iter(self._results)))
        return result


def sweep(folder: Path | None = None) -> None:
    """Remove the galleries of servers that were killed.

    Args:
        folder: that galleries are in; by default the one for temporary files.
    """
    for path in Path(folder or tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*-*"):
        number = path.name.removeprefix(PREFIX).partition("-")[0]
        if not number.isdecimal():
            continue
        with contextlib.suppress(psutil.AccessDenied, OSError):
            try:
                began = psutil.Process(int(number)).create_time()
            except psutil.NoSuchProcess:
                began = math.inf
            if path.stat().st_mtime < began - 1:  # in a container the next server has the same number
                shutil.rmtree(path, ignore_errors=True)


def thumbnail(image: UInt8Array, mask: UInt8Array, labels: LabelSet) -> str:
    """Return a small overlay as a data URL."""
    scale = min(1.0, THUMBNAIL_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return data_url(overlay(small, mask, labels), "JPEG", quality=80)


def _save_share(values: FloatArray, path: Path) -> float:
    """Write values from 0 to 1 as a grey PNG and return their mean."""
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path, compress_level=1)
    return float(values.mean())
