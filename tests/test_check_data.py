import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.own_images import LAYOUTS, draw, grey_index, make, save
from tiramisu.check_data import main
from tiramisu.data import open_source
from tiramisu.data.folder import FolderOptions, open_folder
from tiramisu.doctor.survey import find_shift
from tiramisu.errors import ConfigError
from tiramisu.files import new_folder


def check(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Run the doctor; return its exit code and what it said, in one line."""
    code = 0
    try:
        main([str(root), f"--output={root.parent / 'report.html'}", "--measure=false", *options])
    except SystemExit as error:
        code = int(error.code or 0)
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_data_set_passes(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, words = check(make(layout, tmp_path / "data"), capsys)
    assert code == 0
    assert "ERROR" not in words
    assert "Training can start: python -m tiramisu.train --config configs/folder.yaml" in words


def mask(root: Path, number: int) -> Path:
    return root / "masks" / f"{number:03d}.png"


def rewrite(root: Path, change: Callable[[np.ndarray], np.ndarray], numbers: range = range(12)) -> None:
    for number in numbers:
        save(change(draw(number)[1]), mask(root, number))


def lonely(root: Path) -> None:
    mask(root, 0).unlink()
    (root / "images" / "001.jpg").unlink()


def broken_image(root: Path) -> None:
    (root / "images" / "002.jpg").write_bytes((root / "images" / "002.jpg").read_bytes()[:300])


def broken_mask(root: Path) -> None:
    mask(root, 2).write_bytes(b"\x89PNG nothing")


def other_size(root: Path) -> None:
    save(draw(3)[1][::2, ::2], mask(root, 3))


def other_shape(root: Path) -> None:
    save(draw(3)[1][:50], mask(root, 3))


def tiny(root: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        save(np.zeros((20, 40), np.uint8), root / folder / f"tiny.{suffix}")


def photos(root: Path) -> None:
    image = draw(3)[0]
    save(np.random.default_rng(0).integers(0, 255, image.shape, np.uint8), mask(root, 3))


def from_one(root: Path) -> None:
    rewrite(root, lambda values: values + 1)


def smoothed(root: Path) -> None:
    def smooth(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values * 100, (5, 5), 0)

    (root / "classes.yaml").write_text(
        "- {name: ground, value: 0}\n- {name: coin, value: 100}\n- {name: leaf, value: 200}"
    )
    rewrite(root, smooth)


def absent(root: Path) -> None:
    rewrite(root, lambda values: np.where(values == 2, 0, values).astype(np.uint8))


def only_void(root: Path) -> None:
    save(np.full((96, 128), 255, np.uint8), mask(root, 4))


def one_class(root: Path) -> None:
    save(np.zeros((96, 128), np.uint8), mask(root, 4))


def shifted(root: Path) -> None:
    rewrite(root, lambda values: np.roll(values, (4, 6), (0, 1)))


def leaked(root: Path) -> None:
    for number in range(12):
        image, values = draw(number // 2)
        save(image, root / "images" / f"{number:03d}.jpg", quality=90 - number % 2)
        save(values, mask(root, number))


def lying_photos(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(3):
        image, values = draw(number)
        save(np.rot90(image), root / "images" / f"{number:03d}.jpg", exif=exif)
        save(np.ascontiguousarray(np.rot90(values)), mask(root, number))


def photos_upside_down(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    save(draw(0)[0][::-1, ::-1].copy(), root / "images" / "000.jpg", exif=exif)


def nothing_to_train_on(root: Path) -> None:
    (root / "train.txt").write_text("# nobody\n")
    (root / "val.txt").write_text("000\n")


DEFECTS: dict[Callable[[Path], None], tuple[int, tuple[str, ...]]] = {
    lonely: (0, ("WARNING: images without masks 1 image without mask is not used: images/000.jpg. Add",
                 "masks without images 1 mask without image is not used: masks/001.png")),
    broken_image: (1, ("ERROR: unreadable images 1 image cannot be used", "002.jpg", "replace it or remove it")),
    broken_mask: (1, ("ERROR: unreadable masks 1 mask cannot be used", "002.png cannot be read")),
    other_size: (1, ("ERROR: sizes differ", "masks/003.png is 48 x 64, images/003.jpg is 96 x 128; --fix enlarges",)),
    other_shape: (1, ("ERROR: sizes differ", "masks/003.png is 50 x 128", "make them again from the right images")),
    tiny: (1, ("ERROR: images too small", "less than 32 pixels", "NOTE: several sizes Images have 2 sizes")),
    photos: (1, ("ERROR: masks of different kinds 1 mask has a colour per class (mode RGB), the others",)),
    from_one: (1, ("ERROR: unknown values", "the value 3, which means no class", "if classes count from 1")),
    smoothed: (1, ("ERROR: unknown values", "resizing with smoothing; export the masks again as PNG")),
    absent: (0, ("WARNING: classes absent in train No train image has leaf: they cannot be learned",)),
    only_void: (0, ("WARNING: masks of void only 1 mask has no class anywhere: masks/004.png",)),
    one_class: (0, ("WARNING: masks of one class only 1 mask consists of a single class: masks/004.png",)),
    shifted: (0, ("WARNING: masks are shifted", "pixels below and 6 pixels right of where they should")),
    leaked: (0, ("WARNING: val images that are also in train", "look like one of train", "--data.folder.groups")),
    lying_photos: (0, ("NOTE: photos turned by EXIF 3 masks fit the photo as it is stored",)),
    photos_upside_down: (0, ("WARNING: photos turned by EXIF, masks perhaps not 1 photo is turned",)),
    nothing_to_train_on: (1, ("ERROR: nothing to train on",)),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda function: function.__name__)
def test_every_defect_is_named_with_its_remedy(
    defect: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make("grey_index", tmp_path / "data", 12)
    defect(root)
    code, said = check(root, capsys)
    expected_code, words = DEFECTS[defect]
    for phrase in words:
        assert phrase in said
    assert code == expected_code
    assert ("to mend before training" in said) == bool(expected_code)


def test_classes_that_cannot_be_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for number in range(3):
        image, values = draw(number)
        save(image, root / "images" / f"{number}.png")
        save(values * 100, root / "masks" / f"{number}.png")
    code, said = check(root, capsys)
    assert code == 1
    assert "have the values 0, 100, 200; say which classes they are in classes.yaml" in said
    for number in range(3):
        save(cv2.applyColorMap(draw(number)[0][..., 0], cv2.COLORMAP_JET), root / "masks" / f"{number}.png")
    (root / "masks").touch()
    code, said = check(root, capsys)
    assert code == 1
    assert "more than 64 colours, as JPEG files or photos have" in said


def test_the_corrected_copy_is_sound_and_the_original_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make("grey_index", tmp_path / "data", 12)
    for defect in (lying_photos, broken_image, other_size):
        defect(root)
    save(np.where(draw(5)[1] == 2, 7, draw(5)[1]).astype(np.uint8), mask(root, 5))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    code, said = check(root, capsys, f"--fix={tmp_path / 'fixed'}")
    assert code == 1
    assert "11 images, 1 left out; see changes.csv there" in said
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    code, said = check(tmp_path / "fixed", capsys)
    assert code == 0
    assert "Classes: ground, coin, leaf" in said
    changes = (tmp_path / "fixed" / "changes.csv").read_text()
    for phrase in ("mask resized", "image turned upright, mask turned upright", "unknown values made void", "left out"):
        assert phrase in changes
    names = {}
    for split in ("train", "val"):
        source = open_source("folder", tmp_path / "fixed", split)
        names |= {Path(name).stem: (image, values) for image, values, name in (source[i] for i in range(len(source)))}
    np.testing.assert_array_equal(names["000"][1], draw(0)[1])
    assert set(np.unique(names["005"][1])) <= {0, 1, 255}
    original = open_folder(root, FolderOptions()).splits
    copied = open_folder(tmp_path / "fixed", FolderOptions()).splits
    assert {Path(pair.image).stem for pair in copied["val"]} <= {Path(pair.image).stem for pair in original["val"]}


@pytest.mark.parametrize(
    ("target", "words"),
    [("data/fixed", "lies in"), ("data", "must be a new or empty folder"), ("file", "must be a new")],
)
def test_the_copy_goes_nowhere_else(
    target: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make("grey_index", tmp_path / "data", 3)
    (tmp_path / "file").touch()
    code, said = check(root, capsys, f"--fix={tmp_path / target}")
    assert code == 1
    assert words in said


def test_the_report_is_a_page_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make("rgb_color", tmp_path / "<b>data", 12)
    shutil.copy(root / "masks" / "001_mask.png", root / "masks" / "000_mask.png")
    check(root, capsys)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;data" in page
    assert "<b>data" not in page
    assert page.count("<figure>") >= 9
    assert all(f"{name}</td>" in page for name in ("ground", "coin", "leaf"))
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize("shift", [(0, 0), (5, 0), (0, -7), (-4, 3)])
def test_shifts_are_measured_in_pixels(shift: tuple[int, int]) -> None:
    found = []
    for number in range(8):
        image, values = draw(number, (200, 300))
        found.append(find_shift(image, np.roll(values, shift, (0, 1)))[0])
    assert np.median(found, axis=0) == pytest.approx(shift, abs=1)


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = check(tmp_path / "nowhere", capsys)
    assert code == 1
    assert said.startswith("tiramisu.check_data: error: there is no folder")


@pytest.mark.slow
def test_crop_and_batch_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    root.mkdir()
    grey_index(root, 6)
    main([str(root), f"--output={tmp_path / 'report.html'}"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--data.crop_size 96 --data.batch_size 4" in said
    assert "MiB that are free" in said


def test_a_copy_that_is_killed_midway_does_not_appear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of a copy would look like a data set of its own."""
    root = make("grey_index", tmp_path / "data", 60)
    command = [sys.executable, "-m", "tiramisu.check_data", str(root), f"--fix={tmp_path / 'fixed'}",
               "--measure=false", f"--output={tmp_path / 'report.html'}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    staging = tmp_path / ".fixed.tiramisu.tmp"
    deadline = time.monotonic() + 60
    while len(list(staging.rglob("*.png"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it must not have ended by itself"
    assert not (tmp_path / "fixed").exists()
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "fixed"), f"--output={tmp_path / 'other.html'}"])
    assert ended.value.code == 1 and "Training can start" not in capsys.readouterr().out
    code, said = check(root, capsys, f"--fix={tmp_path / 'fixed'}")
    assert code == 0 and "60 images" in said
    assert len(list((tmp_path / "fixed" / "images").rglob("*.jpg"))) == 60
    assert not staging.exists() and not list((tmp_path / "fixed").glob(".*"))


def test_two_copies_at_once_do_not_mix(tmp_path: Path) -> None:
    with new_folder(tmp_path / "fixed") as staging:
        (staging / "a").write_text("one")
        with pytest.raises(ConfigError, match="another process is writing"), new_folder(tmp_path / "fixed"):
            pass
    assert [file.name for file in (tmp_path / "fixed").iterdir()] == ["a"]


def test_the_report_overwrites_nobody_elses_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make("grey_index", tmp_path / "data")
    page = tmp_path / "notes.html"
    page.write_text("my notes")
    with pytest.raises(SystemExit):
        main([str(root), f"--output={page}", "--measure=false"])
    assert f"{page} already exists and was not written by tiramisu" in capsys.readouterr().err
    assert page.read_text() == "my notes"
    for _ in range(2):
        main([str(root), f"--output={tmp_path / 'page.html'}", "--measure=false"])


def test_spreadsheets_run_nothing_of_the_table_of_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make("grey_index", tmp_path / "data")
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (root / folder / f"000.{suffix}").rename(root / folder / f"=1+1.{suffix}")
    check(root, capsys, f"--fix={tmp_path / 'fixed'}")
    cells = re.split(r"[,\r\n]+", (tmp_path / "fixed" / "changes.csv").read_text())
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
