"""Export weights as graphs, or at half their size: ``python -m tiramisu.export --format onnx ...``."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tiramisu.arrays import UInt8Array
from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.data.loading import build_loader
from tiramisu.data.source import spread_evenly
from tiramisu.data.transforms import SegmentationDataset
from tiramisu.errors import ConfigError, ImageError, TiramisuError
from tiramisu.evaluate import DataOptions, open_labelled
from tiramisu.files import atomic_folder, atomic_path, refuse_foreign
from tiramisu.images import decode_image
from tiramisu.inference.engines import (
    OPENVINO_GRAPH,
    Engine,
    Precision,
    graph_beside,
    open_engine,
    open_graph,
    remove_other_graphs,
)
from tiramisu.inference.evaluation import evaluate
from tiramisu.inference.graphs import add_graph, write_int8, write_onnx, write_openvino
from tiramisu.inference.inputs import find_inputs
from tiramisu.inference.segmenter import TILE, Segmenter
from tiramisu.inference.torch_engine import TorchEngine
from tiramisu.models import load_network
from tiramisu.models.network import store_as_float16
from tiramisu.weights import CONFIG_FILE, WEIGHTS_FILE, find_weights

Format = Literal["onnx", "openvino", "openvino-int8", "float16"]

CHECKED_IMAGES = 4
CHECK_SIZES = ((96, 128), (150, 210))  # of the images that are compared, where no others are given
# Share of pixels whose class must be the same as torch's, both in float32 but for what is int8. Integers move the
# classes along borders, and more in weights that are hardly trained; what that costs, labelled data tell.
AGREEMENT = {"onnx": 0.995, "openvino": 0.995, "openvino-int8": 0.9, "float16": 0.995}
CALIBRATION_IMAGES = 100
# Files that are written, and what tells them from other people's; the tensors beside them carry no mark.
GRAPH_MARKS, WEIGHTS_MARKS = (
    {OPENVINO_GRAPH: b"tiramisu"},
    {"README.md": b"trained with tiramisu", CONFIG_FILE: b'"protocol"'},
)
MARKS = {"onnx": {"": b"tiramisu"}, "openvino": GRAPH_MARKS, "openvino-int8": GRAPH_MARKS, "float16": WEIGHTS_MARKS}
TENSORS = {"openvino": ("model.bin", OPENVINO_GRAPH), "openvino-int8": ("model.bin", OPENVINO_GRAPH),
           "float16": (WEIGHTS_FILE, CONFIG_FILE)}  # fmt: skip
DEFAULT_DATA = DataOptions()


def export(
    weights: str,
    format: Format,  # noqa: A002  # the option's name
    output: Path,
    calibration: str | None = None,
    images: int = CALIBRATION_IMAGES,
    data: DataOptions = DEFAULT_DATA,
) -> None:
    """Write a graph with classes and normalisation inside, checked against torch, for images of any size.

    Its input are uint8 images (batch, height, width, 3) in RGB, its output logits (batch, classes, height, width).
    `float16` is a folder of weights of half the size, which is used and trained on as any other; their graph lies
    beside them, so that OpenVINO and ONNX Runtime open them without torch.

    Args:
        weights: folder of weights, or name of shipped ones.
        format: `onnx` is float32, `openvino` runs in bf16 where the hardware has it, `openvino-int8` in 8-bit integers;
            `float16` is for storing.
        output: file ending in .onnx, or folder for OpenVINO's graph or the weights.
        calibration: folder of images like those that the network will see; needed for int8.
        images: how many of them to use at most.
        data: labelled data on which to print the loss of mIoU, such as --data.root DIR.

    Raises:
        ConfigError: an option is missing or wrong, or a package is not installed.
        TiramisuError: the graph does not compute what torch computes.
        WeightsError: the weights are missing or damaged.
    """
    if (format == "onnx") != (output.suffix == ".onnx"):
        raise ConfigError(f"--output {output} must end in .onnx for --format onnx, and only then")
    if format == "openvino-int8" and calibration is None:
        raise ConfigError("--format openvino-int8 needs --calibration, a folder of images to find value ranges with")
    if images < 1:
        raise ConfigError("--images must be at least 1")
    if output.is_file() and format != "onnx":
        raise ConfigError(f"--output {output} is a file; give a folder")
    other = output / (OPENVINO_GRAPH if format == "float16" else WEIGHTS_FILE)
    if other.is_file():
        raise ConfigError(
            f"--output {output} holds {other.name}; give another folder: one holds weights or a graph, not both"
        )
    for name, mark in MARKS[format].items():
        refuse_foreign(output / name if name else output, mark)
    if format in TENSORS and not (output / TENSORS[format][1]).exists():
        refuse_foreign(output / TENSORS[format][0], b"\0never\0")  # without the file that describes it, it is not ours
    folder = find_weights(weights)
    if data != DEFAULT_DATA:  # what is wrong with it is told before the work
        open_labelled(Segmenter(TorchEngine.open(folder, "cpu")), weights, data)
    network = load_network(folder)
    samples = draw_samples(network.in_channels)
    if calibration is not None:
        samples = read_samples(calibration, images, network.grid_size, network.in_channels)
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        with atomic_path(output) as temporary:
            write_onnx(network, temporary)
            shares = check(open_exported(temporary, format, "fp32"), folder, format, samples)
    else:
        with atomic_folder(output) as staging:
            if format == "float16":
                store_as_float16(network)
                network.save_pretrained(staging)
            elif format == "openvino":
                write_openvino(network, staging / OPENVINO_GRAPH)
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    write_openvino(network, Path(scratch) / OPENVINO_GRAPH)
                    print(f"Calibrating on {len(samples)} images.", file=sys.stderr)
                    batches = [sample[None] for sample in samples]
                    write_int8(Path(scratch) / OPENVINO_GRAPH, batches, staging / OPENVINO_GRAPH)
            shares = check(open_exported(staging, format, "fp32"), folder, format, samples)
            if format == "float16":
                add_checked_graph(staging, samples)
        if format == "float16":
            remove_other_graphs(output)
    print(f"Checked against torch: {100 * min(shares):.2f} % of the pixels or more have the same class.")
    if data != DEFAULT_DATA:
        compare(folder, output, format, data)
    print(f"Exported: {output}")


def read_samples(inputs: str, count: int, smallest: int, channels: int) -> list[UInt8Array]:
    """Read images to calibrate with, evenly spread over a folder.

    Raises:
        ConfigError: there are none that can be used.
    """
    entries = [entry for entry in find_inputs([inputs]) if not entry.is_video]
    samples = []
    for entry in [entries[position] for position in spread_evenly(len(entries), count)]:
        try:
            # The network will see no more at once.
            pixels = decode_image(entry.path, channels=channels).pixels[:TILE, :TILE]
        except ImageError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        if min(pixels.shape[:2]) >= smallest:
            samples.append(pixels)
    if not samples:
        raise ConfigError(f"no images of at least {smallest} x {smallest} pixels in --calibration {inputs}")
    return samples


def draw_samples(channels: int) -> list[UInt8Array]:
    """Return pictures of several sizes to compare with: built-in street scenes."""
    from tiramisu.data.streets import draw_scene

    scenes = [draw_scene(0, number, *size)[0] for number, size in enumerate(CHECK_SIZES)]
    return [np.ascontiguousarray(scene[..., np.arange(channels) % 3]) for scene in scenes]


def add_checked_graph(weights: Path, samples: Sequence[UInt8Array]) -> None:
    """Put a graph beside halved weights where it can be had and computes what torch computes."""
    try:
        graph = add_graph(weights)
        check(open_graph("openvino", graph, precision="fp32"), weights, "openvino", samples)
    except TiramisuError as error:
        graph_beside(weights).unlink(missing_ok=True)
        print(f"No graph lies beside these weights; it will be made at first use. The reason: {error}", file=sys.stderr)


def check(exported: Engine, weights: Path, kind: Format, samples: Sequence[UInt8Array]) -> list[float]:
    """Compare what was written with torch in float32; return the share of equal pixels of each image.

    Raises:
        TiramisuError: too few are equal.
    """
    found = Segmenter(exported)
    reference = Segmenter(TorchEngine.open(weights, "cpu", "fp32"))
    shares = [float(np.mean(found(sample).mask == reference(sample).mask)) for sample in samples[:CHECKED_IMAGES]]
    if min(shares) < AGREEMENT[kind]:
        raise TiramisuError(
            f"the graph gives only {100 * min(shares):.1f} % of the pixels the same class as torch; it is not exported"
        )
    return shares


def open_exported(path: Path, kind: Format, precision: Precision) -> Engine:
    """Open what was written: a graph in its engine, weights in torch."""
    return open_engine(path, "torch" if kind == "float16" else "auto", precision=precision)


def compare(weights: Path, exported: Path, kind: Format, data: DataOptions) -> None:
    """Print the mIoU on labelled data of the weights in torch, in float32, and of what was exported.

    Graphs compute as they will be used, in bfloat16 where the hardware has it; halved weights in float32, so that the
    loss is that of halving.
    """
    scores = []
    opened = open_exported(exported, kind, "fp32" if kind == "float16" else "auto")
    for path, engine in ((weights, TorchEngine.open(weights, "auto", "fp32")), (exported, opened)):
        segmenter = Segmenter(engine)
        source = open_labelled(segmenter, path, data)
        result = evaluate(segmenter, build_loader(SegmentationDataset(source), 1))
        scores.append(100 * result.scores.mean_iou)
        print(f"{engine.description:<36} mIoU {scores[-1]:.2f}")
    print(f"Loss of mIoU: {scores[0] - scores[1]:.2f} points")


@command("tiramisu.export")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(export, "tiramisu.export", __doc__, args)


if __name__ == "__main__":
    main()
