"""Training as users start it."""

import csv
import inspect
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import get_worker_info

import tiramisu.evaluate
from tiramisu.data.transforms import Item, SampleKey, SegmentationDataset
from tiramisu.models import EncoderFCDenseNet, FCDenseNet, SmpNetwork, load_network
from tiramisu.train import main

from .conftest import TrainArgs, write_camvid


def test_a_run_leaves_everything_behind(trained_run: Path) -> None:
    files = {str(path.relative_to(trained_run)) for path in trained_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "metrics.csv", "report.json", "confusion_matrix.png", "curves.png", "predictions.png",
        "model/model.safetensors", "model/config.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "samples/epoch_000.png",
    } <= files  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any(".tmp" in name for name in files)
    for name in ("confusion_matrix.png", "curves.png", "predictions.png"):
        picture = np.asarray(Image.open(trained_run / name).convert("RGB"))
        assert min(picture.shape[:2]) > 100 and picture.std() > 10, name


def test_the_report_says_how_the_weights_came_about(trained_run: Path) -> None:
    report = json.loads((trained_run / "report.json").read_text())
    assert report["dataset"] == "camvid" and report["resolution"] == [48, 64] and report["recipe"] == "tiny"
    assert report["epochs"] == 3 and report["steps"] == 9 and report["seed"] == 0
    assert report["metrics"]["split"] == "test"
    assert report["versions"].keys() >= {"tiramisu", "torch", "lightning", "python", "numpy"}
    confusion = torch.tensor(report["confusion"])
    right, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    present = confusion.sum(1) > 0
    assert report["metrics"]["mean_iou"] == pytest.approx((right / union)[present].mean().item())
    network = load_network(trained_run / "model")
    assert network.protocol["metrics"] == report["metrics"]
    assert network.protocol["train_seconds"] == report["train_seconds"] > 0
    assert network.labels is not None and network.labels.names[0] == "Sky"


