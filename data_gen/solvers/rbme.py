"""The fast solver: reduced Bloch mode expansion (Hussein, Proc. R. Soc. A 465 (2009) 2825), reduced once more.

A cell's modes at four wavevectors give a real basis of some seventy fields (`reduction.py`); in it, patches of the
Brillouin zone get k·p models of some sixteen states (`patches.py`); each k is then one small Hermitian eigenproblem.
The discretisation is MPB's: the same frequencies to many digits, given the same permittivity. Where the estimated error
exceeds the tolerance, the cell is solved again with a larger basis and smaller patches.
"""

from typing import NamedTuple

import numpy as np
import torch

from data_gen.lattices import basis_vectors
from data_gen.solvers import patches
from data_gen.solvers.bloch import BlochOperator, Grid, TransverseElectric, TransverseMagnetic
from data_gen.solvers.contract import Bands, ConvergenceError, checked_cells
from data_gen.solvers.reduction import Reduction, error_estimate, extend, first_reduction, ritz_modes
from data_gen.solvers.smoothing import block_mean, effective_inverse_permittivity

TOLERANCE = 2e-5  # relative, in frequency
# Where a cell's error is estimated, in units of the reciprocal vectors: corners of patches, where k·p models are worst;
# the error of the basis is much the same everywhere. A set that maps onto itself under the symmetries of the square.
_CHECKED = np.array([(0.3, 0.3), (0.3, -0.3), (0.5, 0.5), (0.5, -0.5)])
_SAFETY = 2.0  # of the estimate, which sees a few wavevectors only
_NEGLIGIBLE = 0.02  # a frequency below which errors are taken relative to it
_MATRICES_AT_ONCE = {"cpu": 150, "cuda": 100_000}  # small enough to stay in a cache; large enough to fill a GPU


class Effort(NamedTuple):
    """How hard to try: extensions of the basis, patches along each reciprocal vector, states kept above `bands`."""

    extensions: int
    patches: int
    extra_states: int


EFFORTS = (Effort(0, 5, 6), Effort(1, 7, 8), Effort(2, 9, 12), Effort(3, 15, 16))


class _Plan(NamedTuple):
    """Wavevectors sorted into patches.

    Attributes:
        centres: shape `(patch, 2)`, Cartesian, in 2π/a.
        offsets: shape `(patch, slot, 2)`, of k or -k from the centre; patches with fewer k than slots repeat it.
        slot: for each wavevector, where to find it among the flattened `(patch, slot)`.
        sign: for each wavevector, -1 where -k is solved in its place.
    """

    centres: torch.Tensor
    offsets: torch.Tensor
    slot: torch.Tensor
    sign: torch.Tensor


