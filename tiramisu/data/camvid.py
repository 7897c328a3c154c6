"""CamVid (Brostow et al., 2009) in SegNet's version: 360 x 480 pixels, 11 classes."""

from pathlib import Path
from typing import Any, ClassVar

from tiramisu.data.source import Sample, read_image, read_mask
from tiramisu.errors import ConfigError, DataError
from tiramisu.labels import LabelSet

DOWNLOAD_COMMAND = "python -m tiramisu.download camvid --root {root}"


class CamVid:
    """CamVid as SegNet published it: ``train``, ``val`` and ``test``, with ``trainannot`` and so on beside them.

    Masks are index PNGs of mode L:

    0. Sky
    1. Building
    2. Pole
    3. Road
    4. Sidewalk
    5. Tree
    6. Sign
    7. Fence
    8. Car
    9. Pedestrian
    10. Bicyclist
    11. void: not trained on, not scored

    The images are licensed CC BY-NC 4.0 (non-commercial).

    Args:
        root: folder that holds the split folders.
        split: `train` (367 images), `val` (101) or `test` (233).
        holdout: a drive of the training images, which come from three: 0001TP (62), 0006R0 (101) and 0016E5 (204).
            `train` is then without it, and `val` is what was left out: how well a network does on another drive says
            more than val, seven seconds between training images.

    Raises:
        DataError: a folder or a mask is missing, or the split is empty.
    """

    # fmt: off
    labels: ClassVar[LabelSet] = LabelSet(
        names=(
            "Sky", "Building", "Pole", "Road", "Sidewalk", "Tree", "Sign", "Fence", "Car", "Pedestrian", "Bicyclist",
        ),
        palette=(
            (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
            (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
        ),
        ignore_index=11,
    )
    # fmt: on
    license: ClassVar[str] = "CC BY-NC 4.0: for non-commercial research use, weights trained on it included"
    whole_views: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, root: str | Path, split: str = "train", holdout: str | None = None) -> None:
        if incomplete_mark(Path(root)).exists():
            raise DataError(f"the download of CamVid into {root} is not complete; run it again: "
                            f"{DOWNLOAD_COMMAND.format(root=root)}")  # fmt: skip
        stands_for_val = holdout is not None and split == "val"
        files = "train" if stands_for_val else split
        images, masks = Path(root) / files, Path(root) / f"{files}annot"
        for folder in (images, masks):
            if not folder.is_dir():
                if Path(root).is_dir() and not (Path(root) / "train").is_dir() | (Path(root) / "trainannot").is_dir():
                    raise DataError(f"{root} is not CamVid: there is no {folder}; for images and masks of your own add "
                                    f"--data.dataset folder")  # fmt: skip
                command = DOWNLOAD_COMMAND.format(root=root)
                raise DataError(f"no CamVid at {folder}; give its folder as --data.root, or fetch it: {command}")
        self.images = sorted(images.glob("*.png"))
        if not self.images:
            raise DataError(f"{images} holds no PNG images; fetch them: {DOWNLOAD_COMMAND.format(root=root)}")
        if holdout is not None and files == "train":
            drives = sorted({image.name.partition("_")[0] for image in self.images})
            chosen = [image for image in self.images if image.name.startswith(f"{holdout}_") == stands_for_val]
            if not chosen or len(chosen) == len(self.images):
                raise DataError(f"--data.holdout {holdout} is no drive of {images}; choose one of {', '.join(drives)}")
            self.images = chosen
        self.masks = [masks / image.name for image in self.images]
        for image, mask in zip(self.images, self.masks, strict=True):
            if not mask.is_file():
                raise DataError(f"image {image} has no mask at {mask}; add the mask or remove the image")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return one image with its mask.

        Raises:
            DataError: a file is unreadable, or the two differ in size, or the mask has an unknown value.
        """
        image, mask = read_image(self.images[index]), read_mask(self.masks[index], self.labels)
        if image.shape[:2] != mask.shape:
            raise DataError(f"mask {self.masks[index]} is {mask.shape[0]} x {mask.shape[1]}, but its image is "
                            f"{image.shape[0]} x {image.shape[1]}")  # fmt: skip
        return Sample(image, mask, self.images[index].name)


def incomplete_mark(root: Path) -> Path:
    """Return the file that lies beside a root as long as its download is not complete."""
    whole = root.absolute()
    return whole.with_name(f".{whole.name}.incomplete")


def check_unseen(holdout: str | None, protocol: Any, weights: str) -> None:
    """Refuse to measure weights on a drive that they, or those that they started from, have been trained on.

    Args:
        holdout: the drive, or none.
        protocol: how the weights came about, as their config.json tells.
        weights: what to call them.

    Raises:
        ConfigError: they have seen the drive.
    """
    while holdout is not None and isinstance(protocol, dict):
        if protocol.get("dataset") == "camvid" and protocol.get("holdout") != holdout:
            raise ConfigError(f"--data.holdout {holdout}: {weights} have seen this drive; train some with the same "
                              f"--data.holdout, from the first training on")  # fmt: skip
        protocol = protocol.get("init")
