"""Finding images and their masks in a folder, however people and tools lay them out."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from tiramisu.data.annotations import coco_file, read_json
from tiramisu.data.splits import FOLDER_NAMES, split_of_folder
from tiramisu.errors import ConfigError, DataError
from tiramisu.images import SUFFIXES

LayoutName = Literal["auto", "folder", "camvid32", "cityscapes", "voc", "labelme", "coco"]
MaskKind = Literal["file", "classes", "labelme", "coco"]

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annots", "gt", "ground_truth", "SegmentationClass")
MASK_ENDINGS = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L", "-mask")
MASK_FOLDER_ENDINGS = ("annot", "_labels", "_label", "_masks", "_mask", "_annot", "-masks")
EXPECTED = (
    "expected images/ and masks/ with files of the same names, or train/ and trainannot/, or one of the layouts of "
    "LabelMe, COCO, VOC, Cityscapes or CamVid"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """An image and where its mask is; paths are relative to the root, with slashes.

    Attributes:
        image: path of the image.
        mask: path of the mask; with one file per class, all of them; with COCO, the JSON file and the image's id.
    """

    image: str
    mask: tuple[str, ...]


@dataclasses.dataclass
class Listing:
    """What is in a folder.

    Attributes:
        layout: how it is laid out.
        kind: what the masks are: one file each, one file per class, or annotations of a tool.
        pairs: images with masks, by split; under "" where the layout does not split them.
        lonely_images: images without a mask.
        lonely_masks: masks without an image.
        folders: that were looked through.
        outside: images in none of the folders of splits, where there are such folders.
    """

    layout: str
    kind: MaskKind
    pairs: dict[str, list[Pair]]
    lonely_images: list[str] = dataclasses.field(default_factory=list)
    lonely_masks: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    outside: list[str] = dataclasses.field(default_factory=list)

    @property
    def all_pairs(self) -> list[Pair]:
        """Return the pairs of all splits."""
        return [pair for pairs in self.pairs.values() for pair in pairs]


class Walk:
    """The files below a folder, and which folders were looked through.

    Args:
        root: of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: list[str] = []

    def files(self, folder: str, suffixes: Iterable[str]) -> list[str]:
        """Return the paths of files with these suffixes below a folder, relative to the root, in order."""
        wanted = frozenset(suffixes)
        found = []
        seen: set[tuple[int, int]] = set()
        for parent, folders, names in os.walk(self.root / folder, onerror=_refuse, followlinks=True):
            status = Path(parent).stat()
            if (status.st_dev, status.st_ino) in seen:  # a link back up
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = Path(parent).relative_to(self.root).as_posix()
            self.folders.append(relative)
            prefix = "" if relative == "." else f"{relative}/"
            found += [
                prefix + name
                for name in sorted(names)
                if not name.startswith(".") and f".{name.rpartition('.')[2].lower()}" in wanted
            ]
        return found


