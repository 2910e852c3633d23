"""Convolutions on a periodic cell."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _Wrap(torch.autograd.Function):
    """Repeat the opposite edges around a batch of cells.

    torch's own circular padding takes as long, with its gradient, as the convolutions of a small network do: it makes
    the gradient of every slice in a cell-sized buffer. Here the edges are added up in place.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, margin: int) -> Tensor:
        context.margin = m = margin
        shape = (*x.shape[:2], x.shape[2] + 2 * m, x.shape[3] + 2 * m)
        like_channels_last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if like_channels_last else torch.contiguous_format
        wrapped = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        wrapped[..., m:-m, m:-m] = x
        wrapped[..., :m, m:-m], wrapped[..., -m:, m:-m] = x[..., -m:, :], x[..., :m, :]
        wrapped[..., :m], wrapped[..., -m:] = wrapped[..., -2 * m : -m], wrapped[..., m : 2 * m]
        return wrapped

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        m = context.margin
        columns = gradient[..., m:-m].clone(memory_format=torch.preserve_format)
        columns[..., -m:] += gradient[..., :m]
        columns[..., :m] += gradient[..., -m:]
        folded = columns[..., m:-m, :]
        folded[..., -m:, :] += columns[..., :m, :]
        folded[..., :m, :] += columns[..., -m:, :]
        return folded, None


class PeriodicConvolution(nn.Conv2d):
    """A square convolution of odd size that wraps around the cell; weights as of `torch.nn.Conv2d`, without biases."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        if size < 3 or size % 2 == 0:
            raise ValueError(f"`size` must be odd and at least 3, got {size}.")
        super().__init__(inputs, outputs, size, stride, bias=False)
        self.margin = size // 2

    def forward(
        self, x: Float[Tensor, "batch {self.in_channels} x y"]
    ) -> Float[Tensor, "batch {self.out_channels} coarser_x coarser_y"]:
        """Return the convolution, on a grid coarser by the stride."""
        return self._conv_forward(_Wrap.apply(x, self.margin), self.weight, None)
