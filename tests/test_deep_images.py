"""TIFF files of every layout that tifffile reads, deep PNG and HEIC: the right pixels, or a reason that is true."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.odd_images import SCENE, encode
from tiramisu.errors import ImageError
from tiramisu.images import HEIF_REMEDY, decode_image

GREY = np.asarray(SCENE.convert("L"))
COLOR = np.asarray(SCENE)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "rgb" if values.ndim == 3 else "minisblack", **options})
    return buffer.getvalue()


def as_tifffile_reads(data: bytes, low: float, high: float) -> np.ndarray:
    """The documented scaling, straight from tifffile's values."""
    values = tifffile.imread(io.BytesIO(data)).astype(np.float64)
    scaled = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    if scaled.ndim == 3 and scaled.shape[0] == 3:
        scaled = scaled.transpose(1, 2, 0)
    return np.repeat(scaled[..., None], 3, 2) if scaled.ndim == 2 else scaled


DEEP_GREY, DEEP_COLOR = GREY.astype(np.uint16) * 257 + 5, np.minimum(COLOR.astype(np.uint16) * 257 + 5, 65535)
UNIT = GREY / np.float64(255)
CASES: dict[str, tuple[bytes, float, float]] = {
    "uint16 grey": (tiff(DEEP_GREY), 0, 65535),
    "uint16 rgb": (tiff(DEEP_COLOR), 0, 65535),
    "uint16 planes": (tiff(DEEP_COLOR.transpose(2, 0, 1), planarconfig="separate"), 0, 65535),
    "uint8 planes": (tiff(COLOR.transpose(2, 0, 1).copy(), planarconfig="separate"), 0, 255),
    "big endian": (tiff(DEEP_COLOR, byteorder=">"), 0, 65535),
    "big endian float": (tiff(UNIT.astype(np.float32), byteorder=">"), 0, 1),
    "tiled": (tiff(DEEP_COLOR, tile=(16, 16)), 0, 65535),
    "lzw, predictor": (tiff(DEEP_COLOR, compression="lzw", predictor=True), 0, 65535),
    "deflate, predictor": (tiff(UNIT.astype(np.float32), compression="zlib", predictor=3), 0, 1),
    "zstd": (tiff(DEEP_GREY, compression="zstd"), 0, 65535),
    "webp": (tiff(COLOR, compression="webp", compressionargs={"lossless": True}), 0, 255),
    "lzma": (tiff(COLOR, compression="lzma"), 0, 255),
    "bigtiff": (tiff(DEEP_GREY, bigtiff=True), 0, 65535),
    "float16": (tiff(UNIT.astype(np.float16)), 0, 1),
    "float32": (tiff(UNIT.astype(np.float32)), 0, 1),
    "float64": (tiff(UNIT), 0, 1),
    "float rgb": (tiff((COLOR / 255).astype(np.float32)), 0, 1),
    "float16 rgb planes": (tiff((COLOR / 255).astype(np.float16).transpose(2, 0, 1), planarconfig="separate"), 0, 1),
    "uint32 of 16 bits": (tiff(DEEP_GREY.astype(np.uint32)), 0, 65535),
    "uint32 of 8 bits": (tiff(GREY.astype(np.uint32)), 0, 255),
    "int16": (tiff(GREY.astype(np.int16) - 100), float(GREY.min()) - 100, float(GREY.max()) - 100),
    "uint32": (tiff(GREY.astype(np.uint32) * 10**7), float(GREY.min()) * 1e7, float(GREY.max()) * 1e7),
    "int32 rgb": (tiff(COLOR.astype(np.int32) * 1000 - 7), int(COLOR.min()) * 1000 - 7, int(COLOR.max()) * 1000 - 7),
    "heights": (tiff((GREY * 3.5 - 20).astype(np.float32)), float(GREY.min()) * 3.5 - 20, float(GREY.max()) * 3.5 - 20),
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_tifffiles_scaled_as_documented(tmp_path: Path, name: str) -> None:
    data, low, high = CASES[name]
    found = decode_image(data)
    np.testing.assert_array_equal(found.pixels, as_tifffile_reads(data, low, high))
    assert ("stretched" in found.note) == (name in ("int16", "uint32", "int32 rgb", "heights"))
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif").pixels, found.pixels)


def test_white_is_zero_is_inverted() -> None:
    for values in (DEEP_GREY, GREY):
        data = tiff(values, photometric="miniswhite")
        top = np.iinfo(values.dtype).max
        expected = np.rint((top - values.astype(float)) * 255 / top).astype(np.uint8)
        assert np.abs(decode_image(data).pixels[..., 0].astype(int) - expected).max() <= 1


def test_twelve_bits_are_scaled_from_twelve_bits() -> None:
    values = (GREY.astype(np.uint16) * 16).clip(0, 4095)
    data = tiff(values, bitspersample=12)
    assert np.abs(decode_image(data).pixels[..., 0].astype(int) - GREY).max() <= 1


def test_palettes_of_16_bits_are_looked_up() -> None:
    colors = np.random.default_rng(0).integers(0, 65536, (3, 65536)).astype(np.uint16)
    data = tiff(DEEP_GREY, photometric="palette", colormap=colors)
    expected = np.rint(colors[:, DEEP_GREY].transpose(1, 2, 0) / 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(data).pixels, expected)


def test_alpha_lies_over_white_and_cmyk_becomes_rgb() -> None:
    alpha = np.full((48, 64, 1), 65535, np.uint16)
    alpha[24:] = 0
    data = tiff(np.concatenate([DEEP_COLOR, alpha], 2), extrasamples=["unassalpha"])
    pixels = decode_image(data).pixels
    assert (pixels[24:] == 255).all() and np.abs(pixels[:24].astype(int) - COLOR[:24]).max() <= 1
    ink = np.concatenate([65535 - DEEP_COLOR, np.zeros_like(alpha)], 2)
    assert np.abs(decode_image(tiff(ink, photometric="separated")).pixels.astype(int) - COLOR).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_deep_images(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = decode_image(encode(SCENE, "PNG", exif=exif)).pixels
    data = tiff(DEEP_COLOR, extratags=[(274, "H", 1, orientation, True)])
    found = decode_image(data).pixels
    assert found.shape == plain.shape and np.abs(found.astype(int) - plain).max() <= 1


def test_nodata_is_black_and_said() -> None:
    values = UNIT.astype(np.float32)
    values[:5] = np.nan
    found = decode_image(tiff(values))
    assert (found.pixels[:5] == 0).all() and "320 pixels are no numbers" in found.note
    assert np.abs(found.pixels[5:, :, 0].astype(int) - GREY[5:]).max() <= 1
    with pytest.raises(ImageError, match="not finite"):
        decode_image(tiff(np.full((8, 8), np.nan, np.float32)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(DEEP_COLOR)[:-2000], "truncated TIFF"),
        (tiff(UNIT.astype(np.float32))[:-500], "truncated TIFF"),
        (tiff(np.zeros((8, 8, 6), np.uint16), photometric="minisblack", planarconfig="contig"), "TIFF of 6 channels"),
        (tiff(UNIT.astype(np.complex64)), "kind MINISBLACK with 1 samples of complex64"),
        (tiff(DEEP_COLOR, photometric="cielab"), "kind CIELAB"),
    ],
)
def test_reasons_are_true(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


def test_a_pixel_limit_holds_for_deep_images() -> None:
    with pytest.raises(ImageError, match="64 x 48 pixels are more than the limit"):
        decode_image(tiff(DEEP_GREY), max_pixels=100)


@pytest.mark.parametrize("kind", ["grey", "rgb"])
def test_the_transparent_colour_of_a_deep_png_is_white(kind: str) -> None:
    """One value of 16 bits is transparent; its neighbours, the same in 8 bits, are not."""
    import struct
    import zlib

    values = DEEP_GREY if kind == "grey" else DEEP_COLOR
    values = values.copy()
    values[0, 0], values[0, 1] = 0x1234, 0x1235
    ok, encoded = cv2.imencode(".png", values if kind == "grey" else values[..., ::-1])
    data = encoded.tobytes()
    clear = struct.pack(">H", 0x1234) * (1 if kind == "grey" else 3)
    chunk = struct.pack(">I", len(clear)) + b"tRNS" + clear + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
    at = data.index(b"IDAT") - 4
    pixels = decode_image(data[:at] + chunk + data[at:]).pixels
    assert ok and (pixels[0, 0] == 255).all() and (pixels[0, 1] == 0x12).all()
    expected = np.rint(values / 257).astype(np.uint8)
    expected = np.repeat(expected[..., None], 3, 2) if kind == "grey" else expected
    np.testing.assert_array_equal(pixels[1:], expected[1:])


def heic(**options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(SCENE).save(buffer, quality=95, **options)
    return buffer.getvalue()


def test_heic_is_read_and_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "photo.heic").write_bytes(heic())
    for source in (tmp_path / "photo.heic", heic()):
        pixels = decode_image(source).pixels
        assert pixels.shape == (48, 64, 3) and np.abs(pixels.astype(int) - COLOR).mean() < 12
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(heic(exif=exif.tobytes())).pixels.shape == (64, 48, 3)
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(heic(), max_pixels=100)
    with pytest.raises(ImageError):
        decode_image(heic()[:400])


def test_heic_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic()
    monkeypatch.setattr("tiramisu.images.HAS_HEIF", False)
    with pytest.raises(ImageError, match=HEIF_REMEDY.replace("(", "\\(")):
        decode_image(data)
