"""Decoding images of any kind into RGB, without trusting their names, sizes or contents."""

import io
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ImageError

DEFAULT_MAX_PIXELS = 400_000_000
Image.init()
# By content, never by name. Without EPS, PDF and the like, which start other programs or are no pictures.
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TIFF", "WEBP")
    if name in Image.OPEN  # Pillow may be built without some
)
# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".mpo", ".pcx", ".png",
    ".apng", ".pbm", ".pgm", ".ppm", ".pnm", ".sgi", ".rgb", ".tif", ".tiff", ".webp",
))
# fmt: on
STRIP_ROWS = 1024
Image.MAX_IMAGE_PIXELS = None  # the limit is checked here, at every open, and may be set by the user


class DecodedImage(NamedTuple):
    """An image as people see it.

    Attributes:
        pixels: uint8 (H, W, channels), RGB where there are three, upright.
        note: what is worth saying about how it was read, such as "first of 3 pages"; mostly empty.
    """

    pixels: UInt8Array
    note: str


def decode_image(
    source: Path | bytes,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | Path | None = None,
    channels: int = 3,
) -> DecodedImage:
    """Decode an image as RGB of 8 bits, or with another number of channels.

    The EXIF orientation is applied. Transparent images are laid over white, 16 bits are scaled to 8, of several pages
    or frames the first is taken.

    Args:
        source: a file, or its contents.
        max_pixels: a larger image is refused before it is decoded.
        name: what error messages call it; default: the path.
        channels: 3 for RGB; 1 for grey; any other number for images that have as many, such as TIFF of satellites,
            whose channels are taken as they are.

    Raises:
        ImageError: it is no image, damaged, empty or too large, or has other channels; the message has the name and
            the reason.
    """
    name = name or (source if isinstance(source, Path) else "the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; the pixels decide
            file = _file(source)
            if channels not in (1, 3) and _is_tiff(file):  # Pillow knows four channels at most
                return DecodedImage(_read_tiff(file, channels, max_pixels), "")
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image, max_pixels)
                pages = getattr(image, "n_frames", 1)
                image.load()
                upright = _turn_upright(image)
                pixels, note = _to_rgb(upright) if channels in (1, 3) else (_to_bands(upright, channels), "")
                if channels == 1:
                    pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        found = _tiff_channels(source)
        if found not in (0, channels):
            raise ImageError(f"{name}: a TIFF of {found} channels; networks for that are trained with in_channels "
                             f"{found}") from error  # fmt: skip
        raise ImageError(f"{name}: not an image that can be read here, or too damaged to tell") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory of this machine; set a lower pixel limit") from error
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    except Exception as error:  # decoders fed with hostile bytes raise nearly anything
        reason = str(error).splitlines() or [type(error).__name__]
        raise ImageError(f"{name}: damaged ({reason[0]})") from error
    notes = [note] if note else []
    if pages > 1:
        notes.insert(0, f"first of {pages} pages")
    return DecodedImage(pixels, "; ".join(notes))


def count_pixels(path: Path) -> int:
    """Return how many pixels an image file claims to have, from its first bytes; 0 where it is no readable image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_file(path), formats=FORMATS) as image:
                return image.width * image.height
    except Exception:  # decoding will say what is wrong
        return 0


def _file(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, Path):
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError("not a file")
        size = status.st_size
    else:
        size = len(source)
    if size == 0:
        raise ImageError("an empty file")
    return source if isinstance(source, Path) else io.BytesIO(source)


def _is_tiff(file: Path | io.BytesIO) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            start = stream.read(4)
    else:
        start = file.getbuffer()[:4].tobytes()
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _tiff_channels(source: Path | bytes) -> int:
    """Return the channels of a TIFF that has more than Pillow can read; 0 where it is none."""
    try:
        file = _file(source)
        if not _is_tiff(file):
            return 0
        with tifffile.TiffFile(file) as tiff:
            shape = tiff.series[0].shape
            return min(shape) if len(shape) == 3 else 0
    except Exception:  # it is too damaged to tell
        return 0


def _read_tiff(file: Path | io.BytesIO, channels: int, max_pixels: int) -> UInt8Array:
    """Read the first picture of a TIFF with any number of channels, as bytes."""
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        shape = series.shape
        # Channels last or first; pages of one channel each are channels too.
        axis = next((axis for axis in (2, 0) if len(shape) == 3 and shape[axis] == channels), None)
        if axis is None:
            found = min(shape) if len(shape) == 3 else 1
            raise ImageError(f"it has {found} channels, not {channels}")
        height, width = shape[:2] if axis == 2 else shape[1:]
        _check_pixels(width, height, max_pixels)
        values = np.moveaxis(series.asarray(), axis, 2)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.uint16:
        return (values // 257).astype(np.uint8)
    if np.issubdtype(values.dtype, np.floating) and values.size and values.min() >= 0 and values.max() <= 1:
        return (values * 255).round().astype(np.uint8)
    raise ImageError(f"its values are {values.dtype}; save them as 8 or 16 bits, or as numbers from 0 to 1")


def _to_bands(image: Image.Image, channels: int) -> UInt8Array:
    bands = image.getbands()
    if len(bands) != channels or image.mode.startswith(("I", "F")):
        raise ImageError(f"it has {len(bands)} channels ({''.join(bands)}), not {channels}")
    return np.asarray(image)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    _check_pixels(image.width, image.height, max_pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width} x {height}"
        raise ImageError(f"{size} pixels are more than the limit of {max_pixels:,}; raise the limit to read it")
    if not width or not height:
        raise ImageError("it has no pixels")


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are as good as they were
        return image


def _to_rgb(image: Image.Image) -> tuple[UInt8Array, str]:
    """Convert strip by strip, so that a large image is not held several times over."""
    note, span = "", (0.0, 255.0)
    if image.mode.startswith("I;16"):
        span = (0.0, 65535.0)
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        span, note = _span(float(low), float(high), image.mode)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        strip = image
        if image.height > STRIP_ROWS:
            strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        if strip.mode.startswith(("I", "F")):
            values = np.nan_to_num(np.asarray(strip, np.float32))
            scaled = (values - span[0]) * (255 / max(span[1] - span[0], 1e-12))
            pixels[top : top + STRIP_ROWS] = np.clip(scaled, 0, 255).round().astype(np.uint8)[..., None]
        else:
            pixels[top : top + STRIP_ROWS] = np.asarray(_flatten(strip))
    return pixels, note


def _span(low: float, high: float, mode: str) -> tuple[tuple[float, float], str]:
    """Return which values become black and white in an image of 32 bits, and a note where that is a guess."""
    if mode == "I" and low >= 0 and high <= 65535:
        return (0.0, 255.0 if high <= 255 else 65535.0), ""
    if mode == "F" and low >= 0 and high <= 1:
        return (0.0, 1.0), ""
    if not np.isfinite([low, high]).all():
        raise ImageError("its values are not finite")
    return (low, high), f"values {low:g} to {high:g} stretched from black to white"


def _flatten(image: Image.Image) -> Image.Image:
    """Return an RGB image, transparent parts over white."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.replace("a", "A"))
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image)
        image = background
    return image.convert("RGB")
