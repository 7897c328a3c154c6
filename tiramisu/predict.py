"""Segment images, folders and videos: ``python -m tiramisu.predict INPUT... --output DIR``."""

import contextlib
import dataclasses
import datetime
import errno
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonargparse
from tqdm import tqdm

from tiramisu import __version__
from tiramisu.cli import YES_NO, command, hide_library_noise, underscored, with_flags, with_lists
from tiramisu.errors import ConfigError, TiramisuError
from tiramisu.files import printable
from tiramisu.images import DEFAULT_MAX_PIXELS
from tiramisu.inference.annotations import TOLERANCE
from tiramisu.inference.engines import EngineName, Precision, is_installed, open_engine
from tiramisu.inference.folder import FolderRun, Progress, Stop
from tiramisu.inference.inputs import Entry, find_inputs
from tiramisu.inference.journal import Journal
from tiramisu.inference.outputs import RESERVED, AnnotationKind, OutputFolder, OverlayKind, Wanted
from tiramisu.inference.segmenter import PASSES, Options, Segmenter, TestTimeAugmentation, Uncertainty
from tiramisu.inference.video import NO_BROWSER, has_h264
from tiramisu.weights import content_hash, default_weights, find_weights, read_config, shipped_weights

SOME_FAILED = 3
GPU_BATCH = 8
SHOWN_FAILURES = 5
MAX_TOLERANCE = 100


