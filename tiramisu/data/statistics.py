"""How many pixels each class has, and the loss weights that follow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiramisu.data.source import Source, spread_evenly

COUNTED = 2000  # images at most, spread evenly
WEIGHT_POWER = 0.25  # with 0.5, large classes of CamVid are eaten by false poles, signs and fences
WEIGHT_RANGE = 0.25, 4.0


def count_pixels(source: Source) -> NDArray[np.int64]:
    """Return the pixels of each class in a data set, void left out: (classes,).

    Raises:
        DataError: a file is unreadable or inconsistent.
    """
    counts = np.zeros(256, np.int64)
    for position in spread_evenly(len(source), COUNTED):
        counts += np.bincount(source[position].mask.ravel(), minlength=256)
    return counts[: len(source.labels)]


def suggest_weights(counts: NDArray[np.int64]) -> list[float]:
    """Return a factor for each class's part of the loss: more than 1 for rare classes, 1 for absent ones.

    Args:
        counts: pixels of each class.
    """
    present = counts > 0
    if not present.any():
        return [1.0] * len(counts)
    weights = np.ones(len(counts))
    weights[present] = (np.median(counts[present]) / counts[present]) ** WEIGHT_POWER
    return [round(float(weight), 2) for weight in np.clip(weights, *WEIGHT_RANGE)]


def shares(counts: NDArray[np.int64]) -> Sequence[float]:
    """Return the share of each class, 0 to 1."""
    return (counts / max(int(counts.sum()), 1)).tolist()
