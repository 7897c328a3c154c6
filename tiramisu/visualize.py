"""Masks as pictures: palette, overlay, legend and grids; plain numpy, RGB."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiramisu.arrays import UInt8Array
from tiramisu.labels import LabelSet

# Told apart with every kind of colour vision (Tol, "Colour schemes", 2021: muted, with grey, orange and light blue).
SAFE_COLORS = (
    (136, 204, 238), (136, 34, 85), (221, 204, 119), (68, 68, 68), (51, 34, 136), (17, 119, 51), (230, 120, 30),
    (204, 102, 119), (68, 170, 153), (170, 68, 153), (0, 90, 255), (153, 153, 51), (221, 221, 221),
)  # fmt: skip
MARGIN = 6
TEXT_COLOR = (30, 30, 30)


def with_safe_colors(labels: LabelSet) -> LabelSet:
    """Return the same classes in colours that colour-blind people can tell apart.

    From the fourteenth class on the colours come again, each time darker.
    """
    count = len(SAFE_COLORS)
    shades = [(SAFE_COLORS[index % count], 0.6 ** (index // count)) for index in range(len(labels))]
    palette = tuple((round(r * shade), round(g * shade), round(b * shade)) for (r, g, b), shade in shades)
    return dataclasses.replace(labels, palette=palette)


def hex_color(color: Sequence[int]) -> str:
    """Return an RGB colour, 0 to 255, as HTML writes it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def palette_table(labels: LabelSet) -> UInt8Array:
    """Return the colour of every possible mask value, uint8 (256, 3); values outside the classes are drawn as void."""
    table = np.full((256, 3), labels.ignore_color, np.uint8)
    table[: len(labels)] = labels.palette
    return table


def colorize(mask: UInt8Array, labels: LabelSet) -> UInt8Array:
    """Draw a mask (H, W) of class indices in the colours of its classes: uint8 (H, W, 3) RGB."""
    return palette_table(labels)[mask]


def as_rgb(image: UInt8Array) -> UInt8Array:
    """Return an image (H, W, channels) as RGB to look at: grey in all channels, or the first three of more."""
    if image.shape[2] >= 3:
        return np.ascontiguousarray(image[..., :3])
    return np.repeat(image[..., :1], 3, axis=2)


def overlay(image: UInt8Array, mask: UInt8Array, labels: LabelSet, opacity: float = 0.55) -> UInt8Array:
    """Lay the coloured mask over an image.

    Args:
        image: uint8 (H, W, channels), see `as_rgb`.
        mask: uint8 (H, W) class indices.
        labels: the classes' colours; void is left uncoloured.
        opacity: 0 shows the image only, 1 the mask only.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    image = as_rgb(image)
    blended = cv2.addWeighted(image, 1 - opacity, colorize(mask, labels), opacity, 0)
    return np.where((mask == labels.ignore_index)[..., None], image, blended)


def data_url(values: UInt8Array, kind: str, **options: Any) -> str:
    """Return a picture, grey (H, W) or RGB (H, W, 3), as the address of itself."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def save_mask(mask: UInt8Array, labels: LabelSet, path: Path) -> None:
    """Write a mask (H, W) as an index PNG whose palette is the classes' colours."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette_table(labels).tobytes())
    picture.save(path, compress_level=3)  # masks shrink well: 9 takes four times as long for 5 % less


def error_map(prediction: UInt8Array, truth: UInt8Array, labels: LabelSet) -> UInt8Array:
    """Draw where a prediction is wrong: right pixels grey, wrong ones in the colour of the true class, void black."""
    picture = np.where((prediction == truth)[..., None], np.uint8(225), colorize(truth, labels))
    picture[truth == labels.ignore_index] = labels.ignore_color
    return picture


def legend(labels: LabelSet, width: int) -> UInt8Array:
    """Draw the colours with their names, wrapped into a strip of the given width: uint8 (h, width, 3) RGB."""
    font, size = _font(), 12
    entries = [*zip(labels.names, labels.palette, strict=True), ("void", labels.ignore_color)]
    places, x, y = [], MARGIN, MARGIN
    for name, color in entries:
        needed = size + MARGIN + int(font.getlength(name)) + 2 * MARGIN
        if x > MARGIN and x + needed > width:
            x, y = MARGIN, y + size + MARGIN
        places.append((x, y, name, color))
        x += needed
    picture = Image.new("RGB", (width, y + size + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, name, color in places:
        draw.rectangle((x, y, x + size, y + size), fill=color, outline=TEXT_COLOR)
        draw.text((x + size + MARGIN, y + size / 2), name, fill=TEXT_COLOR, font=font, anchor="lm")
    return np.asarray(picture)


def grid(rows: Sequence[Sequence[UInt8Array]], titles: Sequence[str], labels: LabelSet) -> UInt8Array:
    """Arrange pictures in rows under column titles, with the legend below.

    Args:
        rows: pictures, uint8 (H, W, 3) RGB; within a row of one height, within a column of one width.
        titles: one per column.
        labels: classes of the legend.

    Returns:
        uint8 (h, w, 3) RGB.
    """
    spaced = [_join(row, axis=1) for row in rows]
    widths = [picture.shape[1] for picture in rows[0]]
    header = Image.new("RGB", (spaced[0].shape[1], 20), "white")
    draw = ImageDraw.Draw(header)
    left = 0
    for title, width in zip(titles, widths, strict=True):
        draw.text((left + width / 2, 10), title, fill=TEXT_COLOR, font=_font(), anchor="mm")
        left += width + MARGIN
    return np.concatenate([np.asarray(header), _join(spaced, axis=0), legend(labels, spaced[0].shape[1])])


def comparison(samples: Sequence[tuple[UInt8Array, UInt8Array, UInt8Array]], labels: LabelSet) -> UInt8Array:
    """Draw image, truth, prediction and errors of several images below each other, as uint8 (h, w, 3) RGB.

    Args:
        samples: image (H, W, channels), true and predicted class indices (H, W) of each. A grid needs rows of one
            width: images of another size than the first are left out.
        labels: the classes.
    """
    rows = [
        [as_rgb(image), colorize(truth, labels), colorize(prediction, labels), error_map(prediction, truth, labels)]
        for image, truth, prediction in samples
        if image.shape == samples[0][0].shape
    ]
    return grid(rows, ("image", "truth", "prediction", "errors"), labels)


def _join(pictures: Sequence[UInt8Array], axis: int) -> UInt8Array:
    gap_shape = list(pictures[0].shape)
    gap_shape[axis] = MARGIN
    gap = np.full(gap_shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=axis)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
