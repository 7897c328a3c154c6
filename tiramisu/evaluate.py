"""Measure weights on a labelled set: ``python -m tiramisu.evaluate --weights FOLDER --data.root DIR``."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from tiramisu import __version__
from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.data.camvid import check_unseen
from tiramisu.data.folder import FolderOptions
from tiramisu.data.loading import DatasetName, build_loader, open_source
from tiramisu.data.source import Relabelled, Source
from tiramisu.data.streets import Streets
from tiramisu.data.transforms import SegmentationDataset
from tiramisu.errors import ConfigError, DataError, WeightsError
from tiramisu.files import JSON_MARK, PNG_MARK, SOFTWARE, atomic_path, refuse_foreign, write_json
from tiramisu.inference.engines import Engine, EngineName, Precision
from tiramisu.inference.evaluation import BatchNormMode, Evaluation, use_batch_statistics
from tiramisu.inference.evaluation import evaluate as evaluate_network
from tiramisu.inference.segmenter import Segmenter, TestTimeAugmentation
from tiramisu.inference.torch_engine import TorchEngine
from tiramisu.labels import LabelSet
from tiramisu.metrics import format_table
from tiramisu.training.report import plot_confusion
from tiramisu.visualize import comparison
from tiramisu.weights import find_weights

WORST_IMAGES = 5
# Files of a report, and what tells them from other people's.
REPORT = {"evaluation.json": JSON_MARK, "confusion_matrix.png": PNG_MARK, "worst.png": PNG_MARK}


@dataclasses.dataclass
class DataOptions:
    """What to measure on.

    Args:
        dataset: name of the data set (default: the one that the weights were trained on).
        root: its folder (default: data/<dataset>; `streets` needs none).
        split: which part of it.
        image_size: height and width of the scenes of `streets` (default: as in training).
        folder: how `folder` is read (default: as in training).
        holdout: drive of `camvid` that `val` stands for; the weights must have been trained with the same.
    """

    dataset: DatasetName | None = None
    root: Path | None = None
    split: Literal["train", "val", "test"] = "val"
    image_size: tuple[int, int] | None = None
    folder: FolderOptions = dataclasses.field(default_factory=FolderOptions)
    holdout: str | None = None


def evaluate(
    weights: str,
    data: DataOptions,
    tta: TestTimeAugmentation = "none",
    bn: BatchNormMode = "running",
    output: Path | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    engine: EngineName = "torch",
) -> None:
    """Print IoU per class, mIoU and global accuracy, pooled over the set, void excluded.

    Args:
        weights: folder with model.safetensors and config.json, exported graph, or name of shipped weights.
        data: what to measure on.
        tta: test-time augmentation: `flip` adds mirrored images, `multiscale` also 0.75 and 1.25 times the size.
        bn: `running` uses the batch-norm statistics of training, `batch` those of the batch at hand, as the paper did.
        output: folder for evaluation.json, confusion_matrix.png and worst.png.
        batch_size: images per step; matters for `--bn batch`.
        workers: loader processes (default: what suits the machine).
        device: cuda, mps or cpu; `auto` is the first there is.
        precision: `auto` is bf16 where the hardware has it.
        engine: what computes; exported graphs need their own (`auto`).

    Raises:
        ConfigError: the options do not fit together, or the weights have seen the drive that is held out.
        WeightsError: the weights are missing, damaged, or have other classes than the data set.
        DataError: the data set is missing or damaged.
    """
    if batch_size < 1:
        raise ConfigError("--batch_size must be at least 1")
    if output is not None:
        for name, mark in REPORT.items():
            refuse_foreign(output / name, mark)
        output.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written must be told before the work
    if bn == "batch":
        segmenter = Segmenter(batch_statistics_engine(find_weights(weights), engine, device, precision))
    else:
        segmenter = Segmenter.load(weights, device, engine, precision)
    source = open_labelled(segmenter, weights, data)
    labels = source.labels
    result = evaluate_network(
        segmenter,
        build_loader(SegmentationDataset(source), batch_size, workers),
        tta,
        keep_worst=WORST_IMAGES if output else 0,
        progress=lambda batches: tqdm(batches, data.split, unit="batch", mininterval=0.5),
    )
    measured = data.holdout if data.holdout is not None and data.split == "val" else data.split
    print(format_table([(measured, result.scores)], labels))
    if output is not None:
        settings = {"weights": weights, "dataset": data.dataset or segmenter.engine.card.protocol.get("dataset")}
        settings |= {"split": data.split, "holdout": data.holdout, "images": len(source), "tta": tta, "bn": bn}
        settings |= {"engine": segmenter.engine.description}
        write_report(result, source, labels, settings, output)
        print(f"\nReport: {output}")


def open_labelled(segmenter: Segmenter, weights: str | Path, data: DataOptions) -> Source:
    """Open the data set that the options name, or else the one that the weights were trained on.

    Masks hold the indices of the weights' classes, whose names are those of the data; what does not match is said.

    Raises:
        ConfigError: neither names one, the weights are for other channels, or they have seen what is held out.
        DataError: it is missing or damaged.
        WeightsError: it has classes that the weights do not know.
    """
    protocol = segmenter.engine.card.protocol
    dataset = data.dataset or protocol.get("dataset")
    if not isinstance(dataset, str):
        raise ConfigError("these weights do not say what they were trained on; give --data.dataset")
    if data.holdout is not None and data.split == "test":
        raise ConfigError("--data.holdout parts the training images; measure on --data.split val, which it stands for")
    if data.split == "val":
        check_unseen(data.holdout, protocol, f"the weights {weights}")
    image_size = data.image_size
    if dataset == "streets" and image_size is None and protocol.get("dataset") == "streets":
        view = segmenter.view
        image_size = Streets.DEFAULT_SIZE if view is None else view
    folder = data.folder
    if dataset == "folder" and folder == FolderOptions() and isinstance(protocol.get("folder"), dict):
        folder = folder_options(protocol["folder"])  # as in training, for its splits
    if dataset == "folder" and folder.in_channels != segmenter.channels:
        raise ConfigError(f"these weights are for images of {segmenter.channels} channels; give "
                          f"--data.folder.in_channels {segmenter.channels}")  # fmt: skip
    source = open_source(cast(DatasetName, dataset), data.root, data.split, image_size, folder, data.holdout)
    known, wanted = segmenter.labels, source.labels
    if known.names == LabelSet.numbered(len(known)).names and known.names != wanted.names:
        # Weights that do not know what their classes are called: the numbers must do.
        if len(known) != len(wanted):
            raise WeightsError(f"{weights} has {len(known)} classes without names, but {dataset} has {len(wanted)}; "
                               f"choose another --data.dataset")  # fmt: skip
        print(f"{weights} does not name its classes: they are taken in the order of the data.", file=sys.stderr)
        known = dataclasses.replace(wanted, ignore_index=known.ignore_index)
    try:
        matched = Relabelled(source, known)
    except DataError as error:
        raise WeightsError(f"{weights} and {dataset} do not match: {error}; choose another --data.dataset") from error
    if matched.absent:
        print(f"The data do not have {', '.join(matched.absent)}: these classes are not scored.", file=sys.stderr)
    elif known.names != wanted.names:
        print("The data have the classes in another order: they are matched by name.", file=sys.stderr)
    return matched


def folder_options(values: Mapping[str, Any]) -> FolderOptions:
    """Return the options of a folder that weights remember; what is none of an option's type is left out."""
    default = FolderOptions()
    known: dict[str, Any] = {}
    for field in dataclasses.fields(FolderOptions):
        value, usual = values.get(field.name), getattr(default, field.name)
        expected = str if usual is None else type(usual)
        if type(value) is expected or (value is None and usual is None):
            known[field.name] = value
    return FolderOptions(**known)


