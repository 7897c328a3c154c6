"""FC-DenseNet as public repositories write it: lists of features, torch.cat and nn.BatchNorm2d.

The yardstick of the benchmark, and an independent check of the numbers that `FCDenseNet` computes. It does the same
arithmetic and lists its parameters in the same order, so that weights can be copied across one by one.
"""

import torch
from torch import Tensor, nn

from tiramisu.models.blocks import BATCH_NORM_EPS, initialize_he_uniform
from tiramisu.models.fc_densenet import VARIANTS


class TextbookBlock(nn.Module):
    """A dense block that keeps a list of features and concatenates it before every layer."""

    def __init__(self, in_channels: int, num_layers: int, growth_rate: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(in_channels + index * growth_rate, eps=BATCH_NORM_EPS),
                nn.ReLU(inplace=True),
                nn.Conv2d(in_channels + index * growth_rate, growth_rate, kernel_size=3, padding=1),
                nn.Dropout(dropout),
            )
            for index in range(num_layers)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the input and each layer's features."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return features


class TextbookFCDenseNet(nn.Module):
    """FC-DenseNet of a variant of the paper, straight from its figure 1."""

    def __init__(self, num_classes: int = 11, variant: int = 103, dropout: float = 0.2) -> None:
        super().__init__()
        layers, growth = VARIANTS[variant]["layers_per_block"], VARIANTS[variant]["growth_rate"]
        levels = len(layers) // 2
        channels = 48
        self.stem = nn.Conv2d(3, channels, kernel_size=3, padding=1)
        self.down, self.pool, self.up, self.transpose = (nn.ModuleList() for _ in range(4))
        skips = []
        for count in layers[:levels]:
            self.down.append(TextbookBlock(channels, count, growth, dropout))
            channels += count * growth
            skips.append(channels)
        for width in skips:
            self.pool.append(
                nn.Sequential(
                    nn.BatchNorm2d(width, eps=BATCH_NORM_EPS),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(width, width, kernel_size=1),
                    nn.Dropout(dropout),
                    nn.MaxPool2d(2),
                )
            )
        self.bottleneck = TextbookBlock(channels, layers[levels], growth, dropout)
        for below in layers[levels:-1]:
            self.transpose.append(nn.ConvTranspose2d(below * growth, below * growth, kernel_size=3, stride=2))
        for below, count, skip in zip(layers[levels:], layers[levels + 1 :], reversed(skips), strict=False):
            channels = below * growth + skip
            self.up.append(TextbookBlock(channels, count, growth, dropout))
        self.classifier = nn.Conv2d(channels + layers[-1] * growth, num_classes, kernel_size=1)
        initialize_he_uniform(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map float images (B, 3, H, W) to logits (B, num_classes, H, W)."""
        x = self.stem(x)
        skips = []
        for block, pool in zip(self.down, self.pool, strict=True):
            skips.append(torch.cat(block(x), 1))
            x = pool(skips[-1])
        features = self.bottleneck(x)
        for transpose, block in zip(self.transpose, self.up, strict=True):
            skip = skips.pop()
            upsampled = transpose(torch.cat(features[1:], 1))[:, :, : skip.shape[2], : skip.shape[3]]
            features = block(torch.cat([upsampled, skip], 1))
        return self.classifier(torch.cat(features, 1))
