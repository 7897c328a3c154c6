"""Check your images and masks before you train on them: ``python -m tiramisu.check_data DIR``."""

import dataclasses
import io
import shlex
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.data.folder import FolderOptions, open_folder
from tiramisu.doctor.checks import Finding, run_checks
from tiramisu.doctor.repair import check_target, write_fixed
from tiramisu.doctor.report import write_report
from tiramisu.doctor.survey import Survey, survey_folder
from tiramisu.files import HTML_MARK, refuse_foreign

FOUND_ERRORS = 1
COLUMNS = 100
REPORT = "data-check.html"


@dataclasses.dataclass
class DataOptions:
    """What to check, in the words of `tiramisu.train`.

    Args:
        folder: how it is read.
    """

    folder: FolderOptions = dataclasses.field(default_factory=FolderOptions)


def check_data(
    root: Path,
    data: DataOptions = DataOptions(),  # noqa: B008  # so that --help shows its options
    output: Path | None = None,
    fix: Path | None = None,
    measure: bool = True,
) -> None:
    """Look at every image and mask, say what is wrong and how to mend it, and end with 1 where training cannot start.

    Args:
        root: folder of the images and masks.
        data: how it is read; give the same options to `tiramisu.train`.
        output: the report, an HTML file with pictures (default: data-check.html in the current folder).
        fix: new folder for a corrected copy: upright images, masks of class indices, splits as folders.
        measure: whether to measure which crop and batch fit into the memory, with training steps.
    """
    output = output or Path(REPORT)
    if output.is_dir():
        output /= REPORT
    refuse_foreign(output, HTML_MARK)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names of files may be anything
    if fix is not None:
        check_target(root, fix)
    index = open_folder(root, data.folder)
    survey = survey_folder(
        index, progress=lambda facts, total: tqdm(facts, "looking", total, unit="image", mininterval=0.5)
    )
    findings = run_checks(survey)
    if measure and any(fact.good for fact in survey.facts):
        findings.append(measure_capacity(survey))
    errors = [finding for finding in findings if finding.level == "error"]
    verdict = (
        f"{len(errors)} thing{'s' if len(errors) > 1 else ''} to mend before training."
        if errors
        else (f"Training can start: python -m tiramisu.train --config configs/folder.yaml {given(root, data.folder)}")
    )
    for finding in findings:
        title = f"{finding.level.upper()}: {finding.title}"
        print(title + "\n" + textwrap.fill(finding.text, COLUMNS, initial_indent="  ", subsequent_indent="  ",
                                           break_long_words=False, break_on_hyphens=False))  # fmt: skip
    write_report(survey, findings, verdict, output)
    print(f"\n{verdict}\nReport: {output}")
    if fix is not None:
        changes = write_fixed(survey, fix)
        left_out = sum(not change.copy for change in changes)
        print(f"Corrected copy: {fix}, {len(changes) - left_out} images, {left_out} left out; see changes.csv there. "
              f"Train on it: --data.root {shlex.quote(str(fix))}")  # fmt: skip
    if errors:
        raise SystemExit(FOUND_ERRORS)


def given(root: Path, options: FolderOptions) -> str:
    """Return the options of `tiramisu.train` for this folder."""
    default = dataclasses.asdict(FolderOptions())
    changed = {name: value for name, value in dataclasses.asdict(options).items() if value != default[name]}
    words = ["--data.root", str(root), *(f"--data.folder.{name}={value}" for name, value in changed.items())]
    return shlex.join(words)


def measure_capacity(survey: Survey) -> Finding:
    """Find the crop and batch that suit this machine, for the network of configs/folder.yaml."""
    from tiramisu.models import fc_densenet56  # importing torch takes seconds, which a wrong folder need not wait for
    from tiramisu.training.capacity import recommend

    side = round(statistics.median(min(fact.image_size) for fact in survey.facts if fact.good))
    network = fc_densenet56(len(survey.index.classes.labels), stem_stride=2, in_channels=survey.index.in_channels)
    found = recommend(network, side, lambda text: print(f"measuring {text} ...", file=sys.stderr))
    if found is None:
        return Finding("warning", "crop and batch", "Not even a crop of 128 and a batch of 2 fit into the memory here.")
    step, free = found
    text = (
        f"--data.crop_size {step.crop} --data.batch_size {step.batch}: a step of the network of configs/folder.yaml "
        f"(FC-DenseNet56 at half resolution) takes {step.seconds:.1f} s and {step.memory:,.0f} MiB here, of "
        f"{free:,.0f} MiB that are free."
    )
    return Finding("note", "crop and batch", text)


@command("tiramisu.check_data")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(check_data, "tiramisu.check_data", __doc__, args, positional=True)


if __name__ == "__main__":
    main()
