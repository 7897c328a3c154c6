"""What a finished run leaves behind: report.json, the curves and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from tiramisu.files import SOFTWARE, atomic_path
from tiramisu.labels import LabelSet


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": SOFTWARE})


def plot_confusion(confusion: Tensor, labels: LabelSet, path: Path) -> None:
    """Draw a confusion matrix as shares of the true class, in percent; classes absent from the truth stay blank.

    Args:
        confusion: (C, C) pixel counts, rows are the true class.
        labels: names of the classes.
        path: PNG file to write.
    """
    counts = confusion.double().numpy()
    totals = counts.sum(1, keepdims=True)
    shares = 100 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = 2.5 + 0.55 * len(labels)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        if share >= 0.5:
            axes.text(
                column, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                color="white" if share > 60 else "black",
            )  # fmt: skip
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels.names, rotation=45, ha="right")
    axes.set_yticks(ticks, labels.names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("share of the true class's pixels (%)", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    _save(figure, path)


def plot_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss, validation scores and learning rate over the epochs.

    Args:
        rows: one dict per epoch, as `History` keeps them.
        path: PNG file to write.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "loss": {"train/loss": "train", "val/loss": "val"},
        "validation (%)": {"val/mIoU": "mIoU", "val/accuracy": "global accuracy"},
        "learning rate": {"lr": "lr"},
    }
    for axes, (title, series) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, label in series.items():
            points = [(row["epoch"] + 1, row[name]) for row in rows if name in row]
            if points:
                epochs, values = np.array(points).T
                scale = 100 if "%" in title else 1
                axes.plot(epochs, values * scale, label=label, marker="o" if len(points) < 30 else "", markersize=3)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(series) > 1 and axes.lines:
            axes.legend()
    _save(figure, path)


def plot_rates(rates: Sequence[float], losses: Sequence[float], chosen: float, path: Path) -> None:
    """Draw what learning rates led to.

    Args:
        rates: that were tried, rising from step to step.
        losses: smoothed, after each step.
        chosen: the rate to mark.
        path: PNG file to write.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses)
    axes.axvline(chosen, color="tab:orange", label=f"{chosen:.1e}")
    axes.set_xscale("log")
    if losses:
        axes.set_ylim(0.95 * min(losses), 1.1 * losses[0])
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
