"""Masks in the formats of labelling tools: COCO, COCO panoptic, LabelMe polygons, Label Studio."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tiramisu.arrays import UInt8Array
from tiramisu.labels import LabelSet
from tiramisu.spool import empty_like, release, released, strip_rows

TOLERANCE = 1.0  # pixels
VOID_LABEL = "__ignore__"  # LabelMe's own name for void
# Label Studio's run lengths (thi.ng/rle-pack): bits that a run's length takes, and bits of a value.
RUN_BITS, VALUE_BITS = (3, 4, 8, 16), 8
RUNS_AT_ONCE = 500_000
MAX_RUNS, MAX_REGIONS = 16_000_000, 1_000_000  # of a mask; 600 megapixels of streets have 11 and 0.4 million
CHANNELS, OPAQUE = 4, 255  # it encodes RGBA
FROM_NAME, TO_NAME = "label", "image"  # of its labelling configuration


class Labelled(NamedTuple):
    """An image of an annotation file: its file, the name of its results, height, width, regions (`encode_regions`)."""

    file_name: str
    name: str
    height: int
    width: int
    regions: Sequence[tuple[int, str]]


class Runs(NamedTuple):
    """Vertical runs of equal values that cover a mask, column by column; each ends where the next one starts.

    Attributes:
        start: place of the first pixel of each run, column * height + row.
        value: of its pixels.
    """

    start: NDArray[np.uint32]
    value: UInt8Array


def find_runs(mask: UInt8Array) -> Runs | None:
    """Return the vertical runs of a mask (H, W), or nothing where there are more than `MAX_RUNS`.

    Memory grows with their number and not with the mask.
    """
    height, width = mask.shape
    parts: list[Runs] = []
    for left in range(0, width, columns := strip_rows(height)):
        block = np.ascontiguousarray(mask[:, left : left + columns].T)
        release(mask)
        starts = np.ones(block.shape, bool)
        np.not_equal(block[:, 1:], block[:, :-1], out=starts[:, 1:])
        at = np.flatnonzero(starts)
        parts.append(Runs((at + left * height).astype(np.uint32), block.ravel()[at]))
        if sum(len(part.start) for part in parts) > MAX_RUNS:
            return None
    return Runs(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def label_runs(runs: Runs, height: int, width: int) -> NDArray[np.int32]:
    """Return the number of the connected region of each run; pixels that touch at a corner are connected."""
    from scipy.sparse import coo_array  # imported here: most runs write no annotations
    from scipy.sparse.csgraph import connected_components

    count = len(runs.start)
    ends = np.append(runs.start[1:], np.uint32(height * width))
    pairs: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    for begin in range(0, count, RUNS_AT_ONCE):
        start = runs.start[begin : begin + RUNS_AT_ONCE].astype(np.int64)
        end = ends[begin : begin + RUNS_AT_ONCE].astype(np.int64)
        column = start // height
        # The runs of the next column that touch a run, corners included, lie between two places in the sorted starts.
        next_column = (column + 1) * height
        upper = next_column + np.maximum(start - column * height - 1, 0)
        lower = next_column + np.minimum(end - column * height, height - 1)
        first = np.searchsorted(runs.start, upper.astype(np.uint32), side="right") - 1
        last = np.searchsorted(runs.start, lower.astype(np.uint32), side="right") - 1
        touching = np.where(column < width - 1, last - first + 1, 0)
        left = np.repeat(np.arange(begin, begin + len(start)), touching)
        right = np.arange(len(left)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
        same = runs.value[left] == runs.value[right]
        pairs.append((left[same].astype(np.int32), right[same].astype(np.int32)))
    rows, columns = (np.concatenate(each) for each in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def encode_regions(mask: UInt8Array, classes: int) -> list[tuple[int, str]]:
    """Return every connected region of a mask (H, W): its class, and COCO's compressed run lengths. Void has none.

    Where there are more than `MAX_REGIONS`, as in noise, each class is one region: their memory must not grow without
    end.
    """
    height, width = mask.shape
    runs = find_runs(mask)
    if runs is None:
        return encode_classes(mask, classes)
    labels = label_runs(runs, height, width)
    if labels.max() >= MAX_REGIONS:
        return encode_classes(mask, classes)
    order = np.argsort(labels, kind="stable").astype(np.int32)
    bounds = np.append(np.flatnonzero(np.diff(labels[order])) + 1, len(order))
    del labels
    ends = np.append(runs.start[1:], np.uint32(height * width))
    result = []
    first = 0
    for bound in bounds.tolist():
        members, first = order[first:bound], bound
        value = int(runs.value[members[0]])
        if value >= classes:
            continue
        edges = np.stack([runs.start[members], ends[members]], 1).ravel().astype(np.int64)
        lengths = np.diff(edges, prepend=0, append=height * width)
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
        result.append((value, encoded["counts"].decode("ascii")))
    return sorted(result, key=lambda region: region[0])


def encode_classes(mask: UInt8Array, classes: int) -> list[tuple[int, str]]:
    """Return every class of a mask (H, W) and COCO's compressed run lengths of all its pixels. Void has none."""
    height, width = mask.shape
    turned = empty_like(mask, (width, height), np.uint8)  # COCO goes down the columns
    result = []
    for index in range(classes):
        for left in range(0, width, columns := strip_rows(height)):
            turned[left : left + columns] = index == mask[:, left : left + columns].T
            for array in (mask, turned):
                release(array)
        with released(turned):
            if turned.any():
                result.append((index, coco_mask.encode(np.asarray(turned).T)["counts"].decode("ascii")))
    return result


