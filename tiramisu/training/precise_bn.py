"""Statistics of batch normalisation for the final weights, without dropout."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from tiramisu.data.transforms import Item
from tiramisu.models.blocks import dropout_layers


def collect_statistics(model: nn.Module, batches: Iterable[Item], device: torch.device) -> None:
    """Replace the running statistics of every batch norm by the average over batches ("precise BN").

    Those of training belong to weights that have changed since, and to features with dropout, whose variances are
    larger than at test time (Wu and Johnson, 2021, section 3; docs/recipe.md).

    Args:
        model: with its final weights; takes the images of a batch.
        batches: of training.
        device: of the model.
    """
    probabilities = {module: module.p for module in dropout_layers(model)}
    try:
        for dropout in probabilities:
            dropout.p = 0.0  # update_bn puts the whole model into training mode
        update_bn(batches, model, device)
    finally:
        for dropout, probability in probabilities.items():
            dropout.p = probability
