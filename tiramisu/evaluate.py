"""Measure weights on a labelled set: ``python -m tiramisu.evaluate --weights FOLDER --data.root DIR``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from tqdm import tqdm

from tiramisu.cli import command, hide_library_noise, run_function
from tiramisu.data.camvid import check_unseen
from tiramisu.data.folder import FolderOptions
from tiramisu.data.loading import DatasetName, build_loader, open_source
from tiramisu.data.source import Source
from tiramisu.data.streets import Streets
from tiramisu.data.transforms import SegmentationDataset
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.files import atomic_path, write_json
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

    Raises:
        ConfigError: neither names one, the weights are for other channels, or they have seen what is held out.
        DataError: it is missing or damaged.
        WeightsError: it has other classes than the weights.
    """
    protocol = segmenter.engine.card.protocol
    dataset = data.dataset or protocol.get("dataset")
    if dataset is None:
        raise ConfigError("these weights do not say what they were trained on; give --data.dataset")
    if data.holdout is not None and data.split == "test":
        raise ConfigError("--data.holdout parts the training images; measure on --data.split val, which it stands for")
    if data.split == "val":
        check_unseen(data.holdout, protocol, f"the weights {weights}")
    image_size = data.image_size
    if dataset == "streets" and image_size is None and protocol.get("dataset") == "streets":
        image_size = tuple(protocol.get("resolution", Streets.DEFAULT_SIZE))
    folder = data.folder
    if dataset == "folder" and folder == FolderOptions() and isinstance(protocol.get("folder"), dict):
        known_options = {field.name for field in dataclasses.fields(FolderOptions)}  # as in training, for its splits
        folder = FolderOptions(**{key: value for key, value in protocol["folder"].items() if key in known_options})
    if dataset == "folder" and folder.in_channels != segmenter.channels:
        raise ConfigError(f"these weights are for images of {segmenter.channels} channels; give "
                          f"--data.folder.in_channels {segmenter.channels}")  # fmt: skip
    source = open_source(dataset, data.root, data.split, image_size, folder, data.holdout)
    known, wanted = segmenter.labels.names, source.labels.names
    unnamed = known == LabelSet.numbered(len(known)).names  # weights that do not know what their classes are called
    if known != wanted and not (unnamed and len(known) == len(wanted)):
        raise WeightsError(f"{weights} knows the classes {', '.join(known)}, but {dataset} has "
                           f"{', '.join(wanted)}; choose another --data.dataset")  # fmt: skip
    return source


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
        {**settings, **result.scores.to_dict(labels), "confusion": result.confusion.tolist()},
    )
    plot_confusion(result.confusion, labels, output / "confusion_matrix.png")
    samples = [(source[found.position], found.prediction) for found in result.worst]
    worst = [(sample.image, sample.mask, prediction) for sample, prediction in samples]
    with atomic_path(output / "worst.png") as temporary:
        Image.fromarray(comparison(worst, labels)).save(temporary)


@command("tiramisu.evaluate")
def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    hide_library_noise()
    run_function(evaluate, "tiramisu.evaluate", __doc__, args)


if __name__ == "__main__":
    main()
