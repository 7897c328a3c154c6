"""Masks in the formats of labelling tools: COCO run lengths, COCO panoptic, LabelMe polygons."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from tiramisu.arrays import UInt8Array
from tiramisu.labels import LabelSet


class Labelled(NamedTuple):
    """An image of a COCO file: its file, the name of its results, height, width, segments (see `encode_segments`)."""

    file_name: str
    name: str
    height: int
    width: int
    segments: dict[str, str]


def encode_segments(mask: UInt8Array, labels: LabelSet) -> dict[str, str]:
    """Return COCO's compressed run lengths of every class in a mask, by class name."""
    result = {}
    for index, name in enumerate(labels.names):
        region = mask == index
        if region.any():
            encoded = coco_mask.encode(np.asfortranarray(region, np.uint8))
            result[name] = encoded["counts"].decode("ascii")
    return result


def write_coco(path: Path, images: Callable[[], Iterable[Labelled]], labels: LabelSet) -> None:
    """Write a COCO file, one run-length annotation a class and image, without holding it in memory.

    Args:
        path: of the file.
        images: returns an iterator over the images; it is called twice.
        labels: the classes.
    """

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image_id, image in enumerate(images(), 1):
            for segment in _segments(image, labels):
                number += 1
                run_lengths = {"size": [image.height, image.width], "counts": image.segments[segment.pop("name")]}
                yield {**segment, "id": number, "image_id": image_id, "segmentation": run_lengths, "iscrowd": 1}

    _write_json_lists(path, _header(labels), {"images": _coco_images(images()), "annotations": annotations()})


def write_panoptic(path: Path, images: Callable[[], Iterable[Labelled]], labels: LabelSet) -> None:
    """Write COCO's panoptic file, which goes with the pictures of `panoptic_picture`; arguments as `write_coco`."""

    def annotations() -> Iterator[dict[str, Any]]:
        for image_id, image in enumerate(images(), 1):
            infos = []
            for segment in _segments(image, labels):
                del segment["name"]
                infos.append({**segment, "id": segment["category_id"], "iscrowd": 0})
            yield {"image_id": image_id, "file_name": f"{image.name}.png", "segments_info": infos}

    _write_json_lists(path, _header(labels), {"images": _coco_images(images()), "annotations": annotations()})


def _segments(image: Labelled, labels: LabelSet) -> Iterator[dict[str, Any]]:
    for name, counts in image.segments.items():
        run_lengths = {"size": [image.height, image.width], "counts": counts}
        box = [float(value) for value in coco_mask.toBbox(run_lengths)]
        category = labels.names.index(name) + 1
        yield {"name": name, "category_id": category, "area": int(coco_mask.area(run_lengths)), "bbox": box}


def _coco_images(images: Iterable[Labelled]) -> Iterator[dict[str, Any]]:
    for image_id, image in enumerate(images, 1):
        yield {"id": image_id, "file_name": image.file_name, "height": image.height, "width": image.width}


def _header(labels: LabelSet) -> dict[str, Any]:
    categories = [
        {"id": index + 1, "name": name, "supercategory": "", "color": list(color), "isthing": 0}
        for index, (name, color) in enumerate(zip(labels.names, labels.palette, strict=True))
    ]
    return {"info": {"description": "segmented by tiramisu"}, "licenses": [], "categories": categories}


def _write_json_lists(path: Path, header: dict[str, Any], lists: dict[str, Iterable[dict[str, Any]]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header)[:-1])
        for key, values in lists.items():
            file.write(f',\n"{key}": [')
            for number, value in enumerate(values):
                file.write(("," if number else "") + "\n" + json.dumps(value))
            file.write("]")
        file.write("}\n")


def panoptic_picture(mask: UInt8Array, labels: LabelSet) -> UInt8Array:
    """Return a COCO panoptic picture (H, W, 3): the segment id in red, class index + 1; void is 0."""
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[..., 0] = np.where(mask < len(labels), mask + 1, 0)
    return picture


def labelme_document(mask: UInt8Array, labels: LabelSet, image_name: str) -> dict[str, Any]:
    """Return a LabelMe file: the outline of every region, large ones first.

    LabelMe's polygons have no holes; whatever lies in a hole is a smaller region, which is drawn later.
    """
    shapes: list[tuple[float, str, list[list[float]]]] = []
    for index, name in enumerate(labels.names):
        region = (mask == index).astype(np.uint8)
        outlines, hierarchy = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        for position, outline in enumerate(outlines):
            if hierarchy[0, position, 3] >= 0:
                continue  # a hole
            points = outline[:, 0].astype(float).tolist()
            area = cv2.contourArea(outline) + len(points) / 2  # Pick's theorem: with the pixels on the outline
            shapes.append((area, name, points + points[-1:] * (3 - len(points))))
    shapes.sort(key=lambda shape: -shape[0])
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": [
            {"label": name, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
            for _, name, points in shapes
        ],
        "imagePath": image_name,
        "imageData": None,
        "imageHeight": mask.shape[0],
        "imageWidth": mask.shape[1],
    }
