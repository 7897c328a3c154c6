"""Measure speed and memory against the textbook implementation: ``python -m tiramisu.benchmark train|infer``."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from json import dumps
from typing import Literal

import torch

from tiramisu.benchmarking.contenders import Contender, Process, Task
from tiramisu.benchmarking.timing import Timing, format_timings, race, relative
from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.device import default_device, default_precision
from tiramisu.errors import ConfigError

OURS, TEXTBOOK, UNTUNED, DOUBLE = "tiramisu", "textbook", "textbook as it comes", "tiramisu, twice the pixels"


def benchmark(
    task: Task,
    variant: Literal[56, 67, 103] = 103,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    rounds: int = 7,
    warmup: int = 2,
    smp: Sequence[str] = (),
    json: bool = False,
) -> None:
    """Time an FC-DenseNet against its textbook implementation, in turn, each in a process of its own.

    "textbook as it comes" is what a user gets who changes nothing: float32, contiguous tensors, the system's
    allocator. All others run in bfloat16 where the hardware has it, channels_last, and with an allocator that keeps
    large tensors.

    Args:
        task: `train` is forward, loss, backward and optimiser; `infer` is forward in eval mode.
        variant: which FC-DenseNet.
        size: height and width of the images. Default: 224 x 224 to train, 360 x 480 to infer.
        batch: images per step. Default: 4 to train, 1 to infer.
        rounds: timed steps of each contender.
        warmup: untimed steps before.
        smp: architectures of segmentation_models_pytorch to add, such as [unet/resnet34].
        json: print JSON.

    Raises:
        ConfigError: an option is out of range.
    """
    size = size or ((224, 224) if task == "train" else (360, 480))
    batch = (4 if task == "train" else 1) if batch is None else batch
    if batch < 1 or min(size) < 32 or rounds < 1 or warmup < 0:
        raise ConfigError("--batch and --rounds must be at least 1, --warmup 0, and --size [32,32]")
    ours = Contender(OURS, "tiramisu", variant, task, batch, size)
    contenders = [
        ours,
        *(dataclasses.replace(ours, name=name, network=name) for name in [TEXTBOOK, *smp]),
        dataclasses.replace(ours, name=UNTUNED, network="textbook", tuned=False),
    ]
    if task == "infer":
        contenders.append(dataclasses.replace(ours, name=DOUBLE, size=(2 * size[0], size[1])))
    with contextlib.ExitStack() as stack:
        processes = {contender.name: stack.enter_context(Process(contender)) for contender in contenders}
        for process in processes.values():
            process.wait()
        seconds = race({name: process.step for name, process in processes.items()}, rounds, warmup)
        memory = {name: process.peak_memory() for name, process in processes.items()}
    timings = [
        Timing(
            name, times, *relative(times, seconds[TEXTBOOK]), memory[name], memory[name] / max(memory[TEXTBOOK], 1.0)
        )
        for name, times in seconds.items()
    ]
    device = default_device()
    precision = str(default_precision(device)).removeprefix("torch.")
    what = "training step" if task == "train" else "inference"
    title = f"FC-DenseNet{variant} {what}, {batch} x {size[0]} x {size[1]}, {precision}, {device.type}"
    if json:
        rows = [{**dataclasses.asdict(timing), "median": timing.median} for timing in timings]
        print(dumps({"title": title, "torch": torch.__version__, "baseline": TEXTBOOK, "timings": rows}, indent=2))
        return
    print(f"{title}\n{format_timings(timings, TEXTBOOK)}")
    if task == "infer":
        ratio, (low, high) = relative(seconds[DOUBLE], seconds[OURS])
        print(f"Twice the pixels take {ratio:.2f} ({low:.2f} to {high:.2f}) times as long.")


@command("tiramisu.benchmark")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    args = ["--json=true" if arg == "--json" else arg for arg in (sys.argv[1:] if args is None else args)]
    run_function(benchmark, "tiramisu.benchmark", __doc__, args, positional=True)


if __name__ == "__main__":
    main()
