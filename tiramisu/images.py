"""Decoding images of any kind into RGB, without trusting their names, sizes or contents."""

import contextlib
import importlib.util
import io
import mmap
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from tiramisu import tiff
from tiramisu.arrays import UInt8Array
from tiramisu.errors import ImageError
from tiramisu.spool import SPOOLED_PIXELS, release, released, spooled, strip_rows
from tiramisu.tiff import check_pixels

DEFAULT_MAX_PIXELS = 400_000_000
Image.init()
# By content, never by name. Without EPS, PDF and the like, which start other programs or are no pictures.
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TIFF", "WEBP")
    if name in Image.OPEN  # Pillow may be built without some
)
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2")
HEIF_REMEDY = "HEIC needs a package that is not installed: pip install pillow-heif"
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpx", ".mpo", ".pcx", ".png",
    ".apng", ".pbm", ".pgm", ".ppm", ".pnm", ".sgi", ".rgb", ".tif", ".tiff", ".webp",
    *(HEIF_SUFFIXES if HAS_HEIF else ()),
))
# Pictures that are not read; folders tell how many there were.
UNREAD_SUFFIXES = frozenset((
    ".3fr", ".ai", ".arw", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".emf", ".eps", ".erf", ".exr", ".fits", ".hdr",
    ".icns", ".ico", ".iiq", ".jxl", ".jxr", ".mrw", ".nef", ".nrw", ".orf", ".pdf", ".pef", ".pfm", ".psd", ".raf",
    ".raw", ".rw2", ".srw", ".svg", ".tga", ".wmf", ".xbm", ".xcf", ".xpm",
    *(() if HAS_HEIF else HEIF_SUFFIXES),
))
# fmt: on
JPEG_END, TAIL = b"\xff\xd9", 1 << 16  # and within how many bytes of the end of a file it is looked for
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
    spool: Path | None = None,
) -> DecodedImage:
    """Decode an image as RGB of 8 bits, or with another number of channels.

    The EXIF orientation is applied. Transparent images are laid over white, 16 bits are scaled to 8 (of TIFF files
    `tiramisu.tiff.read_picture` tells how), of several pages or frames the first is taken.

    Args:
        source: a file, or its contents.
        max_pixels: a larger image is refused before it is decoded.
        name: what error messages call it; default: the path.
        channels: 3 for RGB; 1 for grey; any other number for images that have as many, such as TIFF of satellites,
            whose channels are taken as they are.
        spool: folder for the pixels of very large images, which are then read from a temporary file.

    Raises:
        ImageError: it is no image, damaged, empty or too large, or has other channels; the message has the name and
            the reason.
    """
    name = name or (source if isinstance(source, Path) else "the image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata; the pixels decide
            file = _file(source)
            if tiff.is_tiff(file):
                large = spool if channels == 3 and _is_large(*tiff.tiff_size(file)) and tiff.is_plain(file) else None
                if channels not in (1, 3) or large is not None or tiff.is_beyond_pillow(file) or not _is_known(file):
                    return _decode_tiff(file, channels, max_pixels, large)
            with _open(file, max_pixels) as image:
                check_pixels(image.width, image.height, max_pixels)
                pages = getattr(image, "n_frames", 1)
                if channels == 3 and _is_large(image.width, image.height) and spool is not None:
                    pixels, note = _decode_large(file, image, spool)
                else:
                    image.load()
                    upright = _turn_upright(image)
                    if channels in (1, 3):
                        pixels, note = _sixteen_bits(file, image, upright) or _to_rgb(upright)
                    else:
                        pixels, note = _to_bands(upright, channels), ""
                if channels == 1:
                    pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image that can be read here, or too damaged to tell") from error
    except MemoryError as error:
        raise ImageError(f"{name}: too large for the memory of this machine; set a lower pixel limit") from error
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    except Exception as error:  # decoders fed with hostile bytes raise nearly anything
        reason = (str(error).splitlines() or [""])[0]
        told = reason if any(letter.isalpha() for letter in reason) else f"{type(error).__name__} {reason}".strip()
        raise ImageError(f"{name}: damaged ({told})") from error
    notes = [note] if note else []
    if pages > 1:
        notes.insert(0, f"first of {pages} pages")
    return DecodedImage(pixels, "; ".join(notes))


def count_pixels(path: Path) -> int:
    """Return how many pixels an image file claims to have, from its first bytes; 0 where it is no readable image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = _file(path)
            if tiff.is_tiff(file):
                width, height = tiff.tiff_size(file)
                return width * height
            with _open(file) as image:
                return image.width * image.height
    except Exception:  # decoding will say what is wrong
        return 0


def _open(file: Path | io.BytesIO, max_pixels: int = DEFAULT_MAX_PIXELS) -> Any:
    """Open an image in Pillow; HEIC through pillow-heif, which is not registered for the whole process."""
    if _is_heif(file):
        if not HAS_HEIF:
            raise ImageError(HEIF_REMEDY)
        import pillow_heif

        heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
        width, height = heif.size
        check_pixels(width, height, max_pixels)  # it is decoded at once
        return heif.to_pillow()
    return Image.open(file, formats=FORMATS)


def _is_heif(file: Path | io.BytesIO) -> bool:
    head = _head(file, 64)
    # AVIF may be of the brand mif1, too: then it names avif among the compatible ones, and Pillow reads it.
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avif" not in head


def _head(file: Path | io.BytesIO, length: int) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(length)
    return file.getbuffer()[:length].tobytes()


def _is_known(file: Path | io.BytesIO) -> bool:
    """Tell whether Pillow reads a file."""
    try:
        opened = Image.open(file, formats=FORMATS)
        if isinstance(file, Path):
            opened.close()  # which would close bytes in memory, too
    except UnidentifiedImageError:
        return False
    return True


def _is_large(width: int, height: int) -> bool:
    return width * height > SPOOLED_PIXELS


def _decode_tiff(file: Path | io.BytesIO, channels: int, max_pixels: int, spool: Path | None) -> DecodedImage:
    if channels not in (1, 3):
        return DecodedImage(tiff.read_bands(file, channels, max_pixels), "")
    check_pixels(*tiff.tiff_size(file), max_pixels)
    picture = tiff.read_picture(file, spool)
    pixels = turn(picture.pixels, picture.orientation)
    if channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    notes = [f"first of {picture.pages} pages"] if picture.pages > 1 else []
    return DecodedImage(
        pixels if spool is not None else np.ascontiguousarray(pixels),
        "; ".join([*notes, *filter(None, [picture.note])]),
    )


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an image (H, W, ...) upright, as a view.

    Args:
        pixels: as they are stored.
        orientation: of EXIF, 1 to 8; others turn nothing.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_large(file: Path | io.BytesIO, image: Image.Image, spool: Path) -> tuple[UInt8Array, str]:
    """Decode an image into a temporary file.

    Pillow keeps four bytes of every pixel in memory. imagecodecs decodes JPEG and PNG into the file, and to the same
    values, for both use libjpeg-turbo.
    """
    pixels = spooled((image.height, image.width, 3), np.uint8, spool)
    note = ""
    deep = image.format == "PNG" and _head(file, 25)[24:] != b"\x08"
    if image.mode != "RGB" or image.format not in ("JPEG", "MPO", "PNG") or "transparency" in image.info or deep:
        image.load()
        _, note = _to_rgb(image, pixels)
    else:
        import imagecodecs  # imported here: it takes a tenth of a second, and few images are as large

        decode = imagecodecs.png_decode if image.format == "PNG" else imagecodecs.jpeg8_decode
        with _mapped(file) as data:
            if image.format != "PNG" and data.rfind(JPEG_END, max(0, len(data) - TAIL)) < 0:
                raise ImageError("a truncated JPEG: its end is missing")  # which the decoder fills in without a word
            with released(pixels):
                decode(data, out=pixels)
    release(pixels)
    return turn(pixels, _orientation(image)), note


@contextlib.contextmanager
def _mapped(file: Path | io.BytesIO) -> Iterator[bytes | mmap.mmap]:
    if isinstance(file, io.BytesIO):
        yield file.getvalue()
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF: the pixels are as good as they were
        return 1


def _sixteen_bits(file: Path | io.BytesIO, image: Image.Image, upright: Image.Image) -> tuple[UInt8Array, str] | None:
    """Read a PNG of 16 bits with a transparent colour, which Pillow compares in 8 bits or not at all; else nothing."""
    clear = image.info.get("transparency")
    if image.format != "PNG" or _head(file, 25)[24:] != b"\x10" or not isinstance(clear, int | tuple):
        return None
    if isinstance(clear, int):
        values = np.asarray(image, np.uint16)[..., None]
    else:
        data = file.read_bytes() if isinstance(file, Path) else file.getvalue()
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if found is None or found.dtype != np.uint16 or found.ndim != 3:
            return None
        values = found[..., 2::-1]
    hidden = (values == np.array(clear, np.uint16)).all(2)
    pixels = np.repeat(np.rint(values / 257).astype(np.uint8), 3 // values.shape[2], axis=2)
    pixels[hidden] = 255
    return np.ascontiguousarray(turn(pixels, _orientation(image))), ""


def _file(source: Path | bytes) -> Path | io.BytesIO:
    if isinstance(source, Path):
        if "\0" in str(source):
            raise ImageError("a name with a zero byte, which no file has")
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a file")
        size = status.st_size
    else:
        size = len(source)
    if size == 0:
        raise ImageError("an empty file")
    return source if isinstance(source, Path) else io.BytesIO(source)


def _to_bands(image: Image.Image, channels: int) -> UInt8Array:
    bands = image.getbands()
    if len(bands) != channels or image.mode.startswith(("I", "F")):
        raise ImageError(f"it has {len(bands)} channels ({''.join(bands)}), not {channels}")
    return np.asarray(image)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are as good as they were
        return image


def _to_rgb(image: Image.Image, pixels: UInt8Array | None = None) -> tuple[UInt8Array, str]:
    """Convert strip by strip, so that a large image is not held several times over."""
    note, span = "", (0.0, 255.0)
    if image.mode.startswith("I;16"):
        span = (0.0, 65535.0)
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        assert isinstance(low, int | float)
        assert isinstance(high, int | float)
        span, note = _span(float(low), float(high), image.mode)
    if pixels is None:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows := strip_rows(image.width)):
        strip = image
        if image.height > rows:
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode.startswith(("I", "F")):
            values = np.nan_to_num(np.asarray(strip, np.float32))
            scaled = (values - span[0]) * (255 / max(span[1] - span[0], 1e-12))
            pixels[top : top + rows] = np.clip(scaled, 0, 255).round().astype(np.uint8)[..., None]
        else:
            pixels[top : top + rows] = np.asarray(_flatten(strip))
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
