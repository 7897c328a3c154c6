"""What a visitor takes home: the results as `tiramisu.predict` would write them, in one ZIP file."""

import io
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tiramisu.demo.gallery import Gallery, Result
from tiramisu.demo.limits import MIB
from tiramisu.files import CsvWriter, distinct
from tiramisu.inference.folder import blank_record, write_image
from tiramisu.inference.inputs import Entry
from tiramisu.inference.journal import FILE, Journal
from tiramisu.inference.outputs import OutputFolder, Wanted
from tiramisu.labels import LabelSet

VERDICTS = ("good", "wrong")


def write_package(
    gallery: Gallery, results: Sequence[Result], labels: LabelSet, verdicts: Mapping[str, str], path: Path
) -> None:
    """Write photos, index PNGs, overlays, areas.csv, COCO and LabelMe annotations of results into a ZIP file.

    Args:
        gallery: of the pictures.
        results: at least one; those with an error are listed in failures.csv.
        labels: the classes in the colours to draw.
        verdicts: "good" or "wrong" by key of the picture, for verdicts.csv.
        path: of the ZIP file.
    """
    good = [result for result in results if not result.error]
    uncertain = any(result.uncertainty is not None for result in good)
    wanted = Wanted(overlay="jpg", uncertainty=uncertain, annotations=("coco", "labelme"))
    size = sum(result.picture.path.stat().st_size for result in good)
    photos = size <= gallery.limits.package_mib * MIB  # else LabelMe needs them to be put there
    root = path.with_suffix(".files")
    shutil.rmtree(root, ignore_errors=True)
    output = OutputFolder(root, labels, wanted)
    names = unique_names([result.picture.name for result in results])
    try:
        with Journal(root, {}, tables=wanted.tables) as journal:
            output.begin()
            for result, name in zip(results, names, strict=True):
                if result.error:
                    continue
                # The photo goes along, which is where LabelMe will look for it; masks have names of the same kind.
                file_name = f"images/{name}{Path(result.picture.name).suffix.lower()}"
                record = blank_record(output, Entry(root / file_name, name, file_name), "")
                done = write_image(output, record, gallery.decode(result.picture), result.segmentation(labels))
                journal.write(done._replace(source=file_name))
            output.write_tables(journal, {"images": len(good), "failed": len(results) - len(good)})
            output.end()
        failures = [
            (result.picture.name, result.error.removeprefix(f"{result.picture.name}: "))
            for result in results
            if result.error
        ]
        _write_table(root / "failures.csv", ("image", "reason"), failures)
        marked = [(result.picture.name, verdicts.get(result.picture.key, "")) for result in good]
        _write_table(root / "verdicts.csv", ("image", "verdict"), marked)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in sorted(root.rglob("*")):
                if file.is_file() and not file.name.startswith(FILE):
                    archive.write(file, file.relative_to(root))
            for result, name in zip(results, names, strict=True):
                if not result.error and photos:
                    suffix = Path(result.picture.name).suffix.lower()
                    archive.write(result.picture.path, f"images/{name}{suffix}", zipfile.ZIP_STORED)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def relabelling_list(results: Sequence[Result], verdicts: Mapping[str, str]) -> str:
    """Return the images to label again as CSV: those marked wrong first, then the unmarked, most uncertain first."""
    waiting = [result for result in results if not result.error and verdicts.get(result.picture.key) != "good"]
    waiting.sort(key=lambda result: (verdicts.get(result.picture.key) != "wrong", -doubt(result)))
    table = io.StringIO()
    writer = CsvWriter(table)
    writer.writerow(["image", "verdict", "uncertainty"])
    for result in waiting:
        writer.writerow([result.picture.name, verdicts.get(result.picture.key, ""), f"{doubt(result):.6f}"])
    return table.getvalue()


def doubt(result: Result) -> float:
    """Return how uncertain a result is, 0 to 1: its uncertainty, else what its confidence lacks to 1."""
    return 1 - result.confidence if result.uncertainty is None else result.uncertainty


def unique_names(files: Sequence[str]) -> list[str]:
    """Return names of results for files: without folder and suffix, all different even where case is ignored."""
    return distinct([re.sub(r"[^\w.() -]", "_", Path(file).stem).strip(" .") or "image" for file in files])


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = CsvWriter(file)
        writer.writerow(header)
        writer.writerows(rows)
