"""Train a segmentation network: ``python -m tiramisu.train [--config FILE] [--model.lr 1e-3 ...]``."""

import argparse
import dataclasses
import datetime
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tiramisu.cli import command, hide_library_noise, shipped_config, underscored
from tiramisu.configuration import (
    check_class,
    check_received,
    given_configurations,
    importable,
    read_configuration,
)
from tiramisu.data.camvid import check_unseen
from tiramisu.data.datamodule import SegmentationDataModule
from tiramisu.data.folder import open_folder
from tiramisu.data.loading import DATASETS, build_loader, collate, folder_root
from tiramisu.data.source import spread_evenly
from tiramisu.data.transforms import SampleKey, SegmentationDataset
from tiramisu.device import default_device, fast_bf16, peak_memory_mib
from tiramisu.doctor.checks import quick_check
from tiramisu.errors import ConfigError, DivergedError, TiramisuError, WeightsError
from tiramisu.files import PNG_MARK, refuse_foreign, write_json
from tiramisu.metrics import format_table, scores_from_confusion
from tiramisu.models.network import SegmentationNetwork, library_versions
from tiramisu.training.averaging import WarmupEMA
from tiramisu.training.callbacks import EpochSeed, History, PredictionPictures, ProgressBar
from tiramisu.training.checkpoints import (
    AtomicCheckpointIO,
    check_resumable,
    checkpoint_callbacks,
    find_checkpoint,
    last_checkpoint,
    read_checkpoint,
    run_of_checkpoint,
)
from tiramisu.training.class_bias import FITTED_IMAGES, add_class_bias, draw_pixels, fit_class_bias
from tiramisu.training.interruption import Interruption
from tiramisu.training.precise_bn import collect_statistics
from tiramisu.training.report import plot_confusion, plot_curves, plot_rates
from tiramisu.training.task import SegmentationTask
from tiramisu.training.tuning import tune

QUICKSTART_HINT = (
    "Training on the built-in street scenes. For CamVid: python -m tiramisu.download camvid --root data/camvid && "
    "python -m tiramisu.train --config configs/camvid.yaml"
)
CONFIG_NAME = "config.yaml"
RATES_PLOT = "learning-rates.png"
SIGNAL_SECONDS = 0.5  # within which a signal to a process group reaches all of it


