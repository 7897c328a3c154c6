"""What segmenting costs a user: engines against each other, whole folders, and the first mask after the start."""

import contextlib
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tiramisu.benchmarking.contenders import Contender
from tiramisu.benchmarking.timing import race, relative
from tiramisu.data.camvid import CamVid
from tiramisu.data.streets import draw_scene
from tiramisu.images import decode_image
from tiramisu.inference.engines import OPENVINO_GRAPH, open_engine
from tiramisu.inference.folder import FolderRun
from tiramisu.inference.graphs import write_int8, write_openvino
from tiramisu.inference.inputs import find_inputs
from tiramisu.inference.journal import Journal
from tiramisu.inference.outputs import OutputFolder, Wanted
from tiramisu.inference.segmenter import Options, Segmenter
from tiramisu.models import FCDenseNet, SegmentationNetwork

INT8 = "openvino-int8"
CALIBRATION_IMAGES = 4  # enough for the speed, which is all that is measured here
LOAD = "import sys; from tiramisu.models import load_network; load_network(sys.argv[1])"


class Measured(NamedTuple):
    """A ratio of two times, smallest and largest of it, and the seconds of both."""

    ratio: float
    spread: tuple[float, float]
    seconds: float
    baseline_seconds: float


class Size(NamedTuple):
    """How large a network is: trainable parameters, and multiply-accumulates for one image."""

    parameters: int
    multiply_accumulates: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f} M parameters, {self.multiply_accumulates / 1e9:.1f} G multiply-accumulates"


def measure_size(network: SegmentationNetwork, size: tuple[int, int]) -> Size:
    """Count parameters, and the multiply-accumulates of an image of height and width `size`; nothing is computed."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    network = copy.deepcopy(network).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, network.in_channels, *size, device="meta"))
    return Size(parameters, counter.get_total_flops() // 2)


@contextlib.contextmanager
def workplace(variant: Literal[56, 67, 103], size: tuple[int, int], scenes: int) -> Iterator[Path]:
    """Yield a folder with random weights (``weights``), their int8 graph (``int8``) and drawn scenes (``images``)."""
    with tempfile.TemporaryDirectory(prefix="tiramisu-") as name:
        folder = Path(name)
        torch.manual_seed(0)
        network = FCDenseNet(variant=variant)
        network.labels = CamVid.labels
        network.save_pretrained(folder / "weights")
        (folder / "images").mkdir()
        for number in range(scenes):
            Image.fromarray(draw_scene(0, number, *size)[0]).save(folder / "images" / f"{number:04d}.png")
        yield folder


def add_int8(folder: Path) -> None:
    """Write the int8 graph of a workplace."""
    (folder / "int8").mkdir()
    network = FCDenseNet.from_pretrained(folder / "weights")
    write_openvino(network, folder / "float.xml")
    images = sorted((folder / "images").iterdir())[:CALIBRATION_IMAGES]
    write_int8(
        folder / "float.xml", [decode_image(image).pixels[None] for image in images], folder / "int8" / OPENVINO_GRAPH
    )


def engine_contenders(template: Contender, folder: Path, engines: list[str]) -> list[Contender]:
    """Return a contender for every engine, and for the int8 graph where there is one."""
    contenders = [
        Contender(engine, engine, template.variant, "infer", 1, template.size, weights=folder / "weights")
        for engine in engines
    ]
    if (folder / "int8").is_dir():
        weights = folder / "int8"
        contenders.append(Contender(INT8, "openvino", template.variant, "infer", 1, template.size, weights=weights))
    return contenders


def measure_folder(weights: Path, images: Path, rounds: int) -> Measured:
    """Time a whole folder, from files to files, against the network alone on the same images in memory."""
    segmenter = Segmenter(open_engine(weights))
    decoded = [decode_image(entry.path).pixels for entry in find_inputs([str(images)])]
    segmenter(decoded[0])

    def whole() -> float:
        with tempfile.TemporaryDirectory(prefix="tiramisu-") as name:
            output = OutputFolder(Path(name), segmenter.labels, Wanted())
            with Journal(Path(name), {}) as journal:
                output.begin()
                started = time.perf_counter()
                for _ in FolderRun(segmenter, output, journal, Options()).run(find_inputs([str(images)])):
                    pass
                output.write_tables(journal, {})
                return time.perf_counter() - started

    def alone() -> float:
        started = time.perf_counter()
        for image in decoded:
            segmenter(image)
        return time.perf_counter() - started

    seconds = race({"whole": whole, "alone": alone}, rounds, warmup=0)
    ratio, spread = relative(seconds["alone"], seconds["whole"])
    return Measured(ratio, spread, min(seconds["whole"]), min(seconds["alone"]))


def measure_start(weights: Path, image: Path, rounds: int) -> Measured:
    """Time `predict` on one image, from process start to exit, against importing torch and loading the network."""

    def predict() -> float:
        with tempfile.TemporaryDirectory(prefix="tiramisu-") as name:
            return _run("-m", "tiramisu.predict", str(image), f"--output={name}", f"--weights={weights}")

    seconds = race({"predict": predict, "load": lambda: _run("-c", LOAD, str(weights))}, rounds, warmup=1)
    ratio, spread = relative(seconds["predict"], seconds["load"])
    return Measured(ratio, spread, min(seconds["predict"]), min(seconds["load"]))


def _run(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started
