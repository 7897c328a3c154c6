import copy

import pytest
import torch

from tiramisu.benchmarking.textbook import TextbookFCDenseNet
from tiramisu.models import (
    DenseNetClassifier,
    FCDenseNet,
    fc_densenet56,
    fc_densenet67,
    fc_densenet103,
)

SMALL = {"layers_per_block": 1, "growth_rate": 4, "num_poolings": 2, "stem_channels": 8}


@pytest.mark.parametrize(
    ("build", "parameters", "channels"),
    [
        (fc_densenet56, 1_376_795, (48, 96, 144, 192, 240, 288, 336, 384, 336, 288, 240, 192)),
        (fc_densenet67, 3_463_243, (48, 128, 208, 288, 368, 448, 528, 608, 528, 448, 368, 288)),
        (fc_densenet103, 9_322_091, (48, 112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256)),
    ],
)
def test_variants_are_the_authors_networks(build, parameters, channels) -> None:
    network = build()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.stage_channels == channels


def test_computes_the_same_as_the_textbook() -> None:
    ours, textbook = fc_densenet56(dropout=0.0).double(), TextbookFCDenseNet(variant=56, dropout=0.0).double()
    for mine, theirs in zip(_layers(ours), _layers(textbook), strict=True):
        theirs.load_state_dict(mine.state_dict())
    images = torch.rand(2, 3, 45, 67, dtype=torch.float64)
    torch.testing.assert_close(ours(images), textbook(images), rtol=1e-10, atol=1e-10)
    ours.eval(), textbook.eval()
    torch.testing.assert_close(ours(images), textbook(images), rtol=1e-10, atol=1e-10)


def _layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers with weights, in the order in which an image meets them."""
    order: list[torch.nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _, __: order.append(module))
        for module in network.modules()
        if not list(module.children()) and list(module.parameters())
    ]
    with torch.no_grad():
        copy_state = copy.deepcopy(network.state_dict())
        network(torch.rand(2, 3, 32, 32, dtype=torch.float64))
        network.load_state_dict(copy_state)
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stem_stride": 2},
        {"transition_down": "average", "transition_up": "nearest"},
        {"layers_per_block": [1, 2, 3, 2, 1], "num_poolings": None},
        {"in_channels": 1},
        {"num_poolings": 6},
        {"num_poolings": 0},
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (45, 67)])
def test_logits_have_the_size_of_the_image_and_gradients_reach_everything(options, size) -> None:
    network = FCDenseNet(num_classes=5, **{**SMALL, **options})
    images = torch.rand(2, network.in_channels, *size)
    logits = network(images)
    assert logits.shape == (2, 5, *size)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)])
def test_unfit_images_are_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"at least 32|expected images"):
        FCDenseNet(**SMALL)(torch.rand(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers_per_block": [1, 2]}, "odd number"),
        ({"layers_per_block": [1, 2, 1], "num_poolings": 3}, "num_poolings=3 needs 7"),
        ({"layers_per_block": [1, 0, 1]}, "at least one layer"),
        ({"mean": [0.5, 0.5]}, "3 channels"),
    ],
)
def test_contradictory_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        FCDenseNet(**options)


def test_normalises_with_buffers_in_the_state_dict() -> None:
    network = FCDenseNet(**SMALL, mean=[0.1, 0.2, 0.3], std=0.5).eval()
    plain = FCDenseNet(**SMALL).eval()
    assert {"mean", "std"} <= network.state_dict().keys()
    plain.load_state_dict(network.state_dict() | {"mean": plain.mean, "std": plain.std})
    images = torch.rand(1, 3, 32, 32)
    normalised = (images - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / 0.5
    torch.testing.assert_close(network(images), plain(normalised))


def test_initialisation_is_he_uniform_with_zero_biases() -> None:
    conv = fc_densenet103().bottleneck.layers[0].conv
    limit = (6 / (conv.in_channels * 9)) ** 0.5
    assert conv.weight.abs().max().item() <= limit
    assert conv.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert not conv.bias.any()


def test_half_resolution_stem_costs_about_a_quarter() -> None:
    def macs(stride: int) -> int:
        total = 0

        def count(module, _, output):
            nonlocal total
            total += output.shape[-2] * output.shape[-1] * module.weight.numel()

        network = fc_densenet56(stem_stride=stride).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        with torch.no_grad():
            network(torch.rand(1, 3, 64, 64))
        return total

    assert macs(2) / macs(1) == pytest.approx(0.25, abs=0.03)


def test_compiles_and_exports_without_graph_breaks() -> None:
    network = FCDenseNet(**SMALL).eval()
    images = torch.rand(1, 3, 40, 48)
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images))


def test_deep_copies_are_independent() -> None:
    network = FCDenseNet(**SMALL).eval()
    copied = copy.deepcopy(network)
    images = torch.rand(1, 3, 32, 32)
    before = network(images)
    with torch.no_grad():
        copied.stem.weight.zero_()
    assert torch.equal(network(images), before)


def test_classifier_of_the_same_blocks() -> None:
    assert DenseNetClassifier(num_classes=10)(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert DenseNetClassifier(4, in_channels=1, layers_per_block=(2, 2))(torch.rand(3, 1, 20, 28)).shape == (
        3,
        4,
    )
