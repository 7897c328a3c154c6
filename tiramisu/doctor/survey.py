"""Looking at every image and mask of a folder once."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from tiramisu.arrays import UInt8Array
from tiramisu.data.classes import VOID
from tiramisu.data.folder import FolderIndex, align_mask, exif_orientation, read_pair_mask
from tiramisu.data.layouts import Pair
from tiramisu.data.masks import Encoding, RawMask, decode_known, is_grey, read_raw_mask
from tiramisu.data.source import read_image
from tiramisu.errors import DataError
from tiramisu.visualize import as_rgb

SMALL_SIDE = 256  # of the pictures in which masks are compared with edges
REACH = 12  # how far a mask may be shifted, in pixels of these pictures
HASH_SIDE = 32


@dataclasses.dataclass
class Fact:
    """What is known about an image and its mask.

    Attributes:
        pair: where they are.
        split: that they belong to.
        image_error: why the image cannot be read; empty where it can.
        mask_error: likewise for the mask.
        image_size: height and width, upright.
        mask_size: height and width.
        orientation: the image's, of EXIF.
        turned: whether the mask was drawn on the photo as it is stored, and is turned with it.
        mode: of the mask file, as Pillow calls it.
        encoding: what the mask file looks like by itself; none where it is no file of pixels.
        counts: pixels of each class.
        void: pixels of no class.
        unknown: values (or colours, as 0xRRGGBB) that mean no class.
        digest: of the image's pixels; equal for equal images.
        fingerprint: 64 bits that differ little between images that look alike.
        shift: how far the mask seems to be from the edges in the image, down and to the right, in pixels.
        shift_gain: how much better it would fit there, as a factor.
    """

    pair: Pair
    split: str
    image_error: str = ""
    mask_error: str = ""
    image_size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    orientation: int = 1
    turned: bool = False
    mode: str = ""
    encoding: Encoding | None = None
    counts: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    void: int = 0
    unknown: list[int] = dataclasses.field(default_factory=list)
    digest: str = ""
    fingerprint: int = 0
    shift: tuple[int, int] = (0, 0)
    shift_gain: float = 1.0

    @property
    def good(self) -> bool:
        """Tell whether training could use it."""
        return not self.image_error and not self.mask_error and self.image_size == self.mask_size and not self.unknown


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known about a folder.

    Attributes:
        index: of the folder.
        facts: one per pair.
    """

    index: FolderIndex
    facts: list[Fact]

    def counts(self, split: str | None = None) -> NDArray[np.int64]:
        """Return the pixels of each class, in a split or in all."""
        total = np.zeros(len(self.index.classes.labels), np.int64)
        for fact in self.facts:
            if len(fact.counts) and split in (None, fact.split):
                total += fact.counts
        return total


def survey_folder(
    index: FolderIndex,
    pairs: Iterable[tuple[str, Pair]] | None = None,
    progress: Callable[[Iterable[Fact], int], Iterable[Fact]] = lambda facts, total: facts,
) -> Survey:
    """Look at images and masks.

    Args:
        index: of the folder.
        pairs: split and pair of each; default: all.
        progress: wraps the facts as they come, such as tqdm.
    """
    if pairs is None:
        pairs = [(split, pair) for split, members in index.splits.items() for pair in members]
    pairs = list(pairs)
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        found = pool.map(lambda item: examine(index, item[1], item[0]), pairs)
        return Survey(index, list(progress(found, len(pairs))))


def examine(index: FolderIndex, pair: Pair, split: str) -> Fact:
    """Look at an image and its mask."""
    fact = Fact(pair, split)
    path = index.root / pair.image
    image: UInt8Array | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = read_image(path, index.in_channels)
        fact.image_size = image.shape[0], image.shape[1]
        fact.orientation = exif_orientation(path)
        fact.digest = hashlib.sha256(image.tobytes()).hexdigest()
        image = as_rgb(image)
        fact.fingerprint = perceptual_hash(image)
    except DataError as error:
        fact.image_error = str(error)
    try:
        mask = _examine_mask(index, fact)
    except DataError as error:
        fact.mask_error = str(error)
        return fact
    counts = np.bincount(mask.ravel(), minlength=256)
    fact.counts, fact.void = counts[: len(index.classes.labels)].astype(np.int64), int(counts[VOID])
    if image is not None and image.shape[:2] == mask.shape:
        fact.shift, fact.shift_gain = find_shift(image, mask)
    return fact


