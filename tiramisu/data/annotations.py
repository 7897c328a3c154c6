"""Masks from polygons: LabelMe's files, and COCO's with polygons or run lengths."""

import base64
import functools
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from tiramisu.arrays import UInt8Array
from tiramisu.data.classes import VOID, VOID_NAMES, ClassEntry, ClassMap, build_class_map
from tiramisu.errors import DataError
from tiramisu.files import MIB, read_text

BACKGROUND = "background"
ANNOTATIONS_LIMIT = 4096 * MIB  # of a file; those of COCO itself have 450 MiB
LARGEST = 30_000  # pixels; coordinates beyond are hostile, and cv2 and pycocotools fail on them


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is no file")
    try:
        return json.loads(read_text(path, ANNOTATIONS_LIMIT))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); replace it or remove it and its image") from error


def background_of(classes: ClassMap) -> int:
    """Return what pixels are that nobody has annotated: the class `background` if there is one, else void."""
    index = classes.index(BACKGROUND)
    return VOID if index is None else index


def classes_of_names(names: set[str]) -> ClassMap:
    """Name the classes of annotations where nobody has listed them: background first, then the names in order.

    Raises:
        DataError: there are too many, or a name is no printable text.
    """
    by_case = {name.strip().casefold(): name.strip() for name in sorted(names, reverse=True)}
    others = sorted(name for key, name in by_case.items() if key not in (BACKGROUND, "_background_", *VOID_NAMES))
    try:
        return build_class_map([ClassEntry(name) for name in (BACKGROUND, *others)])
    except ValueError as error:
        raise DataError(f"the class names of the annotations cannot be used: {error}") from error


# ---- LabelMe: one JSON file per image


def labelme_names(path: Path) -> set[str]:
    """Return the names of the classes that a LabelMe file uses."""
    return {str(shape.get("label", "")) for shape in _shapes(path)}


def read_labelme(path: Path, size: tuple[int, int], classes: ClassMap) -> UInt8Array:
    """Draw a LabelMe file as class indices, uint8 (H, W); later shapes cover earlier ones.

    Args:
        path: of the file.
        size: height and width of its image.
        classes: by name.

    Raises:
        DataError: it is damaged, of another size, or names an unknown class.
    """
    document = read_json(path)
    shapes = _shapes(path, document)
    stated = document.get("imageHeight"), document.get("imageWidth")
    if None not in stated and stated != size:
        raise DataError(f"{path} is for an image of {stated[0]} x {stated[1]}, but its image is {size[0]} x {size[1]}; "
                        f"annotate it again or restore the image")  # fmt: skip
    mask = np.full(size, background_of(classes), np.uint8)
    for shape in shapes:
        index = _class_index(str(shape.get("label", "")), classes, path)
        try:
            points = np.array(shape["points"], np.float64).reshape(-1, 2)
            if shape.get("shape_type") == "mask":
                _paste(mask, str(shape["mask"]), points[0], index)
            else:
                _draw(mask, str(shape.get("shape_type") or "polygon"), points, index)
        except Exception as error:  # numpy, OpenCV and Pillow raise what they like
            raise DataError(f"{path} has a shape that cannot be drawn ({error}); save it in LabelMe again") from error
    return mask


def _shapes(path: Path, document: Any = None) -> list[dict[str, Any]]:
    document = read_json(path) if document is None else document
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path} is no LabelMe file: it has no shapes; replace it or remove it and its image")
    return shapes


def _draw(mask: UInt8Array, kind: str, points: np.ndarray, index: int) -> None:
    """Draw a shape: the pixels whose centres lie inside, as LabelMe does. The corner of the image is (0, 0)."""
    if not np.isfinite(points).all():
        raise ValueError("points are not numbers")
    points = np.clip(points, -LARGEST, LARGEST)
    if kind == "polygon" and len(points) >= 3:
        _fill(mask, points, index)
    elif kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        _fill(mask, np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), index)
    elif kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], min(float(np.hypot(*(points[1] - points[0]))), LARGEST)
        top, left = (max(0, math.floor(middle - radius)) for middle in (y, x))
        part = mask[top : max(0, math.ceil(y + radius)), left : max(0, math.ceil(x + radius))]
        down, right = np.ogrid[: part.shape[0], : part.shape[1]]
        part[(down + top + 0.5 - y) ** 2 + (right + left + 0.5 - x) ** 2 <= radius**2] = index
    elif kind not in ("line", "linestrip", "point", "points"):  # these have no area
        raise ValueError(f"a {kind} of {len(points)} points")


