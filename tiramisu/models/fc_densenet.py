"""FC-DenseNet, "The One Hundred Layers Tiramisu" (Jégou et al., 2017), and a classifier from the same blocks."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from tiramisu.models.blocks import (
    BATCH_NORM_EPS,
    DenseBlock,
    TransitionDown,
    TransitionDownKind,
    TransitionUp,
    TransitionUpKind,
    build_classifier,
    initialize_he_uniform,
    run_up_path,
)
from tiramisu.models.fused import FusedDenseBlock, encode_decode, supports, wants_statistics
from tiramisu.models.kernels import Kernel
from tiramisu.models.network import SegmentationNetwork

BlockKind = Literal["auto", "reference", "fused"]


class Variant(TypedDict):
    """What distinguishes the networks of the paper."""

    layers_per_block: tuple[int, ...]
    growth_rate: int


VARIANTS: dict[int, Variant] = {
    56: {"layers_per_block": (4,) * 11, "growth_rate": 12},
    67: {"layers_per_block": (5,) * 11, "growth_rate": 16},
    103: {"layers_per_block": (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4), "growth_rate": 16},
}


class FCDenseNet(SegmentationNetwork):
    """Dense blocks down to a bottleneck and up again, with a skip connection at every resolution.

    By default exactly the authors' network. On the way up, blocks hand on only their new features; the last one
    hands its full stack to the 1x1 classifier.

    Args:
        num_classes: classes predicted, void not counted.
        variant: which network of the paper provides the options that are not given.
        layers_per_block: dense layers of every block from the first to the last, an odd number of blocks with the
            bottleneck in the middle; or one number for all of them. Default: the variant's.
        growth_rate: features that each dense layer adds. Default: the variant's.
        num_poolings: how often the resolution is halved; follows from `layers_per_block` where that is a list.
        stem_channels: filters of the first convolution.
        stem_stride: 2 halves the resolution in the first convolution and lets the classifier predict each 2 x 2
            pixels at once (PixelShuffle): about a quarter of the cost.
        in_channels: channels of the input images.
        dropout: probability of dropping an activation, after every convolution of dense layers and TransitionDown.
        transition_down: kind of `TransitionDown`.
        transition_up: kind of `TransitionUp`.
        mean: subtracted from the images, one value or one per channel; none: nothing, as in the paper.
        std: the images are divided by it; none: by nothing.
        block: how the network is computed; parameters and results are the same. `fused` is faster and smaller on CPUs
            (`tiramisu.models.fused`), `reference` is the textbook's way, `auto` is `fused` on CPUs with a C++ compiler.
            Fused there are no second derivatives, and dropout draws its masks in another way.

    Attributes:
        stage_channels: channels of the stack at the end of every stage (the m column of the paper's table 2): stem,
            down blocks, bottleneck, up blocks.

    Raises:
        ValueError: the options do not fit together.
    """

    def __init__(
        self,
        num_classes: int = 11,
        variant: Literal[56, 67, 103] = 103,
        layers_per_block: int | Sequence[int] | None = None,
        growth_rate: int | None = None,
        num_poolings: int | None = None,
        stem_channels: int = 48,
        stem_stride: Literal[1, 2] = 1,
        in_channels: int = 3,
        dropout: float = 0.2,
        transition_down: TransitionDownKind = "max",
        transition_up: TransitionUpKind = "transposed",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        block: BlockKind = "auto",
    ) -> None:
        super().__init__(num_classes, in_channels, 0.0 if mean is None else mean, 1.0 if std is None else std)
        if block not in get_args(BlockKind):
            raise ValueError(f"block must be one of {', '.join(get_args(BlockKind))}, got {block}")
        self.block = block
        defaults = VARIANTS[variant]
        layers = resolve_layers(
            defaults["layers_per_block"] if layers_per_block is None else layers_per_block, num_poolings
        )
        growth = defaults["growth_rate"] if growth_rate is None else growth_rate
        if growth < 1 or stem_channels < 1:
            raise ValueError(f"growth_rate and stem_channels must be at least 1, got {growth} and {stem_channels}")
        levels = len(layers) // 2
        self.grid_size = max(self.grid_size, stem_stride * 2**levels)

        new = [count * growth for count in layers]
        skips = [stem_channels + sum(new[: level + 1]) for level in range(levels)]
        bottleneck_in = skips[-1] if skips else stem_channels

        self.stem = nn.Conv2d(in_channels, stem_channels, kernel_size=3, padding=1, stride=stem_stride)
        self.down_blocks = nn.ModuleList(
            DenseBlock(channels - added, count, growth, dropout)
            for channels, added, count in zip(skips, new, layers, strict=False)
        )
        self.transitions_down = nn.ModuleList(TransitionDown(channels, dropout, transition_down) for channels in skips)
        self.bottleneck = DenseBlock(bottleneck_in, layers[levels], growth, dropout)
        transitions_up = [
            TransitionUp(below, skip, transition_up)
            for below, skip in zip(new[levels:-1], reversed(skips), strict=True)
        ]
        self.transitions_up = nn.ModuleList(transitions_up)
        self.up_blocks = nn.ModuleList(
            DenseBlock(transition.out_channels, count, growth, dropout)
            for transition, count in zip(transitions_up, layers[levels + 1 :], strict=True)
        )
        blocks: list[Any] = [*self.down_blocks, self.bottleneck, *self.up_blocks]
        self.stage_channels = (stem_channels, *(block.in_channels + block.new_channels for block in blocks))
        self.classifier = build_classifier(self.stage_channels[-1], num_classes, stem_stride)
        initialize_he_uniform(self)

    def stages(self) -> list[list[nn.Module]]:
        """Return stem, down blocks, bottleneck, up blocks and classifier, each block with its transition."""
        down = [[block, transition] for block, transition in zip(self.down_blocks, self.transitions_down, strict=True)]
        up = [[transition, block] for transition, block in zip(self.transitions_up, self.up_blocks, strict=True)]
        return [[self.stem], *down, [self.bottleneck], *up, [self.classifier]]

    def compute_logits(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes, >= H, >= W)."""
        suits = x.device.type == "cpu" and Kernel.compiler_works
        paths = (self.down_blocks, self.transitions_down, self.bottleneck, self.transitions_up, self.up_blocks)
        down: Any = zip(self.down_blocks, self.transitions_down, strict=True)
        up: Any = zip(self.transitions_up, self.up_blocks, strict=True)
        if (self.block == "fused" or (self.block == "auto" and suits)) and supports(*paths):
            return self.classifier(encode_decode(self.stem(x), down, self.bottleneck, up, wants_statistics(self)))
        stack = self.stem(x)
        skips = []
        for block, transition in down:
            stack = block(stack)
            skips.append(stack)
            stack = transition(stack)
        return self.classifier(run_up_path(stack, self.bottleneck, up, skips))


def resolve_layers(layers_per_block: int | Sequence[int], num_poolings: int | None) -> list[int]:
    """Return the layers of every block as a list of odd length.

    Raises:
        ValueError: the list is even, empty, has a block without layers or contradicts `num_poolings`.
    """
    if isinstance(layers_per_block, int):
        layers = [layers_per_block] * (2 * (5 if num_poolings is None else num_poolings) + 1)
    else:
        layers = list(layers_per_block)
    if len(layers) % 2 == 0:
        raise ValueError(f"layers_per_block needs an odd number of blocks (down, bottleneck, up), got {len(layers)}")
    if num_poolings is not None and len(layers) != 2 * num_poolings + 1:
        raise ValueError(f"layers_per_block has {len(layers)} blocks, but num_poolings={num_poolings} needs "
                         f"{2 * num_poolings + 1}")  # fmt: skip
    if min(layers) < 1:
        raise ValueError(f"every block needs at least one layer, got {layers}")
    return layers


def fc_densenet56(num_classes: int = 11, **options: Any) -> FCDenseNet:
    """Build FC-DenseNet56 (1.4 M parameters); `options` as of `FCDenseNet`."""
    return FCDenseNet(num_classes, variant=56, **options)


def fc_densenet67(num_classes: int = 11, **options: Any) -> FCDenseNet:
    """Build FC-DenseNet67 (3.5 M parameters); `options` as of `FCDenseNet`."""
    return FCDenseNet(num_classes, variant=67, **options)


def fc_densenet103(num_classes: int = 11, **options: Any) -> FCDenseNet:
    """Build FC-DenseNet103 (9.3 M parameters); `options` as of `FCDenseNet`."""
    return FCDenseNet(num_classes, variant=103, **options)


class DenseNetClassifier(nn.Module):
    """An image classifier from the same blocks: stem, dense blocks with TransitionDown between, average, linear.

    Args:
        num_classes: classes predicted.
        in_channels: channels of the input images.
        layers_per_block: dense layers of each block.
        growth_rate: features that each dense layer adds.
        stem_channels: filters of the first convolution.
        dropout: probability of dropping an activation.
        transition_down: kind of `TransitionDown`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        layers_per_block: Sequence[int] = (4, 4, 4),
        growth_rate: int = 16,
        stem_channels: int = 64,
        dropout: float = 0.2,
        transition_down: TransitionDownKind = "average",
    ) -> None:
        super().__init__()
        channels = stem_channels
        stages: list[nn.Module] = [nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)]
        for index, count in enumerate(layers_per_block):
            if index:
                stages.append(TransitionDown(channels, dropout, transition_down))
            stages.append(FusedDenseBlock(channels, count, growth_rate, dropout))
            channels += count * growth_rate
        self.features = nn.Sequential(*stages, nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)
        initialize_he_uniform(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map float images (B, in_channels, H, W) to logits (B, num_classes)."""
        return self.classifier(torch.mean(self.features(images), dim=(2, 3)))
