import copy
import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tiramisu.models import FCDenseNet, kernels
from tiramisu.models.blocks import DenseBlock, DenseLayer, TransitionDown
from tiramisu.models.fused import FusedDenseBlock

EXACT = {"rtol": 1e-10, "atol": 1e-12}
SMALL = {"layers_per_block": [2, 3, 2], "growth_rate": 4, "stem_channels": 8}
WITH_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class DropoutWithTheSameMask(nn.Module):
    """Element-wise dropout with the masks that the fused block would draw."""

    def __init__(self, probability: float, squares: bool) -> None:
        super().__init__()
        self.probability, self.squares = probability, squares

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        batch, channels, height, width = x.shape
        noise = kernels.draw_noise(self.probability)
        if self.squares:
            mask = kernels.keep_mask((batch * (height // 2), 2, width // 2, 2, channels), noise)
        else:
            mask = kernels.keep_mask((batch * height, width, channels), noise)
        even = (height // 2 * 2, width // 2 * 2) if self.squares else (height, width)
        mask = mask.reshape(batch, *even, channels).permute(0, 3, 1, 2)
        mask = F.pad(mask, (0, width - even[1], 0, height - even[0]), value=True)
        return x * mask / (1 - self.probability)


def share_masks(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, DenseLayer):
            child.dropout = DropoutWithTheSameMask(child.dropout.p, squares=False)
        if isinstance(child, TransitionDown) and len(child.layers) == 5:
            child.layers[3] = DropoutWithTheSameMask(child.layers[3].p, squares=True)


def randomize(module: nn.Module) -> None:
    """Make the parameters and buffers of batch norm distinct."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            for tensor in (child.weight, child.bias, child.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(child.running_var, 0.5, 2)


def pair(in_channels: int = 6, layers: int = 3, dropout: float = 0.0) -> tuple[DenseBlock, FusedDenseBlock]:
    torch.manual_seed(0)
    reference = DenseBlock(in_channels, layers, 4, dropout).double()
    randomize(reference)
    fused = FusedDenseBlock(in_channels, layers, 4, dropout).double()
    fused.load_state_dict(reference.state_dict())
    if dropout:
        share_masks(reference)
    return reference, fused


def assert_same(reference: nn.Module, fused: nn.Module) -> None:
    """Compare all gradients, relative to the largest, and all buffers."""
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    found = {name: parameter.grad for name, parameter in fused.named_parameters()}
    largest = max((grad.abs().max().item() for grad in expected.values() if grad is not None), default=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * largest, allow_subclasses=True)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(reference.named_buffers()), **EXACT)


@pytest.fixture(autouse=True)
def compiler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, `auto` and FusedDenseBlock would be the reference, and comparing them no test."""
    monkeypatch.setattr(kernels.Kernel, "compiler_works", True)


def run(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = block(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos())
    return y, x.grad


@pytest.fixture
def compiler() -> Iterator[None]:
    """The kernels compiled, also for small tensors."""
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("no C++ compiler")
    before, kernels.EAGER_BELOW = kernels.EAGER_BELOW, 0
    yield
    kernels.EAGER_BELOW = before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("layers", "shape"), [(3, (2, 6, 8, 10)), (3, (1, 6, 7, 5)), (1, (2, 6, 5, 9)), (2, (3, 6, 1, 3))]
)
def test_a_block_computes_what_the_textbook_computes(layers, shape, dropout, training) -> None:
    reference, fused = pair(layers=layers, dropout=dropout)
    reference.train(training), fused.train(training)
    x = torch.randn(shape, dtype=torch.float64)
    for expected, found in zip(run(reference, x), run(fused, x), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    assert_same(reference, fused)


def test_so_do_the_compiled_kernels(compiler: None) -> None:
    for shape in ((2, 6, 33, 20), (3, 6, 17, 31)):
        reference, fused = pair(dropout=0.3)
        x = torch.randn(shape, dtype=torch.float64)
        for expected, found in zip(run(reference, x), run(fused, x), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)
        assert_same(reference, fused)
    assert kernels.Kernel.compiler_works


@pytest.mark.parametrize(
    "options",
    [{}, {"transition_down": "average", "transition_up": "nearest"}, {"stem_stride": 2}, {"layers_per_block": [2]}],
)
@pytest.mark.parametrize("size", [(32, 48), (45, 35)])
def test_a_network_computes_what_the_reference_computes(options, size) -> None:
    torch.manual_seed(0)
    reference = FCDenseNet(5, **{**SMALL, **options}, dropout=0.2, block="reference").double()
    fused = FCDenseNet(5, **{**SMALL, **options}, dropout=0.2, block="fused").double()
    randomize(reference)
    fused.load_state_dict(reference.state_dict())
    share_masks(reference)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    for expected, found in zip(run(reference, images), run(fused, images), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    assert_same(reference, fused)
    torch.testing.assert_close(fused.eval()(images), reference.eval()(images), **EXACT)


def test_numerical_derivatives_agree() -> None:
    _, fused = pair(in_channels=2, layers=2)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: fused(x), (x, *fused.parameters()), atol=1e-6)


@pytest.mark.parametrize("frozen", ["norm", "conv", "layers.0", "layers.1.conv.weight", "layers"])
@pytest.mark.parametrize("input_needs_gradient", [True, False])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(frozen, input_needs_gradient) -> None:
    reference, fused = pair()
    for block in (reference, fused):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(frozen not in name)
        x = torch.linspace(-1, 1, 2 * 6 * 4 * 5, dtype=torch.float64).view(2, 6, 4, 5).sin()
        x.requires_grad_(input_needs_gradient)
        y = block(x)
        if y.requires_grad:
            y.square().sum().backward()
        block.x = x.grad
    assert_same(reference, fused)
    torch.testing.assert_close(fused.x, reference.x, **EXACT) if input_needs_gradient else None


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    reference, fused = pair()
    for block in (reference, fused):
        for layer in list(block.layers)[1:]:
            layer.norm.eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    for expected, found in zip(run(reference, x), run(fused, x), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    assert_same(reference, fused)


def test_output_used_twice_and_gradients_accumulated_over_steps() -> None:
    reference, fused = pair()
    for block in (reference, fused):
        for seed in range(3):
            y = block(torch.randn(2, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
            (y.square().sum() + (y[:, 3:9] * y[:, 5:11]).sum()).backward()
    assert_same(reference, fused)


def test_retained_graph_gives_the_same_gradients_again() -> None:
    _, fused = pair(dropout=0.3)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    loss = fused(x).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_bfloat16_autocast_stays_close(mode) -> None:
    torch.manual_seed(0)
    reference = FCDenseNet(5, **SMALL, dropout=0.0, block="reference").to(memory_format=torch.channels_last)
    fused = FCDenseNet(5, **SMALL, dropout=0.0, block="fused").to(memory_format=torch.channels_last)
    fused.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 64, 48)
    exact = copy.deepcopy(reference).train(mode == "train")(images)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(mode == "train"):
        expected, found = (network.train(mode == "train")(images) for network in (reference, fused))
    assert found.dtype == expected.dtype
    # As far from float32 as the textbook block is, give or take.
    assert (found - exact).square().mean() < 1.5 * (expected - exact).square().mean()


def test_inference_mode_in_every_type_and_nothing_is_kept() -> None:
    network = FCDenseNet(5, **SMALL, block="fused").eval()
    reference = FCDenseNet(5, **SMALL, block="reference").eval()
    reference.load_state_dict(network.state_dict())
    network(torch.rand(1, 3, 32, 32))
    before = large_tensors()
    with torch.inference_mode():
        for size in ((32, 32), (64, 96)):
            images = torch.rand(1, 3, *size)
            torch.testing.assert_close(network(images), reference(images), rtol=1e-4, atol=1e-5)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(network(images), reference(images), rtol=0.1, atol=0.1)
    del images
    assert large_tensors() == before


def large_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, Tensor) and thing.numel() > 5_000 for thing in gc.get_objects())


def test_learns_along_the_same_curve_as_the_reference() -> None:
    curves = []
    images, target = torch.rand(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32))
    for block in ("reference", "fused"):
        torch.manual_seed(0)
        network = FCDenseNet(5, **SMALL, dropout=0.2, block=block)
        if block == "reference":
            share_masks(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        torch.manual_seed(1)
        losses = []
        for _ in range(50):
            loss = F.cross_entropy(network(images), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert curves[0][-1] < curves[0][0] - 0.1
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-4, atol=1e-4)


def test_is_never_compiled_again_for_another_image_size(compiler: None) -> None:
    network = FCDenseNet(5, **SMALL, block="fused")
    network(torch.rand(2, 3, 64, 64)).mean().backward()
    network(torch.rand(2, 3, 70, 66)).mean().backward()  # odd sizes lie in memory with gaps
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, height, width in ((2, 96, 64), (3, 64, 128), (2, 102, 114), (5, 80, 80)):
            network(torch.rand(batch, 3, height, width)).mean().backward()


def test_is_compiled_once_whatever_global_modes_change(compiler: None) -> None:
    network = FCDenseNet(5, **SMALL, block="fused")
    images = torch.rand(2, 3, 64, 64)
    network(images).mean().backward()
    kernels.Kernel.compiler_works = True
    with torch.compiler.set_stance("fail_on_recompile"):
        for cache in (False, True):
            for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
                for dtype in (torch.bfloat16, torch.float16):
                    with torch.autocast("cpu", dtype=dtype, cache_enabled=cache, enabled=False), mode():
                        network(images)
    assert kernels.Kernel.compiler_works


@pytest.mark.slow
def test_many_layouts_are_compiled_each_for_itself(compiler: None) -> None:
    for gap in range(4):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            x = torch.rand(6, 7 + gap // 2, 20 + gap % 2).to(dtype)[:, :7, :20]
            scale, shift = torch.rand(20), torch.rand(20)
            out = torch.empty(6, 7, 20, dtype=dtype)
            kernels.normalize(x, scale, shift, out)
            torch.testing.assert_close(out, torch.relu(x * scale + shift).to(dtype), rtol=1e-2, atol=1e-2)
    assert kernels.Kernel.compiler_works


def test_works_without_a_compiler_and_says_so() -> None:
    code = (
        "import torch, logging; logging.basicConfig()\n"
        "from tiramisu.models import FCDenseNet, kernels\n"
        "kernels.EAGER_BELOW = 0\n"
        "torch.manual_seed(0)\n"
        "options = dict(layers_per_block=[1, 1, 1], growth_rate=4, dropout=0.0)\n"
        "fused, reference = FCDenseNet(block='fused', **options), FCDenseNet(block='reference', **options)\n"
        "reference.load_state_dict(fused.state_dict())\n"
        "images = torch.rand(2, 3, 64, 64)\n"
        "torch.testing.assert_close(fused(images), reference(images), rtol=1e-3, atol=1e-4)\n"
    )
    environment = {"PATH": "", "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": "/nonexistent/cache"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no C++ compiler that works") == 1


def test_compiling_the_whole_model_gives_the_same() -> None:
    torch.manual_seed(0)
    network = FCDenseNet(5, **SMALL, dropout=0.0, block="fused")
    images = torch.rand(2, 3, 32, 32)
    expected = copy.deepcopy(network)(images)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["bottleneck", "bottleneck.layers.0.conv", "up_blocks.0", "transitions_down.0", "transitions_up.0.conv"],
)
def test_hooks_are_called(name) -> None:
    network = FCDenseNet(5, **SMALL, dropout=0.0, block="fused")
    called = []
    network.get_submodule(name).register_forward_hook(lambda *_: called.append(1))
    network(torch.rand(2, 3, 32, 32))
    assert called == [1]


def change(block: DenseBlock, what: str) -> None:
    layer = block.layers[1]
    if what == "affine":
        layer.norm = nn.BatchNorm2d(10, affine=False).double()
    elif what == "bias":
        layer.conv.bias = None
    elif what == "reflect":
        layer.conv.padding_mode, layer.conv._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]
    elif what == "dilation":
        layer.conv.dilation = layer.conv.padding = (2, 2)
    elif what == "momentum":
        layer.norm.momentum = None
    elif what == "frozen statistics":
        layer.norm.track_running_stats = False
    elif what == "dropped":
        layer.dropout.p = 1.0


@pytest.mark.parametrize("what", ["affine", "bias", "reflect", "dilation", "momentum", "frozen statistics", "dropped"])
def test_layers_with_other_options_compute_what_the_textbook_computes(what) -> None:
    reference, fused = pair()
    change(reference, what), change(fused, what)
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    for _ in range(2):
        for expected, found in zip(run(reference, x), run(fused, x), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)
    assert_same(reference, fused)


def test_transforms_and_traces_work() -> None:
    network = FCDenseNet(5, **SMALL, dropout=0.0, block="fused").eval()
    images = torch.rand(1, 3, 32, 32)
    traced = torch.jit.trace(network, images, check_trace=False)
    torch.testing.assert_close(traced(images), network(images), rtol=1e-4, atol=1e-5)
    grad = torch.func.grad(lambda images: network(images).sum())(images)
    assert grad.shape == images.shape and grad.any()


def test_float64_stays_float64_under_autocast() -> None:
    network = FCDenseNet(5, **SMALL, block="fused").double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


def test_tensors_of_two_devices_are_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "EAGER_BELOW", 10**12)
    with FakeTensorMode():  # shapes, types and devices of a GPU's tensors, without a GPU
        with torch.device("cuda"):
            network, images = FCDenseNet(5, **SMALL, block="fused"), torch.rand(2, 3, 33, 36)
            rows, channels, pooled, squares = (torch.rand(size) for size in ((8, 6, 4), 4, (4, 3, 4), (4, 2, 3, 2, 4)))
            noise, factor, winner = torch.zeros(2, dtype=torch.int32), torch.tensor(1.25), pooled.to(torch.uint8)
        with torch.no_grad():
            logits = network(images)
        kernels.gather(rows, rows, channels, channels, noise, factor, rows)
        kernels.spread(rows, rows, channels, channels, channels, rows)
        kernels.pool(squares, noise, factor, pooled, winner)
        kernels.unpool(pooled, winner, factor, squares)
    assert logits.device.type == "cuda"


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 6 channels, got 5"):
        FusedDenseBlock(6, 1, 4, 0.0)(torch.rand(1, 5, 8, 8))


def test_one_value_per_channel_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        FusedDenseBlock(4, 1, 4, 0.0)(torch.rand(1, 4, 1, 1))


def test_dropout_masks_differ_between_draws_and_have_the_right_share() -> None:
    torch.manual_seed(0)
    masks = [kernels.keep_mask((100, 50, 16), kernels.draw_noise(0.3)) for _ in range(2)]
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.7, abs=0.01)
        assert mask.float().mean(dim=(0, 1)).std().item() < 0.02
    agreement = (masks[0] == masks[1]).float().mean().item()
    assert agreement == pytest.approx(0.7**2 + 0.3**2, abs=0.01)
    assert kernels.keep_mask((3, 4, 5), kernels.draw_noise(0.0)).all()
    assert not kernels.keep_mask((3, 4, 5), kernels.draw_noise(1.0)).any()


@pytest.mark.parametrize("device", [WITH_GPU])
def test_fused_agrees_on_another_device(device) -> None:
    torch.manual_seed(0)
    reference = FCDenseNet(5, **SMALL, dropout=0.0, block="reference").double().to(device)
    fused = FCDenseNet(5, **SMALL, dropout=0.0, block="fused").double().to(device)
    fused.load_state_dict(reference.state_dict())
    images = torch.rand(2, 3, 45, 64, dtype=torch.float64, device=device)
    for expected, found in zip(run(reference, images), run(fused, images), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_dropout_works_where_convolutions_change_the_layout() -> None:
    block = FusedDenseBlock(6, 2, 16, 0.5)
    with torch.backends.mkldnn.flags(enabled=False):
        new = block(torch.randn(2, 6, 24, 24))[:, 6:]
    assert (new == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_an_unknown_kind_of_block_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, reference, fused"):
        FCDenseNet(block="fuzed")
