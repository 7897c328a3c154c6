import os
from pathlib import Path

import numpy as np
import pytest

from tests.odd_images import BAD, GOOD, SCENE, bomb, encode
from tiramisu.errors import ImageError
from tiramisu.images import decode_image

SAME_PICTURE = [name for name in GOOD if name.startswith(("plain", "cmyk", "exif", "pages", "png_called", "animated"))]


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD[name]())
    pixels = decode_image(tmp_path / name).pixels
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert decode_image((tmp_path / name).read_bytes()).pixels.shape == pixels.shape


@pytest.mark.parametrize("name", SAME_PICTURE)
def test_the_picture_is_the_one_that_people_see(name: str) -> None:
    pixels = decode_image(GOOD[name]()).pixels.astype(float)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels - np.asarray(SCENE)).mean() < 12, "colours and orientation"


@pytest.mark.parametrize("name", ["sixteen.png", "sixteen.tif", "float.tif"])
def test_deep_images_are_scaled_not_clipped(name: str) -> None:
    grey = np.asarray(SCENE.convert("L")).astype(int)
    assert np.abs(decode_image(GOOD[name]()).pixels[..., 1] - grey).max() <= 1


@pytest.mark.parametrize("name", ["rgba.png", "grey_alpha.png"])
def test_transparent_parts_are_white(name: str) -> None:
    pixels = decode_image(GOOD[name]()).pixels
    assert (pixels[24:] == 255).all() and not (pixels[:24] == 255).all()


@pytest.mark.parametrize("name", ["pages.tif", "animated.gif"])
def test_of_several_pages_the_first_is_taken_and_said(name: str) -> None:
    assert decode_image(GOOD[name]()).note in ("first of 3 pages", "first of 2 pages")  # GIF merges equal frames


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_name_and_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(ImageError, match=reason) as error:
        decode_image(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for name, reason in (("pipe.png", "not a file"), ("link.png", "No such file"), (".", "not a file")):
        with pytest.raises(ImageError, match=reason):
            decode_image(tmp_path / name)


def test_the_pixel_limit_can_be_set() -> None:
    with pytest.raises(ImageError, match="64 x 48 pixels are more than the limit of 1,000"):
        decode_image(encode(SCENE, "PNG"), max_pixels=1000)
    with pytest.raises(ImageError, match="400,000,000"):
        decode_image(bomb(20_001, 20_000))


def test_a_tall_image_is_read_strip_by_strip() -> None:
    tall = SCENE.convert("RGBA").resize((3, 2500))
    np.testing.assert_array_equal(decode_image(encode(tall, "PNG")).pixels, np.asarray(tall.convert("RGB")))
