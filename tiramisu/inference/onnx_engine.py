"""Running an exported graph in ONNX Runtime."""

from collections.abc import Generator, Sequence
from pathlib import Path

import onnxruntime

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.inference.engines import GRAPH_KEY, Card, Precision, check_input, check_output

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


class OnnxEngine:
    """A graph in ONNX Runtime, in the precision in which it was exported.

    Args:
        graph: the .onnx file.
        device: cuda, cpu, or `auto` for the first there is.
        precision: `auto` or `fp32`.

    Raises:
        ConfigError: the device or the precision cannot be had.
        WeightsError: the graph is damaged or was not exported by tiramisu.
    """

    def __init__(self, graph: Path, device: str = "auto", precision: Precision = "auto") -> None:
        if precision == "bf16":
            raise ConfigError("--engine onnxruntime computes in float32; for --precision bf16 take another engine")
        available = onnxruntime.get_available_providers()
        wanted = [name for name in PROVIDERS if device in ("auto", name) and PROVIDERS[name] in available]
        if not wanted:
            raise ConfigError(f"--device {device} cannot be used by this build of ONNX Runtime; it has {available}")
        try:
            self.session = onnxruntime.InferenceSession(graph, providers=[PROVIDERS[name] for name in wanted])
            metadata = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # its exceptions have no common class
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{graph} cannot be opened by ONNX Runtime ({reason}); export it again") from error
        self.card = Card.from_json(metadata.get(GRAPH_KEY, ""), graph)
        (images, *_), (logits, *_) = self.session.get_inputs(), self.session.get_outputs()
        check_input(self.card, _lengths(images.shape), graph)
        check_output(self.card, _lengths(logits.shape), graph)
        used = self.session.get_providers()[0]
        where = next((name for name, provider in PROVIDERS.items() if provider == used), used)
        self.description = f"ONNX Runtime, {where}, float32"

    def logits(self, images: UInt8Array) -> FloatArray:
        """See `Engine`."""
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]

    def sample(self, images: UInt8Array, passes: int) -> Generator[FloatArray, None, None]:
        """See `Engine`: there is no dropout in a graph."""
        raise ConfigError("mc-dropout needs dropout, which graphs do not have; take --engine torch")


def _lengths(shape: Sequence[int | str | None]) -> list[int | None]:
    """Return the lengths of a shape; open ones have names."""
    return [length if isinstance(length, int) else None for length in shape]
