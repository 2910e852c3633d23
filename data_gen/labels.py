"""From permittivity to labels: bands, density of states, and how far that is from the k → ∞ limit."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from data_gen.dos import SMOOTHING, TARGET_FREQUENCY, check_smoothing, integrate, scaled_frequencies
from data_gen.lattices import basis_vectors, wavevector_grid
from data_gen.solvers import solver_module
from data_gen.solvers.contract import POLARIZATIONS, Bands, SolverError, checked_cells
from data_gen.solvers.equivalence import equivalence

BANDS, MORE_BANDS = 10, 5
# Grids that a label climbs, each with its coarser grid, which is every third wavevector of it and costs nothing.
GRIDS = (51, 75, 105, 153)
# A grid's distance from the k → ∞ limit is at most this part of its distance from the coarser one.
PART_LEFT_OF_THIRD = 0.1
PART_LEFT_OF_HALF = 0.25
# Points of a label that the paper's metric runs over.
METRIC = slice(100, 400)


@dataclass(frozen=True)
class LabelSettings:
    """How a label is made; the arguments of `label` by the same names."""

    k_points: int | None = None
    accuracy: float = 5e-4
    bands: int | None = None
    smoothing: float | str = SMOOTHING
    solver: str = "rbme"
    polarization: str = "tm"

    def check(self) -> None:
        """Raise `ValueError` if a setting is out of its range."""
        solver_module(self.solver)
        check_smoothing(self.smoothing)
        if self.polarization not in POLARIZATIONS:
            raise ValueError(f"`polarization` must be one of {', '.join(POLARIZATIONS)}, got {self.polarization!r}.")
        if self.k_points is not None and self.k_points < 1:
            raise ValueError(f"`k_points` must be at least 1, got {self.k_points}.")
        if self.bands is not None and self.bands < 1:
            raise ValueError(f"`bands` must be at least 1, got {self.bands}.")
        if not 1e-5 <= self.accuracy <= 0.1:
            raise ValueError(f"`accuracy` must be from 1e-5 to 0.1, got {self.accuracy}.")


Solve = Callable[[torch.Tensor, int, int], Bands]


class AccuracyError(SolverError):
    """The finest grid of wavevectors leaves a label further from the k → ∞ limit than asked."""


def label(
    epsilon: np.ndarray | torch.Tensor | xr.DataArray,
    *,
    k_points: int | None = None,
    accuracy: float = 5e-4,
    bands: int | None = None,
    smoothing: float | str = SMOOTHING,
    solver: str = "rbme",
    polarization: str = "tm",
    lattice: str | np.ndarray = "square",
    resolution: int | None = None,
) -> xr.Dataset:
    """Label one cell or a batch: the density of states D/n over the scaled frequency, with its estimated error.

    Args:
        epsilon: relative permittivity, shape `(x, y)` or `(sample, x, y)`, real and positive.
        k_points: n of the n × n grid of wavevectors; None gives each cell the grid that `accuracy` needs. 25 with
            bands=10 and smoothing="published" is what was published.
        accuracy: largest estimated distance from the k → ∞ limit, in the paper's metric (relative error over
            0.24 < ωn < 0.96); only where `k_points` is None.
        bands: number of bands; None takes as many as cover ωn = 0.96.
        smoothing: standard deviation of the Gaussian in scaled frequency, or "published".
        solver: "rbme" or "mpb".
        polarization: "tm" or "te".
        lattice: a name, or basis vectors `(2, 2)`, one a row, in units of a.
        resolution: pixels along x, where `epsilon` is finer by a whole factor.

    Returns:
        Dataset with `dos (…, frequency)`, `dos_error (…)`, the estimated distance from the k → ∞ limit in the paper's
        metric, and `covered_frequency (…)`, up to which the computed bands cover the density.

    Raises:
        ValueError: if an argument breaks a rule; the message states the rule and what was given.
        AccuracyError: if the finest grid, 151 × 151, is not fine enough for `accuracy`.
        ConvergenceError, MPBUnavailableError, MPBError: if the solver fails.
    """
    settings = LabelSettings(k_points, accuracy, bands, smoothing, solver, polarization)
    settings.check()
    cells = epsilon if isinstance(epsilon, torch.Tensor) else torch.as_tensor(np.asarray(epsilon))
    single = cells.ndim == 2
    arrays = label_cells(cells[None] if single else cells, basis_vectors(lattice), resolution, settings)
    lead = () if single else ("sample",)
    dos, error, covered = (
        arrays[name][0] if single else arrays[name] for name in ("dos", "dos_error", "covered_frequency")
    )
    return xr.Dataset(
        {
            "dos": ((*lead, "frequency"), dos, {"units": "a/2πc", "long_name": "density of states, divided by n"}),
            "dos_error": (lead, error, {"units": "1", "long_name": "estimated distance from the k → ∞ limit"}),
            "covered_frequency": (lead, covered, {"units": "2πc/a", "long_name": "highest frequency that bands cover"}),
        },
        coords={
            "frequency": ("frequency", scaled_frequencies(), {"units": "2πc/a", "long_name": "scaled frequency ωn"})
        },
        attrs={"solver": solver, "polarization": polarization, "smoothing": smoothing},
    )


def label_cells(
    cells: torch.Tensor,
    basis: np.ndarray,
    resolution: int | None,
    settings: LabelSettings,
    *,
    point_group: np.ndarray | None = None,
    keep_bands: bool = False,
) -> dict[str, np.ndarray]:
    """Label a batch of cells.

    Args:
        cells: relative permittivity, shape `(sample, x, y)`.
        basis: lattice vectors, shape `(2, 2)`, one a row.
        resolution: pixels along x, where `cells` are finer by a whole factor.
        settings: how.
        point_group: operations on fractional coordinates that every cell has, `(operation, 2, 2)`: only wavevectors
            that they do not make equivalent are solved.
        keep_bands: whether to return the bands on the whole grid too; needs `settings.k_points`.

    Returns:
        `dos (sample, frequency)`, `dos_error (sample,)` and `covered_frequency (sample,)`, and where asked for
        `band_frequency (sample, k, band)` and `group_velocity (sample, k, band, 2)`; float64.
    """
    cells, _ = checked_cells(
        cells, bands=settings.bands or BANDS, polarization=settings.polarization, resolution=resolution
    )
    solve = functools.partial(
        _solve_half_grid, basis=basis, resolution=resolution, settings=settings, point_group=point_group
    )
    if settings.k_points is None:
        answer = _climb(cells, basis, settings, solve)
    else:
        n = settings.k_points
        answer = _on_grid(cells, n, basis, settings, solve)
        coarse = _on_grid(cells, n // 2 | 1, basis, settings, solve)
        answer["dos_error"] = PART_LEFT_OF_HALF * distance(answer["dos"], coarse["dos"])
        if keep_bands:
            answer |= _full_grid(answer.pop("half"), n)
    answer.pop("half", None)
    return {name: value.cpu().numpy() for name, value in answer.items()}


def _climb(cells: torch.Tensor, basis: np.ndarray, settings: LabelSettings, solve: Solve) -> dict:
    """Label each cell on the first of `GRIDS` whose estimated error is within `accuracy`."""
    answer: dict[str, torch.Tensor] = {}
    rest = torch.arange(len(cells))
    for n in GRIDS:
        step = _on_grid(cells[rest], n, basis, settings, solve)
        coarse = density(_every_third(step.pop("half"), n), n // 3, cells[rest], basis, settings)[0]
        step["dos_error"] = PART_LEFT_OF_THIRD * distance(step["dos"], coarse)
        for name, value in step.items():
            answer.setdefault(name, value.new_empty(len(cells), *value.shape[1:]))[rest] = value
        rest = rest[step["dos_error"] > settings.accuracy]
        if not len(rest):
            return answer
    raise AccuracyError(
        f"cell {rest[0].item()}: the {n} × {n} grid leaves the label {answer['dos_error'][rest[0]]:.1e} from the "
        f"k → ∞ limit, over {settings.accuracy:.0e}"
    )


def _on_grid(cells: torch.Tensor, n: int, basis: np.ndarray, settings: LabelSettings, solve: Solve) -> dict:
    """Return `dos`, `covered_frequency` and the bands of `half` the n × n grid, with as many bands as are needed."""
    count = settings.bands or BANDS
    while True:
        half = solve(cells, n, count)
        dos, covered = density(half, n, cells, basis, settings)
        starved = bool((covered < TARGET_FREQUENCY).any())
        if not starved or settings.bands is not None:
            break
        count += MORE_BANDS
    if starved:
        warnings.warn(
            f"{count} bands cover the density only up to a scaled frequency of {covered.min():.3f}, below "
            f"{TARGET_FREQUENCY}; give more `bands`",
            stacklevel=4,
        )
    return {"dos": dos, "covered_frequency": covered, "half": half}


def _solve_half_grid(
    cells: torch.Tensor,
    n: int,
    bands: int,
    *,
    basis: np.ndarray,
    resolution: int | None,
    settings: LabelSettings,
    point_group: np.ndarray | None,
) -> Bands:
    """Return the bands on the first half of the n × n grid, of which only what symmetry leaves is solved."""
    wavevectors = wavevector_grid(n)[: (n * n + 1) // 2]
    same = equivalence(wavevectors, basis, point_group)
    answer = solver_module(settings.solver).solve_bands(
        cells,
        wavevectors[same.solved],
        bands=bands,
        polarization=settings.polarization,
        basis=basis,
        resolution=resolution,
    )
    return same.expand(answer)


def density(
    half: Bands, n: int, cells: torch.Tensor, basis: np.ndarray, settings: LabelSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D/n at the scaled frequencies of a label, from the bands of half the n × n grid; see `integrate`."""
    return integrate(
        half.frequency,
        half.group_velocity,
        cells.mean(dim=(1, 2)),
        n=n,
        basis=basis,
        scaled_frequency=torch.as_tensor(scaled_frequencies(), device=half.frequency.device),
        smoothing=settings.smoothing,
    )


def _every_third(half: Bands, n: int) -> Bands:
    """Return the bands on the (n/3) × (n/3) grid: every third wavevector, from the second on, along each axis."""
    axis = torch.arange(1, n, 3)
    index = (axis[:, None] * n + axis).reshape(-1)
    index = index[index < half.frequency.shape[1]]
    return Bands(half.frequency[:, index], half.group_velocity[:, index], half.error)


def _full_grid(half: Bands, n: int) -> dict[str, torch.Tensor]:
    """Mirror the bands of half a grid onto the whole: ω(-k) = ω(k), v(-k) = -v(k)."""
    rest = slice(0, n * n // 2)
    return {
        "band_frequency": torch.cat([half.frequency, half.frequency[:, rest].flip(1)], dim=1),
        "group_velocity": torch.cat([half.group_velocity, -half.group_velocity[:, rest].flip(1)], dim=1),
    }


def distance(density: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return Σ|D - D_ref| / Σ|D_ref| over the metric's points, shape `(sample,)`."""
    difference = (density - reference)[:, METRIC].abs().sum(dim=1)
    return difference / reference[:, METRIC].abs().sum(dim=1)
