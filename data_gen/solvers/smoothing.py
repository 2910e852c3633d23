"""Subpixel smoothing: from a fine sampling of the permittivity to the grid of a solver."""

import numpy as np
import torch
from jaxtyping import Float64

# A first moment below this fraction of (mean permittivity x pixel diameter) is rounding, not a direction.
_DIRECTIONLESS = 1e-9


def block_mean(fine: torch.Tensor | np.ndarray, factor: int) -> Float64[torch.Tensor, "sample x y"]:
    """Average the permittivity over each pixel of the solver's grid (what TM needs: E_z is continuous).

    Args:
        fine: permittivity with shape `(sample, X, Y)`.
        factor: fine samples along each edge of a pixel; divides `X` and `Y`.

    Returns:
        Mean permittivity with shape `(sample, X // factor, Y // factor)`, float64.

    Raises:
        ValueError: if `fine` is not `(sample, X, Y)` or `factor` does not divide `X` and `Y`.
    """
    return _blocks(fine, factor).mean(dim=(2, 4))


def effective_inverse_permittivity(
    fine: torch.Tensor | np.ndarray, factor: int, basis: Float64[np.ndarray, "2 2"]
) -> Float64[torch.Tensor, "sample x y 2 2"]:
    """Average the inverse permittivity over each pixel as a tensor that knows the interface (what TE needs).

    Along the interface normal the permittivity is averaged harmonically, across it arithmetically, which
    makes the error second order in the pixel: Farjadpour et al., Opt. Lett. 31 (2006) 2972; Kottke,
    Farjadpour and Johnson, Phys. Rev. E 77 (2008) 036611. The normal is the direction of the first moment of
    the permittivity in the disc around the pixel: in the pixel itself, corners would pull it. Where that moment
    vanishes (inversion symmetry) no direction is preferred, and the tensor is isotropic. Differentiable in `fine`.

    Args:
        fine: permittivity with shape `(sample, X, Y)`.
        factor: fine samples along each edge of a pixel; divides `X` and `Y`.
        basis: lattice vectors with shape `(2, 2)`, one a row.

    Returns:
        Symmetric Cartesian tensors with shape `(sample, X // factor, Y // factor, 2, 2)`, float64. With
        `factor` 1 they are the identity divided by the permittivity.

    Raises:
        ValueError: if `fine` is not `(sample, X, Y)` or `factor` does not divide `X` and `Y`.
    """
    blocks = _blocks(fine, factor)
    identity = torch.eye(2, dtype=blocks.dtype, device=blocks.device)
    if factor == 1:
        return identity / blocks[:, :, 0, :, 0, None, None]
    mean, mean_inverse = blocks.mean(dim=(2, 4)), blocks.reciprocal().mean(dim=(2, 4))

    edges = np.asarray(basis) / np.array([[blocks.shape[1]], [blocks.shape[3]]])
    moment = _moment(blocks.flatten(3).flatten(1, 2), factor, edges)
    length_squared = moment.square().sum(-1)
    directed = length_squared > (_DIRECTIONLESS * mean).square() * np.square(edges).sum()
    safe = torch.where(directed, length_squared, torch.ones_like(length_squared))
    projector = torch.where(
        directed[..., None, None],
        moment[..., :, None] * moment[..., None, :] / safe[..., None, None],
        identity / 2,
    )
    across = mean.reciprocal()
    return across[..., None, None] * identity + (mean_inverse - across)[..., None, None] * projector


def _moment(
    fine: Float64[torch.Tensor, "sample X Y"], factor: int, edges: Float64[np.ndarray, "2 2"]
) -> Float64[torch.Tensor, "sample x y 2"]:
    """Return the first moment of fine samples over the disc around each pixel.

    Args:
        fine: the samples.
        factor: of them along each edge of a pixel.
        edges: Cartesian edges of a pixel, one a row.
    """
    radius = max(np.linalg.norm(edges[0] + edges[1]), np.linalg.norm(edges[0] - edges[1])) / 2
    # How many neighbours the disc reaches into along each axis: one, unless pixels are long or skew.
    reach = radius * np.linalg.norm(np.linalg.inv(edges), axis=0) - 0.5
    neighbours = np.maximum(np.ceil(reach - 1e-9), 1).astype(int)
    offsets = [(np.arange((2 * n + 1) * factor) + 0.5) / factor - (n + 0.5) for n in neighbours]
    position = np.stack(np.meshgrid(*offsets, indexing="ij"), axis=-1) @ edges
    inside = np.linalg.norm(position, axis=-1) <= radius
    kernel = torch.as_tensor(np.moveaxis(position * inside[..., None], -1, 0), dtype=fine.dtype, device=fine.device)
    x, y = (
        torch.arange(-n * factor, points + n * factor, device=fine.device) % points
        for n, points in zip(neighbours.tolist(), fine.shape[1:])
    )
    padded = fine[:, x[:, None], y]
    return torch.nn.functional.conv2d(padded[:, None], kernel[:, None], stride=factor).movedim(1, -1)


def _blocks(fine: torch.Tensor | np.ndarray, factor: int) -> Float64[torch.Tensor, "sample x {factor} y {factor}"]:
    """Return the fine samples grouped by pixel."""
    fine = torch.as_tensor(fine, dtype=torch.float64)
    if fine.ndim != 3:
        raise ValueError(f"`fine` must have shape (sample, X, Y), got {tuple(fine.shape)}.")
    samples, x, y = fine.shape
    if factor < 1 or x % factor or y % factor:
        raise ValueError(f"`factor` must divide the fine grid {x} x {y} in both directions, got {factor}.")
    return fine.reshape(samples, x // factor, factor, y // factor, factor)
