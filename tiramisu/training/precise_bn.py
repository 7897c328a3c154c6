"""Statistics of batch normalisation for the final weights, without dropout."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tiramisu.data.transforms import Item


@torch.no_grad()
def collect_statistics(network: nn.Module, batches: Iterable[Item], forward: Callable[[Item], object]) -> None:
    """Replace the running statistics of every batch norm by the average over batches ("precise BN").

    Those of training belong to weights that have changed since, and to features with dropout, whose variances are
    larger than at test time (Wu and Johnson, 2021, section 3; docs/recipe.md). Leaves the network in eval mode.

    Args:
        network: with its final weights.
        batches: of training.
        forward: runs the network on a batch.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    try:
        for batch in batches:
            forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
