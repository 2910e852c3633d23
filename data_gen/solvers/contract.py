"""What every band solver takes and gives.

A solver is a function `solve_bands(epsilon, wavevectors, *, bands, polarization, basis, resolution) -> Bands`.
All solvers discretise the same sampled permittivity on the same grid, so that their answers can be compared to
many digits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64
from numpy.typing import ArrayLike

POLARIZATIONS = ("tm", "te")


class SolverError(RuntimeError):
    """A cell could not be solved; the rest of a batch can.

    Args:
        message: what went wrong.
        cell: number of the cell in the batch; None where the message is of none.

    Attributes:
        message, cell: as given; `numbered` changes the cell.
    """

    def __init__(self, message: str, cell: int | None = None):
        super().__init__(message)
        self.message, self.cell = message, cell

    def __str__(self) -> str:
        return self.message if self.cell is None else f"cell {self.cell}: {self.message}"


class ConvergenceError(SolverError):
    """A solver could not reach its tolerance; the message says by how much."""


@contextlib.contextmanager
def numbered(cells: Sequence[int]) -> Iterator[None]:
    """Let an error that solving some cells of a batch raises name the cell by its number in the batch.

    One that names no cell is taken to be about the first.

    Args:
        cells: numbers of those that are solved.
    """
    try:
        yield
    except SolverError as error:
        error.cell = int(cells[error.cell or 0])
        raise


class Bands(NamedTuple):
    """Bands of a batch of cells.

    Attributes:
        frequency: in 2πc/a, ascending along `band`.
        group_velocity: Cartesian, in c. Within a degenerate subspace it belongs to the eigenvectors of the velocity
            operator; it is 0 where the frequency is 0.
        error: the solver's own estimate of its largest relative error in frequency.
    """

    frequency: Float64[torch.Tensor, "sample k band"]
    group_velocity: Float64[torch.Tensor, "sample k band 2"]
    error: Float64[torch.Tensor, " sample"]


def mode_count(shape: tuple[int, int], polarization: str) -> int:
    """Return how many bands there are on a grid: as many as points; in TE one less where both sides are even.

    There the checkered wave, which is at the end of the mesh along both axes, has no gradient.
    """
    return shape[0] * shape[1] - (polarization == "te" and not shape[0] % 2 and not shape[1] % 2)


def as_tensor(epsilon: ArrayLike) -> torch.Tensor:
    """Return permittivity as a tensor, whatever holds it: numpy of any strides and byte order, torch, xarray, lists.

    Named dimensions say where x and y are.
    """
    if isinstance(epsilon, torch.Tensor):
        return epsilon
    if isinstance(epsilon, xr.DataArray) and {"x", "y"} <= set(epsilon.dims):
        epsilon = epsilon.transpose(..., "x", "y")
    array = np.asarray(epsilon)
    if array.dtype.kind not in "fiubc":
        raise ValueError(f"`epsilon` must hold numbers, got {array.dtype}.")
    return torch.as_tensor(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def check_own_lattice(epsilon: ArrayLike, basis: Float64[np.ndarray, "2 2"]) -> None:
    """Refuse cells that say of themselves, as those of `open_dataset` do, that they are of another lattice.

    Raises:
        ValueError: if they are.
    """
    own = epsilon.attrs.get("lattice") if isinstance(epsilon, xr.DataArray) else None
    if own is not None and not np.allclose(np.reshape(own, (2, 2)), basis, atol=1e-6):
        raise ValueError(
            f"`lattice` must be that of the cells, {np.reshape(own, (2, 2)).tolist()}, got {basis.tolist()}; give "
            '`lattice=epsilon.attrs["lattice"]`.'
        )


def is_whole(number: object) -> bool:
    """Return whether this is a whole number, of Python or of numpy."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def checked_cells(
    epsilon: torch.Tensor | np.ndarray, *, bands: int, polarization: str, resolution: int | None
) -> tuple[Float64[torch.Tensor, "sample x y"], int]:
    """Return the cells in float64, and how many fine samples lie along each pixel of the solver.

    Every solver calls this first, so that both refuse the same input with the same words.

    Args:
        epsilon: relative permittivity, shape `(sample, x, y)`, real, positive, finite.
        bands: number of bands, from 1 to the number of plane waves.
        polarization: "tm" or "te".
        resolution: pixels of the solver's grid along x, dividing the fine samples; those of `epsilon` if None.

    Returns:
        Cells, and a whole number.

    Raises:
        ValueError: if a rule above is broken; the message states the rule and the value received.
    """
    if polarization not in POLARIZATIONS:
        raise ValueError(f"`polarization` must be one of {', '.join(POLARIZATIONS)}, got {polarization!r}.")
    cells = as_tensor(epsilon)
    if cells.is_complex():
        raise ValueError("`epsilon` must be real, got complex numbers.")
    cells = cells.to(torch.float64)
    if cells.ndim != 3 or 0 in cells.shape:
        raise ValueError(f"`epsilon` must have shape (x, y) or (sample, x, y), got {tuple(cells.shape)}.")
    if not bool(torch.isfinite(cells).all()) or not bool((cells > 0).all()):
        worst = cells[~(torch.isfinite(cells) & (cells > 0))][0].item()
        raise ValueError(f"`epsilon` must be positive and finite everywhere, got {worst}.")
    _, x, y = cells.shape
    if resolution is not None and (
        not is_whole(resolution) or resolution < 1 or x % resolution or y % (x // resolution)
    ):
        raise ValueError(f"`resolution` must divide the fine grid {x} x {y} by a whole factor, got {resolution!r}.")
    factor = 1 if resolution is None else x // int(resolution)
    plane_waves = (x // factor) * (y // factor)
    if not (is_whole(bands) and 1 <= bands <= plane_waves):
        raise ValueError(
            f"`bands` must be a whole number from 1 to the number of plane waves, {plane_waves}, got {bands!r}."
        )
    return cells, factor
