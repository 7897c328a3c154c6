from itertools import chain
from pathlib import Path
from typing import ClassVar

import albumentations as A
import numpy as np
import pytest
import torch

from tiramisu.data import Sample, Streets
from tiramisu.data.loading import EpochSampler, build_loader
from tiramisu.data.transforms import SampleKey, SegmentationDataset, build_augmentation
from tiramisu.errors import ConfigError, DataError
from tiramisu.labels import LabelSet


class White:
    """All-white images of one class, so that padding is easy to tell."""

    labels: ClassVar[LabelSet] = LabelSet(("a", "b"), ((0, 0, 0), (1, 1, 1)), ignore_index=255)
    splits: ClassVar[tuple[str, ...]] = ("train",)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((64, 64, 3), 255, np.uint8), np.full((64, 64), 1, np.uint8), "white")


@pytest.mark.parametrize("augmentation", ["paper", "strong"])
def test_draws_follow_from_seed_epoch_and_index(augmentation: str) -> None:
    source = Streets("train", (96, 128))
    dataset = SegmentationDataset(source, augmentation, 64, seed=1)
    same = SegmentationDataset(source, augmentation, 64, seed=1)
    other = SegmentationDataset(source, augmentation, 64, seed=2)
    item = dataset[SampleKey(3, 5)]
    dataset[SampleKey(3, 6)]  # what was drawn before must not matter
    assert torch.equal(dataset[SampleKey(3, 5)].image, item.image)
    assert torch.equal(same[SampleKey(3, 5)].mask, item.mask)
    assert not torch.equal(dataset[SampleKey(4, 5)].image, item.image)
    assert not torch.equal(other[SampleKey(3, 5)].image, item.image)
    assert item.image.shape == (3, 64, 64) and item.image.dtype == torch.uint8
    assert item.mask.shape == (64, 64) and item.mask.dtype == torch.int64


class Gradients:
    """Images whose channels hold row and column: crops show where they lie and how they are scaled and mirrored."""

    labels = White.labels

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> Sample:
        rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
        return Sample(np.dstack([rows, columns, np.full_like(rows, 200)]), np.ones((200, 200), np.uint8), "gradients")


def test_augmentations_are_drawn_independently() -> None:
    dataset = SegmentationDataset(Gradients(), "strong", 64, seed=1, scale=(1.0, 1.6), balanced_crops=0.5)
    assert dataset.transform is not None
    dataset.transform.transforms = dataset.transform.transforms[:4]  # scale, padding, crop, flip; colours hide the rest
    drawn = []
    for position in range(len(dataset)):
        row, column, _ = dataset[SampleKey(0, position)].image.float()
        steps = column[0, -1] - column[0, 0]
        drawn.append((abs(float(steps)), float(row[0, 0]), float(column.min()), float(steps > 0)))
    correlations = np.corrcoef(np.array(drawn).T)
    # a larger scale leaves more room, so that its crops lie a little further to the lower right; hence no less than 0.3
    assert np.abs(correlations - np.eye(4)).max() < 0.3


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        dataset = SegmentationDataset(Streets("val", (64, 64)), "strong", 48, seed=1)
        loader = build_loader(dataset, 8, workers, shuffle=True, seed=1)
        seen = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            seen += [batch.image for batch in loader]
        return seen

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(alone, shared)


def test_padding_is_void_wherever_the_scene_was_made_smaller() -> None:
    dataset = SegmentationDataset(White(), "strong", 64, seed=0)
    padded = 0
    for epoch in range(20):
        image, mask, _ = dataset[SampleKey(epoch, 0)]
        values = set(mask.unique().tolist())
        assert values <= {1, 255}, "padding must never become class 0"
        padded += 255 in values
        assert (image.float().mean(0)[mask == 255] < 80).all(), "only padding is void"
    assert padded > 3


@pytest.mark.parametrize(("scale", "void"), [((0.5, 0.5), 0.75), ((1.5, 2.0), 0.0)])
def test_the_range_of_scales_can_be_chosen(scale: tuple[float, float], void: float) -> None:
    dataset = SegmentationDataset(White(), "strong", 64, seed=0, scale=scale)
    shares = [float((dataset[SampleKey(epoch, 0)].mask == 255).float().mean()) for epoch in range(4)]
    assert shares == pytest.approx([void] * 4)


class Speck:
    """A white scene of void and class 1, with a single pixel of class 0 in a corner."""

    labels = White.labels

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        mask = np.full((96, 128), 1, np.uint8)
        mask[:, :8], mask[-1, -1] = 255, 0
        return Sample(np.full((96, 128, 3), 255, np.uint8), mask, "speck")


