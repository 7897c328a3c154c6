from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import TrainArgs
from tiramisu.data.streets import Streets
from tiramisu.data.transforms import Item
from tiramisu.models import EncoderFCDenseNet, FCDenseNet, SegmentationNetwork, load_network
from tiramisu.models.baseline import SmpNetwork
from tiramisu.train import main
from tiramisu.training import class_bias
from tiramisu.training.class_bias import add_class_bias, classifier_bias, draw_pixels, fit_class_bias, mean_iou


def test_a_class_found_too_often_is_found_less_often() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (20_000,), generator=generator)
    logits = torch.randn(3, len(truth), generator=generator)
    logits[truth, torch.arange(len(truth))] += 3
    fair = mean_iou(logits, truth, torch.zeros(3))
    constants = fit_class_bias(logits + torch.tensor([[0.0], [2.0], [0.0]]), truth)
    assert constants[2] == 0, "the third class is in no pixel: nothing says how often it should be found"
    assert constants[1] - constants[0] == pytest.approx(-2, abs=0.5)
    assert mean_iou(logits + torch.tensor([[0.0], [2.0], [0.0]]), truth, torch.zeros(3)) < fair - 0.1
    assert mean_iou(logits + torch.tensor([[0.0], [2.0], [0.0]]), truth, constants) > fair - 0.01


@pytest.mark.parametrize(
    "build",
    [
        lambda: FCDenseNet(5, layers_per_block=1, num_poolings=1, stem_stride=2),
        lambda: FCDenseNet(5, layers_per_block=1, num_poolings=1),
        lambda: EncoderFCDenseNet(5, encoder="resnet18", layers_per_block=[1] * 5),
        lambda: SmpNetwork(5, "fpn", "resnet18"),
        lambda: SmpNetwork(5, "segformer", "resnet18"),
    ],
)
def test_constants_are_added_to_the_logits_of_their_class(build: Callable[[], SegmentationNetwork]) -> None:
    network = build().eval()
    images = torch.rand(1, 3, 64, 64)
    constants = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])
    with torch.no_grad():
        before = network(images)
        add_class_bias(network, constants)
        torch.testing.assert_close(network(images), before + constants[:, None, None])


@pytest.mark.parametrize("channels", [None, 7])
def test_a_classifier_of_another_kind_is_told(channels: int | None) -> None:
    network = FCDenseNet(5, layers_per_block=1, num_poolings=1)
    network.classifier[0] = nn.Conv2d(48, 5, 1, bias=False) if channels is None else nn.Conv2d(48, channels, 1)
    with pytest.raises(ValueError, match="bias"):
        classifier_bias(network)


def test_void_says_nothing() -> None:
    assert fit_class_bias(torch.zeros(3, 0), torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0, 0]


def test_pixels_are_drawn_from_every_image_and_never_void(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Streets.labels
    masks = [torch.full((1, 8, 8), value) for value in (1, 2, labels.ignore_index)]
    batches = [Item(torch.full((1, 3, 8, 8), 10 * i), mask, torch.tensor([i])) for i, mask in enumerate(masks)]
    logits, truth = draw_pixels(lambda images: images[:, :1].expand(-1, len(labels), -1, -1), batches, 3, labels, 0)
    assert truth.tolist() == [1] * 64 + [2] * 64
    assert logits.shape == (len(labels), 128) and logits[3].unique().tolist() == [0, 10]
    monkeypatch.setattr(class_bias, "VALUES", 3 * 5 * len(labels))
    numbered = [Item(torch.arange(64).view(1, 1, 8, 8), masks[0], torch.tensor([0]))] * 3
    draw = [
        draw_pixels(lambda images: images.expand(-1, len(labels), -1, -1), numbered, 3, labels, seed)[0][0].tolist()
        for seed in (0, 0, 1)
    ]
    assert len(draw[0]) == 15 and len(set(draw[0][:5])) == 5 and draw[0] == draw[1] != draw[2]


def test_training_ends_with_it(train_args: TrainArgs, trained_run: Path, tmp_path: Path) -> None:
    options = ("--model.lr=0", "--trainer.max_epochs=1", "--model.ema_decay=0", "--model.class_bias=true")
    main(train_args(f"--model.init={trained_run / 'model'}", *options))
    run = tmp_path / "runs" / "tiny" / "version_0"
    before, after = (load_file(each / "model" / "model.safetensors") for each in (trained_run, run))
    added = after["classifier.0.bias"] - before["classifier.0.bias"]
    said = load_network(run / "model").protocol["class_bias"]
    assert max(map(abs, said.values())) > 0
    expected = torch.tensor([said[name] for name in Streets.labels.names])
    torch.testing.assert_close(added, expected, atol=0.006, rtol=0)
    assert all(torch.equal(before[name], after[name]) for name in after if name.endswith("conv.weight"))


def test_resuming_a_finished_run_does_not_add_it_twice(train_args: TrainArgs, tmp_path: Path) -> None:
    model = tmp_path / "runs" / "tiny" / "version_0" / "model"
    main(train_args("--model.class_bias=true"))
    once, fitted = load_file(model / "model.safetensors"), load_network(model).protocol["class_bias"]
    main(train_args("--model.class_bias=true", "--resume=last"))
    assert all(torch.equal(once[name], again) for name, again in load_file(model / "model.safetensors").items())
    assert any(fitted.values()) and load_network(model).protocol["class_bias"] == fitted


def test_a_network_without_such_a_bias_is_refused(
    train_args: TrainArgs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FCDenseNet, "stages", lambda self: [[self.stem], [nn.Identity()]])
    with pytest.raises(SystemExit) as ended:
        main(train_args("--model.class_bias=true"))
    assert ended.value.code == 1
    assert "--model.class_bias" in capsys.readouterr().err
