"""The fast solver: reduced Bloch mode expansion (Hussein, Proc. R. Soc. A 465 (2009) 2825), reduced once more.

A cell's modes at four wavevectors give a real basis of some seventy fields (`reduction.py`); in it, patches of the
Brillouin zone get k·p models of some sixteen states (`patches.py`); each k is then one small Hermitian eigenproblem.
The discretisation is MPB's: the same frequencies to many digits, given the same permittivity. Where the estimated error
exceeds the tolerance, the cell is solved again with a larger basis and smaller patches.
"""

from typing import Any

import numpy as np
import torch

from data_gen.lattices import basis_vectors, half_grid
from data_gen.solvers import patches
from data_gen.solvers.bloch import BlochOperator, Grid, TransverseElectric, TransverseMagnetic
from data_gen.solvers.contract import Bands, ConvergenceError, checked_cells, numbered
from data_gen.solvers.reduction import Reduction, error_estimate, extend, first_reduction, ritz_modes
from data_gen.solvers.smoothing import block_mean, effective_inverse_permittivity
from data_gen.solvers.zone import Zone

Solved = tuple[torch.Tensor, Reduction]  # which cells, and the basis they were solved in

TOLERANCE = 2e-5  # relative, in frequency
_EXTENSIONS = 10  # of the basis, at most
# Ever smaller patches: how many along each reciprocal vector, and how many states are kept above the bands wanted, in
# units of √bands. Last, no patches at all: every state of the basis, at every k.
_PATCHES = ((5, 2.5), (5, 4.0), (9, 4.0), (1, np.inf))
# Where the error of the basis is estimated, far from where modes are sampled: a set that the symmetries of the square
# leave as it is, at which the estimate is a quarter of the largest, or more, in nearly all cells.
_CHECKED = np.array([(0.36, 0.24), (0.24, 0.36), (0.36, -0.24), (0.24, -0.36), (0.48, 0.48), (0.48, -0.48)])
# Where modes are added should the first basis not do, in turns, in units of the reciprocal vectors: halfway between the
# symmetric points, then between those. Sets that the symmetries of the square leave as they are.
_BETWEEN = (
    ((0.25, 0.25), (0.25, -0.25), (0.25, 0.0), (0.0, 0.25), (0.5, 0.25), (0.5, -0.25), (0.25, 0.5), (-0.25, 0.5)),
    tuple((x / 8, y / 8) for x, y in ((1, 3), (3, 1), (1, -3), (3, -1), (3, 3), (3, -3), (1, 1), (1, -1))),
)
# In an elongated cell all modes sampled may be of the kind that varies along it, so that others are missed anywhere in
# the zone: the estimate is taken all over it, and modes are added where it is worst.
_ALL_OVER, _WORST = half_grid(15)[:-1], 8  # without k = 0, whose lowest mode is there in any medium
_SAFETY = 3.0  # of that estimate
_BASIS_SHARE = 0.7  # of the tolerance, at most
_ROUNDING = 1e-11  # no frequency is better than that


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
        ValueError: if the input breaks a rule of `checked_cells`, `tolerance` is not positive, or there are fewer modes
            than `bands`: in TE, a mesh that is even along both axes has one less than points.
        ConvergenceError: if the largest basis does not reach the tolerance.
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}.")
    basis = basis_vectors() if basis is None else np.asarray(basis, dtype=np.float64)
    cells, factor = checked_cells(epsilon, bands=bands, polarization=polarization, resolution=resolution)
    cells = cells if device is None else cells.to(device)
    tm = polarization == "tm"
    medium = block_mean(cells, factor) if tm else effective_inverse_permittivity(cells, factor, basis)
    grid = Grid((medium.shape[1], medium.shape[2]), basis, medium.device)
    if bands > (most := _operator(medium[:1].detach(), grid, polarization).dimension):
        raise ValueError(f"`bands` must be at most {most} in {polarization.upper()} on this mesh, got {bands}.")
    zone = Zone(np.asarray(wavevectors, dtype=np.float64), grid)

    step = _cells_at_once(grid, bands, medium.device)
    parts = []
    for start in range(0, len(medium), step):
        with numbered(range(start, len(medium))):
            try:
                parts.append(_solve_some(medium[start : start + step], zone, bands, polarization, tolerance))
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise ConvergenceError("at so high a contrast, modes are numerically dependent") from error
    return Bands(*(torch.cat(column) for column in zip(*parts)))


def _cells_at_once(grid: Grid, bands: int, device: torch.device) -> int:
    """Return how many cells to solve together: one on a CPU, whose caches one cell fills; 2 GiB of them on a GPU."""
    if device.type == "cpu":
        return 1
    return max(1, int(2**31 / (grid.points * bands * 16 * 150)))


