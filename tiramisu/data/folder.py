"""The user's own images: found, split, and read as images with class indices."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from tiramisu.arrays import UInt8Array
from tiramisu.data.annotations import classes_of_names, coco_file, labelme_names, read_labelme
from tiramisu.data.classes import (
    FILE_NAMES,
    KNOWN_CLASSES,
    VOID,
    ClassEntry,
    ClassMap,
    build_class_map,
    read_classes,
)
from tiramisu.data.layouts import LayoutName, Listing, Pair, class_of_mask, find_pairs
from tiramisu.data.masks import Encoding, decode_mask, infer_classes, read_raw_mask, survey_masks
from tiramisu.data.source import Sample, read_image
from tiramisu.data.splits import LIST_FOLDERS, draw_splits, find_lists, split_by_lists
from tiramisu.errors import ConfigError, DataError
from tiramisu.files import user_cache, write_json
from tiramisu.images import FORMATS

SURVEYED = 200  # masks that are looked at where nobody says what the classes are
INDEX_VERSION = 2


@dataclasses.dataclass
class FolderOptions:
    """How the data set `folder` is read.

    Args:
        layout: how files are laid out; `auto` looks.
        classes: file with the classes (YAML, JSON, text or CSV), or `camvid32` or `cityscapes` (default: classes.yaml
            and the like in the root, else what the masks have in them).
        encoding: of mask files: class `index` per pixel, `color` of the class, or `binary`, 0 and anything else;
            `auto` looks.
        val_share: share of the images to validate on, where neither folders nor lists split them.
        test_share: likewise, to measure the final weights on.
        groups: regular expression; images in whose paths it finds the same text, such as a drive, stay in one split.
        split_seed: another one draws other splits.
        in_channels: of the images: 3 reads them as RGB, 1 as grey; any other number takes the channels of images that
            have as many (TIFF, RGBA, CMYK) as they are.
    """

    layout: LayoutName = "auto"
    classes: str | None = None
    encoding: Literal["auto", "index", "color", "binary"] = "auto"
    val_share: float = 0.2
    test_share: float = 0.0
    groups: str | None = None
    split_seed: int = 0
    in_channels: int = 3


@dataclasses.dataclass(frozen=True)
class FolderIndex:
    """What is known about a folder before any image is read.

    Attributes:
        root: of the data set.
        listing: images and masks, of all splits.
        splits: the pairs of each split.
        classes: what masks mean.
        encoding: of mask files.
        inferred: whether the classes were guessed from the masks.
        in_channels: of the images.
    """

    root: Path
    listing: Listing
    splits: dict[str, list[Pair]]
    classes: ClassMap
    encoding: Encoding
    inferred: bool
    in_channels: int = 3


class Folder:
    """A split of the user's own images.

    Args:
        index: of the folder.
        split: name of the split.

    Raises:
        DataError: the split has no images.
    """

    license = None
    whole_views = False  # they may be sections of a map, which show more with more pixels
    splits = ("train", "val", "test")

    def __init__(self, index: FolderIndex, split: str) -> None:
        self.index, self.labels = index, index.classes.labels
        self.pairs = index.splits.get(split, [])
        if not self.pairs:
            raise DataError(f"{index.root} has no images for {split}: {', '.join(index.splits)} are there")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs)

    def __getitem__(self, position: int) -> Sample:
        """Return one image with its mask.

        Raises:
            DataError: a file is unreadable, or the two differ in size, or the mask has an unknown value.
        """
        pair = self.pairs[position]
        image, mask = read_pair(self.index, pair)
        return Sample(image, mask, pair.image)


def read_pair(index: FolderIndex, pair: Pair) -> tuple[UInt8Array, UInt8Array]:
    """Return an image, uint8 (H, W, channels), upright, and its mask, uint8 (H, W), void 255.

    Raises:
        DataError: a file is unreadable, or the two differ in size, or the mask has an unknown value.
    """
    path = index.root / pair.image
    image = read_image(path, index.in_channels)
    mask = read_pair_mask(index, pair, image.shape[:2], exif_orientation(path))
    if image.shape[:2] != mask.shape:
        raise DataError(f"mask {pair.mask[0]} is {mask.shape[0]} x {mask.shape[1]}, but its image {pair.image} is "
                        f"{image.shape[0]} x {image.shape[1]}; give both the same size")  # fmt: skip
    return image, mask


def read_pair_mask(index: FolderIndex, pair: Pair, size: tuple[int, int], orientation: int = 1) -> UInt8Array:
    """Return the mask of an image, uint8 (H, W), void 255.

    Args:
        index: of the folder.
        pair: the image and its mask.
        size: height and width of the image, upright.
        orientation: the image's, of EXIF.

    Raises:
        DataError: the mask is unreadable or has an unknown value.
    """
    path = index.root / pair.mask[0]
    kind = index.listing.kind
    if kind == "labelme":
        return read_labelme(path, size, index.classes)
    if kind == "coco":
        return coco_file(path).read(int(pair.mask[1]), size, index.classes)
    if kind == "classes":
        mask = np.zeros(size, np.uint8)
        background = index.classes.index("background")
        mask[:] = VOID if background is None else background
        for part in pair.mask:
            values = read_raw_mask(index.root / part).values
            present = align_mask(
                ((values if values.ndim == 2 else values.max(2)) > 0).astype(np.uint8), size, orientation
            )
            if present.shape != size:
                return present  # the caller says that sizes differ
            name = class_of_mask(part, pair.image)
            found = index.classes.index(name)
            if found is None:
                known = ", ".join(index.classes.labels.names)
                raise DataError(f"{part} is for the class {name}, which is not one of {known}; add it to the classes")
            mask[present > 0] = found
        return mask
    raw = read_raw_mask(path)
    mask = decode_mask(raw, index.encoding, index.classes, path)
    return align_mask(mask, size, orientation)


def align_mask(values: UInt8Array, size: tuple[int, int], orientation: int) -> UInt8Array:
    """Turn a mask as EXIF turns its image, where it only fits thus: it was drawn on the stored pixels."""
    if orientation == 1 or values.shape[:2] == size or values.shape[1::-1] != size:
        return values
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(values)
    picture.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(picture))


def exif_orientation(path: Path) -> int:
    """Return the EXIF orientation of an image file, 1 where it has none or cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return int(image.getexif().get(0x0112, 1))
    except Exception:  # reading the image will say what is wrong
        return 1


