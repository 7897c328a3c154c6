"""TIFF files that Pillow does not read, or not in full depth: 16 to 64 bits, floating point, planes, many channels."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ImageError
from tiramisu.spool import empty_like, release, released, spooled, strip_rows

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5  # PhotometricInterpretation
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2  # ExtraSamples
UNSIGNED = 1  # SampleFormat
COLORS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}  # samples
JPEG_COMPRESSIONS = (6, 7, 34892)
PILLOW_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, Deflate, PackBits
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274  # tag


class TiffPicture(NamedTuple):
    """A decoded TIFF: uint8 (H, W, channels), orientation as EXIF has it, number of pages, and what was guessed."""

    pixels: UInt8Array
    orientation: int
    pages: int
    note: str


class Scale(NamedTuple):
    """Which values become black and white, and a note where that is a guess."""

    low: float
    high: float
    note: str = ""


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image before it is decoded.

    Raises:
        ImageError: it has more pixels than the limit, or none.
    """
    if width * height > max_pixels:
        size = f"{width} x {height}"
        raise ImageError(f"{size} pixels are more than the limit of {max_pixels:,}; raise the limit to read it")
    if not width or not height:
        raise ImageError("it has no pixels")


def is_tiff(file: Path | io.BytesIO) -> bool:
    """Tell a TIFF from its first bytes."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(4) in MAGIC
    return file.getbuffer()[:4].tobytes() in MAGIC


def is_beyond_pillow(file: Path | io.BytesIO) -> bool:
    """Tell whether a TIFF has other values than unsigned ones of up to 8 bits, or a compression Pillow may not have."""
    with _open(file) as tiff:
        page = _first_page(tiff)
        bits = page.bitspersample if isinstance(page.bitspersample, tuple) else (page.bitspersample,)
        return max(bits) > 8 or page.sampleformat != UNSIGNED or int(page.compression) not in PILLOW_COMPRESSIONS


def is_plain(file: Path | io.BytesIO) -> bool:
    """Tell whether `read_picture` reads the first page as Pillow does: not JPEG, which has colours of its own."""
    with _open(file) as tiff:
        page = _first_page(tiff)
        return int(page.photometric) in COLORS and int(page.compression) not in JPEG_COMPRESSIONS


def tiff_size(file: Path | io.BytesIO) -> tuple[int, int]:
    """Return width and height of the first page of a TIFF, with all slices of a volume below each other."""
    with _open(file) as tiff:
        page = _first_page(tiff)
        return page.imagewidth, page.imagelength * max(1, page.imagedepth)


def read_picture(file: Path | io.BytesIO, spool: Path | None = None) -> TiffPicture:
    """Read the first page of a TIFF as RGB.

    Unsigned numbers are scaled from their whole range, of BitsPerSample bits, to 0 to 255; those of 32 and 64 bits from
    that of 8 or 16 bits where they all fit. Floating-point numbers from 0 to 1 are scaled to 0 to 255. All others are
    stretched between the smallest and the largest, and the note says so. White-is-zero is inverted, palettes are looked
    up, alpha is laid over white, CMYK is turned into RGB.

    Args:
        file: to read.
        spool: folder for temporary files in which the values and the pixels then lie.

    Raises:
        ImageError: it is cut short, or of a kind that is not read; the message says which.
        Exception: what tifffile and its codecs raise on damaged files.
    """
    with _open(file) as tiff:
        page = _first_page(tiff)
        photometric, samples = int(page.photometric), int(page.samplesperpixel)
        colors = COLORS.get(photometric)
        if colors is not None and samples > colors + 1:
            raise ImageError(f"a TIFF of {samples} channels; networks for that are trained with in_channels {samples}")
        _check_complete(page, tiff.filehandle.size)
        if spool is None:
            values = page.asarray()
        else:
            values = spooled(page.shape, page.dtype, spool)
            with released(values):
                page.asarray(out=values)
        pages, orientation = len(tiff.pages), page.tags.get(ORIENTATION)
        extra, axes = tuple(page.extrasamples or ()), page.axes
        bits, colormap = page.bitspersample, page.colormap
    values = _samples_last(values, axes)
    if colors is None or values.shape[2] < colors or np.iscomplexobj(values):
        kind = getattr(tifffile.PHOTOMETRIC(photometric), "name", photometric)
        raise ImageError(f"a TIFF of the kind {kind} with {values.shape[2]} samples of {values.dtype}; save it as RGB")
    if photometric == PALETTE:
        pixels, note = _look_up(values[..., 0], colormap), ""
    else:
        scale = _scale(values[..., :colors], bits if isinstance(bits, int) else max(bits))
        pixels, note = _to_rgb(values, colors, scale, photometric, extra[0] if extra else 0), scale.note
    turned = orientation.value if orientation is not None and orientation.value in range(1, 9) else 1
    return TiffPicture(pixels, int(turned), pages, note)


def read_bands(file: Path | io.BytesIO, channels: int, max_pixels: int) -> UInt8Array:
    """Read the first picture of a TIFF with a number of channels, all scaled alike; see `read_picture`.

    Raises:
        ImageError: it has others, or more pixels than the limit.
    """
    with _open(file) as tiff:
        series = tiff.series[0]
        shape = series.shape
        # Channels last or first; pages of one channel each are channels too.
        axis = next((axis for axis in (2, 0) if len(shape) == 3 and shape[axis] == channels), None)
        if axis is None:
            raise ImageError(f"it has {min(shape) if len(shape) == 3 else 1} channels, not {channels}")
        height, width = shape[:2] if axis == 2 else shape[1:]
        check_pixels(width, height, max_pixels)
        bits = _first_page(tiff).bitspersample
        values = np.moveaxis(series.asarray(), axis, 2)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    scale = _scale(values, bits if isinstance(bits, int) else max(bits))
    if scale.note:
        raise ImageError(f"its values are {values.dtype} from {scale.low:g} to {scale.high:g}; save them as 8 or 16 "
                         f"bits, or as numbers from 0 to 1")  # fmt: skip
    return _to_bytes(values, scale)


def _open(file: Path | io.BytesIO) -> tifffile.TiffFile:
    if isinstance(file, io.BytesIO):
        file.seek(0)  # tifffile begins where the last reader has ended
    return tifffile.TiffFile(file)


def _first_page(tiff: tifffile.TiffFile) -> Any:
    return tiff.pages.first


def _check_complete(page: Any, size: int) -> None:
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends:
        raise ImageError("a TIFF without pixels")
    if max(ends) > size:
        raise ImageError(f"a truncated TIFF: it has {size:,} bytes, but its pixels end at {max(ends):,}")


def _samples_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return an image (H, W, samples) of an array with axes such as YX, YXS or SYX; of a volume the first slice."""
    for name in axes:
        if name not in "YXS":
            values = values.take(0, axis=axes.index(name))
            axes = axes.replace(name, "", 1)
    if "S" not in axes:
        return values[..., None]
    return np.moveaxis(values, axes.index("S"), 2)


