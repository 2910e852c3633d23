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
_EXTENSIONS = 6  # of the basis, at most
# Ever smaller patches: how many along each reciprocal vector, and how many states are kept above the bands wanted, in
# units of √bands. Last, no patches at all: every state of the basis, at every k.
_PATCHES = ((5, 2.5), (7, 3.0), (11, 4.0), (1, np.inf))
# Where the error of the basis is estimated: it is much the same at all wavevectors.
_CHECKED = np.array([(0.3, 0.3), (0.3, -0.3), (0.5, 0.5), (0.5, -0.5)])
_SAFETY = 2.0  # of that estimate
_NEGLIGIBLE = 0.02  # a frequency below which errors are taken relative to it
_BYTES_AT_ONCE = {"cpu": 2**20, "cuda": 2**28}  # of matrices to diagonalise: to stay in a cache; to fill a GPU


class _Plan(NamedTuple):
    """Wavevectors sorted into the patches of half a zone.

    Attributes:
        patch: which patches hold any, shape `(patch,)`.
        offsets: shape `(patch, slot, 2)`, Cartesian: of k or -k from the centre; empty slots hold 0.
        slot: for each wavevector, where to find it among the flattened `(patch, slot)`.
        sign: for each wavevector, -1 where -k is solved in its place.
    """

    patch: torch.Tensor
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
        epsilon: relative permittivity, shape `(sample, x, y)`. Where it requires gradients, `frequency` carries them,
            by Hellmann and Feynman (velocities do not).
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
    tm = polarization == "tm"
    medium = block_mean(cells, factor) if tm else effective_inverse_permittivity(cells, factor, basis)
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
    """Solve cells `start`, `start + 1`, … together: each with the smallest basis and the fewest patches that do."""
    shape = (len(medium), len(wavevectors), bands)
    answer = Bands(
        medium.new_zeros(shape), medium.new_zeros((*shape, 2)), torch.full_like(medium.flatten(1)[:, 0], torch.inf)
    )
    answer = Bands(*(part.detach() for part in answer))
    pending = torch.arange(len(medium), device=medium.device)
    reductions = []
    for turn in range(1 + _EXTENSIONS):
        operator = _operator(medium.detach()[pending], grid, polarization)
        if turn == 0:
            reduction = first_reduction(operator, polarization, bands)
        else:
            reduction = extend(operator, reduction, bands, turn - 1)
        error = _SAFETY * error_estimate(operator, reduction, _cartesian(_CHECKED, grid), bands).amax((1, 2))
        answer.error[pending] = error
        done = error <= tolerance / 2
        _solve_reduced(answer, pending[done], reduction.select(done), error[done], wavevectors, grid, tolerance)
        reductions.append((pending[done], reduction.select(done)))
        pending, reduction = pending[~done], reduction.select(~done)
        if not len(pending):
            break
    worst = int(answer.error.argmax())
    if answer.error[worst] > tolerance:
        raise ConvergenceError(
            f"cell {start + worst}: estimated relative error {answer.error[worst]:.1e}, over `tolerance` {tolerance}"
        )
    if medium.requires_grad:
        k = _cartesian(wavevectors, grid)
        frequency = _HellmannFeynman.apply(medium, answer.frequency, reductions, k, grid, polarization)
        answer = answer._replace(frequency=frequency)
    return answer


def _operator(medium: torch.Tensor, grid: Grid, polarization: str) -> BlochOperator:
    return (TransverseMagnetic if polarization == "tm" else TransverseElectric)(grid, medium)


def _solve_reduced(
    answer: Bands,
    cells: torch.Tensor,
    reduction: Reduction,
    basis_error: torch.Tensor,
    wavevectors: np.ndarray,
    grid: Grid,
    tolerance: float,
) -> None:
    """Fill in the answer for cells that have a basis, with the fewest patches that do for each."""
    bands = answer.frequency.shape[-1]
    for patches_per_axis, states in _PATCHES:
        if not len(cells):
            return
        kept = int(min(np.ceil(bands + states * np.sqrt(bands)), reduction.polynomial.shape[-1]))
        centres = _cartesian(_centres(patches_per_axis) / patches_per_axis, grid)
        models = patches.effective_hamiltonians(reduction.polynomial, centres, bands, kept)
        plan, reach = _sort_into_patches(wavevectors, patches_per_axis, grid)
        error = basis_error + reach**4 * _patch_error(models, patches_per_axis, grid, bands)
        answer.error[cells] = error
        done = error <= tolerance
        if bool(done.any()):
            eigenvalue, slope = _sweep(models[done], plan, bands)
            frequency = eigenvalue.clamp(min=0).sqrt()
            frequency[:, (wavevectors == np.round(wavevectors)).all(1), 0] = 0.0
            answer.frequency[cells[done]] = frequency
            velocity = slope / (2 * frequency[..., None])
            answer.group_velocity[cells[done]] = torch.where(frequency[..., None] > 0, velocity, 0.0)
        cells, reduction, basis_error = cells[~done], reduction.select(~done), basis_error[~done]


