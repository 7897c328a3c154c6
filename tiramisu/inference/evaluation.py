"""Measuring a network on a labelled set, with test-time augmentation and either kind of batch-norm statistics."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tiramisu.data.transforms import Item
from tiramisu.labels import LabelSet
from tiramisu.metrics import Scores, confusion_matrix, scores_from_confusion
from tiramisu.models.network import MIN_SIZE

TestTimeAugmentation = Literal["none", "flip", "multiscale"]
BatchNormMode = Literal["running", "batch"]

SCALES: dict[TestTimeAugmentation, tuple[float, ...]] = {
    "none": (1.0,),
    "flip": (1.0,),
    "multiscale": (0.75, 1.0, 1.25),
}


def images_to_float(images: Tensor) -> Tensor:
    """Turn uint8 images into the networks' input: float32, 0 to 1, same shape."""
    return images.float().div_(255)


def predict_probabilities(network: nn.Module, images: Tensor, tta: TestTimeAugmentation = "none") -> Tensor:
    """Return class probabilities, averaged over the augmented views.

    Args:
        network: maps images to logits of the same size.
        images: float (B, C, H, W), 0 to 1.
        tta: `none`; `flip` adds the mirrored image; `multiscale` does so at 0.75, 1 and 1.25 times the size.

    Returns:
        float32 (B, classes, H, W), summing to 1 over the classes.
    """
    size = images.shape[-2:]
    total = None
    views = 0
    for scale in SCALES[tta]:
        scaled = images
        if scale != 1:
            target = [max(MIN_SIZE, round(side * scale)) for side in size]
            scaled = F.interpolate(images, size=target, mode="bilinear", align_corners=False)
        for flip in (False,) if tta == "none" else (False, True):
            probabilities = network(scaled.flip(-1) if flip else scaled).float().softmax(1)
            if flip:
                probabilities = probabilities.flip(-1)
            if scale != 1:
                probabilities = F.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)
            total = probabilities if total is None else total + probabilities
            views += 1
    assert total is not None
    return total / views


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
    prediction: NDArray[np.uint8]
    error: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`: the scores, the confusion matrix (C, C) behind them, and the worst images first."""

    scores: Scores
    confusion: Tensor
    worst: list[ImageResult]


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Item],
    labels: LabelSet,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    tta: TestTimeAugmentation = "none",
    keep_worst: int = 0,
    progress: Callable[[Iterable[Item]], Iterator[Item] | Iterable[Item]] = iter,
) -> Evaluation:
    """Segment a labelled set and compare it with the truth, void excluded.

    Args:
        network: in eval mode, on `device`.
        batches: uint8 images (B, 3, H, W), masks (B, H, W) and positions (B,).
        labels: the classes.
        device: where to compute.
        precision: float32, or the dtype of autocast.
        tta: see `predict_probabilities`.
        keep_worst: how many of the images with the largest share of wrong pixels to keep.
        progress: wraps the batches, for a progress bar.
    """
    matrix = confusion_matrix(labels).to(device)
    worst: list[ImageResult] = []
    for images, masks, positions in progress(batches):
        truth = masks.to(device)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            inputs = images_to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
            predictions = predict_probabilities(network, inputs, tta).argmax(1)
        matrix.update(predictions, truth)
        if keep_worst:
            scored = truth != labels.ignore_index
            wrong = ((predictions != truth) & scored).sum((1, 2)) / scored.sum((1, 2)).clamp(min=1)
            classes = predictions.byte().cpu().numpy()
            worst += [
                ImageResult(int(at), found, float(share))
                for at, found, share in zip(positions, classes, wrong, strict=True)
            ]
            worst = sorted(worst, key=lambda result: -result.error)[:keep_worst]
    confusion = matrix.compute().cpu()
    return Evaluation(scores_from_confusion(confusion), confusion, worst)