@dataclasses.dataclass
class Settings:
    """How to segment, and what to write.

    Args:
        weights: folder of weights, exported graph, or name of shipped weights (default: the shipped ones, else those
            of the newest run in runs/).
        engine: `auto` is the fastest for the device.
        device: cuda, mps or cpu; `auto` takes the first that is available.
        precision: `auto` is bf16 where the hardware has it.
        tta: test-time augmentation: `flip` adds the mirrored image, `multiscale` also 0.75 and 1.25 times the size.
        uncertainty: writes uncertainty/ and review.csv; `mc-dropout` needs the torch engine.
        passes: number of MC-dropout passes.
        overlay: writes overlays/; --overlay alone is jpg.
        opacity: opacity of the colours in overlays, 0 to 1.
        fit: images much larger than those of training are made as small as these for the network, and the masks
            enlarged, where training saw whole views of a camera, as CamVid's are; --fit false takes images as they are.
        probabilities: writes probabilities/, a float16 array (classes, height, width) an image.
        annotations: files for labelling tools: coco, coco-panoptic, labelme, label-studio.
        tolerance: how far the borders of labelme's polygons may move, in pixels, so that there are fewer points to
            edit; 0 keeps every corner.
        overwrite: do everything again, also what is done.
        batch_size: images of the same size computed together (default: 8 on a GPU, else 1).
        max_pixels: an image with more is refused.
        executor: `ray` works on all machines of a Ray cluster; inputs and output may then be URIs such as s3://...
        ray_address: address of the cluster (default: RAY_ADDRESS, else a cluster of this machine alone).
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
    fit: bool = True
    probabilities: bool = False
    annotations: tuple[AnnotationKind, ...] = ()
    tolerance: float = TOLERANCE
    overwrite: bool = False
    batch_size: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"--opacity {self.opacity} must be between 0 and 1")
        if not 0 <= self.tolerance <= MAX_TOLERANCE:
            raise ConfigError(f"--tolerance {self.tolerance} must be between 0 and {MAX_TOLERANCE} pixels")
        if self.passes < 2 or self.max_pixels < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ConfigError("--passes must be at least 2, --batch_size and --max_pixels at least 1")

    @property
    def actual_engine(self) -> EngineName:
        """Return the engine, which must have dropout for mc-dropout."""
        return "torch" if self.uncertainty == "mc-dropout" and self.engine == "auto" else self.engine

    def made_with(self, weights: Path) -> dict[str, Any]:
        """Return what the masks depend on."""
        chosen = {key: getattr(self, key) for key in ("tta", "uncertainty", "engine", "precision")}
        return {"weights": content_hash(weights), **chosen, **({} if self.fit else {"fit": False})}

    @property
    def made(self) -> dict[str, Any]:
        """Return what is written of each image, and how."""
        passes = {"passes": self.passes} if self.uncertainty == "mc-dropout" else {}
        return self.wanted.made() | passes

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for summary.json."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "weights"}

    @property
    def options(self) -> Options:
        """Return those for the segmenter."""
        return Options(self.tta, self.uncertainty, self.passes, self.probabilities, fit=self.fit)

    @property
    def wanted(self) -> Wanted:
        """Return those for the output folder."""
        uncertain = self.uncertainty != "none"
        kinds = tuple(self.annotations)
        return Wanted(self.overlay, self.opacity, self.probabilities, uncertain, kinds, self.tolerance)


def predict(inputs: Sequence[str], output: str, settings: Settings) -> None:
    """Segment images into an output folder; what is done there already is skipped.

    Args:
        inputs: images, videos, folders, globs, or text files with one path a line.
        output: folder of the results.
        settings: how.

    Raises:
        SystemExit: with 3 where some images failed; with 130 or 143 where the run was interrupted.
    """
    check_paths(inputs, output, settings)
    weights = default_weights() if settings.weights is None else find_weights(settings.weights)
    if settings.weights is None:
        print(f"Using the weights in {weights}.", file=sys.stderr)
    if weights in shipped_weights().values() and (terms := read_config(weights)["protocol"].get("data_license")):
        print(f"{weights.name}: {printable(str(terms))}.", file=sys.stderr)
    segment = segment_on_cluster if settings.executor == "ray" else segment_here
    started = time.perf_counter()
    with Stop() as stop:
        counts, total = segment(inputs, output, settings, weights, stop)
    report(counts, total, output, time.perf_counter() - started, stop.signal, settings.overwrite)


def check_paths(inputs: Sequence[str], output: str, settings: Settings) -> None:
    """Refuse what an empty variable in a script leads to, and URIs where they are not understood.

    Raises:
        ConfigError: an input or the output is empty, or a URI.
    """
    if not output or not all(inputs):
        raise ConfigError("an input or --output is empty")
    if settings.executor == "local" and Path(output).is_file():
        raise ConfigError(f"--output {output} is a file; give a folder")
    if settings.executor == "local":
        for name in (*inputs, output):
            if "://" in name:
                raise ConfigError(f"{name} is no local path; --executor ray reads and writes URIs")
        if settings.ray_address is not None:
            raise ConfigError("--ray_address is for --executor ray")
    if settings.uncertainty == "mc-dropout" and settings.engine not in ("auto", "torch"):
        raise ConfigError(f"--uncertainty mc-dropout needs --engine torch; {settings.engine} has no dropout")


def segment_here(
    inputs: Sequence[str], output: str, settings: Settings, weights: Path, stop: Stop
) -> tuple[Counter[str], int]:
    """Segment on this machine; return how many images came to which end, and how many there are."""
    root = Path(output)
    total = count_entries(find_inputs(inputs, root, RESERVED), inputs)
    with Journal(root, settings.made_with(weights), settings.overwrite, settings.wanted.tables) as journal:
        segmenter = Segmenter.load(weights, settings.device, settings.actual_engine, settings.precision)
        folder = OutputFolder(root, segmenter.labels, settings.wanted)
        batch_size = settings.batch_size or (GPU_BATCH if "cuda" in segmenter.engine.description else 1)
        bars = Bars(total)
        run = FolderRun(
            segmenter, folder, journal, settings.options, batch_size, settings.max_pixels, stop.asked, settings.made,
            bars.on_frame,
        )  # fmt: skip
        facts = {"engine": segmenter.engine.description, "protocol": segmenter.engine.card.protocol}
        facts |= {"weights": str(weights), "options": settings.to_dict()}
        results = run.run(find_inputs(inputs, root, RESERVED))
        return follow(results, bars, folder, journal, facts), total


def segment_on_cluster(
    inputs: Sequence[str], output: str, settings: Settings, weights: Path, stop: Stop
) -> tuple[Counter[str], int]:
    """Segment on a Ray cluster; as `segment_here`."""
    if not is_installed("ray"):
        raise ConfigError("--executor ray needs a package that is not installed: pip install 'ray[data]'")
    from tiramisu.inference import cluster

    total = count_entries(cluster.find_entries(inputs, output, RESERVED), inputs)
    work = cluster.Work(
        cluster.read_files(weights),
        settings.actual_engine,
        settings.device,
        settings.precision,
        settings.options,
        settings.wanted,
        output,
        settings.max_pixels,
        settings.made,
    )
    labels = open_engine(weights, settings.actual_engine, settings.device, settings.precision).card.labels
    with cluster.results_folder(output, settings.wanted.tables) as root:
        folder = OutputFolder(root, labels, settings.wanted)
        with Journal(root, settings.made_with(weights), settings.overwrite, settings.wanted.tables) as journal:
            entries = cluster.find_entries(inputs, output, RESERVED)
            results = cluster.run_on_cluster(work, entries, folder, journal, settings.ray_address)
            facts = {"engine": f"Ray, {settings.engine}", "weights": str(weights), "options": settings.to_dict()}
            return follow(until_stopped(results, stop), Bars(total), folder, journal, facts), total


def count_entries(entries: Iterable[object], inputs: Sequence[str]) -> int:
    """Return how many images there are to segment.

    Raises:
        ConfigError: there are none.
    """
    total = sum(1 for _ in entries)
    if not total:
        raise ConfigError(f"no images in {', '.join(inputs)}")
    return total


def until_stopped(results: Iterator[Progress], stop: Stop) -> Iterator[Progress]:
    """Yield results until the end is asked for."""
    with contextlib.closing(results):  # type: ignore[type-var]  # a generator
        for progress in results:
            yield progress
            if stop.asked():
                return


class Bars:
    """The progress bars of a run: one of the images, below it one of the frames of a video.

    Args:
        total: number of images and videos.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.frames: tqdm[Any] | None = None
        self.told = False

    def on_frame(self, entry: Entry, done: int, total: int) -> None:
        """Show how many frames of a video are done, of as many as it claims to have."""
        if not self.told and not has_h264():
            tqdm.write(NO_BROWSER, file=sys.stderr)
        self.told = True
        if self.frames is None:
            name = entry.path.name
            self.frames = tqdm(total=total or None, desc=name, unit="frame", mininterval=0.5, leave=False, position=1)
        self.frames.update(done - self.frames.n)

    def show(self, results: Iterator[Progress]) -> Iterator[Progress]:
        """Show a progress bar, and the first failures above it."""
        shown, left = 0, self.total
        with tqdm(total=self.total, unit="image", mininterval=0.5, smoothing=0.05) as bar:
            for progress in results:
                if self.frames is not None:
                    self.frames.close()
                    self.frames = None
                if progress.state in ("skipped", "unread"):
                    left -= 1
                    bar.total = left  # the rate is that of real work
                else:
                    bar.update()
                if progress.state == "failed":
                    shown += 1
                    if shown <= SHOWN_FAILURES:
                        bar.write(f"failed: {printable(progress.reason)}", file=sys.stderr)
                    elif shown == SHOWN_FAILURES + 1:
                        bar.write("more failures are listed in failures.csv only", file=sys.stderr)
                yield progress


