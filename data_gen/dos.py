"""From bands and group velocities to the density of states.

Generalised Gilat-Raubenheimer integration (Liu, Johnson, Joannopoulos and Lu, J. Opt. 20 (2018) 044005) in two
dimensions: within each cell of the wavevector grid a band is a plane, so that it contributes a trapezoid in frequency
whose area is the weight of the cell. A trapezoid is four ramps, and a ramp is a kink integrated twice: the kinks of all
states are put on a grid and the grid is summed up twice, at a cost that does not depend on the number of frequencies.
Kinks are spread by quadratic B-splines, which makes the sum the exact mean of the density over each bin, so that states
are conserved to rounding.

A plane misses how a band bends within a k-cell. The mean of the bend is a shift, (m₁ + m₂)/24 with mᵢ the change of
slope from cell to cell, which brings labels several times closer to the k → ∞ limit; published ones do without it.

Everything is done in the scaled frequency ωn, n = sqrt(mean permittivity), in which the density of states is D/n.
"""

import functools
import math
import numbers

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float64

from data_gen.lattices import reciprocal_vectors, wavevector_grid

BINS_PER_SMOOTHING = 16
SMOOTHING = 0.01
LEAST_SMOOTHING = 1e-4
HIGHEST_FREQUENCY = 100  # scaled; what is asked for up to there fits into memory
PUBLISHED_SMOOTHING = (
    0.00525  # in units of the cell's highest frequency: 100 of the 20,000 steps of the published program
)
TARGET_FREQUENCY = 0.96  # the published regressors predict D/n below this scaled frequency
CONE_SUBCELLS = 8
STATES_AT_ONCE = 2**15  # of all cells of a batch: about 10 MB, which a core's cache holds


@functools.cache
def _default_frequency() -> Float64[np.ndarray, " frequency"]:
    return np.linspace(0.0, 1.2, 500)


def scaled_frequencies() -> Float64[np.ndarray, " frequency"]:
    """Return the scaled frequencies of a label: 500 points, 0 … 1.2, in 2πc/a."""
    return _default_frequency().copy()


def density_of_states(
    bands: xr.Dataset,
    *,
    epsilon_mean: float | np.ndarray | xr.DataArray,
    frequency: np.ndarray | None = None,
    smoothing: float | str = SMOOTHING,
) -> xr.DataArray:
    """Return the density of states D/n over the scaled frequency.

    Args:
        bands: what `solve` gives for an n × n grid of wavevectors: `frequency (…, k, band)` in 2πc/a and
            `group_velocity (…, k, band, axis)` in c.
        epsilon_mean: mean relative permittivity of each cell, a number or shape `(…)`.
        frequency: scaled frequencies ωn in 2πc/a, ascending, from 0 to 100; 500 points from 0 to 1.2 where not given.
        smoothing: standard deviation of the Gaussian in scaled frequency, positive, so that a label does not depend on
            how many bands were computed; "published" for 0.00525 · max(frequency), unscaled, as in the published
            pipeline.

    Returns:
        D/n with dimensions `(…, frequency)`, float64, in states per unit cell and 2πc/a. Coordinate `valid` tells
        which points the computed bands cover: above, the density lacks states of bands that were not computed.

    Raises:
        ValueError: if `bands` are none, or of other wavevectors than the n × n grid, an argument is out of its range,
            or no band rises above zero frequency, of which "published" smoothing would be a fraction.
    """
    check_smoothing(smoothing)
    if not isinstance(bands, xr.Dataset) or not {"frequency", "group_velocity", "wavevector"} <= set(bands.variables):
        raise ValueError(f"`bands` must be the Dataset that `solve` gives, got {type(bands).__name__}.")
    frequency = scaled_frequencies() if frequency is None else np.asarray(frequency, dtype=np.float64)
    listed = frequency.ndim == 1 and frequency.size and np.isfinite(frequency).all()
    if not listed or frequency[0] < 0 or frequency[-1] > HIGHEST_FREQUENCY or (np.diff(frequency) <= 0).any():
        raise ValueError(
            f"`frequency` must be one ascending list of finite scaled frequencies, from 0 to {HIGHEST_FREQUENCY}, "
            f"got {frequency}."
        )
    n = math.isqrt(bands.sizes["k"])
    if n * n != bands.sizes["k"] or not np.allclose(bands["wavevector"], wavevector_grid(n)):
        raise ValueError(f"`bands` must be solved on an n × n grid of wavevectors, got {bands.sizes['k']} wavevectors.")
    lead = bands["frequency"].dims[:-2]
    shape = tuple(bands.sizes[name] for name in lead)
    means = np.asarray(epsilon_mean, dtype=np.float64)
    if means.shape not in ((), shape):
        raise ValueError(f"`epsilon_mean` must be a number or have shape {shape}, got shape {means.shape}.")
    means = np.broadcast_to(means, shape).reshape(-1)
    if not (np.isfinite(means).all() and (means > 0).all()):
        raise ValueError(f"`epsilon_mean` must be positive and finite, got {epsilon_mean!r}.")
    density, covered = integrate(
        torch.from_numpy(bands["frequency"].values.reshape(-1, *bands["frequency"].shape[-2:])),
        torch.from_numpy(bands["group_velocity"].values.reshape(-1, *bands["group_velocity"].shape[-3:])),
        torch.tensor(means),
        n=n,
        basis=np.asarray(bands.attrs["lattice"]).reshape(2, 2),
        scaled_frequency=torch.from_numpy(frequency),
        smoothing=smoothing,
    )
    valid = frequency <= covered.numpy().reshape(*shape, 1)
    return xr.DataArray(
        density.numpy().reshape(*shape, -1),
        dims=(*lead, "frequency"),
        coords={
            "frequency": ("frequency", frequency, {"units": "2πc/a", "long_name": "scaled frequency ωn"}),
            "valid": (
                (*lead, "frequency"),
                valid,
                {"units": "1", "long_name": "covered by the computed bands"},
            ),
        },
        attrs={"units": "a/2πc", "long_name": "density of states per unit cell, divided by n"},
        name="dos",
    )