def _examine_mask(index: FolderIndex, fact: Fact) -> UInt8Array:
    if index.listing.kind != "file":
        if fact.image_error:
            return np.full((1, 1), VOID, np.uint8)
        mask = read_pair_mask(index, fact.pair, fact.image_size, fact.orientation)
        fact.mask_size = mask.shape[0], mask.shape[1]
        return mask
    raw = read_raw_mask(index.root / fact.pair.mask[0])
    fact.mode = raw.mode
    fact.encoding = _own_encoding(raw, index.encoding)
    mask, fact.unknown = decode_known(raw, index.encoding, index.classes)
    stored = mask.shape
    mask = align_mask(mask, fact.image_size, fact.orientation)
    fact.turned = mask.shape != stored
    fact.mask_size = mask.shape[0], mask.shape[1]
    return mask


def _own_encoding(raw: RawMask, expected: Encoding) -> Encoding:
    """Return what a mask looks like by itself; what fits the others is taken for the same."""
    if raw.values.ndim == 2:
        return "index" if expected == "color" and raw.mode != "P" else expected
    return "color" if expected == "color" or not is_grey(raw.values) else expected


def perceptual_hash(image: UInt8Array) -> int:
    """Return 64 bits that say how the lowest frequencies of an image compare to their median; 0 for a flat one."""
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA)
    if grey.std() < 2:
        return 0
    low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_shift(image: UInt8Array, mask: UInt8Array) -> tuple[tuple[int, int], float]:
    """Tell where the borders in a mask fit the edges in its image best.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: uint8 (H, W).

    Returns:
        How far the mask is shifted, down and to the right, in pixels; and how much larger the edges under its borders
        are at the best place than here, as a factor (1 where there are no borders).
    """
    scale = min(1.0, SMALL_SIDE / max(mask.shape))
    size = max(8, round(mask.shape[1] * scale)), max(8, round(mask.shape[0] * scale))
    grey = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    edges = np.minimum(edges, np.percentile(edges, 95) + 1)  # one bright edge must not decide
    borders = np.zeros(small.shape, np.float32)
    borders[:, 1:] += small[:, 1:] != small[:, :-1]
    borders[1:] += small[1:] != small[:-1]
    borders[[0, -1]] = borders[:, [0, -1]] = 0
    if borders.sum() < 40:
        return (0, 0), 1.0
    borders = cv2.GaussianBlur(np.minimum(borders, 1), (3, 3), 0)
    correlation = np.fft.irfft2(np.fft.rfft2(edges) * np.conj(np.fft.rfft2(borders)), s=edges.shape)
    reach = min(REACH, min(edges.shape) // 4)
    window = np.roll(correlation, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    down, right = np.unravel_index(int(window.argmax()), window.shape)
    best = int(down) - reach, int(right) - reach
    gain = float(window.max() / max(window[reach, reach], 1e-6))
    # The mask lies where its borders are, so it is off by the opposite of where they would fit.
    return (round(-best[0] / scale), round(-best[1] / scale)), gain


def find_lookalikes(first: Sequence[Fact], second: Sequence[Fact], distance: int) -> list[tuple[Fact, Fact]]:
    """Return for each of the first the most similar of the second, where they look alike.

    Args:
        first: images.
        second: images to compare with.
        distance: of 64 bits, how many may differ.
    """
    others = [fact for fact in second if fact.fingerprint]
    if not others:
        return []
    hashes = np.array([fact.fingerprint for fact in others], np.uint64)
    found = []
    for fact in first:
        if fact.fingerprint:
            differing = np.bitwise_count(hashes ^ np.uint64(fact.fingerprint))
            nearest = int(differing.argmin())
            if differing[nearest] <= distance:
                found.append((fact, others[nearest]))
    return found
