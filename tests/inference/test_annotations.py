import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tiramisu.data.streets import Streets, draw_scene
from tiramisu.inference.annotations import (
    Labelled,
    encode_segments,
    labelme_document,
    panoptic_picture,
    write_coco,
    write_panoptic,
)

LABELS = Streets.labels
MASKS = [np.minimum(draw_scene(2, number, 60, 80)[1], 10) for number in range(3)]
MASKS.append(np.random.default_rng(0).integers(0, 11, (23, 31)).astype(np.uint8))  # every pixel its own region


def labelled() -> list[Labelled]:
    return [Labelled(f"{n}.jpg", f"{n}", *mask.shape, encode_segments(mask, LABELS)) for n, mask in enumerate(MASKS)]


def test_coco_files_hold_the_masks(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json", labelled, LABELS)
    coco = COCO(tmp_path / "coco.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(LABELS.names)
    for image, mask in zip(coco.loadImgs(coco.getImgIds()), MASKS, strict=True):
        found = np.full(mask.shape, 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            region = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == region.sum()
            found[region] = annotation["category_id"] - 1
        np.testing.assert_array_equal(found, mask)


def test_panoptic_files_hold_the_masks(tmp_path: Path) -> None:
    write_panoptic(tmp_path / "panoptic.json", labelled, LABELS)
    written = json.loads((tmp_path / "panoptic.json").read_text())
    for annotation, mask in zip(written["annotations"], MASKS, strict=True):
        picture = panoptic_picture(mask, LABELS).astype(int)
        ids = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert areas == {int(value): int((ids == value).sum()) for value in np.unique(ids)}


@pytest.mark.parametrize("number", range(len(MASKS)))
def test_labelme_polygons_drawn_in_order_give_the_mask(number: int) -> None:
    mask = MASKS[number]
    document = labelme_document(mask, LABELS, "../image.png")
    canvas = np.full(mask.shape, 255, np.uint8)
    for shape in document["shapes"]:
        assert len(shape["points"]) >= 3
        cv2.fillPoly(canvas, [np.array(shape["points"], np.int32)], LABELS.names.index(shape["label"]))
    assert np.mean(canvas == mask) > (0.99 if number < 3 else 0.9)
    assert document["imagePath"] == "../image.png" and document["imageHeight"] == mask.shape[0]
