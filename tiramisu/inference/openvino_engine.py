"""Running an exported graph in OpenVINO, on the CPU."""

import functools
import queue
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.inference.engines import GRAPH_KEY, Card, Precision, check_input, check_output

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


def import_openvino() -> Any:
    """Import OpenVINO without its usage statistics: where their package cannot be imported, nothing is sent."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the process and never let go.

    Its CPU plugin gives the thread that loads it a stack for signals, and unmaps that when the core goes. Where that
    happens in another thread, the next signal with a handler, such as the end of a child, kills the process.
    """
    return import_openvino().Core()


class OpenVinoEngine:
    """A graph in OpenVINO.

    Args:
        graph: the .xml file, with its .bin beside it; or one of ONNX.
        precision: `auto` is OpenVINO's choice, bf16 where the hardware has it.

    Raises:
        WeightsError: the graph is damaged or was not exported by tiramisu.
    """

    def __init__(self, graph: Path, precision: Precision = "auto") -> None:
        ov = import_openvino()
        core = openvino_core()
        try:
            model = core.read_model(graph)
            # where OpenVINO has the properties of its own graphs, and those of ONNX
            keys = [GRAPH_KEY] if model.has_rt_info([GRAPH_KEY]) else ["framework", GRAPH_KEY]
            if not model.has_rt_info(keys):
                raise WeightsError(f"{graph} was not exported by tiramisu: it does not name its classes")
            self.card = Card.from_json(str(model.get_rt_info(keys).astype(str)), graph)
            check_input(self.card, _lengths(model.inputs[0].get_partial_shape()), graph)
            check_output(self.card, _lengths(model.outputs[0].get_partial_shape()), graph)
            # One image on all cores is as fast as several on some of them, in less memory.
            config = {"PERFORMANCE_HINT": "LATENCY"}
            if precision != "auto":
                config["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
            self.compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WeightsError(f"{graph} cannot be opened by OpenVINO ({reason}); export it again") from error
        used = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        quantized = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
        kinds = ["int8"] * quantized + [{"f32": "float32", "bf16": "bfloat16"}.get(used, used)]
        self.description = f"OpenVINO, cpu, {' and '.join(kinds)}"
        self.tensor = ov.Tensor
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.requests.put(self.compiled.create_infer_request())  # one: it takes all cores anyway

    def logits(self, images: UInt8Array) -> FloatArray:
        """See `Engine`."""
        request = self.requests.get()
        try:
            request.infer({0: self.tensor(np.ascontiguousarray(images))})
            return np.array(request.get_output_tensor(0).data, np.float32)
        finally:
            self.requests.put(request)

    def sample(self, images: UInt8Array, passes: int) -> Generator[FloatArray, None, None]:
        """See `Engine`: there is no dropout in a graph."""
        raise ConfigError("mc-dropout needs dropout, which graphs do not have; take --engine torch")


def _lengths(shape: Any) -> list[int | None]:
    """Return the lengths of a partial shape, none where they are open."""
    if not shape.rank.is_static:
        return [None] * 4
    return [length.get_length() if length.is_static else None for length in shape]