def _scale(values: NDArray[Any], bits: int) -> Scale:
    if values.dtype.kind == "b":
        return Scale(0, 1)
    if values.dtype.kind == "u" and bits <= 16:
        return Scale(0, 2**bits - 1)
    low, high, invalid = _range(values)
    note = f"{invalid} pixels are no numbers and are drawn black" if invalid else ""
    if values.dtype.kind == "u" and high <= 65535:
        return Scale(0, 255 if high <= 255 else 65535)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return Scale(0, 1, note)
    stretched = f"values {low:g} to {high:g} stretched from black to white"
    return Scale(low, high, "; ".join(filter(None, (stretched, note))))


def _range(values: NDArray[Any]) -> tuple[float, float, int]:
    """Return the smallest and the largest number, and how many values are none; row by row, without a copy."""
    low, high, invalid = np.inf, -np.inf, 0
    for top in range(0, len(values), rows := strip_rows(values.shape[1])):
        part = values[top : top + rows]
        release(values)
        if part.dtype.kind == "f":
            finite = np.isfinite(part)
            invalid += int(part.size - finite.sum())
            part = part[finite]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if low > high:
        raise ImageError("its values are not finite")
    return low, high, invalid


def _to_bytes(values: NDArray[Any], scale: Scale) -> UInt8Array:
    """Scale values (H, W, samples) to uint8, strip by strip."""
    pixels = np.empty(values.shape, np.uint8)
    factor = 255 / max(scale.high - scale.low, 1e-300)
    for top in range(0, len(values), rows := strip_rows(values.shape[1])):
        part = values[top : top + rows].astype(np.float64)
        scaled = np.nan_to_num((part - scale.low) * factor, nan=0.0, posinf=255.0, neginf=0.0)
        pixels[top : top + rows] = np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    return pixels


def _to_rgb(values: NDArray[Any], colors: int, scale: Scale, photometric: int, extra: int) -> UInt8Array:
    alpha = values.shape[2] > colors and extra in (ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA)
    pixels = empty_like(values, (*values.shape[:2], 3), np.uint8)
    for top in range(0, len(values), rows := strip_rows(values.shape[1])):
        for array in (values, pixels):
            release(array)
        part = _to_bytes(values[top : top + rows, :, : colors + alpha], scale)
        seen = part[..., :colors]
        if photometric == WHITE_IS_ZERO:
            seen = 255 - seen
        if photometric == CMYK:
            ink = 255 - seen.astype(np.uint16)
            seen = ((ink[..., :3] * ink[..., 3:] + 127) // 255).astype(np.uint8)
        if alpha:
            share = part[..., colors:].astype(np.float32) / 255
            below = seen.astype(np.float32) * (1 if extra == ASSOCIATED_ALPHA else share)
            seen = np.rint(np.clip(below + 255 * (1 - share), 0, 255)).astype(np.uint8)
        pixels[top : top + rows] = seen
    return pixels


def _look_up(values: NDArray[Any], colormap: NDArray[Any] | None) -> UInt8Array:
    if colormap is None or values.dtype.kind != "u":
        raise ImageError("a palette TIFF without a palette")
    table = np.asarray(colormap)
    # Colours have 16 bits; some programs write 8.
    scaled = (np.rint(table / 257) if table.max(initial=0) > 255 else table).astype(np.uint8).T
    pixels = empty_like(values, (*values.shape, 3), np.uint8)
    for top in range(0, len(values), rows := strip_rows(values.shape[1])):
        pixels[top : top + rows] = scaled[np.minimum(values[top : top + rows], len(scaled) - 1)]
        for array in (values, pixels):
            release(array)
    return pixels
