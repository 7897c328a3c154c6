"""Weights that come with tiramisu, and finding weights by name."""

import difflib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from tiramisu.errors import WeightsError
from tiramisu.labels import LabelSet
from tiramisu.weights.checks import Place, check_config, check_values, read_config_file, read_header

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
SHIPPED = Path(__file__).parent
DEFAULT_NAME = "camvid"
# camvid takes less than a quarter of FC-DenseNet103's multiplications.
ALIASES = {"camvid-fast": "camvid"}


def shipped_weights() -> dict[str, Path]:
    """Return the folders of the weights that come with tiramisu by their names, aliases left out."""
    return {config.parent.name: config.parent for config in sorted(SHIPPED.glob(f"*/{CONFIG_FILE}"))}


def find_weights(name: str | Path) -> Path:
    """Return the path of weights.

    Args:
        name: a text may name shipped weights (./camvid is the folder of the same name); a `Path` is always a path.

    Raises:
        WeightsError: there are none, or the name is empty.
    """
    if not str(name).strip():
        raise WeightsError("the name of the weights is empty; give a folder that training wrote, or a name")
    shipped = shipped_weights()
    if isinstance(name, str) and ALIASES.get(name, name) in shipped:
        return shipped[ALIASES.get(name, name)]
    path = Path(name)
    if path.is_dir() or path.is_file():
        return path
    if path.exists():
        raise WeightsError(f"{path} is no regular file; give a folder that training wrote or an exported graph")
    known = [*shipped, *(alias for alias, meant in ALIASES.items() if meant in shipped)]
    remedy = f"shipped ones: {', '.join(known)}" if known else "python -m tiramisu.train makes some"
    if similar := difflib.get_close_matches(str(name).lower().replace("_", "-"), known, n=1):
        remedy += f"; perhaps you mean {similar[0]}" if isinstance(name, str) else "; a name is a text, no Path"
    raise WeightsError(f"no weights at {name}; give a folder that training wrote or an exported graph ({remedy})")


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a folder of weights says of them: architecture, its options, classes, protocol.

    Raises:
        WeightsError: the folder is none of weights, or its configuration is damaged.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise WeightsError(f"no weights in {folder}: it has no {name}; give a folder that training wrote, "
                               f"such as runs/quickstart/version_0/model")  # fmt: skip
    return read_config_file(folder / CONFIG_FILE)


class Inspected(NamedTuple):
    """What a folder of weights holds, found plausible before any of it is used.

    Attributes:
        config: architecture, its options, classes, protocol; without what would fetch other weights.
        labels: the classes, where they are described.
        places: of the tensors in the file.
    """

    config: dict[str, Any]
    labels: LabelSet | None
    places: dict[str, Place]


def inspect_weights(folder: Path) -> Inspected:
    """Read and check everything in a folder of weights but how its tensors fit together.

    Raises:
        WeightsError: the folder is none of weights, or what it holds makes no sense; see `tiramisu.weights.checks`.
    """
    config = read_config(folder)
    if config.get("encoder_weights") is not None:  # all weights are here; none are fetched
        config["encoder_weights"] = None
    places = read_header(folder / WEIGHTS_FILE)
    labels = check_config(config, folder / CONFIG_FILE, places)
    check_values(folder / WEIGHTS_FILE, places)
    return Inspected(config, labels, places)


def content_hash(path: Path) -> str:
    """Return what tells the weights at a path from all others, wherever they lie: 12 hexadecimal digits.

    Raises:
        WeightsError: a file is missing.
    """
    digest = hashlib.sha256()
    names = (WEIGHTS_FILE, CONFIG_FILE) if (path / WEIGHTS_FILE).is_file() else ("model.xml", "model.bin", "model.onnx")
    files = [path / name for name in names if (path / name).is_file()] if path.is_dir() else [path]
    if path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    for file in files:
        if file.exists() and not file.is_file():
            raise WeightsError(f"{file} is no regular file")
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except FileNotFoundError as error:
            raise WeightsError(f"{file} is missing") from error
    return digest.hexdigest()[:12]


def default_weights(runs: Path = Path("runs")) -> Path:
    """Return the weights to use where none are named: the shipped ones, else those of the newest run.

    Raises:
        WeightsError: there are none.
    """
    if DEFAULT_NAME in shipped_weights():
        return shipped_weights()[DEFAULT_NAME]
    trained = sorted(runs.glob("*/version_*/model/config.json"), key=lambda file: file.stat().st_mtime)
    if not trained:
        raise WeightsError("there are no weights yet; train some with python -m tiramisu.train, or give --weights")
    return trained[-1].parent
