"""Training on several processes as on one: what a loss or a normalisation sees is the whole batch of all of them."""

from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


def processes() -> int:
    """Return the number of processes that train together."""
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1


def own_part(batch: int) -> slice:
    """Return which cells of a batch that all processes share are this one's.

    Raises:
        ValueError: if the batch cannot be shared equally.
    """
    check_shared(batch, processes())
    own = batch // processes()
    rank = torch.distributed.get_rank() if processes() > 1 else 0
    return slice(rank * own, (rank + 1) * own)


def check_shared(batch: int, number: int) -> None:
    """Refuse a batch that so many processes cannot share equally; raises `ValueError`."""
    if number > 1 and batch % number:
        raise ValueError(f"a batch of {batch} cannot be shared equally by {number} processes.")


class _Sum(torch.autograd.Function):
    """The sum over processes, of values as of gradients."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def gathered(values: Float[Tensor, "own width"]) -> Float[Tensor, "all width"]:
    """Return the rows of all processes, in the order of the shared batch.

    Gradients flow back to where the rows came from. A loss of all rows, computed alike on every process, then has the
    gradient that one process would find: the sum over processes that flows back is undone by the mean over processes
    that DistributedDataParallel takes.
    """
    if processes() == 1:
        return values
    batch = len(values) * processes()
    place = own_part(batch)
    return _Sum.apply(functional.pad(values, (0, 0, place.start, batch - place.stop)))


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over the batch of all processes, on any device (torch's own is for GPUs alone)."""

    # Torch lets each of these be None, which no network here asks for.
    momentum: float
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, shape `(batch, channel, ...)`."""
        if not self.training or processes() == 1:
            return super().forward(input)
        summed = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
        values = input.to(self.running_mean.dtype)  # statistics in half precision would be too rough
        mean = _Sum.apply(values.mean(summed)) / processes()
        centred = values - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(summed)) / processes()
        with torch.no_grad():
            count = input.numel() // input.shape[1] * processes()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)


def with_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation in a module by one over all processes, in place; keys and values stay."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if child.running_mean is None:
                raise ValueError(f"batch normalisation on several processes needs running statistics; {name} has none.")
            replacement = GlobalBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            replacement.to(child.running_mean).load_state_dict(child.state_dict())
            setattr(module, name, replacement)
        else:
            with_global_batch_norm(child)
    return module
