"""What holds of bands and densities of states whatever the cell: tried on cells, lattices and grids drawn at random.

`pytest --hypothesis-profile many tests/data_gen/test_properties.py` tries many more.
"""

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as some

import data_gen
from data_gen.lattices import LATTICES, basis_vectors, reciprocal_vectors, wavevector_grid
from data_gen.plane_groups import PLANE_GROUPS, point_group
from data_gen.solvers.rbme import solve_bands
from data_gen.unit_cells import FAMILIES, FINE_SAMPLES_PER_PIXEL, unit_cell_family

POLARIZATIONS = some.sampled_from(["tm", "te"])
FRACTIONS = some.floats(-0.5, 0.5)
WAVEVECTORS = some.lists(some.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=4).map(np.array)
SEEDS = some.integers(0, 2**32 - 1)
RESOLUTIONS = some.sampled_from([8, 10, 12, 16])
FAMILY = some.one_of(
    some.sampled_from(list(FAMILIES)).map(unit_cell_family),
    some.builds(unit_cell_family, some.just("level-set"), some.sampled_from(PLANE_GROUPS), some.integers(1, 3)),
)


@some.composite
def bases(draw):
    """Any lattice that is not too flat, and not turned in any special way."""
    if draw(some.booleans()):
        return basis_vectors(draw(some.sampled_from(list(LATTICES))))
    first = draw(some.floats(0, 2 * np.pi))
    second = first + draw(some.floats(np.pi / 3, 2 * np.pi / 3))
    ratio = draw(some.floats(0.7, 1.4))
    return np.array([(np.cos(first), np.sin(first)), (ratio * np.cos(second), ratio * np.sin(second))])


ANY_LATTICE = bases()


@some.composite
def problems(draw, resolutions=RESOLUTIONS, polarization=POLARIZATIONS, lattice=ANY_LATTICE):
    """A cell of any family on any lattice, and how to solve it."""
    resolution = draw(resolutions)
    cell = draw(FAMILY).draw(draw(SEEDS), draw(some.integers(0, 10**6)), resolution)
    settings = {"bands": draw(some.integers(1, 8)), "polarization": draw(polarization), "lattice": draw(lattice)}
    return cell.epsilon, draw(WAVEVECTORS), {**settings, "resolution": resolution}


def small_problems(**given):
    """Cells on so few points that every plane wave is kept, and frequencies are exact."""
    return problems(some.sampled_from([4, 5, 6]), **given)


def solve(epsilon, k_points, **settings):
    return data_gen.solve(epsilon, k_points, solver="rbme", **settings)


def exact_frequencies(epsilon, k, *, lattice, **settings):
    """Frequencies to nearly all digits of the discretised problem."""
    return solve_bands(epsilon[None].copy(), k, basis=basis_vectors(lattice), tolerance=1e-9, **settings).frequency[0]


def assert_same_frequencies(found, expected):
    """Assert that ω² is the same, which is what the solver rounds."""
    found, expected = found.square(), expected.square()
    assert ((found - expected).abs() / expected.clamp(min=1e-3)).max() <= 1e-7


@given(small_problems(), some.integers(-20, 20), some.integers(-20, 20))
def test_a_cell_may_begin_anywhere(problem, x, y):
    epsilon, k, settings = problem
    factor = FINE_SAMPLES_PER_PIXEL
    moved = np.roll(epsilon, (factor * x, factor * y), (0, 1))
    assert_same_frequencies(exact_frequencies(moved, k, **settings), exact_frequencies(epsilon, k, **settings))


@given(small_problems(lattice=some.just("square")), some.booleans(), some.integers(0, 3))
def test_turned_and_mirrored_cells_have_turned_and_mirrored_bands(problem, mirrored, turns):
    epsilon, k, settings = problem
    moved, images = (epsilon[::-1], k * (-1, 1)) if mirrored else (epsilon, k)
    for _ in range(turns):
        moved, images = np.rot90(moved), images[:, ::-1] * (-1, 1)
    assert_same_frequencies(exact_frequencies(moved, images, **settings), exact_frequencies(epsilon, k, **settings))


@given(small_problems(), some.integers(-2, 2), some.integers(-2, 2))
def test_time_may_run_backwards_and_bands_repeat_from_zone_to_zone(problem, x, y):
    epsilon, k, settings = problem
    assume(np.abs(k).max() < 0.499)  # a finite mesh tells opposite edges of the zone apart
    here, backwards, elsewhere = (
        exact_frequencies(epsilon, wavevectors, **settings) for wavevectors in (k, -k, k + np.array([x, y]))
    )
    assert_same_frequencies(backwards, here)
    assert_same_frequencies(elsewhere, here)


@given(FAMILY, SEEDS, some.sampled_from([4, 6]), WAVEVECTORS, POLARIZATIONS)
def test_bands_have_the_symmetry_of_the_plane_group(family, seed, resolution, k, polarization):
    assume(family.lattice != "hexagonal")  # whose pixels are parallelograms: its symmetry holds to their size
    cell = family.draw(seed, 0, resolution)
    settings = {"bands": 4, "polarization": polarization, "lattice": family.lattice, "resolution": resolution}
    dual = np.linalg.inv(point_group(family.plane_group)).transpose(0, 2, 1)
    images = np.einsum("oij,kj->oki", dual, k)
    frequency = exact_frequencies(cell.epsilon, images.reshape(-1, 2), **settings)
    frequency = frequency.reshape(*images.shape[:2], 4)
    assert_same_frequencies(frequency, frequency[:1].expand_as(frequency))


