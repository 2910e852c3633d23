"""Steps of training that a GPU repeats on its own: it would wait for a CPU that has to launch kernel after kernel."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Call(nn.Module):
    """A function of tensors, with the module whose parameters it has gradients for."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def captured(module: nn.Module, function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Return what does the same as a function, and its gradient, in one launch each.

    What it returns is written over by the next call. Buffers of the module, which trying the function moves, are put
    back.

    Args:
        module: on a GPU, training; its parameters must stay where they are in memory.
        function: of tensors, and of the module's parameters, to tensors; it may not ask the GPU for numbers.
        tensors: of the shapes, types and device that it is always to be called with.
    """
    call = _Call(module, function)
    gc.collect()  # graphs of an earlier run must not be freed while kernels are captured
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    dtype, mixed = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    # Weights are rounded anew in each call: those that autocast keeps would be of this one.
    try:
        with torch.autocast("cuda", dtype, mixed, cache_enabled=False):
            samples = tuple(tensor.clone() for tensor in tensors)
            torch.cuda.make_graphed_callables(call, samples, allow_unused_input=True)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
    return call.__call__  # not the module itself, which whoever keeps it would take for a part of its own
