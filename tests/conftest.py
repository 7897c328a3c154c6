"""Fixtures: small data on disk in CamVid's layout, drawn on the spot, and real CamVid where it is at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tiramisu.data.streets import draw_scene

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # results must not depend on the machine's GPUs


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the graphs that tests make out of the user's cache."""
    os.environ["TIRAMISU_CACHE"] = str(tmp_path_factory.mktemp("cache"))


TINY_NETWORK = (
    "--model.network.layers_per_block=1",
    "--model.network.num_poolings=2",
    "--model.network.growth_rate=4",
    "--model.network.stem_channels=8",
)


def write_camvid(root: Path, counts: dict[str, int], size: tuple[int, int] = (48, 64)) -> Path:
    """Write drawn scenes as a data set in SegNet's layout."""
    number = 0
    for split, count in counts.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for _ in range(count):
            image, mask = draw_scene(7, number, *size)
            Image.fromarray(image).save(root / split / f"{number:04d}.png")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{number:04d}.png")
            number += 1
    return root


@pytest.fixture
def camvid_like(tmp_path: Path) -> Path:
    """A small data set that one test may damage."""
    return write_camvid(tmp_path / "camvid", {"train": 6, "val": 3, "test": 3})


@pytest.fixture(scope="session")
def shared_camvid_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set that tests only read."""
    return write_camvid(tmp_path_factory.mktemp("data") / "camvid", {"train": 6, "val": 3, "test": 3})


@pytest.fixture
def real_camvid() -> Path:
    """The real CamVid images, where TIRAMISU_CAMVID names their folder."""
    root = os.environ.get("TIRAMISU_CAMVID")
    if root is None:
        pytest.skip("set TIRAMISU_CAMVID to the folder of the real CamVid images to run this test")
    return Path(root)


TrainArgs = Callable[..., list[str]]


@pytest.fixture
def train_args(tmp_path: Path, shared_camvid_like: Path) -> TrainArgs:
    """Arguments of a training run that takes a second or two."""

    def build(*more: str, root: Path | None = None) -> list[str]:
        config = tmp_path / "tiny.yaml"
        config.write_text("name: tiny\n")
        return [
            f"--config={config}",
            f"--runs={tmp_path / 'runs'}",
            "--data.dataset=camvid",
            f"--data.root={root or shared_camvid_like}",
            "--data.crop_size=32",
            "--data.batch_size=2",
            "--data.workers=0",
            "--trainer.max_epochs=2",
            "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false",
            *TINY_NETWORK,
            *more,
        ]

    return build


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, shared_camvid_like: Path) -> Path:
    """The folder of a finished run."""
    from tiramisu.train import main

    root = tmp_path_factory.mktemp("trained")
    config = root / "tiny.yaml"
    config.write_text("name: tiny\n")
    main([
        f"--config={config}", f"--runs={root / 'runs'}", "--data.dataset=camvid", f"--data.root={shared_camvid_like}",
        "--data.crop_size=32", "--data.batch_size=2", "--data.workers=0", "--trainer.max_epochs=3",
        "--trainer.precision=32-true", "--trainer.enable_progress_bar=false", *TINY_NETWORK,
    ])  # fmt: skip
    return root / "runs" / "tiny" / "version_0"
