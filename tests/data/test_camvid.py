from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import bomb
from tiramisu.data import CamVid, open_source
from tiramisu.data.streets import draw_scene
from tiramisu.errors import ConfigError, DataError


def test_pairs_images_with_masks(camvid_like: Path) -> None:
    source = CamVid(camvid_like, "train")
    assert len(source) == 6
    image, mask, name = source[2]
    assert image.shape == (48, 64, 3) and mask.shape == (48, 64) and name == "0002.png"
    assert image.dtype == mask.dtype == np.uint8


def test_palette_masks_are_read_as_indices(camvid_like: Path) -> None:
    expected = CamVid(camvid_like, "train")[0].mask
    mask = Image.fromarray(expected)
    mask.putpalette([5, 5, 5] * 256)
    mask.save(camvid_like / "trainannot" / "0000.png")
    assert np.array_equal(CamVid(camvid_like, "train")[0].mask, expected)


def test_missing_data_set_names_the_path_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*python -m tiramisu.download camvid --root .*nowhere"):
        CamVid(tmp_path / "nowhere")


def _drop_mask(root: Path) -> None:
    (root / "trainannot" / "0000.png").unlink()


def _resize_mask(root: Path) -> None:
    Image.new("L", (10, 10)).save(root / "trainannot" / "0000.png")


def _rgb_mask(root: Path) -> None:
    Image.new("RGB", (64, 48)).save(root / "trainannot" / "0000.png")


def _unknown_value(root: Path) -> None:
    Image.new("L", (64, 48), 37).save(root / "trainannot" / "0000.png")


def _truncated_image(root: Path) -> None:
    file = root / "train" / "0000.png"
    file.write_bytes(file.read_bytes()[:200])


def _text_image(root: Path) -> None:
    (root / "train" / "0000.png").write_text("not an image")


def _empty_image(root: Path) -> None:
    (root / "train" / "0000.png").write_bytes(b"")


def _bomb(root: Path) -> None:
    (root / "train" / "0000.png").write_bytes(bomb(20_000, 20_000))


def _empty_split(root: Path) -> None:
    for file in (root / "train").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_mask, r"0000\.png has no mask at .*trainannot"),
        (_resize_mask, r"trainannot.*0000\.png is 10 x 10, but its image is 48 x 64"),
        (_rgb_mask, r"trainannot.*0000\.png is of mode RGB"),
        (_unknown_value, r"trainannot.*0000\.png has the value 37"),
        (_truncated_image, r"train.*0000\.png: "),
        (_text_image, r"train.*0000\.png: not an image"),
        (_empty_image, r"train.*0000\.png: "),
        (_bomb, r"train.*0000\.png: 20000 x 20000 pixels are more"),
        (_empty_split, "holds no PNG images"),
    ],
)
def test_damage_is_named(camvid_like: Path, damage, message: str) -> None:
    damage(camvid_like)
    with pytest.raises(DataError, match=message):
        CamVid(camvid_like, "train")[0]


@pytest.mark.camvid
def test_real_camvid_has_the_published_class_shares(real_camvid: Path) -> None:
    source = CamVid(real_camvid, "train")
    assert len(source) == 367 and len(CamVid(real_camvid, "val")) == 101
    counts = sum(np.bincount(source[index].mask.ravel(), minlength=12) for index in range(0, 367, 6))
    shares = 100 * counts[:11] / counts[:11].sum()
    published = [17.5, 24.2, 1.02, 33.0, 4.7, 10.1, 1.2, 1.2, 6.1, 0.67, 0.30]
    np.testing.assert_allclose(shares, published, rtol=0.3)


def test_a_drive_is_held_out(tmp_path: Path) -> None:
    for drive, count in (("0001TP", 2), ("0006R0", 3)):
        for number in range(count):
            image, mask = draw_scene(7, number, 48, 64)
            for folder, pixels in (("train", image), ("trainannot", mask)):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / folder / f"{drive}_{number:06d}.png")
    train, val = (CamVid(tmp_path, split, "0006R0") for split in ("train", "val"))
    assert [sample.name[:6] for sample in train] == ["0001TP"] * 2
    assert [sample.name[:6] for sample in val] == ["0006R0"] * 3
    with pytest.raises(DataError, match=r"--data.holdout 9 is no drive of .*choose one of 0001TP, 0006R0"):
        CamVid(tmp_path, "train", "9")
    with pytest.raises(ConfigError, match="applies to camvid only"):
        open_source("streets", None, "train", holdout="0001TP")
