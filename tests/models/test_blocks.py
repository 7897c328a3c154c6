import pytest
import torch

from tiramisu.models import DenseBlock, DenseLayer, TransitionDown, TransitionUp


def test_dense_layer_makes_growth_rate_features() -> None:
    assert DenseLayer(10, 4, dropout=0.2)(torch.rand(2, 10, 9, 7)).shape == (2, 4, 9, 7)


def test_dropout_is_element_wise() -> None:
    torch.manual_seed(0)
    features = DenseLayer(3, 4, dropout=0.5)(torch.rand(1, 3, 16, 16))
    dropped = (features == 0).float().mean((2, 3))
    assert (dropped > 0.3).all() and (dropped < 0.7).all(), "every channel loses about half of its own pixels"


def test_dense_block_keeps_its_input_first_and_adds_the_new_features() -> None:
    block = DenseBlock(6, num_layers=3, growth_rate=4, dropout=0.0)
    x = torch.rand(2, 6, 8, 8)
    stack = block(x)
    assert stack.shape == (2, 6 + 12, 8, 8)
    assert torch.equal(stack[:, :6], x)
    assert torch.equal(stack[:, 6:10], block.layers[0](x))


@pytest.mark.parametrize("kind", ["max", "average"])
def test_transition_down_halves_with_floor(kind: str) -> None:
    assert TransitionDown(5, 0.2, kind)(torch.rand(2, 5, 9, 6)).shape == (2, 5, 4, 3)


def test_transition_down_average_is_a_convolution_then_a_mean() -> None:
    down = TransitionDown(3, 0.5, "average")
    x = torch.rand(1, 3, 4, 4)
    conv = next(module for module in down.modules() if isinstance(module, torch.nn.Conv2d))
    expected = conv(x).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(down(x), expected)


@pytest.mark.parametrize(("kind", "channels"), [("transposed", 5 + 7), ("nearest", 5)])
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_transition_up_meets_the_skip(kind: str, channels: int, size: tuple[int, int]) -> None:
    up = TransitionUp(5, 7, kind)
    out = up(torch.rand(2, 5, size[0] // 2, size[1] // 2), torch.rand(2, 7, *size))
    assert out.shape == (2, channels, *size)
    assert up.out_channels == channels


def test_transposed_transition_keeps_the_top_left_and_puts_the_skip_last() -> None:
    up = TransitionUp(2, 3, "transposed")
    x, skip = torch.rand(1, 2, 3, 3), torch.rand(1, 3, 6, 6)
    full = torch.nn.functional.conv_transpose2d(x, up.conv.weight, up.conv.bias, stride=2)
    assert full.shape[-2:] == (7, 7)
    torch.testing.assert_close(up(x, skip), torch.cat([full[:, :, :6, :6], skip], 1))
