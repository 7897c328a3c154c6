"""Ending a training run on SIGINT and SIGTERM."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class Interruption(L.Callback):
    """Turns SIGINT and SIGTERM into a KeyboardInterrupt, on which Lightning ends a run. Use as a context manager.

    The exception may be raised where it is swallowed, for example in a destructor: it is raised again before the next
    batch.

    Attributes:
        signal: that was received; 0 where none was.
        started: whether training has begun, and a checkpoint has been restored.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.started = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        raise KeyboardInterrupt

    def _check(self) -> None:
        if self.signal:
            raise KeyboardInterrupt

    def on_train_start(self, *_: Any) -> None:
        """Note that training has begun."""
        self.started = True

    def on_train_batch_start(self, *_: Any) -> None:
        """Raise what was swallowed."""
        self._check()

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Raise what was swallowed."""
        self._check()

    def on_test_batch_start(self, *_: Any, **__: Any) -> None:
        """Raise what was swallowed."""
        self._check()
