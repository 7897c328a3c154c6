import numpy as np
import pytest

from tiramisu.data import Streets
from tiramisu.data.streets import draw_scene


def test_scenes_follow_from_seed_and_number() -> None:
    first, again = draw_scene(3, 5, 120, 160), draw_scene(3, 5, 120, 160)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (draw_scene(4, 5, 120, 160), draw_scene(3, 6, 120, 160)):
        assert not np.array_equal(first[0], other[0])
        assert not np.array_equal(first[1], other[1])


def test_default_scene_has_camvids_size_and_types() -> None:
    image, mask, name = Streets("val")[0]
    assert image.shape == (360, 480, 3) and mask.shape == (360, 480)
    assert image.dtype == mask.dtype == np.uint8
    assert name


def test_every_class_and_void_appear_often() -> None:
    masks = [draw_scene(0, number, 120, 160)[1] for number in range(40)]
    present = np.mean([np.bincount(mask.ravel(), minlength=12) > 0 for mask in masks], axis=0)
    assert present.shape == (12,), "no value outside the classes and void"
    assert (present > 0.25).all()


def test_splits_share_no_scene() -> None:
    pictures = {split: {Streets(split, (48, 64))[i].image.tobytes() for i in range(20)} for split in Streets.splits}
    assert len(set.union(*pictures.values())) == 60


@pytest.mark.parametrize("size", [(32, 32), (61, 97)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    assert draw_scene(0, 0, *size)[1].shape == size


def test_colour_alone_does_not_give_the_classes_away() -> None:
    """A broken network must show: the best class per colour, learned on other scenes, must do badly."""
    counts = np.zeros((512, 12))
    for number in range(40):
        image, mask = draw_scene(0, number, 120, 160)
        np.add.at(counts, (_colour_bin(image), mask), 1)
    best = counts[:, :11].argmax(1)
    confusion = np.zeros((11, 11))
    for number in range(100, 120):
        image, mask = draw_scene(0, number, 120, 160)
        scored = mask < 11
        np.add.at(confusion, (mask[scored], best[_colour_bin(image)][scored]), 1)
    right = np.diag(confusion)
    iou = right / (confusion.sum(0) + confusion.sum(1) - right)
    assert iou.mean() < 0.3


def _colour_bin(image: np.ndarray) -> np.ndarray:
    bins = image.astype(int) // 32
    return bins[..., 0] * 64 + bins[..., 1] * 8 + bins[..., 2]
