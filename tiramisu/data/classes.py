"""What the values or colours of mask files mean: read from a file of classes, or known by name."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import ImageColor

from tiramisu.data.camvid import CamVid
from tiramisu.errors import DataError
from tiramisu.files import MIB, atomic_path, read_text
from tiramisu.labels import RGB, LabelSet

VOID = 255  # what pixels without a class become
MAX_CLASSES = 250
CLASSES_LIMIT = 4 * MIB  # of a file of classes
FILE_NAMES = ("classes.yaml", "classes.yml", "classes.json", "classes.txt", "classes.csv", "class_dict.csv")
VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabled", "__ignore__")
HEADS = {"name", "class", "value", "pixel value", "r", "red"}  # of columns
MAX_VALUE = 65_535  # of index masks, which have 16 bits at most


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """How masks become class indices.

    Attributes:
        labels: the classes; void is 255.
        values: class index, or 255, of each value of index masks.
        colors: the same of each colour of colour masks.
    """

    labels: LabelSet
    values: Mapping[int, int]
    colors: Mapping[RGB, int]

    def index(self, name: str) -> int | None:
        """Return the index of a class, whatever the case of its name; 255 for void; None if there is none."""
        wanted = name.strip().casefold()
        names = [known.casefold() for known in self.labels.names]
        if wanted in names:
            return names.index(wanted)
        return VOID if wanted in VOID_NAMES else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "labels": self.labels.to_dict(),
            "values": sorted(self.values.items()),
            "colors": [[list(color), index] for color, index in self.colors.items()],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClassMap":
        """Rebuild a map from `to_dict`."""
        colors = {(r, g, b): index for (r, g, b), index in values["colors"]}
        return cls(LabelSet.from_dict(values["labels"]), dict(values["values"]), colors)


@dataclasses.dataclass
class ClassEntry:
    """A class as a file describes it; void where `name` says so."""

    name: str
    colors: list[RGB] = dataclasses.field(default_factory=list)
    values: list[int] | None = None


def build_class_map(entries: Sequence[ClassEntry], ignore: Iterable[int] = ()) -> ClassMap:
    """Number the classes and decide which values and colours mean them.

    Args:
        entries: the classes in the order of their indices.
        ignore: values of index masks that are void besides 255, unless a class claims them.

    Raises:
        ValueError: names, values or colours are used twice, or there are none or too many.
    """
    ignored = {*ignore, VOID}
    names: list[str] = []
    palette: list[RGB | None] = []
    values: dict[int, int] = {}
    colors: dict[RGB, int] = {}
    position = 0
    for entry in entries:
        void = entry.name.casefold() in VOID_NAMES
        index = VOID if void else len(names)
        if not void:
            if entry.name in names:
                raise ValueError(f"the class {entry.name} is there twice")
            names.append(entry.name)
            palette.append(entry.colors[0] if entry.colors else None)
        own = entry.values
        if own is None:
            while position in ignored and not void:
                position += 1
            own = [position]
            position += 1
        for value in own:
            if not 0 <= value <= MAX_VALUE:
                raise ValueError(f"the value {value} is not from 0 to {MAX_VALUE}")
            if values.setdefault(value, index) != index:
                raise ValueError(f"the value {value} means two classes")
        for color in entry.colors:
            if colors.setdefault(color, index) != index:
                raise ValueError(f"the colour {list(color)} means two classes")
    if not names:
        raise ValueError("there are no classes")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} classes are more than {MAX_CLASSES}")
    for value in ignored:
        values.setdefault(value, VOID)
    numbered = LabelSet.numbered(len(names)).palette
    chosen = tuple(color or numbered[index] for index, color in enumerate(palette))
    return ClassMap(LabelSet(tuple(names), chosen, VOID), values, colors)


def read_classes(path: Path) -> ClassMap:
    """Read a file of classes.

    YAML and JSON hold a list of names, a mapping of names to colours, or a mapping with `classes` (a list of names or
    of mappings with `name`, and perhaps `color`, `colors`, `value`, `values`) and `ignore` (a value or several). Text
    and CSV files hold one class a line: `name`, `value name`, `name R G B` or `R G B name`. A class called void,
    ignore or unlabeled is none.

    Raises:
        DataError: the file cannot be read or makes no sense; the message names it.
    """
    try:
        text = read_text(path, CLASSES_LIMIT)
    except FileNotFoundError as error:
        raise DataError(f"there is no file of classes at {path}; give one as --data.folder.classes") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read as a text file ({error})") from error
    try:
        if path.suffix.lower() in (".txt", ".csv"):
            return build_class_map(list(_parse_lines(text)))
        document = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        return _parse_document(document)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f'{path} is no list of classes: {reason}; see "Your own images" in the README') from error


def write_classes(path: Path, labels: LabelSet) -> None:
    """Write a file of classes that `read_classes` reads."""
    entries = [{"name": name, "color": list(color)} for name, color in zip(labels.names, labels.palette, strict=True)]
    with atomic_path(path) as temporary:
        document = {"classes": entries, "ignore": labels.ignore_index}
        temporary.write_text(yaml.safe_dump(document, sort_keys=False, default_flow_style=None), encoding="utf-8")


def _parse_document(document: Any) -> ClassMap:
    ignore: Iterable[int] = ()
    if isinstance(document, dict) and "classes" in document:
        given = document.get("ignore", VOID)
        ignore = [int(value) for value in (given if isinstance(given, list) else [given]) if value is not None]
        document = document["classes"]
    if isinstance(document, dict):
        document = [_entry_of_mapping(key, value) for key, value in document.items()]
    if not isinstance(document, list):
        raise ValueError("it holds no list")
    entries = []
    for item in document:
        if isinstance(item, str | int | float) and not isinstance(item, bool):
            entries.append(ClassEntry(str(item)))
            continue
        if not isinstance(item, dict):  # not shown: aliases can make a few lines of YAML endless
            raise ValueError(f"class {len(entries)} is neither a name nor a mapping (yes, no and null need quotes)")
        unknown = item.keys() - {"name", "color", "colors", "value", "values"}
        if unknown:
            raise ValueError(f"{min(unknown)} is not name, color, colors, value or values")
        given_colors = [item["color"]] if item.get("color") is not None else item.get("colors") or []
        given_values = [item["value"]] if "value" in item else item.get("values")
        entries.append(
            ClassEntry(
                _name(item["name"]),
                [parse_color(color) for color in given_colors],
                None if given_values is None else [int(value) for value in given_values],
            )
        )
    return build_class_map(entries, ignore)


def _name(name: Any) -> str:
    if not isinstance(name, str | int | float) or isinstance(name, bool):
        raise ValueError("a name is no text (yes, no and null need quotes)")
    return str(name)


def _entry_of_mapping(key: Any, value: Any) -> dict[str, Any]:
    """Return what `name: color`, `name: value` or `value: name` means."""
    if isinstance(key, int) and isinstance(value, str):
        return {"name": value, "value": key}
    if isinstance(value, int):
        return {"name": key, "value": value}
    return {"name": key, "color": value}


def parse_color(color: Any) -> RGB:
    """Return an RGB colour from `[R, G, B]` or `#RRGGBB`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(color, str):
        return ImageColor.getrgb(color)[:3]
    parts = color if isinstance(color, list | tuple) else []
    if len(parts) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in parts):
        shown: Any = color if isinstance(color, int | float) else "this"
        if isinstance(color, list | tuple) and all(isinstance(part, int) for part in color):
            shown = list(color)
        raise ValueError(f"{shown} is no colour; write it as [128, 64, 128] or '#804080'")
    red, green, blue = parts
    return red, green, blue