def check_smoothing(smoothing: float | str) -> None:
    """Raise `ValueError` unless `smoothing` is a number that a grid of wavevectors can resolve, or "published"."""
    if smoothing != "published" and not (isinstance(smoothing, numbers.Real) and LEAST_SMOOTHING <= smoothing < 1):
        raise ValueError(
            f'`smoothing` must be a number from {LEAST_SMOOTHING} to less than 1, or "published", got {smoothing!r}.'
        )


def integrate(
    frequency: Float64[torch.Tensor, "sample k band"],
    group_velocity: Float64[torch.Tensor, "sample k band 2"],
    epsilon_mean: Float64[torch.Tensor, " sample"],
    *,
    n: int,
    basis: Float64[np.ndarray, "2 2"],
    scaled_frequency: Float64[torch.Tensor, " point"],
    smoothing: float | str,
) -> tuple[Float64[torch.Tensor, "sample point"], Float64[torch.Tensor, " sample"]]:
    """Return D/n at the scaled frequencies, and the highest scaled frequency that the bands cover.

    Args:
        frequency: in 2πc/a, on `wavevector_grid(n)` or on the first half of it, `(n² + 1) // 2` wavevectors, which time
            reversal mirrors onto the rest.
        group_velocity: Cartesian, in c.
        epsilon_mean: of each cell.
        n: number of wavevectors along each reciprocal vector.
        basis: lattice vectors, one a row, in units of a.
        scaled_frequency: where D/n is wanted, ascending.
        smoothing: as in `density_of_states`.

    Returns:
        D/n, and the covered scaled frequency.

    Raises:
        ValueError: if "published" smoothing is asked for, and no band of a cell rises above zero frequency.
    """
    count = max(1, STATES_AT_ONCE // frequency[0].numel())
    if len(frequency) > count:
        parts = [
            integrate(*part, n=n, basis=basis, scaled_frequency=scaled_frequency, smoothing=smoothing)
            for part in zip(frequency.split(count), group_velocity.split(count), epsilon_mean.split(count))
        ]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    index = epsilon_mean.sqrt()
    half_width = half_widths(group_velocity, n, basis)
    if isinstance(smoothing, str):
        width = PUBLISHED_SMOOTHING * frequency.amax(dim=(1, 2)) * index
        if not (width > 0).all():
            raise ValueError(
                '`smoothing` "published" is a fraction of the highest frequency, which for the lowest band at Γ alone '
                "is 0: it takes more bands or wavevectors."
            )
        range_in_widths = 1.0 / PUBLISHED_SMOOTHING
    else:
        frequency = frequency + bend(group_velocity, n, basis)
        width = torch.full_like(index, float(smoothing))
        range_in_widths = float(scaled_frequency[-1]) / smoothing
    covered = (frequency - half_width.sum(-1))[..., -1].amin(dim=1) * index - 3 * width
    centre, half_width, weight = _states(frequency, half_width, n)

    step = width / BINS_PER_SMOOTHING
    per_bin = index / step
    bins = math.ceil(range_in_widths * BINS_PER_SMOOTHING) + 6 * BINS_PER_SMOOTHING
    density = histogram(centre * per_bin[:, None], half_width * per_bin[:, None, None], weight, bins)
    density = _smooth(density, BINS_PER_SMOOTHING) / step[:, None]
    return _interpolate(density, scaled_frequency / step[:, None]), covered


def half_widths(
    group_velocity: Float64[torch.Tensor, "*state 2"], n: int, basis: Float64[np.ndarray, "2 2"]
) -> Float64[torch.Tensor, "*state 2"]:
    """Return by how much a band rises from the centre of its k-cell to the middle of each pair of edges."""
    edges = torch.as_tensor(
        reciprocal_vectors(basis) / (2 * n), dtype=group_velocity.dtype, device=group_velocity.device
    )
    return (group_velocity @ edges.T).abs()


def bend(
    group_velocity: Float64[torch.Tensor, "sample k band 2"], n: int, basis: Float64[np.ndarray, "2 2"]
) -> Float64[torch.Tensor, "sample k band"]:
    """Return by how much the mean of a band over its k-cell lies above its centre.

    The mean of the change of slope to the next cell and that from the last one counts, but at most twice the smaller,
    and none if they differ in sign: where bands cross or nearly cross, one of the two belongs to another band. In the
    finite-volume literature this is the monotonised central limiter (van Leer, J. Comput. Phys. 23 (1977) 276).

    Args:
        group_velocity: on the n × n grid or its first half.
        n: number of wavevectors along each reciprocal vector.
        basis: lattice vectors, one a row.
    """
    samples, wavevectors, bands, _ = group_velocity.shape
    if n < 3:
        return group_velocity.new_zeros(samples, wavevectors, bands)
    edges = torch.as_tensor(reciprocal_vectors(basis) / n, dtype=group_velocity.dtype, device=group_velocity.device)
    rise = group_velocity @ edges.T
    if wavevectors != n * n:
        rise = torch.cat([rise, -rise[:, : n * n // 2].flip(1)], dim=1)
    rise = rise.view(samples, n, n, bands, 2)
    total = rise.new_zeros(samples, n, n, bands)
    for axis in (0, 1):
        slope = rise[..., axis]
        onward = slope.roll(-1, dims=axis + 1) - slope
        backward = onward.roll(1, dims=axis + 1)
        change = (onward + backward) / 2
        for side in (onward, backward):
            change = change.clamp(2 * side.clamp(max=0), 2 * side.clamp(min=0))
        total += change
    return total.view(samples, n * n, bands)[:, :wavevectors] / 24


def histogram(
    centre: Float64[torch.Tensor, "sample state"],
    half_width: Float64[torch.Tensor, "sample state 2"],
    weight: Float64[torch.Tensor, " state"],
    bins: int,
) -> Float64[torch.Tensor, "sample {bins}"]:
    """Return the mean over each bin [j, j + 1) of the density of all states, folded at zero frequency.

    A state is a trapezoid: the convolution of two boxes, of half widths w₁ and w₂, about its centre. Its second
    derivative is four kinks at ±w₁ ±w₂, each of strength ±1/(4 w₁ w₂). A kink at -u < 0 folds into one at u and a
    constant, for the density is even in frequency.

    Args:
        centre: in bins.
        half_width: in bins, at least 0.
        weight: of each state.
        bins: number of bins; what lies above is left out.

    Returns:
        Density in states per bin; sums to the weight of the states that lie within the range.
    """
    half_width = half_width.clamp(min=0.5)  # flat bands and cell edges: half a bin, far below the smoothing
    w1, w2 = half_width.unbind(-1)
    strength = weight / (4 * w1 * w2)
    kinks = torch.cat([centre + w1 + w2, centre + w1 - w2, centre - w1 + w2, centre - w1 - w2], dim=1)
    strength = torch.cat([strength, -strength, -strength, strength], dim=1)
    constant = 2 * (strength * (-kinks).clamp(min=0)).sum(dim=1, keepdim=True)

    # A kink at t within its bin goes to three bins by the quadratic B-spline (1-t)²/2, ½+t-t², t²/2: the moments of all
    # kinks of a bin are summed first, which is a third of the work.
    kinks = kinks.abs().clamp(max=bins)
    cell = kinks.long()
    t = kinks - cell
    cell += torch.arange(len(cell), device=cell.device)[:, None] * (bins + 1)
    moments = []
    for _ in range(3):
        moments.append(torch.bincount(cell.view(-1), strength.view(-1), len(cell) * (bins + 1)).view(-1, bins + 1))
        strength = strength * t
    zeroth, first, second = moments
    second_derivative = zeroth / 2 - first + second / 2
    second_derivative[:, 1:] += (zeroth / 2 + first - second)[:, :-1]
    second_derivative[:, 2:] += (second / 2)[:, :-2]
    return second_derivative[:, :bins].cumsum(dim=1).cumsum(dim=1) + constant


def _states(
    frequency: Float64[torch.Tensor, "sample k band"], half_width: Float64[torch.Tensor, "sample k band 2"], n: int
) -> tuple[
    Float64[torch.Tensor, "sample state"], Float64[torch.Tensor, "sample state 2"], Float64[torch.Tensor, " state"]
]:
    """Return centre, half width and weight of every k-cell and band.

    At Γ the lowest band is the tip of a cone, which no plane fits: its k-cell is divided, on the cone
    ω² = κᵀMκ through the neighbouring wavevectors.
    """
    samples, wavevectors, bands = frequency.shape
    weight = torch.full((wavevectors, bands), 1.0 / n**2, dtype=frequency.dtype, device=frequency.device)
    if wavevectors != n * n:
        weight *= 2
        if n % 2:
            weight[-1] /= 2
    centre, half_width, weight = frequency.reshape(samples, -1), half_width.reshape(samples, -1, 2), weight.reshape(-1)
    if n % 2 == 0 or n < 3:
        return centre, half_width, weight
    gamma = (n * n - 1) // 2
    along_1, along_2, diagonal = (frequency[:, gamma - step, 0, None] ** 2 for step in (n, 1, n + 1))
    mixed = (diagonal - along_1 - along_2) / 2
    axis = ((torch.arange(CONE_SUBCELLS, dtype=weight.dtype, device=weight.device) + 0.5) / CONE_SUBCELLS) - 0.5
    kappa_1, kappa_2 = (part.reshape(-1) for part in torch.meshgrid(axis, axis, indexing="ij"))
    slope_1, slope_2 = along_1 * kappa_1 + mixed * kappa_2, mixed * kappa_1 + along_2 * kappa_2
    cone = (kappa_1 * slope_1 + kappa_2 * slope_2).clamp(min=1e-30).sqrt()
    slopes = torch.stack([slope_1, slope_2], dim=-1).abs() / cone[..., None] / (2 * CONE_SUBCELLS)
    part = torch.full((CONE_SUBCELLS**2,), 1.0 / (n * CONE_SUBCELLS) ** 2, dtype=weight.dtype, device=weight.device)
    weight[gamma * bands] = 0
    return torch.cat([centre, cone], dim=1), torch.cat([half_width, slopes], dim=1), torch.cat([weight, part])


def _smooth(density: torch.Tensor, width: float) -> torch.Tensor:
    """Convolve `(sample, bin)` with a Gaussian of this standard deviation in bins, even at both ends."""
    bins = density.shape[1]
    even = torch.cat([density, density.flip(1)], dim=1)
    rate = torch.fft.rfftfreq(2 * bins, dtype=density.dtype, device=density.device) * 2 * math.pi
    variance = width**2 - 1.0 / 12.0  # the mean over a bin has smoothed by a twelfth already
    return torch.fft.irfft(torch.fft.rfft(even) * torch.exp(-0.5 * variance * rate**2), n=2 * bins)[:, :bins]


def _interpolate(density: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return the smooth density `(sample, bin)` at positions `(sample, point)` in bins, by cubic interpolation."""
    bins = density.shape[1]
    position = (position - 0.5).clamp(max=bins - 3)  # bin j has its centre at j + 1/2
    first = position.floor().long()
    t = position - first
    nodes = (
        (-t * (t - 1) * (t - 2) / 6, -1),
        ((t + 1) * (t - 1) * (t - 2) / 2, 0),
        (-(t + 1) * t * (t - 2) / 2, 1),
        ((t + 1) * t * (t - 1) / 6, 2),
    )
    value = torch.zeros_like(position)
    for coefficient, shift in nodes:
        bin_index = first + shift
        bin_index = torch.where(bin_index < 0, -1 - bin_index, bin_index)  # even at zero frequency
        value += coefficient * density.gather(1, bin_index)
    return value
