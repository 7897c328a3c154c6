"""Segment images, folders and videos: ``python -m tiramisu.predict INPUT... --output DIR``."""

import contextlib
import dataclasses
import datetime
import errno
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
from tqdm import tqdm

from tiramisu import __version__
from tiramisu.cli import command, hide_library_noise, underscored, with_flags
from tiramisu.errors import ConfigError, TiramisuError
from tiramisu.inference.engines import EngineName, Precision
from tiramisu.inference.folder import FolderRun, Progress, Stop
from tiramisu.inference.images import DEFAULT_MAX_PIXELS
from tiramisu.inference.inputs import find_inputs
from tiramisu.inference.journal import Journal
from tiramisu.inference.outputs import RESERVED, AnnotationKind, OutputFolder, OverlayKind, Wanted
from tiramisu.inference.segmenter import PASSES, Options, Segmenter, TestTimeAugmentation, Uncertainty
from tiramisu.weights import content_hash, default_weights, find_weights

SOME_FAILED = 3
GPU_BATCH = 8
SHOWN_FAILURES = 5


@dataclasses.dataclass
class Settings:
    """How to segment, and what to write.

    Args:
        weights: folder of weights, exported graph, or name of shipped weights (default: the shipped ones, else those
            of the newest run in runs/).
        engine: `auto` is the fastest for the device.
        device: cuda, mps or cpu; `auto` is the first there is.
        precision: `auto` is bf16 where the hardware has it.
        tta: test-time augmentation: `flip` adds the mirrored image, `multiscale` also 0.75 and 1.25 times the size.
        uncertainty: writes uncertainty/ and review.csv; `mc-dropout` needs the torch engine.
        passes: of mc-dropout.
        overlay: writes overlays/; --overlay alone is jpg.
        opacity: of the overlays' colours, 0 to 1.
        probabilities: writes probabilities/, a float16 array (classes, height, width) an image.
        annotations: files for labelling tools.
        overwrite: do everything again, also what is done.
        batch_size: images of the same size computed together (default: 8 on a GPU, else 1).
        max_pixels: an image with more is refused.
    """

    weights: str | None = None
    engine: EngineName = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    tta: TestTimeAugmentation = "none"
    uncertainty: Uncertainty = "none"
    passes: int = PASSES
    overlay: OverlayKind = "none"
    opacity: float = 0.55
    probabilities: bool = False
    annotations: tuple[AnnotationKind, ...] = ()
    overwrite: bool = False
    batch_size: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"--opacity {self.opacity} must be between 0 and 1")
        if self.passes < 2 or self.max_pixels < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigError("--passes must be at least 2, --batch_size and --max_pixels at least 1")

    @property
    def options(self) -> Options:
        """Return those for the segmenter."""
        return Options(self.tta, self.uncertainty, self.passes, self.probabilities)

    @property
    def wanted(self) -> Wanted:
        """Return those for the output folder."""
        uncertain = self.uncertainty != "none"
        return Wanted(self.overlay, self.opacity, self.probabilities, uncertain, tuple(self.annotations))


def predict(inputs: Sequence[str], output: Path, settings: Settings) -> None:
    """Segment images into an output folder; what is done there already is skipped.

    Args:
        inputs: images, videos, folders, globs, or text files with one path a line.
        output: folder of the results.
        settings: how.

    Raises:
        SystemExit: with 3 where some images failed; with 130 or 143 where the run was interrupted.
    """
    total = sum(1 for _ in find_inputs(inputs, output, RESERVED))
    if not total:
        raise ConfigError(f"no images in {', '.join(inputs)}")
    weights = find_weights(settings.weights) if settings.weights else default_weights()
    if settings.weights is None:
        print(f"Using the weights in {weights}.", file=sys.stderr)
    engine = "torch" if settings.uncertainty == "mc-dropout" and settings.engine == "auto" else settings.engine
    segmenter = Segmenter.load(weights, settings.device, engine, settings.precision)
    folder = OutputFolder(output, segmenter.labels, settings.wanted)
    made_with = {"weights": content_hash(weights), "tta": settings.tta, "uncertainty": settings.uncertainty}
    with Journal(output, made_with, settings.overwrite) as journal, Stop() as stop:
        folder.begin()
        batch_size = settings.batch_size or (GPU_BATCH if "cuda" in segmenter.engine.description else 1)
        run = FolderRun(
            segmenter, folder, journal, settings.options, batch_size, settings.max_pixels, stopped=stop.asked
        )
        started = time.perf_counter()
        counts: Counter[str] = Counter()

        def finish() -> None:
            seconds = time.perf_counter() - started
            folder.write_tables(journal, summarize(segmenter, settings, weights, counts, total, seconds, run.seconds))

        try:
            for progress in show(run.run(find_inputs(inputs, output, RESERVED)), total):
                counts[progress.state] += 1
        except BaseException as error:
            with contextlib.suppress(OSError):
                finish()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                remedy = "free some space and run the same command again to go on"
                raise TiramisuError(f"the disk of {output} is full after {counts['done']} images; {remedy}") from error
            raise
        else:
            finish()
        finally:
            folder.end()
        seconds = time.perf_counter() - started
    report(counts, total, output, seconds, stop.signal)


