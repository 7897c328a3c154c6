"""Images in, masks out: what everybody who uses a trained network calls."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import WeightsError
from tiramisu.inference.engines import Engine, EngineName, Precision, open_engine
from tiramisu.inference.tiling import blend_tiles, split
from tiramisu.labels import LabelSet
from tiramisu.spool import empty_like, release, released, strip_rows
from tiramisu.weights import find_weights

TestTimeAugmentation = Literal["none", "flip", "multiscale"]
Uncertainty = Literal["none", "entropy", "mc-dropout"]

SCALES: dict[TestTimeAugmentation, tuple[float, ...]] = {
    "none": (1.0,),
    "flip": (1.0,),
    "multiscale": (0.75, 1.0, 1.25),
}
TILE = 768  # of which FC-DenseNet103 takes 1.1 GB in torch and 1.4 GB in OpenVINO
OVERLAP = 128
PASSES = 8
# Than the images of training, in pixels, before images are made smaller: camvid sees 1.8 times the pixels as well.
LARGER = 2.0
TINY = np.float32(1e-12)


class NotFiniteError(WeightsError, RuntimeError):
    """The logits of an image are not numbers, so that there is no mask."""


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What a network sees in an image of H x W pixels.

    Attributes:
        mask: uint8 (H, W), class indices.
        labels: the classes.
        probabilities: float32 (classes, H, W), where asked for.
        uncertainty: float32 (H, W), 0 (certain) to 1, where asked for: the entropy of the class probabilities, or with
            mc-dropout the mutual information of class and weights, relative to the largest entropy possible.
        confidence: float32 (H, W), where asked for: the probability of the class in the mask.
    """

    mask: UInt8Array
    labels: LabelSet
    probabilities: FloatArray | None = None
    uncertainty: FloatArray | None = None
    confidence: FloatArray | None = None

    @property
    def areas(self) -> dict[str, float]:
        """Return the share of each class in the image, 0 to 1."""
        counts = count_classes(self.mask, len(self.labels))
        return {name: int(count) / self.mask.size for name, count in zip(self.labels.names, counts, strict=True)}


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are segmented.

    Attributes:
        tta: test-time augmentation: `flip` averages with the mirrored image, `multiscale` does so at 0.75, 1 and 1.25
            times the size.
        uncertainty: `entropy` of the probabilities; or `mc-dropout`: several passes with dropout on (Gal and
            Ghahramani, 2016), which needs the torch engine.
        passes: of mc-dropout.
        probabilities: whether to return them.
        confidence: whether to return the probability of each pixel's class; takes a fraction of the memory.
        fit: whether images that are much larger than those of training are made as small as these before the network
            sees them, where the weights were trained on whole views of a camera: with more pixels, things look larger
            than the network knows them. The maps are enlarged back to the image's size.
    """

    tta: TestTimeAugmentation = "none"
    uncertainty: Uncertainty = "none"
    passes: int = PASSES
    probabilities: bool = False
    confidence: bool = False
    fit: bool = True

    @property
    def views(self) -> int:
        """Return how many times the network sees every pixel."""
        scales = len(SCALES[self.tta]) * (1 if self.tta == "none" else 2)
        return scales * (self.passes if self.uncertainty == "mc-dropout" else 1)

    @property
    def only_mask(self) -> bool:
        """Tell whether logits do, without a softmax."""
        plain = self.tta == "none" and self.uncertainty == "none"
        return plain and not self.probabilities and not self.confidence


class Segmenter:
    """Segments images of any size; keeps no state between calls and may be called from several threads.

    Large images are computed in overlapping tiles, whose memory does not grow with the image.

    Args:
        engine: what computes logits.
        tile: height and width of the largest piece that is computed at once, in pixels.
        overlap: of neighbouring tiles, in pixels.
    """

    def __init__(self, engine: Engine, tile: int = TILE, overlap: int = OVERLAP) -> None:
        grid = engine.card.grid
        if not 0 < overlap < tile:
            raise ValueError(f"tiles of {tile} pixels cannot overlap by {overlap}")
        self.engine = engine
        self.labels, self.channels = engine.card.labels, engine.card.channels
        self.view = engine.card.view
        self.tile, self.overlap = -(-tile // grid) * grid, -(-overlap // grid) * grid

    @classmethod
    def load(
        cls,
        weights: str | Path,
        device: str = "auto",
        engine: EngineName = "auto",
        precision: Precision = "auto",
    ) -> Self:
        """Load weights or an exported graph, and say on standard error where it runs.

        Args:
            weights: a folder that training wrote, an exported graph, or the name of shipped weights.
            device: cuda, mps or cpu; `auto` is the first there is.
            engine: `auto` is the fastest for the device.
            precision: `auto` is bf16 where the hardware has it.

        Raises:
            ConfigError: the engine or the device cannot be used here.
            WeightsError: the weights are missing or damaged.
        """
        opened = open_engine(find_weights(weights), engine, device, precision)
        print(f"Segmenting with {opened.description}.", file=sys.stderr)
        return cls(opened)

    def __call__(self, image: UInt8Array, options: Options | None = None) -> Segmentation:
        """Segment an image.

        Args:
            image: uint8 (H, W, channels), as many as the network takes; RGB where these are 3.
            options: default: just the mask.

        Raises:
            ConfigError: the engine cannot do what the options ask for.
            ValueError: the image is of another type or shape.
        """
        return self.batch([image], options)[0]

    def batch(self, images: Sequence[UInt8Array], options: Options | None = None) -> list[Segmentation]:
        """Segment several images; those that have the same size are computed together.

        Args:
            images: see `__call__`.
            options: default: just the masks.

        Raises:
            ConfigError: the engine cannot do what the options ask for.
            ValueError: an image is of another type or shape.
        """
        options = options or Options()
        groups: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != self.channels or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"expected uint8 images (H, W, {self.channels}), got {image.dtype} {image.shape}")
            groups.setdefault(image.shape, []).append(position)
        results: dict[int, Segmentation] = {}
        for (height, width, _), positions in groups.items():
            if self.working_size(height, width, options) != (height, width):
                results |= {position: self._segment_smaller(images[position], options) for position in positions}
                continue
            if height * width > self.tile**2:
                results |= {position: self._segment_tiles(images[position], options) for position in positions}
                continue
            maps = self._maps(np.stack([images[position] for position in positions]), options)
            for position, values in zip(positions, maps, strict=True):
                results[position] = self._finish(values, options)
        return [results[position] for position in range(len(images))]

    def count_pieces(self, height: int, width: int, options: Options) -> int:
        """Return how many calls of the network an image of this size takes, or passes where they are of mc-dropout."""
        tiles = 1
        height, width = self.working_size(height, width, options)
        if height * width > self.tile**2:
            for length in (height, width):
                tiles *= len(split(length, self.tile, self.overlap, self.engine.card.grid)[0])
        return tiles * options.views

    def working_size(self, height: int, width: int, options: Options) -> tuple[int, int]:
        """Return the height and width at which the network sees an image, see `Options.fit`."""
        if self.view is None or not options.fit or height * width <= LARGER * self.view[0] * self.view[1]:
            return height, width
        scale = math.sqrt(self.view[0] * self.view[1] / (height * width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _segment_smaller(self, image: UInt8Array, options: Options) -> Segmentation:
        height, width = image.shape[:2]
        rows, columns = self.working_size(height, width, options)
        with released(image):
            small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, -1)
        wanted = dataclasses.replace(options, probabilities=True)
        maps: FloatArray
        if rows * columns > self.tile**2:
            pieces = list(self._tiles(small, wanted))
            maps = np.empty((len(pieces[0][2]), rows, columns), np.float32)
            for down, right, values in pieces:
                maps[:, down, right] = values
        else:
            maps = self._maps(small[None], wanted)[0]
        return self._assemble(image, enlarge_by_strips(maps, height, width), options)

    def _segment_tiles(self, image: UInt8Array, options: Options) -> Segmentation:
        return self._assemble(image, self._tiles(image, options), options)

    def _tiles(self, image: UInt8Array, options: Options) -> Iterator[tuple[slice, slice, FloatArray]]:
        def compute(rows: slice, columns: slice) -> FloatArray:
            # Softmax first: the mean of probabilities is one, that of logits of two tiles is nothing.
            return self._maps(image[None, rows, columns], dataclasses.replace(options, probabilities=True))[0]

        size = (image.shape[0], image.shape[1])
        return blend_tiles(size, compute, self.tile, self.overlap, self.engine.card.grid)

    def _assemble(
        self, image: UInt8Array, pieces: Iterable[tuple[slice, slice, FloatArray]], options: Options
    ) -> Segmentation:
        """Turn the maps (see `_maps`) of an image's pieces into its result, in files where the image is in one."""
        size = height, width = image.shape[:2]
        mask = empty_like(image, size, np.uint8)
        probabilities, uncertainty, confidence = None, None, None
        if options.probabilities:
            probabilities = empty_like(image, (len(self.labels), height, width), np.float32)
        if options.uncertainty != "none":
            uncertainty = empty_like(image, size, np.float32)
        if options.confidence:
            confidence = empty_like(image, size, np.float32)
        for rows, columns, maps in pieces:
            piece = self._finish(maps, options)
            mask[rows, columns] = piece.mask
            if probabilities is not None and piece.probabilities is not None:
                probabilities[:, rows, columns] = piece.probabilities
            if uncertainty is not None and piece.uncertainty is not None:
                uncertainty[rows, columns] = piece.uncertainty
            if confidence is not None and piece.confidence is not None:
                confidence[rows, columns] = piece.confidence
            for array in (image, mask, probabilities, uncertainty, confidence):
                if array is not None:
                    release(array)
        return Segmentation(mask, self.labels, probabilities, uncertainty, confidence)

    def _finish(self, maps: FloatArray, options: Options) -> Segmentation:
        """Turn the maps (see `_maps`) of an image into its result."""
        classes = maps[: len(self.labels)]
        uncertainty = None
        if options.uncertainty != "none":
            uncertainty = entropy(classes)
            if options.uncertainty == "mc-dropout":
                uncertainty = np.maximum(uncertainty - maps[len(self.labels)], 0)
        probabilities = classes if options.probabilities else None
        confidence = classes.max(0) if options.confidence else None
        return Segmentation(argmax(classes), self.labels, probabilities, uncertainty, confidence)

    def _maps(self, images: UInt8Array, options: Options) -> FloatArray:
        """Return class probabilities (B, classes, H, W), or logits where only the mask is wanted.

        With mc-dropout one more map follows: the mean entropy of the passes.
        """
        if options.only_mask:
            return self._logits(images)
        total: NDArray[np.floating] = np.zeros((), np.float32)
        spread: NDArray[np.floating] = np.zeros((), np.float32)
        views = 0
        for probabilities in self._views(images, options):
            total = total + probabilities
            if options.uncertainty == "mc-dropout":
                spread = spread + np.stack([entropy(each) for each in probabilities])
            views += 1
        if options.uncertainty == "mc-dropout":
            total = np.concatenate([total, spread[:, None]], axis=1)
        return np.asarray(total / views, np.float32)

    def _views(self, images: UInt8Array, options: Options) -> Iterator[FloatArray]:
        """Yield class probabilities (B, classes, H, W) of every view and pass."""
        height, width = images.shape[1:3]
        for scale in SCALES[options.tta]:
            scaled = images
            if scale != 1:
                target = (max(1, round(width * scale)), max(1, round(height * scale)))
                scaled = np.stack([cv2.resize(image, target, interpolation=cv2.INTER_LINEAR) for image in images])
            for mirrored in (False,) if options.tta == "none" else (False, True):
                for logits in self._passes(scaled[:, :, ::-1] if mirrored else scaled, options):
                    probabilities = softmax(logits)
                    if mirrored:
                        probabilities = probabilities[..., ::-1]
                    if scale != 1:
                        probabilities = np.stack([resize_maps(each, height, width) for each in probabilities])
                    yield probabilities

    def _passes(self, images: UInt8Array, options: Options) -> Iterator[FloatArray]:
        if options.uncertainty != "mc-dropout":
            yield self._logits(images)
            return
        padded = self._pad(images)
        for logits in self.engine.sample(padded, options.passes):
            yield logits[:, :, : images.shape[1], : images.shape[2]]

    def _logits(self, images: UInt8Array) -> FloatArray:
        logits = self.engine.logits(self._pad(images))
        if not np.isfinite(logits.sum()):
            raise NotFiniteError("the network computes NaN or infinite values; its weights may be damaged")
        return logits[:, :, : images.shape[1], : images.shape[2]]

    def _pad(self, images: UInt8Array) -> UInt8Array:
        """Repeat the last row and column of images that are too small for the network."""
        missing = [max(0, self.engine.card.min_size - side) for side in images.shape[1:3]]
        if any(missing):
            images = np.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        return np.ascontiguousarray(images)