class TrainCLI(LightningCLI):
    """The command line of training; `--help` lists every option."""

    datamodule: SegmentationDataModule
    model: SegmentationTask

    def __init__(self, args: list[str]) -> None:
        precision = "bf16-mixed" if fast_bf16(default_device()) else "32-true"
        super().__init__(
            SegmentationTask,
            SegmentationDataModule,
            args=args,
            run=False,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True, "config_filename": CONFIG_NAME},
            parser_kwargs={
                "exit_on_error": False,
                "prog": "python -m tiramisu.train",
                "description": __doc__,
            },
            trainer_defaults={
                "precision": precision,
                "max_epochs": 100,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # EpochSampler splits the data itself
            },
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options about the run as a whole."""
        parser.add_argument(
            "--name", type=str, default="default", help="name of the run; its folder is RUNS/NAME/version_N"
        )
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
        parser.add_argument(
            "--resume", type=str, default=None, metavar="last|PATH",
            help="go on from the last finished epoch of the newest run, or of a run folder or checkpoint",
        )  # fmt: skip
        parser.add_argument(
            "--tune", action="store_true",
            help="do not train, but find a learning rate, and the largest crop and batch that fit",
        )  # fmt: skip
        parser.add_argument(
            "--trust", action="store_true",
            help="run classes of other packages that a configuration names, and let a resumed one write elsewhere",
        )  # fmt: skip
        parser.add_argument("--pictures_every", type=int, default=1, help="validations between two pictures of samples")
        parser.link_arguments("data.labels", "model.labels", apply_on="instantiate")
        parser.link_arguments("data.in_channels", "model.in_channels", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.seed")
        parser.set_defaults({"model.network": {"class_path": "tiramisu.models.FCDenseNet"}})

    def before_instantiate_classes(self) -> None:
        """Take `--resume` out of the configuration, which is saved with the run and may be used again; fix the seed."""
        self.resume, self.config["resume"] = self.config["resume"], None
        self.config["trust"] = False
        check_class(self.config["model"]["network"], SegmentationNetwork, "--model.network")
        self.config["data"]["seed"] = self.config["seed_everything"]  # by now a number, also where it was "random"

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer of this run, in a folder of its own or in the one that is resumed."""
        if self.datamodule.dataset == "folder":
            for warning in quick_check(open_folder(folder_root(self.datamodule.root), self.datamodule.folder)):
                announce(f"Warning: {warning}")
        if self.model.beginning is not None and self.datamodule.dataset == "camvid":
            check_unseen(self.datamodule.holdout, self.model.beginning.protocol, "the weights of --model.init")
        self.datamodule.setup("fit")  # a wrong data set must be reported before a folder is made
        if self.config["tune"]:
            return super().instantiate_trainer(logger=False, enable_checkpointing=False)
        runs, name = self.config["runs"], self.config["name"]
        if Path(name).name != name or name in ("", ".."):
            raise ConfigError(f"--name {name} must be the name of one folder")
        self.checkpoint = find_checkpoint(self.resume, runs, name) if self.resume else None
        run = None
        if self.checkpoint is not None:
            check_resumable(self.checkpoint, self.model, self.datamodule)
            run = run_of_checkpoint(self.checkpoint)
        elif self.resume:
            announce(f"Nothing to resume in {runs / name}: starting anew.")
        self.run = run or new_run_folder(runs / name)
        self.history, self.interruption = History(self.run), Interruption()
        callbacks = [
            self.interruption,
            EpochSeed(self.config["seed_everything"]),
            self.history,
            PredictionPictures(self.run, self.model.labels, every=self.config["pictures_every"]),
            *([WarmupEMA(self.model.ema_decay)] if self.model.ema_decay else []),
            *checkpoint_callbacks(self.run),
        ]
        config = self.config_init["trainer"]
        if config["enable_progress_bar"] is not False:
            callbacks.append(ProgressBar(refresh_rate=1 if sys.stderr.isatty() else 20))
        config["callbacks"] = [*(config["callbacks"] or []), *callbacks]
        config["plugins"] = [*(config["plugins"] or []), AtomicCheckpointIO()]
        if config["default_root_dir"] is None:
            config["default_root_dir"] = self.run
        if config["logger"] is None:
            config["logger"] = TensorBoardLogger(self.run.parent.parent, self.run.parent.name, self.run.name)
        return super().instantiate_trainer(**kwargs)


@rank_zero_only
def announce(text: str) -> None:
    """Tell the user something, once for all processes."""
    print(text, file=sys.stderr)


def new_run_folder(parent: Path) -> Path:
    """Make the folder ``version_N`` with the next free number; other processes of the run only learn its name."""
    taken = [int(path.name.removeprefix("version_")) for path in parent.glob("version_*") if path.name[8:].isdigit()]
    number = max(taken, default=-1) + 1
    while getattr(rank_zero_only, "rank", 0) == 0:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:  # a run that started at the same moment has taken it
            if not parent.is_dir():
                raise
            number += 1
    return parent / f"version_{number}"


