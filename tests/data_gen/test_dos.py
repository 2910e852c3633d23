import numpy as np
import pytest
import torch
import xarray as xr
from scipy.special import ellipk

from data_gen.dos import bend, density_of_states, half_widths, histogram, scaled_frequencies
from data_gen.lattices import basis_vectors, reciprocal_vectors, wavevector_grid


def bands_of(frequency, velocity, lattice="square", n=25):
    return xr.Dataset(
        {
            "frequency": (("k", "band"), frequency),
            "group_velocity": (("k", "band", "axis"), velocity),
            "wavevector": (("k", "axis"), wavevector_grid(n)),
        },
        attrs={"lattice": basis_vectors(lattice).reshape(-1)},
    )


def empty_lattice(n, epsilon, lattice="square", bands=10):
    """Bands |k + G| / n of a uniform medium, with their exact velocities."""
    shifts = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    q = (wavevector_grid(n)[:, None] + shifts) @ reciprocal_vectors(basis_vectors(lattice))
    order = np.argsort(np.linalg.norm(q, axis=-1), axis=1)[:, :bands]
    q = np.take_along_axis(q, order[..., None], axis=1)
    length = np.linalg.norm(q, axis=-1)
    velocity = q / np.where(length > 1e-12, length, 1.0)[..., None]
    return bands_of(length / np.sqrt(epsilon), velocity / np.sqrt(epsilon), lattice, n)


@pytest.mark.parametrize(("n", "mean", "worst"), [(25, 4e-4, 4e-3), (49, 4e-5, 4e-4)])
@pytest.mark.parametrize("epsilon", [1.0, 7.3])
def test_empty_lattice(n, mean, worst, epsilon):
    density = density_of_states(empty_lattice(n, epsilon), epsilon_mean=epsilon)
    frequency = density["frequency"].values
    inside = (frequency > 0.1) & (frequency < 0.96)
    error = np.abs(density.values / (2 * np.pi * np.where(frequency > 0, frequency, 1)) - 1)[inside]
    assert error.mean() < mean
    assert error.max() < worst
    assert bool(density["valid"].all())


def test_empty_hexagonal_lattice_has_the_density_of_its_area():
    density = density_of_states(empty_lattice(49, 2.0, "hexagonal"), epsilon_mean=2.0)
    frequency = density["frequency"].values
    inside = (frequency > 0.1) & (frequency < 0.96)
    np.testing.assert_allclose(density[inside], 2 * np.pi * frequency[inside] * np.sqrt(3) / 2, rtol=1e-3)


def test_published_integration_of_the_empty_lattice_is_gilat_and_raubenheimers():
    # Planes alone get a cone of constant slope right; the correction for bends leaves the published labels alone.
    bands = empty_lattice(49, 1.0, bands=20)
    frequency = np.linspace(0.2, 0.96, 50)
    density = density_of_states(bands, epsilon_mean=1.0, frequency=frequency, smoothing="published")
    np.testing.assert_allclose(density, 2 * np.pi * frequency, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.02, "published"])
def test_error_falls_with_the_square_of_the_grid(smoothing):
    """On the tight-binding band, against the same band on a far finer grid."""
    points = np.linspace(2.5, 5.5, 40)

    def density(n):
        k = 2 * np.pi * wavevector_grid(n)
        bands = bands_of(6 + 2 * np.cos(k).sum(axis=1, keepdims=True), -4 * np.pi * np.sin(k)[:, None, :], n=n)
        return density_of_states(bands, epsilon_mean=1.0, frequency=points, smoothing=smoothing).values

    exact = density(401)
    errors = {n: np.abs(density(n) - exact).mean() for n in (25, 51)}
    order = np.log(errors[25] / errors[51]) / np.log(51 / 25)
    assert order > 1.7
    assert errors[51] / exact.mean() < (2e-3 if smoothing == 0.02 else 5e-3)


def test_bend_is_the_mean_of_a_smooth_band_over_its_cell_less_its_centre():
    # The mean of cos k over a cell of width h is cos k · sin(h/2) / (h/2).
    n = 51
    k = 2 * np.pi * wavevector_grid(n)
    velocity = torch.from_numpy(-4 * np.pi * np.sin(k))[None, :, None]  # of 2 cos kx + 2 cos ky, over 2π
    exact = 2 * np.cos(k).sum(axis=1) * (np.sinc(1 / n) - 1)
    found = bend(velocity, n, np.eye(2))[0, :, 0].numpy()
    assert np.abs(found - exact).mean() < 0.02 * np.abs(exact).mean()


def test_bend_is_none_where_the_slope_turns_back():
    # Slopes of one band that alternate from cell to cell, as where it is now one branch of a crossing, now the other.
    n = 9
    alternating = (-1.0) ** np.arange(n - 1)
    slope = np.zeros((n, n))
    slope[: n - 1] = alternating[:, None]
    velocity = torch.from_numpy(np.stack([slope, 0 * slope], axis=-1)).reshape(1, n * n, 1, 2)
    inner = bend(velocity, n, np.eye(2)).reshape(n, n)[1 : n - 2]
    assert float(inner.abs().max()) == 0.0


