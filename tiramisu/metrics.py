"""Intersection over union and global accuracy from a confusion matrix pooled over a whole set, and their table.

The confusion matrix is torchmetrics' MulticlassConfusionMatrix with the void pixels excluded. Pooling first and
dividing last is what the paper and the benchmark do; averaging per image gives other numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from tiramisu.labels import LabelSet


def confusion_matrix(labels: LabelSet) -> MulticlassConfusionMatrix:
    """Return an accumulator for class maps: ``update(predictions (B, H, W), truth (B, H, W))``."""
    return MulticlassConfusionMatrix(len(labels), ignore_index=labels.ignore_index, validate_args=False)


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well a set was segmented.

    Attributes:
        iou: one value per class, 0 to 1; NaN for a class that is absent from the truth.
        mean_iou: mean over the classes that are present in the truth; NaN if none is.
        accuracy: share of the non-void pixels that are right; NaN if there are none.
    """

    iou: tuple[float, ...]
    mean_iou: float
    accuracy: float

    def to_dict(self, labels: LabelSet) -> dict[str, Any]:
        """Return plain values for JSON, 0 to 1, with null where a value is undefined."""
        per_class = dict(zip(labels.names, map(_null, self.iou), strict=True))
        return {"mean_iou": _null(self.mean_iou), "accuracy": _null(self.accuracy), "iou": per_class}


def scores_from_confusion(matrix: Tensor) -> Scores:
    """Compute the scores.

    Args:
        matrix: (C, C) pixel counts, rows are the true class, columns the predicted one, void excluded.
    """
    matrix = matrix.double()
    right, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = torch.where(truth > 0, right / (truth + predicted - right), torch.nan)
    return Scores(
        iou=tuple(iou.tolist()),
        mean_iou=iou.nanmean().item(),
        accuracy=(right.sum() / matrix.sum()).item(),
    )


def format_table(rows: Sequence[tuple[str, Scores]], labels: LabelSet) -> str:
    """Return the paper's table as text: one column per row of `rows`, values in percent, n/a where undefined."""
    width = max(len(name) for name in (*labels.names, "Global accuracy"))
    lines = ["".join([" " * width, *(f"  {title:>8}" for title, _ in rows)])]
    for index, name in enumerate(labels.names):
        lines.append("".join([f"{name:<{width}}", *(f"  {_percent(scores.iou[index]):>8}" for _, scores in rows)]))
    lines.append("-" * len(lines[0]))
    lines.append("".join([f"{'mIoU':<{width}}", *(f"  {_percent(scores.mean_iou):>8}" for _, scores in rows)]))
    lines.append("".join([f"{'Global accuracy':<{width}}", *(f"  {_percent(s.accuracy):>8}" for _, s in rows)]))
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.1f}"


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