def show(results: Iterator[Progress], total: int) -> Iterator[Progress]:
    """Show a progress bar, and the first failures above it."""
    shown = 0
    with tqdm(total=total, unit="image", mininterval=0.5, smoothing=0.05) as bar:
        for progress in results:
            if progress.state == "skipped":
                total -= 1
                bar.total = total  # the rate is that of real work
            else:
                bar.update()
            if progress.state == "failed":
                shown += 1
                if shown <= SHOWN_FAILURES:
                    bar.write(f"failed: {progress.reason}", file=sys.stderr)
                elif shown == SHOWN_FAILURES + 1:
                    bar.write("more failures are listed in failures.csv only", file=sys.stderr)
            yield progress


def summarize(
    segmenter: Segmenter,
    settings: Settings,
    weights: Path,
    counts: Counter[str],
    total: int,
    seconds: float,
    busy: float,
) -> dict[str, Any]:
    """Return what summary.json says of a run."""
    return {
        "images": total,
        "done": counts["done"],
        "skipped": counts["skipped"],
        "failed": counts["failed"],
        "seconds": round(seconds, 2),
        "images_per_second": round(counts["done"] / max(seconds, 1e-6), 3),
        "share_of_time_in_the_engine": round(busy / max(seconds, 1e-6), 3),
        "engine": segmenter.engine.description,
        "weights": str(weights),
        "classes": list(segmenter.labels.names),
        "options": {key: value for key, value in dataclasses.asdict(settings).items() if key != "weights"},
        "protocol": segmenter.engine.card.protocol,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "tiramisu": __version__,
    }


def report(counts: Counter[str], total: int, output: Path, seconds: float, signal: int) -> None:
    """Say how it went, and exit with a code that tells."""
    done, skipped, failed = counts["done"], counts["skipped"], counts["failed"]
    parts = [f"{done} segmented in {seconds:.1f} s"]
    parts += [f"{skipped} were done already"] if skipped else []
    parts += [f"{failed} failed (see {output / 'failures.csv'})"] if failed else []
    missing = total - done - skipped - failed
    if signal:
        print(
            f"Interrupted with {missing} of {total} to go: {', '.join(parts)}. Run it again to go on.", file=sys.stderr
        )
        raise SystemExit(128 + signal)
    print(f"{', '.join(parts)}. Results: {output}")
    if failed:
        raise SystemExit(SOME_FAILED)


@command("tiramisu.predict")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    parser = jsonargparse.ArgumentParser(exit_on_error=False, prog="python -m tiramisu.predict", description=__doc__)
    parser.add_argument("inputs", nargs="+", type=str, help="images, videos, folders, globs, or a .txt list of paths")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; it is made")
    parser.add_class_arguments(Settings, as_group=False)
    flags = {"overlay": "jpg", "probabilities": "true", "overwrite": "true"}
    given = with_flags(underscored(sys.argv[1:] if args is None else args), flags)
    config = parser.parse_args([re.sub(r"^(--annotations=)([^\[].*)$", r"\1[\2]", arg) for arg in given])
    values = vars(config.clone())
    inputs, output = values.pop("inputs"), values.pop("output")
    predict(inputs, output, Settings(**values))


if __name__ == "__main__":
    main()
