"""The dense block and its neighbours without the memory traffic of the textbook: the same numbers, faster, in less.

Most of a textbook training step is not convolutions but copies of ever longer stacks of features. Here:

- All features of a block lie in one channels_last buffer (`Stack`), which their producers fill; nothing is
  concatenated.
- The mean and variance of a feature do not depend on who asks: they are taken once, when the feature is made, and
  travel with it (`Features`), from the encoder to the decoder too. Only scale and shift belong to a layer.
- Backward recomputes the input of each convolution from the buffer instead of storing it, and dropout masks from
  their seeds. Gradients are added up in one buffer; what flows through a feature's mean and variance is summed over
  all layers and applied once.

The element-wise loops are in `kernels`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tiramisu.models import kernels
from tiramisu.models.blocks import DenseBlock, DenseLayer, TransitionDown, TransitionUp


class Features(NamedTuple):
    """Some channels of a stack and their statistics.

    Attributes:
        tensor: (B, C, H, W), a view of the stack.
        mean: (C,) over batch and pixels; zeros where no layer wants it.
        variance: (C,) likewise, biased.
    """

    tensor: Tensor
    mean: Tensor
    variance: Tensor


class Stack:
    """The preallocated buffer of one block, (B, H, W, channels).

    A block of the up path copies its skip connection, once. It could lie there from the start, with the encoder's
    block working in the middle of the wider buffer; but passes over few channels of many cost as much as passes over
    all of them, and take more time than the copy.

    Args:
        block: whose features it holds.
        like: a tensor (B, any, H, W) of the type wanted.
        wanted: whether batch normalisation will ask for statistics.
    """

    def __init__(self, block: DenseBlock, like: Tensor, wanted: bool) -> None:
        batch, _, height, width = like.shape
        self.buffer = like.new_empty(batch, height, width, block.in_channels + block.new_channels)
        self.wanted = wanted

    def slot(self, start: int, stop: int) -> Tensor:
        """Return channels as (B, C, H, W).

        Each slot counts its versions on its own (`.data`): every channel is written once, so what autograd saved of
        one slot stays valid when another is filled.
        """
        return self.buffer.data[..., start:stop].permute(0, 3, 1, 2)


class Statistics:
    """Means and variances of the channels of a stack while it fills, or the gradients with respect to them."""

    def __init__(self, channels: int, like: Tensor) -> None:
        self.count = like.shape[0] * like.shape[2] * like.shape[3]
        self.mean, self.variance = like.new_zeros(2, channels, dtype=kernels.accumulator(like.dtype))

    def measure(self, x: Tensor, start: int) -> None:
        """Set the channels from `start` on to the statistics of x (B, C, H, W)."""
        channels = slice(start, start + x.shape[1])
        pivot = x[0, :, 0, 0].to(self.mean.dtype)
        sums, squares = kernels.moments(rows(x), pivot)
        offset = sums / self.count
        self.mean[channels] = pivot + offset
        self.variance[channels] = torch.addcmul(squares / self.count, offset, offset, value=-1).clamp_(min=0)

    def add(self, mean: Tensor | None, variance: Tensor | None) -> Self:
        """Add values, where there are any."""
        if mean is not None:
            self.mean += mean
        if variance is not None:
            self.variance += variance
        return self


class Normalization:
    """Batch normalisation and ReLU of the first channels of a stack, for one call of one layer."""

    def __init__(self, norm: nn.BatchNorm2d, statistics: Statistics) -> None:
        self.of_batch = uses_batch_statistics(norm)
        channels, kind = norm.num_features, statistics.mean.dtype
        if self.of_batch:
            self.mean, variance = statistics.mean[:channels], statistics.variance[:channels]
        else:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            self.mean, variance = norm.running_mean.to(kind), norm.running_var.to(kind)
        self.inverse_deviation = torch.rsqrt(variance + norm.eps)
        self.scale = norm.weight.detach().to(kind) * self.inverse_deviation
        self.shift = torch.addcmul(norm.bias.detach().to(kind), self.mean, self.scale, value=-1)
        if norm.training:
            update_running_statistics(norm, statistics)

    def activate(self, x: Tensor) -> Tensor:
        """Return relu(norm(x)), channels_last."""
        out = empty_dense(x)
        kernels.normalize(rows(x), self.scale, self.shift, rows(out))
        return out

    def backward(self, grad: Tensor, x: Tensor, grad_x: Tensor, gradient: Statistics) -> tuple[Tensor, Tensor]:
        """Add the gradient of `activate` to `grad_x` and to the gradients of the statistics.

        Returns:
            The gradients of the norm's weight and bias.
        """
        vectors = (self.scale, self.shift, self.mean)
        grad_shift, grad_scale = kernels.spread(rows(grad), rows(x), *vectors, rows(grad_x))
        grad_weight = grad_scale * self.inverse_deviation
        if self.of_batch:
            channels = len(self.scale)
            gradient.mean[:channels].addcmul_(self.scale, grad_shift, value=-1)
            # scale = weight / sqrt(variance + eps)
            gradient.variance[:channels].addcmul_(grad_weight, self.scale * self.inverse_deviation, value=-0.5)
        return grad_weight, grad_shift


def uses_batch_statistics(norm: nn.BatchNorm2d) -> bool:
    """Tell whether a layer normalises with the statistics of the batch at hand."""
    return norm.training or norm.running_mean is None


def update_running_statistics(norm: nn.BatchNorm2d, statistics: Statistics) -> None:
    """Do what nn.BatchNorm2d does to its buffers in a training step.

    Raises:
        ValueError: one value per channel has no variance.
    """
    channels, count = norm.num_features, statistics.count
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got one for {channels} channels")
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    tracked = norm.num_batches_tracked
    if tracked is not None:
        tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:  # a plain average over all batches
        momentum = 0.0 if tracked is None else 1 / float(tracked)
    kind = norm.running_mean.dtype
    norm.running_mean.lerp_(statistics.mean[:channels].to(kind), momentum)
    norm.running_var.lerp_((statistics.variance[:channels] * (count / (count - 1))).to(kind), momentum)


class Dropout:
    """One draw of element-wise dropout; nothing is drawn where nothing is dropped."""

    def __init__(self, module: nn.Module | None, like: Tensor) -> None:
        probability = module.p if isinstance(module, nn.Dropout) and module.training else 0.0
        self.active = probability > 0
        noise = kernels.draw_noise(probability) if self.active else torch.zeros(2, dtype=torch.int32)
        factor = 1 / (1 - probability) if probability < 1 else 0.0
        self.noise = noise.to(like.device)
        self.factor = torch.tensor(factor, dtype=kernels.accumulator(like.dtype), device=like.device)


def rows(x: Tensor) -> Tensor:
    """View (B, C, H, W) as rows of pixels (B * H, W, C); a tensor in another layout than channels_last is copied."""
    x = x.permute(0, 2, 3, 1)
    images_touch = x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1)
    return (x if images_touch and x.stride(3) == 1 else x.contiguous()).flatten(0, 1)


def empty_dense(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return an empty tensor like x (B, C, H, W), or of another height and width; channels_last, without gaps."""
    height, width = size or x.shape[2:]
    return x.new_empty(len(x), height, width, x.shape[1]).permute(0, 3, 1, 2)