def follow(
    results: Iterator[Progress], bars: Bars, folder: OutputFolder, journal: Journal, facts: dict[str, Any]
) -> Counter[str]:
    """Count results as they come, and write the tables in the end, whatever it is.

    Raises:
        TiramisuError: the disk is full.
    """
    started = time.perf_counter()
    counts: Counter[str] = Counter()

    def finish() -> None:
        folder.write_tables(journal, summarize(facts, folder, counts, bars.total, time.perf_counter() - started))

    try:
        folder.begin()
        try:
            for progress in bars.show(results):
                counts[progress.state] += 1
        except BaseException:
            with contextlib.suppress(OSError, TiramisuError):
                finish()
            raise
        finish()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to resume"
            raise TiramisuError(f"the disk of {folder.root} is full after {counts['done']} images; {remedy}") from error
        raise
    finally:
        folder.end()
    return counts


def summarize(
    facts: dict[str, Any], folder: OutputFolder, counts: Counter[str], total: int, seconds: float
) -> dict[str, Any]:
    """Return what summary.json says of a run."""
    return {
        "images": total,
        "done": counts["done"],
        "skipped": counts["skipped"],
        "failed": counts["failed"],
        "not_read": counts["unread"],
        "seconds": round(seconds, 2),
        "images_per_second": round(counts["done"] / max(seconds, 1e-6), 3),
        "classes": list(folder.labels.names),
        **facts,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "tiramisu": __version__,
    }


def report(counts: Counter[str], total: int, output: str, seconds: float, signal: int, overwrite: bool) -> None:
    """Say how it went, and exit with a code that tells."""
    done, skipped, failed = counts["done"], counts["skipped"], counts["failed"]
    parts = [f"{done} segmented in {seconds:.1f} s"]
    parts += [f"{skipped} were done already"] if skipped else []
    parts += [f"{failed} failed (see {output}/failures.csv)"] if failed else []
    unread = counts["unread"]
    parts += [f"{unread} of kinds that are not read (see {output}/failures.csv)"] if unread else []
    missing = total - done - skipped - failed - unread
    again = ", without --overwrite" if overwrite else ""
    if signal:
        print(
            f"Interrupted with {missing} of {total} to go: {', '.join(parts)}. Run it again to resume{again}.",
            file=sys.stderr,
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
    parser.add_argument("--output", type=str, required=True, help="folder of the results; it is made")
    parser.add_class_arguments(Settings, as_group=False)
    flags = {"overlay": ("jpg", "png", "none"), "probabilities": YES_NO, "overwrite": YES_NO}
    given = with_flags(underscored(sys.argv[1:] if args is None else args), flags)
    config = parser.parse_args(with_lists(given, {"annotations"}))
    values = vars(config.clone())
    inputs, output = values.pop("inputs"), values.pop("output")
    predict(inputs, output, Settings(**values))


if __name__ == "__main__":
    main()