def _parse_lines(text: str) -> Iterable[ClassEntry]:
    for number, line in enumerate(text.splitlines()):
        line = line.partition("#")[0].strip()
        mark = next((mark for mark in ",;" if mark in line), None)
        row = next(csv.reader(io.StringIO(line), delimiter=mark), []) if mark else re.split(r"[\t ]+", line)
        cells = [cell.strip() for cell in row if cell.strip()]
        if not cells or (number == 0 and {cell.casefold() for cell in cells} & HEADS):
            continue
        if len(cells) >= 4 and all(cell.isdecimal() for cell in cells[:3]):
            yield ClassEntry(" ".join(cells[3:]), [parse_color([int(cell) for cell in cells[:3]])])
        elif len(cells) >= 4 and all(cell.isdecimal() for cell in cells[-3:]):
            yield ClassEntry(" ".join(cells[:-3]), [parse_color([int(cell) for cell in cells[-3:]])])
        elif len(cells) >= 2 and cells[0].isdecimal():
            yield ClassEntry(" ".join(cells[1:]), values=[int(cells[0])])
        elif len(cells) >= 2 and cells[-1].isdecimal() and ("," in line or ";" in line or "\t" in line):
            yield ClassEntry(" ".join(cells[:-1]), values=[int(cells[-1])])
        else:
            yield ClassEntry(" ".join(cells))


def _camvid32() -> ClassMap:
    """CamVid's 32 original colours, merged to SegNet's 11 classes."""
    # fmt: off
    merged: dict[str, list[RGB]] = {
        "Sky": [(128, 128, 128)],
        "Building": [(128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)],
        "Pole": [(192, 192, 128), (0, 0, 64)],
        "Road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
        "Sidewalk": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
        "Tree": [(128, 128, 0), (192, 192, 0)],
        "Sign": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
        "Fence": [(64, 64, 128)],
        "Car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
        "Pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
        "Bicyclist": [(0, 128, 192), (192, 0, 192)],
        "void": [(0, 0, 0)],
    }
    # fmt: on
    classes = build_class_map([ClassEntry(name, colors) for name, colors in merged.items()])
    labels = dataclasses.replace(classes.labels, palette=CamVid.labels.palette)
    return dataclasses.replace(classes, labels=labels)


def _cityscapes() -> ClassMap:
    """Cityscapes' 19 classes; values are the labelIds of its gtFine_labelIds.png files."""
    # fmt: off
    classes: list[tuple[str, int, RGB]] = [
        ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
        ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
        ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)), ("vegetation", 21, (107, 142, 35)),
        ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)), ("person", 24, (220, 20, 60)),
        ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)), ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)),
        ("train", 31, (0, 80, 100)), ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
    ]
    # fmt: on
    known = [value for _, value, _ in classes]
    entries = [ClassEntry(name, [color], [value]) for name, value, color in classes]
    return build_class_map(entries, [value for value in (*range(34), VOID) if value not in known])


KNOWN_CLASSES = {"camvid32": _camvid32, "cityscapes": _cityscapes}
