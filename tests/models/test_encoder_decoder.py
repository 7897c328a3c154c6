from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tiramisu.errors import WeightsError
from tiramisu.models import EncoderFCDenseNet, SmpNetwork, load_network
from tiramisu.models.encoder_decoder import build_encoder
from tiramisu.models.imagenet import load_packaged_weights
from tiramisu.models.kernels import Kernel

LAYERS = (1, 1, 1, 1, 1)


@pytest.mark.parametrize("layers", [LAYERS, (*LAYERS, 1)], ids=["half", "full"])
@pytest.mark.parametrize("size", [(32, 32), (67, 93), (64, 41)])
def test_any_size_in_the_same_size_out(layers: tuple[int, ...], size: tuple[int, int]) -> None:
    network = EncoderFCDenseNet(4, "resnet18", layers_per_block=layers).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_features_lie_where_training_had_them_whatever_the_sides() -> None:
    """TensorFlow's convolutions pad odd and even sides differently; crops of training have even ones at every level."""
    torch.manual_seed(0)
    network = EncoderFCDenseNet(4, "tu-tf_efficientnet_lite0", layers_per_block=LAYERS, mean=0.0, std=1.0).eval()
    image = torch.rand(1, 3, 72, 100)
    with torch.no_grad():
        logits, padded = network(image), network(F.pad(image, (0, 28, 0, 24)))
    torch.testing.assert_close(logits, padded[:, :, :72, :100])


@pytest.mark.parametrize(
    ("encoder", "layers"),
    [
        ("resnet18", LAYERS),
        ("mobilenet_v2", (*LAYERS, 1)),
        ("mit_b0", LAYERS),  # it has nothing at half the resolution
    ],
)
def test_fused_is_the_textbook(encoder: str, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = EncoderFCDenseNet(3, encoder, layers_per_block=layers, dropout=0.0)
    network.encoder.eval()
    images = torch.rand(2, 3, 70, 90)

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        network.zero_grad()
        logits = network(images)
        logits.square().mean().backward()
        grads = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
        return logits.detach(), grads

    fused, fused_grads = run()
    monkeypatch.setattr(Kernel, "compiler_works", False)
    plain, plain_grads = run()
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    assert fused_grads.keys() == plain_grads.keys()
    largest = max(float(grad.norm()) for grad in plain_grads.values())
    for name, grad in plain_grads.items():
        assert (fused_grads[name] - grad).norm() <= 1e-3 * grad.norm() + 1e-6 * largest, name


def test_it_is_saved_and_loaded_without_the_hub(tmp_path: Path) -> None:
    encoder = build_encoder("resnet18", None, 3)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    network = EncoderFCDenseNet(3, "resnet18", str(tmp_path / "encoder.safetensors"), LAYERS).eval()
    name, value = next(iter(encoder.state_dict().items()))
    torch.testing.assert_close(network.encoder.state_dict()[name], value)
    assert network.pretrained_parts() == [network.encoder]
    network.save_pretrained(tmp_path / "model")
    (tmp_path / "encoder.safetensors").unlink()
    loaded = load_network(tmp_path / "model")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), network(images))
    assert loaded.pretrained_parts() == []


def test_other_channels_than_rgb() -> None:
    network = EncoderFCDenseNet(2, "resnet18", layers_per_block=LAYERS, in_channels=5).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 5, 32, 32)).shape == (1, 2, 32, 32)
    assert network.mean.flatten().tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"encoder": "nonsense"}, ValueError, "no such encoder: nonsense"),
        ({"layers_per_block": (1, 1)}, ValueError, "needs 5 or 6 blocks"),
        ({"encoder_weights": "nowhere/x.safetensors"}, WeightsError, "no weights of the encoder at nowhere"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        EncoderFCDenseNet(2, **{"encoder": "resnet18", **options})


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    save_file(build_encoder("resnet18", None, 3).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="another architecture"):
        EncoderFCDenseNet(2, "resnet34", str(tmp_path / "x.safetensors"))


def test_imagenet_weights_come_from_an_installed_package(tmp_path: Path) -> None:
    encoder = build_encoder("tu-tf_efficientnet_lite0", "imagenet", 3).eval()
    # Trained batch norms keep variances apart from 1, and features of a photo stay in range all the way up.
    assert float(encoder.model.bn1.running_var.std()) > 0.1
    with torch.no_grad():
        *_, last = encoder(torch.randn(1, 3, 64, 64))
    assert last.abs().mean() < 10
    baseline = SmpNetwork(3, "unet", "tu-tf_efficientnet_lite0", "imagenet")
    torch.testing.assert_close(baseline.model.encoder.state_dict(), encoder.state_dict())
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth has other tensors"):
        load_packaged_weights(encoder, tmp_path / "other.pth")
