"""The training loss: cross-entropy, optionally with a region loss; void pixels never count."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiramisu.errors import ConfigError
from tiramisu.labels import LabelSet

RegionLoss = Literal["none", "lovasz", "dice"]
ClassWeights = Sequence[float] | Literal["auto"] | None


class SegmentationLoss(nn.Module):
    """Cross-entropy averaged over the non-void pixels of the batch, plus a weighted region loss.

    Args:
        labels: the classes and the ignore index.
        label_smoothing: share of the target that is spread over all classes, 0 to 1.
        class_weights: one factor per class for the cross-entropy; `auto`: comes later, by `weigh_classes`.
        region_loss: `lovasz` (Lovasz-Softmax, Berman et al., 2018) or `dice`, of segmentation_models_pytorch.
        region_weight: factor of the region loss.

    Raises:
        ConfigError: the number of class weights is not that of the classes, or a value is out of range.
    """

    def __init__(
        self,
        labels: LabelSet,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        region_loss: RegionLoss = "none",
        region_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if class_weights == "auto":
            class_weights = [1.0] * len(labels)
        if class_weights is not None and len(class_weights) != len(labels):
            raise ConfigError(
                f"--model.class_weights has {len(class_weights)} values, but there are {len(labels)} classes"
            )
        if class_weights is not None and min(class_weights) < 0:
            raise ConfigError(f"--model.class_weights must not be negative, got {min(class_weights)}")
        if not 0 <= label_smoothing <= 1:
            raise ConfigError(f"--model.label_smoothing {label_smoothing} must be from 0 to 1")
        if not 0 <= region_weight < math.inf:
            raise ConfigError(f"--model.region_weight {region_weight} must be a number from 0 up")
        self.ignore_index = labels.ignore_index
        self.label_smoothing = label_smoothing
        self.region_weight = region_weight
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.region_loss = _build_region_loss(region_loss, labels.ignore_index)

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Set one factor per class for the cross-entropy."""
        assert self.class_weights is not None
        self.class_weights.copy_(torch.tensor(weights))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of logits (B, C, H, W) against int64 class indices (B, H, W).

        A batch of void pixels only has the loss 0 and zero gradients.
        """
        logits = logits.float()  # under autocast: sums over hundreds of thousands of pixels need float32
        if not (target != self.ignore_index).any():
            return logits.sum() * 0.0
        loss = F.cross_entropy(
            logits,
            target,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        if self.region_loss is not None:
            loss = loss + self.region_weight * self.region_loss(logits, target)
        return loss


def _build_region_loss(kind: RegionLoss, ignore_index: int) -> nn.Module | None:
    if kind == "none":
        return None
    # Imported here: smp loads timm, which takes a second that other losses need not wait for.
    from segmentation_models_pytorch.losses import MULTICLASS_MODE, DiceLoss, LovaszLoss

    return {"lovasz": LovaszLoss, "dice": DiceLoss}[kind](MULTICLASS_MODE, ignore_index=ignore_index)
