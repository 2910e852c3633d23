"""From permittivity to labels: bands, density of states, and how far that is from the k → ∞ limit."""

import functools
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Float64, Int64
from tqdm import tqdm

from data_gen.dos import SMOOTHING, TARGET_FREQUENCY, check_smoothing, integrate, scaled_frequencies
from data_gen.lattices import basis_vectors, half_grid, reciprocal_vectors
from data_gen.solvers import solver_module
from data_gen.solvers.contract import (
    POLARIZATIONS,
    Bands,
    SolverError,
    as_tensor,
    check_own_lattice,
    checked_cells,
    is_whole,
    mode_count,
    numbered,
)
from data_gen.solvers.equivalence import equivalence

BANDS, MORE_BANDS = 10, 5
# Grids that a label climbs, each with its coarser grid, which is every third wavevector of it and costs nothing.
GRIDS = (63, 75, 105, 165)
# A grid's distance from the k → ∞ limit, as part of its distance from a coarser one: chosen so that labels keep within
# what they state. experiments/benchmarks/labels.py counts how many default labels do. As published, without the
# correction for bends, a label is of second order, and an eighth is left; more where the Gaussian is so narrow that it
# does not hide how a plane within a k-cell differs from the band: narrower than `NARROW` longest reciprocal vectors.
PART_LEFT_OF_THIRD = {"published": 0.14, "corrected": 0.055, "narrow": 0.2}
NARROW = 0.005
PART_LEFT_OF_HALF = {"published": 0.45, "corrected": 0.33, "narrow": 0.45}
FEW_POINTS = 12  # on a grid of so many along each axis, twice that part is left
# Cells that are labelled together: bands of no more are in memory at once, however many there are.
CELLS_AT_ONCE = 32
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
        if self.k_points is not None and not (is_whole(self.k_points) and self.k_points >= 2):
            raise ValueError(
                "`k_points` must be a whole number, at least 2, for a coarser grid tells the error, got "
                f"{self.k_points!r}."
            )
        if self.bands is not None and not (is_whole(self.bands) and self.bands >= 1):
            raise ValueError(f"`bands` must be a whole number, at least 1, got {self.bands!r}.")
        if not (isinstance(self.accuracy, numbers.Real) and 1e-5 <= self.accuracy <= 0.1):
            raise ValueError(f"`accuracy` must be a number from 1e-5 to 0.1, got {self.accuracy!r}.")


LabelOn = Callable[[torch.Tensor, int, int], dict[str, torch.Tensor]]
"""Labels cells on one grid of wavevectors, and on a coarser one."""

