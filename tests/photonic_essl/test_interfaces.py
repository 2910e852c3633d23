import numpy as np
import pytest
import torch

from data_gen.lattices import basis_vectors
from data_gen.unit_cells import unit_cell_family
from photonic_essl.interfaces import along, mean_inverse
from photonic_essl.plane_waves import PlaneWaves, _evaluated
from photonic_essl.symmetry import lattice_symmetries

SQUARE = torch.eye(2)


def cells(family, count=4, seed=0):
    """Cells as `data_gen` samples them, nine samples along each of 32 pixels, and their means over pixels."""
    fine = np.stack([unit_cell_family(*family).draw(i, seed, 32).epsilon for i in range(count)])
    return fine, torch.from_numpy(over_pixels(fine)).float()


def over_pixels(fine):
    return fine.reshape(-1, 32, 9, 32, 9).mean((2, 4))


def stripes(width=0.31, high=12.0):
    """Layers normal to x, whose sides lie within pixels."""
    x = (np.arange(288) + 0.5) / 288
    fine = np.repeat(np.where(x < width, high, 1.0)[:, None], 288, axis=1)
    return fine[None], torch.from_numpy(over_pixels(fine)).float()


@pytest.mark.parametrize("family", [("blob",), ("gpm",), ("level-set", "p4mm"), ("level-set", "p6mm")])
def test_two_materials_tell_the_mean_of_the_inverse(family):
    fine, epsilon = cells(family)
    expected = over_pixels(1 / fine) * fine.mean((1, 2), keepdims=True)
    found = mean_inverse(epsilon).numpy() * fine.mean((1, 2), keepdims=True)
    off = np.abs(found - expected)
    assert np.abs(expected - 1 / epsilon.numpy() * fine.mean((1, 2), keepdims=True)).max() > 0.05
    assert np.quantile(off, 0.99) < 1e-5  # features thinner than a pixel are not known
    assert off.mean() < 1e-3


def test_without_interfaces_it_is_the_inverse():
    x = torch.arange(32) / 32
    waves = 4 + torch.cos(2 * torch.pi * x)[:, None] + 2 * torch.sin(2 * torch.pi * 2 * x)
    for epsilon in (torch.full((1, 32, 32), 7.0), waves[None]):
        torch.testing.assert_close(mean_inverse(epsilon), 1 / epsilon)


def test_interfaces_run_along_layers():
    _, epsilon = stripes()
    xx, xy, yy = along(epsilon, SQUARE).unbind(1)
    interface = (epsilon - epsilon.roll(1, 1)).abs() > 0.1
    assert (yy[interface] > 0.99).all()
    assert (xx[interface] < 0.1).all()
    assert xy.abs().max() < 1e-4


@pytest.mark.parametrize("lattice", ["square", "hexagonal"])
def test_it_is_the_root_of_a_projector_of_trace_one(lattice):
    _, epsilon = cells(("blob",))
    xx, xy, yy = along(epsilon, torch.from_numpy(basis_vectors(lattice))).unbind(1)
    torch.testing.assert_close(xx**2 + 2 * xy**2 + yy**2, torch.ones_like(xx))
    assert (xx * yy - xy**2 >= -1e-6).all()
    uniform = along(torch.full((1, 32, 32), 7.0), SQUARE)[0, :, 0, 0]
    torch.testing.assert_close(uniform, torch.tensor([0.5, 0.0, 0.5]).sqrt())


def test_it_turns_with_the_cell():
    _, epsilon = cells(("gpm",))
    turned = epsilon.flip(1).transpose(1, 2)
    xx, xy, yy = (part.flip(1).transpose(1, 2) for part in along(epsilon, SQUARE).unbind(1))
    found = along(turned, SQUARE).unbind(1)
    torch.testing.assert_close(torch.stack(found), torch.stack([yy, -xy, xx]), rtol=0, atol=1e-4)


def test_symmetric_copies_have_the_same_means():
    _, epsilon = cells(("blob",))
    group = lattice_symmetries((32, 32), SQUARE)
    copies, means = (group.copies(x[:, None], 8) for x in (epsilon, mean_inverse(epsilon)))
    torch.testing.assert_close(mean_inverse(copies.flatten(0, 2)), means.flatten(0, 2))


@pytest.mark.parametrize("cutoff", [4.5, 6.5])
def test_layers_have_the_two_effective_permittivities_of_long_waves(cutoff):
    """E along layers meets the mean of ε, across them the inverse of the mean of 1/ε (S. M. Rytov, JETP 2, 466)."""
    fine, epsilon = stripes()
    plane_waves, k = PlaneWaves(cutoff, polarization="te"), 0.05
    found = _evaluated(plane_waves._te_operator(epsilon), k * torch.eye(2))
    square = torch.linalg.eigvalsh(found.to(torch.complex128))[0, :, 0] / k**2
    expected = torch.tensor([1 / fine.mean(), (1 / fine).mean()])
    torch.testing.assert_close(square.float(), expected.float(), rtol=0.01, atol=0)
