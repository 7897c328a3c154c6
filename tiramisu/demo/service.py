"""One network for all visitors: who comes first is served first, piece by piece, and not too many wait."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.demo.limits import LIMITS
from tiramisu.errors import TiramisuError
from tiramisu.inference.engines import Engine
from tiramisu.inference.segmenter import Options, Segmentation, Segmenter
from tiramisu.labels import LabelSet

ASK_SECONDS = 0.25  # how often who waits is told so, and may leave


class BusyError(TiramisuError):
    """Too many visitors want something at once."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a visitor's image stands.

    Attributes:
        ahead: visitors who are served first; 0 at one's own turn.
        share: of the image that is done, 0 to 1.
    """

    ahead: int
    share: float = 0.0


Tell = Callable[[Step], object]
"""Is called often while an image is at work; where it raises, as when its visitor clicks on Cancel, work ends."""


def keep_quiet(step: Step) -> None:
    """Tell nobody."""


class Turnstile:
    """Lets a few threads through at a time, in the order of arrival.

    Args:
        places: how many.
        waiting: how many more may wait; None for any number.
    """

    def __init__(self, places: int = 1, waiting: int | None = None) -> None:
        self.places, self.waiting = places, waiting
        self._condition = threading.Condition()
        self._next_ticket = 0
        self._queue: list[int] = []

    @contextlib.contextmanager
    def turn(self, tell: Callable[[int], object] = lambda ahead: None) -> Iterator[None]:
        """Wait for one's turn.

        Args:
            tell: is called while waiting, with the number of those who are served first.

        Raises:
            BusyError: too many wait already.
        """
        with self._condition:
            if self.waiting is not None and len(self._queue) >= self.places + self.waiting:
                raise BusyError("many people are using this server right now; try again in a moment")
            ticket = self._next_ticket
            self._next_ticket += 1
            self._queue.append(ticket)
        try:
            while ahead := self._wait(ticket):
                tell(ahead)
            yield
        finally:
            with self._condition:
                self._queue.remove(ticket)
                self._condition.notify_all()

    def _wait(self, ticket: int) -> int:
        """Wait a moment; return how many are served first, 0 where it is one's turn."""

        def ahead() -> int:
            return max(0, self._queue.index(ticket) - self.places + 1)

        with self._condition:
            self._condition.wait_for(lambda: not ahead(), ASK_SECONDS)
            return ahead()


class Queues:
    """What all visitors of a server wait in.

    Attributes:
        door: of decoded images: so few that memory suffices.
        network: for one piece of an image at a time, so that a large image does not keep the others waiting.
    """

    def __init__(self, waiting: int = LIMITS.waiting) -> None:
        self.door = Turnstile(LIMITS.at_once, waiting)
        self.network = Turnstile()


class Service:
    """A segmenter for many visitors: they do not share its cores, and its memory does not multiply.

    Args:
        segmenter: for everybody.
        queues: where several segmenters share one machine, they share its queues.
    """

    def __init__(self, segmenter: Segmenter, queues: Queues) -> None:
        self.segmenter, self.queues = segmenter, queues
        self.labels = segmenter.labels
        self.description = segmenter.engine.description

    @contextlib.contextmanager
    def place(self, tell: Tell = keep_quiet) -> Iterator[None]:
        """Wait for a place; who has one may hold a decoded image.

        Raises:
            BusyError: too many wait already.
        """
        with self.queues.door.turn(lambda ahead: tell(Step(ahead))):
            yield

    def segment(self, image: UInt8Array, options: Options, tell: Tell = keep_quiet) -> tuple[Segmentation, float]:
        """Segment an image (H, W, 3); return the result and the seconds of work, without those of waiting.

        Raises:
            ConfigError: the engine cannot do what the options ask for.
        """
        pieces = self.segmenter.count_pieces(image.shape[0], image.shape[1], options)
        engine = _SharedEngine(self.segmenter.engine, self.queues.network, pieces, tell)
        start = time.perf_counter()
        result = Segmenter(engine, self.segmenter.tile, self.segmenter.overlap)(image, options)
        return result, time.perf_counter() - start - engine.waited

    def one_by_one(self, labels: LabelSet) -> "Frames":
        """Return what segments the frames of a video among the images of others, and draws them in labels' colours."""
        return Frames(self, labels)


class Frames:
    """Stands for a segmenter where frames take turns with the images of others.

    Args:
        service: whose turns.
        labels: the classes in the colours to draw.
    """

    def __init__(self, service: Service, labels: LabelSet) -> None:
        self.service, self.labels = service, labels

    def __call__(self, image: UInt8Array, options: Options | None = None) -> Segmentation:
        """Segment a frame; see `Service.segment`."""
        return self.service.segment(image, options or Options())[0]


class _SharedEngine:
    """An engine whose every call waits for its turn."""

    def __init__(self, engine: Engine, network: Turnstile, pieces: int, tell: Tell) -> None:
        self.card, self.description = engine.card, engine.description
        self.engine, self.network, self.pieces, self.tell = engine, network, pieces, tell
        self.waited = 0.0
        self.done = 0

    def logits(self, images: UInt8Array) -> FloatArray:
        """See `Engine`."""
        with self._turn():
            logits = self.engine.logits(images)
        self._count()
        return logits

    def sample(self, images: UInt8Array, passes: int) -> Generator[FloatArray, None, None]:
        """See `Engine`; all passes in one turn, because the engine lets nobody in between."""
        with self._turn(), contextlib.closing(self.engine.sample(images, passes)) as samples:
            for logits in samples:
                yield logits
                self._count()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        start = time.perf_counter()
        with self.network.turn(lambda ahead: self.tell(Step(ahead, self.done / self.pieces))):
            self.waited += time.perf_counter() - start
            yield

    def _count(self) -> None:
        self.done += 1
        self.tell(Step(0, self.done / self.pieces))
