"""Batch normalisation and max-pooling in one, which GPUs otherwise spend a third of a training step on."""

import functools
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from photonic_essl.saving import one_line


class NormalisedMaxPool(nn.Sequential):
    """Batch normalisation, then the largest number of each window.

    When it trains on a GPU, what is normalised is only what pooling leaves: the largest number before it is the largest
    after it, or the smallest is where a channel's weight is negative. Mean and variance are those of all numbers, as
    ever. Hooks of the two layers do not run then.

    Args:
        channels: of the input.
        size: of a window, along x as along y.
    """

    def __init__(self, channels: int, size: int):
        super().__init__(nn.BatchNorm2d(channels), nn.MaxPool2d(size))
        self.size = size

    def forward(self, x: Float[Tensor, "batch channel x y"]) -> Float[Tensor, "batch channel coarser_x coarser_y"]:
        """Return what is left of each window, normalised."""
        if not self._one_pass(x):
            return self[1](self[0](x))
        layer, counter = self[0], self[0].get_buffer("num_batches_tracked")
        counter += 1
        statistics = layer.running_mean, layer.running_var, layer.momentum, layer.eps
        return _PoolThenNormalise.apply(x, layer.weight, layer.bias, self.size, *statistics)

    def _one_pass(self, x: Tensor) -> bool:
        # Statistics of several processes together, and code that torch compiles, are torch's own.
        return (
            not torch.compiler.is_compiling()
            and x.is_cuda
            and x.numel() > 0
            and type(self[0]) is nn.BatchNorm2d
            and self[0].training  # its statistics may be frozen where the rest trains
            and bool(self[0].momentum)
            and x.dtype != torch.float64
            and not (x.shape[2] % self.size or x.shape[3] % self.size)
            and _have_kernels(x.dtype)
        )


@functools.cache
def _have_kernels(dtype: torch.dtype) -> bool:
    """Return whether kernels for numbers of this type can be made here; warn if not."""
    try:
        with torch.enable_grad():
            x = torch.ones(2, 1, 2, 2, dtype=dtype, device="cuda", requires_grad=True)
            weight, bias, mean, variance = torch.ones(4, 1, device="cuda")
            _PoolThenNormalise.apply(x, weight, bias, 2, mean, variance, 0.1, 1e-5).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever Triton misses, a C compiler for one
        warnings.warn(
            f"training takes longer, as kernels cannot be made here: {type(error).__name__}: {one_line(error)}",
            stacklevel=2,
        )
        return False
    return True


class _PoolThenNormalise(torch.autograd.Function):
    """The gradient is that of batch normalisation (arXiv 1502.03167, section 3), where most numbers hand nothing on."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor, size: int, *statistics: Any) -> Tensor:
        from photonic_essl import pooling_kernels

        x = x.contiguous(memory_format=torch.channels_last)
        with torch.cuda.device(x.device):  # Triton launches on the current one
            pooled, chosen, sums = pooling_kernels.pool(x, weight, size)
            mean, inverse = pooling_kernels.statistics(x, sums, *statistics)
        context.save_for_backward(x, pooled, chosen, weight, mean, inverse)
        context.size = size
        return torch.batch_norm_elemt(pooled, weight, bias, mean, inverse, statistics[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from photonic_essl import pooling_kernels

        x, pooled, chosen, weight, mean, inverse = context.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        total, against, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, pooled, mean, inverse, weight, True, True, True
        )
        of_x = pooling_kernels.gradient(x, gradient, chosen, weight, mean, inverse, total, against, context.size)
        return of_x, of_weight, of_bias, *[None] * 5