def batch_statistics_engine(weights: Path, engine: EngineName, device: str, precision: Precision) -> Engine:
    """Open weights so that batch normalisation uses the statistics of the batch at hand.

    Raises:
        ConfigError: the engine is not torch.
        WeightsError: the weights are missing or damaged.
    """
    if engine not in ("auto", "torch"):
        raise ConfigError("--bn batch needs --engine torch: exported graphs have their statistics built in")
    opened = TorchEngine.open(weights, device, precision)
    use_batch_statistics(opened.network)
    return opened


def write_report(
    result: Evaluation, source: Source, labels: LabelSet, settings: dict[str, object], output: Path
) -> None:
    """Write the numbers, the confusion matrix and the worst images into a folder."""
    write_json(
        output / "evaluation.json",
        {"tiramisu": __version__, **settings, **result.scores.to_dict(labels), "confusion": result.confusion.tolist()},
    )
    plot_confusion(result.confusion, labels, output / "confusion_matrix.png")
    samples = [(source[found.position], found.prediction) for found in result.worst]
    worst = [(sample.image, sample.mask, prediction) for sample, prediction in samples]
    with atomic_path(output / "worst.png") as temporary:
        mark = PngInfo()
        mark.add_text("Software", SOFTWARE)
        Image.fromarray(comparison(worst, labels)).save(temporary, pnginfo=mark)


@command("tiramisu.evaluate")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(evaluate, "tiramisu.evaluate", __doc__, args)


if __name__ == "__main__":
    main()
