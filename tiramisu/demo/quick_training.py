"""Training the small network of the quickstart from the app, where there are no weights yet."""

import atexit
import contextlib
import csv
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, NamedTuple


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        state: "idle", "running", "done" or "failed".
        share: 0 to 1.
        text: for the visitor.
    """

    state: str
    share: float
    text: str


class QuickTraining:
    """One training at a time for all visitors, in a process of its own.

    Args:
        runs: folder of the runs.
        arguments: of `python -m tiramisu.train`; by default it trains on the built-in streets.
        epochs: that it takes.
    """

    def __init__(self, runs: Path = Path("runs"), arguments: tuple[str, ...] = (), epochs: int = 16) -> None:
        self.runs, self.arguments, self.epochs = runs, arguments, epochs
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._started = 0.0
        atexit.register(self.stop)  # it does not outlive the server

    def start(self) -> None:
        """Begin, unless it runs already."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._started = time.time()
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
            command = [sys.executable, "-m", "tiramisu.train", f"--runs={self.runs}", *self.arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def stop(self) -> None:
        """End it early; nothing is left running."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def progress(self) -> Progress:
        """Tell how far it is."""
        process = self._process
        if process is None:
            return Progress("idle", 0.0, "")
        code = process.poll()
        if code is None:
            epochs, score = self._history()
            elapsed = time.time() - self._started
            text = f"Epoch {min(epochs + 1, self.epochs)} of {self.epochs}"
            left = elapsed / epochs * (self.epochs - epochs) if epochs else 0
            text += f", about {max(1, round(left / 60))} min left" if epochs else f", preparing for {elapsed:.0f} s"
            return Progress(
                "running", min(epochs / self.epochs, 1.0), text + (f", {100 * score:.0f} mIoU so far" if score else "")
            )
        if code == 0:
            return Progress("done", 1.0, "Training is done.")
        return Progress("failed", 0.0, f"Training failed: {self._last_line()}")

    def _history(self) -> tuple[int, float]:
        """Return the epochs that are done, and the last mIoU."""
        with contextlib.suppress(OSError, ValueError):  # a file that is just being replaced
            times = {file: file.stat().st_mtime for file in self.runs.glob("*/version_*/metrics.csv")}
            newest = max(times, key=times.__getitem__, default=None)
            if newest is not None and times[newest] >= self._started:
                with newest.open(newline="") as table:
                    rows = list(csv.DictReader(table))
                scores = [float(row["val/mIoU"]) for row in rows if row.get("val/mIoU")]
                return len(rows), scores[-1] if scores else 0.0
        return 0, 0.0

    def _last_line(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no reason given"
