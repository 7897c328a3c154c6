"""The element-wise work between FC-DenseNet's convolutions, in one pass over memory each.

Every kernel is a plain function on tensors whose last dimension is the channels (channels_last storage).
`torch.compile` turns it into one vectorised loop; where there is no C++ compiler it runs as it is. Statistics and
per-channel factors are float32 (float64 for float64 features).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack  # type: ignore[attr-defined]  # public, but untyped

logger = logging.getLogger(__name__)

EAGER_BELOW = 16_384  # elements up to which calling a compiled kernel costs more than it saves
EXAMPLE_SHAPES = {0: (), 1: (93,), 3: (67, 71, 93), 5: (67, 2, 71, 2, 93)}
HASH_FACTORS = (-1640531535, -2048144789, -1028477387)  # 2^32 / golden ratio; the two of MurmurHash3's finalizer


class Kernel:
    """A function on channels-last tensors that is compiled at its first large call for each layout of its arguments.

    The compiled loop holds for every size and, where there are gaps between pixels or rows, for every gap. So that
    nothing in it is specialised to the tensors of the first call (sizes that happen to be equal, or too small for two
    threads), it is compiled for examples of the same layout; and what else torch.compile looks at (views, offsets,
    gradients, inference mode) is taken off the tensors. Which loop fits is decided here alone: torch.compile's own
    guards would compile again whenever autocast or another global mode changes, and give up at the eighth time.
    """

    compiler_works = True

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        """Run the kernel."""
        features = tensors[0]
        if features.numel() < EAGER_BELOW or 1 in features.shape or not Kernel.compiler_works:
            return self.function(*tensors)
        with torch.inference_mode(False), torch.no_grad():
            # The number of threads is part of the generated code.
            layout = (torch.get_num_threads(), *((tensor.dtype, gaps(tensor)) for tensor in tensors))
            compiled = self.compiled.get(layout) or self._compile(tensors)
            if compiled is None:
                return self.function(*tensors)
            self.compiled[layout] = compiled
            return compiled(*map(bare, tensors))

    def _compile(self, tensors: Sequence[Tensor]) -> Callable[..., Any] | None:
        compiled = torch.compile(  # type: ignore[call-overload]  # its overloads lag behind its arguments
            self.function,
            dynamic=True,
            fullgraph=True,
            isolate_recompiles=True,
            options={"cpp.vec_isa_ok": True, "guard_filter_fn": no_guards},
        )
        examples = [bare(example(tensor, 1 + position)) for position, tensor in enumerate(tensors)]
        try:
            with torch.autocast("cpu", enabled=False):
                compiled(*examples)
        except Exception as error:  # no compiler, a broken one, a full disk: every kind has its own exception
            Kernel.compiler_works = False
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("no C++ compiler that works (%s): FC-DenseNet runs slower, as in the textbook", reason[0])
            return None
        return compiled


def no_guards(guards: Sequence[object]) -> list[bool]:
    """Have torch.compile check nothing at a call."""
    return [False] * len(guards)


def bare(x: Tensor) -> Tensor:
    """Return the same memory as a tensor without history: no view of another, no offset, no gradient."""
    return from_dlpack(to_dlpack(x))


def gaps(x: Tensor) -> tuple[bool, ...]:
    """Tell, from the outermost dimension to the last but one, which steps skip memory."""
    shape, stride = x.shape, x.stride()
    return tuple(stride[axis] != shape[axis + 1] * stride[axis + 1] for axis in range(x.ndim - 1))


def example(x: Tensor, gap: int) -> Tensor:
    """Return zeros with gaps where x has some, of sizes that have nothing in common."""
    shape = x.shape if x.dtype == torch.int32 else EXAMPLE_SHAPES[x.ndim]
    strides = [1] if shape else []
    for size, skips in zip(reversed(shape[1:]), reversed(gaps(x)), strict=True):
        strides.insert(0, size * strides[0] + (gap if skips else 0))
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.zeros(extent, dtype=x.dtype, device=x.device).as_strided(shape, strides)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which statistics of features of type `dtype` are kept."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def squares(x: Tensor) -> Tensor:
    """View (B, H, W, C) as its 2 x 2 squares (B * (H // 2), 2, W // 2, 2, C); an odd last row or column falls off."""
    batch, height, width, _ = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    if height % 2 and batch > 1:
        x = x.contiguous()  # images with a row between them are no view
    return x.flatten(0, 1).unflatten(0, (-1, 2)).unflatten(2, (-1, 2))


def draw_noise(probability: float) -> Tensor:
    """Draw what determines one dropout mask: int32 [seed, threshold], from torch's global CPU generator."""
    noise = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32)
    noise[1] = min(round(probability * 2**31), 2**31 - 1)
    return noise


def keep_mask(shape: Sequence[int], noise: Tensor) -> Tensor:
    """Return the boolean dropout mask of a channels-last tensor: True where the element is kept.

    A hash of each element's position, so that backward recomputes the mask instead of storing it.

    Args:
        shape: of the tensor.
        noise: int32 [seed, threshold] from `draw_noise`; a threshold of 0 keeps everything.
    """
    position = torch.zeros((), dtype=torch.int32, device=noise.device)
    for size in shape:
        position = position[..., None] * size + torch.arange(size, dtype=torch.int32, device=noise.device)
    hashed = position * HASH_FACTORS[0] + noise[0]
    hashed = (hashed ^ ((hashed >> 16) & 0xFFFF)) * HASH_FACTORS[1]  # & makes the shift of a signed number logical
    hashed = (hashed ^ ((hashed >> 13) & 0x7FFFF)) * HASH_FACTORS[2]
    hashed = hashed ^ ((hashed >> 16) & 0xFFFF)
    return (hashed & 0x7FFFFFFF) >= noise[1]


@Kernel
def normalize(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write relu(x * scale + shift) to `out`: batch normalisation with known statistics, and ReLU."""
    out.copy_(torch.relu(x * scale + shift))


@Kernel
def drop(y: Tensor, noise: Tensor, factor: Tensor) -> None:
    """Drop elements of y (R, W, C) in place (see `keep_mask`) and multiply the others by `factor`."""
    y.copy_(torch.where(keep_mask(y.shape, noise), y * factor, 0.0))


@Kernel
def moments(x: Tensor, pivot: Tensor) -> tuple[Tensor, Tensor]:
    """Return per channel the sums of (x - pivot) and of its square.

    Args:
        x: features (R, W, C).
        pivot: (C,) values near the mean, which keep the sums free of cancellation.
    """
    deviation = x - pivot
    return deviation.sum(1).sum(0), (deviation * deviation).sum(1).sum(0)


@Kernel
def gather(grad: Tensor, x: Tensor, offset: Tensor, slope: Tensor, noise: Tensor, factor: Tensor, out: Tensor) -> None:
    """Write the gradient before dropout of features x, (grad + offset + slope * x) where kept, to `out`.

    `offset` and `slope` carry the gradient through the features' mean and variance. All of (R, W, C), or (C,).
    """
    out.copy_(torch.where(keep_mask(x.shape, noise), (grad + offset + slope * x) * factor, 0.0))


@Kernel
def spread(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Add the gradient of `normalize` with respect to x to `out`.

    Returns:
        Per channel the gradient of `shift`, and that of `scale` for an x taken relative to `mean`.
    """
    open_gradient = torch.where(x * scale + shift > 0, grad, 0.0).to(scale.dtype)
    out.add_(open_gradient * scale)
    return open_gradient.sum(1).sum(0), (open_gradient * (x - mean)).sum(1).sum(0)


@Kernel
def pool(y: Tensor, noise: Tensor, factor: Tensor, out: Tensor, winner: Tensor) -> None:
    """Dropout, then 2 x 2 max-pooling.

    Args:
        y: features (R, 2, W, 2, C), see `squares`.
        noise: see `keep_mask`.
        factor: what kept elements are multiplied by.
        out: (R, W, C), filled with the maxima.
        winner: (R, W, C) uint8, filled with which of the four it was (row-major), 4 if that was dropped.
    """
    mask = keep_mask(y.shape, noise)
    best = torch.full((), -torch.inf, dtype=factor.dtype, device=y.device)
    which = torch.zeros((), dtype=torch.float32, device=y.device)  # integers would not be vectorised
    for tap in range(4):
        row, column = divmod(tap, 2)
        kept = mask[:, row, :, column]
        value = torch.where(kept, y[:, row, :, column] * factor, 0.0)
        better = ~(value <= best)  # as max_pool2d: the first of equals, and NaN
        best = torch.where(better, value, best)
        which = torch.where(better, torch.where(kept, float(tap), 4.0), which)
    out.copy_(best)
    winner.copy_(which)


@Kernel
def unpool(grad: Tensor, winner: Tensor, factor: Tensor, out: Tensor) -> None:
    """Write the gradient of `pool` with respect to y to `out` (R, 2, W, 2, C)."""
    taps = torch.arange(4, dtype=torch.int32, device=grad.device).to(torch.float32).view(2, 1, 2, 1)
    chosen = winner.to(torch.float32)[:, None, :, None, :] == taps
    out.copy_(torch.where(chosen, (grad * factor)[:, None, :, None, :], 0.0))
