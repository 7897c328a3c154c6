"""Timing contenders alternately in one run, so that a noisy machine disturbs all of them alike."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Timing:
    """What was measured of one contender.

    Attributes:
        name: of the contender.
        seconds: one time per round.
        ratio: median over the rounds of its time divided by the baseline's time in the same round.
        spread: smallest and largest of these ratios.
        memory: largest memory above that of the imported libraries, in MiB.
        memory_ratio: the same divided by the baseline's.
    """

    name: str
    seconds: tuple[float, ...]
    ratio: float
    spread: tuple[float, float]
    memory: float
    memory_ratio: float

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return statistics.median(self.seconds)


def race(contenders: Mapping[str, Callable[[], float]], rounds: int, warmup: int) -> dict[str, tuple[float, ...]]:
    """Run every contender once per round, in turn.

    Args:
        contenders: what to run, by name; returns the seconds it took.
        rounds: how often.
        warmup: untimed rounds before.

    Returns:
        The times of each contender, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name, run in contenders.items():
            took = run()
            if number >= 0:
                seconds[name].append(took)
    return {name: tuple(times) for name, times in seconds.items()}


def relative(times: Sequence[float], baseline: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Divide times by those of the baseline round by round; return the median, and smallest and largest."""
    ratios = [mine / other for mine, other in zip(times, baseline, strict=True)]
    return statistics.median(ratios), (min(ratios), max(ratios))


def format_timings(timings: Sequence[Timing], baseline: str) -> str:
    """Return the measurements as a table."""
    width = max(len(timing.name) for timing in timings)
    lines = [f"{'':<{width}}  median (s)  ratio to {baseline} (min to max)  peak memory (MiB)  ratio"]
    ratio_width = len(f"ratio to {baseline} (min to max)")
    for timing in timings:
        ratio = f"{timing.ratio:.2f} ({timing.spread[0]:.2f} to {timing.spread[1]:.2f})"
        lines.append(
            f"{timing.name:<{width}}  {timing.median:>10.3f}  {ratio:<{ratio_width}}  {timing.memory:>17,.0f}"
            f"  {timing.memory_ratio:>5.2f}"
        )
    return "\n".join(lines)
