"""GPU kernels that go over what a convolution has made once where torch goes over it many times.

Numbers are laid out with channels last: a window's numbers of neighbouring channels are read together.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 16, 64
"""Windows, and channels of each, that a program takes at a time: 16 bytes for each of its 128 threads."""
PROGRAMS = 1024
"""As many as a large GPU runs at a time; each has a sum of its own."""


@triton.jit
def _first(window, coarse_x, width, size: tl.constexpr):
    """Return the number of the first point of a window, where windows and points of all cells are counted through."""
    return window // coarse_x * size * width + window % coarse_x * size


@triton.jit
def _pool(x, weight, pooled, chosen, sums, windows, coarse_x, width, channels: tl.constexpr, size: tl.constexpr,
          ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Find the largest number of each window, the smallest where weights are negative, and sums over all numbers."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    sign = tl.where(tl.load(weight + channel, channel < channels, other=1.0) < 0, -1.0, 1.0)[None, :]
    # The sums are of differences from a number of each channel, so that their squares do not hide the variance.
    origin = tl.load(x + channel, channel < channels, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(windows, ROWS), tl.num_programs(0)):
        window = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (window < windows)[:, None] & (channel < channels)[None, :]
        first = _first(window, coarse_x, width, size)[:, None] * channels + channel[None, :]
        best = tl.full((ROWS, CHANNELS), float("-inf"), tl.float32)
        which = tl.zeros((ROWS, CHANNELS), tl.int8)
        for i in tl.static_range(size * size):
            value = tl.load(x + first + (i // size * width + i % size) * channels, inside, other=0.0).to(tl.float32)
            better = value * sign > best
            best = tl.where(better, value * sign, best)
            which = tl.where(better, i, which).to(tl.int8)
            apart = tl.where(inside, value - origin, 0.0)
            total += apart
            squares += apart * apart
        place = window[:, None] * channels + channel[None, :]
        tl.store(pooled + place, best * sign, inside)
        tl.store(chosen + place, which, inside)
    place = 2 * tl.program_id(0) * channels + channel
    tl.store(sums + place, tl.sum(total, 0), channel < channels)
    tl.store(sums + place + channels, tl.sum(squares, 0), channel < channels)


@triton.jit
def _statistics(x, sums, means, inverses, running_mean, running_variance, programs, count, momentum, eps,
                channels: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Put the programs' sums together: mean, 1 / standard deviation, and their running averages."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for block in range(0, tl.cdiv(programs, ROWS)):
        program = block * ROWS + tl.arange(0, ROWS)
        inside = (program < programs)[:, None] & there[None, :]
        place = 2 * program[:, None] * channels + channel[None, :]
        total += tl.load(sums + place, inside, other=0.0)
        squares += tl.load(sums + place + channels, inside, other=0.0)
    apart = tl.sum(total, 0) / count
    variance = tl.sum(squares, 0) / count - apart * apart
    variance = tl.where(variance < 0, 0.0, variance)  # by rounding; what is not a number stays so
    mean = tl.load(x + channel, there, other=0.0).to(tl.float32) + apart
    tl.store(means + channel, mean, there)
    tl.store(inverses + channel, 1 / tl.sqrt(variance + eps), there)
    before = tl.load(running_mean + channel, there, other=0.0)
    tl.store(running_mean + channel, before + momentum * (mean - before), there)
    before = tl.load(running_variance + channel, there, other=0.0)
    tl.store(running_variance + channel, before + momentum * (variance * count / (count - 1) - before), there)


@triton.jit
def _gradient(x, of_pooled, chosen, weight, means, inverses, totals, against, of_x, windows, coarse_x, width, count,
              channels: tl.constexpr, size: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Add up what the pooled numbers, their variance and their mean hand back to each number of a window."""
    window = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    inside = (window < windows)[:, None] & there[None, :]
    inverse = tl.load(inverses + channel, there, other=0.0)
    of_chosen = tl.load(weight + channel, there, other=0.0) * inverse
    of_all = -of_chosen * tl.load(totals + channel, there, other=0.0) / count
    of_apart = -of_chosen * inverse * inverse * tl.load(against + channel, there, other=0.0) / count
    of_all -= of_apart * tl.load(means + channel, there, other=0.0)

    first = _first(window, coarse_x, width, size)[:, None] * channels + channel[None, :]
    place = window[:, None] * channels + channel[None, :]
    handed = tl.load(of_pooled + place, inside, other=0.0).to(tl.float32) * of_chosen[None, :]
    which = tl.load(chosen + place, inside, other=0)
    for i in tl.static_range(size * size):
        place = first + (i // size * width + i % size) * channels
        value = tl.load(x + place, inside, other=0.0).to(tl.float32)
        value = tl.where(which == i, handed, 0.0) + value * of_apart[None, :] + of_all[None, :]
        tl.store(of_x + place, value, inside)


def pool(x: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is left of each window, which of its numbers that is, and sums for `statistics`.

    Args:
        x: shape `(batch, channel, x, y)`, channels last; x and y multiples of `size`.
        weight: what each channel is to be multiplied by; of its sign alone anything depends.
        size: of a window.
    """
    cells, channels, height, width = x.shape
    shape = (cells, channels, height // size, width // size)
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    chosen = torch.empty_like(pooled, dtype=torch.int8)
    windows, groups = pooled.numel() // channels, triton.cdiv(channels, CHANNELS)
    programs = min(triton.cdiv(windows, ROWS), triton.cdiv(PROGRAMS, groups))
    sums = torch.empty(programs, 2, channels, device=x.device)
    _pool[(programs, groups)](x, weight, pooled, chosen, sums, windows, shape[3], width, channels, size, ROWS, CHANNELS)
    return pooled, chosen, sums


def statistics(x: Tensor, sums: Tensor, running_mean: Tensor, running_variance: Tensor, momentum: float,
               eps: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the mean of each channel and 1 / √(variance + eps), and move the running averages towards them.

    Args:
        x: as for `pool`.
        sums: as `pool` returns them.
        running_mean: of each channel, moved in place.
        running_variance: of each channel, moved in place; that of a sample, with one less in the denominator.
        momentum: by which part of the way they are moved.
        eps: what is added to the variance.
    """
    programs, _, channels = sums.shape
    mean, inverse = torch.empty(2, channels, device=x.device).unbind()
    _statistics[(triton.cdiv(channels, 16),)](
        x, sums, mean, inverse, running_mean, running_variance, programs, x.numel() // channels, momentum, eps,
        channels, 64, 16,
    )  # fmt: skip
    return mean, inverse


def gradient(x: Tensor, of_pooled: Tensor, chosen: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor,
             total: Tensor, against_deviation: Tensor, size: int) -> Tensor:  # fmt: skip
    """Return the gradient of x.

    Args:
        x: as for `pool`.
        of_pooled: the gradient of what was normalised after pooling, channels last.
        chosen: as `pool` returns it.
        weight: of each channel.
        mean: of each channel, as `statistics` returns it.
        inverse: 1 / √(variance + eps) of each channel, the same.
        total: sum of `of_pooled` over each channel.
        against_deviation: the same of its product with the deviation of what was pooled from the mean.
        size: of a window.
    """
    of_x = torch.empty_like(x)
    channels, width = x.shape[1], x.shape[3]
    windows = chosen.numel() // channels
    _gradient[(triton.cdiv(windows, ROWS), triton.cdiv(channels, CHANNELS))](
        x, of_pooled, chosen, weight, mean, inverse, total, against_deviation, of_x, windows, chosen.shape[3], width,
        x.numel() // channels, channels, size, ROWS, CHANNELS,
    )  # fmt: skip
    return of_x
