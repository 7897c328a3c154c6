"""Weights that come with tiramisu, and finding weights by name."""

from pathlib import Path

from tiramisu.errors import WeightsError

SHIPPED = Path(__file__).parent
DEFAULT_NAME = "camvid"


def shipped_weights() -> list[str]:
    """Return the names of the weights that come with tiramisu."""
    return sorted(config.parent.name for config in SHIPPED.glob("*/config.json"))


def find_weights(name: str | Path) -> Path:
    """Return the path of weights: an existing path, or the name of shipped ones.

    Raises:
        WeightsError: there are none.
    """
    path = Path(name)
    if path.exists():
        return path
    if str(name) in shipped_weights():
        return SHIPPED / str(name)
    known = ", ".join(shipped_weights())
    remedy = f"shipped ones: {known}" if known else "python -m tiramisu.train makes some"
    raise WeightsError(f"no weights at {name}; give a folder that training wrote or an exported graph ({remedy})")


def default_weights(runs: Path = Path("runs")) -> Path:
    """Return the weights to use where none are named: the shipped ones, else those of the newest run.

    Raises:
        WeightsError: there are none.
    """
    if DEFAULT_NAME in shipped_weights():
        return SHIPPED / DEFAULT_NAME
    trained = sorted(runs.glob("*/version_*/model/config.json"), key=lambda file: file.stat().st_mtime)
    if not trained:
        raise WeightsError("there are no weights yet; train some with python -m tiramisu.train, or give --weights")
    return trained[-1].parent
