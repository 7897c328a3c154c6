"""How well a picture was segmented, where the visitor has its true mask."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tiramisu.data.source import read_mask
from tiramisu.demo.gallery import Gallery, Result
from tiramisu.errors import DataError, ImageError
from tiramisu.metrics import Scores, confusion_matrix, scores_from_confusion

UInt8Array = NDArray[np.uint8]


def read_truth(gallery: Gallery, name: str, data: bytes, result: Result) -> UInt8Array:
    """Decode a mask of class indices for a result: uint8 (H, W).

    Raises:
        ImageError: it is no mask of class indices, or of another size than the image.
    """
    gallery.limits.check_file(name, len(data))
    file = gallery.root / "truth.png"
    file.write_bytes(data)
    try:
        mask = read_mask(file, result.labels)
    except DataError as error:
        raise ImageError(str(error).replace(str(file), name)) from error
    finally:
        file.unlink()
    if mask.shape != (result.height, result.width):
        raise ImageError(
            f"{name}: {mask.shape[1]} x {mask.shape[0]} pixels, but {result.picture.name} has {result.width} x "
            f"{result.height}; give the mask of the same image"
        )
    return mask


def find_partner(picture: str, masks: list[str]) -> str | None:
    """Return the mask that belongs to a picture: the one of the same stem."""
    stem = Path(picture).stem.casefold()
    return next((mask for mask in masks if Path(mask).stem.casefold() == stem), None)


def assess(prediction: UInt8Array, truth: UInt8Array, result: Result) -> Scores:
    """Compare a mask with the truth, void excluded."""
    matrix = confusion_matrix(result.labels)
    matrix.update(torch.from_numpy(prediction.astype(np.int64))[None], torch.from_numpy(truth.astype(np.int64))[None])
    return scores_from_confusion(matrix.compute())