def _solve_some(medium: torch.Tensor, zone: Zone, bands: int, polarization: str, tolerance: float) -> Bands:
    """Solve cells together: each with the smallest basis and the fewest patches that do."""
    shape = (len(medium), len(zone.wavevectors), bands)
    empty = medium.detach().new_empty
    answer = Bands(empty(shape), empty((*shape, 2)), empty(shape[:1]))
    pending = torch.arange(len(medium), device=medium.device)
    reductions = []
    checked = zone.cartesian(_ALL_OVER if zone.grid.elongated else _CHECKED)
    added = checked  # where modes are added; from the second turn on
    for turn in range(1 + _EXTENSIONS):
        operator = _operator(medium.detach()[pending], zone.grid, polarization)
        if turn == 0:
            reduction = first_reduction(operator, polarization, bands)
        else:
            reduction = extend(operator, reduction, bands, added)
        estimate = error_estimate(operator, reduction, checked, bands).amax(2)
        error = _SAFETY * estimate.amax(1) + _ROUNDING
        answer.error[pending] = error
        done = error <= _BASIS_SHARE * tolerance
        _solve_reduced(answer, pending[done], reduction.select(done), error[done], zone, tolerance)
        if bool(done.any()):
            reductions.append((pending[done], reduction.select(done)))
        pending, reduction = pending[~done], reduction.select(~done)
        if not len(pending):
            break
        if zone.grid.elongated:
            added = checked[estimate[~done].amax(0).topk(_WORST).indices]
        else:
            added = zone.cartesian(np.array(_BETWEEN[turn % len(_BETWEEN)]))
    if len(pending):
        worst = int(pending[answer.error[pending].argmax()])
        raise ConvergenceError(
            f"estimated relative error {answer.error[worst]:.1e} of the largest basis, over {_BASIS_SHARE} of "
            f"`tolerance` {tolerance}",
            worst,
        )
    worst = int(answer.error.argmax())
    if not answer.error[worst] <= tolerance:
        raise ConvergenceError(
            f"estimated relative error {answer.error[worst]:.1e}, over `tolerance` {tolerance}", worst
        )
    if medium.requires_grad:
        frequency = _HellmannFeynman.apply(medium, answer.frequency, reductions, zone, polarization)
        answer = answer._replace(frequency=frequency)
    return answer


def _operator(medium: torch.Tensor, grid: Grid, polarization: str) -> BlochOperator:
    return (TransverseMagnetic if polarization == "tm" else TransverseElectric)(grid, medium)


def _solve_reduced(
    answer: Bands, cells: torch.Tensor, reduction: Reduction, basis_error: torch.Tensor, zone: Zone, tolerance: float
) -> None:
    """Fill in the answer for cells that have a basis, with the fewest patches that do for each."""
    bands = answer.frequency.shape[-1]
    for count, states in _PATCHES:
        if not len(cells):
            return
        kept = int(min(np.ceil(bands + states * np.sqrt(bands)), reduction.polynomial.shape[-1]))
        models = patches.effective_hamiltonians(reduction.polynomial, zone.centres(count), bands, kept)
        plan = zone.plan(count)
        disagreement = patches.disagreement(models, reduction.polynomial, zone.corners(count), bands)
        error = basis_error + plan.reach**4 * disagreement
        answer.error[cells] = error
        done = error <= tolerance
        if bool(done.any()):
            eigenvalue, slope = patches.solve(models[done], plan, bands)
            frequency = eigenvalue.clamp(min=0).sqrt()
            frequency[:, (zone.wavevectors == np.round(zone.wavevectors)).all(1), 0] = 0.0
            velocity = slope / (2 * frequency[..., None])
            answer.frequency[cells[done]] = frequency
            answer.group_velocity[cells[done]] = torch.where(frequency[..., None] > 0, velocity, 0.0)
        cells, reduction, basis_error = cells[~done], reduction.select(~done), basis_error[~done]


class _HellmannFeynman(torch.autograd.Function):
    """Frequencies whose gradient in the medium comes from the modes, without differentiating the solver."""

    @staticmethod
    def forward(
        ctx: Any, medium: torch.Tensor, frequency: torch.Tensor, reductions: list[Solved], zone: Zone, polarization: str
    ) -> torch.Tensor:
        ctx.save_for_backward(medium, frequency)
        ctx.rest = reductions, zone, polarization
        return frequency.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        medium, frequency = ctx.saved_tensors
        reductions, zone, polarization = ctx.rest
        k = zone.cartesian(zone.wavevectors)
        total = torch.zeros_like(medium)
        # d(ω) = d(ω²) / 2ω; the lowest band at k = 0 has frequency 0 in any medium.
        weight = torch.where(frequency > 0, gradient / (2 * frequency), 0.0)
        for index, reduction in reductions:
            operator = _operator(medium[index], zone.grid, polarization)
            for i in range(len(k)):
                eigenvalue, fields = ritz_modes(reduction, k[i : i + 1], gradient.shape[-1])
                total[index] += operator.sensitivity(fields, k[i : i + 1], eigenvalue, weight[index, i : i + 1])
        return total, None, None, None, None