def test_each_band_holds_one_state():
    bands = empty_lattice(25, 3.0)
    frequency = torch.from_numpy(bands["frequency"].values).T.contiguous()
    widths = half_widths(torch.from_numpy(bands["group_velocity"].values), 25, np.eye(2)).transpose(0, 1)
    weight = torch.full((625,), 1 / 625, dtype=torch.float64)
    states = histogram(frequency * 1600, widths * 1600, weight, 4000).sum(dim=1)
    np.testing.assert_allclose(states, 1.0, atol=1e-9)


def test_smoothing_conserves_states():
    fine = np.linspace(0, 3.0, 6001)
    density = density_of_states(empty_lattice(25, 1.0), epsilon_mean=1.0, frequency=fine, smoothing=0.05)
    assert np.trapezoid(density, fine) == pytest.approx(10, abs=1e-4)


def test_tight_binding_band_against_the_elliptic_integral():
    # E = 2 (cos k_x + cos k_y) has D(E) = K(m) / (2π²), m = 1 - E²/16; moved to positive frequencies.
    n, offset = 201, 6.0
    k = 2 * np.pi * wavevector_grid(n)
    frequency = offset + 2 * np.cos(k).sum(axis=1, keepdims=True)
    velocity = -2 * 2 * np.pi * np.sin(k)[:, None, :]
    points = np.array([2.5, 3.0, 4.0, 5.0, 7.0, 8.5])
    density = density_of_states(bands_of(frequency, velocity, n=n), epsilon_mean=1.0, frequency=points, smoothing=0.02)
    expected = ellipk(1 - (points - offset) ** 2 / 16) / (2 * np.pi**2)
    np.testing.assert_allclose(density, expected, rtol=2e-3)


def test_label_does_not_depend_on_the_number_of_bands_but_published_smoothing_does():
    few, many = (empty_lattice(25, 2.0, bands=bands) for bands in (8, 20))
    inside = slice(100, 400)
    fixed = [density_of_states(bands, epsilon_mean=2.0)[inside] for bands in (few, many)]
    published = [density_of_states(bands, epsilon_mean=2.0, smoothing="published")[inside] for bands in (few, many)]
    np.testing.assert_allclose(*fixed, atol=1e-10)
    assert np.abs(published[0] - published[1]).max() > 1e-3


def test_points_above_the_bands_are_marked():
    density = density_of_states(empty_lattice(25, 1.0, bands=3), epsilon_mean=1.0)
    valid = density["valid"].values
    assert valid[:100].all()
    assert not valid[-1]
    exact = 2 * np.pi * density["frequency"].values
    np.testing.assert_allclose(density.values[valid][50:], exact[valid][50:], rtol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smoothing": 0}, "`smoothing` must be a number from 0.0001 to less than 1"),
        ({"smoothing": "wide"}, "`smoothing` must be"),
        ({"epsilon_mean": -1.0}, "`epsilon_mean` must be positive"),
        ({"frequency": np.array([0.3, 0.2])}, "`frequency` must be one ascending list"),
        ({"frequency": np.array([0.1, np.nan, 0.3])}, "`frequency` must be one ascending list of finite"),
        ({"frequency": np.array([0.1, np.inf])}, "`frequency` must be one ascending list of finite"),
        ({"frequency": np.array([0.1, 1e9])}, "`frequency` must be one ascending list .*, from 0 to 100"),
        ({"epsilon_mean": np.ones(7)}, "`epsilon_mean` must be a number or have shape"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        density_of_states(empty_lattice(5, 1.0), **{"epsilon_mean": 1.0, **change})


def test_published_smoothing_of_zero_width_is_refused():
    with pytest.raises(ValueError, match="the lowest band at Γ alone"):
        density_of_states(empty_lattice(1, 1.0).isel(band=[0]), epsilon_mean=1.0, smoothing="published")


def test_wavevectors_off_the_grid_are_refused():
    bands = empty_lattice(5, 1.0)
    bands["wavevector"] = bands["wavevector"] + 0.01
    with pytest.raises(ValueError, match="n × n grid"):
        density_of_states(bands, epsilon_mean=1.0)


def test_default_frequencies():
    frequency = scaled_frequencies()
    assert (len(frequency), frequency[0], frequency[-1]) == (500, 0.0, 1.2)


@pytest.mark.parametrize("bands", [None, np.ones((9, 3)), xr.Dataset({"frequency": 1.0})])
def test_what_is_no_bands_is_refused(bands):
    with pytest.raises(ValueError, match="`bands` must be the Dataset that `solve` gives, got "):
        density_of_states(bands, epsilon_mean=1.0)
