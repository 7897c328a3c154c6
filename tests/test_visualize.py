import numpy as np
import pytest

from tiramisu.data import CamVid
from tiramisu.visualize import colorize, error_map, grid, legend, overlay

LABELS = CamVid.labels


def test_colours_are_the_palettes() -> None:
    mask = np.arange(12, dtype=np.uint8)[None]
    assert colorize(mask, LABELS)[0].tolist() == [list(color) for color in (*LABELS.palette, (0, 0, 0))]


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_overlay_blends_and_leaves_void_alone(opacity: float) -> None:
    image = np.full((4, 4, 3), 200, np.uint8)
    mask = np.full((4, 4), 3, np.uint8)
    mask[0] = LABELS.ignore_index
    blended = overlay(image, mask, LABELS, opacity)
    assert (blended[0] == 200).all()
    expected = 200 * (1 - opacity) + np.array(LABELS.palette[3]) * opacity
    np.testing.assert_allclose(blended[1, 0], expected, atol=1)


def test_error_map_shows_only_mistakes() -> None:
    truth = np.array([[3, 3, 11]], np.uint8)
    picture = error_map(np.array([[3, 0, 0]], np.uint8), truth, LABELS)
    assert picture[0].tolist() == [[225] * 3, list(LABELS.palette[3]), [0, 0, 0]]


@pytest.mark.parametrize("width", [80, 400, 2000])
def test_legend_fits_its_width_and_names_every_class(width: int) -> None:
    picture = legend(LABELS, width)
    assert picture.shape[1] == width
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert set(LABELS.palette) <= colors


def test_grid_places_pictures_under_their_titles() -> None:
    red = np.zeros((20, 30, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    blue = np.zeros((20, 40, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    picture = grid([[red, blue], [red, blue]], ("left", "right"), LABELS)
    assert picture.shape[1] == 30 + 6 + 40
    assert (picture[25, 10] == (255, 0, 0)).all() and (picture[25, 50] == (0, 0, 255)).all()
