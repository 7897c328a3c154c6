"""Exponential moving average of the weights, on top of Lightning's own callback."""

from collections.abc import Sequence

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupEMA(WeightAveraging):
    """Average weights and batch-norm statistics exponentially, with a decay that grows to its final value.

    Lightning's EMAWeightAveraging keeps the decay fixed, so that after a few hundred steps the average still consists
    mostly of the first weights; here step n decays with min(decay, (1 + n) / (10 + n)), as TensorFlow's
    ExponentialMovingAverage does. The running statistics of batch norm are averaged with the same factors as the
    weights that they belong to; counters are copied.

    Args:
        decay: final decay per step, 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        super().__init__(use_buffers=True, multi_avg_fn=self._average)

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        count = int(num_averaged)
        decay = min(self.decay, (1 + count) / (10 + count))
        # Groups come one per device and dtype; integers are batch norm's counters.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1 - decay)
        else:
            torch._foreach_copy_(list(averaged), list(current))