@given(small_problems(), some.floats(0.05, 50))
def test_frequencies_scale_with_the_root_of_the_permittivity(problem, factor):
    epsilon, k, settings = problem
    plain, scaled = (exact_frequencies(cell, k, **settings) for cell in (epsilon, factor * epsilon))
    assert_same_frequencies(scaled * factor**0.5, plain)


@given(ANY_LATTICE, WAVEVECTORS, some.floats(1, 20), some.integers(10, 17), POLARIZATIONS)
def test_light_in_a_uniform_medium_moves_at_its_speed(basis, k, epsilon, resolution, polarization):
    uniform = np.full((resolution, resolution), epsilon)
    answer = solve(uniform, k, bands=4, polarization=polarization, lattice=basis)
    orders = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    length = np.linalg.norm((k[:, None] + orders) @ reciprocal_vectors(basis), axis=-1)
    expected = np.sort(length, axis=1)[:, :4] / epsilon**0.5
    np.testing.assert_allclose(answer["frequency"], expected, atol=1e-7)
    speed = np.linalg.norm(answer["group_velocity"], axis=-1)
    moving = expected > 1e-3
    np.testing.assert_allclose(speed[moving], epsilon**-0.5, rtol=1e-4)


@given(FAMILY, some.lists(SEEDS, min_size=2, max_size=3), POLARIZATIONS, some.integers(3, 7))
def test_a_batch_is_its_cells_one_by_one(family, seeds, polarization, n):
    cells = np.stack([family.draw(seed, 0, 8).epsilon for seed in seeds])
    settings = {"polarization": polarization, "lattice": family.lattice, "resolution": 8, "bands": 5}
    together = solve(cells, n, **settings)
    density = data_gen.density_of_states(together, epsilon_mean=cells.mean((1, 2)))
    for i, cell in enumerate(cells):
        alone = solve(cell, n, **settings)
        xr.testing.assert_identical(together.isel(sample=i), alone)
        expected = data_gen.density_of_states(alone, epsilon_mean=cell.mean())
        xr.testing.assert_allclose(density.isel(sample=i), expected, rtol=1e-10, atol=1e-10)


@given(FAMILY, SEEDS, some.integers(0, 2**32 - 1), some.integers(4, 16))
def test_the_same_seed_and_index_give_the_same_bytes(family, seed, index, resolution):
    first = family.draw(seed, index, resolution)
    family.draw(seed + 1, index, resolution)
    again = family.draw(seed, index, resolution)
    assert first.epsilon.tobytes() == again.epsilon.tobytes()
    assert {name: value.tobytes() for name, value in first.parameters.items()} == {
        name: value.tobytes() for name, value in again.parameters.items()
    }


@given(
    problems(),
    some.sampled_from([np.float32, np.float64, np.int32, np.int64]),
    some.sampled_from([np.asarray, torch.as_tensor, xr.DataArray]),
)
def test_cells_come_as_any_real_array(problem, dtype, container):
    epsilon, k, settings = problem
    whole = np.rint(epsilon).astype(dtype)
    expected = solve(whole.astype(np.float64), k, **settings)
    xr.testing.assert_identical(solve(container(whole), k, **settings), expected)
    named = xr.DataArray(whole, dims=("sample", "x", "y")[-whole.ndim :]).transpose(..., "y", "x")
    xr.testing.assert_identical(solve(named, k, **settings), expected)


@given(problems(), some.integers(1, 9), some.sampled_from([0.01, 0.02, 0.05]))
def test_each_band_holds_one_state(problem, n, smoothing):
    epsilon, _, settings = problem
    bands = solve(epsilon, n, **settings)
    index = epsilon.mean() ** 0.5
    fine = np.linspace(0, float(bands["frequency"].max()) * index + 2.5, 4000)
    density = data_gen.density_of_states(bands, epsilon_mean=epsilon.mean(), frequency=fine, smoothing=smoothing)
    assert np.trapezoid(density, fine) == pytest.approx(settings["bands"], abs=1e-3 * settings["bands"])
    assert density.min() > -1e-6 * density.max()


@given(problems(), some.integers(1, 9), some.floats(0.05, 50), some.sampled_from([0.01, "published"]))
def test_density_over_scaled_frequency_knows_no_scale_of_the_permittivity(problem, n, factor, smoothing):
    epsilon, _, settings = problem
    assume(n * settings["bands"] > 1 or smoothing != "published")  # a fraction of nothing: refused, see test_dos.py
    plain, scaled = (
        data_gen.density_of_states(solve(cell, n, **settings), epsilon_mean=cell.mean(), smoothing=smoothing)
        for cell in (epsilon, factor * epsilon)
    )
    np.testing.assert_allclose(scaled, plain, atol=1e-3 * float(plain.max()))


@pytest.mark.filterwarnings("ignore:.* bands do not cover the density")
@given(problems(), some.integers(2, 9))
def test_half_of_the_grid_gives_the_density_of_the_whole(problem, n):
    epsilon, _, settings = problem
    label = data_gen.label(epsilon, k_points=n, **settings)
    whole = data_gen.density_of_states(solve(epsilon, n, **settings), epsilon_mean=epsilon.mean())
    np.testing.assert_allclose(label["dos"], whole, atol=1e-3 * float(whole.max()))


@given(some.integers(1, 30))
def test_the_grid_of_wavevectors_is_its_own_opposite(n):
    grid = wavevector_grid(n)
    np.testing.assert_allclose(grid, -grid[::-1], atol=1e-15)
    assert np.abs(grid).max() < 0.5
