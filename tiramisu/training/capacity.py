"""How large a crop and batch the memory of this machine takes: measured with training steps in another process."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch

from tiramisu.allocator import keep_large_tensors
from tiramisu.cli import hide_library_noise
from tiramisu.device import default_device, default_precision, peak_memory_mib
from tiramisu.models import SegmentationNetwork

MIB = 2**20
CGROUP = Path("/sys/fs/cgroup")
SHARE = 0.7  # of the free memory that is used
CROP_STEP = 32
MAX_CROP = 512
BATCHES = (16, 8, 4, 2)
CPU_BATCHES = (4, 2)  # more only takes longer there


@dataclasses.dataclass(frozen=True)
class Step:
    """What a training step takes.

    Attributes:
        crop: height and width in pixels.
        batch: crops per step.
        memory: peak in MiB, above that of the imported libraries.
        seconds: of a step, after the first.
    """

    crop: int
    batch: int
    memory: float
    seconds: float


def free_memory() -> float:
    """Return the memory in MiB that training could have, of the GPU if there is one."""
    if default_device().type == "cuda":
        return torch.cuda.mem_get_info()[0] / MIB
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # a container's limit, which "max" stands for none of
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    return free / MIB


def measure_steps(network: SegmentationNetwork, sizes: Sequence[tuple[int, int]]) -> list[Step]:
    """Measure training steps of a network in a process of its own.

    Args:
        network: any that maps images to logits.
        sizes: crop and batch of each, from small to large.

    Returns:
        The steps that fit into the memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(network, sizes, theirs), daemon=True)
    process.start()
    theirs.close()
    steps: list[Step] = []
    with suppress(EOFError):  # it was killed for its memory, or failed
        while len(steps) < len(sizes):
            steps.append(ours.recv())
    process.join(10)
    process.terminate()
    return steps


def _measure(network: SegmentationNetwork, sizes: Sequence[tuple[int, int]], connection: Connection) -> None:
    keep_large_tensors()
    hide_library_noise()
    device = default_device()
    precision = default_precision(device)
    before = peak_memory_mib() or 0
    network.to(memory_format=torch.channels_last)
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters())
    for crop, batch in sizes:
        images = torch.rand(batch, network.in_channels, crop, crop, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = 0.0
        for _ in range(3):
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                loss = network(images).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        peak = (peak_memory_mib() or 0) - before
        if device.type == "cuda":
            peak = round(torch.cuda.max_memory_allocated() / MIB)
        connection.send(Step(crop, batch, float(peak), seconds))


def recommend(
    network: SegmentationNetwork, side: int, progress: Callable[[str], object] = lambda text: None
) -> tuple[Step, float] | None:
    """Find the largest crop, then the largest batch, that the free memory takes.

    Two small steps tell how memory grows with the pixels of a batch; the recommendation is measured again.

    Args:
        network: that is to be trained.
        side: of the shorter side of most images; crops are no larger.
        progress: is told what is being measured.

    Returns:
        The step, and the free memory in MiB; none where not even the smallest fits.
    """
    free = free_memory()
    budget = SHARE * free
    progress("small crops")
    steps = measure_steps(network, [(128, 2), (192, 2)])
    if len(steps) < 2:
        return (steps[0], free) if steps else None
    small, larger = steps
    pixels = [step.batch * step.crop**2 for step in (small, larger)]
    slope = max((larger.memory - small.memory) / (pixels[1] - pixels[0]), 1e-6)
    fixed = small.memory - slope * pixels[0]
    batches = BATCHES if default_device().type == "cuda" else CPU_BATCHES
    largest = max(CROP_STEP, min(MAX_CROP, side) // CROP_STEP * CROP_STEP)
    for crop in range(largest, 0, -CROP_STEP):
        for batch in batches:
            if fixed + slope * batch * crop**2 > budget:
                continue
            progress(f"a crop of {crop} and a batch of {batch}")
            measured = measure_steps(network, [(crop, batch)])
            if measured and measured[0].memory <= free:
                return measured[0], free
    return small, free
