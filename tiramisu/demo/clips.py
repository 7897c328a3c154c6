"""Videos of a visitor."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tiramisu.demo.gallery import Gallery
from tiramisu.demo.service import Service
from tiramisu.errors import ImageError
from tiramisu.inference.segmenter import Options, TestTimeAugmentation
from tiramisu.inference.video import count_frames, segment_video
from tiramisu.labels import LabelSet
from tiramisu.visualize import hex_color


class ClipProgress(NamedTuple):
    """The frame at work, and how many there are."""

    frame: int
    frames: int

    @property
    def share(self) -> float:
        """Return how much is done, 0 to 1."""
        return min((self.frame - 1) / max(self.frames, 1), 1.0)


class Clip(NamedTuple):
    """A segmented video.

    Attributes:
        video: of the overlay, WebM.
        table: CSV of each frame's areas.
        areas: the same for a chart: Seconds, Class, Area (%) and Colour of each class in each frame.
        note: what is worth saying.
    """

    video: bytes
    table: str
    areas: list[dict[str, str | float]]
    note: str


def segment_clip(
    gallery: Gallery,
    service: Service,
    name: str,
    data: bytes | memoryview,
    labels: LabelSet,
    tta: TestTimeAugmentation,
    tell: Callable[[ClipProgress], None],
) -> Clip:
    """Segment a video, up to the limit of frames.

    Args:
        gallery: in whose folder it lies meanwhile.
        service: takes one frame at a time, so that others get their turn between two.
        name: of the file.
        data: its contents.
        labels: the classes in the colours to draw.
        tta: test-time augmentation.
        tell: is called before every frame; where it raises, nothing is left behind.

    Raises:
        ImageError: it is no video that can be read, or too large.
    """
    limits = gallery.limits
    gallery.limits.check_file(name, len(data), video=True)
    source = gallery.root / f"clip{Path(name).suffix.lower()}"
    overlay = gallery.root / "overlay.webm"
    source.write_bytes(data)
    frame = 0
    try:
        total = count_frames(source)
        wanted = min(total, limits.frames) if total else limits.frames

        def before_frame() -> bool:
            nonlocal frame
            frame += 1
            if frame <= wanted:
                tell(ClipProgress(frame, wanted))
            return False

        result = segment_video(
            service.one_by_one(labels), source, overlay, options=Options(tta=tta), max_pixels=limits.frame_pixels,
            stopped=before_frame, max_frames=limits.frames,
        )  # fmt: skip
        assert result is not None  # it is never stopped
        table = overlay.with_suffix(".csv").read_text(encoding="utf-8")
        note = f"{result.frames} frames of {result.width} x {result.height} pixels"
        if result.problem:
            note += f"; {result.problem}"
        elif total > result.frames:
            note += f", the first of {total}"
        return Clip(overlay.read_bytes(), table, _chart(table, labels), note)
    except ImageError as error:
        raise ImageError(str(error).replace(str(source), name)) from error
    finally:
        for file in (source, overlay, overlay.with_suffix(".csv")):
            file.unlink(missing_ok=True)


def _chart(table: str, labels: LabelSet) -> list[dict[str, str | float]]:
    rows = list(csv.DictReader(io.StringIO(table)))
    colors = dict(zip(labels.names, labels.palette, strict=True))
    present = [name for name in labels.names if any(float(row[name]) > 0 for row in rows)]
    return [
        {
            "Seconds": float(row["seconds"]),
            "Class": name,
            "Area (%)": 100 * float(row[name]),
            "Colour": hex_color(colors[name]),
        }
        for row in rows
        for name in present
    ]