def _sweep(models: torch.Tensor, plan: _Plan, bands: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues `(sample, k, band)` and slopes `(sample, k, band, 2)` at the wavevectors of a plan."""
    slots = plan.offsets.shape[1]
    step = max(1, _BYTES_AT_ONCE[models.device.type] // (len(models) * models[0, 0, 0].nbytes))
    solutions = []
    together = max(1, step // slots)
    for model, offsets in zip(models[:, plan.patch].split(together, dim=1), plan.offsets.split(together)):
        parts = [patches.solve(model, some, bands) for some in offsets.split(step, dim=1)]
        solutions.append([torch.cat(part, dim=2) for part in zip(*parts)])
    eigenvalue, slope = (torch.cat(part, dim=1).flatten(1, 2)[:, plan.slot] for part in zip(*solutions))
    return eigenvalue, slope * plan.sign[:, None, None]


def _patch_error(models: torch.Tensor, patches_per_axis: int, grid: Grid, bands: int) -> torch.Tensor:
    """Estimate the largest relative error in frequency of the k·p models of each cell: it grows as q to the fifth.

    It is largest at the corners of patches, where up to four models meet: what they disagree by.
    """
    half = (patches_per_axis - 1) // 2
    corner = np.arange(-half - 1, half + 1) + 0.5
    corner = np.stack(np.meshgrid(corner, corner, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    corner = corner[corner[:, 0, 0] > 0]
    index = corner + np.array([(0.5, 0.5), (0.5, -0.5), (-0.5, 0.5), (-0.5, -0.5)])
    inside = (np.abs(index) <= half).all(-1)
    corner, index = np.broadcast_to(corner, index.shape)[inside], index[inside].astype(np.int64)
    plan = _plan(corner / patches_per_axis, index, patches_per_axis, grid)
    eigenvalue, _ = _sweep(models, plan, bands)
    highest = eigenvalue.new_zeros(len(models), *inside.shape, bands)
    lowest = torch.full_like(highest, torch.inf)
    inside = torch.as_tensor(inside, device=models.device)
    highest[:, inside], lowest[:, inside] = eigenvalue, eigenvalue
    highest, lowest = highest.amax(2), lowest.amin(2)
    return ((highest - lowest) / (2 * highest.clamp(min=_NEGLIGIBLE**2))).amax((1, 2))


def _centres(patches_per_axis: int) -> np.ndarray:
    """Return the centres of the patches of half a zone, in units of a patch, shape `(patch, 2)`; one of each k, -k."""
    half = (patches_per_axis - 1) // 2
    index = np.stack(np.meshgrid(*[np.arange(-half, half + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    return index[len(index) // 2 :]


def _sort_into_patches(wavevectors: np.ndarray, patches_per_axis: int, grid: Grid) -> tuple[_Plan, float]:
    """Fold wavevectors into the first zone and sort them into its patches, an odd number along each axis.

    Returns:
        The plan, and how far the wavevectors reach towards the edges of their patches: 1 is all the way.
    """
    folded = wavevectors - np.round(wavevectors)
    # Whole patches from the zone's centre; a k between two belongs to the inner one, so that mirrors agree on it.
    index = np.ceil(np.abs(folded) * patches_per_axis - 0.5 - 1e-9).astype(np.int64)
    index = np.sign(folded).astype(np.int64) * np.minimum(index, patches_per_axis // 2)
    reach = 2 * np.abs(folded * patches_per_axis - index).max()
    return _plan(folded, index, patches_per_axis, grid), reach


def _plan(wavevectors: np.ndarray, index: np.ndarray, patches_per_axis: int, grid: Grid) -> _Plan:
    """Make a plan for wavevectors, given the patch of each, in units of a patch; -k is solved for those of -k."""
    sign = np.where((index[:, 0] < 0) | ((index[:, 0] == 0) & (index[:, 1] < 0)), -1, 1)
    index, wavevectors = index * sign[:, None], wavevectors * sign[:, None]
    number = index[:, 0] * patches_per_axis + index[:, 1]  # as `_centres` has them
    present, patch, counts = np.unique(number, return_inverse=True, return_counts=True)
    order = np.argsort(patch, kind="stable")
    position = np.empty(len(patch), dtype=np.int64)
    position[order] = np.arange(len(patch)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = np.zeros((len(present), counts.max(), 2))
    offsets[patch, position] = wavevectors - index / patches_per_axis
    device = grid.reciprocal.device
    return _Plan(
        torch.as_tensor(present, device=device),
        _cartesian(offsets, grid),
        torch.as_tensor(patch * counts.max() + position, device=device),
        torch.as_tensor(sign, dtype=torch.float64, device=device),
    )


def _cartesian(wavevectors: np.ndarray, grid: Grid) -> torch.Tensor:
    return torch.as_tensor(wavevectors, device=grid.reciprocal.device) @ grid.reciprocal


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
