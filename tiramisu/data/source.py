"""What a data set is to the rest of the program: numbered images with masks, and what the classes mean."""

import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from tiramisu.arrays import UInt8Array
from tiramisu.errors import DataError, ImageError
from tiramisu.images import FORMATS, decode_image
from tiramisu.labels import LabelSet

MAX_PIXELS = 178_956_970  # what Pillow refuses by itself, unless another module has lifted its limit


class Sample(NamedTuple):
    """One labelled image.

    Attributes:
        image: uint8 (H, W, channels), RGB where there are three.
        mask: uint8 (H, W), class indices or the ignore index.
        name: what a person would call it, such as the file's name.
    """

    image: UInt8Array
    mask: UInt8Array
    name: str


class Source(Protocol):
    """A split of a data set."""

    @property
    def labels(self) -> LabelSet:
        """Return what the classes mean."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        ...


class Relabelled:
    """A source whose masks hold the indices of other labels, matched by name, void to void.

    Args:
        source: to read.
        labels: whose indices to use.

    Attributes:
        absent: classes of `labels` that the source does not have.

    Raises:
        DataError: the source has a class that the labels do not.
    """

    def __init__(self, source: Source, labels: LabelSet) -> None:
        self.source, self.labels = source, labels
        places = {name: index for index, name in enumerate(labels.names)}
        places |= {name.casefold(): index for name, index in reversed(places.items()) if name.casefold() not in places}
        own = source.labels
        self._table = np.full(256, labels.ignore_index, np.uint8)
        unknown = []
        for index, name in enumerate(own.names):
            found = places.get(name, places.get(name.casefold()))
            if found is None:
                unknown.append(name)
            else:
                self._table[index] = found
        if unknown:
            raise DataError(f"the data have {', '.join(unknown)}, which the weights do not know; they know "
                            f"{', '.join(labels.names)}")  # fmt: skip
        used = set(self._table[: len(own)].tolist())
        self.absent = [name for index, name in enumerate(labels.names) if index not in used]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample."""
        sample = self.source[index]
        return sample._replace(mask=self._table[sample.mask])


def spread_evenly(length: int, count: int) -> list[int]:
    """Return at most `count` positions that are spread evenly over `length`, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).astype(int)).tolist()


def read_image(path: Path, channels: int = 3) -> UInt8Array:
    """Read an image file as uint8 (H, W, channels), upright; see `decode_image`.

    Raises:
        DataError: the file is missing or no readable image.
    """
    try:
        return decode_image(path, MAX_PIXELS, channels=channels).pixels
    except ImageError as error:
        raise DataError(f"{error}; replace it or remove it and its mask") from error


def read_mask(path: Path, labels: LabelSet) -> UInt8Array:
    """Read an index mask (grey or palette PNG) as uint8 (H, W).

    Raises:
        DataError: the file is missing, unreadable, not an index mask, or has a value outside the classes.
    """
    image = open_mask(path)
    if image.mode not in ("L", "P"):
        raise DataError(f"mask {path} is of mode {image.mode}; masks must hold one class index per pixel (mode L or P)")
    mask = np.asarray(image)
    known = np.zeros(256, bool)
    known[: len(labels)] = known[labels.ignore_index] = True
    if not known[mask].all():
        value = int(mask[~known[mask]][0])
        raise DataError(f"mask {path} has the value {value}; classes are 0 to {len(labels) - 1} and void is "
                        f"{labels.ignore_index}")  # fmt: skip
    return mask


def open_mask(path: Path) -> Image.Image:
    """Open and decode the file of a mask, as it is stored.

    Raises:
        DataError: it is missing, damaged or too large.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise DataError(f"{path} does not exist, or is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; the pixels decide
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path} claims {image.width} x {image.height} pixels; make it smaller or remove it"
                    )
                image.load()
                return image
    except DataError:
        raise
    except Exception as error:  # decoders fed with damaged bytes raise nearly anything
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise DataError(f"mask {path} cannot be read: {reason}; replace it or remove it and its image") from error
