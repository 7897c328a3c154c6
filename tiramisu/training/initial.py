"""Starting from the weights of another training, perhaps for other classes."""

from pathlib import Path
from typing import Any, NamedTuple

from tiramisu.errors import WeightsError
from tiramisu.labels import LabelSet
from tiramisu.models.network import SegmentationNetwork, build_network, check_state, read_weights_file
from tiramisu.weights import WEIGHTS_FILE, inspect_weights


class Beginning(NamedTuple):
    """What a training starts from.

    Attributes:
        network: with the weights.
        summary: a line that says what was kept.
        protocol: how the weights came about, as far as they say.
    """

    network: SegmentationNetwork
    summary: str
    protocol: dict[str, Any]


def start_from(folder: Path, network: SegmentationNetwork, labels: LabelSet) -> Beginning:
    """Load weights into a network; where the classes are others, all but its classifier.

    Args:
        folder: of the weights, as training writes it.
        network: takes the weights, if they fit; else one like theirs is built.
        labels: the classes to learn.

    Raises:
        WeightsError: the weights are missing or damaged, or for images of other channels.
    """
    config, described, _ = inspect_weights(folder)
    state = read_weights_file(folder / WEIGHTS_FILE)
    known = list(described.names) if described is not None else None
    protocol = config.get("protocol", {})
    same_classes = known == list(labels.names)
    theirs = config.get("in_channels", 3)
    if theirs != network.in_channels:
        raise WeightsError(f"the weights in {folder} are for images of {theirs} channels, the data have "
                           f"{network.in_channels}; see --data.folder.in_channels")  # fmt: skip
    in_place = ""
    if not _fits(network, state, folder):
        network = build_network(config, folder, num_classes=len(labels))
        in_place = ", in place of the network that is configured"
    prefix = classifier_name(network) + "."
    kept = state if same_classes else {name: value for name, value in state.items() if not name.startswith(prefix)}
    complete = {**network.state_dict(), **kept}
    check_state(network, complete, folder / WEIGHTS_FILE)
    network.load_state_dict(complete)
    kind = type(network).__name__ + in_place
    if same_classes:
        summary = f"Starting from {folder} ({kind}): all {len(kept)} tensors kept, the classes are the same."
        return Beginning(network, summary, protocol)
    before = f"{len(known)} others" if known else "others"
    renewed = f"its classifier is renewed for {len(labels)} classes (it knew {before}); {len(kept)} tensors kept"
    return Beginning(network, f"Starting from {folder} ({kind}): {renewed}.", protocol)


def classifier_name(network: SegmentationNetwork) -> str:
    """Return the name of the module that ends a network."""
    (last,) = network.stages()[-1]
    return next(name for name, module in network.named_modules() if module is last)


def _fits(network: SegmentationNetwork, state: dict[str, Any], folder: Path) -> bool:
    prefix = classifier_name(network) + "."
    body = {name: value for name, value in state.items() if not name.startswith(prefix)}
    own = {name: value for name, value in network.state_dict().items() if name.startswith(prefix)}
    try:
        check_state(network, {**own, **body}, folder)
    except WeightsError:
        return False
    return True