def softmax(logits: FloatArray) -> FloatArray:
    """Return probabilities from logits (B, classes, H, W)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def entropy(probabilities: FloatArray) -> FloatArray:
    """Return the entropy of probabilities (classes, H, W) relative to the largest possible: (H, W), 0 to 1."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    for values in probabilities:
        total -= values * np.log(np.maximum(values, TINY))
    return np.clip(total / np.log(max(len(probabilities), 2)), 0, 1)


def argmax(scores: NDArray[np.floating]) -> UInt8Array:
    """Return the class with the highest score: (classes, H, W) to uint8 (H, W). Ten times faster than numpy's."""
    best, mask = scores[0].copy(), np.zeros(scores.shape[1:], np.uint8)
    for index in range(1, len(scores)):
        np.copyto(mask, index, where=scores[index] > best, casting="unsafe")
        np.maximum(best, scores[index], out=best)
    return mask


def count_classes(mask: UInt8Array, classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class in a mask."""
    counts = np.zeros(256, np.int64)
    for top in range(0, len(mask), rows := strip_rows(mask.shape[1])):  # bincount makes eight bytes of every pixel
        counts += np.bincount(mask[top : top + rows].ravel(), minlength=256)
        release(mask)
    return counts[:classes]


def enlarge_by_strips(maps: FloatArray, height: int, width: int) -> Iterator[tuple[slice, slice, FloatArray]]:
    """Enlarge maps (channels, h, w) bilinearly to height and width, in strips: the whole might not fit into memory.

    Yields:
        Rows and columns of a strip, and its maps.
    """
    down, right = maps.shape[1] / height, maps.shape[2] / width
    step = max(1, strip_rows(width) // len(maps))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        # centres of pixels, as cv2.resize has them
        inverse = np.array([[right, 0, right / 2 - 0.5], [0, down, (top + 0.5) * down - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (width, rows.stop - top)
        strip = [cv2.warpAffine(each, inverse, size, flags=flags, borderMode=cv2.BORDER_REPLICATE) for each in maps]
        yield rows, slice(0, width), np.stack(strip)


def resize_maps(maps: FloatArray, height: int, width: int) -> FloatArray:
    """Resize maps (channels, h, w) bilinearly."""
    return np.stack([cv2.resize(channel, (width, height), interpolation=cv2.INTER_LINEAR) for channel in maps])
