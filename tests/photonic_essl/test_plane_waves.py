import itertools

import numpy as np
import pytest
import torch

import data_gen
from data_gen.lattices import basis_vectors
from photonic_essl.metrics import SCORED, empty_lattice, relative_error
from photonic_essl.plane_waves import PlaneWaves
from photonic_essl.regression import Regressor
from photonic_essl.symmetry import lattice_symmetries

HEXAGONAL = torch.from_numpy(basis_vectors("hexagonal"))
LATTICES = {
    "square": torch.eye(2),
    "hexagonal": HEXAGONAL,
    "rectangular": torch.tensor([[1.0, 0.0], [0.0, 1.5]]),
    "flat": torch.tensor([[1.0, 0.0], [0.0, 0.5]]),
}
EMPTY = torch.from_numpy(empty_lattice()[:400]).float()


def smooth_cells(count, seed=0, n=32):
    """Cells of low Fourier coefficients and without a symmetry, ε from 1 to 12."""
    random = np.random.default_rng(seed)
    coefficients = np.zeros((count, n, n), complex)
    coefficients[:, :3, :3] = random.normal(size=(count, 3, 3)) + 1j * random.normal(size=(count, 3, 3))
    values = np.fft.ifft2(coefficients).real
    lowest, highest = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    return torch.from_numpy(1 + 11 * (values - lowest) / (highest - lowest)).float()[:, None]


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("lattice", LATTICES.values(), ids=LATTICES)
def test_a_uniform_cell_has_the_density_of_its_area(lattice, polarization):
    plane_waves = PlaneWaves(3.2, (32, 32), lattice, polarization)
    area = float(torch.linalg.det(lattice).abs())
    difference = plane_waves(torch.full((1, 1, 32, 32), 7.3))
    torch.testing.assert_close(EMPTY + difference[0], area * EMPTY, rtol=0, atol=5e-3)
    # And so it has before what it is known to be off by is taken away.
    bare = plane_waves._density(torch.full((1, 32, 32), 7.3))[0, 40:]
    assert (bare - area * EMPTY[40:]).abs().mean() < 0.015 * area * EMPTY[40:].mean()


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_more_plane_waves_come_nearer_to_the_label(lattice, polarization):
    epsilon = smooth_cells(3)
    labels = data_gen.label(epsilon[:, 0], lattice=lattice, polarization=polarization, accuracy=1e-3)
    errors = []
    for cutoff in (1.5, 2.3, 3.2, 4.5):
        difference = PlaneWaves(cutoff, (32, 32), LATTICES[lattice], polarization)(epsilon)
        errors.append(relative_error(EMPTY + difference, labels["dos"]))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < {"tm": 0.001, "te": 0.0025 if lattice == "square" else 0.006}[polarization], errors


def rod(n, radius=0.3, high=6.0):
    """A rod in air, sampled nine times along each of n pixels, and its mean over pixels."""
    x, y = np.meshgrid(*[(np.arange(9 * n) + 0.5) / (9 * n) - 0.5] * 2, indexing="ij")
    fine = np.where(np.hypot(x, y) < radius, high, 1.0)
    return fine, torch.from_numpy(fine.reshape(n, 9, n, 9).mean((1, 3))).float()[None, None]


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("lattice", ["square", "rectangular", "flat"])
def test_two_materials_on_any_lattice_come_near_to_their_label(lattice, polarization):
    fine, epsilon = rod(32)
    basis = LATTICES[lattice]
    label = data_gen.label(fine, lattice=basis.numpy(), resolution=32, polarization=polarization)
    found = EMPTY + PlaneWaves(6.5, (32, 32), basis, polarization)(epsilon)[0]
    assert relative_error(found, label["dos"]) < {"tm": 0.003, "te": 0.006}[polarization]


@pytest.mark.gpu
@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_a_gpu_gives_what_the_cpu_gives(polarization):
    plane_waves, epsilon = PlaneWaves(6.5, polarization=polarization), smooth_cells(70)
    expected = plane_waves(epsilon)
    plane_waves.cuda()
    for _ in range(3):  # the first batches come out right where later ones do not
        torch.testing.assert_close(plane_waves(epsilon.cuda()).cpu(), expected, rtol=0, atol=3e-3)


def test_few_are_solved_at_a_time_where_matrices_are_large():
    assert PlaneWaves(6.5).batch > 50
    assert PlaneWaves(16.0, polarization="te").batch < 5
    assert PlaneWaves(6.5, (96, 96), 3 * torch.eye(2)).batch < 30


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_symmetric_copies_and_scaled_cells_are_the_same(polarization):
    plane_waves, epsilon = PlaneWaves(2.3, polarization=polarization), smooth_cells(2)
    found = plane_waves(epsilon)
    copies = lattice_symmetries((32, 32), torch.eye(2)).copies(epsilon, 8)
    for copy in itertools.chain(copies, [3 * epsilon]):
        torch.testing.assert_close(plane_waves(copy), found, rtol=0, atol=3e-3)


def test_a_cell_is_the_same_alone_and_among_others():
    plane_waves, epsilon = PlaneWaves(2.3), smooth_cells(70)
    torch.testing.assert_close(plane_waves(epsilon[66:67]), plane_waves(epsilon)[66:67], rtol=0, atol=1e-3)


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_a_coarse_grid_has_fewer_waves(polarization):
    fine, epsilon = rod(12)
    few, all_there_are = (PlaneWaves(cutoff, (12, 12), polarization=polarization)(epsilon) for cutoff in (7.1, 20))
    torch.testing.assert_close(few, all_there_are, rtol=0, atol=1e-5)
    label = data_gen.label(fine, polarization=polarization, resolution=12)["dos"]
    assert relative_error(EMPTY + few[0], label) < {"tm": 0.006, "te": 0.04}[polarization]


def test_smooth_cells_on_a_coarse_grid_come_near_to_their_label():
    epsilon = smooth_cells(2, n=8)  # in TE, what varies so fast is taken for interfaces
    label = data_gen.label(epsilon[:, 0])["dos"]
    assert relative_error(EMPTY + PlaneWaves(4.3, (8, 8))(epsilon), label) < 0.02


def test_bad_cutoffs_are_refused():
    for cutoff in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"must be positive, got {cutoff}"):
            PlaneWaves(cutoff)
    with pytest.raises(ValueError, match="a cutoff of 40 takes more than 2000 plane waves on this grid and lattice"):
        PlaneWaves(40, (128, 128))


def test_other_polarizations_and_channels_are_refused():
    with pytest.raises(ValueError, match="`polarization` must be tm or te, got 'tem'"):
        PlaneWaves(3.2, polarization="tem")
    with pytest.raises(ValueError, match="plane waves are of one channel, ε, got 2 channels"):
        Regressor("none", channels=2, plane_waves=3.2)


def test_long_thin_cells_have_as_many_states_as_lie_in_range():
    lattice = torch.tensor([(8.0, 0.0), (0.0, 0.125)])
    x, y = (torch.cos(2 * torch.pi * torch.arange(points) / points) for points in (32, 8))
    epsilon = 2 + 0.6 * x[:, None] + 0.2 * y
    found = PlaneWaves(6.0, (32, 8), lattice)(epsilon[None, None])[0, SCORED].abs().sum()
    whole = empty_lattice()[SCORED].sum()
    assert found < 3e-4 * whole, "so little does the cell differ from a uniform one of its area (1.4e-4)"
