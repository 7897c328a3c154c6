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
        raise WeightsError(f"{path} is damaged or no checkpoint; give another, such as best.ckpt beside it") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint or "loops" not in checkpoint:
        raise WeightsError(f"{path} is no training checkpoint; weights alone cannot be resumed, start from them with "
                           f"--model.init")  # fmt: skip
    return checkpoint


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
    check_state(task, checkpoint["state_dict"], path)
    for state in checkpoint.get("optimizer_states", []):
        kept = [len(group["params"]) for group in state["param_groups"]]
        if kept != [len(group["params"]) for group in task.build_optimizer().param_groups]:
            raise WeightsError(f"{path} was trained with other learning rates for its parts; resume it with the same "
                               f"--model.lr_decay, or with its own options: --resume {path.parent.parent}")  # fmt: skip


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
