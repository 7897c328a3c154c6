from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import TrainArgs
from tiramisu.data.transforms import Item
from tiramisu.models import load_network
from tiramisu.train import main
from tiramisu.training.precise_bn import collect_statistics


def test_statistics_are_those_of_the_batches_without_dropout() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3)).eval()
    torch.manual_seed(0)
    images = [torch.randn(4, 3, 8, 8) * 2 + 1 for _ in range(5)]
    batches = [Item(image, torch.zeros(4, 8, 8), torch.arange(4)) for image in images]
    collect_statistics(network, batches, torch.device("cpu"))
    dropout, norm = network
    assert isinstance(dropout, nn.Dropout) and dropout.p == 0.5
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    means = torch.stack([image.mean((0, 2, 3)) for image in images])
    variances = torch.stack([image.transpose(0, 1).flatten(1).var(1) for image in images])
    torch.testing.assert_close(norm.running_mean, means.mean(0))
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.momentum == 0.3 and not network.training


def test_training_ends_with_them(train_args: TrainArgs, trained_run: Path, tmp_path: Path) -> None:
    variances = {}
    for version, precise in enumerate((False, True)):
        options = ("--model.network.dropout=0.5", "--model.lr=0", "--trainer.max_epochs=1", "--model.ema_decay=0")
        main(train_args(f"--model.init={trained_run / 'model'}", *options, f"--model.precise_bn={precise}"))
        folder = tmp_path / "runs" / "tiny" / f"version_{version}" / "model"
        before, after = (load_file(each / "model.safetensors") for each in (trained_run / "model", folder))
        assert all(torch.equal(before[name], after[name]) for name in after if name.endswith(("weight", "bias")))
        assert load_network(folder).protocol["batch_norm"] == ("precise" if precise else "running")
        # of the features that the second block adds, half are dropped in training
        variances[precise] = after["transitions_down.1.layers.0.running_var"][-4:].mean()
    assert variances[True] < variances[False]