# ---- the index


def open_folder(root: Path, options: FolderOptions) -> FolderIndex:
    """Look through a folder, or remember how it was: a second start takes no time.

    Args:
        root: of the data set.
        options: how to read it.

    Raises:
        ConfigError: the options make no sense.
        DataError: the folder holds no images with masks, or its classes or lists are damaged.
    """
    if options.classes is not None and options.classes not in KNOWN_CLASSES:
        options = dataclasses.replace(options, classes=str(Path(options.classes).resolve()))
    key = json.dumps([INDEX_VERSION, str(root.resolve()), dataclasses.asdict(options)])
    file = user_cache() / "indexes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        known, index = _read_index(file, file.stat().st_mtime_ns, root)
        if known == stamps(root, list(known)):
            return index
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or of another version
    index = scan_folder(root, options)
    try:
        write_json(file, _to_store(index, options))
    except OSError:  # a home that cannot be written: it takes longer next time
        print(f"The index of {root} cannot be kept in {file.parent}.", file=sys.stderr)
    return index


def stamps(root: Path, names: Sequence[str]) -> dict[str, int]:
    """Return when folders and files were last changed; 0 where they are not there. Editing a mask changes no folder."""
    result = {}
    for name in names:
        try:
            result[name] = (root / name).stat().st_mtime_ns
        except OSError:
            result[name] = 0
    return result


def _watched(index: FolderIndex, options: FolderOptions) -> list[str]:
    """Return what an index depends on besides the options."""
    names = {".", *index.listing.folders, *FILE_NAMES, *LIST_FOLDERS[1:]}
    if index.listing.kind == "labelme" and index.inferred:
        names |= {pair.mask[0] for pair in index.listing.all_pairs}
    elif index.listing.kind == "file" and (index.inferred or options.encoding == "auto"):
        names |= {pair.mask[0] for pair in evenly(index.listing.all_pairs, SURVEYED)}
    names |= {str(path.relative_to(index.root)) for path in find_lists(index.root).values()}
    if index.listing.kind == "coco":
        names |= {pair.mask[0] for pair in index.listing.all_pairs}
    if options.classes and options.classes not in KNOWN_CLASSES:
        names.add(str(Path(options.classes).resolve()))
    return sorted(names)


def _to_store(index: FolderIndex, options: FolderOptions) -> dict[str, Any]:
    listing = dataclasses.asdict(dataclasses.replace(index.listing, pairs={}))
    return {
        "stamps": stamps(index.root, _watched(index, options)),
        "listing": listing,
        "split": bool(set(index.listing.pairs) - {""}),
        "splits": {split: [[pair.image, *pair.mask] for pair in pairs] for split, pairs in index.splits.items()},
        "classes": index.classes.to_dict(),
        "encoding": index.encoding,
        "inferred": index.inferred,
        "in_channels": index.in_channels,
    }


@functools.lru_cache(maxsize=2)  # a start of training asks several times
def _read_index(file: Path, written: int, root: Path) -> tuple[dict[str, int], FolderIndex]:
    """Return what an index depends on, and the index; `written` makes a newer file another one."""
    del written
    stored = json.loads(file.read_text(encoding="utf-8"))
    splits = {split: [Pair(row[0], tuple(row[1:])) for row in rows] for split, rows in stored["splits"].items()}
    listing = Listing(**stored["listing"])
    everything = [pair for pairs in splits.values() for pair in pairs]
    listing.pairs = splits if stored["split"] else {"": everything}
    classes = ClassMap.from_dict(stored["classes"])
    index = FolderIndex(root, listing, splits, classes, stored["encoding"], stored["inferred"], stored["in_channels"])
    return stored["stamps"], index


