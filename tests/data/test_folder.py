import json
import re
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.own_images import COLORS, EXACT, LAYOUTS, NAMES, draw, make, names_of, palette, save
from tiramisu.data import open_source
from tiramisu.data.classes import read_classes, write_classes
from tiramisu.data.folder import FolderOptions, _read_index, open_folder
from tiramisu.data.splits import draw_splits
from tiramisu.errors import ConfigError, DataError


def read_all(root: Path, options: FolderOptions | None = None) -> dict[int, tuple[np.ndarray, np.ndarray, list[str]]]:
    """Every image and mask of all splits, by the number in its name."""
    options = options or FolderOptions()
    found = {}
    for split in open_folder(root, options).splits:
        source = open_source("folder", root, split, folder=options)
        for position in range(len(source)):
            image, mask, name = source[position]
            number = re.search(r"(\d+)(_000019_leftImg8bit)?$", Path(name).stem)[1]
            found[int(number)] = (image, mask, list(source.labels.names))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_images_and_masks(layout: str, tmp_path: Path) -> None:
    root = make(layout, tmp_path / "data")
    found = read_all(root)
    assert sorted(found) == list(range(9))
    for number, (image, mask, names) in found.items():
        expected_image, expected = draw(number)
        assert np.abs(image.astype(int) - expected_image).mean() < 5
        wanted = np.array([names.index(name) for name in names_of(layout)])[expected]
        assert (mask != wanted).mean() < (1e-9 if layout in EXACT else 0.05)
    index = open_folder(root, FolderOptions())
    assert set(index.splits) == {"train", "val"}
    assert not index.listing.lonely_images


@pytest.mark.parametrize("layout", ["grey_index", "coco"])
def test_a_second_start_reads_no_file(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(layout, tmp_path / "data")
    first = open_folder(root, FolderOptions())
    monkeypatch.setattr("tiramisu.data.folder.scan_folder", lambda *_: pytest.fail("it scanned again"))
    again = open_folder(root, FolderOptions())
    assert (again.splits, again.classes, again.encoding) == (first.splits, first.classes, first.encoding)


def test_a_new_image_or_other_classes_are_noticed(tmp_path: Path) -> None:
    root = make("grey_index", tmp_path / "data")
    assert len(open_folder(root, FolderOptions()).listing.all_pairs) == 9
    image, mask = draw(9)
    save(image, root / "images" / "009.png")
    save(mask, root / "masks" / "009.png")
    assert len(open_folder(root, FolderOptions()).listing.all_pairs) == 10
    (root / "classes.yaml").write_text("classes: [a, b, c]")
    assert open_folder(root, FolderOptions()).classes.labels.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("grey", ["class 0", "class 1", "class 2"]),
        ("palette", ["class 0", "class 1", "class 2"]),
        ("color", [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in sorted(COLORS)]),
        ("binary", ["background", "foreground"]),
    ],
)
def test_classes_are_inferred(kind: str, names: list[str], tmp_path: Path) -> None:
    for number in range(6):
        image, mask = draw(number)
        save(image, tmp_path / "images" / f"{number}.png")
        file = tmp_path / "masks" / f"{number}.png"
        if kind == "palette":
            palette(mask, file)
        else:
            pixels = {"grey": mask, "color": np.array(COLORS, np.uint8)[mask], "binary": (mask > 0) * np.uint8(255)}
            save(pixels[kind], file)
    index = open_folder(tmp_path, FolderOptions())
    assert list(index.classes.labels.names) == names
    assert index.inferred
    if kind == "palette":
        assert index.classes.labels.palette == COLORS
    _, mask, _ = read_all(tmp_path)[0]
    assert len(np.unique(mask)) == len(np.unique(draw(0)[1] > 0 if kind == "binary" else draw(0)[1]))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.yaml", "classes: [ground, void, coin, leaf]\nignore: 9"),
        ("classes.yaml", "- ground\n- name: void\n- coin\n- leaf"),
        ("classes.txt", "ground\nvoid\ncoin\nleaf  # green\n"),
        ("classes.txt", "1 2 3 ground\n0 0 0 void\n4 5 6 coin\n7 8 9 leaf"),
        ("classes.csv", "name,r,g,b\nground,1,2,3\nvoid,0,0,0\ncoin,4,5,6\nleaf,7,8,9"),
        ("classes.json", '{"ground": "#010203", "unlabelled": "#000000", "coin": [4, 5, 6], "leaf": [7, 8, 9]}'),
    ],
)
def test_files_of_classes(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    classes = read_classes(tmp_path / file)
    assert classes.labels.names == NAMES
    assert [classes.values[value] for value in range(4)] == [0, 255, 1, 2]
    write_classes(tmp_path / "again.yaml", classes.labels)
    assert read_classes(tmp_path / "again.yaml").labels == classes.labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: 3", "holds no list"),
        ("classes: []", "no classes"),
        ("[a, a]", "the class a is there twice"),
        ("- {name: a, color: [0, 0, 300]}", "is no colour"),
        ("- {name: a, color: [1, 1, 1]}\n- {name: b, color: [1, 1, 1]}", "means two classes"),
        ("- {name: a, colour: red}", "colour is not name, color"),
        ("a: {", "no list of classes"),
        ("a: &a [x, x]\nb: &b [*a, *a]", "is no colour"),
        ("- &a [x, x]\n- [*a, *a]", "class 0 is neither a name nor a mapping"),
        ("- {color: [1, 2, 3]}", "name"),
    ],
)
def test_damaged_files_of_classes_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=rf"classes\.yaml.*{words}"):
        read_classes(tmp_path / "classes.yaml")


