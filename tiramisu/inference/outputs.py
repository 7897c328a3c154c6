"""The files of an output folder: those of each image, and the tables of the whole run."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from tiramisu.arrays import FloatArray, UInt8Array
from tiramisu.errors import ConfigError
from tiramisu.files import FOREIGN, CsvWriter, atomic_path, file_digest
from tiramisu.inference import annotations
from tiramisu.inference.annotations import TOLERANCE
from tiramisu.inference.inputs import Entry
from tiramisu.inference.journal import Journal, Record
from tiramisu.inference.segmenter import Segmentation
from tiramisu.labels import LabelSet
from tiramisu.spool import SPOOLED_PIXELS, empty_like, release, strip_rows
from tiramisu.visualize import overlay, save_mask

OverlayKind = Literal["none", "jpg", "png"]
AnnotationKind = Literal["coco", "coco-panoptic", "labelme", "label-studio"]

# Folders of what lies beside the masks.
OVERLAYS, UNCERTAINTY, PROBABILITIES, PANOPTIC, LABELME, VIDEOS = RESERVED = (
    *("overlays", "uncertainty", "probabilities"),
    *("panoptic", "labelme", "videos"),
)
SCRATCH = ".tiramisu.tmp"
JPEG_QUALITY = 92
ANNOTATION_TABLES: dict[str, tuple[str, ...]] = {
    "coco": ("coco.json",),
    "coco-panoptic": ("panoptic.json",),
    "label-studio": ("label-studio.json", "label-studio.xml"),
}
REGIONS = 2  # how regions are kept in the records; others are computed anew


class Wanted(NamedTuple):
    """What is written of each image beside its mask.

    Attributes:
        overlay: format of the overlay.
        opacity: of the overlay's colours.
        probabilities: class probabilities, a float16 array (classes, H, W) in an .npz file.
        uncertainty: a grey PNG, black is certain.
        annotations: for labelling tools.
        tolerance: by how many pixels the borders of LabelMe's polygons may move to need fewer points.
    """

    overlay: OverlayKind = "none"
    opacity: float = 0.55
    probabilities: bool = False
    uncertainty: bool = False
    annotations: tuple[AnnotationKind, ...] = ()
    tolerance: float = TOLERANCE

    @property
    def tables(self) -> list[str]:
        """Return the names of the files that are written of the whole folder."""
        names = ["areas.csv", "failures.csv", "summary.json", *(["review.csv"] if self.uncertainty else [])]
        return names + [name for kind in self.annotations for name in ANNOTATION_TABLES.get(kind, ())]

    def made(self) -> dict[str, Any]:
        """Return what is wanted, and what it depends on: an image that has all of it need not be done again."""
        active = {
            name: value for name, value in self._asdict().items() if value and name in ("probabilities", "uncertainty")
        }
        if self.overlay != "none":
            active["overlay"] = [self.overlay, self.opacity]
        for kind in self.annotations:
            active[kind] = self.tolerance if kind == "labelme" else REGIONS
        return active


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

    def escapes(self, file: Path) -> bool:
        """Tell whether a file of the output would lie elsewhere, because a folder on the way to it is a link."""
        return not file.parent.resolve().is_relative_to(self.root.resolve())

    def relative(self, file: Path) -> str:
        """Return the path of a file relative to the folder, with slashes."""
        return file.relative_to(self.root).as_posix()

    def video(self, name: str) -> Path:
        """Return the file of a video's overlay."""
        check_name(name)
        return self.root / VIDEOS / f"{name}.mp4"

    def files(self, entry: Entry) -> list[Path]:
        """Return every file that is written of an image or video: the mask or the overlay video first."""
        if entry.is_video:
            return [self.video(entry.name), self.video(entry.name).with_suffix(".csv")]
        return list(self.paths(entry.name).values())

    def paths(self, name: str) -> dict[str, Path]:
        """Return the file of each kind that is written of an image."""
        check_name(name)
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
                    _save_overlay(image, result.mask, self.labels, self.wanted.opacity, temporary)
                elif kind == "uncertainty":
                    assert result.uncertainty is not None
                    Image.fromarray(_to_bytes(result.uncertainty)).save(temporary)
                elif kind == "probabilities":
                    assert result.probabilities is not None
                    np.savez_compressed(temporary, probabilities=result.probabilities.astype(np.float16))
                elif kind == "panoptic":
                    Image.fromarray(annotations.panoptic_picture(result.mask, self.labels)).save(temporary)
                else:
                    above = os.path.relpath(source, file.parent)
                    document = annotations.labelme_document(result.mask, self.labels, above, self.wanted.tolerance)
                    temporary.write_text(json.dumps(document))

    def segments(self, mask: UInt8Array) -> list[tuple[int, str]]:
        """Return the class and run lengths of every region, where annotations that need them are wanted."""
        needed = set(ANNOTATION_TABLES) & set(self.wanted.annotations)
        return annotations.encode_regions(mask, len(self.labels)) if needed else []

    def write_tables(self, journal: Journal, summary: dict[str, Any]) -> None:
        """Write areas.csv, failures.csv, summary.json and what else is wanted of the whole folder.

        Raises:
            ConfigError: somebody has put another file of such a name there meanwhile.
            OSError: a file cannot be written.
        """
        with self._csv("areas.csv", journal) as writer:
            writer.writerow(["image", "result", "height", "width", *self.labels.names, "note"])
            for record in journal.done():
                self._write_areas(writer, record, record.note)
            for record in journal.failed():
                if record.partial:
                    self._write_areas(writer, record, record.reason)
        with self._csv("failures.csv", journal) as writer:
            writer.writerow(["image", "reason"])
            for record in (*journal.failed(), *journal.skipped()):
                writer.writerow([record.source, record.reason])
        if self.wanted.uncertainty:
            with self._csv("review.csv", journal) as writer:
                writer.writerow(["image", "result", "uncertainty"])
                for record in journal.done(most_uncertain_first=True):
                    if record.uncertainty is not None:
                        writer.writerow([record.source, record.result, f"{record.uncertainty:.6f}"])
        writers = {
            "coco.json": annotations.write_coco, "panoptic.json": annotations.write_panoptic,
            "label-studio.json": annotations.write_label_studio,
        }  # fmt: skip
        for name, write in writers.items():
            if name in self.wanted.tables:
                with self._table(name, journal) as temporary:
                    write(temporary, lambda: _labelled(journal.done()), self.labels)
        if "label-studio.xml" in self.wanted.tables:
            with self._table("label-studio.xml", journal) as temporary:
                temporary.write_text(annotations.label_studio_config(self.labels), encoding="utf-8")
        with self._table("summary.json", journal) as temporary:
            temporary.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")

    @staticmethod
    def _write_areas(writer: CsvWriter, record: Record, note: str) -> None:
        shares = [f"{count / max(sum(record.counts), 1):.6f}" for count in record.counts]
        writer.writerow([record.source, record.result, record.height, record.width, *shares, note])

    @contextlib.contextmanager
    def _table(self, name: str, journal: Journal) -> Iterator[Path]:
        """Yield a temporary name for a file of the whole run; the journal knows its contents before it appears."""
        with atomic_path(self.root / name, self.scratch) as temporary:
            yield temporary
            if not journal.owns_table(name):
                raise ConfigError(f"{self.root / name} {FOREIGN}")
            journal.claim_table(name, file_digest(temporary))

    @contextlib.contextmanager
    def _csv(self, name: str, journal: Journal) -> Iterator[CsvWriter]:
        """Open a CSV file that appears when it is complete; file names that are no Unicode keep their bytes."""
        with (
            self._table(name, journal) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            yield CsvWriter(file)


def check_name(name: str) -> None:
    """Refuse a name of results that leads out of the output folder.

    Raises:
        ValueError: it does.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of the output folder")


def _to_bytes(shares: FloatArray) -> UInt8Array:
    """Return values from 0 to 1 (H, W) as 0 to 255, strip by strip."""
    values = np.empty(shares.shape, np.uint8)
    for top in range(0, len(shares), rows := strip_rows(shares.shape[1])):
        values[top : top + rows] = (shares[top : top + rows] * 255).round().astype(np.uint8)
        release(shares)
    return values


def _save_overlay(image: UInt8Array, mask: UInt8Array, labels: LabelSet, opacity: float, path: Path) -> None:
    """Draw and write an overlay; that of a very large image is drawn strip by strip."""
    if mask.size <= SPOOLED_PIXELS:
        Image.fromarray(overlay(image, mask, labels, opacity)).save(path, quality=JPEG_QUALITY)
        return
    picture = empty_like(mask, (*mask.shape, 3), np.uint8)  # blue first, as OpenCV writes it
    for top in range(0, len(mask), rows := strip_rows(mask.shape[1])):
        part = slice(top, top + rows)
        picture[part] = overlay(np.ascontiguousarray(image[part]), mask[part], labels, opacity)[..., ::-1]
        for array in (image, mask, picture):
            release(array)
    if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise OSError(f"an overlay of {mask.shape[1]} x {mask.shape[0]} pixels cannot be written as {path.suffix[1:]}")


def _labelled(records: Iterable[Record]) -> Iterator[annotations.Labelled]:
    for record in records:
        if record.segments:
            file_name = record.file_name or record.source
            yield annotations.Labelled(file_name, record.name, record.height, record.width, record.segments)
