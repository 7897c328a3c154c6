"""The files of an output folder: those of each image, and the tables of the whole run."""

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np
from PIL import Image

from tiramisu.arrays import UInt8Array
from tiramisu.files import atomic_path, write_json
from tiramisu.inference import annotations
from tiramisu.inference.inputs import Entry
from tiramisu.inference.journal import Journal, Record
from tiramisu.inference.segmenter import Segmentation
from tiramisu.labels import LabelSet
from tiramisu.visualize import overlay, save_mask

OverlayKind = Literal["none", "jpg", "png"]
AnnotationKind = Literal["coco", "coco-panoptic", "labelme"]

# Folders of what lies beside the masks.
OVERLAYS, UNCERTAINTY, PROBABILITIES, PANOPTIC, LABELME, VIDEOS = RESERVED = (
    *("overlays", "uncertainty", "probabilities"),
    *("panoptic", "labelme", "videos"),
)
SCRATCH = ".tiramisu.tmp"


class Wanted(NamedTuple):
    """What is written of each image beside its mask.

    Attributes:
        overlay: format of the overlay.
        opacity: of the overlay's colours.
        probabilities: class probabilities, a float16 array (classes, H, W) in an .npz file.
        uncertainty: a grey PNG, black is certain.
        annotations: for labelling tools.
    """

    overlay: OverlayKind = "none"
    opacity: float = 0.55
    probabilities: bool = False
    uncertainty: bool = False
    annotations: tuple[AnnotationKind, ...] = ()

    def made(self) -> dict[str, Any]:
        """Return what is wanted, and what it depends on: an image that has all of it need not be done again."""
        active = {
            name: value for name, value in self._asdict().items() if value and name in ("probabilities", "uncertainty")
        }
        if self.overlay != "none":
            active["overlay"] = [self.overlay, self.opacity]
        return active | dict.fromkeys(self.annotations, True)


class OutputFolder:
    """An output folder: where everything lies, and how it is written.

    Every file is written into a scratch folder and renamed; the mask of an image comes last.

    Args:
        root: the folder; it is made.
        labels: the classes.
        wanted: what is written beside the masks.
    """

    def __init__(self, root: Path, labels: LabelSet, wanted: Wanted) -> None:
        self.root, self.labels, self.wanted = root, labels, wanted
        self.scratch = root / SCRATCH
        root.mkdir(parents=True, exist_ok=True)

    def begin(self) -> None:
        """Clear away what a killed run has left half written. Only the holder of the journal may."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()

    def end(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def video(self, name: str) -> Path:
        """Return the file of a video's overlay."""
        return self.root / VIDEOS / f"{name}.mp4"

    def files(self, entry: Entry) -> list[Path]:
        """Return every file that is written of an image or video: the mask or the overlay video first."""
        if entry.is_video:
            return [self.video(entry.name), self.video(entry.name).with_suffix(".csv")]
        return list(self.paths(entry.name).values())

    def paths(self, name: str) -> dict[str, Path]:
        """Return the file of each kind that is written of an image."""
        wanted = self.wanted
        files = {"mask": self.root / f"{name}.png"}
        if wanted.overlay != "none":
            files["overlay"] = self.root / OVERLAYS / f"{name}.{wanted.overlay}"
        if wanted.uncertainty:
            files["uncertainty"] = self.root / UNCERTAINTY / f"{name}.png"
        if wanted.probabilities:
            files["probabilities"] = self.root / PROBABILITIES / f"{name}.npz"
        if "coco-panoptic" in wanted.annotations:
            files["panoptic"] = self.root / PANOPTIC / f"{name}.png"
        if "labelme" in wanted.annotations:
            files["labelme"] = self.root / LABELME / f"{name}.json"
        return files

    def write(self, name: str, source: Path, image: UInt8Array, result: Segmentation) -> None:
        """Write the files of an image.

        Args:
            name: of the results.
            source: the image's file.
            image: uint8 (H, W, 3) RGB.
            result: of its segmentation.

        Raises:
            OSError: a file cannot be written.
        """
        files = self.paths(name)
        for kind, file in reversed(files.items()):
            with atomic_path(file, self.scratch) as temporary:
                if kind == "mask":
                    save_mask(result.mask, self.labels, temporary)
                elif kind == "overlay":
                    picture = overlay(image, result.mask, self.labels, self.wanted.opacity)
                    Image.fromarray(picture).save(temporary, quality=92)
                elif kind == "uncertainty":
                    assert result.uncertainty is not None
                    Image.fromarray((result.uncertainty * 255).round().astype(np.uint8)).save(temporary)
                elif kind == "probabilities":
                    assert result.probabilities is not None
                    np.savez_compressed(temporary, probabilities=result.probabilities.astype(np.float16))
                elif kind == "panoptic":
                    Image.fromarray(annotations.panoptic_picture(result.mask, self.labels)).save(temporary)
                else:
                    above = os.path.relpath(source, file.parent)
                    document = annotations.labelme_document(result.mask, self.labels, above)
                    temporary.write_text(json.dumps(document))

    def segments(self, mask: UInt8Array) -> dict[str, str]:
        """Return the run lengths that COCO's files need at the end, if they are wanted."""
        needed = {"coco", "coco-panoptic"} & set(self.wanted.annotations)
        return annotations.encode_segments(mask, self.labels) if needed else {}

    def write_tables(self, journal: Journal, summary: dict[str, Any]) -> None:
        """Write areas.csv, failures.csv, summary.json and what else is wanted of the whole folder."""
        with self._table("areas.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "result", "height", "width", *self.labels.names, "note"])
            for record in journal.done():
                shares = [f"{count / sum(record.counts):.6f}" for count in record.counts]
                writer.writerow([record.source, record.result, record.height, record.width, *shares, record.note])
        with self._table("failures.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "reason"])
            for record in journal.failed():
                if is_there(record.source):  # else it was mended by taking it away
                    writer.writerow([record.source, record.reason])
        if self.wanted.uncertainty:
            with self._table("review.csv") as file:
                writer = csv.writer(file)
                writer.writerow(["image", "result", "uncertainty"])
                for record in journal.done(most_uncertain_first=True):
                    if record.uncertainty is not None:
                        writer.writerow([record.source, record.result, f"{record.uncertainty:.6f}"])
        if "coco" in self.wanted.annotations:
            with atomic_path(self.root / "coco.json", self.scratch) as temporary:
                annotations.write_coco(temporary, lambda: _labelled(journal.done()), self.labels)
        if "coco-panoptic" in self.wanted.annotations:
            with atomic_path(self.root / "panoptic.json", self.scratch) as temporary:
                annotations.write_panoptic(temporary, lambda: _labelled(journal.done()), self.labels)
        write_json(self.root / "summary.json", summary)

    @contextlib.contextmanager
    def _table(self, name: str) -> Iterator[TextIO]:
        """Open a CSV file that appears when it is complete; file names that are no Unicode keep their bytes."""
        with (
            atomic_path(self.root / name, self.scratch) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            yield file


def is_there(source: str) -> bool:
    """Tell whether a file is still there, or a link; of URIs it is assumed."""
    return "://" in source or os.path.lexists(source)


def _labelled(records: Iterable[Record]) -> Iterator[annotations.Labelled]:
    for record in records:
        if record.segments:
            yield annotations.Labelled(record.source, record.name, record.height, record.width, record.segments)
