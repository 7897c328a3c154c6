"""Opening data sets by name, and loaders that give each process its share of an epoch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from tiramisu.data.camvid import CamVid
from tiramisu.data.folder import Folder, FolderOptions, open_folder
from tiramisu.data.source import Source
from tiramisu.data.streets import Streets
from tiramisu.data.transforms import MIN_SIZE, Item, SampleKey, SegmentationDataset, derive_seed
from tiramisu.errors import ConfigError, DataError
from tiramisu.labels import LabelSet

DatasetName = Literal["streets", "camvid", "folder"]
Split = Literal["train", "val", "test"]

MAX_SIDE = 8192  # of drawn scenes, in pixels

DATASETS: dict[str, type[CamVid] | type[Streets] | type[Folder]] = {
    "streets": Streets, "camvid": CamVid, "folder": Folder,
}  # fmt: skip


def open_source(
    dataset: DatasetName,
    root: Path | None,
    split: str,
    image_size: tuple[int, int] | None = None,
    folder: FolderOptions | None = None,
    holdout: str | None = None,
) -> Source:
    """Open a split of a data set.

    Args:
        dataset: name of the data set.
        root: its folder (`streets` needs none).
        split: name of the split.
        image_size: height and width of the scenes of `streets`.
        folder: how to read `folder`.
        holdout: drive of `camvid` to validate on.

    Raises:
        ConfigError: a needed option is missing or does not apply.
        DataError: the data set is missing or damaged.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"there is no data set {dataset}; choose one of {', '.join(DATASETS)}")
    if holdout is not None and dataset != "camvid":
        raise ConfigError(f"--data.holdout applies to camvid only; for {dataset} choose other splits")
    if dataset == "streets":
        if image_size is not None and min(image_size) < MIN_SIZE:
            raise ConfigError(f"--data.image_size {list(image_size)} is too small; use at least {MIN_SIZE}")
        if image_size is not None and max(image_size) > MAX_SIDE:
            raise ConfigError(f"--data.image_size {list(image_size)} is too large; use at most {MAX_SIDE}")
        if root is not None:
            raise ConfigError(f"streets are drawn and need no --data.root; to use {root}, add --data.dataset folder, "
                              f"or camvid for CamVid")  # fmt: skip
        return Streets(split, image_size or Streets.DEFAULT_SIZE)
    if image_size is not None:
        raise ConfigError(f"--data.image_size applies to streets only; {dataset} images keep their size")
    if dataset == "folder":
        return Folder(open_folder(folder_root(root), folder or FolderOptions()), split)
    return CamVid(root or default_root(dataset), split, holdout)


def read_labels(dataset: DatasetName, root: Path | None, folder: FolderOptions | None = None) -> LabelSet:
    """Return what the classes of a data set mean; for the arguments see `open_source`."""
    if dataset == "streets":
        return Streets.labels
    if dataset == "camvid":
        return CamVid.labels
    return open_folder(folder_root(root), folder or FolderOptions()).classes.labels


def has_test_split(dataset: DatasetName, root: Path | None, folder: FolderOptions | None = None) -> bool:
    """Tell whether a data set has a test split; for the arguments see `open_source`."""
    if dataset == "camvid":
        return ((root or default_root("camvid")) / "test").is_dir()
    return dataset == "streets" or "test" in open_folder(folder_root(root), folder or FolderOptions()).splits


def folder_root(root: Path | None) -> Path:
    """Return the root of the data set `folder`, which must be given.

    Raises:
        ConfigError: it is not.
    """
    if root is None:
        raise ConfigError("give the folder of your images and masks as --data.root")
    return root


def default_root(dataset: DatasetName) -> Path:
    """Return where a data set lies if the user does not say: where `tiramisu.download` puts it."""
    return Path("data") / dataset


class EpochSampler(Sampler[SampleKey]):
    """Yield every index once per epoch, together with the epoch, split evenly over the processes.

    Args:
        length: number of samples.
        seed: decides the order, together with the epoch.
        shuffle: a new order every epoch; without it the order is that of the source.
        rank: number of this process.
        world_size: number of processes. When shuffling, every process gets equally many samples (the first ones are
            repeated), because they step together; else none is repeated, because metrics count each sample once.
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = False, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.shuffle, self.rank, self.world_size = (
            length,
            seed,
            shuffle,
            rank,
            world_size,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch comes next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples of this process."""
        total = self.length
        if self.shuffle:
            total += -total % self.world_size
        return (total - self.rank + self.world_size - 1) // self.world_size

    def __iter__(self) -> Iterator[SampleKey]:
        """Yield the keys of this process for the current epoch."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng(derive_seed(self.seed, self.epoch)).permutation(self.length)
            order = np.concatenate([order, order[: -self.length % self.world_size]])
        for index in order[self.rank :: self.world_size]:
            yield SampleKey(self.epoch, int(index))


def default_workers(processes: int = 1) -> int:
    """Return how many loader processes suit the machine.

    On a GPU machine the loaders have the cores to themselves. On the CPU they share them with the network, which is
    the bottleneck by far: one process per training process is enough to hide decoding behind it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not torch.cuda.is_available():
        return 1 if cores > 1 else 0
    return max(1, min(8, (cores - 1) // processes))


def collate(items: list[Item]) -> Item:
    """Stack items into a batch.

    Raises:
        DataError: the images differ in size.
    """
    if len({item.mask.shape for item in items}) > 1:
        raise DataError("the images of a batch differ in size; use a batch size of 1 for whole images, or crops")
    return default_collate(items)


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # one thread per worker: they run beside each other and beside the network


def build_loader(
    dataset: SegmentationDataset,
    batch_size: int,
    workers: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Item]:
    """Build a loader of `Item` batches; an incomplete last batch is dropped when shuffling, if there is another."""
    sampler = EpochSampler(len(dataset), seed, shuffle, rank, world_size)
    workers = default_workers(world_size) if workers is None else workers
    if workers < 0:
        raise ConfigError(f"the number of workers must not be negative, got {workers}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=shuffle and len(sampler) >= batch_size,
        # Its own generator: the loader must not draw from the one that dropout uses.
        generator=torch.Generator().manual_seed(seed),
    )
