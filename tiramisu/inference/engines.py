"""What computes logits: torch, OpenVINO or ONNX Runtime behind one interface.

The engines are imported when they are used: a graph that runs in OpenVINO starts in a fraction of the time that
importing torch takes.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.labels import LabelSet
from tiramisu.weights import WEIGHTS_FILE, content_hash, inspect_weights
from tiramisu.weights.checks import MAX_CLASSES, parse_json

EngineName = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Literal["auto", "bf16", "fp32"]

GRAPH_KEY = "tiramisu"  # under which exported graphs carry their card
OPENVINO_GRAPH, ONNX_GRAPH = "model.xml", "model.onnx"
GRAPH_PREFIX = "graph-"  # of the graphs that lie beside weights
LARGEST_GRID = 4096  # pixels, as of networks in torch
GRAPH_VERSION = 1  # to be raised when networks compute in another way: older graphs are left aside then


@dataclasses.dataclass(frozen=True)
class Card:
    """What a network's user must know.

    Attributes:
        labels: the classes.
        min_size: smallest height and width that it takes.
        grid: in pixels; where tiles begin at multiples of it, pooling sees the same squares as in the whole image.
        protocol: how the weights came about.
        channels: of the images: 3 for RGB.
    """

    labels: LabelSet
    min_size: int
    grid: int
    protocol: dict[str, Any]
    channels: int = 3

    @property
    def view(self) -> tuple[int, int] | None:
        """Return the height and width of the images of training, where these were whole views of a camera."""
        match self.protocol:
            case {"whole_views": True, "resolution": [int(height), int(width)]} if height > 0 and width > 0:
                return height, width
        return None

    def to_json(self) -> str:
        """Return a JSON text for the metadata of a graph."""
        return json.dumps({**dataclasses.asdict(self), "labels": self.labels.to_dict()})

    @classmethod
    def from_json(cls, text: str, source: Path) -> "Card":
        """Rebuild a card.

        Raises:
            WeightsError: the text is not one.
        """
        if not text:
            raise WeightsError(f"{source} was not exported by tiramisu: it does not name its classes")
        values = parse_json(text, source)
        try:
            labels = LabelSet.from_dict(values["labels"])
            card = cls(**{**values, "labels": labels})
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{source} was not exported by tiramisu: it does not name its classes "
                               f"({error})") from error  # fmt: skip
        for name, number, limit in (
            ("min_size", card.min_size, LARGEST_GRID), ("grid", card.grid, LARGEST_GRID),
            ("channels", card.channels, LARGEST_GRID), ("number of classes", len(labels), MAX_CLASSES),
        ):  # fmt: skip
            if type(number) is not int or not 1 <= number <= limit:
                raise WeightsError(f"{source}: its {name} {number!r} is no whole number from 1 to {limit}")
        if not isinstance(card.protocol, dict):
            raise WeightsError(f"{source}: its protocol is no mapping")
        return card


def check_output(card: Card, output: Sequence[int | None], source: Path) -> None:
    """Check that a graph's logits fit what it says of itself.

    Args:
        card: of the graph.
        output: shape of its output, none where a length is open.
        source: path of the graph.

    Raises:
        WeightsError: they are not (batch, classes, height, width).
    """
    if len(output) != 4 or output[1] not in (None, len(card.labels)):
        shown = " x ".join("?" if length is None else str(length) for length in output)
        raise WeightsError(f"{source}: its output of {shown} does not fit its {len(card.labels)} classes")


def check_input(card: Card, given: Sequence[int | None], source: Path) -> None:
    """Check that a graph takes images as it says; arguments and errors as `check_output`."""
    if len(given) != 4 or given[3] not in (None, card.channels):
        shown = " x ".join("?" if length is None else str(length) for length in given)
        raise WeightsError(f"{source}: its input of {shown} does not fit images of {card.channels} channels")


def check_logits(engine: "Engine", source: Path) -> None:
    """Compute the logits of one small image, to find out whether a graph computes anything.

    Raises:
        WeightsError: it does not, or its logits are NaN, infinite or of another size.
    """
    card = engine.card
    image = np.full((1, card.min_size, card.min_size + card.grid, card.channels), 127, np.uint8)
    expected = (1, len(card.labels), *image.shape[1:3])
    try:
        logits = engine.logits(image)
    except WeightsError:
        raise
    except Exception as error:  # the engines' exceptions have no common class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{source} cannot compute ({reason}); export it again") from error
    if logits.shape != expected:
        raise WeightsError(f"{source}: its logits have the shape {logits.shape}, not {expected}; export it again")
    if not np.isfinite(logits).all():
        raise WeightsError(f"{source} computes NaN or infinite values; export it again from intact weights")


class Engine(Protocol):
    """A network that is ready to run.

    Attributes:
        card: its classes and limits.
        description: engine, device and precision in a few words.
    """

    card: Card
    description: str

    def logits(self, images: UInt8Array) -> FloatArray:
        """Map images to class logits; may be called from several threads.

        Args:
            images: uint8 (B, H, W, channels), height and width of at least `card.min_size`.

        Returns:
            float32 (B, classes, H, W).
        """
        ...

    def sample(self, images: UInt8Array, passes: int) -> Generator[FloatArray, None, None]:
        """Yield logits of several passes with dropout on, the same ones each time.

        Raises:
            ConfigError: the engine has no dropout.
        """
        ...


def open_engine(
    weights: Path, engine: EngineName = "auto", device: str = "auto", precision: Precision = "auto"
) -> Engine:
    """Open weights or an exported graph.

    Args:
        weights: a folder that training wrote, or what `tiramisu.export` wrote.
        engine: `auto` is the fastest for the device: torch on GPUs, else OpenVINO where it is installed. Where weights
            bring no graph for OpenVINO and ONNX Runtime, it is made at first use and kept in the user's cache folder.
        device: cuda, mps, cpu, or `auto` for the first there is.
        precision: `auto` is bf16 where the hardware has it; ONNX Runtime and exported int8 graphs keep their own.

    Raises:
        ConfigError: the engine is not installed, or cannot open these weights or use this device.
        WeightsError: the weights are missing or damaged.
    """
    graph = find_graph(weights)
    written_for: EngineName = "auto"
    if graph is not None:
        written_for = "onnxruntime" if graph.suffix == ".onnx" else "openvino"
        if engine not in ("auto", written_for):
            raise ConfigError(f"{weights} is a graph for {written_for}; --engine {engine} cannot open it")
        engine = written_for
    if engine == "auto":
        on_cpu = device == "cpu" or (device == "auto" and not may_have_accelerator())
        engine = "openvino" if on_cpu and is_installed("openvino") else "torch"
    if engine == "torch":
        from tiramisu.inference.torch_engine import TorchEngine

        return TorchEngine.open(weights, device, precision)
    if not is_installed(engine):
        raise ConfigError(f"--engine {engine} is not installed; install it with: pip install {engine}")
    if engine == "openvino" and device not in ("auto", "cpu"):
        raise ConfigError(f"--engine openvino runs on the CPU; for --device {device} take --engine torch")
    if graph is not None:
        opened = open_graph(engine, graph, device, precision)
        check_logits(opened, graph)
        return opened
    inspect_weights(weights)  # graphs beside weights read the same file, and check nothing
    beside = graph_beside(weights)
    if beside.is_file():
        try:
            return open_graph(engine, beside, device, precision)
        except WeightsError as error:  # damaged, or its weights lie behind a link that the engine does not follow
            print(f"{error}. Another one takes its place.", file=sys.stderr)
    from tiramisu.inference.graph_cache import cached_graph

    name = OPENVINO_GRAPH if engine == "openvino" else ONNX_GRAPH
    try:
        return open_graph(engine, cached_graph(weights, name), device, precision)
    except WeightsError:  # damaged by a full disk, perhaps
        return open_graph(engine, cached_graph(weights, name, anew=True), device, precision)


def open_graph(engine: EngineName, graph: Path, device: str = "auto", precision: Precision = "auto") -> Engine:
    """Open a graph in OpenVINO or ONNX Runtime; for arguments and errors see `open_engine`."""
    if engine == "openvino":
        from tiramisu.inference.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(graph, precision)
    from tiramisu.inference.onnx_engine import OnnxEngine

    return OnnxEngine(graph, device, precision)


def find_graph(weights: Path) -> Path | None:
    """Return the exported graph at a path, if that is what lies there.

    Raises:
        WeightsError: nothing lies there.
    """
    if weights.is_dir():
        graphs = [weights / name for name in (OPENVINO_GRAPH, ONNX_GRAPH) if (weights / name).is_file()]
        if graphs and not (weights / WEIGHTS_FILE).is_file():
            return graphs[0]
        return None
    if not weights.is_file():
        raise WeightsError(f"no weights at {weights}; give a folder that training wrote, or an exported graph")
    if weights.suffix in (".onnx", ".xml"):
        return weights
    raise WeightsError(f"{weights} is no folder of weights and no exported graph (.onnx, or a folder with .xml)")


def graph_beside(weights: Path) -> Path:
    """Return where the graph of a folder of weights lies if it came with them; its name is of these weights alone."""
    return weights / f"{GRAPH_PREFIX}{GRAPH_VERSION}-{content_hash(weights)}.onnx"


def remove_other_graphs(weights: Path) -> None:
    """Remove graphs that came with the weights that were in a folder before."""
    for file in {*weights.glob(f"{GRAPH_PREFIX}*.onnx")} - {graph_beside(weights)}:
        file.unlink()


def is_installed(engine: str) -> bool:
    """Tell whether an engine's package is installed, without importing it."""
    return importlib.util.find_spec(engine) is not None


def may_have_accelerator() -> bool:
    """Tell whether it is worth asking torch for a GPU; importing torch takes seconds."""
    if sys.platform.startswith("linux"):
        return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return True
