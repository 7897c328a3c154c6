"""What a benchmark compares, each contender in a process of its own."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
import torch
from torch import nn

from tiramisu.allocator import keep_large_tensors
from tiramisu.benchmarking.textbook import TextbookFCDenseNet
from tiramisu.cli import hide_library_noise
from tiramisu.data.camvid import CamVid
from tiramisu.device import default_device, default_precision, peak_memory_mib
from tiramisu.errors import TiramisuError
from tiramisu.inference.engines import EngineName, open_engine
from tiramisu.inference.segmenter import Segmenter
from tiramisu.models import FCDenseNet, SmpNetwork
from tiramisu.training.losses import SegmentationLoss
from tiramisu.training.optim import build_optimizer

Task = Literal["train", "infer"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network and the way it is run.

    Attributes:
        name: in the table.
        network: `tiramisu`, `textbook`, ARCHITECTURE/ENCODER of segmentation_models_pytorch, or an engine.
        variant: which FC-DenseNet.
        task: a training step (forward, loss, backward, optimiser) or inference in eval mode.
        batch: images per step.
        size: height and width.
        tuned: bfloat16 where the hardware has it, channels_last, and an allocator that keeps large tensors; else
            float32, contiguous, and the allocator as it is.
        weights: for an engine: what it opens.
    """

    name: str
    network: str
    variant: Literal[56, 67, 103]
    task: Task
    batch: int
    size: tuple[int, int]
    tuned: bool = True
    weights: Path | None = None

    def build(self) -> nn.Module:
        """Build the network, with random weights."""
        if self.network == "tiramisu":
            return FCDenseNet(variant=self.variant)
        if self.network == "textbook":
            return TextbookFCDenseNet(variant=self.variant)
        architecture, _, encoder = self.network.partition("/")
        return SmpNetwork(len(CamVid.labels), architecture, encoder)

    def prepare(self) -> Callable[[], None]:
        """Return what is timed."""
        if self.weights is not None:
            return self._prepare_engine(self.weights)
        device = default_device()
        precision = default_precision(device) if self.tuned else torch.float32
        layout = torch.channels_last if self.tuned else torch.contiguous_format
        autocast = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.batch, 3, *self.size, generator=generator).to(device).contiguous(memory_format=layout)
        network = self.build().to(device).to(memory_format=layout)
        if self.task == "infer":
            network.eval()

            def infer() -> None:
                with torch.inference_mode(), autocast:
                    network(images)

            return infer

        # void among the classes
        target = torch.randint(0, len(CamVid.labels) + 1, (self.batch, *self.size), generator=generator).to(device)
        loss = SegmentationLoss(CamVid.labels).to(device)
        optimizer = build_optimizer("rmsprop", network.train(), 1e-3, 2e-4)

        def step() -> None:
            with autocast:
                value = loss(network(images), target)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _prepare_engine(self, weights: Path) -> Callable[[], None]:
        segmenter = Segmenter(open_engine(weights, cast(EngineName, self.network)))
        image = np.random.default_rng(0).integers(0, 256, (*self.size, 3), np.uint8)

        def segment() -> None:
            segmenter(image)

        return segment


class Process:
    """A contender at work in its own process, so that its memory and its allocator are its own.

    Use as a context manager.

    Raises:
        TiramisuError: the contender failed.
    """

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.connection.send("end")
        self.process.join(timeout=10)
        self.process.terminate()

    def wait(self) -> None:
        """Wait until it is built, so that building disturbs no timing."""
        self._receive()

    def step(self) -> float:
        """Run once; return the seconds it took."""
        return self._ask("step")

    def peak_memory(self) -> float:
        """Return the largest memory it has had above that of the imported libraries, in MiB."""
        return self._ask("memory")

    def _ask(self, question: str) -> float:
        with suppress(OSError):  # it may have failed and gone, leaving its reason behind
            self.connection.send(question)
        return self._receive()

    def _receive(self) -> float:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = "its process died, probably for want of memory: take a smaller --batch or --size"
        if isinstance(answer, str):
            raise TiramisuError(f"{self.name}: {answer}")
        return float(answer)


def _serve(contender: Contender, connection: Connection) -> None:
    hide_library_noise()
    if contender.tuned:
        keep_large_tensors()
    try:
        imported = _memory()
        run = contender.prepare()
        connection.send(0.0)
        while (question := connection.recv()) != "end":
            if question == "memory":
                connection.send(_memory() - imported)
                continue
            started = time.perf_counter()
            run()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            connection.send(time.perf_counter() - started)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # whatever it is, the parent reports it
        reason = str(error).strip().splitlines() or [type(error).__name__]
        connection.send(reason[0])


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**2
    return float(peak_memory_mib() or 0)
