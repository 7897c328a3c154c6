import itertools

import numpy as np
import pytest

from tiramisu.inference.tiling import blend_tiles, ramp, split


@pytest.mark.parametrize("length", [1, 96, 97, 100, 130, 191, 192, 193, 500, 1024, 1999])
@pytest.mark.parametrize("grid", [1, 32])
def test_tiles_cover_a_length_and_begin_on_the_grid(length: int, grid: int) -> None:
    tiles, stride = split(length, 96, 32, grid)
    assert tiles[0].start == 0 and tiles[-1].stop == length
    for tile, following in itertools.pairwise(tiles):
        assert following.start % grid == 0
        assert following.start == tile.start + stride and tile.stop - following.start == 32
    assert all(tile.stop - tile.start <= 96 + grid for tile in tiles)


@pytest.mark.parametrize("size", [(50, 60), (97, 300), (300, 97), (411, 333)])
def test_maps_that_do_not_depend_on_the_tile_come_out_as_they_are(size: tuple[int, int]) -> None:
    whole = np.random.default_rng(0).random((3, *size), np.float32)
    result = np.full_like(whole, np.nan)
    for rows, columns, maps in blend_tiles(size, lambda y, x: whole[:, y, x].copy(), 96, 32, 16):
        assert np.isnan(result[:, rows, columns]).all(), "every pixel once"
        result[:, rows, columns] = maps
    np.testing.assert_allclose(result, whole, atol=1e-6)


def test_no_seam_where_tiles_disagree() -> None:
    """Each tile is of one colour; the blend goes from one to the next without a step."""
    numbers = iter(range(100))
    pieces = list(
        blend_tiles((96, 500), lambda y, x: np.full((1, 96, x.stop - x.start), next(numbers), np.float32), 96, 32, 1)
    )
    row = np.concatenate([maps[0, 0] for _, _, maps in pieces])
    assert np.abs(np.diff(row)).max() <= 1 / 16 + 1e-6


def test_the_edge_of_a_tile_counts_for_nothing() -> None:
    weights = ramp(32)
    assert (weights[:8] == 0).all() and (weights[-8:] == 1).all()
    np.testing.assert_allclose(weights + weights[::-1], 1)
