"""Large images in overlapping tiles, in memory that does not grow with their height."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from tiramisu.arrays import FloatArray


def split(length: int, tile: int, overlap: int, grid: int) -> tuple[list[slice], int]:
    """Cut a length into tiles of nearly equal size that begin at multiples of the grid.

    Args:
        length: of the image, in pixels.
        tile: largest length of a tile (rounded up so that it fits the grid).
        overlap: of neighbours, in pixels, less than `tile`.
        grid: see `Card.grid`.

    Returns:
        The tiles, and the distance of their beginnings. Each but the last is as long as this distance plus the
        overlap; the last is longer than the overlap.
    """
    if length <= tile:
        return [slice(0, length)], length
    count = math.ceil((length - overlap) / (tile - overlap))
    stride = math.ceil((length - overlap) / count / grid) * grid
    count = math.ceil((length - overlap) / stride)
    return [slice(start, min(start + stride + overlap, length)) for start in range(0, count * stride, stride)], stride


def ramp(overlap: int) -> FloatArray:
    """Return the weights of the later of two tiles over their overlap; those of the earlier one add up to 1 with it.

    The outer quarters get no weight: next to the edge of a tile the network sees padding in place of the image.
    """
    position = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
    return np.clip(2 * position - 0.5, 0, 1)


def blend_tiles(
    size: tuple[int, int], compute: Callable[[slice, slice], FloatArray], tile: int, overlap: int, grid: int
) -> Iterator[tuple[slice, slice, FloatArray]]:
    """Compute maps tile by tile and yield them piece by piece, blended where tiles overlap.

    No more is kept than one tile, and the overlap with the row of tiles before.

    Args:
        size: height and width of the image.
        compute: returns the maps (channels, h, w) of the given rows and columns.
        tile: see `split`.
        overlap: likewise.
        grid: likewise.

    Yields:
        Rows and columns of a piece, and its maps (channels, h, w); the pieces fill the image without overlap.
    """
    (rows, down), (columns, right) = (split(length, tile, overlap, grid) for length in size)
    later = ramp(overlap)
    below: FloatArray | None = None
    for row in rows:
        beside: FloatArray | None = None
        for column in columns:
            maps = compute(row, column)
            if below is None:
                below = np.zeros((len(maps), overlap, size[1]), np.float32)
            if beside is not None:
                maps[:, :, :overlap] = maps[:, :, :overlap] * later + beside
            if column is not columns[-1]:
                beside = maps[:, :, right:] * (1 - later)
                maps = maps[:, :, :right]
            columns_done = slice(column.start, column.start + maps.shape[2])
            if row is not rows[0]:
                maps[:, :overlap] = maps[:, :overlap] * later[:, None] + below[:, :, columns_done]
            if row is not rows[-1]:
                below[:, :, columns_done] = maps[:, down:] * (1 - later[:, None])
                maps = maps[:, :down]
            yield slice(row.start, row.start + maps.shape[1]), columns_done, maps
