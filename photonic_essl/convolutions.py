"""Convolutions that torch does not have, or has slower."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


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


class WindowConvolution(nn.Conv2d):
    """A 7 × 7 convolution, as a product of its weights with the windows of the cell that they see.

    On a GPU, where a cell has one channel, cuDNN takes more than twice as long. The windows take 56 times the memory of
    the cells. Weights are as of `torch.nn.Conv2d`, without biases.

    Args:
        inputs: channels of a cell.
        outputs: channels of the convolution.
        periodic: whether it wraps around the cell; otherwise zeros are seen beyond the edges.
    """

    def __init__(self, inputs: int, outputs: int, periodic: bool):
        super().__init__(inputs, outputs, 7, bias=False)
        self.mode = "circular" if periodic else "constant"

    def forward(
        self, x: Float[Tensor, "batch {self.in_channels} x y"]
    ) -> Float[Tensor, "batch {self.out_channels} x y"]:
        """Return the convolution, in the layout of channels last."""
        if x.is_cuda and torch.is_autocast_enabled("cuda"):  # here, and not when there are 56 times as many numbers
            x = x.to(torch.get_autocast_dtype("cuda"))
        # One column more, with weights of zero: rows of 7 × 8 numbers of two bytes are whole pieces of 16, which GPUs
        # multiply by the fastest code they have.
        windows = functional.pad(x, (3, 4, 3, 3), self.mode).unfold(2, 7, 1).unfold(3, 8, 1)
        weights = functional.pad(self.weight, (0, 1)).flatten(1)
        return functional.linear(windows.permute(0, 2, 3, 1, 4, 5).flatten(3), weights).permute(0, 3, 1, 2)
