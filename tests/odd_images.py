"""Images of every kind and every defect, made on the spot."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pillow_heif
import tifffile
from PIL import Image

from tiramisu.data.streets import draw_scene

SCENE = Image.fromarray(draw_scene(3, 0, 48, 64)[0])


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bits(kind: str) -> bytes:
    grey = np.asarray(SCENE.convert("L")).astype(np.uint16) * 257
    return encode(Image.fromarray(grey), kind)


def pages(kind: str) -> bytes:
    return encode(SCENE, kind, save_all=True, append_images=[SCENE.rotate(180)] * 2)


def rotated(orientation: int) -> bytes:
    """The scene stored so that the EXIF orientation turns it upright again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {6: SCENE.transpose(Image.Transpose.ROTATE_90), 3: SCENE.transpose(Image.Transpose.ROTATE_180)}
    return encode(stored[orientation], "JPEG", exif=exif, quality=95)


def transparent(mode: str) -> bytes:
    image = SCENE.convert("RGBA")
    alpha = np.zeros((48, 64), np.uint8)
    alpha[:24] = 255
    image.putalpha(Image.fromarray(alpha))
    return encode(image.convert(mode), "PNG")


def heic() -> bytes:
    """The scene as phones store it."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(SCENE).save(buffer, quality=95)
    return buffer.getvalue()


def deep_planes() -> bytes:
    """The scene in 16 bits, one colour after the other, compressed."""
    buffer = io.BytesIO()
    values = np.asarray(SCENE).transpose(2, 0, 1).astype(np.uint16) * 257
    tifffile.imwrite(buffer, values, photometric="rgb", planarconfig="separate", compression="lzw", predictor=True)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def damaged(data: bytes, start: int = 60) -> bytes:
    """Bytes in the middle overwritten."""
    middle = bytearray(data)
    middle[start : start + 40] = b"\xa5" * 40
    return bytes(middle)


GOOD: dict[str, Callable[[], bytes]] = {
    "plain.png": lambda: encode(SCENE, "PNG"),
    "plain.jpg": lambda: encode(SCENE, "JPEG", quality=95),
    "plain.webp": lambda: encode(SCENE, "WEBP", quality=95),
    "plain.avif": lambda: encode(SCENE, "AVIF", quality=95),
    "plain.bmp": lambda: encode(SCENE, "BMP"),
    "plain.tiff": lambda: encode(SCENE, "TIFF", compression="tiff_lzw"),
    "plain.gif": lambda: encode(SCENE, "GIF"),
    "plain.jp2": lambda: encode(SCENE, "JPEG2000"),
    "plain.heic": heic,
    "planes_16.tif": deep_planes,
    "plain.ppm": lambda: encode(SCENE, "PPM"),
    "palette.png": lambda: encode(SCENE.quantize(200), "PNG"),
    "grey.png": lambda: encode(SCENE.convert("L"), "PNG"),
    "grey_alpha.png": lambda: transparent("LA"),
    "rgba.png": lambda: transparent("RGBA"),
    "bilevel.png": lambda: encode(SCENE.convert("1"), "PNG"),
    "cmyk.jpg": lambda: encode(SCENE.convert("CMYK"), "JPEG", quality=95),
    "sixteen.png": lambda: sixteen_bits("PNG"),
    "sixteen.tif": lambda: sixteen_bits("TIFF"),
    "float.tif": lambda: encode(Image.fromarray(np.asarray(SCENE.convert("L"), np.float32) / 255), "TIFF"),
    "pages.tif": lambda: pages("TIFF"),
    "animated.gif": lambda: pages("GIF"),
    "animated.webp": lambda: pages("WEBP"),
    "exif_6.jpg": lambda: rotated(6),
    "exif_3.jpg": lambda: rotated(3),
    "png_called.jpg": lambda: encode(SCENE, "PNG"),
    "upper.JPG": lambda: encode(SCENE, "JPEG"),
    "name with spaces, commas.png": lambda: encode(SCENE, "PNG"),
    "ünïcödé.png": lambda: encode(SCENE, "PNG"),
    "one_pixel.png": lambda: encode(SCENE.resize((1, 1)), "PNG"),
    "line.png": lambda: encode(SCENE.resize((300, 1)), "PNG"),
}

# Each with words of its error message.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero.png": (lambda: b"", "an empty file"),
    "text.jpg": (lambda: b"this is no image\n" * 20, "not an image"),
    "script.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "header_only.png": (lambda: encode(SCENE, "PNG")[:20], "not an image|Truncated|damaged"),
    "truncated.png": (lambda: encode(SCENE, "PNG")[:-900], "truncated|damaged|broken"),
    "truncated.jpg": (lambda: encode(SCENE, "JPEG")[:-500], "truncated"),
    "truncated.webp": (lambda: encode(SCENE, "WEBP")[:-200], "decode|damaged|not an image|truncated"),
    "truncated.tif": (lambda: encode(SCENE, "TIFF")[:500], "truncated|damaged|not an image|unpack"),
    "truncated.gif": (lambda: encode(SCENE, "GIF")[:-800], "truncated|damaged"),
    "truncated.avif": (lambda: encode(SCENE, "AVIF")[:-300], "decode|damaged|not an image|Truncated|Failed"),
    "damaged.png": (lambda: damaged(encode(SCENE, "PNG")), "damaged|broken|truncated|bad|unrecognized"),
    "bomb.png": (lambda: bomb(50_000, 50_000), "more than the limit"),
}


def write_odd_folder(root: Path, copies: int = 1) -> tuple[int, int]:
    """Write all of them, several times over; return how many are good and how many bad."""
    for copy in range(copies):
        folder = root / f"copy_{copy}"
        folder.mkdir(parents=True)
        for name, make in GOOD.items():
            (folder / name).write_bytes(make())
        for name, (make, _) in BAD.items():
            (folder / name).write_bytes(make())
    return copies * len(GOOD), copies * len(BAD)
