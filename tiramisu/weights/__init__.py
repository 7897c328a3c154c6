"""Weights that come with tiramisu, and finding weights by name."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

from tiramisu.errors import WeightsError

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
        WeightsError: there are none.
    """
    shipped = shipped_weights()
    if isinstance(name, str) and ALIASES.get(name, name) in shipped:
        return shipped[ALIASES.get(name, name)]
    path = Path(name)
    if path.exists():
        return path
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
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} does not describe a network: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{file} does not describe a network")
    return config


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