def scan_folder(root: Path, options: FolderOptions) -> FolderIndex:
    """Look through a folder; see `open_folder`."""
    if options.in_channels < 1:
        raise ConfigError(f"--data.folder.in_channels {options.in_channels} must be at least 1")
    listing = find_pairs(root, options.layout)
    splits = split_pairs(root, listing, options)
    classes, encoding, inferred = find_classes(root, listing, options)
    return FolderIndex(root, listing, splits, classes, encoding, inferred, options.in_channels)


def split_pairs(root: Path, listing: Listing, options: FolderOptions) -> dict[str, list[Pair]]:
    """Assign pairs to splits: as lists say, else as folders do, else by a draw; what lacks val gives some of train."""
    lists = find_lists(root)
    by_image = {pair.image: pair for pair in listing.all_pairs}
    if lists:
        images = [*by_image, *listing.lonely_images]
        named = split_by_lists(lists, images)
        # What has no mask is told by check_data; training goes on without it.
        splits = {split: [by_image[name] for name in names if name in by_image] for split, names in named.items()}
    elif set(listing.pairs) - {""}:
        splits = dict(listing.pairs)
    else:
        drawn = draw_splits(list(by_image), options.val_share, options.test_share, options.groups, options.split_seed)
        return {split: [by_image[name] for name in names] for split, names in drawn.items()}
    if "val" not in splits and splits.get("train"):
        images = [pair.image for pair in splits["train"]]
        drawn = draw_splits(images, options.val_share, 0.0, options.groups, options.split_seed)
        splits |= {split: [by_image[name] for name in names] for split, names in drawn.items()}
    return splits


def find_classes(root: Path, listing: Listing, options: FolderOptions) -> tuple[ClassMap, Encoding, bool]:
    """Return the classes, the encoding of mask files, and whether the classes were guessed from the masks.

    Raises:
        DataError: the classes are damaged or cannot be guessed.
    """
    given = _given_classes(root, listing, options)
    classes, encoding = _find_classes(root, listing, options, given)
    if len(classes.labels) < 2:
        raise DataError(f"{root} has the single class {classes.labels.names[0]}; a network must tell two apart: add "
                        f"the class that everything else belongs to, such as background")  # fmt: skip
    return classes, encoding, given is None


def _find_classes(
    root: Path, listing: Listing, options: FolderOptions, given: ClassMap | None
) -> tuple[ClassMap, Encoding]:
    if listing.kind != "file":
        return given or _classes_of_annotations(root, listing), "index"
    if options.encoding != "auto" and given is not None:
        return given, options.encoding
    sample = evenly(listing.all_pairs, SURVEYED)
    survey = survey_masks(raw for pair in sample if (raw := _try_mask(root / pair.mask[0])) is not None)
    if options.encoding != "auto":
        survey = survey._replace(encoding=options.encoding)
    if given is None:
        return infer_classes(survey, root), survey.encoding
    if survey.colors and set(survey.colors) <= set(given.colors):
        return given, "color"
    claimed = {value for value, index in given.values.items() if index != VOID}
    if survey.encoding == "binary" and VOID not in claimed and len(given.labels) <= 2:
        if len(given.labels) == 1:  # the class of 255; 0 is what is not
            (name,), (color,) = given.labels.names, given.labels.palette
            return build_class_map([ClassEntry("background", [(0, 0, 0)]), ClassEntry(name, [color])]), "binary"
        return given, "binary"
    if survey.encoding == "binary":
        return given, "index"  # 0 and 255 are values of listed classes, or class 0 and void
    # A palette file may hold indices, or colours that mean something: the values decide.
    if survey.encoding == "index" and given.colors and survey.palette and not set(survey.values) <= set(given.values):
        return given, "color"
    return given, survey.encoding


def _given_classes(root: Path, listing: Listing, options: FolderOptions) -> ClassMap | None:
    if options.classes in KNOWN_CLASSES:
        return KNOWN_CLASSES[options.classes]()
    if options.classes is not None:
        return read_classes(Path(options.classes))
    file = next((root / name for name in FILE_NAMES if (root / name).is_file()), None)
    if file is not None:
        return read_classes(file)
    if listing.layout in KNOWN_CLASSES:
        return KNOWN_CLASSES[listing.layout]()
    return None


def _classes_of_annotations(root: Path, listing: Listing) -> ClassMap:
    pairs = listing.all_pairs
    if listing.kind == "classes":
        names = {class_of_mask(mask, pair.image) for pair in pairs for mask in pair.mask}
        return classes_of_names(names)
    names = set()
    if listing.kind == "coco":
        for reference in {pair.mask[0] for pair in pairs}:
            names |= set(coco_file(root / reference).categories.values())
    else:
        for pair in pairs:
            with contextlib.suppress(DataError):  # told when it is used
                names |= labelme_names(root / pair.mask[0])
    return classes_of_names(names)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return so many items, spread evenly."""
    if len(items) <= count:
        return list(items)
    return [items[round(position * (len(items) - 1) / (count - 1))] for position in range(count)]


def _try_mask(path: Path) -> Any:
    try:
        return read_raw_mask(path)
    except DataError:  # told when the mask is used
        return None
