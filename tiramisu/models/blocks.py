"""The four building blocks of FC-DenseNet (Jégou et al., 2017, section 3 and table 1).

Details that the paper leaves open follow the authors' Theano code: biases in every convolution,
element-wise dropout, batch normalisation with epsilon 1e-4.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-4  # Lasagne's default, with which the published weights were trained

TransitionDownKind = Literal["max", "average"]
TransitionUpKind = Literal["transposed", "nearest"]


class DenseLayer(nn.Module):
    """BN, ReLU, 3x3 convolution, element-wise dropout: (B, in_channels, H, W) to (B, growth_rate, H, W)."""

    def __init__(self, in_channels: int, growth_rate: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, eps=BATCH_NORM_EPS)
        self.conv = nn.Conv2d(in_channels, growth_rate, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, stack: Tensor) -> Tensor:
        """Return the layer's new features."""
        return self.dropout(self.conv(F.relu(self.norm(stack), inplace=True)))


class DenseBlock(nn.Module):
    """Layers that each see the stack of all features before them and add `growth_rate` new ones to it.

    Attributes:
        in_channels: channels of the input.
        new_channels: channels that the block adds, ``num_layers * growth_rate``.
    """

    def __init__(self, in_channels: int, num_layers: int, growth_rate: int, dropout: float) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.new_channels = num_layers * growth_rate
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + index * growth_rate, growth_rate, dropout) for index in range(num_layers)
        )

    def forward(self, stack: Tensor) -> Tensor:
        """Return the full stack (B, in_channels + new_channels, H, W): the input, then each layer's features."""
        for layer in self.layers:
            stack = torch.cat([stack, layer(stack)], dim=1)
        return stack


class TransitionDown(nn.Module):
    """Halve the resolution (floor), keep the channels.

    Args:
        channels: channels of input and output.
        dropout: dropout probability after the convolution (`max` only).
        kind: `max` is the paper's: BN, ReLU, 1x1 convolution, dropout, 2x2 max-pooling. `average` is the
            plainer 1x1 convolution and 2x2 average pooling.
    """

    def __init__(self, channels: int, dropout: float, kind: TransitionDownKind = "max") -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, kernel_size=1)
        self.layers = {
            "max": lambda: nn.Sequential(
                nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS),
                nn.ReLU(inplace=True),
                conv,
                nn.Dropout(dropout),
                nn.MaxPool2d(2),
            ),
            "average": lambda: nn.Sequential(conv, nn.AvgPool2d(2)),
        }[kind]()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, H // 2, W // 2)."""
        return self.layers(x)


class TransitionUp(nn.Module):
    """Bring the new features of the block below to the resolution of the skip connection and join the two.

    Args:
        in_channels: channels of the features from below.
        skip_channels: channels of the skip connection.
        kind: `transposed` is the paper's: a 3x3 transposed convolution of stride 2, cropped to the skip (top-left
            kept), then the concatenation [upsampled, skip]. `nearest` repeats pixels, concatenates, and lets a
            3x3 convolution reduce the result to `in_channels`.

    Attributes:
        upsampled_channels: channels of the output that come from below unmixed; the skip follows them (`transposed`).
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, skip_channels: int, kind: TransitionUpKind = "transposed") -> None:
        super().__init__()
        self.kind = kind
        self.conv: nn.Module
        if kind == "transposed":
            self.conv = nn.ConvTranspose2d(in_channels, in_channels, kernel_size=3, stride=2)
            self.upsampled_channels = in_channels
            self.out_channels = in_channels + skip_channels
        else:
            self.conv = nn.Conv2d(in_channels + skip_channels, in_channels, kernel_size=3, padding=1)
            self.upsampled_channels = 0
            self.out_channels = in_channels

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map x (B, in_channels, H // 2, W // 2) and skip (B, skip_channels, H, W) to (B, out_channels, H, W)."""
        height, width = skip.shape[-2:]
        joined = torch.cat([self.upsample(x, height, width), skip], dim=1)
        return joined if self.kind == "transposed" else self.conv(joined)

    def upsample(self, x: Tensor, height: int, width: int) -> Tensor:
        """Bring x to the resolution of the skip connection."""
        if self.kind == "transposed":
            return self.conv(x)[:, :, :height, :width]
        return F.interpolate(x, size=(height, width), mode="nearest")


def run_up_path(
    features: Tensor, bottleneck: DenseBlock, up: Iterable[tuple[TransitionUp, DenseBlock]], skips: list[Tensor]
) -> Tensor:
    """Run the block at the bottom and the up path: blocks hand on only what they add, the last one all it has.

    Args:
        features: the lowest (B, C, H, W).
        bottleneck: the block on top of them.
        up: transitions and blocks.
        skips: features of each resolution, the lowest last; they are taken out, which frees their memory on the way.

    Returns:
        All features of the last block (B, C, H, W).
    """
    below, stack = bottleneck, bottleneck(features)
    for transition, block in up:
        stack = block(transition(stack[:, below.in_channels :], skips.pop()))
        below = block
    return stack


def build_classifier(in_channels: int, num_classes: int, stride: int) -> nn.Sequential:
    """Build a classifier that predicts each `stride` x `stride` pixels at once."""
    return nn.Sequential(
        nn.Conv2d(in_channels, num_classes * stride**2, kernel_size=1),
        nn.PixelShuffle(stride) if stride > 1 else nn.Identity(),
    )


def initialize_he_uniform(module: nn.Module) -> None:
    """Initialise every convolution below `module` as the authors did: He uniform weights, zero biases."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(child.weight, nonlinearity="relu")
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def dropout_layers(network: nn.Module) -> list[nn.Dropout | nn.Dropout2d]:
    """Return the layers of a network that drop activations, or whole channels as some decoders of smp do."""
    return [module for module in network.modules() if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p > 0]
