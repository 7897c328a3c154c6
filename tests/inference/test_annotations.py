"""Annotations for labelling tools, read back as these tools read them, and by our own folder reader."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rasterio import features

from tiramisu.data.folder import Folder, FolderOptions, open_folder
from tiramisu.data.streets import Streets, draw_scene
from tiramisu.inference.annotations import (
    Labelled,
    encode_regions,
    label_studio_config,
    labelme_document,
    pack_runs,
    panoptic_picture,
    write_coco,
    write_label_studio,
    write_panoptic,
)

LABELS = Streets.labels
MASKS = [np.minimum(draw_scene(2, number, 60, 80)[1], 10) for number in range(3)]
MASKS.append(np.random.default_rng(0).integers(0, 11, (23, 31)).astype(np.uint8))  # every pixel its own region
RING = np.zeros((20, 30), np.uint8)
RING[4:16, 5:25] = 3
RING[7:13, 8:22] = 5
RING[9:11, 10:20] = 0
MASKS += [RING, np.full((1, 7), 2, np.uint8), np.full((9, 1), 4, np.uint8)]


def real_masks(count: int = 6) -> list[np.ndarray]:
    root = os.environ.get("TIRAMISU_CAMVID")
    if root is None:
        pytest.skip("set TIRAMISU_CAMVID to the folder of the real CamVid images to run this test")
    files = sorted((Path(root) / "valannot").glob("*.png"))
    chosen = [np.asarray(Image.open(file)) for file in files[:: len(files) // count]]
    return [np.where(mask == 11, 3, mask).astype(np.uint8) for mask in chosen]  # predictions have no void


def labelled(masks: list[np.ndarray]) -> list[Labelled]:
    return [Labelled(f"{n}.png", f"{n}", *mask.shape, encode_regions(mask, 11)) for n, mask in enumerate(masks)]


def test_coco_files_hold_the_masks(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json", lambda: labelled(MASKS), LABELS)
    coco = COCO(tmp_path / "coco.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(LABELS.names)
    for image, mask in zip(coco.loadImgs(coco.getImgIds()), MASKS, strict=True):
        found = np.full(mask.shape, 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            region = coco.annToMask(annotation)
            assert annotation["area"] == region.sum() and annotation["iscrowd"] == 0
            assert cv2.connectedComponents(region, connectivity=8)[0] == 2, "one region and what is around it"
            rows, columns = np.nonzero(region)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == box
            found[region.astype(bool)] = annotation["category_id"] - 1
        np.testing.assert_array_equal(found, mask)


def test_there_is_one_annotation_a_connected_region() -> None:
    for mask in MASKS:
        regions = encode_regions(mask, 11)
        for index in range(11):
            expected = cv2.connectedComponents((mask == index).astype(np.uint8), connectivity=8)[0] - 1
            assert sum(found == index for found, _ in regions) == expected
    void = MASKS[0].copy()
    void[:10] = 255
    assert {index for index, _ in encode_regions(void, 11)} == set(np.unique(void[10:]))


@pytest.mark.parametrize("limit", ["MAX_RUNS", "MAX_REGIONS"])
def test_of_too_many_regions_each_class_is_one(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(f"tiramisu.inference.annotations.{limit}", 3)
    for mask in MASKS[:4]:
        regions = encode_regions(mask, 11)
        assert [index for index, _ in regions] == np.unique(mask).tolist()
        for index, counts in regions:
            found = coco_mask.decode({"size": list(mask.shape), "counts": counts})
            np.testing.assert_array_equal(found, mask == index)


def test_panoptic_files_hold_the_masks(tmp_path: Path) -> None:
    write_panoptic(tmp_path / "panoptic.json", lambda: labelled(MASKS), LABELS)
    written = json.loads((tmp_path / "panoptic.json").read_text())
    for annotation, mask in zip(written["annotations"], MASKS, strict=True):
        picture = panoptic_picture(mask, LABELS).astype(int)
        ids = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert areas == {int(value): int((ids == value).sum()) for value in np.unique(ids)}


def draw_labelme(document: dict, shape: tuple[int, int]) -> np.ndarray:
    """As LabelMe does: shape after shape, the pixels whose centres lie inside."""
    canvas = np.full(shape, 255, np.uint8)
    for each in document["shapes"]:
        ring = {"type": "Polygon", "coordinates": [[*each["points"], each["points"][0]]]}
        features.rasterize([(ring, LABELS.names.index(each["label"]))], out=canvas)
    return canvas


@pytest.mark.parametrize("number", range(len(MASKS)))
def test_labelme_polygons_without_tolerance_give_the_mask_back(number: int) -> None:
    mask = MASKS[number]
    document = labelme_document(mask, LABELS, "../image.png", tolerance=0)
    assert all(len(shape["points"]) >= 3 for shape in document["shapes"])
    np.testing.assert_array_equal(draw_labelme(document, mask.shape), mask)
    assert document["imagePath"] == "../image.png" and document["imageHeight"] == mask.shape[0]


def test_labelme_polygons_can_be_edited() -> None:
    """With the default tolerance: far fewer points, few other pixels, and no gap between neighbours."""
    masks = real_masks()
    points, corners, wrong, size = 0, 0, 0, 0
    for mask in masks:
        simple = labelme_document(mask, LABELS, "x.png")
        found = draw_labelme(simple, mask.shape)
        assert (found != 255).all(), "neighbours keep a common border"
        wrong, size = wrong + int((found != mask).sum()), size + mask.size
        points += sum(len(shape["points"]) for shape in simple["shapes"])
        exact = labelme_document(mask, LABELS, "x.png", tolerance=0)
        corners += sum(len(shape["points"]) for shape in exact["shapes"])
    assert wrong / size < 0.006, f"{100 * wrong / size:.2f} % of the pixels"
    assert points < 0.7 * corners, f"{points} points of {corners}"


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_our_own_reader_gives_the_masks_back(tmp_path: Path, kind: str) -> None:
    masks = real_masks()
    for number, mask in enumerate(masks):
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(tmp_path / f"{number}.png")
        if kind == "labelme":
            document = labelme_document(mask, LABELS, f"{number}.png", tolerance=0)
            (tmp_path / f"{number}.json").write_text(json.dumps(document))
    if kind == "coco":
        write_coco(tmp_path / "coco.json", lambda: labelled(masks), LABELS)
    (tmp_path / "classes.txt").write_text("\n".join(LABELS.names))
    index = open_folder(tmp_path, FolderOptions())
    assert index.listing.kind == kind
    found = {}
    for split in index.splits:
        source = Folder(index, split)
        found |= {sample.name: sample.mask for sample in (source[number] for number in range(len(source)))}
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(found[f"{number}.png"], mask)


def unpack_runs(data: bytes) -> np.ndarray:
    """The decoder of rle-pack, written down from its description."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    values = np.zeros(read(32), np.uint8)
    size, lengths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    done = 0
    while done < len(values):
        repeated = read(1)
        count = read(lengths[read(2)]) + 1
        for place in range(done, done + count) if not repeated else ():
            values[place] = read(size)
        if repeated:
            values[done : done + count] = read(size)
        done += count
    return values


