"""How well a picture was segmented, where the visitor has its true mask."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiramisu.arrays import UInt8Array
from tiramisu.data.layouts import without_ending
from tiramisu.data.source import read_mask
from tiramisu.demo.gallery import Gallery, Result
from tiramisu.errors import DataError, ImageError
from tiramisu.labels import LabelSet
from tiramisu.metrics import Scores, confusion_matrix, scores_from_confusion


def read_truth(gallery: Gallery, name: str, data: bytes, result: Result) -> UInt8Array:
    """Decode a mask of class indices for a result: uint8 (H, W).

    Raises:
        ImageError: it is no mask of class indices, or of another size than the image.
    """
    gallery.limits.check_file(name, len(data))
    expected = (result.height, result.width)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:  # only the header is read
            size = picture.height, picture.width
    except Exception as error:  # decoders fed with hostile bytes raise nearly anything
        raise ImageError(f"{name}: not a PNG file that can be read; masks are PNG files of class indices") from error
    if size != expected:
        raise ImageError(
            f"{name}: {size[1]} x {size[0]} pixels, but {result.picture.name} has {result.width} x {result.height}; "
            f"give the mask of the same image"
        )
    file = gallery.root / "truth.png"
    file.write_bytes(data)
    try:
        return read_mask(file, result.labels)
    except DataError as error:
        raise ImageError(str(error).replace(str(file), name)) from error
    finally:
        file.unlink()


def find_partner(picture: str, masks: list[str]) -> str | None:
    """Return the mask that belongs to a picture: the one of the same name, or with an ending such as _mask."""
    stem = Path(picture).stem.casefold()
    return next((mask for mask in masks if Path(mask).stem.casefold() == stem), None) or next(
        (mask for mask in masks if without_ending(Path(mask).stem).casefold() == stem), None
    )


def assess(pairs: Iterable[tuple[UInt8Array, UInt8Array]], labels: LabelSet) -> Scores:
    """Compare masks with the truth, void excluded, pixels of all images together.

    Args:
        pairs: predicted and true mask of each image.
        labels: the classes.
    """
    matrix = confusion_matrix(labels)
    for prediction, truth in pairs:
        matrix.update(*(torch.from_numpy(mask.astype(np.int64))[None] for mask in (prediction, truth)))
    return scores_from_confusion(matrix.compute())
