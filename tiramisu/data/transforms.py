"""Augmentation with albumentations, and tensors whose every random draw follows from (seed, epoch, position)."""

import os
import random
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tiramisu.data.source import Source
from tiramisu.errors import ConfigError, DataError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import below asks the network for its version
import albumentations as A

MIN_SIZE = 32  # what networks take at least; again in models/network.py: neither package imports the other

Augmentation = Literal["none", "paper", "strong"]
SCALE = (0.5, 2.0)  # of `strong`


class SampleKey(NamedTuple):
    """Which sample, and in which epoch; samplers yield these, so that the epoch reaches every worker."""

    epoch: int
    position: int


class Item(NamedTuple):
    """One training or evaluation item.

    Attributes:
        image: uint8 (channels, H, W), RGB where there are three; the network's input is this divided by 255.
        mask: int64 (H, W), class indices or the ignore index.
        position: in the source.
    """

    image: Tensor
    mask: Tensor
    position: Tensor


class ClassBalancedCrop(A.RandomCrop):
    """Crop around a pixel of a class that is drawn evenly from those in the mask: rare ones are seen more often.

    As the sampling of rare classes in DAFormer (Hoyer et al., 2022), within an image. Expects the target `mask`.
    Albumentations' CropNonEmptyMaskIfExists draws pixels, most of which belong to common classes.

    Args:
        height: of the crop.
        width: of the crop.
        share: of the crops that are placed so; the others lie anywhere.
        ignore_index: of pixels that are no class.
    """

    def __init__(self, height: int, width: int, share: float, ignore_index: int) -> None:
        super().__init__(height, width)
        self.share, self.ignore_index = share, ignore_index

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw where the crop lies."""
        found = super().get_params_dependent_on_data(params, data)  # refuses images smaller than the crop
        if self.py_random.random() >= self.share:
            return found
        mask = data["mask"]
        counts = np.bincount(mask.ravel(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        if not counts.any():
            return found
        chosen = self.py_random.choice(np.flatnonzero(counts).tolist())
        position = np.flatnonzero(mask == chosen)[self.py_random.randrange(int(counts[chosen]))]
        row, column = divmod(int(position), mask.shape[1])
        top = min(max(row - self.py_random.randrange(self.height), 0), mask.shape[0] - self.height)
        left = min(max(column - self.py_random.randrange(self.width), 0), mask.shape[1] - self.width)
        return {**found, "crop_coords": (left, top, left + self.width, top + self.height)}


def build_augmentation(
    kind: Augmentation,
    crop_size: int | None,
    ignore_index: int,
    pad: bool = False,
    channels: int = 3,
    scale: tuple[float, float] = SCALE,
    balanced_crops: float = 0.0,
    occlusion: float = 0.0,
) -> A.Compose | None:
    """Build the augmentation pipeline.

    Args:
        kind: `none`; `paper`: random crop and horizontal flip; `strong`: random scale, crop, flip, and
            changes of colour, gamma, sharpness and noise.
        crop_size: height and width of the crop, or none for whole images.
        ignore_index: what masks are padded with; padding never becomes a class.
        pad: whether to pad images that are smaller than the crop; `strong` always does.
        channels: of the images; saturation and hue are of RGB only.
        scale: smallest and largest factor of the random scale of `strong`.
        balanced_crops: share of the crops that lie around a pixel of a class that is drawn evenly.
        occlusion: share of the images of `strong` in which patches of one colour hide what is there, while masks keep
            what was: it can only be told from what is around, as masking does in MIC (Hoyer et al., 2023).
    """
    if kind == "none":
        return None
    geometry: list[A.BasicTransform] = []
    side = crop_size or MIN_SIZE
    padding = A.PadIfNeeded(side, side, border_mode=0, fill=0, fill_mask=ignore_index)
    colour: list[A.BasicTransform] = []
    if kind == "strong":
        light: A.BasicTransform = A.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.4, p=0.8)
        if channels == 3:
            light = A.ColorJitter(
                brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.8
            )
        colour = [
            light,
            A.RandomGamma(gamma_limit=(70, 140), p=0.3),
            A.GaussianBlur(sigma_limit=(0.3, 1.2), p=0.15),
            A.GaussNoise(std_range=(0.01, 0.06), p=0.15),
        ]
        if occlusion:
            # of the height and the width: from what hides a pedestrian to what hides a shop window
            patches: A.BasicTransform = A.CoarseDropout(
                num_holes_range=(1, 6), hole_height_range=(0.06, 0.25), hole_width_range=(0.06, 0.25),
                fill="random_uniform", p=occlusion,
            )  # fmt: skip
            colour = [patches, *colour]
        if crop_size is not None:
            limits = (scale[0] - 1, scale[1] - 1)
            # the default, INTER_NEAREST, rounds coordinates down: masks would lie up to half a pixel beside the images
            geometry = [A.RandomScale(limits, mask_interpolation=cv2.INTER_NEAREST_EXACT, p=1.0), padding]
    if crop_size is not None:
        if pad and not geometry:
            geometry = [padding]
        geometry.append(ClassBalancedCrop(crop_size, crop_size, balanced_crops, ignore_index))
    return A.Compose([*geometry, A.HorizontalFlip(p=0.5), *colour])


class SegmentationDataset(Dataset[Item]):
    """A source with augmentation, as tensors.

    Args:
        source: the labelled images.
        augmentation: kind of augmentation, see `build_augmentation`.
        crop_size: height and width of the crops, or none for whole images.
        seed: with the epoch and the index it decides every random draw, whatever the number of workers.
        pad: whether images smaller than the crop are padded with void; else they are an error.
        channels: of the images.
        scale: range of the random scale of `strong`.
        balanced_crops: share of the crops that lie around a pixel of a class that is drawn evenly.
        occlusion: share of the images of `strong` with patches painted over.
    """

    def __init__(
        self,
        source: Source,
        augmentation: Augmentation = "none",
        crop_size: int | None = None,
        seed: int = 0,
        pad: bool = False,
        channels: int = 3,
        scale: tuple[float, float] = SCALE,
        balanced_crops: float = 0.0,
        occlusion: float = 0.0,
    ) -> None:
        self.source = source
        self.crop_size = crop_size if augmentation != "none" else None
        self.seed, self.pad = seed, pad
        self.transform = build_augmentation(
            augmentation, crop_size, source.labels.ignore_index, pad, channels, scale, balanced_crops, occlusion
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> Item:
        """Return one item.

        Raises:
            DataError: the files are unreadable or inconsistent, or the image is too small.
            ConfigError: the crop is larger than the image.
        """
        epoch, position = key
        image, mask, name = self.source[position]
        if min(mask.shape) < MIN_SIZE:
            raise DataError(f"image {name} is {mask.shape[0]} x {mask.shape[1]}; images must be at least {MIN_SIZE} "
                            f"pixels high and wide")  # fmt: skip
        if self.crop_size is not None and self.crop_size > min(mask.shape) and not self.pad:
            raise ConfigError(f"--data.crop_size {self.crop_size} is larger than the image {name} "
                              f"({mask.shape[0]} x {mask.shape[1]}); use at most {min(mask.shape)}")  # fmt: skip
        if self.transform is not None:
            seed = derive_seed(self.seed, epoch, position)
            # Not set_random_seed: it gives every transform a generator of its own with the same seed, so that all draw
            # the same numbers, and what is enlarged is never mirrored, say.
            self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
            augmented: dict[str, Any] = self.transform(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        image_tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return Item(image_tensor, torch.from_numpy(mask.astype(np.int64)), torch.tensor(position))


def derive_seed(*values: int) -> int:
    """Mix numbers into one 32-bit seed; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(values).generate_state(1)[0])
