"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tiramisu.models import SegmentationNetwork

OptimizerName = Literal["adamw", "sgd", "rmsprop"]
ScheduleName = Literal["constant", "exponential", "cosine", "onecycle", "trapezoid"]

ONECYCLE_RISE = 0.3  # share of the steps in which the rate rises, and the share of its peak at which it starts:
ONECYCLE_START = 0.04  # the defaults of fastai and torch
TRAPEZOID_FALL = 0.25  # share of the steps in which the rate falls


class LasagneRMSprop(Optimizer):
    """RMSprop as in the paper's Theano code (Lasagne): the epsilon is added inside the square root.

    ``average = rho * average + (1 - rho) * grad**2; param -= lr * grad / sqrt(average + eps)``. Weight decay is
    coupled: it is added to the gradient. torch.optim.RMSprop adds the epsilon outside the root, which with Lasagne's
    1e-6 takes steps up to a thousand times larger where gradients vanish.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        rho: decay of the average of the squared gradients.
        eps: added to that average.
        weight_decay: factor of the parameter that is added to its gradient (twice Lasagne's L2 factor).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; return the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            for param in params:
                if not self.state[param]:
                    self.state[param]["square_average"] = torch.zeros_like(param)
            averages = [self.state[param]["square_average"] for param in params]
            grads = [param.grad for param in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(averages, group["rho"])
            torch._foreach_addcmul_(averages, grads, grads, 1 - group["rho"])
            roots = torch._foreach_add(averages, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(params, grads, roots, -group["lr"])
        return loss


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into weights of convolutions, which decay, and biases and batch norms, which do not."""
    trainable = [param for param in module.parameters() if param.requires_grad]
    return [
        {"params": [param for param in trainable if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in trainable if param.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(
    name: OptimizerName, module: nn.Module, lr: float, weight_decay: float, lr_decay: float = 1.0
) -> Optimizer:
    """Build an optimiser over the trainable parameters of a module.

    Args:
        name: `adamw` (decoupled weight decay), `sgd` (Nesterov momentum 0.9), or `rmsprop` in the paper's semantics.
        module: its parameters are optimised.
        lr: learning rate.
        weight_decay: of convolution weights only.
        lr_decay: factor of the rate from each stage of a network to the one before it; the last one has `lr`.
    """
    if lr_decay == 1:
        groups = parameter_groups(module, weight_decay)
    else:
        assert isinstance(module, SegmentationNetwork)
        stages = module.stages()
        groups = [
            {**group, "lr": lr * lr_decay ** (len(stages) - 1 - position)}
            for position, stage in enumerate(stages)
            for group in parameter_groups(nn.ModuleList(stage), weight_decay)
            if group["params"]
        ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    return LasagneRMSprop(groups, lr=lr)


def build_schedule(
    name: ScheduleName,
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    gamma: float = 0.995,
) -> LambdaLR:
    """Build a learning-rate schedule that is stepped after every optimiser step.

    Args:
        name: `constant`; `exponential`: times `gamma` after every epoch (the paper); `cosine`: down to 0;
            `onecycle`: up for 30 % of the time, then down to 0 (Smith, 2018); `trapezoid`: flat, down to 0 in the last
            quarter (Hägele et al., 2024), so that what precedes it serves a longer training as well.
        optimizer: its rate is scheduled.
        total_steps: optimiser steps of the whole training.
        steps_per_epoch: optimiser steps of one epoch.
        warmup_epochs: epochs of linear warm-up; `onecycle` has its own.
        gamma: of `exponential`.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if name == "onecycle":
        warmup_steps = round(ONECYCLE_RISE * total_steps)

    def factor(step: int) -> float:
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if step < warmup_steps:
            rise = (step + 1) / (warmup_steps + 1)
            return _cosine(ONECYCLE_START, 1.0, rise) if name == "onecycle" else rise
        if name == "exponential":
            return gamma ** (step // steps_per_epoch)
        if name == "constant":
            return 1.0
        if name == "trapezoid":
            return min(1.0, (1 - step / max(1, total_steps)) / TRAPEZOID_FALL)
        return _cosine(1.0, 0.0, progress)

    # Not torch's OneCycleLR: it keeps its number of steps in the checkpoint, so that a run which is resumed with more
    # epochs fails; here the number follows the configuration.
    return LambdaLR(optimizer, factor)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
