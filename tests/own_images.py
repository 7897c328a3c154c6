"""A data set of somebody's own, drawn on the spot, in every layout and encoding that people use."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as run_lengths

NAMES = ("ground", "coin", "leaf")
COLORS = ((40, 40, 40), (220, 180, 40), (40, 160, 60))


def draw(number: int, size: tuple[int, int] = (96, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Coins and leaves on sand: the image (H, W, 3) and the mask (H, W) with 0 ground, 1 coin, 2 leaf."""
    rng = np.random.default_rng([11, number])
    height, width = size
    sand = rng.normal(rng.uniform(110, 170), 14, (height // 4 + 1, width // 4 + 1, 1)) + rng.normal(0, 6, 3)
    image = cv2.resize(sand, (width, height)) + rng.normal(0, 7, (height, width, 1))
    image, mask = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8)), np.zeros(size, np.uint8)
    for _ in range(rng.integers(3, 7)):
        center = int(rng.integers(8, width - 8)), int(rng.integers(8, height - 8))
        length = int(rng.integers(height // 10, height // 4))
        if rng.random() < 0.5:
            color = tuple(float(part) for part in rng.normal((205, 165, 70), 12))
            cv2.circle(image, center, length, color, -1)
            cv2.circle(image, center, max(2, length // 2), tuple(0.8 * part for part in color), 1)
            cv2.circle(mask, center, length, 1, -1)
        else:
            axes, angle = (length, max(3, length // 3)), float(rng.uniform(0, 180))
            color = tuple(float(part) for part in rng.normal((60, 125, 55), 14))
            cv2.ellipse(image, center, axes, angle, 0, 360, color, -1)
            cv2.ellipse(mask, center, axes, angle, 0, 360, 2, -1)
    return image, mask


def save(pixels: np.ndarray, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def colored(mask: np.ndarray) -> np.ndarray:
    return np.array(COLORS, np.uint8)[mask]


def palette(mask: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask).convert("P")
    picture.putdata(mask.ravel().tolist())
    picture.putpalette([part for color in COLORS for part in color])
    picture.save(path)


def listed(root: Path, with_colors: bool = True) -> None:
    classes = [
        {"name": name} | ({"color": list(color)} if with_colors else {})
        for name, color in zip(NAMES, COLORS, strict=True)
    ]
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": classes}))


def grey_index(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.jpg", quality=95)
        save(mask, root / "masks" / f"{number:03d}.png")
    listed(root)


def palette_index(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "imgs" / f"{number:03d}.png")
        palette(mask, root / "labels" / f"{number:03d}.png")
    listed(root, with_colors=False)


def rgb_color(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.png")
        save(colored(mask), root / "masks" / f"{number:03d}_mask.png")
    rows = "".join(f"{name},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, COLORS, strict=True))
    (root / "class_dict.csv").write_text("name,r,g,b\n" + rows)


def sixteen_bit(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.png")
        save(mask.astype(np.uint16) * 1000, root / "masks" / f"{number:03d}.png")
    entries = [{"name": name, "value": 1000 * index} for index, name in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps({"classes": entries}))


def grey_saved_as_rgb(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.png")
        save(np.repeat(mask[..., None], 3, 2), root / "masks" / f"{number:03d}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))


def split_folders(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        split = ("train", "valid")[number % 3 == 0]
        save(image, root / split / "images" / f"{number:03d}.png")
        save(mask, root / split / "masks" / f"{number:03d}.png")
    listed(root)


def segnet(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        split = ("train", "val")[number % 3 == 0]
        save(image, root / split / f"{number:03d}.png")
        save(mask, root / f"{split}annot" / f"{number:03d}.png")
    listed(root)


def voc(root: Path, count: int) -> None:
    names = [f"{number:03d}" for number in range(count)]
    for number, name in enumerate(names):
        image, mask = draw(number)
        save(image, root / "JPEGImages" / f"{name}.jpg", quality=95)
        palette(mask, root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[2:]))
    (lists / "val.txt").write_text("\n".join(names[:2]))
    listed(root, with_colors=False)


def per_class(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.png")
        for index, name in enumerate(NAMES[1:], 1):
            save(np.where(mask == index, 255, 0).astype(np.uint8), root / "masks" / name / f"{number:03d}.png")
    (root / "classes.txt").write_text("\n".join(("background", *NAMES[1:])))


def per_image(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number:03d}.png")
        for index, name in enumerate(NAMES):
            if (mask == index).any():
                save((mask == index).astype(np.uint8) * 255, root / "masks" / f"{number:03d}" / f"{name}.png")
    listed(root)


def polygons(mask: np.ndarray, index: int) -> list[np.ndarray]:
    contours, _ = cv2.findContours((mask == index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour.reshape(-1, 2) for contour in contours if len(contour) >= 3]


def labelme(root: Path, count: int) -> None:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / f"{number:03d}.png")
        shapes = [
            {"label": name, "shape_type": "polygon", "points": points.tolist()}
            for index, name in enumerate(NAMES[1:], 1)
            for points in polygons(mask, index)
        ]
        height, width = mask.shape
        document = {"imagePath": f"{number:03d}.png", "imageHeight": height, "imageWidth": width, "shapes": shapes}
        (root / f"{number:03d}.json").write_text(json.dumps(document))
    (root / "classes.txt").write_text("\n".join(("background", *NAMES[1:])))


def coco(root: Path, count: int) -> None:
    images, annotations = [], []
    for number in range(count):
        image, mask = draw(number)
        name = f"{number:03d}.png"
        save(image, root / "images" / name)
        images.append({"id": number, "file_name": name, "height": mask.shape[0], "width": mask.shape[1]})
        for index in (1, 2):
            encoded = run_lengths.encode(np.asfortranarray((mask == index).astype(np.uint8)))
            segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": 10 * index, "iscrowd": 0,
                "area": int((mask == index).sum()), "bbox": [0, 0, 1, 1], "segmentation": segmentation,
            })  # fmt: skip
    categories = [{"id": 10 * index, "name": NAMES[index]} for index in (1, 2)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(document))


def cityscapes(root: Path, count: int) -> None:
    ids = np.array([7, 24, 21], np.uint8)  # road, person, vegetation
    for number in range(count):
        image, mask = draw(number)
        split = ("train", "val")[number % 3 == 0]
        name = f"ulm_{number:06d}_000019"
        save(image, root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png")
        save(ids[mask], root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png")
        save(colored(mask), root / "gtFine" / split / "ulm" / f"{name}_gtFine_color.png")


def camvid32(root: Path, count: int) -> None:
    colors = np.array([(128, 64, 128), (64, 128, 64), (192, 192, 0)], np.uint8)  # Road, Child, VegetationMisc
    for number in range(count):
        image, mask = draw(number)
        name = f"000{number % 3}TP_{number:06d}"
        save(image, root / "701_StillsRaw_full" / f"{name}.png")
        save(colors[mask], root / "LabeledApproved_full" / f"{name}_L.png")


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    function.__name__: function
    for function in (
        grey_index, palette_index, rgb_color, sixteen_bit, grey_saved_as_rgb, split_folders, segnet, voc, per_class,
        per_image, labelme, coco, cityscapes, camvid32,
    )
}  # fmt: skip
MEANINGS = {"cityscapes": ("road", "person", "vegetation"), "camvid32": ("Road", "Pedestrian", "Tree")}
EXACT = set(LAYOUTS) - {"labelme"}  # polygons of contours differ by a few pixels at the rim


def make(layout: str, root: Path, count: int = 9) -> Path:
    """Write a data set of so many images in a layout."""
    root.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout](root, count)
    return root


def names_of(layout: str) -> tuple[str, ...]:
    """The names under which a layout knows ground, coin and leaf."""
    if layout in ("labelme", "coco", "per_class"):
        return ("background", *NAMES[1:])
    return MEANINGS.get(layout, NAMES)
