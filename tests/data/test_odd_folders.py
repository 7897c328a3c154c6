"""Folders as people really have them, and as nobody should."""

import base64
import io
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.own_images import NAMES, coco, draw, labelme, listed, make, save
from tiramisu.data import open_source
from tiramisu.data.classes import read_classes
from tiramisu.data.folder import FolderOptions, open_folder
from tiramisu.data.splits import draw_splits
from tiramisu.errors import DataError


def write_masks(root: Path, change: Callable[[np.ndarray], np.ndarray], count: int = 4) -> Path:
    for number in range(count):
        image, mask = draw(number)
        save(image, root / "images" / f"{number}.png")
        save(change(mask), root / "masks" / f"{number}.png")
    return root


def first_mask(root: Path, options: FolderOptions | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mask of image 0 and the names of the classes."""
    for split in ("train", "val"):
        source = open_source("folder", root, split, folder=options)
        for position in range(len(source)):
            if not Path(source.pairs[position].image).stem.strip("0"):
                return source[position].mask, source.labels.names
    raise AssertionError("no image 0")


def binary(mask: np.ndarray) -> np.ndarray:
    return (mask > 0) * np.uint8(255)


def test_masks_that_are_edited_in_place_are_noticed(tmp_path: Path) -> None:
    root = write_masks(tmp_path, binary)
    assert open_folder(root, FolderOptions()).encoding == "binary"
    for file in (root / "masks").iterdir():
        os.utime(file, ns=(1, 1))
    write_masks(root, lambda mask: mask)
    assert open_folder(root, FolderOptions()).encoding == "index"


def test_lists_that_come_later_are_noticed(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    (root / "splits").mkdir()
    open_folder(root, FolderOptions())
    (root / "splits" / "train.txt").write_text("0\n1\n")
    (root / "splits" / "val.txt").write_text("2\n")
    assert {name: len(pairs) for name, pairs in open_folder(root, FolderOptions()).splits.items()} == {
        "train": 2, "val": 1,
    }  # fmt: skip


def test_the_same_option_in_another_folder_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_masks(tmp_path / "data", lambda mask: mask)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.txt").write_text(f"{name}1\n{name}2\n{name}3")
        monkeypatch.chdir(tmp_path / name)
        assert open_folder(root, FolderOptions(classes="c.txt")).classes.labels.names[0] == f"{name}1"


def test_an_image_does_not_get_the_mask_of_another(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            save(draw(number)[0], tmp_path / "images" / split / f"{number}.png")
            if (split, number) != ("val", 2):
                save(draw(number)[1], tmp_path / "masks" / split / f"{number}.png")
    save(draw(1)[0], tmp_path / "images" / "train" / "1.jpg")
    listing = open_folder(tmp_path, FolderOptions()).listing
    assert sorted(listing.lonely_images) == ["images/train/1.png", "images/val/2.png"]
    assert len({pair.mask for pair in listing.all_pairs}) == len(listing.all_pairs) == 5


def test_a_mask_named_exactly_goes_before_one_with_an_ending(tmp_path: Path) -> None:
    image, mask = draw(0)
    for name in ("a", "b", "c"):
        save(image, tmp_path / "images" / f"{name.upper()}.JPG")
        save(mask, tmp_path / "masks" / f"{name}.png")
    save(mask, tmp_path / "masks" / "A.png")
    save(mask, tmp_path / "masks" / "A_mask.png")
    pairs = {pair.image: pair.mask[0] for pair in open_folder(tmp_path, FolderOptions()).listing.all_pairs}
    assert pairs == {"images/A.JPG": "masks/A.png", "images/B.JPG": "masks/b.png", "images/C.JPG": "masks/c.png"}


@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("names", ["person", "background\nperson", ""])
def test_black_and_white_masks(names: str, colored: bool, tmp_path: Path) -> None:
    def change(mask: np.ndarray) -> np.ndarray:
        return np.repeat(binary(mask)[..., None], 3, 2) if colored else binary(mask)

    root = write_masks(tmp_path, change)
    if names:
        (root / "classes.txt").write_text(names)
    mask, found = first_mask(root)
    np.testing.assert_array_equal(mask, draw(0)[1] > 0)
    assert found == (("background", "person") if names else ("background", "foreground"))


def test_a_class_of_white_may_come_first(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: np.repeat(binary(mask)[..., None], 3, 2))
    (root / "classes.yaml").write_text("thing: [255, 255, 255]\nrest: [0, 0, 0]")
    np.testing.assert_array_equal(first_mask(root)[0], draw(0)[1] == 0)


@pytest.mark.parametrize(
    ("change", "classes", "words"),
    [
        (lambda mask: mask * 0, "only", "has the single class only"),
        (lambda mask: mask * 0 + 255, "", "have the value 255 only, which is void"),
        (lambda mask: (mask * 85 + np.arange(128) % 80).astype(np.uint8), "", "as JPEG files or smoothing make them"),
    ],
)
def test_masks_that_teach_nothing(change, classes: str, words: str, tmp_path: Path) -> None:
    root = write_masks(tmp_path, change)
    if classes:
        (root / "classes.txt").write_text(classes)
    with pytest.raises(DataError, match=words):
        open_folder(root, FolderOptions())


def test_one_colour_mask_among_indices_is_refused(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    listed(root, with_colors=False)
    save(draw(0)[0], root / "masks" / "0.png")
    with pytest.raises(DataError, match="is a colour image, but the others hold numbers"):
        first_mask(root)


def test_one_image_more_moves_one_image_at_most() -> None:
    images = [f"{number:03d}.png" for number in range(100)]
    before = set(draw_splits(images, 0.2, 0.0, None, 0)["val"])
    after = set(draw_splits([*images, "new.png"], 0.2, 0.0, None, 0)["val"])
    assert len(before - after) <= 1


def test_images_beside_the_folders_of_splits_are_left_out(tmp_path: Path) -> None:
    for split in ("train", "val", "more"):
        image, mask = draw(0)
        save(image, tmp_path / "images" / split / "0.png")
        save(mask, tmp_path / "masks" / split / "0.png")
    index = open_folder(tmp_path, FolderOptions())
    assert {name: len(pairs) for name, pairs in index.splits.items()} == {"train": 1, "val": 1}
    assert index.listing.outside == ["images/more/0.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8-sig"])
def test_lists_of_any_editor(encoding: str, tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    (root / "train.txt").write_text("# gr\u00fcn\r\n0\r\n1\r\n", encoding=encoding)
    (root / "val.txt").write_text("2\n", encoding=encoding)
    assert len(open_folder(root, FolderOptions()).splits["train"]) == 2


@pytest.mark.parametrize(
    ("file", "text", "values"),
    [
        ("classes.txt", "0 ground\n1 coin\n2 leaf", [0, 1, 2]),
        ("classes.csv", "Pixel Value,Class\n5,ground\n6,coin\n7,leaf", [5, 6, 7]),
        ("classes.csv", "name;value\nground;5\ncoin;6\nleaf;7", [5, 6, 7]),
        ("classes.yaml", "{0: ground, 3: coin, 9: leaf}", [0, 3, 9]),
        ("classes.yaml", "{ground: 0, coin: 3, leaf: 9}", [0, 3, 9]),
    ],
)
def test_classes_with_values(file: str, text: str, values: list[int], tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    classes = read_classes(tmp_path / file)
    assert classes.labels.names == NAMES
    assert [classes.values[value] for value in values] == [0, 1, 2]
    assert classes.values[255] == 255


@pytest.mark.parametrize(
    "text",
    [
        "- {name: a, value: 99999999999}",
        "- {name: a, value: .inf}",
        "- yes\n- no",
        "[" * 3000,
        "- &a [x, x, x, x]\n"
        + "".join(f"- &{new} [*{old}, *{old}, *{old}, *{old}]\n" for old, new in pairwise("abcdefghijkl")),
    ],
)
def test_hostile_classes_are_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=r"classes\.yaml") as caught:
        read_classes(tmp_path / "classes.yaml")
    assert len(str(caught.value)) < 600


def edit_labelme(root: Path, shape: dict[str, object]) -> None:
    document = json.loads((root / "000.json").read_text())
    document["shapes"] = [shape]
    (root / "000.json").write_text(json.dumps(document))


def test_labelme_masks_are_drawn(tmp_path: Path) -> None:
    root = make("labelme", tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(np.full((10, 20), 255, np.uint8)).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    edit_labelme(root, {"label": "coin", "shape_type": "mask", "points": [[5, 7], [25, 17]], "mask": encoded})
    mask, names = first_mask(root)
    assert (mask == names.index("coin")).sum() == 200
    assert mask[7, 5] == mask[16, 24] == names.index("coin")


@pytest.mark.parametrize(
    "shape",
    [
        {"label": "coin", "shape_type": "circle", "points": [[0, 0], [1e300, 0]]},
        {"label": "coin", "shape_type": "polygon", "points": [[0, 0], [1e12, 0], [0, 1e12]]},
        {"label": "coin", "shape_type": "blob", "points": [[0, 0]]},
        {"label": "coin", "shape_type": "mask", "points": [[0, 0]], "mask": "AAAA"},
        {"label": "coin", "shape_type": "polygon", "points": [[0, float("nan")]] * 3},
    ],
)
def test_labelme_shapes_of_any_kind_do_no_harm(shape: dict[str, object], tmp_path: Path) -> None:
    labelme(tmp_path, 4)
    edit_labelme(tmp_path, shape)
    try:
        first_mask(tmp_path)
    except DataError as error:
        assert "000.json has a shape that cannot be drawn" in str(error)


def test_labels_that_differ_in_case_are_one(tmp_path: Path) -> None:
    root = make("labelme", tmp_path)
    (root / "classes.txt").unlink()
    edit_labelme(root, {"label": "Coin", "shape_type": "rectangle", "points": [[0, 0], [9, 9]]})
    assert len(open_folder(root, FolderOptions()).classes.labels) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.update(segmentation=[[0, 0, 1e8, 0, 1e8, 1e8]]),
        lambda item: item.update(segmentation=[[0, 0, 1, 1, 2]]),
        lambda item: item.update(segmentation=[[0, 0, float("nan"), 0, 5, 5]]),
        lambda item: item.update(segmentation={"size": [1, 1], "counts": "1"}),
        lambda item: item.update(area=None),
        lambda item: item.update(category_id=None),
        lambda item: item.pop("image_id"),
    ],
)
def test_coco_annotations_of_any_kind_do_no_harm(change, tmp_path: Path) -> None:
    coco(tmp_path, 4)
    file = tmp_path / "annotations" / "instances_default.json"
    document = json.loads(file.read_text())
    change(document["annotations"][0])
    file.write_text(json.dumps(document))
    try:
        first_mask(tmp_path)
    except DataError as error:
        assert "instances_default.json" in str(error)


def test_a_damaged_coco_file_is_named(tmp_path: Path) -> None:
    coco(tmp_path, 4)
    (tmp_path / "annotations" / "instances_default.json").write_text("{")
    with pytest.raises(DataError, match=r"instances_default\.json cannot be read as JSON"):
        open_folder(tmp_path, FolderOptions())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    (root / "masks" / "0.png").unlink()
    os.mkfifo(root / "masks" / "0.png")
    with pytest.raises(DataError, match="does not exist"):
        first_mask(root)


def test_a_link_back_up_is_not_followed_for_ever(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    (root / "images" / "again").symlink_to(root / "images")
    assert len(open_folder(root, FolderOptions()).listing.all_pairs) == 4


def test_what_is_remembered_is_what_was_found(tmp_path: Path) -> None:
    root = write_masks(tmp_path, lambda mask: mask)
    first, again = (open_folder(root, FolderOptions()).listing for _ in range(2))
    assert set(first.pairs) == set(again.pairs) == {""}
