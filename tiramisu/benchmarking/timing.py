"""Timing contenders alternately in one run, so that a noisy machine disturbs all of them alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

import torch


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one contender.

    Attributes:
        name: of the contender.
        seconds: one time per round.
        ratio: median over the rounds of its time divided by the baseline's time in the same round.
        spread: smallest and largest of these ratios.
    """

    name: str
    seconds: tuple[float, ...]
    ratio: float
    spread: tuple[float, float]

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.seconds)


def race(contenders: Mapping[str, Callable[[], object]], baseline: str, rounds: int, warmup: int) -> list[Timing]:
    """Time every contender once per round, in turn.

    Args:
        contenders: what to run, by name.
        baseline: the contender that the others are divided by.
        rounds: how often.
        warmup: untimed rounds before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    timings = []
    for name, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds[baseline], strict=True)]
        timings.append(Timing(name, tuple(times), statistics.median(ratios), (min(ratios), max(ratios))))
    return timings


def format_timings(timings: list[Timing], baseline: str) -> str:
    """Return the times as a table."""
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':<{width}}  median (s)  ratio to {baseline} (min to max)"]
    for timing in timings:
        low, high = timing.spread
        lines.append(f"{timing.name:<{width}}  {timing.median:>10.3f}  {timing.ratio:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join(lines)
