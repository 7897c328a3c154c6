"""The classes of a data set: what the indices in a mask mean and how they are drawn."""

import colorsys
import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

RGB = tuple[int, int, int]
LONGEST_NAME = 200  # characters


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """Class names and colours of a data set, and the index of the pixels that belong to no class.

    Attributes:
        names: one name per class; the position is the class index.
        palette: one RGB colour (0 to 255) per class.
        ignore_index: mask value of void pixels, outside the classes; never trained on, never scored.
        ignore_color: RGB colour in which void is drawn.

    Raises:
        ValueError: names are used twice or hold control characters or surrogates, colours are not RGB from 0 to 255,
            or their numbers differ, or the ignore index is that of a class.
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
        for position, name in enumerate(self.names):
            if not isinstance(name, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise ValueError(f"the name of class {position} is no printable text: {str(name)[:40]!r}")
            if not 0 < len(name.strip()) <= len(name) <= LONGEST_NAME:
                raise ValueError(f"the name of class {position} is empty or longer than {LONGEST_NAME} characters")
            if self.names.index(name) != position:
                raise ValueError(f"the class name {name} is there twice")
        for color in (*self.palette, self.ignore_color):
            if not _is_rgb(color):
                raise ValueError(f"{color!r} is no colour of three whole numbers from 0 to 255")

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
        """Rebuild a label set from `to_dict`.

        Raises:
            ValueError: it is none, see the class.
        """
        try:
            names, palette, ignore_index = values["names"], values["palette"], values["ignore_index"]
            if not isinstance(names, list) or not isinstance(palette, list) or type(ignore_index) is not int:
                raise ValueError("names and palette must be lists, ignore_index a whole number")
            return cls(tuple(names), tuple(map(tuple, palette)), ignore_index, tuple(values["ignore_color"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the classes are not described: {error}") from error

    @classmethod
    def numbered(cls, count: int) -> "LabelSet":
        """Return classes known by their number only, in colours far apart."""
        hues = [(0.61803 * number) % 1 for number in range(count)]  # the golden ratio keeps neighbours apart
        colors = [colorsys.hsv_to_rgb(hue, 0.65, 0.6 + 0.4 * (number % 2)) for number, hue in enumerate(hues)]
        palette = tuple((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)
        return cls(tuple(f"class {number}" for number in range(count)), palette, ignore_index=255)


def _is_rgb(color: Sequence[int]) -> bool:
    return len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color)