def test_the_history_has_one_row_per_epoch(trained_run: Path) -> None:
    rows = list(csv.DictReader((trained_run / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["train/loss"]) > 0 and 0 <= float(row["val/mIoU"]) <= 1 for row in rows)


def test_final_weights_are_the_average(trained_run: Path) -> None:
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    stored = load_file(trained_run / "model" / "model.safetensors")
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert all(torch.equal(stored[name], averaged[f"network.{name}"]) for name in stored)
    assert any(not torch.equal(stored[name], current[f"network.{name}"]) for name in stored)


def test_the_saved_configuration_repeats_the_run(trained_run: Path, tmp_path: Path) -> None:
    main([f"--config={trained_run / 'config.yaml'}", f"--runs={tmp_path}"])
    again = load_file(tmp_path / "tiny" / "version_0" / "model" / "model.safetensors")
    first = load_file(trained_run / "model" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_learns_its_images_by_heart(train_args: TrainArgs, tmp_path: Path) -> None:
    root = write_camvid(tmp_path / "data", {"train": 2, "val": 1})
    for folder in ("test", "testannot"):
        (root / folder).symlink_to(root / folder.replace("test", "train"))
    main(train_args(
        "--trainer.max_epochs=40", "--trainer.check_val_every_n_epoch=40", "--model.lr=2e-2", "--model.ema_decay=0.5",
        "--data.augmentation=none", "--data.batch_size=1", "--trainer.limit_train_batches=2",
        "--model.network.dropout=0", "--model.network.growth_rate=8", "--model.schedule=cosine", root=root,
    ))  # fmt: skip
    report = json.loads((tmp_path / "runs" / "tiny" / "version_0" / "report.json").read_text())
    assert report["metrics"]["accuracy"] > 0.6
    assert report["metrics"]["iou"]["Road"] > 0.5


@pytest.mark.parametrize(
    "options",
    [
        ["--model.optimizer=rmsprop", "--model.schedule=exponential", "--model.region_loss=lovasz"],
        [
            "--model.optimizer=sgd",
            "--model.schedule=cosine",
            "--model.warmup_epochs=1",
            "--model.region_loss=dice",
        ],
        ["--data.augmentation=none", "--data.crop_size=null", "--data.batch_size=1", "--model.ema_decay=0"],
        [
            "--trainer.gradient_clip_val=1",
            "--trainer.accumulate_grad_batches=2",
            "--model.label_smoothing=0.1",
        ],
        ["--trainer.precision=bf16-mixed", "--model.channels_last=false"],
        [
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor=val/mIoU",
            "--trainer.callbacks.mode=max",
        ],
    ],
)
def test_options_train(train_args: TrainArgs, tmp_path: Path, options: list[str]) -> None:
    main(train_args("--trainer.max_epochs=1", *options))
    assert (tmp_path / "runs" / "tiny" / "version_0" / "report.json").is_file()


def test_smp_baseline_trains_in_the_same_loop(train_args: TrainArgs, tmp_path: Path) -> None:
    args = [arg for arg in train_args("--trainer.max_epochs=1") if not arg.startswith("--model.network")]
    main(
        [
            *args,
            "--model.network=SmpNetwork",
            "--model.network.arch=unet",
            "--model.network.encoder_name=resnet18",
        ]
    )
    network = load_network(tmp_path / "runs" / "tiny" / "version_0" / "model")
    assert type(network).__name__ == "SmpNetwork"


def test_starts_from_given_weights(train_args: TrainArgs, trained_run: Path, tmp_path: Path) -> None:
    main(train_args(f"--model.init={trained_run / 'model'}", "--trainer.max_epochs=1", "--model.lr=0"))
    first = load_file(trained_run / "model" / "model.safetensors")
    again = load_file(tmp_path / "runs" / "tiny" / "version_0" / "model" / "model.safetensors")
    assert torch.equal(first["stem.weight"], again["stem.weight"])


def test_without_a_configuration_quickstart_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print_config"])
    assert ended.value.code == 0
    assert "name: quickstart" in capsys.readouterr().out


@pytest.mark.parametrize("network", [FCDenseNet, EncoderFCDenseNet, SmpNetwork])
def test_every_network_has_its_own_defaults(network: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain.yaml").write_text("name: plain\n")
    with pytest.raises(SystemExit):
        main([f"--config={tmp_path / 'plain.yaml'}", f"--model.network={network.__name__}", "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["network"]["init_args"]
    signature = inspect.signature(network).parameters
    ours = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    defaults = {name: signature[name].default for name in ours}
    assert ours == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_runs_of_one_name_get_folders_of_their_own(train_args: TrainArgs, tmp_path: Path) -> None:
    for _ in range(2):
        main(train_args("--trainer.max_epochs=1", "--trainer.limit_train_batches=1"))
    assert sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir()) == ["version_0", "version_1"]


# What goes wrong


def _fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("tiramisu.train: error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    assert not any("Traceback" in line for line in lines), lines
    return errors[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.lrr=1"], ["model.lrr"]),
        (["--model.lr=fast"], ["model.lr", "fast"]),
        (["--model.network.growth=3"], ["growth"]),
        (["--model.network=Pavlova"], ["Pavlova"]),
        (["--model.network.layers_per_block=[1,2]"], ["odd number"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--data.root=nowhere"], ["nowhere", "python -m tiramisu.download camvid"]),
        (["--data.crop_size=50"], ["crop_size 50", "48 x 64", "at most 48"]),
        (["--data.crop_size=8"], ["crop_size 8"]),
        (["--data.scale=[2,0.5]"], ["--data.scale [2.0, 0.5]"]),
        (["--data.balanced_crops=2"], ["--data.balanced_crops 2"]),
        (["--data.balanced_crops=0.5", "--data.augmentation=none"], ["--data.balanced_crops needs crops"]),
        (["--data.occlusion=-1"], ["--data.occlusion -1"]),
        (["--data.occlusion=0.5", "--data.augmentation=paper"], ["--data.occlusion", "--data.augmentation strong"]),
        (["--model.weight_decay=-1"], ["--model.weight_decay -1"]),
        (["--model.warmup_epochs=.inf"], ["--model.warmup_epochs inf"]),
        (["--model.region_weight=-1"], ["--model.region_weight -1"]),
        (["--data.batch_size=0"], ["batch_size"]),
        (["--data.workers=1000000"], ["--data.workers 1000000", "256"]),
        (["--model.class_weights=[1,2]"], ["class_weights", "11 classes"]),
        (["--resume=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--model.init=nowhere"], ["nowhere"]),
        (["--trainer.max_epochs=-1"], ["max_epochs"]),
        (["--runs=/dev/null/runs"], ["/dev/null/runs"]),
    ],
)
def test_mistakes_are_told_in_one_line(
    train_args: TrainArgs, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    message = _fails(train_args(*options), capsys)
    assert all(word in message for word in words), message


def test_an_unknown_key_in_a_configuration_is_named(
    train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.yaml").write_text("model:\n  learning_rate: 1\n")
    assert "learning_rate" in _fails(train_args(f"--config={tmp_path / 'wrong.yaml'}"), capsys)


def test_weights_say_what_they_started_from(train_args: TrainArgs, trained_run: Path, tmp_path: Path) -> None:
    main(train_args(f"--model.init={trained_run / 'model'}", "--trainer.max_epochs=1"))
    protocol = load_network(tmp_path / "runs" / "tiny" / "version_0" / "model").protocol
    assert protocol["epochs"] == 1 and protocol["init"] == load_network(trained_run / "model").protocol


def test_a_resumed_run_remembers_what_it_started_from(
    train_args: TrainArgs, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = tmp_path / "init"
    shutil.copytree(trained_run / "model", init)
    main(train_args(f"--model.init={init}", "--trainer.max_epochs=1"))
    config = json.loads((init / "config.json").read_text())
    config["protocol"]["epochs"] = 99
    (init / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    main(train_args(f"--model.init={init}", "--trainer.max_epochs=2", "--resume=last"))
    assert "Starting from" not in capsys.readouterr().err
    protocol = load_network(tmp_path / "runs" / "tiny" / "version_0" / "model").protocol
    assert protocol["epochs"] == 2 and protocol["init"] == load_network(trained_run / "model").protocol


def drives(root: Path) -> Path:
    """Write a CamVid with one training image of each of two drives."""
    write_camvid(root, {"train": 2, "val": 1})
    for file in [*root.glob("train/*"), *root.glob("trainannot/*")]:
        file.rename(file.with_name(f"{'0006R0' if '1' in file.name else '0001TP'}_{file.name}"))
    return root


def test_a_drive_that_the_first_phase_has_seen_cannot_be_held_out(
    train_args: TrainArgs, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = drives(tmp_path / "camvid")
    held_out = ["--data.holdout=0006R0", "--trainer.max_epochs=1", "--data.batch_size=1"]
    message = _fails(train_args(*held_out, f"--model.init={trained_run / 'model'}", root=root), capsys)
    assert "--data.holdout 0006R0: the weights of --model.init have seen this drive" in message
    main(train_args(*held_out, root=root))
    first = tmp_path / "runs" / "tiny" / "version_0" / "model"
    main(train_args(*held_out, f"--model.init={first}", root=root))
    again = tmp_path / "runs" / "tiny" / "version_1" / "model"
    config = json.loads((again / "config.json").read_text())
    config["protocol"]["init"]["holdout"] = "0001TP"
    (again / "config.json").write_text(json.dumps(config))
    assert "have seen this drive" in _fails(train_args(*held_out, f"--model.init={again}", root=root), capsys)

    measure = [f"--data.root={root}", "--data.holdout=0006R0", "--workers=0"]
    tiramisu.evaluate.main([f"--weights={first}", *measure, f"--output={tmp_path / 'measured'}"])
    assert re.match(r" +0006R0\n", capsys.readouterr().out), "the table names the drive"
    assert json.loads((tmp_path / "measured" / "evaluation.json").read_text())["holdout"] == "0006R0"
    for weights, more, reason in (
        (trained_run / "model", [], "have seen this drive"),
        (again, [], "have seen this drive"),
        (first, ["--data.split=test"], "--data.holdout parts the training images"),
    ):
        with pytest.raises(SystemExit):
            tiramisu.evaluate.main([f"--weights={weights}", *measure, *more])
        assert reason in capsys.readouterr().err


def test_a_drive_cannot_be_held_out_on_the_way(
    train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = drives(tmp_path / "camvid")
    main(train_args("--trainer.max_epochs=1", "--data.batch_size=1", root=root))
    more = ["--trainer.max_epochs=2", "--data.batch_size=1", "--resume=last"]
    message = _fails(train_args(*more, "--data.holdout=0006R0", root=root), capsys)
    assert "was trained with --data.holdout null, not 0006R0" in message
    main(train_args(*more, root=root))


def test_a_killed_loader_process_is_told_in_one_line(
    train_args: TrainArgs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SegmentationDataset.__getitem__

    def die(self: SegmentationDataset, key: SampleKey) -> Item:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, key)

    monkeypatch.setattr(SegmentationDataset, "__getitem__", die)  # the loader's processes are forks of this one
    assert "a loader process was killed" in _fails(train_args("--data.workers=1"), capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_mask_in_the_middle_of_training_is_named(
    train_args: TrainArgs, camvid_like: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    Image.new("L", (64, 48), 200).save(camvid_like / "trainannot" / "0004.png")
    message = _fails(train_args(f"--data.workers={workers}", root=camvid_like), capsys)
    assert str(camvid_like / "trainannot" / "0004.png") in message and "200" in message


def test_a_pickle_posing_as_a_checkpoint_is_refused_unopened(
    train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return Path.touch, (marker,)

    for name, write in (("plain.ckpt", pickle.dumps), ("zip.ckpt", None)):
        path = tmp_path / name
        if write is None:
            torch.save({"state_dict": Attack()}, path)
        else:
            path.write_bytes(write({"state_dict": Attack()}))
        assert str(path) in _fails(train_args(f"--resume={path}"), capsys)
    assert not marker.exists()


def test_a_checkpoint_of_another_architecture_is_refused(
    train_args: TrainArgs, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained_run / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    message = _fails(train_args(f"--resume={checkpoint}", "--model.network.growth_rate=6"), capsys)
    assert "another architecture" in message and str(checkpoint) in message
    assert checkpoint.read_bytes() == before


def test_divergence_stops_the_run_and_names_the_step(
    train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _fails(train_args(
        "--model.lr=1e30", "--model.optimizer=sgd", "--model.schedule=constant", "--trainer.max_epochs=9"
    ), capsys)  # fmt: skip
    assert "the loss became" in message and "at step" in message
    assert "no epoch had finished" in message or "last.ckpt" in message


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(train_args: TrainArgs, tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: both fail in the middle of a write."""
    main(train_args("--trainer.max_epochs=1"))
    last = tmp_path / "runs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    result = subprocess.run(
        [sys.executable, "-m", "tiramisu.train", *train_args("--resume=last", "--trainer.max_epochs=3")],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith("tiramisu.train: error: cannot ")
    assert "Traceback" not in result.stderr
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.lr=-1"], ["--model.lr", "-1"]),
        (["--model.label_smoothing=5"], ["label_smoothing"]),
        (["--model.ema_decay=2"], ["ema_decay"]),
        (["--model.class_weights=[1,1,1,1,1,1,1,1,1,1,-1]"], ["class_weights", "negative"]),
        (["--model.network.growth_rate=0"], ["growth_rate"]),
        (["--data.workers=-1"], ["workers"]),
        (["--seed_everything=-1"], ["-1"]),
        (["--name=../elsewhere"], ["--name"]),
        (["--data.batch_size=1", "--model.network.num_poolings=5"], ["batch_size", "crop_size"]),
        (["--data.dataset=streets", "--data.image_size=[10,10]"], ["image_size"]),
    ],
)
def test_values_out_of_range_are_told_in_one_line(
    train_args: TrainArgs, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    message = _fails(train_args(*options), capsys)
    assert all(word in message for word in words), message


def test_a_configuration_that_is_no_text_is_refused(
    train_args: TrainArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x81\x82")
    _fails(train_args(f"--config={tmp_path / 'binary.yaml'}"), capsys)


def test_a_damaged_test_split_is_found_before_training(
    train_args: TrainArgs, camvid_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (camvid_like / "testannot").rename(camvid_like / "elsewhere")
    assert "testannot" in _fails(train_args(root=camvid_like), capsys)
    assert not list(camvid_like.parent.glob("runs/*"))


def test_images_of_different_sizes_need_a_batch_of_one(
    train_args: TrainArgs, camvid_like: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("val", "valannot"):
        file = next((camvid_like / folder).iterdir())
        path = camvid_like / folder / file.name
        Image.open(path).crop((0, 0, 40, 40)).save(path)
    message = _fails(train_args("--data.eval_batch_size=3", "--trainer.max_epochs=1", root=camvid_like), capsys)
    assert "differ in size" in message


def test_camvid_without_a_configuration_takes_camvids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = _fails(["--data.dataset=camvid", f"--data.root={tmp_path / 'nowhere'}", f"--runs={tmp_path}"], capsys)
    assert "nowhere" in message and "tiramisu.download" in message
