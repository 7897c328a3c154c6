"""The findings as a page with pictures, in one HTML file that needs nothing else."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np

from tiramisu.arrays import UInt8Array
from tiramisu.data.folder import FolderIndex, evenly, read_pair_mask
from tiramisu.data.source import read_image
from tiramisu.doctor.checks import Finding
from tiramisu.doctor.survey import Fact, Survey
from tiramisu.errors import DataError
from tiramisu.files import atomic_path
from tiramisu.visualize import as_rgb, data_url, hex_color, overlay

PICTURES = 6  # of a finding
SAMPLES = 9
WIDTH = 480


class Picture(NamedTuple):
    """A picture in a page, and what it shows."""

    address: str
    alt: str


def write_report(survey: Survey, findings: Sequence[Finding], verdict: str, path: Path) -> None:
    """Write the page.

    Args:
        survey: what was looked at.
        findings: to show, in order.
        verdict: whether training can start.
        path: of the HTML file.

    Raises:
        OSError: it cannot be written.
    """
    text = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)
    labels = survey.index.classes.labels
    totals = {split: survey.counts(split) for split in survey.index.splits}
    good = [fact for fact in survey.facts if fact.good]
    page = template.render(
        root=survey.index.root.resolve(),
        verdict=verdict,
        findings=[
            {
                "level": finding.level, "title": finding.title, "text": finding.text,
                "pictures": draw_facts(survey.index, finding.facts[:PICTURES]),
            }
            for finding in findings
        ],
        splits=list(totals),
        classes=[
            {
                "name": name, "color": hex_color(labels.palette[position]),
                "shares": [float(counts[position] / max(counts.sum(), 1)) for counts in totals.values()],
            }
            for position, name in enumerate(labels.names)
        ],
        samples=draw_facts(survey.index, evenly(good, SAMPLES)),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # names of files may be anything


def draw_facts(index: FolderIndex, facts: Sequence[Fact]) -> list[Picture]:
    """Draw each image beside its overlay; the image alone, or nothing, where that is all there is."""
    pictures = [_draw(index, fact) for fact in facts]
    return [picture for picture in pictures if picture is not None]


def _draw(index: FolderIndex, fact: Fact) -> Picture | None:
    try:
        image = as_rgb(read_image(index.root / fact.pair.image, index.in_channels))
    except DataError:
        return None
    shrunk = _shrink(image, cv2.INTER_AREA)
    alt = f"{fact.pair.image} ({fact.split})"
    try:
        mask = read_pair_mask(index, fact.pair, fact.image_size, fact.orientation)
    except DataError:
        return Picture(data_url(shrunk, "JPEG", quality=80), alt)
    small = cv2.resize(mask, (shrunk.shape[1], shrunk.shape[0]), interpolation=cv2.INTER_NEAREST_EXACT)
    both = np.concatenate([shrunk, overlay(shrunk, small, index.classes.labels)], axis=1)
    return Picture(data_url(both, "JPEG", quality=80), f"{alt}, and with its mask")


def _shrink(image: UInt8Array, interpolation: int) -> UInt8Array:
    scale = min(1.0, WIDTH / image.shape[1])
    if scale == 1:
        return image
    return cv2.resize(image, (WIDTH, max(1, round(image.shape[0] * scale))), interpolation=interpolation)
