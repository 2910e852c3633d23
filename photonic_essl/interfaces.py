"""What the pixels of a cell tell of the interfaces between its materials: the mean of 1/ε, and which way they run.

Across an interface 1/ε has to be averaged, along it ε; a cell of pixels holds the mean of ε alone.
"""

import math

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

SMOOTHING = 0.03
"""Standard deviation, in a, of the Gaussian over ε and over its squared gradient; a pixel's edge where that is more."""

WIDENING = 0.25
"""Growth of the range of ε from the pixels next to one to those two away, at which there is no interface in between."""

FLOOR = 0.01
"""Share of the mean squared gradient of a cell below which no direction is preferred."""


def mean_inverse(epsilon: Float32[Tensor, "batch x y"]) -> Float32[Tensor, "batch x y"]:
    """Return the mean of 1/ε over each pixel, as far as the pixels around it tell.

    A pixel that two materials share has the mean of 1/ε that follows from its ε and theirs, which are the lowest and
    the highest around it. Where ε varies from pixel to pixel without an interface it is 1/ε: there the range of values
    grows with the distance, at an interface it does not. (What varies within four pixels or so is taken for one.)

    Args:
        epsilon: mean relative permittivity of each pixel, positive.
    """
    (lowest, highest), (lower, higher) = (_extremes(epsilon, reach) for reach in (1, 2))
    near = (highest - lowest).clamp(min=torch.finfo(epsilon.dtype).tiny)
    shared = (1 - ((higher - lower) / near - 1) / WIDENING).clamp(min=0)
    inverse = epsilon.reciprocal()
    return inverse + shared * ((lowest + highest - epsilon) / (lowest * highest) - inverse)


def along(epsilon: Float32[Tensor, "batch x y"], lattice: Tensor) -> Float32[Tensor, "batch 3 x y"]:
    """Return the projector onto the direction in which interfaces run, as a smooth field of all of the cell.

    It is the structure tensor of ε, turned by a quarter, and divided by its trace: half of the unit tensor where no
    direction is preferred, and of trace 1 everywhere.

    Args:
        epsilon: relative permittivity.
        lattice: lattice vectors, one a row, in units of a.

    Returns:
        The square root of the projector: its components xx, xy and yy.
    """
    grid = epsilon.shape[1:]
    numbers = [torch.fft.fftfreq(n, 1 / n, device=epsilon.device) for n in grid]
    waves = (torch.cartesian_prod(*numbers) @ torch.linalg.inv(lattice).T.to(epsilon)).unflatten(0, grid)
    edge = math.sqrt(abs(float(torch.linalg.det(lattice.double()))) / math.prod(grid))
    gaussian = torch.exp(-2 * (math.pi * max(SMOOTHING, edge)) ** 2 * waves.square().sum(-1))
    smooth = torch.fft.fft2(epsilon) * gaussian
    x, y = (torch.fft.ifft2(2j * math.pi * component * smooth).real for component in waves.unbind(-1))
    xx, xy, yy = torch.fft.ifft2(torch.fft.fft2(torch.stack([y * y, -x * y, x * x], 1)) * gaussian).real.unbind(1)
    floor = FLOOR * (xx + yy).mean((1, 2), keepdim=True) + torch.finfo(epsilon.dtype).tiny
    trace = xx + yy + floor
    xx, xy, yy = (xx + floor / 2) / trace, xy / trace, (yy + floor / 2) / trace
    root = (xx * yy - xy * xy).clamp(min=0).sqrt()
    return torch.stack([xx + root, xy, yy + root], 1) / (1 + 2 * root).sqrt()[:, None]


def _extremes(epsilon: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value at most so many pixels away."""
    around = functional.pad(epsilon[:, None], [reach] * 4, mode="circular")
    lowest, highest = (sign * functional.max_pool2d(sign * around, 2 * reach + 1, stride=1) for sign in (-1, 1))
    return lowest[:, 0], highest[:, 0]
