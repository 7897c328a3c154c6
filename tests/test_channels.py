"""Images that are not RGB: grey ones, RGBA, and TIFF of many channels, from training to masks."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import TrainArgs
from tests.own_images import draw, listed, save
from tiramisu.check_data import main as check_data
from tiramisu.data import open_source
from tiramisu.data.folder import FolderOptions
from tiramisu.errors import ImageError
from tiramisu.evaluate import main as evaluate
from tiramisu.export import main as export
from tiramisu.images import decode_image
from tiramisu.predict import main as predict
from tiramisu.train import main as train


def more_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Channels of an image, and darker ones of the same."""
    return np.stack([image[..., index % 3] // (1 + index // 3) for index in range(channels)], axis=2)


def write(root: Path, channels: int) -> Path:
    for number in range(6):
        image, mask = draw(number)
        pixels = more_channels(image, channels)
        file = root / "images" / f"{number}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        if channels == 1:
            Image.fromarray(pixels[..., 0]).save(file)
        else:
            tifffile.imwrite(file, pixels.astype(np.uint16) * 257, photometric="minisblack", planarconfig="contig")
        save(mask, root / "masks" / f"{number}.png")
    listed(root)
    return root


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_from_training_to_masks(
    channels: int, train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path / "data", channels)
    option = f"--data.folder.in_channels={channels}"
    source = open_source("folder", root, "train", folder=FolderOptions(in_channels=channels))
    number = int(Path(source[0].name).stem)
    np.testing.assert_array_equal(source[0].image, more_channels(draw(number)[0], channels))
    check_data([
        str(root), f"--data.folder.in_channels={channels}", "--measure=false", f"--output={tmp_path / 'report.html'}",
    ])  # fmt: skip
    train(train_args("--data.dataset=folder", option, root=root))
    model = tmp_path / "runs" / "tiny" / "version_0" / "model"
    evaluate([f"--weights={model}", f"--data.root={root}", option, f"--output={tmp_path / 'measured'}"])
    assert (tmp_path / "measured" / "worst.png").is_file()
    for engine in ("torch", "openvino"):
        output = tmp_path / engine
        predict([str(root / "images"), f"--weights={model}", f"--output={output}", "--overlay", f"--engine={engine}"])
        with Image.open(output / "0.png") as picture:
            assert picture.size == (128, 96)
        assert (output / "overlays" / "0.jpg").is_file()
    export([f"--weights={model}", "--format=onnx", f"--output={tmp_path / 'model.onnx'}"])
    assert "Exported" in capsys.readouterr().out


def test_other_channels_are_refused_with_their_number(tmp_path: Path) -> None:
    image = draw(0)[0]
    save(image, tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "five.tif", more_channels(image, 5), photometric="minisblack")
    tifffile.imwrite(tmp_path / "wide.tif", more_channels(image, 5).astype(np.int64), photometric="minisblack")
    (tmp_path / "broken.tif").write_bytes((tmp_path / "five.tif").read_bytes()[:100])
    for name, channels, words in (
        ("rgb.png", 4, r"rgb.png: it has 3 channels \(RGB\), not 4"),
        ("five.tif", 6, "five.tif: it has 5 channels, not 6"),
        ("wide.tif", 5, "its values are int64"),
        ("broken.tif", 5, "broken.tif: "),
    ):
        with pytest.raises(ImageError, match=words):
            decode_image(tmp_path / name, channels=channels)
    with pytest.raises(ImageError, match="more than the limit"):
        decode_image(tmp_path / "five.tif", 1000, channels=5)


def test_a_photo_read_as_grey(tmp_path: Path) -> None:
    image = draw(0)[0]
    save(image, tmp_path / "rgb.png")
    grey = decode_image(tmp_path / "rgb.png", channels=1).pixels
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(image).convert("L")))
