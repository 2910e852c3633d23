"""Band solvers: one contract, two solvers."""

import importlib
from importlib.metadata import version
from types import ModuleType

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from data_gen.lattices import basis_vectors, wavevector_grid
from data_gen.solvers.contract import Bands, as_tensor, check_own_lattice, is_whole
from data_gen.solvers.equivalence import equivalence

SOLVERS = ("mpb", "rbme")


def solver_module(name: str) -> ModuleType:
    """Return the module of a solver; raises `ValueError`, naming those there are, if there is none."""
    if name not in SOLVERS:
        raise ValueError(f"`solver` must be one of {', '.join(SOLVERS)}, got {name!r}.")
    return importlib.import_module(f"data_gen.solvers.{name}")


def solver_version(name: str) -> str:
    """Return what a solver's answers depend on beside its input, for the record."""
    if name == "mpb":
        return solver_module(name).version()
    return f"photonic_essl {version('photonic_essl')} with torch {torch.__version__}"


def solve(
    epsilon: np.ndarray | torch.Tensor | xr.DataArray,
    k_points: int | np.ndarray = 25,
    *,
    bands: int = 10,
    polarization: str = "tm",
    solver: str = "mpb",
    lattice: str | np.ndarray = "square",
    resolution: int | None = None,
) -> xr.Dataset:
    """Solve the photonic bands of one cell or a batch of cells.

    Args:
        epsilon: relative permittivity on one period, shape `(x, y)` or `(sample, x, y)`, real and positive. Axis x runs
            along the first lattice vector.
        k_points: n for the n × n grid of the reference, cell centres of the whole Brillouin zone; or wavevectors of
            shape `(k, 2)` in units of the reciprocal lattice vectors, kept in order.
        bands: number of bands, lowest first.
        polarization: "tm" (E along z) or "te" (H along z).
        solver: "mpb" (the reference) or "rbme" (the fast one).
        lattice: "square", "hexagonal" (vectors 120° apart, (1, 0) and (-½, √3/2)), "rectangular", "centred",
            "oblique", or basis vectors of shape `(2, 2)`, one a row, in units of a. Where cells say of themselves
            which it is, as those of `open_dataset` do, it has to be that.
        resolution: points of the solver's grid along the first lattice vector, where `epsilon` is finer than it by a
            whole factor, nine say: TM gets the mean over each pixel, TE the effective tensor of subpixel smoothing. The
            grid of `epsilon` itself where not given, whose pixels are then taken to be of one material each.

    Returns:
        Dataset with `frequency (…, k, band)` in 2πc/a, `group_velocity (…, k, band, axis)` in c, Cartesian,
        `wavevector (k, axis)` in units of the reciprocal vectors, and `frequency_error (…)`, the solver's estimate of
        its largest relative error.

    Raises:
        ValueError: if an argument breaks a rule above; the message states the rule and what was given.
        ConvergenceError: if the solver cannot reach its tolerance.
        MPBUnavailableError, MPBError: if MPB is asked for and cannot be had, or fails.
    """
    cells = as_tensor(epsilon)
    single = cells.ndim == 2
    cells = cells[None] if single else cells
    basis = basis_vectors(lattice)
    check_own_lattice(epsilon, basis)
    wavevectors = wavevector_grid(int(k_points)) if is_whole(k_points) else _wavevectors(k_points)
    same = equivalence(wavevectors, basis)
    answer = solver_module(solver).solve_bands(
        cells,
        wavevectors[same.solved],
        bands=bands,
        polarization=polarization,
        basis=basis,
        resolution=resolution,
    )
    return _dataset(same.expand(answer), wavevectors, single, lattice=basis, solver=solver, polarization=polarization)


def _wavevectors(k_points: ArrayLike) -> np.ndarray:
    wavevectors = np.asarray(k_points, dtype=np.float64)
    if wavevectors.ndim != 2 or wavevectors.shape[1] != 2 or not len(wavevectors) or not np.isfinite(wavevectors).all():
        raise ValueError(
            f"`k_points` must be a whole number or finite wavevectors (k, 2), got shape {wavevectors.shape}."
        )
    return wavevectors


def _dataset(
    answer: Bands, wavevectors: np.ndarray, single: bool, *, lattice: np.ndarray, **attributes: str
) -> xr.Dataset:
    lead = () if single else ("sample",)
    frequency, velocity, error = (part[0] if single else part for part in (t.detach().cpu().numpy() for t in answer))
    return xr.Dataset(
        {
            "frequency": ((*lead, "k", "band"), frequency, {"units": "2πc/a", "long_name": "band frequency"}),
            "group_velocity": (
                (*lead, "k", "band", "axis"),
                velocity,
                {"units": "c", "long_name": "group velocity"},
            ),
            "wavevector": (
                ("k", "axis"),
                wavevectors,
                {"units": "reciprocal vectors", "long_name": "wavevector in the reciprocal basis"},
            ),
            "frequency_error": (
                lead,
                error,
                {"units": "1", "long_name": "estimated largest relative error in frequency"},
            ),
        },
        attrs={**attributes, "lattice": lattice.reshape(-1)},
    )
