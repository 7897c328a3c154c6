"""What every segmentation network here has in common: its input contract, and saving and loading."""

import errno
import json
import platform
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from tiramisu import __version__
from tiramisu.errors import WeightsError
from tiramisu.files import atomic_folder
from tiramisu.labels import LabelSet
from tiramisu.weights import CONFIG_FILE, WEIGHTS_FILE, find_weights, inspect_weights
from tiramisu.weights.checks import NOT_OPTIONS, RESTORE

MIN_SIZE = 32  # the five poolings of the paper leave one pixel of it
MAX_GRID = 4096  # seven poolings more than the paper's; smaller images are padded to it

MODEL_CARD = """\
---
{{ card_data }}
---

# {{ architecture }} trained with tiramisu

{{ summary }}

```python
from tiramisu.models import load_network

network = load_network("path/to/this/folder")  # eval mode
logits = network(image)                        # float RGB in [0, 1], (B, 3, H, W) -> (B, classes, H, W)
```
"""


class SegmentationNetwork(nn.Module, PyTorchModelHubMixin, model_card_template=MODEL_CARD, library_name="tiramisu"):
    """A network from images to class logits of the same size.

    Subclasses implement `compute_logits` on normalised images and are saved and loaded as a folder with
    ``model.safetensors`` and ``config.json``; nothing is ever unpickled.

    Args:
        num_classes: classes predicted.
        in_channels: channels of the input images.
        mean: subtracted from the input, one value or one per channel, in the input's unit (0 to 1).
        std: the result is divided by it, likewise.

    Attributes:
        grid_size: smallest height and width that the layers can process; smaller images are padded to it.
        labels: what the classes mean, once known; stored in config.json.
        protocol: how the weights came about (data set, recipe, metrics, versions); stored in config.json.
    """

    architectures: ClassVar[dict[str, type["SegmentationNetwork"]]] = {}

    def __init__(
        self, num_classes: int, in_channels: int, mean: float | Sequence[float], std: float | Sequence[float]
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.grid_size = MIN_SIZE
        self.labels: LabelSet | None = None
        self.protocol: dict[str, Any] = {}
        self.mean: Tensor
        self.std: Tensor
        for name, value in (("mean", mean), ("std", std)):
            values = [value] * in_channels if isinstance(value, int | float) else list(value)
            if len(values) != in_channels:
                raise ValueError(f"{name} has {len(values)} values, but the images have {in_channels} channels")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SegmentationNetwork.architectures[cls.__name__] = cls

    def stages(self) -> list[list[nn.Module]]:
        """Return the parts of the network from its input to its output; the last one is the classifier.

        Learning rates may fall towards the input, and the parts before the last may be kept for the first epochs.
        """
        raise NotImplementedError

    def pretrained_parts(self) -> list[nn.Module]:
        """Return the parts that started from weights of another task; none where all of it starts from scratch."""
        return []

    def compute_logits(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes, >= H, >= W), top-left aligned."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Map images to class logits.

        Args:
            images: float tensor (B, in_channels, H, W), values in [0, 1], RGB; any H and W of at least 32.

        Returns:
            Logits (B, num_classes, H, W).

        Raises:
            ValueError: the shape does not fit.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(f"expected images (B, {self.in_channels}, H, W), got {tuple(images.shape)}")
        height, width = images.shape[-2:]
        if height < MIN_SIZE or width < MIN_SIZE:
            raise ValueError(f"images must be at least {MIN_SIZE} pixels high and wide, got {height} x {width}")
        x = (images - self.mean) / self.std
        if height < self.grid_size or width < self.grid_size:
            padding = (0, max(0, self.grid_size - width), 0, max(0, self.grid_size - height))
            x = F.pad(x, padding, mode="replicate")
        return self.compute_logits(x)[:, :, :height, :width]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and a model card into a folder, each complete or not at all."""
        assert isinstance(self._hub_mixin_config, dict)  # the mixin collects the arguments of __init__ in it
        config = {
            **self._hub_mixin_config,
            "architecture": type(self).__name__,
            "protocol": self.protocol,
        }
        if self.labels is not None:
            config["labels"] = self.labels.to_dict()
        kwargs.setdefault("config", config)
        kwargs.setdefault("model_card_kwargs", {"architecture": type(self).__name__, "summary": self._summary()})
        with atomic_folder(Path(save_directory)) as staging:
            try:
                pushed = super().save_pretrained(staging, **kwargs)
            except safetensors.SafetensorError as error:  # its way to say that the disk is full
                raise OSError(errno.EIO, str(error), str(Path(save_directory) / WEIGHTS_FILE)) from error
            # safetensors lets only the owner read its files; who serves the weights may be another user
            shutil.copymode(staging / CONFIG_FILE, staging / WEIGHTS_FILE)
        return pushed

    def _summary(self) -> str:
        lines = [f"- {key}: {json.dumps(value)}" for key, value in self.protocol.items()]
        return "\n".join(lines) or "Weights without a record of their training."

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        config: dict[str, Any] | None = None,
        map_location: str = "cpu",
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load safetensors only: unlike the mixin's own method there is no way back to pickled weights."""
        hub = {key: kwargs.pop(key) for key in ("revision", "cache_dir", "force_download", "local_files_only", "token")}
        if Path(model_id).is_dir():
            file = Path(model_id) / WEIGHTS_FILE
        else:
            file = Path(hf_hub_download(repo_id=model_id, filename=WEIGHTS_FILE, **hub))
        inspected = inspect_weights(file.parent)
        if "encoder_weights" in kwargs:
            kwargs["encoder_weights"] = None  # all weights are in the file; none are fetched
        network = cls(**kwargs)
        load_weights_file(network, file, device=map_location, strict=strict)
        network.labels = inspected.labels
        network.protocol = inspected.config.get("protocol", {})
        return network.eval()


def store_as_float16(network: nn.Module) -> None:
    """Turn the weights of convolutions into float16 for saving; loading makes them float32 again.

    Biases and batch norm stay as they are: they are few, and a small variance would become 0.
    """
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()


def load_weights_file(network: nn.Module, file: Path, device: str = "cpu", strict: bool = True) -> None:
    """Load a safetensors file into `network`.

    Raises:
        WeightsError: the file is missing, is not safetensors, or belongs to another architecture.
    """
    state = read_weights_file(file, device)
    check_state(network, state, file, strict=strict)
    network.load_state_dict(state, strict=strict)


def read_weights_file(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: the file is missing or is not safetensors.
    """
    if not file.is_file():
        raise WeightsError(f"no weights at {file}; give a folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        return load_file(file, device=device)
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{file} is not a readable safetensors file ({error}); only safetensors weights are loaded, "
            f"save them again with save_pretrained"
        ) from error


def check_state(network: nn.Module, state: dict[str, Tensor], source: Path, strict: bool = True) -> None:
    """Check that a state dict fits a network, tensor by tensor.

    Raises:
        WeightsError: it does not; the message names the first difference.
    """
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_shapes(own, {name: tuple(value.shape) for name, value in state.items()}, source, strict)


def check_shapes(
    own: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]], source: Path, strict: bool = True
) -> None:
    """Check that tensors have the names and shapes of a network's.

    Raises:
        WeightsError: they have not; the message names the first difference.
    """
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    differing = [name for name in own.keys() & given.keys() if tuple(own[name]) != tuple(given[name])]
    if differing:
        name = min(differing)
        found, expected = tuple(given[name]), tuple(own[name])
        difference = f"{name} is {found} there and {expected} here ({len(differing)} tensors differ)"
    elif strict and (missing or unexpected):
        difference = f"{len(missing)} tensors are missing and {len(unexpected)} are unknown, "
        difference += f"for example {(missing + unexpected)[0]}"
    else:
        return
    raise WeightsError(f"{source} holds another architecture: {difference}; use the options it was trained with")


def load_network(folder: str | Path) -> SegmentationNetwork:
    """Load a network of any architecture that tiramisu saved, in eval mode on the CPU.

    Args:
        folder: a folder with ``model.safetensors`` and ``config.json``, as `save_pretrained` or
            ``python -m tiramisu.train`` writes it, or the name of shipped weights.

    Raises:
        WeightsError: a file is missing or damaged, or the architecture is unknown.
    """
    folder = find_weights(folder)
    inspected = inspect_weights(folder)
    network = build_network(inspected.config, folder, {name: place.shape for name, place in inspected.places.items()})
    load_weights_file(network, folder / WEIGHTS_FILE)
    network.labels = inspected.labels
    network.protocol = inspected.config.get("protocol", {})
    return network.eval()


def build_network(
    config: Mapping[str, Any], folder: Path, shapes: Mapping[str, Sequence[int]] | None = None, **changes: Any
) -> SegmentationNetwork:
    """Build the network that a config.json describes.

    Args:
        config: its values.
        folder: that it lies in, for messages.
        shapes: of the tensors that the network must have; they are compared before memory is allocated.
        changes: options that replace those of the configuration.

    Raises:
        WeightsError: the architecture is unknown, its options make no sense, or the tensors are others.
    """
    options = {name: value for name, value in config.items() if name not in NOT_OPTIONS} | changes
    try:
        architecture = SegmentationNetwork.architectures[str(config["architecture"])]
        planned = _plan(architecture, options) if shapes is not None else None
        if planned is not None and shapes is not None:
            check_shapes(planned, shapes, folder / WEIGHTS_FILE)
        network = architecture(**options)
    except (ValueError, TypeError, KeyError, RuntimeError, MemoryError, AttributeError, IndexError) as error:
        known = ", ".join(sorted(SegmentationNetwork.architectures))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{folder / CONFIG_FILE} does not describe one of {known} ({reason}); {RESTORE}") from error
    if network.grid_size > MAX_GRID:
        raise WeightsError(f"{folder / CONFIG_FILE} describes a network for images of at least {network.grid_size} "
                           f"pixels; {MAX_GRID} is the limit")  # fmt: skip
    return network


def _plan(architecture: type[SegmentationNetwork], options: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a network's tensors without allocating any; nothing where its encoder needs their values."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = architecture(**options)
        except (NotImplementedError, RuntimeError, ValueError, TypeError):  # building it in earnest will tell
            return None
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def library_versions() -> dict[str, str]:
    """Return the versions that decide what the weights compute, for the protocol stamp."""
    versions = {"tiramisu": __version__, "python": platform.python_version()}
    return versions | {"torch": torch.__version__, "numpy": np.__version__}