def with_config(args: list[str]) -> list[str]:
    """Add the configuration that the arguments imply: that of the run to resume, or quickstart; find shipped ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append")
    parser.add_argument("--resume")
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--name", default="*")
    parser.add_argument("--data.dataset", dest="dataset")
    parser.add_argument("--trust", action="store_true")
    known, rest = parser.parse_known_args(args)
    if known.config:
        # An installed wheel has no configs/ folder beside it: configs/camvid.yaml then means the shipped one.
        return [_with_shipped(arg) for arg in args]
    if known.resume:
        checkpoint = find_checkpoint(known.resume, Path(known.runs), known.name)
        run = run_of_checkpoint(checkpoint) if checkpoint else None
        if run is not None and (run / CONFIG_NAME).is_file():
            if not known.trust:
                check_received(read_configuration(run / CONFIG_NAME), run)
            return ["--config", str(run / CONFIG_NAME), *args]
    if known.dataset in ("camvid", "folder"):
        announce(f"Using configs/{known.dataset}.yaml.")
        return ["--config", str(shipped_config(f"{known.dataset}.yaml")), *args]
    if not {"-h", "--help", "--print_config"} & set(rest):
        announce(QUICKSTART_HINT)
    return ["--config", str(shipped_config("quickstart.yaml")), *args]


def _with_shipped(arg: str) -> str:
    option, equals, path = arg.rpartition("=")
    shipped = shipped_config(Path(path).name)
    missing = Path(path).parent == Path("configs") and not Path(path).exists()
    return f"{option}{equals}{shipped}" if missing and shipped.is_file() else arg


@command("tiramisu.train")
def main(args: Sequence[str] | None = None) -> None:
    """Fit, then evaluate the final weights and write the report."""
    hide_library_noise()
    given = with_config(underscored(sys.argv[1:] if args is None else args))
    configurations = {path: read_configuration(path) for path in given_configurations(given)}
    # To the end of the run: Lightning parses the configuration once more when it saves it.
    with importable(given, configurations, trust="--trust" in given):
        try:
            cli = TrainCLI(given)
        except (MisconfigurationException, ValueError) as error:  # what Lightning says of options that do not fit
            raise ConfigError(str(error)) from error
        if cli.config["tune"]:
            show_suggestion(cli)
        else:
            train(cli)


def show_suggestion(cli: TrainCLI) -> None:
    """Find and print what to train with."""
    refuse_foreign(Path(RATES_PLOT), PNG_MARK)
    found = tune(cli.model, cli.datamodule, str(cli.trainer.precision), announce)
    plot_rates(found.rates, found.losses, found.lr, Path(RATES_PLOT))
    options = f"--model.lr {found.lr:.1e}"
    if found.step is not None:
        options += f" --data.crop_size {found.step.crop} --data.batch_size {found.step.batch}"
        print(f"A step of {found.step.batch} crops of {found.step.crop} takes {found.step.seconds:.1f} s and "
              f"{found.step.memory:,.0f} of the {found.free:,.0f} MiB that are free.")  # fmt: skip
    print(f"The loss is lowest at a rate of {10 * found.lr:.1e}; a tenth of that is safe: {RATES_PLOT}\n"
          f"Train with: {options}")  # fmt: skip


def train(cli: TrainCLI) -> None:
    """Fit and finish; where a signal ends the run, say what is kept and how to resume.

    Raises:
        SystemExit: with 130 or 143 where the run was interrupted.
    """
    announce(f"Run folder: {cli.run}")
    try:
        with cli.interruption:
            fit(cli)
            if not cli.config_init["trainer"]["fast_dev_run"]:
                finish(cli)
    except (SystemExit, KeyboardInterrupt, TiramisuError):
        if not cli.interruption.signal:
            raise
        progress_bar = "\n" if cli.config_init["trainer"]["enable_progress_bar"] is not False else ""
        if last_checkpoint(cli.run).is_file():
            announce(f"{progress_bar}Interrupted. Finished epochs that are kept: {len(cli.history.rows)}. Resume: "
                     f"python -m tiramisu.train --resume {cli.run}")  # fmt: skip
        else:
            announce(f"{progress_bar}Interrupted before the first epoch was finished: nothing is kept, start again.")
        raise SystemExit(128 + cli.interruption.signal) from None


def fit(cli: TrainCLI) -> None:
    """Train; what went wrong is told with its remedy.

    Raises:
        DivergedError: the loss diverged.
        ConfigError: the batch is too small.
        WeightsError: the checkpoint cannot be resumed.
        TiramisuError: a loader process was killed.
    """
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True)
    except DivergedError as error:
        last = last_checkpoint(cli.run)
        remedy = f"the last good checkpoint is {last}" if last.is_file() else "no epoch had finished"
        raise DivergedError(f"{error}; {remedy}; lower --model.lr or set --trainer.gradient_clip_val 1") from error
    except TiramisuError:
        raise
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        if "more than 1 value per channel" in str(error):
            remedy = "raise --data.batch_size or --data.crop_size"
            raise ConfigError(f"a batch leaves batch normalisation a single value per channel; {remedy}") from error
        if str(error).startswith("DataLoader worker"):
            time.sleep(SIGNAL_SECONDS)  # a signal to the whole process group ends the loader first
            raise TiramisuError(f"a loader process was killed, perhaps for want of memory: lower --data.workers, "
                                f"and resume with --resume {cli.run}") from error  # fmt: skip
        if cli.checkpoint is not None and not cli.interruption.started:
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise WeightsError(f"{cli.checkpoint} is damaged and cannot be resumed ({reason}); resume from another "
                               f"checkpoint, or start anew without --resume") from error  # fmt: skip
        raise


def finish(cli: TrainCLI) -> None:
    """Evaluate the final (averaged) weights and write model, report and plots into the run folder."""
    trainer, task = cli.trainer, cli.model
    run = Path(trainer.strategy.broadcast(str(cli.run)))  # only the first process knows which folder it made
    last = last_checkpoint(run)
    if last.is_file():  # there is none where no epoch was trained
        # It holds the averaged weights, also where the run was resumed after its last epoch.
        task.load_state_dict(read_checkpoint(last, map_location=task.device)["state_dict"])
        task.to(trainer.strategy.root_device)  # the end of fit() has moved it to the CPU
        if task.precise_bn:
            renew_statistics(cli)
    protocol = protocol_stamp(cli)
    if task.class_bias and last.is_file():
        save_model(task, run, protocol)
        protocol["class_bias"] = add_fitted_bias(cli)
    save_model(task, run, protocol)  # before evaluation, so that a crash there loses nothing
    trainer.test(task, cli.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    split, confusion = cli.datamodule.test_split, task.last_confusion
    scores = scores_from_confusion(confusion)
    protocol["metrics"] = {"split": split, **scores.to_dict(task.labels)}
    save_model(task, run, protocol)
    steps = int(cli.history.rows[-1]["step"]) if cli.history.rows else 0
    report = {
        **protocol,
        "epochs": len(cli.history.rows),
        "steps": steps,
        "peak_memory_mib": peak_memory_mib(),
        "confusion": confusion.tolist(),
        "history": cli.history.rows,
    }
    write_json(run / "report.json", report)
    plot_confusion(confusion, task.labels, run / "confusion_matrix.png")
    plot_curves(cli.history.rows, run / "curves.png")
    print(
        f"\n{format_table([(split, scores)], task.labels)}\n\nWeights: {run / 'model'}\nReport:  {run / 'report.json'}"
    )


def renew_statistics(cli: TrainCLI) -> None:
    """Collect the statistics of batch norm anew over the training images; every process sees all of them."""
    trainer, task, data = cli.trainer, cli.model, cli.datamodule
    announce("Collecting the statistics of batch norm.")
    batches = build_loader(data.train_set, data.batch_size, data.workers, shuffle=True, seed=data.seed)
    limit = trainer.limit_train_batches
    count = limit if isinstance(limit, int) else round(limit * len(batches))
    with trainer.precision_plugin.forward_context():
        collect_statistics(task, itertools.islice(batches, count), task.device)


def add_fitted_bias(cli: TrainCLI) -> dict[str, float]:
    """Add to the classifier's bias what raises the mIoU of training images; return it by the classes' names."""
    trainer, task, data = cli.trainer, cli.model, cli.datamodule
    images = SegmentationDataset(data.train_set.source)  # whole ones, as they are
    places = spread_evenly(len(images), FITTED_IMAGES)
    announce(f"Fitting the classifier's bias to {len(places)} training images.")
    task.eval()
    items = (collate([images[SampleKey(0, place)]]) for place in places)
    batches = (task.transfer_batch_to_device(item, task.device, 0) for item in items)
    with trainer.precision_plugin.forward_context():
        logits, truth = draw_pixels(task, batches, len(places), task.labels, data.seed)
    constants = trainer.strategy.broadcast(fit_class_bias(logits, truth))
    add_class_bias(task.network, constants)
    return dict(zip(task.labels.names, (round(value, 2) for value in constants.tolist()), strict=True))


def protocol_stamp(cli: TrainCLI) -> dict[str, Any]:
    """Say how the weights came about, for config.json and report.json."""
    config, trainer = cli.config, cli.trainer
    return {
        "dataset": config["data"]["dataset"],
        "data_license": DATASETS[config["data"]["dataset"]].license,
        "resolution": list(cli.datamodule.val_set.source[0].mask.shape),
        "whole_views": DATASETS[config["data"]["dataset"]].whole_views,
        **({"holdout": cli.datamodule.holdout} if cli.datamodule.holdout else {}),
        **({"folder": dataclasses.asdict(cli.datamodule.folder)} if cli.datamodule.dataset == "folder" else {}),
        "recipe": config["name"],
        "epochs": trainer.current_epoch,
        "train_seconds": round(cli.history.seconds, 1),
        **({"init": cli.model.beginning.protocol} if cli.model.beginning is not None else {}),
        "seed": config["seed_everything"],
        "batch_norm": "precise" if cli.model.precise_bn else "running",
        "precision": str(trainer.precision),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {**library_versions(), "lightning": L.__version__},
    }


@rank_zero_only
def save_model(task: SegmentationTask, run: Path, protocol: dict[str, Any]) -> None:
    """Write the model folder."""
    task.network.protocol = protocol
    task.network.to(memory_format=torch.contiguous_format)
    task.network.save_pretrained(run / "model")


if __name__ == "__main__":
    main()