def test_any_ignore_index(tmp_path: Path) -> None:
    for number in range(4):
        image, mask = draw(number)
        save(image, tmp_path / "images" / f"{number}.png")
        save(mask, tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.yaml").write_text("classes: [coin, leaf]\nignore: 0")
    _, mask, names = read_all(tmp_path)[0]
    assert names == ["coin", "leaf"]
    np.testing.assert_array_equal(mask, np.array([255, 0, 1])[draw(0)[1]])


def test_groups_stay_together_and_draws_are_the_same() -> None:
    images = [f"images/drive{number % 5}_{number:03d}.png" for number in range(50)]
    splits = draw_splits(images, 0.2, 0.2, r"drive\d", 0)
    groups = [{image[7:13] for image in names} for names in splits.values()]
    assert sum(map(len, groups)) == 5
    assert not set.intersection(*groups)
    assert splits == draw_splits(images[::-1], 0.2, 0.2, r"(drive\d)_", 0)
    assert splits != draw_splits(images, 0.2, 0.2, r"drive\d", 1)
    with pytest.raises(DataError, match="in 1 groups cannot be split"):
        draw_splits(images, 0.2, 0.0, "drive", 0)
    with pytest.raises(ConfigError, match="no regular expression"):
        draw_splits(images, 0.2, 0.0, "(", 0)
    with pytest.raises(ConfigError, match="nothing"):
        draw_splits(images, 0.6, 0.5, None, 0)


def test_lists_decide(tmp_path: Path) -> None:
    root = make("grey_index", tmp_path)
    (root / "train.txt").write_text("# ours\n000\nimages/001.jpg\n/data/old/002.jpg /data/old/002.png\n")
    (root / "val.txt").write_text("003.jpg\n")
    splits = open_folder(root, FolderOptions()).splits
    assert {split: [pair.image for pair in pairs] for split, pairs in splits.items()} == {
        "train": ["images/000.jpg", "images/001.jpg", "images/002.jpg"],
        "val": ["images/003.jpg"],
    }
    (root / "val.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"val\.txt, line 1: nobody: there is no such image"):
        open_folder(root, FolderOptions())


def test_a_mask_drawn_on_a_stored_photo_is_turned_with_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, seen upright
    for number in range(4):
        image, mask = draw(number)
        save(np.rot90(image), tmp_path / "images" / f"{number}.jpg", exif=exif, quality=95)
        save(np.ascontiguousarray(np.rot90(mask)), tmp_path / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for number, (image, mask, _) in read_all(tmp_path).items():
        np.testing.assert_array_equal(mask, draw(number)[1])
        assert np.abs(image.astype(int) - draw(number)[0]).mean() < 5


def _value(root: Path) -> None:
    save(np.full((96, 128), 7, np.uint8), root / "masks" / "000.png")


def _size(root: Path) -> None:
    save(np.zeros((96, 100), np.uint8), root / "masks" / "000.png")


def _text(root: Path) -> None:
    (root / "masks" / "000.png").write_text("no mask")


def _photo(root: Path) -> None:
    (root / "images" / "000.jpg").write_bytes(b"\xff\xd8nothing")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_value, r"000\.png has the value 7, which is no class.*check_data"),
        (_size, r"masks/000\.png is 96 x 100, but its image images/000\.jpg is 96 x 128"),
        (_text, r"000\.png cannot be read"),
        (_photo, r"000\.jpg: "),
    ],
)
def test_damage_is_named(damage, words: str, tmp_path: Path) -> None:
    root = make("grey_index", tmp_path)
    damage(root)
    with pytest.raises(DataError, match=words):
        read_all(root)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "it is empty"),
        (lambda root: save(draw(0)[0], root / "a.png"), "no images with masks .* it has a.png"),
        (lambda root: (save(draw(0)[0], root / "images" / "a.png"), save(draw(0)[1], root / "masks" / "b.png")),
         "none of the 1 images .* has a mask"),
        (lambda root: root.rmdir(), "there is no folder"),
    ],
)  # fmt: skip
def test_a_folder_without_pairs_is_told(prepare, words: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    prepare(root)
    with pytest.raises(DataError, match=words):
        open_folder(root, FolderOptions())


@pytest.mark.slow
def test_a_hundred_thousand_images_start_at_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image, mask = draw(0, (32, 32))
    for number in range(100_000):
        for kind, pixels in (("images", image), ("masks", mask)):
            file, first = (tmp_path / kind / f"{other:06d}.png" for other in (number, number // 1000 * 1000))
            if file == first:
                save(pixels, file)
            else:
                file.hardlink_to(first)
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(list(NAMES)))
    start = time.perf_counter()
    open_folder(tmp_path, FolderOptions())
    print(f"100,000 images: the first start takes {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    index = open_folder(tmp_path, FolderOptions())
    assert sum(map(len, index.splits.values())) == 100_000
    """The first scan looks at names only; the second one not even at those."""
    tracemalloc.start()
    _read_index.cache_clear()
    open_folder(tmp_path, FolderOptions())
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"100,000 images: the index takes {kept / 2**20:.0f} MiB")
    assert kept < 200 * 2**20
    print(f"100,000 images: the second one {time.perf_counter() - start:.1f} s")


def test_coco_polygons_crowds_and_names_in_other_folders(tmp_path: Path) -> None:
    image, _ = draw(0)
    for split in ("train", "val"):
        save(image, tmp_path / f"{split}2017" / "a.png")
        annotations = [
            {"id": 1, "image_id": 5, "category_id": 1, "area": 2500,
             "segmentation": [[10, 10, 60, 10, 60, 60, 10, 60]]},
            {"id": 2, "image_id": 5, "category_id": 1, "iscrowd": 1, "area": 4,
             "segmentation": {"size": [96, 128], "counts": [0, 2, 96 * 128 - 2]}},
        ]  # fmt: skip
        document = {
            "images": [{"id": 5, "file_name": "a.png"}], "annotations": annotations,
            "categories": [{"id": 1, "name": "coin"}],
        }  # fmt: skip
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    index = open_folder(tmp_path, FolderOptions())
    assert {split: [pair.image for pair in pairs] for split, pairs in index.splits.items()} == {
        "train": ["train2017/a.png"], "val": ["val2017/a.png"],
    }  # fmt: skip
    mask = open_source("folder", tmp_path, "val")[0].mask
    assert mask[30, 30] == 1
    assert mask[0, 0] == mask[1, 0] == 255
    assert mask[90, 100] == 0
