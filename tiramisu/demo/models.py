"""The models that a visitor can choose from, and what is known about each."""

import dataclasses
from pathlib import Path
from typing import Any

from tiramisu.errors import WeightsError
from tiramisu.weights import CONFIG_FILE, DEFAULT_NAME, read_config, shipped_weights


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights that can be chosen.

    Attributes:
        name: what the address of the page calls it: the name of shipped weights, or "run/version".
        path: of the folder.
        protocol: how the weights came about: data set, recipe, epochs, scores; empty where unknown.
    """

    name: str
    path: Path
    protocol: dict[str, Any]

    @property
    def title(self) -> str:
        """Return name and score in a line."""
        score = self.protocol.get("metrics", {}).get("mean_iou")
        return self.name if score is None else f"{self.name} · {100 * score:.1f} mIoU"

    @property
    def warning(self) -> str:
        """Return what a visitor must know before judging it; mostly empty."""
        if self.protocol.get("dataset") == "streets":
            return "This model has seen drawn street scenes only: expect little of it on photos."
        return ""

    @property
    def can_drop(self) -> bool:
        """Tell whether it was trained with dropout, which mc-dropout needs."""
        return bool(self.protocol.get("dropout"))

    @property
    def facts(self) -> dict[str, str]:
        """Return its card: what is known, in the order to show it."""
        metrics = self.protocol.get("metrics", {})
        resolution = self.protocol.get("resolution")
        known = {
            "Data set": self.protocol.get("dataset"),
            "mIoU": _score(metrics.get("mean_iou"), metrics.get("split")),
            "Global accuracy": _score(metrics.get("accuracy"), metrics.get("split")),
            "Network": self.protocol.get("network"),
            "Recipe": self.protocol.get("recipe"),
            "Epochs": self.protocol.get("epochs"),
            "Resolution": f"{resolution[1]} x {resolution[0]}" if resolution else None,
            "Batch norm": self.protocol.get("batch_norm"),
            "Precision": self.protocol.get("precision"),
            "Date": self.protocol.get("date"),
            "Licence": self.protocol.get("data_license"),
        }
        return {name: str(value) for name, value in known.items() if value is not None}


def find_models(runs: Path = Path("runs")) -> list[Model]:
    """Return the shipped weights, then those of training runs, the newest first; damaged ones are left out."""
    folders = sorted(shipped_weights().items(), key=lambda item: (item[0] != DEFAULT_NAME, item[0]))
    trained = [path.parent for path in runs.glob(f"*/version_*/model/{CONFIG_FILE}")]
    trained.sort(key=lambda folder: (folder / CONFIG_FILE).stat().st_mtime, reverse=True)
    folders += [(f"{folder.parts[-3]}/{folder.parts[-2]}", folder) for folder in trained]
    models = [_read(name, folder) for name, folder in folders]
    return [model for model in models if model is not None]


def _read(name: str, folder: Path) -> Model | None:
    try:
        config = read_config(folder)
        protocol = dict(config.get("protocol") or {})
        network = str(config["architecture"])
        if network == "FCDenseNet" and config.get("variant"):
            changed = config.get("layers_per_block") or config.get("growth_rate")
            network += " of its own layers" if changed else str(config["variant"])
            network += ", at half resolution" if config.get("stem_stride") == 2 else ""
        if config.get("in_channels", 3) != 3:
            return None  # the app is for photos
        model = Model(name, folder, {"network": network, "dropout": config.get("dropout"), **protocol})
        assert model.title and model.facts  # computed from what the file says, which may be anything
        return model
    except (WeightsError, ValueError, LookupError, TypeError, AttributeError, AssertionError):
        return None


def _score(value: float | None, split: str | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} ({split})"
