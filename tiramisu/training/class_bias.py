"""One constant per class on top of the logits of the final weights, fitted to the mIoU of training images.

Class weights and crops around rare classes make these a little too frequent, and a share changes logits by a constant
(Menon et al., 2021: post-hoc logit adjustment; measured in docs/recipe.md). It is added to the classifier's bias, so
that prediction costs nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tiramisu.data.transforms import Item
from tiramisu.labels import LabelSet
from tiramisu.metrics import scores_from_confusion
from tiramisu.models import SegmentationNetwork

FITTED_IMAGES = 64  # of training, whole
VALUES = 20_000_000  # logits that are kept, of all pixels and classes together: 80 MB
STEPS = (0.8, 0.4, 0.2)  # in the unit of logits
ROUNDS = 2  # over all classes, with each step
GAIN = 1e-4  # of mIoU, 0 to 1, that a step is worth taking for


def classifier_bias(network: SegmentationNetwork) -> Tensor:
    """Return the bias of the convolution that the logits come from, each class the same number of times in a row.

    Raises:
        ValueError: the network ends with something else.
    """
    last = [module for part in network.stages()[-1] for module in part.modules() if isinstance(module, nn.Conv2d)]
    if not last or last[-1].bias is None or last[-1].out_channels % network.num_classes:
        raise ValueError("the classifier does not end with a convolution that has a bias")
    return last[-1].bias


def add_class_bias(network: SegmentationNetwork, constants: Tensor) -> None:
    """Add one constant per class (classes,) to the logits, for good.

    Raises:
        ValueError: see `classifier_bias`.
    """
    bias = classifier_bias(network)
    with torch.no_grad():
        # PixelShuffle takes the channels of one class in a row.
        bias.add_(constants.to(bias).repeat_interleave(len(bias) // network.num_classes))


def draw_pixels(
    compute: Callable[[Tensor], Tensor], batches: Iterable[Item], count: int, labels: LabelSet, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw labelled pixels, at most as many from each batch as fit into `VALUES`.

    Args:
        compute: maps uint8 images (B, channels, H, W) to logits (B, classes, H, W).
        batches: whole images and their masks.
        count: number of batches.
        labels: the classes.
        seed: decides which pixels.

    Returns:
        Logits float32 (classes, N) and true classes int64 (N,), void excluded.
    """
    generator = torch.Generator().manual_seed(seed)
    room = max(1, VALUES // (count * len(labels)))
    logits, truth = [], []
    for batch in batches:
        with torch.inference_mode():
            found = compute(batch.image).float().cpu().transpose(0, 1).flatten(1)
        mask = batch.mask.flatten().cpu()
        scored = (mask != labels.ignore_index).nonzero().flatten()
        chosen = scored[torch.randperm(len(scored), generator=generator)[:room]]
        logits.append(found[:, chosen])
        truth.append(mask[chosen])
    return torch.cat(logits, 1), torch.cat(truth)


def fit_class_bias(logits: Tensor, truth: Tensor) -> Tensor:
    """Find the constants that raise the mIoU most, one class at a time, in smaller and smaller steps.

    Args:
        logits: (classes, N).
        truth: true classes (N,), without void.

    Returns:
        Constants (classes,), float32; 0 where the class is absent from the truth.
    """
    constants = torch.zeros(len(logits))
    best = mean_iou(logits, truth, constants)
    present = truth.unique().tolist()
    for step in STEPS:
        for _ in range(ROUNDS):
            for label in present:
                for change in (step, -step):
                    changed = constants.clone()
                    changed[label] += change
                    score = mean_iou(logits, truth, changed)
                    if score > best + GAIN:
                        best, constants = score, changed
    return constants


def mean_iou(logits: Tensor, truth: Tensor, constants: Tensor) -> float:
    """Return the mIoU (0 to 1) over the classes in the truth, with constants (classes,) added to the logits."""
    classes = len(logits)
    found = (logits + constants[:, None]).argmax(0)
    confusion = torch.bincount(truth * classes + found, minlength=classes**2).view(classes, classes)
    return scores_from_confusion(confusion).mean_iou
