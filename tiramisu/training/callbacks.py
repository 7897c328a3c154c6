"""What happens beside training: seeding, history, pictures and the progress bar."""

import contextlib
import csv
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from tiramisu.arrays import UInt8Array
from tiramisu.data.source import spread_evenly
from tiramisu.data.transforms import Item, derive_seed
from tiramisu.files import atomic_path
from tiramisu.labels import LabelSet
from tiramisu.visualize import comparison


class EpochSeed(L.Callback):
    """Seed torch from (seed, epoch, process) when an epoch begins.

    Dropout then draws the same numbers whether or not the run was interrupted before that epoch.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the generators of all devices."""
        torch.manual_seed(derive_seed(self.seed, trainer.current_epoch, trainer.global_rank))


class History(L.Callback):
    """Keep one row of metrics per epoch, in the checkpoint and in ``metrics.csv``.

    Lightning's CSVLogger deletes the file when a run is resumed; here the rows resume with the run.

    Args:
        run: folder of the run.

    Attributes:
        rows: the metrics of every finished epoch.
        seconds: time spent in training epochs, validation included, over all interruptions.
    """

    FILE_NAME = "metrics.csv"

    def __init__(self, run: Path) -> None:
        self.run = run
        self.rows: list[dict[str, float]] = []
        self.seconds = 0.0
        self._validated = False
        self._started = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember that this epoch has validation metrics of its own."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row and write the file."""
        elapsed = time.monotonic() - self._started
        self.seconds += elapsed
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": round(elapsed, 3)}
        for name, value in trainer.callback_metrics.items():
            wanted = name in ("lr", "train/loss") or (name.startswith("val/") and self._validated)
            if wanted and not math.isnan(value):  # NaN: the class is absent from the validation set
                row[name] = float(value)
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write(self.run / self.FILE_NAME)

    def _write(self, path: Path) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history where the checkpoint left it."""
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]


class PredictionPictures(L.Callback):
    """Draw image, truth, prediction and errors for a few images, spread over the set.

    Every few validations into ``samples/epoch_NNN.png``, and after testing into ``predictions.png``.

    Args:
        run: folder of the run.
        labels: the classes.
        images: how many images.
        every: how many validations lie between two pictures.
    """

    FILE_NAME = "predictions.png"

    def __init__(self, run: Path, labels: LabelSet, images: int = 4, every: int = 1) -> None:
        self.run, self.labels, self.images, self.every = run, labels, images, max(1, every)
        self._samples: list[tuple[UInt8Array, UInt8Array, UInt8Array]] = []
        self._validations = 0

    def _collect(self, predictions: Tensor, batch: Item, batch_idx: int, batches: int | float) -> None:
        if batch_idx not in spread_evenly(int(batches), self.images):
            return
        image = batch.image[0].permute(1, 2, 0).cpu().numpy()
        truth = batch.mask[0].byte().cpu().numpy()
        prediction = predictions[0].byte().cpu().numpy()
        self._samples.append((image, truth, prediction))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the pictures of an interrupted validation."""
        self._samples = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the images at regular places of the set."""
        if trainer.is_global_zero and self._validations % self.every == 0:
            self._collect(outputs, batch, batch_idx, trainer.num_val_batches[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the picture of this validation."""
        self._validations += 1
        if self._samples:
            name = f"samples/epoch_{trainer.current_epoch:03d}.png"
            picture = self._write(self.run / name)
            if isinstance(trainer.logger, TensorBoardLogger):
                trainer.logger.experiment.add_image("val/samples", picture, trainer.global_step, dataformats="HWC")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the images at regular places of the set."""
        if trainer.is_global_zero:
            self._collect(outputs, batch, batch_idx, trainer.num_test_batches[0])

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start with no pictures."""
        self._samples = []

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the final picture."""
        if self._samples:
            self._write(self.run / self.FILE_NAME)

    def _write(self, path: Path) -> UInt8Array:
        picture = comparison(self._samples, self.labels)
        self._samples = []
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        return picture

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting validations."""
        self._validations = state_dict["validations"]


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar with loss, learning rate and validation mIoU, and nothing else."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the bars, which would be drawn once more over what is printed next."""
        for name in ("train_progress_bar", "val_progress_bar", "test_progress_bar"):
            with contextlib.suppress(TypeError, AttributeError):  # there is none at this stage
                getattr(self, name).close()
        sys.stdout.flush()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return the metrics to show, under short names."""
        metrics = super().get_metrics(trainer, pl_module)
        shown = {"loss": "train/loss_step", "lr": "lr", "val mIoU": "val/mIoU"}
        return {short: metrics[name] for short, name in shown.items() if name in metrics}
