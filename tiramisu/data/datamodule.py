"""The LightningDataModule over every data set."""

from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from tiramisu.data.folder import FolderOptions
from tiramisu.data.loading import DatasetName, Split, build_loader, has_test_split, open_source, read_labels
from tiramisu.data.source import Source
from tiramisu.data.transforms import MIN_SIZE, SCALE, Augmentation, Item, SampleKey, SegmentationDataset
from tiramisu.errors import ConfigError
from tiramisu.labels import LabelSet

MAX_WORKERS = 256  # processes


class SegmentationDataModule(L.LightningDataModule):
    """Batches of augmented training crops and whole evaluation images.

    Args:
        dataset: `streets`, the built-in drawn street scenes, `camvid`, or `folder`, your own images and masks.
        root: folder of the data set (default: data/<dataset>; `streets` needs none).
        folder: how `folder` is read.
        image_size: height and width of the scenes of `streets`, such as [240,320] (default [360,480]).
        holdout: drive of `camvid` to train without and to validate on: 0001TP, 0006R0 or 0016E5.
        augmentation: `paper`: random crop and flip; `strong`: also scale, colour, gamma, blur and noise; `none`.
        scale: smallest and largest factor of the random scale of `strong`.
        crop_size: height and width of the training crops; none trains on whole images (at their own scale), as does
            the augmentation `none`.
        balanced_crops: share of the crops that lie around a pixel of a class that is drawn evenly from those in the
            image, so that rare classes are seen more often; the others lie anywhere.
        occlusion: share of the training images of `strong` in which patches of one colour hide what is there, while
            masks keep what was, so that it must be told from what is around.
        batch_size: training crops per step and process.
        eval_batch_size: whole images per evaluation step.
        workers: loader processes per training process (default: what suits the machine).
        seed: decides order and augmentation.
    """

    def __init__(
        self,
        dataset: DatasetName = "streets",
        root: Path | None = None,
        folder: FolderOptions = FolderOptions(),  # noqa: B008  # so that --help shows its options
        image_size: tuple[int, int] | None = None,
        holdout: str | None = None,
        augmentation: Augmentation = "strong",
        scale: tuple[float, float] = SCALE,
        crop_size: int | None = 224,
        balanced_crops: float = 0.0,
        occlusion: float = 0.0,
        batch_size: int = 4,
        eval_batch_size: int = 1,
        workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ConfigError("--data.batch_size and --data.eval_batch_size must be at least 1")
        if workers is not None and workers < 0:
            raise ConfigError(f"--data.workers {workers} must not be negative")
        if workers is not None and workers > MAX_WORKERS:
            raise ConfigError(f"--data.workers {workers} is more than {MAX_WORKERS} processes; a few for each core do")
        if crop_size is not None and crop_size < MIN_SIZE:
            raise ConfigError(f"--data.crop_size {crop_size} is too small; networks here need at least {MIN_SIZE}")
        if not 0.1 <= scale[0] <= scale[1] <= 10:
            raise ConfigError(
                f"--data.scale [{scale[0]}, {scale[1]}] must be the smallest and the largest factor, from 0.1 to 10"
            )
        if not 0 <= balanced_crops <= 1:
            raise ConfigError(f"--data.balanced_crops {balanced_crops} must be from 0 to 1")
        if balanced_crops and (crop_size is None or augmentation == "none"):
            raise ConfigError("--data.balanced_crops needs crops: give --data.crop_size and --data.augmentation strong")
        if not 0 <= occlusion <= 1:
            raise ConfigError(f"--data.occlusion {occlusion} must be from 0 to 1")
        if occlusion and augmentation != "strong":
            raise ConfigError("--data.occlusion is part of --data.augmentation strong")
        self.dataset: DatasetName = dataset
        self.root, self.folder, self.image_size, self.holdout = root, folder, image_size, holdout
        self.augmentation: Augmentation = augmentation
        self.scale, self.balanced_crops, self.occlusion = scale, balanced_crops, occlusion
        self.crop_size, self.batch_size, self.eval_batch_size = crop_size, batch_size, eval_batch_size
        self.workers, self.seed = workers, seed
        self.train_set: SegmentationDataset
        self.val_set: SegmentationDataset
        self.test_set: SegmentationDataset

    @property
    def labels(self) -> LabelSet:
        """What the classes mean."""
        return read_labels(self.dataset, self.root, self.folder)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.folder.in_channels if self.dataset == "folder" else 3

    @property
    def test_split(self) -> Split:
        """The split that final weights are evaluated on: test if there is one, else val."""
        if self.holdout is not None:
            return "val"
        return "test" if has_test_split(self.dataset, self.root, self.folder) else "val"

    def setup(self, stage: str) -> None:
        """Open the splits that a stage needs.

        Raises:
            DataError: a split is missing, empty or damaged.
            ConfigError: the crop is larger than the training images.
        """
        if stage == "fit":
            self.train_set = SegmentationDataset(
                self._open("train"), self.augmentation, self.crop_size, self.seed,
                pad=self.dataset == "folder", channels=self.in_channels, scale=self.scale,
                balanced_crops=self.balanced_crops, occlusion=self.occlusion,
            )  # fmt: skip
            self.train_set[SampleKey(0, 0)]  # wrong options must be reported before the run begins
            self.val_set = SegmentationDataset(self._open("val"))
            self._open(self.test_split)  # not needed yet, but a damaged one must not be found days later
        if stage == "test":
            self.test_set = SegmentationDataset(self._open(self.test_split))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data: a run that has seen a drive cannot go on without it."""
        return {"holdout": self.holdout}

    def _open(self, split: str) -> Source:
        return open_source(self.dataset, self.root, split, self.image_size, self.folder, self.holdout)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return shuffled, augmented batches."""
        return self._loader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Item]:
        """Return whole validation images."""
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return whole images of the test split, or of val where there is none."""
        return self._loader(self.test_set, self.eval_batch_size)

    def _loader(self, dataset: SegmentationDataset, batch_size: int, shuffle: bool = False) -> DataLoader[Item]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return build_loader(dataset, batch_size, self.workers, shuffle, self.seed, rank, world_size)
