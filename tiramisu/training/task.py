"""The LightningModule: what one step of training and of evaluation is."""

import math
import sys
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tiramisu.data.statistics import count_pixels, suggest_weights
from tiramisu.data.transforms import Item
from tiramisu.errors import ConfigError, DivergedError
from tiramisu.inference.torch_engine import images_to_float
from tiramisu.labels import LabelSet
from tiramisu.metrics import confusion_matrix, scores_from_confusion
from tiramisu.models import FCDenseNet, SegmentationNetwork
from tiramisu.training.class_bias import classifier_bias
from tiramisu.training.initial import Beginning, start_from
from tiramisu.training.losses import ClassWeights, RegionLoss, SegmentationLoss
from tiramisu.training.optim import OptimizerName, ScheduleName, build_optimizer, build_schedule
from tiramisu.weights import find_weights

BEGINNING = "beginning"  # key in checkpoints


class SegmentationTask(L.LightningModule):
    """Train a segmentation network.

    Args:
        labels: classes of the data set; comes from the data module.
        in_channels: of the images; likewise.
        network: class of the network: FCDenseNet, EncoderFCDenseNet for its up path over a pretrained encoder, or
            SmpNetwork for any segmentation_models_pytorch architecture.
        init: weights to start from: a folder that training wrote, or the name of shipped ones. For other classes the
            classifier is renewed. Where they do not fit the configured network, theirs takes its place.
        freeze_epochs: epochs in which only what is new is trained: all but the pretrained encoder, or the classifier.
        lr_decay: layer-wise decay: factor of the learning rate from each part of the network to the one before it;
            below 1, what is far from the classifier changes less.
        lr: learning rate (the peak of warm-up and of one-cycle).
        optimizer: `adamw`, `sgd` or `rmsprop` (the paper's).
        weight_decay: of convolution weights.
        schedule: `constant`, `exponential` (per epoch), `cosine`, `onecycle`, or `trapezoid`, which
            is constant and decays to zero over the last quarter (warmup-stable-decay).
        lr_gamma: factor per epoch of `exponential`.
        warmup_epochs: epochs of linear warm-up.
        label_smoothing: share of the target that is spread over all classes.
        class_weights: one factor per class for the cross-entropy; `auto`: more for the rarer classes of the training
            images, (median / pixels)^(1/4).
        region_loss: `lovasz` or `dice`, added to the cross-entropy.
        region_weight: factor of the region loss.
        ema_decay: decay of the moving average of the weights, which is evaluated and saved; 0 turns it off.
        precise_bn: whether the statistics of batch norm are collected anew at the end, in a pass over training images
            without dropout. Better where there is dropout in the whole network.
        class_bias: whether one constant per class, fitted to the mIoU of 64 training images, is added to the
            classifier's bias at the end. It mends classes that `class_weights` or `--data.balanced_crops` make too
            frequent, and costs prediction nothing.
        channels_last: memory layout that is faster on current CPUs and GPUs.

    Raises:
        ConfigError: the options do not fit together.
        WeightsError: the weights of `init` do not fit.
    """

    def __init__(
        self,
        labels: LabelSet,
        in_channels: int = 3,
        network: Callable[[int], SegmentationNetwork] = FCDenseNet,
        init: str | None = None,
        freeze_epochs: int = 0,
        lr_decay: float = 1.0,
        lr: float = 1e-3,
        optimizer: OptimizerName = "adamw",
        weight_decay: float = 1e-4,
        schedule: ScheduleName = "onecycle",
        lr_gamma: float = 0.995,
        warmup_epochs: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = None,
        region_loss: RegionLoss = "none",
        region_weight: float = 0.5,
        ema_decay: float = 0.999,
        precise_bn: bool = False,
        class_bias: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= lr < math.inf:
            raise ConfigError(f"--model.lr {lr} must be a number from 0 up")
        for option, value in (("weight_decay", weight_decay), ("warmup_epochs", warmup_epochs), ("lr_gamma", lr_gamma)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"--model.{option} {value} must be a number from 0 up")
        if not 0 < lr_decay <= 1:
            raise ConfigError(f"--model.lr_decay {lr_decay} must be above 0 and at most 1")
        if freeze_epochs < 0:
            raise ConfigError(f"--model.freeze_epochs {freeze_epochs} must not be negative")
        if not 0 <= ema_decay < 1:
            raise ConfigError(f"--model.ema_decay {ema_decay} must be at least 0 and below 1")
        try:
            # Only where they are not RGB, so that a network need not know the word.
            others: dict[str, Any] = {"in_channels": in_channels} if in_channels != 3 else {}
            self.network = network(len(labels), **others)
        except ValueError as error:
            raise ConfigError(f"--model.network: {error}") from error
        self.pretrained = self.network.pretrained_parts()
        self.beginning: Beginning | None = None
        if init is not None:
            self.beginning = start_from(find_weights(init), self.network, labels)
            self.network = self.beginning.network
            self.pretrained = [module for stage in self.network.stages()[:-1] for module in stage]
        if freeze_epochs and not self.pretrained:
            raise ConfigError("--model.freeze_epochs keeps pretrained weights; give --model.init or encoder_weights")
        self.freeze_epochs, self.lr_decay = freeze_epochs, lr_decay
        self.network.labels = self.labels = labels
        if channels_last:
            # A no-op for the values; convolutions then keep activations in this layout too.
            self.network.to(memory_format=torch.channels_last)
        self.lr = lr
        self.weight_decay = weight_decay
        self.lr_gamma = lr_gamma
        self.warmup_epochs = warmup_epochs
        self.optimizer_name: OptimizerName = optimizer
        self.schedule_name: ScheduleName = schedule
        if class_bias:
            try:
                classifier_bias(self.network)
            except ValueError as error:
                raise ConfigError(f"--model.class_bias cannot be had with this network: {error}") from error
        self.ema_decay, self.precise_bn, self.class_bias = ema_decay, precise_bn, class_bias
        self.channels_last = channels_last
        self.weigh_classes = class_weights == "auto"
        self.loss = SegmentationLoss(labels, label_smoothing, class_weights, region_loss, region_weight)
        self.confusion = nn.ModuleDict({"val": confusion_matrix(labels), "test": confusion_matrix(labels)})

    def setup(self, stage: str) -> None:
        """Weigh the classes, if the data are to say how."""
        if self.freeze_epochs and self.trainer.world_size > 1:
            raise ConfigError("--model.freeze_epochs works in one process only; train with --trainer.devices 1")
        if self.weigh_classes and stage == "fit":
            weights = suggest_weights(count_pixels(cast(Any, self.trainer).datamodule.train_set.source))
            self.loss.weigh_classes(weights)
            named = ", ".join(f"{name} {weight:g}" for name, weight in zip(self.labels.names, weights, strict=True))
            if self.trainer.is_global_zero:
                print(f"Class weights: {named}.", file=sys.stderr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how the weights at the beginning came about: others may bear their name when the run is resumed."""
        if self.beginning is not None:
            checkpoint[BEGINNING] = self.beginning.protocol

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up what `on_save_checkpoint` has kept."""
        if self.beginning is not None and BEGINNING in checkpoint:
            self.beginning = self.beginning._replace(protocol=checkpoint[BEGINNING])

    def build_optimizer(self) -> Optimizer:
        """Build the optimiser over all parameters, frozen ones included."""
        return build_optimizer(self.optimizer_name, self.network, self.lr, self.weight_decay, self.lr_decay)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimiser and schedule; the schedule steps with the optimiser."""
        optimizer = self.build_optimizer()
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise ConfigError("training has no end: set --trainer.max_epochs or --trainer.max_steps")
        batches = self.trainer.num_training_batches  # infinite where training is switched off
        steps_per_epoch = max(1, int(batches // self.trainer.accumulate_grad_batches)) if math.isfinite(batches) else 1
        schedule = build_schedule(
            self.schedule_name,
            optimizer,
            int(total_steps),
            steps_per_epoch,
            self.warmup_epochs,
            self.lr_gamma,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 images (B, channels, H, W) to logits (B, classes, H, W)."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return self.network(images_to_float(images).contiguous(memory_format=layout))

    def training_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Return the loss of one batch of crops.

        Raises:
            DivergedError: the loss is NaN or infinite.
        """
        loss = self.loss(self(batch.image), batch.mask)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss.item()} at step {self.global_step} (epoch {self.current_epoch})"
            )
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(batch.image))
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], prog_bar=True)
        return loss

    def on_train_start(self) -> None:
        """Say where the weights come from, if they do not come from a checkpoint."""
        if self.beginning is not None and self.global_step == 0 and self.trainer.is_global_zero:
            print(self.beginning.summary, file=sys.stderr)

    def on_train_epoch_start(self) -> None:
        """Keep pretrained parts as they are in the first epochs, batch-norm statistics included."""
        if self.freeze_epochs:
            frozen = self.current_epoch < self.freeze_epochs
            for module in self.pretrained:
                module.requires_grad_(not frozen).train(not frozen)

    def on_train_epoch_end(self) -> None:
        """Refuse weights that the epoch's last update has ruined, before a checkpoint keeps them.

        Raises:
            DivergedError: a weight is NaN or infinite.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.network.parameters()):
            raise DivergedError(f"the weights became infinite or NaN at step {self.global_step}")

    def validation_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Count one batch of whole validation images; return the class maps (B, H, W)."""
        return self._count("val", batch)

    def test_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Count one batch of whole test images; return the class maps (B, H, W)."""
        return self._count("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation set."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test set."""
        self._log_scores("test")

    def _count(self, split: str, batch: Item) -> Tensor:
        logits = self(batch.image)
        predictions = logits.argmax(1)
        cast(Any, self.confusion[split]).update(predictions, batch.mask)
        self.log(f"{split}/loss", self.loss(logits, batch.mask), batch_size=len(batch.image), sync_dist=True)
        return predictions

    def _log_scores(self, split: str) -> None:
        # torchmetrics adds up the processes' counts in compute().
        metric = cast(Any, self.confusion[split])
        self.last_confusion: Tensor = metric.compute().cpu()
        metric.reset()
        scores = scores_from_confusion(self.last_confusion)
        values = {f"{split}/mIoU": scores.mean_iou, f"{split}/accuracy": scores.accuracy}
        self.log_dict(values, prog_bar=split == "val", rank_zero_only=False)
        per_class = zip(self.labels.names, scores.iou, strict=True)
        self.log_dict({f"{split}/IoU/{name}": value for name, value in per_class})

    def transfer_batch_to_device(self, batch: Item, device: torch.device, dataloader_idx: int) -> Item:
        """Move a batch without waiting: the loader pins its memory."""
        return Item(*(value.to(device, non_blocking=True) for value in batch))
