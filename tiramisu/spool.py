"""Arrays that lie in a temporary file: what very large images need without holding them in memory."""

import contextlib
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPOOLED_PIXELS = 64_000_000  # images with more are kept in a file, where a folder for it is given
STRIP_PIXELS = 2_000_000  # that are computed at once where an image is gone through strip by strip
RELEASE_SECONDS = 0.05


class SpooledArray(np.ndarray):
    """An array in an unlinked temporary file, which goes when the array does.

    Attributes:
        mapping: of the file.
        folder: that it lies in.
    """

    mapping: mmap.mmap | None
    folder: Path | None

    def __array_finalize__(self, source: Any) -> None:
        self.mapping = getattr(source, "mapping", None)
        self.folder = getattr(source, "folder", None)


def spooled(shape: tuple[int, ...], dtype: Any, folder: Path) -> SpooledArray:
    """Return an array of zeros in a temporary file.

    Args:
        shape: of the array.
        dtype: of its values.
        folder: for the file, on a disk with room for it.

    Raises:
        OSError: the file cannot be written, for example to a full disk.
    """
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would end the process with a bus error
        else:
            file.truncate(size)
        mapping = mmap.mmap(file.fileno(), size)
    array = np.frombuffer(mapping, dtype, math.prod(shape)).reshape(shape).view(SpooledArray)
    array.mapping, array.folder = mapping, folder
    return array


def empty_like(image: NDArray[Any], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an uninitialised array, in a file where the image is."""
    if isinstance(image, SpooledArray) and image.folder is not None:
        return spooled(shape, dtype, image.folder)
    return np.empty(shape, dtype)


def release(array: NDArray[Any]) -> None:
    """Let go of the memory in which parts of a spooled array are cached; its values stay in the file."""
    if isinstance(array, SpooledArray) and array.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        array.mapping.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def released(array: NDArray[Any]) -> Iterator[None]:
    """Let go of an array's memory again and again while something goes through all of it."""
    done = threading.Event()

    def keep_releasing() -> None:
        while not done.wait(RELEASE_SECONDS):
            release(array)

    thread = threading.Thread(target=keep_releasing, daemon=True)
    if isinstance(array, SpooledArray):
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
        release(array)


def strip_rows(width: int) -> int:
    """Return how many rows of an image to compute at once, so that memory does not grow with its width."""
    return max(1, STRIP_PIXELS // max(1, width))