def write_coco(path: Path, images: Callable[[], Iterable[Labelled]], labels: LabelSet) -> None:
    """Write a COCO file, one run-length annotation a connected region, without holding it in memory.

    Args:
        path: of the file.
        images: returns an iterator over the images; it is called twice.
        labels: the classes.
    """

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for image_id, image in enumerate(images(), 1):
            for index, counts in image.regions:
                number += 1
                run_lengths = {"size": [image.height, image.width], "counts": counts}
                yield {
                    "id": number, "image_id": image_id, "category_id": index + 1, "segmentation": run_lengths,
                    "area": int(coco_mask.area(run_lengths)), "bbox": _box(run_lengths), "iscrowd": 0,
                }  # fmt: skip

    _write_json_lists(path, _header(labels), {"images": _coco_images(images()), "annotations": annotations()})


def write_panoptic(path: Path, images: Callable[[], Iterable[Labelled]], labels: LabelSet) -> None:
    """Write COCO's panoptic file, which goes with the pictures of `panoptic_picture`; arguments as `write_coco`."""

    def annotations() -> Iterator[dict[str, Any]]:
        for image_id, image in enumerate(images(), 1):
            infos = []
            for index, run_lengths in _classes(image):
                infos.append({
                    "id": index + 1, "category_id": index + 1, "area": int(coco_mask.area(run_lengths)),
                    "bbox": _box(run_lengths), "iscrowd": 0,
                })  # fmt: skip
            yield {"image_id": image_id, "file_name": f"{image.name}.png", "segments_info": infos}

    _write_json_lists(path, _header(labels), {"images": _coco_images(images()), "annotations": annotations()})


def _box(run_lengths: dict[str, Any]) -> list[float]:
    return [float(value) for value in coco_mask.toBbox(run_lengths)]


