"""Which image belongs to which split: by folders, by lists, or by a seeded draw that keeps groups together."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tiramisu.errors import ConfigError, DataError
from tiramisu.files import read_text

SPLITS = ("train", "val", "test")
FOLDER_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
LIST_FOLDERS = ("", "splits", "ImageSets/Segmentation", "lists")


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder's name stands for."""
    return FOLDER_NAMES.get(name.casefold())


def find_lists(root: Path) -> dict[str, Path]:
    """Return the list files of a data set, such as train.txt, by split."""
    for folder in LIST_FOLDERS:
        found: dict[str, Path] = {}
        for name, split in FOLDER_NAMES.items():
            file = root / folder / f"{name}.txt"
            if split not in found and file.is_file():
                found[split] = file
        if "train" in found:
            return found
    return {}


def split_by_lists(lists: Mapping[str, Path], images: Sequence[str]) -> dict[str, list[str]]:
    """Return the images of each split that list files name.

    Args:
        lists: files with one image a line: its path, or its name, with or without suffix.
        images: paths of all images, relative to the root.

    Raises:
        DataError: a line names no image, or a name that several have.
    """
    known: dict[str, str | None] = {}
    for image in images:
        path = PurePosixPath(image)
        for key in {image, str(path.with_suffix("")), path.name, path.stem}:
            known[key] = None if key in known else image
    result: dict[str, list[str]] = {}
    for split, file in lists.items():
        chosen = result.setdefault(split, [])
        for number, line in enumerate(read_text(file).splitlines(), 1):
            wanted = line.split("\t")[0].strip().replace("\\", "/").removeprefix("./")
            # Lists of CamVid and VOC hold the image and its mask in a line.
            candidates = (wanted, wanted.split(" ")[0], PurePosixPath(wanted.split(" ")[0]).stem)
            if not wanted or wanted.startswith("#"):
                continue
            found = next((known[name] for name in candidates if known.get(name)), None)
            if found is None:
                several = any(name in known for name in candidates)
                reason = "several images have that name; write their paths" if several else "there is no such image"
                raise DataError(f"{file}, line {number}: {wanted}: {reason}")
            chosen.append(found)
    return result


def draw_splits(
    images: Sequence[str], val_share: float, test_share: float, groups: str | None, seed: int
) -> dict[str, list[str]]:
    """Draw splits as if at random, always the same ones; an image that comes later moves at most one other.

    Args:
        images: their paths.
        val_share: of the images, at least one.
        test_share: likewise; 0 for no test split.
        groups: regular expression; images in which it finds the same text stay together. None: each for itself.
        seed: of the draw.

    Raises:
        ConfigError: the shares or the expression make no sense.
        DataError: there are too few images or groups.
    """
    if not 0 < val_share < 1 or not 0 <= test_share < 1 or val_share + test_share >= 1:
        raise ConfigError(f"--data.folder.val_share {val_share} and --data.folder.test_share {test_share} leave "
                          f"nothing to train on, or nothing to validate on")  # fmt: skip
    members: dict[str, list[str]] = {}
    for image in sorted(images):
        members.setdefault(group_of(image, groups), []).append(image)
    wanted = {"val": val_share, "test": test_share} if test_share else {"val": val_share}
    if len(members) <= len(wanted):
        raise DataError(
            f"{len(images)} images in {len(members)} groups cannot be split; add images, or lists train.txt and val.txt"
            + (f", or choose another --data.folder.groups than {groups}" if groups else "")
        )
    order = sorted(members, key=lambda name: hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest())
    result: dict[str, list[str]] = {}
    for split, share in wanted.items():
        chosen = result.setdefault(split, [])
        while order and (not chosen or len(chosen) + len(members[order[0]]) / 2 <= share * len(images)):
            chosen += members[order.pop(0)]
    result["train"] = [image for name in order for image in members[name]]
    if not result["train"]:
        raise DataError("the groups are so large that nothing is left to train on; choose other --data.folder.groups")
    return {split: sorted(result[split]) for split in SPLITS if split in result}


def group_of(image: str, groups: str | None) -> str:
    """Return the group of an image: what the expression finds in its path (its first bracket, if it has any).

    Raises:
        ConfigError: it is no regular expression.
    """
    if groups is None:
        return image
    try:
        found = re.search(groups, image)
    except re.error as error:
        raise ConfigError(f"--data.folder.groups {groups} is no regular expression: {error}") from error
    if found is None:
        return image
    return found.group(1) if found.re.groups else found.group(0)
