"""Measure speed and memory against the textbook: ``python -m tiramisu.benchmark train|infer|predict``."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Literal

import torch

from tiramisu.benchmarking.contenders import Contender, Process
from tiramisu.benchmarking.predicting import (
    add_int8,
    engine_contenders,
    measure_folder,
    measure_size,
    measure_start,
    workplace,
)
from tiramisu.benchmarking.timing import Timing, format_timings, race, relative
from tiramisu.cli import YES_NO, command, hide_library_noise, run_function, with_flags
from tiramisu.device import default_device, default_precision
from tiramisu.errors import ConfigError
from tiramisu.inference.engines import find_graph, is_installed
from tiramisu.models import load_network
from tiramisu.weights import find_weights

FOLDER_IMAGES = 12
FEW_ROUNDS = 3  # of what takes seconds
OURS, TEXTBOOK, UNTUNED, DOUBLE = "tiramisu", "textbook", "textbook as it comes", "tiramisu, twice the pixels"


def benchmark(
    task: Literal["train", "infer", "predict"],
    variant: Literal[56, 67, 103] = 103,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    rounds: int = 7,
    warmup: int = 2,
    smp: Sequence[str] = (),
    weights: Sequence[str] = (),
    json: bool = False,
) -> None:
    """Time an FC-DenseNet against its textbook implementation, in turn, each in a process of its own.

    "textbook as it comes" is what a user gets who changes nothing: float32, contiguous tensors, the system's
    allocator. All others run in bfloat16 where the hardware has it, channels_last, and with an allocator that keeps
    large tensors.

    Args:
        task: `train` is forward, loss, backward and optimiser; `infer` is forward in eval mode; `predict` is from image
            to mask on every engine, whole folders, and the start of the program.
        variant: which FC-DenseNet.
        size: height and width of the images. Default: 224 x 224 to train, 360 x 480 to infer.
        batch: images per step. Default: 4 to train, 1 to infer.
        rounds: timed steps of each contender.
        warmup: untimed steps before.
        smp: architectures of segmentation_models_pytorch to add, such as [unet/resnet34].
        weights: folders of weights, or names of shipped ones, to add to `predict`, such as [camvid].
        json: print JSON.

    Raises:
        ConfigError: an option is out of range.
        WeightsError: there are no such weights.
    """
    size = size or ((224, 224) if task == "train" else (360, 480))
    batch = (4 if task == "train" else 1) if batch is None else batch
    if batch < 1 or min(size) < 32 or rounds < 1 or warmup < 0:
        raise ConfigError("--batch and --rounds must be at least 1, --warmup 0, and --size [32,32]")
    if task == "predict":
        if smp or batch != 1:
            raise ConfigError("--smp and --batch are for train and infer")
        benchmark_predict(variant, size, rounds, warmup, {name: find_weights(name) for name in weights}, json)
        return
    if weights:
        raise ConfigError("--weights is for predict")
    ours = Contender(OURS, "tiramisu", variant, task, batch, size)
    contenders = [
        ours,
        *(dataclasses.replace(ours, name=name, network=name) for name in [TEXTBOOK, *smp]),
        dataclasses.replace(ours, name=UNTUNED, network="textbook", tuned=False),
    ]
    if task == "infer":
        contenders.append(dataclasses.replace(ours, name=DOUBLE, size=(2 * size[0], size[1])))
    timings = run_contenders(contenders, TEXTBOOK, rounds, warmup)
    device = default_device()
    precision = str(default_precision(device)).removeprefix("torch.")
    what = "training step" if task == "train" else "inference"
    title = f"FC-DenseNet{variant} {what}, {batch} x {size[0]} x {size[1]}, {precision}, {device.type}"
    if json:
        print_json(title, TEXTBOOK, timings)
        return
    print(f"{title}\n{format_timings(timings, TEXTBOOK)}")
    if task == "infer":
        seconds = {timing.name: timing.seconds for timing in timings}
        ratio, (low, high) = relative(seconds[DOUBLE], seconds[OURS])
        print(f"Twice the pixels take {ratio:.2f} ({low:.2f} to {high:.2f}) times as long.")


def benchmark_predict(
    variant: Literal[56, 67, 103],
    size: tuple[int, int],
    rounds: int,
    warmup: int,
    weights: Mapping[str, Path],
    json: bool,
) -> None:
    """Time all engines from image to mask, a folder of images, and the start of `predict`."""
    with workplace(variant, size, FOLDER_IMAGES) as folder:
        engines = [engine for engine in ("openvino", "torch", "onnxruntime") if is_installed(engine)]
        if is_installed("nncf") and "openvino" in engines:
            add_int8(folder)
        textbook = Contender(UNTUNED, "textbook", variant, "infer", 1, size, tuned=False)
        others = [dataclasses.replace(textbook, name=name, network="auto", tuned=True, weights=path)
                  for name, path in weights.items()]  # fmt: skip
        contenders = [*engine_contenders(textbook, folder, engines), *others, textbook]
        timings = run_contenders(contenders, UNTUNED, rounds, warmup)
        whole = measure_folder(folder / "weights", folder / "images", FEW_ROUNDS)
        start = measure_start(folder / "weights", next((folder / "images").iterdir()), FEW_ROUNDS)
        sizes = {f"FC-DenseNet{variant}": measure_size(load_network(folder / "weights"), size)}
    sizes |= {name: measure_size(load_network(path), size) for name, path in weights.items() if not find_graph(path)}
    title = f"FC-DenseNet{variant}, image to mask, {size[0]} x {size[1]}, {default_device().type}"
    if json:
        counts = {name: counted._asdict() for name, counted in sizes.items()}
        print_json(title, UNTUNED, timings, sizes=counts, folder=whole._asdict(), start=start._asdict())
        return
    print(f"{title}\n{format_timings(timings, UNTUNED)}")
    print(*(f"{name}: {counted}" for name, counted in sizes.items()), sep="\n")
    print(
        f"Folder of {FOLDER_IMAGES} PNGs: {FOLDER_IMAGES / whole.seconds:.2f} images/s, "
        f"{whole.ratio:.2f} ({whole.spread[0]:.2f} to {whole.spread[1]:.2f}) of the network's own rate.\n"
        f"First mask: {start.seconds:.1f} s from the start of predict to its end, {start.ratio:.2f} "
        f"({start.spread[0]:.2f} to {start.spread[1]:.2f}) times as long as importing torch and loading the network."
    )


def run_contenders(contenders: Sequence[Contender], baseline: str, rounds: int, warmup: int) -> list[Timing]:
    """Run contenders in turn, each in a process of its own."""
    with contextlib.ExitStack() as stack:
        processes = {contender.name: stack.enter_context(Process(contender)) for contender in contenders}
        for process in processes.values():
            process.wait()
        seconds = race({name: process.step for name, process in processes.items()}, rounds, warmup)
        memory = {name: process.peak_memory() for name, process in processes.items()}
    return [
        Timing(
            name, times, *relative(times, seconds[baseline]), memory[name], memory[name] / max(memory[baseline], 1.0)
        )
        for name, times in seconds.items()
    ]


def print_json(title: str, baseline: str, timings: Sequence[Timing], **more: object) -> None:
    """Print measurements for programs."""
    rows = [{**dataclasses.asdict(timing), "median": timing.median} for timing in timings]
    values = {"title": title, "torch": torch.__version__, "baseline": baseline, "timings": rows, **more}
    print(dumps(values, indent=2))


@command("tiramisu.benchmark")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    args = with_flags(sys.argv[1:] if args is None else args, {"json": YES_NO})
    run_function(benchmark, "tiramisu.benchmark", __doc__, args, positional=True)


if __name__ == "__main__":
    main()
