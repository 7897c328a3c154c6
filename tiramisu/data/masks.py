"""Mask files of every encoding, as class indices."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiramisu.arrays import UInt8Array
from tiramisu.data.classes import VOID, ClassEntry, ClassMap, build_class_map
from tiramisu.data.source import open_mask
from tiramisu.errors import DataError
from tiramisu.labels import RGB

Encoding = Literal["index", "color", "binary"]

UNKNOWN = 254
MAX_COLORS = 64  # of a colour mask; a photo has more
GREY_INDEX = 64  # RGB masks whose pixels are all grey and darker than this hold indices


class RawMask(NamedTuple):
    """A mask file as it is stored.

    Attributes:
        mode: Pillow's name of its kind of pixels.
        values: (H, W) whole numbers, or uint8 (H, W, 3) colours.
        palette: the colours of a palette file, by value.
        orientation: of EXIF, 1 where there is none.
    """

    mode: str
    values: NDArray[np.integer]
    palette: dict[int, RGB]
    orientation: int


def read_raw_mask(path: Path) -> RawMask:
    """Read a mask file.

    Raises:
        DataError: it is missing, damaged, or no file whose pixels could be classes.
    """
    return _to_raw(open_mask(path), path)


def _to_raw(image: Image.Image, path: Path) -> RawMask:
    orientation = int(image.getexif().get(0x0112, 1))
    if image.mode == "P":
        colors = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
        palette = {index: (int(r), int(g), int(b)) for index, (r, g, b) in enumerate(colors)}
        return RawMask("P", np.asarray(image), palette, orientation)
    if image.mode == "1":
        return RawMask("1", np.asarray(image).astype(np.uint8) * 255, {}, orientation)
    if image.mode in ("L", "I", "I;16", "I;16B", "I;16L"):
        return RawMask(image.mode, np.asarray(image), {}, orientation)
    if image.mode == "LA":
        return RawMask("LA", np.asarray(image.getchannel("L")), {}, orientation)
    if image.mode in ("RGB", "RGBA"):
        return RawMask(image.mode, np.asarray(image.convert("RGB")), {}, orientation)
    raise DataError(f"mask {path} is of mode {image.mode}; save it as an index, palette or RGB PNG")


def decode_mask(raw: RawMask, encoding: Encoding, classes: ClassMap, path: Path) -> UInt8Array:
    """Turn a mask file into class indices, uint8 (H, W), void 255.

    Args:
        raw: the file.
        encoding: what its pixels are.
        classes: what they mean.
        path: what error messages name.

    Raises:
        DataError: a value or colour means no class.
    """
    if encoding != "color" and raw.values.ndim == 3 and not is_grey(raw.values):
        raise DataError(f"mask {path} is a colour image, but the others hold numbers; list the colours of the "
                        f"classes, or run: python -m tiramisu.check_data")  # fmt: skip
    mask, unknown = decode_known(raw, encoding, classes)
    if unknown:
        raise DataError(f"mask {path} has {describe(unknown, encoding)}, which is no class; add it to the classes or "
                        f"to the ignored values, or run: python -m tiramisu.check_data")  # fmt: skip
    return mask


def decode_known(raw: RawMask, encoding: Encoding, classes: ClassMap) -> tuple[UInt8Array, list[int]]:
    """Turn a mask file into class indices; what means no class becomes void.

    Returns:
        The indices, uint8 (H, W), and the values that mean no class (colours as 0xRRGGBB).
    """
    values = raw.values
    if encoding == "color":
        if values.ndim == 2:
            values = _colors_of(raw)
        packed = pack(values)
        mask = _color_table(tuple(classes.colors.items()))[packed]
        unknown = np.unique(packed[mask == UNKNOWN])
    else:
        if values.ndim == 3 and not is_grey(values):  # of another kind than the others: nothing of it is known
            return np.full(values.shape[:2], VOID, np.uint8), [int(value) for value in np.unique(pack(values))]
        if values.ndim == 3:
            values = values[..., 0]
        if encoding == "binary":
            values = (values > 0).astype(np.uint8)
        table = _value_table(tuple(classes.values.items()))
        clipped = np.clip(values, -1, len(table) - 2).astype(np.int64) if values.dtype != np.uint8 else values
        mask = table[clipped]
        if values.dtype != np.uint8:
            mask[(values < 0) | (values > len(table) - 2)] = UNKNOWN
        unknown = np.unique(values[mask == UNKNOWN])
    if len(unknown):
        mask[mask == UNKNOWN] = VOID
    return mask, [int(value) for value in unknown]


def _colors_of(raw: RawMask) -> UInt8Array:
    """Return the colours (H, W, 3) that a palette or grey file is seen in."""
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for value, color in raw.palette.items():
        table[value] = color
    return table[np.clip(raw.values, 0, 255)]


def is_grey(colors: NDArray[np.integer]) -> bool:
    """Tell whether the three channels (H, W, 3) are the same."""
    return bool((colors[..., 0] == colors[..., 1]).all() and (colors[..., 0] == colors[..., 2]).all())


def pack(colors: NDArray[np.integer]) -> NDArray[np.int32]:
    """Return colours (H, W, 3) as numbers 0xRRGGBB (H, W)."""
    wide = colors.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


@functools.lru_cache(maxsize=2)  # 16 MB each
def _color_table(colors: tuple[tuple[RGB, int], ...]) -> UInt8Array:
    table = np.full(1 << 24, UNKNOWN, np.uint8)
    for (red, green, blue), index in colors:
        table[(red << 16) | (green << 8) | blue] = index
    return table


@functools.lru_cache(maxsize=8)
def _value_table(values: tuple[tuple[int, int], ...]) -> UInt8Array:
    table = np.full(max(255, *(value for value, _ in values)) + 2, UNKNOWN, np.uint8)
    for value, index in values:
        table[value] = index
    return table


def describe(unknown: Sequence[int], encoding: Encoding) -> str:
    """Say which values or colours were found."""
    kind = "colour" if encoding == "color" else "value"
    shown = [str(list(unpack(value))) if encoding == "color" else str(value) for value in unknown[:5]]
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return f"the {kind}{'s' if len(unknown) > 1 else ''} {', '.join(shown)}{more}"


def unpack(color: int) -> RGB:
    """Return 0xRRGGBB as a colour."""
    return color >> 16, (color >> 8) & 255, color & 255


class MaskSurvey(NamedTuple):
    """What a sample of mask files has in it.

    Attributes:
        encoding: what their pixels seem to be.
        values: found in index masks.
        colors: found in RGB masks; more than `MAX_COLORS` where they are photos or JPEG.
        palette: of palette files, by value.
    """

    encoding: Encoding
    values: tuple[int, ...]
    colors: tuple[RGB, ...]
    palette: dict[int, RGB]


def survey_masks(masks: Iterable[RawMask]) -> MaskSurvey:
    """Tell how masks are encoded from a sample of them; where they differ, as most of them are."""
    values: set[int] = set()
    colors: set[int] = set()
    grey_colors: set[int] = set()
    palette: dict[int, RGB] = {}
    count = {"color": 0, "index": 0}
    for raw in masks:
        if raw.values.ndim == 3 and not _holds_indices(raw.values):
            count["color"] += 1
            colors.update(int(value) for value in np.unique(pack(raw.values))[: 4 * MAX_COLORS])
            continue
        count["index"] += 1
        palette.update(raw.palette)
        found = [int(value) for value in np.unique(raw.values)]
        values.update(found)
        if raw.values.ndim == 3:
            grey_colors.update(value * 0x010101 for value in found)
    if count["color"] > count["index"]:
        colors |= grey_colors
        return MaskSurvey("color", (), tuple(unpack(color) for color in sorted(colors)), {})
    binary = values == {0, 255}
    seen = tuple(unpack(color) for color in sorted(grey_colors))
    return MaskSurvey("binary" if binary else "index", tuple(sorted(values)), seen, palette)


def _holds_indices(colors: NDArray[np.integer]) -> bool:
    """Tell whether an RGB mask (H, W, 3) has the same number in all channels of each pixel: small, or 0 and 255."""
    if not is_grey(colors):
        return False
    return bool(colors.max() < GREY_INDEX) or bool(np.isin(colors, (0, 255)).all())


def infer_classes(survey: MaskSurvey, path: Path) -> ClassMap:
    """Name classes after what masks have in them, where nobody has said what they are.

    Args:
        survey: of the masks.
        path: what error messages name.

    Raises:
        DataError: there are too many values or colours for that.
    """
    if survey.encoding == "binary":
        return build_class_map([ClassEntry("background", [(0, 0, 0)]), ClassEntry("foreground", [(255, 255, 255)])])
    if survey.encoding == "color":
        if len(survey.colors) > MAX_COLORS:
            raise DataError(f"the masks of {path} have more than {MAX_COLORS} colours, as JPEG files or photos have; "
                            f"save them as PNG without smoothing, or list the classes in classes.yaml")  # fmt: skip
        named = [ClassEntry("#{:02x}{:02x}{:02x}".format(*color), [color]) for color in survey.colors]
        return build_class_map(named)
    known = [value for value in survey.values if value != VOID]
    if not survey.values:
        raise DataError(f"no mask of {path} can be read; open one in an image viewer, and save them as PNG again")
    if not known:
        raise DataError(f"the masks of {path} have the value 255 only, which is void; save them with their classes")
    if len(known) > MAX_COLORS:
        raise DataError(
            f"the masks of {path} have {len(known)} values, as JPEG files or smoothing make them; save them as PNG "
            f"without smoothing, or say --data.folder.encoding binary if they are black and white"
        )
    if min(known) < 0 or max(known) >= MAX_COLORS:
        raise DataError(f"the masks of {path} have the values {', '.join(map(str, survey.values[:8]))}"
                        f"{', ...' if len(survey.values) > 8 else ''}; say which classes they are in classes.yaml "
                        f"(values: [7])")  # fmt: skip
    entries = [
        ClassEntry(f"class {value}", [survey.palette[value]] if any(survey.palette.get(value, (0,))) else [])
        for value in range(max(known) + 1)
    ]
    if len({tuple(entry.colors) for entry in entries}) < len(entries):  # a palette that does not tell classes apart
        for entry in entries:
            entry.colors = []
    return build_class_map(entries)