def test_label_studio_tasks_hold_the_masks(tmp_path: Path) -> None:
    masks = [*MASKS, np.repeat(np.repeat(MASKS[0], 8, 0), 8, 1)]  # with runs that are longer than 16 bits tell
    masks.append(np.zeros((300, 300), np.uint8))
    write_label_studio(tmp_path / "tasks.json", lambda: labelled(masks), LABELS)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for number, (task, mask) in enumerate(zip(tasks, masks, strict=True)):
        assert task["data"] == {"image": f"{number}.png"}
        found = np.full(mask.shape, 255, np.uint8)
        for result in task["predictions"][0]["result"]:
            assert result["type"] == "brushlabels" and result["value"]["format"] == "rle"
            assert (result["original_height"], result["original_width"]) == mask.shape
            picture = unpack_runs(bytes(result["value"]["rle"])).reshape(*mask.shape, 4)
            assert (picture == picture[..., :1]).all()
            (name,) = result["value"]["brushlabels"]
            found[picture[..., 3] > 0] = LABELS.names.index(name)
        np.testing.assert_array_equal(found, mask)
    config = label_studio_config(LABELS)
    assert (
        '<BrushLabels name="label" toName="image">' in config and '<Label value="Sky" background="#808080"/>' in config
    )


def test_label_studios_own_encoder_writes_the_same() -> None:
    """The bytes that label_studio_converter.brush.mask2rle 0.0.59 gives for this mask, without its byte of padding."""
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    assert pack_runs(mask) == bytes.fromhex("00000060391bfe1f00b7ff6c02dffe1b00")