def _classes(image: Labelled) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each class of an image with the run lengths of all its regions together."""
    size = [image.height, image.width]
    for index in sorted({index for index, _ in image.regions}):
        regions = [{"size": size, "counts": counts} for found, counts in image.regions if found == index]
        merged = coco_mask.merge(regions)
        yield index, {"size": size, "counts": merged["counts"].decode("ascii")}


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
            _write_items(file, values)
            file.write("]")
        file.write("}\n")


def _write_items(file: Any, values: Iterable[Any]) -> None:
    for number, value in enumerate(values):
        file.write(("," if number else "") + "\n" + json.dumps(value))


def panoptic_picture(mask: UInt8Array, labels: LabelSet) -> UInt8Array:
    """Return a COCO panoptic picture (H, W, 3): the segment id in red, class index + 1; void is 0."""
    picture = np.zeros((*mask.shape, 3), np.uint8)
    picture[..., 0] = np.where(mask < len(labels), mask + 1, 0)
    return picture


# ---- LabelMe


def labelme_document(
    mask: UInt8Array, labels: LabelSet, image_name: str, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Return a LabelMe file: the outline of every region, large ones first.

    Outlines run along the edges of pixels. They are simplified together, so that neighbours keep a common border: no
    gaps, no overlaps (coverage simplification, by the algorithm of Visvalingam and Whyatt). LabelMe's polygons have no
    holes; whatever lies in a hole is a smaller region, which is drawn later.

    Args:
        mask: (H, W) class indices.
        labels: the classes.
        image_name: path of the image from the folder of the file.
        tolerance: square root of the area, in pixels, that a corner may cut off where it is left out; 0 keeps every
            corner, and gives the mask back exactly.
    """
    import shapely  # imported here: few runs write LabelMe
    from rasterio import features

    found = list(features.shapes(mask, connectivity=4))
    outlines: Any = np.array([shapely.geometry.shape(outline) for outline, _ in found])
    if tolerance > 0:
        outlines = shapely.coverage_simplify(outlines, tolerance)
    shapes: list[tuple[float, str, list[list[float]]]] = []
    for outline, (_, value) in zip(outlines, found, strict=True):
        if outline.is_empty:
            continue
        ring = shapely.geometry.Polygon(outline.exterior)
        name = labels.names[int(value)] if int(value) < len(labels) else VOID_LABEL
        shapes.append((ring.area, name, [[float(x), float(y)] for x, y in ring.exterior.coords[:-1]]))
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


# ---- Label Studio


def write_label_studio(path: Path, images: Callable[[], Iterable[Labelled]], labels: LabelSet) -> None:
    """Write tasks of Label Studio with predictions, one brush mask a class; arguments as `write_coco`."""

    def tasks() -> Iterator[dict[str, Any]]:
        for image in images():
            results = [
                {
                    "id": f"{index:08d}", "type": "brushlabels", "from_name": FROM_NAME, "to_name": TO_NAME,
                    "original_width": image.width, "original_height": image.height, "image_rotation": 0,
                    "value": {"format": "rle", "rle": list(pack_runs(coco_mask.decode(run_lengths))),
                              "brushlabels": [labels.names[index]]},
                }
                for index, run_lengths in _classes(image)
            ]  # fmt: skip
            predictions = [{"model_version": "tiramisu", "result": results}]
            yield {"data": {TO_NAME: image.file_name}, "predictions": predictions}

    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        _write_items(file, tasks())
        file.write("]\n")


def label_studio_config(labels: LabelSet) -> str:
    """Return the labelling configuration of a Label Studio project for the tasks of `write_label_studio`."""
    lines = ["<View>", f'  <Image name="{TO_NAME}" value="${TO_NAME}"/>']
    lines.append(f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">')
    for name, color in zip(labels.names, labels.palette, strict=True):
        shown = "#{:02x}{:02x}{:02x}".format(*color)
        lines.append(f'    <Label value={quoteattr(name)} background="{shown}"/>')
    return "\n".join([*lines, "  </BrushLabels>", "</View>"]) + "\n"


def pack_runs(region: UInt8Array) -> bytes:
    """Return a mask (H, W) of 0 and 1 in Label Studio's run lengths, as RGBA with all four channels 0 or 255.

    The format is that of rle-pack: 32 bits with the number of values, 5 with their size less 1, four times 4 bits with
    the sizes of lengths less 1; then for each run a bit 1, two bits that choose a size, the length less 1, the value.
    """
    flat = region.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
    parts = [f"{flat.size * CHANNELS:032b}", f"{VALUE_BITS - 1:05b}", *(f"{bits - 1:04b}" for bits in RUN_BITS)]
    longest = 1 << RUN_BITS[-1]
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        value = f"{OPAQUE if flat[begin] else 0:08b}"
        left = (end - begin) * CHANNELS
        while left:
            length = min(left, longest)
            choice = next(number for number, bits in enumerate(RUN_BITS) if length <= 1 << bits)
            parts.append(f"1{choice:02b}{length - 1:0{RUN_BITS[choice]}b}{value}")
            left -= length
    text = "".join(parts)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
