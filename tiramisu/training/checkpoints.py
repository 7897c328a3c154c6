"""Checkpoints: written atomically, read without unpickling programs, found again by `--resume`."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from tiramisu.data.datamodule import SegmentationDataModule
from tiramisu.errors import ConfigError, WeightsError
from tiramisu.files import atomic_path
from tiramisu.models.network import check_state
from tiramisu.training.task import SegmentationTask

CHECKPOINT_FOLDER = "checkpoints"
LAST_NAME, BEST_NAME = "last", "best"
MONITORED = "val/mIoU"
# Without any of these Lightning would fail, or go on without a word as if the run had just begun.
PARTS = {
    "state_dict": dict, "loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list,
    "epoch": int, "global_step": int,
}  # fmt: skip
MAX_STEPS = 10**12
PROGRESS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.scheduler_progress")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints under a temporary name, sync, then rename; read them with ``weights_only=True``.

    Lightning's own way goes through a temporary file that fsspec may place on another disk, where the final move is a
    copy that a crash can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint; raise OSError if the disk is full, leaving the previous file as it was."""
        # Through memory: torch.save reports a full disk as an error without a reason, or aborts the process.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint; see `read_checkpoint`."""
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint as data: tensors and plain values only.

    Raises:
        WeightsError: it is missing, damaged, or a pickle that would run code.
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; give a .ckpt file or a run folder that holds one")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} is refused: it holds more than tensors and plain values, and opening it could run "
                           f"code; resume only from checkpoints that tiramisu.train wrote") from error  # fmt: skip
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise WeightsError(f"{path} is damaged or no checkpoint; {_remedy(path)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "loops" not in checkpoint:
        raise WeightsError(f"{path} is no training checkpoint; weights alone cannot be resumed, start from them with "
                           f"--model.init")  # fmt: skip
    for key, kind in PARTS.items():
        if not isinstance(checkpoint.get(key), kind):
            problem = f"its entry {key} is no {kind.__name__}" if key in checkpoint else f"it has no {key}"
            raise WeightsError(f"{path} is damaged: {problem}; {_remedy(path)}")
    for key in ("epoch", "global_step"):
        if not 0 <= checkpoint[key] <= MAX_STEPS:
            raise WeightsError(f"{path} is damaged: its {key} is {checkpoint[key]}; {_remedy(path)}")
    return checkpoint


def _remedy(path: Path) -> str:
    best = path.with_name(f"{BEST_NAME}.ckpt")
    other = f"{best}" if best.is_file() and best != path else "another checkpoint"
    return f"resume from {other}, or start anew without --resume"


def _all_finite(values: Any) -> bool:
    """Tell whether no tensor in nested plain values is NaN or infinite."""
    if isinstance(values, torch.Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    if isinstance(values, dict):
        return all(_all_finite(value) for value in values.values())
    return not isinstance(values, list) or all(_all_finite(value) for value in values)


def check_resumable(path: Path, task: SegmentationTask, data: SegmentationDataModule) -> None:
    """Check that a checkpoint can be read and belongs to the network and the data that are configured.

    Raises:
        ConfigError: it was trained with another drive held out.
        WeightsError: it cannot be read, or does not fit the network.
    """
    checkpoint = read_checkpoint(path)
    before = checkpoint.get(type(data).__qualname__, data.state_dict()).get("holdout")
    if before != data.holdout:
        raise ConfigError(f"{path} was trained with --data.holdout {before or 'null'}, not {data.holdout or 'null'}; "
                          f"resume it with its own, or start anew without --resume")  # fmt: skip
    state = checkpoint["state_dict"]
    damaged = f"{path} is damaged: its {{}}; {_remedy(path)}"
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        if not _all_finite(checkpoint.get(part)):
            raise WeightsError(damaged.format(f"{part} holds NaN or infinite values"))
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(damaged.format("state_dict holds more than tensors"))
    check_state(task, state, path)
    if task.ema_decay and not {"averaging_state", "current_model_state"} <= checkpoint.keys():
        raise WeightsError(f"{path} holds no moving average of the weights; resume it with --model.ema_decay 0, or "
                           f"with its own options: --resume {path.parent.parent}")  # fmt: skip
    optimizer = task.build_optimizer()
    wanted = [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
    try:
        (kept,) = checkpoint["optimizer_states"]
        lengths = [len(group["params"]) for group in kept["param_groups"]]
        if lengths == [len(group) for group in wanted]:
            _check_moments(kept, wanted)
            optimizer.load_state_dict(kept)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        raise WeightsError(damaged.format("optimizer_states do not fit the optimiser")) from error
    if lengths != [len(group) for group in wanted]:
        raise WeightsError(f"{path} was trained with other learning rates for its parts; resume it with the same "
                           f"--model.lr_decay, or with its own options: --resume {path.parent.parent}")  # fmt: skip
    schedules = checkpoint["lr_schedulers"]
    if len(schedules) != 1 or not isinstance(schedules[0], dict) or "last_epoch" not in schedules[0]:
        raise WeightsError(damaged.format("lr_schedulers do not hold the state of one schedule"))
    loop = checkpoint["loops"].get("fit_loop")
    if not isinstance(loop, dict) or not all(_is_progress(loop.get(part)) for part in PROGRESS):
        raise WeightsError(damaged.format("loops do not tell how far training was"))
    if not any(isinstance(value, dict) and "rows" in value for value in checkpoint["callbacks"].values()):
        raise WeightsError(damaged.format("callbacks hold no history"))


def _is_progress(values: Any) -> bool:
    """Tell whether Lightning would find counters in a part of a loop's state; what it does not find begins at 0."""
    if not isinstance(values, dict):
        return False
    return all(
        isinstance(values.get(key), dict) and values[key] and all(type(count) is int for count in values[key].values())
        for key in ("total", "current")
    )


def _check_moments(state: dict[str, Any], wanted: list[list[tuple[int, ...]]]) -> None:
    """Check that what an optimiser keeps of each parameter has the parameter's shape.

    Raises:
        ValueError: it has not.
    """
    shapes = {
        number: shape
        for group, expected in zip(state["param_groups"], wanted, strict=True)
        for number, shape in zip(group["params"], expected, strict=True)
    }
    for number, values in state["state"].items():
        for value in values.values():
            if isinstance(value, torch.Tensor) and value.ndim and tuple(value.shape) != shapes[number]:
                raise ValueError(f"parameter {number} has the shape {shapes[number]}, its state {tuple(value.shape)}")


def checkpoint_callbacks(run: Path) -> list[ModelCheckpoint]:
    """Return the callbacks that keep ``last.ckpt`` (after every epoch, to resume from) and ``best.ckpt`` of a run."""
    folder = run / CHECKPOINT_FOLDER
    return [
        ModelCheckpoint(
            folder,
            filename=BEST_NAME,
            monitor=MONITORED,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
        ModelCheckpoint(folder, filename=LAST_NAME, enable_version_counter=False, save_on_train_epoch_end=True),
    ]


def last_checkpoint(run: Path) -> Path:
    """Return where the last checkpoint of a run folder is, if it has one."""
    return run / CHECKPOINT_FOLDER / f"{LAST_NAME}.ckpt"


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or none if it lies elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINT_FOLDER else None


def find_checkpoint(resume: str, runs: Path, name: str) -> Path | None:
    """Find the checkpoint that `--resume` means.

    Args:
        resume: `last`, a checkpoint file, or a run folder.
        runs: folder of all runs.
        name: name of the run, or `*` for any.

    Returns:
        The checkpoint; none if `last` finds no finished epoch yet.

    Raises:
        WeightsError: the given file or folder holds no checkpoint.
    """
    if resume == "last":
        found = runs.glob(str(last_checkpoint(Path(name) / "version_*")))
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    path = Path(resume)
    if path.is_dir():
        path = last_checkpoint(path)
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; give `last`, a .ckpt file or a run folder that holds one")
    return path