Attempt = Callable[[torch.Tensor, int, int, int], dict[str, torch.Tensor]]
"""The same with a number of bands, which may not be enough."""


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

    A progress bar shows on standard error, if it is a terminal, of what takes more than two seconds.

    Args:
        epsilon: relative permittivity, shape `(x, y)` or `(sample, x, y)`, real and positive.
        k_points: n of the n × n grid of wavevectors, 2 or more; None gives each cell the grid that `accuracy` needs.
            25 with bands=10 and smoothing="published" is what was published.
        accuracy: largest estimated distance from the k → ∞ limit, in the paper's metric (relative error over
            0.24 < ωn < 0.96); only where `k_points` is None.
        bands: number of bands; None takes as many as cover ωn = 0.96.
        smoothing: standard deviation of the Gaussian in scaled frequency, or "published".
        solver: "rbme" or "mpb".
        polarization: "tm" or "te".
        lattice: a name, or basis vectors `(2, 2)`, one a row, in units of a; see `solve`.
        resolution: pixels along x, where `epsilon` is finer by a whole factor; see `solve`.

    Returns:
        Dataset with `dos (…, frequency)` in a/2πc, states per unit cell; `dos_error (…)`, the estimated distance from
        the k → ∞ limit in the paper's metric; and `covered_frequency (…)` in 2πc/a, the scaled frequency up to which
        the computed bands cover the density.

    Raises:
        ValueError: if an argument breaks a rule; the message states the rule and what was given.
        AccuracyError: if the finest grid, 165 × 165, is not fine enough for `accuracy`.
        ConvergenceError, MPBUnavailableError, MPBError: if the solver fails.

    Warns:
        UserWarning: if `bands` do not cover every density of states up to ωn = 0.96.
    """
    settings = LabelSettings(k_points, accuracy, bands, smoothing, solver, polarization)
    settings.check()
    cells = as_tensor(epsilon)
    single = cells.ndim == 2
    basis = basis_vectors(lattice)
    check_own_lattice(epsilon, basis)
    arrays = _label_in_parts(cells[None] if single else cells, basis, resolution, settings)
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
        attrs={
            "lattice": basis.reshape(-1).tolist(),
            "solver": solver,
            "polarization": polarization,
            "smoothing": smoothing,
        },
    )


def _label_in_parts(
    cells: torch.Tensor, basis: Float64[np.ndarray, "2 2"], resolution: int | None, settings: LabelSettings
) -> dict[str, np.ndarray]:
    """Label any number of cells, `CELLS_AT_ONCE` together."""
    # All are looked at before hours go into the first.
    checked_cells(cells, bands=settings.bands or 1, polarization=settings.polarization, resolution=resolution)
    parts = []
    with tqdm(total=len(cells), desc="labels", unit="cell", delay=2, leave=False, disable=None) as progress:
        for start in range(0, len(cells), CELLS_AT_ONCE):
            part = cells[start : start + CELLS_AT_ONCE]
            with numbered(range(start, len(cells))):
                parts.append(label_cells(part, basis, resolution, settings))
            progress.update(len(part))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def label_cells(
    cells: torch.Tensor,
    basis: Float64[np.ndarray, "2 2"],
    resolution: int | None,
    settings: LabelSettings,
    *,
    point_group: Int64[np.ndarray, "operation 2 2"] | None = None,
    keep_bands: bool = False,
) -> dict[str, np.ndarray]:
    """Label a batch of cells.

    Args:
        cells: relative permittivity, shape `(sample, x, y)`.
        basis: lattice vectors, shape `(2, 2)`, one a row.
        resolution: pixels along x, where `cells` are finer by a whole factor.
        settings: how.
        point_group: operations on fractional coordinates that every cell has, pixel by pixel, `(operation, 2, 2)`:
            only wavevectors that they do not make equivalent are solved.
        keep_bands: whether to return the bands on the whole grid too; needs `settings.k_points`.

    Returns:
        `dos (sample, frequency)`, `dos_error (sample,)` and `covered_frequency (sample,)`, and where asked for
        `band_frequency (sample, k, band)` and `group_velocity (sample, k, band, 2)`; float64.
    """
    cells, factor = checked_cells(
        cells, bands=settings.bands or 1, polarization=settings.polarization, resolution=resolution
    )
    shape = (cells.shape[1] // factor, cells.shape[2] // factor)
    attempt = functools.partial(
        _attempt, basis=basis, resolution=resolution, settings=settings, point_group=point_group
    )
    label_on = functools.partial(
        _with_enough_bands, attempt, bands=settings.bands, modes=mode_count(shape, settings.polarization)
    )
    if settings.k_points is None:
        part_left = PART_LEFT_OF_THIRD[_kind(settings.smoothing, basis)]
        answer = _climb(label_on, cells, settings.accuracy, part_left)
    else:
        part_left = _part_left(settings.k_points, _kind(settings.smoothing, basis))
        answer = label_on(cells, settings.k_points, _about_half(settings.k_points))
    answer["dos_error"] = answer["distance"] * part_left
    names = ["dos", "dos_error", "covered_frequency"]
    if keep_bands:
        if settings.k_points is None:
            raise ValueError("`keep_bands` needs `k_points`: one grid for every cell.")
        names += ["band_frequency", "group_velocity"]
        answer |= _full_grid(answer, settings.k_points)
    if settings.bands is not None and bool((answer["covered_frequency"] < TARGET_FREQUENCY).any()):
        warnings.warn(
            f"{settings.bands} bands do not cover the density of states of every cell up to a scaled frequency of "
            f"{TARGET_FREQUENCY}; give more `bands`",
            stacklevel=4,
        )
    return {name: answer[name].detach().cpu().numpy() for name in names}


def _about_half(n: int) -> int:
    """Return the number of points of the coarser grid beside one that is asked for: odd, with a point at k = 0."""
    return n // 2 | 1


def _part_left(n: int, kind: str) -> float:
    """Return a grid's distance from the k → ∞ limit as part of its distance from the grid of about half its points.

    `PART_LEFT_OF_HALF` was found on 25 and 13 points, with a margin where corrected. Where the coarser grid is closer
    than that, as 3 is to 4, more is left, as of an error of second order. And the fewer points there are, the less the
    Gaussian hides what no order of convergence tells, on either grid: `FEW_POINTS` was found on the five lattices, and
    is looked at on other cells in experiments/benchmarks/stated_errors.py.
    """
    coarser, found_on = (n / _about_half(n)) ** 2 - 1, (25 / _about_half(25)) ** 2 - 1
    return PART_LEFT_OF_HALF[kind] * max(found_on / coarser, 1.0) * (1 + (FEW_POINTS / n) ** 2)


def _kind(smoothing: float | str, basis: Float64[np.ndarray, "2 2"]) -> str:
    """Return whether the bend of bands is corrected for, and hidden by the Gaussian; or not, as published."""
    if isinstance(smoothing, str):
        return smoothing
    return "narrow" if smoothing < NARROW * np.linalg.norm(reciprocal_vectors(basis), axis=1).max() else "corrected"


def _climb(label_on: LabelOn, cells: torch.Tensor, accuracy: float, part_left: float) -> dict[str, torch.Tensor]:
    """Label each cell on the first of `GRIDS` whose estimated error is within `accuracy`."""
    answer: dict[str, torch.Tensor] = {}
    rest = torch.arange(len(cells))
    for n in GRIDS:
        with numbered(rest.tolist()):
            step = label_on(cells[rest], n, n // 3)
        for name in ("dos", "distance", "covered_frequency"):
            answer.setdefault(name, step[name].new_empty(len(cells), *step[name].shape[1:]))[rest] = step[name]
        error = part_left * step["distance"]
        accurate = error.cpu() <= accuracy
        if bool(accurate.all()):
            return answer
        rest, error = rest[~accurate], error[~accurate]
    raise AccuracyError(
        f"the {n} × {n} grid leaves the label {error[0]:.1e} from the k → ∞ limit, over {accuracy:.0e}", int(rest[0])
    )


def _with_enough_bands(
    attempt: Attempt, cells: torch.Tensor, n: int, coarse: int, *, bands: int | None, modes: int
) -> dict[str, torch.Tensor]:
    """Label cells on a grid; where the number of bands is ours to choose, cells that need more of them get more."""
    count = bands or min(BANDS, modes)
    answer = attempt(cells, n, coarse, count)
    while bands is None:
        starved = torch.nonzero(answer["covered_frequency"] < TARGET_FREQUENCY).flatten()
        if not len(starved):
            break
        count += MORE_BANDS
        if count > modes:
            raise SolverError(
                f"all {modes} bands that there are do not cover the density up to a scaled frequency of "
                f"{TARGET_FREQUENCY}",
                int(starved[0]),
            )
        with numbered(starved.tolist()):
            again = attempt(cells[starved.cpu()], n, coarse, count)
        for name in ("dos", "distance", "covered_frequency"):
            answer[name][starved] = again[name]
    return answer


def _attempt(
    cells: torch.Tensor,
    n: int,
    coarse: int,
    bands: int,
    *,
    basis: np.ndarray,
    resolution: int | None,
    settings: LabelSettings,
    point_group: np.ndarray | None,
) -> dict[str, torch.Tensor]:
    """Label cells on the n × n grid and say how far that is from the label on a coarser one.

    Only half of each grid matters, by time reversal, and only those of its wavevectors are solved that symmetry does
    not make equivalent; all of both grids at once, for what they share.
    """
    halves = [half_grid(size) for size in (n, coarse)]
    wavevectors = np.concatenate(halves)
    same = equivalence(wavevectors, basis, point_group)
    answer = same.expand(
        solver_module(settings.solver).solve_bands(
            cells,
            wavevectors[same.solved],
            bands=bands,
            polarization=settings.polarization,
            basis=basis,
            resolution=resolution,
        )
    )
    frequency, velocity = (part.split([len(half) for half in halves], dim=1) for part in answer[:2])
    fine, rest = (Bands(frequency[index], velocity[index], answer.error) for index in (0, 1))
    dos, covered = density(fine, n, cells, basis, settings)
    return {
        "dos": dos,
        "covered_frequency": covered,
        "distance": distance(dos, density(rest, coarse, cells, basis, settings)[0]),
        "frequency": fine.frequency,
        "velocity": fine.group_velocity,
    }


def density(
    half: Bands,
    n: int,
    cells: Float64[torch.Tensor, "sample x y"],
    basis: Float64[np.ndarray, "2 2"],
    settings: LabelSettings,
) -> tuple[Float64[torch.Tensor, "sample 500"], Float64[torch.Tensor, " sample"]]:
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


def _full_grid(half: dict[str, torch.Tensor], n: int) -> dict[str, torch.Tensor]:
    """Mirror the bands of half a grid onto the whole: ω(-k) = ω(k), v(-k) = -v(k)."""
    rest = slice(0, n * n // 2)
    frequency, velocity = half["frequency"], half["velocity"]
    return {
        "band_frequency": torch.cat([frequency, frequency[:, rest].flip(1)], dim=1),
        "group_velocity": torch.cat([velocity, -velocity[:, rest].flip(1)], dim=1),
    }


def distance(
    density: Float[torch.Tensor, "sample 500"], reference: Float64[torch.Tensor, "sample 500"]
) -> Float64[torch.Tensor, " sample"]:
    """Return Σ|D - D_ref| / Σ|D_ref| over the metric's points."""
    difference = (density - reference)[:, METRIC].abs().sum(dim=1)
    return difference / reference[:, METRIC].abs().sum(dim=1)
