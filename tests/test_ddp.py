"""Two gloo processes on the CPU."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tiramisu.models import load_network

from .conftest import TrainArgs


@pytest.mark.slow
def test_two_processes_measure_what_one_does(train_args: TrainArgs, trained_run: Path, tmp_path: Path) -> None:
    """Both runs evaluate the same weights on 3 images, which 2 processes cannot share evenly."""
    tables = {}
    for name, more in {"one": [], "two": ["--trainer.devices=2", "--trainer.strategy=ddp"]}.items():
        args = train_args(
            f"--model.init={trained_run / 'model'}", "--model.lr=0", "--model.ema_decay=0", "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=0", f"--runs={tmp_path / name}", "--trainer.accelerator=cpu", *more,
        )  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-m", "tiramisu.train", *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert result.returncode == 0, result.stderr
        tables[name] = result.stdout[result.stdout.index("Sky") : result.stdout.index("Weights")]
    assert tables["one"] == tables["two"]


def test_two_processes_train_together(train_args: TrainArgs, tmp_path: Path) -> None:
    args = train_args(
        "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--model.class_bias=true"
    )
    result = subprocess.run(
        [sys.executable, "-m", "tiramisu.train", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs" / "tiny"
    assert [path.name for path in run.iterdir()] == ["version_0"], "one run folder for all processes"
    rows = list(csv.DictReader((run / "version_0" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2], "6 images, 2 per step and process: 1 step per epoch"
    assert float(rows[0]["train/loss"]) == pytest.approx(2.5, abs=1.5)
    assert any(load_network(run / "version_0" / "model").protocol["class_bias"].values())
