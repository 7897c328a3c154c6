"""Networks as graphs for OpenVINO and ONNX Runtime: uint8 images in, logits out, the classes' names inside."""

import errno
import logging
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ConfigError
from tiramisu.files import atomic_path
from tiramisu.inference.engines import GRAPH_KEY, ONNX_GRAPH, Card, graph_beside, is_installed
from tiramisu.inference.openvino_engine import import_openvino, openvino_core
from tiramisu.inference.torch_engine import images_to_float, network_card
from tiramisu.models import SegmentationNetwork, load_network
from tiramisu.weights import WEIGHTS_FILE
from tiramisu.weights.checks import read_header

ONNX_OPSET = 18


class Uint8Network(nn.Module):
    """A network whose input is what images are: uint8 (B, H, W, channels)."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes, H, W)."""
        return self.network(images_to_float(images.permute(0, 3, 1, 2)))


def example(card: Card) -> Tensor:
    """Return a small batch to trace with; the sizes in the graph stay open."""
    return torch.zeros(2, 2 * card.min_size, 3 * card.min_size, card.channels, dtype=torch.uint8)


def write_openvino(network: SegmentationNetwork, path: Path) -> None:
    """Write a network as OpenVINO graph, weights in half precision.

    Args:
        network: on the CPU; it is put into eval mode.
        path: of the .xml file; the .bin lies beside it.
    """
    ov = import_openvino()
    card = network_card(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, but four times as fast as torch.export here
        traced = trace(network, card)
        model = ov.convert_model(traced, example_input=example(card))
    model.reshape([-1, -1, -1, card.channels])
    model.inputs[0].tensor.set_names({"images"})
    model.outputs[0].tensor.set_names({"logits"})
    model.set_rt_info(card.to_json(), [GRAPH_KEY])
    save_openvino(model, path)


def save_openvino(model: Any, path: Path) -> None:
    """Save an OpenVINO model.

    Raises:
        OSError: it cannot be written, for example to a full disk.
    """
    try:
        import_openvino().save_model(model, path)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise OSError(errno.EIO, f"OpenVINO could not write it ({reason})", str(path)) from error


def trace(network: SegmentationNetwork, card: Card) -> Any:
    """Record what a network computes in eval mode."""
    wrapped = Uint8Network(network.eval()).requires_grad_(False)
    with torch.no_grad():
        # as a function: a module's trace copies every submodule and takes twice as long
        return torch.jit.trace(lambda images: wrapped(images), example(card), check_trace=False)


def write_onnx(network: SegmentationNetwork, path: Path) -> None:
    """Write a network as ONNX graph, float32.

    Args:
        network: on the CPU; it is put into eval mode.
        path: of the .onnx file.

    Raises:
        ConfigError: the package onnx is not installed, or the network cannot be written as ONNX.
    """
    import_onnx().save(build_onnx(network, torch.onnx.TrainingMode.EVAL), path)


def add_graph(folder: Path) -> Path:
    """Put an ONNX graph into a folder of weights, for OpenVINO and ONNX Runtime to open them without torch.

    It is small: its tensors are those of model.safetensors, by their places in the file (ONNX's external data).

    Returns:
        Path of the graph; its name tells which weights it belongs to.

    Raises:
        ConfigError: the package onnx is not installed, or the network cannot be written as ONNX.
        WeightsError: the weights are missing or damaged.
    """
    onnx = import_onnx()
    # PRESERVE: EVAL multiplies batch norms into convolutions, whose weights would then be others than in the file.
    model = build_onnx(load_network(folder), torch.onnx.TrainingMode.PRESERVE)
    places = read_header(folder / WEIGHTS_FILE)
    casts = []
    for tensor in model.graph.initializer:
        place = places.get(tensor.name.removeprefix("network."))
        if place is None or place.dtype not in ("F16", "F32"):  # a number of the computation, no weight
            continue
        name = tensor.name
        onnx.external_data_helper.set_external_data(tensor, WEIGHTS_FILE, place.offset, place.length)
        tensor.ClearField("raw_data")
        if place.dtype == "F16":
            tensor.name, tensor.data_type = f"{name}.half", onnx.TensorProto.FLOAT16
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = graph_beside(folder)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def import_onnx() -> Any:
    """Import the package that writes ONNX.

    Raises:
        ConfigError: it is not installed.
    """
    if not is_installed("onnx"):
        raise ConfigError("writing ONNX needs a package that is not installed: pip install onnx")
    import onnx

    return onnx


def build_onnx(network: SegmentationNetwork, training: torch.onnx.TrainingMode) -> Any:
    """Return a network in eval mode as ONNX model, with its card.

    Raises:
        ConfigError: the package onnx is not installed, or the network cannot be written as ONNX.
    """
    onnx = import_onnx()
    card = network_card(network)
    axes = {0: "batch", 1: "height", 2: "width"}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")  # for FC-DenseNet103 the newer exporter takes half a minute, this one seconds
        try:
            torch.onnx.export(
                Uint8Network(network.eval()).requires_grad_(False),
                (example(card),),
                str(Path(scratch) / ONNX_GRAPH),
                dynamo=False,
                opset_version=ONNX_OPSET,
                training=training,
                do_constant_folding=training == torch.onnx.TrainingMode.EVAL,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": axes, "logits": {0: "batch", 2: "height", 3: "width"}},
            )
        except RuntimeError as error:  # an operation that ONNX does not have, for any size of image
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"{type(network).__name__} cannot be written as ONNX: {reason}") from error
        model = onnx.load(Path(scratch) / ONNX_GRAPH)
    onnx.helper.set_model_props(model, {GRAPH_KEY: card.to_json()})
    return model


def write_int8(graph: Path, images: Iterable[UInt8Array], path: Path) -> None:
    """Quantise an OpenVINO graph to 8-bit integers with NNCF.

    Args:
        graph: the float graph.
        images: uint8 (1, H, W, 3), to find the ranges of activations with.
        path: of the .xml file to write.

    Raises:
        ConfigError: the package nncf is not installed.
    """
    if not is_installed("nncf"):
        raise ConfigError("int8 needs a package that is not installed: pip install nncf")
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    calibration = list(images)
    model = openvino_core().read_model(graph)
    card = str(model.get_rt_info([GRAPH_KEY]).astype(str))
    convolutions = [
        node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"
    ]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(calibration),
        # Symmetric ranges are faster, and nearly all activations come from ReLU, where nothing is lost by it.
        preset=nncf.QuantizationPreset.PERFORMANCE,
        # The classifier and the upsampling see features of very different ranges, not normalised: together they would
        # change 4 % of the pixels of CamVid val, all other layers 0.4 %.
        ignored_scope=nncf.IgnoredScope(
            names=[convolutions[0], convolutions[-1]], types=["ConvolutionBackpropData"], validate=False
        ),
        subset_size=len(calibration),
    )
    quantized.set_rt_info(card, [GRAPH_KEY])
    save_openvino(quantized, path)
