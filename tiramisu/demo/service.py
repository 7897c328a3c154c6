"""One network for all visitors: who comes first is served first, and not too many wait."""

import contextlib
import threading
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tiramisu.demo.limits import LIMITS
from tiramisu.errors import TiramisuError
from tiramisu.inference.segmenter import Options, Segmentation, Segmenter
from tiramisu.labels import LabelSet


class BusyError(TiramisuError):
    """Too many visitors want something at once."""


class Turnstile:
    """Lets one thread through at a time, in the order of arrival.

    Args:
        waiting: how many may wait.
    """

    def __init__(self, waiting: int = LIMITS.waiting) -> None:
        self.waiting = waiting
        self._condition = threading.Condition()
        self._next_ticket = 0
        self._queue: list[int] = []

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn.

        Raises:
            BusyError: too many wait already.
        """
        with self._condition:
            if len(self._queue) > self.waiting:
                raise BusyError("many people are using this server right now; try again in a moment")
            ticket = self._next_ticket
            self._next_ticket += 1
            self._queue.append(ticket)
        try:
            with self._condition:
                self._condition.wait_for(lambda: self._queue[0] == ticket)
            yield
        finally:
            with self._condition:
                self._queue.remove(ticket)
                self._condition.notify_all()


class Service:
    """A segmenter behind a turnstile, so that visitors do not share its cores and its memory does not multiply.

    Args:
        segmenter: for everybody.
        turnstile: where several segmenters share one machine, they share one turnstile.
    """

    def __init__(self, segmenter: Segmenter, turnstile: Turnstile) -> None:
        self.segmenter, self.turnstile = segmenter, turnstile
        self.labels = segmenter.labels
        self.description = segmenter.engine.description

    def segment(self, image: NDArray[np.uint8], options: Options) -> tuple[Segmentation, float]:
        """Segment an image (H, W, 3); return the result and the seconds that it took, without those of waiting.

        Raises:
            BusyError: too many wait already.
            ConfigError: the engine cannot do what the options ask for.
        """
        with self.turnstile.turn():
            start = time.perf_counter()
            result = self.segmenter(image, options)
            return result, time.perf_counter() - start

    def one_by_one(self, labels: LabelSet) -> "Frames":
        """Return what segments the frames of a video, each in its own turn, and draws them in the colours of labels."""
        return Frames(self, labels)


class Frames:
    """Stands for a segmenter where frames take turns with the images of others.

    Args:
        service: whose turns.
        labels: the classes in the colours to draw.
    """

    def __init__(self, service: Service, labels: LabelSet) -> None:
        self.service, self.labels = service, labels

    def __call__(self, image: NDArray[np.uint8], options: Options | None = None) -> Segmentation:
        """Segment a frame; see `Service.segment`."""
        return self.service.segment(image, options or Options())[0]
