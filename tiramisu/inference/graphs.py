"""Networks as graphs for OpenVINO and ONNX Runtime: uint8 images in, logits out, the classes' names inside."""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiramisu.arrays import UInt8Array
from tiramisu.errors import ConfigError
from tiramisu.inference.engines import GRAPH_KEY, Card, is_installed
from tiramisu.inference.openvino_engine import import_openvino, openvino_core
from tiramisu.inference.torch_engine import images_to_float, network_card
from tiramisu.models import SegmentationNetwork

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
    ov.save_model(model, path)


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
        ConfigError: the package onnx is not installed.
    """
    if not is_installed("onnx"):
        raise ConfigError("writing ONNX needs a package that is not installed: pip install onnx")
    import onnx

    card = network_card(network)
    axes = {0: "batch", 1: "height", 2: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for FC-DenseNet103 the newer exporter takes half a minute, this one seconds
        torch.onnx.export(
            Uint8Network(network.eval()).requires_grad_(False),
            (example(card),),
            str(path),
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": axes, "logits": {0: "batch", 2: "height", 3: "width"}},
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {GRAPH_KEY: card.to_json()})
    onnx.save(model, path)


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
    ov = import_openvino()
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
    ov.save_model(quantized, path)