def _refuse(error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        return
    raise DataError(f"{error.filename} cannot be looked into ({error.strerror}); change its permissions") from error


def find_pairs(root: Path, layout: LayoutName = "auto") -> Listing:
    """Find the images of a data set and their masks.

    Args:
        root: folder of the data set.
        layout: how it is laid out; `auto` looks.

    Raises:
        ConfigError: there is no such layout.
        DataError: the folder is missing, or holds nothing of the kind.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the folder of your images as --data.root")
    if layout not in get_args(LayoutName):
        raise ConfigError(f"there is no layout {layout}; choose one of {', '.join(get_args(LayoutName))}")
    finders: dict[str, Callable[[Path], Listing | None]] = {
        "cityscapes": _find_cityscapes, "camvid32": _find_camvid32, "voc": _find_voc, "folder": _find_folder,
        "coco": _find_coco, "labelme": _find_labelme,
    }  # fmt: skip
    lonely: list[str] = []
    for name, find in finders.items():
        listing = find(root) if layout in ("auto", name) else None
        if listing is not None and listing.all_pairs:
            return listing
        if listing is not None:  # images/ and annotations/ may also be COCO's
            lonely = lonely or listing.lonely_images
    if lonely:
        raise DataError(f"none of the {len(lonely)} images of {root} has a mask (such as {lonely[0]}); masks must have "
                        f"the names of their images")  # fmt: skip
    known = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    there = f"it has {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}" if known else "it is empty"
    raise DataError(f"no images with masks in {root}: {EXPECTED}; {there}")


# ---- matching names


def match(walk: Walk, images: Sequence[str], masks: Sequence[str], bases: tuple[str, str]) -> Listing:
    """Pair images and masks by name: by their paths below their folders, else by file name where that is unique.

    Args:
        walk: that found them.
        images: paths of images.
        masks: paths of masks.
        bases: folders of the images and of the masks.
    """
    exact: dict[str, str] = {}
    by_path: dict[str, list[str]] = {}
    by_name: dict[str, list[str]] = {}
    for mask in masks:
        stem = _stem(_below(mask, bases[1]))
        exact.setdefault(stem, mask)
        by_path.setdefault(without_ending(stem).casefold(), []).append(mask)
        by_name.setdefault(without_ending(PurePosixPath(stem).name).casefold(), []).append(mask)
    found: dict[str, str] = {}
    used: set[str] = set()

    def take(image: str, candidates: Sequence[str]) -> None:
        """Give an image its mask, if there is one and only one that no other image has."""
        free = [mask for mask in candidates if mask not in used and mask != image]
        if image not in found and len(free) == 1:
            found[image] = free[0]
            used.add(free[0])

    stems = {image: _stem(_below(image, bases[0])) for image in images}
    for image, stem in stems.items():
        take(image, [exact[stem]] if stem in exact else [])
    for image, stem in stems.items():
        take(image, by_path.get(stem.casefold(), []))
    # By file name alone only what is not there twice: train/1.jpg and val/1.jpg are different images.
    times = Counter(PurePosixPath(stem).name.casefold() for stem in stems.values())
    for image, stem in stems.items():
        name = PurePosixPath(stem).name.casefold()
        take(image, by_name.get(name, []) if times[name] == 1 else [])
    pairs = [Pair(image, (found[image],)) for image in images if image in found]
    lonely = [image for image in images if image not in found]
    alone = [mask for mask in masks if mask not in used]
    return Listing("folder", "file", {"": pairs}, lonely, alone, walk.folders)


def _below(path: str, base: str) -> str:
    return path.removeprefix(f"{base}/") if base else path


def _stem(path: str) -> str:
    return path.rpartition(".")[0]  # PurePath would take seconds for a hundred thousand


def without_ending(stem: str) -> str:
    """Return the stem of a mask's file without what people add to the image's, such as _mask."""
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)


def _first_folder(root: Path, names: Sequence[str]) -> str | None:
    """Return the first of some folders that is there, whatever its case."""
    there = {path.name.casefold(): path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else {}
    return next((there[name.casefold()] for name in names if name.casefold() in there), None)


def _join(listings: dict[str, Listing]) -> Listing:
    first = next(iter(listings.values()))
    joined = dataclasses.replace(first, pairs={}, lonely_images=[], lonely_masks=[], folders=[])
    for split, listing in listings.items():
        joined.pairs[split] = listing.all_pairs
        joined.lonely_images += listing.lonely_images
        joined.lonely_masks += listing.lonely_masks
        joined.folders += listing.folders
    return joined


# ---- images and masks in folders


def _find_folder(root: Path) -> Listing | None:
    images, masks = _first_folder(root, IMAGE_FOLDERS), _first_folder(root, MASK_FOLDERS)
    if images and masks:
        return _split_by_subfolder(_find_masks(root, images, masks), images)
    listings: dict[str, Listing] = {}
    names = {path.name for path in root.iterdir() if path.is_dir()}
    for name in sorted(names, key=lambda name: list(FOLDER_NAMES).index(name) if name in FOLDER_NAMES else 99):
        split = split_of_folder(name)
        if split is None or split in listings:
            continue
        images, masks = _first_folder(root / name, IMAGE_FOLDERS), _first_folder(root / name, MASK_FOLDERS)
        if images and masks:
            listings[split] = _find_masks(root, f"{name}/{images}", f"{name}/{masks}")
            continue
        beside = next((name + ending for ending in MASK_FOLDER_ENDINGS if name + ending in names), None)
        if beside:
            listings[split] = _find_masks(root, name, beside)
    if "train" in listings or len(listings) > 1:
        return _join(listings)
    return None


def _split_by_subfolder(listing: Listing, images: str) -> Listing:
    splits: dict[str, list[Pair]] = {}
    for pair in listing.all_pairs:
        below = PurePosixPath(_below(pair.image, images)).parts
        split = split_of_folder(below[0]) if len(below) > 1 else None
        splits.setdefault(split or "", []).append(pair)
    if "train" not in splits:
        return listing
    outside = [pair.image for pair in splits.pop("", [])]
    return dataclasses.replace(listing, pairs=splits, outside=outside)


def _find_masks(root: Path, images: str, masks: str) -> Listing:
    walk = Walk(root)
    image_files = walk.files(images, SUFFIXES)
    mask_files = walk.files(masks, SUFFIXES)
    if not mask_files:
        annotations = walk.files(masks, (".json",))
        listing = match(walk, image_files, annotations, (images, masks))
        return dataclasses.replace(listing, layout="labelme", kind="labelme")
    listing = match(walk, image_files, mask_files, (images, masks))
    if len(listing.lonely_images) > len(listing.all_pairs):
        per_class = _match_per_class(walk, image_files, mask_files, (images, masks))
        if len(per_class.all_pairs) > len(listing.all_pairs):
            return per_class
    return listing


def _match_per_class(walk: Walk, images: Sequence[str], masks: Sequence[str], bases: tuple[str, str]) -> Listing:
    """Pair images with one mask per class: masks/CLASS/NAME.png or masks/NAME/CLASS.png."""
    wanted = {_stem(_below(image, bases[0])): image for image in images}
    found: dict[str, list[str]] = {}
    alone = []
    for mask in masks:
        parts = PurePosixPath(_stem(_below(mask, bases[1]))).parts
        candidates = [str(PurePosixPath(*parts[:-1])), str(PurePosixPath(*parts[1:]))]  # folder of the image, or class
        candidates.append(str(PurePosixPath(*parts[:-2], parts[-1])) if len(parts) > 1 else "")  # split/class/name
        image = next((wanted[name] for name in candidates if name in wanted), None)
        if image is None or len(parts) < 2:
            alone.append(mask)
        else:
            found.setdefault(image, []).append(mask)
    pairs = [Pair(image, tuple(sorted(found[image]))) for image in images if image in found]
    lonely = [image for image in images if image not in found]
    return Listing("folder", "classes", {"": pairs}, lonely, alone, walk.folders)


def class_of_mask(mask: str, image: str) -> str:
    """Return the class of a mask file, where there is one per class: the folder's name, or the file's."""
    path = PurePosixPath(mask)
    return path.parent.name if path.stem == PurePosixPath(image).stem else path.stem


# ---- well-known data sets


def _find_camvid32(root: Path) -> Listing | None:
    images = _first_folder(root, ("701_StillsRaw_full",))
    masks = _first_folder(root, ("LabeledApproved_full", "LabeledApproved"))
    if not images or not masks:
        return None
    return dataclasses.replace(_find_masks(root, images, masks), layout="camvid32")


def _find_voc(root: Path) -> Listing | None:
    if not (root / "JPEGImages").is_dir() or not (root / "SegmentationClass").is_dir():
        return None
    return dataclasses.replace(_find_masks(root, "JPEGImages", "SegmentationClass"), layout="voc")


def _find_cityscapes(root: Path) -> Listing | None:
    if not (root / "leftImg8bit").is_dir() or not (root / "gtFine").is_dir():
        return None
    listings: dict[str, Listing] = {}
    for split in ("train", "val", "test"):
        walk = Walk(root)
        images = walk.files(f"leftImg8bit/{split}", (".png",))
        masks = [mask for mask in walk.files(f"gtFine/{split}", (".png",)) if mask.endswith("_gtFine_labelIds.png")]
        by_name = {_below(mask, "gtFine").removesuffix("_gtFine_labelIds.png"): mask for mask in masks}
        names = {image: _below(image, "leftImg8bit").removesuffix("_leftImg8bit.png") for image in images}
        pairs = [Pair(image, (by_name[name],)) for image, name in names.items() if name in by_name]
        if pairs:
            lonely = [image for image, name in names.items() if name not in by_name]
            alone = sorted(set(masks) - {pair.mask[0] for pair in pairs})
            listings[split] = Listing("cityscapes", "file", {"": pairs}, lonely, alone, walk.folders)
    return _join(listings) if listings else None


# ---- annotations of tools


def _find_labelme(root: Path) -> Listing | None:
    walk = Walk(root)
    images = walk.files("", SUFFIXES)
    annotations = walk.files("", (".json",))
    if not images or not annotations:
        return None
    base = _first_folder(root, IMAGE_FOLDERS) or ""
    listing = match(walk, images, annotations, (base, _first_folder(root, MASK_FOLDERS) or base))
    return dataclasses.replace(_split_by_subfolder(listing, base), layout="labelme", kind="labelme")


def _find_coco(root: Path) -> Listing | None:
    folder = _first_folder(root, ("annotations",)) or ""
    damaged: list[DataError] = []
    candidates = sorted((root / folder).glob("*.json"))
    files = [file for file in candidates if _looks_like_coco(file, damaged)]
    if not files:
        if damaged and len(damaged) == len(candidates):
            raise damaged[0]
        return None
    walk = Walk(root)
    by_name: dict[str, str | None] = {}
    images = walk.files("", SUFFIXES)
    for image in images:
        parts = PurePosixPath(image).parts
        for count in range(1, len(parts) + 1):  # a file_name may be a path below any folder
            name = "/".join(parts[-count:])
            by_name[name] = None if name in by_name else image
    splits: dict[str, list[Pair]] = {}
    missing: list[str] = []
    used: set[str] = set()
    for file in files:
        reference = file.relative_to(root).as_posix()
        split = _split_in_name(file.stem) if len(files) > 1 else ""
        for number, file_name in coco_file(file).images:
            name = file_name.replace("\\", "/")
            path = next((found for key in _names_of_image(name, file.stem) if (found := by_name.get(key))), None)
            if path is None:
                missing.append(f"{reference}: {name}")
            else:
                used.add(path)
                splits.setdefault(split, []).append(Pair(path, (reference, str(number))))
    if "" in splits and len(splits) > 1:
        splits = {"": [pair for pairs in splits.values() for pair in pairs]}
    lonely = [image for image in images if image not in used]
    return Listing("coco", "coco", splits, lonely, missing, [*walk.folders, folder or "."])


def _names_of_image(name: str, file: str) -> Iterable[str]:
    """Yield what may be the end of an image's path: instances_train2017.json means train2017/NAME."""
    yield f"{file.removeprefix('instances_')}/{name}"
    split = _split_in_name(file)
    for folder, meaning in FOLDER_NAMES.items():
        if meaning == split:
            yield f"{folder}/{name}"
    yield name


def _split_in_name(stem: str) -> str:
    words = "".join(letter if letter.isalpha() else " " for letter in stem).split()
    return next((split for word in words if (split := split_of_folder(word))), "")


def _looks_like_coco(file: Path, damaged: list[DataError]) -> bool:
    try:
        document = read_json(file)
    except DataError as error:
        damaged.append(error)
        return False
    return isinstance(document, dict) and all(isinstance(document.get(key), list) for key in ("images", "annotations"))