def solve_bands(
    epsilon: torch.Tensor | np.ndarray,
    wavevectors: np.ndarray,
    *,
    bands: int = 10,
    polarization: str = "tm",
    basis: np.ndarray | None = None,
    resolution: int | None = None,
    tolerance: float = TOLERANCE,
    device: str | torch.device | None = None,
) -> Bands:
    """Solve the bands of a batch of cells, on exactly the permittivity (TM) or smoothed tensor (TE) that MPB gets.

    Args:
        epsilon: relative permittivity, shape `(sample, x, y)`. Where it requires gradients, `frequency` carries them, by
            Hellmann and Feynman (velocities do not).
        wavevectors: shape `(k, 2)`, in units of the reciprocal vectors.
        bands: number of bands.
        polarization: "tm" (E along z) or "te" (H along z).
        basis: lattice vectors, shape `(2, 2)`, one a row, in units of a; the square lattice if None.
        resolution: pixels of the solver's grid along x; those of `epsilon` if None.
        tolerance: largest estimated relative error in frequency.
        device: where to compute and return; where `epsilon` is if None.

    Returns:
        `Bands`, with the estimated error of each cell.

    Raises:
        ValueError: if the input breaks a rule of `checked_cells`, or `tolerance` is not positive.
        ConvergenceError: if the largest basis does not reach the tolerance.
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}.")
    basis = basis_vectors() if basis is None else np.asarray(basis, dtype=np.float64)
    cells, factor = checked_cells(epsilon, bands=bands, polarization=polarization, resolution=resolution)
    cells = cells if device is None else cells.to(device)
    if polarization == "tm":
        medium = block_mean(cells, factor)
    else:
        medium = effective_inverse_permittivity(cells, factor, basis)
    grid = Grid(tuple(medium.shape[1:3]), basis, medium.device)
    wavevectors = np.asarray(wavevectors, dtype=np.float64)

    step = _cells_at_once(grid, bands, medium.device)
    parts = [
        _solve_some(medium[start : start + step], start, wavevectors, grid, bands, polarization, tolerance)
        for start in range(0, len(medium), step)
    ]
    return Bands(*(torch.cat(column) for column in zip(*parts)))


def _cells_at_once(grid: Grid, bands: int, device: torch.device) -> int:
    """Return how many cells to solve together: one on a CPU, whose caches one cell fills; 2 GiB of them on a GPU."""
    if device.type == "cpu":
        return 1
    return max(1, int(2**31 / (grid.points * bands * 16 * 150)))


def _solve_some(
    medium: torch.Tensor,
    start: int,
    wavevectors: np.ndarray,
    grid: Grid,
    bands: int,
    polarization: str,
    tolerance: float,
) -> Bands:
    """Solve cells `start`, `start + 1`, … together, and those that need it again with more effort."""
    shape = (len(medium), len(wavevectors), bands)
    frequency = grid.reciprocal.new_zeros(shape)
    velocity = grid.reciprocal.new_zeros((*shape, 2))
    error = torch.full(shape[:1], torch.inf, dtype=torch.float64, device=medium.device)
    pending = torch.arange(len(medium), device=medium.device)
    pieces = []
    for effort in EFFORTS:
        operator = _operator(medium.detach()[pending], grid, polarization)
        reduction = first_reduction(operator, polarization, bands)
        for _ in range(effort.extensions):
            reduction = extend(operator, reduction, bands)
        solved = _solve_reduced(operator, reduction, wavevectors, bands, effort)
        frequency[pending], velocity[pending], error[pending] = solved
        done = solved.error <= tolerance
        if medium.requires_grad:
            pieces.append((pending[done], Reduction(*(part[done] for part in reduction))))
        pending = pending[~done]
        if not len(pending):
            break
    else:
        worst = int(pending[error[pending].argmax()])
        raise ConvergenceError(
            f"cell {start + worst}: estimated relative error {error[worst].item():.1e}, over `tolerance` {tolerance}"
        )
    if medium.requires_grad:
        k = torch.as_tensor(wavevectors, device=medium.device) @ grid.reciprocal
        frequency = _HellmannFeynman.apply(medium, frequency, pieces, k, grid, polarization)
    return Bands(frequency, velocity, error)


def _operator(medium: torch.Tensor, grid: Grid, polarization: str) -> BlochOperator:
    return (TransverseMagnetic if polarization == "tm" else TransverseElectric)(grid, medium)


def _solve_reduced(
    operator: BlochOperator, reduction: Reduction, wavevectors: np.ndarray, bands: int, effort: Effort
) -> Bands:
    """Solve all wavevectors, and those of the error estimate, in the reduced basis."""
    grid = operator.grid
    plan = _sort_into_patches(np.concatenate([_CHECKED, wavevectors]), effort.patches, grid)
    kept = min(bands + effort.extra_states, reduction.polynomial.shape[-1])
    step = max(1, _MATRICES_AT_ONCE[grid.reciprocal.device.type] // plan.offsets.shape[1])
    solutions = []
    for first in range(0, len(plan.centres), step):
        some = slice(first, first + step)
        effective = patches.effective_hamiltonian(reduction.polynomial, plan.centres[some], bands, kept)
        solutions.append(patches.solve(effective, plan.offsets[some], bands))
    eigenvalue, slope = (torch.cat(part, dim=1).flatten(1, 2)[:, plan.slot] for part in zip(*solutions))

    checked = len(_CHECKED)
    k = torch.as_tensor(_CHECKED, device=grid.reciprocal.device) @ grid.reciprocal
    error = error_estimate(operator, reduction, k, bands)
    exact, _ = ritz_modes(reduction, k, bands)
    scale = 2 * exact.clamp(min=_NEGLIGIBLE**2)
    error = (_SAFETY * error + (eigenvalue[:, :checked] - exact).abs() / scale).amax((1, 2))

    eigenvalue, slope = eigenvalue[:, checked:].clamp(min=0), slope[:, checked:] * plan.sign[checked:, None, None]
    eigenvalue[:, (wavevectors == np.round(wavevectors)).all(1), 0] = 0.0
    frequency = eigenvalue.sqrt()
    velocity = torch.where(frequency[..., None] > 0, slope / (2 * frequency[..., None]), 0.0)
    return Bands(frequency, velocity, error)


def _sort_into_patches(wavevectors: np.ndarray, patches_per_axis: int, grid: Grid) -> _Plan:
    """Fold wavevectors into the first zone and half of it, and sort them into its patches."""
    folded = wavevectors - np.round(wavevectors)
    index = np.clip(np.floor((folded + 0.5) * patches_per_axis), 0, patches_per_axis - 1)
    index = 2 * index.astype(np.int64) - (patches_per_axis - 1)  # in halves of a patch, from the zone's centre
    sign = np.where((index[:, 0] < 0) | ((index[:, 0] == 0) & (index[:, 1] < 0)), -1, 1)
    centres, patch = np.unique(index * sign[:, None], axis=0, return_inverse=True)
    patch = patch.reshape(-1)
    order = np.argsort(patch, kind="stable")
    counts = np.bincount(patch)
    position = np.empty(len(patch), dtype=np.int64)
    position[order] = np.arange(len(patch)) - np.repeat(np.cumsum(counts) - counts, counts)
    centres = centres / (2 * patches_per_axis)
    offsets = np.zeros((len(centres), counts.max(), 2))
    offsets[patch, position] = folded * sign[:, None] - centres[patch]
    device = grid.reciprocal.device
    return _Plan(
        torch.as_tensor(centres, device=device) @ grid.reciprocal,
        torch.as_tensor(offsets, device=device) @ grid.reciprocal,
        torch.as_tensor(patch * counts.max() + position, device=device),
        torch.as_tensor(sign, dtype=torch.float64, device=device),
    )


class _HellmannFeynman(torch.autograd.Function):
    """Frequencies whose gradient in the medium comes from the modes, without differentiating the solver."""

    @staticmethod
    def forward(ctx, medium, frequency, pieces, k, grid, polarization):
        ctx.save_for_backward(medium, frequency)
        ctx.rest = pieces, k, grid, polarization
        return frequency.clone()

    @staticmethod
    def backward(ctx, gradient):
        medium, frequency = ctx.saved_tensors
        pieces, k, grid, polarization = ctx.rest
        total = torch.zeros_like(medium)
        # d(ω) = d(ω²) / 2ω; the lowest band at k = 0 has frequency 0 in any medium.
        weight = torch.where(frequency > 0, gradient / (2 * frequency), 0.0)
        for index, reduction in pieces:
            operator = _operator(medium[index], grid, polarization)
            for i in range(len(k)):
                eigenvalue, fields = ritz_modes(reduction, k[i : i + 1], gradient.shape[-1])
                total[index] += operator.sensitivity(fields, k[i : i + 1], eigenvalue, weight[index, i : i + 1])
        return total, None, None, None, None, None
