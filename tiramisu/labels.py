"""The classes of a data set: what the indices in a mask mean and how they are drawn."""

import colorsys
import dataclasses
from typing import Any

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Class names and colours of a data set, and the index of the pixels that belong to no class.

    Attributes:
        names: one name per class; the position is the class index.
        palette: one RGB colour (0 to 255) per class.
        ignore_index: mask value of void pixels, outside the classes; never trained on, never scored.
        ignore_color: RGB colour in which void is drawn.
    """

    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    ignore_index: int
    ignore_color: RGB = (0, 0, 0)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")
        if not 0 <= self.ignore_index <= 255 or self.ignore_index < len(self.names):
            raise ValueError(f"ignore_index {self.ignore_index} must lie outside the classes and within 0 to 255")

    def __len__(self) -> int:
        """Return the number of classes, void not counted."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers for JSON."""
        return {
            "names": list(self.names),
            "palette": [list(color) for color in self.palette],
            "ignore_index": self.ignore_index,
            "ignore_color": list(self.ignore_color),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LabelSet":
        """Rebuild a label set from `to_dict`."""
        return cls(
            names=tuple(values["names"]),
            palette=tuple((r, g, b) for r, g, b in values["palette"]),
            ignore_index=values["ignore_index"],
            ignore_color=tuple(values["ignore_color"]),
        )

    @classmethod
    def numbered(cls, count: int) -> "LabelSet":
        """Return classes known by their number only, in colours far apart."""
        hues = [(0.61803 * number) % 1 for number in range(count)]  # the golden ratio keeps neighbours apart
        colors = [colorsys.hsv_to_rgb(hue, 0.65, 0.6 + 0.4 * (number % 2)) for number, hue in enumerate(hues)]
        palette = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)
        return cls(tuple(f"class {number}" for number in range(count)), palette, ignore_index=255)
