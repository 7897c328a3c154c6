"""Interruption with SIGKILL and resumption, bit for bit."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiramisu.train import main

from .conftest import TrainArgs

EPOCHS = 6


def _options(tmp_path: Path, name: str) -> list[str]:
    return [
        f"--trainer.max_epochs={EPOCHS}", f"--runs={tmp_path / name}", "--model.network.dropout=0.2",
        "--model.schedule=cosine", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/mIoU",
        "--trainer.callbacks.patience=50",
    ]  # fmt: skip


def _weights(runs: Path) -> dict[str, torch.Tensor]:
    return load_file(runs / "tiny" / "version_0" / "model" / "model.safetensors")


def test_a_killed_run_resumes_to_identical_weights(train_args: TrainArgs, tmp_path: Path) -> None:
    main(train_args(*_options(tmp_path, "whole")))
    expected = _weights(tmp_path / "whole")

    command = [sys.executable, "-m", "tiramisu.train", *train_args(*_options(tmp_path, "killed"))]
    last = tmp_path / "killed" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)  # somewhere in the next epoch, if it is not over yet
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run must not have ended by itself"
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert epoch < EPOCHS - 1

    main(train_args(*_options(tmp_path, "killed"), "--resume=last"))
    actual = _weights(tmp_path / "killed")
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    whole, killed = (
        torch.load(tmp_path / name / "tiny" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "killed")
    )
    for part in ("optimizer_states", "lr_schedulers", "averaging_state"):
        assert _equal(whole[part], killed[part]), part
    rows = [(tmp_path / name / "tiny/version_0/metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    columns = rows[0][0].split(",")
    keep = [index for index, column in enumerate(columns) if column != "seconds"]
    tables = [[[line.split(",")[index] for index in keep] for line in lines] for lines in rows]
    assert tables[0] == tables[1], "the history has every epoch once, with the same numbers"


def _equal(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return isinstance(second, dict) and first.keys() == second.keys() and all(
            _equal(first[key], second[key]) for key in first
        )  # fmt: skip
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))  # type: ignore[arg-type]
    return first == second


@pytest.mark.parametrize("with_config", [True, False])
def test_resuming_a_finished_run_only_evaluates_again(train_args: TrainArgs, tmp_path: Path, with_config: bool) -> None:
    runs = tmp_path / "runs"
    main(train_args())
    before = _weights(runs)
    (runs / "tiny" / "version_0" / "report.json").unlink()
    main(train_args("--resume=last") if with_config else ["--resume=last", f"--runs={runs}"])
    assert (runs / "tiny" / "version_0" / "report.json").is_file()
    after = _weights(runs)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in (runs / "tiny").iterdir()] == ["version_0"]


def test_resuming_with_more_epochs_goes_on(train_args: TrainArgs, tmp_path: Path) -> None:
    main(train_args())
    main(["--resume=last", f"--runs={tmp_path / 'runs'}", "--trainer.max_epochs=3"])
    rows = (tmp_path / "runs" / "tiny" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 3


def test_resuming_before_the_first_epoch_starts_anew(train_args: TrainArgs, tmp_path: Path) -> None:
    main(train_args("--resume=last", "--trainer.max_epochs=1"))
    assert (tmp_path / "runs" / "tiny" / "version_0" / "report.json").is_file()


def test_ctrl_c_tells_how_to_go_on(train_args: TrainArgs, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tiramisu.train", *train_args("--trainer.max_epochs=500")]
    run = tmp_path / "runs" / "tiny" / "version_0"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode not in (0, None)
    assert errors.strip().splitlines()[-1].endswith(f"python -m tiramisu.train --resume {run}")
    assert "Traceback" not in errors
