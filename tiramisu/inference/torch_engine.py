"""Running a network in torch."""

import copy
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.device import choose_device, default_precision
from tiramisu.inference.engines import Card, Precision
from tiramisu.labels import LabelSet
from tiramisu.models import SegmentationNetwork, load_network
from tiramisu.models.blocks import dropout_layers

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def images_to_float(images: Tensor) -> Tensor:
    """Turn uint8 images into the networks' input: float32, 0 to 1, same shape."""
    return images.float().div_(255)


def inference_precision(device: torch.device) -> torch.dtype:
    """Return what is fastest to infer with: bfloat16 where the hardware has it, float16 on other GPUs, or float32."""
    precision = default_precision(device)
    return torch.float16 if device.type == "cuda" and precision == torch.float32 else precision


def network_card(network: SegmentationNetwork) -> Card:
    """Return what a user of the network must know."""
    labels = network.labels or LabelSet.numbered(network.num_classes)
    return Card(labels, network.grid_size, network.grid_size, network.protocol, network.in_channels)


class TorchEngine:
    """A network in torch, on any device.

    Args:
        network: to run; it is moved to the device and into eval mode.
        device: where.
        precision: float32, or the type of autocast.
    """

    def __init__(self, network: SegmentationNetwork, device: torch.device, precision: torch.dtype) -> None:
        self.card = network_card(network)
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device, self.precision = device, precision
        self.description = f"torch, {device.type}, {str(precision).removeprefix('torch.')}"
        self.lock = threading.Lock()
        self.stochastic: nn.Module | None = None

    @classmethod
    def open(cls, weights: Path, device: str = "auto", precision: Precision = "auto") -> "TorchEngine":
        """Load weights.

        Raises:
            ConfigError: there is no such device.
            WeightsError: the weights are missing or damaged.
        """
        where = choose_device(None if device == "auto" else device)
        return cls(load_network(weights), where, DTYPES.get(precision) or inference_precision(where))

    def logits(self, images: UInt8Array) -> FloatArray:
        """See `Engine`."""
        return self._run(self.network, images)

    def sample(self, images: UInt8Array, passes: int) -> Generator[FloatArray, None, None]:
        """See `Engine`; batch normalisation keeps the statistics of training."""
        with self.lock:  # the passes draw from torch's global generator
            if self.stochastic is None:
                self.stochastic = with_dropout(self.network)
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(0)
                for _ in range(passes):
                    yield self._run(self.stochastic, images)

    @torch.inference_mode()
    def _run(self, network: nn.Module, images: UInt8Array) -> FloatArray:
        # (B, H, W, 3) in memory is (B, 3, H, W) in channels_last
        inputs = images_to_float(torch.tensor(images, device=self.device).permute(0, 3, 1, 2))
        with torch.autocast(self.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            return network(inputs).float().cpu().numpy()


def with_dropout(network: nn.Module) -> nn.Module:
    """Return a twin with the same parameters whose dropout is on."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    active = dropout_layers(twin)
    if not active:
        print("These weights have no dropout: all passes agree.", file=sys.stderr)
    for module in active:
        module.train()
    return twin