def before_dropout(
    grad: Tensor | None, x: Tensor, start: int, statistics: Statistics, gradient: Statistics, dropout: Dropout
) -> Tensor:
    """Return the gradient of what became features x by dropout.

    Args:
        grad: (B, C, H, W), the gradient of x as it was used.
        x: (B, C, H, W).
        start: the channel at which x begins in
        statistics: the means and variances, and
        gradient: the gradients that flow through them.
        dropout: the draw that led to x.
    """
    channels = slice(start, start + x.shape[1])
    slope = gradient.variance[channels] * (2 / statistics.count)
    offset = torch.addcmul(gradient.mean[channels] / statistics.count, slope, statistics.mean[channels], value=-1)
    out = empty_dense(x)
    grad = torch.zeros_like(out) if grad is None else grad
    # To copy a few channels out of wide buffers first is faster than to compute on them there.
    dense = (rows(tensor).contiguous() for tensor in (grad, x))
    kernels.gather(*dense, offset, slope, dropout.noise, dropout.factor, rows(out))
    return out


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve with the weights in the type of x."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    y = F.conv2d(x, conv.weight.to(x.dtype), bias, padding=cast(tuple[int, int], conv.padding))
    return y.contiguous(memory_format=torch.channels_last)  # not every backend keeps the layout


