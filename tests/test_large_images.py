"""Very large images: kept in a temporary file, with the same results, in memory that is bounded by pixels."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.odd_images import GOOD, SCENE, encode
from tests.test_predict import command, contents, peak_memory, write_scenes
from tiramisu import spool
from tiramisu.data.streets import draw_scene
from tiramisu.errors import ImageError
from tiramisu.images import decode_image
from tiramisu.predict import main

EXIF = Image.Exif()
EXIF[0x0112] = 6


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


COLOR = np.asarray(SCENE)
FILES = {
    **{name: make() for name, make in GOOD.items() if not name.startswith(("one", "line"))},
    "progressive.jpg": encode(SCENE, "JPEG", quality=80, progressive=True),
    "grey.jpg": encode(SCENE.convert("L"), "JPEG"),
    "turned.jpg": encode(SCENE, "JPEG", exif=EXIF),
    "turned.png": encode(SCENE, "PNG", exif=EXIF),
    "interlaced.tif": tiff(COLOR.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
    "lzw.tif": tiff(COLOR, photometric="rgb", compression="lzw", predictor=True),
    "jpeg.tif": tiff(COLOR, photometric="rgb", compression="jpeg"),
    "deep.tif": tiff(COLOR.astype(np.uint16) * 257, photometric="rgb"),
    "float.tif": tiff((COLOR / 255).astype(np.float32), photometric="rgb"),
}


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("spool", "images", "inference.outputs"):
        monkeypatch.setattr(f"tiramisu.{module}.SPOOLED_PIXELS", 1000)
    monkeypatch.setattr(spool, "STRIP_PIXELS", 500)


@pytest.mark.parametrize("name", FILES)
def test_a_large_image_has_the_same_pixels(tmp_path: Path, small_limit: None, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    plain = decode_image(tmp_path / name)
    large = decode_image(tmp_path / name, spool=tmp_path)
    np.testing.assert_array_equal(large.pixels, plain.pixels)
    assert large.note == plain.note and isinstance(large.pixels, spool.SpooledArray)
    assert [file.name for file in tmp_path.iterdir()] == [name], "the file of the pixels has no name"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_a_large_image_that_is_cut_short_is_told(tmp_path: Path, small_limit: None, kind: str) -> None:
    data = encode(SCENE, kind)
    (tmp_path / "cut").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match=r"truncated|damaged|too small"):
        decode_image(tmp_path / "cut", spool=tmp_path)


def test_large_images_are_segmented_alike(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(90, 900), (900, 100)]):
        Image.fromarray(draw_scene(5, number, *size)[0]).save(images / f"{number}.png")
    more = ["--uncertainty=entropy", "--annotations=coco,labelme", "--overlay=png", "--fit=false"]
    main(command(trained_run / "model", images, tmp_path / "plain", *more))
    request.getfixturevalue("small_limit")
    main(command(trained_run / "model", images, tmp_path / "large", *more))
    plain, large = contents(tmp_path / "plain"), contents(tmp_path / "large")
    assert plain.keys() == large.keys()
    for name in plain:
        if name.startswith("overlays/"):  # by another encoder
            first, second = (np.asarray(Image.open(io.BytesIO(each[name]))) for each in (plain, large))
            np.testing.assert_array_equal(first, second)
        else:
            assert plain[name] == large[name], name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("height", "width", "fit"), [(1_000, 40_000, "false"), (20_000, 30_000, "true")])
def test_two_gib_are_enough_for_any_shape(trained_run: Path, tmp_path: Path, height: int, width: int, fit: str) -> None:
    """Above the model and one tile of it, annotations included."""
    weights = trained_run / "model"
    base = peak_memory(command(weights, write_scenes(tmp_path / "tile", 1, (768, 768)), tmp_path / "base"))
    (tmp_path / "large").mkdir()
    scene = draw_scene(5, 0, 500, 500)[0][..., ::-1]
    picture = np.tile(scene, (height // 500, width // 500, 1))
    assert cv2.imwrite(str(tmp_path / "large" / "large.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    del picture
    more = ["--annotations=coco", "--max_pixels=700000000", f"--fit={fit}"]
    assert peak_memory(command(weights, tmp_path / "large", tmp_path / "masks", *more)) - base < 2048
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(tmp_path / "masks" / "large.png") as mask:
        assert mask.size == (width, height)
