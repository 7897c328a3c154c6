"""The images of one visitor and what the networks saw in them, in a folder that goes with the visitor."""

import base64
import dataclasses
import hashlib
import io
import logging
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiramisu.demo.limits import LIMITS, MIB, Limits
from tiramisu.demo.service import Service
from tiramisu.errors import ImageError
from tiramisu.inference.images import DecodedImage, decode_image
from tiramisu.inference.segmenter import Options, Segmentation, count_classes
from tiramisu.labels import LabelSet
from tiramisu.visualize import overlay

UInt8Array = NDArray[np.uint8]

logger = logging.getLogger(__name__)

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
        labels: the classes.
        folder: of the maps.
        height: in pixels.
        width: in pixels.
        counts: pixels of each class.
        seconds: that the network took.
        confidence: mean probability of the pixels' classes.
        uncertainty: mean over the pixels, where it was asked for.
        note: what is worth saying about how the image was read.
        thumbnail: of the overlay, as a data URL.
        error: why there is no result; empty where there is one.
    """

    picture: Picture
    labels: LabelSet
    folder: Path
    height: int = 0
    width: int = 0
    counts: tuple[int, ...] = ()
    seconds: float = 0.0
    confidence: float = 0.0
    uncertainty: float | None = None
    note: str = ""
    thumbnail: str = ""
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

    def segmentation(self) -> Segmentation:
        """Return the result as `Segmenter` gave it, to 8 bits."""
        uncertainty = None if self.uncertainty is None else self.read("uncertainty") * np.float32(1 / 255)
        return Segmentation(self.read("mask"), self.labels, uncertainty=uncertainty)


class Gallery:
    """Keeps the pictures of one visitor and their results on disk, within limits; nothing of it is shared.

    Args:
        limits: on count and sizes.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self._temporary = tempfile.TemporaryDirectory(prefix="tiramisu-", ignore_cleanup_errors=True)
        self.root = Path(self._temporary.name)
        self.pictures: dict[str, Picture] = {}
        self._results: OrderedDict[tuple[str, Setup], Result] = OrderedDict()
        self._stored = 0
        self._made = 0

    def close(self) -> None:
        """Remove everything; it also goes when the gallery is no longer used."""
        self._temporary.cleanup()

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
        if self._stored + len(data) > self.limits.session_mib * MIB:
            raise ImageError(
                f"{name}: {self.limits.session_mib} MiB are enough for one visit; remove some images first"
            )
        picture = Picture(key, name, self.root / f"{key}.image")
        try:
            picture.path.write_bytes(data)
        except OSError as error:
            picture.path.unlink(missing_ok=True)
            raise ImageError(f"{name}: this server cannot keep it now ({error.strerror}); try again later") from error
        self._stored += len(data)
        self.pictures[key] = picture
        return picture

    def remove(self, key: str) -> None:
        """Forget a picture and its results."""
        picture = self.pictures.pop(key, None)
        if picture is None:
            return
        self._stored -= picture.path.stat().st_size
        picture.path.unlink()
        for known in [known for known in self._results if known[0] == key]:
            shutil.rmtree(self._results.pop(known).folder, ignore_errors=True)

    def decode(self, picture: Picture) -> DecodedImage:
        """Decode a picture.

        Raises:
            ImageError: it is none, damaged, or too large.
        """
        return decode_image(picture.path, self.limits.pixels, picture.name)

    def find(self, picture: Picture, setup: Setup) -> Result | None:
        """Return the result of a picture, if there is one."""
        return self._results.get((picture.key, setup))

    def analyse(self, picture: Picture, service: Service, setup: Setup) -> Result:
        """Segment a picture and keep the result; one that cannot be read has a result that says why.

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
            return self._keep(setup, self._analyse(picture, service, setup, folder))
        except ImageError as error:
            reason = str(error)
        except (OSError, RuntimeError, MemoryError) as error:  # a full disk, a full GPU
            logger.exception("%s could not be segmented", picture.name)
            shutil.rmtree(folder, ignore_errors=True)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"{picture.name}: could not be segmented ({lines[0]})"
        return self._keep(setup, Result(picture, service.labels, folder, error=reason))

    def _analyse(self, picture: Picture, service: Service, setup: Setup, folder: Path) -> Result:
        image = self.decode(picture)
        found, seconds = service.segment(image.pixels, setup.options)
        folder.mkdir()
        Image.fromarray(found.mask).save(folder / "mask.png", compress_level=3)
        means = {
            kind: _save_share(values, folder / f"{kind}.png")
            for kind, values in (("confidence", found.confidence), ("uncertainty", found.uncertainty))
            if values is not None
        }
        return Result(
            picture,
            service.labels,
            folder,
            height=found.mask.shape[0],
            width=found.mask.shape[1],
            counts=tuple(count_classes(found.mask, len(service.labels)).tolist()),
            seconds=seconds,
            confidence=means.get("confidence", 0.0),
            uncertainty=means.get("uncertainty"),
            note=image.note,
            thumbnail=thumbnail(image.pixels, found),
        )

    def _keep(self, setup: Setup, result: Result) -> Result:
        self._results[result.picture.key, setup] = result
        while len(self._results) > self.limits.results:
            _, oldest = self._results.popitem(last=False)
            shutil.rmtree(oldest.folder, ignore_errors=True)
        return result


def data_url(values: UInt8Array, kind: str, **options: Any) -> str:
    """Return a picture, grey (H, W) or RGB (H, W, 3), as the address of itself."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def thumbnail(image: UInt8Array, result: Segmentation) -> str:
    """Return a small overlay as a data URL."""
    scale = min(1.0, THUMBNAIL_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(result.mask, size, interpolation=cv2.INTER_NEAREST)
    return data_url(overlay(small, mask, result.labels), "JPEG", quality=80)


def _save_share(values: NDArray[np.float32], path: Path) -> float:
    """Write values from 0 to 1 as a grey PNG and return their mean."""
    Image.fromarray((values * 255).round().astype(np.uint8)).save(path, compress_level=1)
    return float(values.mean())
