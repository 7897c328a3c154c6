"""Measuring a network on a labelled set."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tiramisu.arrays import UInt8Array
from tiramisu.data.transforms import Item
from tiramisu.inference.segmenter import Options, Segmenter, TestTimeAugmentation
from tiramisu.metrics import Scores, confusion_matrix, scores_from_confusion

BatchNormMode = Literal["running", "batch"]


def use_batch_statistics(network: nn.Module) -> None:
    """Make every batch norm of an eval-mode network use the statistics of the batch at hand, for good.

    The paper measured its networks that way: its Theano code ran batch normalisation in training mode at test time.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What became of one image: its position in the source, its prediction, and its share of wrong pixels."""

    position: int
    prediction: UInt8Array
    error: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: the scores, the confusion matrix (C, C) behind them, and the worst images first."""

    scores: Scores
    confusion: Tensor
    worst: list[ImageResult]


def evaluate(
    segmenter: Segmenter,
    batches: Iterable[Item],
    tta: TestTimeAugmentation = "none",
    keep_worst: int = 0,
    progress: Callable[[Iterable[Item]], Iterator[Item] | Iterable[Item]] = iter,
) -> Evaluation:
    """Segment a labelled set and compare it with the truth, void excluded.

    Args:
        segmenter: what is measured.
        batches: uint8 images (B, channels, H, W), int64 masks (B, H, W) and positions (B,).
        tta: test-time augmentation.
        keep_worst: how many of the images with the largest share of wrong pixels to keep.
        progress: wraps the batches, for a progress bar.

    Raises:
        ConfigError: the engine cannot do the augmentation.
    """
    labels = segmenter.labels
    matrix = confusion_matrix(labels)
    worst: list[ImageResult] = []
    for images, masks, positions in progress(batches):
        found = segmenter.batch(list(images.permute(0, 2, 3, 1).numpy()), Options(tta=tta))
        predictions = torch.from_numpy(np.stack([each.mask for each in found])).long()
        matrix.update(predictions, masks)
        if keep_worst:
            scored = masks != labels.ignore_index
            wrong = ((predictions != masks) & scored).sum((1, 2)) / scored.sum((1, 2)).clamp(min=1)
            worst += [
                ImageResult(int(at), each.mask, float(share))
                for at, each, share in zip(positions, found, wrong, strict=True)
            ]
            worst = sorted(worst, key=lambda result: -result.error)[:keep_worst]
    confusion = matrix.compute()
    return Evaluation(scores_from_confusion(confusion), confusion, worst)