def convolve_backward(
    grad: Tensor, x: Tensor, conv: nn.Conv2d, weight: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, each none where it is not needed."""
    grad_x, *grads = torch.ops.aten.convolution_backward(
        grad, x, weight.to(x.dtype), [conv.out_channels], (1, 1), conv.padding, (1, 1), False, (0, 0), 1, needs
    )
    grad_weight, grad_bias = (None if value is None else value.to(weight.dtype) for value in grads)
    return grad_x, grad_weight, grad_bias


class _Copy(torch.autograd.Function):
    """Copy features whose statistics are known into a stack."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: Stack, start: int) -> Tensor:
        stop = start + x.shape[1]
        stack.slot(start, stop).copy_(x)
        return stack.slot(start, stop)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _Place(torch.autograd.Function):
    """Copy x, plus a bias (C,) if there is one, into a stack and take the statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, stack: Stack, start: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        channels = x.shape[1]
        slot = stack.slot(start, start + channels)
        statistics = Statistics(channels, slot)
        with torch.autocast(x.device.type, enabled=False):
            if bias is None:
                slot.copy_(x)
            else:
                torch.add(x, bias.to(x.dtype).view(-1, 1, 1), out=slot)
            if stack.wanted:
                statistics.measure(slot, 0)
        ctx.statistics, ctx.dropout = statistics, Dropout(None, x)
        ctx.save_for_backward(slot, bias)
        return stack.slot(start, start + channels), statistics.mean.clone(), statistics.variance.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *grad_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            gradient = Statistics(x.shape[1], x).add(*grad_statistics)
            grad_x = before_dropout(grad, x, 0, ctx.statistics, gradient, ctx.dropout)
            grad_bias = rows(grad_x).sum((0, 1)).to(bias.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None, None


class _DenseBlock(torch.autograd.Function):
    """All layers of a dense block.

    Takes `parts` features that lie side by side in the stack, as tensors, means and variances; then the parameters of
    each layer: norm.weight, norm.bias, conv.weight, conv.bias.
    """

    @staticmethod
    def forward(
        ctx: Any, block: DenseBlock, stack: Stack, parts: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        channels = block.in_channels
        total = channels + block.new_channels
        x = stack.slot(0, total)
        statistics = Statistics(total, x)
        torch.cat(tensors[parts : 2 * parts], out=statistics.mean[:channels])
        torch.cat(tensors[2 * parts : 3 * parts], out=statistics.variance[:channels])
        ctx.draws = []
        with torch.autocast(x.device.type, enabled=False):
            for layer in cast(Sequence[DenseLayer], block.layers):
                normalization = Normalization(layer.norm, statistics)
                y = convolve(normalization.activate(x[:, :channels]), layer.conv)
                dropout = Dropout(layer.dropout, y)
                if dropout.active:
                    kernels.drop(rows(y), dropout.noise, dropout.factor)
                if stack.wanted:
                    statistics.measure(y, channels)
                x[:, channels : channels + y.shape[1]] = y
                channels += y.shape[1]
                ctx.draws.append((normalization, dropout))
        ctx.block, ctx.statistics, ctx.widths = block, statistics, [part.shape[1] for part in tensors[:parts]]
        ctx.save_for_backward(x, *tensors[3 * parts + 2 :: 4])
        full, new = stack.slot(0, total), stack.slot(block.in_channels, total)
        return full, new, statistics.mean.clone(), statistics.variance.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_new: Tensor | None, *grad_statistics: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        inputs, parts, needed = ctx.block.in_channels, len(ctx.widths), ctx.needs_input_grad[3:]
        inputs_needed, parameters_needed = any(needed[: 3 * parts]), needed[3 * parts :]
        grads: list[Tensor | None] = []
        with torch.autocast(x.device.type, enabled=False):
            gradient = Statistics(x.shape[1], x).add(*grad_statistics)
            grad_x = _start_gradient(x, grad, grad_new, inputs)
            stop = x.shape[1]
            for index in reversed(range(len(weights))):
                conv, (normalization, dropout) = ctx.block.layers[index].conv, ctx.draws[index]
                start = stop - conv.out_channels
                needs_weight, needs_bias = parameters_needed[4 * index + 2 : 4 * index + 4]
                needs_activation = inputs_needed or any(parameters_needed[: 4 * index + 2])
                made = slice(start, stop)
                grad_y = before_dropout(grad_x[:, made], x[:, made], start, ctx.statistics, gradient, dropout)
                grad_activation, grad_weight, grad_bias = convolve_backward(
                    grad_y,
                    normalization.activate(x[:, :start]),
                    conv,
                    weights[index],
                    (needs_activation, needs_weight, needs_bias),
                )
                grad_norm: tuple[Tensor | None, Tensor | None] = (None, None)
                if grad_activation is not None:
                    grad_norm = normalization.backward(grad_activation, x[:, :start], grad_x[:, :start], gradient)
                grads[:0] = [*grad_norm, grad_weight, grad_bias]
                stop = start
        split = [
            piece
            for whole, axis in ((grad_x[:, :inputs], 1), (gradient.mean[:inputs], 0), (gradient.variance[:inputs], 0))
            for piece in whole.split(ctx.widths, axis)
        ]
        return (None,) * 3 + (*split, *grads)


def _start_gradient(x: Tensor, grad: Tensor | None, grad_new: Tensor | None, inputs: int) -> Tensor:
    """Return the buffer in which the gradients of a block's stack are added up, with what comes from outside in it."""
    grad_x = empty_dense(x)
    if grad is None:
        grad_x[:, :inputs] = 0
        grad_x[:, inputs:] = 0 if grad_new is None else grad_new
    else:
        grad_x.copy_(grad)
        if grad_new is not None:
            grad_x[:, inputs:] += grad_new
    return grad_x


class _TransitionDown(torch.autograd.Function):
    """Norm, ReLU, 1x1 convolution, dropout and max-pooling of a stack."""

    @staticmethod
    def forward(
        ctx: Any, layers: nn.Sequential, x: Tensor, mean: Tensor, variance: Tensor, *parameters: Tensor
    ) -> Tensor:
        norm, conv = cast(nn.BatchNorm2d, layers[0]), cast(nn.Conv2d, layers[2])
        statistics = Statistics(x.shape[1], x).add(mean, variance)
        with torch.autocast(x.device.type, enabled=False):
            normalization, dropout = Normalization(norm, statistics), Dropout(layers[3], x)
            y = convolve(normalization.activate(x), conv)
            if not dropout.active and not any(ctx.needs_input_grad):
                return F.max_pool2d(y, 2)
            pooled = empty_dense(y, (y.shape[2] // 2, y.shape[3] // 2))
            winner = torch.empty_like(pooled, dtype=torch.uint8)
            taps = kernels.squares(y.permute(0, 2, 3, 1))
            kernels.pool(taps, dropout.noise, dropout.factor, rows(pooled), rows(winner))
        ctx.conv, ctx.normalization, ctx.dropout = conv, normalization, dropout
        ctx.save_for_backward(x.data, winner, conv.weight)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, winner, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        with torch.autocast(x.device.type, enabled=False):
            height, width = x.shape[2:]
            grad_y = empty_dense(x, (height // 2 * 2, width // 2 * 2))
            taps = kernels.squares(grad_y.permute(0, 2, 3, 1))
            kernels.unpool(rows(grad).contiguous(), rows(winner), ctx.dropout.factor, taps)
            if grad_y.shape != x.shape:
                grad_y = F.pad(grad_y, (0, width % 2, 0, height % 2))  # the last row or column is in no square
            activation = ctx.normalization.activate(x)
            grad_activation, *grad_conv = convolve_backward(
                grad_y, activation, ctx.conv, weight, (any(needs[:5]), *needs[5:])
            )
            if grad_activation is None:
                return (None,) * 6 + (*grad_conv,)
            grad_x, gradient = empty_dense(x).zero_(), Statistics(x.shape[1], x)
            grad_norm = ctx.normalization.backward(grad_activation, x, grad_x, gradient)
        return None, grad_x, gradient.mean, gradient.variance, *grad_norm, *grad_conv


def place(x: Tensor, stack: Stack, start: int, bias: Tensor | None = None) -> Features:
    """Copy x (B, C, H, W), plus a bias (C,), into the channels of a stack from `start` on, and take its statistics."""
    return Features(*_Place.apply(x, bias, stack, start))


def extend(block: DenseBlock, inputs: Sequence[Features], stack: Stack) -> tuple[Features, Tensor]:
    """Run a dense block on features that lie side by side at the beginning of its stack.

    Returns:
        All its features (B, in_channels + new_channels, H, W), and the tensor of the new ones alone.
    """
    layers = cast(Sequence[DenseLayer], block.layers)
    parameters = [
        parameter
        for layer in layers
        for parameter in (layer.norm.weight, layer.norm.bias, layer.conv.weight, layer.conv.bias)
    ]
    tensors, means, variances = zip(*inputs, strict=True)
    full, new, mean, variance = _DenseBlock.apply(block, stack, len(inputs), *tensors, *means, *variances, *parameters)
    return Features(full, mean, variance), new


def transition_down(transition: TransitionDown, features: Features) -> Tensor:
    """Run a TransitionDown: (B, C, H, W) to (B, C, H // 2, W // 2)."""
    if len(transition.layers) == 5:
        return _TransitionDown.apply(transition.layers, *features, *transition.parameters())
    return transition(features.tensor)


def transition_up(transition: TransitionUp, x: Tensor, skip: Features, stack: Stack) -> list[Features]:
    """Run a TransitionUp into the first channels of a stack; return what lies there side by side."""
    height, width = skip.tensor.shape[2:]
    if not transition.upsampled_channels:
        return [place(transition(x, skip.tensor), stack, 0)]
    conv = cast(nn.ConvTranspose2d, transition.conv)
    # oneDNN adds the bias of a transposed convolution ten times slower than it convolves.
    up = F.conv_transpose2d(x, conv.weight, stride=conv.stride)[:, :, :height, :width]
    return [place(up, stack, 0, conv.bias), skip._replace(tensor=_Copy.apply(skip.tensor, stack, up.shape[1]))]


def encode_decode(
    x: Tensor,
    down: Iterable[tuple[DenseBlock, TransitionDown]],
    bottleneck: DenseBlock,
    up: Iterable[tuple[TransitionUp, DenseBlock]],
    wanted: bool,
) -> Tensor:
    """Run FC-DenseNet between its stem and its classifier.

    Args:
        x: features (B, C, H, W).
        down: blocks and transitions of the down path.
        bottleneck: the block between.
        up: transitions and blocks of the up path.
        wanted: whether batch normalisation will ask for statistics.

    Returns:
        All features of the last block (B, C, H, W), in the type of the convolutions.
    """
    x = x.to(compute_type(x))
    skips: list[Features] = []
    for block, transition in down:
        stack = Stack(block, x, wanted)
        features, _ = extend(block, [place(x, stack, 0)], stack)
        skips.append(features)
        x = transition_down(transition, features)
    stack = Stack(bottleneck, x, wanted)
    features, new = extend(bottleneck, [place(x, stack, 0)], stack)
    for climb, block in up:
        skip = skips.pop()
        stack = Stack(block, skip.tensor, wanted)
        features, new = extend(block, transition_up(climb, new, skip, stack), stack)
    return features.tensor


def decode(
    x: Tensor,
    bottleneck: DenseBlock,
    up: Iterable[tuple[TransitionUp, DenseBlock]],
    skips: Sequence[Tensor],
    wanted: bool,
) -> Tensor:
    """Run the up path of FC-DenseNet over the features of any encoder.

    Args:
        x: the encoder's last features (B, C, H, W).
        bottleneck: the block on top of them.
        up: transitions (`transposed`) and blocks.
        skips: the encoder's features (B, C, H, W) at each resolution, from the smallest up; C may be 0.
        wanted: whether batch normalisation will ask for statistics.

    Returns:
        All features of the last block (B, C, H, W), in the type of the convolutions.
    """
    x = x.to(compute_type(x))
    stack = Stack(bottleneck, x, wanted)
    features, new = extend(bottleneck, [place(x, stack, 0)], stack)
    for (climb, block), skip in zip(up, skips, strict=True):
        stack = Stack(block, skip.to(x.dtype), wanted)
        conv = cast(nn.ConvTranspose2d, climb.conv)
        height, width = skip.shape[2:]
        raised = F.conv_transpose2d(new, conv.weight, stride=conv.stride)[:, :, :height, :width]
        inputs = [place(raised, stack, 0, conv.bias)]
        if skip.shape[1]:
            inputs.append(place(skip.to(x.dtype), stack, raised.shape[1]))
        features, new = extend(block, inputs, stack)
    return features.tensor


class FusedDenseBlock(DenseBlock):
    """A `DenseBlock` of the same parameters and results that is faster and smaller on a CPU; elsewhere the same.

    On the CPU there are no second derivatives, and the output must not be changed in place.

    Raises:
        ValueError: the input does not have `in_channels` channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the full stack (B, in_channels + new_channels, H, W), in the type of the convolutions."""
        if x.device.type != "cpu" or not kernels.Kernel.compiler_works or not supports(self.layers):
            return super().forward(x)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"expected {self.in_channels} channels, got {x.shape[1]}")
        x = x.to(compute_type(x))
        stack = Stack(self, x, wants_statistics(self))
        return extend(self, [place(x, stack, 0)], stack)[0].tensor


def compute_type(x: Tensor) -> torch.dtype:
    """Return the type in which autocast, or else the input, wants convolutions done."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype  # autocast leaves float64 alone
    return torch.get_autocast_dtype(device)


def wants_statistics(module: nn.Module) -> bool:
    """Tell whether any batch normalisation in `module` uses the statistics of the batch at hand."""
    return any(uses_batch_statistics(child) for child in module.modules() if isinstance(child, nn.BatchNorm2d))


def supports(*modules: nn.Module) -> bool:
    """Tell whether what `modules` compute can be computed fused instead of by calling them and their children.

    It cannot while something traces or transforms the computation (torch.compile, torch.jit, torch.func), with hooks,
    which would not be called, and with other layers in place of theirs (synchronised batch norm, parametrised weights,
    dilation).
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but untyped
    if traced or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(is_plain(part) and not has_hooks(part) for module in modules for part in module.modules())


def is_plain(module: nn.Module) -> bool:
    """Tell whether a module is one that the blocks are made of, with the options that they give it."""
    if type(module) is nn.BatchNorm2d:
        return module.affine
    if type(module) in (nn.Conv2d, nn.ConvTranspose2d):
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        transposed = isinstance(module, nn.ConvTranspose2d)
        return (
            module.bias is not None
            and (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
            and not isinstance(module.padding, str)
            and (module.padding == module.output_padding == (0, 0) if transposed else module.stride == (1, 1))
        )
    return type(module) in PLAIN


def has_hooks(module: nn.Module) -> bool:
    """Tell whether anyone wants to be called when `module` runs."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


PLAIN = (
    *(DenseBlock, DenseLayer, TransitionDown, TransitionUp),
    *(nn.ModuleList, nn.Sequential, nn.ReLU, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d),
)