def _fill(mask: UInt8Array, points: np.ndarray, index: int) -> None:
    from rasterio import features  # imported here: only LabelMe's files need it

    ring = [*map(tuple, points.tolist()), tuple(points[0].tolist())]
    features.rasterize([({"type": "Polygon", "coordinates": [ring]}, index)], out=mask)


def _paste(mask: UInt8Array, encoded: str, corner: np.ndarray, index: int) -> None:
    """Draw a shape that LabelMe keeps as a small PNG, with its top left corner at (x, y)."""
    with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("PNG",)) as picture:
        if picture.width > mask.shape[1] or picture.height > mask.shape[0]:
            raise ValueError("it is larger than the image")
        shape = np.asarray(picture.convert("L")) > 0
    left, top = (int(part) for part in corner)
    if left < 0 or top < 0:
        raise ValueError("it begins outside of the image")
    part = mask[top : top + shape.shape[0], left : left + shape.shape[1]]
    part[shape[: part.shape[0], : part.shape[1]]] = index


# ---- COCO: one JSON file for many images


class CocoFile:
    """Annotations in COCO's format.

    Args:
        path: of the JSON file.

    Raises:
        DataError: it is damaged or no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        document = read_json(path)
        try:
            self.categories = {int(item["id"]): str(item["name"]) for item in document["categories"]}
            self.images = [(int(item["id"]), str(item["file_name"])) for item in document["images"]]
            self.annotations: dict[int, list[dict[str, Any]]] = {}
            for item in document["annotations"]:
                self.annotations.setdefault(int(item["image_id"]), []).append(
                    {**item, "area": float(item.get("area") or 0), "category_id": int(item["category_id"])}
                )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(f"{path} is no COCO file: its images, annotations or categories lack something "
                            f"({type(error).__name__}: {error})") from error  # fmt: skip

    def read(self, image: int, size: tuple[int, int], classes: ClassMap) -> UInt8Array:
        """Draw the annotations of an image as class indices, uint8 (H, W); small ones cover large ones.

        Args:
            image: its id.
            size: its height and width.
            classes: by name.

        Raises:
            DataError: an annotation is damaged, of another size, or of an unknown class.
        """
        mask = np.full(size, background_of(classes), np.uint8)
        items = self.annotations.get(image, [])
        for item in sorted(items, key=lambda item: -item["area"]):
            name = self.categories.get(item["category_id"], "")
            index = VOID if item.get("iscrowd") else _class_index(name, classes, self.path)
            mask[self._decode(item, size)] = index
        return mask

    def _decode(self, item: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        segmentation = item.get("segmentation")
        try:
            if isinstance(segmentation, dict):
                if tuple(segmentation["size"]) != size:
                    raise ValueError(f"it is {segmentation['size']}, its image {list(size)}")
                encoded = segmentation
                if isinstance(segmentation["counts"], list):
                    encoded = run_lengths.frPyObjects(segmentation, *size)
                return run_lengths.decode(encoded).astype(bool)
            if not isinstance(segmentation, list):
                raise ValueError("it has no segmentation")
            if not segmentation:
                return np.zeros(size, bool)
            if any(len(part) < 6 or len(part) % 2 or not np.isfinite(part).all() for part in segmentation):
                raise ValueError("a polygon needs three points of two numbers each")
            limits = np.array([size[1], size[0]])
            polygons = [np.clip(np.reshape(part, (-1, 2)), 0, limits).ravel().tolist() for part in segmentation]
            return run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects(polygons, *size))).astype(bool)
        except Exception as error:  # pycocotools raises what it likes
            raise DataError(f"annotation {item.get('id')} of {self.path} cannot be drawn: {error}; mend or remove "
                            f"it") from error  # fmt: skip


@functools.lru_cache(maxsize=4)
def _coco_file(path: Path, stamp: int) -> CocoFile:
    return CocoFile(path)


def coco_file(path: Path) -> CocoFile:
    """Return a COCO file, read once as long as it does not change."""
    return _coco_file(path, path.stat().st_mtime_ns)


def _class_index(name: str, classes: ClassMap, path: Path) -> int:
    index = classes.index(name)
    if index is None:
        raise DataError(f"{path} has the class {name!r}, which is not one of {', '.join(classes.labels.names)}; add it "
                        f"to the classes, or rename it")  # fmt: skip
    return index
