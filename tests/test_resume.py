"""Interruption with SIGKILL and resumption, bit for bit."""

import os
import shutil
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


def break_checkpoint(run: Path, change) -> Path:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def without(*keys: str):
    def change(checkpoint: dict) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return change


def replaced(value: object, *keys):
    def change(checkpoint: dict) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


def of_another_shape(checkpoint: dict) -> None:
    moments = checkpoint["optimizer_states"][0]["state"]
    moments[next(iter(moments))]["exp_avg"] = torch.zeros(3, 2)


def of_no_number(part: str):
    def change(checkpoint: dict) -> None:
        name = next(name for name, value in checkpoint[part].items() if value.ndim == 4)
        checkpoint[part][name].fill_(float("nan"))

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(without(key) for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks", "averaging_state")),
        *(replaced(3, key) for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks", "state_dict")),
        *(replaced(kind(), key) for key, kind in (("lr_schedulers", list), ("loops", dict), ("callbacks", dict))),
        replaced([], "optimizer_states"),
        replaced({}, "loops", "fit_loop"),
        without("loops", "fit_loop", "epoch_progress"),
        replaced({"total": 3, "current": "x"}, "loops", "fit_loop", "epoch_progress"),
        replaced({"param_groups": 1}, "optimizer_states", 0),
        without("optimizer_states", 0, "state"),
        without("optimizer_states", 0, "param_groups"),
        of_another_shape,
        of_no_number("state_dict"),
        of_no_number("current_model_state"),
        replaced(-5, "epoch"),
        replaced(10**30, "global_step"),
        replaced({}, "lr_schedulers", 0),
        replaced({"last_epoch": "x"}, "lr_schedulers", 0),
        replaced({}, "averaging_state"),
        replaced(7, "current_model_state"),
        replaced({"rows": 5, "seconds": "x"}, "callbacks", "History"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_told_in_one_line(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change
) -> None:
    run = tmp_path / "runs" / "tiny" / "version_0"
    shutil.copytree(trained_run, run)
    path = break_checkpoint(run, change)
    with pytest.raises(SystemExit) as ended:
        main([f"--resume={run}", "--trainer.max_epochs=5"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("tiramisu.train: error: ") and str(path) in lines[-1], lines
    assert "Traceback" not in "\n".join(lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_a_line_of_its_own(train_args: TrainArgs, tmp_path: Path, number: int) -> None:
    """Ctrl-C and `timeout` reach the loader's processes, too."""
    args = [arg for arg in train_args("--trainer.max_epochs=5000") if "workers" not in arg and "progress" not in arg]
    run = tmp_path / "runs" / "tiny" / "version_0"
    process = subprocess.Popen(
        [sys.executable, "-m", "tiramisu.train", *args, "--data.workers=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, output[-2000:]
    last = output.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("Interrupted. ") and "kept" in last, output[-500:]
    assert last.endswith(f"Resume: python -m tiramisu.train --resume {run}")
    assert "Traceback" not in output and "want of memory" not in output
