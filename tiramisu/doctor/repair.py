"""A corrected copy of a data set, in the plainest layout; the original stays as it is."""

import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from tiramisu.arrays import UInt8Array
from tiramisu.data.classes import write_classes
from tiramisu.data.folder import FolderIndex, align_mask, read_pair_mask
from tiramisu.data.masks import decode_known, read_raw_mask
from tiramisu.data.source import read_image
from tiramisu.doctor.checks import why_unusable
from tiramisu.doctor.survey import Fact, Survey
from tiramisu.errors import ConfigError
from tiramisu.files import CsvWriter, atomic_path, distinct, new_folder
from tiramisu.visualize import save_mask


class Change(NamedTuple):
    """What became of an image: what was mended, or why it was left out; empty where nothing was."""

    image: str
    copy: str
    change: str


def check_target(root: Path, target: Path) -> None:
    """Refuse a folder for the copy that would mix it with anything.

    Raises:
        ConfigError: it is not empty, or lies in the original.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--fix {target} must be a new or empty folder")
    if target.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"--fix {target} lies in {root} itself; give a folder outside of it")


def write_fixed(survey: Survey, target: Path) -> list[Change]:
    """Write a corrected copy: upright images, masks of class indices, splits as folders, classes.yaml, changes.csv.

    It appears when it is complete: half a copy could be trained on without a word.

    Args:
        survey: of the original.
        target: folder of the copy.

    Returns:
        What became of each image.

    Raises:
        ConfigError: another process is writing it.
        OSError: it cannot be written.
    """
    with new_folder(target) as staging:
        return _write_copy(survey, staging)


def _write_copy(survey: Survey, target: Path) -> list[Change]:
    seen_elsewhere = {fact.digest for fact in survey.facts if fact.split != "train" and fact.digest}
    names = distinct([PurePosixPath(fact.pair.image).stem for fact in survey.facts])
    changes = []
    for fact, name in zip(survey.facts, names, strict=True):
        reason = why_unusable(fact, survey.index.encoding)
        if reason:
            changes.append(Change(fact.pair.image, "", f"left out: {reason}"))
            continue
        if fact.split == "train" and fact.digest in seen_elsewhere:
            changes.append(Change(fact.pair.image, "", "left out: the same image is in val or test"))
            continue
        changes.append(_copy(survey.index, fact, name, target))
    write_classes(target / "classes.yaml", survey.index.classes.labels)
    with atomic_path(target / "changes.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = CsvWriter(file)
        writer.writerow(Change._fields)
        writer.writerows(changes)
    return changes


def _copy(index: FolderIndex, fact: Fact, name: str, target: Path) -> Change:
    done = []
    source = index.root / fact.pair.image
    suffix = source.suffix.lower()
    upright = fact.orientation > 1 and index.in_channels in (1, 3)  # files of more channels have no EXIF
    if upright:
        suffix = ".png"  # without the loss of another JPEG
        done.append("image turned upright")
    image_path = target / "images" / fact.split / f"{name}{suffix}"
    with atomic_path(image_path) as temporary:
        if upright:
            Image.fromarray(read_image(source, index.in_channels).squeeze()).save(temporary)
        else:
            shutil.copyfile(source, temporary)
    mask = _read_mask(index, fact)
    if fact.turned:
        done.append("mask turned upright")
    if mask.shape != fact.image_size:
        mask = cv2.resize(mask, fact.image_size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        done.append("mask resized")
    if fact.unknown:
        done.append("unknown values made void")
    with atomic_path(target / "masks" / fact.split / f"{name}.png") as temporary:
        save_mask(mask, index.classes.labels, temporary)
    return Change(fact.pair.image, image_path.relative_to(target).as_posix(), ", ".join(done))


def _read_mask(index: FolderIndex, fact: Fact) -> UInt8Array:
    if index.listing.kind != "file":
        return read_pair_mask(index, fact.pair, fact.image_size, fact.orientation)
    mask, _ = decode_known(read_raw_mask(index.root / fact.pair.mask[0]), index.encoding, index.classes)
    return np.ascontiguousarray(align_mask(mask, fact.image_size, fact.orientation))