@pytest.mark.parametrize("augmentation", ["paper", "strong"])
@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 10), (0.5, 15, 35), (1.0, 40, 70)])
def test_balanced_crops_show_rare_classes(augmentation: str, share: float, least: int, most: int) -> None:
    dataset = SegmentationDataset(Speck(), augmentation, 32, scale=(1.0, 1.0), balanced_crops=share)
    masks = [dataset[SampleKey(epoch, 0)].mask for epoch in range(100)]
    assert all(mask.shape == (32, 32) for mask in masks)
    assert least <= sum(bool((mask == 0).any()) for mask in masks) <= most


def test_balanced_crops_of_void_alone_lie_anywhere() -> None:
    class Void(White):
        def __getitem__(self, index: int) -> Sample:
            image, mask, name = super().__getitem__(index)
            return Sample(image, np.full_like(mask, 255), name)

    dataset = SegmentationDataset(Void(), "paper", 32, balanced_crops=1.0)
    assert (dataset[SampleKey(0, 0)].mask == 255).all()


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 90, 100)])
def test_occlusion_hides_part_of_images_and_keeps_masks(share: float, least: int, most: int) -> None:
    dataset = SegmentationDataset(White(), "strong", None, occlusion=share)
    hidden = 0
    for epoch in range(100):
        image, mask, _ = dataset[SampleKey(epoch, 0)]
        assert (mask == 1).all()
        colour = image.float().flatten(1).median(1).values[:, None, None]
        occluded = ((image - colour).abs() > 80).any(0).float().mean()  # noise is far below
        assert occluded < 0.5
        hidden += bool(occluded > 0.002)
    assert least <= hidden <= most


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.3, 1.6])
def test_masks_lie_on_their_images_at_every_scale(scale: float) -> None:
    """Nearest-neighbour scaling that rounds coordinates down puts masks up to half a pixel beside their images."""
    pipeline = build_augmentation("strong", 32, 255, scale=(scale, scale))
    assert pipeline is not None
    (rescale,) = [step for step in pipeline.transforms if isinstance(step, A.RandomScale)]
    offsets = []
    for column in range(40, 80):
        mask = np.zeros((64, 128), np.uint8)
        mask[:, column:] = 1
        moved = rescale(image=np.dstack([mask * np.uint8(255)] * 3), mask=mask)
        offsets.append(moved["image"][5, :, 0].sum() / 255 - moved["mask"][5].sum())
    assert abs(np.mean(offsets)) < 0.1


def test_images_and_masks_move_together() -> None:
    source = Streets("train", (96, 128))
    _, mask, _ = SegmentationDataset(source, "paper", 64, seed=0)[SampleKey(0, 0)]
    image_only = SegmentationDataset(source, "paper", 64, seed=0)[SampleKey(0, 0)].image.permute(1, 2, 0).numpy()
    found = any(
        np.array_equal(image[top : top + 64, left : left + 64], image_only)
        and np.array_equal(labels[top : top + 64, left : left + 64], mask.numpy())
        for image, labels in (
            (source[0].image, source[0].mask),
            (source[0].image[:, ::-1], source[0].mask[:, ::-1]),
        )
        for top in range(33)
        for left in range(65)
    )
    assert found, "the crop is a window of the scene or of its mirror image, the same for both"


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crop_size 100 is larger than the image white \(64 x 64\); use at most 64"):
        SegmentationDataset(White(), "strong", 100)[SampleKey(0, 0)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sampler_splits_an_epoch(world_size: int) -> None:
    def keys(shuffle: bool, epoch: int = 0) -> list[list[int]]:
        samplers = [EpochSampler(10, 5, shuffle, rank, world_size) for rank in range(world_size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
            assert len(list(sampler)) == len(sampler)
        return [[key.position for key in sampler] for sampler in samplers]

    assert sorted(chain(*keys(False))) == list(range(10)), "metrics count every sample once"
    training = keys(True)
    assert len({len(share) for share in training}) == 1, "processes step together"
    assert set(chain(*training)) == set(range(10))
    assert keys(True, 1) != training
    assert keys(True) == training


def test_an_error_in_a_worker_keeps_its_message(camvid_like: Path) -> None:
    from tiramisu.cli import one_line
    from tiramisu.data import CamVid

    (camvid_like / "train" / "0003.png").write_text("no image")
    loader = build_loader(SegmentationDataset(CamVid(camvid_like, "train")), 2, workers=1)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert one_line(caught.value).startswith(f"{camvid_like / 'train' / '0003.png'}: not an image")
