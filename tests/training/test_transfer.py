"""Starting from other weights: what is kept, what is new, what is frozen, and how fast each part learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TrainArgs
from tests.own_images import draw, make, save
from tiramisu.evaluate import main as evaluate
from tiramisu.models import FCDenseNet, SmpNetwork
from tiramisu.models.encoder_decoder import build_encoder
from tiramisu.train import main
from tiramisu.training.optim import build_optimizer


@pytest.fixture
def coins(tmp_path: Path) -> Path:
    """Images of several sizes, some smaller than the crop."""
    root = make("grey_index", tmp_path / "coins", 8)
    for number, size in ((8, (60, 90)), (9, (150, 140)), (10, (40, 40))):
        image, mask = draw(number, size)
        save(image, root / "images" / f"{number:03d}.jpg")
        save(mask, root / "masks" / f"{number:03d}.png")
    return root


def own_args(train_args: TrainArgs, coins: Path, *more: str) -> list[str]:
    return train_args("--data.dataset=folder", "--data.crop_size=64", *more, root=coins)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def last_run(tmp_path: Path) -> Path:
    return max((tmp_path / "runs" / "tiny").iterdir(), key=lambda folder: int(folder.name.removeprefix("version_")))


def test_own_images_of_several_sizes_are_learned_and_measured(
    train_args: TrainArgs, coins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coins / "masks" / "005.png").unlink()
    main(own_args(train_args, coins, "--model.class_weights=auto"))
    captured = capsys.readouterr()
    assert "Warning: images without masks: 1 image without mask is not used: images/005.jpg" in captured.err
    assert "Class weights: ground 0." in captured.err
    assert "coin" in captured.out
    evaluate(["--weights", str(last_run(tmp_path) / "model"), "--data.root", str(coins), "--data.split", "train"])
    assert "mIoU" in capsys.readouterr().out


def test_training_begins_with_a_look_at_the_data(
    train_args: TrainArgs, coins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(draw(3)[1] + 5, coins / "masks" / "003.png")
    with pytest.raises(SystemExit):
        main(own_args(train_args, coins))
    said = capsys.readouterr().err
    assert "1 mask has the values 5, 6, 7" in said
    assert f"python -m tiramisu.check_data {coins}" in said
    assert not (tmp_path / "runs").exists()


def test_the_classifier_is_renewed_for_other_classes(
    train_args: TrainArgs, coins: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(own_args(train_args, coins, f"--model.init={trained_run / 'model'}", "--model.lr=0", "--model.ema_decay=0"))
    said = capsys.readouterr().err
    assert "its classifier is renewed for 3 classes (it knew 11 others)" in said
    before, after = weights(trained_run), weights(last_run(tmp_path))
    for name, value in after.items():
        if name.startswith("classifier"):
            assert value.shape != before[name].shape
        elif "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, before[name])


def test_weights_of_another_network_bring_it_along(
    train_args: TrainArgs, coins: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init = f"--model.init={trained_run / 'model'}"
    main(own_args(train_args, coins, init, "--model.network.growth_rate=6", "--trainer.max_epochs=1"))
    assert weights(last_run(tmp_path)).keys() == weights(trained_run).keys()
    assert (
        "(FCDenseNet, in place of the network that is configured): its classifier is renewed" in capsys.readouterr().err
    )


def test_other_architectures_keep_all_but_their_classifier_too(
    train_args: TrainArgs, coins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = SmpNetwork(11, "unet", "resnet18")
    network.save_pretrained(tmp_path / "unet")
    before = load_file(tmp_path / "unet" / "model.safetensors")
    options = ["--model.lr=0", "--model.ema_decay=0", "--model.lr_decay=0.5", "--trainer.max_epochs=1"]
    main(own_args(train_args, coins, f"--model.init={tmp_path / 'unet'}", *options))
    said = capsys.readouterr().err
    assert "(SmpNetwork, in place of the network that is configured): its classifier is renewed for 3 classes" in said
    after = weights(last_run(tmp_path))
    for name in ("model.encoder.conv1.weight", "model.decoder.blocks.0.conv1.0.weight"):
        torch.testing.assert_close(after[name], before[name])
    assert after["model.segmentation_head.0.weight"].shape[0] == 3


def test_frozen_parts_stay_as_they_are_and_then_learn(
    train_args: TrainArgs, coins: Path, trained_run: Path, tmp_path: Path
) -> None:
    init = f"--model.init={trained_run / 'model'}"
    before = weights(trained_run)
    for epochs in (1, 2):
        main(own_args(
            train_args, coins, init, "--model.freeze_epochs=1", "--model.ema_decay=0", f"--trainer.max_epochs={epochs}",
            "--model.schedule=constant",
        ))  # fmt: skip
        after = weights(last_run(tmp_path))
        body = [
            name for name in after if not name.startswith("classifier") and not name.endswith("num_batches_tracked")
        ]
        same = [torch.equal(after[name], before[name]) for name in body]
        assert all(same) == (epochs == 1)
        assert epochs == 1 or not any(same[: len(same) // 2]) or sum(same) < len(same) / 4


def test_a_pretrained_encoder_is_kept_at_first(train_args: TrainArgs, coins: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder("resnet18", None, 3).state_dict()
    save_file(encoder, tmp_path / "encoder.safetensors")
    arguments = [arg for arg in own_args(train_args, coins) if not arg.startswith("--model.network")]
    main([
        *arguments, "--model.network=EncoderFCDenseNet", "--model.network.encoder=resnet18",
        f"--model.network.encoder_weights={tmp_path / 'encoder.safetensors'}", "--model.freeze_epochs=1",
        "--model.network.layers_per_block=[1,1,1,1,1]", "--trainer.max_epochs=1", "--model.ema_decay=0",
    ])  # fmt: skip
    after = weights(last_run(tmp_path))
    for name, value in encoder.items():
        torch.testing.assert_close(after[f"encoder.{name}"], value)


def test_a_run_is_not_resumed_with_other_rates_and_stays_as_it_was(
    train_args: TrainArgs, coins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(own_args(train_args, coins, "--model.lr_decay=0.9", "--trainer.max_epochs=1"))
    config = (last_run(tmp_path) / "config.yaml").read_text()
    with pytest.raises(SystemExit):
        main(own_args(train_args, coins, "--resume=last", "--trainer.max_epochs=2"))
    assert "resume it with the same --model.lr_decay" in capsys.readouterr().err
    assert (last_run(tmp_path) / "config.yaml").read_text() == config
    main(["--resume", str(last_run(tmp_path)), "--trainer.max_epochs=2"])


def test_weights_remember_how_the_folder_was_read(train_args: TrainArgs, coins: Path, tmp_path: Path) -> None:
    main(own_args(train_args, coins, "--data.folder.val_share=0.5", "--trainer.max_epochs=1"))
    model = last_run(tmp_path) / "model"
    evaluate([f"--weights={model}", f"--data.root={coins}", f"--output={tmp_path / 'measured'}"])
    measured = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    assert measured["images"] == 6


def test_weights_for_other_channels_are_refused(
    train_args: TrainArgs, coins: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(own_args(train_args, coins, f"--model.init={trained_run / 'model'}", "--data.folder.in_channels=1"))
    assert "are for images of 3 channels, the data have 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_rates_fall_towards_the_input() -> None:
    network = FCDenseNet(3, layers_per_block=1, num_poolings=1, growth_rate=4, stem_channels=8)
    groups = build_optimizer("adamw", network, 1.0, 0.1, lr_decay=0.5).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert rates[id(network.classifier[0].weight)] == 1.0
    assert rates[id(network.up_blocks[0].layers[0].conv.weight)] == 0.5
    assert rates[id(network.stem.weight)] == 0.5**4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.freeze_epochs=1"], "keeps pretrained weights; give --model.init"),
        (["--model.lr_decay=0"], "--model.lr_decay 0.0 must be above 0"),
        (["--model.init=nowhere"], "no weights at nowhere"),
        (["--data.folder.groups=("], "no regular expression"),
        (["--data.folder.val_share=1"], "leave nothing to train on"),
        (["--data.folder.classes=nowhere.yaml"], "there is no file of classes at"),
        (["--data.image_size=[64,64]"], "applies to streets only"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], words: str, train_args: TrainArgs, coins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(own_args(train_args, coins, *options))
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_tuning_suggests_options(
    train_args: TrainArgs,
    coins: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(own_args(train_args, coins, "--tune"))
    said = capsys.readouterr().out
    assert "Train with: --model.lr " in said
    assert "--data.crop_size" in said
    assert (tmp_path / "learning-rates.png").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_thirty_images_suffice(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe for one's own images reaches 85 mIoU on thirty drawn ones (issue 6)."""
    root = make("rgb_color", tmp_path / "coins", 30)
    main([
        f"--runs={tmp_path / 'runs'}", "--data.dataset=folder", f"--data.root={root}", "--trainer.max_epochs=30",
        "--trainer.enable_progress_bar=false",
    ])  # fmt: skip
    score = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mIoU"))
    assert float(score.split()[-1]) > 85
