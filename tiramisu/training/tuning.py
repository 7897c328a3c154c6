"""Finding a learning rate, and the crop and batch that fit, before a long training."""

import tempfile
from collections.abc import Callable
from typing import NamedTuple

import lightning as L
import numpy as np
from lightning.pytorch.tuner.tuning import Tuner

from tiramisu.data.datamodule import SegmentationDataModule
from tiramisu.errors import ConfigError
from tiramisu.training.capacity import Step, recommend
from tiramisu.training.task import SegmentationTask

STEPS = 100
LOWEST, HIGHEST = 1e-5, 1.0
SETTLING = 10  # steps until the running mean of the loss means anything


class Suggestion(NamedTuple):
    """What was found.

    Attributes:
        lr: a tenth of the rate at which the loss was lowest, before it grew: safely below where training breaks.
        step: the largest crop and batch that fit; none where nothing does.
        free: memory in MiB.
        rates: learning rates that were tried.
        losses: what they led to, smoothed.
    """

    lr: float
    step: Step | None
    free: float
    rates: list[float]
    losses: list[float]


def tune(
    task: SegmentationTask, data: SegmentationDataModule, precision: str, tell: Callable[[str], object]
) -> Suggestion:
    """Find a learning rate with Lightning's finder (Smith, 2015), and what fits into the memory.

    Args:
        task: with the network to train.
        data: to train on.
        precision: of the training.
        tell: is told what happens.

    Raises:
        ConfigError: the loss falls nowhere.
    """
    side = min(data.train_set.source[0].mask.shape)
    found = recommend(task.network, side, lambda text: tell(f"measuring {text} ..."))
    step, free = found or (None, 0.0)
    if step is not None:  # the rate is for the batch that it comes with
        data.crop_size, data.batch_size = step.crop, step.batch
    tell(f"trying {STEPS} learning rates from {LOWEST:g} to {HIGHEST:g} ...")
    with tempfile.TemporaryDirectory(prefix="tiramisu-") as folder:
        trainer = L.Trainer(
            precision=precision,  # type: ignore[arg-type]  # the command line has checked it
            max_epochs=1000, logger=False, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False, default_root_dir=folder, use_distributed_sampler=False, num_sanity_val_steps=0,
        )  # fmt: skip
        finder = Tuner(trainer).lr_find(
            task, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
        )
    rates, losses = (np.asarray(finder.results[name] if finder else [])[SETTLING:] for name in ("lr", "loss"))
    kept = np.isfinite(losses)
    rates, losses = rates[kept], losses[kept]
    # Not the finder's own suggestion, the steepest place: with few images it is noise.
    if len(losses) < 2 or losses.argmin() == 0:
        raise ConfigError("no learning rate makes the loss fall; look at the data: python -m tiramisu.check_data")
    return Suggestion(float(rates[losses.argmin()]) / 10, step, free, rates.tolist(), losses.tolist())
