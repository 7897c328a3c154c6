"""What computes logits: torch, OpenVINO or ONNX Runtime behind one interface.

The engines are imported when they are used: a graph that runs in OpenVINO starts in a fraction of the time that
importing torch takes.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, Protocol

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.labels import LabelSet
from tiramisu.weights import WEIGHTS_FILE, content_hash

EngineName = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Literal["auto", "bf16", "fp32"]

GRAPH_KEY = "tiramisu"  # under which exported graphs carry their card
OPENVINO_GRAPH, ONNX_GRAPH = "model.xml", "model.onnx"
GRAPH_PREFIX = "graph-"  # of the graphs that lie beside weights
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
        try:
            values = json.loads(text)
            return cls(**{**values, "labels": LabelSet.from_dict(values["labels"])})
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"{source} was not exported by tiramisu: it does not name its classes") from error


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
        return open_graph(engine, graph, device, precision)
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
    if not weights.exists():
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
