"""Measure speed against the textbook implementation: ``python -m tiramisu.benchmark train|infer``."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from json import dumps
from typing import Literal

import torch
from torch import nn

from tiramisu.benchmarking.textbook import TextbookFCDenseNet
from tiramisu.benchmarking.timing import Timing, format_timings, race
from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.data.camvid import CamVid
from tiramisu.device import default_device, default_precision
from tiramisu.errors import ConfigError
from tiramisu.models import FCDenseNet
from tiramisu.training.losses import SegmentationLoss
from tiramisu.training.optim import build_optimizer

OURS, TEXTBOOK = "tiramisu", "textbook"


def train(
    variant: Literal[56, 67, 103] = 103,
    size: tuple[int, int] = (224, 224),
    batch: int = 4,
    rounds: int = 5,
    warmup: int = 2,
    json: bool = False,
) -> None:
    """Time a training step: forward, loss, backward and optimiser, in the precision that suits the machine.

    Args:
        variant: which FC-DenseNet.
        size: height and width of the crops.
        batch: crops per step.
        rounds: timed steps of each contender, taken in turn.
        warmup: untimed steps before.
        json: print JSON.
    """
    device = default_device()
    images, target = _inputs(batch, size, device)
    loss = SegmentationLoss(CamVid.labels).to(device)

    def step_of(network: nn.Module) -> Callable[[], None]:
        network.train()
        optimizer = build_optimizer("rmsprop", network, 1e-3, 2e-4)

        def step() -> None:
            with _autocast(device):
                value = loss(network(images), target)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    title = f"FC-DenseNet{variant} training step, {batch} x {size[0]} x {size[1]}, {_precision_name(device)}"
    _race(title, {name: step_of(network) for name, network in _networks(variant, device).items()}, rounds, warmup,
          json)  # fmt: skip


def infer(
    variant: Literal[56, 67, 103] = 103,
    size: tuple[int, int] = (360, 480),
    batch: int = 1,
    rounds: int = 9,
    warmup: int = 2,
    json: bool = False,
) -> None:
    """Time inference in eval mode, in the precision that suits the machine.

    Args:
        variant: which FC-DenseNet.
        size: height and width of the images.
        batch: images per step.
        rounds: timed steps of each contender, taken in turn.
        warmup: untimed steps before.
        json: print JSON.
    """
    device = default_device()
    images, _ = _inputs(batch, size, device)

    def step_of(network: nn.Module) -> Callable[[], None]:
        network.eval()

        def step() -> None:
            with torch.inference_mode(), _autocast(device):
                network(images)

        return step

    title = f"FC-DenseNet{variant} inference, {batch} x {size[0]} x {size[1]}, {_precision_name(device)}"
    _race(title, {name: step_of(network) for name, network in _networks(variant, device).items()}, rounds, warmup,
          json)  # fmt: skip


def _networks(variant: Literal[56, 67, 103], device: torch.device) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {
        OURS: FCDenseNet(variant=variant),
        TEXTBOOK: TextbookFCDenseNet(variant=variant),
    }
    return {name: network.to(device).to(memory_format=torch.channels_last) for name, network in networks.items()}


def _inputs(batch: int, size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    if batch < 1 or min(size) < 32:
        raise ConfigError("--batch must be at least 1 and --size at least [32,32]")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, *size, generator=generator)
    target = torch.randint(0, len(CamVid.labels) + 1, (batch, *size), generator=generator)  # void among them
    return images.to(device).contiguous(memory_format=torch.channels_last), target.to(device)


def _autocast(device: torch.device) -> torch.autocast:
    precision = default_precision(device)
    return torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)


def _precision_name(device: torch.device) -> str:
    return f"{str(default_precision(device)).removeprefix('torch.')}, channels_last, {device.type}"


def _race(
    title: str, contenders: dict[str, Callable[[], None]], rounds: int, warmup: int, as_json: bool
) -> list[Timing]:
    if rounds < 1:
        raise ConfigError("--rounds must be at least 1")
    timings = race(contenders, TEXTBOOK, rounds, warmup)
    if as_json:
        rows = [{**dataclasses.asdict(timing), "median": timing.median} for timing in timings]
        print(dumps({"title": title, "torch": torch.__version__, "baseline": TEXTBOOK, "timings": rows}, indent=2))
    else:
        print(f"{title}\n{format_timings(timings, TEXTBOOK)}")
    return timings


@command("tiramisu.benchmark")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    args = ["--json=true" if arg == "--json" else arg for arg in (sys.argv[1:] if args is None else args)]
    run_function({"train": train, "infer": infer}, "tiramisu.benchmark", __doc__, args)


if __name__ == "__main__":
    main()
